//! Whose intercepts are to go: what `cleanup` was told, judged once.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::cli::cluster;
use crate::config::{Place, Problem};
use crate::control::intercept::BackendName;
use crate::control::objects::{annotations, labels};
use crate::control::stack::names;
use crate::control::words::{given, label_value, words};
use crate::plan::text;

/// How long all of it may take, when nothing is said.
const PATIENCE: &str = "2m";

/// Where to look, when nothing is said.
const NAMESPACE: &str = "staging";

/// A cleanup that makes sense.
#[derive(Debug, Clone)]
pub(super) struct Wish {
    which: Which,
    /// At least one.
    pub(super) namespaces: Vec<String>,
    /// Where mirrord's agents are, when not with the apps.
    pub(super) agent_namespace: Option<String>,
    pub(super) patience: Duration,
    /// App to PR pod, as `deploy` wrote it.
    deployed: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Which {
    Session(String),
    PipelineRun(String),
    /// Those whose time was over then.
    Expired(Timestamp),
}

impl Wish {
    /// Judges what was typed.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub(super) fn parse(arguments: &cluster::Cleanup) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let which = which(arguments, &mut problems);
        let mut namespaces = words(arguments.namespaces.as_deref());
        if namespaces.is_empty() {
            namespaces.push(NAMESPACE.to_owned());
        }
        for namespace in &namespaces {
            if let Err(message) = names::label(namespace) {
                object(&mut problems, "--namespaces", message);
            }
        }
        let agent_namespace = given(arguments.agent_namespace.as_deref()).map(str::to_owned);
        if let Some(Err(message)) = agent_namespace.as_deref().map(names::label) {
            object(&mut problems, "--agent-namespace", message);
        }
        if let Some(backend) = given(arguments.backend.as_deref())
            && BackendName::parse(backend).is_none()
        {
            object(
                &mut problems,
                "--backend",
                format!("{backend:?} is no backend; use mirrord or telepresence"),
            );
        }
        let timeout = given(arguments.timeout.as_deref()).unwrap_or(PATIENCE);
        let patience = text::duration(timeout, false).unwrap_or_else(|message| {
            object(&mut problems, "--timeout", message);
            Duration::ZERO
        });
        let deployed = match given(arguments.deployed_pods.as_deref()).map(serde_json::from_str) {
            None => BTreeMap::new(),
            Some(Ok(map)) => map,
            Some(Err(error)) => {
                let message = format!("is not a JSON map of app to PR pod: {error}");
                object(&mut problems, "--deployed-pods", message);
                BTreeMap::new()
            }
        };
        match which {
            Some(which) if problems.is_empty() => Ok(Self {
                which,
                namespaces,
                agent_namespace,
                patience,
                deployed,
            }),
            _ => Err(problems),
        }
    }

    /// Selects the PR pods among which those that are meant can be found.
    pub(super) fn selector(&self) -> String {
        let ours = format!("{},{}", labels::APP, labels::SESSION);
        match &self.which {
            Which::Session(session) => format!("{ours},{}={session}", labels::SESSION),
            Which::PipelineRun(uid) => format!("{ours},{}={uid}", labels::PIPELINE_RUN),
            Which::Expired(_) => ours,
        }
    }

    /// Whether a PR pod among those is meant.
    pub(super) fn means(&self, pod: &Pod) -> bool {
        let Which::Expired(now) = &self.which else {
            return true;
        };
        let until = pod.annotations().get(annotations::EXPIRES_AT);
        // One without a time, or with one that nobody can read, lasts until it is named.
        let until = until.and_then(|until| until.parse::<Timestamp>().ok());
        until.is_some_and(|until| until <= *now)
    }

    /// How what was found, by app and PR pod, differs from what `deploy` wrote down.
    pub(super) fn compare<'f>(
        &self,
        found: impl Iterator<Item = (&'f str, &'f str)>,
    ) -> Vec<String> {
        if self.deployed.is_empty() {
            return Vec::new();
        }
        let found: Vec<_> = found.collect();
        let missing = self
            .deployed
            .iter()
            .filter(|(app, pod)| !found.contains(&(app.as_str(), pod.as_str())))
            .map(|(app, pod)| format!("{app}: PR pod {pod} was deployed and is not there"));
        let more = found
            .iter()
            .filter(|(app, pod)| self.deployed.get(*app).map(String::as_str) != Some(pod))
            .map(|(app, pod)| format!("{app}: PR pod {pod} is not among those that were deployed"));
        missing.chain(more).collect()
    }
}

/// `no PR pods of session pr-42 in namespace staging`, where none was found.
impl fmt::Display for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.which {
            Which::Session(session) => write!(f, "no PR pods of session {session}")?,
            Which::PipelineRun(uid) => write!(f, "no PR pods of pipeline run {uid}")?,
            Which::Expired(_) => write!(f, "no PR pods whose time is over")?,
        }
        write!(f, " in namespace {}", self.namespaces.join(", "))
    }
}

