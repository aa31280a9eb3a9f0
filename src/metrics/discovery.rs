//! What is told of the cluster while it is followed, and only then: a proxy without discovery has no
//! series that says it is down.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntGauge};

use super::opts;

/// How well the cluster is followed. Ends with its last holder.
pub struct DiscoveryMetrics {
    /// 1 while changes in the cluster reach us.
    pub up: IntGauge,
    /// Lists and watches of the API server that failed.
    pub errors: IntCounter,
    last_sync: IntGauge,
}

impl DiscoveryMetrics {
    fn new() -> Self {
        let gauge =
            |name, help| IntGauge::with_opts(opts(name, help)).expect("a valid name, no labels");
        let errors = opts(
            "discovery_errors_total",
            "Lists and watches of the API server that failed.",
        );
        Self {
            up: gauge(
                "discovery_up",
                "1 while changes in the cluster reach the proxy, 0 while it works with the last table.",
            ),
            errors: IntCounter::with_opts(errors).expect("a valid name, no labels"),
            last_sync: gauge(
                "discovery_last_sync_timestamp_seconds",
                "When the API server was last heard of, in seconds since 1970.",
            ),
        }
    }

    /// The API server has said something: the table is as true as can be.
    pub fn heard(&self) {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        self.last_sync
            .set(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    }

    /// When that was; `None` before the first time.
    pub fn last_sync(&self) -> Option<SystemTime> {
        let seconds = u64::try_from(self.last_sync.get()).ok()?;
        (seconds > 0).then(|| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
    }
}

impl fmt::Debug for DiscoveryMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiscoveryMetrics").finish_non_exhaustive()
    }
}

/// The metrics of whoever follows the cluster now, if anyone does.
#[derive(Clone, Default)]
pub(super) struct Followed(Arc<Mutex<Weak<DiscoveryMetrics>>>);

impl Followed {
    /// From zero, in the place of those before.
    pub(super) fn begin(&self) -> Arc<DiscoveryMetrics> {
        let begun = Arc::new(DiscoveryMetrics::new());
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&begun);
        begun
    }

    pub(super) fn now(&self) -> Option<Arc<DiscoveryMetrics>> {
        let followed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        followed.upgrade()
    }

    pub(super) fn collect(&self) -> Vec<MetricFamily> {
        let Some(followed) = self.now() else {
            return Vec::new();
        };
        let mut families = followed.up.collect();
        families.extend(followed.last_sync.collect());
        families.extend(followed.errors.collect());
        families
    }
}
