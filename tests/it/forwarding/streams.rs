//! Connections that live longer than one question and answer: events, upgrades, half-closed ends.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use tokio::sync::Notify;

use crate::support::client::{self, ask_h2};
use crate::support::proxy::{Proxy, Setup, speaking};
use crate::support::raw;
use crate::support::request::Request;
use crate::support::scripts::{Break, PART};
use crate::support::upstream::Upstream;
use crate::support::way::Way;
use crate::support::wire::{Ending, Framing};
use crate::support::{eventually, site, within};

const UPGRADE: &str = "GET /chat HTTP/1.1\r\nHost: app.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

/// Sends one server-sent event each time it is told to.
async fn events(tick: Arc<Notify>) -> Upstream {
    Upstream::raw("baseline", move |mut peer| {
        let tick = tick.clone();
        async move {
            peer.request().await?;
            peer.wire.send("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n").await?;
            loop {
                tick.notified().await;
                peer.wire.send("9\r\ndata: 1\n\n\r\n").await?;
            }
        }
    })
    .await
}

#[tokio::test]
async fn each_event_arrives_before_the_next_is_sent() {
    let tick = Arc::new(Notify::new());
    let baseline = events(tick.clone()).await;
    let proxy = Proxy::sending_everything_to(&baseline).await;
    let mut wire = raw::connect(proxy.http()).await;

    wire.send("GET /events HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n")
        .await
        .expect("it reads");
    let head = within("the head, before any event", wire.final_head())
        .await
        .expect("an answer");
    assert_eq!(head.response_framing("GET"), Framing::Chunked);
    for _ in 0..5 {
        tick.notify_one();
        let event = within("an event", wire.exactly(b"9\r\ndata: 1\n\n\r\n".len()))
            .await
            .expect("open");
        assert_eq!(&event[..], b"9\r\ndata: 1\n\n\r\n");
    }
}

#[tokio::test]
async fn events_arrive_one_by_one_over_http2_too() {
    let tick = Arc::new(Notify::new());
    let baseline = events(tick.clone()).await;
    let proxy = Setup::new()
        .session_yaml("h1", &speaking("h1", &baseline))
        .start()
        .await;
    let mut h2 = client::h2(proxy.http()).await;

    let request = client::to_h2(&Request::get("/events").session("h1"), site::empty());
    let response = within("the head", h2.send_request(request))
        .await
        .expect("an answer");
    let mut body = response.into_body();
    for _ in 0..5 {
        tick.notify_one();
        let frame = within("an event", body.frame())
            .await
            .expect("open")
            .expect("whole");
        assert_eq!(frame.into_data().ok().as_deref(), Some(&b"data: 1\n\n"[..]));
    }
}

#[tokio::test]
async fn a_slow_answer_is_passed_on_as_it_drips() {
    let bytes = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ndrip";
    let baseline = Upstream::that_drips("baseline", bytes, Duration::from_millis(2)).await;
    let proxy = Proxy::sending_everything_to(&baseline).await;

    for way in Way::both() {
        assert_eq!(
            way.send(proxy.http(), Request::get("/")).await.text(),
            "drip",
            "{way:?}"
        );
    }
}

#[tokio::test]
async fn an_upgraded_connection_carries_any_bytes_both_ways() {
    let (baseline, pr) = (
        Upstream::plain("baseline").await,
        Upstream::that_upgrades("pr-42").await,
    );
    let proxy = Proxy::routing(&baseline, &[("pr-42", &pr)]).await;
    let mut wire = raw::connect(proxy.http()).await;

    wire.send(UPGRADE.replace("\r\n\r\n", "\r\nx-dev-session: pr-42\r\n\r\n"))
        .await
        .expect("it reads");
    let head = within("101", wire.final_head()).await.expect("an answer");
    assert_eq!(head.status(), 101);
    assert_eq!(head.fields.first("upgrade").as_deref(), Some("websocket"));
    assert!(
        head.fields
            .first("connection")
            .is_some_and(|value| value.eq_ignore_ascii_case("upgrade"))
    );
    assert_eq!(
        head.fields.first("sec-websocket-accept").as_deref(),
        Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
    );
    assert_eq!(
        head.fields.first("x-dev-session-route").as_deref(),
        Some("pr-42")
    );
    assert_eq!(pr.last().fields.all("upgrade"), ["websocket"]);
    assert_eq!(
        pr.last().fields.all("sec-websocket-key"),
        ["dGhlIHNhbXBsZSBub25jZQ=="]
    );

    for bytes in [
        &b"\x81\x05hello"[..],
        b"GET / HTTP/1.1\r\n\r\n",
        &[0xff; 70_000],
    ] {
        wire.send(bytes).await.expect("open");
        assert_eq!(
            within("the echo", wire.exactly(bytes.len()))
                .await
                .expect("open"),
            bytes
        );
    }
    wire.half_close().await.expect("open");
    let (rest, ending) = within("the end", wire.rest()).await;
    assert_eq!(
        (&rest[..], ending),
        (&b"closed by the client"[..], Ending::Fin)
    );
}

