//! HTTP/1 as both ends read it: heads in place, bodies thrown away, nothing allocated per request.
//! Trusts its peers to be servers and proxies that mean well; it is no parser for the internet.

use std::cell::RefCell;
use std::io;
use std::mem::MaybeUninit;

use memchr::{memchr, memmem};
use nix::libc::MSG_TRUNC;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;

/// Room for a head or the line of a chunk's size.
const BUFFER: usize = 16 * 1024;
/// The most that is thrown away by one system call.
const SINK: usize = 1024 * 1024;

thread_local! {
    // Never written to, so it costs addresses and no memory.
    static SINK_ROOM: RefCell<Box<[MaybeUninit<u8>]>> = RefCell::new(Box::new_uninit_slice(SINK));
}

/// How the end of a body is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Framing {
    Length(u64),
    Chunked,
    /// Neither was said: a request has no body, an answer lasts until the connection ends.
    Unsaid,
}

/// The fields of a head, without its first line. Names are as they came.
pub fn fields(head: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let after_first = memchr(b'\n', head).map_or(head.len(), |end| end + 1);
    let mut rest = &head[after_first..];
    std::iter::from_fn(move || {
        let end = memchr(b'\n', rest)?;
        let line = rest[..end].trim_ascii_end();
        rest = &rest[end + 1..];
        let colon = memchr(b':', line)?;
        Some((&line[..colon], line[colon + 1..].trim_ascii_start()))
    })
}

/// What a field says about the body's framing, if anything.
pub fn framing(name: &[u8], value: &[u8]) -> Option<Framing> {
    if name.eq_ignore_ascii_case(b"content-length") {
        let digits = std::str::from_utf8(value).ok()?;
        digits.parse().ok().map(Framing::Length)
    } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
        Some(Framing::Chunked)
    } else {
        None
    }
}

