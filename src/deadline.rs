//! One coarse timer per worker for every deadline of its connections and requests.
//!
//! A deadline that is set and moved a million times costs a few instructions each; only
//! those that really pass cost a wake-up. The price is precision: an alarm rings up to
//! [`RESOLUTION`] late, never early.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// How late an alarm may ring: deadlines are seconds, and rarely met.
pub const RESOLUTION: Duration = Duration::from_millis(10);

/// All alarms of one worker.
#[derive(Default)]
pub struct Deadlines {
    alarms: RefCell<Vec<Rc<Entry>>>,
    /// No alarm rings before this; `None` while nothing is set.
    earliest: Cell<Option<Instant>>,
    earlier: Notify,
}

struct Entry {
    at: Cell<Option<Instant>>,
    waker: RefCell<Option<Waker>>,
    place: Cell<usize>,
}

/// One deadline that can be set again and again. Unset when dropped.
pub struct Alarm {
    deadlines: Rc<Deadlines>,
    entry: Rc<Entry>,
}

/// The deadline passed first.
#[derive(Debug, PartialEq, Eq)]
pub struct Elapsed;

impl Deadlines {
    /// An alarm that is not set yet.
    pub fn alarm(self: &Rc<Self>) -> Alarm {
        let mut alarms = self.alarms.borrow_mut();
        let entry = Rc::new(Entry {
            at: Cell::new(None),
            waker: RefCell::new(None),
            place: Cell::new(alarms.len()),
        });
        alarms.push(entry.clone());
        Alarm {
            deadlines: self.clone(),
            entry,
        }
    }

    /// Waits for `future`, at most for `limit`.
    pub async fn within<F: Future>(
        self: &Rc<Self>,
        limit: Duration,
        future: F,
    ) -> Result<F::Output, Elapsed> {
        let mut future = pin!(future);
        let mut alarm = None;
        poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Ok(output));
            }
            // The clock starts at the first wait: what is ready at once sets no alarm.
            let alarm = alarm.get_or_insert_with(|| {
                let alarm = self.alarm();
                alarm.set(limit);
                alarm
            });
            alarm.poll(cx).map(|()| Err(Elapsed))
        })
        .await
    }

    /// Rings the alarms, for as long as the worker lives.
    pub async fn run(self: Rc<Self>) {
        loop {
            let Some(earliest) = self.earliest.get() else {
                self.earlier.notified().await;
                continue;
            };
            // Never sooner than one resolution from now, so that a crowd of alarms rings together.
            let next = earliest.max(Instant::now() + RESOLUTION);
            tokio::select! {
                () = tokio::time::sleep_until(next) => self.ring(),
                () = self.earlier.notified() => {}
            }
        }
    }

    /// Wakes everyone who waits for an alarm, so that they look around: the drain has started.
    pub fn wake_all(&self) {
        for entry in self.alarms.borrow().iter() {
            if let Some(waker) = entry.waker.borrow_mut().take() {
                waker.wake();
            }
        }
    }

    fn ring(&self) {
        let now = Instant::now();
        let mut earliest: Option<Instant> = None;
        for entry in self.alarms.borrow().iter() {
            match entry.at.get() {
                Some(at) if at <= now => {
                    // Kept as the past instant: it tells the poller that it rang.
                    if let Some(waker) = entry.waker.borrow_mut().take() {
                        waker.wake();
                    }
                }
                Some(at) => earliest = Some(earliest.map_or(at, |e| e.min(at))),
                None => {}
            }
        }
        self.earliest.set(earliest);
    }
}

impl Alarm {
    /// Rings after `limit` from now, whatever was set before.
    pub fn set(&self, limit: Duration) {
        // A limit too long for the clock is no limit.
        let at = Instant::now().checked_add(limit);
        self.entry.at.set(at);
        let Some(at) = at else { return };
        if self
            .deadlines
            .earliest
            .get()
            .is_none_or(|earliest| at < earliest)
        {
            self.deadlines.earliest.set(Some(at));
            self.deadlines.earlier.notify_one();
        }
    }

    /// Ready once the deadline has passed, and until it is set again.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(at) = self.entry.at.get() else {
            return Poll::Pending;
        };
        if at <= Instant::now() {
            return Poll::Ready(());
        }
        let mut waker = self.entry.waker.borrow_mut();
        if !waker
            .as_ref()
            .is_some_and(|known| known.will_wake(cx.waker()))
        {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        let mut alarms = self.deadlines.alarms.borrow_mut();
        let place = self.entry.place.get();
        alarms.swap_remove(place);
        if let Some(moved) = alarms.get(place) {
            moved.place.set(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T>(test: impl AsyncFnOnce(Rc<Deadlines>) -> T) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime can be built");
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let deadlines = Rc::new(Deadlines::default());
            tokio::task::spawn_local(deadlines.clone().run());
            test(deadlines).await
        })
    }

    #[test]
    fn an_alarm_rings_at_its_time_and_not_before() {
        run(async |deadlines| {
            let start = Instant::now();
            let alarm = deadlines.alarm();
            alarm.set(Duration::from_secs(2));
            poll_fn(|cx| alarm.poll(cx)).await;
            assert!(start.elapsed() >= Duration::from_secs(2));
            assert!(start.elapsed() < Duration::from_secs(2) + 3 * RESOLUTION);
        });
    }

    #[test]
    fn an_alarm_set_earlier_than_all_others_rings_first() {
        run(async |deadlines| {
            let late = deadlines.alarm();
            late.set(Duration::from_secs(60));
            tokio::task::yield_now().await;
            let waited = deadlines.within(Duration::from_secs(1), std::future::pending::<()>());
            assert_eq!(waited.await, Err(Elapsed));
        });
    }

    #[test]
    fn dropping_alarms_in_any_order_keeps_the_others() {
        run(async |deadlines| {
            let mut alarms: Vec<_> = (0..9).map(|_| deadlines.alarm()).collect();
            let last = alarms.pop().expect("nine were made");
            while !alarms.is_empty() {
                alarms.swap_remove(alarms.len() / 2);
            }
            last.set(Duration::from_secs(1));
            poll_fn(|cx| last.poll(cx)).await;
            assert_eq!(deadlines.alarms.borrow().len(), 1);
        });
    }
}
