//! The watch over a live session: by probes, and by what the cluster says of its pod and its agent.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::scene::Scene;
use super::{AFTER_A_MISS, Running};
use crate::control::attach::cause::Cause;
use crate::control::attach::child::Child;
use crate::control::attach::targets::TargetPod;
use crate::control::attach::witness::{Verdict, Witness};

/// Probes in a row that must stay out before a session counts as lost.
const MISSES: u32 = 3;

impl Scene {
    /// Watches over a live session, and returns why it is one no more.
    pub(super) async fn watch(&self, running: &mut Running, witness: &Witness) -> Cause {
        let Running {
            child,
            container_id,
            ..
        } = running;
        let Child { resident, speech } = child;
        tokio::select! {
            biased;
            status = resident.ended() => Cause::of_end(status, &speech.last_words().await),
            () = self.container_replaced(container_id.as_deref()) => Cause::ContainerReplaced,
            () = self.agent_lost() => Cause::AgentGone,
            cause = self.probe(witness) => cause,
        }
    }

    /// Probes until too many in a row did not come back while the pod should have answered.
    async fn probe(&self, witness: &Witness) -> Cause {
        let mut misses = 0;
        loop {
            let pause = if misses == 0 {
                Duration::from_millis(fastrand::u64(1000..2000))
            } else {
                AFTER_A_MISS
            };
            sleep(pause).await;
            let asked = Instant::now();
            let verdict = witness.ask().await;
            // A pod that may not have requests need not answer either. A refusal counts all the same:
            // the agent accepts every connection, whatever the app behind it does.
            let counts = verdict == Verdict::Refused || self.is_ready();
            let Some(what) = verdict.instead() else {
                misses = 0;
                self.post.board.probed(&self.name, asked.elapsed());
                continue;
            };
            misses = if counts { misses + 1 } else { 0 };
            if misses >= MISSES {
                return Cause::Silent(what);
            }
        }
    }

    async fn container_replaced(&self, before: Option<&str>) {
        let mut pod = self.pod.clone();
        let is_another = |pod: &Option<TargetPod>| {
            let now = pod.as_ref().and_then(|pod| pod.container_id.as_deref());
            now.is_some() && now != before
        };
        if pod.wait_for(is_another).await.is_err() {
            std::future::pending().await
        }
    }

    async fn agent_lost(&self) {
        match &self.post.agents {
            Some(agents) => agents.lost(&self.uid).await,
            None => std::future::pending().await,
        }
    }
}
