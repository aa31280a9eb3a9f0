//! A client's byte stream, watched on its way to the engine and back.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{EndOfReading, Stage, Wire};

/// The HTTP version on a wire. HTTP/2 knows no half-close, and its frames are no heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    H1,
    H2,
}

/// A client's byte stream, watched.
pub struct Transport<S> {
    stream: S,
    /// What was read while the protocol was found out.
    first: Bytes,
    wire: Rc<Wire>,
    engine: Engine,
}

impl<S> Transport<S> {
    /// `first` is read before `stream`.
    pub fn new(stream: S, first: Bytes, wire: Rc<Wire>, engine: Engine) -> Self {
        Self {
            stream,
            first,
            wire,
            engine,
        }
    }

    pub fn into_inner(self) -> S {
        self.stream
    }

    pub fn stream(&self) -> &S {
        &self.stream
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Transport<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // The connection answers a head that is too long; the engine shall not see more of it.
        if self.wire.stage.get() == Stage::TooLong {
            return Poll::Pending;
        }
        let before = buf.filled().len();
        if self.first.is_empty() {
            std::task::ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        } else {
            let bytes = self.first.len().min(buf.remaining());
            buf.put_slice(&self.first[..bytes]);
            self.first.advance(bytes);
            if self.first.is_empty() {
                self.first = Bytes::new();
            }
        }
        let read = &buf.filled()[before..];
        self.wire
            .moved
            .set(self.wire.moved.get() + read.len() as u64);
        if self.engine == Engine::H2 {
            return Poll::Ready(Ok(()));
        }
        if !read.is_empty() {
            self.wire.read(read);
            if self.wire.stage.get() == Stage::TooLong {
                buf.set_filled(before);
                return Poll::Pending;
            }
        } else if self.wire.end_of_stream() == EndOfReading::Held {
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> Transport<S> {
    fn wrote(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &result {
            self.wire.moved.set(self.wire.moved.get() + *bytes as u64);
            self.wire.wrote.set(self.wire.wrote.get() + *bytes as u64);
        }
        self.wire.has_unflushed.set(true);
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Transport<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if flushed.is_ready() {
            self.wire.has_unflushed.set(false);
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
