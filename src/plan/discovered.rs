//! Sessions that come from the cluster: where the file says they are, and how what was found there is
//! laid beside what the file says.
//!
//! What is found is never a pattern, and takes nothing away from the file: a session written there wins
//! over one of the same name that was found.

use std::fmt;
use std::sync::Arc;

use super::compile::Judge;
use super::text::{self, Name};
use super::{Discovery, Plan};
use crate::config::Placed;
use crate::metrics::Metrics;
use crate::upstream::{Discovered, Protocol, Source, Upstream};

/// A session that was found and that no request is sent to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unused {
    pub session: Arc<str>,
    pub why: Why,
}

/// Why a session that was found is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// The file has a session of that name.
    Written,
    /// It has a meaning of its own, or no header can carry it.
    Unfit,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Written => "the configuration names this session itself, and wins",
            Self::Unfit => {
                "no session can have this name; choose another value for the pod's label"
            }
        })
    }
}

impl Plan {
    /// This plan, which is the file's, and the sessions found in the cluster; with those of them that
    /// cannot be used.
    pub fn with_discovered(
        &self,
        found: &Discovered,
        metrics: &Arc<Metrics>,
    ) -> (Self, Vec<Unused>) {
        let mut unused = Vec::new();
        let mut added = Vec::with_capacity(found.len());
        for (session, pods) in found {
            let why = if self.sessions.has_exact(session) {
                Some(Why::Written)
            } else if !matches!(text::session_name(session), Ok(Name::Exact(_))) {
                Some(Why::Unfit)
            } else {
                None
            };
            if let Some(why) = why {
                let session = Arc::clone(session);
                unused.push(Unused { session, why });
                continue;
            }
            let upstream = Upstream {
                name: Arc::clone(session),
                endpoints: pods.clone(),
                protocol: Protocol::Auto,
                source: Source::Discovery,
                route: metrics.route(session),
            };
            added.push((Arc::clone(session), Arc::new(upstream)));
        }
        let mut endpoint_ids = self.endpoint_ids.clone();
        let pods = added.iter().flat_map(|(_, upstream)| &upstream.endpoints);
        endpoint_ids.extend(pods.map(|pod| pod.id));
        let plan = Self {
            rule: self.rule.clone(),
            sessions: self.sessions.with_exact(added),
            discovery: self.discovery.clone(),
            listeners: Arc::clone(&self.listeners),
            admin: self.admin,
            timeouts: self.timeouts.clone(),
            limits: self.limits.clone(),
            responses: self.responses.clone(),
            endpoint_ids,
        };
        (plan, unused)
    }
}

impl Judge<'_> {
    pub(super) fn discovery(&mut self) -> Option<Discovery> {
        let Placed { value, place } = self.file.discovery.as_ref()?;
        let Some(Placed { value: pods, place }) = &value.kubernetes else {
            let missing = "kubernetes is missing; write kubernetes: { namespace: NAME, app: NAME }";
            self.note(*place, "discovery", missing);
            return None;
        };
        let path = "discovery.kubernetes";
        for (key, text) in [("namespace", &pods.namespace), ("app", &pods.app)] {
            if text.is_none() {
                let message = format!("{key} is missing; write {key}: NAME");
                self.note(*place, path, message);
            }
        }
        let namespace = pods
            .namespace
            .as_ref()
            .and_then(|text| self.read(text, format_args!("{path}.namespace"), text::namespace));
        let app = pods
            .app
            .as_ref()
            .and_then(|text| self.read(text, format_args!("{path}.app"), text::label));
        Some(Discovery {
            namespace: namespace?.to_owned(),
            app: app?.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::config::File;
    use crate::upstream::Endpoint;

    fn written(text: &str) -> (Plan, Arc<Metrics>) {
        let metrics = Metrics::new("test", "none");
        let text = format!("listeners: [{{ address: ':80' }}]\n{text}");
        let file = File::parse("f.yaml", text.as_bytes()).expect("it is YAML");
        (Plan::compile(&file, &metrics).expect("valid"), metrics)
    }

    fn found(names: &[&str]) -> Discovered {
        let ip = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7));
        let pod = |name: &&str| (Arc::from(*name), vec![Endpoint::of_pod("pod", ip)]);
        names.iter().map(pod).collect()
    }

    #[test]
    fn what_is_found_is_laid_beside_what_is_written() {
        let (plan, metrics) = written("sessions: { pr-1: 10.0.0.1, 'pr-*': 10.0.0.2 }");
        let found = found(&["pr-2", "pr-3"]);

        let (merged, unused) = plan.with_discovered(&found, &metrics);

        assert_eq!(unused, []);
        let source = |name| merged.sessions.find(name).expect(name).source;
        assert_eq!(source("pr-1"), Source::Configuration);
        assert_eq!(source("pr-2"), Source::Discovery);
        assert_eq!(source("pr-4"), Source::Configuration, "the prefix");
        assert!(merged.has_endpoint(found["pr-3"][0].id));
        let kept = &plan.sessions.find("pr-1").expect("written").endpoints[0];
        assert!(merged.has_endpoint(kept.id), "connections stay");
        assert!(!plan.has_endpoint(found["pr-3"][0].id));
    }

    #[test]
    fn a_written_session_wins_and_that_is_told() {
        let (plan, metrics) = written("sessions: { pr-1: 10.0.0.1 }");
        let found = found(&["pr-1"]);

        let (merged, unused) = plan.with_discovered(&found, &metrics);

        let session = merged.sessions.find("pr-1").expect("written");
        assert_eq!(session.source, Source::Configuration);
        assert!(!merged.has_endpoint(found["pr-1"][0].id));
        assert_eq!(unused.len(), 1);
        assert_eq!((&*unused[0].session, unused[0].why), ("pr-1", Why::Written));
    }

    #[test]
    fn what_is_found_is_never_a_pattern_and_never_the_probe() {
        let (plan, metrics) = written("");
        let names = ["pr-*", "~pr-.*", "session-proxy-probe", "", "a b"];

        let (merged, unused) = plan.with_discovered(&found(&names), &metrics);

        assert!(merged.sessions.is_empty());
        assert_eq!(unused.len(), names.len());
        assert!(unused.iter().all(|unused| unused.why == Why::Unfit));
    }
}
