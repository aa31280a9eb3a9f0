//! A PR pod that is made anew: what stands in for it meanwhile, and what becomes of that.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodSchedulingGate, ResourceQuota};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::json;

use super::{assert_owned_by, settled};
use crate::support::cluster::Cluster;
use crate::support::eventually;
use crate::support::kubelet::Script;
use crate::support::run::Run;
use crate::support::stage::Stage;

const PLACEHOLDER: &str = "pr-orders-pr-42.placeholder";

/// `deploy` of another image for the session.
fn deploy_image(stage: &Stage, image: &str, more: &[&str]) -> Run {
    let image = format!(r#"{{"orders":"registry.example/orders:{image}"}}"#);
    let mut flags = vec!["--built-images", image.as_str()];
    flags.extend(more);
    stage.deploy("pr-42", &["orders"], &flags)
}

/// Everything shared, with its uid, once the collector and the kubelet have said their last.
async fn shared(stage: &Stage) -> Vec<(String, String)> {
    let ours = settled(stage).await.into_iter();
    let shared = ours.filter(|(name, ..)| name.contains("mirrord-proxy-"));
    shared.map(|(name, uid, _)| (name, uid)).collect()
}

async fn assert_no_placeholder(stage: &Stage) {
    let names = stage.names().await;
    assert!(
        !names.iter().any(|name| name.contains("placeholder")),
        "{names:?}"
    );
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn a_pod_of_its_session_is_there_while_the_only_one_is_made_anew_and_what_it_owns_stays() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    stage.deploy("pr-42", &["orders"], &[]).end().await.well();
    let before = shared(&stage).await;
    let held = stage.kubelet.hold_deletions();

    let run = deploy_image(&stage, "newer", &["--pipeline-run", "run-2"]);
    run.says("the old PR pod pr-orders-pr-42 to end").await;

    let placeholder = stage.pod(PLACEHOLDER).await.expect("it stands in");
    let label = |key: &str| placeholder.labels().get(key).map(String::as_str);
    assert_eq!(label("session-proxy/session"), Some("pr-42"));
    assert_eq!(label("session-proxy/pipeline-run"), Some("run-2"));
    assert!(placeholder.metadata.deletion_timestamp.is_none());
    assert_eq!(placeholder.spec.as_ref().unwrap().node_name, None);
    assert_owned_by(&stage, &["pr-orders-pr-42", PLACEHOLDER]).await;
    drop(held);
    run.end().await.well();
    assert_no_placeholder(&stage).await;
    assert_owned_by(&stage, &["pr-orders-pr-42"]).await;
    assert_eq!(shared(&stage).await, before);
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn what_a_killed_call_left_standing_is_used_by_the_next_and_taken_by_cleanup() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    stage.deploy("pr-42", &["orders"], &[]).end().await.well();
    let before = shared(&stage).await;

    for (image, is_next) in [("second", true), ("third", false)] {
        let held = stage.kubelet.hold_deletions();
        let run = deploy_image(&stage, image, &[]);
        run.says("the old PR pod pr-orders-pr-42 to end").await;
        run.signal("KILL");
        run.end().await;
        drop(held);
        eventually("only the placeholder is left", async || {
            stage.pod("pr-orders-pr-42").await.is_none()
        })
        .await;
        assert!(stage.pod(PLACEHOLDER).await.is_some());

        if is_next {
            deploy_image(&stage, image, &[]).end().await.well();
            assert_no_placeholder(&stage).await;
            assert_owned_by(&stage, &["pr-orders-pr-42"]).await;
            assert_eq!(shared(&stage).await, before);
        } else {
            let cleaned = stage.cleanup(&["--session", "pr-42"]).end().await;
            cleaned.well();
            stage.is_clean().await;
        }
    }
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn a_new_image_that_does_not_start_leaves_neither_pod_nor_placeholder() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    stage.deploy("pr-42", &["orders"], &[]).end().await.well();
    let broken = Script::Ended { exit_code: 3 };
    stage.kubelet.script("pr-orders-pr-42", broken);

    let ended = deploy_image(&stage, "broken", &[]).end().await;

    ended.failed(1, &["PR pod pr-orders-pr-42 is not ready"]);
    stage.is_clean().await;
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn an_interrupt_at_any_moment_of_it_leaves_no_placeholder() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);

    for round in 0..8 {
        deploy_image(&stage, "first", &[]).end().await.well();
        let run = deploy_image(&stage, &format!("other-{round}"), &[]);
        run.says("PR pod").await;
        let moment = Duration::from_millis(random.u64(..800));
        tokio::time::sleep(moment).await;
        run.signal("INT");
        let ended = run.end().await;
        let names = stage.names().await;
        let is_left = names.iter().any(|name| name.contains("placeholder"));
        assert!(!is_left, "{names:?} after {moment:?}\n{ended}");
        // Where it came too early the old one is still there.
        let cleaned = stage.cleanup(&["--session", "pr-42"]).end().await;
        cleaned.well();
        stage.is_clean().await;
    }
}

