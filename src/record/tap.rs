//! Live requests for whoever listens, each with a bounded queue of its own.
//!
//! A slow listener loses events, which are counted; it never slows a request down.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use prometheus::IntCounter;
use tokio::sync::mpsc;

use super::line::Line;

/// Events that may wait for one listener.
const QUEUE: usize = 1024;

/// All listeners of this process.
#[derive(Debug)]
pub struct Tap {
    /// How many listen; read by every request, so that nobody listening costs one load.
    watchers: Arc<AtomicUsize>,
    // A lock, because workers and the admin port meet here. Requests take it only while
    // someone listens, and only to put a pointer into each queue.
    subscribers: Mutex<Vec<Subscriber>>,
    dropped: IntCounter,
}

#[derive(Debug)]
struct Subscriber {
    filter: Filter,
    events_tx: mpsc::Sender<Arc<str>>,
}

impl Tap {
    pub(super) fn new(dropped: IntCounter) -> Self {
        Self {
            watchers: Arc::default(),
            subscribers: Mutex::default(),
            dropped,
        }
    }

    /// Whether anybody listens at this moment.
    pub fn is_watched(&self) -> bool {
        self.watchers.load(Ordering::Relaxed) > 0
    }

    /// Listens to the requests that begin after this call and pass the filter.
    pub fn subscribe(&self, filter: Filter) -> Subscription {
        let (events_tx, events_rx) = mpsc::channel(QUEUE);
        let mut subscribers = self.lock();
        subscribers.retain(|subscriber| !subscriber.events_tx.is_closed());
        subscribers.push(Subscriber { filter, events_tx });
        self.watchers.fetch_add(1, Ordering::Relaxed);
        Subscription {
            events_rx,
            watchers: Arc::clone(&self.watchers),
        }
    }

    /// Hands a finished exchange to all who want it.
    pub(super) fn publish(&self, line: &Line) {
        if !self.is_watched() {
            return;
        }
        // Written outside of the lock, and once for all.
        let event = Arc::<str>::from(line.to_json());
        for subscriber in self
            .lock()
            .iter()
            .filter(|subscriber| subscriber.filter.wants(line))
        {
            let sent = subscriber.events_tx.try_send(Arc::clone(&event));
            if let Err(mpsc::error::TrySendError::Full(_)) = sent {
                self.dropped.inc();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Subscriber>> {
        // A list of senders is sound after any panic.
        self.subscribers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// One listener's end; dropping it ends the listening.
#[derive(Debug)]
pub struct Subscription {
    events_rx: mpsc::Receiver<Arc<str>>,
    watchers: Arc<AtomicUsize>,
}

impl Subscription {
    /// The next exchange as one JSON object. `None` when the journal is gone.
    pub async fn next(&mut self) -> Option<Arc<str>> {
        self.events_rx.recv().await
    }

    /// The same for a body that is polled.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Arc<str>>> {
        self.events_rx.poll_recv(cx)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.watchers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Which requests a listener wants. The default is all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// What a request said, or the route it took.
    pub session: Option<String>,
    /// The status of the answer.
    pub status: Option<StatusFilter>,
}

impl Filter {
    fn wants(&self, line: &Line) -> bool {
        let session = self.session.as_deref();
        let session = session
            .is_none_or(|wanted| line.session.as_deref() == Some(wanted) || line.route == wanted);
        session && self.status.is_none_or(|wanted| wanted.wants(line.status))
    }
}

/// One status, such as `503`, or a class of them, such as `5xx`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusFilter {
    /// Exactly this one.
    Exactly(u16),
    /// All that begin with this digit, 1 to 9.
    Class(u16),
}

impl StatusFilter {
    fn wants(self, status: u16) -> bool {
        match self {
            Self::Exactly(wanted) => status == wanted,
            Self::Class(wanted) => status / 100 == wanted,
        }
    }
}

impl std::str::FromStr for StatusFilter {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let advice = "a status is three digits such as 503, or a class such as 5xx";
        let digit = |byte: u8| {
            byte.is_ascii_digit()
                .then(|| u16::from(byte - b'0'))
                .ok_or(advice)
        };
        match text.as_bytes() {
            [class @ b'1'..=b'9', b'x' | b'X', b'x' | b'X'] => Ok(Self::Class(digit(*class)?)),
            [a @ b'1'..=b'9', b, c] => Ok(Self::Exactly(
                digit(*a)? * 100 + digit(*b)? * 10 + digit(*c)?,
            )),
            _ => Err(advice),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::line::tests::line;

    fn tap() -> Tap {
        Tap::new(IntCounter::new("n", "n").unwrap())
    }

    #[tokio::test]
    async fn a_listener_gets_what_its_filter_wants() {
        let tap = tap();
        let session = Some("pr-42".to_owned());
        let mut subscription = tap.subscribe(Filter {
            session,
            status: Some(StatusFilter::Class(2)),
        });

        tap.publish(&line("pr-43", "/other"));
        tap.publish(&Line {
            status: 503,
            ..line("pr-42", "/failed")
        });
        tap.publish(&line("pr-42", "/wanted"));

        let event = subscription.next().await.unwrap();
        assert!(event.contains("/wanted"), "{event}");
    }

    #[test]
    fn a_slow_listener_loses_events_and_they_are_counted() {
        let tap = tap();
        let subscription = tap.subscribe(Filter::default());

        (0..QUEUE + 7).for_each(|_| tap.publish(&line("pr-42", "/")));

        assert_eq!(tap.dropped.get(), 7);
        drop(subscription);
    }

    #[test]
    fn nobody_is_watching_once_the_last_listener_left() {
        let tap = tap();
        let first = tap.subscribe(Filter::default());
        drop(first);
        assert!(!tap.is_watched());

        let _second = tap.subscribe(Filter::default());
        assert!(tap.is_watched());
        assert_eq!(tap.lock().len(), 1);
    }

    #[test]
    fn a_status_is_a_number_or_a_class() {
        for (text, filter) in [
            ("503", Ok(StatusFilter::Exactly(503))),
            ("5xx", Ok(StatusFilter::Class(5))),
            ("4XX", Ok(StatusFilter::Class(4))),
        ] {
            assert_eq!(text.parse(), filter);
        }
        for text in ["", "x", "5x", "50x", "0xx", "5000", "abc", "5\u{e9}"] {
            assert!(text.parse::<StatusFilter>().is_err(), "{text}");
        }
    }
}
