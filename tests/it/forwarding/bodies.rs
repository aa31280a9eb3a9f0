//! Bodies: framing, trailers, size, pace.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;

use crate::support::digest::{Digest, pattern};
use crate::support::proxy::Proxy;
use crate::support::raw;
use crate::support::request::Request;
use crate::support::upstream::Upstream;
use crate::support::way::Way;
use crate::support::{eventually, settled, within};

/// More than all socket buffers between two ends can hold, twice over: each of the two connections
/// may take some megabytes at either end on loopback.
const BUFFERS: u64 = 48 << 20;

#[tokio::test]
async fn the_framing_of_a_request_body_is_kept() {
    let baseline = Upstream::plain("baseline").await;
    let proxy = Proxy::sending_everything_to(&baseline).await;

    for way in Way::both() {
        way.send(proxy.http(), Request::post("/", "counted")).await;
        let fields = baseline.last().fields;
        assert_eq!(
            (
                fields.all("content-length"),
                fields.has("transfer-encoding")
            ),
            (vec!["7".to_owned()], false),
            "{way:?}"
        );

        way.send(
            proxy.http(),
            Request::post("/", "chunked").header("transfer-encoding", "chunked"),
        )
        .await;
        let fields = baseline.last().fields;
        assert_eq!(
            (
                fields.all("transfer-encoding"),
                fields.has("content-length")
            ),
            (vec!["chunked".to_owned()], false),
            "{way:?}"
        );
        assert_eq!(baseline.last().body, Digest::of(b"chunked"), "{way:?}");

        way.send(proxy.http(), Request::get("/")).await;
        let fields = baseline.last().fields;
        assert!(
            !fields.has("content-length") && !fields.has("transfer-encoding"),
            "{way:?}: {fields:?}"
        );

        way.send(
            proxy.http(),
            Request::post("/", "").header("content-length", "0"),
        )
        .await;
        assert_eq!(
            baseline.last().fields.all("content-length"),
            ["0"],
            "{way:?}"
        );
    }
}

#[tokio::test]
async fn the_framing_of_an_answer_is_kept() {
    let baseline = Upstream::site("baseline").await;
    let proxy = Proxy::sending_everything_to(&baseline).await;

    for way in Way::all() {
        let counted = way.send(proxy.http(), Request::get("/bytes/1000")).await;
        assert_eq!(counted.fields.all("content-length"), ["1000"], "{way:?}");

        let streamed = way.send(proxy.http(), Request::get("/stream/1000")).await;
        assert!(!streamed.fields.has("content-length"), "{way:?}");
        assert_eq!(streamed.bytes().len(), 1000, "{way:?}");
    }
}

#[tokio::test]
async fn an_answer_that_lasts_until_the_close_is_whole() {
    let baseline =
        Upstream::that_answers_and_closes("baseline", "HTTP/1.1 200 OK\r\n\r\nuntil the close")
            .await;
    let proxy = Proxy::sending_everything_to(&baseline).await;

    for way in Way::both() {
        let answer = way.send(proxy.http(), Request::get("/")).await;

        assert_eq!(answer.text(), "until the close", "{way:?}");
    }
}

#[tokio::test]
async fn large_bodies_cross_whole_both_ways() {
    const LENGTH: u64 = 8 << 20;
    let baseline = Upstream::site("baseline").await;
    let proxy = Proxy::sending_everything_to(&baseline).await;
    let expected = Digest::of_pattern(LENGTH);
    let body: Bytes = pattern(LENGTH).flatten().collect();

    for way in Way::all() {
        way.send(proxy.http(), Request::post("/", body.clone()))
            .await;
        assert_eq!(baseline.last().body, expected, "up, {way:?}");

        for path in ["bytes", "stream"] {
            let answer = way
                .send(proxy.http(), Request::get(&format!("/{path}/{LENGTH}")))
                .await;
            assert_eq!(
                Digest::of(&answer.bytes()),
                expected,
                "down, {path}, {way:?}"
            );
        }
    }
}

#[tokio::test]
async fn trailers_cross_both_ways() {
    let baseline = Upstream::site("baseline").await;
    let proxy = Proxy::sending_everything_to(&baseline).await;

    for way in [Way::Direct, Way::DirectH2, Way::MirrordH2] {
        let mut client = way.client(proxy.http()).await;
        let request = Request::post("/", "body")
            .header("trailer", "x-sum")
            .trailer("x-sum", "1");
        client.send(request).await;
        assert_eq!(baseline.last().trailers.all("x-sum"), ["1"], "up, {way:?}");

        let answer = client
            .send(Request::get("/trailers").header("te", "trailers"))
            .await;
        assert_eq!(answer.text(), "with trailers", "{way:?}");
        assert_eq!(answer.trailers.all("x-checksum"), ["abc"], "down, {way:?}");
    }
}

