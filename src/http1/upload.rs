//! A request on its way out: its head, then its body in the framing that the head announces.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http_body::{Body, Frame};

use super::Posting;
use super::head::write_fields;

/// Payload up to this size is copied behind what stands before it: one buffer costs the kernel less
/// than two.
const COPIED: usize = 2 << 10;

/// Payload of one TLS record: what fits into it is seen whole or not at all.
const RECORD: usize = 16 << 10;

/// What is left to write of a request.
pub(super) struct Upload<S: Posting, B> {
    socket: S,
    body: B,
    coding: Coding,
    /// The head, or the line with a chunk's size; written up to `from`.
    before: Vec<u8>,
    from: usize,
    payload: Bytes,
    after: &'static [u8],
    /// The body has said all it has to say.
    is_read: bool,
    /// A frame of the body was taken.
    has_joined: bool,
    has_written: bool,
    /// Nothing is held back below: a TLS stream keeps what its socket does not take.
    is_flushed: bool,
    /// It may be posted.
    may_wait: bool,
    /// It is posted.
    is_posted: bool,
}

/// How the body is framed.
pub(super) enum Coding {
    /// So many bytes are still promised.
    Length(u64),
    /// `Trailer`, which names what may follow the last chunk.
    Chunked(Option<HeaderValue>),
}

impl Coding {
    /// What the fields of a request say.
    pub(super) fn of(fields: &HeaderMap) -> Self {
        match fields.get(header::TRANSFER_ENCODING) {
            Some(_) => Self::Chunked(fields.get(header::TRAILER).cloned()),
            None => Self::Length(promised(fields).unwrap_or(0)),
        }
    }
}

/// Why a request did not get out.
#[derive(Debug)]
pub(super) enum Broken {
    /// Before the peer could have seen a byte.
    Unsent,
    Lost,
    /// Its body failed, or was not as long as the head says.
    Body,
}

impl<S: Posting, B: Body<Data = Bytes> + Unpin> Upload<S, B> {
    /// `head` is the head in bytes, `coding` what it says of the body.
    pub(super) fn new(socket: S, coding: Coding, body: B, head: Vec<u8>) -> Self {
        // What the head announces is owed, even by a body that has turned out to be empty since.
        let is_read = body.is_end_stream() && matches!(coding, Coding::Length(0));
        Self {
            socket,
            body,
            coding,
            before: head,
            from: 0,
            payload: Bytes::new(),
            after: b"",
            is_read,
            has_joined: false,
            has_written: false,
            is_flushed: true,
            may_wait: false,
            is_posted: false,
        }
    }

    /// It may wait for the end of the turn, if there is no body. To be said only of a request that may
    /// be sent again: its connection may end meanwhile.
    pub(super) fn may_wait(&mut self) {
        self.may_wait = self.is_read;
    }

    /// Whether the peer may have seen a byte.
    pub(super) fn has_written(&self) -> bool {
        self.has_written
    }

    /// The buffer back, when everything is out.
    pub(super) fn into_rest(mut self) -> Result<Vec<u8>, Self> {
        if self.is_out() {
            Ok(std::mem::take(&mut self.before))
        } else {
            Err(self)
        }
    }

    /// Writes all that is left. True when it is out.
    pub(super) async fn finish(mut self) -> bool {
        std::future::poll_fn(|cx| self.poll(cx)).await.is_ok()
    }

