//! The probes' ids in a PR pod's log.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::scene::PrPod;
use crate::control::cluster::Cluster;

/// Between two looks: a log is written some time after its cause.
const BREATH: Duration = Duration::from_millis(300);

/// Read at most so much at a time.
const LONGEST: u64 = 16 * 1024 * 1024;

/// Clocks of the API server and of nodes are coarse.
const SLACK: Duration = Duration::from_secs(5);

/// The log of one pod, from the beginning of this run on.
pub(super) struct Log<'a> {
    pub cluster: &'a Cluster,
    pub namespace: &'a str,
    pub pod: &'a PrPod,
    pub since: Instant,
    /// What the ids begin with.
    pub run: &'a str,
}

impl Log<'_> {
    /// Looks until all of these ids were seen, or it has looked long enough; no look may last longer
    /// than until it is too late. All ids that were seen.
    ///
    /// # Errors
    /// The log cannot be read, in words for people.
    pub(super) async fn ids(
        &self,
        wanted: &BTreeSet<&str>,
        enough: Instant,
        late: Instant,
    ) -> Result<BTreeSet<String>, String> {
        loop {
            let seen = timeout_at(late, self.look()).await;
            let seen =
                seen.map_err(|_| format!("the log of {} took too long", self.pod.name))??;
            let has_all = wanted.iter().all(|id| seen.contains(*id));
            if has_all || Instant::now() + BREATH >= enough {
                return Ok(seen);
            }
            sleep(BREATH).await;
        }
    }

    /// The ids in the logs of all its containers.
    async fn look(&self) -> Result<BTreeSet<String>, String> {
        let mut seen = BTreeSet::new();
        for container in &self.pod.containers {
            let place = (self.namespace, &*self.pod.name, &**container);
            let time = self.since.elapsed() + SLACK;
            let log = self.cluster.log_within(place, time, LONGEST).await;
            let log = log.map_err(|refusal| refusal.to_string())?;
            seen.extend(ids_in(&log, self.run));
        }
        Ok(seen)
    }
}

/// Whatever begins with the run's own mark and has the form of an id.
fn ids_in(log: &[u8], run: &str) -> BTreeSet<String> {
    let length = run.len() + 8;
    let text = String::from_utf8_lossy(log);
    let places = text.match_indices(run);
    places
        .filter_map(|(place, _)| text.get(place..place + length))
        .filter(|id| id.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_found_among_whatever_else_is_logged() {
        let log = b"\xff GET /?session-proxy-probe=abc00000001 200\n{\"id\":\"abc00000002\"} abc0000\nabc";

        let ids: Vec<_> = ids_in(log, "abc").into_iter().collect();

        assert_eq!(ids, ["abc00000001", "abc00000002"]);
    }
}
