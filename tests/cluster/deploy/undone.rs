//! What a call that fails or is told to stop takes away again, and what it leaves.

use std::time::Duration;

use super::{assert_owned_by, settled};
use crate::support::cluster::Cluster;
use crate::support::eventually;
use crate::support::kubelet::Script;
use crate::support::stage::Stage;

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn an_interrupt_in_any_phase_leaves_nothing() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    stage.kubelet.script("pr-orders-early", Script::Unready);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.json");
    std::fs::write(&out, "{\"orders\":\"of-another-run\"}").unwrap();
    let out_flag = ["--out", out.to_str().unwrap()];

    for (session, phase, signal) in [
        ("early", "waiting for PR pod pr-orders-early", "INT"),
        ("middle", "waiting for proxy pod", "TERM"),
        ("late", "waiting for the intercept to be live", "INT"),
    ] {
        if session == "middle" {
            stage.kubelet.script("mirrord-proxy", Script::Unready);
        } else {
            stage.kubelet.script("mirrord-proxy", Script::Ready);
        }
        stage.deafen("orders-");
        let run = stage.deploy(session, &["orders"], &out_flag);
        run.says(phase).await;

        run.signal(signal);

        let ended = run
            .end()
            .await
            .failed(1, &[&format!("stopped by SIG{signal}")]);
        assert!(ended.stderr.contains("removed"), "{ended}");
        assert_eq!(std::fs::read_to_string(&out).unwrap(), "{}\n");
        stage.is_clean().await;
    }
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn an_interrupt_at_any_moment_leaves_nothing() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);

    // Whatever request is on its way just then.
    for round in 0..12 {
        let session = format!("pr-{round}");
        let run = stage.deploy(&session, &["orders"], &[]);
        run.says("PR pod").await;
        tokio::time::sleep(Duration::from_millis(random.u64(..400))).await;
        run.signal("INT");
        let ended = run.end().await;
        if ended.code == Some(0) {
            let cleaned = stage.cleanup(&["--session", &session]).end().await;
            cleaned.well();
        }
        stage.is_clean().await;
    }
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn a_second_interrupt_ends_it_at_once() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    stage.deafen("orders-");
    let held = stage.kubelet.hold_deletions();
    let run = stage.deploy("pr-42", &["orders"], &[]);
    run.says("waiting for the intercept to be live").await;

    run.signal("INT");
    run.says("taking away").await;
    eventually("the pod is being deleted", async || {
        let pod = stage.pod("pr-orders-pr-42").await;
        pod.is_some_and(|pod| pod.metadata.deletion_timestamp.is_some())
    })
    .await;
    run.signal("INT");

    run.end().await.failed(
        1,
        &["ended by SIGINT", "session-proxy cleanup --session pr-42"],
    );
    drop(held);
    stage.is_clean().await;
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn what_was_there_before_stays_when_a_later_call_fails() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1), ("items", 1)]).await;
    stage.deploy("pr-42", &["orders"], &[]).end().await.well();
    let before = settled(&stage).await;
    stage.deafen("items-");

    let ended = stage
        .deploy("pr-42", &["orders", "items"], &["--timeout", "5s"])
        .end()
        .await;

    ended.failed(1, &["items: the intercept is not live"]);
    eventually("only the first call's are left", async || {
        stage.ours().await == before
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn a_proxy_that_another_session_has_joined_stays_when_its_maker_fails() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    stage.deafen("orders-");
    let maker = stage.deploy("pr-1", &["orders"], &[]);
    maker.says("waiting for the intercept to be live").await;
    let proxy = stage.uid("mirrord-proxy-orders").await;
    let guest = stage.deploy("pr-2", &["orders"], &[]);
    guest.says("waiting for the intercept to be live").await;

    maker.signal("INT");

    maker
        .end()
        .await
        .failed(1, &["stays, another session uses it"]);
    stage.hear();
    guest.end().await.well();
    assert_eq!(stage.uid("mirrord-proxy-orders").await, proxy);
    assert_owned_by(&stage, &["pr-orders-pr-2"]).await;
}
