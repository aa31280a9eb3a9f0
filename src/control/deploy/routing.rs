//! The proof that an intercept is live: requests to each ready replica of the target go where they should.
//!
//! Each port of each replica is asked three things: whether the proxy of this very pod answers the probe
//! session, whether the new session is answered by its PR pod, and whether a request without a
//! session is answered by the baseline. A Service would choose the replica for us, so the pods' own
//! addresses are asked.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use http::{HeaderName, HeaderValue};

use crate::control::intercept::{AppProtocol, Port};
use crate::control::proof::sign::{NONCE, NoSign, Sign};
use crate::control::proof::{Answer, Probe};
use crate::control::workload::Replica;
use crate::plan::PROBE;

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// What is to be proven of every replica.
#[derive(Debug, Clone)]
pub(super) struct Routing<'a> {
    /// Of the session.
    pub(super) header: HeaderName,
    pub(super) session: &'a str,
    pub(super) ports: &'a [Port],
    /// What the one proxy of all replicas calls itself; `None`: each replica has a proxy of its own.
    pub(super) shared_proxy: Option<&'a str>,
}

/// What is known of the replicas, by uid.
#[derive(Debug, Default)]
pub(super) struct Proofs(HashMap<String, Result<(), String>>);

impl Routing<'_> {
    /// Asks every replica that is not proven yet, all at once.
    pub(super) async fn ask(&self, replicas: &[Replica], proofs: &mut Proofs) {
        // One that went away and came back is another.
        proofs
            .0
            .retain(|uid, _| replicas.iter().any(|replica| replica.uid == *uid));
        let open = replicas.iter().filter(|replica| !proofs.has(replica));
        let answers = open.map(async |replica| (replica.uid.clone(), self.prove(replica).await));
        proofs.0.extend(join_all(answers).await);
    }

    async fn prove(&self, replica: &Replica) -> Result<(), String> {
        for port in self.ports {
            let place = replica.door(port.container_port);
            self.prove_port(replica, port, place)
                .await
                .map_err(|why| format!("{} ({place}): {why}", replica.name))?;
        }
        Ok(())
    }

    async fn prove_port(
        &self,
        replica: &Replica,
        port: &Port,
        place: SocketAddr,
    ) -> Result<(), String> {
        let nonce = format!("{:032x}", fastrand::u128(..));
        let sign = [
            (self.header.clone(), HeaderValue::from_static(PROBE)),
            (NONCE, value(&nonce)),
        ];
        let answer = ask(port, place, sign.into()).await;
        let answer = answer.map_err(|why| format!("the probe session: {why}"))?;
        is_sign(&answer, self.shared_proxy.unwrap_or(&replica.name), &nonce)?;

        let tagged = vec![(self.header.clone(), value(self.session))];
        let answer = ask(port, place, tagged).await;
        let answer = answer.map_err(|why| format!("a request of the session: {why}"))?;
        is_of_session(&answer, self.session)?;

        let answer = ask(port, place, Vec::new()).await;
        let answer = answer.map_err(|why| format!("a request without a session: {why}"))?;
        is_of_baseline(&answer)
    }
}

impl Proofs {
    fn has(&self, replica: &Replica) -> bool {
        matches!(self.0.get(&replica.uid), Some(Ok(())))
    }

    /// Whether all of these are proven; not when there are none.
    pub(super) fn cover(&self, replicas: &[Replica]) -> bool {
        !replicas.is_empty() && replicas.iter().all(|replica| self.has(replica))
    }

    /// What is amiss with each that is not.
    pub(super) fn missing(&self) -> String {
        let mut missing: Vec<_> = self.0.values().filter_map(|p| p.clone().err()).collect();
        missing.sort();
        missing.join("; ")
    }
}

async fn ask(
    port: &Port,
    place: SocketAddr,
    headers: Vec<(HeaderName, HeaderValue)>,
) -> Result<Answer, String> {
    let probe = Probe {
        address: place,
        is_http2: port.protocol == AppProtocol::Grpc,
        host: place.to_string(),
        target: "/".to_owned(),
        headers,
        patience: PATIENCE,
    };
    probe.ask().await.map_err(|silence| silence.to_string())
}

fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("names of sessions and numbers are visible ASCII")
}

fn is_sign(answer: &Answer, target: &str, nonce: &str) -> Result<(), String> {
    let sign = Sign::of(answer, nonce).map_err(|instead| match instead {
        NoSign::Elsewhere => format!(
            "it is not intercepted: {} answered the probe session with status {}",
            answered(answer),
            answer.status
        ),
        NoSign::Strange => "the answer to the probe session is not a proxy's".to_owned(),
        NoSign::Stale => "the answer to the probe session is that of another request".to_owned(),
    })?;
    if sign.target.as_deref() != Some(target) {
        let named = sign.target.as_deref().unwrap_or("no target");
        return Err(format!("its requests reach the proxy of {named}"));
    }
    Ok(())
}

fn is_of_session(answer: &Answer, session: &str) -> Result<(), String> {
    let said = if answer.route() != Some(session) {
        format!("{} answered it", answered(answer))
    } else if let Some(error) = answer.proxy_error() {
        format!("the proxy could not reach the PR pod: {error}")
    } else {
        return Ok(());
    };
    Err(format!(
        "a request of the session: {said} (status {})",
        answer.status
    ))
}

