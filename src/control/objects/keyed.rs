//! Lists that server-side apply takes for maps, and refuses when a key comes twice. A template that came
//! into the cluster another way may have such lists.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, HostAlias, PodSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::containers;

/// Makes each key come once, without a change of what the list means to the kubelet.
pub(super) fn once(spec: &mut PodSpec) {
    for container in containers(spec) {
        variables(container);
        ports(container);
    }
    if let Some(secrets) = &mut spec.image_pull_secrets {
        let mut seen = BTreeSet::new();
        secrets.retain(|secret| seen.insert(secret.name.clone()));
    }
    if let Some(aliases) = &mut spec.host_aliases {
        *aliases = merged(std::mem::take(aliases));
    }
}

/// The last of a name holds.
fn variables(container: &mut Container) {
    let Some(variables) = &mut container.env else {
        return;
    };
    let mut seen = BTreeSet::new();
    variables.reverse();
    variables.retain(|variable| seen.insert(variable.name.clone()));
    variables.reverse();
}

/// A port that has two names keeps the first; whatever was said by the other is said by its number.
fn ports(container: &mut Container) {
    let Some(ports) = &mut container.ports else {
        return;
    };
    let mut seen = BTreeSet::new();
    let mut numbers = BTreeMap::new();
    ports.retain(|port| {
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
        let is_first = seen.insert((port.container_port, protocol));
        if let (false, Some(name)) = (is_first, &port.name) {
            numbers.insert(name.clone(), port.container_port);
        }
        is_first
    });
    for port in named_ports(container) {
        if let IntOrString::String(name) = port
            && let Some(number) = numbers.get(name)
        {
            *port = IntOrString::Int(*number);
        }
    }
}

/// Wherever a container speaks of a port that may have a name.
fn named_ports(container: &mut Container) -> impl Iterator<Item = &mut IntOrString> {
    let probes = [
        container.startup_probe.as_mut(),
        container.readiness_probe.as_mut(),
        container.liveness_probe.as_mut(),
    ];
    let probes = probes.into_iter().flatten();
    let probed = probes.map(|probe| (probe.http_get.as_mut(), probe.tcp_socket.as_mut()));
    let hooks = container
        .lifecycle
        .as_mut()
        .map(|lifecycle| [lifecycle.post_start.as_mut(), lifecycle.pre_stop.as_mut()]);
    let hooks = hooks.into_iter().flatten().flatten();
    let hooked = hooks.map(|hook| (hook.http_get.as_mut(), hook.tcp_socket.as_mut()));
    probed.chain(hooked).flat_map(|(http, tcp)| {
        let http = http.map(|action| &mut action.port);
        let tcp = tcp.map(|action| &mut action.port);
        http.into_iter().chain(tcp)
    })
}

/// The names of one address, in one place.
fn merged(aliases: Vec<HostAlias>) -> Vec<HostAlias> {
    let mut merged: Vec<HostAlias> = Vec::new();
    for alias in aliases {
        match merged.iter_mut().find(|other| other.ip == alias.ip) {
            Some(other) => other
                .hostnames
                .get_or_insert_default()
                .extend(alias.hostnames.into_iter().flatten()),
            None => merged.push(alias),
        }
    }
    merged
}
