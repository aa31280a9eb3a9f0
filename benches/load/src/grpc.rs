//! gRPC as bytes: no services, no generated code.

use bytes::{BufMut, Bytes, BytesMut};

/// What stands before every message.
pub const PREFIX: u64 = 5;

/// A message around these bytes: not compressed, its length, itself.
pub fn message(body: &[u8]) -> Bytes {
    let mut message = BytesMut::with_capacity(PREFIX as usize + body.len());
    message.put_u8(0);
    message.put_u32(body.len() as u32);
    message.extend_from_slice(body);
    message.freeze()
}
