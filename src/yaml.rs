//! YAML as a small tree in which every value knows its place.
//!
//! Types are not guessed: a plain `10` and a quoted one are the same text, so that a message can quote what
//! was written. Tags are passed over, merge keys (`<<`) are keys like any other.

use std::borrow::Cow;
use std::collections::HashMap;

use granit_parser::{Event, Parser, ScalarStyle, ScanError, Span};

/// Nodes that aliases may add to a file: plenty for people, too few for a bomb.
const ALIASED_NODES: usize = 100_000;

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

    /// How many nodes a copy would make.
    fn count(&self) -> usize {
        1 + match &self.content {
            Content::Nothing | Content::Text(_) => 0,
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
    aliased: usize,
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
                self.place(Node::new(span, content), anchor);
                Ok(())
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
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(Open { node, anchor, .. }) = self.open.pop() {
                    self.place(node, anchor);
                }
                Ok(())
            }
            Event::Alias(anchor) => {
                // An anchor inside itself is not closed yet, so it is not known.
                let node = self
                    .anchors
                    .get(&anchor)
                    .ok_or("an alias cannot contain itself")?;
                self.aliased += node.count();
                if self.aliased > ALIASED_NODES {
                    return Err(format!(
                        "aliases repeat more than {ALIASED_NODES} values; write them out"
                    ));
                }
                let node = node.clone();
                self.place(node, 0);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Puts a finished node where it belongs.
    fn place(&mut self, node: Node<'i>, anchor: usize) {
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return;
        };
        match (&mut open.node.content, open.key.take()) {
            (Content::Map(entries), Some(key)) => entries.push((key, node)),
            (Content::List(items), _) => items.push(node),
            _ => open.key = Some(node),
        }
    }
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
