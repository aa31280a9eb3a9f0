//! Addresses for pods: all of 127.0.0.0/8 is this machine, so that each can have one of its own and
//! everybody the same port.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU16, Ordering};

static GIVEN: AtomicU16 = AtomicU16::new(0);

/// An address that no other pod of this process has had.
pub fn fresh() -> Ipv4Addr {
    let number = GIVEN.fetch_add(1, Ordering::Relaxed);
    // Another run on this machine most likely has another second byte; 127.0.0.0/16 is left to all
    // others. No byte is 255, which looks like a mistake in a log.
    let run = u8::try_from(1 + std::process::id() % 250).expect("at most 250");
    let block = u8::try_from(number / 250).expect("no run has more than 62,500 pods");
    let last = u8::try_from(1 + number % 250).expect("at most 250");
    Ipv4Addr::new(127, run, block, last)
}
