//! YAML as a small tree in which every value knows its place.
//!
//! Types are not guessed: a plain `10` and a quoted one are the same text, so that a message can quote what
//! was written. Tags are passed over, merge keys (`<<`) are keys like any other.

use std::borrow::Cow;
use std::collections::HashMap;

use granit_parser::{Event, Parser, ScalarStyle, ScanError, Span};

/// Nodes that aliases may add to a file: plenty for people, too few for a bomb.
const COPIED_NODES: usize = 100_000;

/// Anchors keep a copy of what they name. Within each other they keep the same values again and again,
/// without any alias; so many times what is written is enough for people.
const KEPT_TIMES: usize = 4;

/// A text of this many bytes counts as one more node when it is copied.
const TEXT_OF_A_NODE: usize = 64;

/// Text to tree. An empty text is one node of nothing.
///
/// # Errors
/// Where the text stops being UTF-8 or YAML, or aliases go too far.
pub fn parse(bytes: &[u8]) -> Result<Node<'_>, Fault> {
    let text = std::str::from_utf8(bytes).map_err(|error| not_utf8(bytes, error.valid_up_to()))?;
    Tree::grow(text)
}

/// Where a text stops being a tree, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Counts from 1.
    pub line: u32,
    /// Counts from 1, in characters.
    pub column: u32,
    pub message: String,
}

/// One value of the file.
#[derive(Debug, Clone)]
pub struct Node<'i> {
    /// Counts from 1.
    pub line: u32,
    /// Counts from 1, in characters.
    pub column: u32,
    /// A text without quotes, which other readers may take for a number or a truth value.
    pub is_plain: bool,
    pub content: Content<'i>,
}

/// What a value is.
#[derive(Debug, Clone)]
pub enum Content<'i> {
    Nothing,
    Text(Cow<'i, str>),
    List(Vec<Node<'i>>),
    Map(Vec<(Node<'i>, Node<'i>)>),
}

impl<'i> Node<'i> {
    fn new(span: &Span, content: Content<'i>) -> Self {
        Self {
            line: fit(span.start.line()),
            // The parser counts columns from 0.
            column: fit(span.start.col() + 1),
            is_plain: false,
            content,
        }
    }

    /// What stands here, in the words of a message.
    pub fn found(&self) -> String {
        match &self.content {
            Content::Nothing => "nothing".to_owned(),
            Content::Text(text) => format!("{:?}", shortened(text)),
            Content::List(_) => "a list".to_owned(),
            Content::Map(_) => "a map".to_owned(),
        }
    }

    /// How many nodes a copy would make, and long texts count for more.
    fn count(&self) -> usize {
        1 + match &self.content {
            Content::Nothing => 0,
            Content::Text(text) => text.len() / TEXT_OF_A_NODE,
            Content::List(items) => items.iter().map(Node::count).sum(),
            Content::Map(entries) => entries
                .iter()
                .map(|(key, value)| key.count() + value.count())
                .sum(),
        }
    }
}

/// A text short enough for a message.
pub fn shortened(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(60) {
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
        None => Cow::Borrowed(text),
    }
}

/// The tree while it grows: collections not yet closed, and what anchors name.
#[derive(Default)]
struct Tree<'i> {
    root: Option<Node<'i>>,
    open: Vec<Open<'i>>,
    anchors: HashMap<usize, Node<'i>>,
    /// How many texts were written, how many nodes aliases have added, and how many anchors keep.
    written: usize,
    aliased: usize,
    kept: usize,
}

/// A collection whose end has not come yet.
struct Open<'i> {
    node: Node<'i>,
    /// A map's key that waits for its value.
    key: Option<Node<'i>>,
    anchor: usize,
}

