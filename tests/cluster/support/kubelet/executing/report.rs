//! What is reported of a pod whose containers run.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::{Container, Pod};
use serde_json::{Value, json};

use crate::support::kubelet::status::{new_id, now};

/// How one container is getting on.
#[derive(Debug, Clone)]
pub(super) enum State {
    Waiting,
    ImagePullBackOff(String),
    Running { since: String },
    Ended { code: i32, message: String },
}

pub(super) struct Report {
    ip: Ipv4Addr,
    states: HashMap<String, One>,
}

struct One {
    state: State,
    id: String,
    since: String,
}

impl State {
    pub(super) fn running() -> Self {
        Self::Running { since: now() }
    }
}

impl Report {
    pub(super) fn of(pod: &Pod, ip: Ipv4Addr) -> Self {
        let states = containers(pod).map(|container| {
            let one = One {
                state: State::Waiting,
                id: new_id(),
                since: now(),
            };
            (container.name.clone(), one)
        });
        Self {
            ip,
            states: states.collect(),
        }
    }

    pub(super) fn set(&mut self, container: &str, state: State) {
        let one = self.states.get_mut(container).expect("it is of this pod");
        if let State::Running { since } = &state {
            one.since.clone_from(since);
        }
        one.state = state;
    }

    /// As a merge patch wants it.
    pub(super) fn status(&self, pod: &Pod) -> Value {
        let spec = pod.spec.as_ref().expect("a pod has a spec");
        let init: Vec<_> = spec.init_containers.iter().flatten().collect();
        let main: Vec<_> = spec.containers.iter().collect();
        let is_initialized = init.iter().all(|one| self.code(one) == Some(0));
        let phase = self.phase(&init, &main, is_initialized);
        let is_ready = phase == "Running" && main.iter().all(|one| self.runs(one));
        let condition = |type_: &str, is_met: bool| {
            let status = if is_met { "True" } else { "False" };
            json!({"type": type_, "status": status, "lastTransitionTime": now()})
        };
        json!({
            "phase": phase,
            "hostIP": "127.0.0.1",
            "podIP": self.ip,
            "podIPs": [{"ip": self.ip}],
            "startTime": pod.metadata.creation_timestamp,
            "conditions": [
                condition("PodScheduled", true),
                condition("Initialized", is_initialized),
                condition("ContainersReady", is_ready),
                condition("Ready", is_ready),
            ],
            "initContainerStatuses": self.all(&init),
            "containerStatuses": self.all(&main),
        })
    }

    fn phase(&self, init: &[&Container], main: &[&Container], is_initialized: bool) -> &str {
        let failed =
            |all: &[&Container]| all.iter().any(|one| self.code(one).is_some_and(|c| c != 0));
        if failed(init) {
            return "Failed";
        }
        let has_begun = main.iter().any(|one| {
            !matches!(
                self.of_container(one),
                State::Waiting | State::ImagePullBackOff(_)
            )
        });
        if !is_initialized || !has_begun {
            return "Pending";
        }
        match main.iter().all(|one| self.code(one).is_some()) {
            false => "Running",
            true if failed(main) => "Failed",
            true => "Succeeded",
        }
    }

    fn of_container(&self, container: &Container) -> &State {
        &self.states[&container.name].state
    }

    fn code(&self, container: &Container) -> Option<i32> {
        match self.of_container(container) {
            State::Ended { code, .. } => Some(*code),
            _ => None,
        }
    }

    fn runs(&self, container: &Container) -> bool {
        matches!(self.of_container(container), State::Running { .. })
    }

    fn all(&self, containers: &[&Container]) -> Vec<Value> {
        containers.iter().map(|one| self.one(one)).collect()
    }

    fn one(&self, container: &Container) -> Value {
        let One { state, id, since } = &self.states[&container.name];
        let image = container.image.as_deref().unwrap_or_default();
        let shown = match state {
            State::Waiting => json!({"waiting": {"reason": "PodInitializing"}}),
            State::ImagePullBackOff(why) => {
                json!({"waiting": {"reason": "ImagePullBackOff", "message": why}})
            }
            State::Running { since } => json!({"running": {"startedAt": since}}),
            State::Ended { code, message } => json!({"terminated": {
                "exitCode": code,
                "reason": if *code == 0 { "Completed" } else { "Error" },
                "message": message,
                "startedAt": since,
                "finishedAt": now(),
                "containerID": id,
            }}),
        };
        json!({
            "name": container.name,
            "image": image,
            "imageID": format!("{image}@sha256:0"),
            "containerID": id,
            "ready": matches!(state, State::Running { .. }),
            "started": matches!(state, State::Running { .. }),
            "restartCount": 0,
            "state": shown,
        })
    }
}

fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.as_ref();
    let init = spec.and_then(|spec| spec.init_containers.as_ref());
    let main = spec.map(|spec| &spec.containers);
    init.into_iter().flatten().chain(main.into_iter().flatten())
}
