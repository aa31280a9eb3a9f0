//! A service account with rights that a test chose, and a kubeconfig with its token.

use std::path::{Path, PathBuf};

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject};
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tempfile::TempDir;

use super::cluster::{Cluster, client_of};
use super::eventually;
use super::namespace::Namespace;

/// A service account. Its kubeconfig goes away when it is dropped; itself goes with its namespace.
pub struct Account {
    name: String,
    namespace: String,
    folder: TempDir,
}

impl Account {
    pub(super) async fn new(namespace: &Namespace, name: &str) -> Self {
        namespace
            .create(&ServiceAccount {
                metadata: named(name),
                ..ServiceAccount::default()
            })
            .await;
        Self::existing(namespace.cluster(), namespace.name(), name).await
    }

    /// The account of that name, which somebody else has made, with the rights that they gave it.
    pub async fn existing(cluster: &Cluster, namespace: &str, name: &str) -> Self {
        let account = Self {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            folder: tempfile::tempdir().expect("a writable temp folder"),
        };
        let token = token_of(cluster, namespace, name).await;
        let text = kubeconfig(cluster, namespace, &token);
        std::fs::write(account.kubeconfig(), text).expect("the folder is writable");
        account
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// As the API server names it: `system:serviceaccount:NAMESPACE:NAME`.
    pub fn user(&self) -> String {
        format!("system:serviceaccount:{}:{}", self.namespace, self.name)
    }

    /// For programs; its namespace is the account's.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    pub async fn client(&self) -> Client {
        client_of(&self.kubeconfig()).await
    }

    /// Gives it these rights in a namespace, its own or another, beside those it has, and returns
    /// when they count.
    pub async fn grant(&self, namespace: &Namespace, rights: &[PolicyRule]) {
        let name = format!("{}-{:06x}", self.name, fastrand::u32(..1 << 24));
        namespace
            .create(&Role {
                metadata: named(&name),
                rules: Some(rights.to_vec()),
            })
            .await;
        namespace
            .create(&RoleBinding {
                metadata: named(&name),
                role_ref: RoleRef {
                    api_group: "rbac.authorization.k8s.io".to_owned(),
                    kind: "Role".to_owned(),
                    name,
                },
                subjects: Some(vec![Subject {
                    kind: "ServiceAccount".to_owned(),
                    name: self.name.clone(),
                    namespace: Some(self.namespace.clone()),
                    ..Subject::default()
                }]),
            })
            .await;
        if let Some(right) = rights.first() {
            // A role counts as a whole, so that its first rule speaks for all.
            let what = format!("the rights of {}", self.user());
            eventually(&what, async || self.may(namespace, right).await).await;
        }
    }

    async fn may(&self, namespace: &Namespace, right: &PolicyRule) -> bool {
        let first = |values: &Option<Vec<String>>| values.as_ref()?.first().cloned();
        let (resource, subresource) = match first(&right.resources) {
            Some(path) => match path.split_once('/') {
                Some((resource, sub)) => (Some(resource.to_owned()), Some(sub.to_owned())),
                None => (Some(path), None),
            },
            None => (None, None),
        };
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(self.user()),
                resource_attributes: Some(ResourceAttributes {
                    namespace: Some(namespace.name().to_owned()),
                    verb: right.verbs.first().cloned(),
                    group: first(&right.api_groups),
                    resource,
                    subresource,
                    name: first(&right.resource_names),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        Api::all(namespace.client())
            .create(&PostParams::default(), &review)
            .await
            .expect("the administrator may ask")
            .status
            .is_some_and(|status| status.allowed)
    }
}

/// A token of that account, as its pods have one.
pub(super) async fn token_of(cluster: &Cluster, namespace: &str, account: &str) -> String {
    let request = TokenRequest {
        spec: TokenRequestSpec {
            expiration_seconds: Some(3600),
            ..TokenRequestSpec::default()
        },
        ..TokenRequest::default()
    };
    let answer = Api::<ServiceAccount>::namespaced(cluster.client(), namespace)
        .create_token_request(account, &PostParams::default(), &request)
        .await
        .expect("the administrator may ask for tokens");
    answer.status.expect("an answer has a token").token
}

/// The administrator's kubeconfig, with this token in his place.
fn kubeconfig(cluster: &Cluster, namespace: &str, token: &str) -> String {
    let admin = read(&cluster.kubeconfig());
    let plane = admin.pointer("/clusters/0/cluster").expect("one cluster");
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "plane", "cluster": plane}],
        "users": [{"name": "account", "user": {"token": token}}],
        "contexts": [{"name": "plane", "context": {
            "cluster": "plane", "user": "account", "namespace": namespace,
        }}],
        "current-context": "plane",
    })
    .to_string()
}

fn read(path: &Path) -> serde_json::Value {
    let text = std::fs::read_to_string(path).expect("the plane has written it");
    serde_saphyr::from_str(&text).expect("a kubeconfig is YAML")
}

fn named(name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        ..ObjectMeta::default()
    }
}
