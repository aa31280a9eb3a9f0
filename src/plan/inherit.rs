//! What a new plan takes over from the one before it.
//!
//! An endpoint that stays is the same [`Endpoint`], with what is known of its health, the requests
//! it is serving, and the connections that workers keep to it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::{ListenerKind, Plan};
use crate::upstream::{Endpoint, Host, Protocol, Upstream};

/// What makes two endpoints one: the address, and how it is reached.
#[derive(PartialEq, Eq, Hash)]
struct Key<'p> {
    host: &'p Host,
    port: Option<u16>,
    tls: Option<TlsKey<'p>>,
}

/// The certificates' bytes, and the name to verify.
type TlsKey<'p> = (Vec<&'p [u8]>, Option<String>);

impl Plan {
    /// Puts the endpoints of `old` in the place of equal ones.
    pub(super) fn inherit(&mut self, old: &Self) {
        let known: HashMap<Key<'_>, &Arc<Endpoint>> = old
            .sessions
            .iter()
            .flat_map(|(_, upstream)| {
                let tls = tls_key(upstream);
                upstream.endpoints.iter().map(move |endpoint| {
                    (
                        Key {
                            host: &endpoint.host,
                            port: endpoint.port,
                            tls: tls.clone(),
                        },
                        endpoint,
                    )
                })
            })
            .collect();
        for upstream in self.sessions.values_mut() {
            let tls = tls_key(upstream);
            let endpoints = upstream.endpoints.iter().map(|endpoint| {
                let key = Key {
                    host: &endpoint.host,
                    port: endpoint.port,
                    tls: tls.clone(),
                };
                known.get(&key).map_or(endpoint, |known| *known).clone()
            });
            let endpoints: Vec<_> = endpoints.collect();
            if let Some(upstream) = Arc::get_mut(upstream) {
                upstream.endpoints = endpoints;
            }
        }
    }

    pub(super) fn with_endpoint_ids(mut self) -> Self {
        self.endpoint_ids = self.collect_endpoint_ids();
        self
    }

    fn collect_endpoint_ids(&self) -> HashSet<u64> {
        let baselines = self
            .listeners
            .iter()
            .filter_map(|listener| match &listener.kind {
                ListenerKind::Http(http) | ListenerKind::Https(http, _) => http.baseline.as_ref(),
                ListenerKind::Tcp(_) => None,
            });
        let sessions = self.sessions.iter().map(|(_, upstream)| upstream);
        sessions
            .chain(baselines)
            .flat_map(|upstream| &upstream.endpoints)
            .map(|endpoint| endpoint.id)
            .collect()
    }
}

fn tls_key(upstream: &Upstream) -> Option<TlsKey<'_>> {
    let Protocol::Tls(tls) = &upstream.protocol else {
        return None;
    };
    let trust = tls.trust.iter().map(AsRef::as_ref).collect();
    let name = tls
        .server_name
        .as_ref()
        .map(|name| name.to_str().into_owned());
    Some((trust, name))
}
