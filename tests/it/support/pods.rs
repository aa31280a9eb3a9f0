//! Pods as the API server tells of them, and addresses for them: loopback has sixteen million.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use serde_json::{Value, json};

use super::upstream::Upstream;

/// The label of their app that the pods here carry.
pub const APP: &str = "orders";

/// A port that pods of one test have in common, each at an address of its own.
pub struct PodNetwork {
    port: u16,
    /// Keeps the port from other tests.
    _held: TcpListener,
}

impl PodNetwork {
    pub fn new() -> Self {
        let held = TcpListener::bind("127.9.9.9:0").expect("loopback has a free port");
        let port = held.local_addr().expect("it is bound").port();
        Self { port, _held: held }
    }

    /// The port of every pod, which the listener's `appPort` names.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// An app in a pod with that address.
    pub async fn app(&self, ip: Ipv4Addr, name: &str) -> Upstream {
        Upstream::site_at(SocketAddr::from((ip, self.port)), name).await
    }
}

/// The address of the pod with that number.
pub fn ip(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 9, 0, number)
}

/// A ready pod of that session.
pub fn ready(name: &str, session: &str, ip: impl ToString) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": { "app": "pr-test", "session-proxy/app": APP, "session-proxy/session": session },
        },
        "spec": { "containers": [{ "name": "app", "image": "registry.test/orders:pr" }] },
        "status": {
            "phase": "Running",
            "podIP": ip.to_string(),
            "podIPs": [{ "ip": ip.to_string() }],
            "conditions": [
                { "type": "PodReadyToStartContainers", "status": "True" },
                { "type": "Ready", "status": "True" },
            ],
        },
    })
}

/// The same pod, which fails its readiness probe.
pub fn unready(mut pod: Value) -> Value {
    pod["status"]["conditions"][1]["status"] = json!("False");
    pod
}

/// The same pod, told to end and still there.
pub fn ending(mut pod: Value) -> Value {
    pod["metadata"]["deletionTimestamp"] = json!("2026-01-02T03:04:05Z");
    pod
}
