//! One pull request's part of a stack: what `deploy` and `verify` are told, judged once.
//!
//! All of it comes from a pipeline's parameters, which anyone who opens a pull request may have had a
//! hand in: what is not a name is refused, and told on one line.

use std::collections::HashSet;
use std::path::Path;

use super::stack::names::{LABEL_BYTES, label};
use super::stack::{App, Stack};
use crate::cli::cluster;
use crate::config::{Place, Problem, Text};
use crate::plan::PROBE;
use crate::plan::text::session_header;
use crate::sources::{given, given_path};
use crate::yaml::shortened;

/// Where apps live when neither the stack nor a flag says so.
const NAMESPACE: &str = "staging";

/// So many unknown names of one list are told.
const TOLD: usize = 10;

/// What is intercepted, for whom.
#[derive(Debug, Clone, PartialEq)]
pub struct PullRequest {
    pub stack: Stack,
    /// The changed apps, callers before callees; at least one, each in the stack.
    pub apps: Vec<String>,
    /// Name of the session header, lower case; the stack's.
    pub header: String,
    /// Fit to be a label's value and, with the name of each changed app, the name of a pod.
    pub session: String,
    /// The apps in the order in which a request passes them, each in the stack.
    pub chain: Vec<String>,
    pub default_namespace: String,
}

impl PullRequest {
    /// Judges what was typed; an empty value counts as not given.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(arguments: &cluster::PullRequest) -> Result<Self, Vec<Problem>> {
        let mut judge = Judge {
            problems: Vec::new(),
        };
        let stack = judge.stack(arguments);
        let stack = stack.as_ref();
        let header = judge.header(arguments, stack);
        let session = header.as_ref().map(|(_, session)| session.as_str());
        let apps = judge.apps(arguments, stack, session);
        let chain = judge.chain(arguments, stack);
        let default_namespace = judge.default_namespace(arguments);
        if let (true, Some(stack), Some((header, session))) =
            (judge.problems.is_empty(), stack, header)
        {
            return Ok(Self {
                stack: stack.clone(),
                apps,
                header,
                session,
                chain,
                default_namespace,
            });
        }
        Err(judge.problems)
    }

    /// Where an app and all that belongs to it lives.
    pub fn namespace_of<'s>(&'s self, app: &'s App) -> &'s str {
        app.namespace.as_deref().unwrap_or(&self.default_namespace)
    }
}

/// A session that can be part of a cluster: it becomes a label's value and part of pod names.
pub(super) fn session(text: &str) -> Result<String, String> {
    if text == PROBE {
        return Err(format!(
            "the session {text:?} is reserved: the proxy answers it itself; choose another name"
        ));
    }
    label(text).map_err(|message| format!("the session {message}"))
}

/// Whether an app's pods can be called what they must be called.
pub(super) fn pod_names_fit(app: &str, session: &str) -> Result<(), String> {
    let proxy = format!("mirrord-proxy-{app}");
    if proxy.len() > LABEL_BYTES {
        return Err(format!(
            "the proxy pod {proxy} would have {} characters, and a pod's name has at most {LABEL_BYTES}; give the app a shorter name",
            proxy.len()
        ));
    }
    let pod = format!("pr-{app}-{session}");
    if pod.len() > LABEL_BYTES {
        return Err(format!(
            "the pod {pod} would have {} characters, and a pod's name has at most {LABEL_BYTES}; choose a session of at most {}",
            pod.len(),
            LABEL_BYTES - (pod.len() - session.len())
        ));
    }
    Ok(())
}

/// Reads the values and remembers what is wrong with them.
struct Judge {
    problems: Vec<Problem>,
}

impl Judge {
    fn note(&mut self, place: Place, message: String) {
        self.problems.push(Problem {
            file: None,
            place,
            path: String::new(),
            message,
        });
    }

    fn missing(&mut self, flag: &'static str, variable: &'static str, what: &str) {
        self.note(
            Place::Flag(flag),
            format!("missing; give {what} here or as {variable}"),
        );
    }

    /// What a value means; when it means nothing, that is noted.
    fn read<T>(&mut self, text: &Text, meaning: Result<T, String>) -> Option<T> {
        meaning
            .map_err(|message| self.note(text.place, message))
            .ok()
    }

