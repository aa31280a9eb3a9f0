//! mirrord's agents whose proxy is gone.
//!
//! An agent leaves by itself when its proxy does, and puts back what it changed in its target; so it is
//! given the time. One that never started, and the job of one that did, may stay behind.

use anyhow::bail;
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use kube::api::DynamicObject;
use tokio::time::{Duration, Instant, sleep};

use super::wish::Wish;
use super::{Intercept, PULSE, say};
use crate::control::cluster::{Cluster, Kind, Name};
use crate::control::objects::{PROXY_POD, labels, proxy_name};
use crate::kubernetes::Refusal;

/// How long an agent may take to leave after its proxy has ended.
const PARTING: Duration = Duration::from_secs(10);

/// mirrord waits a minute for an agent to start. One that has not run after this never will.
const STILLBORN: SignedDuration = SignedDuration::from_mins(5);

/// mirrord's own label.
const AGENT: &str = "app=mirrord";

/// Jobs first: they would start their pods again.
const KINDS: [Kind; 2] = [Kind::Job, Kind::Pod];

/// The agents of the apps that are cleaned up.
pub(super) struct Agents {
    apps: Vec<App>,
    agent_namespace: Option<String>,
}

/// One app, and its proxy before the cleanup.
struct App {
    name: String,
    namespace: String,
    proxy: Option<String>,
}

impl Agents {
    /// Looks whose agents they will be, while the proxies are there.
    pub(super) async fn of(
        cluster: &Cluster,
        wish: &Wish,
        found: &[Intercept],
    ) -> Result<Self, Refusal> {
        let mut apps: Vec<App> = Vec::new();
        for Intercept { app, pod, .. } in found {
            if apps
                .iter()
                .any(|known| known.name == *app && known.namespace == pod.namespace)
            {
                continue;
            }
            let proxy = Name::new(Kind::Pod, &pod.namespace, proxy_name(app));
            let proxy = cluster.look(&proxy).await?;
            apps.push(App {
                name: app.clone(),
                namespace: pod.namespace.clone(),
                proxy: proxy.and_then(|proxy| proxy.uid()),
            });
        }
        Ok(Self {
            apps,
            agent_namespace: wish.agent_namespace.clone(),
        })
    }

    /// Deletes those that their proxy has left behind, and waits until they are gone.
    pub(super) async fn take_away(&self, cluster: &Cluster) -> anyhow::Result<()> {
        let parted = (Instant::now() + PARTING).min(cluster.deadline());
        for app in &self.apps {
            let left = self.left_until(cluster, app, parted).await?;
            for (name, uid) in &left {
                cluster.remove(name, uid).await?;
                say(&format!(
                    "{}: {name} of mirrord was left behind and is deleted",
                    app.name
                ));
            }
            let left = self.left_until(cluster, app, cluster.deadline()).await?;
            if let Some((name, _)) = left.first() {
                bail!("{}: {name} of mirrord has not ended in time", app.name);
            }
        }
        Ok(())
    }

    /// Those that are left behind at that time, or earlier if there are none.
    async fn left_until(
        &self,
        cluster: &Cluster,
        app: &App,
        end: Instant,
    ) -> Result<Vec<(Name, String)>, Refusal> {
        loop {
            let left = self.left_behind(cluster, app).await?;
            if left.is_empty() || Instant::now() >= end {
                return Ok(left);
            }
            sleep(PULSE).await;
        }
    }

    async fn left_behind(
        &self,
        cluster: &Cluster,
        app: &App,
    ) -> Result<Vec<(Name, String)>, Refusal> {
        let namespace = self.agent_namespace.as_deref().unwrap_or(&app.namespace);
        let selector = format!("{AGENT},{}={},{}", labels::APP, app.name, labels::PROXY);
        let mut agents = Vec::new();
        for kind in KINDS {
            for agent in cluster.find(kind, namespace, &selector).await? {
                agents.push((kind, agent));
            }
        }
        if agents.is_empty() {
            return Ok(Vec::new());
        }
        // Read after the agents: what was started by a proxy that lives now is none of them.
        let living = self.living(cluster, app).await?;
        let now = Timestamp::now();
        let left = agents.into_iter().filter(|(kind, agent)| {
            let proxy = agent.labels().get(labels::PROXY);
            let is_ours = proxy == app.proxy.as_ref();
            let is_alive = proxy.is_some_and(|proxy| living.contains(proxy));
            !is_alive && (is_ours || is_stillborn(*kind, agent, now))
        });
        Ok(left
            .map(|(kind, agent)| {
                let name = Name::new(kind, namespace, agent.name_any());
                (name, agent.uid().unwrap_or_default())
            })
            .collect())
    }

    async fn living(&self, cluster: &Cluster, app: &App) -> Result<Vec<String>, Refusal> {
        let selector = format!("app={PROXY_POD},{}={}", labels::APP, app.name);
        let proxies = cluster.find(Kind::Pod, &app.namespace, &selector).await?;
        Ok(proxies.iter().filter_map(|proxy| proxy.uid()).collect())
    }
}

/// Whether an agent of a proxy that nobody knows, maybe one of another namespace, can be of no use to
/// anyone: it had its time, and does not run.
fn is_stillborn(kind: Kind, agent: &DynamicObject, now: Timestamp) -> bool {
    let runs = match kind {
        Kind::Job => agent.data["status"]["ready"].as_i64().unwrap_or_default() > 0,
        _ => agent.data["status"]["phase"] == "Running",
    };
    let made = agent.creation_timestamp();
    !runs && made.is_some_and(|made| now.duration_since(made.0) > STILLBORN)
}
