//! An app of a stack, at an address of its own: it says who it is and what it was told, and calls the
//! apps behind it. How well it does that is a matter of its [`Habits`].

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::{Map, Value, json};
use session_proxy::control::proof::Probe;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

use super::PATIENCE;

/// What an app hands on to those it calls, when it does.
const PASSED_ON: [&str; 3] = ["x-dev-session", "baggage", "traceparent"];

/// A running app; gone when it is dropped.
pub struct App {
    pub address: SocketAddr,
    log: Arc<Mutex<String>>,
    task: JoinHandle<()>,
}

/// What an app does with a request.
#[derive(Debug, Clone)]
pub struct Habits {
    /// Its answer has the request's target and headers.
    pub repeats: bool,
    /// Its log has the request's target.
    pub logs: bool,
    /// It hands the session on.
    pub passes_on: bool,
    /// It claims the route of whatever session it is asked for.
    pub forges: bool,
    /// It tells those it calls of this session instead.
    pub rewrites: Option<&'static str>,
    pub status: StatusCode,
    pub takes: Duration,
}

struct Character {
    name: String,
    pod: String,
    calls: Vec<SocketAddr>,
    habits: Habits,
    log: Arc<Mutex<String>>,
}

/// An address that nothing else of this process has.
pub fn fresh_ip() -> Ipv4Addr {
    static LAST: AtomicU16 = AtomicU16::new(0);
    let [high, low] = LAST.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    // All of 127.0.0.0/8 is this machine; other runs on it most likely have another second byte.
    let process = u8::try_from(1 + std::process::id() % 250).expect("at most 250");
    Ipv4Addr::new(127, process, 2 * high + low / 128, 1 + low % 128)
}

impl Default for Habits {
    fn default() -> Self {
        Self {
            repeats: true,
            logs: true,
            passes_on: true,
            forges: false,
            rewrites: None,
            status: StatusCode::OK,
            takes: Duration::ZERO,
        }
    }
}

impl App {
    /// The app of that name in the pod of that name, calling the apps at these addresses.
    pub async fn start(
        (name, pod): (&str, &str),
        address: SocketAddr,
        calls: Vec<SocketAddr>,
        habits: Habits,
    ) -> Self {
        let listener = TcpListener::bind(address)
            .await
            .unwrap_or_else(|error| panic!("{address}: {error}"));
        let log = Arc::<Mutex<String>>::default();
        let character = Arc::new(Character {
            name: name.to_owned(),
            pod: pod.to_owned(),
            calls,
            habits,
            log: log.clone(),
        });
        Self {
            address,
            log,
            task: tokio::spawn(serve(listener, character)),
        }
    }

    /// What it has written so far, to be read while it goes on.
    pub fn log(&self) -> Arc<Mutex<String>> {
        self.log.clone()
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, character: Arc<Character>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let character = character.clone();
        connections.spawn(async move {
            let service = service_fn(move |request| {
                let character = character.clone();
                async move { character.answer(request).await }
            });
            let engine = auto::Builder::new(TokioExecutor::new());
            // A client that leaves early is no fault of an app.
            let _ = engine.serve_connection(TokioIo::new(stream), service).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

impl Character {
    async fn answer(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        tokio::time::sleep(self.habits.takes).await;
        let (headers, target) = (request.headers(), request.uri().to_string());
        if self.habits.logs {
            let mut log = self.log.lock().expect("nobody panics with it");
            *log += &format!("{} {target}\n", request.method());
        }
        let mut told = Map::new();
        if self.habits.repeats {
            told.insert("app".to_owned(), self.name.clone().into());
            told.insert("pod".to_owned(), self.pod.clone().into());
            told.insert("session".to_owned(), session(headers).into());
            told.insert("target".to_owned(), target.into());
            told.insert("headers".to_owned(), fields(headers));
        }
        let mut answers = Vec::new();
        for address in &self.calls {
            answers.push(self.call(*address, headers).await);
        }
        told.insert("downstream".to_owned(), answers.into());
        let mut response = Response::new(Full::from(Value::Object(told).to_string()));
        *response.status_mut() = self.habits.status;
        if let (true, Some(session)) = (self.habits.forges, session(headers)) {
            let route = if session == "session-proxy-probe" {
                "probe"
            } else {
                &session
            };
            let route = HeaderValue::from_str(route).expect("a session is visible");
            response.headers_mut().insert("x-dev-session-route", route);
        }
        Ok(response)
    }

    async fn call(&self, address: SocketAddr, headers: &HeaderMap) -> Value {
        let passed_on = PASSED_ON.into_iter().filter(|_| self.habits.passes_on);
        let mut passed_on: Vec<_> = passed_on
            .filter_map(|name| {
                let value = headers.get(name)?.clone();
                Some((HeaderName::from_static(name), value))
            })
            .collect();
        if let Some(session) = self.habits.rewrites {
            passed_on = vec![(
                HeaderName::from_static("x-dev-session"),
                HeaderValue::from_static(session),
            )];
        }
        let probe = Probe {
            address,
            is_http2: false,
            host: address.to_string(),
            target: "/called".to_owned(),
            headers: passed_on,
            patience: PATIENCE,
        };
        match probe.ask().await {
            Ok(answer) => serde_json::from_slice(&answer.body).unwrap_or_default(),
            Err(silence) => json!({ "error": silence.to_string() }),
        }
    }
}

/// The session that a request names, by header or by baggage.
fn session(headers: &HeaderMap) -> Option<String> {
    let header = headers
        .get("x-dev-session")
        .and_then(|value| value.to_str().ok());
    let baggage = headers.get("baggage").and_then(|value| value.to_str().ok());
    let member = baggage.and_then(|baggage| baggage.strip_prefix("dev-session="));
    header.or(member).map(str::to_owned)
}

fn fields(headers: &HeaderMap) -> Value {
    let field = |(name, value): (&HeaderName, &HeaderValue)| {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        (name.to_string(), Value::from(value))
    };
    Value::Object(headers.iter().map(field).collect())
}
