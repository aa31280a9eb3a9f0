//! What is asked of a pod, and by whom it can be told again: every request has an id of its own.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::control::intercept::AppProtocol;
use crate::control::proof::sign::NONCE;
use crate::control::proof::{Answer, Probe, Silence};

/// The query parameter that carries a request's id.
pub(super) const PARAMETER: &str = "session-proxy-probe";

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Requests under way at a time: enough to be quick, too few to be a load.
const AT_ONCE: usize = 16;

/// A port of a pod or of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Door {
    pub address: SocketAddr,
    pub protocol: AppProtocol,
    /// As the app's callers know it.
    pub host: String,
    /// Path, maybe with a query; of a gRPC port a method, or `/` for one that nobody has.
    pub path: String,
}

/// How a request names a session.
#[derive(Debug, Clone, Copy)]
pub(super) enum Tag<'a> {
    None,
    Header(&'a str),
    Baggage(&'a str),
    /// As a browser's request has it that is traced: header, baggage and a trace's parent.
    Traced(&'a str),
}

/// One request, and what came of it.
#[derive(Debug, Clone)]
pub(super) struct Reply {
    /// Known to whoever saw the request's target or its `x-request-id`.
    pub id: String,
    /// Known only to whoever saw its headers: proxies repeat it, and apps that repeat all of them.
    pub nonce: String,
    /// Or why there is none, and what to do about it.
    pub answer: Result<Answer, String>,
    pub took: Duration,
}

/// Asks, never too much at a time and nothing after the deadline.
#[derive(Debug)]
pub(super) struct Asker {
    header: HeaderName,
    /// Empty: there is no baggage.
    baggage_key: String,
    deadline: Instant,
    /// What the deadline was made from.
    timeout: Duration,
    places: Semaphore,
    run: String,
    last: AtomicU32,
}

impl Asker {
    pub(super) fn new(header: HeaderName, baggage_key: &str, timeout: Duration) -> Self {
        Self {
            header,
            baggage_key: baggage_key.to_owned(),
            deadline: Instant::now() + timeout,
            timeout,
            places: Semaphore::new(AT_ONCE),
            run: format!("{:016x}", fastrand::u64(..)),
            last: AtomicU32::new(0),
        }
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The moment after this long, or the deadline.
    pub(super) fn within(&self, patience: Duration) -> Instant {
        self.deadline.min(Instant::now() + patience)
    }

    /// What all ids of this run begin with.
    pub(super) fn run(&self) -> &str {
        &self.run
    }

    pub(super) fn has_baggage(&self) -> bool {
        !self.baggage_key.is_empty()
    }

    /// Sends one request, when it is its turn.
    pub(super) async fn ask(&self, door: &Door, tag: Tag<'_>) -> Reply {
        let id = self.fresh_id();
        let nonce = format!("{:016x}", fastrand::u64(..));
        let place = tokio::time::timeout_at(self.deadline, self.places.acquire()).await;
        let started = Instant::now();
        let patience = PATIENCE.min(self.deadline.saturating_duration_since(started));
        let answer = match place {
            Ok(_place) if !patience.is_zero() => self
                .probe(door, tag, &id, &nonce, patience)
                .ask()
                .await
                .map_err(|silence| in_words(&silence, door.address)),
            _ => Err(self.too_late()),
        };
        Reply {
            id,
            nonce,
            answer,
            took: started.elapsed(),
        }
    }

    /// Why something was not asked at all.
    pub(super) fn too_late(&self) -> String {
        format!("not asked: the {:?} of --timeout were over", self.timeout)
    }

    /// Of a fixed length, so that none is the beginning of another.
    fn fresh_id(&self) -> String {
        let number = self.last.fetch_add(1, Ordering::Relaxed);
        format!("{}{number:08x}", self.run)
    }

    fn probe(&self, door: &Door, tag: Tag<'_>, id: &str, nonce: &str, patience: Duration) -> Probe {
        let mut headers = vec![
            (HeaderName::from_static("x-request-id"), value(id)),
            (NONCE, value(nonce)),
        ];
        headers.extend(self.tags(tag, id));
        Probe {
            address: door.address,
            is_http2: door.protocol == AppProtocol::Grpc,
            host: door.host.clone(),
            target: door.target(id),
            headers,
            patience,
        }
    }

    fn tags(&self, tag: Tag<'_>, id: &str) -> Vec<(HeaderName, HeaderValue)> {
        let header = |session| (self.header.clone(), value(session));
        let baggage = |session: &str| {
            let member = format!("{}={session}", self.baggage_key);
            (HeaderName::from_static("baggage"), value(&member))
        };
        match tag {
            Tag::None => vec![],
            Tag::Header(session) => vec![header(session)],
            Tag::Baggage(session) => vec![baggage(session)],
            Tag::Traced(session) => {
                let trace = format!("00-{}-00f067aa0ba902b7-01", trace_id(id));
                let mut fields = vec![
                    header(session),
                    (HeaderName::from_static("traceparent"), value(&trace)),
                ];
                if self.has_baggage() {
                    fields.push(baggage(session));
                }
                fields
            }
        }
    }
}

impl Door {
    fn target(&self, id: &str) -> String {
        match self.protocol {
            // A method is known by its whole path: with a query it would be another.
            AppProtocol::Grpc if self.path != "/" => self.path.clone(),
            // A service that nobody has: servers which say so repeat its name, and so the id.
            AppProtocol::Grpc => format!("/{PARAMETER}.{id}/Ask?{PARAMETER}={id}"),
            AppProtocol::Http => {
                let joint = if self.path.contains('?') { '&' } else { '?' };
                format!("{}{joint}{PARAMETER}={id}", self.path)
            }
        }
    }
}

/// The id that a request's target carries, as far as it looks like one.
pub(super) fn id_in(target: &str) -> Option<&str> {
    let (_, value) = target.split_once(PARAMETER)?;
    let value = value.strip_prefix(['=', '.'])?;
    let end = value.find(|c: char| !c.is_ascii_hexdigit());
    Some(&value[..end.unwrap_or(value.len())]).filter(|id| !id.is_empty())
}

/// The trace that a request with this id belongs to.
pub(super) fn trace_id(id: &str) -> String {
    format!("{id:0>32}")
}

/// Why there is no answer, and what may be done about it.
fn in_words(silence: &Silence, address: SocketAddr) -> String {
    use std::io::ErrorKind;

    let advice = match silence {
        Silence::Connect(error) if error.kind() == ErrorKind::ConnectionRefused => {
            "; nothing listens there, or rules of a killed agent were left behind"
        }
        Silence::Connect(_) | Silence::Unreachable(_) => {
            "; verify must run in the cluster's network"
        }
        Silence::Broke(_) | Silence::Late(_) | Silence::Request(_) => "",
    };
    format!("{address}: {silence}{advice}")
}

fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text)
        .expect("sessions, keys and ids have been checked to be visible ASCII")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn asker() -> Asker {
        let header = HeaderName::from_static("x-dev-session");
        Asker::new(header, "dev-session", Duration::from_secs(60))
    }

    fn door(protocol: AppProtocol, path: &str) -> Door {
        Door {
            address: ([127, 0, 0, 1], 80).into(),
            protocol,
            host: "orders:80".to_owned(),
            path: path.to_owned(),
        }
    }

    /// What a request says of its session, as `NAME: VALUE` each on a line.
    fn tags(asker: &Asker, tag: Tag<'_>) -> String {
        let fields = asker.tags(tag, "00c0ffee00c0ffee00000001").into_iter();
        let fields = fields.map(|(name, value)| format!("{name}: {}\n", value.to_str().unwrap()));
        fields.collect()
    }

    #[test]
    fn every_request_has_an_id_that_its_target_gives_away() {
        let asker = asker();
        let ids: HashSet<String> = (0..100).map(|_| asker.fresh_id()).collect();
        assert_eq!(ids.len(), 100);
        for id in &ids {
            assert!(id.starts_with(asker.run()) && id.len() == ids.iter().next().unwrap().len());
            for (protocol, path) in [
                (AppProtocol::Http, "/"),
                (AppProtocol::Http, "/a?b=c"),
                (AppProtocol::Grpc, "/"),
            ] {
                assert_eq!(
                    id_in(&door(protocol, path).target(id)),
                    Some(&**id),
                    "{path}"
                );
            }
        }
    }

    #[test]
    fn a_path_keeps_its_query_and_a_method_its_name() {
        for (protocol, path, target) in [
            (AppProtocol::Http, "/a", "/a?session-proxy-probe=1"),
            (AppProtocol::Http, "/a?b=c", "/a?b=c&session-proxy-probe=1"),
            (AppProtocol::Grpc, "/shop.Web/Get", "/shop.Web/Get"),
        ] {
            assert_eq!(door(protocol, path).target("1"), target);
        }
        for target in [
            "/",
            "/session-proxy-probe",
            "/?session-proxy-probe=",
            "/?a=1",
        ] {
            assert_eq!(id_in(target), None, "{target}");
        }
    }

    #[test]
    fn a_session_is_named_as_it_was_asked_for() {
        let asker = asker();
        assert_eq!(tags(&asker, Tag::None), "");
        assert_eq!(tags(&asker, Tag::Header("pr-42")), "x-dev-session: pr-42\n");
        assert_eq!(
            tags(&asker, Tag::Baggage("pr-42")),
            "baggage: dev-session=pr-42\n"
        );
        assert_eq!(
            tags(&asker, Tag::Traced("pr-42")),
            "x-dev-session: pr-42\n\
             traceparent: 00-0000000000c0ffee00c0ffee00000001-00f067aa0ba902b7-01\n\
             baggage: dev-session=pr-42\n"
        );
        let header = HeaderName::from_static("x-dev-session");
        let without = Asker::new(header, "", Duration::from_secs(60));
        assert!(!tags(&without, Tag::Traced("pr-42")).contains("baggage"));
    }

    #[tokio::test]
    async fn nothing_is_asked_when_the_time_is_over() {
        let header = HeaderName::from_static("x-dev-session");
        let late = Asker::new(header, "", Duration::ZERO);

        let reply = late.ask(&door(AppProtocol::Http, "/"), Tag::None).await;

        let why = reply.answer.expect_err("nobody was asked");
        assert!(why.contains("--timeout"), "{why}");
    }
}
