//! The pod of a pull request, there as it should be: made, kept, or made anew.

use std::collections::BTreeMap;

use anyhow::bail;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use tokio::time::{Instant, sleep};

use super::diagnosis::{self, State};
use super::join;
use super::placeholder::Placeholder;
use super::progress::Voice;
use super::undo::Made;
use super::wait::PULSE;
use crate::control::cluster::{Cluster, Creation, Draft, Marks};
use crate::control::objects::{annotations, labels};

type Pairs = BTreeMap<String, String>;

/// A PR pod that is wanted.
pub(super) struct Wanted<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) voice: &'a Voice,
    pub(super) made: &'a Made,
    pub(super) draft: &'a Draft,
    /// Stands in for it while it is made anew.
    pub(super) placeholder: &'a Placeholder<'a>,
}

/// What is to be done about what is there.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Create,
    /// Until it is gone.
    Await,
    /// It is as it should be, but for these.
    Mark(Marks),
    Keep,
    /// It cannot be changed into the wanted one, for this reason.
    Replace(String),
    /// It is not ours to replace.
    Refuse(String),
}

impl Wanted<'_> {
    /// Brings it about, and names it as an owner.
    ///
    /// # Errors
    /// Somebody else's pod has the name, the API server refused, or an old pod does not end in time.
    pub(super) async fn bring_about(&self) -> anyhow::Result<OwnerReference> {
        let name = &self.draft.name;
        loop {
            let present: Option<Pod> = self.cluster.read(&name.namespace, &name.name).await?;
            if let Some(uid) = self.step_on(present).await? {
                self.made.owned_by(&uid);
                return Ok(join::owner(&name.name, &uid));
            }
            if Instant::now() >= self.cluster.deadline() {
                bail!(
                    "PR pod {} could not be made in time; the old one has not ended",
                    name.name
                );
            }
            sleep(PULSE).await;
        }
    }

    /// Does what is to be done next. The pod's uid, once it is there as it should be.
    async fn step_on(&self, present: Option<Pod>) -> anyhow::Result<Option<String>> {
        let (name, voice) = (&self.draft.name, self.voice);
        let pod = &name.name;
        let uid = present
            .as_ref()
            .and_then(|there| there.metadata.uid.clone());
        let uid = uid.unwrap_or_default();
        match step(present.as_ref(), &self.draft.object.metadata) {
            Step::Keep => {
                voice.say(format_args!("PR pod {pod} is kept as it is"));
                Ok(Some(uid))
            }
            Step::Mark(marks) => {
                let is_there = self.cluster.mark(name, &uid, &marks).await?;
                if is_there {
                    voice.say(format_args!("PR pod {pod} is kept, marked anew"));
                }
                Ok(is_there.then_some(uid))
            }
            Step::Create => {
                let creation = self.made.create(self.cluster, voice, self.draft).await?;
                let Creation::Made(made) = creation else {
                    return Ok(None);
                };
                voice.say(format_args!("PR pod {pod} created"));
                Ok(made.uid)
            }
            Step::Replace(why) => {
                voice.note(format_args!("PR pod {pod} is made anew: {why}"));
                // Nobody does without the session, or collects what it shares, in between.
                if self.placeholder.stands_in_for(&uid).await? {
                    self.cluster.remove(name, &uid).await?;
                }
                Ok(None)
            }
            Step::Await => {
                // Somebody else may have told it to end; then there is nothing to lose without one.
                if let Err(error) = self.placeholder.stands_in_for(&uid).await {
                    voice.note(format_args!("{error:#}"));
                }
                voice.waits_for(format_args!("the old PR pod {pod} to end"));
                Ok(None)
            }
            Step::Refuse(why) => bail!("PR pod {pod}: {why}"),
        }
    }
}

fn step(present: Option<&Pod>, wanted: &ObjectMeta) -> Step {
    let Some(pod) = present else {
        return Step::Create;
    };
    let there = &pod.metadata;
    if !is_same(there, wanted, labels::APP) || !is_same(there, wanted, labels::SESSION) {
        return Step::Refuse(
            "a pod of that name exists and is none of ours; choose another session name".to_owned(),
        );
    }
    if there.deletion_timestamp.is_some() {
        return Step::Await;
    }
    if hash(there) != hash(wanted) {
        return Step::Replace("its image or the target's template has changed".to_owned());
    }
    if let State::Over(trouble) = diagnosis::of(pod) {
        return Step::Replace(trouble.said);
    }
    let marks = marks(there, wanted);
    if marks == Marks::default() {
        Step::Keep
    } else {
        Step::Mark(marks)
    }
}

fn is_same(there: &ObjectMeta, wanted: &ObjectMeta, label: &str) -> bool {
    let value = |metadata: &ObjectMeta| metadata.labels.as_ref()?.get(label).cloned();
    value(there) == value(wanted)
}

