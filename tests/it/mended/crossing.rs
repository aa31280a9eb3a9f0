//! What crosses whole, and connections that outlive it.

use std::time::Duration;

use serde_json::Value;

use crate::awaited::reloaded;
use crate::pool::gauge_reaches;
use crate::support::client::with_host;
use crate::support::digest::Digest;
use crate::support::eventually;
use crate::support::ports::dead_addr;
use crate::support::proxy::Setup;
use crate::support::raw;
use crate::support::request::Request;
use crate::support::settled;
use crate::support::upstream::Upstream;
use crate::support::way::Way;

use super::{one_worker, tagged, with_session};

#[tokio::test]
async fn an_answer_whose_end_can_be_read_in_two_ways_is_refused_and_its_connection_not_used_again()
{
    const CHUNKS: &str = "c\r\nhello, world\r\n0\r\n\r\n";
    let table = [
        (
            "1.1",
            "content-length: 5\r\ntransfer-encoding: chunked",
            "both content-length and transfer-encoding",
        ),
        (
            "1.1",
            "transfer-encoding: chunked\r\ncontent-length: 22",
            "both content-length and transfer-encoding",
        ),
        (
            "1.1",
            "content-length: 5\r\ncontent-length: 22",
            "a content-length that is not one number",
        ),
        (
            "1.1",
            "content-length: 5, 22",
            "a content-length that is not one number",
        ),
        (
            "1.1",
            "transfer-encoding: gzip, chunked",
            "a transfer coding other than chunked",
        ),
        (
            "1.0",
            "connection: keep-alive\r\ntransfer-encoding: chunked",
            "a transfer coding other than chunked",
        ),
    ];
    for (version, framing, wrong) in table {
        let answer = format!("HTTP/{version} 200 OK\r\n{framing}\r\n\r\n{CHUNKS}");
        let app = Upstream::that_answers("pr-42", answer).await;
        let proxy = with_session("h1", &app).start().await;

        for (nth, way) in Way::all().into_iter().enumerate() {
            let answer = way.send(proxy.http(), tagged(Request::get("/"))).await;

            assert_eq!(
                (answer.status, answer.reason().as_str()),
                (502, "upstream-reset"),
                "{way:?} {framing:?}"
            );
            let problem = answer.json();
            let detail = problem["detail"].as_str().unwrap_or_default();
            assert!(detail.contains(wrong), "{way:?} {framing:?}: {problem}");
            assert_eq!((app.requests(), app.connections()), (nth + 1, nth + 1));
        }
    }
}

#[tokio::test]
async fn answers_with_trailers_keep_the_connection_and_are_no_error() {
    let answer = "HTTP/1.1 200 OK\r\ntrailer: x-checksum\r\ntransfer-encoding: chunked\r\n\r\n\
                  5\r\nhello\r\n0\r\nx-checksum: abc\r\n\r\n";
    for way in Way::all() {
        let app = Upstream::that_answers("pr-42", answer).await;
        let setup = with_session("h1", &app).flag("--access-log").flag("json");
        let proxy = setup.top("timeouts: { poolIdle: 60s }").start().await;
        let before = proxy.stdout().len();
        let mut client = way.client(proxy.http()).await;

        for turn in 0..5 {
            // Trailers go no further than to a client that wants them.
            let request = match turn % 2 {
                0 => Request::get("/"),
                _ => Request::get("/").header("te", "trailers"),
            };
            assert_eq!(
                client.send(tagged(request)).await.text(),
                "hello",
                "{way:?}"
            );
        }

        assert_eq!((app.requests(), app.connections()), (5, 1), "{way:?}");
        eventually("five lines", || proxy.stdout().len() >= before + 5).await;
        for line in proxy.stdout().split_off(before) {
            let line: Value = serde_json::from_str(&line).expect("JSON");
            assert!(
                line.get("error").is_none_or(Value::is_null),
                "{way:?}: {line}"
            );
            assert_eq!(line["status"], 200, "{way:?}: {line}");
        }
    }
}

#[tokio::test]
async fn a_session_whose_endpoint_refuses_is_served_by_the_baseline_with_its_body() {
    let baseline = Upstream::site("baseline").await;
    let body = "order ".repeat(20_000);
    for way in Way::all() {
        let proxy = Setup::new()
            .baseline(baseline.address)
            .listener("onUnavailable: baseline")
            .session("pr-42", dead_addr().await)
            .start()
            .await;
        let mut client = way.client(proxy.http()).await;

        for request in [
            Request::get("/"),
            Request::post("/", body.clone()),
            Request::post("/", body.clone()).header("transfer-encoding", "chunked"),
        ] {
            if request.fields.has("transfer-encoding") && way != Way::Direct {
                continue;
            }
            let before = baseline.requests();
            let sent = Digest::of(&request.body);
            let answer = client.send(tagged(request)).await;

            assert_eq!(answer.served_by(), "baseline", "{way:?}");
            let route = answer.route();
            let wanted = "baseline; reason=no-endpoint";
            assert_eq!(route.as_deref(), Some(wanted), "{way:?}");
            assert_eq!(baseline.requests(), before + 1, "{way:?}");
            assert_eq!(baseline.last().body, sent, "{way:?}");
        }
    }
}

/// Changes the limit of requests at a time from 100 to 1, and expects it to hold.
///
/// `at` names an app to the setup, `tag` makes a request go there.
async fn another_limit_holds(
    at: impl Fn(Setup, &Upstream) -> Setup,
    tag: impl Fn(Request) -> Request,
) {
    let app = Upstream::site("app").await;
    let setup = |limits: &str| {
        let setup = at(one_worker(), &app);
        setup.top("timeouts: { poolIdle: 60s }").top(limits)
    };
    let proxy = setup("limits: { requestsPerEndpoint: 100, queuedPerEndpoint: 1 }")
        .start()
        .await;
    let first = Way::Direct.send(proxy.http(), tag(Request::get("/"))).await;
    assert_eq!(first.status, 200);

    let fewer = setup("limits: { requestsPerEndpoint: 1, queuedPerEndpoint: 1 }");
    proxy.config.rename_over(&fewer.text());
    reloaded(&proxy, 1.0).await;

    settled(Duration::from_millis(100), || app.open() as u64).await;
    assert_eq!((app.open(), app.connections()), (1, 1));
    let hanging = with_host(&tag(Request::get("/hang")));
    let mut holders = Vec::new();
    for held in 1..=2 {
        let mut wire = raw::connect(proxy.http()).await;
        wire.send(hanging.to_h1("/hang")).await.expect("open");
        holders.push(wire);
        let name = "session_proxy_requests_in_flight";
        gauge_reaches(&proxy, name, &[], f64::from(held)).await;
    }
    let over = Way::Direct.send(proxy.http(), tag(Request::get("/"))).await;
    assert_eq!(over.status, 503, "{over:#?}");
    assert_eq!(over.reason(), "overloaded");
    assert_eq!((app.requests(), app.connections()), (2, 1));
}

#[tokio::test]
async fn another_limit_takes_effect_for_a_session_without_closing_idle_connections() {
    let session = |setup: Setup, app: &Upstream| setup.session("pr-42", app.address);

    another_limit_holds(session, tagged).await;
}

#[tokio::test]
async fn another_limit_takes_effect_for_a_baseline_without_closing_idle_connections() {
    let baseline = |setup: Setup, app: &Upstream| setup.baseline(app.address);

    another_limit_holds(baseline, |request| request).await;
}
