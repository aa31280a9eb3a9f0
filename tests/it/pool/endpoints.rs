//! Several endpoints, endpoints that fail, and endpoints that come and go with the configuration.

use std::time::{Duration, Instant};

use tokio::net::TcpListener;

use super::{gauge_reaches, one_worker};
use crate::support::client::{self, AUTHORITY, ask_h2};
use crate::support::ports::dead_addr;
use crate::support::proxy::{Proxy, Setup};
use crate::support::raw;
use crate::support::request::Request;
use crate::support::upstream::Upstream;
use crate::support::way::Way;
use crate::support::{PATIENCE, eventually, within};

const RELOADS: &str = "session_proxy_config_reloads_total";

fn endpoints(apps: &[&Upstream]) -> String {
    let addresses: Vec<_> = apps
        .iter()
        .map(|app| format!("\"{}\"", app.address))
        .collect();
    format!("[{}]", addresses.join(", "))
}

fn to_pr_42(target: &str) -> Request {
    Request::get(target).session("pr-42")
}

/// Makes that file the configuration, and waits until it is.
async fn reload(proxy: &Proxy, setup: &Setup) {
    let before = proxy.metric(RELOADS, &[("result", "success")]).await;
    proxy.config.rename_over(&setup.text());
    let start = Instant::now();
    while proxy.metric(RELOADS, &[("result", "success")]).await <= before {
        assert!(
            start.elapsed() < PATIENCE,
            "never reloaded: {:?}",
            proxy.stderr()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn requests_are_spread_over_all_endpoints() {
    let apps = [
        Upstream::site("a").await,
        Upstream::site("b").await,
        Upstream::site("c").await,
    ];
    let all = endpoints(&[&apps[0], &apps[1], &apps[2]]);
    let proxy = one_worker().session_yaml("pr-42", &all).start().await;
    let mut client = Way::Mirrord.client(proxy.http()).await;

    for _ in 0..300 {
        assert_eq!(client.send(to_pr_42("/")).await.status, 200);
    }

    // With 300 fair choices of three, fewer than 50 is six standard deviations away.
    for app in &apps {
        assert!(
            app.requests() >= 50,
            "{}: {}",
            app.account.name,
            app.requests()
        );
    }
}

#[tokio::test]
async fn the_endpoint_with_fewer_requests_under_way_is_preferred() {
    let (busy, free) = (Upstream::site("busy").await, Upstream::site("free").await);
    let one = one_worker().session_yaml("pr-42", &endpoints(&[&busy]));
    let proxy = one.clone().start().await;
    let mut h2 = client::h2(proxy.http()).await;
    let hanging = tokio::spawn(async move { ask_h2(&mut h2, &to_pr_42("/hang")).await.is_ok() });
    eventually("one hangs", || busy.requests() == 1).await;
    reload(
        &proxy,
        &one_worker().session_yaml("pr-42", &endpoints(&[&busy, &free])),
    )
    .await;

    for _ in 0..50 {
        let answer = Way::Direct.send(proxy.http(), to_pr_42("/")).await;
        assert_eq!(answer.served_by(), "free");
    }
    hanging.abort();
}

#[tokio::test]
async fn an_endpoint_that_refuses_is_avoided_and_comes_back() {
    let good = Upstream::site("good").await;
    let dead = dead_addr().await;
    let both = format!("[\"{dead}\", \"{}\"]", good.address);
    let proxy = one_worker().session_yaml("pr-42", &both).start().await;
    let mut client = Way::Mirrord.client(proxy.http()).await;

    let start = Instant::now();
    for _ in 0..200 {
        assert_eq!(client.send(to_pr_42("/")).await.status, 200);
    }
    let refused = [("result", "refused")];
    let attempts = proxy
        .metric("session_proxy_upstream_connects_total", &refused)
        .await;
    // Avoided for 250 ms at first, and longer each time.
    let most = 1.0 + start.elapsed().as_secs_f64() / 0.25;
    assert!(
        (1.0..=most).contains(&attempts),
        "{attempts} attempts, {most} at most"
    );

    let listener = TcpListener::bind(dead)
        .await
        .expect("the port is still free");
    let accepted = async {
        tokio::select! {
            accepted = listener.accept() => accepted.map(drop).is_ok(),
            () = async { loop { client.send(to_pr_42("/")).await; } } => false,
        }
    };
    assert!(within("the endpoint is tried again", accepted).await);
}

#[tokio::test]
async fn connections_to_endpoints_that_stay_are_kept_across_reloads() {
    let (stays, other) = (Upstream::site("stays").await, Upstream::site("other").await);
    let setup = || {
        one_worker()
            .baseline(stays.address)
            .top("timeouts: { poolIdle: 30s }")
            .session_yaml(
                "pr-42",
                &format!("{{ endpoints: [\"{}\"] }}", stays.address),
            )
    };
    let proxy = setup().start().await;
    let mut clients = Vec::new();
    for way in [Way::Direct, Way::DirectH2] {
        clients.push(way.client(proxy.http()).await);
    }
    for client in &mut clients {
        client.send(to_pr_42("/")).await;
    }
    assert_eq!(stays.connections(), 2);

    for number in 0..5 {
        reload(
            &proxy,
            &setup().session(&format!("pr-{number}"), other.address),
        )
        .await;
        for client in &mut clients {
            assert_eq!(client.send(to_pr_42("/")).await.served_by(), "stays");
        }
    }

    assert_eq!((stays.connections(), stays.open()), (2, 2));
}

#[tokio::test]
async fn connections_to_an_endpoint_that_left_end_when_they_are_idle() {
    let (gone, new) = (Upstream::site("gone").await, Upstream::site("new").await);
    let setup = |app: &Upstream| {
        one_worker()
            .top("timeouts: { poolIdle: 30s }")
            .session("pr-42", app.address)
    };
    let proxy = setup(&gone).start().await;
    for way in [Way::Direct, Way::DirectH2] {
        way.send(proxy.http(), to_pr_42("/")).await;
    }
    // One of each version is idle, one is taken by an answer that is not read yet.
    let mut wire = raw::connect(proxy.http()).await;
    let head = format!(
        "GET /stream/8000000 HTTP/1.1\r\nhost: {AUTHORITY}\r\nx-dev-session: pr-42\r\n\r\n"
    );
    wire.send(head).await.expect("the proxy reads");
    let head = within("a head", wire.final_head())
        .await
        .expect("an answer");
    assert_eq!((gone.connections(), gone.open()), (2, 2));

    reload(&proxy, &setup(&new)).await;

    eventually("the idle connection is closed", || gone.open() == 1).await;
    assert_eq!(
        Way::Direct
            .send(proxy.http(), to_pr_42("/"))
            .await
            .served_by(),
        "new"
    );
    let framing = head.response_framing("GET");
    let body = within("the answer under way", wire.body(framing))
        .await
        .expect("it is whole");
    assert_eq!(body.bytes.len(), 8_000_000);
    eventually("the last connection is closed", || gone.open() == 0).await;
    gauge_reaches(&proxy, "session_proxy_requests_in_flight", &[], 0.0).await;
}

#[tokio::test]
async fn an_endpoint_may_be_named_by_its_host_name() {
    let app = Upstream::site("app").await;
    let named = format!("\"localhost:{}\"", app.address.port());
    let proxy = one_worker().session_yaml("pr-42", &named).start().await;

    for way in Way::all() {
        let answer = way.send(proxy.http(), to_pr_42("/")).await;
        assert_eq!(
            (answer.status, answer.served_by().as_str()),
            (200, "app"),
            "{way:?}"
        );
    }

    assert_eq!(app.connections(), 2);
}
