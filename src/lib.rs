//! A header-routing HTTP proxy.

