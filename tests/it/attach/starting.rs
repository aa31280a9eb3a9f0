//! Starts fail in many ways, and each is told in words that help.

use std::process::Stdio;
use std::time::Duration;

use crate::support::attached::{self, Attached};
use crate::support::eventually;
use crate::support::hub::Fate;
use crate::support::staging::Staging;

#[tokio::test]
async fn a_pod_with_another_sessions_rules_is_occupied_until_they_are_gone() {
    let staging = Staging::new().await;
    let pod = staging.replica("orders-1").await;
    pod.fates(&[Fate::Dirty]);
    let attached = Attached::to(&staging).await;

    let told = attached.reaches("orders-1", "occupied").await;

    assert!(
        told["message"]
            .as_str()
            .expect("a text")
            .contains("dirty iptables")
    );
    attached.recovers("orders-1", "occupied").await;
    assert_eq!(pod.starts(), 2);
}

#[tokio::test]
async fn a_missing_right_is_named() {
    let staging = Staging::new().await;
    let pod = staging.replica("orders-1").await;
    pod.fates(&[Fate::Forbidden; 9]);
    let attached = Attached::to(&staging).await;

    let told = attached.reaches("orders-1", "failed").await;

    assert_eq!(
        told["message"],
        "mirrord is not allowed to create jobs in namespace staging; grant it to the proxy's service account"
    );
    attached
        .readiness(503, "create jobs in namespace staging")
        .await;
}

#[tokio::test]
async fn a_start_that_hangs_is_ended_and_told_what_is_probably_missing() {
    let staging = Staging::new().await;
    let pod = staging.replica("orders-1").await;
    pod.fates(&[Fate::Hangs]);
    let attached = Attached::with(&staging, "proxy-1", &["--start-timeout", "1s"]).await;

    let told = attached.reaches("orders-1", "failed").await;

    let message = told["message"].as_str().expect("a text");
    assert!(
        message.contains("pods/portforward in namespace staging"),
        "{message}"
    );
    attached.recovers("orders-1", "stuck").await;
    assert_eq!(pod.overlaps(), 0);
}

#[tokio::test]
async fn a_session_that_takes_nothing_from_the_start_is_never_live() {
    let staging = Staging::new().await;
    let pod = staging.replica("orders-1").await;
    pod.fates(&[Fate::TakesNothing]);
    let attached = Attached::with(&staging, "proxy-1", &["--start-timeout", "1s"]).await;

    let told = attached.reaches("orders-1", "failed").await;

    assert_eq!(
        told["message"],
        "started, but requests are not taken: the app answered the probe (200 OK)"
    );
    assert!(!attached.stderr().contains("state=\"live\""));
    attached.recovers("orders-1", "unproven").await;
    assert_eq!((pod.starts(), pod.overlaps()), (2, 0));
}

#[tokio::test]
async fn an_agent_that_is_not_admitted_is_explained_and_its_job_removed() {
    let staging = Staging::new().await;
    let pod = staging.replica("orders-1").await;
    pod.fates(&[Fate::NotAdmitted; 9]);
    let attached = Attached::to(&staging).await;

    let told = attached.reaches("orders-1", "failed").await;

    let message = told["message"].as_str().expect("a text");
    assert!(message.contains("violates PodSecurity"), "{message}");
    assert!(
        staging.cluster.all("jobs").is_empty(),
        "{:?}",
        staging.cluster.all("jobs")
    );
}

#[tokio::test]
async fn jobs_that_an_earlier_life_left_behind_are_removed_and_no_others() {
    let staging = Staging::new().await;
    let pod = staging.replica("orders-1").await;
    let target = staging.cluster.find("pods", "orders-1").expect("a pod");
    let job = |name: &str, proxy: &str| {
        let labels = serde_json::json!({
            "session-proxy/proxy": proxy, "session-proxy/target": target["metadata"]["uid"],
        });
        serde_json::json!({ "metadata": { "name": name, "labels": labels } })
    };
    staging.cluster.apply("jobs", job("ours", "proxy-1"));
    staging.cluster.apply("jobs", job("anothers", "proxy-2"));
    let attached = Attached::to(&staging).await;

    attached.reaches("orders-1", "live").await;

    assert_eq!(pod.starts(), 1);
    assert!(staging.cluster.find("jobs", "ours").is_none());
    assert!(staging.cluster.find("jobs", "anothers").is_some());
}

