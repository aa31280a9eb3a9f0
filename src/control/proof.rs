//! One request sent to prove where requests go.
//!
//! It speaks to a pod's own address, because that is where requests are taken from: a Service would
//! choose the replica, and a port-forward enters behind the agent.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Version, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Names the route that an answer took.
pub const ROUTE: HeaderName = HeaderName::from_static("x-dev-session-route");

/// No answer is read further.
const LONGEST: usize = 1024 * 1024;

/// What is asked.
#[derive(Debug, Clone)]
pub struct Probe {
    pub address: SocketAddr,
    /// HTTP/2 with prior knowledge instead of HTTP/1.1.
    pub is_http2: bool,
    /// For the `Host` field or `:authority`.
    pub host: String,
    /// Path and query.
    pub target: String,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// From the first packet to the last byte of the answer.
    pub patience: Duration,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// Its first MiB; empty when it broke off.
    pub body: Bytes,
    pub took: Duration,
}

/// Why nothing came back.
#[derive(Debug, thiserror::Error)]
pub enum Silence {
    #[error("cannot connect: {0}")]
    Connect(#[from] std::io::Error),
    #[error("the connection broke: {0}")]
    Broke(#[from] hyper::Error),
    #[error("no answer within {0:?}")]
    Late(Duration),
    #[error("cannot be asked: {0}")]
    Request(#[from] http::Error),
}

impl Answer {
    /// The route that the proxy says it took; `None` when no session-proxy was in the way.
    pub fn route(&self) -> Option<&str> {
        self.headers.get(ROUTE)?.to_str().ok()
    }
}

impl Probe {
    /// Asks once, on a connection of its own.
    ///
    /// # Errors
    /// No complete answer came within the patience.
    pub async fn ask(&self) -> Result<Answer, Silence> {
        let started = Instant::now();
        let answer = timeout(self.patience, self.exchange(started)).await;
        answer.unwrap_or(Err(Silence::Late(self.patience)))
    }

    async fn exchange(&self, started: Instant) -> Result<Answer, Silence> {
        let socket = TokioIo::new(TcpStream::connect(self.address).await?);
        let request = self.request()?;
        // The connection lives as long as its answer is read.
        let response = if self.is_http2 {
            let (mut sender, connection) = http2::handshake(TokioExecutor::new(), socket).await?;
            tokio::spawn(connection);
            sender.send_request(request).await?
        } else {
            let (mut sender, connection) = http1::handshake(socket).await?;
            tokio::spawn(connection);
            sender.send_request(request).await?
        };
        let (head, body) = response.into_parts();
        let body = Limited::new(body, LONGEST).collect().await;
        Ok(Answer {
            status: head.status,
            headers: head.headers,
            body: body
                .map(http_body_util::Collected::to_bytes)
                .unwrap_or_default(),
            took: started.elapsed(),
        })
    }

    fn request(&self) -> Result<Request<Empty<Bytes>>, http::Error> {
        let mut request = if self.is_http2 {
            let uri = format!("http://{}{}", self.host, self.target);
            Request::get(uri).version(Version::HTTP_2)
        } else {
            Request::get(&self.target).header(header::HOST, &self.host)
        };
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        request.body(Empty::new())
    }
}
