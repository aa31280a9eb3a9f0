//! What one call made, so that it can be taken away again.
//!
//! Only that: an object that was there before stays, and so does one that another session has joined
//! since or another call has taken over. A creation that was begun is always followed to its end, even
//! when nobody waits for it any more: what the API server is about to make must be known before anything
//! is taken away.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::bail;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tokio::sync::RwLock;
use tokio::time::{Instant, sleep};

use super::progress::Voice;
use super::wait::PULSE;
use crate::control::cluster::{Cluster, Creation, Draft, Kind, Name, Removal};
use crate::kubernetes::Refusal;

/// How long the end of what was taken away is watched. A proxy with long requests in flight may take
/// longer; it needs nobody to watch it.
const BRIEFLY: Duration = Duration::from_secs(30);

/// Everything that this call has made or begun to make. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Made {
    book: Arc<Mutex<Book>>,
    /// Held for reading as long as something is being created.
    begun: Arc<RwLock<()>>,
}

#[derive(Debug, Default)]
struct Book {
    entries: Vec<Entry>,
    /// Uids of this call's PR pods, whoever made them.
    pr_pods: Vec<String>,
}

#[derive(Debug, Clone)]
struct Entry {
    name: Name,
    /// `None`: nobody knows whether it was made.
    uid: Option<String>,
    voice: Voice,
}

/// What became of an entry.
enum Outcome {
    Gone,
    /// The object with this uid is ending.
    Going(String),
    /// It was never made, or is not there any more.
    NothingToDo,
    Shared,
}

impl Made {
    /// Creates an object, and remembers it when it was this call that made it.
    ///
    /// # Errors
    /// The API server refused.
    pub(super) async fn create(
        &self,
        cluster: &Cluster,
        voice: &Voice,
        draft: &Draft,
    ) -> Result<Creation, Refusal> {
        let begun = self.begun.clone().read_owned().await;
        let entry = Entry {
            name: draft.name.clone(),
            uid: None,
            voice: voice.clone(),
        };
        let (made, cluster, draft) = (self.clone(), cluster.clone(), draft.clone());
        // A task of its own: it goes on when the caller is dropped.
        let task = tokio::spawn(async move {
            made.book().entries.push(entry);
            let creation = cluster.create(&draft).await;
            made.book().conclude(&draft.name, &creation);
            drop(begun);
            creation
        });
        task.await
            .expect("creating does not panic, and nobody aborts it")
    }

    /// Remembers an object that another call made and this one takes over. Whether it got it can be seen
    /// on the object.
    pub(super) fn takes_over(&self, voice: &Voice, name: &Name, uid: &str) {
        self.book().entries.push(Entry {
            name: name.clone(),
            uid: Some(uid.to_owned()),
            voice: voice.clone(),
        });
    }

    /// Remembers a PR pod of this call: what nobody else owns beside it is not shared.
    pub(super) fn owned_by(&self, pr_pod: &str) {
        self.book().pr_pods.push(pr_pod.to_owned());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.book().entries.is_empty()
    }

    /// Takes away what this call made, and says so.
    ///
    /// # Errors
    /// Something must be taken away by hand.
    pub(super) async fn undo(&self, cluster: &Cluster) -> anyhow::Result<()> {
        // Whoever could begin something new is gone.
        let all_ended = self.begun.write().await;
        let cluster = cluster.until(Instant::now() + BRIEFLY);
        let entries = self.book().entries.clone();
        let (pods, others): (Vec<_>, Vec<_>) = entries
            .into_iter()
            .partition(|entry| entry.name.kind == Kind::Pod);
        let mut failures = self.take_away(&cluster, pods).await;
        // A proxy that ends still needs its account and its rights; most are collected with it.
        failures.extend(self.take_away(&cluster, others).await);
        drop(all_ended);
        if !failures.is_empty() {
            bail!("must be removed by hand:\n  {}", failures.join("\n  "));
        }
        Ok(())
    }

