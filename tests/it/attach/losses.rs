//! Sessions are lost in many ways, most of them silent, and each is noticed and mended.

use std::time::Duration;

use serde_json::json;

use crate::support::attached::Attached;
use crate::support::eventually;
use crate::support::staging::Staging;
use crate::support::target_pod::TargetPod;

async fn live(staging: &Staging, flags: &[&str]) -> (std::sync::Arc<TargetPod>, Attached) {
    let pod = staging.replica("orders-1").await;
    let attached = Attached::with(staging, "proxy-1", flags).await;
    attached.reaches("orders-1", "live").await;
    (pod, attached)
}

#[tokio::test]
async fn a_session_that_silently_takes_nothing_any_more_is_started_again() {
    let staging = Staging::new().await;
    let pr = staging.pr_pod("pr-42").await;
    let (pod, attached) = live(&staging, &[]).await;
    let child = pod.child().expect("it is live");
    let spared = staging.replica("orders-2").await;
    attached.reaches("orders-2", "live").await;

    pod.deafen();

    attached.recovers("orders-1", "silent").await;
    assert_eq!(staging.reaches(&pod, "pr-42").await, pr.account.name);
    assert_ne!(pod.child(), Some(child));
    assert_eq!((pod.starts(), pod.overlaps(), spared.starts()), (2, 0, 1));
    assert_eq!(attached.target("orders-1").await["restarts"], 1);
    let log = attached.stderr();
    assert!(log.contains("the app answered the probe (200 OK)"), "{log}");
}

#[tokio::test]
async fn an_agent_that_is_gone_is_noticed_without_a_probe() {
    let staging = Staging::new().await;
    let (pod, attached) = live(&staging, &[]).await;

    staging.kill_agent(&pod);

    attached.recovers("orders-1", "agent-gone").await;
    assert_eq!(pod.starts(), 2);
    assert_eq!(staging.cluster.all("jobs").len(), 1);
}

#[tokio::test]
async fn a_container_that_was_started_anew_gets_a_new_session() {
    let staging = Staging::new().await;
    let (pod, attached) = live(&staging, &[]).await;

    staging.replace_container(&pod);

    attached.recovers("orders-1", "container-replaced").await;
    assert_eq!(pod.starts(), 2);
}

#[tokio::test]
async fn a_child_that_was_killed_is_replaced_and_nothing_of_it_is_left() {
    let staging = Staging::new().await;
    let (pod, attached) = live(&staging, &[]).await;
    let child = pod.child().expect("it is live");

    let killed = std::process::Command::new("sh")
        .args(["-c", &format!("kill -KILL {child}")])
        .status();
    assert!(killed.expect("there is a shell").success());

    attached.recovers("orders-1", "ended").await;
    assert!(attached.stderr().contains("the session was killed"));
    eventually("only the new sender lives", || {
        staging.hub.senders().len() == 1
    })
    .await;
    eventually("no zombie is left", || {
        let children = attached.children();
        children.len() == 1 && children.iter().all(|(_, state)| *state != 'Z')
    })
    .await;
}

#[tokio::test]
async fn a_pod_that_lets_nobody_in_is_told_about_and_left_alone() {
    let staging = Staging::new().await;
    let (pod, attached) = live(&staging, &[]).await;

    pod.refuse();
    staging.kill_agent(&pod);

    let patience = Duration::from_secs(25);
    let told = attached
        .reaches_within("orders-1", "broken", patience)
        .await;
    let message = told["message"].as_str().expect("a text");
    assert!(
        message.contains("kubectl delete pod -n staging orders-1"),
        "{message}"
    );
    staging.set_ready(&pod, false);
    assert_eq!(attached.target("orders-1").await["state"], "broken");
    assert_eq!(staging.cluster.asked("delete", "pods"), 0);
    let name = "session_proxy_target_state";
    let labels = [("target", "orders-1"), ("state", "broken")];
    assert_eq!(attached.metric(name, &labels).await, 1.0);

    pod.listen();
    staging.set_ready(&pod, true);
    attached.reaches("orders-1", "live").await;
}

#[tokio::test]
async fn a_pod_that_lets_nobody_in_is_deleted_where_that_is_allowed() {
    let staging = Staging::new().await;
    let (pod, attached) = live(&staging, &["--delete-broken-targets"]).await;

    pod.refuse();
    staging.kill_agent(&pod);

    let patience = Duration::from_secs(25);
    let start = std::time::Instant::now();
    while staging.cluster.find("pods", "orders-1").is_some() {
        assert!(start.elapsed() < patience, "it is still there");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    attached.readiness(503, "no target pod").await;
}

#[tokio::test]
async fn a_loss_is_told_before_what_is_left_of_the_session_has_gone() {
    let staging = Staging::new().await;
    let (pod, attached) = live(&staging, &[]).await;
    let uid = attached.target("orders-1").await["uid"].clone();
    let labels = json!({ "session-proxy/proxy": "proxy-1", "session-proxy/target": uid });
    staging.cluster.apply(
        "pods",
        json!({ "metadata": { "name": "stays", "labels": labels }, "status": { "phase": "Running" } }),
    );

    pod.deafen();

    let patience = Duration::from_secs(9);
    attached.reaches_within("orders-1", "lost", patience).await;
    attached.readiness(503, "orders-1 is lost").await;
    staging.cluster.delete("pods", "stays");
    attached.recovers("orders-1", "silent").await;
}
