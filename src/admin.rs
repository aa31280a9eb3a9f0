//! The admin port: health, readiness, metrics, sessions, the effective configuration, the tap and
//! a page for people.
//!
//! It tells and changes nothing, so GET and HEAD are all it knows. It answers nobody who reached
//! it under a foreign name: a web page whose name was pointed at this address (DNS rebinding)
//! could otherwise read what is asked here. Such a request gets 421, Misdirected Request
//! (RFC 9110 §15.5.20).

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, RETRY_AFTER,
    X_CONTENT_TYPE_OPTIONS,
};
use http::uri::Authority;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::{Either, Full};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use percent_encoding::percent_decode_str;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use self::events::Events;
use crate::plan::Plan;
use crate::record::Journal;
use crate::record::tap::Filter;

pub mod client;
mod configuration;
mod events;
mod sessions;

/// Connections at a time. The next one waits in the kernel's queue.
const CONNECTIONS: usize = 256;

/// Of those, taps, which may last for days; the rest is left for probes and scrapes.
const TAPS: usize = 32;

/// How long a client may take to send a request's head.
const HEAD_PATIENCE: Duration = Duration::from_secs(3);

/// How long a client may take for one exchange that is not a tap.
const EXCHANGE_PATIENCE: Duration = Duration::from_secs(30);

/// Only our own files may run or be asked; nobody may frame the page.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What the admin port tells about.
#[derive(Debug)]
pub struct Status {
    /// The table in force.
    pub plan: watch::Receiver<Arc<Plan>>,
    /// Metrics and tap.
    pub journal: Arc<Journal>,
    /// Whether new requests are welcome.
    pub readiness: watch::Receiver<Readiness>,
    /// How the newest configuration fared.
    pub last_reload: watch::Receiver<Reload>,
}

/// Whether new requests are welcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// Listening, with a table.
    Ready,
    /// Told to end; what comes is still served.
    Draining,
}

impl Readiness {
    /// The word `/readyz` and `/sessions` use.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Draining => "draining",
        }
    }
}

/// How reading a configuration ended; the one at start counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reload {
    /// Whether the configuration is in force.
    pub result: ReloadResult,
    /// When it was read.
    pub at: SystemTime,
    /// Why it was refused, or what of it waits for a restart. One sentence each.
    pub problems: Vec<String>,
}

/// Whether a configuration that was read is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReloadResult {
    /// It is in force.
    Ok,
    /// The one before it still is.
    Failed,
}

