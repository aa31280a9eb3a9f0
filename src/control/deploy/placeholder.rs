//! A pod that stands in for a PR pod while that is made anew.
//!
//! It never runs: a scheduling gate keeps it from every node. But it carries the session's labels, so the
//! session stays known without an endpoint, and its requests are refused and never answered by the baseline
//! while the old pod ends and the new one starts. It is an owner of all that the old pod owns, so the
//! collector leaves that alone in between. And it is found by whoever looks for PR pods by their labels: a
//! call that was killed leaves nothing that `cleanup` would not take.
//!
//! It belongs to the call that used it last. That one takes it away, when the new pod owns everything or when
//! it fails; another call's failure does not. What a dead call has left does not defend itself.

use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::ResourceExt;
use kube::api::DynamicObject;
use serde_json::json;
use tokio::sync::Mutex;
use tokio::time::sleep;

use super::join;
use super::progress::Voice;
use super::undo::Made;
use super::wait::PULSE;
use crate::control::cluster::{Cluster, Creation, Draft, Kind, Marks, Name, Removal};
use crate::control::objects::{annotations, labels};

/// What keeps it from running.
const GATE: &str = "session-proxy/placeholder";

/// Who makes it an owner. No session's field manager begins so.
const MANAGER: &str = "session-proxy.placeholder";

/// Who needs one that another call has claimed claims it back at the next look; after so many looks nobody
/// needs it.
const UNCLAIMED: Duration = PULSE.saturating_mul(4);

/// The placeholder of one PR pod.
pub(super) struct Placeholder<'a> {
    cluster: &'a Cluster,
    voice: &'a Voice,
    made: &'a Made,
    draft: Draft,
    /// What the old pod may own.
    shared: &'a [Draft],
    /// Uids of one and of an old pod, all of whose objects it is known to own.
    heir: Mutex<Option<(String, String)>>,
}

impl<'a> Placeholder<'a> {
    /// For that PR pod; `shared` is what may be owned by it.
    pub(super) fn of(
        pr_pod: &Draft,
        shared: &'a [Draft],
        cluster: &'a Cluster,
        voice: &'a Voice,
        made: &'a Made,
    ) -> Self {
        Self {
            cluster,
            voice,
            made,
            draft: draft(pr_pod),
            shared,
            heir: Mutex::default(),
        }
    }

    /// Sees to it that it is there and owns whatever the pod with that uid owns. `false`: look again.
    ///
    /// # Errors
    /// Somebody else's pod has its name, or the API server refused.
    pub(super) async fn stands_in_for(&self, pod: &str) -> anyhow::Result<bool> {
        let Some(uid) = self.stands().await? else {
            return Ok(false);
        };
        let owner = join::owner(&self.draft.name.name, &uid);
        let both = Some((uid, pod.to_owned()));
        let mut heir = self.heir.lock().await;
        if *heir == both {
            return Ok(true);
        }
        for draft in self.shared {
            if !self.inherits(&draft.name, pod, &owner).await? {
                return Ok(false);
            }
        }
        *heir = both;
        Ok(true)
    }

    /// Takes it away, now that the PR pod is there and owns everything: this call's, or one that nobody
    /// needs any more.
    ///
    /// # Errors
    /// The API server refused.
    pub(super) async fn leaves(&self) -> anyhow::Result<()> {
        let name = &self.draft.name;
        let mut was_claimed = false;
        while let Some(there) = self.cluster.look(name).await? {
            let is_claimed = self.cluster.is_author(&there.metadata);
            if !self.is_ours(&there.metadata) || (was_claimed && !is_claimed) {
                break;
            }
            if is_claimed {
                let removal = self.cluster.remove_unchanged(name, &there.metadata).await?;
                if removal != Removal::Changed {
                    break;
                }
            } else if self.claim(&there).await? {
                was_claimed = true;
                sleep(UNCLAIMED).await;
            }
        }
        Ok(())
    }

    /// Its uid, once it is there and this call's.
    async fn stands(&self) -> anyhow::Result<Option<String>> {
        let name = &self.draft.name;
        let Some(there) = self.cluster.look(name).await? else {
            let created = self.made.create(self.cluster, self.voice, &self.draft);
            let creation = created.await.context(
                "no placeholder for the PR pod can be made, and without one its requests would reach the baseline while it is made anew; `session-proxy cleanup` of the session first does without one",
            )?;
            return Ok(match creation {
                Creation::Made(metadata) => metadata.uid,
                Creation::Occupied => None,
            });
        };
        if !self.is_ours(&there.metadata) {
            bail!("{name} exists and is none of ours; delete or rename it");
        }
        if there.metadata.deletion_timestamp.is_some() {
            // Told again: a pod without a node whose deletion was interrupted does not end by itself.
            let uid = there.uid().unwrap_or_default();
            self.cluster.remove(name, &uid).await?;
            return Ok(None);
        }
        let is_ours = self.cluster.is_author(&there.metadata) || self.claim(&there).await?;
        Ok(there.uid().filter(|_| is_ours))
    }

