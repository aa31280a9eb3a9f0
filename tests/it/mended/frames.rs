//! HTTP/2 frame by frame, on either side of a connection.

use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::wire::Wire;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;

const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

pub const NO_ERROR: u32 = 0;
pub const INTERNAL_ERROR: u32 = 2;
pub const CANCEL: u32 = 8;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// `:status: 200` in the static table (RFC 7541, appendix A).
pub const STATUS_200: u8 = 0x88;
/// `:status: 400` in the static table.
pub const STATUS_400: u8 = 0x8c;

/// A connection of HTTP/2, on which nothing is done unasked but answering settings and pings.
pub struct Frames<S>(pub Wire<S>);

/// One frame as it came.
#[derive(Debug, Clone)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Bytes,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Frames<S> {
    /// The server's side: takes the preface and answers it.
    pub async fn accept(wire: Wire<S>) -> io::Result<Self> {
        let mut frames = Self(wire);
        assert_eq!(&frames.0.exactly(PREFACE.len()).await?[..], PREFACE);
        frames.send(SETTINGS, 0, 0, b"").await?;
        Ok(frames)
    }

    /// The next frame of a stream, or `None` at the end.
    pub async fn next(&mut self) -> io::Result<Option<Frame>> {
        loop {
            let Ok(head) = self.0.exactly(9).await else {
                return Ok(None);
            };
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
            let frame = Frame {
                kind: head[3],
                flags: head[4],
                stream,
                payload: self.0.exactly(length).await?,
            };
            match frame.kind {
                SETTINGS if frame.flags & ACK == 0 => self.send(SETTINGS, ACK, 0, b"").await?,
                PING if frame.flags & ACK == 0 => {
                    self.send(PING, ACK, 0, &frame.payload).await?;
                }
                DATA | HEADERS | RST_STREAM => return Ok(Some(frame)),
                _ => {}
            }
        }
    }

    /// The stream of the next request head.
    pub async fn request(&mut self) -> io::Result<Option<u32>> {
        while let Some(frame) = self.next().await? {
            if frame.kind == HEADERS {
                return Ok(Some(frame.stream));
            }
        }
        Ok(None)
    }

    /// The head of a 200, nothing else in it.
    pub async fn ok(&mut self, stream: u32, flags: u8) -> io::Result<()> {
        self.send(HEADERS, flags | END_HEADERS, stream, &[STATUS_200])
            .await
    }

    pub async fn reset(&mut self, stream: u32, code: u32) -> io::Result<()> {
        self.send(RST_STREAM, 0, stream, &code.to_be_bytes()).await
    }

    pub async fn send(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &[u8],
    ) -> io::Result<()> {
        let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        bytes.extend_from_slice(&[kind, flags]);
        bytes.extend_from_slice(&stream.to_be_bytes());
        bytes.extend_from_slice(payload);
        self.0.send(bytes).await
    }
}

impl Frames<TcpStream> {
    /// The client's side, with windows that never close: only the socket holds the other side back.
    pub async fn connect(address: SocketAddr) -> Self {
        let mut frames = Self(Wire::new(small_reader(address).await));
        frames.0.send(PREFACE).await.expect("the proxy reads");
        // SETTINGS_INITIAL_WINDOW_SIZE (RFC 9113, section 6.5.2).
        let settings = [&[0, 4][..], &0x7fff_ffff_u32.to_be_bytes()].concat();
        frames
            .send(SETTINGS, 0, 0, &settings)
            .await
            .expect("the proxy reads");
        let window = 0x7000_0000_u32.to_be_bytes();
        frames
            .send(WINDOW_UPDATE, 0, 0, &window)
            .await
            .expect("the proxy reads");
        frames
    }
}

/// A connection whose kernel keeps little for a reader that takes its time.
pub async fn small_reader(address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("sockets can be made");
    socket
        .set_recv_buffer_size(32 << 10)
        .expect("a fresh socket takes options");
    let stream = socket.connect(address).await.expect("the address listens");
    stream
        .set_nodelay(true)
        .expect("a fresh socket takes options");
    stream
}

/// A request head of HTTP/2: method by its index in the static table, then literal fields.
pub fn head(method: u8, fields: &[(&str, &str)]) -> Vec<u8> {
    // `:scheme: http` and `:path: /`.
    let mut block = vec![method, 0x86, 0x84];
    for (name, value) in fields {
        // A literal that is not indexed, with a name of its own (RFC 7541, section 6.2.2).
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).expect("short"));
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

pub const GET: u8 = 0x82;
pub const POST: u8 = 0x83;
