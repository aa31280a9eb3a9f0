//! When a request is sent: as soon as the one before is answered, or when it is due.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::Semaphore;

use super::World;

pub enum Pace {
    Closed,
    Open(Due),
}

/// Requests that are due and not sent yet, by the time each was meant to be sent.
pub struct Due {
    every: Duration,
    next: Cell<Instant>,
    times: RefCell<VecDeque<Instant>>,
    // One permit for each of them; who waits longest is served first.
    permits: Semaphore,
    so_far: Cell<u64>,
    stopped: Cell<bool>,
}

impl Pace {
    pub fn closed() -> Self {
        Self::Closed
    }

    pub fn open(rate: u64) -> Self {
        let every = Duration::from_secs(1) / u32::try_from(rate).unwrap_or(u32::MAX).max(1);
        Self::Open(Due {
            every,
            next: Cell::new(Instant::now() + every),
            times: RefCell::default(),
            permits: Semaphore::new(0),
            so_far: Cell::new(0),
            stopped: Cell::new(false),
        })
    }

    /// Nothing is due from `end` on, and what was due before and is not sent yet will not be sent: its
    /// times.
    pub fn stop(&self, end: Instant) -> Vec<Instant> {
        match self {
            Self::Closed => Vec::new(),
            Self::Open(due) => {
                due.catch_up();
                due.stopped.set(true);
                due.permits.close();
                let mut unsent = due.times.take();
                let known = unsent.len();
                unsent.retain(|time| *time < end);
                due.so_far
                    .set(due.so_far.get() - (known - unsent.len()) as u64);
                unsent.into()
            }
        }
    }

    /// How many requests were due so far.
    pub fn due(&self) -> u64 {
        match self {
            Self::Closed => 0,
            Self::Open(due) => due.so_far.get(),
        }
    }

    /// Waits for a request's turn. Its latency counts from the time returned, when it was *meant*
    /// to be sent: a proxy that stalls pays for all the requests it kept from being sent.
    pub async fn turn(&self) -> Instant {
        match self {
            Self::Closed => Instant::now(),
            Self::Open(due) => {
                let Ok(permit) = due.permits.acquire().await else {
                    // It was stopped: there is no next turn.
                    return std::future::pending().await;
                };
                permit.forget();
                let next = due.times.borrow_mut().pop_front();
                next.expect("there is one for each permit")
            }
        }
    }
}

/// Says what is due, as precisely as the kernel's timers are; tokio's round up to a millisecond.
pub(super) async fn keep(world: Rc<World>) {
    let Pace::Open(due) = &world.pace else { return };
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK)
        .expect("every Linux has timers");
    timer
        .set(
            Expiration::Interval(TimeSpec::from_duration(due.every)),
            TimerSetTimeFlags::empty(),
        )
        .expect("the interval is positive");
    // A timer is read as a pipe is.
    let mut timer = Receiver::from_owned_fd_unchecked(timer.into())
        .expect("the runtime has room for a descriptor");
    loop {
        // Eight bytes say how often it fired; what is due, the clock says. Room for more tells tokio
        // that there is nothing else to read.
        let fired = timer.read(&mut [0; 16]).await;
        fired.expect("a timer can always be read");
        if due.stopped.get() {
            return;
        }
        due.catch_up();
    }
}

impl Due {
    /// Notes everything that became due until now.
    fn catch_up(&self) {
        let now = Instant::now();
        let mut more = 0;
        while self.next.get() <= now {
            self.times.borrow_mut().push_back(self.next.get());
            self.next.set(self.next.get() + self.every);
            more += 1;
        }
        self.so_far.set(self.so_far.get() + more as u64);
        self.permits.add_permits(more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_not_sent_is_known_by_its_intended_time() {
        let pace = Pace::open(20_000);
        let Pace::Open(due) = &pace else {
            unreachable!("it was made open")
        };
        assert_eq!(due.every, Duration::from_micros(50));
        let first = due.next.get();
        while Instant::now() < first + 3 * due.every {
            std::hint::spin_loop();
        }
        due.catch_up();
        assert_eq!(pace.turn().await, first);
        let unsent = pace.stop(first + 2 * due.every);
        assert_eq!(unsent, [first + due.every]);
        assert_eq!(pace.due(), 2);
    }
}
