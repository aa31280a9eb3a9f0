//! `verify` against apps, real proxies and a stand-in for the API server: it must not say that all is
//! well when anything is not.

mod shown;
mod world;

use http::StatusCode;
use serde_json::Value;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use self::world::{Outcome, Plan, Way, World};
use crate::awaited::{ask, command, stderr};
use crate::support::app::Habits;
use crate::support::proxy::binary;
use crate::support::request::Request;

const SILENT: Habits = Habits {
    repeats: false,
    logs: false,
    passes_on: true,
    forges: false,
    rewrites: None,
    status: StatusCode::OK,
    takes: Duration::ZERO,
};

fn logging() -> Habits {
    Habits {
        repeats: false,
        ..Habits::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_intercept_that_works_is_proven_for_every_replica_and_along_the_chain() {
    let world = World::of(vec![
        Plan::of("shop-web").calling("shop-api").untouched(),
        Plan {
            replicas: 2,
            baseline: logging(),
            pr: logging(),
            ..Plan::of("shop-api").calling("shop-db")
        },
        Plan::of("shop-db"),
    ])
    .await;

    let outcome = world.verify(&[]).await;

    outcome.assert_holds();
    let report = &outcome.report;
    assert_eq!(
        (&report["session"], &report["header"]),
        (&"pr-42".into(), &"x-dev-session".into())
    );
    let api = &report["apps"][0];
    assert_eq!(api["app"], "shop-api");
    assert_eq!(api["replicas"].as_array().map(Vec::len), Some(2));
    let names: Vec<_> = api["replicas"][1]["checks"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|check| check["name"].as_str().expect("a name"))
        .collect();
    assert_eq!(
        names,
        [
            "intercepted",
            "tagged-header",
            "tagged-baggage",
            "untagged",
            "unknown-session"
        ]
    );
    let hops = report["hops"].as_array().expect("a list");
    let seen: Vec<_> = hops.iter().map(|hop| (&hop["app"], &hop["seen"])).collect();
    // The answer of shop-api does not tell what shop-db said.
    let expected = [
        ("shop-web", "probe"),
        ("shop-api", "session"),
        ("shop-db", "told"),
    ];
    assert_eq!(
        seen.iter()
            .map(|(app, seen)| (app.as_str().unwrap(), seen.as_str().unwrap()))
            .collect::<Vec<_>>(),
        expected
    );
    for line in [
        "replica shop-api-7c9d-1",
        "  ok    shop-db (terminal)",
        "no measurement",
    ] {
        assert!(outcome.stderr.contains(line), "{line}:\n{}", outcome.stderr);
    }
    assert!(!outcome.stderr.contains('\u{1b}'), "colour on a pipe");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_the_proxy_does_not_know_is_silently_at_the_baseline() {
    let world = World::of(vec![Plan {
        way: Way::Unknown,
        ..Plan::of("orders")
    }])
    .await;

    let outcome = world.verify(&[]).await;

    outcome.assert_fails(&[
        "orders-7c9d-0 tagged-header",
        "baseline; reason=unknown-session",
    ]);
    outcome.assert_fails(&[
        "orders-7c9d-0 tagged-baggage",
        "baseline; reason=unknown-session",
    ]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_three_replicas_that_is_not_stolen_is_found() {
    let world = World::of(vec![Plan {
        replicas: 3,
        stolen: 2,
        ..Plan::of("orders")
    }])
    .await;

    let outcome = world.verify(&[]).await;

    outcome.assert_fails(&["orders-7c9d-2 intercepted", "silently reach the baseline"]);
    outcome.assert_fails(&["orders-7c9d-2 tagged-header", "answered by the baseline"]);
    let of_others = |failure: &String| failure.contains("7c9d-0") || failure.contains("7c9d-1");
    assert!(
        !outcome.failures().iter().any(of_others),
        "{:?}",
        outcome.failures()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_from_another_pods_address_is_not_the_pr_pods() {
    let world = World::of(vec![Plan {
        way: Way::Astray,
        ..Plan::of("orders")
    }])
    .await;

    let outcome = world.verify(&[]).await;

    outcome.assert_fails(&["tagged-header", "which is not pr-orders-pr-42"]);
    outcome.assert_fails(&["hop orders", "did not reach the PR pod"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_forges_the_route_is_not_a_proxy() {
    let world = World::of(vec![Plan {
        stolen: 0,
        baseline: Habits {
            forges: true,
            ..Habits::default()
        },
        ..Plan::of("orders")
    }])
    .await;

    let outcome = world.verify(&["--timeout", "12s"]).await;

    outcome.assert_fails(&["intercepted", "not that of a session-proxy"]);
    outcome.assert_fails(&["tagged-header", "the claim is somebody else's"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forwarder_that_drops_the_session_is_named() {
    let world = World::of(vec![
        Plan::of("shop-web").calling("shop-api").untouched(),
        Plan {
            pr: Habits {
                passes_on: false,
                ..Habits::default()
            },
            ..Plan::of("shop-api").calling("shop-db")
        },
        Plan::of("shop-db"),
    ])
    .await;

    let outcome = world.verify(&[]).await;

    outcome.assert_fails(&[
        "hop shop-db",
        "shop-api (forwarder) did not pass the session on: shop-db's proxy saw no request of pr-42 within 10s",
    ]);
    assert_eq!(outcome.failures().len(), 1, "{:?}", outcome.failures());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rewritten_session_is_found_where_apps_say_what_they_were_told() {
    let world = World::of(vec![
        Plan {
            baseline: Habits {
                rewrites: Some("pr-4"),
                ..Habits::default()
            },
            ..Plan::of("shop-web").calling("shop-api").untouched()
        },
        Plan::of("shop-api"),
    ])
    .await;

    let outcome = world.verify(&[]).await;

    outcome.assert_fails(&["hop shop-api", "its session was \"pr-4\""]);
}

#[tokio::test(flavor = "multi_thread")]
async fn untagged_requests_that_reach_the_pr_pod_are_found() {
    // One pod names itself in its answers, the other's log tells.
    for pr in [
        Habits {
            logs: false,
            ..Habits::default()
        },
        logging(),
    ] {
        let world = World::of(vec![Plan {
            way: Way::Everything,
            pr,
            ..Plan::of("orders")
        }])
        .await;

        let outcome = world.verify(&[]).await;

        outcome.assert_fails(&["orders-7c9d-0 untagged", "it reached pr-orders-pr-42"]);
        outcome.assert_fails(&["unknown-session", "it reached pr-orders-pr-42"]);
        outcome.assert_fails(&["traffic orders", "50 of 50"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_shows_nothing_needs_the_proxys_word_to_be_enough() {
    let world = World::of(vec![Plan {
        baseline: SILENT,
        pr: SILENT,
        ..Plan::of("orders")
    }])
    .await;

    let outcome = world.verify(&[]).await;
    outcome.assert_fails(&[
        "tagged-header",
        "neither repeated nor logged",
        "--witness proxy",
    ]);

    world.api.forbid("get pods/log");
    world.verify(&["--witness", "proxy"]).await.assert_holds();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_may_not_be_read_names_the_right_that_is_missing() {
    let world = World::of(vec![Plan::of("orders")]).await;
    world.api.forbid("get pods/log");

    let outcome = world.verify(&[]).await;

    outcome.assert_fails(&["orders pr-pod-log", "grant the verb get on pods/log"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_ports_are_asked_as_grpc_asks() {
    let world = World::of(vec![Plan {
        protocol: "grpc",
        ..Plan::of("orders")
    }])
    .await;

    let outcome = world.verify(&[]).await;

    outcome.assert_holds();
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_are_not_there_fail_what_depends_on_them() {
    let world = World::of(vec![Plan::of("orders")]).await;

    let outcome = world.verify(&["--deployed-pods", "{}"]).await;
    outcome.assert_fails(&["orders pr-pod", "--deployed-pods has no pod for orders"]);
    outcome.assert_fails(&["tagged-header", "does not serve"]);

    let ready = "/status/conditions/0/status";
    world
        .api
        .set("pods", "pr-orders-pr-42", ready, "False".into());
    let outcome = world.verify(&[]).await;
    outcome.assert_fails(&["orders pr-pod", "is not ready"]);

    world.api.remove("pods", "pr-orders-pr-42");
    world.api.remove("pods", "mirrord-proxy-orders");
    let outcome = world.verify(&[]).await;
    outcome.assert_fails(&["orders pr-pod", "there is no pod pr-orders-pr-42"]);
    outcome.assert_fails(&["orders proxy-pod", "there is no pod mirrord-proxy-orders"]);
    outcome.assert_fails(&["tagged-header", "cannot be proven"]);

    world
        .api
        .set("pods", "orders-7c9d-0", ready, "False".into());
    let outcome = world.verify(&[]).await;
    outcome.assert_fails(&["orders replicas", "deployment/orders", "no ready replica"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_another_session_is_not_taken_for_the_pr_pod() {
    let world = World::of(vec![Plan::of("orders")]).await;
    let label = "/metadata/labels/session-proxy~1session";
    world
        .api
        .set("pods", "pr-orders-pr-42", label, "pr-43".into());

    let outcome = world.verify(&[]).await;

    outcome.assert_fails(&[
        "orders pr-pod",
        "session-proxy/session=pr-43 instead of pr-42",
    ]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_selects_the_pr_pod_is_found() {
    let world = World::of(vec![Plan::of("orders")]).await;
    let selector = "/spec/selector/app";
    world
        .api
        .set("services", "orders", selector, "pr-test".into());

    let outcome = world.verify(&[]).await;

    outcome.assert_fails(&["orders service", "selects pr-orders-pr-42"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_answers_nothing_holds_and_every_failure_says_whom_it_asked() {
    let mut world = World::of(vec![Plan {
        replicas: 2,
        ..Plan::of("orders")
    }])
    .await;
    world.fall_silent();

    let outcome = world.verify(&["--timeout", "20s"]).await;

    for replica in ["orders-7c9d-0", "orders-7c9d-1"] {
        for name in [
            "intercepted",
            "tagged-header",
            "untagged",
            "unknown-session",
        ] {
            outcome.assert_fails(&[&format!("{replica} {name}"), "nothing listens there"]);
        }
    }
    outcome.assert_fails(&["orders proxy-tap", "cannot reach the admin port"]);
    outcome.assert_fails(&["hop orders", "cannot be listened to"]);
    outcome.assert_fails(&["traffic orders", "not every request was answered"]);
    let checks = outcome.report["apps"][0]["checks"]
        .as_array()
        .expect("a list");
    let ok = |name: &str| {
        checks
            .iter()
            .find(|check| check["name"] == name)
            .map(|c| &c["ok"])
    };
    assert_eq!(ok("replicas"), Some(&Value::Bool(true)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_there_was_no_time_for_did_not_hold() {
    let slow = Habits {
        takes: Duration::from_secs(30),
        ..Habits::default()
    };
    let world = World::of(vec![Plan {
        baseline: slow.clone(),
        pr: slow,
        ..Plan::of("orders")
    }])
    .await;
    let started = std::time::Instant::now();

    let outcome = world.verify(&["--timeout", "2s"]).await;

    assert!(
        started.elapsed() < Duration::from_secs(15),
        "{:?}",
        started.elapsed()
    );
    outcome.assert_fails(&["untagged", "no answer within"]);
    outcome.assert_fails(&["traffic orders", "the 2s of --timeout were over"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn untagged_traffic_is_compared_with_what_was_measured_before() {
    let before = World::of(vec![Plan::of("orders")]).await;
    let file = before.file("before.json");
    let measured = before.verify(&["--measure-baseline", &file]).await;
    assert_eq!(measured.code, Some(0), "{}", measured.stderr);
    let text = std::fs::read_to_string(&file).expect("it was written");
    let figures: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(figures["apps"]["orders"]["requests"], 50);
    assert_eq!(figures["apps"]["orders"]["errors"], 0);

    let same = ["--baseline-measurement", &file];
    let outcome = before.verify(&same).await;
    outcome.assert_holds();
    assert!(outcome.stderr.contains("ms allowed"), "{}", outcome.stderr);

    let slower = Habits {
        takes: Duration::from_millis(150),
        ..Habits::default()
    };
    let failing = Habits {
        status: StatusCode::BAD_GATEWAY,
        ..Habits::default()
    };
    for (baseline, part) in [
        (slower, "slower than allowed"),
        (failing, "50 of 50 requests failed"),
    ] {
        let after = World::of(vec![Plan {
            baseline,
            ..Plan::of("orders")
        }])
        .await;
        let outcome = after
            .verify(&["--baseline-measurement", &file, "--max-slowdown", "2"])
            .await;
        outcome.assert_fails(&["traffic orders", part]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_half_of_it_is_proven_without_the_other() {
    let works = World::of(vec![Plan::of("orders")]).await;
    let count = |outcome: &Outcome| {
        let report = &outcome.report;
        ["/apps", "/hops", "/traffic/apps"]
            .map(|list| report.pointer(list).and_then(Value::as_array).map(Vec::len))
    };

    let propagation = works.verify(&["--only", "propagation"]).await;
    assert_eq!(propagation.code, Some(0), "{}", propagation.stderr);
    assert_eq!(count(&propagation), [Some(1), Some(1), Some(0)]);
    let traffic = works.verify(&["--only", "traffic"]).await;
    assert_eq!(traffic.code, Some(0), "{}", traffic.stderr);
    assert_eq!(count(&traffic), [Some(0), Some(0), Some(1)]);

    let unknown = World::of(vec![Plan {
        way: Way::Unknown,
        ..Plan::of("orders")
    }])
    .await;
    let propagation = unknown.verify(&["--only", "propagation"]).await;
    propagation.assert_fails(&["orders-7c9d-0 tagged-header", "unknown-session"]);

    let everything = World::of(vec![Plan {
        way: Way::Everything,
        ..Plan::of("orders")
    }])
    .await;
    let traffic = everything.verify(&["--only", "traffic"]).await;
    traffic.assert_fails(&["traffic orders", "50 of 50"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn traffic_alone_is_not_judged_without_the_pr_pod() {
    let world = World::of(vec![Plan::of("orders")]).await;
    world.api.remove("pods", "pr-orders-pr-42");

    let outcome = world
        .verify(&["--only", "traffic", "--witness", "proxy"])
        .await;

    outcome.assert_fails(&["traffic orders", "there is no pod pr-orders-pr-42"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_report_says_where_the_proxy_tells_of_its_requests() {
    let world = World::of(vec![Plan::of("orders")]).await;

    let outcome = world.verify(&[]).await;

    let admin = &outcome.report["apps"][0]["proxy_admin"];
    let admin: SocketAddr = admin.as_str().expect("text").parse().expect("an address");
    let request = Request::get("/sessions").header("host", admin.to_string());
    let told = ask(admin, &request).await.expect("asked");
    assert_eq!(told.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_report_goes_where_it_is_asked_to() {
    let world = World::of(vec![Plan::of("orders")]).await;
    let file = world.file("report.json");

    let outcome = world.verify(&["--out", &file]).await;

    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert_eq!(outcome.report, Value::Null);
    let text = std::fs::read_to_string(&file).expect("it was written");
    let report: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(report["ok"], true);
}

#[test]
fn what_makes_no_sense_is_told_all_at_once() {
    let output = command(&[
        "verify",
        "--stack-json",
        r#"{"name":"shop","apps":[{"name":"orders"}]}"#,
        "--build-apps",
        "orders payments",
        "--intercept-header",
        "x-dev-session",
        "--path",
        "orders",
        "--timeout",
        "soon",
    ]);

    assert_eq!(output.status.code(), Some(2));
    for flag in [
        "--build-apps",
        "--intercept-header",
        "--path",
        "--timeout",
        "--deployed-pods",
    ] {
        assert!(
            stderr(&output).contains(flag),
            "{flag}: {}",
            stderr(&output)
        );
    }
}

#[test]
fn a_pipelines_parameter_wins_over_the_file_of_its_workspace() {
    let verify = |json: &str, more: &[&str]| {
        let output = Command::new(binary())
            .args([
                "verify",
                "--build-apps",
                "orders",
                "--kubeconfig",
                "/nowhere/at/all",
            ])
            .args(["--intercept-header", "x-dev-session:pr-42"])
            .args(["--deployed-pods", r#"{"orders":"pr-orders-pr-42"}"#])
            .args(more)
            .env("STACK_JSON", json)
            .env("STACK_FILE", "runs/1/stack.json")
            .output();
        stderr(&output.expect("the binary can be started"))
    };
    let json = r#"{"name":"shop","apps":[{"name":"orders"}]}"#;

    let given = verify(json, &[]);
    assert!(given.contains("/nowhere/at/all"), "{given}");
    let empty = verify("", &[]);
    assert!(
        empty.contains("cannot read the stack runs/1/stack.json"),
        "{empty}"
    );
    let typed = verify(json, &["--stack-file", "stack.yaml"]);
    assert!(typed.contains("give the stack once"), "{typed}");
}

#[test]
fn without_a_cluster_nothing_is_proven() {
    let output = command(&[
        "verify",
        "--kubeconfig",
        "/nowhere/at/all",
        "--stack-json",
        r#"{"name":"shop","apps":[{"name":"orders"}]}"#,
        "--build-apps",
        "orders",
        "--intercept-header",
        "x-dev-session:pr-42",
        "--deployed-pods",
        r#"{"orders":"pr-orders-pr-42"}"#,
    ]);

    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("/nowhere/at/all"),
        "{}",
        stderr(&output)
    );
}
