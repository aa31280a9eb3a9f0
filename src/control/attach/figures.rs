//! The numbers of attach itself. Those of the proxies are theirs.

use std::time::Duration;

use prometheus::process_collector::ProcessCollector;
use prometheus::{
    HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder,
};

use super::board::{State, Target};
use super::cause::Cause;

/// Seconds: one probe passes the agent, the API server and our child.
const PROBE_BUCKETS: [f64; 10] = [
    0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
];

/// Families with the label `target`; a target's series go with it.
pub(super) struct Figures {
    restarts: IntCounterVec,
    probes: HistogramVec,
    registry: Registry,
}

impl Figures {
    pub(super) fn new() -> Self {
        let restarts = Opts::new(
            "session_proxy_target_restarts_total",
            "Sessions that had to be started anew, by reason.",
        );
        let probes = HistogramOpts::new(
            "session_proxy_target_probe_seconds",
            "How long a target's probe took to come back from its own proxy.",
        )
        .buckets(PROBE_BUCKETS.to_vec());
        let well_formed = "names and labels above are well formed";
        let figures = Self {
            restarts: IntCounterVec::new(restarts, &["target", "reason"]).expect(well_formed),
            probes: HistogramVec::new(probes, &["target"]).expect(well_formed),
            registry: Registry::new(),
        };
        let once = "each family is registered once";
        let registry = &figures.registry;
        registry
            .register(Box::new(figures.restarts.clone()))
            .expect(once);
        registry
            .register(Box::new(figures.probes.clone()))
            .expect(once);
        registry
            .register(Box::new(ProcessCollector::for_self()))
            .expect(once);
        figures
    }

    /// Has series of that target from now on.
    pub(super) fn enter(&self, target: &str) {
        self.probes.with_label_values(&[target]);
    }

    pub(super) fn leave(&self, target: &str) {
        // What was never counted has no series to remove.
        for reason in Cause::REASONS {
            let _ = self.restarts.remove_label_values(&[target, reason]);
        }
        let _ = self.probes.remove_label_values(&[target]);
    }

    pub(super) fn restarted(&self, target: &str, reason: &str) {
        self.restarts.with_label_values(&[target, reason]).inc();
    }

    pub(super) fn probed(&self, target: &str, took: Duration) {
        self.probes
            .with_label_values(&[target])
            .observe(took.as_secs_f64());
    }

    /// The Prometheus text format, version 0.0.4, with these targets' states.
    pub(super) fn text<'t>(&self, targets: impl Iterator<Item = &'t Target>) -> String {
        let mut families = states(targets).gather();
        families.extend(self.registry.gather());
        let mut text = String::new();
        if let Err(error) = TextEncoder::new().encode_utf8(&families, &mut text) {
            // Only an empty or unnamed family fails, and the registry leaves empty ones out.
            tracing::warn!(%error, "metrics are incomplete");
        }
        text
    }
}

/// The states of these targets alone. Made anew for whoever asks: several may at the same moment.
fn states<'t>(targets: impl Iterator<Item = &'t Target>) -> Registry {
    let states = Opts::new(
        "session_proxy_target_state",
        "1 for the state that a target's session is in, 0 for all others.",
    );
    let states = IntGaugeVec::new(states, &["target", "state"])
        .expect("the name and the labels above are well formed");
    for target in targets {
        for state in State::ALL {
            let gauge = states.with_label_values(&[&target.pod, state.word()]);
            gauge.set(i64::from(state == target.state));
        }
    }
    let registry = Registry::new();
    registry
        .register(Box::new(states))
        .expect("it is the only one");
    registry
}
