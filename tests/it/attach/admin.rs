//! One admin port for all targets.

use std::process::{Command, Stdio};

use serde_json::json;

use crate::support::attached::Attached;
use crate::support::proxy::{Lines, binary};
use crate::support::raw;
use crate::support::request::Request;
use crate::support::staging::Staging;
use crate::support::{eventually, exposition};

/// Two live targets and a PR pod, each target asked twice for it.
async fn busy() -> (
    Staging,
    Attached,
    Vec<std::sync::Arc<crate::support::target_pod::TargetPod>>,
) {
    let staging = Staging::new().await;
    let pods = vec![
        staging.replica("orders-1").await,
        staging.replica("orders-2").await,
    ];
    let pr = staging.pr_pod("pr-42").await;
    let attached = Attached::to(&staging).await;
    attached.readiness(200, "ready").await;
    for pod in &pods {
        for _ in 0..2 {
            assert_eq!(staging.reaches(pod, "pr-42").await, pr.account.name);
        }
    }
    std::mem::forget(pr);
    (staging, attached, pods)
}

#[tokio::test]
async fn the_metrics_of_all_targets_are_one_valid_text() {
    let (_staging, attached, _pods) = busy().await;

    let text = attached.get("/metrics").await.text();

    exposition::assert_valid(&text);
    for pod in ["orders-1", "orders-2"] {
        let requests = "session_proxy_requests_total";
        let labels = [("target", pod), ("route", "pr-42"), ("code", "200")];
        assert_eq!(attached.metric(requests, &labels).await, 2.0, "{text}");
        let state = [("target", pod), ("state", "live")];
        assert_eq!(
            attached.metric("session_proxy_target_state", &state).await,
            1.0
        );
        let probes = "session_proxy_target_probe_seconds_count";
        assert!(
            text.contains(&format!("{probes}{{target=\"{pod}\"}}")),
            "{text}"
        );
    }
}

#[tokio::test]
async fn the_sessions_of_all_targets_are_one_list() {
    let (_staging, attached, _pods) = busy().await;

    let said = attached.get("/sessions").await.json();

    assert_eq!(said["readiness"], "ready");
    let sessions = said["sessions"].as_array().expect("a list");
    assert_eq!(sessions.len(), 1, "{said}");
    assert_eq!(sessions[0]["name"], "pr-42");
    assert_eq!(sessions[0]["requests"], 4);
    assert_eq!(said["targets"].as_array().expect("a list").len(), 2);
    assert_eq!(said["lastReload"]["result"], "ok");
}

#[tokio::test]
async fn a_tap_tells_whose_pod_it_was_and_follows_those_that_come() {
    let (staging, attached, pods) = busy().await;
    let mut tap = Command::new(binary())
        .args([
            "tap",
            "--json",
            "--session",
            "pr-42",
            "--admin",
            &attached.admin().to_string(),
        ])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary can be started");
    let lines = Lines::of(tap.stdout.take().expect("it is piped"));
    let seen = |pod: &str| {
        lines
            .all()
            .iter()
            .any(|line| line.contains(&format!(r#""pod":"{pod}""#)))
    };
    for pod in &pods {
        while !seen(&pod.name) {
            staging.reaches(pod, "pr-42").await;
        }
    }

    let late = staging.replica("orders-3").await;
    attached.reaches("orders-3", "live").await;

    while !seen("orders-3") {
        staging.reaches(&late, "pr-42").await;
    }
    let probes = lines
        .all()
        .iter()
        .filter(|line| line.contains("session-proxy-probe"))
        .count();
    assert_eq!(probes, 0);
    let _ = tap.kill();
    let _ = tap.wait();
}

#[tokio::test]
async fn the_port_tells_and_changes_nothing() {
    let (_staging, attached, _pods) = busy().await;

    for (path, kind) in [
        ("/healthz", "text/plain"),
        ("/readyz", "text/plain"),
        ("/metrics", "text/plain"),
        ("/sessions", "application/json"),
        ("/targets", "application/json"),
        ("/config", "application/json"),
        ("/", "text/html"),
        ("/page.js", "text/javascript"),
    ] {
        let answer = attached.get(path).await;
        assert_eq!(answer.status, 200, "{path}");
        assert!(
            answer
                .header("content-type")
                .expect("a type")
                .starts_with(kind),
            "{path}"
        );
        let head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n");
        assert_eq!(
            raw::exchange(attached.admin(), head).await.status,
            405,
            "{path}"
        );
        let head = format!("GET {path} HTTP/1.1\r\nhost: evil.example\r\n\r\n");
        assert_eq!(
            raw::exchange(attached.admin(), head).await.status,
            421,
            "{path}"
        );
    }
    assert_eq!(attached.get("/nothing").await.status, 404);
    assert_eq!(attached.get("/tap?status=5").await.status, 400);
    assert_eq!(attached.get("/config").await.json()["app"], "orders");
}

#[tokio::test]
async fn healthcheck_asks_for_all_targets() {
    let (staging, attached, pods) = busy().await;
    let healthcheck = || {
        let output =
            crate::awaited::command(&["healthcheck", "--admin", &attached.admin().to_string()]);
        (output.status.code(), crate::awaited::stderr(&output))
    };
    assert_eq!(healthcheck().0, Some(0));

    for pod in &pods {
        staging.set_ready(pod, false);
    }

    attached
        .readiness(503, "none of 2 target pods is ready")
        .await;
    let (code, said) = healthcheck();
    assert_eq!(code, Some(1));
    assert!(said.contains("none of 2 target pods is ready"), "{said}");
}

#[tokio::test]
async fn what_children_say_is_passed_on_with_the_name_of_their_pod() {
    let (_staging, attached, _pods) = busy().await;

    eventually("mirrord's progress is told", || {
        attached
            .stderr()
            .contains("orders-1 | mirrord: waiting for pod to be ready...: pod is ready")
    })
    .await;
    assert!(attached.stderr().contains("orders-2 | ready"));
    let target = attached.target("orders-1").await;
    assert_eq!(
        target,
        json!({
            "pod": "orders-1", "uid": target["uid"], "state": "live", "since": target["since"],
            "message": "", "restarts": 0,
        })
    );
    assert_eq!(Request::get("/").target, "/");
}
