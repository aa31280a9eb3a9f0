//! What one client connection is doing, seen from its bytes and its requests.
//!
//! The HTTP engine tells neither when a head begins nor how much of it there is, and hides a
//! second framing; the bytes do. So every byte read from a client passes a [`Transport`], which
//! keeps the head that is being read, and every request takes a [`Turn`].

use std::cell::{Cell, RefCell};
use std::rc::Rc;

mod outlet;
mod transport;

pub use transport::{Engine, Transport};

/// The state of one client connection, shared by its bytes, its requests and its deadlines.
#[derive(Debug)]
pub struct Wire {
    stage: Cell<Stage>,
    /// Changes with every stage entered: tells one idle stretch from the next.
    turn: Cell<u32>,
    /// Requests not answered to the end; more than one only in HTTP/2.
    open: Cell<u32>,
    /// The raw bytes since the last request, until they are a request.
    head: RefCell<Vec<u8>>,
    head_limit: usize,
    /// Bytes read and written: stands still when nothing moves.
    moved: Cell<u64>,
    end_of_reading: Cell<EndOfReading>,
    /// Bytes written so far.
    wrote: Cell<u64>,
    has_unflushed: Cell<bool>,
    reset: Cell<bool>,
    /// Of the newest request; in HTTP/1 there is no other.
    pace: RefCell<Rc<Pace>>,
    /// Somebody has asked for the pace of the newest request.
    is_pace_known: Cell<bool>,
}

/// How far a request and its answer have come, between the client and us.
#[derive(Debug, Default)]
pub struct Pace {
    /// Everything there is of the answer waits for the client to take it.
    up_to_client: Cell<bool>,
    moved: Cell<bool>,
    /// The request's body has been read to its end.
    is_read: Cell<bool>,
}

/// What the client is expected to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Send another request, or nothing.
    Quiet,
    /// Complete the head it has begun.
    Head,
    /// Wait for an answer, and send the rest of the body.
    Serving,
    /// Send the rest of a body whose answer is out already.
    Trailing,
    /// Take the rest of an answer that has left the engine's hands.
    Leaving,
    /// Anything: the bytes are not HTTP any more.
    Tunnel,
    /// Nothing: the head is longer than allowed.
    TooLong,
}

/// What becomes of the end of the client's stream while an answer is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EndOfReading {
    NotSeen,
    /// Kept from the engine, which takes it for a client that left: it may be a half-close.
    Held,
    /// The client is gone.
    Told,
}

/// One request's time on the wire, until its answer is out.
#[derive(Debug)]
pub struct Turn {
    wire: Rc<Wire>,
    pace: Rc<Pace>,
}

impl Wire {
    /// `head_limit`: the most bytes a head may have.
    pub fn new(head_limit: usize) -> Rc<Self> {
        Rc::new(Self {
            stage: Cell::new(Stage::Quiet),
            turn: Cell::new(0),
            open: Cell::new(0),
            head: RefCell::default(),
            head_limit,
            moved: Cell::new(0),
            end_of_reading: Cell::new(EndOfReading::NotSeen),
            wrote: Cell::new(0),
            has_unflushed: Cell::new(false),
            reset: Cell::new(false),
            pace: RefCell::new(Rc::new(Pace {
                is_read: Cell::new(true),
                ..Pace::default()
            })),
            is_pace_known: Cell::new(true),
        })
    }

    /// What the client is expected to do next.
    pub fn stage(&self) -> Stage {
        if self.stage.get() == Stage::Trailing && self.pace.borrow().is_read() {
            self.enter(Stage::Quiet);
        }
        match self.stage.get() {
            Stage::Quiet | Stage::Head if self.has_unflushed() => Stage::Leaving,
            stage => stage,
        }
    }

    /// Whether a head has begun that is not a request yet.
    pub fn has_begun_head(&self) -> bool {
        self.stage.get() == Stage::Head
    }

