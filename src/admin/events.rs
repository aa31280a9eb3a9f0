//! The tap as a body: server-sent events, one for each exchange.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// A comment at least this often, so that both ends notice when the other is gone.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// The next event as one JSON object; `None` when there will be no more.
type Source = dyn FnMut(&mut Context<'_>) -> Poll<Option<Arc<str>>> + Send;

/// A body that ends only with its reader or with the proxy.
pub struct Events {
    source: Box<Source>,
    heartbeat: Interval,
    /// Free again for another tap when this is dropped.
    _place: OwnedSemaphorePermit,
}

impl Events {
    /// The first heartbeat is due at once: it tells the reader that the listening has begun.
    pub(super) fn new(
        source: impl FnMut(&mut Context<'_>) -> Poll<Option<Arc<str>>> + Send + 'static,
        place: OwnedSemaphorePermit,
    ) -> Self {
        let mut heartbeat = interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            source: Box::new(source),
            heartbeat,
            _place: place,
        }
    }
}

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let text = match (self.source)(cx) {
            // JSON on one line: no line break in it can end the event early.
            Poll::Ready(Some(event)) => format!("data: {event}\n\n"),
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Pending => {
                ready!(self.heartbeat.poll_tick(cx));
                ": listening\n\n".to_owned()
            }
        };
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(text)))))
    }
}
