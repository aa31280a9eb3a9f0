//! A well-behaved app on hyper, over HTTP/1 and HTTP/2, with or without TLS.
//!
//! | request | answer |
//! |---|---|
//! | `/status/N` | that status, no body |
//! | `/bytes/N` | N bytes of the pattern with `content-length` |
//! | `/stream/N` | N bytes of the pattern without one |
//! | `/trailers` | a body and the trailer `x-checksum: abc` |
//! | `/hang` | none |
//! | gRPC | every message back as it comes, `grpc-status: 0`; `/endless`: messages without end |
//! | anything else | JSON: what arrived |

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Response};
use http_body_util::channel::{Channel, Sender};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::Request;
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;

use super::digest::{Digest, pattern};
use super::fields::Fields;
use super::upstream::{Account, Seen, Upstream};

/// Any body of the bed.
pub type Body = BoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

impl Upstream {
    /// The site under that name, HTTP/1 and HTTP/2 by prior knowledge.
    pub async fn site(name: &str) -> Self {
        Self::site_with_stream_limit(name, 200).await
    }

    /// The site, with at most that many HTTP/2 streams at a time on a connection.
    pub async fn site_with_stream_limit(name: &str, streams: u32) -> Self {
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        Self::limited_site_at(free, name, streams).await
    }

    /// The site at an address that the test chooses.
    pub async fn site_at(address: SocketAddr, name: &str) -> Self {
        Self::limited_site_at(address, name, 200).await
    }

    async fn limited_site_at(address: SocketAddr, name: &str, streams: u32) -> Self {
        Self::accepting_at(address, name, move |stream, connection, account| {
            Box::pin(serve(
                stream,
                Visit {
                    connection,
                    account,
                },
                streams,
            ))
        })
        .await
    }

    /// The site behind TLS.
    pub async fn tls_site(name: &str, config: Arc<ServerConfig>) -> Self {
        let acceptor = TlsAcceptor::from(config);
        Self::accepting(name, move |stream, connection, account| {
            let handshake = acceptor.accept(stream);
            Box::pin(async move {
                if let Ok(stream) = handshake.await {
                    serve(
                        stream,
                        Visit {
                            connection,
                            account,
                        },
                        200,
                    )
                    .await;
                }
            })
        })
        .await
    }
}

/// One connection to the site, and whose it is.
#[derive(Clone)]
struct Visit {
    connection: usize,
    account: Arc<Account>,
}

async fn serve<S>(stream: S, visit: Visit, streams: u32)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = service_fn(move |request| {
        let visit = visit.clone();
        async move { Ok::<_, Infallible>(answer(request, &visit).await) }
    });
    let mut server = auto::Builder::new(TokioExecutor::new());
    // The proxy's limits are under test, so the site's own are far above them.
    server.http1().max_headers(1000);
    server
        .http2()
        .max_concurrent_streams(streams)
        .max_header_list_size(1 << 20);
    // A client that leaves early is what many tests want.
    let _ = server.serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(request: Request<Incoming>, visit: &Visit) -> Response<Body> {
    visit.account.count(&Fields::from(request.headers()));
    let is_grpc = request
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    if is_grpc {
        return grpc(request, visit);
    }
    let path = request.uri().path().to_owned();
    let number = || {
        path.rsplit('/')
            .next()
            .and_then(|last| last.parse().ok())
            .expect("the path ends in a number")
    };
    let response = match path.split('/').nth(1) {
        Some("status") => {
            let status = u16::try_from(number()).expect("a status");
            consume(request, visit).await;
            Response::builder().status(status).body(empty())
        }
        Some("bytes") => Response::builder()
            .header(CONTENT_LENGTH, number())
            .body(flow(number(), visit)),
        Some("stream") => Response::builder().body(flow(number(), visit)),
        Some("trailers") => {
            consume(request, visit).await;
            Response::builder()
                .header("trailer", "x-checksum")
                .body(with_trailers())
        }
        Some("hang") => {
            consume(request, visit).await;
            let _cancelled = OnDrop(visit.account.clone());
            std::future::pending().await
        }
        _ => echo(request, visit).await,
    };
    let mut response = response.expect("a valid response");
    response.headers_mut().insert(
        "x-upstream",
        HeaderValue::from_str(&visit.account.name).expect("a plain name"),
    );
    response
}

