//! HTTP/1.1 by hand: one prepared request, written and answered again and again.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use tokio::net::TcpStream;

use super::expected::{Expected, Failure, Got};
use super::{Ask, World};
use crate::wire::{Connection, Framing, fields, framing};

/// One connection, kept as long as its answers are right.
pub(super) async fn keep_alive(world: Rc<World>) {
    let request = request(&world.ask, "");
    let expected = world.ask.expected();
    let mut kept = None;
    loop {
        let began = world.pace.turn().await;
        let result = async {
            let client = match &mut kept {
                Some(client) => client,
                None => kept.insert(Client::dial(world.ask.target).await?),
            };
            client.exchange(&request, &expected).await
        };
        let result = result.await;
        if result.is_err() {
            kept = None;
        }
        world.tally.count(began, result).await;
    }
}

/// A new connection for each request, which the other end closes after its answer.
pub(super) async fn one_each(world: Rc<World>) {
    let request = request(&world.ask, "connection: close\r\n");
    let expected = world.ask.expected();
    loop {
        let began = world.pace.turn().await;
        let result = async {
            let mut client = Client::dial(world.ask.target).await?;
            client.exchange(&request, &expected).await?;
            client.ended().await
        };
        world.tally.count(began, result.await).await;
    }
}

/// The bytes of a request: head, these further lines, body.
pub fn request(ask: &Ask, further: &str) -> Vec<u8> {
    let method = if ask.upload.is_some() { "POST" } else { "GET" };
    let mut head = format!(
        "{method} {} HTTP/1.1\r\nhost: app.test:8080\r\n{further}",
        ask.path
    );
    head.push_str("user-agent: load\r\naccept: */*\r\n");
    if let Some(session) = &ask.session {
        head.push_str(&format!("x-dev-session: {session}\r\n"));
    }
    if let Some(length) = ask.upload {
        head.push_str(&format!("content-length: {length}\r\n"));
    }
    head.push_str("\r\n");
    let mut bytes = head.into_bytes();
    bytes.resize(bytes.len() + ask.upload.unwrap_or(0), b'u');
    bytes
}

impl Ask {
    pub fn expected(&self) -> Expected<'_> {
        Expected {
            origin: self.origin.as_bytes(),
            length: self.answer,
        }
    }
}

/// One end of a connection that asks.
pub struct Client {
    connection: Connection,
}

impl Client {
    pub async fn dial(target: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(target).await?;
        Ok(Self {
            connection: Connection::new(stream)?,
        })
    }

    /// Sends a request, reads its answer to the end and checks it.
    pub async fn exchange(
        &mut self,
        request: &[u8],
        expected: &Expected<'_>,
    ) -> Result<(), Failure> {
        self.connection.send(request).await?;
        let head = self
            .connection
            .head(|head| Answer::read(head, expected.origin))
            .await?;
        let Some(mut answer) = head else {
            return Err(Failure::Connection(io::ErrorKind::UnexpectedEof.into()));
        };
        answer.got.length = self.connection.discard(answer.framing).await?;
        expected.check(&answer.got)
    }

    pub async fn ended(&mut self) -> Result<(), Failure> {
        if self.connection.has_ended().await? {
            Ok(())
        } else {
            Err(Failure::Connection(io::Error::other(
                "bytes behind the answer",
            )))
        }
    }
}

struct Answer {
    got: Got,
    framing: Framing,
}

impl Answer {
    fn read(head: &[u8], origin: &[u8]) -> Self {
        let mut answer = Self {
            got: Got::default(),
            framing: Framing::Unsaid,
        };
        // "HTTP/1.1 200 OK"
        let digits = head
            .get(9..12)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        answer.got.status = digits.and_then(|digits| digits.parse().ok()).unwrap_or(0);
        for (name, value) in fields(head) {
            if let Some(said) = framing(name, value) {
                answer.framing = said;
            } else if name.eq_ignore_ascii_case(b"x-origin") {
                answer.got.right_origin = value == origin;
            }
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_right_only_with_status_origin_and_length() {
        let expected = Expected {
            origin: b"pr",
            length: 3,
        };
        let judged = |head: &[u8]| {
            let mut answer = Answer::read(head, expected.origin);
            if let Framing::Length(length) = answer.framing {
                answer.got.length = length;
            }
            expected
                .check(&answer.got)
                .map_err(|failure| failure.to_string())
        };
        let right = b"HTTP/1.1 200 OK\r\nX-Origin: pr\r\ncontent-length: 3\r\n";
        assert_eq!(judged(right), Ok(()));
        for (head, why) in [
            (
                &b"HTTP/1.1 503 No\r\nx-origin: pr\r\ncontent-length: 3\r\n"[..],
                "status 503",
            ),
            (
                b"HTTP/1.1 200 OK\r\nx-origin: pr-1\r\ncontent-length: 3\r\n",
                "answered by the wrong origin",
            ),
            (
                b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n",
                "answered by the wrong origin",
            ),
            (
                b"HTTP/1.1 200 OK\r\nx-origin: pr\r\ncontent-length: 4\r\n",
                "a body of 4 bytes",
            ),
        ] {
            assert_eq!(judged(head), Err(why.to_owned()));
        }
    }
}
