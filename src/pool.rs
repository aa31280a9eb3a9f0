//! One worker's connections to its upstreams: idle h1 stacks, shared h2 connections.
//!
//! A pool never retries and never decides: it hands out a [`Lease`] that says whether its
//! connection was dialled for this request or has been used before, and takes the connection back
//! when the exchange is over. A connection that is not given back is closed.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use prometheus::IntGauge;
use tokio::time::Instant;

use crate::metrics::{ConnectResult, Route};
use crate::outbox::Outbox;
use crate::upstream::{DialError, Endpoint, Pass, Protocol, Upstream};

mod lease;
mod line;
mod outgoing;
mod shared;
mod socket;

use lease::Line;
pub use lease::{AnswerError, Lease, Origin, SendError};
use line::H1;
pub use outgoing::{Outgoing, Progress, Upload, UploadError};
use shared::{Shared, Stream};
pub use socket::Socket;

/// Bytes of an answer that may wait unread in a stream, and in a whole HTTP/2 connection.
///
/// A stream's window bounds what a slow client makes us hold. The connection's is as large as it is
/// for another reason: h2 takes small frames that wait unread for an attack and ends the connection
/// when their number passes half of this window divided by 256, and a gRPC stream of tiny messages
/// fills its own window with some 9,000 of them during one pause.
pub const STREAM_WINDOW: u32 = 64 << 10;
/// See [`STREAM_WINDOW`].
pub const CONNECTION_WINDOW: u32 = 16 << 20;

/// All pools of one worker, by endpoint and port. Pools are made when first needed.
pub struct Pools {
    pools: RefCell<ByEndpoint>,
    outbox: Rc<Outbox>,
}

type ByEndpoint = HashMap<(u64, u16), Rc<Pool>, BuildHasherDefault<Mixed>>;

/// A hash for keys that nobody outside chooses, because endpoints are numbered here: some 20
/// instructions for each request, where the standard one takes 450.
#[derive(Default)]
struct Mixed(u64);

impl Hasher for Mixed {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u16(&mut self, number: u16) {
        self.write_u64(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        // 2^64 divided by the golden ratio: Fibonacci hashing.
        self.0 = (self.0.rotate_left(5) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The connections to one endpoint.
pub struct Pool {
    idle: RefCell<Vec<Idle>>,
    shared: RefCell<Vec<Rc<Shared>>>,
    /// As many streams as the peer allowed last: what a new connection goes by until it is told.
    streams_allowed: Cell<Option<usize>>,
    /// Held while an h2 connection is being made, so that a burst of requests makes one.
    dialling: tokio::sync::Mutex<()>,
    /// The endpoint has left the table: nothing is kept any more.
    retired: Cell<bool>,
    outbox: Rc<Outbox>,
}

/// An h1 connection nobody uses, and since when.
struct Idle {
    line: Box<H1>,
    since: Instant,
}

/// What a request asks of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    H1,
    H2,
    /// Whichever ALPN picks.
    Either,
}

/// Why no connection could be had. Nothing was sent.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("http handshake: {0}")]
    Handshake(hyper::Error),
}

/// What every lease needs to know.
pub struct Want<'a> {
    pub endpoint: &'a Arc<Endpoint>,
    pub upstream: &'a Upstream,
    /// For an endpoint that names no port.
    pub port: u16,
    pub speaks: Speaks,
    /// How long an unused connection is good.
    pub idle: Duration,
    /// The request cannot be sent twice: look twice whether a reused connection still stands.
    pub is_precious: bool,
    /// A connection of others will not do: the request failed on one.
    pub is_fresh: bool,
    /// Set when a connection is really being made for this request, and not just waited for.
    pub is_dialling: Cell<bool>,
}

impl Pools {
    /// No pool yet. Their connections post small requests to `outbox`.
    pub fn new(outbox: &Rc<Outbox>) -> Self {
        Self {
            pools: RefCell::default(),
            outbox: outbox.clone(),
        }
    }

