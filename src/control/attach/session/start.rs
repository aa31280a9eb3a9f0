//! The start of one child: from its files to the proof that it gets the pod's requests.

use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::scene::Scene;
use super::{AFTER_A_MISS, Running};
use crate::control::attach::board::State;
use crate::control::attach::cause::Cause;
use crate::control::attach::child::{Child, Speech, Stage, Task};
use crate::control::attach::files;
use crate::control::attach::ports::{Local, Taken};
use crate::control::attach::targets::TargetPod;
use crate::control::attach::witness::Witness;
use crate::control::{mirrord, objects};

/// How long mirrord may take until its agent runs. It gives up by itself before.
const AGENT_PATIENCE: Duration = Duration::from_secs(90);

/// How long our own proxy may take to listen. It lists the PR pods first, and has 30 s for it.
const PROXY_PATIENCE: Duration = Duration::from_secs(40);

impl Scene {
    pub(super) fn spawn(&self, pod: &TargetPod, ports: &Taken) -> io::Result<Child> {
        let post = &self.post;
        let target = mirrord::TargetPod {
            name: pod.name.clone(),
            container: pod.container.clone(),
        };
        let pairs: Vec<_> = ports
            .locals
            .iter()
            .map(|local| (local.port, local.app_port))
            .collect();
        let mut mirrord = mirrord::configuration(&post.intercept, &target, &post.proxy_uid, &pairs);
        // An agent inside of the target pod has no labels of its own.
        if let Some(labels) = mirrord.pointer_mut("/agent/labels") {
            labels[objects::labels::TARGET] = self.uid.as_str().into();
        }
        // Through the agent, to where the app listens.
        let way_back = |local: &Local| (Ipv4Addr::LOCALHOST, local.app_port).into();
        let ways: Vec<_> = ports.locals.iter().map(way_back).collect();
        let proxy = files::proxy(&post.intercept, &ports.locals, &ways, ports.admin);
        // By a port that is the child's alone while it lives: the next one's files take the place of
        // those that nobody reads any more.
        let number = ports.admin.port();
        let task = Task {
            pod: &pod.name,
            mark: &format!("{}-{:08x}", self.uid, fastrand::u32(..)),
            mirrord_file: &post
                .folder
                .write(&format!("{number}-mirrord.json"), &mirrord)?,
            proxy_file: &post.folder.write(&format!("{number}-proxy.json"), &proxy)?,
        };
        Child::start(&post.household, &post.programs, &task)
    }

    /// Waits until the child's first probe has come back through the pod.
    pub(super) async fn comes_up(
        &self,
        running: &mut Running,
        pod: &TargetPod,
    ) -> Result<Witness, Cause> {
        let Running { child, ports, .. } = running;
        let Child { resident, speech } = child;
        tokio::select! {
            // A child that has ended comes up no more, whatever it said before.
            biased;
            status = resident.ended() => Err(Cause::of_start(status, &speech.last_words().await)),
            proven = self.stages(speech, ports, pod) => proven,
        }
    }

    /// Each stage has its own time, and its own reason to take longer.
    async fn stages(
        &self,
        speech: &Speech,
        ports: &Taken,
        pod: &TargetPod,
    ) -> Result<Witness, Cause> {
        let post = &self.post;
        tokio::select! {
            () = speech.reaches(Stage::AgentRuns) => {}
            () = self.worry() => {}
            () = sleep(AGENT_PATIENCE) => {
                let hung = format!("mirrord says nothing of an agent for {AGENT_PATIENCE:?}");
                return Err(self.agent_trouble().await.unwrap_or(Cause::Stuck(hung)));
            }
        }
        self.set(State::Starting, "the agent runs");
        let joined = timeout(post.start_timeout, speech.reaches(Stage::ProxyRuns)).await;
        joined.map_err(|_| {
            Cause::Stuck(format!(
                "mirrord hangs since its agent runs; may it create pods/portforward in namespace {}?",
                post.intercept.agent.namespace
            ))
        })?;
        self.set(State::Starting, "the proxy starts");
        let listening = timeout(PROXY_PATIENCE, speech.reaches(Stage::Listening)).await;
        listening.map_err(|_| {
            Cause::Stuck(format!(
                "the proxy does not listen after {PROXY_PATIENCE:?}"
            ))
        })?;
        self.set(State::Starting, "the proof is out");
        post.board.set_proxy(&self.uid, Some(ports.admin));
        self.proven(ports, pod, Instant::now() + post.start_timeout)
            .await
    }

    async fn proven(
        &self,
        ports: &Taken,
        pod: &TargetPod,
        deadline: Instant,
    ) -> Result<Witness, Cause> {
        let address = pod
            .address
            .ok_or_else(|| Cause::Stuck("the pod has no address".to_owned()))?;
        let door = |local: &Local| (address, local.app_port).into();
        let doors: Vec<_> = ports.locals.iter().map(door).collect();
        let witness = Witness::of(&self.post.intercept, &pod.name, &doors, ports).await;
        let witness = witness.map_err(Cause::Unproven)?;
        loop {
            let Some(what) = witness.ask().await.instead() else {
                return Ok(witness);
            };
            if Instant::now() >= deadline {
                return Err(Cause::Unproven(what));
            }
            sleep(AFTER_A_MISS).await;
        }
    }
}
