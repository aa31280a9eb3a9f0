//! The first process of a proxy pod: keeps one mirrord session per ready target pod for as long as it
//! lives, or one intercept of Telepresence for all of them (`telepresence`).
//!
//! Each session of mirrord is a child, `mirrord exec -- session-proxy run`, with a proxy of its own: one that is
//! stalled or lost hurts its own target alone. What to intercept is read once, from the file that
//! `deploy` put into the pod; which pods there are is followed. This file starts, follows and ends;
//! `session` knows the life of one target.

mod admin;
mod agents;
mod board;
mod cause;
mod child;
mod figures;
mod files;
mod gather;
mod household;
mod lease;
mod merge;
mod ports;
mod session;
mod targets;
mod telepresence;
mod watched;
mod witness;

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::{Id, JoinError, JoinSet};
use tracing::{info, warn};

use self::agents::Agents;
use self::board::Board;
use self::child::Programs;
use self::files::Folder;
use self::household::Household;
use self::ports::Ports;
use self::session::{Post, Session};
use self::targets::{Sight, TargetPod};
use super::Failure;
use super::intercept::{Backend, Intercept};
use crate::cli::cluster::{Attach, Cluster};
use crate::config::{Place, Problem};
use crate::kubernetes::Access;
use crate::plan;
use crate::signals::Signals;

/// Sessions that start at a time. Each asks the API server for an agent, and each start resets
/// connections of its target's clients.
const STARTS: usize = 3;

/// How long a start may take once its agent runs, when nothing is said.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// Runs until a signal says to end.
///
/// # Errors
/// What was typed or the intercept makes no sense; there is no cluster; a second signal cut the end
/// short.
pub async fn attach(arguments: Attach) -> Result<(), Failure> {
    let mut signals = Signals::catch_with_hangup().context("cannot catch signals")?;
    let order = Order::parse(&arguments).map_err(Failure::Usage)?;
    let household = Household::found().context("cannot adopt orphans")?;
    let socket = TcpListener::bind(order.admin)
        .await
        .with_context(|| format!("cannot listen on {}; --admin names another", order.admin))?;
    let admin = socket
        .local_addr()
        .context("the admin port has no address")?;

    let post = Arc::new(post(&arguments, order, household).await?);
    let (sight_tx, sight) = watch::channel(Sight::Unknown("nothing was listed yet".to_owned()));
    let (stop_tx, stop) = watch::channel(false);
    let mut rooms = JoinSet::new();
    rooms.spawn(post.household.clone().reap());
    rooms.spawn(admin::serve(
        socket,
        post.clone(),
        sight.clone(),
        stop.clone(),
    ));
    rooms.spawn(follow_targets(post.clone(), sight_tx));
    if post.agents.is_some() {
        rooms.spawn(follow_agents(post.clone()));
    }
    greet(admin)?;

    let sessions = async {
        match post.intercept.backend.clone() {
            Backend::Mirrord => keep(post.clone(), sight, stop).await,
            Backend::Telepresence(wanted) => {
                telepresence::keep(post.clone(), wanted, sight, stop).await;
            }
        }
    };
    tokio::pin!(sessions);
    let name = tokio::select! {
        name = signals.next() => name,
        // Whoever starts us anew does better than we without a part of us.
        Some(ended) = rooms.join_next() => Err(anyhow!("a part of attach broke off: {ended:?}"))?,
        () = &mut sessions => Err(anyhow!("the sessions ended by themselves"))?,
    };
    info!(signal = name, "ending all sessions");
    stop_tx.send_replace(true);
    tokio::select! {
        () = &mut sessions => {}
        name = signals.next() => {
            warn!(signal = name, "ending at once");
            Err(anyhow!("ended by a second signal"))?;
        }
    }
    info!("all sessions have ended");
    Ok(())
}

