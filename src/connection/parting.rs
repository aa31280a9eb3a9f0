//! How an HTTP/1 connection is parted with: answered if need be, and so that the answer arrives.

use std::time::Duration;

use bytes::Bytes;
use http::{Response, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tracing::debug;

use super::{ByteStream, Connection, abort};
use crate::exchange::Failure;
use crate::forward::Flaw;
use crate::wire::Transport;

/// How long, and for how many bytes, what a client still sends is thrown away so that it gets to
/// read its answer. A close with unread bytes would reset the connection, and with it the answer.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: u64 = 16 << 20;

impl Connection {
    /// Answers bytes that never became a request.
    pub(super) async fn turn_away<S: ByteStream>(
        &self,
        mut stream: Transport<S>,
        failure: Failure,
    ) {
        self.refused(&failure);
        if self.client.wire.has_unflushed() {
            // It would land in the middle of the answer before.
            abort(stream.stream().tcp());
            return;
        }
        let answer = raw(&failure.response(None));
        self.client.wire.becomes_tunnel();
        let writing = async {
            stream.write_all(&answer).await?;
            stream.shutdown().await
        };
        if let Ok(Ok(())) = self.ground.deadlines.within(LINGER, writing).await {
            self.linger(stream).await;
        }
    }

    /// Ends a connection that the engine is done with.
    pub(super) async fn close<S: ByteStream>(
        &self,
        stream: Transport<S>,
        result: hyper::Result<()>,
    ) {
        let mut has_unread = self.client.wire.has_unread();
        if let Err(error) = result {
            debug!(address = %self.client.address, %error, "http/1 connection failed");
            if error.is_parse_too_large() {
                self.refused(&Failure::HeadTooLarge);
            } else if error.is_parse() {
                self.refused(&Failure::BadRequest(Flaw::Syntax));
            }
            // The engine has answered what it could not parse.
            has_unread |= error.is_parse();
        }
        if self.client.wire.must_reset() {
            abort(stream.stream().tcp());
        } else if has_unread {
            self.client.wire.becomes_tunnel();
            self.linger(stream).await;
        }
    }

    /// Throws away what the client still sends, for a while.
    async fn linger<S: ByteStream>(&self, stream: Transport<S>) {
        let mut stream = stream.take(LINGER_BYTES);
        let reading = async {
            let mut scrap = Vec::with_capacity(16 * 1024);
            while matches!(stream.read_buf(&mut scrap).await, Ok(1..)) {
                scrap.clear();
            }
        };
        // A client that is still sending then has not read its answer, and will not.
        let _ = self.ground.deadlines.within(LINGER, reading).await;
    }

    /// Counts an answer that no exchange gave.
    fn refused(&self, failure: &Failure) {
        self.client
            .ledger
            .refused(failure.status().as_u16(), failure.reason());
    }
}

/// An answer as bytes of HTTP/1.1, for a connection that ends with it.
fn raw(response: &Response<Bytes>) -> Vec<u8> {
    let status = response.status();
    let version = Version::HTTP_11;
    let mut bytes = format!(
        "{version:?} {} {}\r\nconnection: close\r\ncontent-length: {}\r\n",
        status.as_u16(),
        status.canonical_reason().unwrap_or_default(),
        response.body().len(),
    )
    .into_bytes();
    for (name, value) in response.headers() {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(response.body());
    bytes
}
