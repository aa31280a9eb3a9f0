//! The judge: reads a file key by key, notes what is wrong, and goes on.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::tls;
use http::HeaderName;

use super::{Limits, Plan, Responses, Timeouts};
use super::{address, text};
use crate::cli::DEFAULT_ADMIN;
use crate::config::{self, Place, Problem, Text};
use crate::matcher::SessionRule;
use crate::metrics::Metrics;

pub(super) fn compile(file: &config::File, metrics: &Arc<Metrics>) -> Result<Plan, Vec<Problem>> {
    let mut judge = Judge {
        file,
        metrics,
        problems: Vec::new(),
        clients: HashMap::new(),
    };
    let rule = judge.rule();
    let admin = judge.admin();
    let (sessions, first_without_port) = judge.sessions();
    let discovery = judge.discovery();
    let portless = match (first_without_port, &file.discovery) {
        (Some(session), _) => Some(format!("session {session:?}")),
        (None, Some(_)) => Some("a pod that discovery finds".to_owned()),
        (None, None) => None,
    };
    let listeners = judge.listeners(admin, portless.as_deref());
    let (timeouts, limits, responses) = (judge.timeouts(), judge.limits(), judge.responses());
    let problems = judge.problems;
    match sessions {
        Some(sessions) if problems.is_empty() && file.problems.is_empty() => Ok(Plan {
            rule,
            sessions,
            discovery,
            listeners: listeners.into(),
            admin,
            timeouts,
            limits,
            responses,
            endpoint_ids: HashSet::new(),
        }
        .with_endpoint_ids()),
        _ => Err(in_order(&file.problems, problems)),
    }
}

/// Both kinds of problems, as they stand in the file. A value of the wrong shape was read as an empty one;
/// what can be said about that emptiness helps nobody.
fn in_order(of_shape: &[Problem], of_meaning: Vec<Problem>) -> Vec<Problem> {
    let misshapen: HashSet<(u32, u32)> = of_shape
        .iter()
        .filter_map(|problem| line_and_column(problem.place))
        .collect();
    let mut all = of_shape.to_vec();
    all.extend(of_meaning.into_iter().filter(|problem| {
        line_and_column(problem.place).is_none_or(|place| !misshapen.contains(&place))
    }));
    // The sort is stable: what has no line follows, in the order it was met.
    all.sort_by_key(|problem| line_and_column(problem.place).unwrap_or((u32::MAX, u32::MAX)));
    all
}

fn line_and_column(place: Place) -> Option<(u32, u32)> {
    match place {
        Place::At { line, column } => Some((line, column)),
        _ => None,
    }
}

/// Reads one file and remembers what is wrong with it.
pub(super) struct Judge<'f> {
    pub(super) file: &'f config::File,
    pub(super) metrics: &'f Arc<Metrics>,
    problems: Vec<Problem>,
    /// Sessions that trust the same authorities share their settings, and so their TLS sessions.
    pub(super) clients: HashMap<Option<PathBuf>, Result<tls::Client, String>>,
}

impl<'f> Judge<'f> {
    pub(super) fn note(
        &mut self,
        place: Place,
        path: impl Into<String>,
        message: impl Into<String>,
    ) {
        self.problems.push(self.file.problem(place, path, message));
    }

    /// What a text means; when it means nothing, that is noted. The path is written out only then.
    pub(super) fn read<'t, T>(
        &mut self,
        text: &'t Text,
        path: impl fmt::Display,
        meaning: impl FnOnce(&'t str) -> Result<T, String>,
    ) -> Option<T> {
        match meaning(&text.value) {
            Ok(value) => Some(value),
            Err(message) => {
                self.note(text.place, path.to_string(), message);
                None
            }
        }
    }

    /// As [`read`](Self::read), with a default for what was not written.
    pub(super) fn read_or<T>(
        &mut self,
        default: T,
        text: Option<&Text>,
        path: impl fmt::Display,
        meaning: impl FnOnce(&str) -> Result<T, String>,
    ) -> T {
        match text {
            Some(text) => self.read(text, path, meaning).unwrap_or(default),
            None => default,
        }
    }

    fn rule(&mut self) -> SessionRule {
        let keys = &self.file.session;
        let header = HeaderName::from_static("x-dev-session");
        SessionRule {
            header: self.read_or(
                header,
                keys.header.as_ref(),
                "session.header",
                text::session_header,
            ),
            baggage_key: self.read_or(
                Some("dev-session".into()),
                keys.baggage_key.as_ref(),
                "session.baggageKey",
                text::baggage_key,
            ),
        }
    }

