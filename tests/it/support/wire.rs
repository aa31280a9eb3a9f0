//! HTTP/1 by hand, on either side of a connection: every byte that is sent is chosen, and every
//! way a message can end is told apart.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::fields::Fields;

/// A connection with what was read from it and not yet taken.
pub struct Wire<S> {
    pub stream: S,
    buffer: BytesMut,
}

/// A start line and its header fields.
#[derive(Debug, Clone)]
pub struct Head {
    pub first: String,
    pub fields: Fields,
    /// The bytes as they came, the empty line included.
    pub raw: Bytes,
}

/// How the end of a body is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    Empty,
    Length(u64),
    Chunked,
    UntilClose,
}

/// A body that ended as its framing says.
#[derive(Debug, Clone, Default)]
pub struct Body {
    pub bytes: Bytes,
    pub trailers: Fields,
}

/// How the other side ended the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// In order: end of file.
    Fin,
    /// With a reset.
    Reset,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            buffer: BytesMut::new(),
        }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref()).await?;
        self.stream.flush().await
    }

    /// The next head, or `None` when the connection ended in order before its first byte.
    pub async fn head(&mut self) -> io::Result<Option<Head>> {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                return Ok(Some(Head::parse(self.buffer.split_to(end + 4).freeze())));
            }
            if self.fill().await? == 0 {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(cut("in a head"))
                };
            }
        }
    }

    /// The body that follows a head.
    pub async fn body(&mut self, framing: Framing) -> io::Result<Body> {
        let mut bytes = BytesMut::new();
        let trailers = self
            .each(framing, |piece| bytes.extend_from_slice(piece))
            .await?;
        Ok(Body {
            bytes: bytes.freeze(),
            trailers,
        })
    }

    /// Shows the body to `take` piece by piece, as it arrives; returns its trailers.
    pub async fn each(
        &mut self,
        framing: Framing,
        mut take: impl FnMut(&[u8]),
    ) -> io::Result<Fields> {
        match framing {
            Framing::Empty => Ok(Fields::default()),
            Framing::Length(length) => {
                self.counted(length, &mut take).await?;
                Ok(Fields::default())
            }
            Framing::UntilClose => {
                while !self.buffer.is_empty() || self.fill().await? > 0 {
                    take(&self.buffer.split());
                }
                Ok(Fields::default())
            }
            Framing::Chunked => loop {
                let line = self.line().await?;
                let size = line.split(';').next().unwrap_or_default().trim();
                let size = u64::from_str_radix(size, 16).map_err(|_| {
                    io::Error::new(io::ErrorKind::InvalidData, format!("chunk size {line:?}"))
                })?;
                if size == 0 {
                    return self.trailers().await;
                }
                self.counted(size, &mut take).await?;
                self.exactly(2).await?;
            },
        }
    }

    /// Exactly that many bytes.
    pub async fn exactly(&mut self, length: usize) -> io::Result<Bytes> {
        while self.buffer.len() < length {
            if self.fill().await? == 0 {
                return Err(cut("short"));
            }
        }
        Ok(self.buffer.split_to(length).freeze())
    }

    /// Whatever comes next, at least one byte; empty at the end.
    pub async fn some(&mut self) -> io::Result<Bytes> {
        if self.buffer.is_empty() {
            self.fill().await?;
        }
        Ok(self.buffer.split().freeze())
    }

    /// Everything up to the end, and which end it was.
    pub async fn rest(&mut self) -> (Bytes, Ending) {
        let ending = loop {
            match self.fill().await {
                Ok(0) => break Ending::Fin,
                Ok(_) => {}
                Err(_) => break Ending::Reset,
            }
        };
        (self.buffer.split().freeze(), ending)
    }

    async fn fill(&mut self) -> io::Result<usize> {
        self.stream.read_buf(&mut self.buffer).await
    }

    async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|two| two == b"\r\n") {
                let line = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
                self.buffer.advance(end + 2);
                return Ok(line);
            }
            if self.fill().await? == 0 {
                return Err(cut("in a line"));
            }
        }
    }

    async fn counted(&mut self, mut left: u64, take: &mut impl FnMut(&[u8])) -> io::Result<()> {
        while left > 0 {
            if self.buffer.is_empty() && self.fill().await? == 0 {
                return Err(cut("in a body"));
            }
            let length = left.min(self.buffer.len() as u64);
            take(&self.buffer.split_to(length as usize));
            left -= length;
        }
        Ok(())
    }

    async fn trailers(&mut self) -> io::Result<Fields> {
        let mut trailers = Fields::default();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Ok(trailers);
            }
            let (name, value) = line.split_once(':').unwrap_or((&line, ""));
            trailers.push(name, value.trim());
        }
    }
}

impl Head {
    fn parse(raw: Bytes) -> Self {
        let mut lines = raw
            .split(|byte| *byte == b'\n')
            .map(|line| line.trim_ascii_end());
        let first = String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
        let mut fields = Fields::default();
        for line in lines.filter(|line| !line.is_empty()) {
            let colon = line
                .iter()
                .position(|byte| *byte == b':')
                .unwrap_or(line.len());
            let value = line.get(colon + 1..).unwrap_or_default().trim_ascii();
            fields.push(String::from_utf8_lossy(&line[..colon]), value);
        }
        Self {
            first,
            fields,
            raw: raw.clone(),
        }
    }

    /// The n-th word of the start line: method, target, version, or version, status.
    pub fn word(&self, n: usize) -> &str {
        self.first.split(' ').nth(n).unwrap_or_default()
    }

    pub fn status(&self) -> u16 {
        self.word(1)
            .parse()
            .unwrap_or_else(|_| panic!("no status line: {:?}", self.first))
    }

    /// How the body of this request ends (RFC 9112, section 6.3).
    pub fn request_framing(&self) -> Framing {
        self.declared_framing().unwrap_or(Framing::Empty)
    }

    /// How the body of this response to `method` ends (RFC 9112, section 6.3).
    pub fn response_framing(&self, method: &str) -> Framing {
        let status = self.status();
        if method == "HEAD" || status < 200 || status == 204 || status == 304 {
            return Framing::Empty;
        }
        self.declared_framing().unwrap_or(Framing::UntilClose)
    }

    fn declared_framing(&self) -> Option<Framing> {
        let coding = self.fields.first("transfer-encoding").unwrap_or_default();
        if coding.to_ascii_lowercase().ends_with("chunked") {
            return Some(Framing::Chunked);
        }
        let length = self.fields.first("content-length")?;
        Some(Framing::Length(length.parse().ok()?))
    }
}

fn cut(place: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        format!("the connection ended {place}"),
    )
}
