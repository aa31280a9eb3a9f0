//! Heads that begin and do not end, clients that end their half, and a drain in the middle.

use std::time::{Duration, Instant};

use crate::support::proxy::Setup;
use crate::support::raw;
use crate::support::upstream::Upstream;
use crate::support::wire::Ending;
use crate::support::within;

use super::no_longer_ready;

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

#[tokio::test]
async fn a_second_head_that_began_with_the_first_request_has_its_own_deadline() {
    let app = Upstream::site("baseline").await;
    let setup = Setup::new().baseline(app.address);
    let proxy = setup
        .top("timeouts: { requestHeaders: 300ms }")
        .start()
        .await;

    for begun in ["G", "GET / HTTP/1.1\r\nho", "GET / HTTP/1.1\r\nhost: a\r\n"] {
        let mut wire = raw::connect(proxy.http()).await;
        let start = Instant::now();
        wire.send(format!("{GET}{begun}")).await.expect("open");

        let first = within("the first", wire.answer("GET"))
            .await
            .expect("an answer");
        let second = within("the second", wire.answer("GET"))
            .await
            .unwrap_or_else(|error| panic!("{begun:?}: no answer: {error}"));

        assert_eq!((first.status, second.status), (200, 408), "{begun:?}");
        assert!(start.elapsed() >= Duration::from_millis(250), "{begun:?}");
        assert_eq!(within("the end", wire.rest()).await.1, Ending::Fin);
    }
    assert_eq!(app.requests(), 3);
}

/// For so long a connection keeps its buffers, and a little longer.
const LONGER_THAN_QUIET: Duration = Duration::from_millis(1300);

#[tokio::test]
async fn the_beginning_of_a_head_behind_a_body_is_not_lost_in_a_pause() {
    let app = Upstream::site("baseline").await;
    let proxy = Setup::new().baseline(app.address).start().await;
    let mut wire = raw::connect(proxy.http()).await;
    let first = "POST /one HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello";
    let begun = "GET /two HTTP/1.1\r\nhost: a\r\nx-note: ";
    wire.send(format!("{first}{begun}")).await.expect("open");
    let answer = within("the first", wire.answer("POST")).await;
    assert_eq!(answer.expect("an answer").status, 200);

    tokio::time::sleep(LONGER_THAN_QUIET).await;
    // Taken for a request, it would be one that nobody sent.
    wire.send("GET /evil HTTP/1.1\r\n\r\n").await.expect("open");

    let answer = within("the second", wire.answer("GET")).await;
    assert_eq!(answer.expect("an answer").status, 200);
    assert_eq!(app.requests(), 2);
    assert_eq!(app.last().target, "/two");
}

