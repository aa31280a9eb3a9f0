//! HTTP/2 upstreams by hand: frames that a well-behaved server would not send.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::fields::Fields;
use super::upstream::{Peer, Upstream};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

const REFUSED_STREAM: u32 = 7;
const INTERNAL_ERROR: u32 = 2;

/// How a stream is turned down before any of it was acted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unacted {
    /// RST_STREAM with REFUSED_STREAM.
    Refused,
    /// GOAWAY whose last stream is a lower one, then the connection ends.
    GoneAway,
}

impl Upstream {
    /// Turns down the first `times` requests of all, then answers 200 with its name.
    pub async fn h2_that_turns_down(name: &str, how: Unacted, times: usize) -> Self {
        let left = Arc::new(AtomicUsize::new(times));
        Self::raw(name, move |peer| {
            let left = left.clone();
            async move {
                let mut h2 = Frames::greet(peer).await?;
                while let Some(stream) = h2.request().await? {
                    let turn_down = left
                        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
                        .is_ok();
                    match how {
                        _ if !turn_down => h2.ok(stream).await?,
                        Unacted::Refused => h2.reset(stream, REFUSED_STREAM).await?,
                        Unacted::GoneAway => return h2.goaway(stream.saturating_sub(2)).await,
                    }
                }
                Ok(())
            }
        })
        .await
    }

    /// Resets every stream with INTERNAL_ERROR instead of answering: it may have been acted on.
    pub async fn h2_that_fails_streams(name: &str) -> Self {
        Self::raw(name, |peer| async move {
            let mut h2 = Frames::greet(peer).await?;
            while let Some(stream) = h2.request().await? {
                h2.reset(stream, INTERNAL_ERROR).await?;
            }
            Ok(())
        })
        .await
    }

    /// Answers with a head and a part of the body, then resets the stream.
    pub async fn h2_that_breaks_in_the_middle(name: &str) -> Self {
        Self::raw(name, |peer| async move {
            let mut h2 = Frames::greet(peer).await?;
            while let Some(stream) = h2.request().await? {
                h2.head(stream, END_HEADERS).await?;
                h2.frame(DATA, 0, stream, b"first half").await?;
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                h2.reset(stream, INTERNAL_ERROR).await?;
            }
            Ok(())
        })
        .await
    }
}

/// The server's side of an HTTP/2 connection, frame by frame.
struct Frames(Peer);

impl Frames {
    /// Takes the client's preface and answers it.
    async fn greet(mut peer: Peer) -> io::Result<Self> {
        let preface = peer.wire.exactly(24).await?;
        if &preface[..] != b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "not the preface of HTTP/2",
            ));
        }
        let mut frames = Self(peer);
        frames.frame(SETTINGS, 0, 0, b"").await?;
        Ok(frames)
    }

    /// The stream of the next request head; answers settings and pings on the way.
    async fn request(&mut self) -> io::Result<Option<u32>> {
        loop {
            let Ok(head) = self.0.wire.exactly(9).await else {
                return Ok(None);
            };
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let (kind, flags) = (head[3], head[4]);
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
            let payload = self.0.wire.exactly(length).await?;
            match kind {
                HEADERS if stream > 0 => {
                    // The header block is compressed, so there is no id to count by.
                    self.0.account.count(&Fields::default());
                    return Ok(Some(stream));
                }
                SETTINGS if flags & ACK == 0 => self.frame(SETTINGS, ACK, 0, b"").await?,
                PING if flags & ACK == 0 => self.frame(PING, ACK, 0, &payload).await?,
                _ => {}
            }
        }
    }

    async fn ok(&mut self, stream: u32) -> io::Result<()> {
        self.head(stream, END_HEADERS | END_STREAM).await
    }

    /// `:status: 200` from the static table, and `x-upstream` as a literal (RFC 7541, 6.2.2).
    async fn head(&mut self, stream: u32, flags: u8) -> io::Result<()> {
        let name = self.0.account.name.clone();
        let mut block = vec![0x88, 0x00, 10];
        block.extend_from_slice(b"x-upstream");
        block.push(name.len() as u8);
        block.extend_from_slice(name.as_bytes());
        self.frame(HEADERS, flags, stream, &block).await
    }

    async fn reset(&mut self, stream: u32, code: u32) -> io::Result<()> {
        self.frame(RST_STREAM, 0, stream, &code.to_be_bytes()).await
    }

    async fn goaway(&mut self, last: u32) -> io::Result<()> {
        let payload = [last.to_be_bytes(), 0_u32.to_be_bytes()].concat();
        self.frame(GOAWAY, 0, 0, &payload).await
    }

    async fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        bytes.extend_from_slice(&[kind, flags]);
        bytes.extend_from_slice(&stream.to_be_bytes());
        bytes.extend_from_slice(payload);
        self.0.wire.send(bytes).await
    }
}
