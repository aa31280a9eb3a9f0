//! What a kubelet reports of a pod.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use serde_json::{Value, json};

use super::{Place, Script};

/// How often a container that crashes has been started again when we look.
const CRASHES: u32 = 3;

/// The containers of a pod, by order.
#[derive(Debug, Clone)]
pub(super) struct Containers {
    ids: Vec<String>,
    /// The ids before the last restart.
    former: Option<Vec<String>>,
    restarts: u32,
}

impl Script {
    /// Whether there are processes behind the pod's address.
    pub(super) fn runs(self) -> bool {
        matches!(self, Self::Ready | Self::Unready)
    }
}

impl Containers {
    pub(super) fn of(pod: &Pod) -> Self {
        Self {
            ids: specs(pod).iter().map(|_| new_id()).collect(),
            former: None,
            restarts: 0,
        }
    }

    pub(super) fn restart(&mut self) {
        let ids = self.ids.iter().map(|_| new_id()).collect();
        self.former = Some(std::mem::replace(&mut self.ids, ids));
        self.restarts += 1;
    }

    pub(super) fn id(&self, index: usize) -> String {
        self.ids[index].clone()
    }
}

/// The status of a pod in its place, as a merge patch wants it.
pub(super) fn status(place: &Place) -> Value {
    let phase = match place.script {
        Script::Ready | Script::Unready | Script::CrashLoopBackOff { .. } => "Running",
        Script::ImagePullBackOff | Script::Unschedulable => "Pending",
        Script::Ended { exit_code: 0 } => "Succeeded",
        Script::Ended { .. } => "Failed",
    };
    let containers = specs(&place.pod).iter().enumerate();
    let containers: Vec<_> = containers
        .map(|(index, container)| container_status(place, index, container))
        .collect();
    json!({
        "phase": phase,
        "hostIP": "127.0.0.1",
        "hostIPs": [{"ip": "127.0.0.1"}],
        "podIP": place.ip,
        "podIPs": [{"ip": place.ip}],
        "startTime": place.pod.metadata.creation_timestamp,
        "conditions": conditions(place),
        "containerStatuses": containers,
    })
}

/// The status of a pod that has no place.
pub(super) fn unschedulable() -> Value {
    json!({
        "phase": "Pending",
        "conditions": [{
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/1 nodes are available: 1 Insufficient cpu.",
            "lastTransitionTime": now(),
        }],
    })
}

fn conditions(place: &Place) -> Vec<Value> {
    let met = |type_: &str| json!({"type": type_, "status": "True", "lastTransitionTime": now()});
    let names: Vec<_> = specs(&place.pod).iter().map(|c| c.name.as_str()).collect();
    let ready = |type_: &str| match place.script {
        Script::Ready => met(type_),
        Script::Ended { exit_code: 0 } => json!({
            "type": type_,
            "status": "False",
            "reason": "PodCompleted",
            "lastTransitionTime": now(),
        }),
        _ => json!({
            "type": type_,
            "status": "False",
            "reason": "ContainersNotReady",
            "message": format!("containers with unready status: [{}]", names.join(" ")),
            "lastTransitionTime": now(),
        }),
    };
    vec![
        met("PodScheduled"),
        met("PodReadyToStartContainers"),
        met("Initialized"),
        ready("ContainersReady"),
        ready("Ready"),
    ]
}

fn container_status(place: &Place, index: usize, container: &Container) -> Value {
    let image = container.image.as_deref().unwrap_or_default();
    let id = &place.containers.ids[index];
    let former = place.containers.former.as_ref().map(|ids| &ids[index]);
    let common = json!({"name": container.name, "image": image, "ready": false});
    let rest = match place.script {
        Script::Ready | Script::Unready => json!({
            "ready": place.script == Script::Ready,
            "started": true,
            "imageID": format!("{image}@sha256:0"),
            "containerID": id,
            "restartCount": place.containers.restarts,
            "state": {"running": {"startedAt": now()}},
            "lastState": former.map_or(json!({}), |id| terminated(id, 137)),
        }),
        Script::ImagePullBackOff | Script::Unschedulable => json!({
            "started": false,
            "imageID": "",
            "restartCount": 0,
            "state": {"waiting": {
                "reason": "ImagePullBackOff",
                "message": format!("Back-off pulling image \"{image}\": ErrImagePull: {image}: not found"),
            }},
        }),
        Script::CrashLoopBackOff { exit_code } => json!({
            "started": false,
            "imageID": format!("{image}@sha256:0"),
            "containerID": id,
            "restartCount": CRASHES,
            "state": {"waiting": {
                "reason": "CrashLoopBackOff",
                "message": format!("back-off 40s restarting failed container={}", container.name),
            }},
            "lastState": terminated(id, exit_code),
        }),
        Script::Ended { exit_code } => json!({
            "started": false,
            "imageID": format!("{image}@sha256:0"),
            "containerID": id,
            "restartCount": place.containers.restarts,
            "state": terminated(id, exit_code),
        }),
    };
    merged(common, rest)
}

fn terminated(id: &str, exit_code: i32) -> Value {
    json!({"terminated": {
        "containerID": id,
        "exitCode": exit_code,
        "reason": if exit_code == 0 { "Completed" } else { "Error" },
        "startedAt": now(),
        "finishedAt": now(),
    }})
}

fn merged(mut one: Value, other: Value) -> Value {
    if let (Some(one), Value::Object(other)) = (one.as_object_mut(), other) {
        one.extend(other);
    }
    one
}

fn specs(pod: &Pod) -> &[Container] {
    pod.spec.as_ref().map_or(&[], |spec| &spec.containers)
}

pub(super) fn new_id() -> String {
    let half = || fastrand::u128(..);
    format!("containerd://{:032x}{:032x}", half(), half())
}

/// Whole seconds, as Kubernetes writes times.
pub(super) fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
