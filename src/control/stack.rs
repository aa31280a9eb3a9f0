//! The stack: apps, who calls whom, and how a session travels between them.
//!
//! Read once from a stack file, YAML or JSON, and believed from then on: names are DNS labels, every
//! callee exists, no way leads back to where it began, ports are ports, and whatever may be left out
//! is filled in.

mod calls;
mod graph;
pub(in crate::control) mod names;
mod notes;
mod ports;
mod reader;
#[cfg(test)]
mod tests;
mod values;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::intercept::{AppProtocol, Target, TargetKind};
use crate::config::{Place, Problem, reason};

/// A stack that makes sense.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stack {
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    pub propagation: Propagation,
    pub defaults: Defaults,
    /// In the order of the file; at least one.
    pub apps: Vec<App>,
    /// Places in `apps`, callers before callees.
    #[serde(skip)]
    order: Vec<usize>,
    /// Places in `apps`, the entry first.
    #[serde(skip)]
    chain: Vec<usize>,
}

/// How a request carries its session from app to app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Propagation {
    /// Lower case.
    pub header_name: String,
    /// Of the W3C baggage member; empty: baggage is not used.
    pub baggage_key: String,
    /// A word for people: nothing here depends on it.
    pub strategy: String,
}

/// What holds for apps that do not say otherwise. Already filled in where it does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Defaults {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_registry: Option<String>,
}

/// One app.
#[derive(Debug, Clone, PartialEq)]
pub struct App {
    pub name: String,
    pub repo: Option<String>,
    /// `frontend`, `middleware`, `persistence` or what else people call it.
    pub role: Option<String>,
    pub propagation_role: PropagationRole,
    /// Its own or the stack's default; `None`: the command's default.
    pub namespace: Option<String>,
    /// At least one.
    pub ports: Vec<Port>,
    /// Whose pods' requests are taken: `deployment/NAME` unless said otherwise.
    pub target: Target,
    pub context_dir: String,
    pub dockerfile: String,
    /// As it was written; `{}` when it was not.
    pub build: Value,
    /// Names of the apps it calls, each once, in the order of the file.
    pub downstream: Vec<String>,
    /// As it was written; `{}` when it was not.
    pub tests: Value,
}

/// What an app does with a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PropagationRole {
    /// Starts it on requests of its own.
    Originator,
    /// Passes it on.
    Forwarder,
    /// Passes it to nobody.
    Terminal,
}

/// A port of an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    pub container_port: u16,
    pub service_port: u16,
    pub protocol: AppProtocol,
}

impl Stack {
    /// Reads a stack file, YAML or JSON; `name` is what messages call it.
    ///
    /// # Errors
    /// Everything that is wrong with it, in the order of the file.
    pub fn parse(name: &str, bytes: &[u8]) -> Result<Self, Vec<Problem>> {
        reader::read(name, bytes)
    }

    /// Reads a stack from disk; errors as [`Stack::parse`], or that it cannot be opened.
    pub fn read(path: &Path) -> Result<Self, Vec<Problem>> {
        let name = path.display().to_string();
        let mut bytes = Vec::new();
        let file = File::open(path);
        // One byte too many is enough to be refused.
        let read = file.and_then(|file| file.take(reader::MOST + 1).read_to_end(&mut bytes));
        match read {
            Ok(_) => Self::parse(&name, &bytes),
            Err(error) => Err(vec![Problem {
                file: None,
                place: Place::BuiltIn,
                path: String::new(),
                message: format!("cannot read the stack {name}: {}", reason(&error)),
            }]),
        }
    }

    /// The app of this name.
    pub fn app(&self, name: &str) -> Option<&App> {
        self.apps.iter().find(|app| app.name == name)
    }

    /// What to say of a name that no app has: the nearest one that an app does have.
    pub fn unknown_app(&self, name: &str) -> String {
        calls::unknown_app(name, &self.apps)
    }

    /// All apps, callers before callees; in the order of the file where that leaves a choice.
    pub fn order(&self) -> Vec<&App> {
        self.order.iter().map(|place| &self.apps[*place]).collect()
    }

    /// The first app in the file that no app calls.
    pub fn entry(&self) -> &App {
        &self.apps[self.chain[0]]
    }

    /// The apps that a request to the entry may pass: depth first, each once. Apps which only another
    /// root calls are not among them.
    pub fn chain(&self) -> Vec<&App> {
        self.chain.iter().map(|place| &self.apps[*place]).collect()
    }

    /// The stack with everything filled in, on one line. [`Stack::parse`] reads it back as the same.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("every key is a text, and a String takes all")
    }
}

impl App {
    /// The one port that needs no list.
    fn plain_port(&self) -> Option<&Port> {
        match self.ports.as_slice() {
            [port] if port.protocol == AppProtocol::Http => Some(port),
            _ => None,
        }
    }

    fn has_usual_target(&self) -> bool {
        self.target.kind == TargetKind::Deployment && self.target.name == self.name
    }
}

/// As in a stack file. The usual target goes without saying: results of a pipeline have little room.
impl Serialize for App {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("name", &self.name)?;
        if let Some(repo) = &self.repo {
            map.serialize_entry("repo", repo)?;
        }
        if let Some(role) = &self.role {
            map.serialize_entry("role", role)?;
        }
        map.serialize_entry("propagation-role", self.propagation_role.word())?;
        if let Some(namespace) = &self.namespace {
            map.serialize_entry("namespace", namespace)?;
        }
        if let Some(port) = self.plain_port() {
            map.serialize_entry("container-port", &port.container_port)?;
            map.serialize_entry("service-port", &port.service_port)?;
        } else {
            let ports: Vec<Value> = self.ports.iter().map(|port| port.to_value()).collect();
            map.serialize_entry("ports", &ports)?;
        }
        if !self.has_usual_target() {
            map.serialize_entry("target", &self.target.to_string())?;
        }
        map.serialize_entry("context-dir", &self.context_dir)?;
        map.serialize_entry("dockerfile", &self.dockerfile)?;
        map.serialize_entry("build", &self.build)?;
        map.serialize_entry("downstream", &self.downstream)?;
        map.serialize_entry("tests", &self.tests)?;
        map.end()
    }
}

impl Port {
    fn to_value(self) -> Value {
        json!({
            "container-port": self.container_port,
            "service-port": self.service_port,
            "protocol": self.protocol.word(),
        })
    }
}

impl PropagationRole {
    /// All of them, in the order in which a session meets them.
    pub const ALL: [Self; 3] = [Self::Originator, Self::Forwarder, Self::Terminal];

    /// The word for it in the file.
    pub fn word(self) -> &'static str {
        match self {
            Self::Originator => "originator",
            Self::Forwarder => "forwarder",
            Self::Terminal => "terminal",
        }
    }
}