/// The API server ends a pod without a node in two steps, and who hangs up between them leaves one that is
/// ending for ever, unless somebody ends it again.
#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn a_placeholder_whose_deletion_was_interrupted_is_ended_by_the_next_call() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    deploy_image(&stage, "first", &[]).end().await.well();
    let mut left = stage.pod("pr-orders-pr-42").await.expect("it was made");
    left.metadata = ObjectMeta {
        name: Some(PLACEHOLDER.to_owned()),
        labels: left.metadata.labels.take(),
        ..ObjectMeta::default()
    };
    let spec = left.spec.as_mut().expect("every pod has one");
    spec.node_name = None;
    spec.scheduling_gates = Some(vec![PodSchedulingGate {
        name: "session-proxy/placeholder".to_owned(),
    }]);
    interrupted_deletion(&stage, &left).await;

    deploy_image(&stage, "newer", &[]).end().await.well();

    assert_no_placeholder(&stage).await;
}

/// Makes that pod, and hangs up in the middle of its deletion.
async fn interrupted_deletion(stage: &Stage, pod: &Pod) {
    let pods = stage.namespace.api::<Pod>();
    let name = pod.name_any();
    for attempt in 0..4_000_u64 {
        stage.namespace.create(pod).await;
        let moment = Duration::from_micros(500 + 50 * (attempt % 100));
        let at_once = DeleteParams::default();
        let deleting = pods.delete(&name, &at_once);
        let _ = tokio::time::timeout(moment, deleting).await;
        // What the API server goes on with, it has soon done.
        tokio::time::sleep(Duration::from_millis(5)).await;
        let is_ending = async || {
            let there = stage.pod(&name).await?;
            there.metadata.deletion_timestamp
        };
        if is_ending().await.is_some() {
            tokio::time::sleep(Duration::from_millis(200)).await;
            if is_ending().await.is_some() {
                return;
            }
        }
        let _ = pods.delete(&name, &at_once).await;
        gone(stage, &name).await;
    }
    panic!("no deletion was interrupted in the middle");
}

async fn gone(stage: &Stage, pod: &str) {
    eventually("it is gone", async || stage.pod(pod).await.is_none()).await;
}

/// Each makes anew what the other made, until one is done: that one's is what stays.
#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn two_calls_at_once_leave_one_pod_the_same_proxy_and_no_placeholder() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    deploy_image(&stage, "first", &[]).end().await.well();
    let before = shared(&stage).await;

    let (same, also) = (
        deploy_image(&stage, "second", &[]),
        deploy_image(&stage, "second", &[]),
    );
    same.end().await.well();
    also.end().await.well();
    assert_no_placeholder(&stage).await;
    assert_eq!(shared(&stage).await, before);

    let (one, other) = (
        deploy_image(&stage, "third", &[]),
        deploy_image(&stage, "fourth", &[]),
    );
    let (one, other) = (one.end().await, other.end().await);
    assert!([one.code, other.code].contains(&Some(0)), "{one}\n{other}");
    assert_no_placeholder(&stage).await;
    assert_owned_by(&stage, &["pr-orders-pr-42"]).await;
    assert_eq!(shared(&stage).await, before);
}

