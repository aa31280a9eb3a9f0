//! The numbers of one route, and the list of session names that have some.
//!
//! A route is held by whoever sends requests its way. Its series are its own, so they end with it,
//! and its name is free again for another session.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntGauge, Opts};

use super::ListenerMetrics;
use super::tally::Tally;

/// Session names that get series of their own; all others share the route `other`.
const SESSION_NAMES: usize = 200;

/// Listeners with series of their own in each route; any further ones share the last place.
const LISTENERS: usize = 64;

/// Seconds; the buckets OpenTelemetry advises for `http.server.request.duration`.
const DURATION_BUCKETS: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];

/// Where one upstream's numbers are kept, until the last holder lets go.
pub struct Route {
    name: Arc<str>,
    /// Where the name is listed; `None` for the routes that always exist.
    listed: Option<Arc<Sessions>>,
    listeners: Box<[OnceLock<Box<RouteMetrics>>; LISTENERS]>,
    /// Made by the first connection, so that routes which never dial export nothing about it.
    upstream: OnceLock<Box<UpstreamMetrics>>,
}

impl Route {
    pub(super) fn new(name: Arc<str>, listed: Option<Arc<Sessions>>) -> Self {
        Self {
            name,
            listed,
            listeners: Box::new([const { OnceLock::new() }; LISTENERS]),
            upstream: OnceLock::new(),
        }
    }

    /// The label: a session as the file names it, `baseline`, `none` or `other`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What this route's requests through one listener are counted in.
    pub fn on(&self, listener: &ListenerMetrics) -> &RouteMetrics {
        let place = listener.index.min(LISTENERS - 1);
        self.listeners[place].get_or_init(|| {
            let name = if listener.index < LISTENERS - 1 {
                &listener.name
            } else {
                "other"
            };
            Box::new(RouteMetrics::new(name, &self.name))
        })
    }

    /// One attempt to connect to an endpoint, with its end.
    pub fn connected(&self, result: ConnectResult) {
        self.upstream().connects[result as usize].inc();
    }

    /// One request sent on a connection that had served another before.
    pub fn reused(&self) {
        self.upstream().reused.inc();
    }

    /// Upstream connections without a request.
    pub fn idle(&self) -> &IntGauge {
        &self.upstream().idle
    }

    /// Upstream connections with at least one request.
    pub fn active(&self) -> &IntGauge {
        &self.upstream().active
    }

    /// Requests counted so far, over all listeners.
    pub fn requests(&self) -> u64 {
        self.touched().map(RouteMetrics::requests).sum()
    }

    /// Of those, the ones answered with a status of 500 or more.
    pub fn errors(&self) -> u64 {
        self.touched().map(RouteMetrics::errors).sum()
    }

    /// The listeners that have had a request for this route.
    pub fn touched(&self) -> impl Iterator<Item = &RouteMetrics> {
        self.listeners
            .iter()
            .filter_map(|place| place.get().map(|numbers| &**numbers))
    }

    fn upstream(&self) -> &UpstreamMetrics {
        self.upstream
            .get_or_init(|| Box::new(UpstreamMetrics::new(&self.name)))
    }

    /// Everything counted so far, as the registry wants it.
    pub(super) fn collect(&self) -> Vec<MetricFamily> {
        let upstream = self
            .upstream
            .get()
            .into_iter()
            .flat_map(|upstream| upstream.collect());
        self.touched()
            .flat_map(RouteMetrics::collect)
            .chain(upstream)
            .collect()
    }
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Route").field(&self.name).finish()
    }
}

impl Drop for Route {
    fn drop(&mut self) {
        if let Some(sessions) = &self.listed {
            sessions.forget(self);
        }
    }
}

/// How an attempt to connect to an endpoint ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectResult {
    /// Connected, TLS included.
    Ok,
    /// The endpoint said no.
    Refused,
    /// No answer within the deadline.
    Timeout,
    /// The endpoint's name has no address.
    Resolve,
    /// The TLS handshake failed.
    Tls,
    /// Anything else.
    Error,
}

impl ConnectResult {
    /// In the order of the variants: a result is the place of its counter.
    const LABELS: [&str; 6] = ["ok", "refused", "timeout", "resolve", "tls", "error"];
}

/// The requests of one route through one listener.
#[derive(Debug)]
pub struct RouteMetrics {
    /// Seconds from the request's head to the last byte of its answer.
    pub request_duration: Histogram,
    listener: Box<str>,
    route: Box<str>,
    requests: Tally,
}

impl RouteMetrics {
    fn new(listener: &str, route: &str) -> Self {
        let opts = HistogramOpts::new(
            "session_proxy_request_duration_seconds",
            "Time from a request's head to the last byte of its answer.",
        );
        let opts = opts
            .buckets(DURATION_BUCKETS.to_vec())
            .const_label("listener", listener)
            .const_label("route", route);
        Self {
            request_duration: Histogram::with_opts(opts).expect("a valid name and buckets"),
            listener: Box::from(listener),
            route: Box::from(route),
            requests: Tally::default(),
        }
    }

