//! The tree of a stack file to a [`Stack`], without stopping at the first mistake.

use std::sync::Arc;

use super::calls::{self, Call};
use super::graph::{self, Graph};
use super::notes::{Fields, Notes};
use super::{App, Defaults, Propagation, PropagationRole, Stack, names, ports, values};
use crate::config::{Place, Problem, nearest};
use crate::control::intercept::{Target, TargetKind};
use crate::plan::text::{baggage_key, session_header};
use crate::yaml::{self, Content, Node, shortened};

/// A stack file of this many bytes is a mistake, or an attack.
pub(super) const MOST: u64 = 1 << 20;

/// More apps than a stack can have: each becomes several objects and a share of a cluster.
const APPS: usize = 1000;

/// The keys of an app.
const APP: [&str; 14] = [
    "name",
    "repo",
    "role",
    "propagation-role",
    "namespace",
    "container-port",
    "service-port",
    "ports",
    "target",
    "context-dir",
    "dockerfile",
    "build",
    "downstream",
    "tests",
];

/// As [`Stack::parse`].
pub(super) fn read(name: &str, bytes: &[u8]) -> Result<Stack, Vec<Problem>> {
    let file: Arc<str> = Arc::from(name);
    let too_large = |what| {
        vec![Problem {
            file: Some(Arc::clone(&file)),
            place: Place::BuiltIn,
            path: String::new(),
            message: format!("a stack has at most {MOST} bytes, this one has more{what}"),
        }]
    };
    if bytes.len() as u64 > MOST {
        return Err(too_large(""));
    }
    let root = yaml::parse(bytes).map_err(|fault| vec![Problem::of_fault(&file, fault)])?;
    let mut notes = Notes::of(&file);
    let stack = stack(&root, &mut notes);
    notes.into_result()?;
    // What is written must be read again.
    if stack.to_json().len() as u64 > MOST {
        return Err(too_large(" when everything is filled in"));
    }
    Ok(stack)
}

/// The stack, which is only to be believed when nothing was noted.
fn stack(root: &Node<'_>, notes: &mut Notes) -> Stack {
    let known = ["name", "description", "propagation", "defaults", "apps"];
    let fields = Fields::of(root, String::new(), &known, notes);
    let name = required_name(&fields, notes, "a stack");
    let description = fields.read("description", notes, values::printable);
    let propagation = propagation(&fields, notes);
    let defaults = defaults(&fields, notes);
    let (apps, graph) = apps(&fields, &defaults, notes);
    Stack {
        name,
        description,
        propagation,
        defaults,
        apps,
        order: graph::order(&graph),
        chain: graph::entry(&graph).map_or(Vec::new(), |entry| graph::chain(&graph, entry)),
    }
}

fn propagation(stack: &Fields<'_, '_>, notes: &mut Notes) -> Propagation {
    let known = ["header-name", "baggage-key", "strategy"];
    let fields = below(stack, "propagation", &known, notes);
    let header_name = |text: &str| Ok(session_header(text)?.as_str().to_owned());
    let key = |text: &str| Ok(baggage_key(text)?.map_or(String::new(), String::from));
    Propagation {
        header_name: fields
            .read("header-name", notes, header_name)
            .unwrap_or_else(|| "x-dev-session".to_owned()),
        baggage_key: fields
            .read("baggage-key", notes, key)
            .unwrap_or_else(|| "dev-session".to_owned()),
        strategy: fields
            .read("strategy", notes, one_line)
            .unwrap_or_else(|| "w3c-baggage".to_owned()),
    }
}

fn defaults(stack: &Fields<'_, '_>, notes: &mut Notes) -> Defaults {
    let known = [
        "namespace",
        "container-port",
        "service-port",
        "image-registry",
    ];
    let fields = below(stack, "defaults", &known, notes);
    Defaults {
        namespace: fields.read("namespace", notes, names::label),
        container_port: fields.read("container-port", notes, ports::number),
        service_port: fields.read("service-port", notes, ports::number),
        image_registry: fields.read("image-registry", notes, one_line),
    }
}