#[tokio::test]
async fn what_configures_us_does_not_configure_the_children() {
    let staging = Staging::new().await;
    let _pod = staging.replica("orders-1").await;
    let mut command = attached::command(&staging.setting(), "proxy-1", &[]);
    command
        .env("SESSION_PROXY_LISTEN", "127.0.0.1:1")
        .env("SESSION_PROXY_BASELINE", "127.0.0.1:2")
        .env("MIRRORD_CI_API_KEY", "secret")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut process = command.spawn().expect("the binary can be started");

    eventually("a child has begun", || {
        !staging.hub.environments().is_empty()
    })
    .await;

    let environment = &staging.hub.environments()[0];
    for name in [
        "SESSION_PROXY_LISTEN",
        "SESSION_PROXY_BASELINE",
        "MIRRORD_CI_API_KEY",
    ] {
        assert!(environment[name].is_null(), "{environment}");
    }
    assert_eq!(environment["MIRRORD_CHECK_VERSION"], "false");
    assert_eq!(environment["MIRRORD_PROGRESS_MODE"], "json");
    let ended = std::process::Command::new("sh")
        .args([
            "-c",
            &format!("kill -TERM {0}; kill -TERM {0}", process.id()),
        ])
        .status();
    assert!(ended.expect("there is a shell").success());
    let start = std::time::Instant::now();
    while process.try_wait().expect("it can be waited for").is_none() {
        assert!(start.elapsed() < Duration::from_secs(20), "it does not end");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn an_executable_that_is_missing_is_told() {
    let mut staging = Staging::new().await;
    staging.mirrord = "/nowhere/mirrord".into();
    let _pod = staging.replica("orders-1").await;
    let attached = Attached::to(&staging).await;

    let told = attached.reaches("orders-1", "failed").await;

    let message = told["message"].as_str().expect("a text");
    assert!(
        message.starts_with("cannot start /nowhere/mirrord: "),
        "{message}"
    );
    attached
        .readiness(503, "cannot start /nowhere/mirrord")
        .await;
}

#[tokio::test]
async fn a_right_that_is_missing_to_us_is_named() {
    for (verb, resource, what) in [
        (
            "get",
            "deployments",
            "not allowed to get deployments in namespace staging",
        ),
        (
            "list",
            "pods",
            "not allowed to list pods in namespace staging",
        ),
        (
            "create",
            "leases",
            "not allowed to create leases in namespace staging",
        ),
    ] {
        let staging = Staging::new().await;
        let pod = staging.replica("orders-1").await;
        staging.cluster.refuse(verb, resource);
        let attached = Attached::to(&staging).await;

        attached.readiness(503, what).await;

        assert_eq!(pod.starts(), 0, "{what}");
    }
}

#[test]
fn an_intercept_that_makes_no_sense_ends_at_once() {
    let folder = tempfile::tempdir().expect("a writable temp folder");
    let path = folder.path().join("intercept.json");
    let run = |text: &str, flags: &[&str]| {
        std::fs::write(&path, text).expect("writable");
        let path = path.to_str().expect("a plain path");
        let mut arguments = vec!["attach", "--intercept", path];
        arguments.extend(flags);
        let output = crate::awaited::command(&arguments);
        (output.status.code(), crate::awaited::stderr(&output))
    };

    let (code, said) = run(
        "{\n  \"app\": 7\n}",
        &["--admin", "nowhere", "--start-timeout", "soon"],
    );

    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("intercept.json:2:"), "{said}");
    assert!(
        said.contains("--admin: \"nowhere\" is no address"),
        "{said}"
    );
    assert!(
        said.contains("--start-timeout: \"soon\" is not a duration"),
        "{said}"
    );
    let (code, said) = run("", &[]);
    assert_eq!(code, Some(2), "{said}");
}
