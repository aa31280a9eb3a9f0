//! `/sessions`: every session and baseline, how its endpoints are, what it has had to do.

use std::sync::Arc;

use serde::Serialize;

use super::{Reload, ReloadResult, Status};
use crate::metrics::Route;
use crate::plan::{Listener, ListenerKind, OnUnavailable};
use crate::record::line::rfc3339;
use crate::upstream::{Endpoint, Upstream};

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
    last_reload: LastReload,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Session<'p> {
    /// As the file writes it.
    name: &'p str,
    state: &'static str,
    endpoints: Vec<EndpointState>,
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
    endpoints: Vec<EndpointState>,
    requests: u64,
    errors: u64,
}

#[derive(Serialize)]
struct EndpointState {
    address: String,
    state: &'static str,
}

#[derive(Serialize)]
struct LastReload {
    result: &'static str,
    at: String,
    problems: Vec<String>,
}

fn session<'p>(name: &'p str, upstream: &Upstream) -> Session<'p> {
    let route = Some(&upstream.route).filter(|route| route.name() == name && name != "other");
    Session {
        name,
        state: state(upstream),
        endpoints: endpoints(upstream),
        requests: route.map(|route| route.requests()),
        errors: route.map(|route| route.errors()),
    }
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

fn endpoints(upstream: &Upstream) -> Vec<EndpointState> {
    let state = |endpoint: &Arc<Endpoint>| EndpointState {
        address: endpoint.to_string(),
        state: if endpoint.health.is_good() {
            "good"
        } else {
            "avoided"
        },
    };
    upstream.endpoints.iter().map(state).collect()
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
