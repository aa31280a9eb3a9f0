//! The life of one target's session, from the pod's first sight to its last.
//!
//! Take the pod's lease, start a child, prove that requests reach it, watch over it; when it is lost,
//! end what is left of it and start another. The pod's end and ours are gentle: what the child serves
//! is served to its end, and mirrord's sender gets the time to let the agent end its work.

mod rest;
mod scene;
mod start;
mod vigil;

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use self::scene::Scene;
use super::agents::Agents;
use super::board::{Board, State};
use super::cause::Cause;
use super::child::{Child, Programs, Stage};
use super::files::Folder;
use super::household::Household;
use super::lease::Hold;
use super::ports::{Ports, Taken};
use super::targets::TargetPod;
use super::witness::Witness;
use crate::control::intercept::Intercept;
use crate::kubernetes::Access;

/// How long after a probe that did not come back the next one follows.
const AFTER_A_MISS: Duration = Duration::from_millis(300);

/// A session that was live for so long did not fail to start.
const STABLE: Duration = Duration::from_secs(60);

/// How long a child may take to end when it was asked to: its own time to drain, and a little.
const DRAIN_PATIENCE: Duration = Duration::from_secs(32);

/// How long mirrord's sender may live on, so that the agent can end its work.
const SENDER_PATIENCE: Duration = Duration::from_secs(6);

/// How long what was killed may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(2);

/// What all sessions share.
pub(super) struct Post {
    pub client: Client,
    pub intercept: Intercept,
    /// Who we are to leases and agents.
    pub proxy_uid: String,
    pub household: Household,
    pub programs: Programs,
    /// How the cluster is reached, for whoever must be told.
    pub access: Access,
    pub folder: Folder,
    pub ports: Ports,
    /// `None`: agents run inside of the target pods.
    pub agents: Option<Agents>,
    pub board: Board,
    /// Starts at a time.
    pub starts: Semaphore,
    /// How long a start may take once the agent runs.
    pub start_timeout: Duration,
    pub deletes_broken: bool,
}

/// One target's session.
pub(super) struct Session {
    scene: Scene,
    running: Option<Running>,
    /// Ends without a stable session between them.
    failures: u32,
}

/// A child and what it holds.
struct Running {
    child: Child,
    ports: Taken,
    /// The container that it was started for.
    container_id: Option<String>,
    live_since: Option<Instant>,
}

impl Running {
    /// Whether requests may have been handed to it.
    fn serves(&self) -> bool {
        self.child.speech.has_reached(Stage::Listening)
    }
}

impl Session {
    pub(super) fn new(
        post: Arc<Post>,
        target: &TargetPod,
        pod: watch::Receiver<Option<TargetPod>>,
        stop: watch::Receiver<bool>,
    ) -> Self {
        let scene = Scene {
            post,
            name: target.name.clone(),
            uid: target.uid.clone(),
            pod,
            stop,
        };
        Self {
            scene,
            running: None,
            failures: 0,
        }
    }

    /// Keeps the session until the pod is gone or all is to stop.
    pub(super) async fn run(mut self) {
        let over = over(self.scene.pod.clone(), self.scene.stop.clone());
        tokio::pin!(over);
        loop {
            let claimed = async {
                self.scene.startable().await;
                self.scene.claim().await
            };
            let mut held = tokio::select! {
                held = claimed => held,
                () = &mut over => return,
            };
            let hold = held.hold();
            tokio::select! {
                () = held.keep() => {
                    self.end("another proxy took the pod's lease").await;
                }
                () = self.serve(hold) => {}
                () = &mut over => {
                    let why = self.scene.why_over();
                    held.keep_until(self.end(why)).await;
                    held.release().await;
                    return;
                }
            }
        }
    }

    /// One child after the other, for ever.
    async fn serve(&mut self, mut hold: Hold) {
        loop {
            self.scene.startable().await;
            let cause = self.attempt(&mut hold).await;
            if cause.is_loss() {
                // At once: to clean up takes its time, in which no request is taken.
                self.scene.show(&cause);
            }
            let container_id = self.clean_up().await;
            self.scene.clear_agents().await;
            if self.scene.is_leaving() {
                info!(pod = self.scene.name, "the session went with its pod");
                continue;
            }
            self.scene.tell(&cause);
            self.failures += 1;
            let pause = jittered(cause.pause(self.failures));
            self.scene.rest(pause, container_id.as_deref()).await;
        }
    }