/// What was typed, judged.
struct Order {
    intercept: Intercept,
    admin: SocketAddr,
    start_timeout: Duration,
    local_ports: u16,
}

impl Order {
    fn parse(arguments: &Attach) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut keep = |problem| problems.push(problem);
        let intercept = intercept(&arguments.intercept).map_err(&mut keep);
        let admin = arguments.admin.parse().map_err(|_| {
            let text = &arguments.admin;
            keep(flag(
                "--admin",
                format!("{text:?} is no address; write IP:PORT, for example 0.0.0.0:9901"),
            ));
        });
        let start_timeout = arguments
            .start_timeout
            .as_deref()
            .filter(|text| !text.is_empty());
        let start_timeout = start_timeout.map_or(Ok(START_TIMEOUT), |text| {
            plan::duration(text).map_err(|why| keep(flag("--start-timeout", why)))
        });
        match (intercept, admin, start_timeout) {
            (Ok(intercept), Ok(admin), Ok(start_timeout)) => Ok(Self {
                intercept,
                admin,
                start_timeout,
                local_ports: arguments.local_ports,
            }),
            _ => Err(problems),
        }
    }
}

fn intercept(path: &PathBuf) -> Result<Intercept, Problem> {
    let problem = |place, message| Problem {
        file: Some(path.display().to_string().into()),
        place,
        path: String::new(),
        message,
    };
    let bytes = fs::read(path).map_err(|error| {
        let message = format!("cannot be read: {error}; `deploy` makes it, --intercept names it");
        problem(Place::BuiltIn, message)
    })?;
    let intercept: Intercept = serde_json::from_slice(&bytes).map_err(|error| {
        let place = Place::At {
            line: u32::try_from(error.line()).unwrap_or(u32::MAX),
            column: u32::try_from(error.column()).unwrap_or(u32::MAX),
        };
        problem(place, error.to_string())
    })?;
    if intercept.ports.is_empty() {
        let message = "ports: there is none; name at least one".to_owned();
        return Err(problem(Place::BuiltIn, message));
    }
    Ok(intercept)
}

fn flag(name: &'static str, message: String) -> Problem {
    Problem {
        file: None,
        place: Place::Flag(name),
        path: String::new(),
        message,
    }
}

/// Everything that sessions share.
async fn post(arguments: &Attach, order: Order, household: Household) -> anyhow::Result<Post> {
    let access = access(&arguments.cluster);
    // Whatever is asked is asked again by whoever asked, in its own time.
    let client = access.candid_client().await?;
    let folder = Folder::create().with_context(|| {
        let place = std::env::temp_dir();
        format!(
            "cannot write to {}; mount an emptyDir there",
            place.display()
        )
    })?;
    let intercept = order.intercept;
    let proxy_uid = std::env::var("POD_UID").ok().filter(|uid| !uid.is_empty());
    // By hand: as good as a pod's, for as long as we live.
    let proxy_uid = proxy_uid.unwrap_or_else(|| format!("by-hand-{:016x}", fastrand::u64(..)));
    let is_mirrord = intercept.backend == Backend::Mirrord;
    let agents = (is_mirrord && !intercept.agent.is_ephemeral)
        .then(|| Agents::new(client.clone(), &intercept.agent.namespace, &proxy_uid));
    let app_ports = intercept
        .ports
        .iter()
        .map(|port| port.container_port)
        .collect();
    Ok(Post {
        client,
        proxy_uid,
        household,
        programs: Programs {
            mirrord: arguments.mirrord.clone(),
            telepresence: arguments.telepresence.clone(),
            telepresence_socket: arguments.telepresence_socket.clone(),
            proxy: std::env::current_exe().context("cannot find our own executable")?,
            log: arguments.log.clone(),
            kubeconfig: folder.kubeconfig(&access)?,
        },
        access,
        folder,
        ports: Ports::new(order.local_ports, app_ports),
        agents,
        board: Board::new(),
        starts: Semaphore::new(STARTS),
        start_timeout: order.start_timeout,
        deletes_broken: arguments.delete_broken_targets,
        intercept,
    })
}

