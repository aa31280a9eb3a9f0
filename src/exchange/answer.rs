//! The body of an answer, and all that ends with it: the record, the lease, the flight.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::Instant;

use crate::deadline::{Alarm, Deadlines};
use crate::drain::Flight;
use crate::pool::{AnswerError, Lease, Upload};
use crate::record::Record;
use crate::wire::Turn;

/// How long the engine gets to write the head of an answer whose body has broken already.
const FLUSH: Duration = Duration::from_millis(10);

/// The same with a client that is slow to read.
const FLUSH_AT_MOST: Duration = Duration::from_secs(1);

/// What the HTTP engine sends to the client.
pub struct Body {
    source: Source,
    /// `None` once the exchange goes on elsewhere, in a tunnel.
    account: Option<Box<Account>>,
}

enum Source {
    /// An answer of ours, or none.
    Own(Option<Bytes>),
    /// The upstream's, that came in one piece with its head.
    Whole(Option<Bytes>),
    /// Empty, but not absent.
    NotModified,
    Upstream(Box<Forwarded>),
}

/// What one exchange holds until its last byte. Dropped, it is written and done.
pub struct Account {
    pub record: Record,
    pub flight: Flight,
    pub turn: Turn,
    pub upload: Option<Rc<Upload>>,
}

/// A body on its way from the upstream.
struct Forwarded {
    /// Goes home with the last byte. Dropped earlier, it closes its connection.
    lease: Option<Lease>,
    idle: Idle,
    /// The client can tell the end only by the connection's: a broken body must reset it.
    ends_by_close: bool,
    /// It broke, but the engine must not be told yet: it would throw away the head it has not
    /// written, and the client would see a connection closed without an answer.
    broken: Option<(BodyError, Instant)>,
}

/// How long the upstream may be silent in the middle of a body.
struct Idle {
    limit: Duration,
    deadlines: Rc<Deadlines>,
    alarm: Option<Alarm>,
    is_waiting: bool,
}

/// Why a body ends before its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("the upstream broke off: {0}")]
    Upstream(#[from] AnswerError),
    #[error("the upstream was silent for too long")]
    Idle,
}

impl Body {
    /// An answer of ours.
    pub fn own(bytes: Bytes, account: Box<Account>) -> Self {
        let bytes = (!bytes.is_empty()).then_some(bytes);
        Self {
            source: Source::Own(bytes),
            account: Some(account),
        }
    }

    /// The answer to a condition: no body, and the length of one that is not sent.
    ///
    /// The engine drops `content-length` beside a body it knows to be absent, which is wrong for
    /// 304 (RFC 9110, section 8.6). Beside an empty body it trusts the header.
    pub fn not_modified(account: Box<Account>) -> Self {
        Self {
            source: Source::NotModified,
            account: Some(account),
        }
    }

    /// No body, of an exchange that goes on without HTTP.
    pub fn nothing() -> Self {
        Self {
            source: Source::Own(None),
            account: None,
        }
    }

    /// The upstream's answer. `idle` is how long it may be silent; `ends_by_close` that the client
    /// will know the end of the body only by the end of the connection.
    pub fn forwarded(
        mut lease: Lease,
        account: Box<Account>,
        idle: Duration,
        deadlines: &Rc<Deadlines>,
        ends_by_close: bool,
    ) -> Self {
        if lease.is_end_stream() {
            lease.home();
            return Self::own(Bytes::new(), account);
        }
        if let Some(bytes) = lease.whole_body() {
            lease.home();
            return Self {
                source: Source::Whole(Some(bytes)),
                account: Some(account),
            };
        }
        let idle = Idle {
            limit: idle,
            deadlines: deadlines.clone(),
            alarm: None,
            is_waiting: false,
        };
        let forwarded = Forwarded {
            lease: Some(lease),
            idle,
            ends_by_close,
            broken: None,
        };
        Self {
            source: Source::Upstream(Box::new(forwarded)),
            account: Some(account),
        }
    }
}

