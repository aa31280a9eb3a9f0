//! What must lie behind a connection before it carries another request: the answer to its last byte,
//! and the request too.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::support::digest::{Digest, pattern};
use crate::support::raw;
use crate::support::request::Request;
use crate::support::scripts::Break;
use crate::support::upstream::Upstream;
use crate::support::way::Way;
use crate::support::wire::Framing;
use crate::support::{eventually, within};

use super::one_worker;

/// An answer to a request that nobody has sent.
const FORGED: &str = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged";

#[tokio::test]
async fn bytes_behind_an_answer_are_never_an_answer_to_another_request() {
    let framings = [
        "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nreal",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nreal\r\n0\r\n\r\n",
        "HTTP/1.1 204 No Content\r\n\r\n",
    ];
    for surplus in ["x", "\r\n", FORGED] {
        for answer in framings {
            let app = Upstream::that_answers("app", format!("{answer}{surplus}")).await;
            let proxy = one_worker().baseline(app.address).start().await;
            let text = if answer.contains("real") { "real" } else { "" };

            for nth in 1..=3 {
                let answer = Way::Direct.send(proxy.http(), Request::get("/")).await;

                assert_eq!(answer.text(), text, "{nth}: {answer:#?} {surplus:?}");
                assert_eq!((app.requests(), app.connections()), (nth, nth));
            }
        }
    }
}

#[tokio::test]
async fn bytes_that_come_while_a_connection_is_idle_end_it() {
    for method in ["GET", "POST"] {
        let (idle, forged) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (is_idle, has_forged) = (idle.clone(), forged.clone());
        let app = Upstream::raw("app", move |mut peer| {
            let (idle, forged) = (is_idle.clone(), has_forged.clone());
            async move {
                while peer.request().await?.is_some() {
                    peer.ok("real").await?;
                    idle.notified().await;
                    peer.wire.send(FORGED).await?;
                    forged.notify_one();
                }
                Ok(())
            }
        })
        .await;
        let proxy = one_worker().baseline(app.address).start().await;
        for nth in 1..=3 {
            let answer = Way::Direct
                .send(proxy.http(), Request::new(method, "/"))
                .await;

            assert_eq!(answer.text(), "real", "{method}: {answer:#?}");
            assert_eq!((app.requests(), app.connections()), (nth, nth), "{method}");
            idle.notify_one();
            within("forged bytes", forged.notified()).await;
        }
    }
}

#[tokio::test]
async fn a_connection_is_used_again_once_the_rest_of_its_request_is_out() {
    const LENGTH: usize = 4 << 20;
    let app = Upstream::raw("app", |mut peer| async move {
        while let Some(head) = peer.head().await? {
            peer.ok("early").await?;
            peer.finish(&head).await?;
        }
        Ok(())
    })
    .await;
    let proxy = one_worker().baseline(app.address).start().await;
    let mut wire = raw::connect(proxy.http()).await;
    let head = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {LENGTH}\r\n\r\n");

    wire.send(head).await.expect("it reads");
    let early = within("an answer", wire.answer("POST")).await;
    assert_eq!(early.expect("an answer").text(), "early");
    let body: Vec<u8> = pattern(LENGTH as u64).flatten().collect();
    within("room", wire.send(&body)).await.expect("it reads");

    eventually("all of it", || app.seen().len() == 1).await;
    assert_eq!(app.last().body, Digest::of(&body));
    for nth in 2..=4 {
        let request = Request::get("/").header("host", "a");
        let next = wire.ask(&request).await.expect("an answer");
        assert_eq!(next.text(), "early");
        assert_eq!((app.requests(), app.connections()), (nth, 1));
    }
}

#[tokio::test]
async fn a_large_body_that_is_echoed_as_it_comes_gets_through() {
    const LENGTH: u64 = 32 << 20;
    let app = Upstream::raw("app", |mut peer| async move {
        while peer.head().await?.is_some() {
            let head = peer.head_of_200(Framing::Length(LENGTH));
            peer.wire.send(head).await?;
            let mut left = LENGTH;
            while left > 0 {
                // It reads no more before this is taken.
                let bytes = peer.wire.some().await?;
                left = left.saturating_sub(bytes.len() as u64);
                peer.wire.send(bytes).await?;
            }
        }
        Ok(())
    })
    .await;
    let proxy = one_worker().baseline(app.address).start().await;

    for nth in 1..=2 {
        let stream = TcpStream::connect(proxy.http()).await.expect("the proxy");
        let (mut down, mut up) = stream.into_split();
        let head = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {LENGTH}\r\n\r\n");
        let sending = tokio::spawn(async move {
            up.write_all(head.as_bytes()).await.expect("it reads");
            for piece in pattern(LENGTH) {
                up.write_all(&piece).await.expect("it reads");
            }
            up
        });
        let mut answer = Vec::new();
        let mut part = vec![0; 64 << 10];
        let is_whole = |answer: &[u8]| {
            let head = answer
                .windows(4)
                .take(4096)
                .position(|end| end == b"\r\n\r\n");
            head.is_some_and(|head| answer.len() as u64 == head as u64 + 4 + LENGTH)
        };
        while !is_whole(&answer) {
            let read = within("bytes", down.read(&mut part)).await.expect("bytes");
            assert!(read > 0, "the end after {} bytes", answer.len());
            answer.extend_from_slice(&part[..read]);
        }

        let body = &answer[answer.len() - LENGTH as usize..];
        assert_eq!(Digest::of(body), Digest::of_pattern(LENGTH));
        drop(sending.await.expect("all is sent"));
        assert_eq!((app.requests(), app.connections()), (nth, 1));
    }
}

#[tokio::test]
async fn a_post_is_not_sent_again_when_a_used_connection_breaks_in_the_head_of_its_answer() {
    for how in Break::both() {
        let app = Upstream::raw("app", move |mut peer| async move {
            peer.request().await?;
            peer.ok("fine").await?;
            peer.request().await?;
            peer.wire
                .send("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nx-half: ")
                .await?;
            match how {
                Break::Close => Ok(()),
                Break::Reset => peer.reset(),
            }
        })
        .await;
        let proxy = one_worker().baseline(app.address).start().await;
        for way in Way::both() {
            let before = app.requests();
            let fine = way.send(proxy.http(), Request::get("/")).await;
            assert_eq!(fine.status, 200, "{way:?} {how:?}");

            let broken = way.send(proxy.http(), Request::post("/", "once")).await;

            let told = (broken.status, broken.reason());
            assert_eq!(told, (502, "upstream-reset".to_owned()), "{way:?} {how:?}");
            assert_eq!(app.requests(), before + 2, "{way:?} {how:?}");
        }
    }
}

/// An app over its limit says so to whoever connects, before it has read anything. On a new connection
/// the request is written at once, so that this is its answer.
#[tokio::test]
async fn an_app_that_speaks_first_on_a_new_connection_is_heard() {
    let app = Upstream::raw("app", |mut peer| async move {
        let busy = "HTTP/1.1 503 Busy\r\nconnection: close\r\ncontent-length: 4\r\n\r\nbusy";
        peer.wire.send(busy).await?;
        peer.request().await.map(drop)
    })
    .await;
    let proxy = one_worker().baseline(app.address).start().await;

    for method in ["GET", "POST"] {
        for nth in 1..=20 {
            let answer = Way::Direct
                .send(proxy.http(), Request::new(method, "/"))
                .await;

            assert_eq!(
                (answer.status, &*answer.text()),
                (503, "busy"),
                "{method} {nth}: {answer:#?}"
            );
        }
    }
    eventually("every request arrived once", || app.requests() == 40).await;
}
