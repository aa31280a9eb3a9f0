//! Which session a request has, and which way it goes.

use std::collections::HashMap;

use http::Version;

use crate::support::mirrord::Sender;
use crate::support::proxy::{Proxy, Setup};
use crate::support::raw;
use crate::support::request::Request;
use crate::support::upstream::Upstream;
use crate::support::way::Way;

/// Sends every row on every way.
///
/// A row is a case, the header fields of its request with ` + ` between them, and the route it must
/// take; an upstream has the name of its route, or else is named after ` at `.
async fn check(proxy: &Proxy, table: &str) {
    for way in Way::all() {
        let mut client = way.client(proxy.http()).await;
        for row in table.lines().filter(|row| !row.trim().is_empty()) {
            let cells: Vec<_> = row.split('|').map(|cell| cell.trim_matches(' ')).collect();
            let [_case, fields, route] = cells[..] else {
                panic!("not a row: {row}")
            };
            let fields = fields
                .split(" + ")
                .filter_map(|field| field.split_once(": "));
            let request = fields.fold(Request::get("/x"), |request, (name, value)| {
                request.header(name, value)
            });
            let answer = client.send(request).await;

            assert_eq!(answer.status, 200, "{row}, {way:?}: {answer:#?}");
            let (route, upstream) = match route.split_once(" at ") {
                Some(both) => both,
                None => (route, route.split(';').next().unwrap_or_default()),
            };
            assert_eq!(answer.route().as_deref(), Some(route), "{row}, {way:?}");
            assert_eq!(answer.served_by(), upstream, "{row}, {way:?}");
        }
    }
}

/// A baseline and the pod of one session.
async fn two_sites() -> (Upstream, Upstream) {
    (
        Upstream::site("baseline").await,
        Upstream::site("pr-42").await,
    )
}

#[tokio::test]
async fn the_session_header_picks_the_pod_and_nothing_else_does() {
    let (baseline, pr) = two_sites().await;
    let proxy = Proxy::routing(&baseline, &[("pr-42", &pr)]).await;

    check(
        &proxy,
        "
        no session           |                                             | baseline; reason=no-session
        known                | x-dev-session: pr-42                        | pr-42
        blanks around        | x-dev-session:   pr-42\t                    | pr-42
        twice the same       | x-dev-session: pr-42 + x-dev-session: pr-42 | pr-42
        unknown              | x-dev-session: pr-4                         | baseline; reason=unknown-session
        case counts          | x-dev-session: PR-42                        | baseline; reason=unknown-session
        Host chooses nothing | host: pr-42                                 | baseline; reason=no-session
        nor does a like name | x-dev-sessions: pr-42                       | baseline; reason=no-session
        ",
    )
    .await;
}

#[tokio::test]
async fn baggage_is_read_as_the_specification_says() {
    let (baseline, pr) = two_sites().await;
    let proxy = Proxy::routing(&baseline, &[("pr-42", &pr)]).await;

    check(
        &proxy,
        "
        one member         | baggage: dev-session=pr-42                        | pr-42
        among others       | baggage: a=1,dev-session=pr-42,b=2                | pr-42
        several fields     | baggage: a=1 + baggage: dev-session=pr-42         | pr-42
        blanks             | baggage: a = 1 ,\t dev-session \t=  pr-42  , b=2  | pr-42
        properties         | baggage: dev-session=pr-42;ttl=3;x                | pr-42
        percent encoding   | baggage: dev-session=pr%2D42                      | pr-42
        = in another value | baggage: a=b=dev-session=x,dev-session=pr-42      | pr-42
        the same in both   | x-dev-session: pr-42 + baggage: dev-session=pr-42 | pr-42
        a like key         | baggage: my-dev-session=pr-42                     | baseline; reason=no-session
        as a property      | baggage: a=1;dev-session=pr-42                    | baseline; reason=no-session
        unknown            | baggage: dev-session=pr-43                        | baseline; reason=unknown-session
        ",
    )
    .await;
}