    /// From now on it is this call's; `false` when it is gone.
    async fn claim(&self, there: &DynamicObject) -> anyhow::Result<bool> {
        let name = &self.draft.name;
        let uid = there.uid().unwrap_or_default();
        let marks = self.marks();
        // Before it is asked for: a signal may come between the claim and its answer.
        self.made.takes_over(self.voice, name, &uid);
        Ok(self.cluster.take_over(name, &uid, marks).await?)
    }

    /// Makes it an owner of one object, where the old pod is one. `false`: the object went away meanwhile.
    async fn inherits(
        &self,
        name: &Name,
        pod: &str,
        heir: &OwnerReference,
    ) -> anyhow::Result<bool> {
        let Some(there) = self.cluster.look(name).await? else {
            return Ok(true);
        };
        let owners = there.owner_references();
        let is_owner = |uid: &str| owners.iter().any(|owner| owner.uid == uid);
        let is_ending = there.metadata.deletion_timestamp.is_some();
        if is_ending || !is_owner(pod) || is_owner(&heir.uid) {
            return Ok(true);
        }
        let object = there.uid().unwrap_or_default();
        let manager = format!("{MANAGER}-{}", self.label(labels::SESSION));
        let added = self
            .cluster
            .add_owner(name, &object, heir, &manager)
            .await?;
        Ok(added)
    }

    fn is_ours(&self, there: &ObjectMeta) -> bool {
        let value = |key: &str| there.labels.as_ref()?.get(key).map(String::as_str);
        [labels::APP, labels::SESSION]
            .into_iter()
            .all(|key| value(key) == Some(self.label(key)))
    }

    fn label(&self, key: &str) -> &str {
        let labels = self.draft.object.metadata.labels.as_ref();
        labels
            .and_then(|labels| labels.get(key))
            .map_or("", String::as_str)
    }

    /// By which this call's run finds it, and how long it may last.
    fn marks(&self) -> Marks {
        let metadata = &self.draft.object.metadata;
        let label = metadata.labels.as_ref();
        let label = label.and_then(|labels| labels.get(labels::PIPELINE_RUN));
        let note = metadata.annotations.as_ref();
        let note = note.and_then(|notes| notes.get(annotations::EXPIRES_AT));
        Marks {
            labels: [(labels::PIPELINE_RUN.to_owned(), label.cloned())].into(),
            annotations: [(annotations::EXPIRES_AT.to_owned(), note.cloned())].into(),
        }
    }
}

/// The PR pod itself, which every rule of the cluster admits if it admits that one, behind a gate.
///
/// A dot ends the name: no session has one, so no PR pod is called so.
fn draft(pr_pod: &Draft) -> Draft {
    let name = format!("{}.placeholder", pr_pod.name.name);
    let mut object = pr_pod.object.clone();
    object.metadata.name = Some(name.clone());
    object.data["spec"]["schedulingGates"] = json!([{ "name": GATE }]);
    Draft {
        name: Name::new(Kind::Pod, &pr_pod.name.namespace, name),
        object,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_pr_pod_under_another_name_and_never_scheduled() {
        let pod = json!({
            "metadata": {"name": "pr-orders-pr-42", "labels": {labels::SESSION: "pr-42"}},
            "spec": {"containers": [{"name": "orders", "image": "orders:pr-42"}]},
        });
        let pr_pod = Draft {
            name: Name::new(Kind::Pod, "staging", "pr-orders-pr-42"),
            object: serde_json::from_value(pod).unwrap(),
        };

        let placeholder = draft(&pr_pod);

        assert_eq!(placeholder.name.name, "pr-orders-pr-42.placeholder");
        let object = serde_json::to_value(&placeholder.object).unwrap();
        let expected = json!({
            "metadata": {
                "name": "pr-orders-pr-42.placeholder",
                "labels": {labels::SESSION: "pr-42"},
            },
            "spec": {
                "containers": [{"name": "orders", "image": "orders:pr-42"}],
                "schedulingGates": [{"name": "session-proxy/placeholder"}],
            },
        });
        assert_eq!(object, expected);
    }
}