#[tokio::test]
async fn http1_trailers_cross_between_plain_sockets() {
    let chunked = "HTTP/1.1 200 OK\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\nx-sum: 1\r\n\r\n";
    let baseline = Upstream::that_answers("baseline", chunked).await;
    let proxy = Proxy::sending_everything_to(&baseline).await;
    let request = Request::get("/")
        .header("te", "trailers")
        .header("connection", "te");

    let answer = Way::Direct.send(proxy.http(), request).await;

    assert_eq!(answer.header("trailer").as_deref(), Some("x-sum"));
    assert_eq!(answer.trailers.all("x-sum"), ["1"]);
}

#[tokio::test]
async fn a_client_that_waits_for_100_gets_it_and_then_its_answer() {
    let baseline = Upstream::site("baseline").await;
    let proxy = Proxy::sending_everything_to(&baseline).await;
    let mut wire = raw::connect(proxy.http()).await;

    wire.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
        .await
        .expect("it reads");
    let interim = within("100", wire.head())
        .await
        .expect("open")
        .expect("an interim answer");
    wire.send("body").await.expect("it reads");
    let answer = within("an answer", wire.answer("POST"))
        .await
        .expect("an answer");

    assert_eq!((interim.status(), answer.status), (100, 200));
    assert_eq!(baseline.last().body, Digest::of(b"body"));
}

#[tokio::test]
async fn a_refusal_instead_of_100_reaches_the_client() {
    let baseline = Upstream::raw("baseline", |mut peer| async move {
        peer.head().await?;
        peer.wire
            .send(
                "HTTP/1.1 417 Expectation Failed\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
            )
            .await?;
        peer.wire.half_close().await?;
        peer.wire.rest().await;
        Ok(())
    })
    .await;
    let proxy = Proxy::sending_everything_to(&baseline).await;
    let mut wire = raw::connect(proxy.http()).await;

    wire.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
        .await
        .expect("it reads");
    let answer = within("an answer", wire.answer("POST"))
        .await
        .expect("an answer");

    assert_eq!(answer.status, 417);
}

#[tokio::test]
async fn an_early_answer_does_not_wait_for_the_body() {
    let baseline = Upstream::raw("baseline", |mut peer| async move {
        let Some(head) = peer.head().await? else {
            return Ok(());
        };
        peer.ok("early").await?;
        peer.finish(&head).await.map(drop)
    })
    .await;
    let proxy = Proxy::sending_everything_to(&baseline).await;
    let mut wire = raw::connect(proxy.http()).await;

    wire.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nhalf")
        .await
        .expect("it reads");
    let answer = within("an answer", wire.answer("POST"))
        .await
        .expect("an answer");

    assert_eq!((answer.status, answer.text().as_str()), (200, "early"));
}

#[tokio::test]
async fn a_request_body_is_passed_on_piece_by_piece() {
    let baseline = Upstream::site("baseline").await;
    let proxy = Proxy::sending_everything_to(&baseline).await;
    let mut wire = raw::connect(proxy.http()).await;

    wire.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\n")
        .await
        .expect("it reads");
    for sent in 1..=6 {
        wire.send("x").await.expect("it reads");
        eventually("the byte arrives", || {
            baseline.account.taken.load(Ordering::SeqCst) == sent
        })
        .await;
    }

    assert_eq!(
        within("an answer", wire.answer("POST"))
            .await
            .expect("an answer")
            .status,
        200
    );
}

#[tokio::test]
async fn a_client_that_does_not_read_stops_the_upstream() {
    let baseline = Upstream::site("baseline").await;
    let proxy = Proxy::sending_everything_to(&baseline).await;
    let mut wire = raw::connect(proxy.http()).await;

    wire.send(format!(
        "GET /bytes/{} HTTP/1.1\r\nHost: a\r\n\r\n",
        BUFFERS * 4
    ))
    .await
    .expect("it reads");
    eventually("it flows", || {
        baseline.account.sent.load(Ordering::SeqCst) > 0
    })
    .await;
    let sent = settled(Duration::from_millis(500), || {
        baseline.account.sent.load(Ordering::SeqCst)
    })
    .await;

    assert!(
        sent < BUFFERS,
        "{sent} bytes were sent to a client that reads nothing"
    );
    assert!(
        proxy.rss_kib() < 40 << 10,
        "{} KiB resident",
        proxy.rss_kib()
    );
    drop(wire);
    eventually("the upstream hears of it", || baseline.cancelled() == 1).await;
}

#[tokio::test]
async fn an_upstream_that_does_not_read_stops_the_client() {
    let baseline = Upstream::that_never_reads("baseline").await;
    let proxy = Proxy::sending_everything_to(&baseline).await;
    let mut wire = raw::connect(proxy.http()).await;
    let piece = vec![b'x'; 64 << 10];
    let mut taken = 0;

    wire.send(format!(
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n",
        BUFFERS * 4
    ))
    .await
    .expect("it reads");
    while let Ok(written) =
        tokio::time::timeout(Duration::from_millis(500), wire.stream.write(&piece)).await
    {
        taken += written.expect("it stays open") as u64;
        assert!(
            taken < BUFFERS,
            "{taken} bytes were taken for an upstream that reads nothing"
        );
    }

    assert!(
        proxy.rss_kib() < 40 << 10,
        "{} KiB resident",
        proxy.rss_kib()
    );
}
