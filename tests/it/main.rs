//! The real binary over real sockets: one integration binary, a module per topic.
//!
//! `SESSION_PROXY_BIN=/path/to/session-proxy cargo test --test it` tests another build.

#![allow(
    unreachable_pub,
    reason = "nothing here has an outside; `pub` marks what the tests use"
)]

mod support;

mod awaited;
mod bed;
