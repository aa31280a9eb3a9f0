//! Upstreams that cannot be reached, or break before and after their answer has begun.

use crate::support::client::{self, ask_h2};
use crate::support::grpc;
use crate::support::ports::{Blackhole, dead_addr};
use crate::support::proxy::{Proxy, Setup, speaking};
use crate::support::request::Request;
use crate::support::scripts::Break;
use crate::support::upstream::Upstream;
use crate::support::way::Way;
use crate::support::wire::Framing;
use crate::support::within;

use super::Refusal;

/// The session whose pod is in trouble.
fn tagged(request: Request) -> Request {
    request.session("pr-42")
}

#[tokio::test]
async fn a_refused_connection_is_502() {
    let setup = Setup::new()
        .baseline(dead_addr().await)
        .session("pr-42", dead_addr().await);
    let proxy = setup.start().await;

    Refusal::new(502, "connect-failed")
        .is_given(proxy.http(), tagged)
        .await;
    Refusal::new(502, "connect-failed")
        .is_given(proxy.http(), |request| request)
        .await;
}

#[tokio::test]
async fn a_connection_that_hangs_is_504() {
    let hole = Blackhole::new().await;
    let setup = Setup::new()
        .session("pr-42", hole.address)
        .top("timeouts: { connect: 100ms }");
    let proxy = setup.start().await;

    Refusal::new(504, "connect-timeout")
        .is_given(proxy.http(), tagged)
        .await;
}

#[tokio::test]
async fn an_upstream_that_breaks_instead_of_answering_is_502() {
    for how in Break::both() {
        let pr = Upstream::that_breaks_before_answering("pr-42", how).await;
        let proxy = Setup::new()
            .session_yaml("pr-42", &speaking("h1", &pr))
            .start()
            .await;

        Refusal::new(502, "upstream-reset")
            .is_given(proxy.http(), tagged)
            .await;
    }
}

#[tokio::test]
async fn an_upstream_that_breaks_in_its_head_is_502() {
    for how in Break::both() {
        let pr = Upstream::that_breaks_in_the_head("pr-42", how).await;
        let proxy = Setup::new()
            .session_yaml("pr-42", &speaking("h1", &pr))
            .start()
            .await;

        Refusal::new(502, "upstream-reset")
            .is_given(proxy.http(), tagged)
            .await;
    }
}

#[tokio::test]
async fn an_upstream_that_switches_protocols_unasked_is_502_and_the_answer_names_the_session() {
    let switch = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n";
    let pr = Upstream::that_answers("pr-42", switch).await;
    let proxy = Setup::new()
        .session_yaml("pr-42", &speaking("h1", &pr))
        .start()
        .await;

    Refusal::new(502, "upstream-reset")
        .is_given(proxy.http(), tagged)
        .await;
    let answer = Way::Direct
        .send(proxy.http(), tagged(Request::get("/")))
        .await;
    assert_eq!(answer.json()["session"], "pr-42");
}

#[tokio::test]
async fn an_upstream_that_breaks_on_accept_is_502() {
    for how in Break::both() {
        for protocol in ["h1", "h2c"] {
            let pr = Upstream::that_breaks_on_accept("pr-42", how).await;
            let proxy = Setup::new()
                .session_yaml("pr-42", &speaking(protocol, &pr))
                .start()
                .await;

            for way in Way::all() {
                let answer = way.send(proxy.http(), tagged(Request::get("/"))).await;

                // Whether the end is seen while connecting or after is the network's choice.
                assert_eq!(answer.status, 502, "{way:?} {how:?} {protocol}");
                assert!(
                    ["connect-failed", "upstream-reset"].contains(&answer.reason().as_str()),
                    "{way:?} {how:?}"
                );
            }
        }
    }
}

#[tokio::test]
async fn an_upstream_that_does_not_answer_in_time_is_504() {
    let pr = Upstream::that_hangs_before_the_head("pr-42").await;
    for protocol in ["h1", "auto"] {
        let setup = Setup::new()
            .session_yaml("pr-42", &speaking(protocol, &pr))
            .top("timeouts: { responseHeaders: 100ms }");
        let proxy = setup.start().await;

        Refusal::new(504, "response-timeout")
            .is_given(proxy.http(), tagged)
            .await;
    }
}

