//! The container that is the app: which one of a pod it is, and how it becomes a pull request's.

use k8s_openapi::api::core::v1::{Container, ContainerPort, PodSpec};

use crate::control::stack::{App, Port};

/// The container that serves the app: the one that declares one of its ports (the first of `ports` that
/// any container declares), else the one that has the app's name, else the first. `None` for a spec
/// without containers, which no cluster accepts.
pub fn of_app<'s>(spec: &'s PodSpec, app: &str, ports: &[u16]) -> Option<&'s Container> {
    spec.containers.get(place_of_app(spec, app, ports))
}

fn place_of_app(spec: &PodSpec, app: &str, ports: &[u16]) -> usize {
    let declares = |container: &Container, port: u16| {
        let mut declared = container.ports.iter().flatten();
        declared.any(|declared| declared.container_port == i32::from(port))
    };
    let mut containers = spec.containers.iter();
    let by_port = ports.iter().find_map(|port| {
        let mut containers = spec.containers.iter();
        containers.position(|container| declares(container, *port))
    });
    by_port
        .or_else(|| containers.position(|container| container.name == app))
        .unwrap_or(0)
}

/// Puts the built image into the app's container, and leaves out what belonged to the baseline's image.
pub(super) fn rebuild(spec: &mut PodSpec, app: &App, image: &str, notes: &mut Vec<String>) {
    let ports: Vec<_> = app.ports.iter().map(|port| port.container_port).collect();
    let undeclared = undeclared(spec, &app.ports);
    let place = place_of_app(spec, &app.name, &ports);
    let Some(container) = spec.containers.get_mut(place) else {
        return;
    };
    let baseline_image = container.image.replace(image.to_owned());
    // The cluster's default: what the template says suits its own image.
    container.image_pull_policy = None;
    start_by_itself(container, notes);
    if !undeclared.is_empty() {
        let ports = container.ports.get_or_insert_default();
        ports.extend(undeclared);
    }
    if container.readiness_probe.is_none() {
        notes.push(format!(
            "container {} has no readiness probe: the PR pod counts as ready once it has started",
            container.name
        ));
    }
    let chosen = container.name.clone();
    note_others(spec, &chosen, &app.name, baseline_image.as_deref(), notes);
}

/// Containers beside the app's that one might take for it.
fn note_others(
    spec: &PodSpec,
    chosen: &str,
    app: &str,
    baseline_image: Option<&str>,
    notes: &mut Vec<String>,
) {
    let first = spec.init_containers.iter().flatten();
    let others = first.chain(&spec.containers);
    for other in others.filter(|other| other.name != chosen) {
        if other.image.as_deref() == baseline_image {
            notes.push(format!(
                "container {} runs the baseline's image, not the built one",
                other.name
            ));
        }
        if other.name == app {
            notes.push(format!(
                "container {chosen} is the one that runs the built image, because it serves the app's port, and not the one named {app}"
            ));
        }
    }
}

/// The image starts as it was built to start: a command, its arguments and its folder may belong to
/// another image.
fn start_by_itself(container: &mut Container, notes: &mut Vec<String>) {
    let left_out = [
        container.command.take().map(|_| "command"),
        container.args.take().map(|_| "args"),
        container.working_dir.take().map(|_| "workingDir"),
    ];
    let left_out: Vec<_> = left_out.into_iter().flatten().collect();
    if !left_out.is_empty() {
        notes.push(format!(
            "container {} starts with the built image's own entrypoint, without the template's {}",
            container.name,
            left_out.join(", ")
        ));
    }
}

/// The app's ports that no container declares. A declaration opens nothing; it tells people.
fn undeclared(spec: &PodSpec, ports: &[Port]) -> Vec<ContainerPort> {
    let containers = spec.containers.iter();
    let declared: Vec<_> = containers
        .flat_map(|container| container.ports.iter().flatten())
        .map(|port| port.container_port)
        .collect();
    let ports = ports.iter().map(|port| i32::from(port.container_port));
    ports
        .filter(|port| !declared.contains(port))
        .map(|port| ContainerPort {
            container_port: port,
            ..ContainerPort::default()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    #[test]
    fn the_app_is_who_serves_its_port_then_who_has_its_name_then_who_comes_first() {
        let a = |ports: &[u16]| json!({"name": "a", "ports": declared(ports)});
        let b = |ports: &[u16]| json!({"name": "b", "ports": declared(ports)});
        let orders = |ports: &[u16]| json!({"name": "orders", "ports": declared(ports)});
        let table = [
            (vec![a(&[])], Some("a")),
            (vec![a(&[]), b(&[])], Some("a")),
            (vec![a(&[]), orders(&[])], Some("orders")),
            (vec![a(&[5432]), orders(&[])], Some("orders")),
            (vec![a(&[5432]), b(&[5432, 8080])], Some("b")),
            (vec![a(&[]), b(&[8080]), orders(&[9090])], Some("b")),
            // Both ports of the app are served: the first one's server is the app.
            (vec![a(&[9000]), b(&[8080])], Some("b")),
            (vec![a(&[]), b(&[9000])], Some("b")),
            (vec![a(&[8080]), b(&[8080])], Some("a")),
            (vec![], None),
        ];

        for (containers, expected) in table {
            let case = format!("{containers:?}");
            let spec: PodSpec = from_value(json!({"containers": containers})).unwrap();
            let container = of_app(&spec, "orders", &[8080, 9000]);
            assert_eq!(container.map(|c| &*c.name), expected, "{case}");
        }
    }

    fn declared(ports: &[u16]) -> Value {
        ports
            .iter()
            .map(|port| json!({"containerPort": port}))
            .collect()
    }
}
