//! A cluster as the tests want it: namespaces of their own, accounts with exactly these rights, and
//! a kubelet that does as it is told.
//!
//! Everything waits for conditions and never for time, and takes away what it made when dropped.

#![allow(
    dead_code,
    reason = "the cluster offers more than any one set of tests takes"
)]

pub mod account;
pub mod agents;
pub mod baseline;
pub mod cluster;
pub mod kubectl;
pub mod kubelet;
pub mod namespace;
pub mod rights;
pub mod run;
pub mod stage;
pub mod tekton;

use std::time::{Duration, Instant};

/// How long any single step of a test may take before it counts as hung. Controllers work in the
/// background, and the machine has other things to do.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Returns once the condition holds; panics when it does not within [`PATIENCE`].
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    found(what, async || condition().await.then_some(())).await;
}

/// Asks until there is an answer; panics when there is none within [`PATIENCE`].
pub async fn found<T>(what: &str, mut question: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = question().await {
            return answer;
        }
        assert!(start.elapsed() < PATIENCE, "never came true: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
