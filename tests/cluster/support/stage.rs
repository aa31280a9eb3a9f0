//! A staging namespace whose pods answer at their addresses.
//!
//! Baseline pods answer as their app. As long as a proxy pod of that app runs, requests with a session
//! are taken from them and answered as session-proxy would: the probe session with a sign, the session
//! of a running PR pod by that, all others by the baseline. Whose requests are taken and what a
//! proxy says of its targets can be told otherwise; and the proxies can be real ones, one for each
//! baseline pod, which find the PR pods by themselves.

mod world;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use k8s_openapi::api::core::v1::{ConfigMap, Pod, ServiceAccount};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::ResourceExt;
use kube::api::ListParams;
use serde_json::json;
use tempfile::TempDir;

use self::world::{World, serve};
use super::account::Account;
use super::baseline::{Baseline, PORT};
use super::cluster::Cluster;
use super::eventually;
use super::kubelet::Kubelet;
use super::namespace::Namespace;
use super::rights::{role_in, rule};
use super::run::Run;
use crate::it::support::proxy::Setup;

/// The namespace, its apps, and an account that may deploy.
pub struct Stage {
    pub namespace: Namespace,
    pub kubelet: Kubelet,
    pub account: Account,
    pub apps: HashMap<String, Baseline>,
    world: Arc<Mutex<World>>,
    folder: TempDir,
}

impl Stage {
    /// With these apps, and so many ready replicas of each.
    pub async fn with(cluster: &Cluster, apps: &[(&str, usize)]) -> Self {
        Self::in_namespace(cluster.namespace().await, apps).await
    }

    pub async fn in_namespace(namespace: Namespace, apps: &[(&str, usize)]) -> Self {
        let kubelet = Kubelet::of(&namespace).await;
        let world = Arc::<Mutex<World>>::default();
        let (up, gone) = (world.clone(), world.clone());
        let name = namespace.name().to_owned();
        kubelet.when_up(move |pod| {
            let (world, name) = (up.clone(), name.clone());
            async move { serve(world, pod, &name).await }
        });
        kubelet.when_gone(move |pod| {
            gone.lock().expect("nobody panics").forget(&pod);
            std::future::ready(())
        });
        let mut baselines = HashMap::new();
        for (app, replicas) in apps {
            let baseline = Baseline::deploy(&namespace, app, *replicas).await;
            baselines.insert((*app).to_owned(), baseline);
        }
        let account = namespace.account("deployer", &deployer()).await;
        Self {
            namespace,
            kubelet,
            account,
            apps: baselines,
            world,
            folder: tempfile::tempdir().expect("a writable temp folder"),
        }
    }

    /// From now on requests are taken by real proxies.
    pub async fn use_real_proxies(&self) {
        let rights = [rule("", &["pods"], &["list", "watch"])];
        let account = self.namespace.account("proxy", &rights).await;
        let kubeconfig = self.folder.path().join("kubeconfig");
        std::fs::copy(account.kubeconfig(), &kubeconfig).expect("the folder is writable");
        let kubeconfig = kubeconfig.to_str().expect("a plain path");
        let setup = Setup::new().listener(&format!("appPort: {PORT}"));
        self.world().real = Some(setup.env("KUBECONFIG", kubeconfig));
    }

    /// Nobody takes the requests of baseline pods whose names begin so.
    pub fn deafen(&self, prefix: &str) {
        self.world().deaf.push(prefix.to_owned());
    }

    /// Requests are taken from all again.
    pub fn hear(&self) {
        self.world().deaf.clear();
    }

    /// What every proxy pod says of its targets.
    pub fn proxies_say(&self, targets: &serde_json::Value) {
        self.world().targets = json!({ "targets": targets }).to_string();
    }

    /// The stack: each app calls nobody and has one port.
    pub fn stack(&self) -> String {
        let mut names: Vec<_> = self.apps.keys().collect();
        names.sort();
        let apps: Vec<_> = names
            .iter()
            .map(|name| json!({"name": name, "repo": format!("shop/{name}"), "role": "middleware"}))
            .collect();
        json!({
            "name": "shop",
            "propagation": {"header-name": "x-dev-session", "baggage-key": "dev-session", "strategy": "w3c-baggage"},
            "defaults": {"namespace": self.namespace.name(), "container-port": PORT, "service-port": 80},
            "apps": apps,
        })
        .to_string()
    }

