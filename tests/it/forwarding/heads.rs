//! Methods, targets and header fields.

use http::Version;

use crate::support::fields::Fields;
use crate::support::mirrord::Sender;
use crate::support::proxy::Proxy;
use crate::support::raw;
use crate::support::request::Request;
use crate::support::upstream::Upstream;
use crate::support::way::Way;
use crate::support::within;

/// Fields grouped by name, values of one name in order: what a receiver may rely on.
fn grouped(fields: &Fields) -> Vec<(String, Vec<Vec<u8>>)> {
    fields
        .names()
        .into_iter()
        .map(|name| (name.clone(), fields.bytes(&name)))
        .collect()
}

#[tokio::test]
async fn end_to_end_fields_arrive_byte_for_byte_and_in_order() {
    let (baseline, pr) = (
        Upstream::site("baseline").await,
        Upstream::plain("pr-42").await,
    );
    let proxy = Proxy::routing(&baseline, &[("pr-42", &pr)]).await;

    for way in Way::both() {
        let request = Request::get("/")
            .header("host", "App.Test:08080")
            .session("pr-42")
            .header("x-many", "3")
            .header("x-many", "1, 2")
            .header("x-other", "between")
            .header("x-many", "")
            .header("x-bytes", b"caf\xc3\xa9 \xff\xfe \t tab")
            .header("cookie", "a=1; b=\"2\"")
            .header("authorization", "Basic  Zm9v")
            .header("accept-encoding", "gzip, br")
            .header("x-forwarded-for", "203.0.113.9")
            .header("user-agent", "");
        way.send(proxy.http(), request.clone()).await;

        assert_eq!(
            grouped(&pr.last().fields),
            grouped(&request.fields),
            "{way:?}"
        );
    }
}

#[tokio::test]
async fn fields_of_the_answer_come_back_byte_for_byte_and_nothing_is_added() {
    let head = b"HTTP/1.1 299 Own Words\r\nset-cookie: a=1\r\nset-cookie: b=2; Path=/\r\nx-bytes: \xff caf\xc3\xa9\r\n\
                 cache-control: no-store\r\nx-empty:\r\nset-cookie: c=3\r\ncontent-length: 2\r\n\r\nok";
    let baseline = Upstream::that_answers("baseline", *head).await;
    let proxy = Proxy::sending_everything_to(&baseline).await;
    let mut expected = Fields::default();
    for cookie in ["a=1", "b=2; Path=/", "c=3"] {
        expected.push("set-cookie", cookie);
    }
    expected.push("x-bytes", b"\xff caf\xc3\xa9");
    expected.push("cache-control", "no-store");
    expected.push("x-empty", "");
    expected.push("content-length", "2");
    expected.push("x-dev-session-route", "baseline; reason=no-session");

    for way in Way::both() {
        let answer = way.send(proxy.http(), Request::get("/")).await;

        assert_eq!(answer.status, 299, "{way:?}");
        assert_eq!(grouped(&answer.fields), grouped(&expected), "{way:?}");
    }
}

#[tokio::test]
async fn a_servers_own_date_and_name_are_kept() {
    let head = "HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nServer: mine/1\r\ncontent-length: 0\r\n\r\n";
    let baseline = Upstream::that_answers("baseline", head).await;
    let proxy = Proxy::sending_everything_to(&baseline).await;

    for way in Way::both() {
        let answer = way.send(proxy.http(), Request::get("/")).await;

        assert_eq!(
            answer.fields.all("date"),
            ["Thu, 01 Jan 1970 00:00:00 GMT"],
            "{way:?}"
        );
        assert_eq!(answer.fields.all("server"), ["mine/1"], "{way:?}");
    }
}

#[tokio::test]
async fn targets_arrive_as_they_were_sent() {
    let baseline = Upstream::site("baseline").await;
    let proxy = Proxy::sending_everything_to(&baseline).await;
    let targets = [
        "/",
        "/a/../b//c%2e/?q=%20",
        "/%2F%2f;a=1,b/.",
        "/?",
        "/??a&&b==",
        "/a?b/c?d",
        "/~!$&'()*+,;=:@",
        "/x?[]",
    ];

    for way in Way::all() {
        let mut client = way.client(proxy.http()).await;
        for target in targets {
            assert_eq!(client.get(target).await.json()["target"], target, "{way:?}");
        }
    }
}

