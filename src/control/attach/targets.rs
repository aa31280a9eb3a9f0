//! The pods of the workload: which there are, and what of them matters to a session.
//!
//! Nothing here decides when a session starts or ends.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind, Selector};
use kube::runtime::watcher::Config;
use kube::{Api, Client};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::debug;

use super::watched;
use crate::control::intercept::{Intercept, Target, TargetKind};
use crate::control::objects::{container, labels};
use crate::control::telepresence::{self, AgentPorts};
use crate::kubernetes::{Doing, Refusal};

/// How often the workload is asked for its selector: one that was made anew may have another.
const SELECTOR_PERIOD: Duration = Duration::from_secs(60);

/// How soon it is asked again when it could not be asked or is not there.
const RETRY: Duration = Duration::from_secs(5);

/// What is known of the workload's pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Sight {
    /// Nothing yet, and why.
    Unknown(String),
    /// Its pods by uid.
    Pods(BTreeMap<String, TargetPod>),
}

/// One pod of the workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TargetPod {
    pub name: String,
    pub uid: String,
    /// `None` until it runs on a node.
    pub address: Option<IpAddr>,
    /// The container that serves the app's ports.
    pub container: String,
    /// Changes when the container is started anew; `None` while it does not run.
    pub container_id: Option<String>,
    /// The kubelet says that it may have requests.
    pub is_ready: bool,
    /// It has been told to end.
    pub is_leaving: bool,
    /// Where the ports of its Telepresence agent are, if it has one.
    pub agent: AgentPorts,
    /// Whether connections to the app's own ports are bent to that agent.
    pub is_bent: bool,
}

/// Follows the workload's pods for ever.
pub(super) async fn follow(client: Client, intercept: &Intercept, sight_tx: watch::Sender<Sight>) {
    let target = &intercept.target;
    let namespace = &intercept.namespace;
    loop {
        let config = match selection(&client, target, namespace).await {
            Ok(config) => config,
            Err(refusal) => {
                debug!(%refusal, "the workload cannot be asked");
                unknown(&sight_tx, &refusal.to_string());
                sleep(RETRY).await;
                continue;
            }
        };
        let pods = Api::<Pod>::namespaced(client.clone(), namespace);
        let follow = watched::follow(pods, config.clone(), "pods", |pods| match pods {
            Ok(pods) => {
                let pods = pods.values().filter_map(|pod| seen(pod, intercept));
                let sight = Sight::Pods(pods.map(|pod| (pod.uid.clone(), pod)).collect());
                sight_tx.send_if_modified(|known| {
                    let is_new = *known != sight;
                    *known = sight;
                    is_new
                });
            }
            Err(refusal) => unknown(&sight_tx, &refusal.to_string()),
        });
        tokio::select! {
            () = follow => {}
            () = another_selection(&client, target, namespace, &config) => {}
        }
    }
}

/// Says why nothing is known. What was known stays.
fn unknown(sight_tx: &watch::Sender<Sight>, why: &str) {
    sight_tx.send_if_modified(|sight| match sight {
        Sight::Unknown(known) if known != why => {
            *known = why.to_owned();
            true
        }
        Sight::Unknown(_) | Sight::Pods(_) => false,
    });
}

/// Returns when the workload selects its pods in another way than `now`.
async fn another_selection(client: &Client, target: &Target, namespace: &str, now: &Config) {
    loop {
        sleep(SELECTOR_PERIOD).await;
        if selection(client, target, namespace)
            .await
            .is_ok_and(|selection| selection != *now)
        {
            return;
        }
    }
}

/// Which pods are the workload's.
async fn selection(client: &Client, target: &Target, namespace: &str) -> Result<Config, Refusal> {
    let name = &target.name;
    let selector = match target.kind {
        TargetKind::Pod => return Ok(Config::default().fields(&format!("metadata.name={name}"))),
        TargetKind::Deployment => deployment_selector(client, namespace, name).await?,
        TargetKind::StatefulSet => {
            let api = Api::<StatefulSet>::namespaced(client.clone(), namespace);
            let found = api
                .get(name)
                .await
                .doing("get", "statefulsets", namespace)?;
            found.spec.map(|spec| spec.selector)
        }
        TargetKind::ReplicaSet => {
            let api = Api::<ReplicaSet>::namespaced(client.clone(), namespace);
            let found = api.get(name).await.doing("get", "replicasets", namespace)?;
            found.spec.map(|spec| spec.selector)
        }
        TargetKind::Rollout => rollout_selector(client, namespace, name).await?,
    };
    let selector = selector.and_then(|selector| Selector::try_from(selector).ok());
    let text = selector.map(|selector| selector.to_string());
    // An empty selector would select the whole namespace. Of the objects above only a broken one has
    // one; no pod carries this label.
    let text = text.filter(|text| !text.is_empty());
    Ok(Config::default().labels(text.as_deref().unwrap_or("session-proxy/no-pod")))
}

