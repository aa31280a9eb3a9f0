//! The proof that a pod's requests are taken and reach our child: a probe sent to the pod itself.
//!
//! Nothing else proves it. A session that was lost leaves its proxy healthy in every other respect,
//! and the proxy of another session answers probes as well as ours.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use http::{HeaderName, HeaderValue, StatusCode};
use tokio::time::{sleep, timeout};

use super::gather;
use super::ports::Taken;
use crate::control::intercept::{AppProtocol, Intercept, Mode};
use crate::control::proof::sign::{NONCE, NoSign, Sign};
use crate::control::proof::{Answer, Probe, Silence};
use crate::plan::PROBE;

/// How long one probe may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a probe asks for. Seen by the app when nothing takes it.
const PATH: &str = "/session-proxy-probe";

/// What came back from a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// From our own child, on every port.
    Ours,
    /// What came instead.
    Not(String),
    /// Nobody listens on the pod's port.
    Refused,
}

impl Verdict {
    /// What came instead of our child's answer; `None`: that is what came.
    pub(super) fn instead(self) -> Option<String> {
        match self {
            Self::Ours => None,
            Self::Not(what) => Some(what),
            Self::Refused => Some("the pod refuses connections".to_owned()),
        }
    }
}

/// Sends probes for one child.
#[derive(Debug)]
pub(super) struct Witness {
    ports: Vec<Port>,
    header: HeaderName,
    pod: String,
    /// Of our child's proxy; new at every start.
    instance: String,
    /// Where our child counts the probes it has answered, when the pod's answer is the app's: only
    /// copies of requests are taken.
    counts: Option<SocketAddr>,
}

#[derive(Debug)]
struct Port {
    address: SocketAddr,
    is_http2: bool,
}

impl Witness {
    /// Of a child that has these ports, for the pod whose requests come in at these doors.
    ///
    /// # Errors
    /// The child does not answer for itself: what it did instead.
    pub(super) async fn of(
        intercept: &Intercept,
        pod: &str,
        doors: &[SocketAddr],
        child: &Taken,
    ) -> Result<Self, String> {
        let header = HeaderName::try_from(intercept.header.as_str())
            .map_err(|_| format!("{:?} is no header", intercept.header))?;
        let mut witness = Self {
            ports: Vec::new(),
            header,
            pod: pod.to_owned(),
            instance: String::new(),
            counts: (intercept.mode == Mode::Mirror).then_some(child.admin),
        };
        for ((local, app), door) in child.locals.iter().zip(&intercept.ports).zip(doors) {
            let is_http2 = app.protocol == AppProtocol::Grpc;
            let own = Port {
                address: local.address(),
                is_http2,
            };
            let (answer, nonce) = witness.probe(&own).await;
            let answer = answer.map_err(|silence| format!("the proxy is silent: {silence}"))?;
            witness.instance = sign_of(&answer, &nonce)?.instance;
            witness.ports.push(Port {
                address: *door,
                is_http2,
            });
        }
        Ok(witness)
    }

    /// Asks the pod on each of the app's ports.
    pub(super) async fn ask(&self) -> Verdict {
        if let Some(admin) = self.counts {
            return self.ask_for_copies(admin).await;
        }
        let verdicts = join_all(self.ports.iter().map(|port| self.ask_port(port))).await;
        let mut others = verdicts
            .into_iter()
            .filter(|verdict| *verdict != Verdict::Ours);
        others.next().unwrap_or(Verdict::Ours)
    }

    /// The app answers, so what tells is that our child gets a copy of each probe.
    async fn ask_for_copies(&self, admin: SocketAddr) -> Verdict {
        let Some(before) = answered_probes(admin).await else {
            return Verdict::Not("the proxy says nothing".to_owned());
        };
        let answers = join_all(self.ports.iter().map(|port| self.probe(port))).await;
        for (answer, _) in answers {
            match answer {
                Err(Silence::Connect(error)) if error.kind() == ErrorKind::ConnectionRefused => {
                    return Verdict::Refused;
                }
                Err(silence) => return Verdict::Not(silence.to_string()),
                Ok(_) => {}
            }
        }
        let all = timeout(PATIENCE, async {
            while answered_probes(admin)
                .await
                .is_none_or(|now| now < before + self.ports.len())
            {
                sleep(Duration::from_millis(100)).await;
            }
        });
        match all.await {
            Ok(()) => Verdict::Ours,
            Err(_) => Verdict::Not("no copy of the probe arrived".to_owned()),
        }
    }

    async fn ask_port(&self, port: &Port) -> Verdict {
        let (answer, nonce) = self.probe(port).await;
        match answer {
            Ok(answer) => self.judge(&answer, &nonce),
            Err(Silence::Connect(error)) if error.kind() == ErrorKind::ConnectionRefused => {
                Verdict::Refused
            }
            Err(Silence::Connect(error)) => Verdict::Not(format!(
                "{} cannot be reached ({error}); does a network policy keep us away?",
                port.address
            )),
            Err(silence) => Verdict::Not(format!("{}: {silence}", port.address)),
        }
    }

