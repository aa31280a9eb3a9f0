//! The admin port of a running proxy: what it says, to whom, and that its numbers are true.

use std::fmt::Write as _;

use crate::support::eventually;
use crate::support::proxy::{Proxy, Setup};
use crate::support::raw;
use crate::support::request::Request;
use crate::support::upstream::Upstream;
use crate::support::way::Way;
use crate::support::within;

#[tokio::test]
async fn every_resource_answers_get_and_nothing_else() {
    let site = Upstream::site("pr-42").await;
    let proxy = Proxy::routing(&site, &[("pr-42", &site)]).await;
    for (path, kind) in [
        ("/healthz", "text/plain"),
        ("/readyz", "text/plain"),
        ("/metrics", "text/plain"),
        ("/sessions", "application/json"),
        ("/config", "application/json"),
        ("/", "text/html"),
    ] {
        let answer = proxy.ask_admin(path).await;
        assert_eq!(answer.status, 200, "{path}");
        let found = answer.header("content-type").expect("a type");
        assert!(found.starts_with(kind), "{path}: {found}");
        for method in ["POST", "DELETE", "PUT"] {
            let head =
                format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n");
            assert_eq!(
                raw::exchange(proxy.admin(), head).await.status,
                405,
                "{method} {path}"
            );
        }
    }
    assert_eq!(proxy.ask_admin("/nothing").await.status, 404);
}

#[tokio::test]
async fn a_foreign_host_is_refused() {
    let site = Upstream::site("baseline").await;
    let proxy = Proxy::sending_everything_to(&site).await;
    for (host, is_own) in [
        ("localhost:1", true),
        ("127.0.0.1", true),
        ("[::1]:9901", true),
        ("evil.example", false),
        ("127.0.0.1.evil.example", false),
    ] {
        let head = format!("GET /sessions HTTP/1.1\r\nhost: {host}\r\n\r\n");
        let answer = raw::exchange(proxy.admin(), head).await;
        assert_eq!(answer.status == 200, is_own, "{host}: {}", answer.status);
        assert!(is_own || (400..500).contains(&answer.status), "{host}");
    }
}

#[tokio::test]
async fn the_metrics_count_what_was_asked() {
    let site = Upstream::site("site").await;
    let proxy = Proxy::routing(&site, &[("pr-42", &site)]).await;
    const HOSTILE: &str = "evil\",route=\"forged";
    for _ in 0..3 {
        Way::Direct
            .send(proxy.http(), Request::post("/", "12345").session("pr-42"))
            .await;
        Way::Direct.send(proxy.http(), Request::get("/")).await;
    }
    Way::Direct
        .send(proxy.http(), Request::get("/status/500").session("pr-42"))
        .await;
    Way::Direct
        .send(proxy.http(), Request::get("/").session(HOSTILE))
        .await;

    let name = "session_proxy_requests_total";
    crate::awaited::metric_reaches(&proxy, name, &[], 8.0).await;
    let metrics = proxy.metrics().await;
    for (labels, count) in [
        (&[("route", "pr-42"), ("code", "200")][..], 3.0),
        (&[("route", "pr-42"), ("code", "500")], 1.0),
        (
            &[
                ("route", "baseline"),
                ("reason", "no-session"),
                ("code", "200"),
            ],
            3.0,
        ),
        (&[("route", "baseline"), ("reason", "unknown-session")], 1.0),
        (&[("listener", "http")], 8.0),
        (&[], 8.0),
    ] {
        assert_eq!(
            metrics.sum(name, labels),
            count,
            "{labels:?}\n{}",
            metrics.text
        );
    }
    assert!(!metrics.text.contains("evil") && !metrics.text.contains("forged"));
    assert_eq!(
        metrics.sum(
            "session_proxy_body_bytes_total",
            &[("direction", "request")]
        ),
        15.0
    );
    assert_eq!(
        metrics.sum("session_proxy_connections_total", &[("listener", "http")]),
        8.0
    );
    assert_eq!(
        metrics.sum("session_proxy_request_duration_seconds_count", &[]),
        8.0
    );
    for name in [
        "overhead_seconds_count",
        "requests_in_flight",
        "connections",
        "upstream_connects_total",
        "upstream_connections",
        "upstream_reused_total",
        "tap_dropped_total",
        "log_dropped_total",
        "sessions",
        "config_reloads_total",
        "config_last_reload_success_timestamp_seconds",
        "build_info",
    ] {
        assert!(
            metrics
                .series(&format!("session_proxy_{name}"))
                .next()
                .is_some(),
            "{name}"
        );
    }
    assert!(
        metrics
            .series("process_resident_memory_bytes")
            .next()
            .is_some()
    );
}

