//! What Telepresence does to an app: which of its Services lead to which ports, and where its agent
//! takes their requests.
//!
//! The agent is a container of its own in each of the workload's pods. Where a Service leads to a port by
//! the port's name, the agent gets that name for a port of its own and the app's port another name: the
//! Service leads to the agent from then on, and the app's own port stays what it was. That port is the
//! way back to the app that is never intercepted. Where a Service leads to a port by its number, or has no
//! address of its own, rules of the kernel bend every connection to the app's port, and there is no such way.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, PodSpec, PodTemplateSpec, Service, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use super::intercept::{Port, ServicePort};

/// The agent's container.
const AGENT: &str = "traffic-agent";

/// The container that lays the rules of the kernel.
const AGENT_INIT: &str = "tel-agent-init";

/// What the agent puts before the name of a port that it takes over.
const HIDDEN: &str = "tm-";

/// No name of a port is longer.
const LONGEST_NAME: usize = 15;

/// The first of the agent's own ports, unless the traffic manager was told another.
const AGENT_PORT: i32 = 9900;

/// The ports of a pod's agent, by the app's ports that they stand for; empty without an agent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AgentPorts(BTreeMap<u16, u16>);

impl AgentPorts {
    /// Reads them off the names.
    pub fn of(spec: &PodSpec) -> Self {
        let Some(agent) = spec.containers.iter().find(|it| it.name == AGENT) else {
            return Self::default();
        };
        let ports = agent.ports.iter().flatten().filter_map(|own| {
            let hidden = hidden(own.name.as_deref()?);
            let others = spec.containers.iter().filter(|it| it.name != AGENT);
            let mut apps = others.flat_map(|container| container.ports.iter().flatten());
            let app = apps.find(|port| port.name.as_deref() == Some(&*hidden))?;
            let number = |port: i32| u16::try_from(port).ok();
            Some((number(app.container_port)?, number(own.container_port)?))
        });
        Self(ports.collect())
    }

    /// The agent's port that stands for a port of the app.
    pub fn door(&self, port: u16) -> Option<u16> {
        self.0.get(&port).copied()
    }
}

/// Whether connections to the app's own ports are bent to the agent.
pub fn is_bent(spec: &PodSpec) -> bool {
    let mut containers = spec.init_containers.iter().flatten();
    containers.any(|container| container.name == AGENT_INIT)
}

fn hidden(name: &str) -> String {
    let hidden = HIDDEN.chars().chain(name.chars());
    hidden.take(LONGEST_NAME).collect()
}

/// The Services by which each of an app's ports is intercepted, in the same order.
///
/// # Errors
/// Why they cannot be, and what to do about it, in words for people.
pub fn services(
    template: &PodTemplateSpec,
    services: &[Service],
    ports: &[Port],
) -> Result<Vec<ServicePort>, String> {
    let Some(spec) = &template.spec else {
        return Err("the workload's pods have no containers".to_owned());
    };
    let mut fronts: Vec<_> = services
        .iter()
        .filter(|service| leads_to(service, template))
        .collect();
    fronts.sort_by_key(|service| service.name_any());
    for service in &fronts {
        check_service(service)?;
    }
    check_agent_port(spec)?;
    let found: Vec<_> = ports
        .iter()
        .map(|port| service_of(spec, &fronts, port.container_port))
        .collect::<Result<_, _>>()?;
    Ok(found)
}

fn leads_to(service: &Service, template: &PodTemplateSpec) -> bool {
    let labels = template
        .metadata
        .as_ref()
        .and_then(|metadata| metadata.labels.as_ref());
    let selector = spec_of(service).and_then(|spec| spec.selector.as_ref());
    let (Some(labels), Some(selector)) = (labels, selector) else {
        return false;
    };
    !selector.is_empty()
        && selector
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
}

fn spec_of(service: &Service) -> Option<&ServiceSpec> {
    service.spec.as_ref()
}

/// One Service that needs rules of the kernel has them laid for all ports of the pods.
fn check_service(service: &Service) -> Result<(), String> {
    let name = service.name_any();
    let ports = spec_of(service).and_then(|spec| spec.ports.as_deref());
    let by_number = ports
        .unwrap_or_default()
        .iter()
        .find(|port| !matches!(port.target_port, Some(IntOrString::String(_))));
    let why = if spec_of(service).is_some_and(|spec| spec.cluster_ip.as_deref() == Some("None")) {
        "is headless".to_owned()
    } else if let Some(port) = by_number {
        format!("leads its port {} to a port by number", port.port)
    } else {
        return Ok(());
    };
    Err(format!(
        "Service {name} {why}: Telepresence then takes every connection to the app, also those of the proxy that \
         lead back to it; give the container's port a name and let every Service of the app have a ClusterIP and \
         that name as its targetPort, or use --backend mirrord"
    ))
}

fn check_agent_port(spec: &PodSpec) -> Result<(), String> {
    let own = spec.containers.iter().filter(|it| it.name != AGENT);
    let taken = own
        .flat_map(|container| container.ports.iter().flatten())
        .any(|port| port.container_port == AGENT_PORT);
    if taken {
        return Err(format!(
            "the app has port {AGENT_PORT}, which is Telepresence's agent's; give the app, or the agent (agent.port of \
             the traffic manager's chart), another one"
        ));
    }
    Ok(())
}

