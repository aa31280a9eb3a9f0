//! A namespace of a test's own, and what is made in it.

use std::fmt::Debug;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Namespace as Object, Pod, ServiceAccount};
use k8s_openapi::api::rbac::v1::PolicyRule;
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams};
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::account::Account;
use super::cluster::{Cluster, at_last};
use super::found;

/// A namespace that goes away, with all that is in it, when it is dropped.
pub struct Namespace {
    name: String,
    cluster: Cluster,
}

impl Namespace {
    pub(super) async fn new(cluster: &Cluster, labels: &[(&str, &str)]) -> Self {
        let namespace = Self {
            name: name_after_test(),
            cluster: cluster.clone(),
        };
        let labels = labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let object = Object {
            metadata: ObjectMeta {
                name: Some(namespace.name.clone()),
                labels: Some(labels.collect()),
                ..ObjectMeta::default()
            },
            ..Object::default()
        };
        Api::<Object>::all(namespace.client())
            .create(&PostParams::default(), &object)
            .await
            .expect("the administrator may make namespaces");
        // Before it is there, the API server refuses every pod.
        let accounts = namespace.api::<ServiceAccount>();
        found("the default service account", async || {
            accounts.get_opt("default").await.expect("readable")
        })
        .await;
        namespace
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The administrator's.
    pub fn client(&self) -> Client {
        self.cluster.client()
    }

    /// Objects of a kind, as the administrator.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client(), &self.name)
    }

    /// Makes an object, as the administrator.
    pub async fn create<K>(&self, object: &K) -> K
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
        K: Clone + Debug + DeserializeOwned + Serialize,
    {
        self.api::<K>()
            .create(&PostParams::default(), object)
            .await
            .unwrap_or_else(|error| panic!("cannot make a {}: {error}", K::kind(&())))
    }

    /// A service account with exactly these rights in this namespace.
    pub async fn account(&self, name: &str, rights: &[PolicyRule]) -> Account {
        let account = Account::new(self, name).await;
        account.grant(self, rights).await;
        account
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let name = self.name.clone();
        at_last(self.cluster.kubeconfig(), async move |client| {
            let all = ListParams::default();
            let at_once = DeleteParams::default().grace_period(0);
            // In a dying namespace no controller makes pods. Those that are there lose their grace:
            // nobody is left to end them. What fails here ends with the plane.
            let _ = Api::<Object>::all(client.clone())
                .delete(&name, &DeleteParams::default())
                .await;
            let _ = Api::<Pod>::namespaced(client, &name)
                .delete_collection(&at_once, &all)
                .await;
        });
    }
}

/// The running test's name, as far as it fits, and what makes it unique.
fn name_after_test() -> String {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("test").rsplit("::").next();
    let words: String = test
        .unwrap_or("test")
        .chars()
        .map(|letter| {
            if letter.is_ascii_alphanumeric() {
                letter
            } else {
                '-'
            }
        })
        .take(40)
        .collect();
    format!(
        "{}-{:08x}",
        words.trim_matches('-').to_lowercase(),
        fastrand::u32(..)
    )
}
