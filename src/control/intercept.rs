//! The intercept of one app, shared by all its sessions: what `deploy` writes into the proxy pod's
//! ConfigMap and `attach` reads there.
//!
//! Nothing in it belongs to one pull request: those come and go by their pods' labels.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What is intercepted, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Intercept {
    /// The app's name in the stack.
    pub app: String,
    /// Of the app, its PR pods and its proxy pod.
    pub namespace: String,
    /// Whose pods' requests are taken.
    pub target: Target,
    /// At least one.
    pub ports: Vec<Port>,
    /// Name of the session header, lower case.
    pub header: String,
    /// Key of the baggage member; empty: baggage is not read.
    pub baggage_key: String,
    pub mode: Mode,
    pub agent: Agent,
    /// Files that say nothing of it are from before there was a choice.
    #[serde(default, skip_serializing_if = "Backend::is_mirrord")]
    pub backend: Backend,
}

/// Who takes the requests from the target's pods.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Backend {
    /// Only those that name a session.
    #[default]
    Mirrord,
    /// All of a port.
    Telepresence(Telepresence),
}

/// What Telepresence must be told beside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Telepresence {
    /// Where its traffic manager runs.
    pub manager_namespace: String,
    /// By which Service each of the app's ports is intercepted, in the same order.
    pub services: Vec<ServicePort>,
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServicePort {
    pub service: String,
    /// Its name, or its number where it has none.
    pub port: String,
}

impl Backend {
    fn is_mirrord(&self) -> bool {
        *self == Self::Mirrord
    }

    pub fn name(&self) -> BackendName {
        match self {
            Self::Mirrord => BackendName::Mirrord,
            Self::Telepresence(_) => BackendName::Telepresence,
        }
    }
}

/// What can be chosen as a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendName {
    Mirrord,
    Telepresence,
}

impl BackendName {
    /// All of them, the usual one first.
    pub const ALL: [Self; 2] = [Self::Mirrord, Self::Telepresence];

    /// The word for it in flags.
    pub fn word(self) -> &'static str {
        match self {
            Self::Mirrord => "mirrord",
            Self::Telepresence => "telepresence",
        }
    }

    /// The one with that name.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|name| name.word() == word)
    }

    /// The `app` label of its proxy pods.
    pub fn proxy_label(self) -> &'static str {
        match self {
            Self::Mirrord => "mirrord-proxy",
            Self::Telepresence => "telepresence-proxy",
        }
    }

    /// Name of an app's proxy pod, and of all that belongs to it.
    pub fn proxy_name(self, app: &str) -> String {
        format!("{}-{app}", self.proxy_label())
    }
}

/// A workload, or one pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Target {
    pub kind: TargetKind,
    pub name: String,
}

/// `deployment/orders`, as it is written in a stack file.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.word(), self.name)
    }
}

/// What can be a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TargetKind {
    Deployment,
    StatefulSet,
    ReplicaSet,
    /// `argoproj.io/v1alpha1`.
    Rollout,
    Pod,
}

impl TargetKind {
    /// All of them, the usual one first.
    pub const ALL: [Self; 5] = [
        Self::Deployment,
        Self::StatefulSet,
        Self::ReplicaSet,
        Self::Rollout,
        Self::Pod,
    ];

    /// The word for it in a stack file.
    pub fn word(self) -> &'static str {
        match self {
            Self::Deployment => "deployment",
            Self::StatefulSet => "statefulset",
            Self::ReplicaSet => "replicaset",
            Self::Rollout => "rollout",
            Self::Pod => "pod",
        }
    }
}

/// A port of the app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Port {
    pub container_port: u16,
    pub protocol: AppProtocol,
}

/// What a port of an app speaks. Only what mirrord's filter can read can be intercepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AppProtocol {
    Http,
    /// HTTP/2 with prior knowledge, and trailers that matter.
    Grpc,
}

impl AppProtocol {
    /// The word for it in a stack file.
    pub fn word(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
        }
    }
}

/// What happens to a matching request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It reaches the PR pod instead of the app.
    Steal,
    /// The app answers, the PR pod sees a copy.
    Mirror,
}

/// mirrord's agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Agent {
    /// Must admit privileged pods.
    pub namespace: String,
    /// Runs in the target pod instead of as a Job.
    pub is_ephemeral: bool,
    /// `None`: mirrord's own.
    pub image: Option<String>,
}
