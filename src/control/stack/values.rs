//! The free-form parts of a stack, kept as they were written.

use serde_json::{Map, Number, Value};

use super::notes::{Fields, Notes, in_path};
use crate::yaml::{Content, Node, shortened};

/// The map under a key; an empty one when it is not there.
pub(super) fn map(of: &Fields<'_, '_>, key: &str, notes: &mut Notes) -> Value {
    match of.find(key) {
        Some(node) if matches!(node.content, Content::Map(_)) => value(node, &of.at(key), notes),
        Some(node) => {
            notes.expected(node, of.at(key), "a map");
            Value::Object(Map::new())
        }
        None => Value::Object(Map::new()),
    }
}

fn value(node: &Node<'_>, path: &str, notes: &mut Notes) -> Value {
    match &node.content {
        Content::Nothing => Value::Null,
        Content::Text(text) if node.is_plain => plain(text),
        Content::Text(text) => match printable(text) {
            Ok(text) => Value::String(text),
            Err(message) => {
                notes.add(node, path, || message);
                Value::Null
            }
        },
        Content::List(items) => Value::Array(
            items
                .iter()
                .enumerate()
                .map(|(index, item)| value(item, &format!("{path}[{index}]"), notes))
                .collect(),
        ),
        Content::Map(entries) => Value::Object(object(entries, path, notes)),
    }
}

fn object(entries: &[(Node<'_>, Node<'_>)], path: &str, notes: &mut Notes) -> Map<String, Value> {
    let mut object = Map::new();
    for (key, node) in entries {
        let Content::Text(name) = &key.content else {
            notes.expected(key, path, "a key");
            continue;
        };
        if let Err(message) = printable(name) {
            notes.add(key, path, || message);
        }
        let path = format!("{path}.{}", in_path(name));
        let value = value(node, &path, notes);
        if object.insert(name.to_string(), value).is_some() {
            notes.add(key, path, || "written twice".to_owned());
        }
    }
    object
}

/// A text that people and other readers of YAML can read too, on however many lines.
pub(super) fn printable(text: &str) -> Result<String, String> {
    let is_printable = |character: char| match character {
        '\n' | '\r' | '\t' => true,
        // A mark of byte order, and two that are no characters.
        '\u{feff}' | '\u{fffe}' | '\u{ffff}' => false,
        _ => !character.is_control(),
    };
    if text.chars().all(is_printable) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{:?} has characters that cannot be printed; leave them out",
        shortened(text)
    ))
}

/// What JSON would call a text without quotes. A number that would not come back as it was written
/// stays a text: `3.10` is a release of Python, not 3.1.
fn plain(text: &str) -> Value {
    match text {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        _ => match serde_json::from_str::<Number>(text) {
            Ok(number) if number.to_string() == text => Value::Number(number),
            _ => Value::String(text.to_owned()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_text_is_a_number_only_where_that_loses_nothing() {
        for text in ["22", "-1", "0.5", "18446744073709551615"] {
            assert!(plain(text).is_number(), "{text}");
        }
        for text in [
            "3.10", "1e3", "0x10", "007", "1_000", "+1", "-0", ".5", "1e999", "y", "on", "True",
        ] {
            assert_eq!(plain(text), Value::String(text.to_owned()));
        }
        assert_eq!(plain("true"), Value::Bool(true));
    }
}