#[tokio::test]
async fn at_most_two_hundred_names_become_labels() {
    let site = Upstream::site("site").await;
    let mut text = "sessions:\n".to_owned();
    for number in 0..250 {
        writeln!(text, "  s-{number}: \"{}\"", site.address).expect("a string grows");
    }
    let proxy = Setup::new().top(&text).start().await;
    let mut client = Way::DirectH2.client(proxy.http()).await;
    for number in 0..250 {
        let answer = client
            .send(Request::get("/").session(&format!("s-{number}")))
            .await;
        assert_eq!(answer.status, 200);
    }

    let name = "session_proxy_requests_total";
    crate::awaited::metric_reaches(&proxy, name, &[], 250.0).await;
    let metrics = proxy.metrics().await;
    let named = metrics
        .series(name)
        .filter(|(labels, _)| labels.contains("route=\"s-"))
        .count();
    assert_eq!(named, 200);
    assert_eq!(metrics.sum(name, &[("route", "other")]), 50.0);
}

#[tokio::test]
async fn the_tap_tells_the_requests_of_one_session() {
    let site = Upstream::site("site").await;
    let proxy = Proxy::routing(&site, &[("pr-42", &site)]).await;
    let mut tap = raw::connect(proxy.admin()).await;
    tap.send("GET /tap?session=pr-42 HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await
        .expect("open");
    let head = within("the head", tap.final_head())
        .await
        .expect("an answer");
    assert_eq!(
        head.fields.first("content-type").as_deref(),
        Some("text/event-stream")
    );

    Way::Direct.send(proxy.http(), Request::get("/other")).await;
    Way::Direct
        .send(proxy.http(), Request::get("/wanted").session("pr-42"))
        .await;

    let mut told = String::new();
    while !told.contains("/wanted") {
        let some = within("an event", tap.some()).await.expect("open");
        assert!(!some.is_empty(), "the tap ended");
        told += &String::from_utf8_lossy(&some);
    }
    assert!(!told.contains("/other"), "{told}");
}

#[tokio::test]
async fn the_access_log_has_one_line_a_request_whatever_it_holds() {
    for format in ["text", "json"] {
        let site = Upstream::site("site").await;
        let setup = Setup::new().baseline(site.address);
        let proxy = setup.flag("--access-log").flag(format).start().await;
        let before = proxy.stdout().len();
        let hostile = [
            &b"GET /a%0atime=forged HTTP/1.1\r\nhost: a\r\nx-dev-session: \xff\"\\ status=200\r\n\r\n"[..],
            b"GET /\"quoted\" HTTP/1.1\r\nhost: a\r\nx-dev-session: a\tb\r\n\r\n",
            b"GET /x HTTP/1.1\r\nhost: a\r\nbaggage: dev-session=a%0atime=forged\r\n\r\n",
        ];
        for request in hostile {
            raw::exchange(proxy.http(), request).await;
        }

        eventually("three lines", || proxy.stdout().len() >= before + 3).await;
        Way::Direct.send(proxy.http(), Request::get("/last")).await;
        eventually("the last", || {
            proxy.stdout().iter().any(|line| line.contains("/last"))
        })
        .await;
        let lines = proxy.stdout().split_off(before);
        assert_eq!(lines.len(), 4, "{lines:#?}");
        for line in &lines {
            assert!(
                line.bytes().all(|byte| (b' '..=b'~').contains(&byte)),
                "{line}"
            );
            match format {
                "json" => drop(serde_json::from_str::<serde_json::Value>(line).expect("JSON")),
                _ => assert!(line.starts_with("time=2"), "{line}"),
            }
        }
    }
}
