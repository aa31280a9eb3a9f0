//! What `verify` was asked, judged once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::HeaderName;
use http::uri::PathAndQuery;

use super::traffic::Measurement;
use crate::cli::cluster::{Only, Verify, Witness};
use crate::config::{Place, Problem, Text};
use crate::control::pull_request::PullRequest;
use crate::plan::text::duration;
use crate::sources::{given, given_path};

/// How long everything may take.
const TIMEOUT: Duration = Duration::from_secs(120);

/// How many times slower untagged traffic may become. mirrord's agent has about a seventh of the throughput
/// of the app alone; what is slower than that is not its usual price.
const SLOWDOWN: f64 = 10.0;

/// Longer ones would push the id out of what a tap shows of a target.
const LONGEST_PATH: usize = 1024;

/// What is to be found out.
#[derive(Debug)]
pub(super) struct Inquiry {
    pub pull_request: PullRequest,
    /// The session header.
    pub header: HeaderName,
    /// Of probes to pods, with a leading slash.
    pub path: String,
    pub timeout: Duration,
    pub task: Task,
}

#[derive(Debug)]
pub(super) enum Task {
    /// Only measure untagged traffic, and write that here.
    Measure(PathBuf),
    Prove(Proof),
}

/// What is to be proven.
#[derive(Debug)]
pub(super) struct Proof {
    /// App to PR pod.
    pub deployed_pods: BTreeMap<String, String>,
    /// Of the request that is to pass the whole chain; `None`: that of all probes.
    pub chain_path: Option<String>,
    pub witness: Witness,
    pub only: Only,
    /// Untagged traffic before the intercept.
    pub before: Option<Measurement>,
    pub max_slowdown: f64,
    /// Where the report goes; `None`: to standard output.
    pub out: Option<PathBuf>,
}

impl Inquiry {
    /// # Errors
    /// Everything that makes no sense.
    pub(super) fn parse(arguments: &Verify) -> Result<Self, Vec<Problem>> {
        let mut judge = Judge {
            problems: Vec::new(),
        };
        let pull_request = PullRequest::parse(&arguments.pull_request);
        let pull_request = pull_request
            .map_err(|more| judge.problems.extend(more))
            .ok();
        let path = given(arguments.path.as_deref(), "--path", "PROBE_PATH");
        let path = path.and_then(|text| judge.read(&text, path_of(&text.value)));
        let timeout = given(arguments.timeout.as_deref(), "--timeout", "TIMEOUT");
        let timeout = timeout.and_then(|text| judge.read(&text, duration(&text.value, false)));
        let task = judge.task(arguments);
        match pull_request {
            Some(pull_request) if judge.problems.is_empty() => Ok(Self {
                header: HeaderName::try_from(&pull_request.header)
                    .expect("a pull request's header is a header's name"),
                pull_request,
                path: path.unwrap_or_else(|| "/".to_owned()),
                timeout: timeout.unwrap_or(TIMEOUT),
                task,
            }),
            _ => Err(judge.problems),
        }
    }
}

/// Reads the values and remembers what is wrong with them.
struct Judge {
    problems: Vec<Problem>,
}

impl Judge {
    fn note(&mut self, place: Place, message: impl Into<String>) {
        self.problems.push(Problem {
            file: None,
            place,
            path: String::new(),
            message: message.into(),
        });
    }

    /// What a value means; when it means nothing, that is noted.
    fn read<T>(&mut self, text: &Text, meaning: Result<T, String>) -> Option<T> {
        meaning
            .map_err(|message| self.note(text.place, message))
            .ok()
    }

    fn task(&mut self, arguments: &Verify) -> Task {
        let before = given_path(arguments.baseline_measurement.as_deref());
        if let Some(file) = given_path(arguments.measure_baseline.as_deref()) {
            if before.is_some() {
                self.note(
                    Place::Flag("--measure-baseline"),
                    "stands beside --baseline-measurement; measure before the intercept, compare behind it",
                );
            }
            return Task::Measure(file.to_owned());
        }
        let text = |value, flag, variable| given(Option::as_deref(value), flag, variable);
        let chain_path = text(&arguments.chain_path, "--chain-path", "CHAIN_PATH");
        let slowdown = text(&arguments.max_slowdown, "--max-slowdown", "MAX_SLOWDOWN");
        let slowdown = slowdown.and_then(|text| self.read(&text, factor(&text.value)));
        Task::Prove(Proof {
            deployed_pods: self.deployed_pods(arguments),
            chain_path: chain_path.and_then(|text| self.read(&text, path_of(&text.value))),
            witness: arguments.witness,
            only: arguments.only,
            before: before.and_then(|file| self.measurement(file)),
            max_slowdown: slowdown.unwrap_or(SLOWDOWN),
            out: given_path(arguments.out.as_deref()).map(Path::to_owned),
        })
    }

