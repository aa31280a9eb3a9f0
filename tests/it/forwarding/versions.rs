//! HTTP/1, HTTP/2, TLS and gRPC, in every mixture.

use std::time::Duration;

use http::Version;

use crate::support::certs::Certs;
use crate::support::client::{self, ask_h2, ask_tls};
use crate::support::grpc;
use crate::support::h2_frames::Unacted;
use crate::support::mirrord::Sender;
use crate::support::proxy::{Proxy, Setup, speaking};
use crate::support::request::Request;
use crate::support::upstream::Upstream;
use crate::support::way::Way;
use crate::support::{eventually, within};

#[tokio::test]
async fn the_protocol_of_a_session_decides_what_its_pod_hears() {
    let pr = Upstream::site("pr").await;
    let mut setup = Setup::new();
    for protocol in ["auto", "h1", "h2c"] {
        setup = setup.session_yaml(protocol, &speaking(protocol, &pr));
    }
    let proxy = setup.start().await;

    for way in Way::all() {
        let asked = if matches!(way, Way::DirectH2 | Way::MirrordH2) {
            Version::HTTP_2
        } else {
            Version::HTTP_11
        };
        for (session, heard) in [
            ("auto", asked),
            ("h1", Version::HTTP_11),
            ("h2c", Version::HTTP_2),
        ] {
            let request = Request::post("/a/../b?q", "body")
                .session(session)
                .header("x-many", "1")
                .header("x-many", "2");
            let answer = way.send(proxy.http(), request).await;

            assert_eq!(
                (answer.status, answer.version),
                (200, asked),
                "{way:?} {session}"
            );
            let seen = pr.last();
            assert_eq!(seen.version, heard, "{way:?} {session}");
            assert_eq!(
                (seen.target.as_str(), seen.body.length),
                ("/a/../b?q", 4),
                "{way:?} {session}"
            );
            assert_eq!(seen.fields.all("x-many"), ["1", "2"], "{way:?} {session}");
            let host = seen.authority.or_else(|| seen.fields.first("host"));
            assert_eq!(host.as_deref(), Some("app.test:8080"), "{way:?} {session}");
        }
    }
}

#[tokio::test]
async fn crumbs_of_a_cookie_become_one_field_for_http1() {
    let pr = Upstream::plain("pr-42").await;
    let proxy = Setup::new()
        .session_yaml("pr-42", &speaking("h1", &pr))
        .start()
        .await;
    let request = Request::get("/")
        .session("pr-42")
        .header("cookie", "a=1")
        .header("cookie", "b=2");

    Way::DirectH2.send(proxy.http(), request).await;

    // RFC 9113, section 8.2.3.
    assert_eq!(pr.last().fields.all("cookie"), ["a=1; b=2"]);
}

#[tokio::test]
async fn trailers_cross_from_one_version_to_the_other() {
    let pr = Upstream::site("pr").await;
    let setup = Setup::new()
        .session_yaml("h1", &speaking("h1", &pr))
        .session_yaml("h2c", &speaking("h2c", &pr));
    let proxy = setup.start().await;

    for (way, session) in [(Way::Direct, "h2c"), (Way::DirectH2, "h1")] {
        let mut client = way.client(proxy.http()).await;
        let request = Request::post("/", "body")
            .session(session)
            .header("trailer", "x-sum")
            .trailer("x-sum", "1");
        client.send(request).await;
        assert_eq!(
            pr.last().trailers.all("x-sum"),
            ["1"],
            "up, {way:?} to {session}"
        );

        let answer = client
            .send(
                Request::get("/trailers")
                    .session(session)
                    .header("te", "trailers"),
            )
            .await;
        assert_eq!(
            answer.trailers.all("x-checksum"),
            ["abc"],
            "down, {way:?} to {session}"
        );
    }
}

