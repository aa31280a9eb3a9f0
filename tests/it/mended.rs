//! Faults that were there once, each as the sentence that was not true then.

mod broken;
mod crossing;
mod frames;
mod heads;
mod patience;
mod refused;
mod slow;
mod unread;

use std::time::{Duration, Instant};

use crate::support::proxy::{Proxy, Setup, speaking};
use crate::support::request::Request;
use crate::support::upstream::Upstream;

/// One worker, and so one pool for each endpoint.
fn one_worker() -> Setup {
    Setup::new().flag("--workers=1")
}

/// A request of the session `pr-42`.
fn tagged(request: Request) -> Request {
    request.session("pr-42")
}

/// One worker, and the session `pr-42` at that app, spoken to in one protocol.
fn with_session(protocol: &str, app: &Upstream) -> Setup {
    one_worker().session_yaml("pr-42", &speaking(protocol, app))
}

async fn no_longer_ready(proxy: &Proxy) {
    let start = Instant::now();
    while proxy.ask_admin("/readyz").await.status == 200 {
        assert!(start.elapsed() < Duration::from_secs(2), "still ready");
    }
}
