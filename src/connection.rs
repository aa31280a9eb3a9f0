//! One client connection: TLS, then HTTP or raw TCP, until it is over.
//!
//! Which HTTP version a client speaks is told by its first bytes. The deadlines of a connection
//! live here: for the first byte, for a head that has begun, for the next request, for a client
//! that neither reads nor sends. A head that takes too long or grows too large is answered, not cut.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::debug;

use crate::exchange::{Client, Failure, Ground, Upgraded, exchange};
use crate::plan::{HttpListener, Limits, Timeouts};
use crate::pool::{CONNECTION_WINDOW, STREAM_WINDOW};
use crate::record::Ledger;
use crate::tunnel::{self, Side};
use crate::upstream::{Dialled, Endpoint, Protocol};
use crate::wire::{Engine, Transport, Wire};

mod h1;
mod paced;
mod parting;
mod watch;

use paced::StreamExecutor;

/// How long an HTTP/2 client without a request has to answer our GOAWAY, or to take up what it still
/// has to read: the engine does not tell whether a closed window holds something back.
const FAREWELL: Duration = Duration::from_secs(5);

/// An alarm for connections whose streams have deadlines of their own: the start of a drain wakes
/// whoever has one.
const SOME_DAY: Duration = Duration::from_secs(24 * 3600);

/// The first bytes of HTTP/2 (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection just accepted, and what its listener says about it.
pub struct Arrival {
    pub stream: TcpStream,
    pub address: SocketAddr,
    pub is_one_too_many: bool,
}

/// Serves a connection of an HTTP listener.
pub async fn http(
    ground: Rc<Ground>,
    listener: Arc<HttpListener>,
    ledger: Rc<Ledger>,
    arrival: Arrival,
) {
    let connection = Connection::new(ground, listener, ledger, &arrival);
    connection.sniff(arrival.stream).await;
}

/// Serves a connection of an HTTPS listener. The handshake must be over by the deadline for the
/// first byte.
pub async fn https(
    ground: Rc<Ground>,
    listener: Arc<HttpListener>,
    ledger: Rc<Ledger>,
    arrival: Arrival,
    config: Arc<rustls::ServerConfig>,
) {
    let connection = Connection::new(ground, listener, ledger, &arrival);
    let Arrival {
        stream, address, ..
    } = arrival;
    let handshake = TlsAcceptor::from(config).accept(stream);
    let limit = connection.timeouts.first_byte;
    match connection.ground.deadlines.within(limit, handshake).await {
        Ok(Ok(stream)) => connection.sniff(Box::new(stream)).await,
        Ok(Err(error)) => debug!(%address, %error, "tls handshake failed"),
        Err(_elapsed) => debug!(%address, "tls handshake took too long"),
    }
}

/// Serves a connection of a TCP listener: its bytes go to one of `targets` and back.
pub async fn tcp(ground: Rc<Ground>, arrival: Arrival, targets: &[Arc<Endpoint>]) {
    let _flight = ground.draining.take_off();
    let timeouts = ground.plan.borrow().timeouts.clone();
    if arrival.is_one_too_many {
        // There is no way to say it in bytes of a protocol we do not know.
        abort(&arrival.stream);
        return;
    }
    let Some(upstream) = dial_any(&ground, targets, timeouts.connect).await else {
        abort(&arrival.stream);
        return;
    };
    let (mut client, mut upstream) = (arrival.stream, upstream);
    let idle = timeouts.body_idle;
    let joined = tunnel::join(
        Side::new(&mut client),
        Side::new(&mut upstream),
        idle,
        &ground.deadlines,
    )
    .await;
    if let (_, Err(error)) = joined {
        debug!(address = %arrival.address, %error, "tunnel broke");
        abort(&client);
        abort(&upstream);
    }
}

