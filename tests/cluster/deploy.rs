//! `deploy`, from nothing to a live intercept and back.

mod backends;
mod failures;
mod joined;
mod replaced;
mod undone;

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde_json::Value;

use crate::support::cluster::Cluster;
use crate::support::stage::Stage;
use crate::support::{eventually, found};

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn intercepts_are_brought_up_and_proven_through_every_replica() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 2), ("items", 1)]).await;
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("deployed-pods.json");

    let ended = stage
        .deploy(
            "pr-42",
            &["orders", "items"],
            &["--out", out.to_str().unwrap()],
        )
        .end()
        .await
        .well();

    let expected = "{\"items\":\"pr-items-pr-42\",\"orders\":\"pr-orders-pr-42\"}\n";
    assert_eq!(ended.stdout, expected);
    assert_eq!(std::fs::read_to_string(&out).unwrap(), expected);
    for replica in stage.apps["orders"].ready(2).await {
        assert!(ended.stderr.contains(&replica), "{ended}");
    }
    assert_eq!(
        stage.names().await,
        [
            "ConfigMap mirrord-proxy-items",
            "ConfigMap mirrord-proxy-orders",
            "Pod mirrord-proxy-items",
            "Pod mirrord-proxy-orders",
            "Pod pr-items-pr-42",
            "Pod pr-orders-pr-42",
            "Role mirrord-proxy-items",
            "Role mirrord-proxy-orders",
            "RoleBinding mirrord-proxy-items",
            "RoleBinding mirrord-proxy-orders",
            "ServiceAccount mirrord-proxy-items",
            "ServiceAccount mirrord-proxy-orders",
        ]
    );
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn real_proxies_prove_that_they_have_found_the_session() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 2)]).await;
    stage.use_real_proxies().await;

    stage.deploy("pr-42", &["orders"], &[]).end().await.well();
    let joined = stage.deploy("pr-43", &["orders"], &[]).end().await.well();

    assert!(joined.stderr.contains("joined proxy pod"), "{joined}");
    stage.cleanup(&["--session", "pr-42"]).end().await.well();
    stage.cleanup(&["--session", "pr-43"]).end().await.well();
    assert!(stage.ours().await.is_empty());
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn the_same_call_twice_changes_nothing() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1), ("items", 1)]).await;
    let apps = ["orders", "items"];
    stage.deploy("pr-42", &apps, &[]).end().await.well();
    // The kubelet's reports and the collector's changes come in their own time.
    let before = settled(&stage).await;

    let again = stage.deploy("pr-42", &apps, &[]).end().await.well();

    assert_eq!(stage.ours().await, before, "{again}");
    assert!(again.stderr.contains("pr-orders-pr-42 is kept as it is"));
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn a_pod_whose_image_changed_is_made_anew_and_says_so() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    stage.deploy("pr-42", &["orders"], &[]).end().await.well();
    let old = stage.uid("pr-orders-pr-42").await;
    let image = r#"{"orders":"registry.example/orders:newer"}"#;

    let ended = stage
        .deploy("pr-42", &["orders"], &["--built-images", image])
        .end()
        .await
        .well();

    assert!(ended.stderr.contains("is made anew"), "{ended}");
    let pod = stage.pod("pr-orders-pr-42").await.unwrap();
    assert_ne!(pod.uid(), Some(old));
    let container = &pod.spec.unwrap().containers[0];
    assert_eq!(
        container.image.as_deref(),
        Some("registry.example/orders:newer")
    );
    assert_owned_by(&stage, &["pr-orders-pr-42"]).await;
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn marks_of_a_pod_that_stays_are_renewed() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    let first = ["--ttl", "1h", "--pipeline-run", "run-1"];
    stage
        .deploy("pr-42", &["orders"], &first)
        .end()
        .await
        .well();
    let before = stage.pod("pr-orders-pr-42").await.unwrap();

    let second = ["--pipeline-run", "run-2"];
    stage
        .deploy("pr-42", &["orders"], &second)
        .end()
        .await
        .well();

    let after = stage.pod("pr-orders-pr-42").await.unwrap();
    assert_eq!(before.uid(), after.uid());
    let expires = |pod: &Pod| pod.annotations().get("session-proxy/expires-at").cloned();
    let expected = jiff::Timestamp::now() + jiff::SignedDuration::from_mins(59);
    let expires_at: jiff::Timestamp = expires(&before).unwrap().parse().unwrap();
    assert!(expires_at > expected, "{expires_at}");
    assert_eq!(expires(&after), None);
    assert_eq!(after.labels()["session-proxy/pipeline-run"], "run-2");
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn what_makes_no_sense_is_told_at_once_and_nothing_is_made() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    let wrong = [
        "--backend",
        "socat",
        "--build-apps",
        "orders carts",
        "--built-images",
        "{\"orders\":\"\"}",
        "--timeout",
        "soon",
        "--ttl",
        "1w",
        "--pipeline-run",
        "a b",
        "--agent-kind",
        "spy",
    ];

    let ended = stage.deploy("pr-42", &[], &wrong).end().await;

    ended.failed(
        2,
        &[
            "socat",
            "carts",
            "its image is empty",
            "soon",
            "1w",
            "a b",
            "spy",
        ],
    );
    let ended = stage.deploy("pr-42", &["orders"], &["--backend", "telepresence"]);
    ended
        .end()
        .await
        .failed(2, &["--manager-namespace", "--proxy-service-account"]);
    let ended = stage.deploy("session-proxy-probe", &["orders"], &[]);
    ended.end().await.failed(2, &["reserved"]);
    let ended = stage.deploy("pr-42", &["orders"], &["--agent-namespace", "elsewhere"]);
    ended.end().await.failed(2, &["--proxy-service-account"]);
    assert!(stage.ours().await.is_empty());
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn a_dry_run_prints_every_object_and_touches_nothing() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;

    let ended = stage
        .deploy("pr-42", &["orders"], &["--dry-run"])
        .end()
        .await
        .well();

    let printed: Vec<Value> = serde_saphyr::from_multiple(&ended.stdout).unwrap();
    let kinds: Vec<_> = printed
        .iter()
        .map(|object| object["kind"].as_str().unwrap())
        .collect();
    assert_eq!(
        kinds,
        [
            "Pod",
            "ServiceAccount",
            "Role",
            "RoleBinding",
            "ConfigMap",
            "Pod"
        ]
    );
    // It is made from the target's template, which only the cluster knows.
    let container = &printed[0]["spec"]["containers"][0];
    assert_eq!(container["readinessProbe"]["httpGet"]["path"], "/ready");
    let elsewhere = [
        "--dry-run",
        "--proxy-service-account",
        "session-proxy",
        "--agent-namespace",
        "agents",
    ];
    let ended = stage
        .deploy("pr-42", &["orders"], &elsewhere)
        .end()
        .await
        .well();
    let printed: Vec<serde_json::Value> = serde_saphyr::from_multiple(&ended.stdout).unwrap();
    let kinds: Vec<_> = printed
        .iter()
        .map(|object| object["kind"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["Pod", "ConfigMap", "Pod"]);
    assert_eq!(printed[2]["spec"]["serviceAccountName"], "session-proxy");
    assert!(stage.ours().await.is_empty());
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn the_proof_follows_a_rollout() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 2)]).await;
    stage.deafen("orders-");
    let run = stage.deploy("pr-42", &["orders"], &[]);
    run.says("waiting for the intercept to be live").await;

    stage.hear();
    let replicas = stage.apps["orders"].roll().await;

    let ended = run.end().await.well();
    let live = ended
        .stderr
        .lines()
        .rfind(|line| line.contains("intercept live"))
        .unwrap();
    // It is proven through replicas that were ready then, the old or the new.
    assert!(live.contains("orders-"), "{live}");
    assert_eq!(replicas.len(), 2);
}

/// Our objects, once nobody changes them any more.
async fn settled(stage: &Stage) -> Vec<(String, String, String)> {
    found("nothing changes any more", async || {
        let before = stage.ours().await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        (stage.ours().await == before).then_some(before)
    })
    .await
}

/// Waits until these PR pods, and no others, own the proxy pod.
async fn assert_owned_by(stage: &Stage, pods: &[&str]) {
    let mut expected = Vec::new();
    for pod in pods {
        expected.push(((*pod).to_owned(), stage.uid(pod).await));
    }
    expected.sort();
    eventually(&format!("{pods:?} own the proxy pod"), async || {
        let proxy = stage
            .pod("mirrord-proxy-orders")
            .await
            .expect("it is there");
        let owners = proxy.owner_references().iter();
        let mut owners: Vec<_> = owners.map(|o| (o.name.clone(), o.uid.clone())).collect();
        owners.sort();
        owners == expected
    })
    .await;
}
