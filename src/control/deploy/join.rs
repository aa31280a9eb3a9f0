//! The proxy of an app and all that belongs to it, shared by every session that needs it.
//!
//! Nobody counts. Each of these objects names the PR pods for which it is there as its owners, and the
//! cluster's garbage collector removes it when the last of them is gone. Who needs it creates it with
//! its own PR pod as the owner, or adds that pod to the owners of the one that is there.
//!
//! The collector may be at work meanwhile. An object that it has seen without living owners it deletes
//! only as long as nobody changed it since, so an owner added in time saves it. But when something
//! else about it changed, it looks once more and then deletes whatever has the uid, and an owner that
//! is added between these two comes too late. So nothing is believed because it was written: all is
//! read again, until one round finds every object there and not ending, ours among its owners, and
//! our PR pod alive. Who proves something afterwards asks for one more such round.
//!
//! The proxy pod owns the rest too. It needs its service account and its rights to its last moment, and
//! who joins it before it is collected must find with it the very account whose token it holds.

mod decision;
mod fit;

use anyhow::bail;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt;
use kube::api::DynamicObject;
use tokio::time::{Instant, sleep};

use super::progress::Voice;
use super::undo::Made;
use super::wait::PULSE;
use crate::control::cluster::{Cluster, Creation, Draft, Kind, Name, Removal};
use crate::control::intercept::Intercept;
use crate::control::objects::labels;
use crate::kubernetes::Refusal;
use decision::{Fit, Owner, Seen, Step, step};

/// Of the proxy pod: uid of the service account it was started with. Its token dies with that.
const ACCOUNT: &str = "session-proxy/service-account-uid";

/// Of the proxy pod: the configuration it was started with.
const INTERCEPT: &str = "session-proxy/intercept";

/// Who makes the proxy pod an owner of the rest. No session's field manager is called so.
const PROXY_MANAGER: &str = "session-proxy.proxy";

/// The key of the configuration in its config map.
const FILE: &str = "intercept.json";

/// How the API server refuses a pod whose service account is not there.
const NO_ACCOUNT: &str = "error looking up service account";

/// How it refuses a role from somebody who has not all that is in it.
const NOT_HELD: &str = "attempting to grant RBAC permissions not currently held";

/// The proxy of one app, as one session sees it.
pub(super) struct Shared<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) voice: &'a Voice,
    pub(super) made: &'a Made,
    pub(super) intercept: &'a Intercept,
    pub(super) session: &'a str,
    /// Our PR pod.
    pub(super) owner: &'a OwnerReference,
    /// Without owners, in the order in which they need each other: the pod last.
    pub(super) drafts: &'a [Draft],
}

/// How a round ended.
enum Round {
    /// Nothing was to be done; the proxy pod has this uid.
    Quiet(String),
    /// Something was.
    Busy,
    /// Something is in the way that only time can move.
    Blocked,
}