impl Forwarded {
    fn poll(
        &mut self,
        account: &mut Option<Box<Account>>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.broken.is_some() {
            return self.poll_broken(account, cx);
        }
        let Some(lease) = &mut self.lease else {
            return Poll::Ready(None);
        };
        let frame = match lease.poll_frame(cx) {
            Poll::Pending => {
                if let Some(account) = account {
                    account.turn.waits();
                }
                ready!(self.idle.poll(cx));
                self.broke(account, BodyError::Idle);
                return self.poll_broken(account, cx);
            }
            Poll::Ready(frame) => frame,
        };
        self.idle.is_waiting = false;
        match frame {
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                if let Some(account) = account {
                    account.record.downloaded(bytes as u64);
                    account.turn.gave();
                }
                // The engine does not ask again after the last byte of a known length, nor after
                // trailers.
                if frame.is_trailers() || lease.is_end_stream() {
                    self.finish();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                self.broke(account, error.into());
                self.poll_broken(account, cx)
            }
            None => {
                self.finish();
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let is_over = self.lease.as_ref().is_none_or(Lease::is_end_stream);
        is_over && self.broken.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let hint = self.lease.as_ref().map(Lease::size_hint);
        hint.unwrap_or(SizeHint::with_exact(0))
    }

    fn finish(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.home();
        }
    }

    fn broke(&mut self, account: &mut Option<Box<Account>>, error: BodyError) {
        self.lease = None;
        if let Some(account) = account {
            account.record.broken(match error {
                BodyError::Upstream(_) => "upstream",
                BodyError::Idle => "idle",
            });
            if self.ends_by_close {
                account.turn.reset_connection();
            }
        }
        if let Some(account) = account {
            // What there is has been handed over; it is up to the client to take it.
            account.turn.gave();
        }
        self.broken = Some((error, Instant::now()));
        self.idle.set(FLUSH);
    }

    /// Hands out the error once the engine has had the time to write what it holds. Not for ever: an
    /// HTTP/2 connection is never flushed while another of its streams saturates it.
    fn poll_broken(
        &mut self,
        account: &Option<Box<Account>>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            ready!(self.idle.poll(cx));
            let is_out = account
                .as_ref()
                .is_none_or(|account| account.turn.is_flushed());
            let is_late = self
                .broken
                .as_ref()
                .is_none_or(|(_, since)| since.elapsed() > FLUSH_AT_MOST);
            if is_out || is_late {
                return Poll::Ready(self.broken.take().map(|(error, _)| Err(error)));
            }
            self.idle.set(FLUSH);
        }
    }
}

impl Idle {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_waiting {
            self.set(self.limit);
        }
        match &self.alarm {
            Some(alarm) => alarm.poll(cx),
            None => Poll::Pending,
        }
    }

    fn set(&mut self, limit: Duration) {
        self.is_waiting = true;
        self.alarm
            .get_or_insert_with(|| self.deadlines.alarm())
            .set(limit);
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Self { source, account } = &mut *self;
        match source {
            Source::Own(bytes) => Poll::Ready(bytes.take().map(Frame::data).map(Ok)),
            Source::Whole(bytes) => {
                let bytes = bytes.take();
                if let (Some(account), Some(bytes)) = (account, &bytes) {
                    account.record.downloaded(bytes.len() as u64);
                }
                Poll::Ready(bytes.map(Frame::data).map(Ok))
            }
            Source::NotModified => Poll::Ready(None),
            Source::Upstream(forwarded) => forwarded.poll(account, cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Own(bytes) | Source::Whole(bytes) => bytes.is_none(),
            Source::NotModified => false,
            Source::Upstream(forwarded) => forwarded.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Own(bytes) | Source::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64)
            }
            Source::NotModified => SizeHint::with_exact(0),
            Source::Upstream(forwarded) => forwarded.size_hint(),
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        let is_broken = match &self.source {
            Source::Own(_) | Source::NotModified => false,
            Source::Whole(bytes) => bytes.is_some(),
            Source::Upstream(forwarded) => forwarded.lease.is_some(),
        };
        if is_broken && let Some(account) = &mut self.account {
            account.record.broken("client");
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if let Some(upload) = &self.upload {
            self.record.uploaded(upload.bytes());
        }
    }
}
