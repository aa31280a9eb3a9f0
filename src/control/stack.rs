//! The stack: apps, who calls whom, and how a session travels between them.
//!
//! Read once from a stack file, YAML or JSON, and believed from then on: names are DNS labels, every
//! callee exists, nothing calls itself, ports are ports, and whatever may be left out is filled in.

use serde_json::Value;

use super::intercept::{AppProtocol, Target};
use crate::config::Problem;

/// A stack that makes sense.
#[derive(Debug, Clone, PartialEq)]
pub struct Stack {
    pub name: String,
    pub description: Option<String>,
    pub propagation: Propagation,
    pub defaults: Defaults,
    /// In the order of the file; at least one.
    pub apps: Vec<App>,
    /// Places in `apps`, callers before callees.
    order: Vec<usize>,
    /// Places in `apps`, from the entry.
    chain: Vec<usize>,
}

/// How a request carries its session from app to app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Propagation {
    /// Lower case.
    pub header_name: String,
    /// Of the W3C baggage member; empty: baggage is not used.
    pub baggage_key: String,
    pub strategy: String,
}

/// What holds for apps that do not say otherwise. Already filled in where it does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Defaults {
    pub namespace: Option<String>,
    pub container_port: Option<u16>,
    pub service_port: Option<u16>,
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
    /// Calls nobody.
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
        panic!("to be written: {name} {}", bytes.len())
    }

    /// The app of this name.
    pub fn app(&self, name: &str) -> Option<&App> {
        self.apps.iter().find(|app| app.name == name)
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
        panic!("to be written")
    }
}

impl PropagationRole {
    /// The word for it in the file.
    pub fn word(self) -> &'static str {
        match self {
            Self::Originator => "originator",
            Self::Forwarder => "forwarder",
            Self::Terminal => "terminal",
        }
    }
}
