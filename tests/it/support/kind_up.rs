//! `scripts/kind-up` in a tree of its own, with stand-ins for what needs a container engine.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");

/// A machine with docker, kind, kubectl and curl that only remember.
pub struct KindUp {
    folder: TempDir,
}

impl KindUp {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a writable temp folder");
        let machine = Self { folder };
        for name in ["scripts", "images", "bin", "world"] {
            fs::create_dir(machine.path(name)).expect("it is new");
        }
        for name in ["config", "tasks", "pipelines", "Cargo.toml"] {
            symlink(Path::new(REPOSITORY).join(name), machine.path(name)).expect("it is new");
        }
        let script = Path::new(REPOSITORY).join("scripts/kind-up");
        fs::copy(script, machine.path("scripts/kind-up")).expect("the script is there");
        for name in ["docker", "kind", "kubectl", "curl"] {
            let stand_in = Path::new(REPOSITORY).join("tests/it/kind_up/stand-in");
            symlink(stand_in, machine.path("bin").join(name)).expect("it is new");
        }
        machine.publishes("");
        machine
    }

    /// What `images/publish` prints.
    pub fn publishes(&self, lines: &str) {
        let script =
            format!("#!/bin/sh\necho \"publish $*\" >>\"$WORLD/calls\"\ncat <<'E'\n{lines}E\n");
        let path = self.path("images/publish");
        fs::write(&path, script).expect("it is writable");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
    }

    /// Takes a program away.
    pub fn lacks(&self, program: &str) {
        fs::remove_file(self.path("bin").join(program)).expect("it was there");
    }

    /// Runs it with these arguments and variables.
    pub fn run(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
        let world = self.path("world");
        Command::new(self.path("scripts/kind-up"))
            .args(arguments)
            .env_clear()
            .env("PATH", self.path_variable())
            .env("WORLD", &world)
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .output()
            .expect("it is a script")
    }

    /// The same, and panics unless it goes well.
    pub fn well(&self, arguments: &[&str], variables: &[(&str, &str)]) -> String {
        let output = self.run(arguments, variables);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{said}\n{errors}\n{}",
            self.calls()
        );
        said
    }

    /// The calls since the last time somebody asked.
    pub fn calls(&self) -> String {
        let path = self.path("world/calls");
        let calls = fs::read_to_string(&path).unwrap_or_default();
        fs::write(path, "").expect("it is writable");
        calls
    }

    /// A file of its tree, or of the world that the stand-ins remember.
    pub fn read(&self, name: &str) -> String {
        let path = self.path(name);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Only what the script needs besides: no docker of this machine is ever called.
    fn path_variable(&self) -> String {
        let tools = self.path("tools");
        if !tools.exists() {
            fs::create_dir(&tools).expect("it is new");
            for tool in [
                "bash",
                "sh",
                "env",
                "cat",
                "cp",
                "cut",
                "dirname",
                "grep",
                "head",
                "mkdir",
                "mv",
                "realpath",
                "rm",
                "sed",
                "sha256sum",
                "tail",
                "tee",
                "touch",
            ] {
                let real = ["/usr/bin", "/bin"]
                    .iter()
                    .map(|folder| Path::new(folder).join(tool));
                let real = real.into_iter().find(|path| path.exists());
                symlink(
                    real.unwrap_or_else(|| panic!("no {tool}")),
                    tools.join(tool),
                )
                .expect("it is new");
            }
        }
        format!("{}:{}", self.path("bin").display(), tools.display())
    }
}
