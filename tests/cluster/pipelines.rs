//! Whole pipeline runs, by the real Tekton: the tasks and pipelines of this repository, every step with
//! its own command, environment and folders.
//!
//! What the steps need and this machine does not have is a stand-in: mirrord, the apps, and in
//! `pipelines/stand-ins` what builds, pushes and tests images.

mod floor;
mod node;

use serde_json::json;

use self::floor::{Floor, images, repositories, run_in};
use crate::support::baseline::PORT;
use crate::support::cluster::Cluster;
use crate::support::kubelet::Script;
use crate::support::stage::Stage;
use crate::support::tekton::{Runs, with_parameters};

/// The tasks of stack-pr-test with mirrord, in their order.
const TASKS: [&str; 9] = [
    "check-backend",
    "resolve",
    "build",
    "measure-baseline",
    "deploy-intercepts-mirrord",
    "deploy-intercepts-result",
    "validate-propagation",
    "validate-original-traffic",
    "run-tests",
];

const MIRRORD: &str = "stack-pr-mirrord.yaml";
const TELEPRESENCE: &str = "stack-pr-telepresence.yaml";
const CONTINUE: &str = "stack-pr-continue-mirrord.yaml";

/// What `CONTINUE` needs.
const CONTINUED: &[(&str, &str)] = &[(
    "built-images",
    r#"{"orders":"registry.example/orders:of-an-earlier-run"}"#,
)];

/// A command without an end.
const HANGS: &[&str] = &["tail", "-f", "/dev/null"];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn pipelines_mirrord_from_the_build_to_the_cleanup() {
    let floor = Floor::new().await;

    let run = floor.run(MIRRORD, "42", &[]).await;

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
    let tasks = run.tasks().await;
    assert!(
        TASKS.iter().all(|task| tasks[*task].status == "True"),
        "{tasks:?}"
    );
    floor.is_clean().await;
}

