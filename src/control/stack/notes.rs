//! What is wrong with a stack file, while it is read.

use std::fmt;
use std::sync::Arc;

use crate::config::{Place, Problem, nearest};
use crate::yaml::{Content, Node, shortened};

/// More problems than anyone reads at once.
const MOST: usize = 100;

/// The problems met so far.
pub(super) struct Notes {
    file: Arc<str>,
    problems: Vec<Problem>,
    /// Those beyond the first [`MOST`].
    untold: usize,
}

impl Notes {
    pub(super) fn of(file: &Arc<str>) -> Self {
        Self {
            file: Arc::clone(file),
            problems: Vec::new(),
            untold: 0,
        }
    }

    /// Notes a problem at a node. The message is made only when it will be told.
    pub(super) fn add(
        &mut self,
        node: &Node<'_>,
        path: impl fmt::Display,
        message: impl FnOnce() -> String,
    ) {
        if self.problems.len() == MOST {
            self.untold += 1;
            return;
        }
        self.problems.push(Problem {
            file: Some(Arc::clone(&self.file)),
            place: Place::of(node),
            path: path.to_string(),
            message: message(),
        });
    }

    /// That something else was expected at a node.
    pub(super) fn expected(&mut self, node: &Node<'_>, path: impl fmt::Display, what: &str) {
        self.add(node, path, || {
            format!("expected {what}, found {}", node.found())
        });
    }

    /// `Err` with all of them, in the order of the file, if there are any.
    pub(super) fn into_result(mut self) -> Result<(), Vec<Problem>> {
        if self.problems.is_empty() {
            return Ok(());
        }
        // Stable: two problems of one place stay in the order they were met.
        self.problems.sort_by_key(|problem| match problem.place {
            Place::At { line, column } => (line, column),
            _ => (u32::MAX, u32::MAX),
        });
        if self.untold > 0 {
            self.problems.push(Problem {
                file: Some(self.file),
                place: Place::BuiltIn,
                path: String::new(),
                message: format!("and {} more problems", self.untold),
            });
        }
        Err(self.problems)
    }
}

/// The values of a map whose keys are known.
pub(super) struct Fields<'n, 'i> {
    node: &'n Node<'i>,
    path: String,
    fields: Vec<Field<'n, 'i>>,
}

/// One of them.
struct Field<'n, 'i> {
    name: &'static str,
    /// Of the key.
    line: u32,
    value: &'n Node<'i>,
}

impl<'n, 'i> Fields<'n, 'i> {
    /// Of the node at this path. What is no map, and keys that are unknown or written twice, are noted.
    pub(super) fn of(
        node: &'n Node<'i>,
        path: String,
        known: &[&'static str],
        notes: &mut Notes,
    ) -> Self {
        let mut fields = Self {
            node,
            path,
            fields: Vec::new(),
        };
        match &node.content {
            Content::Map(entries) => {
                for (key, value) in entries {
                    fields.take(key, value, known, notes);
                }
            }
            Content::Nothing => {}
            Content::Text(_) | Content::List(_) => notes.expected(node, &fields.path, "a map"),
        }
        fields
    }

    fn take(
        &mut self,
        key: &'n Node<'i>,
        value: &'n Node<'i>,
        known: &[&'static str],
        notes: &mut Notes,
    ) {
        let Content::Text(name) = &key.content else {
            return notes.expected(key, &self.path, "a key");
        };
        let Some(known_name) = known.iter().find(|word| **word == &**name) else {
            let path = self.at(&in_path(name));
            return notes.add(key, path, || unknown_key(name, known));
        };
        let same = |field: &&Field<'_, '_>| field.name == *known_name;
        if let Some(first) = self.fields.iter().find(same) {
            return notes.add(key, self.at(name), || {
                format!("written twice; the first one is on line {}", first.line)
            });
        }
        self.fields.push(Field {
            name: known_name,
            line: key.line,
            value,
        });
    }

    /// Without any entries, at the node where they are missed.
    pub(super) fn none(node: &'n Node<'i>) -> Self {
        Self {
            node,
            path: String::new(),
            fields: Vec::new(),
        }
    }

    /// The map itself.
    pub(super) fn node(&self) -> &'n Node<'i> {
        self.node
    }

    /// The way to a key of this map.
    pub(super) fn at(&self, key: &str) -> String {
        match self.path.as_str() {
            "" => key.to_owned(),
            path => format!("{path}.{key}"),
        }
    }

    /// The value of a key; nothing written there counts as no key.
    pub(super) fn find(&self, key: &str) -> Option<&'n Node<'i>> {
        let field = self.fields.iter().find(|field| field.name == key)?;
        (!matches!(field.value.content, Content::Nothing)).then_some(field.value)
    }

    /// What the text of a key means; when it means nothing, that is noted.
    pub(super) fn read<T>(
        &self,
        key: &str,
        notes: &mut Notes,
        meaning: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let node = self.find(key)?;
        let Content::Text(text) = &node.content else {
            notes.expected(node, self.at(key), "text");
            return None;
        };
        let meant = meaning(text);
        meant
            .map_err(|message| notes.add(node, self.at(key), || message))
            .ok()
    }

    /// Whether this is a map in which a key is not written: what else is wrong has been noted.
    pub(super) fn is_missing(&self, key: &str) -> bool {
        let could_be_there = matches!(self.node.content, Content::Map(_) | Content::Nothing);
        could_be_there && self.find(key).is_none()
    }

    /// The items of a list; none when it is not there.
    pub(super) fn list(&self, key: &str, notes: &mut Notes) -> &'n [Node<'i>] {
        match self.find(key).map(|node| (node, &node.content)) {
            Some((_, Content::List(items))) => items,
            Some((node, _)) => {
                notes.expected(node, self.at(key), "a list");
                &[]
            }
            None => &[],
        }
    }
}

/// A key that anyone may have written, as a step of a path.
pub(super) fn in_path(name: &str) -> String {
    shortened(name).escape_debug().to_string()
}

fn unknown_key(name: &str, known: &[&str]) -> String {
    match nearest(name, known) {
        Some(near) => format!("unknown key {name:?}; did you mean {near:?}?"),
        None => format!(
            "unknown key {:?}; known here: {}",
            shortened(name),
            known.join(", ")
        ),
    }
}
