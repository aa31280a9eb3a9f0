//! Sessions: from what the file says to a table of upstreams.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::ServerName;

use super::compile::{Judge, one_of};
use super::text::Name;
use super::{address, text};
use crate::config::{self, Place, Placed, Text};
use crate::matcher::{Table, TableBuilder};
use crate::tls;
use crate::upstream::{Endpoint, Protocol, Source, TlsUpstream, Upstream};

/// Longer patterns are a mistake, or an attack on whoever must read them.
const PATTERN_BYTES: usize = 1_000;

impl<'f> Judge<'f> {
    /// The table, and the first session with an endpoint that leaves its port to the listener.
    pub(super) fn sessions(&mut self) -> (Option<Table<Arc<Upstream>>>, Option<&'f str>) {
        let sessions = &self.file.sessions.0;
        let mut table = TableBuilder::new();
        let mut seen: HashMap<&str, Place> = HashMap::with_capacity(sessions.len());
        let mut without_port = None;
        for (name, session) in sessions {
            let upstream = self.upstream(name, session);
            if without_port.is_none()
                && upstream
                    .endpoints
                    .iter()
                    .any(|endpoint| endpoint.port.is_none())
            {
                without_port = Some(name.value.as_str());
            }
            if let Some(first) = seen.insert(&name.value, name.place) {
                let again = match first {
                    Place::At { line, .. } => format!("the first one is on line {line}"),
                    _ => "name each session once".to_owned(),
                };
                self.note(
                    name.place,
                    session_path(&name.value),
                    format!("session {:?} is written twice; {again}", name.value),
                );
                continue;
            }
            let Some(kind) = self.read(name, SessionPath(&name.value), text::session_name) else {
                continue;
            };
            match kind {
                Name::Exact(exact) => table.exact(exact, upstream),
                Name::Prefix(prefix) => table.prefix(prefix, upstream),
                Name::Regex(pattern) => self.pattern(&mut table, name, pattern, upstream),
            }
        }
        match table.build() {
            Ok(table) => (Some(table), without_port),
            Err(error) => {
                self.note(Place::BuiltIn, "sessions", one_line(&error));
                (None, without_port)
            }
        }
    }

    fn pattern(
        &mut self,
        table: &mut TableBuilder<Arc<Upstream>>,
        name: &Text,
        pattern: &str,
        upstream: Arc<Upstream>,
    ) {
        let refusal = if pattern.len() > PATTERN_BYTES {
            Some(format!(
                "the regular expression has {} bytes; allowed are {PATTERN_BYTES}",
                pattern.len()
            ))
        } else {
            table
                .regex(pattern, upstream)
                .err()
                .map(|error| one_line(&error))
        };
        if let Some(refusal) = refusal {
            self.note(name.place, session_path(&name.value), refusal);
        }
    }

    fn upstream(&mut self, name: &Text, session: &config::Session) -> Arc<Upstream> {
        let path = SessionPath(&name.value);
        let endpoints = match &session.endpoints {
            Some(written) => self.endpoints(written, format_args!("{path}.endpoints")),
            None => {
                let missing = "endpoints is missing; write endpoints: [] for a session whose pod is not there yet";
                self.note(name.place, path.to_string(), missing);
                Vec::new()
            }
        };
        let protocol = self.protocol(&path, session);
        Arc::new(Upstream {
            name: Arc::from(name.value.as_str()),
            endpoints,
            protocol,
            source: Source::Configuration,
            route: self.metrics.route(&name.value),
        })
    }

    /// Reads endpoints one by one; a lone one needs no index to be found.
    pub(super) fn endpoints(
        &mut self,
        written: &config::OneOrList,
        path: impl fmt::Display,
    ) -> Vec<Arc<Endpoint>> {
        let texts = &written.0;
        let mut endpoints = Vec::with_capacity(texts.len());
        for (index, text) in texts.iter().enumerate() {
            endpoints.extend(if texts.len() == 1 {
                self.read(text, &path, address::endpoint)
            } else {
                self.read(text, format_args!("{path}[{index}]"), address::endpoint)
            });
        }
        endpoints
    }

    fn protocol(&mut self, path: &SessionPath<'_>, session: &config::Session) -> Protocol {
        let known = ["auto", "h1", "h2c", "tls"];
        let word = match &session.protocol {
            Some(text) => self.read(text, format_args!("{path}.protocol"), |text| {
                one_of(text, &known)
            }),
            None => Some("auto"),
        };
        match (word, &session.tls) {
            (Some("tls"), options) => {
                match self.tls_upstream(path, session.protocol.as_ref(), options.as_ref()) {
                    Some(tls) => Protocol::Tls(Arc::new(tls)),
                    None => Protocol::Auto,
                }
            }
            (Some(_), Some(options)) => {
                self.note(
                    options.place,
                    format!("{path}.tls"),
                    "tls is given without protocol: tls; add it, or remove tls",
                );
                Protocol::Auto
            }
            (Some("h1"), None) => Protocol::H1,
            (Some("h2c"), None) => Protocol::H2c,
            _ => Protocol::Auto,
        }
    }

    fn tls_upstream(
        &mut self,
        path: &SessionPath<'_>,
        protocol: Option<&Text>,
        options: Option<&Placed<config::UpstreamTls>>,
    ) -> Option<TlsUpstream> {
        let ca = options.and_then(|options| options.value.ca.as_ref());
        let written_name = options.and_then(|options| options.value.server_name.as_ref());
        let server_name = written_name
            .map(|text| self.read(text, format_args!("{path}.tls.serverName"), server_name));
        let client = self
            .clients
            .entry(ca.map(|ca| PathBuf::from(&ca.value)))
            .or_insert_with_key(|ca| tls::client(ca.as_deref()))
            .clone();
        match client {
            Ok(client) => match server_name {
                // Written, but not a name: noted above.
                Some(None) => None,
                name => Some(TlsUpstream {
                    config: client.config,
                    trust: client.trust,
                    server_name: name.flatten(),
                }),
            },
            Err(message) => {
                let place = ca.or(protocol).map_or(Place::BuiltIn, |text| text.place);
                self.note(
                    place,
                    format!(
                        "{path}.{}",
                        if ca.is_some() { "tls.ca" } else { "protocol" }
                    ),
                    message,
                );
                None
            }
        }
    }
}

/// The way to a session; names can be long, so it is written out only for a problem.
struct SessionPath<'n>(&'n str);

impl fmt::Display for SessionPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sessions.")?;
        for character in self.0.chars().take(60).flat_map(char::escape_debug) {
            f.write_char(character)?;
        }
        Ok(())
    }
}

fn session_path(name: &str) -> String {
    SessionPath(name).to_string()
}

fn server_name(text: &str) -> Result<ServerName<'static>, String> {
    ServerName::try_from(text.to_owned()).map_err(|_| {
        format!("{text:?} is not a host name; write the name in the endpoint's certificate")
    })
}

/// The last line of a regular expression's error: what is wrong. Those above draw a picture of the place.
fn one_line(error: &regex::Error) -> String {
    let text = error.to_string();
    let last = text.lines().last().unwrap_or_default();
    format!(
        "not a regular expression: {}",
        last.trim_start_matches("error: ")
    )
}
