//! One request's use of a connection.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;

use super::line::H1;
use super::shared::Stream;
use super::{Counted, Outgoing, Pool, Socket};
use crate::metrics::Route;
use crate::upstream::Pass;

/// Where a leased connection came from: only a reused one may have died unseen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    Dialled,
    Reused,
}

/// One request's use of a connection. Dropped without [`Lease::home`], it closes an h1 connection.
pub struct Lease {
    line: Line,
    origin: Origin,
    is_tls: bool,
    pool: Rc<Pool>,
    route: Arc<Route>,
    _pass: Pass,
}

pub(super) enum Line {
    H1(H1),
    H2(Stream),
}

/// How long the rest of a request may take whose answer is over.
const REST_OF_UPLOAD: Duration = Duration::from_secs(60);

/// Why no answer came.
#[derive(Debug)]
pub enum SendError {
    /// Not one byte was acted on, and hyper gave the request back.
    Unsent(Box<Request<Outgoing>>),
    /// Not one byte was acted on: the peer said so with REFUSED_STREAM (RFC 9113, section 8.7) or a
    /// GOAWAY below the stream (section 6.8).
    Refused,
    /// The peer has seen the request: it ended the stream on a connection that stands, or answered
    /// with something that is no answer.
    Reset(hyper::Error),
    /// The connection ended. Anything may have happened.
    Lost(hyper::Error),
}

impl Lease {
    pub(super) fn new(
        line: Line,
        origin: Origin,
        is_tls: bool,
        pool: Rc<Pool>,
        route: Arc<Route>,
        pass: Pass,
    ) -> Self {
        Self {
            line,
            origin,
            is_tls,
            pool,
            route,
            _pass: pass,
        }
    }

    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// The version spoken on this connection.
    pub fn version(&self) -> Version {
        match self.line {
            Line::H1(_) => Version::HTTP_11,
            Line::H2(_) => Version::HTTP_2,
        }
    }

    /// Whether the connection is encrypted.
    pub fn is_tls(&self) -> bool {
        self.is_tls
    }

    /// The next request on this connection may change the protocol.
    pub fn expect_upgrade(&self) {
        if let Line::H1(line) = &self.line {
            line.upgrade.expected.set(true);
        }
    }

    /// Sends a request and waits for the head of the answer, without a deadline.
    ///
    /// # Errors
    /// See [`SendError`]: what may be sent again is told by its kind.
    pub async fn send(
        &mut self,
        request: Request<Outgoing>,
    ) -> Result<Response<Incoming>, SendError> {
        let sent = match &mut self.line {
            Line::H1(line) => line.sender.try_send_request(request).await,
            Line::H2(stream) => stream.0.sender.clone().try_send_request(request).await,
        };
        sent.map_err(SendError::from)
    }

    /// The exchange is over, and the connection can carry another.
    pub fn home(self) {
        let Self {
            line: Line::H1(mut line),
            pool,
            route,
            ..
        } = self
        else {
            return;
        };
        if line.sender.is_ready() {
            line.counted = Counted::new(route.idle());
            pool.keep(line);
        } else if !line.sender.is_closed() {
            // The answer came before the request was out; the rest of that may still be on its way.
            tokio::task::spawn_local(async move {
                let ready = poll_fn(|cx| line.sender.poll_ready(cx));
                // One that is not over by then is not worth a wait: dropped, it is closed.
                if let Ok(Ok(())) = tokio::time::timeout(REST_OF_UPLOAD, ready).await {
                    line.counted = Counted::new(route.idle());
                    pool.keep(line);
                }
            });
        }
    }

    /// No answer came in time: on an h2 connection that may be because the peer is gone. Others
    /// shall not wait for it too; the streams that are open go on.
    pub fn distrust(&self) {
        if let Line::H2(stream) = &self.line {
            self.pool.forget(&stream.0);
        }
    }

    /// The byte stream behind a 101 and what was read beyond it; `None` if the connection broke.
    /// The lease is held by the caller for as long as the tunnel lives.
    pub async fn upgraded(&self) -> Option<(Socket, bytes::Bytes)> {
        let Line::H1(line) = &self.line else {
            return None;
        };
        line.upgrade.left.notified().await;
        line.upgrade.stream.take()
    }
}

impl From<TrySendError<Request<Outgoing>>> for SendError {
    fn from(mut failure: TrySendError<Request<Outgoing>>) -> Self {
        if let Some(request) = failure.take_message() {
            return Self::Unsent(Box::new(request));
        }
        let error = failure.into_error();
        match h2_cause(&error) {
            Some(cause) if was_refused(cause) => Self::Refused,
            Some(cause) if cause.is_reset() => Self::Reset(error),
            None if error.is_parse() => Self::Reset(error),
            _ => Self::Lost(error),
        }
    }
}

fn h2_cause(error: &hyper::Error) -> Option<&h2::Error> {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref() {
            return Some(error);
        }
        source = error.source();
    }
    None
}

/// Whether the peer said that it did not begin with the request. A stream that fails by a remote
/// GOAWAY is one above its last stream: h2 lets those below finish.
fn was_refused(error: &h2::Error) -> bool {
    error.is_remote() && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM))
}
