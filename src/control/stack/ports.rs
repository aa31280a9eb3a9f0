//! The ports of an app, one or a list of them.

use std::collections::HashSet;

use super::notes::{Fields, Notes};
use super::{Defaults, Port};
use crate::control::intercept::AppProtocol;
use crate::yaml::{Content, Node, shortened};

/// Where an app listens when nobody says so.
const CONTAINER_PORT: u16 = 8080;

/// Where its Service listens when nobody says so.
const SERVICE_PORT: u16 = 80;

/// The ports of an app; at least one when nothing was noted.
pub(super) fn read(app: &Fields<'_, '_>, defaults: &Defaults, notes: &mut Notes) -> Vec<Port> {
    let Some(list) = app.find("ports") else {
        return vec![alone(app, defaults, notes)];
    };
    for key in ["container-port", "service-port"] {
        if let Some(node) = app.find(key) {
            notes.add(node, app.at(key), || {
                format!("{key} stands beside ports; write all ports there")
            });
        }
    }
    let items = app.list("ports", notes);
    if matches!(&list.content, Content::List(items) if items.is_empty()) {
        notes.add(list, app.at("ports"), || {
            "an app needs a port; leave ports out for the usual one".to_owned()
        });
    }
    several(items, &app.at("ports"), notes)
}

fn alone(app: &Fields<'_, '_>, defaults: &Defaults, notes: &mut Notes) -> Port {
    let container_port = app.read("container-port", notes, number);
    let service_port = app.read("service-port", notes, number);
    Port {
        container_port: container_port
            .or(defaults.container_port)
            .unwrap_or(CONTAINER_PORT),
        service_port: service_port
            .or(defaults.service_port)
            .unwrap_or(SERVICE_PORT),
        protocol: AppProtocol::Http,
    }
}

fn several(items: &[Node<'_>], path: &str, notes: &mut Notes) -> Vec<Port> {
    let mut ports = Vec::with_capacity(items.len());
    let (mut container_ports, mut service_ports) = (HashSet::new(), HashSet::new());
    for (index, node) in items.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let Some(port) = one_of_several(node, path.clone(), notes) else {
            continue;
        };
        if !container_ports.insert(port.container_port) {
            notes.add(node, path, || {
                format!("container port {} is written twice", port.container_port)
            });
        } else if !service_ports.insert(port.service_port) {
            notes.add(node, path, || {
                format!(
                    "service port {} is taken by another port; write another service-port",
                    port.service_port
                )
            });
        }
        ports.push(port);
    }
    ports
}

/// Of several ports each has a number of its own, so that the stack's defaults say nothing here.
fn one_of_several(node: &Node<'_>, path: String, notes: &mut Notes) -> Option<Port> {
    let known = ["container-port", "service-port", "protocol"];
    let fields = Fields::of(node, path, &known, notes);
    if fields.is_missing("container-port") {
        notes.add(node, fields.at("container-port"), || {
            "missing; write the port on which the app listens".to_owned()
        });
    }
    let container_port = fields.read("container-port", notes, number);
    let service_port = fields.read("service-port", notes, number);
    let protocol = fields.read("protocol", notes, protocol);
    Some(Port {
        container_port: container_port?,
        service_port: service_port.or(container_port)?,
        protocol: protocol.unwrap_or(AppProtocol::Http),
    })
}

/// A port as a number, or as the quoted text that pipelines like.
pub(super) fn number(text: &str) -> Result<u16, String> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    text.parse()
        .ok()
        .filter(|_| is_number)
        .ok_or_else(|| format!("{:?} is not a port; write 1 to 65535", shortened(text)))
}

fn protocol(text: &str) -> Result<AppProtocol, String> {
    match text {
        "http" => Ok(AppProtocol::Http),
        "grpc" => Ok(AppProtocol::Grpc),
        _ => Err(format!(
            "{:?} cannot be intercepted, because mirrord's filter reads plain HTTP and nothing else; write http or grpc, or leave this port out",
            shortened(text)
        )),
    }
}