    fn stack(&mut self, arguments: &cluster::PullRequest) -> Option<Stack> {
        let json = given(
            arguments.stack_json.as_deref(),
            "--stack-json",
            "STACK_JSON",
        );
        let file = given_path(arguments.stack_file.as_deref());
        let stack = match (json, file) {
            (Some(json), None) => Stack::parse("--stack-json", json.value.as_bytes()),
            // A pipeline gives both: its parameter, if there is one, and the file of its workspace.
            (Some(json), Some(path)) if are_of_a_pipeline(&json, path) => {
                Stack::parse("--stack-json", json.value.as_bytes())
            }
            (None, Some(path)) => Stack::read(path),
            (None, None) => {
                self.missing(
                    "--stack-json",
                    "STACK_JSON",
                    "the stack that resolve printed, or a file with --stack-file,",
                );
                return None;
            }
            (Some(json), Some(_)) => {
                self.note(
                    json.place,
                    "stands beside --stack-file (STACK_FILE); give the stack once".to_owned(),
                );
                return None;
            }
        };
        stack
            .map_err(|problems| self.problems.extend(problems))
            .ok()
    }

    /// The session header's name, and the session.
    fn header(
        &mut self,
        arguments: &cluster::PullRequest,
        stack: Option<&Stack>,
    ) -> Option<(String, String)> {
        let (flag, variable) = ("--intercept-header", "INTERCEPT_HEADER");
        let Some(text) = given(arguments.intercept_header.as_deref(), flag, variable) else {
            self.missing(
                flag,
                variable,
                "the session, for example x-dev-session:pr-42,",
            );
            return None;
        };
        let Some((name, value)) = text.value.split_once(':') else {
            self.note(
                text.place,
                format!(
                    "{:?} has no colon; write NAME:VALUE, for example x-dev-session:pr-42",
                    shortened(&text.value)
                ),
            );
            return None;
        };
        let name = self.read(&text, header_of(name.trim(), stack));
        let value = self.read(&text, session(value.trim()));
        Some((name?, value?))
    }

    fn apps(
        &mut self,
        arguments: &cluster::PullRequest,
        stack: Option<&Stack>,
        session: Option<&str>,
    ) -> Vec<String> {
        let (flag, variable) = ("--build-apps", "BUILD_APPS");
        let text = given(arguments.build_apps.as_deref(), flag, variable);
        let Some(text) = text.filter(|text| !text.value.trim().is_empty()) else {
            self.missing(flag, variable, "the changed apps, divided by blanks,");
            return Vec::new();
        };
        let Some(stack) = stack else {
            return Vec::new();
        };
        let written = self.names(&text, stack);
        for app in &written {
            if let Some(session) = session {
                self.read(&text, pod_names_fit(app, session));
            }
        }
        let order = stack.order().into_iter().map(|app| app.name.as_str());
        let changed: HashSet<&str> = written.into_iter().collect();
        order
            .filter(|name| changed.contains(name))
            .map(str::to_owned)
            .collect()
    }

    fn chain(&mut self, arguments: &cluster::PullRequest, stack: Option<&Stack>) -> Vec<String> {
        let (flag, variable) = ("--propagation-chain", "PROPAGATION_CHAIN");
        let text = given(arguments.propagation_chain.as_deref(), flag, variable);
        let Some(stack) = stack else {
            return Vec::new();
        };
        let names = match &text {
            Some(text) if !text.value.trim().is_empty() => self.names(text, stack),
            _ => stack.chain().iter().map(|app| app.name.as_str()).collect(),
        };
        names.into_iter().map(str::to_owned).collect()
    }

    fn default_namespace(&mut self, arguments: &cluster::PullRequest) -> String {
        let (flag, variable) = ("--default-namespace", "DEFAULT_NAMESPACE");
        given(arguments.default_namespace.as_deref(), flag, variable)
            .and_then(|text| self.read(&text, label(&text.value)))
            .unwrap_or_else(|| NAMESPACE.to_owned())
    }

    /// Names divided by blanks, each once. Those that are no app of the stack are noted.
    fn names<'t>(&mut self, text: &'t Text, stack: &Stack) -> Vec<&'t str> {
        let known: HashSet<&str> = stack.apps.iter().map(|app| app.name.as_str()).collect();
        let mut met = HashSet::new();
        let (names, unknown): (Vec<&str>, Vec<&str>) = text
            .value
            .split_whitespace()
            .filter(|name| met.insert(*name))
            .partition(|name| known.contains(name));
        for name in unknown.iter().take(TOLD) {
            self.note(text.place, stack.unknown_app(name));
        }
        if unknown.len() > TOLD {
            self.note(
                text.place,
                format!("and {} more names that are no app", unknown.len() - TOLD),
            );
        }
        names
    }
}

