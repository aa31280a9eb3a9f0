//! What a pod's status says about why it is not ready.
//!
//! Pure: a pod in, a state out. Whoever waits decides how long; what the log of a crashed container
//! says is for others to read.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};

use crate::control::workload::Replica;

/// Reasons of the kubelet which mean that a container's image is not to be had.
const IMAGE: [&str; 7] = [
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImageInspectError",
    "RegistryUnavailable",
    "SignatureValidationFailed",
];

/// Those among them and others that do not mend themselves.
const FINAL: [&str; 2] = ["InvalidImageName", "ErrImageNeverPull"];

/// Reasons which mean that its image is there and it still cannot be started.
const START: [&str; 5] = [
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
    "PreCreateHookError",
    "PostStartHookError",
];

/// How a pod is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    /// It serves, at this address.
    Ready(IpAddr),
    /// It may well become ready; this is what it waits for.
    Starting(String),
    /// It tries and fails; some of these mend themselves.
    Failing(Trouble),
    /// It will never be ready.
    Over(Trouble),
}

/// What is wrong with a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    pub(super) said: String,
    /// Whose log may tell more.
    pub(super) crashed: Option<Crashed>,
}

/// A container that ended when it should not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Crashed {
    pub(super) container: String,
    /// Its log is that of the run before the present one.
    pub(super) is_previous: bool,
}

/// How this pod is.
pub(super) fn of(pod: &Pod) -> State {
    if let Some(replica) = Replica::of(pod) {
        return State::Ready(replica.ip);
    }
    let Some(status) = &pod.status else {
        return State::Starting("a node to run on".to_owned());
    };
    if let Some(trouble) = ended(status) {
        return State::Over(trouble);
    }
    let init = status.init_container_statuses.iter().flatten();
    let containers: Vec<_> = init
        .chain(status.container_statuses.iter().flatten())
        .collect();
    let failing = containers.iter().find_map(|container| failing(container));
    failing.unwrap_or_else(|| State::Starting(missing(status, &containers)))
}

/// A pod that has come to its end, as evicted ones do.
fn ended(status: &PodStatus) -> Option<Trouble> {
    let phase = status.phase.as_deref()?;
    if !matches!(phase, "Failed" | "Succeeded") {
        return None;
    }
    let reason = status.reason.as_deref().unwrap_or(phase);
    let said = match status.message.as_deref() {
        Some(message) => format!("it has ended: {reason}: {message}"),
        None => format!("it has ended: {reason}"),
    };
    let crashed = status.container_statuses.iter().flatten().next();
    Some(Trouble {
        said,
        crashed: crashed.map(|container| Crashed {
            container: container.name.clone(),
            is_previous: false,
        }),
    })
}

fn failing(container: &ContainerStatus) -> Option<State> {
    let name = &container.name;
    let state = container.state.as_ref()?;
    if let Some(waiting) = &state.waiting {
        let reason = waiting.reason.as_deref().unwrap_or_default();
        let because = match waiting.message.as_deref() {
            Some(message) => format!("{reason}: {message}"),
            None => reason.to_owned(),
        };
        let said = if IMAGE.contains(&reason) {
            format!(
                "the image {} of container {name} cannot be pulled: {because}",
                container.image
            )
        } else if START.contains(&reason) {
            format!("container {name} cannot be started: {because}")
        } else {
            return crashed(container, true);
        };
        let trouble = Trouble {
            said,
            crashed: None,
        };
        return Some(if FINAL.contains(&reason) {
            State::Over(trouble)
        } else {
            State::Failing(trouble)
        });
    }
    crashed(container, state.terminated.is_none())
}

