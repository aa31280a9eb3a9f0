//! Whole exchanges over loopback, HTTP/1 and HTTP/2: the built program between a client and an origin.
//!
//! Each case is measured straight to the origin, too: what the proxy adds is the difference. Client and
//! origin are threads of this process, the proxy is a process of its own with one worker, as it runs
//! everywhere else. One exchange at a time (or ten, where streams are told): this is how long one
//! takes; how many fit into a second is for `benches/load`.

use std::convert::Infallible;
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::thread;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures_util::future::join_all;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};

const SESSION: &str = "pr-42";

/// One kind of exchange: what is sent, what has to come back.
struct Case {
    name: &'static str,
    /// Bytes of the request's body; 0 makes it a GET.
    upload: usize,
    /// Bytes of the answer's body.
    download: usize,
}

const CASES: [Case; 4] = [
    Case {
        name: "small GET",
        upload: 0,
        download: 16,
    },
    Case {
        name: "POST 1 KiB",
        upload: 1024,
        download: 16,
    },
    Case {
        name: "GET 10 KiB",
        upload: 0,
        download: 10 * 1024,
    },
    Case {
        name: "GET 1 MiB",
        upload: 0,
        download: 1024 * 1024,
    },
];

const STREAMS: usize = 10;

impl Case {
    /// HTTP/1 names the host in a field, HTTP/2 in the target.
    fn request1(&self, to: SocketAddr) -> Request<Full<Bytes>> {
        self.request(format!("/{}", self.download), Some(to))
    }

    fn request2(&self, to: SocketAddr) -> Request<Full<Bytes>> {
        self.request(format!("http://{to}/{}", self.download), None)
    }

    fn request(&self, target: String, host: Option<SocketAddr>) -> Request<Full<Bytes>> {
        let method = if self.upload == 0 {
            Method::GET
        } else {
            Method::POST
        };
        let mut request = Request::builder()
            .method(method)
            .uri(target)
            .header("x-dev-session", SESSION);
        if let Some(host) = host {
            request = request.header("host", host.to_string());
        }
        request
            .body(Full::new(Bytes::from(vec![b'x'; self.upload])))
            .expect("its parts are well-formed")
    }

    async fn received(&self, answer: Response<Incoming>) {
        assert_eq!(answer.status(), StatusCode::OK);
        let mut body = answer.into_body();
        let mut bytes = 0;
        while let Some(frame) = body.frame().await {
            bytes += frame
                .expect("the body is whole")
                .data_ref()
                .map_or(0, Bytes::len);
        }
        assert_eq!(bytes, self.download);
    }
}

fn http1(criterion: &mut Criterion) {
    let bed = Bed::new();
    for case in &CASES {
        let mut group = criterion.benchmark_group(format!("HTTP 1, {}", case.name));
        group.throughput(Throughput::Bytes((case.upload + case.download) as u64));
        for (way, to) in bed.ways() {
            let mut client = bed.runtime.block_on(dial1(to));
            group.bench_function(way, |bencher| {
                bencher.iter(|| {
                    bed.runtime.block_on(async {
                        client.ready().await.expect("the connection is kept");
                        let answer = client.send_request(case.request1(to)).await;
                        case.received(answer.expect("it is answered")).await;
                    });
                });
            });
        }
        group.finish();
    }
}

fn http2(criterion: &mut Criterion) {
    let bed = Bed::new();
    for case in &CASES {
        let mut group = criterion.benchmark_group(format!("HTTP 2, {}", case.name));
        group.throughput(Throughput::Bytes((case.upload + case.download) as u64));
        for (way, to) in bed.ways() {
            let client = bed.runtime.block_on(dial2(to));
            group.bench_function(way, |bencher| {
                bencher.iter(|| bed.runtime.block_on(stream(&client, case, to)));
            });
        }
        group.finish();
    }

    let small = &CASES[0];
    let mut group = criterion.benchmark_group(format!("HTTP 2, {STREAMS} streams, {}", small.name));
    group.throughput(Throughput::Elements(STREAMS as u64));
    for (way, to) in bed.ways() {
        let client = bed.runtime.block_on(dial2(to));
        group.bench_function(way, |bencher| {
            bencher.iter(|| {
                let streams = (0..STREAMS).map(|_| stream(&client, small, to));
                bed.runtime.block_on(join_all(streams))
            });
        });
    }
    group.finish();
}

