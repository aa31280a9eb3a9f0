//! One coarse timer per worker for every deadline of its connections and requests.
//!
//! A deadline that is set and moved a million times costs a few instructions each; only
//! those that really pass cost a wake-up. The price is precision: an alarm rings up to
//! twice [`RESOLUTION`] late, never early.

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
    /// Those in use and, between them, places for new ones: a request sets an alarm, and none of it
    /// is allocated anew.
    places: RefCell<Vec<Place>>,
    free: RefCell<Vec<usize>>,
    /// No alarm rings before this; `None` while nothing is set.
    earliest: Cell<Option<Instant>>,
    earlier: Notify,
}

#[derive(Default)]
struct Place {
    at: Option<Instant>,
    has_rung: bool,
    waker: Option<Waker>,
}

/// One deadline that can be set again and again. Unset when dropped.
pub struct Alarm {
    deadlines: Rc<Deadlines>,
    place: usize,
}

/// The deadline passed first.
#[derive(Debug, PartialEq, Eq)]
pub struct Elapsed;

impl Deadlines {
    /// An alarm that is not set yet.
    pub fn alarm(self: &Rc<Self>) -> Alarm {
        let place = self.free.borrow_mut().pop().unwrap_or_else(|| {
            let mut places = self.places.borrow_mut();
            places.push(Place::default());
            places.len() - 1
        });
        Alarm {
            deadlines: self.clone(),
            place,
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
        for place in self.places.borrow_mut().iter_mut() {
            if let Some(waker) = place.waker.take() {
                waker.wake();
            }
        }
    }

    fn ring(&self) {
        let now = Instant::now();
        let mut earliest: Option<Instant> = None;
        for place in self.places.borrow_mut().iter_mut() {
            match place.at {
                Some(at) if at <= now => {
                    place.at = None;
                    place.has_rung = true;
                    if let Some(waker) = place.waker.take() {
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
    /// Rings after `limit` from now, whatever was set before. Returns what time it is.
    pub fn set(&self, limit: Duration) -> Instant {
        let now = Instant::now();
        // A limit too long for the clock is no limit.
        let at = now.checked_add(limit);
        let place = &mut self.deadlines.places.borrow_mut()[self.place];
        place.at = at;
        place.has_rung = false;
        let earliest = &self.deadlines.earliest;
        if at.is_some_and(|at| earliest.get().is_none_or(|earliest| at < earliest)) {
            earliest.set(at);
            self.deadlines.earlier.notify_one();
        }
        now
    }

    /// Ready once the deadline has passed, and until it is set again. Asks no clock: the worker's
    /// timer has, for all.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut places = self.deadlines.places.borrow_mut();
        let Place {
            has_rung, waker, ..
        } = &mut places[self.place];
        if *has_rung {
            return Poll::Ready(());
        }
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
        self.deadlines.places.borrow_mut()[self.place] = Place::default();
        self.deadlines.free.borrow_mut().push(self.place);
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
            assert_eq!(deadlines.free.borrow().len(), 8);
        });
    }
}