    /// The pool of an endpoint at a port.
    pub fn to(&self, endpoint: &Endpoint, port: u16) -> Rc<Pool> {
        let key = (endpoint.id, endpoint.port.unwrap_or(port));
        let mut pools = self.pools.borrow_mut();
        let pool = pools.entry(key);
        pool.or_insert_with(|| Pool::new(&self.outbox)).clone()
    }

    /// Closes idle connections older than `idle`, and forgets pools that hold nothing.
    pub fn sweep(&self, idle: Duration) {
        let now = Instant::now();
        self.pools.borrow_mut().retain(|_, pool| {
            pool.expire(now, idle);
            Rc::strong_count(pool) > 1 || !pool.is_empty()
        });
    }

    /// Keeps the pools of endpoints that `stays` knows; the others' connections end once idle.
    pub fn retain(&self, stays: impl Fn(u64) -> bool) {
        self.pools.borrow_mut().retain(|(endpoint, _), pool| {
            let keep = stays(*endpoint);
            if !keep {
                pool.retire();
            }
            keep
        });
    }
}

impl Pool {
    fn new(outbox: &Rc<Outbox>) -> Rc<Self> {
        Rc::new(Self {
            idle: RefCell::default(),
            shared: RefCell::default(),
            streams_allowed: Cell::default(),
            dialling: tokio::sync::Mutex::default(),
            retired: Cell::default(),
            outbox: outbox.clone(),
        })
    }

    /// A connection that has been used before and still stands, if there is one.
    pub fn reuse(self: &Rc<Self>, want: &Want<'_>, pass: Pass) -> Result<Lease, Pass> {
        if want.is_fresh {
            return Err(pass);
        }
        let line = match want.speaks {
            Speaks::H1 => self.idle_line(want).map(Line::H1),
            Speaks::H2 => self.shared_line(),
            Speaks::Either => self
                .shared_line()
                .or_else(|| self.idle_line(want).map(Line::H1)),
        };
        match line {
            Some(line) => {
                want.upstream.route.reused();
                Ok(self.lease(line, Origin::Reused, want, pass))
            }
            None => Err(pass),
        }
    }

    /// A connection made for this request, or an h2 connection that another request made meanwhile.
    ///
    /// # Errors
    /// When none can be made; the endpoint is avoided for a while then.
    pub async fn dial(self: &Rc<Self>, want: &Want<'_>, pass: Pass) -> Result<Lease, LeaseError> {
        let _alone;
        if want.speaks != Speaks::H1 {
            _alone = self.dialling.lock().await;
            if !want.is_fresh
                && let Some(line) = self.shared_line()
            {
                want.upstream.route.reused();
                return Ok(self.lease(line, Origin::Reused, want, pass));
            }
        }
        want.is_dialling.set(true);
        let dialled = match want
            .endpoint
            .dial(
                want.port,
                &want.upstream.protocol,
                want.speaks == Speaks::H1,
            )
            .await
        {
            Ok(dialled) => dialled,
            Err(error) => {
                want.endpoint.health.failed();
                want.upstream.route.connected(result_of(&error));
                return Err(error.into());
            }
        };
        want.endpoint.health.recovered();
        want.upstream.route.connected(ConnectResult::Ok);
        let socket = Socket::new(dialled, &self.outbox);
        let is_h2 = match want.speaks {
            Speaks::H1 => false,
            Speaks::H2 => true,
            Speaks::Either => socket.is_alpn_h2(),
        };
        let line = if is_h2 {
            Line::H2(self.share(socket, &want.upstream.route).await?, None)
        } else {
            Line::H1(H1::new(socket, &want.upstream.route))
        };
        Ok(self.lease(line, Origin::Dialled, want, pass))
    }

