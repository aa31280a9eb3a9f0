//! What a configuration means, said to a person: `check`, `explain` and `schema`.
//!
//! Everything here returns text; printing it, and the exit code, are for `main`.

use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::cli::{COMMIT, Check, Explain, VERSION};
use crate::config::{File, Place, Problem};
use crate::matcher::{Claim, SessionRule};
use crate::metrics::Metrics;
use crate::plan::{Discovery, HttpListener, Listener, ListenerKind, OnUnavailable, PROBE, Plan};
use crate::upstream::{Endpoint, Protocol, Upstream};

/// How many sessions `check` shows unasked.
const SHOWN: usize = 20;

/// The JSON Schema of the configuration file, with a newline at its end.
pub fn schema() -> String {
    let mut text =
        serde_json::to_string_pretty(&schemars::schema_for!(File)).expect("a schema is plain JSON");
    text.push('\n');
    text
}

/// What `session-proxy check` prints.
///
/// # Errors
/// Every problem of the configuration.
pub fn check(arguments: Check) -> Result<String, Vec<Problem>> {
    let shown = if arguments.all { usize::MAX } else { SHOWN };
    let file = arguments.into_sources().file()?;
    let plan = Plan::compile(&file, &Metrics::new(VERSION, COMMIT))?;
    let name = file.name.as_deref().unwrap_or("the command line");
    Ok(format!(
        "{name}: valid\n\n{}",
        Summary { plan: &plan, shown }
    ))
}

/// A plan as text: two columns, a headline for each part.
struct Summary<'p> {
    plan: &'p Plan,
    shown: usize,
}

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan {
            rule,
            sessions,
            discovery,
            listeners,
            admin,
            timeouts,
            limits,
            responses,
            ..
        } = self.plan;
        writeln!(f, "listeners")?;
        for listener in listeners.iter() {
            writeln!(f, "  {:<24} {}", listener.name, Meaning(listener))?;
        }
        match admin {
            Some(address) => writeln!(f, "  {:<24} http://{address}/", "admin")?,
            None => writeln!(f, "  {:<24} off", "admin")?,
        }
        writeln!(f, "\nsession\n  {:<24} {}", "header", rule.header)?;
        writeln!(
            f,
            "  {:<24} {}",
            "baggageKey",
            rule.baggage_key.as_deref().unwrap_or("off")
        )?;
        writeln!(f, "\nsessions: {}", sessions.len())?;
        for (name, upstream) in sessions.iter().take(self.shown) {
            writeln!(
                f,
                "  {name:<24} {}{}",
                Addresses(&upstream.endpoints),
                spoken(&upstream.protocol)
            )?;
        }
        let hidden = sessions.len().saturating_sub(self.shown);
        if hidden > 0 {
            writeln!(f, "  and {hidden} more; --all shows them")?;
        }
        if let Some(pods) = discovery {
            writeln!(f, "\ndiscovery\n  {:<24} {}", "kubernetes", Found(pods))?;
        }
        writeln!(f, "\ntimeouts")?;
        for (key, duration) in [
            ("firstByte", timeouts.first_byte),
            ("requestHeaders", timeouts.request_headers),
            ("connect", timeouts.connect),
            ("responseHeaders", timeouts.response_headers),
            ("bodyIdle", timeouts.body_idle),
            ("keepAlive", timeouts.keep_alive),
            ("poolIdle", timeouts.pool_idle),
            ("drain", timeouts.drain),
        ] {
            writeln!(f, "  {key:<24} {}", Spelled(duration))?;
        }
        writeln!(f, "\nlimits")?;
        for (key, amount) in [
            ("connections", limits.connections),
            ("headerBytes", limits.header_bytes),
            ("headers", limits.headers),
            ("h2Streams", limits.h2_streams as usize),
            ("requestsPerEndpoint", limits.requests_per_endpoint),
            ("queuedPerEndpoint", limits.queued_per_endpoint),
        ] {
            writeln!(f, "  {key:<24} {amount}")?;
        }
        writeln!(
            f,
            "\nresponses\n  {:<24} {}",
            "routeHeader", responses.route_header
        )?;
        writeln!(f, "  {:<24} {}", "serverTiming", responses.server_timing)
    }
}

/// Where sessions are found that the file does not name.
struct Found<'p>(&'p Discovery);

impl fmt::Display for Found<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Discovery { namespace, app } = self.0;
        write!(f, "pods of app {app} in namespace {namespace}")
    }
}

/// A listener in one line.
struct Meaning<'p>(&'p Listener);

