//! What of a baseline's pod template a PR pod inherits: everything, but for what belongs to being the
//! baseline, or to having been scheduled.
//!
//! A sidecar and an init container are inherited as they are, because an app may not start without the
//! database proxy beside it or the file that was fetched before it. So are the service account, the
//! security context, and whatever says where the pod may run.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Pod, PodSpec, PodTemplateSpec, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{Pairs, containers, keep, selection};

/// The cluster names the volume with a service account's token so, and mounts it everywhere.
const TOKEN_VOLUME: &str = "kube-api-access-";

/// The template that a living pod might have been made from: without what the cluster wrote into it.
pub fn of_pod(pod: &Pod) -> PodTemplateSpec {
    let mut spec = pod.spec.clone().unwrap_or_default();
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    // All made from the names of classes, which are inherited. The cluster refuses values that differ from
    // what it would make itself.
    spec.priority = None;
    spec.preemption_policy = None;
    spec.overhead = None;
    // Can only be added to a pod that runs.
    spec.ephemeral_containers = None;
    let mut tokens = BTreeSet::new();
    keep(&mut spec.volumes, |volume| {
        let is_token = volume.projected.is_some() && volume.name.starts_with(TOKEN_VOLUME);
        if is_token {
            tokens.insert(volume.name.clone());
        }
        // The claim of one replica of a StatefulSet, which must not write to it twice.
        let claim = volume.persistent_volume_claim.as_ref();
        let is_own =
            claim.is_some_and(|claim| claim.claim_name == format!("{}-{name}", volume.name));
        !is_token && !is_own
    });
    for container in containers(&mut spec) {
        keep(&mut container.volume_mounts, |mount| {
            !tokens.contains(&mount.name)
        });
    }
    PodTemplateSpec {
        // Those of a living pod tell what was done to it: its addresses, its injected sidecars.
        metadata: Some(ObjectMeta {
            labels: pod.metadata.labels.clone(),
            ..ObjectMeta::default()
        }),
        spec: Some(spec),
    }
}

/// The annotations that a PR pod inherits: they tell whoever watches pods what to inject or to collect.
pub(super) fn annotations(template: &PodTemplateSpec) -> Pairs {
    let annotations = template
        .metadata
        .as_ref()
        .and_then(|metadata| metadata.annotations.clone());
    let mut annotations = annotations.unwrap_or_default();
    // What kubectl did to the template: when it was restarted, what was applied. What Telepresence did to
    // it, or is to do with the baseline's pods: a PR pod is none of them.
    let foreign = ["kubectl.kubernetes.io/", "telepresence.getambassador.io/"];
    annotations.retain(|key, _| !foreign.iter().any(|domain| key.starts_with(domain)));
    annotations
}

/// The spec that a PR pod inherits, before its image is put in.
pub(super) fn inherited(template: &PodTemplateSpec, notes: &mut Vec<String>) -> PodSpec {
    let mut spec = template.spec.clone().unwrap_or_default();
    let metadata = template.metadata.as_ref();
    let labels = metadata.and_then(|metadata| metadata.labels.as_ref());
    leave_identity(&mut spec);
    leave_host_ports(&mut spec, notes);
    leave_readiness_gates(&mut spec, notes);
    leave_spreading(&mut spec, labels.unwrap_or(&Pairs::new()));
    name_shared_claims(&spec, notes);
    replace_missing_volumes(&mut spec, notes);
    spec.restart_policy = Some("Always".to_owned());
    spec
}

/// What one pod alone can be.
fn leave_identity(spec: &mut PodSpec) {
    spec.node_name = None;
    spec.hostname = None;
    spec.subdomain = None;
    spec.set_hostname_as_fqdn = None;
    spec.active_deadline_seconds = None;
}

/// A node has each port once, and the baseline has it.
fn leave_host_ports(spec: &mut PodSpec, notes: &mut Vec<String>) {
    let mut was_on_host = spec.host_network.take() == Some(true);
    for container in containers(spec) {
        for port in container.ports.iter_mut().flatten() {
            was_on_host |= port.host_port.take().is_some();
            port.host_ip = None;
        }
    }
    if was_on_host {
        notes.push("the PR pod has a network of its own, and no ports of its node".to_owned());
    }
}

/// They are opened by whoever watches a Service's endpoints, and a PR pod is nobody's endpoint.
fn leave_readiness_gates(spec: &mut PodSpec, notes: &mut Vec<String>) {
    for gate in spec.readiness_gates.take().into_iter().flatten() {
        notes.push(format!(
            "readiness gate {} is left out: nothing would open it for a PR pod",
            gate.condition_type
        ));
    }
}

/// Rules that keep the baseline's replicas apart would keep the PR pod off every node that has one. Those
/// about other apps stay.
fn leave_spreading(spec: &mut PodSpec, baseline: &Pairs) {
    let is_about_others = |selector: Option<&_>| {
        selector.is_some_and(|selector| !selection::matches(selector, baseline))
    };
    keep(&mut spec.topology_spread_constraints, |constraint| {
        is_about_others(constraint.label_selector.as_ref())
    });
    let affinity = spec.affinity.as_mut();
    let Some(rules) = affinity.and_then(|affinity| affinity.pod_anti_affinity.as_mut()) else {
        return;
    };
    keep(
        &mut rules.required_during_scheduling_ignored_during_execution,
        |term| is_about_others(term.label_selector.as_ref()),
    );
    keep(
        &mut rules.preferred_during_scheduling_ignored_during_execution,
        |term| is_about_others(term.pod_affinity_term.label_selector.as_ref()),
    );
}

/// What is shared with the baseline is worth knowing.
fn name_shared_claims(spec: &PodSpec, notes: &mut Vec<String>) {
    for volume in spec.volumes.iter().flatten() {
        if let Some(claim) = &volume.persistent_volume_claim {
            notes.push(format!(
                "volume {} is the baseline's claim {}: the PR pod sees and changes the same files, and cannot start where the claim admits one pod or one node only",
                volume.name, claim.claim_name
            ));
        }
    }
}

/// A StatefulSet's claims are no part of its template, so that their mounts would lead nowhere: they get
/// an empty folder. A device cannot be had so.
fn replace_missing_volumes(spec: &mut PodSpec, notes: &mut Vec<String>) {
    let volumes = spec.volumes.iter().flatten();
    let names: BTreeSet<_> = volumes.map(|volume| volume.name.clone()).collect();
    let is_missing = |name: &String| !names.contains(name);
    let mut missing = BTreeSet::new();
    for container in containers(spec) {
        let mounts = container.volume_mounts.iter().flatten();
        missing.extend(mounts.map(|mount| mount.name.clone()).filter(is_missing));
        let owner = &container.name;
        keep(&mut container.volume_devices, |device| {
            if is_missing(&device.name) {
                notes.push(format!(
                    "container {owner} has no device {}: each replica of the baseline claims its own",
                    device.device_path
                ));
            }
            !is_missing(&device.name)
        });
    }
    for name in missing {
        notes.push(format!(
            "volume {name} is an empty folder that goes with the PR pod: each replica of the baseline claims its own"
        ));
        spec.volumes.get_or_insert_default().push(Volume {
            name,
            empty_dir: Some(EmptyDirVolumeSource::default()),
            ..Volume::default()
        });
    }
}