    /// Deletes these, and watches them go.
    async fn take_away(&self, cluster: &Cluster, entries: Vec<Entry>) -> Vec<String> {
        let mut failures = Vec::new();
        let mut going = Vec::new();
        for entry in entries {
            match self.delete(cluster, &entry).await {
                Ok(Outcome::Gone) => entry.voice.say(format_args!("{} removed", entry.name)),
                Ok(Outcome::Going(uid)) => going.push((entry, uid)),
                Ok(Outcome::NothingToDo) => {}
                Ok(Outcome::Shared) => {
                    let name = &entry.name;
                    entry
                        .voice
                        .say(format_args!("{name} stays, another session uses it"));
                }
                Err(refusal) => failures.push(format!("{}: {refusal}", entry.name)),
            }
        }
        while !going.is_empty() && Instant::now() < cluster.deadline() {
            sleep(PULSE).await;
            going = still_there(cluster, going).await;
        }
        for (Entry { name, voice, .. }, _) in going {
            voice.say(format_args!(
                "{name} is still ending, which needs nobody to watch"
            ));
        }
        failures
    }

    async fn delete(&self, cluster: &Cluster, entry: &Entry) -> Result<Outcome, Refusal> {
        loop {
            let Some(object) = cluster.look(&entry.name).await? else {
                return Ok(Outcome::NothingToDo);
            };
            let seen = &object.metadata;
            let is_other = entry.uid.is_some() && seen.uid != entry.uid;
            // Another call may have taken it over.
            if is_other || !cluster.is_author(seen) {
                return Ok(Outcome::NothingToDo);
            }
            if self.book().is_shared(seen) {
                return Ok(Outcome::Shared);
            }
            let uid = seen.uid.clone().unwrap_or_default();
            // Also where it is ending: the API server ends a pod without a node in two steps, and one
            // whose deletion was interrupted between them waits for another deletion. Only as it was
            // seen: somebody may be joining it this very moment.
            match cluster.remove_unchanged(&entry.name, seen).await? {
                Removal::Gone => return Ok(Outcome::Gone),
                Removal::Going => return Ok(Outcome::Going(uid)),
                Removal::Changed => {}
            }
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    fn conclude(&mut self, name: &Name, creation: &Result<Creation, Refusal>) {
        match creation {
            Ok(Creation::Made(metadata)) => {
                let entry = self.entries.iter_mut().rfind(|entry| entry.name == *name);
                if let Some(entry) = entry {
                    entry.uid.clone_from(&metadata.uid);
                }
            }
            // Whether the API server made it before it fell silent can only be seen later.
            Err(refusal) if refusal.code().is_none_or(|code| code >= 500) => {}
            Ok(Creation::Occupied) | Err(_) => self
                .entries
                .retain(|entry| entry.name != *name || entry.uid.is_some()),
        }
    }

    /// Whether a pod owns it that has nothing to do with this call.
    fn is_shared(&self, object: &ObjectMeta) -> bool {
        let made = self.entries.iter().filter_map(|entry| entry.uid.as_ref());
        let ours: Vec<_> = made.chain(&self.pr_pods).collect();
        let mut owners = object.owner_references.iter().flatten();
        owners.any(|owner| !ours.contains(&&owner.uid))
    }
}

/// Those that have not ended yet; says which have.
async fn still_there(cluster: &Cluster, going: Vec<(Entry, String)>) -> Vec<(Entry, String)> {
    let mut left = Vec::new();
    for (entry, uid) in going {
        // One that cannot be looked at now is looked at again.
        let is_there = match cluster.look(&entry.name).await {
            Ok(object) => object.is_some_and(|object| object.metadata.uid.as_ref() == Some(&uid)),
            Err(_) => true,
        };
        if is_there {
            left.push((entry, uid));
        } else {
            entry.voice.say(format_args!("{} removed", entry.name));
        }
    }
    left
}
