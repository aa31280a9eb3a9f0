//! SIGTERM: what is under way ends well, mirrord's senders get their time, and nothing is left behind.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::support::attached::Attached;
use crate::support::eventually;
use crate::support::raw;
use crate::support::request::Request;
use crate::support::staging::Staging;
use crate::support::upstream::{Peer, Upstream};
use crate::support::wire::Wire;

/// A PR pod whose answers wait.
async fn slow_pr_pod(staging: &Staging, release: Arc<Notify>) -> Upstream {
    let app = Upstream::accepting_at(staging.address(), "slow", move |stream, number, account| {
        let release = release.clone();
        let mut peer = Peer {
            wire: Wire::new(stream),
            number,
            account,
        };
        Box::pin(async move {
            while let Ok(Some(_)) = peer.request().await {
                release.notified().await;
                // A client that leaves early is what some tests want.
                let _ = peer.ok("done").await;
            }
        })
    })
    .await;
    staging.announce("pr-42", &app);
    app
}

#[tokio::test]
async fn what_is_under_way_ends_well_and_nothing_is_left_behind() {
    let staging = Staging::new().await;
    let pod = staging.replica("orders-1").await;
    let release = Arc::new(Notify::new());
    let slow = slow_pr_pod(&staging, release.clone()).await;
    let mut attached = Attached::to(&staging).await;
    attached.readiness(200, "ready").await;
    let request = Request::get("/").session("pr-42").header("host", "orders");
    let under_way = tokio::spawn(raw::exchange(pod.address, request.to_h1("/")));
    eventually("it is under way", || slow.requests() == 1).await;

    attached.signal("TERM");

    attached.readiness(503, "draining").await;
    attached.reaches("orders-1", "ending").await;
    assert_eq!(staging.cluster.all("leases").len(), 1);
    release.notify_one();
    let answer = under_way.await.expect("it ends");
    assert_eq!((answer.status, answer.served_by()), (200, "slow".into()));
    let status = attached.wait_exit(Duration::from_secs(15)).await;
    assert_eq!(status.code(), Some(0));
    assert!(staging.hub.senders().is_empty());
    assert!(staging.cluster.all("leases").is_empty());
    assert!(staging.cluster.all("jobs").is_empty());
    assert_eq!(staging.reaches(&pod, "pr-42").await, "orders-1");
}

#[tokio::test]
async fn mirrords_senders_get_the_time_to_end_by_themselves() {
    let mut staging = Staging::new().await;
    staging.senders_stay(Duration::from_secs(2));
    let _pod = staging.replica("orders-1").await;
    let mut attached = Attached::to(&staging).await;
    attached.readiness(200, "ready").await;
    let start = Instant::now();

    attached.signal("TERM");

    // Its client is gone long before it.
    eventually("the child has ended", || {
        let children = attached.children();
        staging
            .hub
            .senders()
            .iter()
            .any(|sender| children.iter().any(|(pid, _)| pid == sender))
    })
    .await;
    assert_eq!(staging.cluster.all("leases").len(), 1);
    let status = attached.wait_exit(Duration::from_secs(15)).await;
    assert_eq!(status.code(), Some(0));
    assert!(
        start.elapsed() >= Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
    assert!(staging.cluster.all("leases").is_empty());
}

#[tokio::test]
async fn a_sender_that_does_not_end_is_ended() {
    let mut staging = Staging::new().await;
    staging.senders_stay(Duration::from_secs(600));
    let _pod = staging.replica("orders-1").await;
    let mut attached = Attached::to(&staging).await;
    attached.readiness(200, "ready").await;

    attached.signal("TERM");

    let status = attached.wait_exit(Duration::from_secs(12)).await;
    assert_eq!(status.code(), Some(0));
    eventually("it is gone", || staging.hub.senders().is_empty()).await;
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let staging = Staging::new().await;
    let pod = staging.replica("orders-1").await;
    let slow = slow_pr_pod(&staging, Arc::new(Notify::new())).await;
    let mut attached = Attached::to(&staging).await;
    attached.readiness(200, "ready").await;
    let request = Request::get("/").session("pr-42").header("host", "orders");
    let mut wire = raw::connect(pod.address).await;
    wire.send(request.to_h1("/")).await.expect("it is read");
    eventually("it is under way", || slow.requests() == 1).await;
    attached.signal("TERM");
    attached.reaches("orders-1", "ending").await;

    attached.signal("TERM");

    let status = attached.wait_exit(Duration::from_secs(3)).await;
    assert_eq!(status.code(), Some(1));
    assert!(attached.stderr().contains("ended by a second signal"));
    eventually("nothing of the session is left", || {
        staging.hub.senders().is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_start_is_broken_off() {
    let staging = Staging::new().await;
    let pod = staging.replica("orders-1").await;
    pod.fates(&[crate::support::hub::Fate::Hangs]);
    let mut attached = Attached::to(&staging).await;
    eventually("it has begun", || pod.starts() == 1).await;

    attached.signal("INT");

    let status = attached.wait_exit(Duration::from_secs(5)).await;
    assert_eq!(status.code(), Some(0));
    assert!(staging.cluster.all("leases").is_empty());
    assert!(staging.cluster.all("jobs").is_empty());
}

#[tokio::test]
async fn a_pod_is_held_for_as_long_as_its_session_drains() {
    let staging = Staging::new().await;
    let pod = staging.replica("orders-1").await;
    let release = Arc::new(Notify::new());
    let slow = slow_pr_pod(&staging, release.clone()).await;
    let mut attached = Attached::to(&staging).await;
    attached.readiness(200, "ready").await;
    let request = Request::get("/").session("pr-42").header("host", "orders");
    let mut wire = raw::connect(pod.address).await;
    wire.send(request.to_h1("/")).await.expect("it is read");
    eventually("it is under way", || slow.requests() == 1).await;
    attached.signal("TERM");
    attached.reaches("orders-1", "ending").await;
    let written = || staging.cluster.asked("update", "leases");
    let before = written();

    eventually("the lease is renewed", || written() > before).await;

    release.notify_one();
    let status = attached.wait_exit(Duration::from_secs(15)).await;
    assert_eq!(status.code(), Some(0));
    assert!(staging.cluster.all("leases").is_empty());
}
