//! Answers and uploads that break off: what was whole arrives, and the break is seen.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::support::client::{self, ask_h2, with_host};
use crate::support::mirrord::Sender;
use crate::support::proxy::Proxy;
use crate::support::raw;
use crate::support::request::Request;
use crate::support::upstream::{Peer, Upstream};
use crate::support::way::Way;
use crate::support::wire::{Ending, Framing};
use crate::support::{eventually, within};

use super::frames::{
    CANCEL, DATA, END_HEADERS, END_STREAM, Frames, GET, HEADERS, INTERNAL_ERROR, NO_ERROR, POST,
    RST_STREAM, STATUS_200, head,
};
use super::{tagged, with_session};

const TIMES: usize = 20;

/// How an app breaks its answer between the head and the first byte of the body.
#[derive(Debug, Clone, Copy)]
enum Headless {
    CountedThenFin,
    CountedThenReset,
    ChunkedThenFin,
    ChunkedThenNonsense,
}

impl Headless {
    const ALL: [Self; 4] = [
        Self::CountedThenFin,
        Self::CountedThenReset,
        Self::ChunkedThenFin,
        Self::ChunkedThenNonsense,
    ];

    async fn app(self) -> Upstream {
        Upstream::raw("pr-42", move |mut peer| async move {
            peer.request().await?;
            let framing = match self {
                Self::CountedThenFin | Self::CountedThenReset => Framing::Length(10),
                Self::ChunkedThenFin | Self::ChunkedThenNonsense => Framing::Chunked,
            };
            let mut bytes = peer.head_of_200(framing);
            if matches!(self, Self::ChunkedThenNonsense) {
                bytes += "zz\r\n";
            }
            peer.wire.send(bytes).await?;
            match self {
                Self::CountedThenReset => peer.reset(),
                Self::ChunkedThenNonsense => until_closed(peer).await,
                _ => Ok(()),
            }
        })
        .await
    }
}

async fn until_closed(mut peer: Peer) -> std::io::Result<()> {
    while !peer.wire.some().await?.is_empty() {}
    Ok(())
}

#[tokio::test]
async fn a_head_whose_body_breaks_before_its_first_byte_arrives_over_http1() {
    for how in Headless::ALL {
        let app = how.app().await;
        let proxy = with_session("h1", &app).start().await;

        for turn in 0..TIMES {
            let mut wire = raw::connect(proxy.http()).await;
            let request = with_host(&tagged(Request::get("/")));
            let answer = within("a head", wire.ask(&request))
                .await
                .unwrap_or_else(|error| panic!("{how:?}, {turn}: no head: {error}"));

            assert_eq!(answer.status, 200, "{how:?}, {turn}");
            assert!(answer.body.is_err(), "{how:?}, {turn}: {answer:?}");
        }
        assert_eq!(app.requests(), TIMES, "{how:?}: sent again");
    }
}

#[tokio::test]
async fn a_head_whose_body_breaks_before_its_first_byte_is_asked_for_once_by_mirrord() {
    for how in Headless::ALL {
        let app = how.app().await;
        let proxy = with_session("h1", &app).start().await;
        let sender = Sender::new(proxy.http()).impatient();

        for turn in 0..TIMES {
            let answer = within(
                "an answer",
                sender.send(&tagged(Request::post("/", "order"))),
            )
            .await;

            assert_eq!((answer.status, answer.tries), (200, 1), "{how:?}, {turn}");
            assert!(answer.body.is_err(), "{how:?}, {turn}: {answer:?}");
        }
        assert_eq!(app.requests(), TIMES, "{how:?}: sent again");
    }
}

#[tokio::test]
async fn a_head_whose_body_breaks_before_its_first_byte_arrives_over_http2() {
    for how in Headless::ALL {
        let app = how.app().await;
        let proxy = with_session("h1", &app).start().await;

        for turn in 0..TIMES {
            let answer = Way::DirectH2
                .send(proxy.http(), tagged(Request::get("/")))
                .await;

            assert_eq!(answer.status, 200, "{how:?}, {turn}");
            assert!(answer.body.is_err(), "{how:?}, {turn}: {answer:?}");
        }
    }
    let app = h2_app_that_resets(&[], INTERNAL_ERROR).await;
    let proxy = with_session("h2c", &app).start().await;
    let mut h2 = client::h2(proxy.http()).await;
    for turn in 0..TIMES {
        let answer = within("an answer", ask_h2(&mut h2, &tagged(Request::get("/"))))
            .await
            .unwrap_or_else(|error| panic!("{turn}: no head: {error}"));

        assert_eq!(answer.status, 200, "{turn}");
        assert!(answer.body.is_err(), "{turn}: {answer:?}");
    }
}

