//! mirrord's agents that belong to us: which live, why one does not come up, and their end.
//!
//! They are known by labels that mirrord puts on the agent's Job and pod because we ask it to. An
//! agent that runs inside of the target pod has neither, and nothing is known of it here.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{DeleteParams, ListParams};
use kube::runtime::watcher::Config;
use kube::{Api, Client, ResourceExt};
use tokio::sync::watch;
use tokio::time::sleep;

use super::watched;
use crate::control::objects::labels;
use crate::kubernetes::{Doing, Refusal};

/// Living agents by their target's uid. `None`: not known.
type Living = Option<BTreeMap<String, usize>>;

/// The agents of this proxy.
#[derive(Clone)]
pub(super) struct Agents {
    client: Client,
    namespace: String,
    proxy_uid: String,
    living_tx: watch::Sender<Living>,
}

impl Agents {
    pub(super) fn new(client: Client, namespace: &str, proxy_uid: &str) -> Self {
        Self {
            client,
            namespace: namespace.to_owned(),
            proxy_uid: proxy_uid.to_owned(),
            living_tx: watch::Sender::new(None),
        }
    }

    /// Follows the agents' pods for ever.
    pub(super) async fn follow(&self) {
        let config = Config::default().labels(&self.selector(None));
        watched::follow(self.pods(), config, "pods", |pods| {
            // What was known stays what is known, until it is known better.
            let Ok(pods) = pods else {
                return;
            };
            let living = living(pods.values());
            self.living_tx.send_if_modified(|known| {
                let is_new = known.as_ref() != Some(&living);
                *known = Some(living);
                is_new
            });
        })
        .await;
    }

    /// Waits until an agent of that target, once there, is there no more. For ever when nothing is
    /// known of it.
    pub(super) async fn lost(&self, target: &str) {
        let mut living = self.living_tx.subscribe();
        let is_there = |living: &Living| count(living, target) > 0;
        let is_gone = |living: &Living| living.is_some() && count(living, target) == 0;
        loop {
            let followed = living.wait_for(is_there).await.is_ok();
            if !followed || living.wait_for(is_gone).await.is_err() {
                std::future::pending().await
            }
            // The watch may lag: what ended may be the agent of the session before this one.
            let params = ListParams::default().labels(&self.selector(Some(target)));
            if let Ok(pods) = self.pods().list(&params).await
                && !pods.items.iter().any(is_living)
            {
                return;
            }
        }
    }

