//! The pods of the workload come and go, and each ready one has a session.

use crate::support::attached::Attached;
use crate::support::eventually;
use crate::support::request::Request;
use crate::support::staging::Staging;

#[tokio::test]
async fn every_ready_pod_gets_a_session_that_carries_its_requests() {
    let staging = Staging::new().await;
    let mut pods = Vec::new();
    for name in ["orders-1", "orders-2", "orders-3"] {
        pods.push(staging.replica(name).await);
    }
    let _pr = staging.pr_pod("pr-42").await;
    let attached = Attached::to(&staging).await;

    attached.readiness(200, "ready").await;

    for pod in &pods {
        assert_eq!(staging.reaches(pod, "pr-42").await, "pr-orders-pr-42");
        let untagged = staging.ask(pod, Request::get("/")).await;
        assert_eq!(untagged.served_by(), pod.name);
        assert_eq!(staging.reaches(pod, "pr-41").await, "baseline");
        assert_eq!((pod.starts(), pod.overlaps()), (1, 0));
        let target = attached.target(&pod.name).await;
        assert_eq!(
            (&target["state"], &target["restarts"]),
            (&"live".into(), &0.into())
        );
    }
}

#[tokio::test]
async fn a_session_of_a_new_pull_request_needs_no_new_start() {
    let staging = Staging::new().await;
    let pod = staging.replica("orders-1").await;
    let attached = Attached::to(&staging).await;
    attached.readiness(200, "ready").await;
    assert_eq!(staging.reaches(&pod, "pr-42").await, "baseline");

    let pr = staging.pr_pod("pr-42").await;

    let mut served_by = String::new();
    while served_by != pr.account.name {
        served_by = staging.reaches(&pod, "pr-42").await;
    }
    assert_eq!(pod.starts(), 1);
}

#[tokio::test]
async fn a_rollout_replaces_sessions_with_their_pods() {
    let staging = Staging::new().await;
    let old = staging.replica("orders-old").await;
    let pr = staging.pr_pod("pr-42").await;
    let attached = Attached::to(&staging).await;
    attached.reaches("orders-old", "live").await;

    let new = staging.replica("orders-new").await;
    attached.reaches("orders-new", "live").await;
    staging.tell_to_end(&old);
    attached.readiness(200, "ready").await;
    // It serves for as long as it is there: what it took is not cut off.
    assert_eq!(staging.reaches(&old, "pr-42").await, pr.account.name);
    staging.remove(&old);

    eventually("the old child is gone", || staging.hub.senders().len() == 1).await;
    while !attached.target("orders-old").await.is_null() {}
    assert_eq!(staging.reaches(&new, "pr-42").await, pr.account.name);
    assert_eq!((old.starts(), new.starts()), (1, 1));
    let metrics = attached.get("/metrics").await.text();
    assert!(!metrics.contains("orders-old"), "{metrics}");
}

#[tokio::test]
async fn a_workload_scaled_to_nothing_and_back_is_followed() {
    let staging = Staging::new().await;
    let attached = Attached::to(&staging).await;
    attached.readiness(503, "no target pod").await;

    let pod = staging.replica("orders-1").await;
    attached.readiness(200, "ready").await;
    staging.remove(&pod);
    attached.readiness(503, "no target pod").await;
    eventually("nothing is left", || staging.hub.senders().is_empty()).await;
    let again = staging.replica("orders-2").await;

    attached.readiness(200, "ready").await;
    assert_eq!(again.starts(), 1);
}

#[tokio::test]
async fn a_pod_that_is_not_ready_waits_and_one_that_becomes_so_keeps_its_session() {
    let staging = Staging::new().await;
    let pod = staging.replica("orders-1").await;
    staging.set_ready(&pod, false);
    let attached = Attached::to(&staging).await;
    attached
        .readiness(503, "none of 1 target pods is ready")
        .await;
    assert_eq!(
        attached.target("orders-1").await["message"],
        "the pod is not ready"
    );
    assert_eq!(pod.starts(), 0);

    staging.set_ready(&pod, true);
    attached.reaches("orders-1", "live").await;
    staging.set_ready(&pod, false);
    attached
        .readiness(503, "none of 1 target pods is ready")
        .await;
    staging.set_ready(&pod, true);

    attached.readiness(200, "ready").await;
    assert_eq!(pod.starts(), 1);
}

#[tokio::test]
async fn copies_of_requests_prove_a_session_that_only_mirrors() {
    let mut staging = Staging::new().await;
    staging.mode = "mirror";
    let pod = staging.replica("orders-1").await;
    let pr = staging.pr_pod("pr-42").await;
    let attached = Attached::to(&staging).await;
    attached.readiness(200, "ready").await;

    let answers = [
        staging.reaches(&pod, "pr-42").await,
        staging.reaches(&pod, "pr-41").await,
    ];

    assert_eq!(answers, ["orders-1", "orders-1"]);
    eventually("the copy arrives", || pr.requests() == 1).await;
    pod.deafen();
    attached.recovers("orders-1", "silent").await;
    // What has no session of its own must not reach the app a second time.
    assert_eq!(staging.baseline.requests(), 0);
}

#[tokio::test]
async fn pods_that_come_and_go_leave_no_files_behind() {
    let staging = Staging::new().await;
    let attached = Attached::to(&staging).await;
    for name in ["orders-1", "orders-2", "orders-3"] {
        let pod = staging.replica(name).await;
        attached.reaches(name, "live").await;
        staging.remove(&pod);
        attached.readiness(503, "no target pod").await;
    }

    let folders = std::fs::read_dir(staging.setting().temp).expect("it is there");
    let own = folders
        .flatten()
        .find(|entry| {
            entry
                .file_name()
                .to_string_lossy()
                .starts_with("session-proxy-")
        })
        .expect("attach has a folder");

    assert_eq!(
        std::fs::read_dir(own.path()).expect("it is there").count(),
        2
    );
}