/// Answers with a head and this part of a body, then resets the stream.
async fn h2_app_that_resets(part: &'static [u8], code: u32) -> Upstream {
    Upstream::raw("pr-42", move |peer| async move {
        let mut h2 = Frames::accept(peer.wire).await?;
        while let Some(stream) = h2.request().await? {
            h2.ok(stream, 0).await?;
            if !part.is_empty() {
                h2.send(DATA, 0, stream, part).await?;
            }
            h2.reset(stream, code).await?;
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_answer_reset_without_an_error_has_no_good_end_over_http1() {
    for code in [NO_ERROR, CANCEL, INTERNAL_ERROR] {
        let app = h2_app_that_resets(b"first half", code).await;
        let proxy = with_session("h2c", &app).start().await;

        for _ in 0..5 {
            let answer = Way::Direct
                .send(proxy.http(), tagged(Request::get("/")))
                .await;

            assert_eq!(answer.status, 200, "{code}");
            assert!(answer.body.is_err(), "{code}: {answer:?}");
        }
    }
}

#[tokio::test]
async fn an_answer_reset_without_an_error_has_no_good_end_over_http2() {
    for code in [NO_ERROR, CANCEL, INTERNAL_ERROR] {
        let app = h2_app_that_resets(b"first half", code).await;
        let proxy = with_session("h2c", &app).start().await;
        let mut h2 = Frames::connect(proxy.http()).await;
        let block = head(GET, &[(":authority", "a"), ("x-dev-session", "pr-42")]);
        let flags = END_HEADERS | END_STREAM;
        h2.send(HEADERS, flags, 1, &block).await.expect("open");

        let mut kinds = Vec::new();
        while kinds.last() != Some(&RST_STREAM) {
            let frame = within("a frame", h2.next()).await.expect("open");
            let frame = frame.unwrap_or_else(|| panic!("{code}: closed after {kinds:?}"));
            if kinds.is_empty() {
                assert_eq!(frame.payload[0], STATUS_200, "{code}: {frame:?}");
            }
            assert!(
                frame.kind == RST_STREAM || frame.flags & END_STREAM == 0,
                "{code}: a good end: {frame:?}"
            );
            if frame.kind == RST_STREAM {
                assert_ne!(frame.payload[..], NO_ERROR.to_be_bytes(), "{code}");
            }
            kinds.push(frame.kind);
        }
    }
}

#[tokio::test]
async fn an_upload_reset_without_an_error_never_looks_complete_to_the_app() {
    for code in [NO_ERROR, CANCEL] {
        let app = Upstream::plain("pr-42").await;
        let proxy = with_session("h1", &app).start().await;
        let block = head(POST, &[(":authority", "a"), ("x-dev-session", "pr-42")]);

        // Whether the body or the exchange is told first is a matter of chance.
        for turn in 1..=TIMES {
            let mut h2 = Frames::connect(proxy.http()).await;
            h2.send(HEADERS, END_HEADERS, 1, &block)
                .await
                .expect("open");
            h2.send(DATA, 0, 1, b"first half").await.expect("open");
            eventually("it is under way", || app.requests() == turn).await;
            h2.reset(1, code).await.expect("open");
            eventually("the app sees the end", || app.open() == 0).await;
        }

        assert_eq!(app.seen().len(), 0, "{code}: {:?}", app.seen());
    }
}

#[tokio::test]
async fn a_client_of_a_relay_that_resets_is_a_reset_at_the_target() {
    let (endings_tx, mut endings_rx) = tokio::sync::mpsc::unbounded_channel();
    let target = Upstream::raw("db", move |peer| {
        let endings_tx = endings_tx.clone();
        async move {
            let Peer {
                mut wire, account, ..
            } = peer;
            let first = wire.some().await?;
            account
                .taken
                .fetch_add(first.len() as u64, Ordering::SeqCst);
            let _ = endings_tx.send(wire.rest().await.1);
            Ok(())
        }
    })
    .await;
    let proxy = Proxy::from_yaml(&format!(
        "listeners:\n  - {{ name: db, address: \"127.0.0.1:0\", protocol: tcp, target: \"{}\" }}\n",
        target.address
    ))
    .await;
    for _ in 0..5 {
        let taken = || target.account.taken.swap(0, Ordering::SeqCst);
        let mut wire = raw::connect(proxy.addr("db")).await;
        wire.send(vec![7; 10_000]).await.expect("open");
        eventually("the upload is under way", || taken() > 0).await;
        tokio::time::sleep(Duration::from_millis(20)).await;

        wire.stream.set_zero_linger().expect("an open socket");
        drop(wire);

        let ending = within("the end", endings_rx.recv()).await;
        assert_eq!(ending, Some(Ending::Reset));
    }
}
