//! A client that leaves before its answer ends the app's work on it, and nothing leaks.

use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::pool::gauge_reaches;
use crate::support::client::{self, AUTHORITY, ask_h2};
use crate::support::proxy::{Proxy, Setup, speaking};
use crate::support::raw;
use crate::support::request::Request;
use crate::support::upstream::Upstream;
use crate::support::wire::Wire;
use crate::support::{eventually, within};

/// How soon "at once" is on a slow machine.
const SOON: Duration = Duration::from_secs(2);

async fn ask_to_hang(proxy: &Proxy, app: &Upstream) -> Wire<TcpStream> {
    let mut wire = raw::connect(proxy.http()).await;
    let head = format!("GET /hang HTTP/1.1\r\nhost: {AUTHORITY}\r\n\r\n");
    wire.send(head).await.expect("the proxy reads");
    eventually("the app has the request", || app.requests() == 1).await;
    wire
}

#[tokio::test]
async fn a_client_that_resets_ends_the_request_at_once() {
    let app = Upstream::site("app").await;
    let proxy = Proxy::sending_everything_to(&app).await;
    let wire = ask_to_hang(&proxy, &app).await;

    let left = Instant::now();
    wire.stream
        .set_zero_linger()
        .expect("an open socket takes options");
    drop(wire);

    eventually("the app's request ends", || app.cancelled() == 1).await;
    assert!(left.elapsed() < SOON, "{:?}", left.elapsed());
    gauge_reaches(&proxy, "session_proxy_requests_in_flight", &[], 0.0).await;
}

#[tokio::test]
async fn a_client_that_closes_is_given_some_seconds_in_case_it_only_closed_its_half() {
    let app = Upstream::site("app").await;
    let proxy = Proxy::sending_everything_to(&app).await;
    let wire = ask_to_hang(&proxy, &app).await;

    let left = Instant::now();
    drop(wire);

    eventually("the app's request ends", || app.cancelled() == 1).await;
    assert!(left.elapsed() > SOON, "{:?}", left.elapsed());
    gauge_reaches(&proxy, "session_proxy_requests_in_flight", &[], 0.0).await;
}

#[tokio::test]
async fn a_stream_that_its_client_resets_ends_at_once_in_either_version() {
    for protocol in ["h1", "h2c"] {
        let app = Upstream::site("app").await;
        let session = speaking(protocol, &app);
        let proxy = Setup::new().session_yaml("pr-42", &session).start().await;
        let mut h2 = client::h2(proxy.http()).await;
        let request = Request::get("/hang").session("pr-42");
        {
            let mut asking = Box::pin(ask_h2(&mut h2, &request));
            while app.requests() == 0 {
                let asked = timeout(Duration::from_millis(5), &mut asking).await;
                assert!(asked.is_err(), "{protocol}: {asked:?}");
            }
        }
        let left = Instant::now();

        eventually("the app's request ends", || app.cancelled() == 1).await;

        assert!(left.elapsed() < SOON, "{protocol}: {:?}", left.elapsed());
        let answer = ask_h2(&mut h2, &Request::get("/status/200").session("pr-42")).await;
        assert_eq!(
            answer.expect("the connection stands").status,
            200,
            "{protocol}"
        );
    }
}

#[tokio::test]
async fn five_hundred_clients_that_leave_at_random_points_leak_nothing() {
    let mut random = fastrand::Rng::with_seed(0x1eaf);
    let app = Upstream::site("app").await;
    let proxy = Setup::new()
        .baseline(app.address)
        .session_yaml("pr-42", &speaking("h2c", &app))
        .top("timeouts: { poolIdle: 500ms }")
        .start()
        .await;
    let mut h2 = client::h2(proxy.http()).await;

    for number in 0..500 {
        let target = ["/hang", "/bytes/300000", "/stream/300000", "/"][random.usize(0..4)];
        let session = ["pr-42", "unknown"][random.usize(0..2)];
        let patience = Duration::from_micros(random.u64(0..8000));
        let request = Request::post(target, "body").session(session);
        if random.bool() {
            let _ = timeout(patience, ask_h2(&mut h2, &request)).await;
            continue;
        }
        let mut wire = raw::connect(proxy.http()).await;
        let _ = timeout(patience, wire.ask(&client::with_host(&request))).await;
        // Some close in order: those end with the grace for a closed half.
        if number % 5 > 0 {
            wire.stream
                .set_zero_linger()
                .expect("an open socket takes options");
        }
    }

    gauge_reaches(&proxy, "session_proxy_requests_in_flight", &[], 0.0).await;
    let active = [("state", "active")];
    gauge_reaches(&proxy, "session_proxy_upstream_connections", &active, 0.0).await;
    gauge_reaches(&proxy, "session_proxy_upstream_connections", &[], 0.0).await;
    eventually("the app has no connection left", || app.open() == 0).await;
    for session in ["pr-42", "unknown"] {
        let request = Request::get("/status/200").session(session);
        let answer = within("an answer", ask_h2(&mut h2, &request)).await;
        assert_eq!(answer.expect("the connection stands").status, 200);
    }
}