fn hash(metadata: &ObjectMeta) -> Option<&String> {
    metadata.annotations.as_ref()?.get(annotations::SPEC_HASH)
}

/// What must be written onto a pod whose spec is right. Labels and annotations of others stay.
fn marks(there: &ObjectMeta, wanted: &ObjectMeta) -> Marks {
    /// Those that a later call may want to be absent.
    const OURS: [&str; 2] = [labels::PIPELINE_RUN, annotations::EXPIRES_AT];
    let differences = |there: Option<&Pairs>, wanted: Option<&Pairs>| {
        let value = |pairs: Option<&Pairs>, key: &str| pairs?.get(key).cloned();
        let keys = wanted.into_iter().flat_map(|pairs| pairs.keys());
        let keys = keys.map(String::as_str).chain(OURS);
        keys.filter(|key| value(there, key) != value(wanted, key))
            .map(|key| (key.to_owned(), value(wanted, key)))
            .collect()
    };
    Marks {
        labels: differences(there.labels.as_ref(), wanted.labels.as_ref()),
        annotations: differences(there.annotations.as_ref(), wanted.annotations.as_ref()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn metadata(more: &Value) -> ObjectMeta {
        let mut metadata = json!({
            "name": "pr-orders-pr-42",
            "labels": {labels::APP: "orders", labels::SESSION: "pr-42", "app.kubernetes.io/version": "1"},
            "annotations": {annotations::SPEC_HASH: "abc"},
        });
        for (key, value) in more.as_object().unwrap() {
            for (name, value) in value.as_object().unwrap() {
                metadata[key][name] = value.clone();
            }
        }
        serde_json::from_value(metadata).unwrap()
    }

    fn there(more: &Value) -> Pod {
        Pod {
            metadata: metadata(more),
            ..Pod::default()
        }
    }

    #[test]
    fn a_pod_is_made_once_and_kept_as_long_as_it_fits() {
        let wanted = metadata(&json!({}));
        assert_eq!(step(None, &wanted), Step::Create);
        assert_eq!(step(Some(&there(&json!({}))), &wanted), Step::Keep);
        // What others have written onto it is none of our business.
        let touched = there(&json!({"labels": {"team": "a"}, "annotations": {"seen": "yes"}}));
        assert_eq!(step(Some(&touched), &wanted), Step::Keep);
    }

    #[test]
    fn a_pod_of_somebody_else_is_refused_even_while_it_ends() {
        let wanted = metadata(&json!({}));
        for labels in [
            json!({labels::SESSION: "pr-4"}),
            json!({labels::APP: "items"}),
            json!({labels::APP: null}),
        ] {
            let mut pod = there(&json!({}));
            for (key, value) in labels.as_object().unwrap() {
                let labels = pod.metadata.labels.get_or_insert_default();
                match value.as_str() {
                    Some(value) => labels.insert(key.clone(), value.to_owned()),
                    None => labels.remove(key),
                };
            }
            assert!(
                matches!(step(Some(&pod), &wanted), Step::Refuse(_)),
                "{labels}"
            );
        }
    }

    #[test]
    fn a_pod_is_replaced_when_it_would_be_another_or_has_ended() {
        let other = metadata(&json!({"annotations": {annotations::SPEC_HASH: "xyz"}}));
        assert!(matches!(
            step(Some(&there(&json!({}))), &other),
            Step::Replace(_)
        ));

        let mut evicted = there(&json!({}));
        evicted.status =
            serde_json::from_value(json!({"phase": "Failed", "reason": "Evicted"})).unwrap();
        assert!(matches!(
            step(Some(&evicted), &metadata(&json!({}))),
            Step::Replace(_)
        ));
    }

    #[test]
    fn a_pod_that_ends_is_waited_for() {
        let mut ending = there(&json!({}));
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        ending.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now));
        assert_eq!(step(Some(&ending), &metadata(&json!({}))), Step::Await);
    }

    #[test]
    fn only_marks_that_differ_are_written_and_those_not_wanted_any_more_removed() {
        let pod = there(&json!({
            "labels": {labels::PIPELINE_RUN: "run-1"},
            "annotations": {annotations::EXPIRES_AT: "2026-01-01T00:00:00Z"},
        }));
        let wanted = metadata(&json!({"labels": {labels::PIPELINE_RUN: "run-2"}}));
        let expected = Marks {
            labels: [(labels::PIPELINE_RUN.to_owned(), Some("run-2".to_owned()))].into(),
            annotations: [(annotations::EXPIRES_AT.to_owned(), None)].into(),
        };
        assert_eq!(step(Some(&pod), &wanted), Step::Mark(expected));
    }
}