/// Serves the admin port until dropped; all its connections end with it.
pub async fn serve(listener: TcpListener, status: Arc<Status>) {
    let desk = Arc::new(Desk {
        status,
        own_names: own_names(),
        taps: Arc::new(Semaphore::new(TAPS)),
    });
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let place = Arc::clone(&places)
            .acquire_owned()
            .await
            .expect("never closed");
        match listener.accept().await {
            Ok((socket, _client)) => {
                let desk = Arc::clone(&desk);
                connections.spawn(async move {
                    serve_connection(socket, desk).await;
                    drop(place);
                });
            }
            Err(error) => {
                // Most likely out of file descriptors: asking again at once would only spin.
                tracing::warn!(%error, "admin port: accept failed");
                sleep(Duration::from_millis(100)).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

/// One request, one answer. Connections are not kept: an idle one would hold a probe's place.
async fn serve_connection(socket: TcpStream, desk: Arc<Desk>) {
    let is_tap = Arc::new(AtomicBool::new(false));
    let tells_tap = Arc::clone(&is_tap);
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let response = desk.answer(&request);
        tells_tap.store(
            matches!(response.body(), Either::Right(_)),
            Ordering::Relaxed,
        );
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .keep_alive(false)
        .serve_connection(TokioIo::new(socket), service);
    tokio::pin!(connection);
    // What a client does wrong here is of no interest to anybody.
    let ended = timeout(EXCHANGE_PATIENCE, &mut connection).await;
    if ended.is_err() && is_tap.load(Ordering::Relaxed) {
        let _ = connection.await;
    }
}

type Reply = Response<Either<Full<Bytes>, Events>>;

/// What all connections of the port share.
struct Desk {
    status: Arc<Status>,
    own_names: Vec<String>,
    taps: Arc<Semaphore>,
}

impl Desk {
    fn answer<B>(&self, request: &Request<B>) -> Reply {
        if let Err((status, why)) = self.check_host(request) {
            return text(status, why);
        }
        if request.method() != Method::GET && request.method() != Method::HEAD {
            let reply = text(
                StatusCode::METHOD_NOT_ALLOWED,
                "this port only tells; use GET",
            );
            return with(reply, ALLOW, "GET, HEAD");
        }
        let Some(resource) = Resource::at(request.uri().path()) else {
            return text(
                StatusCode::NOT_FOUND,
                "there is nothing here; / lists what there is",
            );
        };
        match resource {
            Resource::Alive => text(StatusCode::OK, "alive"),
            Resource::Ready => self.readiness(),
            Resource::Metrics => content(
                "text/plain; version=0.0.4; charset=utf-8",
                self.status.journal.metrics().text(),
            ),
            Resource::Sessions => content("application/json", sessions::json(&self.status)),
            Resource::Configuration => content(
                "application/json",
                configuration::json(&self.status.plan.borrow()),
            ),
            Resource::Tap => self.tap(request.uri().query().unwrap_or("")),
            Resource::Page => {
                let page = content("text/html; charset=utf-8", include_str!("admin/page.html"));
                with(page, CONTENT_SECURITY_POLICY, PAGE_POLICY)
            }
            Resource::Script => content(
                "text/javascript; charset=utf-8",
                include_str!("admin/page.js"),
            ),
            Resource::Style => content("text/css; charset=utf-8", include_str!("admin/page.css")),
        }
    }

    fn readiness(&self) -> Reply {
        let readiness = *self.status.readiness.borrow();
        match readiness {
            Readiness::Ready => text(StatusCode::OK, readiness.word()),
            Readiness::Draining => text(StatusCode::SERVICE_UNAVAILABLE, readiness.word()),
        }
    }

    fn tap(&self, query: &str) -> Reply {
        let filter = match filter(query) {
            Ok(filter) => filter,
            Err(why) => return text(StatusCode::BAD_REQUEST, why),
        };
        let Ok(place) = Arc::clone(&self.taps).try_acquire_owned() else {
            let reply = text(
                StatusCode::SERVICE_UNAVAILABLE,
                "too many taps; end one of them",
            );
            return with(reply, RETRY_AFTER, "1");
        };
        let events = Events::new(self.status.journal.tap().subscribe(filter), place);
        reply(StatusCode::OK, "text/event-stream", Either::Right(events))
    }

    /// Refuses a request that names a host which is not us (421), or names none where HTTP wants
    /// one (400, RFC 9112 §3.2). The target's own host counts as well as the field.
    fn check_host<B>(&self, request: &Request<B>) -> Result<(), (StatusCode, &'static str)> {
        let mut fields = request.headers().get_all(HOST).iter();
        let field = match (fields.next(), fields.next()) {
            (Some(field), None) => {
                let authority = Authority::try_from(field.as_bytes());
                Some(authority.map_err(|_| (StatusCode::BAD_REQUEST, "host is not a host"))?)
            }
            (None, None) if request.version() < Version::HTTP_11 => None,
            (None, None) => return Err((StatusCode::BAD_REQUEST, "host is missing")),
            (_, Some(_)) => return Err((StatusCode::BAD_REQUEST, "host is there twice")),
        };
        let foreign = |host: &Authority| !self.is_own(host.host());
        if field.iter().chain(request.uri().authority()).any(foreign) {
            let why = "ask for this port by IP address, as localhost, or by the pod's host name";
            return Err((StatusCode::MISDIRECTED_REQUEST, why));
        }
        Ok(())
    }

    fn is_own(&self, host: &str) -> bool {
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        let name = host.strip_suffix('.').unwrap_or(host);
        bare.parse::<IpAddr>().is_ok()
            || name.eq_ignore_ascii_case("localhost")
            || self
                .own_names
                .iter()
                .any(|own| name.eq_ignore_ascii_case(own))
    }
}

/// What there is to ask for.
enum Resource {
    Alive,
    Ready,
    Metrics,
    Sessions,
    Configuration,
    Tap,
    Page,
    Script,
    Style,
}

impl Resource {
    fn at(path: &str) -> Option<Self> {
        Some(match path {
            "/healthz" => Self::Alive,
            "/readyz" => Self::Ready,
            "/metrics" => Self::Metrics,
            "/sessions" => Self::Sessions,
            "/config" => Self::Configuration,
            "/tap" => Self::Tap,
            "/" => Self::Page,
            "/page.js" => Self::Script,
            "/page.css" => Self::Style,
            _ => return None,
        })
    }
}

/// The names this machine or pod has for itself.
fn own_names() -> Vec<String> {
    // Kubernetes sets the variable; the file is right where it was taken away.
    let told = std::env::var("HOSTNAME").ok();
    let kernel = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let names = told
        .into_iter()
        .chain(kernel)
        .map(|name| name.trim().to_owned());
    names.filter(|name| !name.is_empty()).collect()
}

/// `session=` and `status=` of a query; empty ones and all others say nothing.
fn filter(query: &str) -> Result<Filter, &'static str> {
    let mut filter = Filter::default();
    for (key, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        let value = percent_decode_str(value).decode_utf8();
        let value = value.map_err(|_| "the query is not UTF-8")?;
        match key {
            "session" if !value.is_empty() => filter.session = Some(value.into_owned()),
            "status" if !value.is_empty() => filter.status = Some(value.parse()?),
            _ => {}
        }
    }
    Ok(filter)
}

fn text(status: StatusCode, line: &str) -> Reply {
    reply(
        status,
        "text/plain; charset=utf-8",
        Either::Left(Full::from(format!("{line}\n"))),
    )
}

fn content(kind: &'static str, body: impl Into<Bytes>) -> Reply {
    reply(StatusCode::OK, kind, Either::Left(Full::new(body.into())))
}

fn reply(status: StatusCode, kind: &'static str, body: Either<Full<Bytes>, Events>) -> Reply {
    let mut reply = Response::new(body);
    *reply.status_mut() = status;
    let reply = with(reply, CONTENT_TYPE, kind);
    let reply = with(reply, CACHE_CONTROL, "no-store");
    let reply = with(reply, X_CONTENT_TYPE_OPTIONS, "nosniff");
    // No other site's page may embed what is told here, not even where it cannot read it.
    with(
        reply,
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    )
}

fn with(mut reply: Reply, name: HeaderName, value: &'static str) -> Reply {
    reply
        .headers_mut()
        .insert(name, HeaderValue::from_static(value));
    reply
}

#[cfg(test)]
mod tests {
    use crate::config;
    use std::net::SocketAddr;
    use std::rc::Rc;
    use std::time::UNIX_EPOCH;

    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    use crate::metrics::Metrics;

    use crate::record::{AccessFormat, Ledger, Record};

    /// An admin port on loopback, and both ends of what it tells about.
    struct Port {
        address: SocketAddr,
        journal: Arc<Journal>,
        ledger: Rc<Ledger>,
        readiness_tx: watch::Sender<Readiness>,
        _plan_tx: watch::Sender<Arc<Plan>>,
        _reload_tx: watch::Sender<Reload>,
    }

    impl Port {
        async fn open() -> Self {
            let metrics = Metrics::new("1", "c");
            let (plan_tx, plan) = watch::channel(Arc::new(plan(&metrics)));
            let (readiness_tx, readiness) = watch::channel(Readiness::Ready);
            let (reload_tx, last_reload) = watch::channel(Reload {
                result: ReloadResult::Failed,
                at: UNIX_EPOCH,
                problems: vec!["sessions.pr-42: <no> endpoint".into()],
            });
            let journal = Journal::new(Arc::clone(&metrics), AccessFormat::Off);
            let ledger = Ledger::new(&journal, &metrics.listener("http"));
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let status = Status {
                plan,
                journal: Arc::clone(&journal),
                readiness,
                last_reload,
            };
            tokio::spawn(serve(listener, Arc::new(status)));
            Self {
                address,
                journal,
                ledger,
                readiness_tx,
                _plan_tx: plan_tx,
                _reload_tx: reload_tx,
            }
        }

        /// One exchange of the proxy for `session`.
        fn exchange(&self, session: &str) {
            let request = Request::builder().uri("/orders").body(()).unwrap();
            let mut record = Record::open(&self.ledger, &request, self.address);
            let route = self.journal.metrics().route("baseline");
            record.routed(&route, "unknown-session", Some(session));
            record.answered(502);
        }

        /// Sends these bytes; everything that comes back.
        async fn send(&self, request: &str) -> String {
            let mut socket = TcpStream::connect(self.address).await.unwrap();
            socket.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            socket.read_to_string(&mut answer).await.unwrap();
            answer
        }

        async fn ask(&self, method: &str, path: &str) -> String {
            self.send(&format!(
                "{method} {path} HTTP/1.1\r\nhost: {}\r\n\r\n",
                self.address
            ))
            .await
        }

        async fn json(&self, path: &str) -> Value {
            let answer = self.ask("GET", path).await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
        }

        /// A tap that has begun to listen.
        async fn tap(&self, query: &str) -> TcpStream {
            let mut socket = TcpStream::connect(self.address).await.unwrap();
            let request = format!("GET /tap{query} HTTP/1.1\r\nhost: localhost\r\n\r\n");
            socket.write_all(request.as_bytes()).await.unwrap();
            read_until(&mut socket, ": listening").await;
            socket
        }
    }

    async fn read_until(socket: &mut TcpStream, sign: &str) -> String {
        let mut seen = Vec::new();
        loop {
            let read = timeout(Duration::from_secs(10), socket.read_buf(&mut seen)).await;
            assert_ne!(read.expect("in time").unwrap(), 0, "closed");
            let text = String::from_utf8_lossy(&seen);
            if text.contains(sign) {
                return text.into_owned();
            }
        }
    }

    fn plan(metrics: &Arc<Metrics>) -> Plan {
        let file = "
            listeners:
              - { name: http, address: '0.0.0.0:18080', appPort: 8080, baseline: 127.0.0.1:8080 }
            sessions:
              pr-42: { endpoints: [10.0.0.1, '10.0.0.2:90'] }
              pr-43: { endpoints: [] }
            admin: { address: 'off' }
            limits: { connections: 1 }
            timeouts: { connect: 250ms }
        ";
        let file = config::File::parse("test.yaml", file.as_bytes()).expect("it is YAML");
        Plan::compile(&file, metrics).expect("it is valid")
    }

    #[tokio::test]
    async fn readiness_follows_the_proxy_and_health_does_not() {
        let port = Port::open().await;
        assert!(
            port.ask("GET", "/readyz")
                .await
                .ends_with("\r\n\r\nready\n")
        );
        assert_eq!(client::healthcheck(port.address).await, Ok(()));

        port.readiness_tx.send_replace(Readiness::Draining);

        let answer = port.ask("GET", "/readyz").await;
        assert!(
            answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("draining\n"),
            "{answer}"
        );
        let unready = client::healthcheck(port.address).await;
        assert_eq!(unready, Err("not ready: draining".to_owned()));
        assert!(
            port.ask("GET", "/healthz")
                .await
                .starts_with("HTTP/1.1 200 ")
        );
    }

    #[tokio::test]
    async fn sessions_tell_their_state_and_their_numbers() {
        let port = Port::open().await;
        port.exchange("pr-7");

        let answer = port.json("/sessions").await;

        assert_eq!(
            answer,
            json!({
                "readiness": "ready",
                "sessions": [
                    {
                        "name": "pr-42", "source": "file", "state": "live", "requests": 0, "errors": 0,
                        "endpoints": [
                            { "address": "10.0.0.1", "state": "good" },
                            { "address": "10.0.0.2:90", "state": "good" },
                        ],
                    },
                    {
                        "name": "pr-43", "source": "file", "state": "empty", "endpoints": [],
                        "requests": 0, "errors": 0,
                    },
                ],
                "baselines": [{
                    "listener": "http", "onUnavailable": "error", "state": "live",
                    "endpoints": [{ "address": "127.0.0.1:8080", "state": "good" }],
                    "requests": 1, "errors": 1,
                }],
                "lastReload": {
                    "result": "failed", "at": "1970-01-01T00:00:00.000Z",
                    "problems": ["sessions.pr-42: <no> endpoint"],
                },
            })
        );
    }

    #[tokio::test]
    async fn the_configuration_is_told_in_the_shape_of_the_file() {
        let port = Port::open().await;

        let answer = port.json("/config").await;

        assert_eq!(
            answer["session"],
            json!({ "header": "x-dev-session", "baggageKey": "dev-session" })
        );
        assert_eq!(
            answer["sessions"]["pr-42"]["endpoints"],
            json!(["10.0.0.1", "10.0.0.2:90"])
        );
        assert_eq!(
            answer["listeners"][0]["baseline"],
            json!(["127.0.0.1:8080"])
        );
        assert_eq!(answer["timeouts"]["drain"], "30s");
        assert_eq!(answer["timeouts"]["connect"], "250ms");
        assert_eq!(answer["admin"], json!({ "address": "off" }));
    }

    #[tokio::test]
    async fn metrics_and_the_page_are_there() {
        let port = Port::open().await;
        port.exchange("pr-7");

        let metrics = port.ask("GET", "/metrics").await;
        let page = port.ask("GET", "/").await;
        let head = port.ask("HEAD", "/page.js").await;

        assert!(
            metrics.contains("content-type: text/plain; version=0.0.4"),
            "{metrics}"
        );
        assert!(
            metrics.contains(r#"reason="unknown-session",route="baseline"} 1"#),
            "{metrics}"
        );
        assert!(page.contains("content-security-policy: default-src 'none'; script-src 'self'"));
        assert!(page.contains("<script src=\"page.js\""));
        assert!(
            head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"),
            "{head}"
        );
    }

    #[test]
    fn the_page_asks_no_other_host() {
        for file in [
            include_str!("admin/page.html"),
            include_str!("admin/page.js"),
            include_str!("admin/page.css"),
        ] {
            assert!(!file.contains("//") || !file.contains("http"), "{file}");
            assert!(!file.contains("innerHTML"));
        }
    }

    #[tokio::test]
    async fn only_get_and_head_are_known_and_only_our_paths() {
        let port = Port::open().await;

        for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
            let answer = port.ask(method, "/sessions").await;
            assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
            assert!(answer.contains("allow: GET, HEAD\r\n"), "{answer}");
        }
        for path in ["/nothing", "/sessions/", "//", "/../etc/passwd"] {
            let answer = port.ask("GET", path).await;
            assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
        }
    }

    #[tokio::test]
    async fn requests_under_a_foreign_name_are_refused() {
        let port = Port::open().await;
        let own = own_names().first().cloned().unwrap_or("localhost".into());

        for (head, status) in [
            ("GET /healthz HTTP/1.1\r\nhost: localhost:9901", "200"),
            ("GET /healthz HTTP/1.1\r\nhost: LOCALHOST.", "200"),
            ("GET /healthz HTTP/1.1\r\nhost: 10.1.2.3:9901", "200"),
            ("GET /healthz HTTP/1.1\r\nhost: [::1]:9901", "200"),
            (&format!("GET /healthz HTTP/1.1\r\nhost: {own}:9901"), "200"),
            ("GET /healthz HTTP/1.0", "200"),
            ("GET /healthz HTTP/1.1", "400"),
            (
                "GET /healthz HTTP/1.1\r\nhost: localhost\r\nhost: evil.example",
                "400",
            ),
            ("GET /healthz HTTP/1.1\r\nhost: a b", "400"),
            ("GET /healthz HTTP/1.1\r\nhost: evil.example", "421"),
            (
                "GET /healthz HTTP/1.1\r\nhost: localhost.evil.example",
                "421",
            ),
            (
                "GET /healthz HTTP/1.1\r\nhost: 127.0.0.1.evil.example:9901",
                "421",
            ),
            (
                "GET /healthz HTTP/1.1\r\nhost: localhost@evil.example",
                "421",
            ),
            (
                "GET http://evil.example/healthz HTTP/1.1\r\nhost: localhost",
                "421",
            ),
            ("POST /nothing HTTP/1.1\r\nhost: evil.example", "421"),
        ] {
            let answer = port.send(&format!("{head}\r\n\r\n")).await;
            assert_eq!(answer.split(' ').nth(1), Some(status), "{head}: {answer}");
        }
    }

    #[tokio::test]
    async fn a_tap_tells_what_it_was_asked_for() {
        let port = Port::open().await;
        let mut socket = port.tap("?session=pr%2D42&status=5xx").await;

        port.exchange("pr-41");
        port.exchange("pr-42");

        let seen = read_until(&mut socket, "}\n\n").await;
        assert!(
            seen.contains("data: {") && seen.contains(r#""session":"pr-42""#),
            "{seen}"
        );
        assert!(!seen.contains("pr-41"), "{seen}");
        drop(socket);
        while port.journal.tap().is_watched() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_tap_that_does_not_read_loses_events_and_they_are_counted() {
        let port = Port::open().await;
        let _socket = port.tap("").await;

        while port.journal.metrics().tap_dropped.get() == 0 {
            (0..100).for_each(|_| port.exchange("pr-42"));
            tokio::task::yield_now().await;
        }

        assert!(
            port.ask("GET", "/healthz")
                .await
                .starts_with("HTTP/1.1 200 ")
        );
    }

    #[tokio::test]
    async fn taps_leave_places_for_probes() {
        let port = Port::open().await;
        let mut taps = Vec::new();
        for _ in 0..TAPS {
            taps.push(port.tap("").await);
        }

        assert!(port.ask("GET", "/tap").await.starts_with("HTTP/1.1 503 "));
        assert_eq!(client::healthcheck(port.address).await, Ok(()));
    }

    #[tokio::test]
    async fn a_status_that_is_none_is_explained() {
        let port = Port::open().await;

        let refused = client::tap(port.address, None, Some("5".into()), false).await;

        assert!(refused.unwrap_err().contains("a status is three digits"));
    }

    #[tokio::test]
    async fn a_port_nobody_listens_on_is_an_error_with_advice() {
        let free = TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap();

        let error = client::healthcheck(free).await.unwrap_err();

        assert!(error.ends_with("is the proxy running?"), "{error}");
    }
}
