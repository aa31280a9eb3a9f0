//! What is known of the pods, and the table that follows from it. No network.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use kube::core::{NotUsed, Object};
use serde::Deserialize;
use tracing::warn;

use crate::kubernetes::SESSION_LABEL;
use crate::upstream::{Discovered, Endpoint, is_forbidden};

/// A pod as the API server tells of it, as much as matters here. The rest of it is much more, and there
/// may be thousands.
pub(super) type Told = Object<NotUsed, Status>;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Status {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    conditions: Option<Vec<Condition>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

/// All pods of the app that carry a session, whether requests may be sent to them or not.
#[derive(Debug, Default)]
pub(super) struct Pods {
    /// By name, which is theirs alone at any one time.
    known: BTreeMap<String, Pod>,
    /// What was told so far is counted, to know the later of two.
    told: u64,
}

#[derive(Debug)]
struct Pod {
    uid: Option<String>,
    session: Arc<str>,
    /// Whether it was told to end: its session does without it.
    is_leaving: bool,
    /// The address it holds, and since when.
    claim: Option<Claim>,
    /// Where to reach it, while it may be sent requests.
    endpoint: Option<Arc<Endpoint>>,
}

/// A pod's hold on an address. Of two the greater is the newer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    created: Option<Timestamp>,
    told: u64,
    ip: IpAddr,
}

impl Pods {
    /// A pod is there, or has changed.
    pub(super) fn apply(&mut self, told: &Told) {
        let name = told.metadata.name.as_deref().unwrap_or_default();
        let before = self.known.remove(name);
        self.note(told, before);
    }

    /// A pod is gone.
    pub(super) fn remove(&mut self, told: &Told) {
        let name = told.metadata.name.as_deref().unwrap_or_default();
        self.known.remove(name);
    }

    /// These are all there are.
    pub(super) fn replace(&mut self, all: &[Told]) {
        let mut before = std::mem::take(&mut self.known);
        for told in all {
            let name = told.metadata.name.as_deref().unwrap_or_default();
            self.note(told, before.remove(name));
        }
    }

    fn note(&mut self, told: &Told, before: Option<Pod>) {
        self.told += 1;
        let (metadata, status) = (&told.metadata, told.status.as_ref());
        let label = |key| metadata.labels.as_ref().and_then(|labels| labels.get(key));
        let (Some(name), Some(session)) = (&metadata.name, label(SESSION_LABEL)) else {
            return;
        };
        let before = before.filter(|before| before.uid == metadata.uid);
        let ip = status.and_then(Status::held_ip);
        let claim = ip.map(|ip| Claim {
            created: metadata.creation_timestamp.as_ref().map(|time| time.0),
            // An address that it had before was not claimed just now.
            told: match before.as_ref().and_then(|before| before.claim) {
                Some(claim) if claim.ip == ip => claim.told,
                _ => self.told,
            },
            ip,
        });
        let is_leaving = metadata.deletion_timestamp.is_some();
        let is_ready = !is_leaving && status.is_some_and(Status::is_ready);
        let endpoint = ip.filter(|_| is_ready).and_then(|ip| {
            let known = before.and_then(|before| before.endpoint);
            // The same pod at the same address keeps its connections.
            match known.filter(|endpoint| endpoint.host == ip.into()) {
                Some(endpoint) => Some(endpoint),
                None if is_forbidden(ip) => {
                    warn!(pod = name, %ip, "no request may be sent to this address of a pod");
                    None
                }
                None => Some(Endpoint::of_pod(name, ip)),
            }
        });
        let pod = Pod {
            uid: metadata.uid.clone(),
            session: Arc::from(session.as_str()),
            is_leaving,
            claim,
            endpoint,
        };
        self.known.insert(name.clone(), pod);
    }

