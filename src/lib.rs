//! A header-routing HTTP proxy.

pub mod deadline;
pub mod drain;
pub mod tunnel;
