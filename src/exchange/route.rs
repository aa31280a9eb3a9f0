//! Which way a request goes, and why.

use std::borrow::Cow;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue};

use super::failure::Failure;
use crate::matcher::Claim;
use crate::plan::{HttpListener, OnUnavailable, PROBE, Plan};
use crate::upstream::Upstream;

/// Where a request goes.
#[derive(Debug)]
pub(super) enum Route<'p> {
    /// To the pods of its session.
    Session(&'p Arc<Upstream>),
    /// To the baseline, for this reason.
    Baseline(&'p Arc<Upstream>, Reason),
    /// Nowhere: we answer ourselves.
    Probe,
}

/// Why a request goes to the baseline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// It names no session.
    NoSession,
    /// It names one that is not in the table.
    UnknownSession,
    /// It names two.
    Conflict,
    /// What it names cannot be a session.
    Malformed,
    /// Its session has no live endpoint, and the listener sends such requests to the baseline.
    NoEndpoint,
}

impl Reason {
    /// The word for it in labels and logs.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::NoSession => "no-session",
            Self::UnknownSession => "unknown-session",
            Self::Conflict => "conflict",
            Self::Malformed => "malformed",
            Self::NoEndpoint => "no-endpoint",
        }
    }

    /// The value of the route header.
    fn header(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::NoSession => "baseline; reason=no-session",
            Self::UnknownSession => "baseline; reason=unknown-session",
            Self::Conflict => "baseline; reason=conflict",
            Self::Malformed => "baseline; reason=malformed",
            Self::NoEndpoint => "baseline; reason=no-endpoint",
        })
    }

    fn failure(self) -> Failure {
        match self {
            Self::NoSession => Failure::NoSession,
            Self::UnknownSession => Failure::UnknownSession,
            Self::Conflict => Failure::Conflict,
            Self::Malformed => Failure::Malformed,
            Self::NoEndpoint => Failure::NoEndpoint,
        }
    }
}

/// The name of a session: visible ASCII. Copied from the request once, into what the route header of
/// the answer needs.
#[derive(Debug, Clone)]
pub(super) struct Session(HeaderValue);

impl Session {
    pub(super) fn new(name: &str) -> Self {
        Self(HeaderValue::from_str(name).expect("a claim is visible ASCII"))
    }

    pub(super) fn name(&self) -> &str {
        self.0.to_str().expect("a claim is visible ASCII")
    }
}

/// What a request says about its session, and the way that leads to.
#[derive(Debug)]
pub(super) struct Choice<'p, 'h> {
    /// As the request says it, whether the table knows it or not; only if it could be a name.
    pub session: Option<Cow<'h, str>>,
    /// The way, or why there is none.
    pub route: Result<Route<'p>, Failure>,
}

/// Chooses the way of a request that came in through `listener`.
pub(super) fn choose<'p, 'h>(
    plan: &'p Plan,
    listener: &'p HttpListener,
    headers: &'h HeaderMap,
) -> Choice<'p, 'h> {
    match plan.rule.claim(headers) {
        Claim::None => Choice {
            session: None,
            route: baseline(listener, Reason::NoSession),
        },
        Claim::Conflict => Choice {
            session: None,
            route: baseline(listener, Reason::Conflict),
        },
        Claim::Malformed => Choice {
            session: None,
            route: baseline(listener, Reason::Malformed),
        },
        Claim::Session(session) if session == PROBE => Choice {
            session: Some(session),
            route: Ok(Route::Probe),
        },
        Claim::Session(session) => {
            let route = match plan.sessions.find(&session) {
                None => baseline(listener, Reason::UnknownSession),
                Some(upstream) if upstream.endpoints.is_empty() => unavailable(listener),
                Some(upstream) => Ok(Route::Session(upstream)),
            };
            Choice {
                session: Some(session),
                route,
            }
        }
    }
}

/// The way of a request whose session is known and cannot be reached.
pub(super) fn unavailable(listener: &HttpListener) -> Result<Route<'_>, Failure> {
    match listener.on_unavailable {
        OnUnavailable::Error => Err(Failure::NoEndpoint),
        OnUnavailable::Baseline => baseline(listener, Reason::NoEndpoint),
    }
}

fn baseline(listener: &HttpListener, reason: Reason) -> Result<Route<'_>, Failure> {
    match &listener.baseline {
        Some(upstream) => Ok(Route::Baseline(upstream, reason)),
        None => Err(reason.failure()),
    }
}

impl Route<'_> {
    /// The value of the route header, for a request that names this session.
    pub(super) fn header(&self, session: Option<Session>) -> HeaderValue {
        match self {
            Self::Session(_) => session.expect("a route to a session has a session").0,
            Self::Baseline(_, reason) => reason.header(),
            Self::Probe => HeaderValue::from_static("probe"),
        }
    }

    /// The label of the reason; requests that went where they asked to go have `session`.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Session(_) => "session",
            Self::Baseline(_, reason) => reason.as_str(),
            Self::Probe => "probe",
        }
    }
}
