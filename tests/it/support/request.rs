//! A request as a test writes it and an answer as a test reads it, whatever carries them.

use std::io;

use bytes::Bytes;
use http::Version;
use serde_json::Value;

use super::fields::Fields;

/// One request; the target is sent as it is written.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub target: String,
    pub version: Version,
    pub fields: Fields,
    pub body: Bytes,
    /// Sent after a chunked body (HTTP/1) or as the last HEADERS frame (HTTP/2).
    pub trailers: Fields,
}

/// One response; the body says whether it ended as its framing promised.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub version: Version,
    pub fields: Fields,
    pub body: io::Result<Bytes>,
    pub trailers: Fields,
    /// How often the request was sent: 1, or more from mirrord's sender.
    pub tries: usize,
}

impl Request {
    pub fn new(method: &str, target: &str) -> Self {
        Self {
            method: method.to_owned(),
            target: target.to_owned(),
            version: Version::HTTP_11,
            fields: Fields::default(),
            body: Bytes::new(),
            trailers: Fields::default(),
        }
    }

    pub fn get(target: &str) -> Self {
        Self::new("GET", target)
    }

    pub fn post(target: &str, body: impl Into<Bytes>) -> Self {
        Self {
            body: body.into(),
            ..Self::new("POST", target)
        }
    }

    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.fields.push(name, value);
        self
    }

    pub fn session(self, name: &str) -> Self {
        self.header("x-dev-session", name)
    }

    pub fn trailer(mut self, name: &str, value: &str) -> Self {
        self.trailers.push(name, value);
        self
    }

    pub fn version(self, version: Version) -> Self {
        Self { version, ..self }
    }

    /// The bytes of the head and body on an HTTP/1 connection, exactly this request and no more:
    /// only the framing of the body is added where the fields do not name one.
    pub fn to_h1(&self, target: &str) -> Vec<u8> {
        let version = if self.version == Version::HTTP_10 {
            "HTTP/1.0"
        } else {
            "HTTP/1.1"
        };
        let mut bytes = format!("{} {target} {version}\r\n", self.method).into_bytes();
        let mut fields = self.fields.clone();
        let chunked = fields.has("transfer-encoding") || !self.trailers.0.is_empty();
        if chunked && !fields.has("transfer-encoding") {
            fields.push("transfer-encoding", "chunked");
        }
        if !chunked && !self.body.is_empty() && !fields.has("content-length") {
            fields.push("content-length", self.body.len().to_string());
        }
        write_fields(&mut bytes, &fields);
        if !chunked {
            bytes.extend_from_slice(&self.body);
            return bytes;
        }
        if !self.body.is_empty() {
            bytes.extend_from_slice(format!("{:x}\r\n", self.body.len()).as_bytes());
            bytes.extend_from_slice(&self.body);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"0\r\n");
        write_fields(&mut bytes, &self.trailers);
        bytes
    }
}

/// The fields and the empty line after them.
fn write_fields(bytes: &mut Vec<u8>, fields: &Fields) {
    for (name, value) in &fields.0 {
        bytes.extend_from_slice(name.as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
}

impl Answer {
    /// The first value of that header.
    pub fn header(&self, name: &str) -> Option<String> {
        self.fields.first(name)
    }

    /// `x-dev-session-route`, which must be there at most once.
    pub fn route(&self) -> Option<String> {
        let routes = self.fields.all("x-dev-session-route");
        assert!(routes.len() <= 1, "more than one route header: {routes:?}");
        routes.into_iter().next()
    }

    /// Which upstream answered: every one of the bed's says its name.
    pub fn served_by(&self) -> String {
        self.header("x-upstream")
            .unwrap_or_else(|| panic!("no upstream of ours answered: {self:#?}"))
    }

    pub fn bytes(&self) -> Bytes {
        self.body
            .as_ref()
            .unwrap_or_else(|error| panic!("the body broke: {error}"))
            .clone()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes())
            .unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// `reason` of a problem+json body.
    pub fn reason(&self) -> String {
        let json = self.json();
        json["reason"]
            .as_str()
            .unwrap_or_else(|| panic!("no reason in {json}"))
            .to_owned()
    }
}