#[tokio::test]
async fn a_tls_pod_is_spoken_to_in_what_alpn_picks() {
    let certs = Certs::new();
    for (alpn, heard) in [("h2", Version::HTTP_2), ("http/1.1", Version::HTTP_11)] {
        let pr = Upstream::tls_site("pr-42", certs.server(&[alpn])).await;
        let ca = certs.certificate();
        let tls = format!(
            "tls, tls: {{ serverName: app.test, ca: {:?} }}",
            ca.display().to_string()
        );
        let proxy = Setup::new()
            .session_yaml("pr-42", &speaking(&tls, &pr))
            .start()
            .await;

        for way in Way::all() {
            let answer = way
                .send(proxy.http(), Request::get("/").session("pr-42"))
                .await;

            assert_eq!(
                (answer.status, pr.last().version),
                (200, heard),
                "{way:?} {alpn}"
            );
        }
    }
}

#[tokio::test]
async fn a_tls_pod_that_cannot_prove_its_name_is_not_spoken_to() {
    let certs = Certs::new();
    let pr = Upstream::tls_site("pr-42", certs.server(&["http/1.1"])).await;
    let ca = certs.certificate();
    let tls = format!(
        "tls, tls: {{ serverName: other.test, ca: {:?} }}",
        ca.display().to_string()
    );
    let proxy = Setup::new()
        .session_yaml("pr-42", &speaking(&tls, &pr))
        .start()
        .await;

    let answer = Way::Direct
        .send(proxy.http(), Request::get("/").session("pr-42"))
        .await;

    assert_eq!(
        (answer.status, answer.reason().as_str()),
        (502, "connect-failed")
    );
    assert_eq!(pr.requests(), 0);
}

#[tokio::test]
async fn an_https_listener_speaks_both_versions() {
    let (baseline, pr) = (
        Upstream::site("baseline").await,
        Upstream::site("pr-42").await,
    );
    let certs = Certs::new();
    let setup = Setup::new().yaml(&format!(
        "listeners:\n  - name: web\n    address: \"127.0.0.1:0\"\n    protocol: https\n    baseline: \"{}\"\n    \
         tls: {{ certificate: {:?}, privateKey: {:?} }}\nsessions:\n  pr-42: \"{}\"\n",
        baseline.address,
        certs.certificate(),
        certs.private_key(),
        pr.address,
    ));
    let proxy = setup.start().await;

    for (alpn, version) in [("h2", Version::HTTP_2), ("http/1.1", Version::HTTP_11)] {
        let request = Request::get("/x").session("pr-42");
        let asking = Box::pin(ask_tls(proxy.addr("web"), certs.client(&[alpn]), &request));
        let answer = within("an answer", asking).await.expect("an answer");

        assert_eq!(
            (answer.version, answer.served_by().as_str()),
            (version, "pr-42")
        );
    }
}

#[tokio::test]
async fn a_unary_call_crosses_with_its_status() {
    let (baseline, pr) = (
        Upstream::site("baseline").await,
        Upstream::site("pr-42").await,
    );
    let proxy = Proxy::routing(&baseline, &[("pr-42", &pr)]).await;

    for (session, name) in [(Some("pr-42"), "pr-42"), (None, "baseline")] {
        let mut request = grpc::request("/shop.Orders/Get", b"question");
        if let Some(session) = session {
            request = request.session(session);
        }
        // Apps that speak gRPC need a sender that uses no connection twice.
        let sender = Sender::new(proxy.http()).idle_for(Duration::ZERO);
        let mut direct = client::h2(proxy.http()).await;
        for answer in [
            within(
                "mirrord",
                sender.send(&request.clone().version(Version::HTTP_2)),
            )
            .await,
            within("direct", ask_h2(&mut direct, &request))
                .await
                .expect("an answer"),
        ] {
            assert_eq!((answer.status, answer.served_by().as_str()), (200, name));
            assert_eq!(grpc::messages(answer.bytes()), [&b"question"[..]]);
            assert_eq!(grpc::status(&answer).as_deref(), Some("0"));
            assert_eq!(
                answer.trailers.first("grpc-message").as_deref(),
                Some("fine")
            );
        }
    }
}

