//! YAML to [`File`](super::File), without stopping at the first mistake.
//!
//! Over the tree of `yaml` stands a serde
//! deserializer which never fails: what does not fit is noted as a [`Problem`], and the visitor gets an
//! empty value instead. Only text that is no YAML at all ends the reading.
//!
//! The three names below are an understanding between this deserializer and the `Deserialize`
//! implementations of `config`; no other deserializer knows them.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

use serde::de::value::{Error, U32Deserializer};
use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use super::{File, Place, Problem};
use crate::yaml::{self, Content, Node, shortened};

/// Newtype name that asks for a sequence of value, line and column.
pub(super) const PLACED: &str = "a value with its place";
/// Newtype name that asks for a sequence, also where one text stands.
pub(super) const ONE_OR_LIST: &str = "one or a list";
/// Newtype name that asks for a sequence where a text or a list stands, a newtype where a map stands.
pub(super) const SHORT_OR_LONG: &str = "short or long";
/// The same, but a list is a mistake.
pub(super) const TEXT_OR_MAP: &str = "text or map";

/// Reads a whole file; errors as [`File::read`].
pub(super) fn read(name: &Arc<str>, bytes: &[u8]) -> Result<File, Problem> {
    let root = yaml::parse(bytes).map_err(|fault| Problem::of_fault(name, fault))?;
    let notes = Notes {
        file: name,
        problems: RefCell::new(Vec::new()),
    };
    let mut file = match File::deserialize(Reader {
        node: &root,
        path: &Path::Root,
        notes: &notes,
    }) {
        Ok(file) => file,
        // Nothing known leads here; if something does, it is told instead of lost.
        Err(error) => {
            notes.add(&root, &Path::Root, error.to_string());
            File::default()
        }
    };
    file.name = Some(Arc::clone(name));
    file.problems = notes.problems.into_inner();
    Ok(file)
}

/// The way from the root to a value; written out only when a problem needs it.
enum Path<'p> {
    Root,
    Key(&'p Path<'p>, &'p str),
    Index(&'p Path<'p>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Key(Self::Root, key) => write!(f, "{}", shortened(key)),
            Self::Key(parent, key) => write!(f, "{parent}.{}", shortened(key)),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// The problems met so far.
struct Notes<'r> {
    file: &'r Arc<str>,
    problems: RefCell<Vec<Problem>>,
}

impl Notes<'_> {
    fn add(&self, node: &Node<'_>, path: &Path<'_>, message: String) {
        self.problems.borrow_mut().push(Problem {
            file: Some(Arc::clone(self.file)),
            place: Place::of(node),
            path: path.to_string(),
            message,
        });
    }
}

/// A deserializer over one node. Never fails.
#[derive(Clone, Copy)]
struct Reader<'r, 'i> {
    node: &'r Node<'i>,
    path: &'r Path<'r>,
    notes: &'r Notes<'r>,
}

impl<'r, 'i> Reader<'r, 'i> {
    fn expected(&self, what: &str) {
        self.notes.add(
            self.node,
            self.path,
            format!("expected {what}, found {}", self.node.found()),
        );
    }

    fn items(self, nodes: &'r [Node<'i>]) -> Items<'r, 'i> {
        Items {
            of: self,
            nodes,
            next: 0,
        }
    }

    /// The node itself as the only item of a list.
    fn alone(self) -> Items<'r, 'i> {
        Items {
            of: self,
            nodes: std::slice::from_ref(self.node),
            next: ALONE,
        }
    }

    fn entries(
        self,
        entries: &'r [(Node<'i>, Node<'i>)],
        known: Option<&'static [&'static str]>,
    ) -> Entries<'r, 'i> {
        Entries {
            of: self,
            entries,
            next: 0,
            known,
        }
    }

    fn one_or_list<'de, V: Visitor<'de>>(
        self,
        visitor: V,
        shapes: &str,
    ) -> Result<V::Value, Error> {
        match &self.node.content {
            Content::Text(_) => visitor.visit_seq(self.alone()),
            Content::List(items) => visitor.visit_seq(self.items(items)),
            Content::Nothing | Content::Map(_) => {
                self.expected(shapes);
                visitor.visit_seq(self.items(&[]))
            }
        }
    }
}

