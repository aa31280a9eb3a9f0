//! Refusals that need no upstream.

use std::time::Duration;

use crate::support::eventually;
use crate::support::proxy::{Proxy, Setup, speaking};
use crate::support::raw;
use crate::support::request::Request;
use crate::support::upstream::Upstream;
use crate::support::way::Way;

use super::Refusal;

/// A proxy that knows one session and has no baseline.
async fn without_baseline(pr: &Upstream) -> Proxy {
    Setup::new().session("pr-42", pr.address).start().await
}

#[tokio::test]
async fn no_session_and_no_baseline_is_404() {
    let pr = Upstream::site("pr-42").await;
    let proxy = without_baseline(&pr).await;

    Refusal::new(404, "no-session")
        .is_given(proxy.http(), |request| request)
        .await;

    assert_eq!(pr.requests(), 0);
}

#[tokio::test]
async fn an_unknown_session_and_no_baseline_is_404() {
    let pr = Upstream::site("pr-42").await;
    let proxy = without_baseline(&pr).await;

    Refusal::new(404, "unknown-session")
        .is_given(proxy.http(), |request| request.session("pr-1"))
        .await;

    let answer = Way::Direct
        .send(proxy.http(), Request::get("/").session("pr-1"))
        .await;
    assert_eq!(answer.json()["session"], "pr-1");
}

#[tokio::test]
async fn conflict_and_malformed_without_a_baseline_are_400() {
    let pr = Upstream::site("pr-42").await;
    let proxy = without_baseline(&pr).await;

    let conflict = Refusal::new(400, "conflict");
    conflict
        .is_given(proxy.http(), |request| {
            request.session("pr-42").session("pr-43")
        })
        .await;
    let malformed = Refusal::new(400, "malformed");
    malformed
        .is_given(proxy.http(), |request| request.session("pr 42"))
        .await;

    assert_eq!(pr.requests(), 0);
}

#[tokio::test]
async fn a_known_session_without_an_endpoint_is_503() {
    let baseline = Upstream::site("baseline").await;
    let setup = Setup::new()
        .baseline(baseline.address)
        .session_yaml("pr-42", "{ endpoints: [] }");
    let proxy = setup.start().await;

    Refusal::new(503, "no-endpoint")
        .is_given(proxy.http(), |request| request.session("pr-42"))
        .await;

    assert_eq!(baseline.requests(), 0);
}

#[tokio::test]
async fn our_own_via_is_a_loop() {
    let baseline = Upstream::site("baseline").await;
    let proxy = Proxy::sending_everything_to(&baseline).await;
    Way::Direct.send(proxy.http(), Request::get("/")).await;
    let via = baseline
        .last()
        .fields
        .first("via")
        .expect("the baseline sees who sent it");

    Refusal::new(508, "loop")
        .is_given(proxy.http(), |request| request.header("via", &via))
        .await;
    let among_others = format!("1.0 first, {via} , 1.1 last");
    Refusal::new(508, "loop")
        .is_given(proxy.http(), |request| request.header("via", &among_others))
        .await;

    assert_eq!(baseline.requests(), 1);
}

#[tokio::test]
async fn the_via_of_another_instance_is_no_loop() {
    let baseline = Upstream::site("baseline").await;
    let (proxy, another) = (
        Proxy::sending_everything_to(&baseline).await,
        Proxy::sending_everything_to(&baseline).await,
    );
    Way::Direct.send(another.http(), Request::get("/")).await;
    let via = baseline
        .last()
        .fields
        .first("via")
        .expect("the baseline sees who sent it");

    for way in Way::all() {
        let answer = way
            .send(proxy.http(), Request::get("/").header("via", &via))
            .await;

        assert_eq!(answer.served_by(), "baseline", "{way:?}");
    }
}

#[tokio::test]
async fn two_proxies_that_are_each_others_baseline_end_the_loop() {
    let nowhere = Upstream::site("first").await;
    let first = Setup::new().baseline(nowhere.address).start().await;
    let second = Setup::new().baseline(first.http()).start().await;
    let looping = Setup::new()
        .baseline(nowhere.address)
        .session("loop", second.http());
    first.config.rename_over(&looping.text());
    first.signal("HUP");
    let mut client = Way::Direct.client(first.http()).await;

    // The session leads from the first proxy to the second, whose baseline is the first again.
    let mut status = 0;
    for _ in 0..500 {
        status = client.send(Request::get("/").session("loop")).await.status;
        if status != 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    assert_eq!(status, 508);
}

#[tokio::test]
async fn over_the_limit_of_an_endpoint_is_503() {
    let pr = Upstream::site("pr-42").await;
    let setup = Setup::new().session_yaml("pr-42", &speaking("h1", &pr));
    let proxy = setup
        .top("limits: { requestsPerEndpoint: 1, queuedPerEndpoint: 1 }")
        .flag("--workers")
        .flag("1")
        .start()
        .await;
    let mut holders = Vec::new();
    for _ in 0..2 {
        let mut wire = raw::connect(proxy.http()).await;
        wire.send("GET /hang HTTP/1.1\r\nHost: a\r\nx-dev-session: pr-42\r\n\r\n")
            .await
            .expect("it reads");
        holders.push(wire);
        eventually("the first one is at the pod", || pr.requests() == 1).await;
    }
    eventually_in_flight(&proxy, 2.0).await;

    Refusal::new(503, "overloaded")
        .is_given(proxy.http(), |request| request.session("pr-42"))
        .await;

    assert_eq!(pr.requests(), 1);
}

/// Waits until that many requests are at an upstream or in a queue for one.
async fn eventually_in_flight(proxy: &Proxy, requests: f64) {
    for _ in 0..1000 {
        if proxy.metric("session_proxy_requests_in_flight", &[]).await == requests {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never {requests} requests in flight");
}
