//! One pod's life, from its binding to its last deletion.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::Status;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::executing::execute;
use super::status::{Containers, status, unschedulable};
use super::{Place, Script, Shared};
use crate::support::baseline::name_of;

/// Lives as the pod's script says. The pod is gone when nobody sends sightings any more.
pub(super) async fn live(shared: Arc<Shared>, mut sightings: watch::Receiver<Pod>) {
    let pod = sightings.borrow().clone();
    if let Some(machine) = shared.machine.clone() {
        if shared.bind(&pod).await.is_some() {
            execute(shared, machine, sightings).await;
        }
        return;
    }
    let script = shared.desk().script_for(&pod);
    if script == Script::Unschedulable {
        // The API server deletes a pod without a node by itself.
        shared.patch(&pod, unschedulable()).await;
        return;
    }
    if shared.bind(&pod).await.is_none() {
        return;
    }
    let place = shared.allot(pod, script);
    if script.runs() {
        shared.containers_start(&place).await;
    }
    shared.show(&place).await;
    shared.put(place.clone());

    let deleted = |pod: &Pod| pod.metadata.deletion_timestamp.is_some();
    let leaves = sightings.wait_for(deleted).await.is_ok();
    if leaves {
        shared.may_end(&mut sightings).await;
    }
    // The test may have changed how it fares.
    let place = shared.take(&place);
    if place.script.runs() {
        shared.containers_stop(&place).await;
    }
    if leaves {
        shared.finish(place).await;
    }
}

impl Shared {
    async fn bind(&self, pod: &Pod) -> Option<()> {
        let bound = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref());
        if bound.is_some() {
            // By an earlier kubelet of this namespace.
            return Some(());
        }
        let name = name_of(pod);
        let binding = json!({
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": name, "uid": pod.metadata.uid},
            "target": {"kind": "Node", "name": self.node},
        });
        let post = PostParams::default();
        let bind = || {
            self.pods
                .create_subresource::<Value, Status>("binding", &name, &post, &binding)
        };
        insist(bind).await.map(drop)
    }

    /// A place for a pod; the address it has had before, if any.
    fn allot(&self, pod: Pod, script: Script) -> Place {
        let had = pod
            .status
            .as_ref()
            .and_then(|status| status.pod_ip.as_ref());
        let ip = had
            .and_then(|ip| ip.parse().ok())
            .unwrap_or_else(|| self.desk().ip_for(&name_of(&pod)));
        let containers = Containers::of(&pod);
        Place {
            pod,
            ip,
            script,
            containers,
        }
    }

    /// Returns when deletions are not held, or when somebody has deleted the pod by force.
    async fn may_end(&self, sightings: &mut watch::Receiver<Pod>) {
        let mut held = self.held.subscribe();
        tokio::select! {
            _ = held.wait_for(|held| !held) => {}
            _ = sightings.wait_for(|_| false) => {}
        }
    }

    /// The pod's place as it is now, given up unless a new pod of that name has taken it.
    fn take(&self, place: &Place) -> Place {
        let name = name_of(&place.pod);
        let mut desk = self.desk();
        match desk.places.get(&name) {
            Some(now) if now.pod.metadata.uid == place.pod.metadata.uid => {
                desk.places.remove(&name).expect("it was there")
            }
            _ => place.clone(),
        }
    }

    /// Ends a graceful deletion as a kubelet does: the containers are reported as ended, then the
    /// pod is deleted without grace.
    async fn finish(&self, mut place: Place) {
        if place.script.runs() {
            place.script = Script::Ended { exit_code: 0 };
            self.show(&place).await;
        }
        self.remove(&place.pod).await;
    }

    /// Deletes the pod without grace: nothing of it runs.
    pub(super) async fn remove(&self, pod: &Pod) {
        let now = DeleteParams {
            preconditions: Some(Preconditions {
                uid: pod.metadata.uid.clone(),
                ..Preconditions::default()
            }),
            ..DeleteParams::default().grace_period(0)
        };
        let name = name_of(pod);
        insist(|| self.pods.delete(&name, &now)).await;
    }

    /// Tells the API server how the pod fares.
    pub(super) async fn show(&self, place: &Place) {
        self.patch(&place.pod, status(place)).await;
    }

    pub(super) async fn patch(&self, pod: &Pod, status: Value) {
        let name = name_of(pod);
        // The uid makes it a conflict when another pod has got this name.
        let patch = Patch::Merge(json!({"metadata": {"uid": pod.metadata.uid}, "status": status}));
        let parameters = PatchParams::default();
        insist(|| self.pods.patch_status(&name, &parameters, &patch)).await;
    }
}

/// Asks until the API server has answered. `None` when there is no such pod any more.
async fn insist<F, Fut, T>(request: F) -> Option<T>
where
    F: Fn() -> Fut,
    Fut: Future<Output = kube::Result<T>>,
{
    loop {
        match request().await {
            Ok(answer) => return Some(answer),
            Err(kube::Error::Api(refusal)) if matches!(refusal.code, 404 | 409) => return None,
            Err(kube::Error::Api(refusal)) if refusal.code < 500 => {
                panic!("the API server does not take what the kubelet says: {refusal}")
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}