    /// Bytes written so far.
    pub fn wrote(&self) -> u64 {
        self.wrote.get()
    }

    /// Whether bytes of an answer may still wait to be written.
    pub fn has_unflushed(&self) -> bool {
        self.has_unflushed.get()
    }

    /// Whether everything there is of the answer waits for the client to take it.
    pub fn is_up_to_client(&self) -> bool {
        self.pace.borrow().is_up_to_client()
    }

    /// Another number for every stage entered.
    pub fn turn(&self) -> u32 {
        self.turn.get()
    }

    /// Requests under way.
    pub fn open(&self) -> u32 {
        self.open.get()
    }

    /// Of what was read, keeps what follows the head: the next one has begun then, and its time is
    /// running. Behind a body nobody can tell.
    fn forget_head(&self, has_no_body: bool) {
        let mut head = self.head.borrow_mut();
        if has_no_body && !head.ends_with(END) {
            let end = head.windows(END.len()).position(|bytes| bytes == END);
            let end = end.map_or(head.len(), |end| end + END.len());
            head.drain(..end);
        } else {
            head.clear();
        }
        // What a large head or a body behind a small one took, an idle connection shall not keep.
        head.shrink_to(HEAD_KEPT);
    }

    /// The pace of the request that arrived last, once.
    pub fn newest_pace(&self) -> Option<Rc<Pace>> {
        (!self.is_pace_known.replace(true)).then(|| self.pace.borrow().clone())
    }

    /// Bytes read and written so far.
    pub fn moved(&self) -> u64 {
        self.moved.get()
    }

    /// A request has arrived; `is_read` when it has no body.
    pub fn take_turn(self: &Rc<Self>, is_read: bool) -> Turn {
        self.open.set(self.open.get() + 1);
        self.enter(Stage::Serving);
        self.forget_head(is_read);
        let pace = self.next_pace(is_read);
        self.is_pace_known.set(false);
        Turn {
            wire: self.clone(),
            pace,
        }
    }

    /// The pace of a request that begins. In HTTP/1 nobody holds that of the one before any more.
    fn next_pace(&self, is_read: bool) -> Rc<Pace> {
        let mut pace = self.pace.borrow_mut();
        let new = Pace {
            is_read: Cell::new(is_read),
            ..Pace::default()
        };
        match Rc::get_mut(&mut pace) {
            Some(last) => *last = new,
            None => *pace = Rc::new(new),
        }
        pace.clone()
    }

    /// Whether the head that has just become a request carried `Content-Length` beside
    /// `Transfer-Encoding`, which the engine hides. To be asked before [`Wire::take_turn`]. Sees
    /// the first of several pipelined heads only; the engine closes after any of them.
    pub fn had_two_framings(&self) -> bool {
        let head = self.head.borrow();
        let mut headers = [httparse::EMPTY_HEADER; 256];
        let mut request = httparse::Request::new(&mut headers);
        if !matches!(request.parse(&head), Ok(httparse::Status::Complete(_))) {
            return false;
        }
        let has = |name: &str| {
            request
                .headers
                .iter()
                .any(|h| h.name.eq_ignore_ascii_case(name))
        };
        has("content-length") && has("transfer-encoding")
    }

    /// Whether the head that is too long has not even got past its first line.
    pub fn is_first_line_too_long(&self) -> bool {
        let head = self.head.borrow();
        !head[..self.head_limit.min(head.len())].contains(&b'\n')
    }

    /// Nothing is expected soon: no room is kept for it.
    pub fn rests(&self) {
        self.head.take();
    }

    /// From now on the bytes are not HTTP.
    pub fn becomes_tunnel(&self) {
        self.enter(Stage::Tunnel);
    }

    /// The client has ended its stream while an answer is due.
    pub fn is_half_closed(&self) -> bool {
        self.end_of_reading.get() == EndOfReading::Held
    }

