//! The command line of one container: bubblewrap with the root that the container would see.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use k8s_openapi::api::core::v1::{Container, EnvVar, Pod};

use super::machine::{Image, Machine};
use super::volumes::{Volumes, field};

/// The user of an image that says no other.
const USER: i64 = 65532;

/// Of this machine, for all containers.
const SYSTEM: [&str; 6] = ["/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc"];

const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// One container, and what it takes to start it.
pub(super) struct Root<'a> {
    pub(super) pod: &'a Pod,
    pub(super) container: &'a Container,
    pub(super) image: &'a Image,
    pub(super) volumes: &'a Volumes,
    pub(super) machine: &'a Machine,
    /// The file that becomes the container's termination message.
    pub(super) message: &'a Path,
}

impl Root<'_> {
    pub(super) fn command(&self) -> Command {
        let environment = self.environment();
        // By path: the PATH of the container is none of this machine's.
        let mut command = Command::new("/usr/bin/bwrap");
        command.args(["--unshare-pid", "--unshare-ipc", "--unshare-uts"]);
        command.args(["--as-pid-1", "--die-with-parent"]);
        self.system(&mut command);
        self.mounts(&mut command);
        let folder = self.container.working_dir.as_deref();
        let folder = folder.filter(|folder| !folder.is_empty()).unwrap_or("/");
        command.args(["--chdir", folder, "--"]);
        self.user(&mut command);
        for word in self.words() {
            command.arg(expanded(&word, &environment));
        }
        command.env_clear().envs(environment);
        command
    }

    fn system(&self, command: &mut Command) {
        for path in SYSTEM.iter().filter(|path| Path::new(path).exists()) {
            command.args(["--ro-bind", path, path]);
        }
        command.args(["--proc", "/proc", "--dev", "/dev"]);
        command.args(["--perms", "1777", "--tmpfs", "/tmp"]);
        command.args(["--tmpfs", "/usr/local/bin"]);
        for (path, file) in &self.image.programs {
            parents(command, path);
            command.arg("--ro-bind").arg(file).arg(path);
        }
    }

    fn mounts(&self, command: &mut Command) {
        let mounts = self.container.volume_mounts.iter().flatten();
        let mut mounts: Vec<_> = mounts.collect();
        // Outer ones first.
        mounts.sort_by_key(|mount| mount.mount_path.clone());
        for mount in &mounts {
            let place = self.volumes.place(&mount.name, mount.sub_path.as_deref());
            let how = match mount.read_only {
                Some(true) => "--ro-bind",
                _ => "--bind",
            };
            parents(command, &mount.mount_path);
            command.arg(how).arg(place).arg(&mount.mount_path);
        }
        let message = self.container.termination_message_path.as_deref();
        let message = message.unwrap_or("/dev/termination-log");
        command.arg("--bind").arg(self.message).arg(message);
        if self.is_read_only() {
            let is_mounted = |path| mounts.iter().any(|mount| mount.mount_path == path);
            if !is_mounted("/tmp") {
                command.args(["--remount-ro", "/tmp"]);
            }
            command.args(["--remount-ro", "/"]);
        }
    }

    fn is_read_only(&self) -> bool {
        let context = self.container.security_context.as_ref();
        context.and_then(|context| context.read_only_root_filesystem) == Some(true)
    }

    fn user(&self, command: &mut Command) {
        let pods = self
            .pod
            .spec
            .as_ref()
            .and_then(|s| s.security_context.as_ref());
        let own = self.container.security_context.as_ref();
        let user = own.and_then(|own| own.run_as_user);
        let user = user.or(pods.and_then(|pods| pods.run_as_user));
        let group = own.and_then(|own| own.run_as_group);
        let group = group.or(pods.and_then(|pods| pods.run_as_group));
        let group = group.unwrap_or(if user.is_none() { USER } else { 0 });
        command.args(["/usr/bin/setpriv", "--pdeathsig", "KILL"]);
        command.args(["--reuid", &user.unwrap_or(USER).to_string()]);
        command.args(["--regid", &group.to_string()]);
        match pods.and_then(|pods| pods.fs_group) {
            Some(group) => command.args(["--groups", &group.to_string()]),
            None => command.arg("--clear-groups"),
        };
        if own.and_then(|own| own.allow_privilege_escalation) == Some(false) {
            command.arg("--no-new-privs");
        }
        let capabilities = own.and_then(|own| own.capabilities.as_ref());
        let dropped = capabilities.and_then(|capabilities| capabilities.drop.as_ref());
        if dropped.is_some_and(|dropped| dropped.iter().any(|name| name == "ALL")) {
            command.args(["--bounding-set=-all", "--inh-caps=-all"]);
        }
        command.arg("--");
    }

    fn words(&self) -> Vec<String> {
        let command = self.container.command.as_ref();
        let arguments = self.container.args.iter().flatten().cloned();
        let command = command.filter(|command| !command.is_empty());
        let mut words = command.unwrap_or(&self.image.entrypoint).clone();
        words.extend(arguments);
        self.machine.words(self.pod, self.container, words)
    }

    /// What a kubelet, a container runtime and the spec put there.
    fn environment(&self) -> HashMap<String, String> {
        let (host, port) = self.machine.cluster.address();
        let mut environment: HashMap<_, _> = [
            ("PATH", PATH.to_owned()),
            ("HOME", "/".to_owned()),
            (
                "HOSTNAME",
                self.pod.metadata.name.clone().unwrap_or_default(),
            ),
            ("KUBERNETES_SERVICE_HOST", host),
            ("KUBERNETES_SERVICE_PORT", port),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        environment.extend(self.image.environment.clone());
        assert!(self.container.env_from.is_none(), "no envFrom here");
        for variable in self.container.env.iter().flatten() {
            let value = self.value(variable, &environment);
            environment.insert(variable.name.clone(), value);
        }
        environment
    }

    fn value(&self, variable: &EnvVar, earlier: &HashMap<String, String>) -> String {
        let Some(source) = &variable.value_from else {
            return expanded(variable.value.as_deref().unwrap_or_default(), earlier);
        };
        let path = source.field_ref.as_ref().map(|field| &field.field_path);
        let value = path.and_then(|path| field(self.pod, path));
        value.unwrap_or_else(|| panic!("this machine cannot tell {source:?}"))
    }
}