#[tokio::test]
async fn conflicts_and_nonsense_reach_the_baseline_with_the_reason() {
    let (baseline, pr) = two_sites().await;
    let proxy = Proxy::routing(&baseline, &[("pr-42", &pr)]).await;
    let long = format!("x-dev-session: {}", "x".repeat(254));

    check(
        &proxy,
        &format!("
        two fields             | x-dev-session: pr-42 + x-dev-session: pr-43       | baseline; reason=conflict
        header against baggage | x-dev-session: pr-42 + baggage: dev-session=pr-43 | baseline; reason=conflict
        two members            | baggage: dev-session=pr-42,dev-session=pr-43      | baseline; reason=conflict
        too long               | {long}                                            | baseline; reason=malformed
        a blank inside         | x-dev-session: pr 42                              | baseline; reason=malformed
        beyond ASCII           | x-dev-session: pr-42é                             | baseline; reason=malformed
        "),
    )
    .await;
}

#[tokio::test]
async fn exact_wins_over_the_longest_prefix_and_prefixes_over_expressions_in_order() {
    let baseline = Upstream::site("baseline").await;
    let exact = Upstream::site("pr-99").await;
    let (short, long) = (Upstream::site("pr-*").await, Upstream::site("pr-9*").await);
    let (first, second) = (
        Upstream::site("~team-.*").await,
        Upstream::site("~team-a.*|pr-.*").await,
    );
    let proxy = Proxy::routing(
        &baseline,
        &[
            ("~team-.*", &first),
            ("~team-a.*|pr-.*", &second),
            ("pr-*", &short),
            ("pr-9*", &long),
            ("pr-99", &exact),
        ],
    )
    .await;

    check(
        &proxy,
        "
        exact                    | x-dev-session: pr-99    | pr-99
        longest prefix           | x-dev-session: pr-98    | pr-98 at pr-9*
        prefix before expression | x-dev-session: pr-1     | pr-1 at pr-*
        first expression         | x-dev-session: team-a   | team-a at ~team-.*
        anchored                 | x-dev-session: a-team-b | baseline; reason=unknown-session
        ",
    )
    .await;
}

#[tokio::test]
async fn another_header_and_key_can_name_the_session() {
    let (baseline, pr) = two_sites().await;
    let setup = Setup::new()
        .baseline(baseline.address)
        .session("pr-42", pr.address);
    let proxy = setup
        .top("session: { header: X-Preview, baggageKey: preview }")
        .start()
        .await;

    check(
        &proxy,
        "
        header         | x-preview: pr-42       | pr-42
        baggage        | baggage: preview=pr-42 | pr-42
        the old header | x-dev-session: pr-42   | baseline; reason=no-session
        ",
    )
    .await;
}

#[tokio::test]
async fn an_empty_key_turns_baggage_off() {
    let (baseline, pr) = two_sites().await;
    let setup = Setup::new()
        .baseline(baseline.address)
        .session("pr-42", pr.address);
    let proxy = setup.top("session: { baggageKey: \"\" }").start().await;

    check(
        &proxy,
        "
        baggage | baggage: dev-session=pr-42 | baseline; reason=no-session
        ",
    )
    .await;
}

#[tokio::test]
async fn session_headers_arrive_as_they_were_sent() {
    let (baseline, pr) = two_sites().await;
    let proxy = Proxy::routing(&baseline, &[("pr-42", &pr)]).await;

    for way in Way::all() {
        for (session, upstream) in [("pr-42", &pr), ("gone", &baseline)] {
            let baggage = format!("a = 1;p , dev-session={session};x=y,b=%20=2");
            let request = Request::get("/")
                .session(session)
                .header("baggage", &baggage)
                .header("baggage", "c=3");
            way.send(proxy.http(), request).await;

            let fields = upstream.last().fields;
            assert_eq!(fields.all("x-dev-session"), [session], "{way:?}");
            assert_eq!(fields.all("baggage"), [baggage.as_str(), "c=3"], "{way:?}");
        }
    }
}

#[tokio::test]
async fn an_upstream_cannot_forge_the_route() {
    let forged = "HTTP/1.1 200 OK\r\nX-Dev-Session-Route: pr-1\r\nx-dev-session-route: pr-2\r\ncontent-length: 0\r\n\r\n";
    let baseline = Upstream::that_answers("baseline", forged).await;
    let proxy = Proxy::sending_everything_to(&baseline).await;

    for way in Way::both() {
        let answer = way.send(proxy.http(), Request::get("/")).await;

        assert_eq!(
            answer.fields.all("x-dev-session-route"),
            ["baseline; reason=no-session"],
            "{way:?}"
        );
    }
}

#[tokio::test]
async fn the_route_header_can_be_turned_off_and_still_not_be_forged() {
    let forged = "HTTP/1.1 200 OK\r\nx-dev-session-route: pr-1\r\ncontent-length: 0\r\n\r\n";
    let baseline = Upstream::that_answers("baseline", forged).await;
    let setup = Setup::new()
        .baseline(baseline.address)
        .top("responses: { routeHeader: false }");
    let proxy = setup.start().await;

    for way in Way::both() {
        let answer = way.send(proxy.http(), Request::get("/")).await;

        assert_eq!((answer.status, answer.route()), (200, None), "{way:?}");
    }
}

#[tokio::test]
async fn several_endpoints_share_a_session() {
    let baseline = Upstream::site("baseline").await;
    let pods = [
        Upstream::site("a").await,
        Upstream::site("b").await,
        Upstream::site("c").await,
    ];
    let endpoints = pods
        .each_ref()
        .map(|pod| format!("{:?}", pod.address.to_string()))
        .join(", ");
    let setup = Setup::new()
        .baseline(baseline.address)
        .session_yaml("pr-42", &format!("{{ endpoints: [{endpoints}] }}"));
    let proxy = setup.start().await;

    for way in Way::all() {
        let mut client = way.client(proxy.http()).await;
        let mut served = HashMap::<String, usize>::new();
        for _ in 0..90 {
            let answer = client.send(Request::get("/").session("pr-42")).await;
            assert_eq!(answer.route().as_deref(), Some("pr-42"));
            *served.entry(answer.served_by()).or_default() += 1;
        }

        assert_eq!(served.len(), 3, "{way:?}: {served:?}");
        // A fair draw leaves a pod under 10 of 90 about once in ten million runs.
        assert!(
            served.values().all(|count| *count >= 10),
            "{way:?}: {served:?}"
        );
    }
    assert_eq!(baseline.requests(), 0);
}

#[tokio::test]
async fn an_endpoint_without_a_port_takes_the_apps() {
    let (baseline, pr) = two_sites().await;
    let setup = Setup::new()
        .baseline(baseline.address)
        .session_yaml("pr-42", "127.0.0.1");
    let proxy = setup
        .listener(&format!("appPort: {}", pr.address.port()))
        .start()
        .await;

    for way in Way::both() {
        let answer = way
            .send(proxy.http(), Request::get("/").session("pr-42"))
            .await;

        assert_eq!(answer.served_by(), "pr-42", "{way:?}");
    }
}

#[tokio::test]
async fn an_unavailable_session_may_fall_back_to_the_baseline() {
    let baseline = Upstream::site("baseline").await;
    let setup = Setup::new()
        .baseline(baseline.address)
        .session_yaml("pr-42", "{ endpoints: [] }");
    let proxy = setup.listener("onUnavailable: baseline").start().await;

    for way in Way::all() {
        let answer = way
            .send(proxy.http(), Request::get("/").session("pr-42"))
            .await;

        assert_eq!(answer.served_by(), "baseline", "{way:?}");
        assert_eq!(
            answer.route().as_deref(),
            Some("baseline; reason=no-endpoint"),
            "{way:?}"
        );
    }
}

#[tokio::test]
async fn the_proxy_answers_the_probe_session_itself() {
    let (baseline, pr) = two_sites().await;
    let setup = Setup::new()
        .baseline(baseline.address)
        .session("pr-42", pr.address);
    let proxy = setup
        .flag("--target-name")
        .flag("pod/orders-0")
        .start()
        .await;

    for way in Way::all() {
        let answer = way
            .send(
                proxy.http(),
                Request::get("/any")
                    .session("session-proxy-probe")
                    .header("x-session-proxy-nonce", "7f3a"),
            )
            .await;

        assert_eq!(
            (answer.status, answer.route().as_deref()),
            (200, Some("probe")),
            "{way:?}"
        );
        assert_eq!(answer.json()["target"], "pod/orders-0", "{way:?}");
        assert_eq!(answer.json()["nonce"], "7f3a", "{way:?}");
        assert!(answer.json()["instance"].is_string(), "{way:?}");
        assert!(!answer.json()["sessions"].is_null(), "{way:?}");
    }
    let plain = Request::get("/").session("session-proxy-probe");
    let answer = Way::Direct.send(proxy.http(), plain).await;
    assert!(answer.json()["nonce"].is_null(), "nobody asked for one");
    assert_eq!(baseline.requests() + pr.requests(), 0);
}

#[tokio::test]
async fn flags_alone_route_as_the_file_does() {
    let (baseline, pr) = two_sites().await;
    let setup = Setup::new()
        .without_file()
        .flag("--listen")
        .flag("127.0.0.1:0");
    let setup = setup.flag("--baseline").flag(&baseline.address.to_string());
    let proxy = setup
        .flag("--session")
        .flag(&format!("pr-42={}", pr.address))
        .start()
        .await;

    check(
        &proxy,
        "
        known | x-dev-session: pr-42 | pr-42
        none  |                      | baseline; reason=no-session
        ",
    )
    .await;
}

#[tokio::test]
async fn http2_on_an_idle_http1_connection_reaches_its_session() {
    let (baseline, pr) = two_sites().await;
    let proxy = Proxy::routing(&baseline, &[("pr-42", &pr)]).await;
    let sender = Sender::new(proxy.http());

    sender.send(&Request::get("/warm")).await;
    let answer = sender
        .send(
            &Request::get("/x?y")
                .session("pr-42")
                .version(Version::HTTP_2),
        )
        .await;

    assert_eq!((sender.connections(), answer.tries), (1, 1));
    assert_eq!(answer.served_by(), "pr-42");
    assert_eq!(pr.last().target, "/x?y");
    assert_eq!(pr.last().fields.all("host"), ["app.test:8080"]);
}

#[tokio::test]
async fn an_absolute_target_never_chooses_the_destination() {
    let (baseline, other) = (
        Upstream::site("baseline").await,
        Upstream::site("other").await,
    );
    let proxy = Proxy::sending_everything_to(&baseline).await;
    let head = format!(
        "GET http://{0}/x HTTP/1.1\r\nHost: {0}\r\n\r\n",
        other.address
    );

    let answer = raw::exchange(proxy.http(), head).await;

    assert_eq!(answer.served_by(), "baseline");
    assert_eq!(other.connections(), 0);
}
