//! HTTP/1.1 as it is spoken to an upstream (RFC 9112): one connection, one exchange at a time.
//!
//! Driven by the task of the exchange, without one of its own: the task that waits for an answer is
//! the one that reads it. hyper's client has a second task, two channels and a second header map, which
//! were 9,600 of the 38,400 instructions of a small request (`benches/load/instructions`).
//!
//! An upstream whose framing can be read in two ways is refused, however likely one of them is: the
//! bytes that follow would be taken for the answer to another request.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, request, response};
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::task::JoinHandle;

use self::body::{Decoded, Decoder};
use self::head::Answer;
use self::upload::Upload;

mod body;
mod head;
mod upload;

/// Bytes of an answer's head: what comes from our own apps is trusted to be large with reason.
const HEAD_LIMIT: usize = 256 << 10;

/// Room for one read. It grows with what is there to be read, because for large bodies the number of
/// reads decides: half a MiB at once costs half of what HAProxy's 16 KiB do.
const READ: (usize, usize) = (8 << 10, 512 << 10);

/// A byte stream that may post a request, to write it together with others.
pub trait Posting: AsyncWrite + Unpin {
    /// Keeps these bytes until they are written with others; false if this stream posts nothing. Nothing
    /// else is written before [`Posting::poll_posted`] is ready.
    fn post(&self, _bytes: &[u8], _cx: &mut Context<'_>) -> bool {
        false
    }

    /// How many of the bytes that were posted could be written. Wakes nobody when all were: the answer
    /// will.
    fn poll_posted(&self) -> Poll<usize> {
        Poll::Ready(0)
    }

    /// What was posted and is not written yet never will be. Nothing is posted after that.
    fn take_back(&self) {}
}

/// A connection to an upstream. `S` is a byte stream whose clones are the same stream.
pub struct Connection<S> {
    socket: S,
    /// What was read and is not handed out.
    input: BytesMut,
    /// How much of that was looked through for the end of a head, in vain.
    searched: usize,
    /// Kept for its room.
    output: Vec<u8>,
    /// Bytes to make room for before the next read.
    room: usize,
    /// Empty, kept for its room: the map of the next answer.
    fields: HeaderMap,
    decoder: Decoder,
    /// The peer keeps the connection open behind the answer.
    stays: bool,
    /// It has carried an exchange.
    is_used: bool,
    /// The rest of a request whose answer came early.
    rest: Option<Rest>,
}

/// The task that sends the rest of a request while its answer is read: a client may send all of its
/// body before it looks at the answer. True when all of it is out.
struct Rest(JoinHandle<bool>);

impl Drop for Rest {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Why no answer came.
#[derive(Debug)]
pub enum SendError {
    /// Not one byte was written.
    Unsent,
    /// What came is no answer, or stopped in the middle of its head: the peer has seen the request.
    Nonsense(Nonsense),
    /// The connection ended. Anything may have happened.
    Lost(io::Error),
    /// The request's own body failed.
    Body,
}

/// What is wrong with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Nonsense {
    #[error("its answer is not http: {0}")]
    Syntax(#[from] httparse::Error),
    #[error("its answer has a status that is none")]
    Status,
    #[error("the head of its answer is longer than {} KiB", HEAD_LIMIT >> 10)]
    TooLong,
    #[error("it closed the connection in the middle of the head of its answer")]
    Cut,
    /// RFC 9110, section 7.8: not in the middle of a message.
    #[error("it switched protocols before it had the whole request")]
    EarlySwitch,
    /// RFC 9112, section 6.3: a sign of an attempt to split answers.
    #[error("its answer has both content-length and transfer-encoding")]
    TwoFramings,
    #[error("its answer has a content-length that is not one number")]
    Length,
    /// RFC 9112, section 6.1: any other coding would have to be undone here.
    #[error("its answer has a transfer coding other than chunked")]
    TransferCoding,
}

/// Why the body of an answer ends before its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the connection was closed in the middle of the body")]
    Cut,
    #[error("the chunks of the body are malformed")]
    Chunk,
}

