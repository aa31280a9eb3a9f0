//! A header-routing HTTP proxy.

pub mod admin;
pub mod cli;
pub mod config;
pub mod connection;
pub mod deadline;
pub mod drain;
pub mod exchange;
pub mod forward;
pub mod inspect;
pub mod listener;
pub mod matcher;
pub mod metrics;
pub mod plan;
pub mod pool;
pub mod record;
pub mod sources;
pub mod tls;
pub mod tunnel;
pub mod upstream;
pub mod wire;
pub mod worker;