async fn dial1(to: SocketAddr) -> http1::SendRequest<Full<Bytes>> {
    let (client, connection) = http1::handshake(socket(to).await)
        .await
        .expect("there is nothing to agree on");
    tokio::spawn(connection);
    client
}

async fn dial2(to: SocketAddr) -> http2::SendRequest<Full<Bytes>> {
    let (client, connection) = http2::handshake(TokioExecutor::new(), socket(to).await)
        .await
        .expect("HTTP/2 is understood without asking");
    tokio::spawn(connection);
    client
}

async fn socket(to: SocketAddr) -> TokioIo<TcpStream> {
    let socket = TcpStream::connect(to).await.expect("it listens");
    socket.set_nodelay(true).expect("it is a TCP socket");
    TokioIo::new(socket)
}

async fn stream(client: &http2::SendRequest<Full<Bytes>>, case: &Case, to: SocketAddr) {
    let mut client = client.clone();
    client.ready().await.expect("the connection is kept");
    let answer = client.send_request(case.request2(to)).await;
    case.received(answer.expect("it is answered")).await;
}

/// An origin, the proxy before it, and the client's runtime.
struct Bed {
    runtime: Runtime,
    origin: SocketAddr,
    proxy: Proxy,
}

impl Bed {
    fn new() -> Self {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime can be had");
        let origin = start_origin();
        let proxy = Proxy::before(origin);
        Self {
            runtime,
            origin,
            proxy,
        }
    }

    fn ways(&self) -> [(&'static str, SocketAddr); 2] {
        [("direct", self.origin), ("proxied", self.proxy.address)]
    }
}

/// The built program, ended with the bed.
struct Proxy {
    child: Child,
    address: SocketAddr,
}

impl Proxy {
    fn before(origin: SocketAddr) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_session-proxy"))
            .args(["run", "--listen", "127.0.0.1:0", "--workers", "1"])
            .args(["--session", &format!("{SESSION}={origin}")])
            .args(["--admin", "127.0.0.1:0"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cargo has built it");
        let stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        // "listening on NAME ADDRESS (http)"
        let address = stdout
            .lines()
            .map_while(Result::ok)
            .find_map(|line| {
                line.strip_prefix("listening on ")?
                    .split(' ')
                    .nth(1)?
                    .parse()
                    .ok()
            })
            .expect("it says where it listens");
        Self { child, address }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // It holds nothing that would be lost.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Answers `/N` with N bytes, in the version it is asked, on a thread of its own until this process ends.
fn start_origin() -> SocketAddr {
    let socket = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let address = socket.local_addr().expect("it is bound");
    socket.set_nonblocking(true).expect("it is a socket");
    thread::spawn(move || {
        Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime can be had")
            .block_on(serve(socket));
    });
    address
}

async fn serve(socket: std::net::TcpListener) {
    let listener = TcpListener::from_std(socket).expect("it does not block");
    let bytes = Bytes::from(vec![b'x'; 1024 * 1024]);
    loop {
        let (socket, _) = listener.accept().await.expect("there are files enough");
        socket.set_nodelay(true).expect("it is a TCP socket");
        let bytes = bytes.clone();
        let service = service_fn(move |request| answer(request, bytes.clone()));
        tokio::spawn(async move {
            let engine = auto::Builder::new(TokioExecutor::new());
            // A connection ends in an error when the proxy before it is killed.
            let _ = engine.serve_connection(TokioIo::new(socket), service).await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    bytes: Bytes,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let wanted = request.uri().path()[1..].parse().unwrap_or(0);
    let uploaded = request.into_body().collect().await;
    let mut answer = Response::new(Full::new(bytes.slice(..wanted)));
    if uploaded.is_err() {
        *answer.status_mut() = StatusCode::BAD_REQUEST;
    }
    Ok(answer)
}

criterion_group!(benches, http1, http2);
criterion_main!(benches);
