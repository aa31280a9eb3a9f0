//! The app, Tekton beside it, and the images of the steps.

use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::it::support::proxy::binary;
use crate::support::kubelet::Image;
use crate::support::namespace::Namespace;
use crate::support::tekton::{self, PipelineRun, Runs, in_time, with_parameters};
use crate::whole::bed::Bed;

/// The user of the steps.
const USER: u32 = 65532;

/// A bed with one replica of `orders`, and Tekton.
pub(super) struct Floor {
    pub(super) bed: Bed,
    pub(super) runs: Runs,
    _repositories: TempDir,
}

impl Floor {
    pub(super) async fn new() -> Self {
        let bed = Bed::new(1).await;
        let repositories = repositories();
        let runs = Runs::beside(&bed.namespace, images(repositories.path())).await;
        Self {
            bed,
            runs,
            _repositories: repositories,
        }
    }

    /// A run for that pull request like that sample, with other parameters where they are named here.
    pub(super) async fn run(
        &self,
        sample: &str,
        number: &str,
        more: &[(&str, &str)],
    ) -> PipelineRun {
        self.runs.start_run(self.sample(sample, number, more)).await
    }

    /// The same, not yet started.
    pub(super) fn sample(&self, sample: &str, number: &str, more: &[(&str, &str)]) -> Value {
        let (namespace, stack) = (&self.bed.namespace, self.bed.stack());
        with_parameters(
            run_in(namespace, &stack, self.bed.address(), sample, number),
            more,
        )
    }

    /// Waits until everything of ours in the namespace is this, beside mirrord's agents, which come and
    /// go with the replicas.
    pub(super) async fn has_only(&self, wanted: &[String]) {
        in_time("nothing of the runs is left", async || {
            let ours = self.without_agents().await;
            (ours == wanted).then_some(()).ok_or(format!("{ours:?}"))
        })
        .await;
    }

    pub(super) async fn without_agents(&self) -> Vec<String> {
        let mut ours = self.bed.ours().await;
        let agents = ["Job ", "Lease ", "Pod mirrord-agent"];
        ours.retain(|one| !agents.iter().any(|prefix| one.starts_with(prefix)));
        ours
    }

    pub(super) async fn is_clean(&self) {
        in_time("nothing of the runs is left", async || {
            let ours = self.bed.ours().await;
            ours.is_empty().then_some(()).ok_or(format!("{ours:?}"))
        })
        .await;
    }

    /// Waits until that is among what is ours: kind and name.
    pub(super) async fn has(&self, wanted: &str) {
        in_time(wanted, async || {
            let ours = self.bed.ours().await;
            let is_there = ours.iter().any(|one| one == wanted);
            is_there.then_some(()).ok_or(format!("{ours:?}"))
        })
        .await;
    }
}

/// A run like that sample, for a pull request of `orders` in that namespace.
pub(super) fn run_in(
    namespace: &Namespace,
    stack: &str,
    address: SocketAddr,
    sample: &str,
    number: &str,
) -> Value {
    let base_url = format!("http://{address}");
    let parameters = [
        ("stack", stack),
        ("stack-file", ""),
        ("git-url", ""),
        ("git-base-url", "file:///repositories/"),
        ("app-revision", "feature/prices"),
        ("changed-app", "orders"),
        ("pr-number", number),
        ("image-registry", "registry.example"),
        ("default-namespace", namespace.name()),
        ("namespaces", namespace.name()),
        ("base-url", &base_url),
        ("agent-namespace", ""),
        ("proxy-service-account", ""),
        // This machine has other things to do.
        ("max-slowdown", "1000"),
    ];
    with_parameters(tekton::sample(sample), &parameters)
}

/// What the steps' images have, by the beginnings of their names.
pub(super) fn images(repositories: &Path) -> Vec<(String, Image)> {
    let session_proxy = binary();
    let tools = Image::with(&[("session-proxy", session_proxy.as_ref())]);
    let mut build = programs(&[
        (
            "images/build",
            &[
                "fetch-stack",
                "clone-source",
                "clone-apps",
                "build-apps",
                "push-apps",
            ],
        ),
        ("tests/cluster/pipelines/stand-ins", &["buildah", "skopeo"]),
    ]);
    let source = ("/repositories".to_owned(), repositories.to_owned());
    build.programs.push(source);
    let protocol = ("GIT_ALLOW_PROTOCOL".to_owned(), "file".to_owned());
    build.environment.push(protocol);
    let tests = programs(&[("tests/cluster/pipelines/stand-ins", &["run-stack-tests"])]);
    let ours = |name: &str| format!("localhost:5001/tekton-dag-build-{name}:");
    vec![
        (ours("mirrord"), tools.clone()),
        (ours("telepresence"), tools),
        (ours("image"), build),
        (ours("tests"), tests),
    ]
}

/// These of each folder of the repository.
fn programs(folders: &[(&str, &[&str])]) -> Image {
    let mut files: Vec<(&str, PathBuf)> = Vec::new();
    for (folder, names) in folders {
        let folder = tekton::repository().join(folder);
        files.extend(names.iter().map(|name| (*name, folder.join(name))));
    }
    let files: Vec<_> = { files.iter() }
        .map(|(name, file)| (*name, file.as_path()))
        .collect();
    Image::with(&files)
}

/// The git repositories of `orders`, as the stacks here name them, with the branch of a pull request.
pub(super) fn repositories() -> TempDir {
    let folder = tempfile::tempdir().expect("a writable temp folder");
    for name in ["example/orders", "shop/orders"] {
        let source = folder.path().join(name);
        std::fs::create_dir_all(&source).expect("a writable folder");
        std::fs::write(source.join("Dockerfile"), "FROM scratch\n").expect("a writable folder");
        let commit = "git init -q -b feature/prices .; git add .; \
                      git -c user.name=a -c user.email=a@example.org commit -q -m prices";
        let made = Command::new("sh")
            .current_dir(&source)
            .env("HOME", folder.path())
            .args(["-euc", commit])
            .status();
        assert!(made.expect("there is a shell").success(), "git is missing");
    }
    // Git reads only what belongs to whom it runs as.
    give(folder.path());
    folder
}

fn give(path: &Path) {
    chown(path, Some(USER), Some(USER)).expect("only root plays the kubelet");
    if path.is_dir() {
        let everybody = Permissions::from_mode(0o755);
        std::fs::set_permissions(path, everybody).expect("it is ours");
        for entry in std::fs::read_dir(path).expect("it is ours") {
            give(&entry.expect("it is ours").path());
        }
    }
}
