//! What makes an answer right, in one place for every protocol.

use std::fmt;
use std::io;

/// What every answer must be.
pub struct Expected<'a> {
    pub origin: &'a [u8],
    pub length: u64,
}

/// What an answer was.
#[derive(Default)]
pub struct Got {
    pub status: u16,
    pub length: u64,
    pub right_origin: bool,
}

impl Expected<'_> {
    pub fn check(&self, got: &Got) -> Result<(), Failure> {
        if got.status != 200 {
            Err(Failure::Status(got.status))
        } else if !got.right_origin {
            Err(Failure::Origin)
        } else if got.length != self.length {
            Err(Failure::Length(got.length))
        } else {
            Ok(())
        }
    }
}

/// Why a request counts as an error.
#[derive(Debug)]
pub enum Failure {
    Connection(io::Error),
    Http2(h2::Error),
    Status(u16),
    Origin,
    Length(u64),
    GrpcStatus,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connection(error) => write!(f, "connection: {error}"),
            Self::Http2(error) => write!(f, "HTTP/2: {error}"),
            Self::Status(status) => write!(f, "status {status}"),
            Self::Origin => f.write_str("answered by the wrong origin"),
            Self::Length(length) => write!(f, "a body of {length} bytes"),
            Self::GrpcStatus => f.write_str("no grpc-status: 0 behind the message"),
        }
    }
}

impl std::error::Error for Failure {}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Connection(error)
    }
}

impl From<h2::Error> for Failure {
    fn from(error: h2::Error) -> Self {
        Self::Http2(error)
    }
}
