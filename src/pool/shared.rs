//! An h2 connection that many requests share.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::{CONNECTION_WINDOW, Counted, LeaseError, Outgoing, STREAM_WINDOW, Socket, Use};
use crate::metrics::Route;

/// Bytes of an HTTP/2 answer's head: what comes from our own apps is trusted to be large with reason.
const HEADER_LIST: u32 = 256 << 10;

/// Streams a peer is taken to allow before its SETTINGS have come: RFC 9113, section 6.5.2, wants
/// no fewer.
const STREAMS_ASSUMED: usize = 100;

/// An h2 connection and how much it carries.
pub(super) struct Shared {
    pub(super) sender: http2::SendRequest<Outgoing>,
    pub(super) streams: Cell<usize>,
    opened: Cell<u32>,
    /// Knows how many streams the peer allows; `None` once the connection is over.
    connection: Rc<RefCell<Option<H2Connection>>>,
    pub(super) quiet_since: Cell<Instant>,
    route: Arc<Route>,
    counted: RefCell<Counted>,
}

/// One stream's place on a shared connection.
pub(super) struct Stream(pub(super) Rc<Shared>);

type H2Connection = http2::Connection<TokioIo<Socket>, Outgoing, LocalExecutor>;

/// Drives an h2 connection to its end.
async fn drive(connection: Rc<RefCell<Option<H2Connection>>>) {
    std::future::poll_fn(|cx| match &mut *connection.borrow_mut() {
        // What goes wrong here is told to the streams that wait for answers.
        Some(connection) => Pin::new(connection).poll(cx).map(drop),
        None => Poll::Ready(()),
    })
    .await;
    connection.replace(None);
}

impl Shared {
    /// Client streams have 2^30 numbers (RFC 9113, section 5.1.1); a new connection takes over in
    /// good time, and also when the peer allows no more streams at once.
    const STREAMS_IN_A_LIFE: u32 = 1 << 29;

    /// Speaks HTTP/2 on a stream. `allowed` streams are taken to be allowed until the peer says.
    pub(super) async fn open(
        socket: Socket,
        allowed: Option<usize>,
        route: &Arc<Route>,
    ) -> Result<Rc<Self>, LeaseError> {
        let (sender, connection) = http2::Builder::new(LocalExecutor)
            .initial_max_send_streams(allowed.unwrap_or(STREAMS_ASSUMED))
            .max_header_list_size(HEADER_LIST)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(TokioIo::new(socket))
            .await
            .map_err(LeaseError::Handshake)?;
        let connection = Rc::new(RefCell::new(Some(connection)));
        tokio::task::spawn_local(drive(connection.clone()));
        Ok(Rc::new(Self {
            sender,
            streams: Cell::new(0),
            opened: Cell::new(0),
            connection,
            quiet_since: Cell::new(Instant::now()),
            route: route.clone(),
            counted: RefCell::new(Counted::new(route, Use::Idle)),
        }))
    }

    /// What the peer's SETTINGS say, as far as they have come.
    pub(super) fn streams_allowed(&self) -> usize {
        let connection = self.connection.borrow();
        connection
            .as_ref()
            .map_or(0, H2Connection::current_max_send_streams)
    }

    pub(super) fn has_room(&self) -> bool {
        self.opened.get() < Self::STREAMS_IN_A_LIFE && self.streams.get() < self.streams_allowed()
    }
}

impl Stream {
    pub(super) fn open(shared: Rc<Shared>) -> Self {
        if shared.streams.get() == 0 {
            shared
                .counted
                .borrow_mut()
                .becomes(&shared.route, Use::Active);
        }
        shared.streams.set(shared.streams.get() + 1);
        shared.opened.set(shared.opened.get() + 1);
        Self(shared)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get() - 1);
        if self.0.streams.get() == 0 {
            self.0
                .counted
                .borrow_mut()
                .becomes(&self.0.route, Use::Idle);
            self.0.quiet_since.set(Instant::now());
        }
    }
}

/// Runs an engine's tasks on the worker that asked.
#[derive(Clone, Copy, Debug)]
struct LocalExecutor;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(task);
    }
}
