//! What of a baseline's pod template makes a PR pod.

use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};

/// The template that a living pod might have been made from: without what the cluster wrote into it.
pub fn of_pod(pod: &Pod) -> PodTemplateSpec {
    panic!("to be written: {pod:?}")
}
