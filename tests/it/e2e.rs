//! `scripts/e2e`: how it counts, and what it leaves alone. The way itself takes a whole cluster.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use tempfile::TempDir;

/// A kubectl that writes down what it is asked, and what the cluster says.
struct Cluster {
    folder: TempDir,
}

impl Cluster {
    fn that_refuses_everything() -> Self {
        Self::that_says("echo refused >&2\nexit 1\n", 2)
    }

    /// But its apps answer nothing.
    fn that_takes_everything() -> Self {
        Self::that_says(
            "case \"$*\" in *' proxy '*)\necho $$ >\"$CALLS.part\" && mv \"$CALLS.part\" \"$CALLS.proxy\"\n\
             echo Starting to serve on 127.0.0.1:1\nexec sleep 300 ;;\nesac\n",
            0,
        )
    }

    fn that_says(kubectl: &str, jq: i32) -> Self {
        let folder = tempfile::tempdir().expect("a writable temp folder");
        for (name, script) in [
            (
                "kubectl",
                format!("#!/bin/sh\necho \"$*\" >>\"$CALLS\"\n{kubectl}"),
            ),
            ("curl", "#!/bin/sh\nexit 7\n".to_owned()),
            (
                "jq",
                format!("#!/bin/sh\n[ {jq} != 0 ] || cat >/dev/null\nexit {jq}\n"),
            ),
        ] {
            let path = folder.path().join(name);
            fs::write(&path, script).expect("it is writable");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
        }
        Self { folder }
    }

    fn try_it(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("it is a script")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/e2e"));
        command
            .args(arguments)
            .env_clear()
            .env(
                "PATH",
                format!("{}:/usr/bin:/bin", self.folder.path().display()),
            )
            .env("CALLS", self.folder.path().join("calls"))
            .env("CONTEXT", "somewhere")
            .stdin(Stdio::null());
        command
    }

    fn calls(&self) -> String {
        fs::read_to_string(self.folder.path().join("calls")).unwrap_or_default()
    }
}

#[test]
fn a_cluster_that_refuses_everything_fails_once_for_each_backend() {
    let cluster = Cluster::that_refuses_everything();

    let output = cluster.try_it(&["--backend", "both"]);

    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.lines().last(), Some("0 passed, 2 failed"), "{said}");
    // Why stands below what failed.
    assert!(
        said.contains("FAIL  three tiers are alive") && said.contains("      refused"),
        "{said}"
    );
}

#[test]
fn only_the_named_cluster_is_spoken_to_and_only_its_own_namespaces_are_deleted() {
    let cluster = Cluster::that_refuses_everything();

    cluster.try_it(&[]);

    let calls = cluster.calls();
    let deletions: Vec<_> = calls
        .lines()
        .filter(|call| call.contains(" delete "))
        .collect();
    assert!(
        calls
            .lines()
            .all(|call| call.starts_with("--context somewhere ")),
        "{calls}"
    );
    assert!(!deletions.is_empty(), "{calls}");
    for deletion in deletions {
        let names: Vec<_> = match deletion.split_once(" delete namespace ") {
            Some((_, names)) => names
                .split(' ')
                .filter(|word| !word.starts_with("--"))
                .collect(),
            None => deletion.split("-l session-proxy-e2e=").skip(1).collect(),
        };
        assert!(
            !names.is_empty() && names.iter().all(|name| name.starts_with("e2e-")),
            "{deletion}"
        );
    }
}

#[test]
fn what_was_mistyped_is_named_and_nothing_is_asked() {
    let cluster = Cluster::that_refuses_everything();
    for (arguments, named) in [
        (&["--backend", "socat"][..], "--backend"),
        (&["--backend"], "--backend"),
        (&["orders"], "orders"),
    ] {
        let output = cluster.try_it(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(
            String::from_utf8_lossy(&output.stderr).contains(named),
            "{arguments:?}"
        );
    }
    assert_eq!(cluster.calls(), "");
}

#[test]
fn ended_by_a_signal_it_has_not_passed_and_leaves_nothing_running() {
    let cluster = Cluster::that_takes_everything();
    let mut script = cluster
        .command(&[])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it is a script");
    let proxy = cluster.folder.path().join("calls.proxy");
    within_a_minute("the proxy to the API server starts", || proxy.exists());
    let proxy = fs::read_to_string(proxy).expect("it is whole");
    let running = format!("/proc/{}", proxy.trim());

    let pid = Pid::from_raw(script.id().try_into().expect("a process id"));
    kill(pid, Signal::SIGTERM).expect("it runs");
    let ended = script.wait().expect("it is ours");

    let mut said = String::new();
    let mut output = script.stdout.take().expect("it is piped");
    output.read_to_string(&mut said).expect("it is text");
    assert!(!ended.success(), "{said}");
    // One step was done, and the signal counts as a failure.
    assert_eq!(said.lines().last(), Some("1 passed, 1 failed"), "{said}");
    assert!(cluster.calls().contains(" delete namespace e2e-"));
    within_a_minute("the proxy ends", || !Path::new(&running).exists());
}

fn within_a_minute(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "not in a minute: {what}"
        );
        thread::sleep(Duration::from_millis(20));
    }
}
