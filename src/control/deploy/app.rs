//! One app of a pull request, from nothing to a live intercept.

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodTemplateSpec, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use tokio::time::{Instant, sleep};

use super::backend;
use super::join::Shared;
use super::order::Change;
use super::placeholder::Placeholder;
use super::pr_pod::Wanted;
use super::progress::Voice;
use super::routing::{Proofs, Routing};
use super::undo::Made;
use super::wait::{PULSE, Standing, Wait};
use crate::control::cluster::{Cluster, Draft, Kind, Name};
use crate::control::intercept::{Backend, BackendName, Intercept};
use crate::control::objects::pr_pod::PrPod;
use crate::control::objects::proxy::Proxy;
use crate::control::objects::selection;
use crate::control::workload::Workload;

/// An app whose target was read, and everything that is to be made for it.
pub(super) struct Planned<'o> {
    change: Change<'o>,
    intercept: Intercept,
    workload: Workload,
    pr_pod: Draft,
    /// In the order in which they need each other, without owners.
    shared: Vec<Draft>,
    voice: Voice,
}

impl<'o> Planned<'o> {
    /// Reads the target and sees that nothing else would be harmed. Changes nothing.
    ///
    /// # Errors
    /// There is no such target, it has no pods, or somebody would take the PR pod for one of the baseline's.
    pub(super) async fn read(cluster: &Cluster, change: Change<'o>) -> anyhow::Result<Self> {
        let workload = Workload::read(cluster, change.namespace(), &change.app.target).await?;
        if workload.replicas == 0 {
            bail!(
                "{} is scaled to 0: there is nothing to intercept",
                workload.target
            );
        }
        let backend = backend::of(cluster, &change, &workload).await?;
        let planned = Self::made_from(change, workload, backend);
        planned.check_claimants(cluster).await?;
        Ok(planned)
    }

    /// As [`Planned::read`], where there is no cluster to read from: the target's template is made up.
    pub(super) fn unread(change: Change<'o>) -> Self {
        let container = Container {
            name: change.app.name.clone(),
            ..Container::default()
        };
        let template = PodTemplateSpec {
            spec: Some(PodSpec {
                containers: vec![container],
                ..PodSpec::default()
            }),
            ..PodTemplateSpec::default()
        };
        let workload = Workload {
            namespace: change.namespace().to_owned(),
            target: change.app.target.clone(),
            template,
            replicas: 1,
            selector: None,
        };
        let backend = backend::unread(&change);
        Self::made_from(change, workload, backend)
    }

    fn made_from(change: Change<'o>, workload: Workload, backend: Backend) -> Self {
        let order = change.order;
        let voice = Voice::of(&change.app.name);
        let made = PrPod {
            stack: &order.pull_request.stack.name,
            app: change.app,
            namespace: change.namespace(),
            session: change.session(),
            image: change.image,
            template: &workload.template,
            pipeline_run: order.pipeline_run.as_deref(),
            expires_at: order.expires_at,
        };
        let made = made.pod();
        for note in made.notes {
            voice.say(note);
        }
        let intercept = change.intercept(backend);
        Self {
            pr_pod: Draft::new(Kind::Pod, change.namespace(), &made.pod),
            shared: shared(change, &intercept, &workload),
            change,
            intercept,
            workload,
            voice,
        }
    }

    /// Nobody may take the PR pod for one of the baseline's.
    async fn check_claimants(&self, cluster: &Cluster) -> anyhow::Result<()> {
        let services: Vec<Service> = cluster.list(&self.workload.namespace, "").await?;
        let target = self.workload.target.to_string();
        let workloads: Vec<_> = self
            .workload
            .selector
            .iter()
            .map(|selector| selection::Workload {
                name: &target,
                selector,
            })
            .collect();
        let pod = Pod {
            metadata: self.pr_pod.object.metadata.clone(),
            ..Pod::default()
        };
        let claimants = selection::claimants(&pod, &services, &workloads);
        if !claimants.is_empty() {
            bail!(claimants.join("\n"));
        }
        Ok(())
    }