    /// `deploy` of these apps for a session, with the images `registry.example/APP:SESSION`.
    pub fn deploy_arguments(&self, session: &str, apps: &[&str], more: &[&str]) -> Vec<String> {
        let images: serde_json::Map<_, _> = apps
            .iter()
            .map(|app| {
                (
                    (*app).to_owned(),
                    json!(format!("registry.example/{app}:{session}")),
                )
            })
            .collect();
        let header = format!("x-dev-session: {session}");
        let images = serde_json::Value::from(images).to_string();
        let mut arguments = vec!["deploy".to_owned()];
        for (flag, value) in [
            ("--stack-json", self.stack().as_str()),
            ("--build-apps", &apps.join(" ")),
            ("--built-images", &images),
            ("--intercept-header", &header),
            ("--proxy-image", "registry.example/session-proxy:1"),
        ] {
            // What is said twice is refused, and some tests say it otherwise.
            if !more.contains(&flag) {
                arguments.extend([flag.to_owned(), value.to_owned()]);
            }
        }
        arguments.extend(more.iter().map(|&word| word.to_owned()));
        arguments
    }

    /// Starts `deploy` as the account.
    pub fn deploy(&self, session: &str, apps: &[&str], more: &[&str]) -> Run {
        let arguments = self.deploy_arguments(session, apps, more);
        Run::start(&self.account.kubeconfig(), arguments)
    }

    /// `cleanup` in the namespace.
    pub fn cleanup_arguments(&self, more: &[&str]) -> Vec<String> {
        let arguments = ["cleanup", "--namespaces", self.namespace.name()];
        let arguments = arguments.iter().chain(more);
        arguments.map(|&word| word.to_owned()).collect()
    }

    /// Starts `cleanup` as the account.
    pub fn cleanup(&self, more: &[&str]) -> Run {
        Run::start(&self.account.kubeconfig(), self.cleanup_arguments(more))
    }

    /// Everything of ours: kind and name, with uid and resource version.
    pub async fn ours(&self) -> Vec<(String, String, String)> {
        let all = ListParams::default().labels("session-proxy/app");
        let mut ours = Vec::new();
        macro_rules! kinds {
            ($($kind:ty),*) => {$(
                let list = self.namespace.api::<$kind>().list(&all).await;
                for object in list.expect("the administrator may list").items {
                    ours.push((
                        format!("{} {}", stringify!($kind), object.name_any()),
                        object.uid().expect("a stored object has a uid"),
                        object.resource_version().expect("and a version"),
                    ));
                }
            )*};
        }
        kinds!(Pod, ConfigMap, ServiceAccount, Role, RoleBinding);
        ours.sort();
        ours
    }

    /// Their kinds and names.
    pub async fn names(&self) -> Vec<String> {
        let ours = self.ours().await;
        ours.into_iter().map(|(name, ..)| name).collect()
    }

    /// Waits until nothing of ours is left.
    pub async fn is_clean(&self) {
        eventually("nothing of ours is left", async || {
            self.ours().await.is_empty()
        })
        .await;
    }

    pub async fn pod(&self, name: &str) -> Option<Pod> {
        let pod = self.namespace.api::<Pod>().get_opt(name).await;
        pod.expect("the administrator may get pods")
    }

    /// Its uid; panics without it.
    pub async fn uid(&self, pod: &str) -> String {
        let there = self
            .pod(pod)
            .await
            .unwrap_or_else(|| panic!("no pod {pod}"));
        there.uid().expect("a stored pod has a uid")
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().expect("nobody panics")
    }
}

/// The rights of the manifest that people apply.
pub fn deployer() -> Vec<k8s_openapi::api::rbac::v1::PolicyRule> {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/config/rbac/deployer.yaml");
    role_in(manifest.as_ref(), "session-proxy-deployer")
}
