//! One request sent to prove where requests go.
//!
//! It speaks to a pod's own address, because that is where requests are taken from: a Service would
//! choose the replica, and a port-forward enters behind the agent. What an answer proves is up to
//! those who ask.

pub mod sign;

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::request::Builder;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

/// Names the route that an answer took.
pub const ROUTE: HeaderName = HeaderName::from_static("x-dev-session-route");

/// Says what went wrong on the way (RFC 9209).
const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// No answer is read further.
const LONGEST: usize = 1024 * 1024;

/// A gRPC message of no bytes: not compressed, length zero.
const EMPTY_MESSAGE: &[u8] = &[0; 5];

/// What is asked.
#[derive(Debug, Clone)]
pub struct Probe {
    pub address: SocketAddr,
    /// Asked as gRPC does, with an empty message over HTTP/2 with prior knowledge, instead of a GET
    /// over HTTP/1.1. gRPC servers answer to nothing else.
    pub is_http2: bool,
    /// For the `Host` field or `:authority`.
    pub host: String,
    /// Path and query.
    pub target: String,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// From the first packet to the last byte of the answer.
    pub patience: Duration,
}

/// What came back: at least a head.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// As much of it as came, at most its first MiB.
    pub body: Bytes,
    pub trailers: HeaderMap,
    pub ending: Ending,
    pub took: Duration,
}

/// How a body came to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    Complete,
    /// Nobody reads further than the first MiB.
    TooLong,
    /// It was still coming when the patience ended, as streams of events do.
    Unfinished,
    /// The connection broke, for this reason.
    Broken(String),
}