/// After all other steps of the task have done their work: what was deployed is there.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn pipelines_a_failure_in_any_task_is_cleaned_up_and_leaves_other_pull_requests_alone() {
    let floor = Floor::new().await;
    floor.bed.deploy("pr-77").end().await.well();
    let others = floor.without_agents().await;
    let mut runs = Vec::new();
    for (number, task) in (50..).zip(TASKS) {
        let run = floor.run(MIRRORD, &number.to_string(), &[]).await;
        run.last_step_does(task, &["false"]);
        runs.push((task, run));
    }

    for (index, (task, run)) in runs.iter().enumerate() {
        run.fails().await;
        let tasks = run.tasks().await;
        let story = run.story().await;
        assert_eq!(tasks[*task].status, "False", "{task}: {story}");
        assert_eq!(tasks["cleanup"].status, "True", "{task}: {story}");
        let later = &TASKS[index + 1..];
        // These two run beside each other.
        let started = later.iter().filter(|later| **later != "measure-baseline");
        for later in started {
            assert!(!tasks.contains_key(*later), "{later} after {task}: {story}");
        }
    }

    floor.has_only(&others).await;
    let answers = floor.bed.ask_all(Some("pr-77"), "/asked").await;
    assert_eq!(
        answers,
        [("pr-77".to_owned(), "pr-orders-pr-77".to_owned())]
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn pipelines_a_cleanup_that_fails_is_tried_again() {
    let floor = Floor::new().await;
    let run = floor.run(CONTINUE, "42", CONTINUED).await;
    run.all_steps_do("cleanup", &["false"]);

    run.goes_well().await;

    let said = run.said("cleanup-pod-retry1");
    assert!(said.contains("pr-orders-pr-42"), "{said}");
    floor.is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn pipelines_an_unknown_backend_fails_before_anything_is_deployed() {
    let floor = Floor::new().await;

    let run = floor
        .run(MIRRORD, "42", &[("intercept-backend", "mirord")])
        .await;

    run.fails().await;
    let tasks = run.tasks().await;
    assert!(tasks.keys().eq(["check-backend", "cleanup"]), "{tasks:?}");
    assert_eq!(tasks["cleanup"].status, "True");
    let said = run.said("check-backend");
    assert!(said.contains("intercept-backend is \"mirord\""), "{said}");
    floor.is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn pipelines_telepresence_that_cannot_deploy_is_cleaned_up() {
    let floor = Floor::new().await;
    let soon = [("deploy-timeout", "10s")];

    let run = floor.run(TELEPRESENCE, "42", &soon).await;

    run.fails().await;
    let tasks = run.tasks().await;
    assert_eq!(tasks["deploy-intercepts-telepresence"].status, "False");
    assert_eq!(tasks["cleanup"].status, "True");
    assert!(
        !tasks.contains_key("deploy-intercepts-mirrord"),
        "{tasks:?}"
    );
    assert!(!tasks.contains_key("deploy-intercepts-result"), "{tasks:?}");
    floor.is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn pipelines_a_run_whose_time_is_up_is_cleaned_up() {
    let floor = Floor::new().await;
    let mut run = floor.sample(CONTINUE, "42", CONTINUED);
    // Enough for the deploy on a busy machine.
    run["spec"]["timeouts"]["tasks"] = json!("90s");
    let run = floor.runs.start_run(run).await;
    run.last_step_does("deploy-intercepts-mirrord", HANGS);

    floor.has("Pod mirrord-proxy-orders").await;
    let outcome = run.fails().await;

    assert_eq!(outcome.reason, "PipelineRunTimeout", "{outcome:?}");
    let tasks = run.tasks().await;
    assert_eq!(tasks["deploy-intercepts-mirrord"].status, "False");
    assert_eq!(tasks["cleanup"].status, "True");
    floor.is_clean().await;
}

/// While `deploy` waits for a PR pod that never becomes ready.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn pipelines_a_run_that_is_cancelled_in_the_middle_of_a_deploy_is_cleaned_up() {
    let floor = Floor::new().await;
    floor.bed.kubelet.script("pr-orders-pr-42", Script::Unready);
    let run = floor.run(CONTINUE, "42", CONTINUED).await;
    floor.has("Pod pr-orders-pr-42").await;

    run.tell("CancelledRunFinally").await;

    let outcome = run.fails().await;
    assert_eq!(outcome.reason, "Cancelled", "{outcome:?}");
    let tasks = run.tasks().await;
    assert_eq!(
        tasks["deploy-intercepts-mirrord"].reason,
        "TaskRunCancelled"
    );
    assert_eq!(tasks["cleanup"].status, "True");
    floor.is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn pipelines_a_run_that_is_stopped_ends_its_task_and_is_cleaned_up() {
    let floor = Floor::new().await;
    let run = floor.run(CONTINUE, "42", CONTINUED).await;
    run.reaches("deploy-intercepts-mirrord").await;

    run.tell("StoppedRunFinally").await;

    let outcome = run.fails().await;
    assert_eq!(outcome.reason, "Cancelled", "{outcome:?}");
    let tasks = run.tasks().await;
    assert_eq!(tasks["deploy-intercepts-mirrord"].status, "True");
    assert!(!tasks.contains_key("deploy-intercepts-result"), "{tasks:?}");
    assert_eq!(tasks["cleanup"].status, "True");
    floor.is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn pipelines_what_an_older_run_left_in_the_workspace_is_not_believed() {
    let floor = Floor::new().await;
    let kept = json!([{
        "name": "shared-workspace",
        "persistentVolumeClaim": {"claimName": "kept"},
    }]);
    let folder = floor.runs.machine.claim("kept");
    let stale = json!({"orders": "pr-orders-pr-42"}).to_string();
    let older = folder.join("runs/00000000-0000-4000-8000-000000000000");
    std::fs::create_dir_all(&older).expect("a writable folder");
    for place in [&folder, &older] {
        std::fs::write(place.join("deployed-pods.json"), &stale).expect("a writable folder");
    }
    let mut run = floor.sample(CONTINUE, "42", CONTINUED);
    run["spec"]["workspaces"] = kept;
    let run = floor.runs.start_run(run).await;
    run.all_steps_do("deploy-intercepts-mirrord", &["true"]);

    run.fails().await;

    let tasks = run.tasks().await;
    assert_eq!(tasks["deploy-intercepts-mirrord"].status, "True");
    assert_eq!(tasks["deploy-intercepts-result"].status, "False");
    assert!(!tasks.contains_key("validate-propagation"), "{tasks:?}");
    let said = run.said("deploy-intercepts-result");
    assert!(
        said.contains("no deploy task of this run has come to its end"),
        "{said}"
    );
    assert_eq!(tasks["cleanup"].status, "True");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn pipelines_two_pull_requests_of_one_app_at_once() {
    let floor = Floor::new().await;
    let first = floor.run(CONTINUE, "41", CONTINUED).await;
    first.last_step_does("run-tests", HANGS);
    let second = floor.run(CONTINUE, "42", CONTINUED).await;
    second.last_step_does("run-tests", HANGS);
    for run in [&first, &second] {
        run.reaches("run-tests").await;
    }
    for session in ["pr-41", "pr-42"] {
        let answers = floor.bed.ask_all(Some(session), "/asked").await;
        assert_eq!(
            answers,
            [(session.to_owned(), format!("pr-orders-{session}"))]
        );
    }

    first.tell("CancelledRunFinally").await;
    first.fails().await;

    assert_eq!(first.tasks().await["cleanup"].status, "True");
    let answers = floor.bed.ask_all(Some("pr-42"), "/asked").await;
    assert_eq!(
        answers,
        [("pr-42".to_owned(), "pr-orders-pr-42".to_owned())]
    );
    second.tell("CancelledRunFinally").await;
    second.fails().await;
    floor.is_clean().await;
}

/// The PR pod is the newer run's from its deploy on.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn pipelines_the_cleanup_of_a_run_leaves_what_a_newer_run_has_taken_over() {
    let floor = Floor::new().await;
    let older = floor.run(CONTINUE, "42", CONTINUED).await;
    older.last_step_does("validate-propagation", HANGS);
    older.reaches("validate-propagation").await;
    let newer = floor.run(CONTINUE, "42", CONTINUED).await;
    newer.last_step_does("run-tests", HANGS);
    newer.reaches("run-tests").await;

    older.tell("CancelledRunFinally").await;
    older.fails().await;

    assert_eq!(older.tasks().await["cleanup"].status, "True");
    let answers = floor.bed.ask_all(Some("pr-42"), "/asked").await;
    assert_eq!(
        answers,
        [("pr-42".to_owned(), "pr-orders-pr-42".to_owned())]
    );
    newer.tell("CancelledRunFinally").await;
    newer.fails().await;
    floor.is_clean().await;
}

/// Without Telepresence itself: the stage's pods do as if its agents took their requests.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn pipelines_telepresence_deploys_and_is_cleaned_up() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    let name = stage.apps["orders"].ready(1).await.remove(0);
    let address = (stage.kubelet.ip(&name).await, PORT).into();
    let repositories = repositories();
    let runs = Runs::beside(&stage.namespace, images(repositories.path())).await;
    let run = run_in(
        &stage.namespace,
        &stage.stack(),
        address,
        TELEPRESENCE,
        "42",
    );
    // One that may speak to Telepresence's traffic manager, which has a namespace of its own.
    stage.namespace.account("session-proxy", &[]).await;
    let account = [("proxy-service-account", "session-proxy")];
    let run = runs.start_run(with_parameters(run, &account)).await;
    run.last_step_does("validate-propagation", HANGS);

    run.reaches("validate-propagation").await;
    let names = stage.names().await;
    for wanted in ["Pod pr-orders-pr-42", "Pod telepresence-proxy-orders"] {
        assert!(names.iter().any(|one| one == wanted), "{wanted}: {names:?}");
    }
    assert!(!run.tasks().await.contains_key("deploy-intercepts-mirrord"));
    run.tell("CancelledRunFinally").await;
    run.fails().await;

    assert_eq!(run.tasks().await["cleanup"].status, "True");
    stage.is_clean().await;
}