#[tokio::test]
async fn an_upstream_that_never_reads_is_504() {
    let pr = Upstream::that_never_reads("pr-42").await;
    let setup = Setup::new()
        .session_yaml("pr-42", &speaking("h1", &pr))
        .top("timeouts: { responseHeaders: 100ms }");
    let proxy = setup.start().await;

    Refusal::new(504, "response-timeout")
        .is_given(proxy.http(), tagged)
        .await;
}

#[tokio::test]
async fn an_answer_that_is_not_http_is_502() {
    let huge = format!(
        "HTTP/1.1 200 OK\r\nx-huge: {}\r\ncontent-length: 0\r\n\r\n",
        "x".repeat(2 << 20)
    );
    for bytes in [
        "SSH-2.0-OpenSSH_9.9\r\n\r\n",
        "HTTP/1.1 banana\r\n\r\n",
        "HTTP/1.1 200 OK\r\nbad name: x\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        &huge,
    ] {
        let pr = Upstream::that_answers("pr-42", bytes).await;
        let proxy = Setup::new()
            .session_yaml("pr-42", &speaking("h1", &pr))
            .start()
            .await;

        for way in Way::all() {
            let answer = way
                .send(proxy.http(), tagged(Request::post("/", "once")))
                .await;

            assert_eq!(answer.status, 502, "{way:?}: {:.40}", bytes);
            assert!(!answer.reason().is_empty(), "{way:?}: {:.40}", bytes);
        }
    }
}

#[tokio::test]
async fn nothing_unsafe_is_sent_twice_when_an_upstream_breaks() {
    for how in Break::both() {
        let pr = Upstream::that_breaks_before_answering("pr-42", how).await;
        let proxy = Setup::new()
            .session_yaml("pr-42", &speaking("h1", &pr))
            .start()
            .await;

        for (nth, way) in Way::all().into_iter().enumerate() {
            let request =
                tagged(Request::post("/", "once")).header("x-request-id", nth.to_string());
            way.send(proxy.http(), request).await;
        }

        assert_eq!(pr.ids().len(), 4, "{how:?}");
        assert!(
            pr.ids().values().all(|times| *times == 1),
            "{how:?}: {:?}",
            pr.ids()
        );
    }
}

#[tokio::test]
async fn an_answer_that_stops_in_the_middle_is_ended_as_broken() {
    for framing in [Framing::Length(0), Framing::Chunked, Framing::UntilClose] {
        let pr = Upstream::that_hangs_in_the_middle("pr-42", framing).await;
        let setup = Setup::new()
            .session_yaml("pr-42", &speaking("h1", &pr))
            .top("timeouts: { bodyIdle: 100ms }");
        let proxy = setup.start().await;

        for way in Way::all() {
            let answer = way.send(proxy.http(), tagged(Request::get("/"))).await;

            assert_eq!(answer.status, 200, "{way:?} {framing:?}");
            assert!(
                answer.body.is_err(),
                "{way:?} {framing:?}: it came as a whole body"
            );
        }
    }
}

#[tokio::test]
async fn a_call_that_breaks_in_the_middle_has_no_good_status() {
    let pr = Upstream::h2_that_breaks_in_the_middle("pr-42").await;
    let proxy = Setup::new()
        .session_yaml("pr-42", &speaking("h2c", &pr))
        .start()
        .await;
    let mut h2 = client::h2(proxy.http()).await;

    let request = tagged(grpc::request("/shop.Orders/Get", b"question"));
    let answer = within("the end", ask_h2(&mut h2, &request))
        .await
        .expect("a head");

    assert!(answer.body.is_err());
    assert_ne!(grpc::status(&answer).as_deref(), Some("0"));
}

#[tokio::test]
async fn an_endpoint_in_trouble_does_not_trouble_the_others() {
    let baseline = Upstream::site("baseline").await;
    let pr = Upstream::that_breaks_before_answering("pr-42", Break::Reset).await;
    let proxy = Proxy::routing(&baseline, &[("pr-42", &pr)]).await;

    for way in Way::both() {
        let mut client = way.client(proxy.http()).await;
        for _ in 0..5 {
            assert_eq!(
                client.send(tagged(Request::get("/"))).await.status,
                502,
                "{way:?}"
            );
            assert_eq!(client.get("/").await.status, 200, "{way:?}");
        }
    }
}