fn is_of_baseline(answer: &Answer) -> Result<(), String> {
    let is_of_baseline = answer
        .route()
        .is_none_or(|route| route.split(';').next() == Some("baseline"));
    let said = if !is_of_baseline {
        format!("{} answered it", answered(answer))
    } else if let Some(error) = answer.proxy_error() {
        format!("the proxy could not reach the baseline: {error}")
    } else {
        return Ok(());
    };
    Err(format!(
        "a request without a session: {said} (status {})",
        answer.status
    ))
}

/// Who answered, as far as can be told.
fn answered(answer: &Answer) -> String {
    match answer.route() {
        None => "the app itself".to_owned(),
        Some("probe") => "the proxy itself".to_owned(),
        Some(route) => match route.split_once("; reason=") {
            Some(("baseline", reason)) => format!("the baseline ({reason})"),
            _ => format!("the route {route}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, StatusCode};

    use super::*;
    use crate::control::proof::Ending;
    use crate::control::telepresence::AgentPorts;

    fn answer(headers: &[(&'static str, &str)], body: &str) -> Answer {
        let mut map = HeaderMap::new();
        for (name, text) in headers {
            map.insert(*name, value(text));
        }
        Answer {
            status: StatusCode::OK,
            headers: map,
            body: body.to_owned().into(),
            trailers: HeaderMap::new(),
            ending: Ending::Complete,
            took: Duration::ZERO,
        }
    }

    fn routed(route: &str) -> Answer {
        answer(&[("x-dev-session-route", route)], "")
    }

    #[test]
    fn only_the_proxy_of_this_pod_answers_with_this_nonce() {
        let sign = |route, body| {
            is_sign(
                &answer(&[("x-dev-session-route", route)], body),
                "orders-1",
                "n",
            )
        };
        assert_eq!(
            sign(
                "probe",
                r#"{"instance":"a","target":"orders-1","nonce":"n","sessions":1}"#
            ),
            Ok(())
        );
        for (route, body, expected) in [
            (
                "probe",
                r#"{"instance":"a","target":"orders-2","nonce":"n"}"#,
                "the proxy of orders-2",
            ),
            (
                "probe",
                r#"{"instance":"a","nonce":"n"}"#,
                "the proxy of no target",
            ),
            (
                "probe",
                r#"{"instance":"a","target":"orders-1","nonce":"m"}"#,
                "another request",
            ),
            (
                "probe",
                r#"{"instance":"a","target":"orders-1"}"#,
                "another request",
            ),
            ("probe", "hello", "not a proxy's"),
            ("pr-42", "{}", "not intercepted"),
        ] {
            let said = sign(route, body).unwrap_err();
            assert!(said.contains(expected), "{said}");
        }
        let app = is_sign(&answer(&[], "hello"), "orders-1", "n").unwrap_err();
        assert!(app.contains("the app itself"), "{app}");
    }

    #[test]
    fn a_session_is_answered_by_its_pod_and_by_nothing_else() {
        assert_eq!(is_of_session(&routed("pr-42"), "pr-42"), Ok(()));
        for route in [
            "pr-4",
            "pr-423",
            "baseline; reason=unknown-session",
            "probe",
        ] {
            is_of_session(&routed(route), "pr-42").unwrap_err();
        }
        is_of_session(&answer(&[], ""), "pr-42").unwrap_err();
        let unreachable = [
            ("x-dev-session-route", "pr-42"),
            ("proxy-status", "session-proxy; error=connection_refused"),
        ];
        let said = is_of_session(&answer(&unreachable, ""), "pr-42").unwrap_err();
        assert!(said.contains("connection_refused"), "{said}");
    }

    #[test]
    fn without_a_session_the_baseline_answers_taken_or_not() {
        for untaken in [
            &[][..],
            &[("x-dev-session-route", "baseline; reason=no-session")],
        ] {
            assert_eq!(is_of_baseline(&answer(untaken, "")), Ok(()));
        }
        is_of_baseline(&routed("pr-42")).unwrap_err();
        is_of_baseline(&routed("probe")).unwrap_err();
        is_of_baseline(&routed("baselines")).unwrap_err();
    }

    #[test]
    fn replicas_count_once_they_are_proven_and_none_at_all_is_no_proof() {
        let replica = |number: u8| Replica {
            name: format!("orders-{number}"),
            uid: format!("uid-{number}"),
            ip: [127, 0, 0, number].into(),
            agent: AgentPorts::default(),
        };
        let mut proofs = Proofs::default();
        assert!(!proofs.cover(&[]));
        proofs.0.insert("uid-1".to_owned(), Ok(()));
        proofs
            .0
            .insert("uid-2".to_owned(), Err("orders-2: no".to_owned()));
        assert!(proofs.cover(&[replica(1)]));
        assert!(!proofs.cover(&[replica(1), replica(2)]));
        assert!(!proofs.cover(&[replica(1), replica(3)]));
        assert_eq!(proofs.missing(), "orders-2: no");
    }
}