/// The folders above it, for everybody: those that bubblewrap makes by itself may be for root alone.
fn parents(command: &mut Command, path: &str) {
    let mut above: Vec<_> = Path::new(path).ancestors().skip(1).collect();
    above.retain(|folder| *folder != Path::new("/"));
    for folder in above.iter().rev() {
        command.arg("--dir").arg(folder);
    }
}

/// As the kubelet expands `$(NAME)`: only what is known; `$$` is a dollar.
fn expanded(text: &str, known: &HashMap<String, String>) -> String {
    let mut done = String::new();
    let mut rest = text;
    while let Some(start) = rest.find('$') {
        done.push_str(&rest[..start]);
        rest = &rest[start + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            done.push('$');
            rest = after;
            continue;
        }
        let name = rest.strip_prefix('(').and_then(|rest| rest.split_once(')'));
        match name {
            Some((name, after)) => {
                match known.get(name) {
                    Some(value) => done.push_str(value),
                    None => done.push_str(&format!("$({name})")),
                }
                rest = after;
            }
            None => done.push('$'),
        }
    }
    done.push_str(rest);
    done
}

/// Where the container's output goes: both streams into one file.
pub(super) fn written_to(command: &mut Command, file: &PathBuf) {
    let output = std::fs::File::create(file).expect("a writable folder");
    let errors = output.try_clone().expect("a file can be shared");
    command
        .stdin(std::process::Stdio::null())
        .stdout(output)
        .stderr(errors);
}
