//! The stack: apps, who calls whom, and how a session travels between them.
//!
//! Read once from a stack file, YAML or JSON, and believed from then on: names are DNS labels, every
//! callee exists, no way leads back to where it began, ports are ports, and whatever may be left out
//! is filled in.

mod calls;
mod graph;
pub(in crate::control) mod names;
mod notes;
mod ports;
mod reader;
mod values;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::intercept::{AppProtocol, Target, TargetKind};
use crate::config::Problem;

/// A stack that makes sense.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stack {
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    pub propagation: Propagation,
    pub defaults: Defaults,
    /// In the order of the file; at least one.
    pub apps: Vec<App>,
    /// Places in `apps`, callers before callees.
    #[serde(skip)]
    order: Vec<usize>,
    /// Places in `apps`, the entry first.
    #[serde(skip)]
    chain: Vec<usize>,
}

/// How a request carries its session from app to app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Propagation {
    /// Lower case.
    pub header_name: String,
    /// Of the W3C baggage member; empty: baggage is not used.
    pub baggage_key: String,
    /// A word for people: nothing here depends on it.
    pub strategy: String,
}

/// What holds for apps that do not say otherwise. Already filled in where it does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Defaults {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_registry: Option<String>,
}

/// One app.
#[derive(Debug, Clone, PartialEq)]
pub struct App {
    pub name: String,
    pub repo: Option<String>,
    /// `frontend`, `middleware`, `persistence` or what else people call it.
    pub role: Option<String>,
    pub propagation_role: PropagationRole,
    /// Its own or the stack's default; `None`: the command's default.
    pub namespace: Option<String>,
    /// At least one.
    pub ports: Vec<Port>,
    /// Whose pods' requests are taken: `deployment/NAME` unless said otherwise.
    pub target: Target,
    pub context_dir: String,
    pub dockerfile: String,
    /// As it was written; `{}` when it was not.
    pub build: Value,
    /// Names of the apps it calls, each once, in the order of the file.
    pub downstream: Vec<String>,
    /// As it was written; `{}` when it was not.
    pub tests: Value,
}

/// What an app does with a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PropagationRole {
    /// Starts it on requests of its own.
    Originator,
    /// Passes it on.
    Forwarder,
    /// Passes it to nobody.
    Terminal,
}

/// A port of an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    pub container_port: u16,
    pub service_port: u16,
    pub protocol: AppProtocol,
}

impl Stack {
    /// Reads a stack file, YAML or JSON; `name` is what messages call it.
    ///
    /// # Errors
    /// Everything that is wrong with it, in the order of the file.
    pub fn parse(name: &str, bytes: &[u8]) -> Result<Self, Vec<Problem>> {
        reader::read(name, bytes)
    }

    /// The app of this name.
    pub fn app(&self, name: &str) -> Option<&App> {
        self.apps.iter().find(|app| app.name == name)
    }

    /// All apps, callers before callees; in the order of the file where that leaves a choice.
    pub fn order(&self) -> Vec<&App> {
        self.order.iter().map(|place| &self.apps[*place]).collect()
    }

    /// The first app in the file that no app calls.
    pub fn entry(&self) -> &App {
        &self.apps[self.chain[0]]
    }

    /// The apps that a request to the entry may pass: depth first, each once. Apps which only another
    /// root calls are not among them.
    pub fn chain(&self) -> Vec<&App> {
        self.chain.iter().map(|place| &self.apps[*place]).collect()
    }

    /// The stack with everything filled in, on one line. [`Stack::parse`] reads it back as the same.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("every key is a text, and a String takes all")
    }
}

impl App {
    /// The one port that needs no list.
    fn plain_port(&self) -> Option<&Port> {
        match self.ports.as_slice() {
            [port] if port.protocol == AppProtocol::Http => Some(port),
            _ => None,
        }
    }

    fn has_usual_target(&self) -> bool {
        self.target.kind == TargetKind::Deployment && self.target.name == self.name
    }
}

/// As in a stack file. The usual target goes without saying: results of a pipeline have little room.
impl Serialize for App {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("name", &self.name)?;
        if let Some(repo) = &self.repo {
            map.serialize_entry("repo", repo)?;
        }
        if let Some(role) = &self.role {
            map.serialize_entry("role", role)?;
        }
        map.serialize_entry("propagation-role", self.propagation_role.word())?;
        if let Some(namespace) = &self.namespace {
            map.serialize_entry("namespace", namespace)?;
        }
        if let Some(port) = self.plain_port() {
            map.serialize_entry("container-port", &port.container_port)?;
            map.serialize_entry("service-port", &port.service_port)?;
        } else {
            let ports: Vec<Value> = self.ports.iter().map(Port::to_value).collect();
            map.serialize_entry("ports", &ports)?;
        }
        if !self.has_usual_target() {
            map.serialize_entry("target", &self.target.to_string())?;
        }
        map.serialize_entry("context-dir", &self.context_dir)?;
        map.serialize_entry("dockerfile", &self.dockerfile)?;
        map.serialize_entry("build", &self.build)?;
        map.serialize_entry("downstream", &self.downstream)?;
        map.serialize_entry("tests", &self.tests)?;
        map.end()
    }
}

impl Port {
    fn to_value(&self) -> Value {
        json!({
            "container-port": self.container_port,
            "service-port": self.service_port,
            "protocol": self.protocol.word(),
        })
    }
}

impl PropagationRole {
    /// All of them, in the order in which a session meets them.
    pub const ALL: [Self; 3] = [Self::Originator, Self::Forwarder, Self::Terminal];

