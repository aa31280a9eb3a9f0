//! Requests that are the client's fault, and answers that are the app's.

use crate::support::proxy::{Proxy, Setup};
use crate::support::raw;
use crate::support::request::Request;
use crate::support::upstream::Upstream;
use crate::support::way::Way;
use crate::support::within;

use super::frames::{END_HEADERS, END_STREAM, Frames, GET, HEADERS, STATUS_200, STATUS_400, head};
use super::{one_worker, tagged, with_session};

#[tokio::test]
async fn a_chunk_size_that_is_none_is_the_clients_fault_and_not_the_apps() {
    let app = Upstream::site("pr-42").await;
    let proxy = with_session("h1", &app).start().await;
    let head = "POST / HTTP/1.1\r\nhost: a\r\nx-dev-session: pr-42\r\n\
                transfer-encoding: chunked\r\n\r\n";

    for body in ["zz\r\n", "5\r\nhello\r\nzz\r\n", "5\r\nhelloXX0\r\n\r\n"] {
        for _ in 0..10 {
            let answer = raw::exchange(proxy.http(), format!("{head}{body}")).await;

            assert_eq!(answer.status, 400, "{body:?}: {answer:#?}");
            assert_eq!(answer.reason(), "bad-request", "{body:?}");
        }
    }

    let overview = proxy.ask_admin("/sessions").await.text();
    assert!(!overview.contains("avoided"), "{overview}");
    let errors = "session_proxy_requests_total";
    assert_eq!(proxy.metric(errors, &[("code", "502")]).await, 0.0);
    assert_eq!(app.seen().len(), 0, "it saw a whole request");
    let answer = Way::Direct
        .send(proxy.http(), tagged(Request::get("/")))
        .await;
    assert_eq!(answer.served_by(), "pr-42");
}

#[tokio::test]
async fn an_http2_request_that_names_two_hosts_is_400_and_reaches_nobody() {
    let app = Upstream::plain("pr-42").await;
    let proxy = with_session("h1", &app).start().await;
    let session = ("x-dev-session", "pr-42");

    for fields in [
        &[("host", "a"), ("host", "b"), session][..],
        &[(":authority", "a"), ("host", "b"), session],
        &[(":authority", "a"), ("host", "a"), ("host", "b"), session],
    ] {
        assert_eq!(
            status_over_h2(&proxy, fields).await,
            STATUS_400,
            "{fields:?}"
        );
    }
    assert_eq!(app.requests(), 0);

    for fields in [
        &[(":authority", "a"), session][..],
        &[(":authority", "a"), ("host", "a"), session],
    ] {
        assert_eq!(
            status_over_h2(&proxy, fields).await,
            STATUS_200,
            "{fields:?}"
        );
        assert_eq!(app.last().fields.all("host"), ["a"], "{fields:?}");
    }
}

/// The indexed status of the answer to a GET with these fields.
async fn status_over_h2(proxy: &Proxy, fields: &[(&str, &str)]) -> u8 {
    let mut h2 = Frames::connect(proxy.http()).await;
    let flags = END_HEADERS | END_STREAM;
    h2.send(HEADERS, flags, 1, &head(GET, fields))
        .await
        .expect("open");
    let frame = within("an answer", h2.next()).await.expect("open");
    let frame = frame.expect("an answer");
    assert_eq!(frame.kind, HEADERS, "{fields:?}: {frame:?}");
    frame.payload[0]
}

#[tokio::test]
async fn an_answer_that_is_no_http_on_a_reused_connection_is_502_and_asked_for_once() {
    let app = Upstream::raw("baseline", |mut peer| async move {
        peer.request().await?;
        peer.ok("fine").await?;
        peer.request().await?;
        peer.wire.send("ICY 200 OK\r\n\r\n").await?;
        while !peer.wire.some().await?.is_empty() {}
        Ok(())
    })
    .await;
    let proxy = one_worker().baseline(app.address).start().await;

    let fine = Way::Direct.send(proxy.http(), Request::get("/")).await;
    let garbage = Way::Direct.send(proxy.http(), Request::get("/")).await;

    assert_eq!(fine.text(), "fine");
    assert_eq!(
        (garbage.status, garbage.reason().as_str()),
        (502, "upstream-reset")
    );
    assert_eq!((app.requests(), app.connections()), (2, 1));
}

#[tokio::test]
async fn a_target_that_is_neither_a_path_nor_a_uri_is_400_and_reaches_nobody() {
    let app = Upstream::site("baseline").await;
    let proxy = Setup::new().baseline(app.address).start().await;

    for line in [
        "GET foo HTTP/1.1",
        "GET foo/bar?x=1 HTTP/1.1",
        "connect a:443 HTTP/1.1",
        "GET a:443 HTTP/1.1",
    ] {
        let answer = raw::exchange(proxy.http(), format!("{line}\r\nhost: a\r\n\r\n")).await;

        assert_eq!(answer.status, 400, "{line}: {answer:#?}");
    }
    assert_eq!(app.requests(), 0);
}