impl Shared<'_> {
    /// Creates or joins everything, again and again until a round finds nothing to do. The proxy pod's uid.
    ///
    /// # Errors
    /// What is there is used by others in another way, our PR pod is gone, the API server refused, or the
    /// deadline came first.
    pub(super) async fn hold(&self) -> anyhow::Result<String> {
        let mut was_busy = false;
        loop {
            let round = self.round().await?;
            // What was done once most likely needs to be looked at only once more.
            let is_soon = matches!(round, Round::Busy) && !was_busy;
            was_busy = true;
            match round {
                Round::Quiet(uid) => return Ok(uid),
                _ if Instant::now() >= self.cluster.deadline() => bail!(
                    "the deadline came while waiting for {}",
                    self.voice.awaited()
                ),
                _ if is_soon => {}
                _ => sleep(PULSE).await,
            }
        }
    }

    /// Whether that proxy pod is still there, and everything else as [`Shared::hold`] left it.
    ///
    /// # Errors
    /// As [`Shared::hold`].
    pub(super) async fn still_holds(&self, proxy: &str) -> anyhow::Result<bool> {
        match self.round().await? {
            Round::Quiet(uid) => Ok(uid == proxy),
            Round::Busy | Round::Blocked => Ok(false),
        }
    }

    /// Looks at each object once, and does what is to be done about it.
    async fn round(&self) -> anyhow::Result<Round> {
        self.check_pr_pod().await?;
        let mut is_busy = false;
        let mut found: Vec<(&Name, String, DynamicObject)> = Vec::new();
        for draft in self.drafts {
            let account = found
                .iter()
                .find(|(name, ..)| name.kind == Kind::ServiceAccount);
            let account = account.map(|(_, uid, _)| uid.as_str());
            let there = self.cluster.look(&draft.name).await?;
            let seen = self.judge(draft, there.as_ref(), account).await?;
            let step = step(&seen);
            is_busy |= step != Step::Holds;
            match self.take(draft, step, there, account).await? {
                Some(object) => {
                    let uid = object.uid().unwrap_or_default();
                    found.push((&draft.name, uid, object));
                }
                None => return Ok(Round::Blocked),
            }
        }
        let Some((pod, uid, _)) = found.pop() else {
            return Ok(Round::Blocked);
        };
        let proxy = owner(&pod.name, &uid);
        for (name, rest, object) in &found {
            if !object
                .owner_references()
                .iter()
                .any(|owner| owner.uid == uid)
            {
                is_busy = true;
                self.cluster
                    .add_owner(name, rest, &proxy, PROXY_MANAGER)
                    .await?;
            }
        }
        self.check_pr_pod().await?;
        Ok(if is_busy {
            Round::Busy
        } else {
            Round::Quiet(uid)
        })
    }

    /// Does one step. `None`: the rest must wait.
    async fn take(
        &self,
        draft: &Draft,
        step: Step,
        there: Option<DynamicObject>,
        account: Option<&str>,
    ) -> anyhow::Result<Option<DynamicObject>> {
        let name = &draft.name;
        match (step, there) {
            (Step::Holds, there) => Ok(there),
            (Step::Join, Some(there)) => {
                let uid = there.uid().unwrap_or_default();
                let manager = format!("session-proxy-{}", self.session);
                let is_there = self
                    .cluster
                    .add_owner(name, &uid, self.owner, &manager)
                    .await?;
                if is_there && name.kind == Kind::Pod {
                    self.voice
                        .say(format_args!("joined proxy pod {}", name.name));
                }
                Ok(is_there.then_some(there))
            }
            (Step::Replace(_), Some(_)) if !self.is_account(account).await? => Ok(None),
            (Step::Replace(why), Some(there)) => {
                self.voice.say(format_args!("{name} is made anew: {why}"));
                let removal = self.cluster.remove_unchanged(name, &there.metadata).await?;
                if removal == Removal::Going {
                    self.voice.waits_for(format_args!("the old {name} to end"));
                }
                Ok(None)
            }
            (Step::Refuse(why), _) => bail!(
                "{name} is used by other sessions in another way ({why}); deploy with the same settings, or wait until they have ended"
            ),
            (Step::Await(what), _) => {
                self.voice.waits_for(format_args!("{name}: {what}"));
                Ok(None)
            }
            (Step::Create | Step::Join | Step::Replace(_), _) => self.create(draft, account).await,
        }
    }

    async fn create(
        &self,
        draft: &Draft,
        account: Option<&str>,
    ) -> anyhow::Result<Option<DynamicObject>> {
        let mut draft = draft.clone();
        let metadata = &mut draft.object.metadata;
        metadata.owner_references = Some(vec![self.owner.clone()]);
        if draft.name.kind == Kind::Pod {
            let notes = metadata.annotations.get_or_insert_default();
            let intercept = serde_json::to_string(self.intercept)?;
            notes.insert(INTERCEPT.to_owned(), intercept);
            if let Some(account) = account {
                notes.insert(ACCOUNT.to_owned(), account.to_owned());
            }
        }
        match self.made.create(self.cluster, self.voice, &draft).await {
            Ok(Creation::Made(metadata)) => {
                self.voice.say(format_args!("{} created", draft.name));
                draft.object.metadata = *metadata;
                Ok(Some(draft.object))
            }
            Ok(Creation::Occupied) => Ok(None),
            // The collector was faster; the next round makes it anew.
            Err(refusal) if account.is_some() && says(&refusal, NO_ACCOUNT) => Ok(None),
            Err(refusal) if says(&refusal, NOT_HELD) => bail!(
                "{refusal}\nwho deploys needs every right that a proxy needs (see config/rbac), or name an account that has them with --proxy-service-account"
            ),
            Err(refusal) => Err(refusal.into()),
        }
    }

    async fn judge(
        &self,
        draft: &Draft,
        there: Option<&DynamicObject>,
        account: Option<&str>,
    ) -> anyhow::Result<Seen> {
        let Some(there) = there else {
            return Ok(Seen::Nothing);
        };
        self.check_ours(&draft.name, there)?;
        if there.metadata.deletion_timestamp.is_some() {
            return Ok(Seen::Ending);
        }
        let fit = fit::of(draft, there, self.intercept, account);
        // Who else owns it matters only where it should be otherwise.
        let owners = if fit == Fit::Same {
            let is_ours = there
                .owner_references()
                .iter()
                .any(|owner| owner.uid == self.owner.uid);
            if is_ours {
                vec![Owner::Ours]
            } else {
                Vec::new()
            }
        } else {
            self.owners(there).await?
        };
        if let Fit::Tolerable(how) = &fit
            && owners.contains(&Owner::Living)
        {
            self.voice.note(format_args!(
                "{} is kept, other sessions use it: {how}",
                draft.name
            ));
        }
        Ok(Seen::There { owners, fit })
    }

    /// Whether the proxy's service account is still the one with that uid: what follows from one that was
    /// read before somebody made it anew is wrong.
    async fn is_account(&self, uid: Option<&str>) -> anyhow::Result<bool> {
        let mut names = self.drafts.iter().map(|draft| &draft.name);
        let (Some(uid), Some(name)) = (uid, names.find(|name| name.kind == Kind::ServiceAccount))
        else {
            return Ok(true);
        };
        let account = self.cluster.look(name).await?;
        Ok(account.is_some_and(|account| account.uid().as_deref() == Some(uid)))
    }

    /// Nothing without our label is touched, whatever it is called.
    fn check_ours(&self, name: &Name, there: &DynamicObject) -> anyhow::Result<()> {
        if there.labels().get(labels::APP) == Some(&self.intercept.app) {
            return Ok(());
        }
        bail!(
            "{name} exists in namespace {} and is none of ours (it has no label {}={}); rename it",
            name.namespace,
            labels::APP,
            self.intercept.app
        )
    }

    /// How the owners of an object are now. Read after the object: who owned it then and lives is among
    /// those that live.
    async fn owners(&self, there: &DynamicObject) -> anyhow::Result<Vec<Owner>> {
        let selector = format!("{}={},{}", labels::APP, self.intercept.app, labels::SESSION);
        let pods: Vec<Pod> = self
            .cluster
            .list(&self.intercept.namespace, &selector)
            .await?;
        let owner = |uid: &str| {
            if uid == self.owner.uid {
                return Owner::Ours;
            }
            match pods
                .iter()
                .find(|pod| pod.metadata.uid.as_deref() == Some(uid))
            {
                None => Owner::Gone,
                Some(pod) if pod.metadata.deletion_timestamp.is_some() => Owner::Ending,
                Some(pod) if is_of(self.session, pod) => Owner::Placeholder,
                Some(_) => Owner::Living,
            }
        };
        let owners = there.owner_references().iter();
        Ok(owners.map(|reference| owner(&reference.uid)).collect())
    }

    /// Without it nothing is held up.
    async fn check_pr_pod(&self) -> anyhow::Result<()> {
        let name = &self.owner.name;
        let namespace = &self.intercept.namespace;
        let pod: Option<Pod> = self.cluster.read(namespace, name).await?;
        let is_alive = pod.is_some_and(|pod| {
            pod.metadata.uid.as_ref() == Some(&self.owner.uid)
                && pod.metadata.deletion_timestamp.is_none()
        });
        if !is_alive {
            bail!("PR pod {name} was deleted by somebody else meanwhile");
        }
        Ok(())
    }
}

/// Names a pod as an owner.
pub(super) fn owner(pod: &str, uid: &str) -> OwnerReference {
    OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Pod".to_owned(),
        name: pod.to_owned(),
        uid: uid.to_owned(),
        ..OwnerReference::default()
    }
}

/// Whether that PR pod is of this session.
fn is_of(session: &str, pod: &Pod) -> bool {
    let label = pod.labels().get(labels::SESSION);
    label.is_some_and(|label| label == session)
}

fn says(refusal: &Refusal, words: &str) -> bool {
    let response = refusal.response();
    response.is_some_and(|response| response.message.contains(words))
}