fn object(problems: &mut Vec<Problem>, flag: &'static str, message: impl Into<String>) {
    problems.push(Problem {
        file: None,
        place: Place::Flag(flag),
        path: String::new(),
        message: message.into(),
    });
}

/// Exactly one way to choose, so that a parameter that was forgotten never means "all".
fn which(arguments: &cluster::Cleanup, problems: &mut Vec<Problem>) -> Option<Which> {
    let session = given(arguments.session.as_deref());
    let run = given(arguments.pipeline_run.as_deref());
    match (session, run, arguments.expired) {
        (Some(session), None, false) => match label_value(session) {
            Ok(session) => Some(Which::Session(session)),
            Err(message) => {
                object(problems, "--session", message);
                None
            }
        },
        (None, Some(run), false) => match label_value(run) {
            Ok(run) => Some(Which::PipelineRun(run)),
            Err(message) => {
                object(problems, "--pipeline-run", message);
                None
            }
        },
        (None, None, true) => Some(Which::Expired(Timestamp::now())),
        (None, None, false) => {
            let message =
                "missing: say what to clean up, with --session, --pipeline-run or --expired";
            object(problems, "--session", message);
            None
        }
        _ => {
            let message =
                "only one of --session, --pipeline-run and --expired can say what to clean up";
            object(problems, "--session", message);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parse(flags: &[&str]) -> Result<Wish, String> {
        let line = ["session-proxy", "cleanup"].iter().chain(flags);
        let Command::Cleanup(arguments) = Cli::parse_from(line).command else {
            panic!("that is cleanup")
        };
        Wish::parse(&arguments).map_err(|problems| {
            let lines = problems.iter().map(ToString::to_string);
            lines.collect::<Vec<_>>().join("\n")
        })
    }

    fn expiring(at: &str) -> Pod {
        let annotations = json!({annotations::EXPIRES_AT: at});
        serde_json::from_value(json!({"metadata": {"annotations": annotations}})).unwrap()
    }

    #[test]
    fn what_is_chosen_is_one_session_one_run_or_what_is_over() {
        let session = parse(&["--session", "pr-42"]).unwrap();
        assert_eq!(
            session.selector(),
            "session-proxy/app,session-proxy/session,session-proxy/session=pr-42"
        );
        assert_eq!(session.namespaces, ["staging"]);
        let run = parse(&["--pipeline-run", "uid-1", "--namespaces", "a b a"]).unwrap();
        assert!(run.selector().ends_with("session-proxy/pipeline-run=uid-1"));
        assert_eq!(run.namespaces, ["a", "b"]);
        let over = parse(&["--expired"]).unwrap();
        assert_eq!(over.selector(), "session-proxy/app,session-proxy/session");
    }

    #[test]
    fn nothing_chosen_never_means_everything() {
        for flags in [&[][..], &["--session", ""], &["--pipeline-run", " "]] {
            let told = parse(flags).unwrap_err();
            assert!(told.contains("say what to clean up"), "{told}");
        }
        for flags in [
            &["--session", "a", "--expired"][..],
            &["--session", "a", "--pipeline-run", "b"],
            &["--pipeline-run", "b", "--expired"],
        ] {
            let told = parse(flags).unwrap_err();
            assert!(told.contains("only one of"), "{told}");
        }
    }

    #[test]
    fn a_name_cannot_widen_what_is_chosen() {
        for session in ["a,b", "a=b", "a b", "!a", "*"] {
            parse(&["--session", session]).unwrap_err();
            parse(&["--pipeline-run", session]).unwrap_err();
        }
    }

    #[test]
    fn only_a_time_that_has_passed_is_over() {
        let wish = parse(&["--expired"]).unwrap();
        for (at, is_over) in [
            ("2020-01-01T00:00:00Z", true),
            ("2020-01-01T00:00:00+02:00", true),
            ("9999-01-01T00:00:00Z", false),
            ("yesterday", false),
            ("", false),
        ] {
            assert_eq!(wish.means(&expiring(at)), is_over, "{at}");
        }
        assert!(!wish.means(&Pod::default()));
        assert!(parse(&["--session", "a"]).unwrap().means(&Pod::default()));
    }

    #[test]
    fn what_was_deployed_is_compared_both_ways() {
        let written = r#"{"orders":"pr-orders-a","items":"pr-items-a"}"#;
        let wish = parse(&["--session", "a", "--deployed-pods", written]).unwrap();
        assert!(
            wish.compare([("orders", "pr-orders-a"), ("items", "pr-items-a")].into_iter())
                .is_empty()
        );
        let warnings = wish.compare([("orders", "pr-orders-a"), ("web", "pr-web-a")].into_iter());
        assert_eq!(
            warnings,
            [
                "items: PR pod pr-items-a was deployed and is not there",
                "web: PR pod pr-web-a is not among those that were deployed",
            ]
        );
        // Nothing written down, nothing to compare.
        let silent = parse(&["--session", "a", "--deployed-pods", ""]).unwrap();
        assert!(silent.compare([("web", "pr-web-a")].into_iter()).is_empty());
    }
}
