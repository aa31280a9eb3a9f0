//! Why a deployment is refused or fails, in words that help; and that it leaves nothing.

use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Pod, ResourceQuota, Service};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::support::cluster::Cluster;
use crate::support::eventually;
use crate::support::kubelet::Script;
use crate::support::run::Run;
use crate::support::stage::Stage;

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn a_pr_pod_that_does_not_start_says_why_and_leaves_nothing() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    stage
        .kubelet
        .script("pr-orders-image", Script::ImagePullBackOff);
    stage
        .kubelet
        .script("pr-orders-crash", Script::CrashLoopBackOff { exit_code: 3 });
    stage
        .kubelet
        .writes("pr-orders-crash", "starting\n\u{1b}[31mno such database\n");
    stage
        .kubelet
        .script("pr-orders-huge", Script::Unschedulable);
    stage.kubelet.script("pr-orders-slow", Script::Unready);
    stage
        .kubelet
        .script("pr-orders-ended", Script::Ended { exit_code: 1 });
    for (session, reasons) in [
        (
            "image",
            &[
                "image registry.example/orders:image of container orders cannot be pulled",
                "not found",
            ][..],
        ),
        (
            "crash",
            &[
                "container orders ended with exit code 3",
                "started again 3 times",
                "    starting",
                "[31mno such database",
            ],
        ),
        (
            "huge",
            &["a node to run on: 0/1 nodes are available: 1 Insufficient cpu."],
        ),
        ("slow", &["the readiness probe of container orders"]),
        ("ended", &["it has ended: Failed"]),
    ] {
        let ended = stage
            .deploy(session, &["orders"], &["--timeout", "3s"])
            .end()
            .await;

        let ended = ended.failed(1, reasons);
        assert!(!ended.stderr.contains('\u{1b}'), "{ended}");
        assert_eq!(ended.stdout, "");
        stage.is_clean().await;
    }
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn a_container_that_crashes_again_and_again_is_given_up_on_long_before_the_deadline() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    let crash = Script::CrashLoopBackOff { exit_code: 1 };
    stage.kubelet.script("pr-orders", crash);
    let start = Instant::now();

    let ended = stage
        .deploy("pr-42", &["orders"], &["--timeout", "20m"])
        .end()
        .await;

    ended.failed(1, &["exit code 1"]);
    assert!(start.elapsed() < Duration::from_secs(60));
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn pod_security_and_quotas_are_told_in_the_clusters_words() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    let quota: ResourceQuota = serde_json::from_value(
        json!({"metadata": {"name": "few"}, "spec": {"hard": {"pods": "1"}}}),
    )
    .unwrap();
    stage.namespace.create(&quota).await;

    refuses_pods(&stage, "exceeded quota: few").await;

    let ended = stage.deploy("pr-42", &["orders"], &[]).end().await;

    let ended = ended.failed(1, &["exceeded quota: few", "cannot create pods"]);
    assert!(!ended.stderr.contains("grant the verb"), "{ended}");
    stage.is_clean().await;

    let strict = cluster.namespace().await;
    let strict = Stage::in_namespace(strict, &[("orders", 1)]).await;
    // Only now: the baseline was there before.
    let enforce =
        json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
    Api::<Namespace>::all(cluster.client())
        .patch(
            strict.namespace.name(),
            &PatchParams::default(),
            &Patch::Merge(enforce),
        )
        .await
        .unwrap();
    refuses_pods(&strict, "violates PodSecurity").await;

    let ended = strict.deploy("pr-42", &["orders"], &[]).end().await;

    let ended = ended.failed(1, &["violates PodSecurity", "allowPrivilegeEscalation"]);
    assert!(!ended.stderr.contains("grant the verb"), "{ended}");
    strict.is_clean().await;
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn a_proxy_that_cannot_take_a_target_says_why_and_leaves_nothing() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    stage
        .kubelet
        .script("mirrord-proxy-orders", Script::Unready);
    stage.proxies_say(&json!([
        {"pod": "orders-1", "state": "occupied", "since": "2026-01-01T00:00:00Z", "message": "dirty iptables: another session holds this pod"},
    ]));

    let ended = stage
        .deploy("pr-42", &["orders"], &["--timeout", "4s"])
        .end()
        .await;

    ended.failed(
        1,
        &[
            "proxy pod mirrord-proxy-orders",
            "orders-1 is occupied (dirty iptables: another session",
        ],
    );
    stage.is_clean().await;
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn one_replica_that_is_not_intercepted_fails_the_proof() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 2)]).await;
    let deaf = &stage.apps["orders"].ready(2).await[0];
    stage.deafen(deaf);

    let ended = stage
        .deploy("pr-42", &["orders"], &["--timeout", "4s"])
        .end()
        .await;

    ended.failed(1, &[deaf, "it is not intercepted"]);
    stage.is_clean().await;
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn a_target_without_a_ready_replica_is_said_to_have_none() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1), ("items", 1)]).await;
    stage
        .kubelet
        .make_unready(&stage.apps["orders"].ready(1).await[0])
        .await;
    stage.apps["items"].scale(0).await;

    let unready = stage
        .deploy("pr-42", &["orders"], &["--timeout", "4s"])
        .end()
        .await;
    let asleep = stage.deploy("pr-42", &["items"], &[]).end().await;

    unready.failed(1, &["deployment/orders has no ready replica"]);
    let asleep = asleep.failed(1, &["deployment/items is scaled to 0"]);
    assert!(!asleep.stderr.contains("created"), "{asleep}");
    stage.is_clean().await;
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn a_target_that_is_not_there_is_told_before_anything_is_made() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1), ("items", 1)]).await;
    let deployments = stage.namespace.api::<Deployment>();
    deployments
        .delete("items", &DeleteParams::default())
        .await
        .unwrap();

    let ended = stage.deploy("pr-42", &["orders", "items"], &[]).end().await;

    let ended = ended.failed(1, &["there is no deployment/items"]);
    assert!(!ended.stderr.contains("created"), "{ended}");
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn a_service_that_would_send_requests_to_the_pr_pod_is_an_obstacle() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    let service: Service = serde_json::from_value(json!({
        "metadata": {"name": "greedy"},
        "spec": {"selector": {"component": "orders"}, "ports": [{"port": 80}]},
    }))
    .unwrap();
    stage.namespace.create(&service).await;

    let ended = stage.deploy("pr-42", &["orders"], &[]).end().await;

    ended.failed(1, &["service/greedy", "component=orders"]);
    assert!(stage.ours().await.is_empty());
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn a_pr_pod_that_somebody_deletes_meanwhile_ends_the_deployment() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    stage.deafen("orders-");
    let run = stage.deploy("pr-1", &["orders"], &[]);
    run.says("waiting for the intercept to be live").await;

    let pods = stage.namespace.api::<Pod>();
    pods.delete("pr-orders-pr-1", &DeleteParams::default())
        .await
        .unwrap();

    run.end()
        .await
        .failed(1, &["PR pod pr-orders-pr-1 was deleted by somebody else"]);
    stage.is_clean().await;
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn a_pod_of_the_same_name_that_is_not_ours_is_left_alone() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    for name in ["pr-orders-pr-1", "mirrord-proxy-orders"] {
        let foreign: Pod = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"containers": [{"name": "app", "image": "registry.example/app:1"}]},
        }))
        .unwrap();
        stage.namespace.create(&foreign).await;
    }
    let foreign = stage.uid("pr-orders-pr-1").await;

    let same_pod = stage.deploy("pr-1", &["orders"], &[]).end().await;
    let same_proxy = stage.deploy("pr-2", &["orders"], &[]).end().await;

    same_pod.failed(1, &["a pod of that name exists and is none of ours"]);
    same_proxy.failed(1, &["pod mirrord-proxy-orders exists", "none of ours"]);
    assert_eq!(stage.uid("pr-orders-pr-1").await, foreign);
    stage.is_clean().await;
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn an_api_server_that_is_away_for_a_moment_is_waited_for() {
    let cluster = Cluster::alone().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    stage.kubelet.script("pr-orders", Script::Unready);
    let run = stage.deploy("pr-42", &["orders"], &[]);
    run.says("waiting for PR pod").await;

    cluster.stop_api().await;
    cluster.start_api().await;
    stage.kubelet.make_ready("pr-orders-pr-42").await;

    run.end().await.well();
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn a_cluster_that_cannot_be_reached_is_told_at_once() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    let text = std::fs::read_to_string(stage.account.kubeconfig()).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    config["clusters"][0]["cluster"]["server"] = json!("https://127.0.0.1:1");
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = folder.path().join("kubeconfig");
    std::fs::write(&kubeconfig, config.to_string()).unwrap();
    let arguments = stage.deploy_arguments("pr-42", &["orders"], &[]);
    let start = Instant::now();

    let ended = Run::start(&kubeconfig, arguments).end().await;

    ended.failed(1, &["is the API server reachable?"]);
    assert!(start.elapsed() < Duration::from_secs(10));
}

/// Waits until the API server refuses a pod for that reason: it hears of quotas and labels in its own time.
async fn refuses_pods(stage: &Stage, reason: &str) {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "any"},
        "spec": {"containers": [{"name": "app", "image": "registry.example/app:1"}]},
    }))
    .expect("this is a pod");
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    eventually(reason, async || {
        let refusal = stage.namespace.api::<Pod>().create(&dry, &pod).await;
        refusal.is_err_and(|error| error.to_string().contains(reason))
    })
    .await;
}
