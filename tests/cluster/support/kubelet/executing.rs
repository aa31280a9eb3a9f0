//! Pods whose commands run: without containers, but with the command, the arguments, the environment,
//! the folders and the user that the pod's spec says.
//!
//! Each container is processes of this machine in a root of their own, from bubblewrap: the machine's
//! programs, read-only, and the pod's volumes where they are mounted. The network is the machine's.

mod containers;
pub(super) mod machine;
mod report;
mod root;
mod volumes;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;
use tokio::time::Instant;

use self::containers::Containers;
use self::machine::Machine;
use super::Shared;

/// Runs the pod's containers until they end, or the pod is deleted. The pod is gone when nobody sends
/// sightings any more.
pub(super) async fn execute(
    shared: Arc<Shared>,
    machine: Arc<Machine>,
    mut sightings: watch::Receiver<Pod>,
) {
    let pod = sightings.borrow().clone();
    let containers = Arc::new(Containers::of(&pod, machine).await);
    let mut work = Box::pin(containers.run(&shared));
    let mut is_done = false;
    let mut killed_at = None;
    loop {
        tokio::select! {
            () = &mut work, if !is_done => is_done = true,
            seen = sightings.changed() => {
                if seen.is_err() {
                    // Deleted by force: nobody hears of what becomes of it.
                    return containers.kill();
                }
                let pod = sightings.borrow_and_update().clone();
                containers.refresh(&pod);
                if pod.metadata.deletion_timestamp.is_some() && killed_at.is_none() {
                    containers.terminate();
                    killed_at = Some(Instant::now() + grace(&pod));
                }
            }
            () = until(killed_at), if !is_done => {
                containers.kill();
                killed_at = Some(Instant::now() + Duration::from_secs(1));
            }
        }
        if is_done && killed_at.is_some() {
            return shared.remove(&pod).await;
        }
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// As its deletion says, else its spec.
fn grace(pod: &Pod) -> Duration {
    let spec = pod.spec.as_ref();
    let seconds = pod.metadata.deletion_grace_period_seconds;
    let seconds = seconds.or(spec.and_then(|spec| spec.termination_grace_period_seconds));
    Duration::from_secs(seconds.and_then(|s| s.try_into().ok()).unwrap_or(30))
}
