//! An upstream connection's byte stream, shared by the engine that speaks on it and the pool that
//! looks whether the peer has closed it.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::http1;
use crate::outbox::{Mailer, Outbox, SMALL};
use crate::upstream::Dialled;

/// A clone is the same stream.
#[derive(Clone)]
pub struct Socket(Rc<Inner>);

struct Inner {
    dialled: RefCell<Dialled>,
    outbox: Rc<Outbox>,
    post: Cell<Post>,
    /// Of the task that has posted.
    waker: RefCell<Waker>,
}

/// What has become of the bytes that were posted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Post {
    /// There are none, or they were taken back.
    Nothing,
    Waits,
    /// So many could be written.
    Sent(usize),
}

impl Socket {
    /// A stream that posts small requests to `outbox`.
    pub fn new(dialled: Dialled, outbox: &Rc<Outbox>) -> Self {
        Self(Rc::new(Inner {
            dialled: RefCell::new(dialled),
            outbox: outbox.clone(),
            post: Cell::new(Post::Nothing),
            waker: RefCell::new(Waker::noop().clone()),
        }))
    }

    /// Whether the peer has neither closed the connection nor sent bytes nobody asked for, as the
    /// kernel knows it now: one `recv` with `MSG_PEEK`. The runtime may not have heard yet.
    pub fn is_quiet(&self) -> bool {
        let dialled = self.0.dialled.borrow();
        let mut byte = [MaybeUninit::uninit()];
        match SockRef::from(dialled.tcp()).peek(&mut byte) {
            Ok(0) => false,
            // A TLS peer may send tickets at any time; plain HTTP/1 has nothing to say unasked.
            Ok(_) => matches!(&*dialled, Dialled::Tls(_)),
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        }
    }

    /// Makes the close of this stream a reset: the peer must not take it for a proper end.
    pub fn abort(&self) {
        // Fails only on a socket that is closed already.
        let _ = self.0.dialled.borrow().tcp().set_zero_linger();
    }

    /// ALPN's choice, if TLS was spoken and a choice was made.
    pub fn is_alpn_h2(&self) -> bool {
        match &*self.0.dialled.borrow() {
            Dialled::Plain(_) => false,
            Dialled::Tls(stream) => stream.get_ref().1.alpn_protocol() == Some(b"h2"),
        }
    }
}

impl http1::Posting for Socket {
    /// Not over TLS: its records would have to be made first.
    fn post(&self, bytes: &[u8], cx: &mut Context<'_>) -> bool {
        if bytes.len() > SMALL || matches!(&*self.0.dialled.borrow(), Dialled::Tls(_)) {
            return false;
        }
        self.0.waker.borrow_mut().clone_from(cx.waker());
        self.0.post.set(Post::Waits);
        let mailer: Weak<Inner> = Rc::downgrade(&self.0);
        self.0.outbox.post(mailer, &[IoSlice::new(bytes)]);
        true
    }

    fn poll_posted(&self) -> Poll<usize> {
        match self.0.post.get() {
            Post::Nothing => Poll::Ready(0),
            Post::Waits => Poll::Pending,
            Post::Sent(bytes) => Poll::Ready(bytes),
        }
    }

    fn take_back(&self) {
        self.0.post.set(Post::Nothing);
    }
}

impl Mailer for Inner {
    fn send(&self, bytes: &[u8]) {
        if self.post.get() != Post::Waits {
            return;
        }
        // Whatever the reason, who has posted writes the rest himself and meets it again.
        let sent = self.dialled.borrow().tcp().try_write(bytes).unwrap_or(0);
        self.post.set(Post::Sent(sent));
        // Kept, it would keep the room of a task that is over.
        let waker = self.waker.replace(Waker::noop().clone());
        if sent < bytes.len() {
            waker.wake();
        }
    }
}

impl Dialled {
    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }
}

/// Calls `$method` on whichever stream is inside.
macro_rules! on_stream {
    ($socket:expr, $method:ident, $($argument:expr),*) => {
        match &mut *$socket.0.dialled.borrow_mut() {
            Dialled::Plain(stream) => Pin::new(stream).$method($($argument),*),
            Dialled::Tls(stream) => Pin::new(&mut **stream).$method($($argument),*),
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        on_stream!(self, poll_read, cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        on_stream!(self, poll_write, cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        on_stream!(self, poll_write_vectored, cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        match &*self.0.dialled.borrow() {
            Dialled::Plain(stream) => stream.is_write_vectored(),
            Dialled::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_stream!(self, poll_flush, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_stream!(self, poll_shutdown, cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;
    use crate::drain::Drain;
    use crate::http1::Posting;

    async fn pair() -> (Socket, Rc<Outbox>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let stream = TcpStream::connect(address).await.expect("it listens");
        let (peer, _) = listener.accept().await.expect("it was dialled");
        let outbox = Outbox::new(Drain::new().draining());
        let socket = Socket::new(Dialled::Plain(stream), &outbox);
        (socket, outbox, peer)
    }

    #[tokio::test]
    async fn what_is_posted_leaves_unless_it_was_taken_back() {
        let (mut socket, outbox, mut peer) = pair().await;
        let mut cx = Context::from_waker(Waker::noop());
        assert!(socket.post(b"never", &mut cx));
        assert!(socket.poll_posted().is_pending());
        socket.take_back();
        outbox.send();
        assert!(socket.post(b"once", &mut cx));
        outbox.send();
        outbox.send();
        assert_eq!(socket.poll_posted(), Poll::Ready(4));
        let ending = std::future::poll_fn(|cx| Pin::new(&mut socket).poll_shutdown(cx));
        ending.await.expect("it was open");
        let mut seen = String::new();
        peer.read_to_string(&mut seen).await.expect("it is text");
        assert_eq!(seen, "once");
    }

    #[tokio::test]
    async fn who_posted_to_a_full_stream_is_woken_for_the_rest() {
        let (socket, outbox, _peer) = pair().await;
        while socket
            .0
            .dialled
            .borrow()
            .tcp()
            .try_write(&[0; 4096])
            .is_ok()
        {}
        let posting = std::future::poll_fn(|cx| match socket.poll_posted() {
            Poll::Ready(0) if socket.0.post.get() == Post::Nothing => {
                assert!(socket.post(b"text", cx));
                outbox.send();
                Poll::Pending
            }
            polled => polled,
        });
        assert_eq!(posting.await, 0);
    }

    #[tokio::test]
    async fn what_is_large_is_not_posted() {
        let (socket, _outbox, _peer) = pair().await;
        let mut cx = Context::from_waker(Waker::noop());
        assert!(!socket.post(&[0; SMALL + 1], &mut cx));
    }
}
