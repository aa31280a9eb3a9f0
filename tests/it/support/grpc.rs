//! gRPC without protobuf: length-prefixed messages over HTTP/2 and the status in the trailers.

use std::io;
use std::net::SocketAddr;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http_body_util::BodyExt;
use http_body_util::channel::{Channel, Sender};
use hyper::body::Incoming;

use super::client::{self, H2};
use super::fields::Fields;
use super::request::{Answer, Request};

/// A message as it crosses: not compressed, its length, its bytes.
pub fn message(payload: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(5 + payload.len());
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(payload.len()).expect("a small message"));
    bytes.put_slice(payload);
    bytes.freeze()
}

/// The messages in a whole body.
pub fn messages(mut body: Bytes) -> Vec<Bytes> {
    let mut found = Vec::new();
    while let Some(message) = take(&mut body) {
        found.push(message);
    }
    assert!(body.is_empty(), "a message was cut: {body:?}");
    found
}

/// A unary call.
pub fn request(path: &str, payload: &[u8]) -> Request {
    Request::post(path, message(payload))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
}

/// `grpc-status` of an answer, in its trailers or, when it is trailers-only, in its head.
pub fn status(answer: &Answer) -> Option<String> {
    answer
        .trailers
        .first("grpc-status")
        .or_else(|| answer.header("grpc-status"))
}

/// A streaming call: messages both ways, at their own pace. Dropping it cancels the call.
pub struct Call {
    messages: Option<Sender<Bytes, Box<dyn std::error::Error + Send + Sync>>>,
    incoming: Incoming,
    pub head: http::response::Parts,
    buffer: Bytes,
    trailers: Fields,
    _connection: H2,
}

impl Call {
    /// Opens the call; returns when the response head is there.
    pub async fn open(address: SocketAddr, request: &Request) -> io::Result<Self> {
        let (messages, body) = Channel::new(1);
        let mut connection = client::h2(address).await;
        let response = connection
            .send_request(client::to_h2(request, body.boxed()))
            .await
            .map_err(io::Error::other)?;
        let (head, incoming) = response.into_parts();
        Ok(Self {
            messages: Some(messages),
            incoming,
            head,
            buffer: Bytes::new(),
            trailers: Fields::default(),
            _connection: connection,
        })
    }

    pub async fn send(&mut self, payload: &[u8]) {
        let messages = self.messages.as_mut().expect("the call is not finished");
        messages
            .send_data(message(payload))
            .await
            .expect("the call is open");
    }

    /// No more messages from us.
    pub fn finish(&mut self) {
        self.messages = None;
    }

    /// The next message, or `None` after the last one.
    pub async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            if let Some(message) = take(&mut self.buffer) {
                return Ok(Some(message));
            }
            let Some(frame) = self.incoming.frame().await else {
                return Ok(None);
            };
            match frame.map_err(io::Error::other)?.into_data() {
                Ok(data) => self.buffer = [&self.buffer[..], &data[..]].concat().into(),
                Err(frame) => {
                    self.trailers = frame.trailers_ref().map(Fields::from).unwrap_or_default()
                }
            }
        }
    }

    /// The trailers, once `next` has said `None`.
    pub fn trailers(&self) -> &Fields {
        &self.trailers
    }
}

/// Takes one whole message off the front.
fn take(bytes: &mut Bytes) -> Option<Bytes> {
    let length = u32::from_be_bytes(bytes.get(1..5)?.try_into().ok()?) as usize;
    if bytes.len() < 5 + length {
        return None;
    }
    bytes.advance(5);
    Some(bytes.split_to(length))
}
