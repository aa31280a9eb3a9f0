//! The pod that runs what a pull request built.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};

use crate::control::stack::App;

/// What a PR pod is made from.
#[derive(Debug, Clone)]
pub struct PrPod<'a> {
    /// The stack's name.
    pub stack: &'a str,
    pub app: &'a App,
    pub namespace: &'a str,
    pub session: &'a str,
    /// The image that was built.
    pub image: &'a str,
    /// What the target's pods are made from; of a target that is a pod:
    /// [`template::of_pod`](super::template::of_pod).
    pub template: &'a PodTemplateSpec,
    /// Uid of the pipeline run.
    pub pipeline_run: Option<&'a str>,
    pub expires_at: Option<Timestamp>,
}

/// A PR pod, and what about it differs from the baseline in a way that people should know.
#[derive(Debug, Clone, PartialEq)]
pub struct Made {
    pub pod: Pod,
    /// Sentences for the person who reads along: lower case, no full stop.
    pub notes: Vec<String>,
}

impl PrPod<'_> {
    /// The pod, to be applied.
    pub fn pod(&self) -> Made {
        panic!("to be written: {self:?}")
    }
}
