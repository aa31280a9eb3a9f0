//! The registry, its families, the handles fetched once.
//!
//! This room knows names and labels, not the types they describe. Whoever counts holds a handle:
//! a label is resolved when a plan is built or a listener bound, never while a request waits.
//!
//! What belongs to a route lives in the [`Route`] itself, and the registry asks the routes that
//! are alive. So a session that leaves the table takes its series with it, and a cluster that saw
//! ten thousand pull requests does not export all of them for ever.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use prometheus::core::{Collector, Desc};
use prometheus::process_collector::ProcessCollector;
use prometheus::proto::MetricFamily;
use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

pub use self::discovery::DiscoveryMetrics;
use self::discovery::Followed;
use self::route::Sessions;
pub use self::route::{ConnectResult, Route, RouteMetrics};

mod discovery;
mod route;
mod tally;

/// Seconds, from 10 µs (a small request) to 100 ms (something is wrong).
const OVERHEAD_BUCKETS: [f64; 13] = [
    0.000_01, 0.000_025, 0.000_05, 0.000_075, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005,
    0.01, 0.025, 0.1,
];

/// Every number this process exports.
pub struct Metrics {
    /// Requests between their head and the last byte of their answer.
    pub requests_in_flight: IntGauge,
    /// Seconds the proxy itself added to a request.
    pub overhead_seconds: Histogram,
    /// Body bytes from clients to upstreams.
    pub request_bytes: IntCounter,
    /// Body bytes from upstreams to clients.
    pub response_bytes: IntCounter,
    /// Events a slow tap lost.
    pub tap_dropped: IntCounter,
    /// Access lines lost because stdout was too slow.
    pub log_dropped: IntCounter,
    /// Sessions in the current table.
    pub sessions: IntGauge,
    /// Configurations taken up after a change.
    pub reloads_succeeded: IntCounter,
    /// Configurations refused after a change.
    pub reloads_failed: IntCounter,
    /// Seconds since 1970 of the last configuration taken up.
    pub last_reload_success: IntGauge,
    retries: IntCounterVec,
    connections: IntGaugeVec,
    connections_total: IntCounterVec,
    listeners: AtomicUsize,
    baseline: Arc<Route>,
    none: Arc<Route>,
    other: Arc<Route>,
    sessions_alive: Arc<Sessions>,
    followed: Followed,
    registry: Registry,
}

impl Metrics {
    /// All families, at zero. `version` and `commit` become the labels of `build_info`.
    pub fn new(version: &str, commit: &str) -> Arc<Self> {
        let registry = Registry::new();
        let families = Families {
            registry: &registry,
        };
        let fixed = |name| Arc::new(Route::new(Arc::from(name), None));
        let (baseline, none, other) = (fixed("baseline"), fixed("none"), fixed("other"));
        let sessions_alive = Arc::new(Sessions::default());
        let followed = Followed::default();
        families.register(Passing {
            fixed: [Arc::clone(&baseline), Arc::clone(&none), Arc::clone(&other)],
            sessions: Arc::clone(&sessions_alive),
            followed: followed.clone(),
        });
        families.register(ProcessCollector::for_self());

        families.build_info(version, commit);
        let bytes = families.counters(
            "body_bytes_total",
            "Body bytes passed on, by direction (request, response).",
            &["direction"],
        );
        let reloads = families.counters(
            "config_reloads_total",
            "Configurations read after start, by result (success, failure).",
            &["result"],
        );
        Arc::new(Self {
            requests_in_flight: families
                .gauge("requests_in_flight", "Requests being served at this moment."),
            overhead_seconds: families.overhead(),
            request_bytes: bytes.with_label_values(&["request"]),
            response_bytes: bytes.with_label_values(&["response"]),
            tap_dropped: families
                .counter("tap_dropped_total", "Events lost by taps that read too slowly."),
            log_dropped: families
                .counter("log_dropped_total", "Access lines lost because stdout was too slow."),
            sessions: families.gauge("sessions", "Sessions in the current table."),
            reloads_succeeded: reloads.with_label_values(&["success"]),
            reloads_failed: reloads.with_label_values(&["failure"]),
            last_reload_success: families.gauge(
                "config_last_reload_success_timestamp_seconds",
                "When a configuration was last taken up, in seconds since 1970.",
            ),
            retries: families.counters(
                "retries_total",
                "Requests sent once more because the first try did not reach an upstream, by reason.",
                &["reason"],
            ),
            connections: families.gauges(
                "connections",
                "Client connections open at this moment.",
                &["listener"],
            ),
            connections_total: families.counters(
                "connections_total",
                "Client connections accepted.",
                &["listener"],
            ),
            listeners: AtomicUsize::new(0),
            baseline,
            none,
            other,
            sessions_alive,
            followed,
            registry,
        })
    }