/// The map under a key; without entries when it is not there.
fn below<'n, 'i>(
    of: &Fields<'n, 'i>,
    key: &str,
    known: &[&'static str],
    notes: &mut Notes,
) -> Fields<'n, 'i> {
    match of.find(key) {
        Some(node) => Fields::of(node, of.at(key), known, notes),
        None => Fields::none(of.node()),
    }
}

fn apps(stack: &Fields<'_, '_>, defaults: &Defaults, notes: &mut Notes) -> (Vec<App>, Graph) {
    let items = stack.list("apps", notes);
    let is_list = stack
        .find("apps")
        .is_some_and(|node| matches!(node.content, Content::List(_)));
    if stack.is_missing("apps") || (is_list && items.is_empty()) {
        let node = stack.find("apps").unwrap_or(stack.node());
        notes.add(node, "apps", || {
            "a stack needs at least one app, for example apps: [{name: shop-api}]".to_owned()
        });
    }
    if let Some(first_too_many) = items.get(APPS) {
        notes.add(first_too_many, format!("apps[{APPS}]"), || {
            format!(
                "a stack has at most {APPS} apps, this one has {}",
                items.len()
            )
        });
        return (Vec::new(), Graph::new());
    }
    let (apps, written): (Vec<_>, _) = items
        .iter()
        .enumerate()
        .map(|(index, node)| app(node, index, defaults, notes))
        .unzip();
    let graph = calls::resolve(items, &apps, written, notes);
    (apps, graph)
}

fn app<'n, 'i>(
    node: &'n Node<'i>,
    index: usize,
    defaults: &Defaults,
    notes: &mut Notes,
) -> (App, Vec<Call<'n, 'i>>) {
    let fields = Fields::of(node, format!("apps[{index}]"), &APP, notes);
    let name = required_name(&fields, notes, "an app");
    let role = fields.read("role", notes, one_line);
    let calls = calls::written(&fields, notes);
    let inferred = match role.as_deref() {
        _ if calls.is_empty() => PropagationRole::Terminal,
        Some("frontend") => PropagationRole::Originator,
        _ => PropagationRole::Forwarder,
    };
    let usual_target = || Target {
        kind: TargetKind::Deployment,
        name: name.clone(),
    };
    let app = App {
        repo: fields.read("repo", notes, one_line),
        propagation_role: fields
            .read("propagation-role", notes, propagation_role)
            .unwrap_or(inferred),
        namespace: fields
            .read("namespace", notes, names::label)
            .or_else(|| defaults.namespace.clone()),
        ports: ports::read(&fields, defaults, notes),
        target: fields
            .read("target", notes, target)
            .unwrap_or_else(usual_target),
        context_dir: fields
            .read("context-dir", notes, one_line)
            .unwrap_or_else(|| ".".to_owned()),
        dockerfile: fields
            .read("dockerfile", notes, one_line)
            .unwrap_or_else(|| "Dockerfile".to_owned()),
        build: values::map(&fields, "build", notes),
        tests: values::map(&fields, "tests", notes),
        downstream: calls.iter().map(|call| call.name.to_owned()).collect(),
        name,
        role,
    };
    (app, calls)
}

/// The name that this thing must have; empty when that is noted.
fn required_name(fields: &Fields<'_, '_>, notes: &mut Notes, thing: &str) -> String {
    if fields.is_missing("name") {
        notes.add(fields.node(), fields.at("name"), || {
            format!("missing; {thing} needs a name, for example name: shop-api")
        });
    }
    fields.read("name", notes, names::label).unwrap_or_default()
}

fn propagation_role(text: &str) -> Result<PropagationRole, String> {
    let roles = PropagationRole::ALL;
    let word = one_of(text, &roles.map(PropagationRole::word))?;
    Ok(roles[word])
}

/// `KIND/NAME`.
fn target(text: &str) -> Result<Target, String> {
    let kinds = TargetKind::ALL;
    let (kind, name) = text.split_once('/').ok_or_else(|| {
        format!(
            "{:?} is not a target; write KIND/NAME, for example statefulset/orders",
            shortened(text)
        )
    })?;
    Ok(Target {
        kind: kinds[one_of(kind, &kinds.map(TargetKind::word))?],
        name: names::subdomain(name)?,
    })
}

/// The place of a word among those that are known.
fn one_of(text: &str, known: &[&str]) -> Result<usize, String> {
    if let Some(place) = known.iter().position(|word| *word == text) {
        return Ok(place);
    }
    let text = shortened(text);
    Err(match nearest(&text, known) {
        Some(near) => format!("{text:?} is not known here; did you mean {near}?"),
        None => format!(
            "{text:?} is not known here; write one of {}",
            known.join(", ")
        ),
    })
}

/// A text for programs: it must survive being a line of a file or a variable.
fn one_line(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains(['\n', '\r', '\t']) {
        return Err(format!(
            "{:?} is not one line of text; write it without line breaks, or leave it out",
            shortened(text)
        ));
    }
    values::printable(text)
}
