//! A stand-in for mirrord's internal proxy, the process that hands stolen requests to ours.
//!
//! What it does as the real one: a pool of connections with a short idle time; one request at a
//! time on each, also with HTTP/2; HTTP/2 requests on idle HTTP/1 connections, in absolute form and
//! without `Host`; names in lower case, in order, doubled ones kept; hop-by-hop fields passed on;
//! HTTP/1.0 in the middle of a keep-alive connection; empty chunked bodies; ten tries, whatever the
//! method, when a connection fails before an answer, then a bare 502. HTTP/1 trailers of a response
//! are lost.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::Version;
use tokio::net::TcpStream;

use super::client::{self, AUTHORITY, H2};
use super::fields::Fields;
use super::request::{Answer, Request};
use super::wire::Wire;

/// Sends stolen requests to one listener.
pub struct Sender {
    address: SocketAddr,
    idle_for: Duration,
    pauses: Vec<Duration>,
    idle: Mutex<VecDeque<Idle>>,
    connections: AtomicUsize,
    tries: AtomicUsize,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

enum Connection {
    H1(Wire<TcpStream>),
    H2(H2),
}

impl Sender {
    /// As the real one: 3 s idle, ten tries within 3.25 s.
    pub fn new(address: SocketAddr) -> Self {
        let pauses = [50, 100, 200, 400, 500, 500, 500, 500, 500].map(Duration::from_millis);
        Self {
            address,
            idle_for: Duration::from_secs(3),
            pauses: pauses.to_vec(),
            idle: Mutex::default(),
            connections: AtomicUsize::new(0),
            tries: AtomicUsize::new(0),
        }
    }

    /// `experimental.idle_local_http_connection_timeout`; zero never uses a connection twice.
    pub fn idle_for(self, idle_for: Duration) -> Self {
        Self { idle_for, ..self }
    }

    /// Ten tries as well, but without the long pauses.
    pub fn impatient(self) -> Self {
        Self {
            pauses: vec![Duration::from_millis(2); 9],
            ..self
        }
    }

    /// Connections opened so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Requests sent so far, each try counted.
    pub fn tries(&self) -> usize {
        self.tries.load(Ordering::SeqCst)
    }

    /// The answer, or a bare 502 when every try ended without one.
    pub async fn send(&self, request: &Request) -> Answer {
        let request = arrived(request);
        let mut pauses = self.pauses.iter();
        let mut tries = 0;
        loop {
            tries += 1;
            self.tries.fetch_add(1, Ordering::SeqCst);
            if let Ok(answer) = self.attempt(&request).await {
                return Answer { tries, ..answer };
            }
            let Some(pause) = pauses.next() else {
                return bad_gateway(&request, tries);
            };
            tokio::time::sleep(*pause).await;
        }
    }

    async fn attempt(&self, request: &Request) -> io::Result<Answer> {
        let connection = match self.reuse(request.version) {
            Some(connection) => connection,
            None => self.dial(request.version).await?,
        };
        match connection {
            Connection::H1(mut wire) => {
                let answer = ask_h1(&mut wire, request).await?;
                if keeps_alive(request, &answer) {
                    self.put_back(Connection::H1(wire));
                }
                Ok(Answer {
                    trailers: Fields::default(),
                    ..answer
                })
            }
            Connection::H2(mut h2) => {
                let answer = client::ask_h2(&mut h2, request).await?;
                self.put_back(Connection::H2(h2));
                Ok(answer)
            }
        }
    }

    async fn dial(&self, version: Version) -> io::Result<Connection> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        self.connections.fetch_add(1, Ordering::SeqCst);
        if version == Version::HTTP_2 {
            return client::h2_over(stream).await.map(Connection::H2);
        }
        Ok(Connection::H1(Wire::new(stream)))
    }

    /// An idle HTTP/1 connection takes any request, an HTTP/2 one only its own kind.
    fn reuse(&self, version: Version) -> Option<Connection> {
        let mut idle = self.idle.lock().expect("no test panics with it");
        idle.retain(|idle| idle.since.elapsed() < self.idle_for && idle.connection.is_open());
        let fits = |idle: &Idle| {
            matches!(idle.connection, Connection::H1(_)) || version == Version::HTTP_2
        };
        let at = idle.iter().position(fits)?;
        idle.remove(at).map(|idle| idle.connection)
    }

    fn put_back(&self, connection: Connection) {
        if !self.idle_for.is_zero() {
            let idle = Idle {
                connection,
                since: Instant::now(),
            };
            self.idle
                .lock()
                .expect("no test panics with it")
                .push_back(idle);
        }
    }
}

impl Connection {
    /// Whether its end has not been noticed. It may still end while a request is under way to it.
    fn is_open(&self) -> bool {
        match self {
            Self::H1(wire) => {
                let read = wire.stream.try_read(&mut [0]);
                read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
            }
            Self::H2(h2) => h2.is_ready(),
        }
    }
}

/// The request as it left mirrord's agent.
fn arrived(request: &Request) -> Request {
    let mut request = request.clone();
    for (name, _) in &mut request.fields.0 {
        name.make_ascii_lowercase();
    }
    if request.version == Version::HTTP_2 {
        return request;
    }
    let mut request = client::with_host(&request);
    let framed = request.fields.has("content-length") || request.fields.has("transfer-encoding");
    let may_have_body = ["DELETE", "POST", "OPTIONS"].contains(&request.method.as_str());
    if request.version == Version::HTTP_11 && request.body.is_empty() && may_have_body && !framed {
        request.fields.push("transfer-encoding", "chunked");
    }
    request
}

async fn ask_h1(wire: &mut Wire<TcpStream>, request: &Request) -> io::Result<Answer> {
    if request.version != Version::HTTP_2 {
        return wire.ask(request).await;
    }
    let mut request = request.clone();
    let authority = request
        .fields
        .first("host")
        .unwrap_or_else(|| AUTHORITY.to_owned());
    request.fields.0.retain(|(name, _)| name != "host");
    if !request.body.is_empty() && !request.fields.has("content-length") {
        request.fields.push("transfer-encoding", "chunked");
    }
    let target = format!("http://{authority}{}", request.target);
    request.version = Version::HTTP_11;
    wire.send(request.to_h1(&target)).await?;
    wire.answer(&request.method).await
}

/// Whether the connection may carry another request after this exchange.
fn keeps_alive(request: &Request, answer: &Answer) -> bool {
    let says = |word: &str| {
        answer
            .fields
            .all("connection")
            .iter()
            .any(|value| value.to_ascii_lowercase().contains(word))
    };
    let framed = request.method == "HEAD"
        || [204, 304].contains(&answer.status)
        || answer.fields.has("content-length")
        || answer.fields.has("transfer-encoding");
    let old = answer.version == Version::HTTP_10 || request.version == Version::HTTP_10;
    answer.body.is_ok()
        && answer.status != 101
        && framed
        && !says("close")
        && (!old || says("keep-alive"))
}

fn bad_gateway(request: &Request, tries: usize) -> Answer {
    Answer {
        status: 502,
        version: request.version,
        fields: Fields::default(),
        body: Ok(bytes::Bytes::new()),
        trailers: Fields::default(),
        tries,
    }
}
