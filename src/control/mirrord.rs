//! The configuration of one mirrord session.

use serde_json::Value;

use super::intercept::Intercept;

/// The pod whose requests are taken, and its container that serves them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetPod {
    pub name: String,
    pub container: String,
}

/// What `mirrord exec -f` is to read. `local_ports` are pairs of the port that the proxy listens on and
/// the app's port that it stands for; `proxy_uid` is the uid of the proxy pod.
pub fn configuration(
    intercept: &Intercept,
    target: &TargetPod,
    proxy_uid: &str,
    local_ports: &[(u16, u16)],
) -> Value {
    panic!("to be written: {intercept:?} {target:?} {proxy_uid} {local_ports:?}")
}
