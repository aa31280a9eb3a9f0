//! An upstream connection's byte stream, shared by the engine that speaks on it and the pool that
//! looks whether the peer has closed it.

use std::cell::RefCell;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::upstream::Dialled;

/// A clone is the same stream.
#[derive(Clone)]
pub struct Socket(Rc<RefCell<Dialled>>);

impl Socket {
    pub fn new(dialled: Dialled) -> Self {
        Self(Rc::new(RefCell::new(dialled)))
    }

    /// Whether the peer has neither closed the connection nor sent bytes nobody asked for, as the
    /// kernel knows it now: one `recv` with `MSG_PEEK`. The runtime may not have heard yet.
    pub fn is_quiet(&self) -> bool {
        let dialled = self.0.borrow();
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
        let _ = self.0.borrow().tcp().set_zero_linger();
    }

    /// ALPN's choice, if TLS was spoken and a choice was made.
    pub fn is_alpn_h2(&self) -> bool {
        match &*self.0.borrow() {
            Dialled::Plain(_) => false,
            Dialled::Tls(stream) => stream.get_ref().1.alpn_protocol() == Some(b"h2"),
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
        match &mut *$socket.0.borrow_mut() {
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
        match &*self.0.borrow() {
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
