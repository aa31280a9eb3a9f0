//! Bytes that never became a request.

use std::time::Duration;

use crate::support::client::{self, ask_h2};
use crate::support::proxy::{Proxy, Setup};
use crate::support::raw;
use crate::support::request::Request;
use crate::support::upstream::Upstream;
use crate::support::way::Way;
use crate::support::within;

/// The status for these bytes, on a connection of their own.
async fn status_of(proxy: &Proxy, bytes: impl AsRef<[u8]>) -> u16 {
    let mut wire = raw::connect(proxy.http()).await;
    // A refusal may come before all has been written.
    let _ = wire.send(bytes).await;
    within("an answer", wire.final_head())
        .await
        .expect("an answer")
        .status()
}

#[tokio::test]
async fn malformed_http_is_400_and_reaches_nobody() {
    let baseline = Upstream::site("baseline").await;
    let proxy = Proxy::sending_everything_to(&baseline).await;

    for bytes in [
        &b"nonsense\r\n\r\n"[..],
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nbad name: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nx: \0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/3.7\r\nHost: a\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nx: 1\r\n folded\r\n\r\n",
    ] {
        assert_eq!(
            status_of(&proxy, bytes).await,
            400,
            "{}",
            bytes.escape_ascii()
        );
    }
    assert_eq!(baseline.requests(), 0);
}

#[tokio::test]
async fn a_body_whose_end_can_be_read_in_two_ways_is_400_and_reaches_nobody() {
    let baseline = Upstream::site("baseline").await;
    let proxy = Proxy::sending_everything_to(&baseline).await;

    for framing in [
        "Content-Length: 4\r\nContent-Length: 5",
        "Content-Length: 4, 5",
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 4",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: xchunked",
        "Content-Length: +4",
        "Content-Length: -4",
        "Content-Length: 0x4",
        "Content-Length: 99999999999999999999999",
    ] {
        let bytes = format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n0\r\n\r\n");

        assert_eq!(status_of(&proxy, bytes).await, 400, "{framing}");
    }
    assert_eq!(baseline.requests(), 0);
}

#[tokio::test]
async fn a_head_over_the_limits_is_431() {
    let baseline = Upstream::site("baseline").await;
    let proxy = Proxy::sending_everything_to(&baseline).await;
    let many: String = (0..200).map(|n| format!("x-{n}: 1\r\n")).collect();
    let large = format!("x-large: {}\r\n", "x".repeat(80 << 10));

    for fields in [&many, &large] {
        let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        assert_eq!(status_of(&proxy, head).await, 431, "{:.20}", fields);
    }
    let request = (0..200).fold(Request::get("/"), |request, n| {
        request.header(&format!("x-{n}"), "1")
    });
    assert_eq!(Way::DirectH2.send(proxy.http(), request).await.status, 431);
    assert_eq!(baseline.requests(), 0);
}

#[tokio::test]
async fn a_head_just_under_the_limits_passes() {
    let baseline = Upstream::site("baseline").await;
    let proxy = Proxy::sending_everything_to(&baseline).await;

    for way in Way::all() {
        let request = Request::get("/").header("x-large", "x".repeat(50 << 10));
        assert_eq!(way.send(proxy.http(), request).await.status, 200, "{way:?}");

        let request = (0..90).fold(Request::get("/"), |request, n| {
            request.header(&format!("x-{n}"), "1")
        });
        assert_eq!(way.send(proxy.http(), request).await.status, 200, "{way:?}");
    }
}

#[tokio::test]
async fn a_head_over_the_limit_over_http2_harms_no_other_stream() {
    let baseline = Upstream::site("baseline").await;
    let proxy = Proxy::sending_everything_to(&baseline).await;
    let mut h2 = client::h2(proxy.http()).await;

    let large = Request::get("/").header("x-large", "x".repeat(80 << 10));
    let refused = within("an answer", ask_h2(&mut h2, &large))
        .await
        .expect("an answer");
    let served = within("an answer", ask_h2(&mut h2, &Request::get("/")))
        .await
        .expect("an answer");

    assert_eq!((refused.status, served.status), (431, 200));
}

#[tokio::test]
async fn a_target_that_is_too_long_is_414() {
    let baseline = Upstream::site("baseline").await;
    let proxy = Proxy::sending_everything_to(&baseline).await;
    let head = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(100 << 10));

    assert_eq!(status_of(&proxy, head).await, 414);
    assert_eq!(baseline.requests(), 0);
}

#[tokio::test]
async fn a_head_that_does_not_end_in_time_is_408() {
    let baseline = Upstream::site("baseline").await;
    let setup = Setup::new()
        .baseline(baseline.address)
        .top("timeouts: { requestHeaders: 200ms }");
    let proxy = setup.start().await;

    assert_eq!(
        status_of(&proxy, "GET / HTTP/1.1\r\nHost: a\r\n").await,
        408
    );
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_ended() {
    let baseline = Upstream::site("baseline").await;
    let setup = Setup::new()
        .baseline(baseline.address)
        .top("timeouts: { firstByte: 200ms }");
    let proxy = setup.start().await;
    let mut wire = raw::connect(proxy.http()).await;

    within("the end", wire.rest()).await;
}

#[tokio::test]
async fn a_slow_head_within_its_time_is_served() {
    let baseline = Upstream::site("baseline").await;
    let proxy = Proxy::sending_everything_to(&baseline).await;
    let mut wire = raw::connect(proxy.http()).await;

    for byte in b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n" {
        wire.send([*byte]).await.expect("it reads");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }

    let answer = within("an answer", wire.answer("GET"))
        .await
        .expect("an answer");
    assert_eq!(
        (answer.status, answer.served_by().as_str()),
        (200, "baseline")
    );
}
