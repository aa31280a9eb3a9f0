//! A header-routing HTTP proxy.

pub mod deadline;
pub mod drain;
pub mod matcher;
pub mod metrics;
pub mod tunnel;
