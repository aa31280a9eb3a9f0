//! What crosses the proxy, and what must not.

mod bodies;
mod heads;
mod streams;
mod versions;
