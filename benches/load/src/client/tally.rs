//! What is counted: answers within the measured time, errors at any time.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::expected::Failure;
use super::pace::Pace;

/// So that a proxy that refuses everything is not asked as fast as the machine can.
const AFTER_ERROR: Duration = Duration::from_millis(10);

pub struct Tally {
    phase: Cell<Phase>,
    requests: Cell<u64>,
    in_time: Cell<u64>,
    errors: Cell<u64>,
    first_error: RefCell<Option<String>>,
    unsent: Cell<u64>,
    unanswered: Cell<u64>,
    // Nanoseconds.
    latencies: RefCell<Histogram<u64>>,
    answered: Cell<u64>,
}

#[derive(Clone, Copy)]
enum Phase {
    WarmUp,
    /// Answers that come now count.
    Closed,
    /// Requests that were due between these times count, whenever they are answered.
    Open(Instant, Option<Instant>),
    Over,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            phase: Cell::new(Phase::WarmUp),
            requests: Cell::new(0),
            in_time: Cell::new(0),
            errors: Cell::new(0),
            first_error: RefCell::default(),
            unsent: Cell::new(0),
            unanswered: Cell::new(0),
            latencies: RefCell::new(
                // Up to a minute, to a tenth of a percent.
                Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("the bounds are in order"),
            ),
            answered: Cell::new(0),
        }
    }
}

impl Tally {
    pub fn measure(&self, began: Instant, open: bool) {
        let phase = if open {
            Phase::Open(began, None)
        } else {
            Phase::Closed
        };
        self.phase.set(phase);
    }

    /// Waits until so many requests were counted.
    pub async fn at_least(&self, requests: u64, most: Duration) {
        let deadline = Instant::now() + most;
        while self.requests.get() < requests && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The measured time is over. An open loop still counts late answers to what was due in it.
    pub fn close(&self, ended: Instant) {
        let phase = match self.phase.get() {
            Phase::Open(began, _) => Phase::Open(began, Some(ended)),
            _ => Phase::Over,
        };
        self.phase.set(phase);
    }

    /// Counts one request.
    pub async fn count(&self, began: Instant, result: Result<(), Failure>) {
        match result {
            Ok(()) => self.answer(began),
            Err(failure) => {
                self.errors.set(self.errors.get() + 1);
                self.first_error
                    .borrow_mut()
                    .get_or_insert_with(|| failure.to_string());
                tokio::time::sleep(AFTER_ERROR).await;
            }
        }
    }

    fn answer(&self, began: Instant) {
        self.answered.set(self.answered.get() + 1);
        let counts = match self.phase.get() {
            Phase::Closed => true,
            Phase::Open(from, to) => from <= began && to.is_none_or(|to| began < to),
            Phase::WarmUp | Phase::Over => false,
        };
        if self.is_measured() {
            self.in_time.set(self.in_time.get() + 1);
        }
        if counts {
            self.requests.set(self.requests.get() + 1);
            self.latency(began.elapsed());
        }
    }

    /// Whether the proxy's account of CPU time is running.
    fn is_measured(&self) -> bool {
        matches!(self.phase.get(), Phase::Closed | Phase::Open(_, None))
    }

    fn latency(&self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.latencies.borrow_mut().saturating_record(nanos.max(1));
    }

    /// After an open loop: counts what was due and not sent, with the time it has waited, and waits
    /// for what is under way.
    pub async fn wait_for_late(&self, pace: &Pace, most: Duration) {
        let Phase::Open(_, Some(ended)) = self.phase.get() else {
            return;
        };
        let unsent = pace.stop(ended);
        for time in &unsent {
            self.latency(time.elapsed());
        }
        self.unsent.set(unsent.len() as u64);
        let sent = pace.due() - self.unsent.get();
        let deadline = Instant::now() + most;
        while self.ended() < sent && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.unanswered.set(sent.saturating_sub(self.ended()));
    }

    fn ended(&self) -> u64 {
        self.answered.get() + self.errors.get()
    }

    /// The fate of the first request.
    pub async fn first(&self, most: Duration) -> Result<(), String> {
        let deadline = Instant::now() + most;
        while Instant::now() < deadline {
            if let Some(error) = self.first_error.borrow().as_ref() {
                return Err(error.clone());
            }
            if self.answered.get() > 0 {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Err(format!("no answer within {most:?}"))
    }

    pub fn report(&self, seconds: Duration, bytes_per_request: u64) -> Value {
        let latencies = self.latencies.borrow();
        let micros = |nanos: u64| nanos as f64 / 1000.0;
        let at = |quantile| micros(latencies.value_at_quantile(quantile));
        json!({
            "requests": self.requests.get(),
            // What was answered within the measured time; in an open loop it may have been due before.
            "answered": self.in_time.get(),
            "errors": self.errors.get(),
            "first_error": *self.first_error.borrow(),
            "unsent": self.unsent.get(),
            "unanswered": self.unanswered.get(),
            "seconds": seconds.as_secs_f64(),
            "bytes": self.in_time.get() * bytes_per_request,
            "latency_us": {
                "p50": at(0.5),
                "p99": at(0.99),
                "p99_9": at(0.999),
                "max": micros(latencies.max()),
            },
        })
    }
}
