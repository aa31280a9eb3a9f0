//! A port that tells and changes nothing: connections, hosts and methods, and the plain parts of
//! answers. What is told is up to the [`Desk`] behind it.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

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
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::events::Events;
use crate::record::tap::Filter;

/// The Prometheus text format.
pub const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// An object or a list.
pub const JSON: &str = "application/json";

/// Connections at a time. The next one waits in the kernel's queue.
const CONNECTIONS: usize = 256;

/// Of those, taps, which may last for days; the rest is left for probes and scrapes.
pub(super) const TAPS: usize = 32;

/// How long a client may take to send a request's head.
const HEAD_PATIENCE: Duration = Duration::from_secs(3);

/// How long a client may take for one exchange that is not a tap.
const EXCHANGE_PATIENCE: Duration = Duration::from_secs(30);

/// Only our own files may run or be asked; nobody may frame the page.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Who knows the answers.
pub trait Desk: Send + Sync + 'static {
    /// What is at this path; `None`: nothing.
    fn answer(&self, path: &str, query: &str) -> impl Future<Output = Option<Reply>> + Send;
}

/// An answer: a whole one, or a tap.
pub type Reply = Response<Either<Full<Bytes>, Events>>;

/// Serves an admin port until dropped; all its connections end with it.
pub async fn serve(listener: TcpListener, desk: Arc<impl Desk>) {
    let door = Arc::new(Door {
        desk,
        own_names: own_names(),
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
                let door = Arc::clone(&door);
                connections.spawn(async move {
                    serve_connection(socket, door).await;
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
async fn serve_connection(socket: TcpStream, door: Arc<Door<impl Desk>>) {
    let is_tap = Arc::new(AtomicBool::new(false));
    let tells_tap = Arc::clone(&is_tap);
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let (door, tells_tap) = (Arc::clone(&door), Arc::clone(&tells_tap));
        async move {
            let response = door.answer(&request).await;
            tells_tap.store(
                matches!(response.body(), Either::Right(_)),
                Ordering::Relaxed,
            );
            Ok::<_, Infallible>(response)
        }
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

/// The places for taps of one port.
pub struct Taps(Arc<Semaphore>);

impl Default for Taps {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(TAPS)))
    }
}

impl Taps {
    /// The answer to a request for a tap: the events that `subscribe` makes for the query's filter.
    pub fn listen<P>(&self, query: &str, subscribe: impl FnOnce(Filter) -> P) -> Reply
    where
        P: FnMut(&mut Context<'_>) -> Poll<Option<Arc<str>>> + Send + 'static,
    {
        let filter = match filter(query) {
            Ok(filter) => filter,
            Err(why) => return text(StatusCode::BAD_REQUEST, why),
        };
        let Ok(place) = Arc::clone(&self.0).try_acquire_owned() else {
            let reply = text(
                StatusCode::SERVICE_UNAVAILABLE,
                "too many taps; end one of them",
            );
            return with(reply, RETRY_AFTER, "1");
        };
        let events = Events::new(subscribe(filter), place);
        reply(StatusCode::OK, "text/event-stream", Either::Right(events))
    }
}

/// What all connections of the port share.
struct Door<D> {
    desk: Arc<D>,
    own_names: Vec<String>,
}

impl<D: Desk> Door<D> {
    async fn answer<B>(&self, request: &Request<B>) -> Reply {
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
        let uri = request.uri();
        let told = self.desk.answer(uri.path(), uri.query().unwrap_or(""));
        told.await.unwrap_or_else(|| {
            text(
                StatusCode::NOT_FOUND,
                "there is nothing here; / lists what there is",
            )
        })
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

/// The names this machine or pod has for itself.
pub(super) fn own_names() -> Vec<String> {
    // Kubernetes sets the variable; the file is right where it was taken away.
    let told = std::env::var("HOSTNAME").ok();
    let kernel = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let names = told
        .into_iter()
        .chain(kernel)
        .map(|name| name.trim().to_owned());
    names.filter(|name| !name.is_empty()).collect()
}

/// The page for people, and what it is made of.
pub fn page(path: &str) -> Option<Reply> {
    Some(match path {
        "/" => {
            let page = content("text/html; charset=utf-8", include_str!("page.html"));
            with(page, CONTENT_SECURITY_POLICY, PAGE_POLICY)
        }
        "/page.js" => content("text/javascript; charset=utf-8", include_str!("page.js")),
        "/page.css" => content("text/css; charset=utf-8", include_str!("page.css")),
        _ => return None,
    })
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

/// One line.
pub fn text(status: StatusCode, line: &str) -> Reply {
    reply(
        status,
        "text/plain; charset=utf-8",
        Either::Left(Full::from(format!("{line}\n"))),
    )
}

/// A whole answer of that content type.
pub fn content(kind: &'static str, body: impl Into<Bytes>) -> Reply {
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
