//! One backend at a time, and only where it can send requests back.

use k8s_openapi::api::core::v1::Service;
use serde_json::json;

use crate::support::baseline::PORT;
use crate::support::cluster::Cluster;
use crate::support::stage::Stage;

/// Telepresence, with its traffic manager in the apps' namespace.
fn telepresence(stage: &Stage) -> [String; 4] {
    let namespace = stage.namespace.name();
    [
        "--backend",
        "telepresence",
        "--manager-namespace",
        namespace,
    ]
    .map(str::to_owned)
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn an_app_in_the_hands_of_one_backend_is_refused_to_the_other() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    stage.deploy("pr-42", &["orders"], &[]).end().await.well();
    let before = stage.names().await;
    let flags = telepresence(&stage);
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();

    let ended = stage.deploy("pr-43", &["orders"], &flags).end().await;

    ended.failed(
        1,
        &[
            "orders is intercepted by mirrord already (pod mirrord-proxy-orders",
            "--backend mirrord",
        ],
    );
    assert_eq!(stage.names().await, before);
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn a_service_that_leads_by_number_is_refused_before_anything_is_made() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    let raw: Service = serde_json::from_value(json!({
        "metadata": { "name": "orders-raw" },
        "spec": { "selector": { "app": "orders" }, "ports": [{ "port": PORT }] },
    }))
    .unwrap();
    stage.namespace.create(&raw).await;
    let flags = telepresence(&stage);
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();

    let ended = stage.deploy("pr-42", &["orders"], &flags).end().await;

    ended.failed(
        1,
        &[
            &format!("Service orders-raw leads its port {PORT} to a port by number"),
            "that name as its targetPort",
        ],
    );
    stage.is_clean().await;
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn a_dry_run_shows_the_client_and_the_service_that_it_takes() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    let flags = telepresence(&stage);
    let mut flags: Vec<_> = flags.iter().map(String::as_str).collect();
    flags.push("--dry-run");

    let ended = stage
        .deploy("pr-42", &["orders"], &flags)
        .end()
        .await
        .well();

    for expected in [
        "name: telepresence-proxy-orders",
        "app: telepresence-proxy",
        "\"managerNamespace\"",
        "\"service\": \"orders\"",
        "\"port\": \"http\"",
    ] {
        assert!(ended.stdout.contains(expected), "{expected} in {ended}");
    }
    assert!(!ended.stdout.contains("mirrord-proxy"), "{ended}");
    stage.is_clean().await;
}
