//! What an answer proves. Pure: everything it takes has been asked before.
//!
//! An answer counts for as much as cannot be explained otherwise. That the proxy says which way it
//! took is not enough: another proxy, or the app itself, could say the same. So the proxy's own tap
//! must show the very request, on its way to the very pod; and the pod must show that it came.

use std::net::{IpAddr, SocketAddr};

use super::echo;
use super::question::Reply;
use crate::cli::cluster::Witness;
use crate::control::proof::Answer;
use crate::control::proof::sign::{NoSign, Sign};
use crate::record::line::Line;

/// A sentence that says what holds, or one that says what does not, and what to do about it.
pub(super) type Verdict = Result<String, String>;

/// What should be true of an app's requests.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expected<'a> {
    pub app: &'a str,
    pub session: &'a str,
    pub pr_pod: &'a str,
    /// `None`: there is no such pod, or it does not serve.
    pub pr_pod_ip: Option<IpAddr>,
    pub proxy_pod: &'a str,
    pub witness: Witness,
}

/// What is known of one request beside its answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Evidence<'a> {
    pub tapped: Tapped<'a>,
    /// The PR pod's log has its id.
    pub is_logged: bool,
}

/// What the tap of the app's proxy told of a request, among those of the session.
#[derive(Debug, Clone, Copy)]
pub(super) enum Tapped<'a> {
    Seen(&'a Line),
    NotSeen,
    /// Nobody listened, for this reason.
    Deaf(&'a str),
}

/// Whether the reserved session came back from the proxy that stands before this replica.
pub(super) fn intercepted(reply: &Reply, replica: &str) -> Verdict {
    let answer = heard(reply)?;
    let sign = Sign::of(answer, &reply.nonce).map_err(|instead| {
        let who = match (instead, answer.route()) {
            (NoSign::Strange, _) => {
                return "not intercepted: the answer to the reserved session is not that of a session-proxy".to_owned();
            }
            (NoSign::Stale, _) => {
                return "not intercepted: the answer to the reserved session is that of another request".to_owned();
            }
            (NoSign::Elsewhere, None) => "by the app itself".to_owned(),
            (NoSign::Elsewhere, Some(route)) => format!("by way of {route:?}"),
        };
        format!(
            "not intercepted: the reserved session was answered {who} with {}, not by a session-proxy, so that \
             tagged requests to this replica silently reach the baseline",
            answer.status
        )
    })?;
    let instance = &sign.instance;
    match sign.target.as_deref() {
        Some(target) if target != replica => Err(format!(
            "the reserved session was answered by the proxy of {target}, not of this replica"
        )),
        Some(_) => Ok(format!(
            "the reserved session came back from its own proxy, {instance}"
        )),
        // One that was started by hand may not have been told.
        None => Ok(format!(
            "the reserved session came back from the proxy {instance}"
        )),
    }
}

/// Whether a request with the session, sent to this replica, was answered by the PR pod.
pub(super) fn tagged(
    reply: &Reply,
    replica: &str,
    expected: &Expected<'_>,
    evidence: Evidence<'_>,
) -> Verdict {
    let Expected {
        session,
        pr_pod,
        proxy_pod,
        ..
    } = *expected;
    let answer = heard(reply)?;
    match answer.route() {
        Some(route) if route == session => {}
        Some(route) => return Err(format!("answered by way of {route:?}, not by {pr_pod}")),
        None => {
            return Err(format!(
                "answered by the baseline ({}): no session-proxy was in the way",
                answer.status
            ));
        }
    }
    let line = match evidence.tapped {
        Tapped::Seen(line) => line,
        Tapped::Deaf(why) => {
            return Err(format!(
                "the answer claims the route {session:?}, which cannot be proven: {why}"
            ));
        }
        Tapped::NotSeen => {
            return Err(format!(
                "the answer claims the route {session:?}, but no request with its id passed {proxy_pod}: the claim \
                 is somebody else's"
            ));
        }
    };
    // A tap that tells of one proxy alone does not say of which.
    if let Some(pod) = line.pod.as_deref().filter(|pod| *pod != replica) {
        return Err(format!("it passed the proxy of {pod}, not of this replica"));
    }
    let pr_pod_ip = expected.pr_pod_ip.ok_or_else(|| {
        format!("the answer claims the route {session:?}, but {pr_pod} does not serve")
    })?;
    let upstream = line.upstream.as_deref().unwrap_or("nobody");
    if ip(upstream) != Some(pr_pod_ip) {
        return Err(format!(
            "{proxy_pod} sent it to {upstream}, which is not {pr_pod} ({pr_pod_ip})"
        ));
    }
    let witness = match expected.witness {
        _ if answer.repeats(&reply.id) => ", which repeated the probe's id",
        _ if evidence.is_logged => ", which logged the probe's id",
        Witness::Proxy => "",
        Witness::App => {
            return Err(format!(
                "{pr_pod} neither repeated nor logged the probe's id {}; if the app does neither, use --witness proxy",
                reply.id
            ));
        }
    };
    Ok(format!("{} from {upstream}{witness}", answer.status))
}

/// Whether a request without a session was answered by the baseline.
pub(super) fn untagged(reply: &Reply, expected: &Expected<'_>, evidence: Evidence<'_>) -> Verdict {
    let answer = heard(reply)?;
    let way = match answer.route() {
        None => "from the app".to_owned(),
        Some(route) if is_baseline(route) => format!("by way of {route:?}"),
        Some(route) => {
            return Err(format!("answered by way of {route:?}, not by the baseline"));
        }
    };
    stayed_away(reply, answer, expected, evidence)?;
    Ok(format!("{} {way}", answer.status))
}

/// Whether a request with a session that nobody has was answered by the baseline, and reached it as
/// it was sent.
pub(super) fn unknown(
    reply: &Reply,
    session: &str,
    expected: &Expected<'_>,
    evidence: Evidence<'_>,
) -> Verdict {
    let answer = heard(reply)?;
    match answer.route() {
        None | Some("baseline; reason=unknown-session") => {}
        Some(route) if is_baseline(route) => {
            return Err(format!(
                "by way of {route:?} instead of unknown-session: its headers did not reach the proxy as they were sent"
            ));
        }
        Some(route) => {
            return Err(format!("answered by way of {route:?}, not by the baseline"));
        }
    }
    stayed_away(reply, answer, expected, evidence)?;
    let told = echo::sessions(&answer.body);
    let other = told
        .iter()
        .filter(|hop| hop.app == expected.app)
        .find_map(|hop| hop.session.as_deref().filter(|told| *told != session));
    if let Some(other) = other {
        return Err(format!(
            "the app was told the session {other:?} instead of {session:?}"
        ));
    }
    match (answer.repeats(&reply.nonce), answer.repeats(session)) {
        (_, true) => Ok(format!("{} with headers intact", answer.status)),
        (true, false) => Err(format!(
            "the app repeats its headers, but not the session {session:?}: it was lost on the way"
        )),
        (false, false) => Ok(format!(
            "{}; the app repeats no headers to compare",
            answer.status
        )),
    }
}

/// The answer, as long as an app gave it.
pub(super) fn heard(reply: &Reply) -> Result<&Answer, String> {
    let answer = reply.answer.as_ref().map_err(Clone::clone)?;
    match answer.proxy_error() {
        Some(error) => Err(format!(
            "no app answered, but a proxy with {}: {error}",
            answer.status
        )),
        None => Ok(answer),
    }
}

/// Whether a request that is none of the PR pod's business stayed away from it, as far as anybody saw.
fn stayed_away(
    reply: &Reply,
    answer: &Answer,
    expected: &Expected<'_>,
    evidence: Evidence<'_>,
) -> Result<(), String> {
    let Expected {
        pr_pod, proxy_pod, ..
    } = *expected;
    if let Tapped::Seen(line) = evidence.tapped {
        let upstream = line.upstream.as_deref().unwrap_or("nobody");
        return Err(format!(
            "{proxy_pod} took it for one of the session, and sent it to {upstream}"
        ));
    }
    if evidence.is_logged {
        return Err(format!(
            "it reached {pr_pod}, whose log has its id {}",
            reply.id
        ));
    }
    if answer.repeats(pr_pod) {
        return Err(format!("it reached {pr_pod}, which the answer names"));
    }
    Ok(())
}

fn is_baseline(route: &str) -> bool {
    route.split(';').next().map(str::trim) == Some("baseline")
}

/// The address of an endpoint as a proxy names it: as it was written, with a port or without.
pub(super) fn ip(endpoint: &str) -> Option<IpAddr> {
    let with_port = endpoint.parse::<SocketAddr>().map(|address| address.ip());
    let bare = endpoint.trim_start_matches('[').trim_end_matches(']');
    let ip = with_port.ok().or_else(|| bare.parse().ok());
    ip.as_ref().map(IpAddr::to_canonical)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use bytes::Bytes;
    use http::{HeaderMap, StatusCode};

    use super::*;
    use crate::control::proof::Ending;
    use crate::record::line::rfc3339;

    const ID: &str = "00c0ffee00c0ffee00000001";
    const NONCE: &str = "0123456789abcdef";
    const ASIDE: Evidence<'_> = Evidence {
        tapped: Tapped::NotSeen,
        is_logged: false,
    };

    fn expected(witness: Witness) -> Expected<'static> {
        Expected {
            app: "orders",
            session: "pr-42",
            pr_pod: "pr-orders-pr-42",
            pr_pod_ip: Some([10, 1, 0, 7].into()),
            proxy_pod: "mirrord-proxy-orders",
            witness,
        }
    }

    /// An answer of 200 with these fields, divided by line ends, and this body.
    fn reply(fields: &str, body: &str) -> Reply {
        let mut headers = HeaderMap::new();
        for (name, value) in fields.lines().filter_map(|line| line.split_once(": ")) {
            let name = name.parse::<http::HeaderName>().unwrap();
            headers.append(name, value.parse().unwrap());
        }
        let answer = Answer {
            status: StatusCode::OK,
            headers,
            body: Bytes::copy_from_slice(body.as_bytes()),
            trailers: HeaderMap::new(),
            ending: Ending::Complete,
            took: Duration::ZERO,
        };
        Reply {
            id: ID.to_owned(),
            nonce: NONCE.to_owned(),
            answer: Ok(answer),
            took: Duration::ZERO,
        }
    }

    fn silence() -> Reply {
        Reply {
            answer: Err("10.1.0.1:80: no connection within 5s".to_owned()),
            ..reply("", "")
        }
    }

    fn line(upstream: Option<&str>) -> Line {
        Line {
            time: rfc3339(UNIX_EPOCH),
            client: "127.0.0.1:4711".into(),
            listener: "http".into(),
            method: "GET".into(),
            target: format!("/?session-proxy-probe={ID}"),
            version: "HTTP/1.1".into(),
            session: Some("pr-42".into()),
            route: "pr-42".into(),
            reason: "session".into(),
            status: 200,
            upstream: upstream.map(str::to_owned),
            duration_ms: 1.0,
            overhead_us: 1,
            request_bytes: 0,
            response_bytes: 0,
            retries: 0,
            error: None,
            pod: None,
        }
    }

    /// That it holds, or fails with a sentence in which this stands.
    fn assert_verdict(case: &str, verdict: &Verdict, failure: Option<&str>) {
        match (verdict, failure) {
            (Ok(_), None) => {}
            (Err(said), Some(part)) => assert!(said.contains(part), "{case}: {said}"),
            _ => panic!("{case}: {verdict:?}"),
        }
    }

    #[test]
    fn only_the_reserved_answer_of_its_own_proxy_shows_that_a_replica_is_intercepted() {
        let from = |more: &str| format!(r#"{{"instance":"p-1","nonce":"{NONCE}"{more}}}"#);
        let probe = "x-dev-session-route: probe";
        let silent_baseline = Some("silently reach the baseline");
        for (case, fields, body, failure) in [
            ("a proxy", probe, from(""), None),
            ("its own", probe, from(r#","target":"orders-1""#), None),
            (
                "that of another replica",
                probe,
                from(r#","target":"orders-2""#),
                Some("the proxy of orders-2"),
            ),
            (
                "one of another request",
                probe,
                r#"{"instance":"p-1","nonce":"other"}"#.to_owned(),
                Some("another request"),
            ),
            (
                "one of no request at all",
                probe,
                r#"{"instance":"p-1"}"#.to_owned(),
                Some("another request"),
            ),
            (
                "an app that forges",
                probe,
                "hello".to_owned(),
                Some("not intercepted"),
            ),
            ("an app", "", "hello".to_owned(), silent_baseline),
            (
                "an app behind a proxy that knows no probes",
                "x-dev-session-route: baseline; reason=unknown-session",
                "hello".to_owned(),
                silent_baseline,
            ),
        ] {
            let verdict = intercepted(&reply(fields, &body), "orders-1");
            assert_verdict(case, &verdict, failure);
        }
        assert_verdict(
            "nobody",
            &intercepted(&silence(), "orders-1"),
            Some("10.1.0.1:80"),
        );
    }

    #[test]
    fn a_tagged_answer_counts_when_route_tap_and_pod_agree() {
        let there = line(Some("10.1.0.7:8080"));
        let (elsewhere, nowhere) = (line(Some("10.1.0.8:8080")), line(None));
        let through = |pod: &str| Line {
            pod: Some(pod.to_owned()),
            ..there.clone()
        };
        let (own, others) = (through("orders-1"), through("orders-2"));
        let seen = |line| Tapped::Seen(line);
        let route = "x-dev-session-route: pr-42";
        let repeated = format!("you asked for {ID}");
        for (case, fields, body, tapped, is_logged, failure) in [
            ("repeated", route, &*repeated, seen(&there), false, None),
            ("logged", route, "hello", seen(&there), true, None),
            (
                "by its own proxy",
                route,
                &repeated,
                seen(&own),
                false,
                None,
            ),
            (
                "by another's proxy",
                route,
                &repeated,
                seen(&others),
                false,
                Some("the proxy of orders-2"),
            ),
            (
                "neither",
                route,
                "hello",
                seen(&there),
                false,
                Some("--witness proxy"),
            ),
            (
                "repeated by the proxy only",
                &format!("{route}\nproxy-status: session-proxy; details=\"{ID}\""),
                "hello",
                seen(&there),
                false,
                Some("neither repeated nor logged"),
            ),
            (
                "another pod",
                route,
                &repeated,
                seen(&elsewhere),
                true,
                Some("10.1.0.8:8080, which is not pr-orders-pr-42"),
            ),
            (
                "no pod",
                route,
                &repeated,
                seen(&nowhere),
                true,
                Some("nobody"),
            ),
            (
                "a forged route",
                route,
                &repeated,
                Tapped::NotSeen,
                true,
                Some("somebody else's"),
            ),
            (
                "no tap",
                route,
                &repeated,
                Tapped::Deaf("it is closed"),
                true,
                Some("it is closed"),
            ),
            (
                "not stolen",
                "",
                &repeated,
                Tapped::NotSeen,
                false,
                Some("answered by the baseline"),
            ),
            (
                "not known",
                "x-dev-session-route: baseline; reason=unknown-session",
                &repeated,
                seen(&elsewhere),
                false,
                Some("unknown-session"),
            ),
            (
                "another session",
                "x-dev-session-route: pr-4",
                &repeated,
                Tapped::NotSeen,
                false,
                Some("pr-4"),
            ),
            (
                "the proxy itself",
                &format!("{route}\nproxy-status: session-proxy; error=connection_refused"),
                &repeated,
                seen(&there),
                true,
                Some("connection_refused"),
            ),
        ] {
            let evidence = Evidence { tapped, is_logged };
            let verdict = tagged(
                &reply(fields, body),
                "orders-1",
                &expected(Witness::App),
                evidence,
            );
            assert_verdict(case, &verdict, failure);
        }
        let verdict = tagged(&silence(), "orders-1", &expected(Witness::App), ASIDE);
        assert_verdict("nobody", &verdict, Some("no connection"));
    }

    #[test]
    fn endpoints_are_known_by_their_address_however_it_is_written() {
        for (written, expected) in [
            ("10.1.0.7", Some("10.1.0.7")),
            ("10.1.0.7:8080", Some("10.1.0.7")),
            ("[::ffff:10.1.0.7]:8080", Some("10.1.0.7")),
            ("fd00::7", Some("fd00::7")),
            ("[fd00::7]", Some("fd00::7")),
            ("[fd00::7]:8080", Some("fd00::7")),
            ("orders.local:80", None),
            ("", None),
        ] {
            let expected = expected.map(|ip| ip.parse().unwrap());
            assert_eq!(ip(written), expected, "{written}");
        }
    }

    #[test]
    fn without_the_apps_witness_the_proxys_word_is_enough_but_not_without_a_pod() {
        let there = line(Some("10.1.0.7:8080"));
        let evidence = Evidence {
            tapped: Tapped::Seen(&there),
            is_logged: false,
        };
        let reply = reply("x-dev-session-route: pr-42", "hello");

        assert!(tagged(&reply, "orders-1", &expected(Witness::Proxy), evidence).is_ok());
        let gone = Expected {
            pr_pod_ip: None,
            ..expected(Witness::Proxy)
        };
        assert_verdict(
            "gone",
            &tagged(&reply, "orders-1", &gone, evidence),
            Some("does not serve"),
        );
    }

    #[test]
    fn an_untagged_answer_is_the_baselines_and_the_pr_pod_knows_nothing_of_it() {
        let line = line(Some("10.1.0.7:8080"));
        let baseline = "x-dev-session-route: baseline; reason=no-session";
        for (case, fields, body, tapped, is_logged, failure) in [
            ("not stolen", "", "hello", Tapped::NotSeen, false, None),
            (
                "by the proxy",
                baseline,
                "hello",
                Tapped::NotSeen,
                false,
                None,
            ),
            ("no tap", "", "hello", Tapped::Deaf("closed"), false, None),
            (
                "a session's route",
                "x-dev-session-route: pr-42",
                "hello",
                Tapped::NotSeen,
                false,
                Some("not by the baseline"),
            ),
            (
                "a route that only begins like it",
                "x-dev-session-route: baseline-2",
                "hello",
                Tapped::NotSeen,
                false,
                Some("not by the baseline"),
            ),
            (
                "tapped",
                baseline,
                "hello",
                Tapped::Seen(&line),
                false,
                Some("one of the session"),
            ),
            (
                "logged",
                "",
                "hello",
                Tapped::NotSeen,
                true,
                Some("log has its id"),
            ),
            (
                "named",
                "",
                "I am pr-orders-pr-42",
                Tapped::NotSeen,
                false,
                Some("which the answer names"),
            ),
            (
                "no app",
                "proxy-status: session-proxy; error=connection_refused",
                "",
                Tapped::NotSeen,
                false,
                Some("no app answered"),
            ),
        ] {
            let evidence = Evidence { tapped, is_logged };
            let verdict = untagged(&reply(fields, body), &expected(Witness::App), evidence);
            assert_verdict(case, &verdict, failure);
        }
        let verdict = untagged(&silence(), &expected(Witness::App), ASIDE);
        assert_verdict("nobody", &verdict, Some("no connection"));
    }

    #[test]
    fn an_unknown_session_reaches_the_baseline_as_it_was_sent() {
        let unknown_session = "x-dev-session-route: baseline; reason=unknown-session";
        let echo =
            |session: &str| format!("x-session-proxy-nonce: {NONCE}\nx-dev-session: {session}");
        for (case, fields, body, failure) in [
            ("not stolen", "", "hello".to_owned(), None),
            ("sent back", unknown_session, "hello".to_owned(), None),
            ("headers intact", unknown_session, echo("nobody-1"), None),
            (
                "header lost behind the proxy",
                unknown_session,
                echo(""),
                Some("lost on the way"),
            ),
            (
                "header changed",
                unknown_session,
                r#"{"app":"orders","session":"nobody-2"}"#.to_owned(),
                Some("nobody-2"),
            ),
            (
                "header lost before the proxy",
                "x-dev-session-route: baseline; reason=no-session",
                "hello".to_owned(),
                Some("did not reach the proxy"),
            ),
            (
                "a session's route",
                "x-dev-session-route: pr-42",
                "hello".to_owned(),
                Some("not by the baseline"),
            ),
        ] {
            let reply = reply(fields, &body);
            let verdict = unknown(&reply, "nobody-1", &expected(Witness::App), ASIDE);
            assert_verdict(case, &verdict, failure);
        }
        let logged = Evidence {
            is_logged: true,
            ..ASIDE
        };
        let verdict = unknown(&reply("", ""), "nobody-1", &expected(Witness::App), logged);
        assert_verdict("logged", &verdict, Some("log has its id"));
    }
}
