//! The pod that runs what a pull request built.
//!
//! It is the baseline's pod with another image in the app's container, and with labels of its own by
//! which no Service and no workload takes it for a replica.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{
    PR_POD, Pairs, Recommended, annotations, container, fingerprint, labels, pairs, pr_pod_name,
    template,
};
use crate::control::stack::App;

/// Who manages PR pods, as everybody who looks for them by this label expects it.
const MANAGED_BY: &str = "tekton-job-standardization";

/// What a PR pod is made from.
#[derive(Debug, Clone)]
pub struct PrPod<'a> {
    /// The stack's name.
    pub stack: &'a str,
    pub app: &'a App,
    pub namespace: &'a str,
    pub session: &'a str,
    /// The image that was built.
    pub image: &'a str,
    /// What the target's pods are made from; of a target that is a pod:
    /// [`template::of_pod`](super::template::of_pod).
    pub template: &'a PodTemplateSpec,
    /// Uid of the pipeline run.
    pub pipeline_run: Option<&'a str>,
    pub expires_at: Option<Timestamp>,
}

/// A PR pod, and what about it differs from the baseline in a way that people should know.
#[derive(Debug, Clone, PartialEq)]
pub struct Made {
    pub pod: Pod,
    /// Sentences for the person who reads along: lower case, no full stop.
    pub notes: Vec<String>,
}

