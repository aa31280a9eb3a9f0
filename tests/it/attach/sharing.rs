//! One owner for each target pod, however many proxies there are.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::attached::Attached;
use crate::support::eventually;
use crate::support::staging::Staging;

fn lease(staging: &Staging, holder: &str, seconds: u32) -> serde_json::Value {
    let target = staging.cluster.find("pods", "orders-1").expect("a pod");
    let uid = target["metadata"]["uid"]
        .as_str()
        .expect("a uid")
        .to_owned();
    json!({
        "metadata": { "name": format!("session-proxy-{uid}") },
        "spec": { "holderIdentity": holder, "leaseDurationSeconds": seconds, "leaseTransitions": 3 },
    })
}

#[tokio::test]
async fn a_pod_that_another_proxy_holds_is_left_to_it_until_its_lease_runs_out() {
    let staging = Staging::new().await;
    let pod = staging.replica("orders-1").await;
    let held = lease(&staging, "proxy-0", 2);
    staging.cluster.apply("leases", held.clone());
    let attached = Attached::to(&staging).await;
    let told = attached.reaches("orders-1", "occupied").await;
    assert_eq!(told["message"], "proxy proxy-0 holds the pod's lease");

    for _ in 0..4 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        staging.cluster.apply("leases", held.clone());
    }
    assert_eq!(pod.starts(), 0);

    attached.reaches("orders-1", "live").await;
    let spec = &staging.cluster.all("leases")[0]["spec"];
    assert_eq!(spec["holderIdentity"], "proxy-1");
    assert_eq!(spec["leaseTransitions"], 4);
}

#[tokio::test]
async fn a_pod_whose_lease_is_taken_away_is_given_up() {
    let staging = Staging::new().await;
    let _pod = staging.replica("orders-1").await;
    let attached = Attached::to(&staging).await;
    attached.reaches("orders-1", "live").await;

    staging
        .cluster
        .apply("leases", lease(&staging, "proxy-2", 60));

    let told = attached.reaches("orders-1", "occupied").await;
    assert_eq!(told["message"], "proxy proxy-2 holds the pod's lease");
    eventually("nothing of the session is left", || {
        staging.hub.senders().is_empty()
    })
    .await;
}

#[tokio::test]
async fn two_proxies_never_start_on_one_pod_and_one_takes_over_when_the_other_ends() {
    let staging = Staging::new().await;
    let pod = staging.replica("orders-1").await;
    let mut first = Attached::with(&staging, "proxy-1", &[]).await;
    let second = Attached::with(&staging, "proxy-2", &[]).await;
    let mut owner = None;
    while owner.is_none() {
        for (name, attached) in [("proxy-1", &first), ("proxy-2", &second)] {
            if attached.target("orders-1").await["state"] == "live" {
                owner = Some(name);
            }
        }
    }
    // The order in which they came is up to the machine; from here on the owner is the first.
    let mut other = second;
    if owner == Some("proxy-2") {
        std::mem::swap(&mut first, &mut other);
    }
    other.reaches("orders-1", "occupied").await;
    pod.deafen();
    first.recovers("orders-1", "silent").await;
    assert_eq!((pod.starts(), pod.overlaps()), (2, 0));

    first.signal("TERM");
    assert_eq!(
        first.wait_exit(Duration::from_secs(20)).await.code(),
        Some(0)
    );

    other.reaches("orders-1", "live").await;
    assert_eq!((pod.starts(), pod.overlaps()), (3, 0));
}

#[tokio::test]
async fn a_lease_goes_with_its_pod() {
    let staging = Staging::new().await;
    let pod = staging.replica("orders-1").await;
    let attached = Attached::to(&staging).await;
    attached.reaches("orders-1", "live").await;
    assert_eq!(staging.cluster.all("leases").len(), 1);

    staging.remove(&pod);

    attached.readiness(503, "no target pod").await;
    assert!(staging.cluster.all("leases").is_empty());
}

#[tokio::test]
async fn nothing_is_started_under_a_lease_that_cannot_be_renewed_and_nothing_ended() {
    let staging = Staging::new().await;
    let pod = staging.replica("orders-1").await;
    let attached = Attached::to(&staging).await;
    attached.reaches("orders-1", "live").await;
    staging.cluster.refuse("update", "leases");
    let start = Instant::now();
    while !attached
        .stderr()
        .contains("the lease is not renewed: no session is started")
    {
        assert!(start.elapsed() < Duration::from_secs(25), "it is not told");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    attached.reaches("orders-1", "live").await;

    pod.deafen();

    let start = Instant::now();
    while attached.target("orders-1").await["message"] != "waits until the pod's lease is renewed" {
        assert!(
            start.elapsed() < Duration::from_secs(25),
            "it does not wait"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(pod.starts(), 1);
    staging.cluster.allow("update", "leases");
    attached.reaches("orders-1", "live").await;
    assert_eq!((pod.starts(), pod.overlaps()), (2, 0));
}
