//! An HTTP/1 connection: served while requests come, at rest between them.
//!
//! The engine holds two buffers of 8 KiB for every connection. One that has been quiet for [`QUIET`]
//! is taken apart until its next byte comes, and only its socket is kept.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;

use super::watch::{Late, QUIET, Watch};
use super::{ByteStream, Connection, FAREWELL, abort, some_bytes};
use crate::exchange::{Failure, exchange};
use crate::wire::Engine;

/// Fields of a head that the HTTP/1 engine allows when it is not told.
const ENGINE_HEADERS: usize = 100;

impl Connection {
    /// Serves HTTP/1 requests until the connection is over. `first` is read before `stream`.
    pub(super) async fn h1<S: ByteStream>(self, stream: S, first: Bytes) {
        let mut arrived = Some((stream, first));
        while let Some((stream, first)) = arrived {
            // Boxed: a connection at rest gives the room back.
            arrived = match Box::pin(self.serve_h1(stream, first)).await {
                Some((stream, begun)) if begun.is_empty() => {
                    // Even empty it holds the engine's buffer.
                    drop(begun);
                    self.rest(stream).await
                }
                // The beginning of a head that came while its forerunner was served: its time starts.
                begun => begun,
            };
        }
    }

    /// Serves requests for as long as they come. Gives back the stream of a connection that nobody
    /// has used for a while, because the engine would hold its buffers for it; and what the engine has
    /// read and not served.
    async fn serve_h1<S: ByteStream>(&self, stream: S, first: Bytes) -> Option<(S, Bytes)> {
        let service = |request| exchange(self.ground.clone(), self.client.clone(), request);
        let transport = self.transport(stream, first, Engine::H1);
        let is_last = self.ground.is_draining.get() || self.client.is_one_too_many;
        let mut builder = http1::Builder::new();
        builder
            .auto_date_header(false)
            .keep_alive(!is_last)
            // One more than allowed: an incomplete head that long is answered by the watch.
            .max_header_size(self.limits.header_bytes + 1)
            .header_read_timeout(None);
        // Told a number, be it its own, the engine fills a table of that size for every head: 250 more
        // instructions.
        if self.limits.headers != ENGINE_HEADERS {
            builder.max_headers(self.limits.headers);
        }
        let mut engine = builder.serve_connection(TokioIo::new(transport), service_fn(service));
        let mut watch = Watch::new(self);
        let mut is_told_to_end = is_last;
        // In a drain a connection is in flight until its last answer has left the buffers.
        let mut flight = None;
        let end = poll_fn(|cx| {
            if self.ground.is_draining.get() {
                flight.get_or_insert_with(|| self.ground.draining.take_off());
            }
            if let Poll::Ready(result) = Pin::new(&mut engine).poll(cx) {
                return Poll::Ready(Ok(result));
            }
            // After the poll, and not in the middle of a head: the engine would take a request that
            // is arriving for an idle connection, and close without an answer.
            let is_asked = self.client.wire.has_begun_head();
            if flight.is_some() && !is_told_to_end && !is_asked {
                is_told_to_end = true;
                Pin::new(&mut engine).graceful_shutdown();
                cx.waker().wake_by_ref();
            }
            watch.poll(cx).map(Err)
        })
        .await;
        drop(watch);
        let parts = engine.into_parts();
        let stream = parts.io.into_inner();
        // Whatever becomes of the stream now, what the engine has written is written.
        stream.send_posted();
        match end {
            Ok(result) => {
                if let Some(upgraded) = self.client.upgraded.take() {
                    Box::pin(self.tunnel(stream, parts.read_buf, upgraded)).await;
                } else {
                    Box::pin(self.close(stream, result)).await;
                }
            }
            Err(Late::Head) => Box::pin(self.turn_away(stream, Failure::HeadTimeout)).await,
            Err(Late::TooLong) if self.client.wire.is_first_line_too_long() => {
                Box::pin(self.turn_away(stream, Failure::TargetTooLong)).await;
            }
            Err(Late::TooLong) => Box::pin(self.turn_away(stream, Failure::HeadTooLarge)).await,
            Err(Late::Quiet) if is_told_to_end => {}
            Err(Late::Quiet) => return Some((stream.into_inner(), parts.read_buf)),
            Err(Late::Stalled) => abort(stream.stream().tcp()),
        }
        None
    }

    /// Waits for the next request of a connection that has been quiet, without a buffer. `None` when
    /// none comes.
    async fn rest<S: ByteStream>(&self, mut stream: S) -> Option<(S, Bytes)> {
        self.client.wire.rests();
        let alarm = self.ground.deadlines.alarm();
        alarm.set(self.timeouts.keep_alive.saturating_sub(QUIET));
        let mut first = BytesMut::new();
        let is_there = {
            let mut reading = pin!(some_bytes(&mut stream, &mut first));
            poll_fn(|cx| match reading.as_mut().poll(cx) {
                Poll::Ready(is_there) => Poll::Ready(is_there),
                Poll::Pending if self.ground.is_draining.get() => Poll::Ready(false),
                Poll::Pending => alarm.poll(cx).map(|()| false),
            })
            .await
        };
        if is_there {
            return Some((stream, first.freeze()));
        }
        // TLS has a word for the end.
        let _ = self
            .ground
            .deadlines
            .within(FAREWELL, stream.shutdown())
            .await;
        None
    }
}
