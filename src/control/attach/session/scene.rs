//! What a session knows of its pod, and what it tells.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::Post;
use crate::control::attach::board::State;
use crate::control::attach::cause::Cause;
use crate::control::attach::lease::{Claim, Held, Obstacle};
use crate::control::attach::targets::TargetPod;

/// How often the cluster is asked why the agent is not there yet.
const WORRY_PERIOD: Duration = Duration::from_secs(5);

/// How long agents that were told to go may take.
const CLEAR_PATIENCE: Duration = Duration::from_secs(10);

/// Where a session plays.
pub(super) struct Scene {
    pub post: Arc<Post>,
    pub name: String,
    pub uid: String,
    /// The pod as it is now; `None` when it is gone.
    pub pod: watch::Receiver<Option<TargetPod>>,
    pub stop: watch::Receiver<bool>,
}

impl Scene {
    pub(super) fn set(&self, state: State, message: &str) {
        self.post.board.set(&self.uid, state, message);
    }

    /// Waits until the pod is ours to take requests from.
    pub(super) async fn claim(&self) -> Held {
        let post = &self.post;
        let claim = Claim {
            client: post.client.clone(),
            namespace: post.intercept.namespace.clone(),
            app: post.intercept.app.clone(),
            pod: self.name.clone(),
            pod_uid: self.uid.clone(),
            holder: post.proxy_uid.clone(),
        };
        let told = |obstacle: Obstacle<'_>| match obstacle {
            Obstacle::Holder(holder) => {
                let message = format!("proxy {holder} holds the pod's lease");
                self.set(State::Occupied, &message);
            }
            Obstacle::Refusal(refusal) => self.set(State::Failed, &refusal.to_string()),
        };
        claim.acquire(told).await
    }

    /// Waits until a session can be started: the pod is ready and stays.
    pub(super) async fn startable(&self) {
        let mut pod = self.pod.clone();
        loop {
            match pod.borrow_and_update().as_ref() {
                Some(pod) if pod.is_leaving => self.set(State::Ending, "the pod goes"),
                Some(pod) if pod.is_ready && pod.address.is_some() => return,
                _ => self.set(State::Waiting, "the pod is not ready"),
            }
            if pod.changed().await.is_err() {
                std::future::pending().await
            }
        }
    }

    pub(super) fn tell(&self, cause: &Cause) {
        let message = cause.message();
        warn!(
            pod = self.name,
            reason = cause.reason(),
            message,
            "a session is to be started anew"
        );
        self.post.board.restarts(&self.uid, cause);
        self.show(cause);
    }

    /// Says that there is no session.
    pub(super) fn show(&self, cause: &Cause) {
        let state = match cause {
            Cause::Occupied => State::Occupied,
            _ if cause.is_loss() => State::Lost,
            _ => State::Failed,
        };
        self.set(state, &cause.message());
    }

    /// Why mirrord's agent does not come up, if the cluster knows a reason.
    pub(super) async fn agent_trouble(&self) -> Option<Cause> {
        let agents = self.post.agents.as_ref()?;
        match timeout(CLEAR_PATIENCE, agents.trouble(&self.uid))
            .await
            .ok()?
        {
            Ok(trouble) => trouble.map(Cause::NoAgent),
            Err(refusal) => {
                warn!(pod = self.name, %refusal, "cannot see why the agent does not come up");
                None
            }
        }
    }

    /// Tells for ever why the agent is not there yet: mirrord says nothing before it gives up.
    pub(super) async fn worry(&self) {
        loop {
            sleep(WORRY_PERIOD).await;
            if let Some(trouble) = self.agent_trouble().await {
                self.set(State::Starting, &trouble.message());
            }
        }
    }

    /// Removes agents that an earlier session of this target has left.
    pub(super) async fn clear_agents(&self) {
        let Some(agents) = &self.post.agents else {
            return;
        };
        match timeout(CLEAR_PATIENCE, agents.clear(&self.uid)).await {
            Ok(Ok(0)) => {}
            Ok(Ok(count)) => info!(pod = self.name, count, "agents left behind are removed"),
            Ok(Err(refusal)) => {
                warn!(pod = self.name, %refusal, "cannot remove agents left behind")
            }
            Err(_) => warn!(pod = self.name, "agents left behind do not go"),
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        let pod = self.pod.borrow();
        pod.as_ref()
            .is_some_and(|pod| pod.is_ready && !pod.is_leaving)
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.pod.borrow().as_ref().is_none_or(|pod| pod.is_leaving)
    }

    pub(super) fn why_over(&self) -> &'static str {
        if self.pod.borrow().is_none() {
            "the pod is gone"
        } else {
            "the proxy ends"
        }
    }
}
