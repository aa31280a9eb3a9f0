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
