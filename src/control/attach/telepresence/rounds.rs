//! The watch over an intercept: each ready pod is probed, where the app's Service leads to it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::control::attach::board::State;
use crate::control::attach::cause::Cause;
use crate::control::attach::ports::Taken;
use crate::control::attach::session::Post;
use crate::control::attach::targets::{Sight, TargetPod};
use crate::control::attach::witness::Witness;

/// Probes in a row that must stay out before a pod counts as lost.
const MISSES: u32 = 3;

/// How long after a round in which something was missing the next one follows.
const AFTER_A_MISS: Duration = Duration::from_millis(300);

/// What is known of the pods, by uid.
pub(super) struct Rounds {
    post: Arc<Post>,
    sight: watch::Receiver<Sight>,
    pods: BTreeMap<String, Standing>,
    /// Whether requests of any pod were ever taken.
    was_live: bool,
    /// With a pod whose requests are not taken while those of others are.
    patience: Duration,
}

#[derive(Debug, Default)]
struct Standing {
    is_live: bool,
    misses: u32,
    /// Since when they are not.
    missed_since: Option<Instant>,
}

/// What one probe of one pod has shown.
enum Finding {
    Taken(Duration),
    /// What came instead.
    Missed(String),
    /// Its agent is not there yet.
    NoAgent,
    /// Its agent takes what the proxy sends back, too.
    Bent,
}

impl Rounds {
    pub(super) fn new(post: Arc<Post>, sight: watch::Receiver<Sight>, patience: Duration) -> Self {
        Self {
            post,
            sight,
            pods: BTreeMap::new(),
            was_live: false,
            patience,
        }
    }

    /// Probes until no pod's requests are taken any more, or none are from the start.
    pub(super) async fn run(&mut self, handler: &Taken) -> Cause {
        let begun = Instant::now();
        loop {
            let pods = self.ready();
            let asked = pods.iter().map(|pod| self.ask(pod, handler));
            let findings = join_all(asked).await;
            self.pods
                .retain(|uid, _| pods.iter().any(|pod| pod.uid == *uid));
            let mut missed = None;
            let mut counts = (0, 0);
            for (pod, finding) in pods.iter().zip(findings) {
                let (has_agent, is_lost) = self.enter(pod, finding, &mut missed);
                counts.0 += usize::from(has_agent);
                counts.1 += usize::from(is_lost);
            }
            // As long as one pod's requests are taken, the client is well, and the others' agents join.
            if counts.0 > 0 && counts.0 == counts.1 {
                let what = missed.clone().unwrap_or_default();
                if self.was_live {
                    return Cause::Silent(what);
                }
                if begun.elapsed() >= self.post.start_timeout {
                    return Cause::Unproven(what);
                }
            }
            let is_overdue = |pod: &Standing| {
                pod.missed_since
                    .is_some_and(|since| since.elapsed() >= self.patience)
            };
            if self.pods.values().any(is_overdue) {
                return Cause::Silent(missed.unwrap_or_default());
            }
            sleep(match missed {
                Some(_) => AFTER_A_MISS,
                None => Duration::from_millis(fastrand::u64(1000..2000)),
            })
            .await;
        }
    }

    fn ready(&self) -> Vec<TargetPod> {
        let Sight::Pods(pods) = &*self.sight.borrow() else {
            return Vec::new();
        };
        let ready = pods.values().filter(|pod| pod.is_ready && !pod.is_leaving);
        ready.cloned().collect()
    }

    async fn ask(&self, pod: &TargetPod, handler: &Taken) -> Finding {
        if pod.is_bent {
            return Finding::Bent;
        }
        let Some(doors) = doors(pod, handler) else {
            return Finding::NoAgent;
        };
        let intercept = &self.post.intercept;
        let name = intercept.target.to_string();
        let begun = Instant::now();
        let asked = match Witness::of(intercept, &name, &doors, handler).await {
            Ok(witness) => witness.ask().await.instead(),
            Err(what) => Some(what),
        };
        match asked {
            None => Finding::Taken(begun.elapsed()),
            Some(what) => Finding::Missed(what),
        }
    }

    /// Notes what was found: whether the pod has an agent, and whether its requests are not taken beyond
    /// doubt.
    fn enter(
        &mut self,
        pod: &TargetPod,
        finding: Finding,
        missed: &mut Option<String>,
    ) -> (bool, bool) {
        let board = &self.post.board;
        let standing = self.pods.entry(pod.uid.clone()).or_default();
        match finding {
            Finding::Taken(took) => {
                *standing = Standing {
                    is_live: true,
                    ..Standing::default()
                };
                self.was_live = true;
                board.probed(&pod.name, took);
                board.set(&pod.uid, State::Live, "");
                (true, false)
            }
            Finding::Missed(what) => {
                standing.misses += 1;
                standing.missed_since.get_or_insert_with(Instant::now);
                let is_lost = standing.misses >= MISSES;
                if is_lost {
                    let state = match standing.is_live {
                        true => State::Lost,
                        false => State::Starting,
                    };
                    board.set(&pod.uid, state, &what);
                }
                *missed = Some(what);
                (true, is_lost)
            }
            Finding::NoAgent => {
                let message = "Telepresence's agent is not in the pod yet";
                board.set(&pod.uid, State::Starting, message);
                (false, false)
            }
            Finding::Bent => {
                board.set(
                    &pod.uid,
                    State::Failed,
                    "the agent takes every connection to the pod, also those that lead back to the app \
                     (tel-agent-init): let every Service of the app have a ClusterIP and lead to a port by its name",
                );
                (false, false)
            }
        }
    }
}

/// Where the app's Service leads to the pod, for each of the app's ports; `None` until it is the agent.
fn doors(pod: &TargetPod, handler: &Taken) -> Option<Vec<SocketAddr>> {
    let address = pod.address?;
    let locals = handler.locals.iter();
    locals
        .map(|local| Some((address, pod.agent.door(local.app_port)?).into()))
        .collect()
}
