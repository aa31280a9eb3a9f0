//! What each thing that `deploy` was told means, and what is wrong with it.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value};

use super::AgentOrder;
use crate::cli::{VERSION, cluster};
use crate::config::{Place, Problem};
use crate::control::intercept::BackendName;
use crate::control::pull_request::PullRequest;
use crate::control::stack::names::{self, LABEL_BYTES};
use crate::control::words::given;
use crate::plan::text;

/// How long all of it may take, when nothing is said.
const PATIENCE: &str = "5m";

/// Where the traffic manager is when nothing is said.
const MANAGER_NAMESPACE: &str = "ambassador";

/// A namespace in which a proxy needs rights, and the flag that names it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Elsewhere<'e> {
    pub(super) flag: &'static str,
    pub(super) namespace: &'e str,
}

/// Collects what is wrong.
pub(super) struct Judge<'p>(pub(super) &'p mut Vec<Problem>);

impl Judge<'_> {
    fn object(&mut self, flag: &'static str, message: impl Into<String>) {
        self.0.push(Problem {
            file: None,
            place: Place::Flag(flag),
            path: String::new(),
            message: message.into(),
        });
    }

    pub(super) fn named(
        &mut self,
        flag: &'static str,
        text: Option<&str>,
        judge: impl Fn(&str) -> Result<String, String>,
    ) -> Option<String> {
        match judge(text?) {
            Ok(name) => Some(name),
            Err(message) => {
                self.object(flag, message);
                None
            }
        }
    }

    pub(super) fn backend(&mut self, text: Option<&str>) -> BackendName {
        let Some(text) = text else {
            return BackendName::Mirrord;
        };
        BackendName::parse(text).unwrap_or_else(|| {
            let message = format!("{text:?} is no backend; use mirrord or telepresence");
            self.object("--backend", message);
            BackendName::Mirrord
        })
    }

    pub(super) fn manager_namespace(&mut self, text: Option<&str>) -> String {
        let named = self.named("--manager-namespace", text, names::label);
        named.unwrap_or_else(|| MANAGER_NAMESPACE.to_owned())
    }

    /// One image per app; apps of the map that were not changed are no concern of ours.
    pub(super) fn images(&mut self, text: Option<&str>, apps: &[String]) -> Vec<String> {
        const FLAG: &str = "--built-images";
        let Some(text) = text else {
            self.object(FLAG, "missing: write a JSON map of app to image");
            return Vec::new();
        };
        let map: Map<String, Value> = match serde_json::from_str(text) {
            Ok(map) => map,
            Err(error) => {
                self.object(FLAG, format!("is not a JSON map of app to image: {error}"));
                return Vec::new();
            }
        };
        let mut images = Vec::new();
        for app in apps {
            match map.get(app).map(|image| (image, image.as_str())) {
                Some((_, Some(text))) => match image(text) {
                    Ok(image) => images.push(image),
                    Err(message) => self.object(FLAG, format!("{app}: {message}")),
                },
                Some((image, None)) => {
                    self.object(FLAG, format!("{app}: {image} is not the name of an image"));
                }
                None => self.object(FLAG, format!("no image for {app}, which is to be deployed")),
            }
        }
        images
    }

    pub(super) fn proxy_image(&mut self, text: Option<&str>, backend: BackendName) -> String {
        let own = match backend {
            BackendName::Mirrord => format!("localhost:5001/tekton-dag-build-mirrord:{VERSION}"),
            BackendName::Telepresence => {
                format!("localhost:5001/tekton-dag-build-telepresence:{VERSION}")
            }
        };
        let image = text.map(|text| self.named("--proxy-image", Some(text), image));
        image.flatten().unwrap_or(own)
    }

    pub(super) fn agent(&mut self, arguments: &cluster::Deploy) -> AgentOrder {
        let namespace = given(arguments.agent_namespace.as_deref());
        let agent_image = given(arguments.agent_image.as_deref());
        let is_ephemeral = match given(arguments.agent_kind.as_deref()) {
            None | Some("job") => false,
            Some("ephemeral") => true,
            Some(other) => {
                let message = format!("{other:?} is no kind of agent; use job or ephemeral");
                self.object("--agent-kind", message);
                false
            }
        };
        AgentOrder {
            namespace: self.named("--agent-namespace", namespace, names::label),
            image: self.named("--agent-image", agent_image, image),
            is_ephemeral,
        }
    }

    /// Owners cannot cross namespaces, so rights in another one cannot come and go with the PR pods.
    pub(super) fn rights(&mut self, pull_request: &PullRequest, elsewhere: Option<Elsewhere<'_>>) {
        let Some(Elsewhere { flag, namespace }) = elsewhere else {
            return;
        };
        let apps = pull_request
            .apps
            .iter()
            .filter_map(|app| pull_request.stack.app(app));
        let mut others = apps.map(|app| pull_request.namespace_of(app));
        if let Some(other) = others.find(|other| *other != namespace) {
            self.object(
                flag,
                format!(
                    "is {namespace:?}, but the apps are in {other:?}: a proxy's own service account has no rights there; name one that has with --proxy-service-account (see config/rbac)"
                ),
            );
        }
    }

    /// Names of apps are as long as mirrord's proxy pods can bear, whose names are shorter.
    pub(super) fn proxy_names(&mut self, apps: &[String], backend: BackendName) {
        for app in apps {
            let name = backend.proxy_name(app);
            if name.len() > LABEL_BYTES {
                self.object(
                    "--backend",
                    format!(
                        "the proxy pod {name} would have {} characters, and a pod's name has at most {LABEL_BYTES}; give the app a shorter name",
                        name.len()
                    ),
                );
            }
        }
    }

    pub(super) fn expires_at(&mut self, text: Option<&str>) -> Option<Timestamp> {
        match text::long_duration(text?) {
            Ok(ttl) => {
                let ttl = SignedDuration::try_from(ttl).unwrap_or(SignedDuration::MAX);
                Timestamp::now().checked_add(ttl).ok()
            }
            Err(message) => {
                self.object("--ttl", message);
                None
            }
        }
    }

    pub(super) fn patience(&mut self, text: Option<&str>) -> Duration {
        text::duration(text.unwrap_or(PATIENCE), false).unwrap_or_else(|message| {
            self.object("--timeout", message);
            Duration::ZERO
        })
    }
}

/// An image as a pod may name it. What it is, only a registry knows.
fn image(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("its image is empty; was it built?".to_owned());
    }
    // A parameter that nobody expanded would only fail on a node.
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) || text.contains(['$', '{', '(']) {
        return Err(format!("{text:?} is not the name of an image"));
    }
    Ok(text.to_owned())
}