impl<'de> Deserializer<'de> for Reader<'_, '_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.content {
            Content::Nothing => visitor.visit_unit(),
            Content::Text(text) => visitor.visit_str(text),
            Content::List(items) => visitor.visit_seq(self.items(items)),
            Content::Map(entries) => visitor.visit_map(self.entries(entries, None)),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.node.content {
            Content::Nothing => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.content {
            Content::Text(text) => visitor.visit_str(text),
            _ => {
                self.expected("text");
                visitor.visit_str("")
            }
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.content {
            Content::List(items) => visitor.visit_seq(self.items(items)),
            Content::Nothing => visitor.visit_seq(self.items(&[])),
            _ => {
                self.expected("a list");
                visitor.visit_seq(self.items(&[]))
            }
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.content {
            Content::Map(entries) => visitor.visit_map(self.entries(entries, None)),
            Content::Nothing => visitor.visit_map(self.entries(&[], None)),
            _ => {
                self.expected("a map");
                visitor.visit_map(self.entries(&[], None))
            }
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match &self.node.content {
            Content::Map(entries) => visitor.visit_map(self.entries(entries, Some(fields))),
            Content::Nothing => visitor.visit_map(self.entries(&[], None)),
            _ => {
                self.expected("a map");
                visitor.visit_map(self.entries(&[], None))
            }
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        match (name, &self.node.content) {
            (PLACED, _) => visitor.visit_seq(WithPlace { of: self, next: 0 }),
            (ONE_OR_LIST, Content::Nothing) => visitor.visit_seq(self.items(&[])),
            (ONE_OR_LIST, _) => self.one_or_list(visitor, "text or a list"),
            (SHORT_OR_LONG, Content::Map(_)) => visitor.visit_newtype_struct(self),
            (SHORT_OR_LONG, _) => self.one_or_list(
                visitor,
                "an endpoint or a list of them ([] for a session whose pod is not there yet)",
            ),
            (TEXT_OR_MAP, Content::Text(_)) => visitor.visit_seq(self.alone()),
            _ => visitor.visit_newtype_struct(self),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str bytes byte_buf unit unit_struct
        tuple tuple_struct enum identifier
    }
}

/// [`Items::next`] of a list that is no list: its item has no index.
const ALONE: usize = usize::MAX;

/// The items of a list.
struct Items<'r, 'i> {
    of: Reader<'r, 'i>,
    nodes: &'r [Node<'i>],
    next: usize,
}

impl<'de> SeqAccess<'de> for Items<'_, '_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        let Some((node, rest)) = self.nodes.split_first() else {
            return Ok(None);
        };
        self.nodes = rest;
        if self.next == ALONE {
            return seed.deserialize(self.of).map(Some);
        }
        let path = Path::Index(self.of.path, self.next);
        self.next += 1;
        seed.deserialize(Reader {
            node,
            path: &path,
            notes: self.of.notes,
        })
        .map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.nodes.len())
    }
}

/// The entries of a map; with `known`, of a map whose keys are given.
struct Entries<'r, 'i> {
    of: Reader<'r, 'i>,
    entries: &'r [(Node<'i>, Node<'i>)],
    next: usize,
    known: Option<&'static [&'static str]>,
}

impl Entries<'_, '_> {
    /// Whether the next entry may be read; if not, why is noted.
    fn is_fit(&self) -> bool {
        let (key, _) = &self.entries[self.next];
        let Content::Text(name) = &key.content else {
            self.of.notes.add(
                key,
                self.of.path,
                format!("expected a key, found {}", key.found()),
            );
            return false;
        };
        let Some(known) = self.known else {
            return true;
        };
        let path = Path::Key(self.of.path, name);
        if !known.contains(&&**name) {
            self.of.notes.add(key, &path, unknown_key(name, known));
            return false;
        }
        let same = |(earlier, _): &&(Node<'_>, Node<'_>)| matches!(&earlier.content, Content::Text(text) if text == name);
        if let Some((first, _)) = self.entries[..self.next].iter().find(same) {
            self.of.notes.add(
                key,
                &path,
                format!("written twice; the first one is on line {}", first.line),
            );
            return false;
        }
        true
    }
}

impl<'de> MapAccess<'de> for Entries<'_, '_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        while self.next < self.entries.len() && !self.is_fit() {
            self.next += 1;
        }
        let Some((key, _)) = self.entries.get(self.next) else {
            return Ok(None);
        };
        seed.deserialize(Reader {
            node: key,
            ..self.of
        })
        .map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let (key, value) = &self.entries[self.next];
        self.next += 1;
        let name = if let Content::Text(name) = &key.content {
            name
        } else {
            ""
        };
        let path = Path::Key(self.of.path, name);
        seed.deserialize(Reader {
            node: value,
            path: &path,
            notes: self.of.notes,
        })
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.entries.len() - self.next)
    }
}

/// A value, its line, its column.
struct WithPlace<'r, 'i> {
    of: Reader<'r, 'i>,
    next: u8,
}

impl<'de> SeqAccess<'de> for WithPlace<'_, '_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        self.next += 1;
        let number = |number: u32| -> U32Deserializer<Error> { number.into_deserializer() };
        match self.next {
            1 => seed.deserialize(self.of).map(Some),
            2 => seed.deserialize(number(self.of.node.line)).map(Some),
            3 => seed.deserialize(number(self.of.node.column)).map(Some),
            _ => Ok(None),
        }
    }
}

fn unknown_key(name: &str, known: &[&str]) -> String {
    match super::nearest(name, known) {
        Some(near) => format!("unknown key {:?}; did you mean {near:?}?", shortened(name)),
        None => format!(
            "unknown key {:?}; known here: {}",
            shortened(name),
            known.join(", ")
        ),
    }
}
