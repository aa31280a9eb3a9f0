//! Who calls whom, from names to a graph without circles.

use std::collections::{HashMap, HashSet};

use super::App;
use super::graph::{self, Graph};
use super::notes::{Fields, Notes};
use crate::config::nearest;
use crate::yaml::{Content, Node, shortened};

/// So many circles, and so many names of one, are told.
const TOLD: usize = 10;

/// One call, as an app's `downstream` names it.
pub(super) struct Call<'n, 'i> {
    pub(super) name: &'n str,
    node: &'n Node<'i>,
    path: String,
}

/// The calls of one app, each once.
pub(super) fn written<'n, 'i>(fields: &Fields<'n, 'i>, notes: &mut Notes) -> Vec<Call<'n, 'i>> {
    let mut met = HashSet::new();
    let mut calls = Vec::new();
    for (index, node) in fields.list("downstream", notes).iter().enumerate() {
        let path = format!("{}[{index}]", fields.at("downstream"));
        match &node.content {
            Content::Text(name) if met.insert(&**name) => calls.push(Call { name, node, path }),
            Content::Text(name) => notes.add(node, path, || {
                format!("{:?} is written twice", shortened(name))
            }),
            _ => notes.expected(node, path, "the name of an app"),
        }
    }
    calls
}

/// The graph of all calls. Names that two apps have, callees that do not exist, and circles are noted.
pub(super) fn resolve(
    items: &[Node<'_>],
    apps: &[App],
    written: Vec<Vec<Call<'_, '_>>>,
    notes: &mut Notes,
) -> Graph {
    let places = places(items, apps, notes);
    let mut calls: Vec<Vec<(usize, Call<'_, '_>)>> = Vec::with_capacity(apps.len());
    for (index, written) in written.into_iter().enumerate() {
        let mut resolved = Vec::with_capacity(written.len());
        for call in written {
            match places.get(call.name) {
                Some(callee) if *callee == index => notes.add(call.node, &call.path, || {
                    format!("{:?} cannot call itself; leave it out", call.name)
                }),
                Some(callee) => resolved.push((*callee, call)),
                None => notes.add(call.node, &call.path, || unknown_app(call.name, apps)),
            }
        }
        calls.push(resolved);
    }
    let callees =
        |calls: &Vec<(usize, Call<'_, '_>)>| calls.iter().map(|(callee, _)| *callee).collect();
    let graph: Graph = calls.iter().map(callees).collect();
    for circle in graph::circles(&graph, TOLD) {
        let last = circle.apps[circle.apps.len() - 1];
        let (_, call) = &calls[last][circle.call];
        notes.add(call.node, &call.path, || {
            format!(
                "apps call each other in a circle: {}; leave out one of these calls",
                shown(&circle.apps, apps)
            )
        });
    }
    graph
}

/// Where each app stands. Of several with one name it is the first.
fn places<'a>(items: &[Node<'_>], apps: &'a [App], notes: &mut Notes) -> HashMap<&'a str, usize> {
    let mut places = HashMap::new();
    let named = apps
        .iter()
        .enumerate()
        .filter(|(_, app)| !app.name.is_empty());
    for (index, App { name, .. }) in named {
        if let Some(first) = places.get(name.as_str()).copied() {
            let first: &Node<'_> = &items[first];
            notes.add(&items[index], format!("apps[{index}].name"), || {
                format!("{name:?} is the name of the app on line {} too", first.line)
            });
        } else {
            places.insert(name.as_str(), index);
        }
    }
    places
}

/// As [`Stack::unknown_app`](super::Stack::unknown_app).
pub(super) fn unknown_app(name: &str, apps: &[App]) -> String {
    let mut met = HashSet::new();
    let names: Vec<&str> = apps
        .iter()
        .map(|app| app.name.as_str())
        .filter(|name| !name.is_empty() && met.insert(*name))
        .collect();
    let known = match nearest(name, &names) {
        Some(near) => format!("did you mean {near:?}?"),
        None if names.len() > TOLD => format!("known are {}, ...", names[..TOLD].join(", ")),
        None => format!("known are {}", names.join(", ")),
    };
    format!("{:?} is no app of this stack; {known}", shortened(name))
}

/// `a -> b -> a`; of a long circle only the beginning.
fn shown(circle: &[usize], apps: &[App]) -> String {
    let mut names: Vec<&str> = circle
        .iter()
        .take(TOLD)
        .map(|app| apps[*app].name.as_str())
        .collect();
    if circle.len() > TOLD {
        names.push("...");
    }
    names.push(&apps[circle[0]].name);
    names.join(" -> ")
}
