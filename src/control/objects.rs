//! The Kubernetes objects of an intercept, as pure values.
//!
//! What they are called, how they are labelled, who owns them. Nothing here asks the cluster or
//! writes to it: whoever applies these objects reads the target's pod template and the namespace's
//! selectors first, and hands them in.

pub mod container;
mod fingerprint;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod manifests;
pub mod pr_pod;
pub mod proxy;
#[cfg(test)]
mod restricted;
mod rights;
pub mod selection;
pub mod template;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde::Serialize;

use crate::control::intercept::BackendName;

/// Keys of labels, by which everything is found again.
pub mod labels {
    /// On everything, mirrord's agents too.
    pub use crate::kubernetes::APP_LABEL as APP;
    /// On PR pods only.
    pub use crate::kubernetes::SESSION_LABEL as SESSION;
    /// Uid of the pipeline run; on PR pods, when there was one.
    pub const PIPELINE_RUN: &str = "session-proxy/pipeline-run";
    /// Uid of the proxy pod; on mirrord's agents.
    pub const PROXY: &str = "session-proxy/proxy";
    /// Uid of the target pod; on mirrord's agents.
    pub const TARGET: &str = "session-proxy/target";
}

/// Keys of annotations.
pub mod annotations {
    /// When an intercept is over, RFC 3339; on PR pods with a time to live.
    pub const EXPIRES_AT: &str = "session-proxy/expires-at";
    /// What a pod was made from; on PR pods and the proxy pod. A pod whose hash differs from that of the
    /// wanted one must be made anew, because a pod's spec cannot be changed.
    pub const SPEC_HASH: &str = "session-proxy/spec-hash";
}

/// The `app` label of every PR pod.
pub const PR_POD: &str = "pr-test";

/// The `app` label of mirrord's proxy pods.
pub const PROXY_POD: &str = "mirrord-proxy";

/// Name of an app's pod for one session.
pub fn pr_pod_name(app: &str, session: &str) -> String {
    format!("pr-{app}-{session}")
}

/// Name of an app's proxy pod under mirrord, and of all that belongs to it.
pub fn proxy_name(app: &str) -> String {
    BackendName::Mirrord.proxy_name(app)
}

/// Names of an app's proxy pod, whatever the backend; an app has one of them at a time.
pub fn proxy_names(app: &str) -> impl Iterator<Item = String> {
    BackendName::ALL
        .into_iter()
        .map(move |backend| backend.proxy_name(app))
}

/// Names a pod, as the API server returned it, as an owner: its end is the end of what it owns, unless
/// another owner is left. `None` when the pod has no uid yet.
pub fn owner(pod: &Pod) -> Option<OwnerReference> {
    Some(OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Pod".to_owned(),
        name: pod.metadata.name.clone()?,
        uid: pod.metadata.uid.clone()?,
        // Neither a controller, which there can be only one of, nor one whose end waits for ours.
        controller: None,
        block_owner_deletion: None,
    })
}

/// An object as a YAML document, for people and for `kubectl apply`.
pub fn document(object: &impl Serialize) -> String {
    // Nothing is gained by folding the name of an image.
    let options = serde_saphyr::ser_options! { folded_wrap_chars: usize::MAX };
    serde_saphyr::to_string_with_options(object, options)
        .expect("these are trees of maps with text for keys")
}

/// Labels or annotations.
type Pairs = BTreeMap<String, String>;

/// The labels that Kubernetes recommends for all that belongs together.
struct Recommended<'a> {
    name: &'a str,
    instance: &'a str,
    component: &'a str,
    image: &'a str,
    /// The stack's name.
    part_of: &'a str,
}

impl Recommended<'_> {
    fn pairs(&self) -> Pairs {
        let labels = [
            ("app.kubernetes.io/name", self.name),
            ("app.kubernetes.io/instance", self.instance),
            ("app.kubernetes.io/component", self.component),
            ("app.kubernetes.io/version", &version(self.image)),
            ("app.kubernetes.io/part-of", self.part_of),
            ("app.kubernetes.io/managed-by", "session-proxy"),
        ];
        pairs(labels)
    }
}

fn pairs<const N: usize>(pairs: [(&str, &str); N]) -> Pairs {
    pairs
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

/// The tag of an image, else the beginning of its digest, as far as a label can hold it.
fn version(image: &str) -> String {
    let (name, digest) = image.split_once('@').unwrap_or((image, ""));
    // The port of a registry is no tag.
    let last = name.rsplit('/').next().unwrap_or(name);
    let version = match last.split_once(':') {
        Some((_, tag)) => tag,
        None => digest
            .split_once(':')
            .map_or("latest", |(_, digest)| digest),
    };
    let is_edge = |c: char| !c.is_ascii_alphanumeric();
    let version: String = version
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c))
        .take(63)
        .collect();
    version.trim_matches(is_edge).to_owned()
}

/// All containers of a pod that are there from the start.
fn containers(spec: &mut PodSpec) -> impl Iterator<Item = &mut Container> {
    spec.init_containers
        .iter_mut()
        .flatten()
        .chain(&mut spec.containers)
}

/// Keeps some of a list, and no list that is empty.
fn keep<T>(list: &mut Option<Vec<T>>, is_kept: impl FnMut(&T) -> bool) {
    if let Some(items) = list {
        items.retain(is_kept);
    }
    list.take_if(|items| items.is_empty());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_what_a_label_can_hold_of_an_image() {
        let digest = "6c3c624b58dbbcd3c0dd82b4c53f04194d1247c6eebdaab7c610cf7d66709b3b";
        let table = [
            ("orders", "latest"),
            ("orders:1.8.2", "1.8.2"),
            ("registry.local:5000/orders", "latest"),
            ("registry.local:5000/shop/orders:pr-42", "pr-42"),
            (&format!("orders:pr-42@sha256:{digest}"), "pr-42"),
            (&format!("orders@sha256:{digest}"), &digest[..63]),
            ("orders:_a.", "a"),
            (&format!("orders:{}.b", "a".repeat(62)), &"a".repeat(62)),
        ];

        for (image, expected) in table {
            assert_eq!(version(image), expected, "{image}");
        }
    }
}
