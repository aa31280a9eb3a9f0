//! The intercept of one app by Telepresence: one client and one proxy, whatever pods the app has.
//!
//! Telepresence's client runs in this pod, without a network of its own making: it is told to be the
//! daemon of a pod, needs no rights of the kernel, and brings every connection that an agent takes to our
//! proxy. Agents take all connections to a port, so the proxy has all requests, and sends those of no
//! session back to the app: to the port behind the agent, through the [`relay`]. Whether requests of a
//! pod are taken is proven as with mirrord, by probes, sent where the app's Service leads.
//!
//! What is lost is started anew. While no client is there nobody answers the app's requests: the agents
//! hold them until the session ends, or is taken up again.

mod client;
mod daemon;
mod handler;
mod relay;
mod rounds;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use self::client::Client;
use self::handler::Handler;
use self::rounds::Rounds;
use super::board::State;
use super::cause::Cause;
use super::session::Post;
use super::targets::{Sight, TargetPod};
use crate::control::intercept::Telepresence;

/// A client that was live for so long did not fail to start.
const STABLE: Duration = Duration::from_secs(60);

/// How long one pod alone may be without its intercept before all of it is started anew, at first; and at
/// most, for it may be the pod.
const PATIENCE: Duration = Duration::from_secs(30);
const LONGEST_PATIENCE: Duration = Duration::from_secs(3600);

/// How long the end may wait for a moment without requests: leaving cuts the connections that are open.
const QUIET_PATIENCE: Duration = Duration::from_secs(5);

/// Between two looks for such a moment.
const GLANCE: Duration = Duration::from_millis(20);