#[tokio::test]
async fn a_connection_at_rest_serves_again_and_goes_with_the_drain() {
    let app = Upstream::site("baseline").await;
    let proxy = Setup::new().baseline(app.address).start().await;
    let mut wire = raw::connect(proxy.http()).await;

    for _ in 0..3 {
        wire.send(GET).await.expect("open");
        let answer = within("an answer", wire.answer("GET")).await;
        assert_eq!(answer.expect("an answer").status, 200);
        tokio::time::sleep(LONGER_THAN_QUIET).await;
    }
    // In pieces, the first of which wakes it.
    for piece in GET.as_bytes().chunks(7) {
        wire.send(piece).await.expect("open");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let answer = within("an answer", wire.answer("GET")).await;
    assert_eq!(answer.expect("an answer").status, 200);

    tokio::time::sleep(LONGER_THAN_QUIET).await;
    proxy.signal("TERM");
    assert_eq!(within("the end", wire.rest()).await.1, Ending::Fin);
    assert_eq!(app.requests(), 4);
}

#[tokio::test]
async fn a_connection_at_rest_ends_when_it_may_no_longer_be_idle() {
    let app = Upstream::site("baseline").await;
    let setup = Setup::new().baseline(app.address);
    let proxy = setup.top("timeouts: { keepAlive: 1500ms }").start().await;
    let mut wire = raw::connect(proxy.http()).await;
    wire.send(GET).await.expect("open");
    let start = Instant::now();
    let answer = within("an answer", wire.answer("GET")).await;
    assert_eq!(answer.expect("an answer").status, 200);

    assert_eq!(within("the end", wire.rest()).await.1, Ending::Fin);
    assert!(start.elapsed() >= Duration::from_millis(1400));
}

#[tokio::test]
async fn a_first_byte_that_may_be_http2_and_no_second_is_408() {
    let app = Upstream::site("baseline").await;
    let setup = Setup::new().baseline(app.address);
    let proxy = setup.top("timeouts: { firstByte: 200ms }").start().await;

    for begun in ["P", "PRI * HTTP/2.0\r\n"] {
        let mut wire = raw::connect(proxy.http()).await;
        wire.send(begun).await.expect("open");

        let answer = within("an answer", wire.answer("GET"))
            .await
            .unwrap_or_else(|error| panic!("{begun:?}: no answer: {error}"));

        assert_eq!(answer.status, 408, "{begun:?}");
    }
}

#[tokio::test]
async fn silence_after_pipelined_requests_ends_the_connection_quietly() {
    let app = Upstream::site("baseline").await;
    let setup = Setup::new().baseline(app.address);
    let proxy = setup
        .top("timeouts: { requestHeaders: 200ms, keepAlive: 600ms }")
        .start()
        .await;
    let mut wire = raw::connect(proxy.http()).await;

    wire.send(format!("{GET}{GET}")).await.expect("open");
    for _ in 0..2 {
        let answer = within("an answer", wire.answer("GET")).await;
        assert_eq!(answer.expect("an answer").status, 200);
    }
    let quiet = Instant::now();
    let (rest, ending) = within("the end", wire.rest()).await;

    assert_eq!((&rest[..], ending), (&b""[..], Ending::Fin));
    let range = Duration::from_millis(400)..Duration::from_secs(2);
    assert!(range.contains(&quiet.elapsed()), "{:?}", quiet.elapsed());
}

#[tokio::test]
async fn a_client_that_ended_its_half_is_parted_with_after_its_answer() {
    let app = Upstream::site("baseline").await;
    let proxy = Setup::new().baseline(app.address).start().await;

    for request in [
        GET,
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello",
    ] {
        let mut wire = raw::connect(proxy.http()).await;
        wire.send(request).await.expect("open");
        wire.half_close().await.expect("open");

        let answer = within("an answer", wire.answer("GET")).await;
        assert_eq!(answer.expect("an answer").status, 200);
        let answered = Instant::now();
        let (rest, ending) = within("the end", wire.rest()).await;

        assert_eq!((&rest[..], ending), (&b""[..], Ending::Fin));
        assert!(answered.elapsed() < Duration::from_secs(1), "{request:?}");
    }
}

#[tokio::test]
async fn a_request_whose_head_is_arriving_when_a_drain_begins_is_answered() {
    let app = Upstream::site("baseline").await;
    for before in ["", GET] {
        let mut proxy = Setup::new().baseline(app.address).start().await;
        let mut wire = raw::connect(proxy.http()).await;
        if !before.is_empty() {
            wire.send(before).await.expect("open");
            let answer = within("an answer", wire.answer("GET")).await;
            assert_eq!(answer.expect("an answer").status, 200);
        }
        wire.send("GET /late HTTP/1.1\r\nho").await.expect("open");
        // It must have been read: a head that is still on its way has not begun.
        tokio::time::sleep(Duration::from_millis(100)).await;

        proxy.signal("TERM");
        no_longer_ready(&proxy).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        wire.send("st: a\r\n\r\n").await.expect("open");

        let answer = within("an answer", wire.answer("GET"))
            .await
            .unwrap_or_else(|error| panic!("after {before:?}: no answer: {error}"));
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("connection").as_deref(), Some("close"));
        let status = proxy.wait_exit(Duration::from_secs(2)).await;
        assert_eq!(status.code(), Some(0));
    }
}
