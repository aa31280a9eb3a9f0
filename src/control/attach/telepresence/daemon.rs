//! The one thing that Telepresence's command line cannot say to its own daemon: to connect as the daemon
//! of a pod, that is without a network device, a DNS server and the rights for them.
//!
//! It is one call of the daemon's gRPC service, over its socket. The message is written by hand: a
//! generator and its runtime would be much for four fields.

use std::path::Path;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;

/// The call.
const CONNECT: &str = "http://localhost/telepresence.connector.Connector/Connect";

/// No answer is read further.
const LONGEST: usize = 1024 * 1024;

/// What a connected daemon answers: connected just now, or before.
const CONNECTED: [u64; 2] = [0, 2];

/// What is to be said to the daemon.
#[derive(Debug, Clone, Copy)]
pub(super) struct Connect<'c> {
    /// Of the connection.
    pub(super) name: &'c str,
    /// Of the app.
    pub(super) namespace: &'c str,
    /// Who we are to others who meet the intercept.
    pub(super) client: &'c str,
}

impl Connect<'_> {
    /// Says it, and waits until the daemon is connected.
    ///
    /// # Errors
    /// Why it is not.
    pub(super) async fn ask(&self, socket: &Path) -> Result<(), String> {
        let (headers, body) = self.call(socket).await.map_err(|error| {
            format!(
                "telepresence's daemon does not answer at {}: {error:#}",
                socket.display()
            )
        })?;
        let word = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        match word("grpc-status") {
            Some("0") => judge(&body),
            status => Err(format!(
                "telepresence's daemon refuses to connect ({}): {}",
                status.unwrap_or("no status"),
                word("grpc-message").unwrap_or("no reason")
            )),
        }
    }

    async fn call(&self, socket: &Path) -> anyhow::Result<(HeaderMap, Bytes)> {
        let stream = UnixStream::connect(socket).await?;
        let (mut sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = Request::post(CONNECT)
            .header(CONTENT_TYPE, "application/grpc")
            .header("te", "trailers")
            .body(Full::new(self.frame()))?;
        let response = sender.send_request(request).await?;
        let mut headers = response.headers().clone();
        let body = Limited::new(response.into_body(), LONGEST).collect().await;
        let body = body.map_err(anyhow::Error::from_boxed)?;
        // Without a body the status is in the headers.
        headers.extend(body.trailers().cloned().unwrap_or_default());
        Ok((headers, body.to_bytes()))
    }

    /// The message behind its length, as gRPC has it.
    fn frame(&self) -> Bytes {
        let mut flag = BytesMut::new();
        text(&mut flag, 1, "namespace");
        text(&mut flag, 2, self.namespace);
        let mut message = BytesMut::new();
        field(&mut message, 1, &flag);
        text(&mut message, 3, self.name);
        // is_pod_daemon
        varint(&mut message, 4 << 3);
        varint(&mut message, 1);
        text(&mut message, 13, self.client);
        let mut frame = BytesMut::new();
        frame.put_u8(0);
        frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
        frame.extend_from_slice(&message);
        frame.freeze()
    }
}

fn varint(out: &mut BytesMut, mut number: u64) {
    while number >= 0x80 {
        out.put_u8(u8::try_from(number & 0x7f).unwrap_or(0x7f) | 0x80);
        number >>= 7;
    }
    out.put_u8(u8::try_from(number).unwrap_or(0));
}

fn field(out: &mut BytesMut, number: u64, bytes: &[u8]) {
    varint(out, number << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn text(out: &mut BytesMut, number: u64, text: &str) {
    field(out, number, text.as_bytes());
}

/// What the answer says: its error is field 1, the words for it field 2.
fn judge(body: &[u8]) -> Result<(), String> {
    let strange = || "telepresence's daemon answers in a way of another version".to_owned();
    let mut message = body.get(5..).ok_or_else(strange)?;
    let (mut error, mut why) = (0, String::new());
    while !message.is_empty() {
        let tag = take_varint(&mut message).ok_or_else(strange)?;
        match tag & 7 {
            0 => {
                let number = take_varint(&mut message).ok_or_else(strange)?;
                if tag >> 3 == 1 {
                    error = number;
                }
            }
            2 => {
                let length = take_varint(&mut message).ok_or_else(strange)?;
                let length = usize::try_from(length).map_err(|_| strange())?;
                let bytes = message.get(..length).ok_or_else(strange)?;
                if tag >> 3 == 2 {
                    why = String::from_utf8_lossy(bytes).into_owned();
                }
                message = &message[length..];
            }
            _ => return Err(strange()),
        }
    }
    if CONNECTED.contains(&error) {
        return Ok(());
    }
    Err(format!("telepresence does not connect ({error}): {why}"))
}

fn take_varint(message: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for place in 0..10 {
        let (&byte, rest) = message.split_first()?;
        *message = rest;
        number |= u64::from(byte & 0x7f) << (7 * place);
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_what_the_daemon_reads() {
        let connect = Connect {
            name: "n",
            namespace: "staging",
            client: "c",
        };
        let message = b"\x0a\x14\x0a\x09namespace\x12\x07staging\x1a\x01n\x20\x01\x6a\x01c";
        let length = u8::try_from(message.len()).unwrap();

        assert_eq!(
            connect.frame(),
            [&[0, 0, 0, 0, length][..], message].concat()
        );
    }

    #[test]
    fn numbers_of_every_length_come_back() {
        for number in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX] {
            let mut bytes = BytesMut::new();
            varint(&mut bytes, number);
            let mut rest = &bytes[..];
            assert_eq!(take_varint(&mut rest), Some(number));
            assert!(rest.is_empty());
        }
    }

    #[test]
    fn an_answer_is_connected_or_says_why_not() {
        let answer = |message: &[u8]| judge(&[&[0; 5][..], message].concat());

        assert_eq!(answer(b""), Ok(()));
        assert_eq!(answer(b"\x1a\x01x\x08\x02"), Ok(()));
        assert_eq!(
            answer(b"\x08\x06\x12\x02no\x60\x01"),
            Err("telepresence does not connect (6): no".to_owned())
        );
        for broken in [&b"\x08"[..], b"\x12\x05no", b"\x0d1234", b"\x08\xff"] {
            assert!(answer(broken).is_err(), "{broken:?}");
        }
        assert!(judge(b"\x00").is_err());
    }
}
