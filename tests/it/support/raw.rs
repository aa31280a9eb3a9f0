//! An HTTP/1 client by hand: exact bytes out, one answer or the way it broke in.

use std::io;
use std::net::SocketAddr;

use http::Version;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::request::{Answer, Request};
use super::wire::{Head, Wire};
use super::within;

/// A fresh connection.
pub async fn connect(address: SocketAddr) -> Wire<TcpStream> {
    let stream = within("connecting", TcpStream::connect(address))
        .await
        .expect("the address listens");
    stream
        .set_nodelay(true)
        .expect("a fresh socket takes options");
    Wire::new(stream)
}

/// One request on a connection of its own, written byte for byte as given.
pub async fn exchange(address: SocketAddr, bytes: impl AsRef<[u8]>) -> Answer {
    let method = String::from_utf8_lossy(bytes.as_ref())
        .split(' ')
        .next()
        .unwrap_or_default()
        .to_owned();
    let mut wire = connect(address).await;
    wire.send(bytes).await.expect("the other side reads");
    within("an answer", wire.answer(&method))
        .await
        .expect("an answer")
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// Sends a request as it is.
    pub async fn ask(&mut self, request: &Request) -> io::Result<Answer> {
        self.send(request.to_h1(&request.target)).await?;
        self.answer(&request.method).await
    }

    /// The next final answer; interim ones are skipped, 101 is final.
    ///
    /// # Errors
    /// When the connection ends before a whole head. A broken body is in the answer.
    pub async fn answer(&mut self, method: &str) -> io::Result<Answer> {
        let head = self.final_head().await?;
        let framing = head.response_framing(method);
        let (body, trailers) = match self.body(framing).await {
            Ok(body) => (Ok(body.bytes), body.trailers),
            Err(error) => (Err(error), Default::default()),
        };
        let version = if head.word(0) == "HTTP/1.0" {
            Version::HTTP_10
        } else {
            Version::HTTP_11
        };
        Ok(Answer {
            status: head.status(),
            version,
            fields: head.fields,
            body,
            trailers,
            tries: 1,
        })
    }

    /// The head of the next final answer; its body has not been read.
    pub async fn final_head(&mut self) -> io::Result<Head> {
        loop {
            let Some(head) = self.head().await? else {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "closed without an answer",
                ));
            };
            if head.status() >= 200 || head.status() == 101 {
                return Ok(head);
            }
        }
    }

    /// Ends our half; the other side may go on.
    pub async fn half_close(&mut self) -> io::Result<()> {
        self.stream.shutdown().await
    }
}