    pub(super) fn app(&self) -> &'o str {
        &self.change.app.name
    }

    pub(super) fn pr_pod(&self) -> &str {
        &self.pr_pod.name.name
    }

    pub(super) fn voice(&self) -> &Voice {
        &self.voice
    }

    /// Everything that would be made.
    pub(super) fn drafts(&self) -> impl Iterator<Item = &Draft> {
        [&self.pr_pod].into_iter().chain(&self.shared)
    }

    /// Makes or joins everything, and returns when the intercept is proven live.
    ///
    /// # Errors
    /// Why it is not.
    pub(super) async fn bring_up(&self, cluster: &Cluster, made: &Made) -> anyhow::Result<()> {
        let placeholder = Placeholder::of(&self.pr_pod, &self.shared, cluster, &self.voice, made);
        let wanted = Wanted {
            cluster,
            voice: &self.voice,
            made,
            draft: &self.pr_pod,
            placeholder: &placeholder,
        };
        let owner = wanted.bring_about().await?;
        self.wait_for_pr_pod(cluster, &owner).await?;
        let shared = Shared {
            cluster,
            voice: &self.voice,
            made,
            intercept: &self.intercept,
            session: self.change.session(),
            owner: &owner,
            drafts: &self.shared,
        };
        // Until everything is found as it was left: the collector may have been at work.
        loop {
            let proxy = shared.hold().await?;
            // Somebody may have brought up the other one at the same moment.
            backend::check_others(cluster, &self.change).await?;
            placeholder.leaves().await?;
            let is_live = self.wait_for_proxy(cluster, &proxy).await?
                && self.prove(cluster, &shared, &proxy).await?
                && shared.still_holds(&proxy).await?;
            if is_live {
                return Ok(());
            }
            self.voice
                .say("the proxy, or something of it, went away meanwhile; beginning again with it");
            if Instant::now() >= cluster.deadline() {
                bail!("the proxy went away, and there is no time left to begin again");
            }
        }
    }

    async fn wait_for_pr_pod(
        &self,
        cluster: &Cluster,
        owner: &OwnerReference,
    ) -> anyhow::Result<()> {
        let wait = Wait {
            cluster,
            voice: &self.voice,
            pod: &self.pr_pod.name,
            uid: &owner.uid,
            role: "PR pod",
            has_targets: false,
        };
        match wait.until_ready().await? {
            Standing::Ready(ip) => {
                let name = self.pr_pod();
                self.voice.done(format_args!("PR pod ready ({name}, {ip})"));
                Ok(())
            }
            Standing::Lost => bail!(
                "PR pod {} was deleted by somebody else meanwhile",
                self.pr_pod()
            ),
        }
    }

    /// Whether it is still there when it is ready.
    async fn wait_for_proxy(&self, cluster: &Cluster, uid: &str) -> anyhow::Result<bool> {
        let pod = self.proxy();
        let wait = Wait {
            cluster,
            voice: &self.voice,
            pod,
            uid,
            role: "proxy pod",
            has_targets: true,
        };
        match wait.until_ready().await? {
            Standing::Ready(ip) => {
                self.voice
                    .done(format_args!("proxy pod ready ({}, {ip})", pod.name));
                Ok(true)
            }
            Standing::Lost => Ok(false),
        }
    }

    fn proxy(&self) -> &Name {
        let pod = self.shared.last().expect("the proxy pod is always wanted");
        &pod.name
    }

    /// Whether every ready replica is proven, and the proxy pod is still there.
    async fn prove(
        &self,
        cluster: &Cluster,
        shared: &Shared<'_>,
        proxy: &str,
    ) -> anyhow::Result<bool> {
        let is_shared = self.change.order.backend == BackendName::Telepresence;
        let shared_proxy = is_shared.then(|| self.workload.target.to_string());
        let header = self.change.order.pull_request.header.parse();
        let routing = Routing {
            header: header.context("the session header is no header")?,
            session: self.change.session(),
            ports: &self.intercept.ports,
            shared_proxy: shared_proxy.as_deref(),
        };
        let mut proofs = Proofs::default();
        loop {
            let replicas = self.workload.replicas(cluster).await?;
            routing.ask(&replicas, &mut proofs).await;
            if proofs.cover(&replicas) && self.workload.replicas(cluster).await? == replicas {
                let names: Vec<_> = replicas.iter().map(|replica| &*replica.name).collect();
                self.voice
                    .done(format_args!("intercept live on {}", names.join(", ")));
                return Ok(true);
            }
            let missing = if replicas.is_empty() {
                format!("{} has no ready replica", self.workload.target)
            } else {
                proofs.missing()
            };
            if Instant::now() >= cluster.deadline() {
                bail!(
                    "the intercept is not live: {missing}\nthis command asks pods at their own addresses, so it must run where it can reach them"
                );
            }
            if !shared.still_holds(proxy).await? {
                return Ok(false);
            }
            self.voice
                .waits_for(format_args!("the intercept to be live: {missing}"));
            sleep(PULSE).await;
        }
    }
}

/// The proxy of an app and what belongs to it.
fn shared(change: Change<'_>, intercept: &Intercept, workload: &Workload) -> Vec<Draft> {
    let namespace = change.namespace();
    let spec = workload.template.spec.as_ref();
    let pull_secrets = spec.and_then(|spec| spec.image_pull_secrets.as_deref());
    let proxy = Proxy {
        stack: &change.order.pull_request.stack.name,
        intercept,
        image: &change.order.proxy_image,
        pull_secrets: pull_secrets.unwrap_or_default(),
        service_account: change.order.service_account.as_deref(),
        may_delete_targets: false,
        owners: &[],
    };
    let mut drafts = Vec::new();
    if change.order.service_account.is_none() {
        drafts.extend([
            Draft::new(Kind::ServiceAccount, namespace, &proxy.service_account()),
            Draft::new(Kind::Role, namespace, &proxy.role()),
            Draft::new(Kind::RoleBinding, namespace, &proxy.role_binding()),
        ]);
    }
    drafts.extend([
        Draft::new(Kind::ConfigMap, namespace, &proxy.config_map()),
        Draft::new(Kind::Pod, namespace, &proxy.pod()),
    ]);
    drafts
}