    /// Everything in the Prometheus text format, version 0.0.4.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if let Err(error) = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text) {
            // Only an empty or unnamed family fails, and the registry leaves empty ones out.
            tracing::warn!(%error, "metrics are incomplete");
        }
        text
    }

    /// The numbers of one more listener. To be called once for each, when it is bound.
    pub fn listener(self: &Arc<Self>, name: &str) -> Arc<ListenerMetrics> {
        Arc::new(ListenerMetrics {
            index: self.listeners.fetch_add(1, Ordering::Relaxed),
            name: Arc::from(name),
            connections: self.connections.with_label_values(&[name]),
            connections_total: self.connections_total.with_label_values(&[name]),
        })
    }

    /// Where requests to `name` are counted: `baseline`, `none`, or a session as the file names it.
    ///
    /// One name has one route while anyone holds it. Beyond 200 session names the answer is the
    /// shared route `other`; a name that nobody holds any more gives its place back.
    pub fn route(self: &Arc<Self>, name: &str) -> Arc<Route> {
        match name {
            "baseline" => Arc::clone(&self.baseline),
            "none" => Arc::clone(&self.none),
            // A session of this name shares the series: two of one name would be an invalid export.
            "other" => Arc::clone(&self.other),
            name => match self.sessions_alive.route(name) {
                Some(route) => route,
                None => Arc::clone(&self.other),
            },
        }
    }

    /// The numbers of following the cluster, from zero.
    pub fn begin_discovery(&self) -> Arc<DiscoveryMetrics> {
        self.followed.begin()
    }

    /// The numbers of following the cluster; `None` when nobody does.
    pub fn discovery(&self) -> Option<Arc<DiscoveryMetrics>> {
        self.followed.now()
    }

    /// One request sent once more; `reason` says why the first try certainly had no effect.
    pub fn retried(&self, reason: &'static str) {
        self.retries.with_label_values(&[reason]).inc();
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// The numbers of one listener, and its place in each route.
#[derive(Debug)]
pub struct ListenerMetrics {
    /// 0, 1, 2 … in the order the listeners were bound.
    pub index: usize,
    /// As the file names it.
    pub name: Arc<str>,
    /// Client connections open at this moment.
    pub connections: IntGauge,
    /// Client connections accepted since start.
    pub connections_total: IntCounter,
}

/// What the registry asks for series that come and go: those of all routes, and of discovery.
struct Passing {
    fixed: [Arc<Route>; 3],
    sessions: Arc<Sessions>,
    followed: Followed,
}

impl Collector for Passing {
    fn desc(&self) -> Vec<&Desc> {
        Vec::new() // the registry checks none of them
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // The lock is free again before these are dropped: each may be the last holder.
        let sessions = self.sessions.alive();
        self.fixed
            .iter()
            .chain(&sessions)
            .flat_map(|route| route.collect())
            .chain(self.followed.collect())
            .collect()
    }
}

/// Makes families and registers them, each once, under our prefix.
struct Families<'r> {
    registry: &'r Registry,
}