/// Why nothing came back.
#[derive(Debug, thiserror::Error)]
pub enum Silence {
    #[error("cannot connect: {0}")]
    Connect(#[from] io::Error),
    #[error("no connection within {0:?}")]
    Unreachable(Duration),
    #[error("the connection broke: {0}")]
    Broke(#[from] hyper::Error),
    #[error("no answer within {0:?}")]
    Late(Duration),
    #[error("cannot be asked: {0}")]
    Request(#[from] http::Error),
}

impl Probe {
    /// Asks once, on a connection of its own.
    ///
    /// # Errors
    /// No head of an answer came within the patience.
    pub async fn ask(&self) -> Result<Answer, Silence> {
        let started = Instant::now();
        let until = started + self.patience;
        let request = self.request()?;
        let socket = timeout_at(until, TcpStream::connect(self.address)).await;
        let socket = socket.map_err(|_| Silence::Unreachable(self.patience))??;
        // Dropped, it ends the connection, however much of it is still open.
        let mut connection = JoinSet::new();
        let response = timeout_at(until, self.exchange(socket, request, &mut connection)).await;
        let response = response.map_err(|_| Silence::Late(self.patience))??;
        let mut answer = Answer::headed(&response);
        answer.read(response.into_body(), until).await;
        answer.took = started.elapsed();
        Ok(answer)
    }

    /// The head of the answer. `connection` must live for as long as the body is read.
    async fn exchange(
        &self,
        socket: TcpStream,
        request: Request<Full<Bytes>>,
        connection: &mut JoinSet<hyper::Result<()>>,
    ) -> Result<Response<Incoming>, Silence> {
        let socket = TokioIo::new(socket);
        if self.is_http2 {
            let (mut sender, engine) = http2::handshake(TokioExecutor::new(), socket).await?;
            connection.spawn(engine);
            Ok(sender.send_request(request).await?)
        } else {
            let (mut sender, engine) = http1::handshake(socket).await?;
            connection.spawn(engine);
            Ok(sender.send_request(request).await?)
        }
    }

    fn request(&self) -> Result<Request<Full<Bytes>>, http::Error> {
        let (mut request, body) = if self.is_http2 {
            (self.grpc_head(), Bytes::from_static(EMPTY_MESSAGE))
        } else {
            let head = Request::get(&self.target).header(header::HOST, self.authority());
            (head, Bytes::new())
        };
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        request.body(Full::new(body))
    }

    fn grpc_head(&self) -> Builder {
        Request::post(format!("http://{}{}", self.authority(), self.target))
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
    }

    /// The host; an IPv6 address stands in brackets there (RFC 3986, section 3.2.2).
    fn authority(&self) -> String {
        match self.host.parse::<Ipv6Addr>() {
            Ok(address) => format!("[{address}]"),
            Err(_) => self.host.clone(),
        }
    }
}

impl Answer {
    fn headed(response: &Response<Incoming>) -> Self {
        Self {
            status: response.status(),
            headers: response.headers().clone(),
            body: Bytes::new(),
            trailers: HeaderMap::new(),
            ending: Ending::Complete,
            took: Duration::ZERO,
        }
    }

    async fn read(&mut self, mut body: Incoming, until: Instant) {
        let mut bytes = Vec::new();
        self.ending = loop {
            let frame = match timeout_at(until, body.frame()).await {
                Err(_) => break Ending::Unfinished,
                Ok(None) => break Ending::Complete,
                Ok(Some(Err(error))) => break Ending::Broken(error.to_string()),
                Ok(Some(Ok(frame))) => frame,
            };
            match frame.into_data() {
                Ok(data) => bytes.extend_from_slice(&data),
                Err(frame) => self.trailers = frame.into_trailers().unwrap_or_default(),
            }
            if bytes.len() > LONGEST {
                bytes.truncate(LONGEST);
                break Ending::TooLong;
            }
        };
        self.body = bytes.into();
    }

    /// The route that the proxy says it took; `None` when no session-proxy was in the way.
    pub fn route(&self) -> Option<&str> {
        self.headers.get(ROUTE)?.to_str().ok()
    }

    /// What a proxy on the way says went wrong: then it answered, and not an app.
    pub fn proxy_error(&self) -> Option<&str> {
        let values = self.headers.get_all(PROXY_STATUS).iter();
        values
            .filter_map(|value| value.to_str().ok())
            .find(|value| parameters(value).any(|parameter| parameter.starts_with("error=")))
    }

    /// Whether the app that answered repeats this text: in its body, its headers or its trailers.
    pub fn repeats(&self, text: &str) -> bool {
        let fields = self.headers.iter().chain(&self.trailers);
        let mut theirs = fields.filter(|(name, _)| **name != ROUTE && **name != PROXY_STATUS);
        contains(&self.body, text) || theirs.any(|(_, value)| contains(value.as_bytes(), text))
    }
}

/// Whether these bytes, text or not, have this text somewhere.
fn contains(bytes: &[u8], text: &str) -> bool {
    let text = text.as_bytes();
    !text.is_empty() && bytes.windows(text.len()).any(|window| window == text)
}

/// The parameters of a structured field's members; what stands in quotes divides nothing.
fn parameters(value: &str) -> impl Iterator<Item = &str> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    let divides = move |c: char| {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = is_quoted,
            '"' => is_quoted = !is_quoted,
            ';' | ',' => return !is_quoted,
            _ => {}
        }
        false
    };
    value.split(divides).map(str::trim)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::Channel;
    use hyper::service::service_fn;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// What a server of one connection does after it was asked.
    enum Then {
        Close,
        Hang,
    }

    /// Answers the first connection with these bytes; the request is the task's outcome.
    async fn saying(
        pieces: Vec<Vec<u8>>,
        then: Then,
    ) -> (SocketAddr, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let length = socket.read(&mut request).await.unwrap();
            for piece in pieces {
                // A client that has read enough leaves.
                let _ = socket.write_all(&piece).await;
            }
            if matches!(then, Then::Hang) {
                let _ = socket.read(&mut [0; 1]).await;
            }
            String::from_utf8(request[..length].to_vec()).unwrap()
        });
        (address, served)
    }

    fn probe(address: SocketAddr) -> Probe {
        Probe {
            address,
            is_http2: false,
            host: "orders:80".into(),
            target: "/?a=b".into(),
            headers: vec![(
                HeaderName::from_static("x-dev-session"),
                HeaderValue::from_static("pr-42"),
            )],
            patience: Duration::from_secs(10),
        }
    }

    fn answer(fields: &[(&'static str, &str)], body: &'static str) -> Answer {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        Answer {
            status: StatusCode::OK,
            headers,
            body: Bytes::from_static(body.as_bytes()),
            trailers: HeaderMap::new(),
            ending: Ending::Complete,
            took: Duration::ZERO,
        }
    }

    #[tokio::test]
    async fn a_request_says_what_it_was_told_to_say_and_the_answer_comes_back_whole() {
        let said =
            b"HTTP/1.1 503 Busy\r\nx-dev-session-route: pr-42\r\ncontent-length: 2\r\n\r\nhi";
        let (address, served) = saying(vec![said.to_vec()], Then::Close).await;

        let answer = probe(address).ask().await.unwrap();

        assert_eq!(
            served.await.unwrap(),
            "GET /?a=b HTTP/1.1\r\nhost: orders:80\r\nx-dev-session: pr-42\r\n\r\n"
        );
        assert_eq!(
            (answer.status.as_u16(), &answer.body[..]),
            (503, &b"hi"[..])
        );
        assert_eq!(answer.route(), Some("pr-42"));
        assert_eq!(answer.ending, Ending::Complete);
    }

    #[tokio::test]
    async fn an_ipv6_host_stands_in_brackets() {
        let said = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        for (host, written) in [
            ("fd00::1", "[fd00::1]"),
            ("[fd00::1]:8080", "[fd00::1]:8080"),
            ("10.0.0.1", "10.0.0.1"),
        ] {
            let (address, served) = saying(vec![said.to_vec()], Then::Close).await;
            let host = host.to_owned();
            let probe = Probe {
                host,
                ..probe(address)
            };

            probe.ask().await.unwrap();

            let request = served.await.unwrap();
            assert!(
                request.contains(&format!("\r\nhost: {written}\r\n")),
                "{request}"
            );
        }
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_keeps_what_came_and_says_so() {
        let said = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf".to_vec();
        let (address, _served) = saying(vec![said], Then::Close).await;

        let answer = probe(address).ask().await.unwrap();

        assert_eq!(&answer.body[..], b"half");
        assert!(
            matches!(answer.ending, Ending::Broken(_)),
            "{:?}",
            answer.ending
        );
    }

    #[tokio::test]
    async fn a_stream_without_an_end_is_an_answer_after_the_patience() {
        let said =
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: 1\n\n".to_vec();
        let (address, _served) = saying(vec![said], Then::Hang).await;
        let probe = Probe {
            patience: Duration::from_millis(300),
            ..probe(address)
        };

        let answer = probe.ask().await.unwrap();

        assert_eq!(&answer.body[..], b"data: 1\n\n");
        assert_eq!(answer.ending, Ending::Unfinished);
    }

    #[tokio::test]
    async fn nobody_reads_further_than_the_first_mebibyte() {
        let head = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
        let pieces = [head]
            .into_iter()
            .chain((0..64).map(|_| vec![b'x'; 64 * 1024]));
        let (address, _served) = saying(pieces.collect(), Then::Hang).await;

        let answer = probe(address).ask().await.unwrap();

        assert_eq!(
            (answer.body.len(), answer.ending),
            (LONGEST, Ending::TooLong)
        );
    }

    #[tokio::test]
    async fn silence_says_what_did_not_come() {
        let (silent, _served) = saying(vec![], Then::Hang).await;
        let (closing, _served_too) = saying(vec![], Then::Close).await;
        let nobody = {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            listener.local_addr().unwrap()
        };
        let patience = Duration::from_millis(300);
        let ask = async |address, target: &str| {
            let target = target.to_owned();
            let probe = Probe {
                patience,
                target,
                ..probe(address)
            };
            probe.ask().await.unwrap_err()
        };

        assert!(matches!(ask(silent, "/").await, Silence::Late(_)));
        assert!(matches!(ask(closing, "/").await, Silence::Broke(_)));
        assert!(matches!(ask(nobody, "/").await, Silence::Connect(_)));
        assert!(matches!(ask(nobody, "/a b").await, Silence::Request(_)));
    }

    #[tokio::test]
    async fn grpc_is_asked_over_http2_and_its_trailers_are_read() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = tokio::spawn(async move {
            let (socket, _) = listener.accept().await.unwrap();
            let service = service_fn(async |request: Request<Incoming>| {
                let asked = format!(
                    "{} {} {:?} {:?}",
                    request.method(),
                    request.uri(),
                    request.headers()["content-type"],
                    request.headers()["te"],
                );
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let (mut sender, channel) = Channel::<Bytes, Infallible>::new(4);
                sender
                    .send_data(format!("{asked} {body:?}").into())
                    .await
                    .unwrap();
                let trailers = [("grpc-status", "12"), ("grpc-message", "no method id-7")];
                let trailers = trailers
                    .map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)));
                sender
                    .send_trailers(HeaderMap::from_iter(trailers))
                    .await
                    .unwrap();
                Ok::<_, Infallible>(Response::new(channel))
            });
            let engine = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            // The client leaves once it has its answer.
            let _ = engine.serve_connection(TokioIo::new(socket), service).await;
        });
        let probe = Probe {
            is_http2: true,
            ..probe(address)
        };

        let answer = probe.ask().await.unwrap();

        assert_eq!(
            String::from_utf8_lossy(&answer.body),
            r#"POST http://orders:80/?a=b "application/grpc" "trailers" b"\0\0\0\0\0""#
        );
        assert_eq!(answer.trailers["grpc-status"], "12");
        assert!(answer.repeats("id-7"));
        drop(answer);
        served.await.unwrap();
    }

    #[test]
    fn a_proxy_error_is_the_parameter_of_that_name() {
        for (value, is_error) in [
            (
                "session-proxy; error=connection_refused; details=\"x\"",
                true,
            ),
            ("edge;error=dns_timeout", true),
            ("edge, session-proxy; error=http_response_timeout", true),
            ("session-proxy; received-status=200", false),
            ("edge; details=\"a; error=x\"", false),
            ("edge; details=\"a\\\"; error=x\"", false),
            ("", false),
        ] {
            let answer = answer(&[("proxy-status", value)], "");
            assert_eq!(answer.proxy_error().is_some(), is_error, "{value}");
        }
        assert_eq!(answer(&[], "").proxy_error(), None);
    }

    #[test]
    fn what_the_proxy_says_is_not_what_the_app_repeats() {
        let theirs = answer(&[("x-request-id", "id-7")], "");
        let ours = answer(
            &[("x-dev-session-route", "id-7"), ("proxy-status", "id-7")],
            "",
        );

        assert!(theirs.repeats("id-7") && !theirs.repeats("id-8") && !theirs.repeats(""));
        assert!(!ours.repeats("id-7"));
        assert!(answer(&[], "you asked /?probe=id-7").repeats("id-7"));
    }
}