    fn lease(self: &Rc<Self>, line: Line, origin: Origin, want: &Want<'_>, pass: Pass) -> Lease {
        let route = want.upstream.route.clone();
        let is_tls = matches!(want.upstream.protocol, Protocol::Tls(_));
        Lease::new(line, origin, is_tls, self.clone(), route, pass)
    }

    /// Newest first: the connection used last is the least likely to have been closed upstream.
    fn idle_line(&self, want: &Want<'_>) -> Option<Box<H1>> {
        let mut idle = self.idle.borrow_mut();
        while let Some(Idle { mut line, since }) = idle.pop() {
            let stands = since.elapsed() < want.idle
                && line.connection.is_quiet()
                && (!want.is_precious || line.connection.socket().is_quiet());
            if stands {
                line.counted.becomes(&want.upstream.route, Use::Active);
                return Some(line);
            }
        }
        None
    }

    fn shared_line(&self) -> Option<Line> {
        let mut shared = self.shared.borrow_mut();
        shared.retain(|line| line.sender.is_ready());
        if let Some(line) = shared.last() {
            self.streams_allowed
                .set(Some(line.streams_allowed().max(1)));
        }
        shared
            .iter()
            .find(|line| line.has_room())
            .cloned()
            .map(|shared| Line::H2(Stream::open(shared), None))
    }

    async fn share(&self, socket: Socket, route: &Arc<Route>) -> Result<Stream, LeaseError> {
        let shared = Shared::open(socket, self.streams_allowed.get(), route).await?;
        if !self.retired.get() {
            self.shared.borrow_mut().push(shared.clone());
        }
        Ok(Stream::open(shared))
    }

    fn keep(&self, line: Box<H1>) {
        if !self.retired.get() {
            let since = Instant::now();
            self.idle.borrow_mut().push(Idle { line, since });
        }
    }

    fn forget(&self, line: &Rc<Shared>) {
        self.shared
            .borrow_mut()
            .retain(|known| !Rc::ptr_eq(known, line));
    }

    fn expire(&self, now: Instant, idle: Duration) {
        self.idle.borrow_mut().retain_mut(|idling| {
            let connection = &mut idling.line.connection;
            connection.shrink();
            now.duration_since(idling.since) < idle && connection.is_quiet()
        });
        self.shared.borrow_mut().retain(|line| {
            let is_quiet =
                line.streams.get() == 0 && now.duration_since(line.quiet_since.get()) >= idle;
            line.sender.is_ready() && !is_quiet
        });
    }

    fn retire(&self) {
        self.retired.set(true);
        self.idle.borrow_mut().clear();
        // The streams on a shared connection hold it until they end.
        self.shared.borrow_mut().clear();
    }

    fn is_empty(&self) -> bool {
        self.idle.borrow().is_empty() && self.shared.borrow().is_empty()
    }
}

fn result_of(error: &DialError) -> ConnectResult {
    match error {
        DialError::Resolve { .. } => ConnectResult::Resolve,
        DialError::Tls(_) => ConnectResult::Tls,
        DialError::Connect(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            ConnectResult::Refused
        }
        DialError::Connect(_) | DialError::Forbidden(_) => ConnectResult::Error,
    }
}

/// One more connection of a route, until dropped.
struct Counted {
    route: Arc<Route>,
    state: Use,
}

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Active,
    Idle,
}

impl Counted {
    fn new(route: &Arc<Route>, state: Use) -> Self {
        let counted = Self {
            route: route.clone(),
            state,
        };
        counted.gauge().inc();
        counted
    }

    /// Counts the connection as another, of the same endpoint's route.
    fn becomes(&mut self, route: &Arc<Route>, state: Use) {
        self.gauge().dec();
        if !Arc::ptr_eq(&self.route, route) {
            self.route = route.clone();
        }
        self.state = state;
        self.gauge().inc();
    }

    fn gauge(&self) -> &IntGauge {
        match self.state {
            Use::Active => self.route.active(),
            Use::Idle => self.route.idle(),
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.gauge().dec();
    }
}
