//! `requestsPerEndpoint` and `queuedPerEndpoint`: how many are served, how many wait.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::gauge_reaches;
use crate::support::client::AUTHORITY;
use crate::support::proxy::{Proxy, Setup};
use crate::support::raw;
use crate::support::request::Request;
use crate::support::upstream::Upstream;
use crate::support::way::Way;
use crate::support::wire::Wire;
use crate::support::{eventually, settled, within};

/// Answers each request when it is told to.
async fn upstream_that_waits(turns: &Arc<Semaphore>) -> Upstream {
    let turns = turns.clone();
    Upstream::raw("app", move |mut peer| {
        let turns = turns.clone();
        async move {
            while let Some(seen) = peer.request().await? {
                turns.acquire().await.expect("never closed").forget();
                peer.ok(&seen.target).await?;
            }
            Ok(())
        }
    })
    .await
}

async fn proxy_with(served: usize, queued: usize, app: &Upstream) -> Proxy {
    let limits =
        format!("limits: {{ requestsPerEndpoint: {served}, queuedPerEndpoint: {queued} }}");
    Setup::new()
        .baseline(app.address)
        .top(&limits)
        .start()
        .await
}

/// Sends a request and waits until the proxy has it.
async fn begin(proxy: &Proxy, target: &str, in_flight: usize) -> Wire<TcpStream> {
    let mut wire = raw::connect(proxy.http()).await;
    let head = format!("GET {target} HTTP/1.1\r\nhost: {AUTHORITY}\r\n\r\n");
    wire.send(head).await.expect("the proxy reads");
    gauge_reaches(
        proxy,
        "session_proxy_requests_in_flight",
        &[],
        in_flight as f64,
    )
    .await;
    wire
}

#[tokio::test]
async fn some_are_served_some_wait_in_order_and_the_next_is_refused() {
    let turns = Arc::new(Semaphore::new(0));
    let app = upstream_that_waits(&turns).await;
    let proxy = proxy_with(2, 3, &app).await;

    let mut wires = Vec::new();
    for number in 0..5 {
        wires.push(begin(&proxy, &format!("/{number}"), number + 1).await);
    }
    eventually("two are served", || app.requests() == 2).await;
    for way in Way::all() {
        let refused = way
            .send(proxy.http(), Request::post("/refused", "order"))
            .await;
        assert_eq!(
            (refused.status, refused.reason().as_str()),
            (503, "overloaded"),
            "{way:?}"
        );
        assert_eq!(
            refused.header("retry-after").as_deref(),
            Some("1"),
            "{way:?}"
        );
    }
    assert_eq!(
        settled(Duration::from_millis(100), || app.requests() as u64).await,
        2
    );

    for answered in 1..=5 {
        turns.add_permits(1);
        let expected = (answered + 2).min(5);
        eventually("the next is served", || app.requests() == expected).await;
    }
    for (number, mut wire) in wires.into_iter().enumerate() {
        let answer = within("an answer", wire.answer("GET"))
            .await
            .expect("an answer");
        assert_eq!(answer.text(), format!("/{number}"));
    }
    let arrived: Vec<_> = app
        .seen()
        .into_iter()
        .map(|seen| seen.target)
        .skip(2)
        .collect();
    assert_eq!(arrived, ["/2", "/3", "/4"]);
}

#[tokio::test]
async fn a_client_that_leaves_the_queue_frees_its_place() {
    let turns = Arc::new(Semaphore::new(0));
    let app = upstream_that_waits(&turns).await;
    let proxy = proxy_with(1, 1, &app).await;
    let mut served = begin(&proxy, "/served", 1).await;
    let quitter = begin(&proxy, "/quitter", 2).await;

    quitter
        .stream
        .set_zero_linger()
        .expect("an open socket takes options");
    drop(quitter);
    gauge_reaches(&proxy, "session_proxy_requests_in_flight", &[], 1.0).await;
    let mut next = begin(&proxy, "/next", 2).await;
    turns.add_permits(2);

    for (wire, target) in [(&mut served, "/served"), (&mut next, "/next")] {
        let answer = within("an answer", wire.answer("GET"))
            .await
            .expect("an answer");
        assert_eq!((answer.status, answer.text().as_str()), (200, target));
    }
    assert_eq!(app.requests(), 2);
}

#[tokio::test]
async fn a_client_that_leaves_the_app_lets_the_next_one_in() {
    let turns = Arc::new(Semaphore::new(0));
    let app = upstream_that_waits(&turns).await;
    let proxy = proxy_with(1, 1, &app).await;
    let served = begin(&proxy, "/served", 1).await;
    let _next = begin(&proxy, "/next", 2).await;

    served
        .stream
        .set_zero_linger()
        .expect("an open socket takes options");
    drop(served);

    eventually("the queued one is served", || app.requests() == 2).await;
}