#[tokio::test]
async fn methods_arrive_as_they_were_sent() {
    let baseline = Upstream::plain("baseline").await;
    let proxy = Proxy::sending_everything_to(&baseline).await;

    for way in Way::both() {
        for method in [
            "GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "brew",
        ] {
            let answer = way.send(proxy.http(), Request::new(method, "/x")).await;

            assert_eq!(
                (answer.status, baseline.last().method.as_str()),
                (200, method),
                "{way:?}"
            );
            assert_eq!(baseline.last().body.length, 0, "{way:?} {method}");
        }
    }
}

#[tokio::test]
async fn options_may_ask_about_the_whole_server() {
    let baseline = Upstream::plain("baseline").await;
    let proxy = Proxy::sending_everything_to(&baseline).await;

    for way in Way::both() {
        way.send(proxy.http(), Request::new("OPTIONS", "*")).await;

        assert_eq!(baseline.last().target, "*", "{way:?}");
    }
}

#[tokio::test]
async fn hop_by_hop_fields_stay_behind_with_those_that_connection_names() {
    let (baseline, pr) = (
        Upstream::plain("baseline").await,
        Upstream::plain("pr-42").await,
    );
    let proxy = Proxy::routing(&baseline, &[("pr-42", &pr)]).await;

    for way in Way::both() {
        let request = Request::get("/")
            .session("pr-42")
            .header("connection", "keep-alive, X-Foo")
            .header("connection", "x-bar")
            .header("keep-alive", "timeout=5")
            .header("proxy-connection", "keep-alive")
            .header("te", "gzip")
            .header("x-foo", "1")
            .header("x-bar", "2")
            .header("x-kept", "3");
        way.send(proxy.http(), request).await;

        let fields = pr.last().fields;
        for gone in [
            "keep-alive",
            "proxy-connection",
            "x-foo",
            "x-bar",
            "te",
            "transfer-encoding",
        ] {
            assert!(!fields.has(gone), "{way:?}: {gone} in {fields:?}");
        }
        assert!(
            !fields
                .all("connection")
                .iter()
                .any(|value| value.to_lowercase().contains("x-")),
            "{way:?}"
        );
        assert_eq!(fields.all("x-kept"), ["3"], "{way:?}");
    }
}