    /// Takes a held end of the client's stream for what it most likely is: a client that left.
    pub fn gives_up_on_client(&self) {
        if self.stage() != Stage::Quiet {
            // It may be there after all, and must not take the end for the end of its answer.
            self.reset.set(true);
        }
        self.end_of_reading.set(EndOfReading::Told);
    }

    /// Bytes of a request were left unread: closing at once would reset the connection, and the
    /// client might lose the answer.
    pub fn has_unread(&self) -> bool {
        !self.pace.borrow().is_read()
    }

    /// The end of the connection must not look like the end of a body.
    pub fn must_reset(&self) -> bool {
        self.reset.get()
    }

    fn enter(&self, stage: Stage) {
        self.stage.set(stage);
        self.turn.set(self.turn.get().wrapping_add(1));
    }

    fn read(&self, bytes: &[u8]) {
        match self.stage.get() {
            Stage::Quiet => self.enter(Stage::Head),
            Stage::Head => {}
            _ => return,
        }
        let mut head = self.head.borrow_mut();
        head.extend_from_slice(bytes);
        if head.len() > self.head_limit && !is_complete(&head[..self.head_limit]) {
            self.enter(Stage::TooLong);
        }
    }

    /// Held only while an answer is due: afterwards nobody waits for the client.
    fn end_of_stream(&self) -> EndOfReading {
        let seen = match (self.end_of_reading.get(), self.stage()) {
            (EndOfReading::Told, _) => EndOfReading::Told,
            (_, Stage::Serving | Stage::Leaving) => EndOfReading::Held,
            _ => EndOfReading::Told,
        };
        self.end_of_reading.set(seen);
        seen
    }
}

/// Bytes that an idle connection may keep for its next head: as much as most heads have.
const HEAD_KEPT: usize = 1024;

/// How a head ends.
const END: &[u8] = b"\r\n\r\n";

/// Whether a head ends within `bytes`. Asked only of heads as long as the limit.
fn is_complete(bytes: &[u8]) -> bool {
    bytes.windows(END.len()).any(|end| end == END) || bytes.windows(2).any(|end| end == b"\n\n")
}

impl Pace {
    /// Something of the answer was handed to the engine: the client may take it.
    fn is_now_up_to_client(&self) {
        self.up_to_client.set(true);
        self.moved.set(true);
    }

    /// Whether everything there is waits for the client to take it.
    pub fn is_up_to_client(&self) -> bool {
        self.up_to_client.get()
    }

    /// The last byte of the request's body has been read.
    pub fn has_read_all(&self) {
        self.is_read.set(true);
    }

    /// Whether the request's body has been read to its end.
    pub fn is_read(&self) -> bool {
        self.is_read.get()
    }

    /// Whether something was handed over since last asked.
    pub fn has_moved(&self) -> bool {
        self.moved.take()
    }
}

impl Turn {
    /// The head or a part of the answer was handed to the engine.
    pub fn gave(&self) {
        self.pace.is_now_up_to_client();
    }

    /// There is nothing more to hand over yet.
    pub fn waits(&self) {
        self.pace.up_to_client.set(false);
    }

    /// The answer broke off, and the client could not tell from its framing.
    pub fn reset_connection(&self) {
        self.wire.reset.set(true);
    }

    /// Whether all bytes given to the client's stream have left it.
    pub fn is_flushed(&self) -> bool {
        !self.wire.has_unflushed()
    }

    /// What the request and its answer are doing.
    pub fn pace(&self) -> &Rc<Pace> {
        &self.pace
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let wire = &self.wire;
        let is_read = self.pace.is_read();
        // Nothing more will be handed over.
        self.pace.up_to_client.set(true);
        wire.open.set(wire.open.get() - 1);
        if wire.stage.get() == Stage::Serving && wire.open.get() == 0 {
            wire.enter(match is_read {
                true if wire.head.borrow().is_empty() => Stage::Quiet,
                true => Stage::Head,
                false => Stage::Trailing,
            });
        }
    }
}
