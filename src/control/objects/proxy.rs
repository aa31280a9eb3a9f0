//! The pod that takes an app's requests, with its configuration and its rights.

use k8s_openapi::api::core::v1::{ConfigMap, LocalObjectReference, Pod, ServiceAccount};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use crate::control::intercept::Intercept;

/// What a proxy pod and its belongings are made from.
#[derive(Debug, Clone)]
pub struct Proxy<'a> {
    /// The stack's name.
    pub stack: &'a str,
    pub intercept: &'a Intercept,
    /// An image with session-proxy and mirrord in it.
    pub image: &'a str,
    /// Secrets to pull it with; the target's own are a good guess.
    pub pull_secrets: &'a [LocalObjectReference],
    /// One that exists; `None`: the proxy's own, with its role.
    pub service_account: Option<&'a str>,
    /// Whether it may delete a target pod that nothing else can heal.
    pub may_delete_targets: bool,
    /// The PR pods for which it is there, see [`owner`](super::owner).
    pub owners: &'a [OwnerReference],
}

impl Proxy<'_> {
    /// The proxy pod.
    pub fn pod(&self) -> Pod {
        panic!("to be written: {self:?}")
    }

    /// Its configuration.
    pub fn config_map(&self) -> ConfigMap {
        panic!("to be written: {self:?}")
    }

    /// Who it is; not wanted when `service_account` names one that exists.
    pub fn service_account(&self) -> ServiceAccount {
        panic!("to be written: {self:?}")
    }

    /// What it may do; not wanted when `service_account` names one that exists.
    pub fn role(&self) -> Role {
        panic!("to be written: {self:?}")
    }

    /// That it may; not wanted when `service_account` names one that exists.
    pub fn role_binding(&self) -> RoleBinding {
        panic!("to be written: {self:?}")
    }
}