    fn deployed_pods(&mut self, arguments: &Verify) -> BTreeMap<String, String> {
        let (flag, variable) = ("--deployed-pods", "DEPLOYED_PODS");
        let Some(text) = given(arguments.deployed_pods.as_deref(), flag, variable) else {
            let message = "missing; give the JSON map of app to PR pod that deploy wrote here or as DEPLOYED_PODS";
            self.note(Place::Flag(flag), message);
            return BTreeMap::new();
        };
        let pods = serde_json::from_str(&text.value).map_err(|error| {
            format!("not a JSON map of app to PR pod: {error}; it looks like {{\"orders\": \"pr-orders-pr-42\"}}")
        });
        self.read(&text, pods).unwrap_or_default()
    }

    fn measurement(&mut self, file: &Path) -> Option<Measurement> {
        let read = Measurement::read(file);
        read.map_err(|message| self.note(Place::Flag("--baseline-measurement"), message))
            .ok()
    }
}

fn path_of(text: &str) -> Result<String, String> {
    let is_path = text.starts_with('/')
        && text.len() <= LONGEST_PATH
        && !text.contains('#')
        && PathAndQuery::try_from(text).is_ok();
    if is_path {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{text:?} is not a path of at most {LONGEST_PATH} bytes; write for example /healthz"
    ))
}

fn factor(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(factor) if (1.0..=1000.0).contains(&factor) => Ok(factor),
        _ => Err(format!(
            "{text:?} is not a factor from 1 to 1000; write for example 10"
        )),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    const STACK: &str =
        r#"{"name":"shop","apps":[{"name":"web","downstream":["api"]},{"name":"api"}]}"#;

    fn typed(more: &[&str]) -> Result<Inquiry, String> {
        let usual = [
            "session-proxy",
            "verify",
            "--stack-json",
            STACK,
            "--build-apps",
            "api",
            "--intercept-header",
            "x-dev-session: pr-42",
        ];
        let typed = usual.iter().chain(more);
        let Command::Verify(arguments) = Cli::try_parse_from(typed).expect("known flags").command
        else {
            panic!("another command was parsed");
        };
        let lines = |problems: Vec<Problem>| {
            let lines: Vec<String> = problems.iter().map(Problem::to_string).collect();
            lines.join("\n")
        };
        Inquiry::parse(&arguments).map_err(lines)
    }

    fn proof(inquiry: Inquiry) -> Proof {
        match inquiry.task {
            Task::Prove(proof) => proof,
            Task::Measure(file) => panic!("only measures {}", file.display()),
        }
    }

    #[test]
    fn what_is_not_said_has_a_default() {
        let inquiry = typed(&["--deployed-pods", r#"{"api":"pr-api-pr-42"}"#]).expect("good");

        assert_eq!((&*inquiry.path, inquiry.timeout), ("/", TIMEOUT));
        assert_eq!(inquiry.header, "x-dev-session");
        let proof = proof(inquiry);
        assert_eq!(proof.deployed_pods["api"], "pr-api-pr-42");
        assert_eq!((proof.witness, proof.chain_path), (Witness::App, None));
        assert!(proof.before.is_none() && proof.out.is_none());
    }

    #[test]
    fn all_that_makes_no_sense_is_told_at_once() {
        let refused = typed(&[
            "--path",
            "healthz",
            "--chain-path",
            "/a#b",
            "--timeout",
            "soon",
            "--max-slowdown",
            "0.5",
            "--deployed-pods",
            "[]",
            "--baseline-measurement",
            "/nowhere/at/all.json",
        ]);
        let refused = refused.expect_err("refused");
        let flags: Vec<_> = refused
            .lines()
            .filter_map(|line| line.split(':').next())
            .collect();
        assert_eq!(
            flags,
            [
                "--path",
                "--timeout",
                "--max-slowdown",
                "--deployed-pods",
                "--chain-path",
                "--baseline-measurement"
            ],
            "{refused}"
        );
    }

    #[test]
    fn the_pods_must_be_named_but_may_be_none() {
        let missing = typed(&[]).expect_err("refused");
        assert!(missing.starts_with("--deployed-pods: missing"), "{missing}");
        assert_eq!(
            typed(&["--deployed-pods", ""]).expect_err("refused"),
            missing
        );
        let empty = typed(&["--deployed-pods", "{}"]).expect("to be judged in the cluster");
        assert!(proof(empty).deployed_pods.is_empty());
    }

    #[test]
    fn measuring_needs_no_pods_and_compares_nothing() {
        let inquiry = typed(&["--measure-baseline", "before.json"]).expect("good");
        assert!(matches!(inquiry.task, Task::Measure(file) if file == Path::new("before.json")));

        let both = ["--measure-baseline", "a", "--baseline-measurement", "b"];
        let refused = typed(&both).expect_err("refused");
        assert!(
            refused.contains("measure before the intercept"),
            "{refused}"
        );
    }
}
