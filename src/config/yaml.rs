//! A YAML parser that limits size and depth, and refuses aliases, tags and duplicate keys. Every value has its position in the file.
//!
//! The parser builds a tree of nodes. The recipe and the server file are read from such trees, so that all problems of a file are reported
//! together. Other files are read with [`parse`], which checks the tree and then deserializes the text with serde.

use serde::de::DeserializeOwned;
use serde_yaml::granit_parser::{ErrorKind, Event, Options, Parser, ScalarStyle, Span};

use super::error::{ConfigError, shown};

/// The limits of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileLimits {
    /// The maximum size, in bytes.
    pub bytes: usize,
    /// The maximum number of levels of nested collections.
    pub depth: usize,
}

impl FileLimits {
    /// The limits of a file in a project's repository.
    pub const RECIPE: FileLimits = FileLimits { bytes: 64 * 1024, depth: 32 };
    /// The limits of a file of the operator.
    pub const SERVER: FileLimits = FileLimits { bytes: 256 * 1024, depth: 32 };
    /// The limits of a file of a pillar. The depth is limited because snapshots contain the values as JSON.
    pub const PILLAR: FileLimits = FileLimits { bytes: 1024 * 1024, depth: 16 };
}

/// A position in a file. Lines and columns are counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct At {
    pub line: u32,
    pub column: u32,
}

/// A value with its position.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub at: At,
    pub value: Value,
    /// True for a scalar without quotes, whose text may mean a number or a boolean.
    pub is_plain: bool,
}

/// A YAML value. Scalars are kept as text, because the meaning of `1.10` depends on the key.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Null,
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
}

impl Default for Node {
    fn default() -> Node {
        Node { at: At { line: 1, column: 1 }, value: Value::Null, is_plain: false }
    }
}

impl Node {
    /// Returns the value of a key. Returns `None` if this node is not a mapping, or if the key has no value.
    pub fn child(&self, key: &str) -> Option<&Node> {
        self.children().find(|(name, node)| *name == key && node.value != Value::Null).map(|(_, node)| node)
    }

    /// Returns the pairs of a mapping, or no pairs for other values.
    pub fn children(&self) -> impl Iterator<Item = (&str, &Node)> {
        let pairs: &[_] = if let Value::Map(pairs) = &self.value { pairs } else { &[] };
        pairs.iter().filter_map(|(key, value)| Some((key.text()?, value)))
    }

    /// Returns the text of a scalar, or `None` for other values.
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Describes the value for an error.
    pub fn described(&self) -> String {
        match &self.value {
            Value::Null => "nothing".to_owned(),
            Value::Text(text) => shown(text),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a mapping".to_owned(),
        }
    }
}

/// Parses one YAML document into `T`. `file` is the file's name in errors.
pub fn parse<T: DeserializeOwned>(file: &str, bytes: &[u8], limits: FileLimits) -> Result<T, ConfigError> {
    let text = utf8(file, bytes, limits)?;
    tree(file, text, limits)?;
    let options = serde_yaml::options! {
        with_snippet: false,
        strict_booleans: true,
        merge_keys: serde_yaml::options::MergeKeyPolicy::Error
    };
    serde_yaml::from_str_with_options(text, options).map_err(|error| typed_error(file, &error))
}

/// Parses one YAML document into a tree.
pub(super) fn parse_tree(file: &str, bytes: &[u8], limits: FileLimits) -> Result<Node, ConfigError> {
    tree(file, utf8(file, bytes, limits)?, limits)
}