impl<S: Posting + AsyncRead + Clone + 'static> Connection<S> {
    /// A connection on which nothing has been said yet.
    pub fn new(socket: S) -> Self {
        Self {
            socket,
            input: BytesMut::new(),
            searched: 0,
            fields: HeaderMap::new(),
            output: Vec::new(),
            room: READ.0,
            decoder: Decoder::none(),
            stays: true,
            is_used: false,
            rest: None,
        }
    }

    /// The byte stream below.
    pub fn socket(&self) -> &S {
        &self.socket
    }

    /// Whether the last exchange is over to its last byte, and left the connection fit for another.
    pub fn is_ready(&self) -> bool {
        self.stays && self.decoder.is_over() && self.input.is_empty() && self.rest.is_none()
    }

    /// Whether the peer has neither closed an idle connection nor said anything on it, as far as the
    /// runtime knows: without news, no system call is made. A connection that is not quiet is of no
    /// more use.
    pub fn is_quiet(&mut self) -> bool {
        let mut byte = [0];
        let mut byte = ReadBuf::new(&mut byte);
        let mut cx = Context::from_waker(Waker::noop());
        // A task that has had its share of this turn would find every stream quiet.
        let reading = poll_fn(|cx| Pin::new(&mut self.socket).poll_read(cx, &mut byte));
        let is_quiet = pin!(tokio::task::unconstrained(reading))
            .poll(&mut cx)
            .is_pending();
        self.stays &= is_quiet;
        is_quiet
    }

    /// Gives back the room that a large answer took.
    pub fn shrink(&mut self) {
        let is_large = self.room > READ.0 || self.input.capacity() > 8 * READ.0;
        if self.input.is_empty() && is_large {
            self.input = BytesMut::new();
            self.room = READ.0;
        }
    }

    /// Sends a request in origin-form, and waits for the head of its answer; interim answers are
    /// left out. The framing of the body is what the head says: `content-length`, `transfer-encoding:
    /// chunked` or none.
    ///
    /// With an answer, the map of `head` is kept for the next one, for its room. Otherwise the head is
    /// untouched, and may be sent again.
    ///
    /// # Panics
    /// Outside a [`tokio::task::LocalSet`], when an answer comes before the request is out.
    ///
    /// # Errors
    /// See [`SendError`]. The connection is of no more use then.
    pub async fn send<B>(
        &mut self,
        head: &mut request::Parts,
        body: B,
    ) -> Result<response::Parts, SendError>
    where
        B: Body<Data = Bytes> + Unpin + 'static,
    {
        // Given up halfway, it carries no other.
        self.stays = false;
        self.output.clear();
        let coding = head::write(head, &mut self.output);
        let output = std::mem::take(&mut self.output);
        let mut upload = Upload::new(self.socket.clone(), coding, body, output);
        // On a new connection a peer may speak first: one that is over its limit and says so.
        if std::mem::replace(&mut self.is_used, true) && head.method.is_idempotent() {
            upload.may_wait();
        }
        let mut failure = None;
        let answer = poll_fn(|cx| {
            if failure.is_none()
                && let Poll::Ready(Err(error)) = upload.poll(cx)
            {
                failure = Some(error);
            }
            match failure {
                Some(upload::Broken::Body) => return Poll::Ready(Err(SendError::Body)),
                Some(upload::Broken::Unsent) => return Poll::Ready(Err(SendError::Unsent)),
                // A peer that takes no more of the request may still answer it.
                Some(upload::Broken::Lost) | None => {}
            }
            let polled = self.poll_answer(cx);
            // What comes before the request is no answer to it, nor the beginning of one.
            if !upload.has_written() && (polled.is_ready() || !self.input.is_empty()) {
                return Poll::Ready(Err(SendError::Unsent));
            }
            polled
        });
        let answer = answer.await?;
        let framing = answer.framing(&head.method).map_err(SendError::Nonsense)?;
        self.decoder = Decoder::new(framing);
        // What follows a 101 is not HTTP, and what follows a 204 that announces a body may be that.
        let is_clean = !answer.is_upgrade() && !answer.has_stray_body();
        self.stays = answer.stays && framing.has_end() && is_clean;
        match upload.into_rest() {
            Ok(output) => self.output = output,
            Err(_) if answer.is_upgrade() => {
                return Err(SendError::Nonsense(Nonsense::EarlySwitch));
            }
            Err(_) if failure.is_some() => self.stays = false,
            Err(upload) => self.rest = Some(Rest(tokio::task::spawn_local(upload.finish()))),
        }
        // One map per exchange goes round: the request's becomes that of the next answer.
        let fields = std::mem::replace(&mut self.fields, std::mem::take(&mut head.headers));
        self.fields.clear();
        Ok(answer.into_parts(fields))
    }

    /// The next frame of the answer's body; `None` behind the last.
    ///
    /// # Errors
    /// See [`BodyError`]. The connection is of no more use then.
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            match self.decoder.decode(&mut self.input) {
                Ok(Decoded::Data(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Ok(Decoded::Trailers(map)) => return Poll::Ready(Some(Ok(Frame::trailers(map)))),
                Ok(Decoded::End) => return Poll::Ready(None),
                Ok(Decoded::More) => {}
                Err(malformed) => return Poll::Ready(Some(Err(self.broken(malformed)))),
            }
            match std::task::ready!(self.poll_read(cx)) {
                Ok(0) if self.decoder.end_of_stream() => return Poll::Ready(None),
                Ok(0) => return Poll::Ready(Some(Err(self.broken(BodyError::Cut)))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Some(Err(self.broken(error.into())))),
            }
        }
    }

    /// The answer's body, if it is of a known length and has come with the head.
    pub fn whole_body(&mut self) -> Option<Bytes> {
        self.decoder.whole(&mut self.input)
    }

    fn broken(&mut self, error: BodyError) -> BodyError {
        self.stays = false;
        error
    }

    /// Whether the answer's body is known to be over.
    pub fn is_end_stream(&self) -> bool {
        self.decoder.is_over()
    }

    /// What is known of the length that is left.
    pub fn size_hint(&self) -> SizeHint {
        self.decoder.size_hint()
    }

    /// Waits until the rest of the request is out, too. False if the connection is of no more use.
    pub async fn finish(&mut self) -> bool {
        if let Some(rest) = &mut self.rest {
            self.stays &= matches!((&mut rest.0).await, Ok(true));
            self.rest = None;
        }
        self.is_ready()
    }

    /// Whether [`Connection::finish`] has something to wait for.
    pub fn is_sending(&self) -> bool {
        self.stays && self.decoder.is_over() && self.rest.is_some()
    }

    /// The byte stream behind a 101, and what was read beyond it.
    pub fn upgraded(&mut self) -> (S, Bytes) {
        (self.socket.clone(), self.input.split().freeze())
    }

    /// The next answer that is no interim one.
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Result<Answer, SendError>> {
        loop {
            match self.read_head() {
                Ok(Some(answer)) if answer.is_interim() => {
                    self.fields.clear();
                    continue;
                }
                Ok(Some(answer)) => return Poll::Ready(Ok(answer)),
                Ok(None) => {}
                Err(nonsense) => return Poll::Ready(Err(SendError::Nonsense(nonsense))),
            }
            let error = match std::task::ready!(self.poll_read(cx)) {
                Ok(0) if !self.input.is_empty() => {
                    return Poll::Ready(Err(SendError::Nonsense(Nonsense::Cut)));
                }
                Ok(0) => io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "it closed the connection without an answer",
                ),
                Ok(_) => continue,
                Err(error) => error,
            };
            return Poll::Ready(Err(SendError::Lost(error)));
        }
    }

    /// The head in what was read, if it is complete. One that comes in pieces is not parsed again
    /// before its end is there.
    fn read_head(&mut self) -> Result<Option<Answer>, Nonsense> {
        const END: [&[u8]; 2] = [b"\n\r\n", b"\n\n"];
        let new = &self.input[self.searched.saturating_sub(END[0].len())..];
        let has_end = || {
            END.iter()
                .any(|end| new.windows(end.len()).any(|bytes| bytes == *end))
        };
        let before = self.input.len();
        if before > 0
            && (self.searched == 0 || has_end())
            && let Some(answer) = head::read(&mut self.input, &mut self.fields)?
        {
            self.searched = 0;
            if before - self.input.len() > HEAD_LIMIT {
                return Err(Nonsense::TooLong);
            }
            return Ok(Some(answer));
        }
        self.searched = before;
        if before > HEAD_LIMIT {
            return Err(Nonsense::TooLong);
        }
        Ok(None)
    }

    /// Reads once, and makes room for as much as there was and more.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.input.capacity() - self.input.len() < self.room / 2 {
            self.input.reserve(self.room);
        }
        let room = self.input.capacity() - self.input.len();
        let read = std::task::ready!(pin!(self.socket.read_buf(&mut self.input)).poll(cx));
        if let Ok(bytes) = read {
            self.room = match bytes {
                _ if bytes >= room => (self.room * 2).min(READ.1),
                _ if bytes < self.room / 4 => (self.room / 2).max(READ.0),
                _ => self.room,
            };
        }
        Poll::Ready(read)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::VecDeque;
    use std::rc::Rc;

    use http::Request;
    use http_body_util::Empty;

    use super::*;

    /// A stream that leaves what is posted where it is.
    #[derive(Clone, Default)]
    struct Desk(Rc<RefCell<Heap>>);

    #[derive(Default)]
    struct Heap {
        posted: usize,
        written: usize,
        to_read: VecDeque<&'static str>,
    }

    impl Posting for Desk {
        fn post(&self, _bytes: &[u8], _cx: &mut Context<'_>) -> bool {
            self.0.borrow_mut().posted += 1;
            true
        }

        fn poll_posted(&self) -> Poll<usize> {
            Poll::Pending
        }
    }

    impl AsyncRead for Desk {
        fn poll_read(
            self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            match self.0.borrow_mut().to_read.pop_front() {
                Some(text) => {
                    buf.put_slice(text.as_bytes());
                    Poll::Ready(Ok(()))
                }
                None => Poll::Pending,
            }
        }
    }

    impl AsyncWrite for Desk {
        fn poll_write(
            self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.0.borrow_mut().written += 1;
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// Sends a request on a connection that can read that, as far as it gets without a wait.
    fn sent(
        connection: &mut Connection<Desk>,
        method: &str,
        can_read: &'static str,
    ) -> Poll<Result<response::Parts, SendError>> {
        let desk = connection.socket().clone();
        if !can_read.is_empty() {
            desk.0.borrow_mut().to_read.push_back(can_read);
        }
        let request = Request::builder().method(method).uri("/").body(());
        let (mut head, ()) = request.expect("it is one").into_parts();
        let sending = pin!(connection.send(&mut head, Empty::<Bytes>::new()));
        sending.poll(&mut Context::from_waker(Waker::noop()))
    }

    /// A connection that has carried an exchange.
    fn used() -> Connection<Desk> {
        let mut connection = Connection::new(Desk::default());
        let answer = sent(&mut connection, "GET", "HTTP/1.1 204 No Content\r\n\r\n");
        assert!(matches!(answer, Poll::Ready(Ok(_))));
        assert!(connection.is_ready());
        connection
    }

    #[test]
    fn only_what_may_be_sent_again_is_posted_and_on_used_connections_alone() {
        let mut connection = used();
        let counts = |connection: &Connection<Desk>| {
            let heap = connection.socket().0.borrow();
            (heap.posted, heap.written)
        };
        assert_eq!(counts(&connection), (0, 1));
        let answer = sent(&mut connection, "POST", "HTTP/1.1 204 No Content\r\n\r\n");
        assert!(matches!(answer, Poll::Ready(Ok(_))));
        assert_eq!(counts(&connection), (0, 2));
        assert!(sent(&mut connection, "GET", "").is_pending());
        assert_eq!(counts(&connection), (1, 2));
    }

    #[test]
    fn what_comes_while_a_request_is_posted_is_no_answer_nor_the_beginning_of_one() {
        for text in ["HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 2"] {
            let answer = sent(&mut used(), "GET", text);
            assert!(
                matches!(answer, Poll::Ready(Err(SendError::Unsent))),
                "{text}"
            );
        }
    }
}
