//! The real binary over real sockets: one integration binary, a module per topic.
//!
//! `SESSION_PROXY_BIN=/path/to/session-proxy cargo test --test it` tests another build.

#![allow(
    unreachable_pub,
    reason = "nothing here has an outside; `pub` marks what the tests use"
)]

mod support;

mod admin;
mod attach;
mod awaited;
mod bed;
mod commands;
mod discovery;
mod drain;
mod duplicates;
mod e2e;
mod forwarding;
mod kind_up;
mod layer;
mod load_kind;
mod mended;
mod pool;
mod reload;
mod resolve;
mod retries;
mod routing;
mod start;
mod statuses;
mod tcp;
mod telepresence;
mod tls;
mod verify;
