//! A client's byte stream, watched on its way to the engine and back.

use std::cell::Ref;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::outlet::Outlet;
use super::{EndOfReading, Stage, Wire};
use crate::outbox::{Outbox, SMALL};

/// The HTTP version on a wire. HTTP/2 knows no half-close, and its frames are no heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    H1,
    H2,
}

/// A client's byte stream, watched.
pub struct Transport<S> {
    outlet: Rc<Outlet<S>>,
    /// What was read while the protocol was found out.
    first: Bytes,
    wire: Rc<Wire>,
    engine: Engine,
}

impl<S> Transport<S> {
    /// `first` is read before `stream`. Small answers of HTTP/1 are posted to `outbox`.
    pub fn new(
        stream: S,
        first: Bytes,
        wire: Rc<Wire>,
        engine: Engine,
        outbox: &Rc<Outbox>,
    ) -> Self {
        Self {
            outlet: Outlet::new(stream, wire.clone(), outbox),
            first,
            wire,
            engine,
        }
    }

    /// The stream below. What has not left yet is lost.
    pub fn into_inner(self) -> S {
        self.outlet.into_inner()
    }

    pub fn stream(&self) -> Ref<'_, S> {
        self.outlet.stream()
    }

    /// Sends what is posted before anything else happens to the stream.
    pub fn send_posted(&self) {
        self.outlet.send_posted();
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
            let mut stream = self.outlet.stream_mut();
            std::task::ready!(Pin::new(&mut *stream).poll_read(cx, buf))?;
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

impl<S: AsyncWrite + Unpin + 'static> Transport<S> {
    /// Whether a write of so many bytes may wait for the end of the turn. HTTP/2 gathers its frames
    /// itself, and of a tunnel nobody looks again for what has not left.
    fn may_wait(&self, bytes: usize) -> bool {
        self.engine == Engine::H1 && bytes <= SMALL && self.wire.stage.get() != Stage::Tunnel
    }

    fn poll_parts(&self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let result = if self.may_wait(parts.iter().map(|part| part.len()).sum()) {
            self.outlet.poll_post(cx, parts)
        } else {
            self.outlet.poll_write(cx, parts)
        };
        if let Poll::Ready(Ok(bytes)) = &result {
            self.wire.moved.set(self.wire.moved.get() + *bytes as u64);
            self.wire.wrote.set(self.wire.wrote.get() + *bytes as u64);
        }
        self.wire.has_unflushed.set(true);
        result
    }
}

impl<S: AsyncWrite + Unpin + 'static> AsyncWrite for Transport<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_parts(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_parts(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = self.outlet.poll_flush(cx);
        if flushed.is_ready() {
            self.wire.has_unflushed.set(false);
        }
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outlet.poll_shutdown(cx)
    }
}
