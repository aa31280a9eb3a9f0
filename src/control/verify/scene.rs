//! One app as the cluster has it: who answers, who stands in between, and where they are.
//!
//! What could not be found out is kept as the reason why, for whoever needed it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Service};
use kube::ResourceExt;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use super::question::Door;
use crate::control::cluster::Cluster;
use crate::control::intercept::{AppProtocol, BackendName};
use crate::control::objects::labels;
use crate::control::stack::{App, Port};
use crate::control::workload::{Replica, Workload};
use crate::kubernetes::Refusal;

/// The admin port of a proxy pod that names none.
const ADMIN: u16 = 9901;

/// How long a Service may take to show that it can be reached.
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);

/// An app and its baseline.
#[derive(Debug)]
pub(super) struct Scene<'a> {
    pub app: &'a App,
    pub namespace: &'a str,
    /// At least one.
    pub replicas: Result<Vec<Replica>, String>,
    pub service: Result<Option<Front>, String>,
}

/// The Service of an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Front {
    /// `None`: it has no address of its own.
    pub ip: Option<IpAddr>,
    pub selector: BTreeMap<String, String>,
}

/// Which way an app was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Through {
    Service,
    Pods,
}

/// The pod of the pull request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PrPod {
    pub name: String,
    pub ip: IpAddr,
    pub containers: Vec<String>,
    pub labels: BTreeMap<String, String>,
}

/// The pod that takes an app's requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProxyPod {
    pub name: String,
    pub backend: BackendName,
    pub admin: SocketAddr,
}

impl<'a> Scene<'a> {
    pub(super) async fn read(
        cluster: &Cluster,
        app: &'a App,
        namespace: &'a str,
        late: Instant,
    ) -> Scene<'a> {
        let replicas = timeout_at(late, replicas(cluster, app, namespace));
        let service = timeout_at(late, front(cluster, app, namespace));
        let (replicas, service) = tokio::join!(replicas, service);
        Scene {
            app,
            namespace,
            replicas: replicas.unwrap_or_else(|_| Err(too_late("the pods"))),
            service: service.unwrap_or_else(|_| Err(too_late("the Service"))),
        }
    }

    /// A port of a replica.
    pub(super) fn door(&self, replica: &Replica, port: &Port, path: &str) -> Door {
        self.door_at(replica.door(port.container_port), port, path)
    }

    /// Where the app's callers ask, at its first port: its Service, or where that has no address or
    /// cannot be reached, each of its replicas.
    ///
    /// # Errors
    /// There are neither.
    pub(super) async fn doors(&self, path: &str) -> Result<(Through, Vec<Door>), String> {
        let port = self.app.ports.first().ok_or("the app has no port")?;
        if let Some(front) = self.front_door(port, path)
            && is_open(front.address).await
        {
            return Ok((Through::Service, vec![front]));
        }
        let replicas = self.replicas.as_ref().map_err(Clone::clone)?;
        let doors = replicas
            .iter()
            .map(|replica| self.door(replica, port, path));
        Ok((Through::Pods, doors.collect()))
    }

    fn front_door(&self, port: &Port, path: &str) -> Option<Door> {
        let ip = self.service.as_ref().ok()?.as_ref()?.ip?;
        Some(self.door_at((ip, port.service_port).into(), port, path))
    }

    fn door_at(&self, address: SocketAddr, port: &Port, path: &str) -> Door {
        Door {
            address,
            protocol: port.protocol,
            host: format!("{}:{}", self.app.name, port.service_port),
            path: match port.protocol {
                AppProtocol::Http => path.to_owned(),
                AppProtocol::Grpc => "/".to_owned(),
            },
        }
    }
}

impl PrPod {
    /// The pod of that name, as long as it belongs to this app and session and serves.
    ///
    /// # Errors
    /// What is missing, in words for people.
    pub(super) async fn read(
        cluster: &Cluster,
        namespace: &str,
        (app, session): (&str, &str),
        name: &str,
        late: Instant,
    ) -> Result<Self, String> {
        let pod = serving(cluster, namespace, name, late).await?;
        for (label, wanted) in [(labels::APP, app), (labels::SESSION, session)] {
            let found = pod.labels().get(label).map_or("", String::as_str);
            if found != wanted {
                return Err(format!(
                    "pod {name} has the label {label}={found} instead of {wanted}: it is not the PR pod of {app} for {session}"
                ));
            }
        }
        let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
        Ok(Self {
            name: name.to_owned(),
            ip: ip(&pod).ok_or_else(|| format!("pod {name} has no address"))?,
            containers: containers.map(|container| container.name.clone()).collect(),
            labels: pod.labels().clone(),
        })
    }
}

