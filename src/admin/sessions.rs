//! `/sessions`: every session and baseline, how its endpoints are, what it has had to do.

use serde::Serialize;

use super::{Reload, ReloadResult, Status};
use crate::metrics::Route;
use crate::plan::{self, Listener, ListenerKind, OnUnavailable, Plan};
use crate::record::line::rfc3339;
use crate::upstream::{Source, Upstream};

/// The answer, as one JSON object.
pub(super) fn json(status: &Status) -> String {
    let plan = status.plan.borrow().clone();
    let overview = Overview {
        readiness: status.readiness.borrow().word(),
        sessions: plan
            .sessions
            .iter()
            .map(|(name, upstream)| session(name, upstream))
            .collect(),
        baselines: plan.listeners.iter().filter_map(baseline).collect(),
        discovery: discovery(&plan, status),
        last_reload: LastReload::from(&*status.last_reload.borrow()),
    };
    serde_json::to_string(&overview).expect("strings and numbers only")
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Overview<'p> {
    readiness: &'static str,
    sessions: Vec<Session<'p>>,
    baselines: Vec<Baseline<'p>>,
    /// `None`: all sessions come from the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    discovery: Option<Discovery<'p>>,
    last_reload: LastReload,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Session<'p> {
    /// As the file writes it.
    name: &'p str,
    /// The file, or a flag; or the cluster.
    source: &'static str,
    state: &'static str,
    endpoints: Vec<EndpointState<'p>>,
    /// `None`: the session shares its numbers with others, beyond the limit of names.
    requests: Option<u64>,
    errors: Option<u64>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Baseline<'p> {
    listener: &'p str,
    /// What a known session without a live endpoint gets.
    on_unavailable: &'static str,
    state: &'static str,
    endpoints: Vec<EndpointState<'p>>,
    requests: u64,
    errors: u64,
}

#[derive(Serialize)]
struct EndpointState<'p> {
    address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<&'p str>,
    state: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Discovery<'p> {
    namespace: &'p str,
    app: &'p str,
    /// False: what changes in the cluster does not reach us now.
    up: bool,
    /// When the API server was last heard of.
    last_sync: Option<String>,
}

#[derive(Serialize)]
struct LastReload {
    result: &'static str,
    at: String,
    problems: Vec<String>,
}

fn session<'p>(name: &'p str, upstream: &'p Upstream) -> Session<'p> {
    let route = Some(&upstream.route).filter(|route| route.name() == name && name != "other");
    Session {
        name,
        source: match upstream.source {
            Source::Configuration => "file",
            Source::Discovery => "discovery",
        },
        state: state(upstream),
        endpoints: endpoints(upstream),
        requests: route.map(|route| route.requests()),
        errors: route.map(|route| route.errors()),
    }
}

fn discovery<'p>(plan: &'p Plan, status: &Status) -> Option<Discovery<'p>> {
    let plan::Discovery { namespace, app } = plan.discovery.as_ref()?;
    let numbers = status.journal.metrics().discovery();
    let last_sync = numbers.as_ref().and_then(|numbers| numbers.last_sync());
    Some(Discovery {
        namespace,
        app,
        up: numbers.is_some_and(|numbers| numbers.up.get() == 1),
        last_sync: last_sync.map(rfc3339),
    })
}

/// The baseline of a listener that has one.
fn baseline(listener: &Listener) -> Option<Baseline<'_>> {
    let http = match &listener.kind {
        ListenerKind::Http(http) | ListenerKind::Https(http, _) => http,
        ListenerKind::Tcp(_) => return None,
    };
    let upstream = http.baseline.as_ref()?;
    let (requests, errors) = through(&upstream.route, &listener.name);
    Some(Baseline {
        listener: &listener.name,
        on_unavailable: match http.on_unavailable {
            OnUnavailable::Error => "error",
            OnUnavailable::Baseline => "baseline",
        },
        state: state(upstream),
        endpoints: endpoints(upstream),
        requests,
        errors,
    })
}

/// All baselines share a route; of its numbers, those of one listener.
fn through(route: &Route, listener: &str) -> (u64, u64) {
    let numbers = route
        .touched()
        .find(|numbers| numbers.listener() == listener);
    numbers.map_or((0, 0), |numbers| (numbers.requests(), numbers.errors()))
}

fn endpoints(upstream: &Upstream) -> Vec<EndpointState<'_>> {
    upstream
        .endpoints
        .iter()
        .map(|endpoint| EndpointState {
            address: endpoint.to_string(),
            pod: endpoint.pod.as_deref(),
            state: if endpoint.health.is_good() {
                "good"
            } else {
                "avoided"
            },
        })
        .collect()
}

fn state(upstream: &Upstream) -> &'static str {
    if upstream.endpoints.is_empty() {
        "empty"
    } else if upstream
        .endpoints
        .iter()
        .any(|endpoint| endpoint.health.is_good())
    {
        "live"
    } else {
        "avoided"
    }
}

impl From<&Reload> for LastReload {
    fn from(reload: &Reload) -> Self {
        Self {
            result: match reload.result {
                ReloadResult::Ok => "ok",
                ReloadResult::Failed => "failed",
            },
            at: rfc3339(reload.at),
            problems: reload.problems.clone(),
        }
    }
}