    /// One child, from its start to why it ended.
    async fn attempt(&mut self, hold: &mut Hold) -> Cause {
        let started = self.start(hold).await;
        let (Some(running), scene) = (self.running.as_mut(), &self.scene) else {
            return started
                .err()
                .unwrap_or(Cause::Stuck("nothing was started".to_owned()));
        };
        match started {
            Err(Cause::NotStarted(how)) if !running.child.speech.has_reached(Stage::AgentRuns) => {
                scene
                    .agent_trouble()
                    .await
                    .unwrap_or(Cause::NotStarted(how))
            }
            Err(cause) => cause,
            Ok(witness) => {
                scene.set(State::Live, "");
                running.live_since = Some(Instant::now());
                let cause = scene.watch(running, &witness).await;
                let lasted = running
                    .live_since
                    .map_or(Duration::ZERO, |since| since.elapsed());
                if lasted >= STABLE {
                    self.failures = 0;
                }
                cause
            }
        }
    }

    async fn start(&mut self, hold: &mut Hold) -> Result<Witness, Cause> {
        let scene = &self.scene;
        let post = &scene.post;
        scene.set(State::Starting, "waits for its turn");
        let _turn = post.starts.acquire().await.expect("never closed");
        scene.set(State::Starting, "mirrord starts");
        scene.clear_agents().await;
        if !hold.is_sure() {
            // Somebody else may have the pod by now.
            scene.set(State::Starting, "waits until the pod's lease is renewed");
            hold.sure().await;
        }
        let Some(pod) = scene.pod.borrow().clone() else {
            return Err(Cause::Stuck("the pod is gone".to_owned()));
        };
        let ports = post.ports.take();
        let ports = ports.ok_or_else(|| Cause::Ours("no local port is free".to_owned()))?;
        let child = scene.spawn(&pod, &ports).map_err(|error| {
            Cause::Ours(format!(
                "cannot start {}: {error}; is mirrord in the image?",
                post.programs.mirrord.display()
            ))
        })?;
        let running = self.running.insert(Running {
            child,
            ports,
            container_id: pod.container_id.clone(),
            live_since: None,
        });
        scene.comes_up(running, &pod).await
    }

    /// Ends what is left of a child at once, and returns the container that it was for.
    async fn clean_up(&mut self) -> Option<String> {
        let mut running = self.running.take()?;
        running.child.resident.kill();
        let _ = timeout(KILL_PATIENCE, running.child.resident.ended()).await;
        let _ = timeout(KILL_PATIENCE, running.child.resident.gone()).await;
        self.scene.post.board.set_proxy(&self.scene.uid, None);
        running.container_id
    }

    /// Ends the child gently, if there is anything in it to be gentle with.
    async fn end(&mut self, why: &str) {
        let Some(mut running) = self.running.take_if(|running| running.serves()) else {
            if self.running.is_some() {
                self.scene.set(State::Ending, why);
                self.clean_up().await;
                // Its agent may still be on its way, and nobody will ask for it.
                self.scene.clear_agents().await;
            }
            return;
        };
        let scene = &self.scene;
        scene.set(State::Ending, why);
        let child = &mut running.child;
        child.resident.terminate();
        if timeout(DRAIN_PATIENCE, child.resident.ended())
            .await
            .is_err()
        {
            warn!(pod = scene.name, "the child does not end; it is killed");
            child.resident.kill();
        }
        scene.post.board.set_proxy(&scene.uid, None);
        if timeout(SENDER_PATIENCE, child.resident.gone())
            .await
            .is_err()
        {
            child.resident.kill();
        }
    }
}

/// Returns when there is nothing to keep a session for.
async fn over(mut pod: watch::Receiver<Option<TargetPod>>, mut stop: watch::Receiver<bool>) {
    tokio::select! {
        _ = pod.wait_for(Option::is_none) => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
}

/// Half as long to half as long again, so that many do not start at the same moment.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + fastrand::f64())
}
