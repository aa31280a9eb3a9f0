//! The deadlines of an HTTP/1 connection.

use std::task::{Context, Poll};
use std::time::Duration;

use super::Connection;
use crate::deadline::Alarm;
use crate::plan::Timeouts;
use crate::wire::{Stage, Wire};

/// How a client that has ended its side of the stream is served: such a client may still be
/// reading, or may be gone. So long without a byte to send it, and it counts as gone.
const HALF_CLOSE_GRACE: Duration = Duration::from_secs(5);

/// How long a connection keeps its buffers between two requests.
pub(super) const QUIET: Duration = Duration::from_secs(1);

/// How a connection of HTTP/1 ended before the engine was done with it.
pub(super) enum Late {
    /// Between requests, for [`QUIET`] or as long as allowed.
    Quiet,
    /// In the middle of a head.
    Head,
    /// The head is longer than allowed.
    TooLong,
    /// In the middle of an answer, with no byte moving.
    Stalled,
}

/// The deadlines of an HTTP/1 connection: which one runs follows from its stage.
pub(super) struct Watch<'c> {
    wire: &'c Wire,
    timeouts: &'c Timeouts,
    alarm: Alarm,
    /// What the alarm was set for.
    phase: Option<(u32, Stage, bool)>,
    moved: u64,
}

impl<'c> Watch<'c> {
    pub(super) fn new(connection: &'c Connection) -> Self {
        Self {
            wire: &connection.client.wire,
            timeouts: &connection.timeouts,
            alarm: connection.ground.deadlines.alarm(),
            phase: None,
            moved: 0,
        }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Late> {
        let stage = self.wire.stage();
        if stage == Stage::TooLong {
            return Poll::Ready(Late::TooLong);
        }
        let is_half_closed = self.wire.is_half_closed();
        // With bytes on their way it is a slow client like any other.
        let is_silent = is_half_closed && !self.wire.has_unflushed();
        let limit = match stage {
            Stage::Quiet => self.timeouts.keep_alive.min(QUIET),
            Stage::Head => self.timeouts.request_headers,
            _ if is_silent => HALF_CLOSE_GRACE,
            _ => self.timeouts.body_idle,
        };
        let phase = Some((self.wire.turn(), stage, is_silent));
        if self.phase != phase {
            self.phase = phase;
            self.moved = self.wire.moved();
            self.alarm.set(limit);
        }
        if is_half_closed && stage == Stage::Quiet {
            // It has its answer, and will not ask again.
            return self.give_up(cx);
        }
        while self.alarm.poll(cx).is_ready() {
            let has_moved = self.moved != self.wire.moved();
            match stage {
                Stage::Head => return Poll::Ready(Late::Head),
                Stage::Quiet => return Poll::Ready(Late::Quiet),
                _ if has_moved => {}
                _ if is_silent => return self.give_up(cx),
                Stage::Leaving => return Poll::Ready(Late::Stalled),
                // Whatever the answer waits for has a deadline of its own.
                _ if !self.wire.is_up_to_client() => {}
                _ => return Poll::Ready(Late::Stalled),
            }
            self.moved = self.wire.moved();
            self.alarm.set(limit);
        }
        Poll::Pending
    }

    /// Lets the engine see the end of the client's stream: it drops the exchange, and closes.
    fn give_up(&self, cx: &mut Context<'_>) -> Poll<Late> {
        self.wire.gives_up_on_client();
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