/// Whether both come from the environment, and nobody typed either.
fn are_of_a_pipeline(json: &Text, file: &Path) -> bool {
    let file = given(file.to_str(), "--stack-file", "STACK_FILE");
    let is_variable = |text: &Text| matches!(text.place, Place::Env(_));
    is_variable(json) && file.is_some_and(|file| is_variable(&file))
}

/// The name of a header that carries sessions, which must be the stack's.
fn header_of(name: &str, stack: Option<&Stack>) -> Result<String, String> {
    let name = session_header(name).map_err(|_| {
        format!(
            "{:?} is no header that can carry a session; write NAME:VALUE, for example x-dev-session:pr-42",
            shortened(name)
        )
    })?;
    match stack.map(|stack| stack.propagation.header_name.as_str()) {
        Some(expected) if name != expected => Err(format!(
            "the session header of this stack is {expected}, not {:?}; write {expected}:VALUE",
            shortened(name.as_str())
        )),
        _ => Ok(name.as_str().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STACK: &str = r#"{"name":"shop","defaults":{"namespace":"shop"},"apps":[
        {"name":"web","namespace":"front","downstream":["api"]},{"name":"api","downstream":["db"]},{"name":"db"}]}"#;

    fn arguments() -> cluster::PullRequest {
        cluster::PullRequest {
            stack_json: Some(STACK.to_owned()),
            stack_file: None,
            build_apps: Some("db web".to_owned()),
            intercept_header: Some("x-dev-session:pr-42".to_owned()),
            propagation_chain: None,
            default_namespace: None,
        }
    }

    fn refused(arguments: &cluster::PullRequest) -> String {
        let problems = PullRequest::parse(arguments).expect_err("refused");
        let lines: Vec<String> = problems.iter().map(Problem::to_string).collect();
        for line in &lines {
            assert!(line.len() < 900 && !line.contains('\n'), "{line}");
        }
        lines.join("\n")
    }

    #[test]
    fn what_was_typed_becomes_a_pull_request() {
        let pull_request = PullRequest::parse(&arguments()).expect("good");
        assert_eq!(pull_request.apps, ["web", "db"]);
        assert_eq!(pull_request.chain, ["web", "api", "db"]);
        assert_eq!(
            (pull_request.header.as_str(), pull_request.session.as_str()),
            ("x-dev-session", "pr-42")
        );
        let namespaces = pull_request.stack.apps.iter();
        let namespaces: Vec<&str> = namespaces
            .map(|app| pull_request.namespace_of(app))
            .collect();
        assert_eq!(namespaces, ["front", "shop", "shop"]);
    }

    #[test]
    fn a_namespace_nobody_names_is_staging() {
        let mut arguments = arguments();
        arguments.stack_json = Some("{name: a, apps: [{name: web}, {name: db}]}".to_owned());
        for (written, expected) in [
            (None, "staging"),
            (Some(""), "staging"),
            (Some("demo"), "demo"),
        ] {
            arguments.default_namespace = written.map(str::to_owned);
            let pull_request = PullRequest::parse(&arguments).expect("good");
            assert_eq!(
                pull_request.namespace_of(&pull_request.stack.apps[0]),
                expected
            );
        }
    }

    #[test]
    fn a_header_is_written_with_and_without_blanks_in_any_case() {
        for text in [
            "x-dev-session:pr-42",
            "x-dev-session: pr-42",
            "X-Dev-Session  :  pr-42  ",
            "\tX-DEV-SESSION:\tpr-42\n",
        ] {
            let pull_request = PullRequest::parse(&cluster::PullRequest {
                intercept_header: Some(text.to_owned()),
                ..arguments()
            });
            let pull_request = pull_request.expect("good");
            assert_eq!(pull_request.header, "x-dev-session", "{text:?}");
            assert_eq!(pull_request.session, "pr-42", "{text:?}");
        }
    }

    #[test]
    fn what_makes_no_session_is_refused() {
        let long = "x".repeat(1 << 16);
        for text in [
            "x-dev-session",
            "x-dev-session:",
            ":pr-42",
            "x-dev-session:PR-42",
            "x-dev-session:pr_42",
            "x-dev-session:pr.42",
            "x-dev-session:-42",
            "x-dev-session:$(id)",
            "x-dev-session:pr-42\nx-other: 1",
            "x-dev-session:pr-42'; rm -rf /",
            "x-dev-session:\"pr-42\"",
            "x-dev-session:pr-４２",
            "x-dev-session:session-proxy-probe",
            "x-other:pr-42",
            "baggage:dev-session=pr-42",
            "x dev session:pr-42",
            long.as_str(),
            &format!("x-dev-session:{long}"),
            &format!("{long}:pr-42"),
        ] {
            let told = refused(&cluster::PullRequest {
                intercept_header: Some(text.to_owned()),
                ..arguments()
            });
            assert!(told.starts_with("--intercept-header: "), "{told}");
        }
    }

    #[test]
    fn every_mistake_is_told_at_once() {
        let told = refused(&cluster::PullRequest {
            stack_json: Some(STACK.to_owned()),
            stack_file: None,
            build_apps: Some("wen api $(id)".to_owned()),
            intercept_header: Some("x-other:PR".to_owned()),
            propagation_chain: Some("web nobody".to_owned()),
            default_namespace: Some("Staging".to_owned()),
        });
        for part in [
            "--intercept-header: the session header of this stack is x-dev-session, not \"x-other\"",
            "--intercept-header: the session \"PR\" is not a name",
            "--build-apps: \"wen\" is no app of this stack; did you mean \"web\"?",
            "--build-apps: \"$(id)\" is no app of this stack; known are web, api, db",
            "--propagation-chain: \"nobody\" is no app",
            "--default-namespace: \"Staging\" is not a name",
        ] {
            assert!(told.contains(part), "{part}\n{told}");
        }
    }

    #[test]
    fn what_is_missing_is_told_with_its_variable() {
        let nothing = || Some(" ".to_owned());
        let told = refused(&cluster::PullRequest {
            stack_json: Some(String::new()),
            stack_file: Some("".into()),
            build_apps: nothing(),
            intercept_header: Some(String::new()),
            propagation_chain: nothing(),
            default_namespace: Some(String::new()),
        });
        for part in [
            "STACK_JSON",
            "--stack-file",
            "BUILD_APPS",
            "INTERCEPT_HEADER",
        ] {
            assert!(told.contains(part), "{part}\n{told}");
        }
        assert_eq!(told.lines().count(), 3, "{told}");
    }

    #[test]
    fn a_stack_is_given_once_and_its_own_mistakes_are_told_too() {
        let twice = refused(&cluster::PullRequest {
            stack_file: Some("stack.yaml".into()),
            ..arguments()
        });
        assert!(twice.contains("give the stack once"), "{twice}");
        let missing = refused(&cluster::PullRequest {
            stack_json: None,
            stack_file: Some("/nowhere/stack.yaml".into()),
            ..arguments()
        });
        assert!(
            missing.contains("cannot read the stack /nowhere/stack.yaml: no such file"),
            "{missing}"
        );
        let broken = refused(&cluster::PullRequest {
            stack_json: Some("{\"name\":\"a\",\"apps\":[{\"nme\":\"b\"}]}".to_owned()),
            build_apps: None,
            ..arguments()
        });
        for part in ["--stack-json:1:22: apps[0].nme", "--build-apps: missing"] {
            assert!(broken.contains(part), "{broken}");
        }
    }

    #[test]
    fn names_that_make_no_pod_are_refused_with_the_remedy() {
        let long = "l".repeat(45);
        let longer = "m".repeat(50);
        let stack = format!("{{name: a, apps: [{{name: {long}}}, {{name: {longer}}}]}}");
        let told = refused(&cluster::PullRequest {
            stack_json: Some(stack),
            build_apps: Some(format!("{long} {longer}")),
            intercept_header: Some("x-dev-session:pull-request-42".to_owned()),
            ..arguments()
        });
        assert!(told.contains("choose a session of at most 14"), "{told}");
        assert!(told.contains("give the app a shorter name"), "{told}");
    }

    #[test]
    fn a_flood_of_names_is_told_in_few_lines() {
        let flood: String = (0..20_000).map(|name| format!("x{name} ")).collect();
        let told = refused(&cluster::PullRequest {
            build_apps: Some(flood),
            ..arguments()
        });
        assert_eq!(told.lines().count(), 11, "{told}");
        assert!(told.contains("and 19990 more"), "{told}");
    }
}
