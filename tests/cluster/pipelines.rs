//! Whole pipeline runs, by the real Tekton: the tasks and pipelines of this repository, every step with
//! its own command, environment and folders.
//!
//! What the steps need and this machine does not have is a stand-in: mirrord, the apps, and the programs
//! of the build and tests images, in `pipelines/stand-ins`.

use std::path::Path;

use serde_json::json;

use crate::it::support::proxy::binary;
use crate::support::eventually;
use crate::support::kubelet::Image;
use crate::support::tekton::Runs;
use crate::whole::bed::Bed;

/// A bed with one replica of `orders`, and Tekton.
struct Floor {
    bed: Bed,
    runs: Runs,
}

const MIRRORD: &str = "stack-pr-mirrord.yaml";
const TELEPRESENCE: &str = "stack-pr-telepresence.yaml";
const CONTINUE: &str = "stack-pr-continue-mirrord.yaml";

    /// The parameters of a run for that pull request, beside those of the sample.
    fn parameters(&self, number: &str) -> Vec<(&'static str, String)> {
        let namespace = self.bed.namespace.name();
        vec![
            ("stack", self.bed.stack()),
            ("stack-file", String::new()),
            ("git-url", String::new()),
            ("changed-app", "orders".to_owned()),
            ("pr-number", number.to_owned()),
            ("image-registry", "registry.example".to_owned()),
            ("default-namespace", namespace.to_owned()),
            ("namespaces", namespace.to_owned()),
            ("base-url", format!("http://{}", self.bed.address())),
            ("agent-namespace", String::new()),
            ("proxy-service-account", String::new()),
        ]
    }
}

fn images() -> Vec<(String, Image)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster/pipelines/stand-ins");
    let session_proxy = binary();
    let tools = Image::with(&[("session-proxy", session_proxy.as_ref())]);
    let stand_ins = |names: &[&str]| {
        let files: Vec<_> = names
            .iter()
            .map(|name| (*name, folder.join(name)))
            .collect();
        let programs: Vec<_> = { files.iter() }
            .map(|(name, file)| (*name, file.as_path()))
            .collect();
        Image::with(&programs)
    };
    let ours = |name: &str| format!("localhost:5001/tekton-dag-build-{name}:");
    vec![
        (ours("mirrord"), tools.clone()),
        (ours("telepresence"), tools),
        (
            ours("image"),
            stand_ins(&["fetch-stack", "clone-apps", "build-apps", "push-apps"]),
        ),
        (ours("tests"), stand_ins(&["run-stack-tests"])),
    ]
}

fn borrowed<'a>(parameters: &'a [(&'static str, String)]) -> Vec<(&'a str, &'a str)> {
    { parameters.iter() }
        .map(|(name, value)| (*name, value.as_str()))
        .collect()
}

async fn nothing_is_left(floor: &Floor) {
    let nothing: [String; 0] = [];
    eventually("nothing of the run is left", async || {
        floor.bed.ours().await == nothing
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn pipelines_mirrord_from_the_build_to_the_cleanup() {
    let floor = Floor::new().await;
    let parameters = floor.parameters("42");

    let run = floor
        .runs
        .start("stack-pr-mirrord.yaml", &borrowed(&parameters))
        .await;

    run.goes_well().await;
    let results = run.results().await;
    let pods = json!({"orders": "pr-orders-pr-42"}).to_string();
    assert_eq!(results["deployed-pods"], pods);
    assert_eq!(results["test-summary"], r#"{"orders":"passed"}"#);
    let skipped = run.skipped().await;
    assert!(
        skipped.keys().eq(["deploy-intercepts-telepresence"]),
        "{skipped:?}"
    );
    nothing_is_left(&floor).await;
}