/// Keeps the intercept until all is to stop, and returns when it has ended.
pub(super) async fn keep(
    post: Arc<Post>,
    wanted: Telepresence,
    sight: watch::Receiver<Sight>,
    mut stop: watch::Receiver<bool>,
) {
    let mut service = Service {
        roster: Roster::new(post.clone(), sight.clone()),
        post,
        wanted,
        sight,
        handler: None,
        client: None,
        failures: 0,
        patience: PATIENCE,
    };
    tokio::select! {
        () = service.serve() => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
    service.end().await;
}

/// The client and the proxy of the app.
struct Service {
    post: Arc<Post>,
    wanted: Telepresence,
    sight: watch::Receiver<Sight>,
    roster: Roster,
    handler: Option<Handler>,
    client: Option<Client>,
    /// Ends without a stable client between them.
    failures: u32,
    /// With a pod whose requests are not taken while those of others are.
    patience: Duration,
}

impl Service {
    /// One client after the other, for ever.
    async fn serve(&mut self) {
        let mut was_handed_over = false;
        loop {
            let begun = Instant::now();
            let cause = self.attempt().await;
            if begun.elapsed() >= STABLE {
                self.failures = 0;
                was_handed_over = false;
            }
            self.failures += 1;
            if let Cause::Silent(_) = cause {
                // Each start interrupts those pods, too, whose requests are taken.
                self.patience = (2 * self.patience).min(LONGEST_PATIENCE);
            }
            let message = cause.message();
            warn!(
                reason = cause.reason(),
                message, "the intercept is to be started anew"
            );
            self.roster.tell(&cause);
            let mut is_handed_over = false;
            // In its place until it has ended: a signal meanwhile must not cut its goodbye short.
            if let Some(client) = &mut self.client {
                let forgotten = client.forgotten(&cause);
                client.end().await;
                is_handed_over = forgotten.is_some_and(|forgotten| forgotten.hand_over());
            }
            self.client = None;
            if self.handler.as_mut().is_some_and(Handler::has_ended) {
                self.handler = None;
                self.post.board.set_shared_proxy(None);
            }
            // At once, once: where a takeover does not help, the next one waits like any other start.
            if is_handed_over && !was_handed_over {
                was_handed_over = true;
                continue;
            }
            let pause = cause.pause(self.failures);
            tokio::select! {
                () = sleep(pause.mul_f64(0.5 + fastrand::f64())) => {}
                () = self.roster.follow() => {}
            }
        }
    }

    /// One client, from its start to why it ended.
    async fn attempt(&mut self) -> Cause {
        tokio::select! {
            cause = hold(
                &self.post,
                &self.wanted,
                &self.sight,
                &mut self.handler,
                &mut self.client,
                self.patience,
            ) => cause,
            () = self.roster.follow() => Cause::Ours("nobody follows the pods".to_owned()),
        }
    }

    /// Lets the app have its requests back, then ends.
    async fn end(&mut self) {
        self.roster.all(State::Ending, "the proxy ends");
        if let (Some(client), Some(handler)) = (&mut self.client, &mut self.handler) {
            // Requests to one that is gone fail for as long as anybody waits.
            if !handler.has_ended() {
                let _ = timeout(QUIET_PATIENCE, quiet(handler)).await;
            }
            client.leave().await;
        }
        if let Some(handler) = self.handler.take() {
            handler.drain().await;
        }
        self.post.board.set_shared_proxy(None);
        if let Some(client) = &mut self.client {
            client.end().await;
        }
        info!("the intercept has ended");
    }
}

/// Brings everything up that is not, and watches over it until something of it is lost.
async fn hold(
    post: &Arc<Post>,
    wanted: &Telepresence,
    sight: &watch::Receiver<Sight>,
    handler: &mut Option<Handler>,
    client: &mut Option<Client>,
    patience: Duration,
) -> Cause {
    known(sight.clone()).await;
    each(post, sight, State::Starting, "the proxy starts");
    let handler = match handler {
        Some(handler) => handler,
        None => match Handler::start(post, sight.clone()).await {
            Ok(started) => handler.insert(started),
            Err(cause) => return cause,
        },
    };
    post.board.set_shared_proxy(Some((
        post.intercept.target.to_string(),
        handler.ports.admin,
    )));
    each(
        post,
        sight,
        State::Starting,
        "telepresence starts; the pods are made anew when its agent is not in them",
    );
    let client = loop {
        let started = match Client::start(post, wanted) {
            Ok(started) => client.insert(started),
            Err(cause) => return cause,
        };
        if let Err(cause) = started.connect().await {
            return cause;
        }
        if !started.is_resumed() {
            break started;
        }
        started.bury().await;
        *client = None;
    };
    if let Err(cause) = client.take_ports(&handler.ports).await {
        return cause;
    }
    let mut rounds = Rounds::new(post.clone(), sight.clone(), patience);
    let Handler { child, ports, .. } = handler;
    tokio::select! {
        biased;
        cause = handler::ended(child) => cause,
        cause = client.ended() => cause,
        cause = rounds.run(ports) => cause,
    }
}

/// Waits until the app's pods are known.
async fn known(mut sight: watch::Receiver<Sight>) {
    let is_known = |sight: &Sight| matches!(sight, Sight::Pods(_));
    if sight.wait_for(is_known).await.is_err() {
        std::future::pending().await
    }
}

/// Says the same of every pod.
fn each(post: &Post, sight: &watch::Receiver<Sight>, state: State, message: &str) {
    if let Sight::Pods(pods) = &*sight.borrow() {
        for pod in pods.values() {
            post.board.set(&pod.uid, state, message);
        }
    }
}

/// Waits for a moment in which nobody waits for an answer.
async fn quiet(handler: &Handler) {
    while handler.in_flight().await != Some(0) {
        sleep(GLANCE).await;
    }
}

/// Which pods the board knows.
struct Roster {
    post: Arc<Post>,
    sight: watch::Receiver<Sight>,
    uids: BTreeSet<String>,
}

impl Roster {
    fn new(post: Arc<Post>, sight: watch::Receiver<Sight>) -> Self {
        Self {
            post,
            sight,
            uids: BTreeSet::new(),
        }
    }

    /// Enters pods that come and strikes out those that go, for ever.
    async fn follow(&mut self) {
        loop {
            let seen = self.sight.borrow_and_update().clone();
            if let Sight::Pods(pods) = seen {
                self.meet(pods.values());
            }
            if self.sight.changed().await.is_err() {
                std::future::pending().await
            }
        }
    }

    fn meet<'p>(&mut self, pods: impl Iterator<Item = &'p TargetPod>) {
        let mut seen = BTreeSet::new();
        for pod in pods {
            if !self.uids.contains(&pod.uid) {
                self.post.board.enter(pod);
            }
            let is_ready = pod.is_ready && !pod.is_leaving;
            self.post.board.set_ready(&pod.uid, is_ready);
            seen.insert(pod.uid.clone());
        }
        for gone in self.uids.difference(&seen) {
            self.post.board.leave(gone);
        }
        self.uids = seen;
    }

    fn all(&self, state: State, message: &str) {
        for uid in &self.uids {
            self.post.board.set(uid, state, message);
        }
    }

    /// Says that there is no intercept.
    fn tell(&self, cause: &Cause) {
        let state = if client::is_conflict(cause) {
            State::Occupied
        } else if cause.is_loss() {
            State::Lost
        } else {
            State::Failed
        };
        for uid in &self.uids {
            self.post.board.restarts(uid, cause);
        }
        self.all(state, &cause.message());
    }
}