#[tokio::test]
async fn a_streaming_call_crosses_message_by_message() {
    let (baseline, pr) = (
        Upstream::site("baseline").await,
        Upstream::site("pr-42").await,
    );
    let proxy = Proxy::routing(&baseline, &[("pr-42", &pr)]).await;
    let request = grpc::request("/shop.Orders/Chat", b"").session("pr-42");

    let mut call = within("the head", grpc::Call::open(proxy.http(), &request))
        .await
        .expect("a head");
    for payload in [&b"one"[..], b"", &[7; 100_000]] {
        call.send(payload).await;
        assert_eq!(
            within("the echo", call.next())
                .await
                .expect("open")
                .as_deref(),
            Some(payload)
        );
    }
    call.finish();

    assert_eq!(
        within("the end", call.next()).await.expect("in order"),
        None
    );
    assert_eq!(call.trailers().first("grpc-status").as_deref(), Some("0"));
    assert_eq!(call.head.headers["x-dev-session-route"], "pr-42");
}

#[tokio::test]
async fn a_cancelled_call_is_cancelled_at_the_pod() {
    let baseline = Upstream::site("baseline").await;
    let proxy = Proxy::sending_everything_to(&baseline).await;

    for (nth, path) in ["/chat", "/endless"].into_iter().enumerate() {
        let mut call = within(
            "the head",
            grpc::Call::open(proxy.http(), &grpc::request(path, b"")),
        )
        .await
        .expect("a head");
        call.send(b"first").await;
        within("a message", call.next()).await.expect("open");
        drop(call);

        eventually(&format!("{path} is cancelled"), || {
            baseline.cancelled() == nth + 1
        })
        .await;
    }
}

#[tokio::test]
async fn more_calls_than_a_pod_takes_at_a_time_wait_their_turn() {
    let baseline = Upstream::site_with_stream_limit("baseline", 2).await;
    let proxy = Proxy::sending_everything_to(&baseline).await;
    let mut connection = client::h2(proxy.http()).await;
    // Until its first frame has come, nobody can know how much the pod takes.
    within(
        "a first answer",
        ask_h2(&mut connection, &Request::get("/first")),
    )
    .await
    .expect("an answer");

    let calls: Vec<_> = (0..40)
        .map(|_| {
            let mut connection = connection.clone();
            tokio::spawn(async move { ask_h2(&mut connection, &Request::get("/x")).await })
        })
        .collect();

    for call in calls {
        let answer = within("an answer", call)
            .await
            .expect("no panic")
            .expect("an answer");
        assert_eq!(answer.status, 200);
    }
}

#[tokio::test]
async fn a_stream_that_was_turned_down_is_sent_again_once_whatever_its_method() {
    for how in [Unacted::Refused, Unacted::GoneAway] {
        let pr = Upstream::h2_that_turns_down("pr-42", how, 1).await;
        let proxy = Setup::new()
            .session_yaml("pr-42", &speaking("h2c", &pr))
            .start()
            .await;

        let answer = Way::DirectH2
            .send(proxy.http(), Request::new("POST", "/").session("pr-42"))
            .await;

        assert_eq!(
            (answer.status, answer.served_by().as_str()),
            (200, "pr-42"),
            "{how:?}"
        );
        assert_eq!(pr.requests(), 2, "{how:?}");
    }
}

#[tokio::test]
async fn a_stream_that_may_have_been_acted_on_is_not_sent_again() {
    let pr = Upstream::h2_that_fails_streams("pr-42").await;
    let proxy = Setup::new()
        .session_yaml("pr-42", &speaking("h2c", &pr))
        .start()
        .await;

    for way in Way::all() {
        let before = pr.requests();
        let answer = way
            .send(proxy.http(), Request::post("/", "once").session("pr-42"))
            .await;

        assert_eq!(
            (answer.status, answer.reason().as_str()),
            (502, "upstream-reset"),
            "{way:?}"
        );
        assert_eq!(pr.requests() - before, 1, "{way:?}");
    }
}

#[tokio::test]
async fn a_stream_that_breaks_in_the_middle_looks_broken() {
    let pr = Upstream::h2_that_breaks_in_the_middle("pr-42").await;
    let proxy = Setup::new()
        .session_yaml("pr-42", &speaking("h2c", &pr))
        .start()
        .await;

    for way in Way::all() {
        let answer = way
            .send(proxy.http(), Request::get("/").session("pr-42"))
            .await;

        assert_eq!(answer.status, 200, "{way:?}");
        assert!(answer.body.is_err(), "{way:?}");
    }
}