impl fmt::Display for Meaning<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.0.address;
        let (protocol, http) = match &self.0.kind {
            ListenerKind::Tcp(targets) => {
                return write!(f, "{address} tcp, to {}", Addresses(targets));
            }
            ListenerKind::Http(http) => ("http", http),
            ListenerKind::Https(http, _) => ("https", http),
        };
        write!(f, "{address} {protocol}, app port {}, ", http.app_port)?;
        match &http.baseline {
            Some(baseline) => write!(f, "baseline {}", Addresses(&baseline.endpoints))?,
            None => f.write_str("no baseline")?,
        }
        match http.on_unavailable {
            OnUnavailable::Error => Ok(()),
            OnUnavailable::Baseline => f.write_str(", also for sessions without a live endpoint"),
        }
    }
}

/// Endpoints, separated by commas.
struct Addresses<'p>(&'p [Arc<Endpoint>]);

impl fmt::Display for Addresses<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no endpoint yet");
        }
        for (index, endpoint) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{endpoint}")?;
        }
        Ok(())
    }
}

fn spoken(protocol: &Protocol) -> &'static str {
    match protocol {
        Protocol::Auto => "",
        Protocol::H1 => " (HTTP/1)",
        Protocol::H2c => " (HTTP/2)",
        Protocol::Tls(_) => " (TLS)",
    }
}

/// A duration in the largest unit that needs no fraction.
struct Spelled(Duration);

impl fmt::Display for Spelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = self.0.as_millis();
        let units = [(3_600_000, "h"), (60_000, "m"), (1_000, "s")];
        match units
            .iter()
            .find(|(unit, _)| milliseconds > 0 && milliseconds.is_multiple_of(*unit))
        {
            Some((unit, name)) => write!(f, "{}{name}", milliseconds / unit),
            None if milliseconds == 0 => f.write_str("0s"),
            None => write!(f, "{milliseconds}ms"),
        }
    }
}

/// What `session-proxy explain` prints: the session, the rule that knows it, the route, the answer.
///
/// # Errors
/// Every problem of the configuration, or of the request's description.
pub fn explain(arguments: &Explain) -> Result<String, Vec<Problem>> {
    let file = arguments.sources.file()?;
    let headers = head(&file, &arguments.headers)?;
    let plan = Plan::compile(&file, &Metrics::new(VERSION, COMMIT))?;
    let listener = choose(&file, &plan, arguments.listener.as_deref())?;
    let mut story = Story::default();
    story.tell(
        "request",
        format_args!(
            "{} {} at listener {}, {}",
            arguments.method, arguments.path, listener.name, listener.address
        ),
    );
    match &listener.kind {
        ListenerKind::Tcp(targets) => {
            story.tell("route", "no request is read here; bytes pass untouched");
            story.tell("endpoints", Addresses(targets));
        }
        ListenerKind::Http(_) | ListenerKind::Https(..) if arguments.method == "CONNECT" => {
            story.tell("answer", "405 by the proxy itself: it is no forward proxy");
        }
        ListenerKind::Http(http) | ListenerKind::Https(http, _) => {
            decide(&mut story, &plan, http, &headers)
        }
    }
    Ok(story.text)
}

/// The header fields as typed.
fn head(file: &File, fields: &[String]) -> Result<HeaderMap, Vec<Problem>> {
    let mut headers = HeaderMap::new();
    let mut problems = Vec::new();
    for field in fields {
        let parsed = field.split_once(':').and_then(|(name, value)| {
            let name = HeaderName::from_bytes(name.trim().as_bytes()).ok()?;
            Some((name, HeaderValue::from_bytes(value.trim().as_bytes()).ok()?))
        });
        match parsed {
            Some((name, value)) => {
                headers.append(name, value);
            }
            None => {
                let message = format!(
                    "{field:?} is not a header field; write for example 'x-dev-session: pr-42'"
                );
                problems.push(file.problem(Place::Flag("-H"), "", message));
            }
        }
    }
    if problems.is_empty() {
        Ok(headers)
    } else {
        Err(problems)
    }
}

fn choose<'p>(
    file: &File,
    plan: &'p Plan,
    name: Option<&str>,
) -> Result<&'p Listener, Vec<Problem>> {
    let listeners = &plan.listeners;
    let Some(name) = name else {
        let reads_http = |listener: &&Listener| !matches!(listener.kind, ListenerKind::Tcp(_));
        return Ok(listeners.iter().find(reads_http).unwrap_or(&listeners[0]));
    };
    listeners
        .iter()
        .find(|listener| &*listener.name == name)
        .ok_or_else(|| {
            let known: Vec<&str> = listeners.iter().map(|listener| &*listener.name).collect();
            let message = format!("{name:?} is not a listener; there are {}", known.join(", "));
            vec![file.problem(Place::Flag("--listener"), "", message)]
        })
}

/// Lines of a label and what it is.
#[derive(Default)]
struct Story {
    text: String,
}

