//! A live app: a Deployment and its Service, with pods that the real controllers make.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::json;

use super::namespace::Namespace;
use super::{eventually, found};

/// The port of every app that is told no other. Not 8080: Tekton's programs listen there, on all addresses.
pub const PORT: u16 = 8088;

/// An app that was there before any pull request. Goes with its namespace.
pub struct Baseline {
    pub name: String,
    pods: Api<Pod>,
    deployments: Api<Deployment>,
}

impl Baseline {
    /// The app with that many ready replicas. A kubelet must be at work in the namespace.
    pub async fn deploy(namespace: &Namespace, name: &str, replicas: usize) -> Self {
        Self::deploy_on(PORT, namespace, name, replicas).await
    }

    /// The same, listening on another port.
    pub async fn deploy_on(port: u16, namespace: &Namespace, name: &str, replicas: usize) -> Self {
        namespace.create(&deployment(name, replicas, port)).await;
        namespace.create(&service(name)).await;
        let baseline = Self {
            name: name.to_owned(),
            pods: namespace.api(),
            deployments: namespace.api(),
        };
        baseline.ready(replicas).await;
        baseline
    }

    /// The names of its pods that are ready and stay, once there are that many and no others.
    pub async fn ready(&self, replicas: usize) -> Vec<String> {
        let what = format!("{replicas} ready pods of {}", self.name);
        found(&what, async || {
            let pods = self.pods().await;
            let ready: Vec<_> = pods.iter().filter(|pod| is_ready(pod)).collect();
            let settled = ready.len() == replicas && pods.len() == replicas;
            settled.then(|| ready.iter().map(|pod| name_of(pod)).collect())
        })
        .await
    }

    /// All its pods, those that are going away too.
    pub async fn pods(&self) -> Vec<Pod> {
        let labels = ListParams::default().labels(&format!("app={}", self.name));
        let list = self.pods.list(&labels).await;
        list.expect("the administrator may list pods").items
    }

    /// Returns at once; wait with [`Self::ready`].
    pub async fn scale(&self, replicas: usize) {
        self.patch(json!({"spec": {"replicas": replicas}})).await;
    }

    /// Replaces every pod by a new one, as `kubectl rollout restart` does. Returns when the
    /// old ones are gone.
    pub async fn roll(&self) -> Vec<String> {
        let before = self.pods().await;
        let stamp = format!("{:x}", fastrand::u64(..));
        let template = json!({"metadata": {"annotations": {"restarted": stamp}}});
        self.patch(json!({"spec": {"template": template}})).await;
        let old: Vec<_> = before.iter().map(name_of).collect();
        eventually("the old pods are gone", async || {
            let now = self.pods().await;
            !now.iter().any(|pod| old.contains(&name_of(pod)))
        })
        .await;
        self.ready(before.len()).await
    }

    async fn patch(&self, patch: serde_json::Value) {
        self.deployments
            .patch(&self.name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .expect("the administrator may patch deployments");
    }
}

/// Ready, and not being deleted.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    let ready = conditions.is_some_and(|conditions| {
        conditions
            .iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True")
    });
    ready && pod.metadata.deletion_timestamp.is_none()
}

/// Every object of the API server has a name.
pub fn name_of(pod: &Pod) -> String {
    pod.metadata.name.clone().expect("a stored pod has a name")
}

/// With all that a pull request's pod is to take over: a port, environment, probes, resources.
fn deployment(name: &str, replicas: usize, port: u16) -> Deployment {
    let object = json!({
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "terminationGracePeriodSeconds": 5,
                    "containers": [{
                        "name": name,
                        "image": format!("registry.example/{name}:live"),
                        "ports": [{"name": "http", "containerPort": port}],
                        "env": [
                            {"name": "APP", "value": name},
                            {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                        ],
                        "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 1},
                        "livenessProbe": {"httpGet": {"path": "/alive", "port": "http"}},
                        "resources": {
                            "requests": {"cpu": "50m", "memory": "32Mi"},
                            "limits": {"memory": "64Mi"},
                        },
                    }],
                },
            },
        },
    });
    serde_json::from_value(object).expect("this is a deployment")
}

fn service(name: &str) -> Service {
    let object = json!({
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "selector": {"app": name},
            "ports": [{"name": "http", "port": 80, "targetPort": "http"}],
        },
    });
    serde_json::from_value(object).expect("this is a service")
}
