//! What a proxy pod says of its targets, while not all of them are taken.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;

use crate::control::proof::Probe;

/// It is a short answer from a process that may be busy starting.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Deserialize)]
struct Targets {
    targets: Vec<Target>,
}

/// One of them, displayed as its state and the reason.
#[derive(Debug, Deserialize)]
pub(super) struct Target {
    pub pod: String,
    state: String,
    message: Option<String>,
}

/// How each target is, as the proxy pod with that admin port says; none when it does not say.
pub(super) async fn ask(admin: SocketAddr) -> Vec<Target> {
    let probe = Probe {
        address: admin,
        is_http2: false,
        host: admin.to_string(),
        target: "/targets".to_owned(),
        headers: Vec::new(),
        patience: PATIENCE,
    };
    match probe.ask().await {
        Ok(answer) => read(&answer.body),
        Err(_) => Vec::new(),
    }
}

/// All of them on one line; `None` when there are none.
pub(super) fn summary(targets: &[Target]) -> Option<String> {
    let each: Vec<_> = targets
        .iter()
        .map(|target| format!("{} is {target}", target.pod))
        .collect();
    (!each.is_empty()).then(|| format!("of its targets {}", each.join(", ")))
}

fn read(body: &[u8]) -> Vec<Target> {
    serde_json::from_slice(body).map_or_else(|_| Vec::new(), |Targets { targets }| targets)
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.state)?;
        match self.message.as_deref() {
            Some(message) if !message.is_empty() => write!(f, " ({message})"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_is_named_with_its_state_and_the_reason() {
        let body = br#"{"targets":[
            {"pod":"orders-1","state":"live","since":"2026-01-01T00:00:00Z","message":""},
            {"pod":"orders-2","state":"occupied","since":"2026-01-01T00:00:00Z","message":"dirty iptables"}]}"#;
        assert_eq!(
            summary(&read(body)).as_deref(),
            Some("of its targets orders-1 is live, orders-2 is occupied (dirty iptables)")
        );
        assert_eq!(summary(&read(br#"{"targets":[]}"#)), None);
        assert_eq!(summary(&read(b"404")), None);
    }
}
