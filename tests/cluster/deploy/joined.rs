//! A proxy that is there already, or not any more: joined, kept, waited for, made anew.

use k8s_openapi::api::core::v1::{ConfigMap, Pod, ServiceAccount};
use k8s_openapi::api::rbac::v1::Role;
use kube::api::DeleteParams;
use serde_json::{Value, json};

use super::assert_owned_by;
use crate::support::cluster::Cluster;
use crate::support::stage::Stage;

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn a_proxy_that_others_use_otherwise_is_never_changed() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    stage.deploy("pr-1", &["orders"], &[]).end().await.well();
    let proxy = stage.uid("mirrord-proxy-orders").await;
    let mut stack: Value = serde_json::from_str(&stage.stack()).unwrap();
    stack["propagation"]["baggage-key"] = json!("other");
    let stack = stack.to_string();
    let newer = ["--proxy-image", "registry.example/session-proxy:2"];

    let refused = stage
        .deploy("pr-2", &["orders"], &["--stack-json", &stack])
        .end()
        .await;
    let kept = stage.deploy("pr-3", &["orders"], &newer).end().await;

    refused.failed(
        1,
        &[
            "used by other sessions",
            "its baggage key: dev-session, and not other",
        ],
    );
    let kept = kept.well();
    assert!(
        kept.stderr
            .contains("is kept, other sessions use it: it runs registry.example/session-proxy:1"),
        "{kept}"
    );
    assert_eq!(stage.uid("mirrord-proxy-orders").await, proxy);
    assert_owned_by(&stage, &["pr-orders-pr-1", "pr-orders-pr-3"]).await;
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn a_proxy_that_nobody_else_uses_becomes_what_its_only_session_wants() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    stage.deploy("pr-1", &["orders"], &[]).end().await.well();
    let pod = stage.uid("pr-orders-pr-1").await;
    let proxy = stage.uid("mirrord-proxy-orders").await;
    let mut stack: Value = serde_json::from_str(&stage.stack()).unwrap();
    stack["propagation"]["baggage-key"] = json!("other");
    let stack = stack.to_string();

    let ended = stage
        .deploy("pr-1", &["orders"], &["--stack-json", &stack])
        .end()
        .await;

    let ended = ended.well();
    assert!(
        ended.stderr.contains("made anew: its baggage key"),
        "{ended}"
    );
    assert_eq!(stage.uid("pr-orders-pr-1").await, pod);
    assert_ne!(stage.uid("mirrord-proxy-orders").await, proxy);
    let map = stage
        .namespace
        .api::<ConfigMap>()
        .get("mirrord-proxy-orders")
        .await
        .unwrap();
    assert!(map.data.unwrap()["intercept.json"].contains("\"other\""));
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn a_proxy_that_is_ending_is_waited_for_and_made_again() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    stage.deploy("pr-1", &["orders"], &[]).end().await.well();
    let old = stage.uid("mirrord-proxy-orders").await;
    let held = stage.kubelet.hold_deletions();
    let pods = stage.namespace.api::<Pod>();
    pods.delete("mirrord-proxy-orders", &DeleteParams::default())
        .await
        .unwrap();

    let run = stage.deploy("pr-2", &["orders"], &[]);
    run.says("waiting for pod mirrord-proxy-orders: the old one to end")
        .await;
    drop(held);

    run.end().await.well();
    assert_ne!(stage.uid("mirrord-proxy-orders").await, old);
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn a_proxy_that_goes_away_during_the_proof_is_made_again() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    stage.deafen("orders-");
    let run = stage.deploy("pr-1", &["orders"], &[]);
    run.says("waiting for the intercept to be live").await;
    let old = stage.uid("mirrord-proxy-orders").await;

    let pods = stage.namespace.api::<Pod>();
    pods.delete("mirrord-proxy-orders", &DeleteParams::default())
        .await
        .unwrap();
    run.says("went away meanwhile; beginning again").await;
    stage.hear();

    run.end().await.well();
    assert_ne!(stage.uid("mirrord-proxy-orders").await, old);
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn what_belongs_to_a_proxy_is_made_again_when_it_goes_away() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    stage.deafen("orders-");
    let run = stage.deploy("pr-1", &["orders"], &[]);
    run.says("waiting for the intercept to be live").await;
    let proxy = stage.uid("mirrord-proxy-orders").await;

    let roles = stage.namespace.api::<Role>();
    let now = DeleteParams::default();
    roles.delete("mirrord-proxy-orders", &now).await.unwrap();
    run.says("went away meanwhile; beginning again").await;
    stage.hear();

    run.end().await.well();
    roles.get("mirrord-proxy-orders").await.unwrap();
    assert_eq!(stage.uid("mirrord-proxy-orders").await, proxy);
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn a_proxy_whose_service_account_was_made_anew_is_of_no_use_and_replaced() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    stage.deploy("pr-1", &["orders"], &[]).end().await.well();
    let old = stage.uid("mirrord-proxy-orders").await;
    let accounts = stage.namespace.api::<ServiceAccount>();
    accounts
        .delete("mirrord-proxy-orders", &DeleteParams::default())
        .await
        .unwrap();

    let ended = stage.deploy("pr-2", &["orders"], &[]).end().await.well();

    assert!(ended.stderr.contains("so its token is refused"), "{ended}");
    assert_ne!(stage.uid("mirrord-proxy-orders").await, old);
    assert_owned_by(&stage, &["pr-orders-pr-2"]).await;
}
