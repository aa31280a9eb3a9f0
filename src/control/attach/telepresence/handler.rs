//! The proxy that handles what Telepresence's agents take.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;
use tracing::warn;

use super::relay::Relay;
use crate::control::attach::cause::Cause;
use crate::control::attach::child::{self, Child, Stage};
use crate::control::attach::files;
use crate::control::attach::gather;
use crate::control::attach::ports::Taken;
use crate::control::attach::session::Post;
use crate::control::attach::targets::Sight;

/// How long it may take to listen. It lists the PR pods first, and has 30 s for it.
const PATIENCE: Duration = Duration::from_secs(40);

/// How long it may take to end when it was asked to: its own time to drain, and a little.
const DRAIN_PATIENCE: Duration = Duration::from_secs(32);

/// The metric that says how many requests wait for their answers.
const IN_FLIGHT: &str = "session_proxy_requests_in_flight ";

/// The proxy, and its ways back to the app.
pub(super) struct Handler {
    pub(super) child: Child,
    pub(super) ports: Taken,
    _relays: Vec<Relay>,
}

impl Handler {
    /// # Errors
    /// It does not listen.
    pub(super) async fn start(
        post: &Arc<Post>,
        sight: watch::Receiver<Sight>,
    ) -> Result<Self, Cause> {
        let ours = |what: &str, error: std::io::Error| Cause::Ours(format!("{what}: {error}"));
        let ports = post.ports.take();
        let ports = ports.ok_or_else(|| Cause::Ours("no local port is free".to_owned()))?;
        let mut relays = Vec::new();
        for local in &ports.locals {
            let relay = Relay::open(local.app_port, sight.clone()).await;
            relays.push(relay.map_err(|error| ours("no port is free", error))?);
        }
        let ways: Vec<_> = relays.iter().map(|relay| relay.address).collect();
        let config = files::proxy(&post.intercept, &ports.locals, &ways, ports.admin);
        let name = format!("{}-proxy.json", ports.admin.port());
        let file = post.folder.write(&name, &config);
        let file = file.map_err(|error| ours("cannot write the proxy's file", error))?;
        let target = post.intercept.target.to_string();
        let mut command = child::proxy(&post.programs, &target, &file);
        let mark = format!("handler-{:08x}", fastrand::u32(..));
        let child = Child::run(&post.household, &mark, &target, &mut command);
        let mut child = child.map_err(|error| ours("cannot start the proxy", error))?;
        let Child { resident, speech } = &mut child;
        tokio::select! {
            biased;
            status = resident.ended() => {
                return Err(Cause::of_start(status, &speech.last_words().await));
            }
            listening = timeout(PATIENCE, speech.reaches(Stage::Listening)) => {
                listening.map_err(|_| {
                    Cause::Stuck(format!("the proxy does not listen after {PATIENCE:?}"))
                })?;
            }
        }
        Ok(Self {
            child,
            ports,
            _relays: relays,
        })
    }

    pub(super) fn has_ended(&mut self) -> bool {
        !self.child.resident.lives()
    }

    /// How many requests wait for their answers; `None`: it does not say.
    pub(super) async fn in_flight(&self) -> Option<u64> {
        let metrics = gather::ask(self.ports.admin, "/metrics").await?;
        let number = metrics
            .lines()
            .find_map(|line| line.strip_prefix(IN_FLIGHT));
        number?.trim().parse().ok()
    }

    /// Serves what it has to its end.
    pub(super) async fn drain(mut self) {
        let resident = &mut self.child.resident;
        resident.terminate();
        if timeout(DRAIN_PATIENCE, resident.ended()).await.is_err() {
            warn!("the proxy does not end; it is killed");
            resident.kill();
        }
    }
}

/// Waits until a proxy has ended, and says how.
pub(super) async fn ended(child: &mut Child) -> Cause {
    let status = child.resident.ended().await;
    Cause::of_end(status, &child.speech.last_words().await)
}