async fn deployment_selector(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<Option<LabelSelector>, Refusal> {
    let api = Api::<Deployment>::namespaced(client.clone(), namespace);
    let found = api.get(name).await.doing("get", "deployments", namespace)?;
    Ok(found.spec.map(|spec| spec.selector))
}

/// A rollout selects its pods itself, or leaves that to a deployment.
async fn rollout_selector(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<Option<LabelSelector>, Refusal> {
    let kind = GroupVersionKind::gvk("argoproj.io", "v1alpha1", "Rollout");
    let resource = ApiResource::from_gvk_with_plural(&kind, "rollouts");
    let api = Api::<DynamicObject>::namespaced_with(client.clone(), namespace, &resource);
    let found = api.get(name).await.doing("get", "rollouts", namespace)?;
    match selects(&found) {
        Selects::By(selector) => Ok(selector),
        Selects::Through(deployment) => deployment_selector(client, namespace, &deployment).await,
    }
}

/// How a rollout selects its pods.
#[derive(Debug, PartialEq)]
enum Selects {
    By(Option<LabelSelector>),
    /// As the deployment of that name does.
    Through(String),
}

fn selects(rollout: &DynamicObject) -> Selects {
    let spec = rollout.data.get("spec");
    if let Some(selector) = spec.and_then(|spec| spec.get("selector")) {
        return Selects::By(serde_json::from_value(selector.clone()).ok());
    }
    let reference = spec.and_then(|spec| spec.get("workloadRef"));
    let is_deployment = |reference: &&Value| reference["kind"] == "Deployment";
    match reference
        .filter(is_deployment)
        .and_then(|reference| reference["name"].as_str())
    {
        Some(deployment) => Selects::Through(deployment.to_owned()),
        None => Selects::By(None),
    }
}

/// What of a pod matters. `None`: it is none of the workload's running pods.
fn seen(pod: &Pod, intercept: &Intercept) -> Option<TargetPod> {
    let labels = pod.metadata.labels.as_ref();
    // A PR pod is where requests go, whatever labels it shares with the app.
    if labels.is_some_and(|labels| labels.contains_key(labels::SESSION)) {
        return None;
    }
    let (spec, status) = (pod.spec.as_ref()?, pod.status.as_ref()?);
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return None;
    }
    let ports: Vec<_> = intercept
        .ports
        .iter()
        .map(|port| port.container_port)
        .collect();
    let container = container::of_app(spec, &intercept.app, &ports)?;
    let statuses = status.container_statuses.as_deref().unwrap_or_default();
    let running = statuses.iter().find(|status| status.name == container.name);
    let conditions = status.conditions.as_deref().unwrap_or_default();
    Some(TargetPod {
        name: pod.metadata.name.clone()?,
        uid: pod.metadata.uid.clone()?,
        address: status.pod_ip.as_ref().and_then(|ip| ip.parse().ok()),
        container: container.name.clone(),
        container_id: running.and_then(running_id),
        is_ready: conditions
            .iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True"),
        is_leaving: pod.metadata.deletion_timestamp.is_some(),
        agent: AgentPorts::of(spec),
        is_bent: telepresence::is_bent(spec),
    })
}

fn running_id(status: &ContainerStatus) -> Option<String> {
    status.state.as_ref()?.running.as_ref()?;
    status.container_id.clone()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::control::intercept::{Agent, AppProtocol, Backend, Mode, Port};

    fn intercept() -> Intercept {
        Intercept {
            app: "orders".into(),
            namespace: "staging".into(),
            target: Target {
                kind: TargetKind::Deployment,
                name: "orders".into(),
            },
            ports: vec![Port {
                container_port: 8080,
                protocol: AppProtocol::Http,
            }],
            header: "x-dev-session".into(),
            baggage_key: "dev-session".into(),
            mode: Mode::Steal,
            agent: Agent {
                namespace: "staging".into(),
                is_ephemeral: false,
                image: None,
            },
            backend: Backend::Mirrord,
        }
    }

    /// A ready pod, with these changes: a value by its path of names.
    fn pod(changes: &[(&str, Value)]) -> Pod {
        let mut pod = json!({
            "metadata": { "name": "orders-1", "uid": "u1", "labels": { "app": "orders" } },
            "spec": { "containers": [
                { "name": "mesh", "ports": [{ "containerPort": 15000 }] },
                { "name": "orders", "ports": [{ "containerPort": 8080 }] },
            ] },
            "status": {
                "phase": "Running",
                "podIP": "10.0.0.7",
                "conditions": [{ "type": "Ready", "status": "True" }],
                "containerStatuses": [
                    { "name": "mesh", "containerID": "c://m", "state": { "running": {} } },
                    { "name": "orders", "containerID": "c://o", "state": { "running": {} } },
                ],
            },
        });
        for (path, value) in changes {
            *pod.pointer_mut(path).unwrap_or_else(|| panic!("{path}")) = value.clone();
        }
        serde_json::from_value(pod).expect("a pod")
    }

    #[test]
    fn a_ready_pod_is_seen_with_the_container_that_serves() {
        assert_eq!(
            seen(&pod(&[]), &intercept()),
            Some(TargetPod {
                name: "orders-1".into(),
                uid: "u1".into(),
                address: Some([10, 0, 0, 7].into()),
                container: "orders".into(),
                container_id: Some("c://o".into()),
                is_ready: true,
                is_leaving: false,
                agent: AgentPorts::default(),
                is_bent: false,
            })
        );
    }

    #[test]
    fn what_a_pod_is_going_through_is_seen() {
        let labels = json!({ "app": "orders", "session-proxy/session": "pr-42" });
        let deleted =
            json!({ "name": "a", "uid": "u", "deletionTimestamp": "2026-01-01T00:00:00Z" });
        let waiting = json!({ "waiting": { "reason": "CrashLoopBackOff" } });
        for (what, changes, check) in [
            (
                "not ready",
                vec![("/status/conditions/0/status", json!("False"))],
                (|pod| pod.is_some_and(|pod| !pod.is_ready)) as fn(Option<TargetPod>) -> bool,
            ),
            (
                "no condition yet",
                vec![("/status/conditions", json!([]))],
                |pod| pod.is_some_and(|pod| !pod.is_ready),
            ),
            (
                "no address yet",
                vec![("/status/podIP", json!(null))],
                |pod| pod.is_some_and(|pod| pod.address.is_none()),
            ),
            ("going", vec![("/metadata", deleted)], |pod| {
                pod.is_some_and(|pod| pod.is_leaving)
            }),
            (
                "the container waits",
                vec![("/status/containerStatuses/1/state", waiting)],
                |pod| pod.is_some_and(|pod| pod.container_id.is_none()),
            ),
            ("a PR pod", vec![("/metadata/labels", labels)], |pod| {
                pod.is_none()
            }),
            ("done", vec![("/status/phase", json!("Succeeded"))], |pod| {
                pod.is_none()
            }),
            ("evicted", vec![("/status/phase", json!("Failed"))], |pod| {
                pod.is_none()
            }),
        ] {
            assert!(check(seen(&pod(&changes), &intercept())), "{what}");
        }
    }

    #[test]
    fn a_rollout_selects_by_itself_or_as_its_deployment_does() {
        let selects = |spec: Value| {
            let rollout = json!({
                "apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout",
                "metadata": { "name": "orders" }, "spec": spec,
            });
            super::selects(&serde_json::from_value(rollout).expect("an object"))
        };
        let selector = json!({ "matchLabels": { "app": "orders" } });
        let reference =
            json!({ "apiVersion": "apps/v1", "kind": "Deployment", "name": "orders-base" });

        let Selects::By(Some(found)) = selects(json!({ "selector": selector })) else {
            panic!("it has one");
        };
        assert_eq!(Selector::try_from(found).unwrap().to_string(), "app=orders");
        assert_eq!(
            selects(json!({ "workloadRef": reference })),
            Selects::Through("orders-base".into())
        );
        assert_eq!(selects(json!({})), Selects::By(None));
    }
}