    /// One request answered with `code`. After the first of a pair this is one atomic addition.
    pub fn count(&self, reason: &'static str, code: u16) {
        self.requests.count(reason, code, || {
            let opts = Opts::new(
                "session_proxy_requests_total",
                "Requests by listener, route, the reason for that route, and status code.",
            );
            let opts = opts
                .const_label("listener", &*self.listener)
                .const_label("route", &*self.route)
                .const_label("reason", reason)
                .const_label("code", code.to_string());
            IntCounter::with_opts(opts).expect("a valid name and labels")
        });
    }

    /// The listener's label.
    pub fn listener(&self) -> &str {
        &self.listener
    }

    /// Requests counted so far.
    pub fn requests(&self) -> u64 {
        self.requests.sum(|_| true)
    }

    /// Of those, the ones answered with a status of 500 or more.
    pub fn errors(&self) -> u64 {
        self.requests.sum(|code| code >= 500)
    }

    fn collect(&self) -> impl Iterator<Item = MetricFamily> {
        self.requests
            .collect()
            .chain(self.request_duration.collect())
    }
}

/// The connections of one route to its endpoints.
#[derive(Debug)]
struct UpstreamMetrics {
    connects: [IntCounter; ConnectResult::LABELS.len()],
    reused: IntCounter,
    idle: IntGauge,
    active: IntGauge,
}

impl UpstreamMetrics {
    fn new(route: &str) -> Self {
        let opts = |name: &str, help: &str| {
            Opts::new(format!("session_proxy_{name}"), help).const_label("route", route)
        };
        let connects = |result| {
            let opts = opts(
                "upstream_connects_total",
                "Attempts to connect to an endpoint.",
            );
            let opts = opts.const_label("result", result);
            IntCounter::with_opts(opts).expect("a valid name and labels")
        };
        let connections = |state| {
            let opts = opts(
                "upstream_connections",
                "Connections to endpoints, idle or active.",
            );
            IntGauge::with_opts(opts.const_label("state", state)).expect("a valid name and labels")
        };
        let reused = opts(
            "upstream_reused_total",
            "Requests sent on a connection that had served another before.",
        );
        Self {
            connects: ConnectResult::LABELS.map(connects),
            reused: IntCounter::with_opts(reused).expect("a valid name and labels"),
            idle: connections("idle"),
            active: connections("active"),
        }
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut families: Vec<_> = self.connects.iter().flat_map(Collector::collect).collect();
        families.extend(self.reused.collect());
        families.extend(self.idle.collect());
        families.extend(self.active.collect());
        families
    }
}

/// The session names that have series of their own at this moment.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    // A lock, because plans are built and dropped on any thread. No request comes here.
    routes: Mutex<HashMap<Arc<str>, Weak<Route>>>,
}

impl Sessions {
    /// `None` when all places are taken.
    pub(super) fn route(self: &Arc<Self>, name: &str) -> Option<Arc<Route>> {
        let mut routes = self.lock();
        let listed = routes.get(name);
        if let Some(route) = listed.and_then(Weak::upgrade) {
            return Some(route);
        }
        if listed.is_none() && routes.len() == SESSION_NAMES {
            return None;
        }
        let name = Arc::<str>::from(name);
        let route = Arc::new(Route::new(Arc::clone(&name), Some(Arc::clone(self))));
        routes.insert(name, Arc::downgrade(&route));
        Some(route)
    }

    /// Frees the place of a route that is being dropped.
    fn forget(&self, route: &Route) {
        let mut routes = self.lock();
        // Between the last release and this call the name may have been given out anew.
        if routes
            .get(&*route.name)
            .is_some_and(|listed| std::ptr::eq(listed.as_ptr(), route))
        {
            routes.remove(&*route.name);
        }
    }

    /// The routes alive at this moment.
    pub(super) fn alive(&self) -> Vec<Arc<Route>> {
        self.lock().values().filter_map(Weak::upgrade).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Weak<Route>>> {
        // No change to the map can stop half way, so a panic elsewhere leaves it sound.
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_and_go_on_many_threads_without_losing_a_place() {
        let sessions = Arc::new(Sessions::default());

        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for n in 0..5_000 {
                        let name = format!("pr-{}", n % 3);
                        assert_eq!(sessions.route(&name).unwrap().name(), name);
                    }
                });
            }
        });

        assert!(sessions.lock().is_empty());
    }

    #[test]
    fn a_route_made_while_its_forerunner_is_dropped_keeps_its_place() {
        let sessions = Arc::new(Sessions::default());
        let name = Arc::<str>::from("pr-42");
        let forerunner = Route::new(Arc::clone(&name), None);

        let route = sessions.route("pr-42").unwrap();
        sessions.forget(&forerunner);

        assert!(Arc::ptr_eq(&sessions.route("pr-42").unwrap(), &route));
    }
}