    /// Each session that has a pod, with those of its pods that requests may be sent to. That may be none:
    /// such a session is known all the same, since its requests are not meant for the baseline.
    ///
    /// Of several pods with one address only the newest can really have it. That one counts even when it is
    /// not ready: what is sent to the others would reach it.
    pub(super) fn table(&self) -> Discovered {
        let mut holders: HashMap<IpAddr, Claim> = HashMap::with_capacity(self.known.len());
        for claim in self.known.values().filter_map(|pod| pod.claim) {
            let newest = holders.entry(claim.ip).or_insert(claim);
            *newest = claim.max(*newest);
        }
        let mut table = Discovered::new();
        for pod in self.known.values().filter(|pod| !pod.is_leaving) {
            let endpoints = table.entry(Arc::clone(&pod.session)).or_default();
            if let (Some(claim), Some(endpoint)) = (pod.claim, &pod.endpoint)
                && holders.get(&claim.ip) == Some(&claim)
            {
                endpoints.push(Arc::clone(endpoint));
            }
        }
        table
    }
}

impl Status {
    /// The address, unless the pod has ended: its address is free for others then.
    fn held_ip(&self) -> Option<IpAddr> {
        let has_ended = matches!(self.phase.as_deref(), Some("Succeeded" | "Failed"));
        let ip = self.pod_ip.as_deref().filter(|_| !has_ended)?;
        ip.parse().ok()
    }

