//! `cleanup`, and what it leaves alone.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::support::cluster::Cluster;
use crate::support::eventually;
use crate::support::stage::Stage;

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn the_last_session_takes_everything_with_it() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1), ("items", 1)]).await;
    let apps = ["orders", "items"];
    stage.deploy("pr-42", &apps, &[]).end().await.well();

    let ended = stage.cleanup(&["--session", "pr-42"]).end().await.well();

    // Not eventually: it waits for it.
    assert!(stage.ours().await.is_empty(), "{ended}");
    for name in [
        "pr-orders-pr-42",
        "pr-items-pr-42",
        "role mirrord-proxy-items",
    ] {
        assert!(ended.stderr.contains(&format!("{name} is gone")), "{ended}");
    }
    assert_eq!(stage.apps["orders"].ready(1).await.len(), 1);
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn other_sessions_keep_what_is_theirs() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    stage.deploy("pr-1", &["orders"], &[]).end().await.well();
    stage.deploy("pr-2", &["orders"], &[]).end().await.well();
    stage.deploy("pr-10", &["orders"], &[]).end().await.well();
    let proxy = stage.uid("mirrord-proxy-orders").await;

    let ended = stage.cleanup(&["--session", "pr-1"]).end().await.well();

    assert!(
        ended.stderr.contains("stays: 2 other sessions use it"),
        "{ended}"
    );
    assert!(stage.pod("pr-orders-pr-1").await.is_none());
    assert_eq!(stage.uid("mirrord-proxy-orders").await, proxy);
    let there = stage.pod("mirrord-proxy-orders").await.unwrap();
    let owners: Vec<_> = there.owner_references().iter().map(|o| &*o.name).collect();
    assert_eq!(owners, ["pr-orders-pr-2", "pr-orders-pr-10"]);
    assert_eq!(stage.names().await.len(), 7);
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn nothing_to_clean_up_is_no_failure() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;

    let never = stage.cleanup(&["--session", "pr-1"]).end().await.well();
    stage.deploy("pr-1", &["orders"], &[]).end().await.well();
    stage.cleanup(&["--session", "pr-1"]).end().await.well();
    let again = stage.cleanup(&["--session", "pr-1"]).end().await.well();

    for ended in [never, again] {
        let said = "nothing to clean up: no PR pods of session pr-1 in namespace";
        assert!(ended.stderr.contains(said), "{ended}");
    }
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn a_pipeline_run_and_the_expired_are_found_by_their_marks() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    let of_run = ["--pipeline-run", "run-1"];
    stage
        .deploy("pr-1", &["orders"], &of_run)
        .end()
        .await
        .well();
    stage
        .deploy("pr-2", &["orders"], &["--ttl", "1ms"])
        .end()
        .await
        .well();
    stage
        .deploy("pr-3", &["orders"], &["--ttl", "1h"])
        .end()
        .await
        .well();
    stage.deploy("pr-4", &["orders"], &[]).end().await.well();
    let pods = async || {
        let mut names = stage.names().await;
        names.retain(|name| name.starts_with("Pod pr-"));
        names
    };

    stage.cleanup(&["--expired"]).end().await.well();
    assert_eq!(
        pods().await,
        [
            "Pod pr-orders-pr-1",
            "Pod pr-orders-pr-3",
            "Pod pr-orders-pr-4"
        ]
    );
    stage.cleanup(&of_run).end().await.well();
    assert_eq!(pods().await, ["Pod pr-orders-pr-3", "Pod pr-orders-pr-4"]);
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn exactly_one_way_to_choose_must_be_named() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;

    let none = stage.cleanup(&[]).end().await;
    let two = stage
        .cleanup(&["--session", "pr-1", "--expired"])
        .end()
        .await;
    let strange = stage
        .cleanup(&["--session", "pr-1,a=b", "--timeout", "x"])
        .end()
        .await;
    let empty = stage.cleanup(&["--session", ""]).end().await;

    none.failed(2, &["say what to clean up"]);
    two.failed(2, &["only one of"]);
    strange.failed(2, &["pr-1,a=b", "--timeout"]);
    empty.failed(2, &["say what to clean up"]);
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn what_was_written_down_is_held_against_what_is_there() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    stage.deploy("pr-1", &["orders"], &[]).end().await.well();
    let written = r#"{"items":"pr-items-pr-1"}"#;

    let ended = stage.cleanup(&["--session", "pr-1", "--deployed-pods", written]);

    let ended = ended.end().await.well();
    for warning in [
        "warning: items: PR pod pr-items-pr-1 was deployed and is not there",
        "warning: orders: PR pod pr-orders-pr-1 is not among those that were deployed",
    ] {
        assert!(ended.stderr.contains(warning), "{ended}");
    }
    assert!(stage.ours().await.is_empty());
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn a_pod_that_does_not_end_in_time_is_told() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    stage.deploy("pr-1", &["orders"], &[]).end().await.well();
    let held = stage.kubelet.hold_deletions();

    let ended = stage.cleanup(&["--session", "pr-1", "--timeout", "1s"]);

    ended
        .end()
        .await
        .failed(1, &["pod pr-orders-pr-1", "has not ended in time"]);
    drop(held);
    stage.cleanup(&["--session", "pr-1"]).end().await.well();
    stage.is_clean().await;
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn agents_go_with_their_proxy_and_no_others() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1), ("items", 1)]).await;
    stage.deploy("pr-1", &["orders"], &[]).end().await.well();
    let proxy = stage.uid("mirrord-proxy-orders").await;
    let agent = |name: &str, labels: Value| agent(name, &labels);
    for (name, labels) in [
        (
            "left-behind",
            json!({"app": "mirrord", "session-proxy/app": "orders", "session-proxy/proxy": proxy}),
        ),
        (
            "of-nobody-we-know",
            json!({"app": "mirrord", "session-proxy/app": "orders", "session-proxy/proxy": "elsewhere"}),
        ),
        (
            "of-another-app",
            json!({"app": "mirrord", "session-proxy/app": "items", "session-proxy/proxy": proxy}),
        ),
        ("of-somebody-else", json!({"app": "mirrord"})),
        (
            "of-an-older-version",
            json!({"app": "mirrord", "session-proxy/app": "orders"}),
        ),
    ] {
        stage.namespace.create(&agent(name, labels)).await;
    }

    let ended = stage.cleanup(&["--session", "pr-1"]).end().await.well();

    let said = "orders: job left-behind of mirrord was left behind";
    assert!(ended.stderr.contains(said), "{ended}");
    let jobs = stage.namespace.api::<Job>();
    eventually("only the one is gone", async || {
        let list = jobs.list(&kube::api::ListParams::default()).await.unwrap();
        let mut names: Vec<_> = list.iter().map(ResourceExt::name_any).collect();
        names.sort();
        names
            == [
                "of-an-older-version",
                "of-another-app",
                "of-nobody-we-know",
                "of-somebody-else",
            ]
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn agents_of_a_proxy_that_lives_on_stay() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    stage.deploy("pr-1", &["orders"], &[]).end().await.well();
    stage.deploy("pr-2", &["orders"], &[]).end().await.well();
    let proxy = stage.uid("mirrord-proxy-orders").await;
    let labels =
        json!({"app": "mirrord", "session-proxy/app": "orders", "session-proxy/proxy": proxy});
    stage.namespace.create(&agent("at-work", &labels)).await;

    stage.cleanup(&["--session", "pr-1"]).end().await.well();

    let jobs = stage.namespace.api::<Job>();
    let job = jobs.get("at-work").await.unwrap();
    assert_eq!(job.metadata.deletion_timestamp, None);
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn nothing_without_our_labels_is_touched() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    for (name, labels) in [
        (
            "pr-orders-pr-1",
            json!({"app": "pr-test", "managed-by": "tekton-job-standardization"}),
        ),
        ("mirrord-proxy-orders", json!({"app": "mirrord-proxy"})),
        ("agent", json!({"app": "mirrord"})),
    ] {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": labels},
            "spec": {"containers": [{"name": "app", "image": "registry.example/app:1"}]},
        }))
        .unwrap();
        stage.namespace.create(&pod).await;
    }

    stage.cleanup(&["--session", "pr-1"]).end().await.well();
    stage.cleanup(&["--expired"]).end().await.well();

    for name in ["pr-orders-pr-1", "mirrord-proxy-orders", "agent"] {
        let pod = stage.pod(name).await.expect(name);
        assert_eq!(pod.metadata.deletion_timestamp, None, "{name}");
    }
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn a_time_that_nobody_can_read_expires_nothing() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    stage
        .deploy("pr-1", &["orders"], &["--ttl", "1ms"])
        .end()
        .await
        .well();
    let mark = json!({"metadata": {"annotations": {"session-proxy/expires-at": "yesterday"}}});
    stage
        .namespace
        .api::<Pod>()
        .patch(
            "pr-orders-pr-1",
            &PatchParams::default(),
            &Patch::Merge(mark),
        )
        .await
        .unwrap();

    let ended = stage.cleanup(&["--expired"]).end().await.well();

    assert!(
        ended.stderr.contains("no PR pods whose time is over"),
        "{ended}"
    );
    stage.uid("pr-orders-pr-1").await;
}

fn agent(name: &str, labels: &Value) -> Job {
    serde_json::from_value(json!({
        "metadata": {"name": name, "labels": labels},
        "spec": {"template": {
            "metadata": {"labels": labels},
            "spec": {
                "restartPolicy": "Never",
                "containers": [{"name": "agent", "image": "registry.example/agent:1"}],
            },
        }},
    }))
    .expect("this is a job")
}
