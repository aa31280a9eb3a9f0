//! What was found out: JSON for programs, a table for people.
//!
//! The shape of the JSON is an interface: keys stay, new ones may come.

use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;

use super::judgement::Verdict;
use super::traffic::Figures;

/// All of it.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Everything holds.
    pub ok: bool,
    pub session: String,
    pub header: String,
    pub apps: Vec<AppReport>,
    pub hops: Vec<Hop>,
    pub traffic: Traffic,
    pub took_ms: f64,
}

/// One intercepted app.
#[derive(Debug, Serialize)]
pub(super) struct AppReport {
    pub app: String,
    pub namespace: String,
    pub ok: bool,
    pub pr_pod: String,
    pub proxy_pod: String,
    /// Where it tells of its requests; `null`: it was not found.
    pub proxy_admin: Option<SocketAddr>,
    /// What holds for the app as a whole.
    pub checks: Vec<Check>,
    pub replicas: Vec<ReplicaReport>,
}

/// One ready replica of the baseline.
#[derive(Debug, Serialize)]
pub(super) struct ReplicaReport {
    pub pod: String,
    pub ip: String,
    pub ok: bool,
    pub checks: Vec<Check>,
}

/// One thing that must hold.
#[derive(Debug, Serialize)]
pub(super) struct Check {
    pub name: &'static str,
    /// The app's port it was asked at; `null`: it is not about one.
    pub port: Option<u16>,
    pub ok: bool,
    pub detail: String,
    pub took_ms: f64,
}

/// One app on the way of a request from the entry.
#[derive(Debug, Serialize)]
pub(super) struct Hop {
    pub app: String,
    pub role: &'static str,
    pub intercepted: bool,
    pub ok: bool,
    pub seen: HopSeen,
    pub detail: String,
}

/// How it is known that an app received the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum HopSeen {
    /// Our very request was seen.
    Probe,
    /// A request of the session was seen, which may have been somebody else's.
    Session,
    /// The app said so in its answer.
    Told,
    /// An app behind it saw the session.
    Inferred,
    No,
    /// Nobody could be asked.
    Unknown,
    /// No request to the entry passes it.
    NotInChain,
}

/// Untagged traffic.
#[derive(Debug, Serialize)]
pub(super) struct Traffic {
    pub ok: bool,
    /// How many times slower it may have become.
    pub max_slowdown: f64,
    pub apps: Vec<AppTraffic>,
}

/// Untagged traffic of one app.
#[derive(Debug, Serialize)]
pub(super) struct AppTraffic {
    pub app: String,
    pub ok: bool,
    /// `null`: nobody measured.
    pub before: Option<Figures>,
    /// `null`: nobody could be asked.
    pub now: Option<Figures>,
    pub detail: String,
}

impl Report {
    /// How many checks there were, and how many of them failed.
    pub(super) fn count(&self) -> (usize, usize) {
        let replicas = self.apps.iter().flat_map(|app| &app.replicas);
        let checks = self.apps.iter().flat_map(|app| &app.checks);
        let checks = checks.chain(replicas.flat_map(|replica| &replica.checks));
        let verdicts = checks
            .map(|check| check.ok)
            .chain(self.hops.iter().map(|hop| hop.ok))
            .chain(self.traffic.apps.iter().map(|app| app.ok));
        verdicts.fold((0, 0), |(all, failed), ok| {
            (all + 1, failed + usize::from(!ok))
        })
    }

    pub(super) fn to_json(&self) -> String {
        let json = serde_json::to_string_pretty(self).expect("strings and finite numbers are JSON");
        json + "\n"
    }
}

impl Check {
    pub(super) fn new(
        name: &'static str,
        port: Option<u16>,
        verdict: Verdict,
        took: Duration,
    ) -> Self {
        Self {
            name,
            port,
            ok: verdict.is_ok(),
            detail: verdict.unwrap_or_else(|failure| failure),
            took_ms: milliseconds(took),
        }
    }
}

/// In thousandths, which are all that a reader can use.
pub(super) fn milliseconds(took: Duration) -> f64 {
    (took.as_secs_f64() * 1_000_000.0).round() / 1000.0
}