    fn judge(&self, answer: &Answer, nonce: &str) -> Verdict {
        let sign = match sign_of(answer, nonce) {
            Ok(sign) => sign,
            Err(what) => return Verdict::Not(what),
        };
        if sign.instance != self.instance {
            return Verdict::Not(format!(
                "another proxy answered ({}, for {})",
                sign.instance,
                sign.target.as_deref().unwrap_or("no target")
            ));
        }
        if sign.target.as_deref() != Some(&self.pod) {
            return Verdict::Not("our proxy answered for another pod".to_owned());
        }
        Verdict::Ours
    }

    async fn probe(&self, port: &Port) -> (Result<Answer, Silence>, String) {
        let nonce = format!("{:016x}", fastrand::u64(..));
        let value = HeaderValue::try_from(&nonce).expect("hexadecimal is visible ASCII");
        let probe = Probe {
            address: port.address,
            is_http2: port.is_http2,
            host: port.address.to_string(),
            target: PATH.to_owned(),
            headers: vec![
                (self.header.clone(), HeaderValue::from_static(PROBE)),
                (NONCE, value),
            ],
            patience: PATIENCE,
        };
        (probe.ask().await, nonce)
    }
}

/// How many probes a proxy has answered; `None`: it does not say.
async fn answered_probes(admin: SocketAddr) -> Option<usize> {
    let metrics = gather::ask(admin, "/metrics").await?;
    let counters = metrics.lines().filter(|line| {
        line.starts_with("session_proxy_requests_total{") && line.contains(r#"reason="probe""#)
    });
    let count = |line: &str| line.rsplit(' ').next()?.parse::<usize>().ok();
    Some(counters.filter_map(count).sum())
}

/// Whose answer it is, if a proxy gave it to this very probe.
fn sign_of(answer: &Answer, nonce: &str) -> Result<Sign, String> {
    Sign::of(answer, nonce).map_err(|instead| match (instead, answer.route()) {
        (NoSign::Elsewhere, Some(route)) => {
            format!("a proxy sent the probe on ({}, {route})", answer.status)
        }
        (NoSign::Elsewhere, None) => format!("the app answered the probe ({})", answer.status),
        (NoSign::Strange, _) if answer.status != StatusCode::OK => {
            format!("a proxy answered the probe with {}", answer.status)
        }
        (NoSign::Strange, _) => "a proxy of another version answered the probe".to_owned(),
        (NoSign::Stale, _) => "the answer was to another probe".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::HeaderMap;

    use super::*;
    use crate::control::proof::{Ending, ROUTE};

    fn answer(status: u16, route: Option<&'static str>, body: &'static str) -> Answer {
        let mut headers = HeaderMap::new();
        if let Some(route) = route {
            headers.insert(ROUTE, HeaderValue::from_static(route));
        }
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers,
            body: Bytes::from_static(body.as_bytes()),
            trailers: HeaderMap::new(),
            ending: Ending::Complete,
            took: Duration::ZERO,
        }
    }

    #[test]
    fn only_our_own_child_s_answer_to_this_probe_counts() {
        let witness = Witness {
            ports: Vec::new(),
            header: HeaderName::from_static("x-dev-session"),
            pod: "orders-1".into(),
            instance: "i1".into(),
            counts: None,
        };
        let ours = r#"{"instance":"i1","target":"orders-1","nonce":"n","sessions":3}"#;
        for (answer, expected) in [
            (answer(200, Some("probe"), ours), None),
            (
                answer(404, None, ""),
                Some("the app answered the probe (404 Not Found)"),
            ),
            (
                answer(200, Some("baseline; reason=unknown-session"), ours),
                Some("a proxy sent the probe on (200 OK, baseline; reason=unknown-session)"),
            ),
            (
                answer(
                    200,
                    Some("probe"),
                    r#"{"instance":"i1","target":"orders-1"}"#,
                ),
                Some("the answer was to another probe"),
            ),
            (
                answer(
                    200,
                    Some("probe"),
                    r#"{"instance":"i1","target":"orders-1","nonce":"m"}"#,
                ),
                Some("the answer was to another probe"),
            ),
            (
                answer(
                    200,
                    Some("probe"),
                    r#"{"instance":"i2","target":"orders-1","nonce":"n"}"#,
                ),
                Some("another proxy answered (i2, for orders-1)"),
            ),
            (
                answer(
                    200,
                    Some("probe"),
                    r#"{"instance":"i1","target":"orders-2","nonce":"n"}"#,
                ),
                Some("our proxy answered for another pod"),
            ),
            (
                answer(200, Some("probe"), "hello"),
                Some("a proxy of another version answered the probe"),
            ),
            (
                answer(503, Some("probe"), ours),
                Some("a proxy answered the probe with 503 Service Unavailable"),
            ),
        ] {
            let verdict = witness.judge(&answer, "n");

            let expected = expected.map_or(Verdict::Ours, |what| Verdict::Not(what.to_owned()));
            assert_eq!(verdict, expected);
        }
    }
}
