//! The test bed: a proxy on port 0, upstreams that misbehave on request, clients that see every
//! byte, and a stand-in for mirrord's sender.
//!
//! Everything binds its own ports on loopback, waits for conditions and never for time, and ends
//! when it is dropped.

#![allow(
    dead_code,
    reason = "the bed offers more than any one set of tests takes"
)]

pub mod api_server;
pub mod app;
pub mod attached;
pub mod certs;
pub mod client;
pub mod cluster;
pub mod config;
pub mod digest;
pub mod exposition;
pub mod fields;
pub mod grpc;
pub mod h2_frames;
pub mod hub;
pub mod kind_up;
pub mod metrics;
pub mod mirrord;
pub mod pods;
pub mod ports;
pub mod proxy;
pub mod raw;
pub mod request;
pub mod scripts;
pub mod site;
pub mod staging;
pub mod stand_in;
pub mod target_pod;
pub mod telepresence;
pub mod upstream;
pub mod way;
pub mod wire;

use std::future::Future;
use std::time::{Duration, Instant};

/// How long any single step of a test may take before it counts as hung.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// The future's outcome, or a panic that names what was waited for.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("still waiting after {PATIENCE:?}: {what}"))
}

/// Returns once the condition holds; panics when it does not within [`PATIENCE`].
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "never came true: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until a number has not grown for `quiet`, and returns it: for "no more than this".
pub async fn settled(quiet: Duration, mut read: impl FnMut() -> u64) -> u64 {
    let mut last = read();
    let mut since = Instant::now();
    while since.elapsed() < quiet {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let now = read();
        if now != last {
            last = now;
            since = Instant::now();
        }
    }
    last
}
