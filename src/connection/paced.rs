//! The streams of an HTTP/2 connection, each ended when its client takes nothing of it for too long.
//!
//! The engine does not ask a body for more until the client has opened the stream's window, so the
//! body cannot see that nobody wants it; and other streams of the connection may go on. What holds
//! the stream's task can.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::deadline::{Alarm, Deadlines};
use crate::wire::{Pace, Wire};

/// Runs the engine's tasks on this worker, each stream under its [`Pace`].
#[derive(Clone)]
pub(super) struct StreamExecutor {
    pub(super) wire: Rc<Wire>,
    pub(super) deadlines: Rc<Deadlines>,
    /// How long a client may take nothing of an answer that is there.
    pub(super) limit: Duration,
}

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for StreamExecutor {
    fn execute(&self, task: F) {
        // The engine spawns a stream right after it has handed its request over.
        let Some(pace) = self.wire.newest_pace() else {
            tokio::task::spawn_local(task);
            return;
        };
        tokio::task::spawn_local(Paced {
            task: Box::pin(task),
            pace,
            alarm: self.deadlines.alarm(),
            limit: self.limit,
        });
    }
}

struct Paced<F> {
    task: Pin<Box<F>>,
    pace: Rc<Pace>,
    alarm: Alarm,
    limit: Duration,
}

impl<F: Future<Output = ()>> Future for Paced<F> {
    type Output = ();

    /// Ready also when the client has waited too long: dropped, the engine's task resets the stream.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.task.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if self.pace.has_moved() {
            self.alarm.set(self.limit);
        }
        if !self.pace.is_up_to_client() {
            return Poll::Pending;
        }
        self.alarm.poll(cx)
    }
}