impl PrPod<'_> {
    /// The pod, to be applied.
    pub fn pod(&self) -> Made {
        let mut notes = Vec::new();
        let mut spec = template::inherited(self.template, &mut notes);
        container::rebuild(&mut spec, self.app, self.image, &mut notes);
        let mut annotations = template::annotations(self.template);
        // Before the time is added, which may change while the pod stays.
        let hash = fingerprint::of(&(&spec, &annotations));
        annotations.insert(annotations::SPEC_HASH.to_owned(), hash);
        if let Some(time) = self.expires_at {
            let time = format!("{time:.0}");
            annotations.insert(annotations::EXPIRES_AT.to_owned(), time);
        }
        let pod = Pod {
            metadata: ObjectMeta {
                name: Some(pr_pod_name(&self.app.name, self.session)),
                namespace: Some(self.namespace.to_owned()),
                labels: Some(self.labels()),
                annotations: Some(annotations),
                ..ObjectMeta::default()
            },
            spec: Some(spec),
            ..Pod::default()
        };
        Made { pod, notes }
    }

    /// None of the template's: a Service finds its pods by those.
    fn labels(&self) -> Pairs {
        let app = &self.app.name;
        let recommended = Recommended {
            // Not the app's own name: some Services select by nothing else.
            name: &format!("pr-{app}"),
            instance: &pr_pod_name(app, self.session),
            component: "pull-request",
            image: self.image,
            part_of: self.stack,
        };
        let mut pod_labels = recommended.pairs();
        pod_labels.extend(pairs([
            ("app", PR_POD),
            ("component", app),
            ("managed-by", MANAGED_BY),
            (labels::APP, app),
            (labels::SESSION, self.session),
        ]));
        if let Some(uid) = self.pipeline_run {
            pod_labels.insert(labels::PIPELINE_RUN.to_owned(), uid.to_owned());
        }
        pod_labels
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;
    use crate::control::objects::restricted;
    use crate::control::objects::selection::{Workload, claimants};
    use crate::control::stack::Stack;

    fn template() -> Value {
        json!({
            "metadata": {
                "labels": {"app": "orders", "app.kubernetes.io/name": "orders", "tier": "web"},
                "annotations": {"checksum/config": "1"},
            },
            "spec": {"containers": [{"name": "orders", "image": "orders:1"}]},
        })
    }

    /// The PR pod of a template, after a change of what it is made from.
    fn made(template: &Value, change: impl FnOnce(&mut PrPod<'_>)) -> Made {
        let yaml = "{name: shop, apps: [{name: orders, container-port: 8080}]}";
        let stack = Stack::parse("stack", yaml.as_bytes()).unwrap();
        let template = from_value(template.clone()).unwrap();
        let mut pod = PrPod {
            stack: &stack.name,
            app: stack.entry(),
            namespace: "staging",
            session: "pr-42",
            image: "orders:pr-42",
            template: &template,
            pipeline_run: None,
            expires_at: None,
        };
        change(&mut pod);
        pod.pod()
    }

    fn hash(made: &Made) -> &str {
        &made.pod.metadata.annotations.as_ref().unwrap()[annotations::SPEC_HASH]
    }

    #[test]
    fn a_service_or_workload_that_selects_by_the_baselines_labels_leaves_it_alone() {
        let pod = made(&template(), |_| {}).pod;
        let service =
            |selector: Value| from_value(json!({"spec": {"selector": selector}})).unwrap();
        let services = [
            service(json!({"app": "orders"})),
            service(json!({"app.kubernetes.io/name": "orders"})),
            service(json!({"tier": "web"})),
            service(json!({"app": "orders", "component": "orders"})),
        ];
        let selector = from_value(json!({"matchLabels": {"app": "orders"}})).unwrap();
        let workload = Workload {
            name: "deployment/orders",
            selector: &selector,
        };

        assert_eq!(claimants(&pod, &services, &[workload]), [""; 0]);
    }

    #[test]
    fn only_what_changes_its_content_asks_for_another_pod() {
        let before = made(&template(), |_| {});
        let with = |pointer: &str, value: Value| {
            let mut template = template();
            template.pointer_mut(pointer).unwrap().clone_from(&value);
            template
        };
        let restarted = json!({"checksum/config": "1", "kubectl.kubernetes.io/restartedAt": "now"});
        let same = [
            made(&template(), |_| {}),
            made(&template(), |pod| {
                pod.expires_at = Some(Timestamp::UNIX_EPOCH)
            }),
            made(&template(), |pod| pod.pipeline_run = Some("1")),
            made(&with("/metadata/annotations", restarted), |_| {}),
            // The baseline has another image, which a PR pod has not.
            made(&with("/spec/containers/0/image", json!("orders:2")), |_| {}),
        ];
        let other = [
            made(&template(), |pod| pod.image = "orders:pr-42-b"),
            made(
                &with("/metadata/annotations", json!({"checksum/config": "2"})),
                |_| {},
            ),
            made(&with("/spec/containers/0/name", json!("server")), |_| {}),
        ];

        for made in same {
            assert_eq!(hash(&made), hash(&before), "{made:?}");
        }
        for made in other {
            assert_ne!(hash(&made), hash(&before), "{made:?}");
        }
    }

    #[test]
    fn it_is_as_restricted_as_the_baseline() {
        let mut template = template();
        template["spec"]["securityContext"] = json!({
            "runAsNonRoot": true,
            "seccompProfile": {"type": "RuntimeDefault"},
        });
        let container = &mut template["spec"]["containers"][0];
        container["securityContext"] = json!({
            "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]},
        });
        container["ports"] = json!([{"containerPort": 8080, "hostPort": 8080}]);

        assert_eq!(restricted::offences(&made(&template, |_| {}).pod), [""; 0]);
    }

    #[test]
    fn a_note_is_made_of_each_surprise_and_of_nothing_else() {
        let ready = json!({"tcpSocket": {"port": 8080}});
        let table = [
            (json!({"readinessProbe": ready}), vec![]),
            (json!({}), vec!["has no readiness probe"]),
            (
                json!({"readinessProbe": ready, "args": ["-v"]}),
                vec!["without the template's args"],
            ),
            (
                json!({"readinessProbe": ready, "command": ["x"], "workingDir": "/"}),
                vec!["without the template's command, workingDir"],
            ),
            (
                json!({"readinessProbe": ready, "volumeMounts": [{"name": "data", "mountPath": "/d"}]}),
                vec!["volume data is an empty folder"],
            ),
        ];

        for (changes, expected) in table {
            let mut template = template();
            let container = template["spec"]["containers"][0].as_object_mut().unwrap();
            container.extend(changes.as_object().unwrap().clone());
            let notes = made(&template, |_| {}).notes;
            assert_eq!(notes.len(), expected.len(), "{notes:?}");
            for (note, part) in notes.iter().zip(expected) {
                assert!(note.contains(part), "{note}");
            }
        }
    }
}