    fn admin(&mut self) -> Option<SocketAddr> {
        let written = self
            .file
            .admin
            .as_ref()
            .and_then(|admin| admin.address.as_ref());
        let address = |text: &str| match text {
            "off" => Ok(None),
            _ => address::listening(text)
                .map(Some)
                .map_err(|message| format!("{message}, or off for none")),
        };
        self.read_or(
            address(DEFAULT_ADMIN).ok()?,
            written,
            "admin.address",
            address,
        )
    }

    fn timeouts(&mut self) -> Timeouts {
        let (written, default) = (&self.file.timeouts, Timeouts::default());
        let mut some = |default: Duration, text: &Option<Text>, key: &str| {
            self.read_or(
                default,
                text.as_ref(),
                format_args!("timeouts.{key}"),
                |text| text::duration(text, false),
            )
        };
        let mut timeouts = Timeouts {
            first_byte: some(default.first_byte, &written.first_byte, "firstByte"),
            request_headers: some(
                default.request_headers,
                &written.request_headers,
                "requestHeaders",
            ),
            connect: some(default.connect, &written.connect, "connect"),
            response_headers: some(
                default.response_headers,
                &written.response_headers,
                "responseHeaders",
            ),
            body_idle: some(default.body_idle, &written.body_idle, "bodyIdle"),
            keep_alive: some(default.keep_alive, &written.keep_alive, "keepAlive"),
            ..default
        };
        let mut or_none = |field: &mut Duration, text: &Option<Text>, key: &str| {
            *field = self.read_or(
                *field,
                text.as_ref(),
                format_args!("timeouts.{key}"),
                |text| text::duration(text, true),
            );
        };
        or_none(&mut timeouts.pool_idle, &written.pool_idle, "poolIdle");
        or_none(&mut timeouts.drain, &written.drain, "drain");
        timeouts
    }

    fn limits(&mut self) -> Limits {
        let (written, default) = (&self.file.limits, Limits::default());
        let header_bytes = self.read_or(
            default.header_bytes,
            written.header_bytes.as_ref(),
            "limits.headerBytes",
            |text| text::size(text, 1 << 10..=1 << 20, "1KiB to 1MiB"),
        );
        let h2_streams = self.read_or(
            default.h2_streams,
            written.h2_streams.as_ref(),
            "limits.h2Streams",
            |text| text::count(text, 1..=10_000),
        );
        let queued_per_endpoint = self.read_or(
            default.queued_per_endpoint,
            written.queued_per_endpoint.as_ref(),
            "limits.queuedPerEndpoint",
            |text| text::count(text, 0..=1_000_000),
        );
        let mut some = |default: usize, text: &Option<Text>, key: &str, most: usize| {
            self.read_or(
                default,
                text.as_ref(),
                format_args!("limits.{key}"),
                |text| text::count(text, 1..=most),
            )
        };
        Limits {
            connections: some(
                default.connections,
                &written.connections,
                "connections",
                1_000_000,
            ),
            header_bytes,
            headers: some(default.headers, &written.headers, "headers", 10_000),
            h2_streams,
            requests_per_endpoint: some(
                default.requests_per_endpoint,
                &written.requests_per_endpoint,
                "requestsPerEndpoint",
                1_000_000,
            ),
            queued_per_endpoint,
        }
    }

    fn responses(&mut self) -> Responses {
        let (written, default) = (&self.file.responses, Responses::default());
        let (route_header, server_timing) = (
            written.route_header.as_ref(),
            written.server_timing.as_ref(),
        );
        Responses {
            route_header: self.read_or(
                default.route_header,
                route_header,
                "responses.routeHeader",
                text::yes_or_no,
            ),
            server_timing: self.read_or(
                default.server_timing,
                server_timing,
                "responses.serverTiming",
                text::yes_or_no,
            ),
        }
    }
}

/// One of a few words.
pub(super) fn one_of(text: &str, known: &[&'static str]) -> Result<&'static str, String> {
    if let Some(word) = known.iter().find(|word| **word == text) {
        return Ok(word);
    }
    Err(match config::nearest(text, known) {
        Some(near) => format!("{text:?} is not known here; did you mean {near}?"),
        None => format!(
            "{text:?} is not known here; write one of {}",
            known.join(", ")
        ),
    })
}