    /// The word for it in the file.
    pub fn word(self) -> &'static str {
        match self {
            Self::Originator => "originator",
            Self::Forwarder => "forwarder",
            Self::Terminal => "terminal",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::time::{Duration, Instant};

    use super::*;

    fn folder(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
    }

    fn files(prefix: &str) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder("tests/data/stacks")).expect("a folder");
        let is_wanted = |path: &PathBuf| {
            let name = path.file_name().expect("a file").to_string_lossy();
            name.starts_with(prefix) && (name.ends_with(".yaml") || name.ends_with(".json"))
        };
        let mut files: Vec<PathBuf> = entries
            .map(|entry| entry.expect("readable").path())
            .filter(is_wanted)
            .collect();
        files.sort();
        assert!(!files.is_empty(), "no {prefix}*");
        files
    }

    fn parsed(path: &Path) -> Result<Stack, String> {
        let name = path.file_name().expect("a file").to_string_lossy();
        let bytes = std::fs::read(path).expect("readable");
        Stack::parse(&name, &bytes).map_err(|problems| told(&problems))
    }

    fn told(problems: &[Problem]) -> String {
        let lines = problems.iter().map(|problem| format!("{problem}\n"));
        lines.collect()
    }

    fn names(apps: &[&App]) -> String {
        let names: Vec<&str> = apps.iter().map(|app| app.name.as_str()).collect();
        names.join(" ")
    }

    /// `BLESS=1 cargo test stack::` writes what comes out now; read the difference before you commit it.
    fn compare(text: &str, golden: &Path) {
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(golden, text).expect("writable");
        }
        let expected = std::fs::read_to_string(golden).expect("a golden file");
        assert_eq!(text, expected, "{}", golden.display());
    }

    #[test]
    fn good_files_load_and_come_back_from_json_as_the_same() {
        let mut files = files("good-");
        files.push(folder("config/stacks/stack-one.yaml"));
        for path in files {
            let stack =
                parsed(&path).unwrap_or_else(|problems| panic!("{}:\n{problems}", path.display()));
            let json = stack.to_json();

            let again = Stack::parse("again", json.as_bytes()).map_err(|problems| told(&problems));

            assert_eq!(again.as_ref(), Ok(&stack), "{}", path.display());
            assert_eq!(again.map(|stack| stack.to_json()), Ok(json));
        }
    }

    #[test]
    fn json_has_everything_filled_in() {
        for name in ["good-field", "good-minimal", "good-null", "good-roots"] {
            let path = files(name).remove(0);
            let stack = parsed(&path).expect("good");
            let pretty = serde_json::to_string_pretty(&stack).expect("JSON") + "\n";
            compare(&pretty, &path.with_extension("resolved"));
        }
    }

    #[test]
    fn bad_files_tell_every_problem_at_its_place() {
        for path in files("bad-") {
            let problems = parsed(&path).expect_err("bad");
            compare(&problems, &path.with_extension("problems"));
        }
    }

    #[test]
    fn of_several_roots_the_first_in_the_file_is_the_entry() {
        let stack = parsed(&folder("tests/data/stacks/good-roots.yaml")).expect("good");
        assert_eq!(names(&stack.order()), "first second middle shared lonely");
        assert_eq!(stack.entry().name, "first");
        assert_eq!(names(&stack.chain()), "first middle shared");
        assert_eq!(
            stack.app("lonely").map(|app| app.ports[0].protocol),
            Some(AppProtocol::Grpc)
        );
        assert_eq!(stack.app("nobody"), None);
    }

    #[test]
    fn hostile_files_are_refused_quickly_and_in_few_words() {
        let apps = |each: &dyn Fn(usize) -> String, count: usize| {
            let apps: String = (0..count)
                .map(|index| format!("- {}\n", each(index)))
                .collect();
            format!("name: x\napps:\n{apps}")
        };
        let all: Vec<String> = (0..1000).map(|index| format!("a{index}")).collect();
        let all = all.join(",");
        let dense = apps(
            &|index| format!("{{name: a{index}, downstream: [{all}]}}"),
            150,
        );
        let strangers = (0..60_000)
            .map(|index| format!("shop-{index}"))
            .collect::<Vec<_>>()
            .join(", ");
        for (what, text) in [
            ("large", "#".repeat(2 << 20)),
            (
                "unknown keys",
                (0..60_000).map(|key| format!("k{key}: 1\n")).collect(),
            ),
            (
                "many apps",
                apps(&|index| format!("name: a{index}"), 50_000),
            ),
            ("one name", apps(&|_| "name: a".to_owned(), 1000)),
            ("dense", dense),
            (
                "strangers",
                format!("name: x\napps: [{{name: a, downstream: [{strangers}]}}]"),
            ),
            ("long name", format!("name: {}\n", "x".repeat(1 << 19))),
            ("long key", format!("? {}\n: 1\n", "x".repeat(900))),
            (
                "deep build",
                format!(
                    "name: x\napps: [{{name: a, build: {{a: {}}}}}]",
                    "[".repeat(100_000)
                ),
            ),
            ("nothing but lines", "\n".repeat(1 << 20)),
            ("zeros", "\0".repeat(1 << 20)),
        ] {
            let started = Instant::now();
            let problems = Stack::parse(what, text.as_bytes()).expect_err(what);
            // Without optimization, beside other tests.
            assert!(
                started.elapsed() < Duration::from_secs(20),
                "{what}: {:?}",
                started.elapsed()
            );
            assert!(problems.len() <= 101, "{what}: {}", problems.len());
            for problem in problems {
                let line = problem.to_string();
                assert!(line.len() < 800 && !line.contains('\n'), "{what}: {line}");
            }
        }
    }
}
