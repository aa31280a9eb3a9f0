//! SIGTERM: what is under way ends well, what still comes is served, then the process ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::awaited::{ask, metric_reaches};
use crate::support::client;
use crate::support::proxy::{Proxy, Setup, speaking};
use crate::support::raw;
use crate::support::request::Request;
use crate::support::upstream::Upstream;
use crate::support::way::Way;
use crate::support::{eventually, within};

/// Answers `/slow` only when told to, anything else at once.
async fn slow(release: Arc<Notify>) -> Upstream {
    Upstream::raw("baseline", move |mut peer| {
        let release = release.clone();
        async move {
            while let Some(seen) = peer.request().await? {
                if seen.target == "/slow" {
                    release.notified().await;
                }
                peer.ok("done").await?;
            }
            Ok(())
        }
    })
    .await
}

/// Requests without a session go there too, in their own version of HTTP.
async fn proxy_to(upstream: &Upstream) -> Proxy {
    let setup = Setup::new().baseline(upstream.address);
    setup
        .session_yaml("pr-42", &speaking("h1", upstream))
        .start()
        .await
}

async fn not_ready(proxy: &Proxy) {
    let start = Instant::now();
    while proxy.ask_admin("/readyz").await.status == 200 {
        assert!(start.elapsed() < Duration::from_secs(2), "still ready");
    }
}

async fn ends_well(proxy: &mut Proxy, limit: Duration) {
    let status = proxy.wait_exit(limit).await;
    assert_eq!(status.code(), Some(0));
}