    /// Removes what agents of that target are left, and waits until their pods are gone. An agent
    /// that lives holds the pod's rules, and a Job replaces an agent that was killed, uselessly.
    ///
    /// # Errors
    /// The API server does not let us.
    pub(super) async fn clear(&self, target: &str) -> Result<usize, Refusal> {
        let params = ListParams::default().labels(&self.selector(Some(target)));
        let jobs = self.jobs();
        let left = jobs.list(&params).await;
        let left = left.doing("list", "jobs", &self.namespace)?.items;
        for job in &left {
            let deleted = jobs
                .delete(&job.name_any(), &DeleteParams::background())
                .await;
            match deleted.doing("delete", "jobs", &self.namespace) {
                Err(refusal) if refusal.code() != Some(404) => return Err(refusal),
                _ => {}
            }
        }
        loop {
            let pods = self.pods().list(&params).await;
            let pods = pods.doing("list", "pods", &self.namespace)?.items;
            if pods.iter().all(has_ended) {
                return Ok(left.len());
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// Why an agent of that target does not come up, in the cluster's own words; `None` when the
    /// cluster says nothing.
    ///
    /// # Errors
    /// The API server does not let us look.
    pub(super) async fn trouble(&self, target: &str) -> Result<Option<String>, Refusal> {
        let params = ListParams::default().labels(&self.selector(Some(target)));
        let pods = self.pods().list(&params).await;
        let pods = pods.doing("list", "pods", &self.namespace)?.items;
        if let Some(trouble) = pods.iter().find_map(waiting) {
            return Ok(Some(trouble));
        }
        let jobs = self.jobs().list(&params).await;
        let jobs = jobs.doing("list", "jobs", &self.namespace)?.items;
        let names = pods.iter().map(ResourceExt::name_any);
        for name in names.chain(jobs.iter().map(ResourceExt::name_any)) {
            let params = ListParams::default().fields(&format!("involvedObject.name={name}"));
            let events = Api::<Event>::namespaced(self.client.clone(), &self.namespace);
            let events = events.list(&params).await;
            let events = events.doing("list", "events", &self.namespace)?.items;
            if let Some(trouble) = warning(&events) {
                return Ok(Some(trouble));
            }
        }
        Ok(None)
    }

    fn selector(&self, target: Option<&str>) -> String {
        let ours = format!("{}={}", labels::PROXY, self.proxy_uid);
        match target {
            Some(target) => format!("{ours},{}={target}", labels::TARGET),
            None => ours,
        }
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn jobs(&self) -> Api<Job> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }
}

fn count(living: &Living, target: &str) -> usize {
    let known = living.as_ref().and_then(|living| living.get(target));
    known.copied().unwrap_or(0)
}

fn living<'p>(pods: impl Iterator<Item = &'p Pod>) -> BTreeMap<String, usize> {
    let mut living = BTreeMap::new();
    for pod in pods.filter(|pod| is_living(pod)) {
        if let Some(target) = pod.labels().get(labels::TARGET) {
            *living.entry(target.clone()).or_default() += 1;
        }
    }
    living
}

/// Whether an agent serves its session. One that was told to go serves it no more.
fn is_living(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none() && !has_ended(pod)
}

/// Whether an agent holds no rules of its target any more.
fn has_ended(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// What a container waits for, when it is not just being made.
fn waiting(pod: &Pod) -> Option<String> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    statuses.iter().find_map(|status| {
        let waiting = status.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.as_deref()?;
        if matches!(reason, "ContainerCreating" | "PodInitializing") {
            return None;
        }
        let message = waiting.message.as_deref().unwrap_or_default();
        Some(format!("{reason}: image {}: {message}", status.image))
    })
}

/// The newest complaint among these events.
fn warning(events: &[Event]) -> Option<String> {
    let warnings = events
        .iter()
        .filter(|event| event.type_.as_deref() == Some("Warning"));
    let newest = warnings.max_by_key(|event| {
        let last = event.last_timestamp.as_ref().map(|time| time.0);
        last.or(event.event_time.as_ref().map(|time| time.0))
    })?;
    let reason = newest.reason.as_deref().unwrap_or("Warning");
    let message = newest.message.as_deref().unwrap_or_default();
    Some(format!("{reason}: {message}"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn agent(target: &str, phase: &str, is_leaving: bool) -> Pod {
        let mut metadata = json!({ "labels": { labels::TARGET: target } });
        if is_leaving {
            metadata["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        serde_json::from_value(json!({ "metadata": metadata, "status": { "phase": phase } }))
            .unwrap()
    }

    #[test]
    fn an_agent_lives_until_it_is_told_to_go_or_has_ended() {
        let agents = [
            agent("a", "Running", false),
            agent("a", "Pending", false),
            agent("b", "Running", true),
            agent("c", "Succeeded", false),
            agent("d", "Failed", false),
        ];

        assert_eq!(living(agents.iter()), [("a".to_owned(), 2)].into());
    }

    #[test]
    fn the_cluster_tells_why_an_agent_does_not_come_up() {
        let pod = |state: Value| -> Pod {
            let status = json!({ "containerStatuses": [{ "name": "agent", "image": "i:1", "state": state }] });
            serde_json::from_value(json!({ "metadata": {}, "status": status })).unwrap()
        };
        let waits = |reason: &str| pod(json!({ "waiting": { "reason": reason, "message": "no" } }));

        assert_eq!(
            waiting(&waits("ErrImagePull")).as_deref(),
            Some("ErrImagePull: image i:1: no")
        );
        assert_eq!(waiting(&waits("ContainerCreating")), None);
        assert_eq!(waiting(&pod(json!({ "running": {} }))), None);
    }

    #[test]
    fn the_newest_complaint_is_told() {
        let event = |kind: &str, at: &str, message: &str| -> Event {
            serde_json::from_value(json!({
                "metadata": {}, "involvedObject": {}, "type": kind, "reason": "FailedCreate",
                "message": message, "lastTimestamp": at,
            }))
            .unwrap()
        };
        let events = [
            event("Warning", "2026-01-01T00:00:01Z", "old"),
            event("Warning", "2026-01-01T00:00:03Z", "violates PodSecurity"),
            event("Normal", "2026-01-01T00:00:09Z", "fine"),
        ];

        assert_eq!(
            warning(&events).as_deref(),
            Some("FailedCreate: violates PodSecurity")
        );
        assert_eq!(warning(&[]), None);
    }
}
