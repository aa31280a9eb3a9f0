//! Connections to the apps: kept, shared, limited, spread and let go.

mod behind;
mod endpoints;
mod limits;
mod shared;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::support::proxy::{Proxy, Setup, speaking};
use crate::support::raw;
use crate::support::request::Request;
use crate::support::upstream::Upstream;
use crate::support::way::Way;
use crate::support::{PATIENCE, eventually, settled};

/// Returns once the sum of these series is that number.
pub async fn gauge_reaches(proxy: &Proxy, name: &str, labels: &[(&str, &str)], wanted: f64) {
    let start = Instant::now();
    loop {
        let found = proxy.metric(name, labels).await;
        if found == wanted {
            return;
        }
        assert!(
            start.elapsed() < PATIENCE,
            "{name}{labels:?} is {found}, not {wanted}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// One worker, and so one pool for each endpoint.
fn one_worker() -> Setup {
    Setup::new().flag("--workers=1")
}

/// That many GETs at once, each with a client of its own.
async fn burst(proxy: &Proxy, times: usize) {
    let mut clients = JoinSet::new();
    for _ in 0..times {
        let address = proxy.http();
        clients.spawn(async move { Way::Direct.send(address, Request::get("/")).await.status });
    }
    assert!(clients.join_all().await.iter().all(|status| *status == 200));
}

/// Answers a burst only when all of it has arrived, so that each request has a connection.
async fn upstream_that_waits_for(burst: usize) -> Upstream {
    let all = Arc::new(Barrier::new(burst));
    Upstream::raw("app", move |mut peer| {
        let all = all.clone();
        async move {
            let mut is_first = true;
            while peer.request().await?.is_some() {
                if is_first {
                    all.wait().await;
                }
                is_first = false;
                peer.ok("app").await?;
            }
            Ok(())
        }
    })
    .await
}

#[tokio::test]
async fn a_hundred_requests_one_after_another_use_one_connection() {
    for way in Way::all() {
        let app = Upstream::site("app").await;
        let proxy = one_worker().baseline(app.address).start().await;
        let mut client = way.client(proxy.http()).await;

        for _ in 0..100 {
            assert_eq!(client.get("/").await.status, 200, "{way:?}");
        }

        assert_eq!((app.requests(), app.connections()), (100, 1), "{way:?}");
        let reused = proxy
            .metric("session_proxy_upstream_reused_total", &[])
            .await;
        assert_eq!(reused, 99.0, "{way:?}");
    }
}

#[tokio::test]
async fn the_connection_used_last_is_used_first_and_the_others_expire() {
    let app = upstream_that_waits_for(10).await;
    let proxy = one_worker()
        .baseline(app.address)
        .top("timeouts: { poolIdle: 500ms }")
        .start()
        .await;
    burst(&proxy, 10).await;
    assert_eq!(app.connections(), 10);

    let mut client = Way::Mirrord.client(proxy.http()).await;
    let start = Instant::now();
    while app.open() > 1 {
        assert!(start.elapsed() < PATIENCE, "{} are still open", app.open());
        client.get("/").await;
    }

    // Used in turn, none of them would ever have been idle for that long.
    assert_eq!(app.connections(), 10);
}

#[tokio::test]
async fn an_unused_connection_is_closed_after_pool_idle() {
    for protocol in ["h1", "h2c"] {
        let app = Upstream::site("app").await;
        let session = speaking(protocol, &app);
        let proxy = one_worker()
            .session_yaml("pr-42", &session)
            .top("timeouts: { poolIdle: 400ms }")
            .start()
            .await;
        let request = Request::get("/").session("pr-42");

        Way::Direct.send(proxy.http(), request.clone()).await;
        let idle = Instant::now();
        eventually("the connection is closed", || app.open() == 0).await;

        let lived = idle.elapsed();
        let range = Duration::from_millis(300)..Duration::from_millis(2500);
        assert!(range.contains(&lived), "{protocol}: {lived:?}");
        gauge_reaches(&proxy, "session_proxy_upstream_connections", &[], 0.0).await;
        assert_eq!(
            Way::Direct.send(proxy.http(), request).await.status,
            200,
            "{protocol}"
        );
        assert_eq!(app.connections(), 2, "{protocol}");
    }
}

#[tokio::test]
async fn a_connection_the_app_will_close_is_not_used_again() {
    let answers = [
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
    ];
    for way in Way::both() {
        for bytes in answers {
            // The app says so and does not do it: whoever asks again would get an answer.
            let app = Upstream::that_answers("app", bytes).await;
            let proxy = one_worker().baseline(app.address).start().await;
            let mut client = way.client(proxy.http()).await;

            for _ in 0..5 {
                assert_eq!(client.send(Request::post("/", "order")).await.text(), "ok");
            }

            assert_eq!(
                (app.requests(), app.connections()),
                (5, 5),
                "{way:?} {bytes:?}"
            );
            eventually("no connection is kept", || app.open() == 0).await;
        }
    }
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_request_does_not_leave_its_rest_on_the_connection() {
    let app = Upstream::raw("app", |mut peer| async move {
        while let Some(head) = peer.head().await? {
            // Answers an upload at its head, and reads on as if all were well.
            peer.ok(&format!("saw {}", head.word(1))).await?;
            if head.word(0) == "POST" {
                peer.finish(&head).await?;
            }
        }
        Ok(())
    })
    .await;
    let proxy = one_worker().baseline(app.address).start().await;
    let mut wire = raw::connect(proxy.http()).await;

    let head = "POST /upload HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\nbegin";
    wire.send(head).await.expect("the proxy reads");
    let early = wire.answer("POST").await.expect("an answer");
    drop(wire);
    let next = Way::Direct.send(proxy.http(), Request::get("/next")).await;

    assert_eq!(
        (early.text().as_str(), next.text().as_str()),
        ("saw /upload", "saw /next")
    );
    assert_eq!(
        settled(Duration::from_millis(50), || app.connections() as u64).await,
        2
    );
}