impl<'i> Tree<'i> {
    fn grow(text: &'i str) -> Result<Node<'i>, Fault> {
        let refuse = |line, column: usize, message: String| Fault {
            line: fit(line),
            column: fit(column + 1),
            message,
        };
        let mut tree = Self::default();
        for event in Parser::new_from_str(text.trim_start_matches('\u{feff}')) {
            let (event, span) = event.map_err(|error: ScanError| {
                refuse(
                    error.marker().line(),
                    error.marker().col(),
                    format!("not YAML: {}", error.info()),
                )
            })?;
            tree.take(event, &span)
                .map_err(|message| refuse(span.start.line(), span.start.col(), message))?;
        }
        Ok(tree.root.unwrap_or(Node {
            line: 1,
            column: 1,
            is_plain: false,
            content: Content::Nothing,
        }))
    }

    fn take(&mut self, event: Event<'i>, span: &Span) -> Result<(), String> {
        match event {
            Event::DocumentStart(..) if self.root.is_some() => {
                Err("a second document begins here; keep one document in a file".to_owned())
            }
            Event::Scalar(text, style, anchor, _) => {
                let nothing = style == ScalarStyle::Plain && matches!(&*text, "" | "~" | "null");
                let content = if nothing {
                    Content::Nothing
                } else {
                    Content::Text(text)
                };
                let node = Node {
                    is_plain: style == ScalarStyle::Plain,
                    ..Node::new(span, content)
                };
                self.written += node.count();
                self.place(node, anchor)
            }
            Event::SequenceStart(_, anchor, _) => {
                self.open.push(Open {
                    node: Node::new(span, Content::List(Vec::new())),
                    key: None,
                    anchor,
                });
                Ok(())
            }
            Event::MappingStart(_, anchor, _) => {
                self.open.push(Open {
                    node: Node::new(span, Content::Map(Vec::new())),
                    key: None,
                    anchor,
                });
                Ok(())
            }
            Event::SequenceEnd | Event::MappingEnd => self
                .open
                .pop()
                .map_or(Ok(()), |Open { node, anchor, .. }| self.place(node, anchor)),
            Event::Alias(anchor) => {
                // An anchor inside itself is not closed yet, so it is not known.
                let node = self
                    .anchors
                    .get(&anchor)
                    .ok_or("an alias cannot contain itself")?;
                self.aliased += node.count();
                if self.aliased > COPIED_NODES {
                    return Err(too_many_copies());
                }
                let node = node.clone();
                self.place(node, 0)
            }
            _ => Ok(()),
        }
    }

    /// Puts a finished node where it belongs.
    fn place(&mut self, node: Node<'i>, anchor: usize) -> Result<(), String> {
        if anchor != 0 {
            self.kept += node.count();
            if self.kept > COPIED_NODES + KEPT_TIMES * self.written {
                return Err(too_many_copies());
            }
            self.anchors.insert(anchor, node.clone());
        }
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match (&mut open.node.content, open.key.take()) {
            (Content::Map(entries), Some(key)) => entries.push((key, node)),
            (Content::List(items), _) => items.push(node),
            _ => open.key = Some(node),
        }
        Ok(())
    }
}

fn too_many_copies() -> String {
    format!("aliases repeat more than {COPIED_NODES} values; write them out")
}

fn fit(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn not_utf8(bytes: &[u8], at: usize) -> Fault {
    let before = &bytes[..at];
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let line_start = before
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |newline| newline + 1);
    let column = String::from_utf8_lossy(&before[line_start..])
        .chars()
        .count()
        + 1;
    Fault {
        line: fit(line),
        column: fit(column),
        message: format!(
            "byte 0x{:02x} is not UTF-8; save the file as UTF-8",
            bytes[at]
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_knows_whether_it_stood_in_quotes() {
        let tree = parse(b"[22, \"22\", '22']").expect("YAML");
        let Content::List(items) = tree.content else {
            panic!("a list")
        };
        let plain: Vec<bool> = items.iter().map(|item| item.is_plain).collect();
        assert_eq!(plain, [true, false, false]);
    }

    #[test]
    fn copies_are_bounded_whatever_is_copied() {
        let laughs = "- &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned()
            + &(b'b'..=b'i')
                .map(|name| {
                    let nine = format!("*{}, ", char::from(name - 1)).repeat(9);
                    format!("- &{} [{nine}]\n", char::from(name))
                })
                .collect::<String>();
        let long_text = format!(
            "- &a \"{}\\n\"\n{}",
            "x".repeat(60_000),
            "- *a\n".repeat(10_000)
        );
        let anchors_alone = format!(
            "{}[{}]{}",
            (0..200)
                .map(|name| format!("&a{name} ["))
                .collect::<String>(),
            "x, ".repeat(100_000),
            "]".repeat(200)
        );
        for text in [laughs, long_text, anchors_alone] {
            let fault = parse(text.as_bytes()).expect_err("a bomb");
            assert!(fault.message.contains("aliases repeat"), "{fault:?}");
        }
    }

    #[test]
    fn a_large_file_may_have_anchors() {
        let text = format!("all: &all\n{}", "- {a: b}\n".repeat(100_000));
        assert!(parse(text.as_bytes()).is_ok());
    }

    #[test]
    fn deep_nesting_is_a_fault_and_no_crash() {
        for text in [
            "[".repeat(500_000),
            "{a: ".repeat(200_000),
            "- ".repeat(500_000),
            (0..2_000)
                .map(|depth| format!("{}a:\n", " ".repeat(depth)))
                .collect(),
        ] {
            let fault = parse(text.as_bytes()).expect_err("too deep");
            assert!(fault.message.starts_with("not YAML"), "{fault:?}");
        }
    }

    #[test]
    fn json_as_programs_write_it_is_read() {
        let text =
            "{\n\t\"a\\/b\": \"\\ud83d\\ude00 \\u00e9\",\r\n\t\"c\":[1,2.5e3,true,null,{}]}\n";
        let tree = parse(text.as_bytes()).expect("JSON is YAML");
        let Content::Map(entries) = tree.content else {
            panic!("a map")
        };
        assert!(matches!(&entries[0].0.content, Content::Text(text) if text == "a/b"));
        assert!(matches!(&entries[0].1.content, Content::Text(text) if text == "\u{1f600} \u{e9}"));
        assert!(matches!(&entries[1].1.content, Content::List(items) if items.len() == 5));
    }
}