    fn is_ready(&self) -> bool {
        let mut conditions = self.conditions.iter().flatten();
        self.phase.as_deref() == Some("Running")
            && conditions.any(|condition| condition.kind == "Ready" && condition.status == "True")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A ready pod of that session, created that many seconds after another.
    fn pod(name: &str, session: &str, ip: &str, created: u8) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": name, "uid": format!("uid-of-{name}"),
                "creationTimestamp": format!("2026-01-02T03:04:{created:02}Z"),
                "labels": { "session-proxy/app": "orders", "session-proxy/session": session },
                "managedFields": [{ "manager": "kubelet", "fieldsV1": { "f:status": {} } }],
            },
            "spec": { "containers": [{ "name": "app", "image": "orders" }] },
            "status": {
                "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }],
                "conditions": [
                    { "type": "PodScheduled", "status": "True" },
                    { "type": "Ready", "status": "True" },
                ],
            },
        })
    }

    fn with(mut pod: Value, path: &str, value: Value) -> Value {
        *pod.pointer_mut(path).expect("it is there") = value;
        pod
    }

    fn told(pod: &Value) -> Told {
        serde_json::from_value(pod.clone()).expect("a pod")
    }

    fn listed<'v>(pods: impl IntoIterator<Item = &'v Value>) -> Pods {
        let mut known = Pods::default();
        known.replace(&pods.into_iter().map(told).collect::<Vec<_>>());
        known
    }

    /// `pr-1: a 10.0.0.1, b 10.0.0.2; pr-2: c 10.0.0.3; pr-3: none`
    fn written(pods: &Pods) -> String {
        let table = pods.table();
        let sessions = table.iter().map(|(session, endpoints)| {
            let name = |endpoint: &Arc<Endpoint>| endpoint.pod.clone().expect("a pod's");
            let pods = endpoints
                .iter()
                .map(|endpoint| format!("{} {endpoint}", name(endpoint)));
            match pods.collect::<Vec<_>>().join(", ") {
                pods if pods.is_empty() => format!("{session}: none"),
                pods => format!("{session}: {pods}"),
            }
        });
        sessions.collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn only_a_ready_pod_is_sent_requests_and_any_that_stays_makes_its_session_known() {
        let ready = || pod("a", "pr-1", "10.0.0.1", 0);
        let not_ready = json!([{ "type": "Ready", "status": "False" }]);
        let unknown = json!([{ "type": "Ready", "status": "Unknown" }]);
        let other = json!([{ "type": "ContainersReady", "status": "True" }]);
        let mut deleted = ready();
        deleted["metadata"]["deletionTimestamp"] = json!("2026-01-02T03:05:00Z");
        let mut deleted_early = deleted.clone();
        deleted_early["status"] = json!({ "phase": "Pending" });
        let mut unlabelled = ready();
        unlabelled["metadata"]["labels"] = json!({ "session-proxy/app": "orders" });
        let mut statusless = ready();
        statusless.as_object_mut().expect("a map").remove("status");
        for (case, pod, expected) in [
            ("ready", ready(), "pr-1: a 10.0.0.1"),
            (
                "IPv6",
                with(ready(), "/status/podIP", json!("fd00::7")),
                "pr-1: a fd00::7",
            ),
            (
                "not ready",
                with(ready(), "/status/conditions", not_ready),
                "pr-1: none",
            ),
            (
                "unknown",
                with(ready(), "/status/conditions", unknown),
                "pr-1: none",
            ),
            (
                "another condition",
                with(ready(), "/status/conditions", other),
                "pr-1: none",
            ),
            (
                "no conditions",
                with(ready(), "/status/conditions", json!(null)),
                "pr-1: none",
            ),
            (
                "pending",
                with(ready(), "/status/phase", json!("Pending")),
                "pr-1: none",
            ),
            (
                "succeeded",
                with(ready(), "/status/phase", json!("Succeeded")),
                "pr-1: none",
            ),
            (
                "failed",
                with(ready(), "/status/phase", json!("Failed")),
                "pr-1: none",
            ),
            (
                "lost",
                with(ready(), "/status/phase", json!("Unknown")),
                "pr-1: none",
            ),
            ("being deleted", deleted, ""),
            ("being deleted before it ran", deleted_early, ""),
            (
                "no address",
                with(ready(), "/status/podIP", json!(null)),
                "pr-1: none",
            ),
            (
                "an empty address",
                with(ready(), "/status/podIP", json!("")),
                "pr-1: none",
            ),
            (
                "no address at all",
                with(ready(), "/status/podIP", json!("x")),
                "pr-1: none",
            ),
            (
                "metadata service",
                with(ready(), "/status/podIP", json!("169.254.169.254")),
                "pr-1: none",
            ),
            ("no session", unlabelled, ""),
            ("just made", statusless, "pr-1: none"),
        ] {
            assert_eq!(written(&listed([&pod])), expected, "{case}, listed");
            let mut watched = listed([&ready()]);
            watched.apply(&told(&pod));
            assert_eq!(written(&watched), expected, "{case}, watched");
        }
    }

    #[test]
    fn a_session_may_have_several_pods_and_is_known_until_the_last_goes() {
        let (a, mut b) = (
            pod("a", "pr-1", "10.0.0.1", 0),
            pod("b", "pr-1", "10.0.0.2", 0),
        );
        let c = pod("c", "pr-2", "10.0.0.3", 0);
        let mut pods = listed([&a, &b, &c]);
        assert_eq!(
            written(&pods),
            "pr-1: a 10.0.0.1, b 10.0.0.2; pr-2: c 10.0.0.3"
        );

        pods.remove(&told(&a));

        assert_eq!(written(&pods), "pr-1: b 10.0.0.2; pr-2: c 10.0.0.3");

        let not_ready = json!([{ "type": "Ready", "status": "False" }]);
        pods.apply(&told(&with(a, "/status/conditions", not_ready)));
        b["metadata"]["deletionTimestamp"] = json!("2026-01-02T03:05:00Z");
        pods.apply(&told(&b));
        assert_eq!(written(&pods), "pr-1: none; pr-2: c 10.0.0.3");

        pods.remove(&told(&pod("a", "pr-1", "10.0.0.1", 0)));
        assert_eq!(written(&pods), "pr-2: c 10.0.0.3");
    }

    #[test]
    fn another_label_is_another_session() {
        let mut pods = listed([&pod("a", "pr-1", "10.0.0.1", 0)]);

        pods.apply(&told(&pod("a", "pr-2", "10.0.0.1", 0)));

        assert_eq!(written(&pods), "pr-2: a 10.0.0.1");
    }

    #[test]
    fn of_two_pods_with_one_address_the_newer_has_it() {
        let (old, new) = (
            pod("b-old", "pr-1", "10.0.0.1", 1),
            pod("a-new", "pr-2", "10.0.0.1", 2),
        );
        for (case, first, second) in [
            ("in order", &old, &new),
            ("the other way round", &new, &old),
        ] {
            let mut pods = listed([first]);
            pods.apply(&told(second));
            let expected = "pr-1: none; pr-2: a-new 10.0.0.1";
            assert_eq!(written(&pods), expected, "{case}");
            assert_eq!(
                written(&listed([first, second])),
                expected,
                "{case}, listed"
            );
        }
    }

    #[test]
    fn created_in_the_same_second_the_later_claim_counts() {
        let (a, b) = (
            pod("a", "pr-1", "10.0.0.1", 1),
            pod("b", "pr-2", "10.0.0.1", 1),
        );
        let mut pods = listed([&a]);
        pods.apply(&told(&b));
        assert_eq!(written(&pods), "pr-1: none; pr-2: b 10.0.0.1");

        pods.apply(&told(&a));
        assert_eq!(
            written(&pods),
            "pr-1: none; pr-2: b 10.0.0.1",
            "only a word about the older one"
        );

        let mut pods = listed([&b]);
        pods.apply(&told(&a));
        assert_eq!(written(&pods), "pr-1: a 10.0.0.1; pr-2: none");
    }

    #[test]
    fn a_newer_pod_has_the_address_before_it_is_ready_and_until_it_has_ended() {
        let (old, new) = (
            pod("old", "pr-1", "10.0.0.1", 1),
            pod("new", "pr-2", "10.0.0.1", 2),
        );
        let mut pods = listed([&old]);
        let mut deleted = new.clone();
        deleted["metadata"]["deletionTimestamp"] = json!("2026-01-02T03:05:00Z");
        for (case, pod, expected) in [
            (
                "starting",
                with(new.clone(), "/status/conditions", json!([])),
                "pr-1: none; pr-2: none",
            ),
            ("ready", new.clone(), "pr-1: none; pr-2: new 10.0.0.1"),
            ("being deleted", deleted, "pr-1: none"),
            (
                "ended",
                with(new, "/status/phase", json!("Failed")),
                "pr-1: old 10.0.0.1; pr-2: none",
            ),
        ] {
            pods.apply(&told(&pod));
            assert_eq!(written(&pods), expected, "{case}");
        }
    }

    #[test]
    fn a_pod_that_stays_keeps_its_endpoint_and_another_gets_its_own() {
        let first = pod("a", "pr-1", "10.0.0.1", 1);
        let mut pods = listed([&first]);
        let id = |pods: &Pods| pods.table()["pr-1"][0].id;
        let original = id(&pods);

        pods.apply(&told(&first));
        assert_eq!(id(&pods), original, "told again");
        pods.replace(&[told(&first)]);
        assert_eq!(id(&pods), original, "listed again");

        pods.apply(&told(&with(
            first.clone(),
            "/status/podIP",
            json!("10.0.0.2"),
        )));
        assert_ne!(id(&pods), original, "another address");

        let mut pods = listed([&first]);
        let original = id(&pods);
        pods.apply(&told(&with(
            first.clone(),
            "/metadata/uid",
            json!("another"),
        )));
        assert_ne!(
            id(&pods),
            original,
            "another pod of that name, at that address"
        );

        let original = id(&pods);
        pods.replace(&[told(&pod("b", "pr-1", "10.0.0.1", 2))]);
        assert_ne!(
            id(&pods),
            original,
            "another pod at that address, after a list"
        );
    }

    #[test]
    fn a_list_is_all_there_is() {
        let mut pods = listed([
            &pod("a", "pr-1", "10.0.0.1", 0),
            &pod("b", "pr-2", "10.0.0.2", 0),
        ]);

        pods.replace(&[told(&pod("b", "pr-2", "10.0.0.2", 0))]);
        assert_eq!(written(&pods), "pr-2: b 10.0.0.2");

        pods.replace(&[]);
        assert_eq!(written(&pods), "");
    }
}
