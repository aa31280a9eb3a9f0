//! The admin port: health, readiness, metrics, sessions, the effective configuration, the tap and
//! a page for people.
//!
//! It tells and changes nothing, so GET and HEAD are all it knows. It answers nobody who reached
//! it under a foreign name: a web page whose name was pointed at this address (DNS rebinding)
//! could otherwise read what is asked here. Such a request gets 421, Misdirected Request
//! (RFC 9110 §15.5.20).

use std::sync::Arc;
use std::task::Context;
use std::time::SystemTime;

use http::StatusCode;
use tokio::net::TcpListener;
use tokio::sync::watch;

use self::port::{Reply, Taps, content, text};
use crate::plan::Plan;
use crate::record::Journal;

pub mod client;
mod configuration;
mod events;
pub mod port;
mod sessions;

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
    let taps = Taps::default();
    port::serve(listener, Arc::new(Desk { status, taps })).await;
}

/// What a running proxy knows.
struct Desk {
    status: Arc<Status>,
    taps: Taps,
}

impl port::Desk for Desk {
    async fn answer(&self, path: &str, query: &str) -> Option<Reply> {
        Some(match path {
            "/healthz" => text(StatusCode::OK, "alive"),
            "/readyz" => self.readiness(),
            "/metrics" => content(port::METRICS, self.status.journal.metrics().text()),
            "/sessions" => content(port::JSON, sessions::json(&self.status)),
            "/config" => content(port::JSON, configuration::json(&self.status.plan.borrow())),
            "/tap" => self.taps.listen(query, |filter| {
                let mut events = self.status.journal.tap().subscribe(filter);
                move |cx: &mut Context<'_>| events.poll_next(cx)
            }),
            _ => return port::page(path),
        })
    }
}

impl Desk {
    fn readiness(&self) -> Reply {
        let readiness = *self.status.readiness.borrow();
        match readiness {
            Readiness::Ready => text(StatusCode::OK, readiness.word()),
            Readiness::Draining => text(StatusCode::SERVICE_UNAVAILABLE, readiness.word()),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config;
    use std::net::SocketAddr;
    use std::rc::Rc;
    use std::time::{Duration, UNIX_EPOCH};

    use http::Request;
    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::time::timeout;

    use super::port::{TAPS, own_names};
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
