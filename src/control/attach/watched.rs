//! Objects of the cluster as they are now: a watch that resumes, told as the whole each time.
//!
//! While the API server is away the last that was known stays what is known.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use futures_util::StreamExt;
use kube::runtime::watcher::{self, Config, Event, watcher};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::kubernetes::{Deed, Refusal, WATCH_SECONDS};

/// By name.
pub(super) type Objects<K> = BTreeMap<String, K>;

/// How long to wait after one failure, and at most after many.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Follows objects for ever. `take` gets all of them after each change, or why they cannot be known
/// at the moment.
pub(super) async fn follow<K>(
    api: Api<K>,
    config: Config,
    resource: &'static str,
    mut take: impl FnMut(Result<&Objects<K>, &Refusal>),
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let namespace = api.namespace().unwrap_or_default().to_owned();
    let mut events = std::pin::pin!(watcher(api, config.timeout(WATCH_SECONDS)));
    let (mut known, mut listed) = (Objects::new(), Objects::new());
    let mut failures = 0;
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => {
                listed.clear();
                continue;
            }
            Ok(Event::InitApply(object)) => {
                listed.insert(object.name_any(), object);
                continue;
            }
            Ok(Event::InitDone) => known = std::mem::take(&mut listed),
            Ok(Event::Apply(object)) => _ = known.insert(object.name_any(), object),
            Ok(Event::Delete(object)) => forget(&mut known, &object),
            Err(error) => {
                failures += 1;
                if let Some(refusal) = refusal(error, resource, &namespace) {
                    if failures == 1 {
                        warn!(%refusal, "out of sight: what was known is held on to");
                    }
                    take(Err(&refusal));
                }
                sleep(pause(failures)).await;
                continue;
            }
        }
        if std::mem::take(&mut failures) > 0 {
            info!(resource, namespace, "in sight again");
        }
        take(Ok(&known));
    }
}

/// Doubled after each failure; half as long to half as long again.
fn pause(failures: u32) -> Duration {
    let (first, longest) = PAUSES;
    let doubled = first.saturating_mul(1_u32.checked_shl(failures - 1).unwrap_or(u32::MAX));
    doubled.min(longest).mul_f64(0.5 + fastrand::f64())
}

/// The name may belong to another object by now.
fn forget<K: Resource>(known: &mut Objects<K>, gone: &K) {
    let name = gone.name_any();
    if known
        .get(&name)
        .is_some_and(|known| known.uid() == gone.uid())
    {
        known.remove(&name);
    }
}

/// A failure to list or to watch as a refusal; `None`: it says nothing that a person could use, as
/// when the API server ended a watch that is too old.
fn refusal(error: watcher::Error, resource: &'static str, namespace: &str) -> Option<Refusal> {
    let (verb, error) = match error {
        watcher::Error::InitialListFailed(error) => ("list", error),
        watcher::Error::WatchStartFailed(error) | watcher::Error::WatchFailed(error) => {
            ("watch", error)
        }
        watcher::Error::WatchError(_) | watcher::Error::NoResourceVersion => return None,
    };
    Some(Refusal {
        deed: Deed {
            verb,
            resource,
            namespace: namespace.to_owned(),
        },
        error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_fails_again_and_again_waits_longer() {
        for (failures, least, most) in [(1, 250, 750), (3, 1000, 3000), (99, 15_000, 45_000)] {
            let pause = pause(failures).as_millis();

            assert!((least..=most).contains(&pause), "{failures}: {pause}");
        }
    }
}