#[tokio::test]
async fn bytes_that_follow_an_upgrade_at_once_are_not_lost() {
    let baseline = Upstream::raw("baseline", |mut peer| async move {
        peer.request().await?;
        peer.wire
            .send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nfrom the server")
            .await?;
        let bytes = peer.wire.exactly(15).await?;
        peer.wire.send(bytes).await
    })
    .await;
    let proxy = Proxy::sending_everything_to(&baseline).await;
    let mut wire = raw::connect(proxy.http()).await;

    wire.send(
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nfrom the client",
    )
    .await
    .expect("it reads");

    assert_eq!(
        within("101", wire.final_head())
            .await
            .expect("an answer")
            .status(),
        101
    );
    let (rest, _) = within("the end", wire.rest()).await;
    assert_eq!(&rest[..], b"from the serverfrom the client");
}

#[tokio::test]
async fn a_declined_upgrade_is_an_answer_like_any_other() {
    let baseline = Upstream::plain("baseline").await;
    let proxy = Proxy::sending_everything_to(&baseline).await;
    let mut wire = raw::connect(proxy.http()).await;

    for _ in 0..2 {
        wire.send(UPGRADE).await.expect("it reads");
        let answer = within("an answer", wire.answer("GET"))
            .await
            .expect("an answer");
        assert_eq!((answer.status, answer.text().as_str()), (200, "baseline"));
    }
}

#[tokio::test]
async fn a_client_may_close_its_half_and_still_gets_its_answer() {
    let tick = Arc::new(Notify::new());
    let waiting = tick.clone();
    let baseline = Upstream::raw("baseline", move |mut peer| {
        let tick = waiting.clone();
        async move {
            peer.request().await?;
            tick.notified().await;
            peer.ok("late").await
        }
    })
    .await;
    let proxy = Proxy::sending_everything_to(&baseline).await;
    let mut wire = raw::connect(proxy.http()).await;

    wire.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody")
        .await
        .expect("it reads");
    wire.half_close().await.expect("open");
    eventually("the request arrives", || baseline.seen().len() == 1).await;
    // Long enough for a proxy that takes the end of file for a lost client to give up.
    tokio::time::sleep(Duration::from_millis(100)).await;
    tick.notify_one();

    let answer = within("an answer", wire.answer("POST"))
        .await
        .expect("an answer");
    assert_eq!(answer.text(), "late");
}

#[tokio::test]
async fn a_client_that_goes_away_takes_its_request_with_it() {
    let site = Upstream::site("baseline").await;
    let proxy = Proxy::sending_everything_to(&site).await;

    let mut wire = raw::connect(proxy.http()).await;
    wire.send("GET /hang HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .expect("it reads");
    eventually("the request arrives", || site.requests() == 1).await;
    wire.stream.set_zero_linger().expect("open");
    drop(wire);
    eventually("the app hears of it over HTTP/1", || site.cancelled() == 1).await;

    let mut h2 = client::h2(proxy.http()).await;
    let asking = h2.send_request(client::to_h2(&Request::get("/hang"), site::empty()));
    let asking = tokio::spawn(asking);
    eventually("the request arrives", || site.requests() == 2).await;
    asking.abort();
    eventually("the app hears of it over HTTP/2", || site.cancelled() == 2).await;
}

#[tokio::test]
async fn a_broken_answer_looks_broken_to_every_client() {
    for how in Break::both() {
        for framing in [Framing::Length(0), Framing::Chunked, Framing::UntilClose] {
            if (how, framing) == (Break::Close, Framing::UntilClose) {
                continue; // That is how such a body ends well.
            }
            let pr = Upstream::that_breaks_in_the_middle("pr-42", framing, how).await;
            let proxy = Setup::new()
                .session_yaml("pr-42", &speaking("h1", &pr))
                .start()
                .await;

            for way in Way::all() {
                let answer = way
                    .send(proxy.http(), Request::get("/").session("pr-42"))
                    .await;

                assert_eq!(answer.status, 200, "{how:?} {framing:?} {way:?}");
                assert!(
                    answer.body.is_err(),
                    "{how:?} {framing:?} {way:?}: {PART:?} came as a whole body"
                );
            }
            assert_eq!(
                pr.requests(),
                4,
                "{how:?} {framing:?}: nothing is sent again once a head has come"
            );
        }
    }
}

#[tokio::test]
async fn a_client_that_takes_nothing_of_a_stream_loses_that_stream_alone() {
    let site = Upstream::site("baseline").await;
    let proxy = Setup::new()
        .baseline(site.address)
        .top("timeouts: { bodyIdle: 300ms }")
        .start()
        .await;
    let mut h2 = client::h2(proxy.http()).await;

    // Nobody reads this body: its window closes, and stays closed.
    let stalled = h2
        .send_request(client::to_h2(
            &Request::get("/stream/50000000"),
            site::empty(),
        ))
        .await
        .expect("a head");
    // The connection itself is never quiet meanwhile.
    let others = async {
        while proxy.metric("session_proxy_requests_in_flight", &[]).await > 0.0 {
            let answer = ask_h2(&mut h2, &Request::get("/"))
                .await
                .expect("an answer");
            assert_eq!(answer.status, 200);
        }
    };
    within("the end of the stream that stands still", others).await;

    let rest = within("the end of the stream", client::read(stalled)).await;
    assert!(rest.body.is_err(), "the stream was reset");
}