/// Reads the request to its end and records it; `None` when the client broke it off.
async fn consume(request: Request<Incoming>, visit: &Visit) -> Option<Seen> {
    let (head, mut incoming) = request.into_parts();
    let (mut body, mut trailers) = (Digest::new(), Fields::default());
    while let Some(frame) = incoming.frame().await {
        let Ok(frame) = frame else {
            visit.account.cancel();
            return None;
        };
        if let Some(data) = frame.data_ref() {
            visit
                .account
                .taken
                .fetch_add(data.len() as u64, Ordering::SeqCst);
            body.update(data);
        }
        if let Some(found) = frame.trailers_ref() {
            trailers = Fields::from(found);
        }
    }
    let target = head
        .uri
        .path_and_query()
        .map_or_else(|| head.uri.to_string(), ToString::to_string);
    let seen = Seen {
        connection: visit.connection,
        method: head.method.to_string(),
        target,
        version: head.version,
        authority: head.uri.authority().map(ToString::to_string),
        fields: Fields::from(&head.headers),
        body,
        trailers,
    };
    visit.account.record(seen.clone());
    Some(seen)
}

async fn echo(request: Request<Incoming>, visit: &Visit) -> http::Result<Response<Body>> {
    let Some(seen) = consume(request, visit).await else {
        return Response::builder().status(400).body(empty());
    };
    let pairs = |fields: &Fields| -> Vec<[String; 2]> {
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        fields
            .0
            .iter()
            .map(|(name, value)| [name.clone(), text(value)])
            .collect()
    };
    let body = json!({
        "upstream": visit.account.name,
        "connection": seen.connection,
        "method": seen.method,
        "target": seen.target,
        "version": format!("{:?}", seen.version),
        "authority": seen.authority,
        "headers": pairs(&seen.fields),
        "length": seen.body.length,
        "hash": format!("{:016x}", seen.body.hash),
        "trailers": pairs(&seen.trailers),
    });
    Response::builder()
        .header(CONTENT_TYPE, "application/json")
        .body(full(body.to_string()))
}

/// A body of the pattern, made only as fast as it is taken.
fn flow(length: u64, visit: &Visit) -> Body {
    let (mut sender, body) = Channel::<Bytes, Box<dyn std::error::Error + Send + Sync>>::new(1);
    let account = visit.account.clone();
    tokio::spawn(async move {
        for piece in pattern(length) {
            let size = piece.len() as u64;
            if sender.send_data(piece).await.is_err() {
                return account.cancel();
            }
            account.sent.fetch_add(size, Ordering::SeqCst);
        }
    });
    body.boxed()
}

fn with_trailers() -> Body {
    let (mut sender, body) = Channel::<Bytes, Box<dyn std::error::Error + Send + Sync>>::new(2);
    tokio::spawn(async move {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-checksum", HeaderValue::from_static("abc"));
        let _ = sender.send_data(Bytes::from_static(b"with trailers")).await;
        let _ = sender.send_trailers(trailers).await;
    });
    body.boxed()
}

fn grpc(request: Request<Incoming>, visit: &Visit) -> Response<Body> {
    let (sender, body) = Channel::<Bytes, Box<dyn std::error::Error + Send + Sync>>::new(1);
    let account = visit.account.clone();
    if request.uri().path() == "/endless" {
        tokio::spawn(grpc_endless(sender, account));
    } else {
        tokio::spawn(grpc_echo(request.into_body(), sender, account));
    }
    Response::builder()
        .header(CONTENT_TYPE, "application/grpc")
        .header("x-upstream", &visit.account.name)
        .body(body.boxed())
        .expect("a valid response")
}

type Messages = Sender<Bytes, Box<dyn std::error::Error + Send + Sync>>;

async fn grpc_echo(mut messages: Incoming, mut sender: Messages, account: Arc<Account>) {
    while let Some(frame) = messages.frame().await {
        let Ok(frame) = frame else {
            return account.cancel();
        };
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if sender.send(Frame::data(data)).await.is_err() {
            return account.cancel();
        }
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    trailers.insert("grpc-message", HeaderValue::from_static("fine"));
    let _ = sender.send_trailers(trailers).await;
}

async fn grpc_endless(mut sender: Messages, account: Arc<Account>) {
    while sender
        .send_data(super::grpc::message(b"again"))
        .await
        .is_ok()
    {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    account.cancel();
}

/// Counts a cancelled request when the answer it waits for is dropped.
struct OnDrop(Arc<Account>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}

pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed()
}
