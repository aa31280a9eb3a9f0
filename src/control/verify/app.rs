//! One intercepted app: its replicas are asked, its proxy and its PR pod are watched meanwhile, and then
//! all of it is judged together.

mod checks;

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use super::judgement;
use super::log::Log;
use super::question::{Asker, Door, Reply, Tag};
use super::report::AppReport;
use super::scene::{PrPod, ProxyPod, Scene};
use super::tap::{Heard, Tap};
use crate::cli::cluster::Witness;
use crate::control::cluster::Cluster;
use crate::control::intercept::BackendName;
use crate::control::objects;
use crate::control::stack::Port;
use crate::control::targets::{self, Target};
use crate::control::workload::Replica;
use crate::plan::PROBE;
use crate::record::line::Line;

/// How long after an answer the tap may tell of it.
const TAP_PATIENCE: Duration = Duration::from_secs(5);

/// The same before it is asked again.
const TAP_GLANCE: Duration = Duration::from_secs(1);

/// How long after an answer the log may show it.
const LOG_PATIENCE: Duration = Duration::from_secs(10);

/// The same where nothing depends on it but the certainty of what is not there.
const LOG_GLANCE: Duration = Duration::from_secs(1);

/// What everybody needs to know who asks and judges.
pub(super) struct Case<'a> {
    pub asker: &'a Asker,
    pub cluster: &'a Cluster,
    pub session: &'a str,
    /// A session that nobody has.
    pub unknown: &'a str,
    pub path: &'a str,
    pub witness: Witness,
    pub since: Instant,
}

/// An app under watch.
pub(super) struct Watched<'a> {
    pub scene: Scene<'a>,
    pr_pod_name: String,
    proxy_name: String,
    pr_pod: Result<PrPod, String>,
    proxy: Result<ProxyPod, String>,
    pub tap: Result<Tap, String>,
    /// How long it took to find all that.
    took: Duration,
}

/// All that was asked at one port of one replica.
struct Asked<'a> {
    replica: &'a Replica,
    port: &'a Port,
    probe: Reply,
    untagged: Reply,
    unknown: Reply,
    header: Reply,
    /// `None`: the stack uses no baggage.
    baggage: Option<Reply>,
}

/// What the PR pod's log showed.
struct Logged {
    /// The ids of requests that it received.
    ids: Result<BTreeSet<String>, String>,
    took: Duration,
}