/// The first of the targets that takes a connection, beginning at a random one.
async fn dial_any(
    ground: &Ground,
    targets: &[Arc<Endpoint>],
    limit: Duration,
) -> Option<TcpStream> {
    let start = fastrand::usize(..targets.len().max(1));
    for turn in 0..targets.len() {
        let target = &targets[(start + turn) % targets.len()];
        // The plan gives every target of a TCP listener a port.
        let port = target.port.unwrap_or_default();
        let dialling = target.dial(port, &Protocol::H1, true);
        match ground.deadlines.within(limit, dialling).await {
            Ok(Ok(Dialled::Plain(stream))) => return Some(stream),
            Ok(Ok(Dialled::Tls(_))) => unreachable!("no TLS was asked for"),
            Ok(Err(error)) => debug!(%target, %error, "dial failed"),
            Err(_elapsed) => debug!(%target, "dial took too long"),
        }
    }
    None
}

/// Makes the close of a socket a reset: the peer must not take it for a proper end.
fn abort(stream: &TcpStream) {
    // Fails only on a socket that is closed already.
    let _ = stream.set_zero_linger();
}

/// A client's byte stream, plain or encrypted.
trait ByteStream: AsyncRead + AsyncWrite + Unpin + 'static {
    fn tcp(&self) -> &TcpStream;
}

impl ByteStream for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

impl ByteStream for Box<TlsStream<TcpStream>> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().0
    }
}

/// What serves one client. Limits and timeouts are those of its beginning.
struct Connection {
    ground: Rc<Ground>,
    client: Rc<Client>,
    timeouts: Timeouts,
    limits: Limits,
}

impl Connection {
    fn new(
        ground: Rc<Ground>,
        listener: Arc<HttpListener>,
        ledger: Rc<Ledger>,
        arrival: &Arrival,
    ) -> Self {
        let plan = ground.plan.borrow().clone();
        let client = Rc::new(Client {
            address: arrival.address,
            listener,
            ledger,
            wire: Wire::new(plan.limits.header_bytes),
            is_one_too_many: arrival.is_one_too_many,
            upgraded: None.into(),
        });
        let (timeouts, limits) = (plan.timeouts.clone(), plan.limits.clone());
        Self {
            ground,
            client,
            timeouts,
            limits,
        }
    }

    fn transport<S>(&self, stream: S, first: Bytes, engine: Engine) -> Transport<S> {
        let wire = self.client.wire.clone();
        Transport::new(stream, first, wire, engine, &self.ground.outbox)
    }

    /// Finds out the HTTP version from the first bytes, and serves it.
    async fn sniff<S: ByteStream>(self, mut stream: S) {
        let limit = self.timeouts.first_byte;
        let mut first = BytesMut::new();
        let reading = first_bytes(&mut stream, &mut first);
        match self.ground.deadlines.within(limit, reading).await {
            // Boxed: HTTP/2 needs more room than all else together.
            Ok(true) if first.starts_with(PREFACE) => {
                Box::pin(self.h2(stream, first.freeze())).await;
            }
            Ok(true) => self.h1(stream, first.freeze()).await,
            Ok(false) => {}
            // Not a byte of a request came: there is nothing to answer.
            Err(_elapsed) if first.is_empty() => {
                debug!(address = %self.client.address, "no first byte in time");
            }
            Err(_elapsed) => {
                let stream = self.transport(stream, Bytes::new(), Engine::H1);
                Box::pin(self.turn_away(stream, Failure::HeadTimeout)).await;
            }
        }
    }

