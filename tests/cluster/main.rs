//! What leans on a real API server, against one: etcd, kube-apiserver with RBAC, and the controllers,
//! on loopback. Without it nothing here can run, so every test is ignored unless asked for:
//!
//!     tests/cluster/run
//!
//! `tests/cluster/start DIR` starts such a plane by hand; with `SESSION_PROXY_TEST_CLUSTER=DIR` in
//! the environment, `cargo test --test cluster -- --ignored` uses it.

#![allow(
    unreachable_pub,
    reason = "nothing here has an outside; `pub` marks what the tests use"
)]

mod support;

/// The bed of the integration tests without a cluster: certificates, apps, clients, proxies.
#[path = "../it"]
mod it {
    pub mod support;
}

mod attach;
mod cleanup;
mod deploy;
mod discovery;
mod install;
mod objects;
mod pipelines;
mod plane_itself;
mod rights;
mod sharing;
mod verify;
mod whole;