    /// Writes what can be written; ready when everything is out.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        if std::mem::take(&mut self.may_wait) {
            self.is_posted = self.socket.post(&self.before, cx);
        }
        if self.is_posted {
            self.from = ready!(self.socket.poll_posted());
            self.has_written = self.from > 0;
            self.is_posted = false;
        }
        loop {
            // With the first of the body at hand, it leaves in one write with the head.
            let polled = self
                .wants_more()
                .then(|| Pin::new(&mut self.body).poll_frame(cx));
            let waits = matches!(polled, Some(Poll::Pending));
            if let Some(Poll::Ready(frame)) = polled {
                self.take(frame)?;
            }
            if ready!(self.poll_write(cx)).is_err() {
                return Poll::Ready(Err(if self.has_written {
                    Broken::Lost
                } else {
                    Broken::Unsent
                }));
            }
            if waits || self.is_read {
                if !self.is_flushed {
                    let flushed = ready!(Pin::new(&mut self.socket).poll_flush(cx));
                    self.is_flushed = true;
                    flushed.map_err(|_| Broken::Lost)?;
                }
                return if waits {
                    Poll::Pending
                } else {
                    Poll::Ready(Ok(()))
                };
            }
        }
    }

    fn is_out(&self) -> bool {
        self.is_read && !self.has_output() && self.is_flushed
    }

    fn has_output(&self) -> bool {
        self.from < self.before.len() || !self.payload.is_empty() || !self.after.is_empty()
    }

    fn wants_more(&self) -> bool {
        // The first of the body joins the head; no second one does, however long the head waits.
        let is_first = !self.has_joined && !self.has_written;
        !self.is_read && (is_first || !self.has_output())
    }

    /// Takes the next frame of the body, or its end.
    fn take(&mut self, frame: Option<Result<Frame<Bytes>, B::Error>>) -> Result<(), Broken> {
        let frame = match frame {
            Some(Ok(frame)) => frame,
            Some(Err(_)) => return Err(Broken::Body),
            None => return self.end(None),
        };
        match frame.into_data() {
            Ok(data) => self.take_data(data),
            Err(frame) => self.end(frame.into_trailers().ok()),
        }
    }

    fn take_data(&mut self, data: Bytes) -> Result<(), Broken> {
        if data.is_empty() {
            return Ok(());
        }
        self.has_joined = true;
        self.clear_written();
        match &mut self.coding {
            Coding::Length(left) => {
                *left = left.checked_sub(data.len() as u64).ok_or(Broken::Body)?;
            }
            Coding::Chunked(_) => {
                use std::io::Write;
                // A vector takes whatever is written to it.
                let _ = write!(self.before, "{:x}\r\n", data.len());
                self.after = b"\r\n";
            }
        }
        if data.len() <= COPIED {
            self.before.extend_from_slice(&data);
            self.before
                .extend_from_slice(std::mem::take(&mut self.after));
        } else {
            self.payload = data;
        }
        if self.body.is_end_stream() {
            self.end(None)
        } else {
            Ok(())
        }
    }

    /// The body is read to its end.
    fn end(&mut self, trailers: Option<HeaderMap>) -> Result<(), Broken> {
        self.is_read = true;
        match (&self.coding, trailers) {
            (Coding::Length(0), _) => {}
            (Coding::Length(_), _) => return Err(Broken::Body),
            (Coding::Chunked(announced), Some(trailers)) => {
                let announced = announced.clone();
                let fields = trailers
                    .iter()
                    .filter(|(name, _)| may_trail(name, announced.as_ref()));
                self.clear_written();
                self.before.extend_from_slice(b"0\r\n");
                write_fields(fields, &mut self.before);
                self.before.extend_from_slice(b"\r\n");
            }
            (Coding::Chunked(_), None) if self.payload.is_empty() => {
                self.clear_written();
                self.before.extend_from_slice(b"0\r\n\r\n");
            }
            (Coding::Chunked(_), None) => self.after = b"\r\n0\r\n\r\n",
        }
        Ok(())
    }

    /// What stands before the next part goes into one buffer with what is not written yet.
    fn clear_written(&mut self) {
        if self.from == self.before.len() {
            self.before.clear();
            self.from = 0;
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.has_output() {
            let before = &self.before[self.from..];
            let offered = before.len() + self.payload.len() + self.after.len();
            let socket = Pin::new(&mut self.socket);
            let written = ready!(if self.payload.is_empty() && self.after.is_empty() {
                socket.poll_write(cx, before)
            } else {
                let parts = [before, &self.payload, self.after].map(IoSlice::new);
                socket.poll_write_vectored(cx, &parts)
            });
            // TLS fails a write of several records of which some are out.
            self.has_written |= written.is_ok() || offered > RECORD;
            self.is_flushed = false;
            match written? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.wrote(written),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn wrote(&mut self, mut bytes: usize) {
        let of_before = bytes.min(self.before.len() - self.from);
        self.from += of_before;
        bytes -= of_before;
        let of_payload = bytes.min(self.payload.len());
        self.payload.advance(of_payload);
        self.after = &self.after[bytes - of_payload..];
    }
}

impl<S: Posting, B> Drop for Upload<S, B> {
    /// Given up, a request does not leave any more: it may be on its way elsewhere.
    fn drop(&mut self) {
        if self.is_posted {
            self.socket.take_back();
        }
    }
}

/// What `content-length` promises.
fn promised(fields: &HeaderMap) -> Option<u64> {
    fields
        .get(header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

/// Whether a field may stand in the trailers: announced, and none that frames, routes or
/// authenticates (RFC 9110, section 6.5.1).
fn may_trail(name: &HeaderName, announced: Option<&HeaderValue>) -> bool {
    const NEVER: [HeaderName; 13] = [
        header::AUTHORIZATION,
        header::CACHE_CONTROL,
        header::CONNECTION,
        header::CONTENT_ENCODING,
        header::CONTENT_LENGTH,
        header::CONTENT_RANGE,
        header::CONTENT_TYPE,
        header::HOST,
        header::MAX_FORWARDS,
        header::SET_COOKIE,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
    ];
    let is_announced = announced.is_some_and(|names| {
        let mut names = names.as_bytes().split(|byte| *byte == b',');
        names.any(|announced| {
            announced
                .trim_ascii()
                .eq_ignore_ascii_case(name.as_str().as_bytes())
        })
    });
    is_announced && !NEVER.contains(name)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::task::Waker;

    use futures_util::stream;
    use http_body_util::StreamBody;
    use tokio::io::AsyncWrite;

    use super::*;

    const HEAD: &str = "HEAD\r\n\r\n";

    /// A stream that takes a few bytes at every other write, and shows them once it is flushed.
    #[derive(Clone, Default)]
    struct Slow(Rc<RefCell<Taken>>);

    #[derive(Default)]
    struct Taken {
        at_once: usize,
        is_waiting: bool,
        held: Vec<u8>,
        seen: Vec<u8>,
    }

    impl Posting for Slow {}

    impl AsyncWrite for Slow {
        fn poll_write(
            self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let mut taken = self.0.borrow_mut();
            if taken.at_once == 0 {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            taken.is_waiting = !taken.is_waiting;
            if taken.is_waiting {
                return Poll::Pending;
            }
            let bytes = &bytes[..bytes.len().min(taken.at_once)];
            taken.held.extend_from_slice(bytes);
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            let mut taken = self.0.borrow_mut();
            taken.is_waiting = !taken.is_waiting;
            if taken.is_waiting {
                return Poll::Pending;
            }
            let held = std::mem::take(&mut taken.held);
            taken.seen.extend_from_slice(&held);
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn data(text: &str) -> Frame<Bytes> {
        Frame::data(Bytes::copy_from_slice(text.as_bytes()))
    }

    fn fields(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let field = |(name, value): &(&'static str, &'static str)| {
            let name = HeaderName::from_static(name);
            (name, HeaderValue::from_static(value))
        };
        lines.iter().map(field).collect()
    }

    /// What the peer sees of a body with that head, if so many bytes are taken at once.
    fn sent(
        head: &[(&'static str, &'static str)],
        frames: Vec<Frame<Bytes>>,
        at_once: usize,
    ) -> Result<String, (Broken, bool)> {
        let socket = Slow::default();
        socket.0.borrow_mut().at_once = at_once;
        let frames = frames.into_iter().map(Ok::<_, io::Error>);
        let body = StreamBody::new(stream::iter(frames));
        let mut upload = Upload::new(socket.clone(), Coding::of(&fields(head)), body, HEAD.into());
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..100_000 {
            match upload.poll(&mut cx) {
                // What is not flushed is not out.
                Poll::Pending => assert!(!upload.is_out()),
                Poll::Ready(Err(broken)) => return Err((broken, upload.has_written())),
                Poll::Ready(Ok(())) => {
                    assert!(upload.into_rest().is_ok(), "nothing is left");
                    let seen = socket.0.borrow().seen.clone();
                    return Ok(String::from_utf8(seen).expect("text"));
                }
            }
        }
        panic!("it never ends");
    }

    #[test]
    fn bodies_go_out_in_the_framing_of_their_head() {
        let long = "x".repeat(COPIED + 1);
        let chunked = [("transfer-encoding", "chunked")];
        let table = [
            (&[][..], vec![], String::new()),
            (&[("content-length", "0")], vec![], String::new()),
            (
                &[("content-length", "5")],
                vec![data("he"), data(""), data("llo")],
                "hello".into(),
            ),
            (
                &[("content-length", "2050")],
                vec![data(&long), data("y")],
                format!("{long}y"),
            ),
            (&chunked, vec![], "0\r\n\r\n".into()),
            (
                &chunked,
                vec![data("hello"), data("")],
                "5\r\nhello\r\n0\r\n\r\n".into(),
            ),
            (
                &chunked,
                vec![data("a"), data(&long), data("b")],
                format!("1\r\na\r\n801\r\n{long}\r\n1\r\nb\r\n0\r\n\r\n"),
            ),
        ];
        for (head, frames, expected) in table {
            for at_once in [1, 2, 7, 1_000, usize::MAX] {
                let frames = frames
                    .iter()
                    .map(|frame| Frame::data(frame.data_ref().expect("data").clone()));

                let sent = sent(head, frames.collect(), at_once);

                assert_eq!(
                    sent.expect("sent"),
                    format!("{HEAD}{expected}"),
                    "{at_once}"
                );
            }
        }
    }

    #[test]
    fn what_the_head_announces_is_owed_by_a_body_that_is_known_to_be_empty() {
        let ends = |head: &[_]| {
            let socket = Slow::default();
            socket.0.borrow_mut().at_once = 1;
            let body = http_body_util::Empty::new();
            let mut upload =
                Upload::new(socket.clone(), Coding::of(&fields(head)), body, HEAD.into());
            let mut cx = Context::from_waker(Waker::noop());
            let end = (0..100).find_map(|_| match upload.poll(&mut cx) {
                Poll::Pending => None,
                Poll::Ready(end) => Some(end.is_ok()),
            });
            let seen = socket.0.borrow().seen.clone();
            (end, String::from_utf8(seen).expect("text"))
        };

        let chunked = ends(&[("transfer-encoding", "chunked")]);
        assert_eq!(chunked, (Some(true), format!("{HEAD}0\r\n\r\n")));
        let none = ends(&[]);
        assert_eq!(none, (Some(true), HEAD.to_owned()));
        let short = ends(&[("content-length", "5")]);
        assert_eq!(short, (Some(false), String::new()));
    }

    #[test]
    fn a_body_of_another_length_than_its_head_says_is_broken() {
        for frames in [
            vec![],
            vec![data("hell")],
            vec![data("hello"), data("!")],
            vec![data("hello!")],
            vec![data("hell"), Frame::trailers(HeaderMap::new())],
        ] {
            let sent = sent(&[("content-length", "5")], frames, 3);

            assert!(matches!(sent, Err((Broken::Body, _))), "{sent:?}");
        }
    }

    #[test]
    fn trailers_go_out_if_they_are_announced_and_not_forbidden() {
        let trailers = || {
            Frame::trailers(fields(&[
                ("x-sum", "1"),
                ("x-other", "2"),
                ("content-length", "3"),
                ("host", "4"),
            ]))
        };
        let table = [
            (&[("transfer-encoding", "chunked")][..], "0\r\n\r\n"),
            (
                &[
                    ("transfer-encoding", "chunked"),
                    ("trailer", "host, X-Sum ,content-length"),
                ],
                "0\r\nx-sum: 1\r\n\r\n",
            ),
        ];
        for (head, last) in table {
            for at_once in [1, usize::MAX] {
                let all = sent(head, vec![data("a"), trailers()], at_once).expect("sent");
                assert_eq!(all, format!("{HEAD}1\r\na\r\n{last}"));
                let alone = sent(head, vec![trailers()], at_once).expect("sent");
                assert_eq!(alone, format!("{HEAD}{last}"));
            }
        }
        let sent = sent(&[("content-length", "1")], vec![data("a"), trailers()], 1);
        assert_eq!(sent.expect("sent"), format!("{HEAD}a"));
    }

    #[test]
    fn what_cannot_be_written_is_unsent_unless_it_fills_more_than_a_record() {
        let long = "x".repeat(RECORD);
        for (body, was_written) in [("a", false), (&long, true)] {
            let sent = sent(&[("transfer-encoding", "chunked")], vec![data(body)], 0);

            let (broken, has_written) = sent.expect_err("a broken pipe");
            assert_eq!(has_written, was_written);
            assert_eq!(matches!(broken, Broken::Lost), was_written, "{broken:?}");
        }
    }

    #[test]
    fn no_more_of_a_body_is_taken_than_can_be_written() {
        let socket = Slow::default();
        socket.0.borrow_mut().at_once = 1;
        let frames = (0..1_000).map(|_| Ok::<_, io::Error>(data("0123456789")));
        let body = StreamBody::new(stream::iter(frames));
        let head = fields(&[("content-length", "10000")]);
        let mut upload = Upload::new(socket, Coding::of(&head), body, HEAD.into());
        let mut cx = Context::from_waker(Waker::noop());

        for _ in 0..200 {
            assert!(upload.poll(&mut cx).is_pending());

            assert!(upload.before.len() < 100, "{} bytes", upload.before.len());
        }
    }

    /// A stream that posts, and of which a test decides how many bytes the turn's end could write.
    #[derive(Clone, Default)]
    struct Desk {
        below: Slow,
        sent: Rc<RefCell<Option<usize>>>,
        was_taken_back: Rc<RefCell<bool>>,
    }

    impl Posting for Desk {
        fn post(&self, _bytes: &[u8], _cx: &mut Context<'_>) -> bool {
            true
        }

        fn poll_posted(&self) -> Poll<usize> {
            self.sent.borrow().map_or(Poll::Pending, Poll::Ready)
        }

        fn take_back(&self) {
            self.was_taken_back.replace(true);
        }
    }

    impl AsyncWrite for Desk {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.below).poll_write(cx, bytes)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.below).poll_flush(cx)
        }

        fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// A request without a body that was posted.
    fn posted() -> (
        Desk,
        Upload<Desk, http_body_util::Empty<Bytes>>,
        Context<'static>,
    ) {
        let socket = Desk::default();
        let body = http_body_util::Empty::new();
        let mut upload = Upload::new(socket.clone(), Coding::Length(0), body, HEAD.into());
        upload.may_wait();
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..2 {
            assert!(upload.poll(&mut cx).is_pending());
            assert!(!upload.has_written(), "the peer cannot have seen it");
        }
        (socket, upload, cx)
    }

    #[test]
    fn a_posted_request_is_out_when_the_turn_has_ended() {
        let (socket, mut upload, mut cx) = posted();
        socket.sent.replace(Some(HEAD.len()));
        assert!(matches!(upload.poll(&mut cx), Poll::Ready(Ok(()))));
        assert!(upload.has_written() && upload.into_rest().is_ok());
        assert!(!*socket.was_taken_back.borrow());
        assert_eq!(socket.below.0.borrow().seen, b"");
    }

    #[test]
    fn a_request_that_left_at_once_counts_as_written_at_once() {
        let socket = Desk::default();
        socket.sent.replace(Some(HEAD.len()));
        let body = http_body_util::Empty::new();
        let mut upload = Upload::new(socket, Coding::Length(0), body, HEAD.into());
        upload.may_wait();
        let polled = upload.poll(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(polled, Poll::Ready(Ok(()))) && upload.has_written());
    }

    #[test]
    fn what_the_turn_could_not_write_follows() {
        let (socket, mut upload, mut cx) = posted();
        socket.below.0.borrow_mut().at_once = 2;
        socket.sent.replace(Some(1));
        while upload.poll(&mut cx).is_pending() {}
        assert!(upload.has_written());
        assert_eq!(socket.below.0.borrow().seen, &HEAD.as_bytes()[1..]);
    }

    #[test]
    fn a_connection_that_took_nothing_has_not_seen_the_request() {
        let (socket, mut upload, mut cx) = posted();
        socket.sent.replace(Some(0));
        let polled = upload.poll(&mut cx);
        assert!(matches!(polled, Poll::Ready(Err(Broken::Unsent))));
        assert!(!upload.has_written());
    }

    #[test]
    fn a_request_that_is_given_up_is_taken_back() {
        let (socket, upload, _) = posted();
        drop(upload);
        assert!(*socket.was_taken_back.borrow());
    }

    #[test]
    fn a_request_with_a_body_is_not_posted() {
        let socket = Desk::default();
        socket.below.0.borrow_mut().at_once = usize::MAX;
        let body = StreamBody::new(stream::iter([Ok::<_, io::Error>(data("hello"))]));
        let mut upload = Upload::new(socket.clone(), Coding::Length(5), body, HEAD.into());
        upload.may_wait();
        let mut cx = Context::from_waker(Waker::noop());
        while upload.poll(&mut cx).is_pending() {}
        let seen = socket.below.0.borrow().seen.clone();
        assert_eq!(seen, format!("{HEAD}hello").as_bytes());
    }
}
