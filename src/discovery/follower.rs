//! One round after another: a list, watches from there, a pause when something fails.
//!
//! kube's own `watcher` makes the same rounds, but does not tell when a watch stands. Without that, nobody
//! could refuse to start for a missing right to watch, or know that the API server is back before the next
//! pod changes.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ApiResource, ListParams, WatchEvent, WatchParams};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use super::pods::{Pods, Told};
use super::{Standing, Trouble};
use crate::kubernetes::{APP_LABEL, Access, Doing, Refusal, SESSION_LABEL, WATCH_SECONDS};
use crate::metrics::DiscoveryMetrics;
use crate::upstream::{Discovered, Endpoint};

/// Pods of one answer: what has to be held in memory at once.
const PAGE: u32 = 250;

/// Waits after a failure, the first and the longest; doubled in between.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// A watch that stood so long was no part of the trouble before it.
const CALM: Duration = Duration::from_secs(10);

/// How often an ongoing trouble is told again.
const REMINDER: Duration = Duration::from_secs(60);

/// Sessions that change at once and are still named one by one.
const NAMED: usize = 10;

/// Keeps a table true to the cluster.
pub(super) struct Follower {
    access: Access,
    namespace: String,
    selector: String,
    pods: Pods,
    metrics: Arc<DiscoveryMetrics>,
    tables_tx: watch::Sender<Arc<Discovered>>,
    standing_tx: watch::Sender<Standing>,
    /// The next wait.
    pause: Duration,
    /// Since when a watch stands; `None` when none does.
    stood_since: Option<Instant>,
    /// When a trouble that is not over was last told.
    told: Option<Instant>,
}

/// How a watch ended, when not in order.
enum Loss {
    /// While it stood: the next one can take up where it ended.
    Broken(Refusal),
    /// There is no watch from here: only a list tells what is true.
    Refused(Refusal),
    /// What happened since is not remembered: only a list tells what is true.
    Forgotten,
}

impl Follower {
    pub(super) fn new(
        access: Access,
        namespace: &str,
        app: &str,
        metrics: Arc<DiscoveryMetrics>,
        tables_tx: watch::Sender<Arc<Discovered>>,
        standing_tx: watch::Sender<Standing>,
    ) -> Self {
        Self {
            access,
            namespace: namespace.to_owned(),
            selector: format!("{APP_LABEL}={app},{SESSION_LABEL}"),
            pods: Pods::default(),
            metrics,
            tables_tx,
            standing_tx,
            pause: PAUSE.0,
            stood_since: None,
            told: None,
        }
    }

    /// For ever.
    pub(super) async fn follow(mut self) {
        let client = loop {
            match self.access.candid_client().await {
                Ok(client) => break client,
                Err(error) => self.failed(error.into()).await,
            }
        };
        let api = api(client, &self.namespace);
        loop {
            match self.list(&api).await {
                Ok(version) => self.watch_on(&api, version).await,
                Err(refusal) => self.failed(refusal.into()).await,
            }
        }
    }

    /// Takes in all pods there are; answers with the version of the cluster they were told at. The table
    /// stays what it was until the last of them is there.
    async fn list(&mut self, api: &Api<Told>) -> Result<String, Refusal> {
        let mut params = ListParams::default().labels(&self.selector).limit(PAGE);
        let mut all = Vec::new();
        let version = loop {
            let page = api.list(&params).await;
            let page = page.doing("list", "pods", &self.namespace)?;
            all.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => break page.metadata.resource_version.unwrap_or_default(),
            }
        };
        debug!(pods = all.len(), version, "pods listed");
        self.pods.replace(&all);
        self.metrics.heard();
        self.publish();
        Ok(version)
    }

    /// Watches from that version on, one watch after another, until there is need for a list.
    async fn watch_on(&mut self, api: &Api<Told>, mut version: String) {
        loop {
            let loss = match self.watch(api, &mut version).await {
                Ok(()) => continue,
                Err(loss) => loss,
            };
            match loss {
                Loss::Broken(refusal) => self.failed(refusal.into()).await,
                Loss::Refused(refusal) => return self.failed(refusal.into()).await,
                Loss::Forgotten => return self.ended().await,
            }
        }
    }

    /// One watch, which the API server ends in order after [`WATCH_SECONDS`].
    async fn watch(&mut self, api: &Api<Told>, version: &mut String) -> Result<(), Loss> {
        let params = WatchParams::default()
            .labels(&self.selector)
            .timeout(WATCH_SECONDS);
        let opened = api.watch(&params, version).await;
        let opened = opened.doing("watch", "pods", &self.namespace);
        let events = opened.map_err(|refusal| match refusal.code() {
            Some(GONE) => Loss::Forgotten,
            _ => Loss::Refused(refusal),
        })?;
        let mut events = pin!(events.fuse());
        self.stands();
        while let Some(event) = events.next().await {
            let mut taken = self.take(event, version);
            // What has arrived already belongs into the same table.
            while taken.is_ok()
                && let Some(Some(event)) = events.next().now_or_never()
            {
                taken = self.take(event, version);
            }
            self.publish();
            taken?;
        }
        self.ended().await;
        Ok(())
    }

    fn take(
        &mut self,
        event: kube::Result<WatchEvent<Told>>,
        version: &mut String,
    ) -> Result<(), Loss> {
        let event = event.doing("watch", "pods", &self.namespace);
        let heard = match event.map_err(Loss::Broken)? {
            WatchEvent::Added(pod) | WatchEvent::Modified(pod) => {
                self.pods.apply(&pod);
                pod.metadata.resource_version
            }
            WatchEvent::Deleted(pod) => {
                self.pods.remove(&pod);
                pod.metadata.resource_version
            }
            WatchEvent::Bookmark(bookmark) => Some(bookmark.metadata.resource_version),
            WatchEvent::Error(status) if status.code == GONE => return Err(Loss::Forgotten),
            WatchEvent::Error(status) => {
                let error = Err(kube::Error::Api(status));
                let refused = error.doing("watch", "pods", &self.namespace);
                return refused.map_err(Loss::Refused);
            }
        };
        if let Some(heard) = heard {
            *version = heard;
        }
        self.metrics.heard();
        Ok(())
    }

    /// Tells the table to all, if it is another one.
    fn publish(&mut self) {
        let new = self.pods.table();
        self.tables_tx.send_if_modified(|table| {
            if are_same(table, &new) {
                return false;
            }
            tell_difference(table, &new);
            *table = Arc::new(new);
            true
        });
    }

    fn stands(&mut self) {
        self.stood_since = Some(Instant::now());
        self.metrics.heard();
        self.metrics.up.set(1);
        self.standing_tx.send_replace(Standing::Followed);
        if self.told.take().is_some() {
            info!("the pods are followed again");
        }
    }

    /// A watch has ended in order. One that has not lasted is no reason to hurry to the next.
    async fn ended(&mut self) {
        let was_calm = self.was_calm();
        self.stood_since = None;
        if was_calm {
            self.pause = PAUSE.0;
        } else {
            self.rest().await;
        }
    }

    async fn failed(&mut self, trouble: Trouble) {
        self.metrics.up.set(0);
        self.metrics.errors.inc();
        if self.was_calm() {
            self.pause = PAUSE.0;
        }
        // A watch that broke and is there again at once is not worth a word.
        let was_broken = self.stood_since.take().is_some();
        let is_time = self.told.is_none_or(|told| told.elapsed() >= REMINDER);
        if is_time && !was_broken {
            warn!(%trouble, "cannot follow the pods; the sessions stay as they are");
            self.told = Some(Instant::now());
        } else {
            debug!(%trouble, "cannot follow the pods");
        }
        self.standing_tx
            .send_replace(Standing::Trouble(Arc::new(trouble)));
        self.rest().await;
    }

    fn was_calm(&self) -> bool {
        self.stood_since
            .is_some_and(|since| since.elapsed() >= CALM)
    }

    /// Waits. Many proxies lose an API server at the same moment, and should not all return to it at one.
    async fn rest(&mut self) {
        sleep(self.pause.mul_f64(0.5 + fastrand::f64())).await;
        self.pause = (self.pause * 2).min(PAUSE.1);
    }
}