/// Another session sees no user of the proxy in what only stands in for the one that asks.
#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn its_only_session_may_change_the_image_and_the_proxy_in_one_call() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    stage.deploy("pr-42", &["orders"], &[]).end().await.well();
    let proxy = "registry.example/session-proxy:2";

    let run = deploy_image(&stage, "newer", &["--proxy-image", proxy]);
    run.end().await.well();

    let pod = stage.pod("mirrord-proxy-orders").await.expect("it is live");
    let image = pod.spec.unwrap().containers.remove(0).image;
    assert_eq!(image.as_deref(), Some(proxy));
    assert_no_placeholder(&stage).await;
    assert_owned_by(&stage, &["pr-orders-pr-42"]).await;
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn without_room_for_a_placeholder_the_old_pod_stays_and_the_call_says_why() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    stage.deploy("pr-42", &["orders"], &[]).end().await.well();
    let before = settled(&stage).await;
    full(&stage).await;

    let ended = deploy_image(&stage, "newer", &[]).end().await;

    let reasons = ["exceeded quota: full", "no placeholder", "cleanup"];
    ended.failed(1, &reasons);
    assert_eq!(settled(&stage).await, before);
}

/// Who deploys after somebody's `cleanup` needs no more room than there was.
#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn without_room_a_pod_that_somebody_else_ends_is_waited_for_all_the_same() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    stage.deploy("pr-42", &["orders"], &[]).end().await.well();
    full(&stage).await;
    let held = stage.kubelet.hold_deletions();
    let pods = stage.namespace.api::<Pod>();
    let name = "pr-orders-pr-42";
    pods.delete(name, &DeleteParams::default()).await.unwrap();

    let run = stage.deploy("pr-42", &["orders"], &[]);
    run.says("the old PR pod pr-orders-pr-42 to end").await;
    drop(held);

    let ended = run.end().await.well();
    assert!(ended.stderr.contains("exceeded quota: full"), "{ended}");
}

/// A call that was killed before it ended the old pod, and one that may still need the placeholder.
#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn beside_a_pod_that_stays_a_placeholder_goes_unless_somebody_claims_it() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    stage.deploy("pr-42", &["orders"], &[]).end().await.well();
    let pods = stage.namespace.api::<Pod>();
    leave_placeholder(&stage).await;

    stage.deploy("pr-42", &["orders"], &[]).end().await.well();
    assert_no_placeholder(&stage).await;

    leave_placeholder(&stage).await;
    let claiming = tokio::spawn(async move {
        let claim = json!({"metadata": {"annotations": {"session-proxy/created-by": "another"}}});
        let (by, claim) = (PatchParams::default(), Patch::Merge(&claim));
        loop {
            let claimed = pods.patch(PLACEHOLDER, &by, &claim).await;
            claimed.expect("it stays");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    stage.deploy("pr-42", &["orders"], &[]).end().await.well();
    assert!(!claiming.is_finished());
    claiming.abort();
    assert!(stage.pod(PLACEHOLDER).await.is_some());
}

/// From now on the namespace has room for no pod more than there are.
async fn full(stage: &Stage) {
    let pods = stage.namespace.api::<Pod>();
    let all = pods.list(&ListParams::default()).await;
    let count = all
        .expect("the administrator may list")
        .items
        .len()
        .to_string();
    let quota = json!({"metadata": {"name": "full"}, "spec": {"hard": {"pods": count}}});
    let quota: ResourceQuota = serde_json::from_value(quota).expect("a quota");
    stage.namespace.create(&quota).await;
    let quotas = stage.namespace.api::<ResourceQuota>();
    eventually("the quota is used up", async || {
        let quota = quotas.get("full").await.expect("it is there");
        let used = quota
            .status
            .and_then(|status| status.used)
            .unwrap_or_default();
        used.get("pods").is_some_and(|pods| pods.0 == count)
    })
    .await;
}

/// As a call leaves it that was killed before it ended the old pod.
async fn leave_placeholder(stage: &Stage) {
    let pr_pod = stage.pod("pr-orders-pr-42").await.expect("it is live");
    let placeholder = json!({
        "metadata": {"name": PLACEHOLDER, "labels": pr_pod.labels()},
        "spec": {
            "schedulingGates": [{"name": "session-proxy/placeholder"}],
            "containers": [{"name": "orders", "image": "registry.example/orders:newer"}],
        },
    });
    let placeholder: Pod = serde_json::from_value(placeholder).expect("a pod");
    stage.namespace.create(&placeholder).await;
}
