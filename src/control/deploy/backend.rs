//! Which backend takes an app's requests: one at a time, and what it needs to know of the app.

use anyhow::bail;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::ResourceExt;

use super::order::Change;
use super::progress::Voice;
use crate::control::cluster::Cluster;
use crate::control::intercept::{Backend, BackendName, ServicePort, TargetKind, Telepresence};
use crate::control::objects::labels;
use crate::control::telepresence;
use crate::control::workload::Workload;

/// What the wanted backend is to do with this app.
///
/// # Errors
/// The app is in the hands of another one, or cannot be in those of this one.
pub(super) async fn of(
    cluster: &Cluster,
    change: &Change<'_>,
    workload: &Workload,
) -> anyhow::Result<Backend> {
    check_others(cluster, change).await?;
    if change.order.backend == BackendName::Mirrord {
        return Ok(Backend::Mirrord);
    }
    if workload.target.kind == TargetKind::Pod {
        bail!(
            "{} is a bare pod, and Telepresence takes the requests of workloads only; name one, or use --backend mirrord",
            workload.target
        );
    }
    let services: Vec<Service> = cluster.list(change.namespace(), "").await?;
    let found = telepresence::services(&workload.template, &services, &change.ports());
    let services = found.map_err(anyhow::Error::msg)?;
    let replicas = workload.replicas(cluster).await?;
    let has_agent = |port: u16| replicas.iter().all(|it| it.door(port).port() != port);
    if !change
        .ports()
        .iter()
        .all(|port| has_agent(port.container_port))
    {
        Voice::of(&change.app.name).say(format_args!(
            "the pods of {} are made anew, once, with Telepresence's agent in them",
            workload.target
        ));
    }
    Ok(telepresence(change, services))
}

/// The same where there is no cluster to read from: a Service as the stack has it.
pub(super) fn unread(change: &Change<'_>) -> Backend {
    match change.order.backend {
        BackendName::Mirrord => Backend::Mirrord,
        BackendName::Telepresence => {
            let ports = change.app.ports.iter().map(|port| ServicePort {
                service: change.app.name.clone(),
                port: port.service_port.to_string(),
            });
            telepresence(change, ports.collect())
        }
    }
}

fn telepresence(change: &Change<'_>, services: Vec<ServicePort>) -> Backend {
    Backend::Telepresence(Telepresence {
        manager_namespace: change.order.manager_namespace.clone(),
        services,
    })
}

/// Two of them on one app would take the requests from each other.
///
/// # Errors
/// Another backend's proxy pod is there.
pub(super) async fn check_others(cluster: &Cluster, change: &Change<'_>) -> anyhow::Result<()> {
    let (app, namespace) = (&change.app.name, change.namespace());
    let wanted = change.order.backend;
    for other in BackendName::ALL.into_iter().filter(|it| *it != wanted) {
        let name = other.proxy_name(app);
        let pod: Option<Pod> = cluster.read(namespace, &name).await?;
        let is_there = pod.is_some_and(|pod| {
            pod.labels().get(labels::APP) == Some(app) && pod.metadata.deletion_timestamp.is_none()
        });
        if is_there {
            bail!(
                "{app} is intercepted by {} already (pod {name} in namespace {namespace}), and one backend at a time \
                 can be; deploy with --backend {}, or wait until the sessions that use it have ended",
                other.word(),
                other.word()
            );
        }
    }
    Ok(())
}
