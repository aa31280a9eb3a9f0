//! The intercepts of one session taken away, and nothing of any other.
//!
//! Only PR pods are deleted here, found by their labels. What they shared with other sessions names
//! its owners, and the cluster's garbage collector takes it away with the last of them; this waits until it
//! has. Agents of mirrord whose proxy is gone are deleted too, when they do not leave by themselves.

mod agents;
mod wish;

use anyhow::{Context, anyhow, bail};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt;
use kube::api::DynamicObject;
use tokio::time::{Duration, Instant, sleep};

use super::Failure;
use super::cluster::{Cluster, Kind, Name};
use super::objects::{labels, proxy_names};
use crate::cli;
use crate::signals::Signals;
use agents::Agents;
use wish::Wish;

/// Between two looks.
const PULSE: Duration = Duration::from_millis(300);

/// What an app's PR pods share.
const SHARED: [Kind; 5] = [
    Kind::Pod,
    Kind::ConfigMap,
    Kind::RoleBinding,
    Kind::Role,
    Kind::ServiceAccount,
];

/// `session-proxy cleanup`
///
/// # Errors
/// What was typed makes no sense, or something is still there.
pub async fn cleanup(arguments: cli::cluster::Cleanup) -> Result<(), Failure> {
    let wish = Wish::parse(&arguments).map_err(Failure::Usage)?;
    let mut signals = Signals::catch().context("cannot catch signals")?;
    let deadline = Instant::now() + wish.patience;
    let cluster = Cluster::reach(&arguments.cluster, deadline).await?;
    let cleaned = tokio::select! {
        cleaned = clean(&cluster, &wish) => cleaned,
        signal = signals.next() => Err(anyhow!("stopped by {signal}; the same call does the rest")),
    };
    Ok(cleaned?)
}

async fn clean(cluster: &Cluster, wish: &Wish) -> anyhow::Result<()> {
    let mut found = Vec::new();
    for namespace in &wish.namespaces {
        let pods: Vec<Pod> = cluster.list(namespace, &wish.selector()).await?;
        let matching = pods.into_iter().filter(|pod| wish.means(pod));
        found.extend(matching.map(|pod| Intercept::of(namespace, &pod)));
    }
    for warning in wish.compare(found.iter().map(|intercept| intercept.names())) {
        say(&format!("warning: {warning}"));
    }
    if found.is_empty() {
        say(&format!("nothing to clean up: {wish}"));
        return Ok(());
    }
    let shared = shared(cluster, &found).await?;
    let agents = Agents::of(cluster, wish, &found).await?;
    for intercept in &found {
        cluster.remove(&intercept.pod, &intercept.uid).await?;
        say(&format!("{}: {} is deleted", intercept.app, intercept.pod));
    }
    wait_for_pods(cluster, &found).await?;
    for (app, name) in shared {
        wait_for_collector(cluster, &app, &name, &found).await?;
    }
    agents.take_away(cluster).await?;
    let count = found.len();
    say(&format!(
        "done: {count} PR pod{} gone",
        if count == 1 { "" } else { "s" }
    ));
    Ok(())
}

/// One session's share of an app's intercept.
struct Intercept {
    app: String,
    pod: Name,
    uid: String,
}

impl Intercept {
    fn of(namespace: &str, pod: &Pod) -> Self {
        let app = pod.labels().get(labels::APP).cloned();
        Self {
            app: app.unwrap_or_default(),
            pod: Name::new(Kind::Pod, namespace, pod.name_any()),
            uid: pod.uid().unwrap_or_default(),
        }
    }

    fn names(&self) -> (&str, &str) {
        (&self.app, &self.pod.name)
    }
}

async fn wait_for_pods(cluster: &Cluster, found: &[Intercept]) -> anyhow::Result<()> {
    for intercept in found {
        let Intercept { app, pod, uid } = intercept;
        loop {
            let there = cluster.look(pod).await?;
            if there.is_none_or(|there| there.uid().as_ref() != Some(uid)) {
                break;
            }
            if Instant::now() >= cluster.deadline() {
                bail!(
                    "{app}: {pod} in namespace {} has not ended in time",
                    pod.namespace
                );
            }
            sleep(PULSE).await;
        }
        say(&format!("{app}: {pod} is gone"));
    }
    Ok(())
}

/// What the PR pods of these intercepts share with others, as far as it is there.
async fn shared(cluster: &Cluster, found: &[Intercept]) -> anyhow::Result<Vec<(String, Name)>> {
    let mut apps: Vec<_> = found
        .iter()
        .map(|intercept| (intercept.pod.namespace.as_str(), intercept.app.as_str()))
        .collect();
    apps.sort_unstable();
    apps.dedup();
    let mut shared = Vec::new();
    for (namespace, app) in apps {
        for kind in SHARED {
            for name in proxy_names(app) {
                let name = Name::new(kind, namespace, name);
                let there = cluster.look(&name).await?;
                if there.is_some_and(|there| there.labels().contains_key(labels::APP)) {
                    shared.push((app.to_owned(), name));
                }
            }
        }
    }
    Ok(shared)
}

/// Until the collector has been at an object that these PR pods shared.
async fn wait_for_collector(
    cluster: &Cluster,
    app: &str,
    name: &Name,
    found: &[Intercept],
) -> anyhow::Result<()> {
    loop {
        let Some(there) = cluster.look(name).await? else {
            say(&format!("{app}: {name} is gone"));
            return Ok(());
        };
        if let Some(why) = stays(&there, found) {
            say(&format!("{app}: {name} stays: {why}"));
            return Ok(());
        }
        if Instant::now() >= cluster.deadline() {
            bail!(
                "{app}: {name} in namespace {} has not ended, or still names a PR pod that is gone as its owner; is the cluster's garbage collector at work?",
                name.namespace
            );
        }
        sleep(PULSE).await;
    }
}

/// Why a shared object stays; `None` while it is going, or may be.
fn stays(there: &DynamicObject, found: &[Intercept]) -> Option<String> {
    let owners = there.owner_references();
    let is_ours = |owner: &OwnerReference| found.iter().any(|ours| ours.uid == owner.uid);
    if there.metadata.deletion_timestamp.is_some() || owners.iter().any(is_ours) {
        return None;
    }
    if owners.is_empty() {
        return Some("it has no owner any more, so delete it by hand".to_owned());
    }
    // What nothing but the proxy pod owns goes after it.
    let own_name = there.name_any();
    match owners.iter().filter(|owner| owner.name != own_name).count() {
        0 => None,
        1 => Some("another session uses it".to_owned()),
        count => Some(format!("{count} other sessions use it")),
    }
}

/// On standard error: a pipeline's log.
fn say(what: &str) {
    eprintln!("{what}");
}