impl Story {
    fn tell(&mut self, label: &str, what: impl fmt::Display) {
        writeln!(self.text, "{label:<10} {what}").expect("a string takes all");
    }
}

/// Tells the way of one request from its head to its answer.
fn decide(story: &mut Story, plan: &Plan, listener: &HttpListener, headers: &HeaderMap) {
    let claim = plan.rule.claim(headers);
    let source = source(&plan.rule, headers);
    let reason = match &claim {
        Claim::Session(session) => {
            story.tell("session", format_args!("{session}, from {source}"));
            if session == PROBE {
                story.tell("rule", "reserved: the proxy answers it itself");
                return story.tell(
                    "answer",
                    "200 by the proxy itself, x-dev-session-route: probe",
                );
            }
            match plan.sessions.find(session) {
                Some(upstream) => {
                    story.tell("rule", Rule(&upstream.name));
                    if !upstream.endpoints.is_empty() {
                        return to_session(story, plan, listener, session, upstream);
                    }
                    if listener.on_unavailable == OnUnavailable::Error {
                        story.tell("route", "none: the session has no endpoint yet");
                        return story.tell(
                            "answer",
                            "503 no-endpoint by the proxy itself, retry-after: 1",
                        );
                    }
                    "no-endpoint"
                }
                None => {
                    story.tell("rule", "no session of this configuration has that name");
                    if let Some(pods) = &plan.discovery {
                        story.tell(
                            "discovery",
                            format_args!("{} may; the running proxy knows: /sessions", Found(pods)),
                        );
                    }
                    "unknown-session"
                }
            }
        }
        Claim::None => {
            story.tell("session", format_args!("none: {}", absent(&plan.rule)));
            "no-session"
        }
        Claim::Conflict => {
            story.tell("session", "two different ones, so none is believed");
            "conflict"
        }
        Claim::Malformed => {
            story.tell("session", "longer than 253 bytes, or not visible ASCII");
            "malformed"
        }
    };
    to_baseline(story, plan, listener, reason);
}

fn source(rule: &SessionRule, headers: &HeaderMap) -> String {
    match (&rule.baggage_key, headers.contains_key(&rule.header)) {
        (Some(key), false) => format!("baggage member {key}"),
        _ => format!("header {}", rule.header),
    }
}

fn absent(rule: &SessionRule) -> String {
    match &rule.baggage_key {
        Some(key) => format!("neither header {} nor baggage member {key}", rule.header),
        None => format!("no header {}", rule.header),
    }
}

/// Which row of the table knew the session.
struct Rule<'p>(&'p str);

impl fmt::Display for Rule<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.0.starts_with('~') {
            "a regular expression"
        } else if self.0.ends_with('*') {
            "a prefix"
        } else {
            "an exact name"
        };
        write!(f, "{}, {kind}", self.0)
    }
}

fn to_session(
    story: &mut Story,
    plan: &Plan,
    listener: &HttpListener,
    session: &str,
    upstream: &Upstream,
) {
    let endpoints: Vec<Arc<Endpoint>> = upstream
        .endpoints
        .iter()
        .map(|endpoint| {
            Endpoint::new(
                endpoint.host.clone(),
                endpoint.port.or(Some(listener.app_port)),
            )
        })
        .collect();
    story.tell(
        "route",
        format_args!("session {}{}", upstream.name, spoken(&upstream.protocol)),
    );
    story.tell("endpoints", Addresses(&endpoints));
    tell_answer(story, plan, session);
}

fn to_baseline(story: &mut Story, plan: &Plan, listener: &HttpListener, reason: &str) {
    if let Some(baseline) = &listener.baseline {
        story.tell("route", format_args!("baseline, because of {reason}"));
        story.tell("endpoints", Addresses(&baseline.endpoints));
        return tell_answer(story, plan, &format!("baseline; reason={reason}"));
    }
    let status = if matches!(reason, "conflict" | "malformed") {
        400
    } else {
        404
    };
    story.tell("route", "none: this listener has no baseline");
    story.tell(
        "answer",
        format_args!("{status} {reason} by the proxy itself"),
    );
}

