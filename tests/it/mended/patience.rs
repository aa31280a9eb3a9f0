//! Who is waited for, for how long, and what happens to a connection that was not worth it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;

use crate::pool::gauge_reaches;
use crate::support::request::Request;
use crate::support::upstream::Upstream;
use crate::support::way::Way;
use crate::support::{eventually, within};

use super::frames::{END_STREAM, Frames};
use super::unread::Upload;
use super::{tagged, with_session};

/// Connections to that port which the kernel counts as established, from the side that dialled.
fn established_to(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("Linux says so");
    let ours = table.lines().filter(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let is_to = |address: &&str| address.ends_with(&format!(":{port:04X}"));
        words.get(2).is_some_and(is_to) && words.get(3) == Some(&"01")
    });
    ours.count()
}

#[tokio::test]
async fn an_app_that_stops_reading_an_upload_is_504_and_its_connection_is_closed() {
    let wake = Arc::new(Notify::new());
    let asleep = wake.clone();
    let app = Upstream::raw("pr-42", move |mut peer| {
        let asleep = asleep.clone();
        async move {
            peer.head().await?;
            asleep.notified().await;
            while !peer.wire.some().await?.is_empty() {}
            Ok(())
        }
    })
    .await;
    let setup = with_session("h1", &app);
    let proxy = setup
        .top("timeouts: { responseHeaders: 300ms, poolIdle: 60s }")
        .start()
        .await;

    // Some of these fit into the buffers on the way, others do not.
    let lengths = [2, 4, 5, 6, 8, 16];
    let mut uploads = Vec::new();
    for length in lengths {
        uploads.push(Upload::of(proxy.http(), length << 20, 64 << 10, Duration::ZERO).await);
    }
    for upload in &mut uploads {
        let answer = within("an answer", upload.wire.answer("POST"))
            .await
            .expect("an answer");
        assert_eq!(answer.status, 504);
        assert_eq!(answer.reason(), "response-timeout");
    }

    // The app cannot see it before it reads again.
    let port = app.address.port();
    eventually("the proxy lets go", || established_to(port) == 0).await;
    gauge_reaches(&proxy, "session_proxy_upstream_connections", &[], 0.0).await;
    assert_eq!(app.requests(), lengths.len());
    wake.notify_waiters();
    eventually("the app's connections end", || app.open() == 0).await;
}

#[tokio::test]
async fn an_app_that_thinks_longer_than_a_body_may_pause_is_waited_for() {
    const THINKING: Duration = Duration::from_secs(1);
    let timeouts = "timeouts: { bodyIdle: 200ms, responseHeaders: 5s }";
    let h1 = Upstream::raw("pr-42", |mut peer| async move {
        while peer.request().await?.is_some() {
            sleep(THINKING).await;
            peer.ok("thought").await?;
        }
        Ok(())
    })
    .await;
    let h2 = Upstream::raw("pr-42", |peer| async move {
        let mut h2 = Frames::accept(peer.wire).await?;
        while let Some(stream) = h2.request().await? {
            sleep(THINKING).await;
            h2.ok(stream, END_STREAM).await?;
        }
        Ok(())
    })
    .await;
    let proxies = [
        with_session("h1", &h1).top(timeouts).start().await,
        with_session("h2c", &h2).top(timeouts).start().await,
    ];

    let mut asking = tokio::task::JoinSet::new();
    for (proxy, protocol) in proxies.iter().zip(["h1", "h2c"]) {
        let address = proxy.http();
        for way in [Way::Direct, Way::DirectH2] {
            for request in [Request::get("/"), Request::post("/", "order")] {
                // A connection of HTTP/2 by hand answers one after another.
                if protocol == "h2c" && request.method == "POST" {
                    continue;
                }
                asking.spawn(async move {
                    let method = request.method.clone();
                    let answer = way.send(address, tagged(request)).await;
                    assert_eq!(answer.status, 200, "{method}, {way:?} to {protocol}");
                    answer.bytes();
                });
            }
        }
    }
    asking.join_all().await;
}

#[tokio::test]
async fn an_http2_connection_that_is_dead_is_not_used_after_its_first_timeout() {
    let app = Upstream::raw("pr-42", |mut peer| async move {
        if peer.number == 0 {
            // Not even settings: whoever is there has gone.
            while !peer.wire.some().await?.is_empty() {}
            return Ok(());
        }
        let mut h2 = Frames::accept(peer.wire).await?;
        while let Some(stream) = h2.request().await? {
            h2.ok(stream, END_STREAM).await?;
        }
        Ok(())
    })
    .await;
    let proxy = with_session("h2c", &app)
        .top("timeouts: { responseHeaders: 300ms }")
        .start()
        .await;
    let mut client = Way::DirectH2.client(proxy.http()).await;

    let first = client.send(tagged(Request::get("/"))).await;
    let next = client.send(tagged(Request::get("/"))).await;

    assert_eq!((first.status, next.status), (504, 200));
    assert_eq!(app.connections(), 2);
}

#[tokio::test]
async fn an_http2_connection_that_falls_silent_is_not_used_after_its_first_timeout() {
    let app = Upstream::raw("pr-42", |peer| async move {
        let number = peer.number;
        let mut h2 = Frames::accept(peer.wire).await?;
        if let Some(stream) = h2.request().await? {
            h2.ok(stream, END_STREAM).await?;
        }
        if number == 0 {
            while !h2.0.some().await?.is_empty() {}
            return Ok(());
        }
        while let Some(stream) = h2.request().await? {
            h2.ok(stream, END_STREAM).await?;
        }
        Ok(())
    })
    .await;
    let proxy = with_session("h2c", &app)
        .top("timeouts: { responseHeaders: 300ms }")
        .start()
        .await;
    let mut client = Way::DirectH2.client(proxy.http()).await;

    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(client.send(tagged(Request::get("/"))).await.status);
    }

    assert_eq!(statuses, [200, 504, 200]);
    assert_eq!(app.connections(), 2);
}
