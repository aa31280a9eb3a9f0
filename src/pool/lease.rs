//! One request's use of a connection.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Version, request, response};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;

use super::line::H1;
use super::shared::Stream;
use super::{Outgoing, Pool, Socket, Use};
use crate::http1;
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
    H1(Box<H1>),
    /// With the body of the answer, once there is one.
    H2(Stream, Option<Incoming>),
}

/// How long the rest of a request may take whose answer is over.
const REST_OF_UPLOAD: Duration = Duration::from_secs(60);

/// Why no answer came.
#[derive(Debug)]
pub enum SendError {
    /// Not one byte was acted on: none was written, or hyper gave the request back.
    Unsent,
    /// Not one byte was acted on: the peer said so with REFUSED_STREAM (RFC 9113, section 8.7) or a
    /// GOAWAY below the stream (section 6.8).
    Refused,
    /// The peer has seen the request: it ended the stream on a connection that stands, or answered
    /// with something that is no answer.
    Reset(Cause),
    /// The connection ended. Anything may have happened.
    Lost(Cause),
}

/// What the engine said.
type Cause = Box<dyn std::error::Error>;

/// Why the body of an answer ends before its end.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    #[error(transparent)]
    H1(#[from] http1::BodyError),
    #[error(transparent)]
    H2(#[from] hyper::Error),
    /// RFC 9113, section 8.1: reset without an error, but without an end either.
    #[error("the stream was ended in the middle of the body")]
    Cut,
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
            Line::H2(..) => Version::HTTP_2,
        }
    }

    /// Whether the connection is encrypted.
    pub fn is_tls(&self) -> bool {
        self.is_tls
    }

    /// Sends a request and waits for the head of the answer, without a deadline. The body of the
    /// answer is the lease's then. Without an answer `head` is untouched; with one it is of no more use.
    ///
    /// # Errors
    /// See [`SendError`]: what may be sent again is told by its kind.
    pub async fn send(
        &mut self,
        head: &mut request::Parts,
        body: Outgoing,
    ) -> Result<response::Parts, SendError> {
        match &mut self.line {
            Line::H1(line) => Ok(line.connection.send(head, body).await?),
            Line::H2(stream, answer) => {
                let request = Request::from_parts(head.clone(), body);
                let response = stream.0.sender.clone().try_send_request(request).await?;
                let (head, incoming) = response.into_parts();
                *answer = Some(incoming);
                Ok(head)
            }
        }
    }

    /// The answer's body, if all of it is here.
    pub fn whole_body(&mut self) -> Option<Bytes> {
        match &mut self.line {
            Line::H1(line) => line.connection.whole_body(),
            Line::H2(..) => None,
        }
    }

    /// The next frame of the answer's body; `None` behind the last.
    ///
    /// # Errors
    /// See [`AnswerError`].
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        match &mut self.line {
            Line::H1(line) => line.connection.poll_frame(cx).map_err(AnswerError::from),
            Line::H2(_, None) => Poll::Ready(None),
            Line::H2(_, Some(incoming)) => match Pin::new(&mut *incoming).poll_frame(cx) {
                Poll::Ready(None) if !incoming.is_end_stream() => {
                    Poll::Ready(Some(Err(AnswerError::Cut)))
                }
                polled => polled.map_err(AnswerError::from),
            },
        }
    }

    /// Whether the answer's body is known to be over.
    pub fn is_end_stream(&self) -> bool {
        match &self.line {
            Line::H1(line) => line.connection.is_end_stream(),
            Line::H2(_, answer) => answer.as_ref().is_none_or(Incoming::is_end_stream),
        }
    }

    /// What is known of the length of the answer's body.
    pub fn size_hint(&self) -> SizeHint {
        match &self.line {
            Line::H1(line) => line.connection.size_hint(),
            Line::H2(_, answer) => answer
                .as_ref()
                .map_or(SizeHint::with_exact(0), Incoming::size_hint),
        }
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
        if line.connection.is_ready() {
            line.counted.becomes(&route, Use::Idle);
            pool.keep(line);
        } else if line.connection.is_sending() {
            // The answer came before the request was out; the rest of that may still be on its way.
            tokio::task::spawn_local(async move {
                let finishing = line.connection.finish();
                // One that is not over by then is not worth a wait: dropped, it is closed.
                if let Ok(true) = tokio::time::timeout(REST_OF_UPLOAD, finishing).await {
                    line.counted.becomes(&route, Use::Idle);
                    pool.keep(line);
                }
            });
        }
    }

    /// No answer came in time: on an h2 connection that may be because the peer is gone. Others
    /// shall not wait for it too; the streams that are open go on.
    pub fn distrust(&self) {
        if let Line::H2(stream, _) = &self.line {
            self.pool.forget(&stream.0);
        }
    }

    /// The byte stream behind a 101 and what was read beyond it; `None` where there are no upgrades.
    /// The lease is held by the caller for as long as the tunnel lives.
    pub fn upgraded(&mut self) -> Option<(Socket, Bytes)> {
        match &mut self.line {
            Line::H1(line) => Some(line.connection.upgraded()),
            Line::H2(..) => None,
        }
    }
}

impl From<http1::SendError> for SendError {
    fn from(failure: http1::SendError) -> Self {
        match failure {
            http1::SendError::Unsent => Self::Unsent,
            http1::SendError::Nonsense(nonsense) => Self::Reset(nonsense.into()),
            http1::SendError::Lost(error) => Self::Lost(error.into()),
            http1::SendError::Body => Self::Lost("the body of the request broke off".into()),
        }
    }
}

impl From<TrySendError<Request<Outgoing>>> for SendError {
    fn from(mut failure: TrySendError<Request<Outgoing>>) -> Self {
        if failure.take_message().is_some() {
            return Self::Unsent;
        }
        let error = failure.into_error();
        match h2_cause(&error) {
            Some(cause) if was_refused(cause) => Self::Refused,
            Some(cause) if cause.is_reset() => Self::Reset(error.into()),
            _ => Self::Lost(error.into()),
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