fn tell_answer(story: &mut Story, plan: &Plan, route: &str) {
    if plan.responses.route_header {
        story.tell(
            "answer",
            format_args!("as the endpoint gives it, with x-dev-session-route: {route}"),
        );
    } else {
        story.tell(
            "answer",
            "as the endpoint gives it; x-dev-session-route is off",
        );
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    const CONFIGURATION: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config/example.yaml");

    fn told(headers: &[&str], more: &[&str]) -> String {
        let mut line = vec!["session-proxy", "explain", "--config", CONFIGURATION];
        line.extend(headers.iter().flat_map(|header| ["-H", header]));
        line.extend(more);
        let Command::Explain(arguments) = Cli::parse_from(line).command else {
            panic!("another command")
        };
        match explain(&arguments) {
            Ok(text) => text,
            Err(problems) => problems
                .iter()
                .map(|problem| format!("{problem}\n"))
                .collect(),
        }
    }

    #[test]
    fn explain_tells_session_rule_endpoints_and_answer() {
        assert_eq!(
            told(&["x-dev-session: pr-43"], &["--path", "/orders"]),
            "request    GET /orders at listener http, 0.0.0.0:18080\n\
             session    pr-43, from header x-dev-session\n\
             rule       pr-43, an exact name\n\
             route      session pr-43\n\
             endpoints  10.244.1.18:8080, 10.244.1.19:9090\n\
             answer     as the endpoint gives it, with x-dev-session-route: pr-43\n"
        );
    }

    #[test]
    fn explain_knows_every_way_a_request_can_go() {
        let cases: [(&[&str], &[&str], &str); 8] = [
            (&[], &[], "baseline, because of no-session"),
            (
                &["x-dev-session: pr-7"],
                &[],
                "x-dev-session-route: baseline; reason=unknown-session",
            ),
            (&["x-dev-session: pr-911"], &[], "pr-9*, a prefix"),
            (&["x-dev-session: bob-1"], &[], "a regular expression"),
            (&["x-dev-session: pr-44"], &[], "503 no-endpoint"),
            (
                &["x-dev-session: session-proxy-probe"],
                &[],
                "200 by the proxy itself",
            ),
            (&[], &["--method", "CONNECT"], "405"),
            (&[], &["--listener", "db"], "bytes pass untouched"),
        ];
        for (headers, more, expected) in cases {
            let text = told(headers, more);
            assert!(text.contains(expected), "{headers:?} {more:?}: {text}");
        }
    }

    #[test]
    fn where_sessions_are_found_is_told_but_not_asked() {
        const FOUND: &str = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/data/good-discovery.yaml"
        );
        let Command::Check(arguments) = Cli::parse_from(["session-proxy", "check", FOUND]).command
        else {
            panic!("another command")
        };
        let line = ["session-proxy", "explain", "--config", FOUND];
        let unknown = line.iter().chain(&["-H", "x-dev-session: pr-7"]);
        let Command::Explain(question) = Cli::parse_from(unknown).command else {
            panic!("another command")
        };

        let pods = "pods of app orders in namespace staging";
        let checked = check(arguments).expect("valid");
        assert!(
            checked.contains(&format!("kubernetes               {pods}")),
            "{checked}"
        );
        let explained = explain(&question).expect("valid");
        assert!(
            explained.contains(&format!("discovery  {pods} may")),
            "{explained}"
        );
    }

    #[test]
    fn explain_refuses_what_is_no_request() {
        assert_eq!(
            told(&["x-dev-session"], &[]),
            "-H: \"x-dev-session\" is not a header field; write for example 'x-dev-session: pr-42'\n"
        );
        assert_eq!(
            told(&[], &["--listener", "x"]),
            "--listener: \"x\" is not a listener; there are http, db\n"
        );
    }

    #[test]
    fn check_shows_twenty_sessions_unless_asked_for_all() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("many.yaml");
        let sessions: String = (0..30).map(|n| format!("  pr-{n}: 10.0.0.1\n")).collect();
        std::fs::write(
            &path,
            format!("listeners: [{{ address: ':80' }}]\nsessions:\n{sessions}"),
        )
        .expect("writable");
        let text = |more: &[&str]| {
            let path = path.to_str().expect("plain");
            let Command::Check(arguments) =
                Cli::parse_from(["session-proxy", "check", path].iter().chain(more)).command
            else {
                panic!("another command")
            };
            check(arguments).expect("valid")
        };

        assert!(text(&[]).contains("and 10 more; --all shows them"));
        assert!(!text(&[]).contains("pr-20 "));
        assert!(text(&["--all"]).contains("pr-29 "));
    }

    #[test]
    fn the_example_fits_the_schema() {
        let schema: serde_json::Value = serde_json::from_str(&schema()).expect("json");
        let validator = jsonschema::validator_for(&schema).expect("a valid schema");
        let document =
            |text: &str| -> serde_json::Value { serde_saphyr::from_str(text).expect("yaml") };
        let example = std::fs::read_to_string(CONFIGURATION).expect("part of the repository");

        let errors: Vec<String> = validator
            .iter_errors(&document(&example))
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();

        assert_eq!(errors, Vec::<String>::new());
        assert!(validator.is_valid(&document("listeners: [{ address: ':80' }]\nadmin: off")));
        assert!(validator.is_valid(&document("admin: { address: off }")));
        assert!(!validator.is_valid(&document("listeners: [{ adress: ':80' }]")));
        assert!(!validator.is_valid(&document("timeouts: { firstbyte: 1s }")));
    }
}
