//! Whether a pod of ours would be taken for one of the baseline's.

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::Pairs;

/// What picks pods by their labels: a Service or a workload, as messages call it (`deployment/orders`).
#[derive(Debug, Clone, Copy)]
pub struct Selector<'a> {
    pub owner: &'a str,
    pub selector: &'a LabelSelector,
}

/// Whether a label selector takes something with these labels.
pub fn matches(selector: &LabelSelector, labels: &Pairs) -> bool {
    panic!("to be written: {selector:?} {labels:?}")
}

/// Everything among the namespace's Services and workloads that would take this pod for its own, each with
/// a remedy; empty when it is safe to create.
pub fn claimants(pod: &Pod, services: &[Service], workloads: &[Selector<'_>]) -> Vec<String> {
    panic!("to be written: {pod:?} {services:?} {workloads:?}")
}