fn service_of(
    spec: &PodSpec,
    fronts: &[&Service],
    container_port: u16,
) -> Result<ServicePort, String> {
    let names = names_of(spec, container_port);
    let found = fronts.iter().find_map(|service| {
        let ports = spec_of(service)?.ports.as_deref()?;
        let port = ports.iter().find(|port| match &port.target_port {
            Some(IntOrString::String(name)) => names.contains(name.as_str()),
            _ => false,
        })?;
        let number = || port.port.to_string();
        Some(ServicePort {
            service: service.name_any(),
            port: port.name.clone().unwrap_or_else(number),
        })
    });
    found.ok_or_else(|| {
        format!(
            "no Service leads to port {container_port} of the app by the port's name, and Telepresence takes requests \
             where a Service leads them; give the container's port a name and let the Service's targetPort be that \
             name, or use --backend mirrord"
        )
    })
}

/// The names of a container's port.
fn names_of(spec: &PodSpec, container_port: u16) -> BTreeSet<&str> {
    let own = |container: &&Container| container.name != AGENT;
    let ports = spec.containers.iter().filter(own);
    ports
        .flat_map(|container| container.ports.iter().flatten())
        .filter(|port| port.container_port == i32::from(container_port))
        .filter_map(|port| port.name.as_deref())
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;
    use crate::control::intercept::AppProtocol;

    fn template() -> PodTemplateSpec {
        from_value(json!({
            "metadata": { "labels": { "app": "orders", "tier": "api" } },
            "spec": { "containers": [
                { "name": "mesh", "ports": [{ "name": "mesh", "containerPort": 15000 }] },
                { "name": "orders", "ports": [
                    { "name": "http", "containerPort": 8080 },
                    { "name": "grpc", "containerPort": 9090 },
                    { "containerPort": 7070 },
                ] },
            ] },
        }))
        .unwrap()
    }

    fn service(name: &str, selector: &Value, more: &Value) -> Service {
        let mut service = json!({
            "metadata": { "name": name },
            "spec": { "clusterIP": "10.0.0.1", "selector": selector, "ports": [
                { "name": "web", "port": 80, "targetPort": "http" },
                { "port": 90, "targetPort": "grpc" },
            ] },
        });
        for (key, value) in more.as_object().unwrap() {
            service["spec"][key] = value.clone();
        }
        from_value(service).unwrap()
    }

    fn found(all: &[Service], ports: &[u16]) -> Result<Vec<(String, String)>, String> {
        let ports: Vec<_> = ports
            .iter()
            .map(|&container_port| Port {
                container_port,
                protocol: AppProtocol::Http,
            })
            .collect();
        let found = services(&template(), all, &ports)?;
        Ok(found.into_iter().map(|it| (it.service, it.port)).collect())
    }

    #[test]
    fn a_port_is_taken_by_the_service_that_leads_to_its_name() {
        let ours = json!({ "app": "orders" });
        let others = json!({ "app": "carts" });
        let all = [
            service("carts", &others, &json!({ "clusterIP": "None" })),
            service("orders", &ours, &json!({})),
            service("orders-old", &ours, &json!({})),
            service("nobody", &json!({}), &json!({ "clusterIP": "None" })),
        ];

        let pair = |service: &str, port: &str| (service.to_owned(), port.to_owned());
        assert_eq!(
            found(&all, &[8080, 9090]),
            Ok(vec![pair("orders", "web"), pair("orders", "90")])
        );
    }

    #[test]
    fn what_cannot_be_sent_back_is_refused_with_what_to_do() {
        let ours = json!({ "app": "orders" });
        let by_number = json!({ "ports": [{ "port": 80, "targetPort": 8080 }] });
        let good = service("orders", &ours, &json!({}));
        for (all, ports, expected) in [
            (
                vec![good.clone(), service("raw", &ours, &by_number)],
                vec![8080],
                "Service raw leads its port 80 to a port by number",
            ),
            (
                vec![
                    good.clone(),
                    service("peers", &ours, &json!({ "clusterIP": "None" })),
                ],
                vec![8080],
                "Service peers is headless",
            ),
            (vec![], vec![8080], "no Service leads to port 8080"),
            (
                vec![good],
                vec![8080, 7070],
                "no Service leads to port 7070",
            ),
        ] {
            let why = found(&all, &ports).unwrap_err();
            assert!(why.starts_with(expected), "{why}");
            assert!(why.contains("--backend mirrord"), "{why}");
        }
    }

    #[test]
    fn an_app_may_not_have_the_agents_own_port() {
        let mut template = template();
        template.spec.as_mut().unwrap().containers[0].ports =
            from_value(json!([{ "containerPort": 9900 }])).unwrap();

        let why = services(&template, &[], &[]).unwrap_err();

        assert!(why.contains("port 9900"), "{why}");
    }

    #[test]
    fn an_agent_stands_for_the_ports_whose_names_it_took() {
        let spec: PodSpec = from_value(json!({ "containers": [
            { "name": "orders", "ports": [
                { "name": "tm-http", "containerPort": 8080 },
                { "name": "tm-a-name-that-", "containerPort": 9090 },
                { "name": "admin", "containerPort": 9901 },
            ] },
            { "name": "traffic-agent", "ports": [
                { "name": "http", "containerPort": 9900 },
                { "name": "a-name-that-is-", "containerPort": 9902 },
            ] },
        ] }))
        .unwrap();
        let ports = AgentPorts::of(&spec);

        assert_eq!(ports.door(8080), Some(9900));
        assert_eq!(ports.door(9090), Some(9902));
        assert_eq!(ports.door(9901), None);
        let bare = template().spec.unwrap();
        assert_eq!(AgentPorts::of(&bare), AgentPorts::default());
        assert!(!is_bent(&bare));
        let bent = json!({ "containers": [], "initContainers": [{ "name": "tel-agent-init" }] });
        assert!(is_bent(&from_value(bent).unwrap()));
    }
}
