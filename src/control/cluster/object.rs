//! What objects of this project are called, and how one is to be made or marked.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, ServiceAccount};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{ApiResource, DynamicObject};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// What an object of this project can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    ServiceAccount,
    Role,
    RoleBinding,
    ConfigMap,
    Pod,
    Job,
}

/// Where one object is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    pub kind: Kind,
    pub namespace: String,
    pub name: String,
}

/// An object that is to be made.
#[derive(Debug, Clone)]
pub struct Draft {
    pub name: Name,
    pub object: DynamicObject,
}

/// Labels and annotations to write; `None` removes one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Marks {
    pub labels: BTreeMap<String, Option<String>>,
    pub annotations: BTreeMap<String, Option<String>>,
}

/// A type of object that is read whole.
pub trait Object:
    kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + k8s_openapi::Resource
    + Clone
    + fmt::Debug
    + DeserializeOwned
{
}

impl<K> Object for K where
    K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + k8s_openapi::Resource
        + Clone
        + fmt::Debug
        + DeserializeOwned
{
}

impl Kind {
    /// As RBAC names it.
    pub fn resource(self) -> &'static str {
        match self {
            Self::ServiceAccount => "serviceaccounts",
            Self::Role => "roles",
            Self::RoleBinding => "rolebindings",
            Self::ConfigMap => "configmaps",
            Self::Pod => "pods",
            Self::Job => "jobs",
        }
    }

    pub(super) fn api_resource(self) -> ApiResource {
        match self {
            Self::ServiceAccount => ApiResource::erase::<ServiceAccount>(&()),
            Self::Role => ApiResource::erase::<Role>(&()),
            Self::RoleBinding => ApiResource::erase::<RoleBinding>(&()),
            Self::ConfigMap => ApiResource::erase::<ConfigMap>(&()),
            Self::Pod => ApiResource::erase::<Pod>(&()),
            Self::Job => ApiResource::erase::<Job>(&()),
        }
    }
}

impl Draft {
    /// A typed object, which knows its own name, in that namespace.
    pub fn new<K: Object + Serialize>(kind: Kind, namespace: &str, object: &K) -> Self {
        let object = serde_json::to_value(object).and_then(serde_json::from_value);
        let mut object: DynamicObject =
            object.expect("what is read from the cluster can be written, and the other way round");
        object.metadata.namespace = Some(namespace.to_owned());
        let name = object.metadata.name.clone().unwrap_or_default();
        Self {
            name: Name::new(kind, namespace, name),
            object,
        }
    }
}

impl Name {
    pub fn new(kind: Kind, namespace: &str, name: impl Into<String>) -> Self {
        Self {
            kind,
            namespace: namespace.to_owned(),
            name: name.into(),
        }
    }
}

/// As people speak of it: `pod orders-1`.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::ServiceAccount => "service account",
            Kind::Role => "role",
            Kind::RoleBinding => "role binding",
            Kind::ConfigMap => "config map",
            Kind::Pod => "pod",
            Kind::Job => "job",
        };
        write!(f, "{kind} {}", self.name)
    }
}
