//! The workload whose requests are taken: its pod template, and its pods that serve right now.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, anyhow, bail};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::ResourceExt;
use kube::core::{GroupVersionKind, Selector};
use serde::Deserialize;

use super::cluster::{Cluster, Object};
use super::intercept::{Target, TargetKind};
use super::objects::{labels, template};
use super::telepresence::AgentPorts;
use crate::kubernetes::Refusal;

/// What a target was when it was read.
#[derive(Debug, Clone)]
pub struct Workload {
    pub namespace: String,
    pub target: Target,
    pub template: PodTemplateSpec,
    /// How many pods it is meant to have.
    pub replicas: i32,
    /// Of its pods; `None` for a single pod.
    pub selector: Option<LabelSelector>,
}

/// A pod that serves requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    pub name: String,
    pub uid: String,
    pub ip: IpAddr,
    /// Where the ports of its Telepresence agent are, if it has one.
    pub agent: AgentPorts,
}

impl Workload {
    /// Reads a target.
    ///
    /// # Errors
    /// It is not there, must not be read, or has no pods that could be told from others.
    pub async fn read(cluster: &Cluster, namespace: &str, target: &Target) -> anyhow::Result<Self> {
        let parts = Parts::read(cluster, namespace, target).await?;
        let parts = parts.ok_or_else(|| {
            anyhow!(
                "there is no {target} in namespace {namespace}; name the app's workload with `target` in the stack"
            )
        })?;
        let is_greedy = |selector: &LabelSelector| *selector == LabelSelector::default();
        if parts.selector.as_ref().is_some_and(is_greedy) {
            bail!("{target} selects every pod of namespace {namespace}");
        }
        let template = parts
            .template
            .ok_or_else(|| anyhow!("{target} has no pod template"))?;
        Ok(Self {
            namespace: namespace.to_owned(),
            target: target.clone(),
            template,
            replicas: parts.replicas,
            selector: parts.selector,
        })
    }

    /// Its pods that serve requests, by name.
    ///
    /// # Errors
    /// The API server refused, or cannot select as the workload does.
    pub async fn replicas(&self, cluster: &Cluster) -> anyhow::Result<Vec<Replica>> {
        let pods = match &self.selector {
            Some(selector) => {
                let selector = Selector::try_from(selector.clone())
                    .with_context(|| format!("{} has a strange selector", self.target))?
                    .to_string();
                cluster.list::<Pod>(&self.namespace, &selector).await?
            }
            None => {
                let pod = cluster.read::<Pod>(&self.namespace, &self.target.name);
                pod.await?.into_iter().collect()
            }
        };
        let baseline = pods
            .iter()
            .filter(|pod| !pod.labels().contains_key(labels::SESSION));
        let mut replicas: Vec<Replica> = baseline.filter_map(Replica::of).collect();
        replicas.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(replicas)
    }
}

impl Replica {
    /// A pod as it serves; `None` while it does not.
    pub fn of(pod: &Pod) -> Option<Self> {
        if pod.metadata.deletion_timestamp.is_some() {
            return None;
        }
        let status = pod.status.as_ref()?;
        let conditions = status.conditions.as_deref().unwrap_or_default();
        let is_ready = conditions
            .iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True");
        let ip = status.pod_ip.as_deref()?.parse().ok()?;
        is_ready.then(|| Self {
            name: pod.name_any(),
            uid: pod.uid().unwrap_or_default(),
            ip,
            agent: pod.spec.as_ref().map(AgentPorts::of).unwrap_or_default(),
        })
    }

    /// Where requests for a port of the app come in: at the port itself, or at that of Telepresence's
    /// agent, which the app's Service leads to in its place.
    pub fn door(&self, port: u16) -> SocketAddr {
        (self.ip, self.agent.door(port).unwrap_or(port)).into()
    }
}

/// What all kinds of targets have.
struct Parts {
    template: Option<PodTemplateSpec>,
    selector: Option<LabelSelector>,
    replicas: i32,
}

impl Parts {
    async fn read(
        cluster: &Cluster,
        namespace: &str,
        target: &Target,
    ) -> anyhow::Result<Option<Self>> {
        let name = &*target.name;
        Ok(match target.kind {
            TargetKind::Deployment => Self::of::<Deployment>(cluster, namespace, name).await?,
            TargetKind::StatefulSet => Self::of::<StatefulSet>(cluster, namespace, name).await?,
            TargetKind::ReplicaSet => Self::of::<ReplicaSet>(cluster, namespace, name).await?,
            TargetKind::Pod => Self::of::<Pod>(cluster, namespace, name).await?,
            TargetKind::Rollout => Self::of_rollout(cluster, namespace, name).await?,
        })
    }

    async fn of<K: Object + Into<Self>>(
        cluster: &Cluster,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Self>, Refusal> {
        let object = cluster.read::<K>(namespace, name).await?;
        Ok(object.map(Into::into))
    }

    /// A Rollout has a template of its own, or takes that of a Deployment.
    async fn of_rollout(
        cluster: &Cluster,
        namespace: &str,
        name: &str,
    ) -> anyhow::Result<Option<Self>> {
        let kind = GroupVersionKind::gvk("argoproj.io", "v1alpha1", "Rollout");
        let rollout = cluster
            .read_other(&kind, "rollouts", namespace, name)
            .await?;
        let Some(rollout) = rollout else {
            return Ok(None);
        };
        let spec: RolloutSpec = serde_json::from_value(rollout.data["spec"].clone())
            .with_context(|| format!("cannot make sense of rollout/{name}"))?;
        let borrowed = match &spec.workload_ref {
            Some(workload) if spec.template.is_none() => {
                Self::of::<Deployment>(cluster, namespace, &workload.name).await?
            }
            _ => None,
        };
        let (template, selector) =
            borrowed.map_or((None, None), |parts| (parts.template, parts.selector));
        Ok(Some(Self {
            template: spec.template.or(template),
            selector: Some(spec.selector.or(selector).unwrap_or_default()),
            replicas: spec.replicas.unwrap_or(1),
        }))
    }
}

/// What is read of an Argo Rollout.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RolloutSpec {
    replicas: Option<i32>,
    selector: Option<LabelSelector>,
    template: Option<PodTemplateSpec>,
    workload_ref: Option<WorkloadRef>,
}

#[derive(Deserialize)]
struct WorkloadRef {
    name: String,
}

impl From<Deployment> for Parts {
    fn from(deployment: Deployment) -> Self {
        let spec = deployment.spec.unwrap_or_default();
        Self {
            template: Some(spec.template),
            selector: Some(spec.selector),
            replicas: spec.replicas.unwrap_or(1),
        }
    }
}

impl From<StatefulSet> for Parts {
    fn from(set: StatefulSet) -> Self {
        let spec = set.spec.unwrap_or_default();
        Self {
            template: Some(spec.template),
            selector: Some(spec.selector),
            replicas: spec.replicas.unwrap_or(1),
        }
    }
}

impl From<ReplicaSet> for Parts {
    fn from(set: ReplicaSet) -> Self {
        let spec = set.spec.unwrap_or_default();
        Self {
            template: spec.template,
            selector: Some(spec.selector),
            replicas: spec.replicas.unwrap_or(1),
        }
    }
}

impl From<Pod> for Parts {
    fn from(pod: Pod) -> Self {
        Self {
            template: Some(template::of_pod(&pod)),
            selector: None,
            replicas: 1,
        }
    }
}