/// A container whose present or last run ended badly, and which is not ready since.
fn crashed(container: &ContainerStatus, is_previous: bool) -> Option<State> {
    let name = &container.name;
    let state = if is_previous {
        &container.last_state
    } else {
        &container.state
    };
    let end = state.as_ref()?.terminated.as_ref()?;
    let is_well = container.ready || (end.exit_code == 0 && !is_previous);
    if is_well {
        return None;
    }
    let why = match (end.signal, end.reason.as_deref()) {
        (Some(signal), _) if signal != 0 => format!("signal {signal}"),
        (_, Some(reason)) if reason != "Error" => {
            format!("exit code {} ({reason})", end.exit_code)
        }
        _ => format!("exit code {}", end.exit_code),
    };
    let message = end.message.as_deref().map(str::trim).unwrap_or_default();
    let message = if message.is_empty() {
        String::new()
    } else {
        format!(": {message}")
    };
    let times = match container.restart_count {
        0 => String::new(),
        1 => ", and was started again once".to_owned(),
        times => format!(", and was started again {times} times"),
    };
    Some(State::Failing(Trouble {
        said: format!("container {name} ended with {why}{message}{times}"),
        crashed: Some(Crashed {
            container: name.clone(),
            is_previous,
        }),
    }))
}

/// What a pod waits for.
fn missing(status: &PodStatus, containers: &[&ContainerStatus]) -> String {
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let refused = conditions
        .iter()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
    if let Some(condition) = refused {
        let message = condition.message.as_deref().unwrap_or("no node fits");
        return format!("a node to run on: {message}");
    }
    if containers.is_empty() {
        return if status.host_ip.is_none() {
            "a node to run on".to_owned()
        } else {
            "its containers to be created".to_owned()
        };
    }
    let is_starting = |container: &&&ContainerStatus| {
        let state = container.state.as_ref();
        state.is_none_or(|state| state.waiting.is_some())
    };
    if let Some(container) = containers.iter().find(is_starting) {
        let state = container
            .state
            .as_ref()
            .and_then(|state| state.waiting.as_ref());
        let reason = state.and_then(|waiting| waiting.reason.as_deref());
        let reason = reason.unwrap_or("not created yet");
        return format!("container {} to start ({reason})", container.name);
    }
    match containers.iter().find(|container| !container.ready) {
        Some(container) => format!(
            "the readiness probe of container {} to succeed",
            container.name
        ),
        None => "its readiness gates".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(status: &Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "pr-orders-pr-42"}, "status": status}))
            .unwrap()
    }

    /// A scheduled pod with one container in that state.
    fn with_container(container: &Value) -> Pod {
        let mut status =
            json!({"name": "orders", "image": "r/orders:1", "ready": false, "restartCount": 0});
        for (key, value) in container.as_object().unwrap() {
            status[key] = value.clone();
        }
        pod(&json!({"phase": "Pending", "hostIP": "10.0.0.1", "containerStatuses": [status]}))
    }

    fn said(state: State) -> String {
        match state {
            State::Ready(ip) => format!("ready at {ip}"),
            State::Starting(awaited) => format!("starting: {awaited}"),
            State::Failing(trouble) => format!("failing: {}", trouble.said),
            State::Over(trouble) => format!("over: {}", trouble.said),
        }
    }

    #[test]
    fn a_pod_is_ready_when_its_condition_says_so_and_it_stays() {
        let status =
            json!({"podIP": "10.1.2.3", "conditions": [{"type": "Ready", "status": "True"}]});
        let mut ready = pod(&status);
        assert_eq!(said(of(&ready)), "ready at 10.1.2.3");

        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let time = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now);
        ready.metadata.deletion_timestamp = Some(time);
        assert!(matches!(of(&ready), State::Starting(_)));
    }

    #[test]
    fn what_is_on_its_way_is_named() {
        for (status, expected) in [
            (json!({}), "a node to run on"),
            (
                json!({"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}]}),
                "a node to run on: 0/3 nodes are available",
            ),
            (
                json!({"hostIP": "10.0.0.1"}),
                "its containers to be created",
            ),
        ] {
            assert_eq!(said(of(&pod(&status))), format!("starting: {expected}"));
        }
        for (container, expected) in [
            (
                json!({"state": {"waiting": {"reason": "ContainerCreating"}}}),
                "container orders to start (ContainerCreating)",
            ),
            (
                json!({"state": {"running": {}}}),
                "the readiness probe of container orders to succeed",
            ),
            (
                json!({"state": {"running": {}}, "ready": true}),
                "its readiness gates",
            ),
        ] {
            let pod = with_container(&container);
            assert_eq!(said(of(&pod)), format!("starting: {expected}"));
        }
    }

    #[test]
    fn what_the_kubelet_complains_of_is_told_in_its_words() {
        for (reason, message, expected) in [
            (
                "ErrImagePull",
                "manifest unknown",
                "failing: the image r/orders:1 of container orders cannot be pulled: ErrImagePull: manifest unknown",
            ),
            (
                "InvalidImageName",
                "invalid reference format",
                "over: the image r/orders:1 of container orders cannot be pulled: InvalidImageName: invalid reference format",
            ),
            (
                "CreateContainerConfigError",
                "secret \"db\" not found",
                "failing: container orders cannot be started: CreateContainerConfigError: secret \"db\" not found",
            ),
        ] {
            let waiting = json!({"waiting": {"reason": reason, "message": message}});
            let pod = with_container(&json!({"state": waiting}));
            assert_eq!(said(of(&pod)), expected);
        }
    }

    #[test]
    fn a_crash_is_told_with_its_code_and_whose_log_to_read() {
        let ended = |code: i32, reason: &str| json!({"terminated": {"exitCode": code, "reason": reason, "message": "no database\n"}});
        let waiting = json!({"waiting": {"reason": "CrashLoopBackOff"}});
        for (container, expected, is_previous) in [
            (
                json!({"state": waiting, "lastState": ended(3, "Error"), "restartCount": 2}),
                "exit code 3: no database, and was started again 2 times",
                true,
            ),
            (
                json!({"state": ended(137, "OOMKilled")}),
                "exit code 137 (OOMKilled): no database",
                false,
            ),
            (
                json!({"state": {"running": {}}, "lastState": ended(1, "Error"), "restartCount": 1}),
                "exit code 1: no database, and was started again once",
                true,
            ),
        ] {
            let State::Failing(trouble) = of(&with_container(&container)) else {
                panic!("{container}");
            };
            assert_eq!(
                trouble.said,
                format!("container orders ended with {expected}")
            );
            let container = "orders".to_owned();
            assert_eq!(
                trouble.crashed,
                Some(Crashed {
                    container,
                    is_previous
                })
            );
        }
    }

    #[test]
    fn a_crash_that_was_got_over_is_none() {
        let last = json!({"terminated": {"exitCode": 1}});
        let recovered =
            json!({"state": {"running": {}}, "ready": true, "lastState": last, "restartCount": 1});
        assert!(matches!(
            of(&with_container(&recovered)),
            State::Starting(_)
        ));

        let done = json!({"state": {"terminated": {"exitCode": 0, "reason": "Completed"}}});
        assert!(matches!(of(&with_container(&done)), State::Starting(_)));
    }

    #[test]
    fn an_init_container_that_fails_is_found_first() {
        let init = json!({"name": "migrate", "image": "r/migrate:1", "ready": false, "restartCount": 4,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 2}}});
        let app = json!({"name": "orders", "image": "r/orders:1", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": "PodInitializing"}}});
        let status = json!({"hostIP": "10.0.0.1", "initContainerStatuses": [init], "containerStatuses": [app]});
        let said = said(of(&pod(&status)));
        assert!(
            said.starts_with("failing: container migrate ended with exit code 2"),
            "{said}"
        );
    }

    #[test]
    fn a_pod_that_has_ended_is_over() {
        let status = json!({"phase": "Failed", "reason": "Evicted", "message": "The node was low on memory"});
        assert_eq!(
            said(of(&pod(&status))),
            "over: it has ended: Evicted: The node was low on memory"
        );
    }
}