/// A connection that is read head by head.
pub struct Connection {
    stream: TcpStream,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Connection {
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            buffer: vec![0; BUFFER].into_boxed_slice(),
            start: 0,
            end: 0,
        })
    }

    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// Reads the next head and has it interpreted; `None` when the connection ended before it.
    pub async fn head<T>(&mut self, interpret: impl FnOnce(&[u8]) -> T) -> io::Result<Option<T>> {
        loop {
            let unread = &self.buffer[self.start..self.end];
            if let Some(blank) = memmem::find(unread, b"\r\n\r\n") {
                let size = blank + 4;
                // The blank line is left out: every line of the rest ends the same way.
                let head = interpret(&unread[..size - 2]);
                self.start += size;
                return Ok(Some(head));
            }
            let between_heads = unread.is_empty();
            if self.fill().await? == 0 {
                return if between_heads {
                    Ok(None)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            }
        }
    }

    /// Throws a body away and says how long it was.
    pub async fn discard(&mut self, framing: Framing) -> io::Result<u64> {
        match framing {
            Framing::Length(length) => self.discard_bytes(length).await.map(|()| length),
            Framing::Chunked => self.discard_chunks().await,
            Framing::Unsaid => Ok(0),
        }
    }

    /// True when the other end said nothing more and closed.
    pub async fn has_ended(&mut self) -> io::Result<bool> {
        Ok(self.start == self.end && self.fill().await? == 0)
    }

    async fn discard_bytes(&mut self, length: u64) -> io::Result<()> {
        let buffered = (self.end - self.start) as u64;
        let taken = buffered.min(length);
        self.start += taken as usize;
        let mut left = length - taken;
        while left > 0 {
            let most = left.min(SINK as u64) as usize;
            // With this flag TCP drops the bytes where they are, and copies nothing.
            let dropped = self
                .stream
                .async_io(Interest::READABLE, || {
                    SINK_ROOM.with_borrow_mut(|sink| {
                        SockRef::from(&self.stream).recv_with_flags(&mut sink[..most], MSG_TRUNC)
                    })
                })
                .await?;
            if dropped == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            left -= dropped as u64;
        }
        Ok(())
    }

    async fn discard_chunks(&mut self) -> io::Result<u64> {
        let mut total = 0;
        loop {
            let size = self.line(chunk_size).await?;
            if size == 0 {
                // Trailers, up to and with the blank line.
                while self.line(|line| line.len()).await? > 0 {}
                return Ok(total);
            }
            // The chunk's own line end belongs to it.
            self.discard_bytes(size + 2).await?;
            total += size;
        }
    }

    /// The next line without its end, interpreted.
    async fn line<T>(&mut self, interpret: impl FnOnce(&[u8]) -> T) -> io::Result<T> {
        loop {
            let unread = &self.buffer[self.start..self.end];
            if let Some(end) = memchr(b'\n', unread) {
                let line = interpret(unread[..end].trim_ascii_end());
                self.start += end + 1;
                return Ok(line);
            }
            if self.fill().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Reads once, behind what is unread.
    async fn fill(&mut self) -> io::Result<usize> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.buffer.len() {
            if self.start == 0 {
                return Err(io::Error::other("a head or line of more than 16 KiB"));
            }
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let got = self.stream.read(&mut self.buffer[self.end..]).await?;
        self.end += got;
        Ok(got)
    }
}

/// The size a chunk's first line states; extensions are skipped. Zero, the end, if it is none.
fn chunk_size(line: &[u8]) -> u64 {
    let digits = line.split(|byte| *byte == b';').next().unwrap_or_default();
    std::str::from_utf8(digits.trim_ascii())
        .ok()
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// A connection at whose other end these bytes are written, in pieces of this size, then closed.
    async fn receiving(bytes: &'static [u8], piece: usize) -> Connection {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("it is bound");
        tokio::spawn(async move {
            let mut stream = TcpStream::connect(address).await.expect("it listens");
            stream.set_nodelay(true).expect("it is TCP");
            for piece in bytes.chunks(piece) {
                stream.write_all(piece).await.expect("it is open");
                tokio::task::yield_now().await;
            }
        });
        let (stream, _) = listener.accept().await.expect("somebody connects");
        Connection::new(stream).expect("it is TCP")
    }

    #[tokio::test]
    async fn reads_heads_and_bodies_in_any_split() {
        const BYTES: &[u8] = b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\
            3;x=y\r\nabc\r\n10\r\n0123456789abcdef\r\n0\r\nx-end: 1\r\n\r\n\
            POST /b HTTP/1.1\r\ncontent-length: 5\r\n\r\nhelloGET /c HTTP/1.1\r\n\r\n";
        for piece in [1, 2, 3, 7, 50, BYTES.len()] {
            let mut connection = receiving(BYTES, piece).await;
            let mut seen = Vec::new();
            while let Some((target, how)) = connection
                .head(|head| {
                    let target = head.split(|byte| *byte == b' ').nth(1).map(<[u8]>::to_vec);
                    let how = fields(head).find_map(|(name, value)| framing(name, value));
                    (target.unwrap_or_default(), how)
                })
                .await
                .expect("heads are whole")
            {
                let how = how.unwrap_or(Framing::Unsaid);
                seen.push((
                    target,
                    connection.discard(how).await.expect("bodies are whole"),
                ));
            }
            let wanted = [
                (b"/a".to_vec(), 19),
                (b"/b".to_vec(), 5),
                (b"/c".to_vec(), 0),
            ];
            assert_eq!(seen, wanted, "in pieces of {piece}");
        }
    }

    #[tokio::test]
    async fn a_body_that_ends_early_is_an_error() {
        for bytes in [
            b"x / y\r\ncontent-length: 9\r\n\r\nshort".as_slice(),
            b"x / y\r\ntransfer-encoding: chunked\r\n\r\n9\r\nshort",
            b"x / y\r\ncontent-le",
        ] {
            let mut connection = receiving(bytes, bytes.len()).await;
            let read = async {
                let head =
                    |head: &[u8]| fields(head).find_map(|(name, value)| framing(name, value));
                let how = connection.head(head).await?.flatten();
                connection.discard(how.expect("it states one")).await
            };
            let error = read.await.expect_err("the body is not whole");
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    #[test]
    fn fields_keep_names_and_trim_values() {
        let head = b"HTTP/1.1 200 OK\r\nX-Origin:  pr \r\ncontent-length: 7\r\n";
        let found: Vec<_> = fields(head).collect();
        assert_eq!(
            found,
            [
                (b"X-Origin".as_slice(), b"pr".as_slice()),
                (b"content-length", b"7")
            ]
        );
        assert_eq!(framing(b"Content-Length", b"7"), Some(Framing::Length(7)));
        assert_eq!(framing(b"content-length", b"seven"), None);
    }
}
