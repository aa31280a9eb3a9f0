//! An h1 connection and the task that drives it.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::sync::Notify;

use super::{Counted, LeaseError, Outgoing, Socket};
use crate::metrics::Route;

/// An h1 connection between two requests or in one.
pub(super) struct H1 {
    pub(super) sender: http1::SendRequest<Outgoing>,
    pub(super) socket: Socket,
    pub(super) upgrade: Rc<Upgrade>,
    pub(super) counted: Counted,
    _driver: Driver,
}

/// The task that drives an h1 connection. A connection that is let go in the middle of an exchange
/// ends at once: asked to end, the engine would first write what it holds, and a peer that does not
/// read would keep it for ever.
struct Driver(tokio::task::AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Where the driver of an h1 connection leaves the byte stream after a 101.
#[derive(Default)]
pub(super) struct Upgrade {
    pub(super) expected: Cell<bool>,
    pub(super) stream: RefCell<Option<(Socket, bytes::Bytes)>>,
    pub(super) left: Notify,
}

impl H1 {
    pub(super) async fn open(socket: Socket, route: &Route) -> Result<Self, LeaseError> {
        let (sender, mut connection) = http1::Builder::new()
            .handshake(TokioIo::new(socket.clone()))
            .await
            .map_err(LeaseError::Handshake)?;
        let upgrade = Rc::new(Upgrade::default());
        let left = upgrade.clone();
        let driver = tokio::task::spawn_local(async move {
            // What goes wrong here is told to the exchange that waits for the answer.
            let _ = std::future::poll_fn(|cx| Pin::new(&mut connection).poll(cx)).await;
            if left.expected.get() {
                let parts = connection.into_parts();
                left.stream
                    .replace(Some((parts.io.into_inner(), parts.read_buf)));
                left.left.notify_one();
            }
        });
        Ok(Self {
            sender,
            socket,
            upgrade,
            counted: Counted::new(route.active()),
            _driver: Driver(driver.abort_handle()),
        })
    }
}