/// Checks the size and the encoding of a file. Returns the text without a byte order mark.
pub(super) fn utf8<'a>(file: &str, bytes: &'a [u8], limits: FileLimits) -> Result<&'a str, ConfigError> {
    if bytes.len() > limits.bytes {
        return Err(ConfigError::new(file, format!("the file has {} bytes", bytes.len()))
            .expected(format!("at most {} bytes", limits.bytes)));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        ConfigError::new(file, "the text is not UTF-8")
            .at_line(u32::try_from(line).unwrap_or(u32::MAX))
            .hint("save the file as UTF-8")
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// A collection whose end has not been read yet.
enum Open {
    List { at: At, items: Vec<Node> },
    Map { at: At, pairs: Vec<(Node, Node)>, key: Option<Node> },
}

fn tree(file: &str, text: &str, limits: FileLimits) -> Result<Node, ConfigError> {
    let mut options = Options::default();
    options.flow_nesting_limit = limits.depth.saturating_add(1);
    options.block_nesting_limit = limits.depth.saturating_add(1);
    options.disallow_directives = true;
    options.emit_unresolved_aliases = true;
    options.emit_comments = false;

    let mut open: Vec<Open> = Vec::new();
    let mut root: Option<Node> = None;
    let mut documents = 0;
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) = event.map_err(|error| {
            let marker = error.marker();
            let at = place(marker.line(), marker.col());
            match error.kind() {
                ErrorKind::RecursionLimitExceeded => too_deep(file, at, limits),
                kind => syntax(file, at, &kind.to_string()),
            }
        })?;
        let at = At { line: start(&span).line, column: start(&span).column };
        let done = match event {
            Event::DocumentStart(..) => {
                documents += 1;
                if documents > 1 {
                    return Err(problem(file, at, "a second document begins here")
                        .expected("one YAML document")
                        .hint("remove the line \"---\""));
                }
                continue;
            }
            Event::Alias(_) | Event::UnresolvedAlias(_) => {
                return Err(
                    problem(file, at, "an alias (*name) is used").hint("write the value instead: aliases are not supported")
                );
            }
            Event::Scalar(_, _, anchor, _) | Event::SequenceStart(_, anchor, _) | Event::MappingStart(_, anchor, _)
                if anchor != 0 =>
            {
                return Err(problem(file, at, "an anchor (&name) is used").hint("remove the anchor: aliases are not supported"));
            }
            Event::Scalar(_, _, _, Some(tag)) | Event::SequenceStart(_, _, Some(tag)) | Event::MappingStart(_, _, Some(tag)) => {
                return Err(problem(file, at, format!("the tag {} is used", shown(&tag.to_string())))
                    .hint("remove the tag: tags are not supported"));
            }
            Event::Scalar(text, style, ..) => {
                let null = style == ScalarStyle::Plain && matches!(text.as_ref(), "" | "~" | "null" | "Null" | "NULL");
                let is_plain = style == ScalarStyle::Plain;
                Node { at, value: if null { Value::Null } else { Value::Text(text.into_owned()) }, is_plain }
            }
            Event::SequenceStart(..) | Event::MappingStart(..) if open.len() >= limits.depth => {
                return Err(too_deep(file, at, limits));
            }
            Event::SequenceStart(..) => {
                open.push(Open::List { at, items: Vec::new() });
                continue;
            }
            Event::MappingStart(..) => {
                open.push(Open::Map { at, pairs: Vec::new(), key: None });
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(Open::List { at, items }) => Node { at, value: Value::List(items), is_plain: false },
                Some(Open::Map { at, pairs, .. }) => Node { at, value: Value::Map(no_duplicates(file, pairs)?), is_plain: false },
                None => continue,
            },
            _ => continue,
        };
        match open.last_mut() {
            None => root = Some(done),
            Some(Open::List { items, .. }) => items.push(done),
            Some(Open::Map { pairs, key, .. }) => match key.take() {
                Some(key) => pairs.push((key, done)),
                None if matches!(done.value, Value::Text(_)) => *key = Some(done),
                None => {
                    return Err(problem(file, done.at, format!("{} is used as a key", done.described())).expected("a word"));
                }
            },
        }
    }
    Ok(root.unwrap_or_default())
}

fn no_duplicates(file: &str, pairs: Vec<(Node, Node)>) -> Result<Vec<(Node, Node)>, ConfigError> {
    let mut seen = std::collections::HashMap::new();
    for (key, _) in &pairs {
        let text = key.text().unwrap_or_default();
        if let Some(first) = seen.insert(text, key.at.line) {
            return Err(problem(file, key.at, format!("the key {} is repeated", shown(text)))
                .hint(format!("remove this key or the same key on line {first}")));
        }
    }
    Ok(pairs)
}

fn problem(file: &str, at: At, problem: impl Into<String>) -> ConfigError {
    ConfigError::new(file, problem).at(at.line, at.column)
}

fn too_deep(file: &str, at: At, limits: FileLimits) -> ConfigError {
    problem(file, at, "the values are nested too deeply").expected(format!("at most {} levels", limits.depth))
}

fn syntax(file: &str, at: At, reason: &str) -> ConfigError {
    let line: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).take(160).collect();
    problem(file, at, format!("this is not YAML: {line}"))
        .hint("check the indentation (spaces, no tabs) and quote values with special characters")
}

fn start(span: &Span) -> At {
    place(span.start.line(), span.start.col())
}

/// Converts a position of the parser, which counts lines from 1 and columns from 0.
fn place(line: usize, column: usize) -> At {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    At { line: number(line.max(1)), column: number(column).saturating_add(1) }
}

fn typed_error(file: &str, error: &serde_yaml::Error) -> ConfigError {
    use serde_yaml::Error as E;
    let error = error.without_snippet();
    let converted = match error {
        E::SerdeUnknownField { field, expected, .. } => {
            ConfigError::new(file, format!("unknown key {}", shown(field))).hint(super::error::did_you_mean(field, expected))
        }
        E::SerdeUnknownVariant { variant, expected, .. } => ConfigError::new(file, format!("unknown value {}", shown(variant)))
            .hint(super::error::did_you_mean(variant, expected)),
        E::SerdeMissingField { field, .. } => ConfigError::new(file, format!("the key {field:?} is missing")),
        E::SerdeInvalidType { unexpected, expected, .. } | E::SerdeInvalidValue { unexpected, expected, .. } => {
            ConfigError::new(file, format!("the value is {unexpected}")).expected(expected.as_str())
        }
        E::Unexpected { expected, .. } => ConfigError::new(file, "the value has the wrong type").expected(*expected),
        other => {
            let line: String = other.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
            ConfigError::new(file, line)
        }
    };
    match error.location() {
        Some(location) if location.line() > 0 => {
            let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
            converted.at(number(location.line()), number(location.column()))
        }
        _ => converted,
    }
}