    async fn h2<S: ByteStream>(self, stream: S, first: Bytes) {
        let service = |request| exchange(self.ground.clone(), self.client.clone(), request);
        let transport = self.transport(stream, first, Engine::H2);
        let streams = StreamExecutor {
            wire: self.client.wire.clone(),
            deadlines: self.ground.deadlines.clone(),
            limit: self.timeouts.body_idle,
        };
        let mut engine = pin!(
            http2::Builder::new(streams)
                .auto_date_header(false)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_concurrent_streams(self.limits.h2_streams)
                .max_header_list_size(u32::try_from(self.limits.header_bytes).unwrap_or(u32::MAX))
                .serve_connection(TokioIo::new(transport), service_fn(service))
        );
        let alarm = self.ground.deadlines.alarm();
        let wire = &self.client.wire;
        let (mut turn, mut wrote) = (None, 0);
        let mut is_told_to_end = false;
        // In a drain a connection is in flight until its last answer has left the buffers.
        let mut flight = None;
        let result = poll_fn(|cx| {
            loop {
                if self.ground.is_draining.get() && !is_told_to_end {
                    is_told_to_end = true;
                    flight = Some(self.ground.draining.take_off());
                    engine.as_mut().graceful_shutdown();
                    turn = None;
                }
                if let Poll::Ready(result) = engine.as_mut().poll(cx) {
                    return Poll::Ready(Some(result));
                }
                let is_idle = wire.open() == 0;
                let limit = match (is_idle, is_told_to_end) {
                    (true, true) => FAREWELL,
                    (true, false) => self.timeouts.keep_alive,
                    (false, _) => SOME_DAY,
                };
                if turn != Some((wire.turn(), is_idle)) {
                    turn = Some((wire.turn(), is_idle));
                    wrote = wire.wrote();
                    alarm.set(limit);
                }
                if alarm.poll(cx).is_pending() {
                    return Poll::Pending;
                }
                turn = None;
                match (is_idle, is_told_to_end) {
                    // The last answers may still be leaving, at the pace of a slow client.
                    _ if wrote != wire.wrote() => {}
                    (true, true) => return Poll::Ready(None),
                    (true, false) => {
                        is_told_to_end = true;
                        engine.as_mut().graceful_shutdown();
                    }
                    (false, _) => {}
                }
            }
        })
        .await;
        if let Some(Err(error)) = result {
            debug!(address = %self.client.address, %error, "http/2 connection failed");
        }
    }

    /// Joins an upgraded connection with the upstream's half.
    async fn tunnel<S: ByteStream>(&self, stream: Transport<S>, first: Bytes, upgraded: Upgraded) {
        let Upgraded {
            mut lease,
            mut account,
        } = upgraded;
        self.client.wire.becomes_tunnel();
        let Some((socket, rest)) = lease.upgraded() else {
            abort(stream.stream().tcp());
            return;
        };
        let mut stream = stream;
        let idle = self.timeouts.body_idle;
        // The engine counts its answer as flushed when it is posted.
        let flushing = self.ground.deadlines.within(idle, stream.flush());
        if !matches!(flushing.await, Ok(Ok(()))) {
            account.record.broken("client");
            abort(stream.stream().tcp());
            socket.abort();
            return;
        }
        let client = Side {
            stream: &mut stream,
            first,
        };
        let upstream = Side {
            stream: socket.clone(),
            first: rest,
        };
        let (carried, result) = tunnel::join(client, upstream, idle, &self.ground.deadlines).await;
        account.record.uploaded(carried.up);
        account.record.downloaded(carried.down);
        if result.is_err() {
            account.record.broken("tunnel");
            abort(stream.stream().tcp());
            socket.abort();
        }
    }
}

/// Reads into `first` until it is clear whether the preface of HTTP/2 is coming. False: the client
/// left.
async fn first_bytes<S: ByteStream>(stream: &mut S, first: &mut BytesMut) -> bool {
    while some_bytes(stream, first).await {
        let known = first.len().min(PREFACE.len());
        if known == PREFACE.len() || first[..known] != PREFACE[..known] {
            return true;
        }
    }
    false
}

/// Reads into `bytes` once. False: the client left.
///
/// The buffer is on the stack and only while something is read: a connection that waits for a byte
/// costs no buffer.
async fn some_bytes<S: ByteStream>(stream: &mut S, bytes: &mut BytesMut) -> bool {
    let read = poll_fn(|cx| {
        let mut chunk = [0; 4096];
        let mut chunk = ReadBuf::new(&mut chunk);
        Pin::new(&mut *stream)
            .poll_read(cx, &mut chunk)
            .map_ok(|()| {
                bytes.extend_from_slice(chunk.filled());
                chunk.filled().len()
            })
    });
    matches!(read.await, Ok(1..))
}