impl<'a> Watched<'a> {
    /// Finds the app's pods and begins to listen to its proxy. `pr_pod` is the name it was deployed by.
    pub(super) async fn open(
        case: &Case<'_>,
        scene: Scene<'a>,
        pr_pod: Option<&str>,
    ) -> Watched<'a> {
        let started = Instant::now();
        let (app, namespace) = (&*scene.app.name, scene.namespace);
        let late = case.asker.deadline();
        let proxy = ProxyPod::read(case.cluster, namespace, app, late);
        let pod = async {
            let name = pr_pod.ok_or_else(|| format!("--deployed-pods has no pod for {app}"))?;
            PrPod::read(case.cluster, namespace, (app, case.session), name, late).await
        };
        let (pod, proxy) = tokio::join!(pod, proxy);
        let tap = match &proxy {
            Ok(proxy) => Tap::open(proxy.admin, case.session).await,
            Err(_) => Err("there is no proxy to listen to".to_owned()),
        };
        Watched {
            pr_pod_name: pr_pod
                .map_or_else(|| objects::pr_pod_name(app, case.session), str::to_owned),
            proxy_name: match &proxy {
                Ok(proxy) => proxy.name.clone(),
                Err(_) => objects::proxy_name(app),
            },
            scene,
            pr_pod: pod,
            proxy,
            tap,
            took: started.elapsed(),
        }
    }

    /// Asks every replica at every port, and judges.
    pub(super) async fn prove(&self, case: &Case<'_>) -> AppReport {
        let asked = self.ask(case).await;
        let tagged = asked.iter().flat_map(Asked::tagged);
        let tagged: Vec<&Reply> = tagged.filter(|reply| claims(reply, case.session)).collect();
        self.wait_for_tap(case, &tagged).await;
        let logged = self.read_log(case, &tagged, LOG_PATIENCE).await;
        let told = self.ask_proxy(&asked).await;
        let replicas = self.judge_replicas(case, &asked, &logged, &told);
        let checks = self.judge_app(case.witness, &logged);
        AppReport {
            app: self.scene.app.name.clone(),
            namespace: self.scene.namespace.to_owned(),
            ok: checks.iter().all(|check| check.ok) && replicas.iter().all(|replica| replica.ok),
            pr_pod: self.pr_pod_name.clone(),
            proxy_pod: self.proxy_name.clone(),
            proxy_admin: self.proxy.as_ref().ok().map(|proxy| proxy.admin),
            checks,
            replicas,
        }
    }

    /// What the proxy pod says of its targets, where one of them is not taken.
    async fn ask_proxy(&self, asked: &[Asked<'_>]) -> Vec<Target> {
        match &self.proxy {
            Ok(proxy) if asked.iter().any(|asked| !claims(&asked.probe, "probe")) => {
                targets::ask(proxy.admin).await
            }
            _ => Vec::new(),
        }
    }

    /// Whether all of these untagged requests stayed away from the PR pod.
    ///
    /// # Errors
    /// Some did not, or nobody can tell.
    pub(super) async fn stayed_away(
        &self,
        case: &Case<'_>,
        untagged: &[Reply],
    ) -> Result<(), String> {
        // Without its address nobody could tell a request to it from another.
        self.pr_pod.as_ref().map_err(Clone::clone)?;
        // Once a later request is in tap and log, so would these be.
        let marker = self.mark(case).await;
        let tagged: Vec<&Reply> = marker.iter().collect();
        self.wait_for_tap(case, &tagged).await;
        let logged = self.read_log(case, &tagged, LOG_GLANCE).await;
        self.judge_tap()?;
        logged.ids.as_ref().map_err(Clone::clone)?;
        let (expected, witnesses) = (self.expected(case), self.witnesses(&logged));
        let answered = untagged
            .iter()
            .filter(|reply| judgement::heard(reply).is_ok());
        let strays: Vec<String> = answered
            .map(|reply| judgement::untagged(reply, &expected, witnesses.on(reply)))
            .filter_map(Result::err)
            .collect();
        match strays.first() {
            None => Ok(()),
            Some(first) => Err(format!(
                "{} of {} requests without a session did not stay with the baseline: {first}",
                strays.len(),
                untagged.len()
            )),
        }
    }

    /// Whether a request went to the PR pod.
    pub(super) fn is_to_pr_pod(&self, line: &Line) -> bool {
        let upstream = line.upstream.as_deref().and_then(judgement::ip);
        let pr_pod = self.pr_pod.as_ref().map(|pod| pod.ip.to_canonical());
        upstream.is_some() && upstream == pr_pod.ok()
    }

    /// What the proxy that a replica's requests pass calls itself: after the replica, or, where one
    /// serves all of them, after the workload.
    fn proxy_of(&self, replica: &Replica) -> String {
        match &self.proxy {
            Ok(proxy) if proxy.backend == BackendName::Telepresence => {
                self.scene.app.target.to_string()
            }
            _ => replica.name.clone(),
        }
    }

    async fn mark(&self, case: &Case<'_>) -> Option<Reply> {
        let replica = self.scene.replicas.as_ref().ok()?.first()?;
        let port = self.scene.app.ports.first()?;
        let door = self.scene.door(replica, port, case.path);
        Some(case.asker.ask(&door, Tag::Header(case.session)).await)
    }

    async fn ask(&self, case: &Case<'_>) -> Vec<Asked<'_>> {
        let replicas = self.scene.replicas.iter().flatten();
        let ports = &self.scene.app.ports;
        let places = replicas.flat_map(|replica| ports.iter().map(move |port| (replica, port)));
        join_all(places.map(|(replica, port)| self.ask_one(case, replica, port))).await
    }

    async fn ask_one<'s>(
        &'s self,
        case: &Case<'_>,
        replica: &'s Replica,
        port: &'s Port,
    ) -> Asked<'s> {
        let door = self.scene.door(replica, port, case.path);
        let asker = case.asker;
        let (probe, untagged, unknown) = tokio::join!(
            asker.ask(&door, Tag::Header(PROBE)),
            asker.ask(&door, Tag::None),
            asker.ask(&door, Tag::Header(case.unknown)),
        );
        // Afterwards: once these are in the log, the others are, or never will be.
        let baggage = async {
            match asker.has_baggage() {
                true => Some(
                    self.ask_tapped(case, &door, Tag::Baggage(case.session))
                        .await,
                ),
                false => None,
            }
        };
        let header = self.ask_tapped(case, &door, Tag::Header(case.session));
        let (header, baggage) = tokio::join!(header, baggage);
        Asked {
            replica,
            port,
            probe,
            untagged,
            unknown,
            header,
            baggage,
        }
    }

    /// Asks once more when the tap said nothing: one that tells of several proxies begins with each of
    /// them a moment after it was opened.
    async fn ask_tapped(&self, case: &Case<'_>, door: &Door, tag: Tag<'_>) -> Reply {
        let reply = case.asker.ask(door, tag).await;
        let Ok(tap) = &self.tap else {
            return reply;
        };
        if claims(&reply, case.session) {
            let is_told = |heard: &Heard| heard.of(&reply.id).is_some();
            tap.until(case.asker.within(TAP_GLANCE), is_told).await;
            if !is_told(&tap.heard()) {
                return case.asker.ask(door, tag).await;
            }
        }
        reply
    }

    /// Waits until the tap told of these requests, within reason.
    async fn wait_for_tap(&self, case: &Case<'_>, tagged: &[&Reply]) {
        if let Ok(tap) = &self.tap {
            let all = |heard: &Heard| tagged.iter().all(|reply| heard.of(&reply.id).is_some());
            tap.until(case.asker.within(TAP_PATIENCE), all).await;
        }
    }

    /// Waits until the log shows these requests, within that patience where it is needed as a witness.
    async fn read_log(&self, case: &Case<'_>, tagged: &[&Reply], patience: Duration) -> Logged {
        let started = Instant::now();
        let ids = match (&self.pr_pod, case.witness) {
            (Ok(pod), Witness::App) => {
                let has_witness = |reply: &&Reply| {
                    let answer = reply.answer.as_ref();
                    answer.is_ok_and(|answer| answer.repeats(&reply.id))
                };
                let patience = match tagged.iter().all(has_witness) {
                    true => LOG_GLANCE,
                    false => patience,
                };
                let enough = case.asker.within(patience);
                // A glance is for how long is waited, not for how slow the API server may be.
                let late = case.asker.within(LOG_PATIENCE);
                let log = Log {
                    cluster: &case.cluster.until(late),
                    namespace: self.scene.namespace,
                    pod,
                    since: case.since,
                    run: case.asker.run(),
                };
                let wanted = tagged.iter().map(|reply| &*reply.id).collect();
                log.ids(&wanted, enough, late).await
            }
            _ => Ok(BTreeSet::new()),
        };
        Logged {
            ids,
            took: started.elapsed(),
        }
    }
}

impl Asked<'_> {
    fn tagged(&self) -> impl Iterator<Item = &Reply> {
        std::iter::once(&self.header).chain(&self.baggage)
    }
}

/// Whether the answer says that the session's own route was taken.
fn claims(reply: &Reply, session: &str) -> bool {
    let answer = reply.answer.as_ref();
    answer.is_ok_and(|answer| answer.route() == Some(session))
}