#[tokio::test]
async fn what_is_under_way_ends_well_and_what_comes_is_served() {
    for way in Way::all() {
        let release = Arc::new(Notify::new());
        let upstream = slow(release.clone()).await;
        let mut proxy = proxy_to(&upstream).await;
        let address = proxy.http();
        let mut idle = raw::connect(address).await;
        let first = idle
            .ask(&Request::get("/").session("pr-42").header("host", "a"))
            .await;
        assert_eq!(first.expect("an answer").status, 200);
        let under_way = tokio::spawn(async move {
            way.send(address, Request::get("/slow").session("pr-42"))
                .await
        });
        eventually("it is under way", || upstream.requests() == 2).await;

        proxy.signal("TERM");
        not_ready(&proxy).await;

        let (_, ending) = within("the idle connection ends", idle.rest()).await;
        assert_eq!(ending, crate::support::wire::Ending::Fin);
        let late = ask(address, &Request::get("/late").session("pr-42"))
            .await
            .expect("still accepted");
        assert_eq!(
            (late.status, late.header("connection").as_deref()),
            (200, Some("close"))
        );
        assert!(proxy.is_running());
        release.notify_one();
        let answer = within("the slow one", under_way).await.expect("an answer");
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (200, "done"),
            "{way:?}"
        );
        ends_well(&mut proxy, Duration::from_secs(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_for_as_long_as_the_drain_lasts() {
    let release = Arc::new(Notify::new());
    let upstream = slow(release.clone()).await;
    let mut proxy = proxy_to(&upstream).await;
    let address = proxy.http();
    let held = tokio::spawn(async move {
        Way::Direct
            .send(address, Request::get("/slow").session("pr-42"))
            .await
    });
    eventually("it is under way", || upstream.requests() == 1).await;
    let stop = Arc::new(AtomicBool::new(false));
    // The sender gets the time to try again: an idle connection may end while a request is on its way.
    let asking: Vec<_> = [Way::Direct, Way::Mirrord, Way::MirrordH2]
        .into_iter()
        .map(|way| {
            let stop = stop.clone();
            tokio::spawn(async move {
                let sender = crate::support::mirrord::Sender::new(address);
                let mut count = 0;
                while !stop.load(Ordering::Relaxed) {
                    let version = match way {
                        Way::MirrordH2 => http::Version::HTTP_2,
                        _ => http::Version::HTTP_11,
                    };
                    let request = Request::post("/x", "body")
                        .session("pr-42")
                        .version(version);
                    let status = match way {
                        Way::Direct => ask(address, &request).await.expect("an answer").status,
                        _ => sender.send(&request).await.status,
                    };
                    assert_eq!(status, 200, "{way:?}");
                    count += 1;
                }
                count
            })
        })
        .collect();

    let before = upstream.requests();
    eventually("they ask", || upstream.requests() > before + 30).await;
    proxy.signal("TERM");
    not_ready(&proxy).await;
    let before = upstream.requests();
    eventually("they go on", || upstream.requests() > before + 100).await;
    stop.store(true, Ordering::Relaxed);
    for task in asking {
        assert!(task.await.expect("no request failed") > 0);
    }
    release.notify_one();

    assert_eq!(held.await.expect("an answer").status, 200);
    ends_well(&mut proxy, Duration::from_secs(2)).await;
}

#[tokio::test]
async fn http2_is_told_to_go_away_and_open_streams_finish() {
    let release = Arc::new(Notify::new());
    let upstream = slow(release.clone()).await;
    let mut proxy = proxy_to(&upstream).await;
    let mut h2 = client::h2(proxy.http()).await;
    let mut same = h2.clone();
    let under_way = tokio::spawn(async move {
        client::ask_h2(&mut h2, &Request::get("/slow").session("pr-42")).await
    });
    eventually("it is under way", || upstream.requests() == 1).await;

    proxy.signal("TERM");
    let refused = async {
        while client::ask_h2(&mut same, &Request::get("/x").session("pr-42"))
            .await
            .is_ok()
        {}
    };
    within("GOAWAY", refused).await;
    release.notify_one();

    let answer = within("the stream", under_way).await.expect("no panic");
    assert_eq!(answer.expect("an answer").text(), "done");
    ends_well(&mut proxy, Duration::from_secs(2)).await;
}

#[tokio::test]
async fn with_nothing_in_flight_it_ends_quickly() {
    let upstream = Upstream::site("baseline").await;
    let mut proxy = proxy_to(&upstream).await;
    let _silent = raw::connect(proxy.http()).await;
    let mut idle = raw::connect(proxy.http()).await;
    let answer = idle
        .ask(&Request::get("/").session("pr-42").header("host", "a"))
        .await;
    assert_eq!(answer.expect("an answer").status, 200);

    proxy.signal("TERM");

    ends_well(&mut proxy, Duration::from_secs(1)).await;
}

#[tokio::test]
async fn the_drain_lasts_no_longer_than_its_limit() {
    let upstream = Upstream::site("baseline").await;
    let setup = Setup::new().baseline(upstream.address);
    let mut proxy = setup.flag("--drain-timeout=500ms").start().await;
    let mut wire = raw::connect(proxy.http()).await;
    wire.send("GET /hang HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .expect("it reads");
    eventually("it is under way", || upstream.requests() == 1).await;

    let start = Instant::now();
    proxy.signal("TERM");
    ends_well(&mut proxy, Duration::from_secs(3)).await;

    assert!(
        start.elapsed() > Duration::from_millis(450),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let upstream = Upstream::site("baseline").await;
    let mut proxy = proxy_to(&upstream).await;
    let mut wire = raw::connect(proxy.http()).await;
    wire.send("GET /hang HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .expect("it reads");
    eventually("it is under way", || upstream.requests() == 1).await;

    proxy.signal("TERM");
    not_ready(&proxy).await;
    assert!(proxy.is_running());
    proxy.signal("TERM");

    proxy.wait_exit(Duration::from_secs(1)).await;
}

#[tokio::test]
async fn a_stream_of_events_is_in_flight() {
    let tick = Arc::new(Notify::new());
    let told = tick.clone();
    let upstream = Upstream::raw("baseline", move |mut peer| {
        let tick = told.clone();
        async move {
            peer.request().await?;
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
            peer.wire.send(head).await?;
            tick.notified().await;
            peer.wire.send("9\r\ndata: 1\n\n\r\n0\r\n\r\n").await
        }
    })
    .await;
    let mut proxy = proxy_to(&upstream).await;
    let mut wire = raw::connect(proxy.http()).await;
    wire.send("GET /events HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .expect("it reads");
    let head = within("the head", wire.final_head())
        .await
        .expect("an answer");

    proxy.signal("TERM");
    not_ready(&proxy).await;
    tick.notify_one();

    let body = within("the event", wire.body(head.response_framing("GET"))).await;
    assert_eq!(&body.expect("whole").bytes[..], b"data: 1\n\n");
    ends_well(&mut proxy, Duration::from_secs(2)).await;
}

#[tokio::test]
async fn a_tunnel_is_in_flight() {
    let upstream = Upstream::that_upgrades("baseline").await;
    let mut proxy = proxy_to(&upstream).await;
    let mut wire = raw::connect(proxy.http()).await;
    wire.send("GET /chat HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
        .await
        .expect("it reads");
    assert_eq!(
        within("101", wire.final_head())
            .await
            .expect("an answer")
            .status(),
        101
    );

    proxy.signal("TERM");
    not_ready(&proxy).await;
    for _ in 0..3 {
        wire.send("ping").await.expect("open");
        assert_eq!(
            &within("an echo", wire.exactly(4)).await.expect("open")[..],
            b"ping"
        );
    }
    assert!(proxy.is_running());
    drop(wire);

    ends_well(&mut proxy, Duration::from_secs(2)).await;
}

#[tokio::test]
async fn the_admin_port_counts_what_is_in_flight_to_the_end() {
    let release = Arc::new(Notify::new());
    let upstream = slow(release.clone()).await;
    let mut proxy = proxy_to(&upstream).await;
    let address = proxy.http();
    let held = tokio::spawn(async move {
        Way::Direct
            .send(address, Request::get("/slow").session("pr-42"))
            .await
    });
    metric_reaches(&proxy, "session_proxy_requests_in_flight", &[], 1.0).await;

    proxy.signal("TERM");
    not_ready(&proxy).await;

    assert_eq!(
        proxy.metric("session_proxy_requests_in_flight", &[]).await,
        1.0
    );
    assert_eq!(proxy.ask_admin("/healthz").await.status, 200);
    release.notify_one();
    assert_eq!(held.await.expect("an answer").status, 200);
    ends_well(&mut proxy, Duration::from_secs(2)).await;
}
