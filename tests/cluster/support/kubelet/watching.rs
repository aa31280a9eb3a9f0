//! Which pods there are: each gets a life of its own, which hears of every change to its pod.

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher::{self, Event, watcher};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Shared;
use super::life::live;

/// Follows the pods of the namespace until it is aborted, and all lives with it.
pub(super) async fn watch(shared: Arc<Shared>) {
    let mut ward = Ward {
        shared: shared.clone(),
        lives: HashMap::new(),
        tasks: JoinSet::new(),
    };
    let mut listed = HashSet::new();
    let mut events = pin!(watcher(shared.pods.clone(), watcher::Config::default()));
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Apply(pod)) => ward.see(pod),
            Ok(Event::Delete(pod)) => {
                ward.lives.remove(&uid(&pod));
            }
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(pod)) => {
                listed.insert(uid(&pod));
                ward.see(pod);
            }
            Ok(Event::InitDone) => ward.lives.retain(|uid, _| listed.contains(uid)),
            // The API server is away; the watcher goes on where it was when it is back.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

struct Ward {
    shared: Arc<Shared>,
    /// By uid. A life whose sender is dropped knows that its pod is gone.
    lives: HashMap<String, watch::Sender<Pod>>,
    tasks: JoinSet<()>,
}

impl Ward {
    fn see(&mut self, pod: Pod) {
        while self.tasks.try_join_next().is_some() {}
        if let Some(life) = self.lives.get(&uid(&pod)) {
            life.send_replace(pod);
            return;
        }
        let uid = uid(&pod);
        let (sightings_tx, sightings) = watch::channel(pod);
        self.lives.insert(uid, sightings_tx);
        self.tasks.spawn(live(self.shared.clone(), sightings));
    }
}

fn uid(pod: &Pod) -> String {
    pod.metadata.uid.clone().expect("a stored pod has a uid")
}