#[tokio::test]
async fn connection_cannot_remove_what_routing_and_apps_rely_on() {
    let (baseline, pr) = (
        Upstream::plain("baseline").await,
        Upstream::plain("pr-42").await,
    );
    let proxy = Proxy::routing(&baseline, &[("pr-42", &pr)]).await;

    for way in Way::both() {
        let request = Request::post("/", "four")
            .header("host", "app.test")
            .session("pr-42")
            .header(
                "connection",
                "X-Dev-Session, baggage, traceparent, host, content-length, authorization, close",
            )
            .header("baggage", "dev-session=pr-42")
            .header(
                "traceparent",
                "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            )
            .header("authorization", "Bearer x")
            .header("content-length", "4");
        let answer = way.send(proxy.http(), request).await;

        assert_eq!(answer.served_by(), "pr-42", "{way:?}");
        let fields = pr.last().fields;
        for kept in [
            "x-dev-session",
            "baggage",
            "traceparent",
            "host",
            "content-length",
            "authorization",
        ] {
            assert!(fields.has(kept), "{way:?}: {kept} is gone from {fields:?}");
        }
        assert_eq!(pr.last().body.length, 4, "{way:?}");
    }
}

#[tokio::test]
async fn hop_by_hop_fields_of_an_answer_stay_behind() {
    let head = "HTTP/1.1 200 OK\r\nconnection: keep-alive, x-foo\r\nkeep-alive: timeout=5\r\nproxy-connection: close\r\n\
                x-foo: 1\r\nx-kept: 2\r\ncontent-length: 0\r\n\r\n";
    let baseline = Upstream::that_answers("baseline", head).await;
    let proxy = Proxy::sending_everything_to(&baseline).await;

    for way in Way::both() {
        let answer = way.send(proxy.http(), Request::get("/")).await;

        for gone in ["keep-alive", "proxy-connection", "x-foo"] {
            assert!(
                !answer.fields.has(gone),
                "{way:?}: {gone} in {:?}",
                answer.fields
            );
        }
        assert_eq!(answer.fields.all("x-kept"), ["2"], "{way:?}");
    }
}

#[tokio::test]
async fn the_baseline_sees_our_via_after_those_before_us() {
    let baseline = Upstream::plain("baseline").await;
    let proxy = Proxy::sending_everything_to(&baseline).await;

    for way in Way::both() {
        way.send(proxy.http(), Request::get("/").header("via", "1.1 another"))
            .await;

        let via = baseline.last().fields.all("via").join(", ");
        assert!(via.starts_with("1.1 another, 1.1 "), "{way:?}: {via}");
        for added in [
            "x-forwarded-for",
            "x-forwarded-proto",
            "x-forwarded-host",
            "forwarded",
        ] {
            assert!(!baseline.last().fields.has(added), "{way:?}: {added}");
        }
    }
}

#[tokio::test]
async fn connect_is_refused() {
    let baseline = Upstream::plain("baseline").await;
    let proxy = Proxy::sending_everything_to(&baseline).await;
    let head = format!(
        "CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n",
        baseline.address
    );

    let answer = raw::exchange(proxy.http(), head).await;

    assert_eq!(answer.status, 405);
    assert_eq!(baseline.connections(), 0);
}

#[tokio::test]
async fn an_absolute_target_gives_the_host_that_is_missing() {
    let baseline = Upstream::plain("baseline").await;
    let proxy = Proxy::sending_everything_to(&baseline).await;

    raw::exchange(
        proxy.http(),
        "GET http://10.77.0.2:8080/x?y HTTP/1.1\r\n\r\n",
    )
    .await;

    assert_eq!(baseline.last().target, "/x?y");
    assert_eq!(baseline.last().fields.all("host"), ["10.77.0.2:8080"]);
}

#[tokio::test]
async fn http_1_0_gets_an_answer_it_can_read() {
    let baseline = Upstream::site("baseline").await;
    let proxy = Proxy::sending_everything_to(&baseline).await;
    let mut wire = raw::connect(proxy.http()).await;

    wire.send("GET /stream/100000 HTTP/1.0\r\nHost: app.test\r\n\r\n")
        .await
        .expect("it reads");
    let answer = within("an answer", wire.answer("GET"))
        .await
        .expect("an answer");

    assert_eq!(answer.status, 200);
    assert!(!answer.fields.has("transfer-encoding"));
    assert_eq!(answer.bytes().len(), 100_000);
}

#[tokio::test]
async fn http_1_0_may_come_in_the_middle_of_a_kept_connection() {
    let baseline = Upstream::plain("baseline").await;
    let proxy = Proxy::sending_everything_to(&baseline).await;
    let sender = Sender::new(proxy.http());

    for version in [Version::HTTP_11, Version::HTTP_10, Version::HTTP_11] {
        let answer = within(
            "an answer",
            sender.send(&Request::get("/").version(version)),
        )
        .await;

        assert_eq!((answer.status, answer.tries), (200, 1), "{version:?}");
    }
}

#[tokio::test]
async fn answers_without_a_body_keep_their_length_and_the_connection() {
    for (method, head) in [
        (
            "HEAD",
            "HTTP/1.1 200 OK\r\ncontent-length: 1234\r\nx-kept: 1\r\n\r\n",
        ),
        ("GET", "HTTP/1.1 204 No Content\r\nx-kept: 1\r\n\r\n"),
        (
            "GET",
            "HTTP/1.1 304 Not Modified\r\ncontent-length: 1234\r\netag: \"a\"\r\nx-kept: 1\r\n\r\n",
        ),
    ] {
        let baseline = Upstream::that_answers("baseline", head).await;
        let proxy = Proxy::sending_everything_to(&baseline).await;
        let mut wire = raw::connect(proxy.http()).await;
        let length = head.contains("content-length").then(|| "1234".to_owned());

        for _ in 0..2 {
            wire.send(format!("{method} / HTTP/1.1\r\nHost: app.test\r\n\r\n"))
                .await
                .expect("it reads");
            let answer = within("an answer", wire.answer(method))
                .await
                .expect("an answer");

            assert_eq!(answer.header("x-kept").as_deref(), Some("1"), "{head}");
            assert_eq!(answer.header("content-length"), length, "{head}");
        }
    }
}

#[tokio::test]
async fn interim_answers_do_not_disturb_the_final_one() {
    let bytes = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n\
                 HTTP/1.1 200 OK\r\nx-upstream: baseline\r\ncontent-length: 5\r\n\r\nfinal";
    let baseline = Upstream::that_answers("baseline", bytes).await;
    let proxy = Proxy::sending_everything_to(&baseline).await;

    for way in Way::both() {
        let answer = way.send(proxy.http(), Request::get("/")).await;

        assert_eq!(
            (answer.status, answer.text().as_str()),
            (200, "final"),
            "{way:?}"
        );
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let baseline = Upstream::site("baseline").await;
    let proxy = Proxy::sending_everything_to(&baseline).await;
    let mut wire = raw::connect(proxy.http()).await;

    wire.send("GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .expect("it reads");

    for target in ["/1", "/2"] {
        let answer = within("an answer", wire.answer("GET"))
            .await
            .expect("an answer");
        assert_eq!(answer.json()["target"], target);
    }
}