impl ProxyPod {
    /// The app's proxy pod, as long as it serves; of whichever backend it is.
    ///
    /// # Errors
    /// What is missing, in words for people.
    pub(super) async fn read(
        cluster: &Cluster,
        namespace: &str,
        app: &str,
        late: Instant,
    ) -> Result<Self, String> {
        let (mut missing, mut ending) = (Vec::new(), None);
        for backend in BackendName::ALL {
            let name = backend.proxy_name(app);
            match timeout_at(late, cluster.read::<Pod>(namespace, &name)).await {
                Ok(Ok(None)) => missing.push(name),
                // The other one may have taken over already.
                Ok(Ok(Some(pod))) if pod.metadata.deletion_timestamp.is_some() => {
                    ending = Some((backend, name));
                }
                // What keeps it from serving is told by whoever looks closer.
                _ => return Self::serving(cluster, namespace, (backend, name), late).await,
            }
        }
        if let Some(ending) = ending {
            return Self::serving(cluster, namespace, ending, late).await;
        }
        Err(format!(
            "there is no pod {} in namespace {namespace}",
            missing.join(" or ")
        ))
    }

    async fn serving(
        cluster: &Cluster,
        namespace: &str,
        (backend, name): (BackendName, String),
        late: Instant,
    ) -> Result<Self, String> {
        let pod = serving(cluster, namespace, &name, late).await?;
        let ip = ip(&pod).ok_or_else(|| format!("pod {name} has no address"))?;
        let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
        let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
        let admin = ports.find(|port| port.name.as_deref() == Some("admin"));
        let admin = admin.and_then(|port| u16::try_from(port.container_port).ok());
        Ok(Self {
            name,
            backend,
            admin: (ip, admin.unwrap_or(ADMIN)).into(),
        })
    }
}

impl Front {
    /// Whether it would send requests to a pod with these labels.
    pub(super) fn takes(&self, labels: &BTreeMap<String, String>) -> bool {
        let has = |(key, value)| labels.get(key) == Some(value);
        !self.selector.is_empty() && self.selector.iter().all(has)
    }
}

/// Whether somebody listens there.
async fn is_open(address: SocketAddr) -> bool {
    let connected = timeout(CONNECT_PATIENCE, TcpStream::connect(address)).await;
    matches!(connected, Ok(Ok(_)))
}

async fn replicas(cluster: &Cluster, app: &App, namespace: &str) -> Result<Vec<Replica>, String> {
    let in_words = |error: anyhow::Error| match error.downcast_ref::<Refusal>() {
        // It tells its cause by itself.
        Some(refusal) => refusal.to_string(),
        None => format!("{error:#}"),
    };
    let workload = Workload::read(cluster, namespace, &app.target).await;
    let workload = workload.map_err(in_words)?;
    let replicas = workload.replicas(cluster).await.map_err(in_words)?;
    if replicas.is_empty() {
        return Err(format!(
            "{} in namespace {namespace} has no ready replica",
            app.target
        ));
    }
    Ok(replicas)
}

async fn front(cluster: &Cluster, app: &App, namespace: &str) -> Result<Option<Front>, String> {
    let service = cluster.read::<Service>(namespace, &app.name).await;
    let service = service.map_err(|refusal| refusal.to_string())?;
    let spec = service.and_then(|service| service.spec);
    Ok(spec.map(|spec| Front {
        // A headless one has the word None there.
        ip: spec.cluster_ip.and_then(|ip| ip.parse().ok()),
        selector: spec.selector.unwrap_or_default(),
    }))
}

/// A pod that is there, ready and not about to go.
async fn serving(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
    late: Instant,
) -> Result<Pod, String> {
    let pod = timeout_at(late, cluster.read::<Pod>(namespace, name)).await;
    let pod = pod.map_err(|_| too_late(&format!("pod {name}")))?;
    let pod = pod
        .map_err(|refusal| refusal.to_string())?
        .ok_or_else(|| format!("there is no pod {name} in namespace {namespace}"))?;
    if pod.metadata.deletion_timestamp.is_some() {
        return Err(format!("pod {name} is being deleted"));
    }
    if Replica::of(&pod).is_some() {
        return Ok(pod);
    }
    let status = pod.status.unwrap_or_default();
    let conditions = status.conditions.unwrap_or_default();
    let ready = conditions
        .into_iter()
        .find(|condition| condition.type_ == "Ready");
    let why = ready.and_then(|condition| condition.message.or(condition.reason));
    Err(format!(
        "pod {name} is not ready: {}",
        why.or(status.phase)
            .unwrap_or_else(|| "it has no status yet".to_owned())
    ))
}

fn ip(pod: &Pod) -> Option<IpAddr> {
    pod.status.as_ref()?.pod_ip.as_deref()?.parse().ok()
}

fn too_late(what: &str) -> String {
    format!("the API server did not show {what} before --timeout was over")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> BTreeMap<String, String> {
        let pairs = text
            .split_whitespace()
            .filter_map(|pair| pair.split_once('='));
        pairs
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }

    #[test]
    fn a_service_takes_the_pods_that_have_all_its_labels() {
        for (selector, labels, takes) in [
            ("app=orders", "app=orders tier=web", true),
            ("app=orders tier=web", "app=orders", false),
            ("app=orders", "app=pr-test", false),
            ("", "app=orders", false),
        ] {
            let front = Front {
                ip: None,
                selector: pairs(selector),
            };
            assert_eq!(front.takes(&pairs(labels)), takes, "{selector} {labels}");
        }
    }
}