fn access(cluster: &Cluster) -> Access {
    Access {
        kubeconfig: cluster.kubeconfig.clone(),
        context: cluster.context.clone(),
        impersonate: cluster.impersonate.clone(),
        impersonate_groups: cluster.impersonate_groups.clone(),
    }
}

async fn follow_targets(post: Arc<Post>, sight_tx: watch::Sender<Sight>) {
    targets::follow(post.client.clone(), &post.intercept, sight_tx).await;
}

async fn follow_agents(post: Arc<Post>) {
    if let Some(agents) = &post.agents {
        agents.follow().await;
    }
}

/// Says where the admin port is: port 0 has become a port.
fn greet(admin: SocketAddr) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "admin on {admin}")
        .and_then(|()| stdout.flush())
        .context("cannot write to standard output")
}

/// Keeps a session for every pod in sight until all is to stop, and returns when all have ended.
async fn keep(post: Arc<Post>, mut sight: watch::Receiver<Sight>, mut stop: watch::Receiver<bool>) {
    let mut sessions = Sessions {
        post,
        stop: stop.clone(),
        tasks: JoinSet::new(),
        pods: HashMap::new(),
        uids: HashMap::new(),
    };
    loop {
        let seen = sight.borrow_and_update().clone();
        if let Sight::Pods(pods) = &seen {
            sessions.meet(pods.values());
        }
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            Some(ended) = sessions.tasks.join_next_with_id() => sessions.left(ended),
            Ok(()) = sight.changed() => {}
        }
    }
    while let Some(ended) = sessions.tasks.join_next_with_id().await {
        sessions.left(ended);
    }
}

/// All sessions there are.
struct Sessions {
    post: Arc<Post>,
    stop: watch::Receiver<bool>,
    tasks: JoinSet<()>,
    /// By the pod's uid: what its session knows of the pod.
    pods: HashMap<String, watch::Sender<Option<TargetPod>>>,
    uids: HashMap<Id, String>,
}

impl Sessions {
    /// Tells every session how its pod is now, and starts one for each new pod.
    fn meet<'p>(&mut self, seen: impl Iterator<Item = &'p TargetPod> + Clone) {
        for pod in seen.clone() {
            let board = &self.post.board;
            match self.pods.get(&pod.uid) {
                Some(pod_tx) => tell(pod_tx, Some(pod)),
                None => {
                    board.enter(pod);
                    let (pod_tx, pod_rx) = watch::channel(Some(pod.clone()));
                    let session = Session::new(self.post.clone(), pod, pod_rx, self.stop.clone());
                    let task = self.tasks.spawn(session.run());
                    self.uids.insert(task.id(), pod.uid.clone());
                    self.pods.insert(pod.uid.clone(), pod_tx);
                }
            }
            self.post
                .board
                .set_ready(&pod.uid, pod.is_ready && !pod.is_leaving);
        }
        for (uid, pod_tx) in &self.pods {
            if seen.clone().all(|pod| pod.uid != *uid) {
                self.post.board.set_ready(uid, false);
                tell(pod_tx, None);
            }
        }
    }

    fn left(&mut self, ended: Result<(Id, ()), JoinError>) {
        let id = match &ended {
            Ok((id, ())) => *id,
            Err(error) => {
                warn!(%error, "a session's task broke off");
                error.id()
            }
        };
        if let Some(uid) = self.uids.remove(&id) {
            self.pods.remove(&uid);
            self.post.board.leave(&uid);
        }
    }
}

fn tell(pod_tx: &watch::Sender<Option<TargetPod>>, now: Option<&TargetPod>) {
    pod_tx.send_if_modified(|pod| {
        let is_new = pod.as_ref() != now;
        *pod = now.cloned();
        is_new
    });
}