/// The version asked for is no longer remembered.
const GONE: u16 = 410;

fn api(client: Client, namespace: &str) -> Api<Told> {
    Api::namespaced_with(client, namespace, &ApiResource::erase::<Pod>(&()))
}

/// An endpoint is one pod at one address.
fn are_same(one: &Discovered, other: &Discovered) -> bool {
    let is_same = |(one, other): (&Arc<Endpoint>, &Arc<Endpoint>)| one.id == other.id;
    one.len() == other.len()
        && one
            .iter()
            .zip(other)
            .all(|((name, pods), (other, others))| {
                name == other && pods.len() == others.len() && pods.iter().zip(others).all(is_same)
            })
}

/// Sessions that come and go, and those that stay and get their first ready pod or lose their last.
fn tell_difference(old: &Discovered, new: &Discovered) {
    let is_reached = |pods: &Vec<_>| !pods.is_empty();
    let (mut come, mut reached, mut lost) = (Vec::new(), Vec::new(), Vec::new());
    for (session, pods) in new {
        match (old.get(session).map(is_reached), is_reached(pods)) {
            (None, _) => come.push((session, pods.len())),
            (Some(false), true) => reached.push(session),
            (Some(true), false) => lost.push(session),
            (Some(_), _) => {}
        }
    }
    let gone: Vec<_> = old.keys().filter(|name| !new.contains_key(*name)).collect();
    if come.len() + gone.len() + reached.len() + lost.len() > NAMED {
        info!(
            come = come.len(),
            gone = gone.len(),
            ready = reached.len(),
            not_ready = lost.len(),
            "sessions have changed"
        );
        return;
    }
    for (session, ready_pods) in come {
        info!(%session, ready_pods, "a session has come");
    }
    for session in gone {
        info!(%session, "a session has gone");
    }
    for session in reached {
        info!(%session, "a session has a ready pod now");
    }
    for session in lost {
        info!(%session, "a session has no ready pod any more");
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    #[test]
    fn tables_are_the_same_when_they_name_the_same_pods() {
        let pod = |number| Endpoint::of_pod("pod", IpAddr::V4(Ipv4Addr::new(10, 0, 0, number)));
        let (one, two) = (pod(1), pod(2));
        let table = |sessions: &[(&str, &[&Arc<Endpoint>])]| -> Discovered {
            let entry = |(name, pods): &(&str, &[&Arc<Endpoint>])| {
                (
                    Arc::from(*name),
                    pods.iter().map(|pod| Arc::clone(pod)).collect(),
                )
            };
            sessions.iter().map(entry).collect()
        };
        let both = table(&[("a", &[&one, &two]), ("b", &[])]);

        assert!(are_same(&both, &both.clone()));
        for other in [
            table(&[]),
            table(&[("a", &[&one, &two])]),
            table(&[("a", &[&one]), ("b", &[&two])]),
            table(&[("a", &[&two, &one]), ("b", &[])]),
            table(&[("a", &[&one, &pod(2)]), ("b", &[])]),
            table(&[("a", &[&one, &two]), ("c", &[])]),
        ] {
            assert!(!are_same(&both, &other), "{other:?}");
        }
    }
}
