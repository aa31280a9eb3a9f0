//! Small writes of one turn of a worker, which leave together at its end.
//!
//! A turn is what a worker does with what its last look at the sockets has found: under load, it reads
//! dozens of requests and answers in it. Written one by one, each finds its peer asleep again, and on
//! the same machine to wake it is the dearest part of a write. Written together, all but the first find
//! it awake: 8 % of the CPU time of a small request with 64 connections (`benches/load`, case `get`), for
//! 2 % more instructions. The first write waits for the others; the last leaves when it would have left
//! anyway.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::IoSlice;
use std::mem;
use std::rc::{Rc, Weak};
use std::task::{Poll, Waker};

use crate::drain::{Draining, Flight};

/// A write of more bytes is not worth a copy.
pub const SMALL: usize = 4 << 10;

/// Writes that wait at most: what is first shall not wait for ten thousand others.
const MOST: usize = 64;

/// What a worker has to send at the end of its turn.
pub struct Outbox {
    posted: RefCell<Posted>,
    /// Of [`Outbox::run`].
    waker: RefCell<Option<Waker>>,
    draining: Draining,
}

#[derive(Default)]
struct Posted {
    bytes: Vec<u8>,
    /// In the order of their writes, with how many of the bytes are theirs.
    writes: Vec<(Weak<dyn Mailer>, usize)>,
    /// What is posted is in flight: a drain waits for it.
    flight: Option<Flight>,
}

/// A byte stream that posts.
pub trait Mailer {
    /// Writes now what was posted, without a wait.
    fn send(&self, bytes: &[u8]);
}

impl Outbox {
    pub fn new(draining: Draining) -> Rc<Self> {
        Rc::new(Self {
            posted: RefCell::default(),
            waker: RefCell::default(),
            draining,
        })
    }

    /// Keeps a write of `mailer` to the end of the turn. A mailer that is gone by then has nothing to
    /// send any more.
    pub fn post(&self, mailer: Weak<dyn Mailer>, parts: &[IoSlice<'_>]) {
        let mut posted = self.posted.borrow_mut();
        let before = posted.bytes.len();
        for part in parts {
            posted.bytes.extend_from_slice(part);
        }
        let length = posted.bytes.len() - before;
        posted.writes.push((mailer, length));
        let is_full = posted.writes.len() == MOST;
        if posted.flight.is_none() {
            posted.flight = Some(self.draining.take_off());
            if let Some(waker) = &*self.waker.borrow() {
                waker.wake_by_ref();
            }
        }
        drop(posted);
        if is_full {
            self.send();
        }
    }

    /// Sends what is posted, now.
    pub fn send(&self) {
        let Posted {
            mut bytes,
            mut writes,
            flight,
        } = mem::take(&mut *self.posted.borrow_mut());
        let mut rest = &bytes[..];
        for (mailer, length) in writes.drain(..) {
            let (its, others) = rest.split_at(length);
            rest = others;
            if let Some(mailer) = mailer.upgrade() {
                mailer.send(its);
            }
        }
        bytes.clear();
        let mut posted = self.posted.borrow_mut();
        // Kept for their room.
        (posted.bytes, posted.writes) = (bytes, writes);
        drop(flight);
    }

    /// Sends at the end of every turn, for as long as the worker lives: woken by the first who posts,
    /// this task runs behind all that were ready before.
    pub async fn run(self: Rc<Self>) {
        // With the share of one task, it would find a stream unready behind many others.
        tokio::task::unconstrained(poll_fn(|cx| {
            self.waker.replace(Some(cx.waker().clone()));
            self.send();
            Poll::Pending
        }))
        .await
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::LocalSet;

    use super::*;
    use crate::drain::Drain;

    /// Writes down what it sends, with its name.
    struct Pen {
        name: char,
        page: Rc<RefCell<String>>,
    }

    impl Mailer for Pen {
        fn send(&self, bytes: &[u8]) {
            let text = std::str::from_utf8(bytes).expect("text was posted");
            self.page
                .borrow_mut()
                .push_str(&format!("{}:{text} ", self.name));
        }
    }

    fn pen(name: char, page: &Rc<RefCell<String>>) -> Rc<Pen> {
        Rc::new(Pen {
            name,
            page: page.clone(),
        })
    }

    fn post(outbox: &Outbox, pen: &Rc<Pen>, text: &str) {
        let pen: Weak<Pen> = Rc::downgrade(pen);
        let (first, rest) = text.as_bytes().split_at(1);
        outbox.post(pen, &[IoSlice::new(first), IoSlice::new(rest)]);
    }

    #[tokio::test]
    async fn what_is_posted_leaves_in_order_behind_all_that_was_ready() {
        let outbox = Outbox::new(Drain::new().draining());
        let page = Rc::default();
        let pens = ['a', 'b'].map(|name| pen(name, &page));
        let turn = async {
            tokio::task::spawn_local(outbox.clone().run());
            // It shows its waker when it runs first.
            tokio::task::yield_now().await;
            let ready = page.clone();
            tokio::task::spawn_local(async move { ready.borrow_mut().push_str("ready ") });
            post(&outbox, &pens[0], "one");
            post(&outbox, &pens[1], "two");
            post(&outbox, &pens[0], "three");
            assert_eq!(*page.borrow(), "");
            tokio::task::yield_now().await;
        };
        LocalSet::new().run_until(turn).await;
        assert_eq!(*page.borrow(), "ready a:one b:two a:three ");
    }

    #[test]
    fn a_full_outbox_waits_for_nobody() {
        let outbox = Outbox::new(Drain::new().draining());
        let page = Rc::default();
        let pen = pen('a', &page);
        for _ in 1..MOST {
            post(&outbox, &pen, "12");
        }
        assert_eq!(*page.borrow(), "");
        post(&outbox, &pen, "12");
        assert_eq!(*page.borrow(), "a:12 ".repeat(MOST));
    }

    #[test]
    fn who_is_gone_sends_nothing_and_disturbs_no_other() {
        let outbox = Outbox::new(Drain::new().draining());
        let page = Rc::default();
        let pens = ['a', 'b', 'c'].map(|name| pen(name, &page));
        for pen in &pens {
            post(&outbox, pen, "text");
        }
        let [_a, b, _c] = pens;
        drop(b);
        outbox.send();
        outbox.send();
        assert_eq!(*page.borrow(), "a:text c:text ");
    }

    #[test]
    fn what_is_posted_is_in_flight() {
        let drain = Drain::new();
        let outbox = Outbox::new(drain.draining());
        let pen = pen('a', &Rc::default());
        for _ in 0..2 {
            post(&outbox, &pen, "one");
            post(&outbox, &pen, "two");
            assert_eq!(drain.in_flight(), 1);
            outbox.send();
            assert_eq!(drain.in_flight(), 0);
        }
    }
}