impl Families<'_> {
    fn register(&self, family: impl Collector + 'static) {
        self.registry
            .register(Box::new(family))
            .expect("every family has a name of its own");
    }

    fn keep<C: Collector + Clone + 'static>(&self, family: prometheus::Result<C>) -> C {
        let family = family.expect("a valid name, help and labels");
        self.register(family.clone());
        family
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.keep(IntCounter::with_opts(opts(name, help)))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.keep(IntCounterVec::new(opts(name, help), labels))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.keep(IntGauge::with_opts(opts(name, help)))
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.keep(IntGaugeVec::new(opts(name, help), labels))
    }

    fn build_info(&self, version: &str, commit: &str) {
        let labels = ["version", "commit"];
        let built = self.gauges(
            "build_info",
            "Always 1; the labels say what is running.",
            &labels,
        );
        built.with_label_values(&[version, commit]).set(1);
    }

    fn overhead(&self) -> Histogram {
        let opts = HistogramOpts::new(
            "session_proxy_overhead_seconds",
            "Time the proxy itself added to a request.",
        );
        self.keep(Histogram::with_opts(
            opts.buckets(OVERHEAD_BUCKETS.to_vec()),
        ))
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("session_proxy_{name}"), help)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn metrics() -> Arc<Metrics> {
        Metrics::new("1.2.3", "abc")
    }

    #[test]
    fn every_family_of_the_interface_is_exported() {
        let metrics = metrics();
        let listener = metrics.listener("http");
        let baseline = metrics.route("baseline");
        baseline.on(&listener).count("no-session", 200);
        baseline.on(&listener).request_duration.observe(0.01);
        baseline.connected(ConnectResult::Refused);
        metrics.retried("unsent");

        let text = metrics.text();

        for line in [
            r#"session_proxy_requests_total{code="200",listener="http",reason="no-session",route="baseline"} 1"#,
            r#"session_proxy_request_duration_seconds_count{listener="http",route="baseline"} 1"#,
            "session_proxy_overhead_seconds_count 0",
            "session_proxy_requests_in_flight 0",
            r#"session_proxy_connections{listener="http"} 0"#,
            r#"session_proxy_connections_total{listener="http"} 0"#,
            r#"session_proxy_upstream_connects_total{result="refused",route="baseline"} 1"#,
            r#"session_proxy_upstream_connections{route="baseline",state="idle"} 0"#,
            r#"session_proxy_upstream_reused_total{route="baseline"} 0"#,
            r#"session_proxy_retries_total{reason="unsent"} 1"#,
            r#"session_proxy_body_bytes_total{direction="request"} 0"#,
            "session_proxy_tap_dropped_total 0",
            "session_proxy_log_dropped_total 0",
            "session_proxy_sessions 0",
            r#"session_proxy_config_reloads_total{result="failure"} 0"#,
            "session_proxy_config_last_reload_success_timestamp_seconds 0",
            r#"session_proxy_build_info{commit="abc",version="1.2.3"} 1"#,
            "process_open_fds ",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
        assert_eq!(
            text.matches("# TYPE session_proxy_upstream_connections ")
                .count(),
            1
        );
    }

    #[test]
    fn one_name_has_one_route_while_anyone_holds_it() {
        let metrics = metrics();

        let first = metrics.route("pr-42");
        let second = metrics.route("pr-42");

        assert!(Arc::ptr_eq(&first, &second));
        assert!(Arc::ptr_eq(&metrics.route("none"), &metrics.route("none")));
    }

    #[test]
    fn names_beyond_the_limit_share_a_route_until_a_place_is_free() {
        let metrics = metrics();
        let mut held: Vec<_> = (0..200)
            .map(|n| metrics.route(&format!("pr-{n}")))
            .collect();

        assert_eq!(metrics.route("pr-200").name(), "other");
        assert_eq!(metrics.route("pr-7").name(), "pr-7");

        held.pop();
        assert_eq!(metrics.route("pr-200").name(), "pr-200");
    }

    #[test]
    fn a_session_that_leaves_takes_its_series_with_it() {
        let metrics = metrics();
        let listener = metrics.listener("http");
        let route = metrics.route("pr-42");
        route.on(&listener).count("session", 200);
        route.on(&listener).request_duration.observe(0.1);
        route.connected(ConnectResult::Ok);
        assert!(metrics.text().contains("pr-42"));

        drop(route);

        assert!(!metrics.text().contains("pr-42"));
        assert_eq!(metrics.route("pr-42").requests(), 0);
    }

    #[test]
    fn discovery_is_told_of_while_somebody_follows_the_cluster() {
        let metrics = metrics();
        assert!(!metrics.text().contains("session_proxy_discovery"));

        let followed = metrics.begin_discovery();
        followed.up.set(1);
        followed.errors.inc();
        followed.heard();

        let text = metrics.text();
        assert!(text.contains("session_proxy_discovery_up 1"), "{text}");
        assert!(
            text.contains("session_proxy_discovery_errors_total 1"),
            "{text}"
        );
        let line = "session_proxy_discovery_last_sync_timestamp_seconds 1";
        assert!(text.contains(line), "{text}");
        assert!(followed.last_sync().is_some());
        drop(followed);
        assert!(!metrics.text().contains("session_proxy_discovery"));
    }

    #[test]
    fn a_hundred_thousand_sessions_get_their_route_quickly() {
        let metrics = metrics();
        let names: Vec<_> = (0..100_000).map(|n| format!("pr-{n}")).collect();

        let start = Instant::now();
        let routes: Vec<_> = names.iter().map(|name| metrics.route(name)).collect();
        let took = start.elapsed();

        assert_eq!(
            routes
                .iter()
                .filter(|route| route.name() == "other")
                .count(),
            99_800
        );
        assert!(took < Duration::from_millis(200), "took {took:?}");
    }

    #[test]
    fn listeners_beyond_the_last_place_share_it() {
        let metrics = metrics();
        let listeners: Vec<_> = (0..70)
            .map(|n| metrics.listener(&format!("l{n}")))
            .collect();
        let route = metrics.route("baseline");

        for listener in &listeners {
            route.on(listener).count("no-session", 200);
        }

        let shared = route.touched().last().unwrap();
        assert_eq!((shared.listener(), shared.requests()), ("other", 7));
        assert_eq!(route.requests(), 70);
    }

    #[test]
    fn a_hostile_session_name_stays_inside_its_label() {
        let metrics = metrics();
        let listener = metrics.listener("http");
        let route = metrics.route("~a\"} 1\nforged 2");
        route.on(&listener).count("session", 200);

        let text = metrics.text();

        assert!(
            !text.lines().any(|line| line.starts_with("forged")),
            "{text}"
        );
    }
}
