//! `scripts/e2e`: how it counts, and what it leaves alone. The way itself takes a whole cluster.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// A kubectl that writes down what it is asked, and a cluster that refuses it.
struct Cluster {
    folder: TempDir,
}

impl Cluster {
    fn that_refuses_everything() -> Self {
        let folder = tempfile::tempdir().expect("a writable temp folder");
        for (name, script) in [
            (
                "kubectl",
                "#!/bin/sh\necho \"$*\" >>\"$CALLS\"\necho refused >&2\nexit 1\n",
            ),
            ("curl", "#!/bin/sh\nexit 7\n"),
            ("jq", "#!/bin/sh\nexit 2\n"),
        ] {
            let path = folder.path().join(name);
            fs::write(&path, script).expect("it is writable");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
        }
        Self { folder }
    }

    fn try_it(&self, arguments: &[&str]) -> Output {
        Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/e2e"))
            .args(arguments)
            .env_clear()
            .env(
                "PATH",
                format!("{}:/usr/bin:/bin", self.folder.path().display()),
            )
            .env("CALLS", self.folder.path().join("calls"))
            .env("CONTEXT", "somewhere")
            .stdin(Stdio::null())
            .output()
            .expect("it is a script")
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
