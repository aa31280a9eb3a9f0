//! The node that a namespace's pods run on: where the API server finds their kubelet.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::Node as Object;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::json;

use crate::support::cluster::at_last;
use crate::support::namespace::Namespace;

/// A Node, named like the namespace. Goes away when it is dropped.
pub(super) struct Node {
    pub(super) name: String,
    kubeconfig: PathBuf,
}

impl Node {
    /// `port` is where its kubelet is asked for logs.
    pub(super) async fn register(namespace: &Namespace, port: u16) -> Self {
        let name = namespace.name().to_owned();
        let object: Object = serde_json::from_value(json!({
            "metadata": {"name": name},
            "status": {
                "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
            },
        }))
        .expect("this is a node");
        Api::<Object>::all(namespace.client())
            .create(&PostParams::default(), &object)
            .await
            .expect("a namespace has one kubelet at a time");
        Self {
            name,
            kubeconfig: namespace.cluster().kubeconfig(),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let name = self.name.clone();
        at_last(self.kubeconfig.clone(), async move |client| {
            let nodes = Api::<Object>::all(client);
            let _ = nodes.delete(&name, &DeleteParams::default()).await;
        });
    }
}
