//! One file of a pillar, with the type and the line of each value.

use std::cell::Cell;

use serde::{Deserialize, Serialize};

use super::MAX_PILLAR_VALUE;
use crate::config::{
    error::{ConfigError, shown},
    yaml::{self, FileLimits, Node, Value},
};

/// The maximum number of values of a file. A configuration snapshot has the line and the kind of each value.
const MAX_VALUES: usize = 10_000;

/// The meaning of a text in a pillar file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PillarText {
    /// The text itself, which may contain references.
    Plain,
    /// A text that was decrypted. It contains no references.
    Decrypted(String),
}

/// A parsed file of a pillar.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PillarLevel {
    /// The name of the file.
    pub file: String,
    /// The values; a mapping.
    pub root: PillarNode,
}

/// A value with its position.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PillarNode {
    /// The line, counted from 1.
    pub line: u32,
    pub value: PillarValue,
}

/// A value of a pillar. A number is kept as text, so that its digits do not change.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PillarValue {
    Null,
    Bool(bool),
    Number(String),
    /// A text that may contain references.
    Text(String),
    /// A text without references.
    Literal(String),
    List(Vec<PillarNode>),
    Map(Vec<(String, PillarNode)>),
}

/// Shows the kind of the value only, because the value may be a secret.
impl std::fmt::Debug for PillarNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} on line {}", self.value.kind(), self.line)
    }
}

/// Shows the kind of the value only.
impl std::fmt::Debug for PillarValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.kind())
    }
}

impl PillarValue {
    /// Describes the kind of the value for an error, without the value.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            PillarValue::Null => "empty",
            PillarValue::Bool(_) => "true or false",
            PillarValue::Number(_) => "a number",
            PillarValue::Text(_) | PillarValue::Literal(_) => "a text",
            PillarValue::List(_) => "a list",
            PillarValue::Map(_) => "a mapping",
        }
    }
}

impl PillarNode {
    /// Returns the value of a key of a mapping.
    pub fn child(&self, key: &str) -> Option<&PillarNode> {
        let PillarValue::Map(pairs) = &self.value else { return None };
        pairs.iter().find(|(name, _)| name == key).map(|(_, node)| node)
    }

    /// Returns the value with the line 0 at each position, for a comparison of values.
    pub fn without_lines(&self) -> PillarNode {
        let value = match &self.value {
            PillarValue::List(items) => PillarValue::List(items.iter().map(PillarNode::without_lines).collect()),
            PillarValue::Map(pairs) => {
                PillarValue::Map(pairs.iter().map(|(key, node)| (key.clone(), node.without_lines())).collect())
            }
            scalar => scalar.clone(),
        };
        PillarNode { line: 0, value }
    }

    /// Calls `found` with the path and the text of each value that was decrypted.
    pub fn secrets(&self, path: &str, found: &mut impl FnMut(&str, &str)) {
        let inner = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        match &self.value {
            PillarValue::Literal(text) => found(path, text),
            PillarValue::List(items) => {
                items.iter().enumerate().for_each(|(at, item)| item.secrets(&inner(&at.to_string()), found));
            }
            PillarValue::Map(pairs) => pairs.iter().for_each(|(key, node)| node.secrets(&inner(key), found)),
            _ => {}
        }
    }

    /// Calls `found` with the path and the text of each scalar that is not a boolean.
    pub fn texts(&self, path: &str, found: &mut impl FnMut(&str, &str)) {
        let inner = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        match &self.value {
            PillarValue::Null | PillarValue::Bool(_) => {}
            PillarValue::Number(text) | PillarValue::Text(text) | PillarValue::Literal(text) => found(path, text),
            PillarValue::List(items) => {
                items.iter().enumerate().for_each(|(at, item)| item.texts(&inner(&at.to_string()), found));
            }
            PillarValue::Map(pairs) => pairs.iter().for_each(|(key, node)| node.texts(&inner(key), found)),
        }
    }
}

impl PillarLevel {
    /// Parses a file. Each text passes through `resolve`, which decrypts encrypted values; its error is the reason, without the value.
    ///
    /// # Errors
    /// The first problem of the file.
    pub fn parse(
        file: &str,
        bytes: &[u8],
        resolve: &dyn Fn(&str) -> Result<PillarText, String>,
    ) -> Result<PillarLevel, ConfigError> {
        let root = yaml::parse_tree(file, bytes, FileLimits::PILLAR)?;
        let reader = LevelReader { file, resolve, values: Cell::new(0) };
        let mut root = reader.node(&root, "")?;
        match root.value {
            PillarValue::Null => root.value = PillarValue::Map(Vec::new()),
            PillarValue::Map(_) => {}
            other => {
                return Err(ConfigError::new(file, format!("the file is {}", other.kind()))
                    .at_line(root.line)
                    .expected("a mapping, such as {database: {host: localhost}}"));
            }
        }
        Ok(PillarLevel { file: file.to_owned(), root })
    }
}

struct LevelReader<'r> {
    file: &'r str,
    resolve: &'r dyn Fn(&str) -> Result<PillarText, String>,
    /// The number of values so far.
    values: Cell<usize>,
}

impl LevelReader<'_> {
    fn node(&self, node: &Node, path: &str) -> Result<PillarNode, ConfigError> {
        let line = node.at.line;
        self.values.set(self.values.get().saturating_add(1));
        if self.values.get() > MAX_VALUES {
            return Err(ConfigError::new(self.file, format!("the file has more than {MAX_VALUES} values"))
                .at_line(line)
                .hint("remove values that no process needs"));
        }
        let problem = |why: String| ConfigError::new(self.file, why).at_line(line);
        let inner = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        let value = match &node.value {
            Value::Null => PillarValue::Null,
            Value::List(items) => {
                let items = items.iter().enumerate().map(|(at, item)| self.node(item, &inner(&at.to_string())));
                PillarValue::List(items.collect::<Result<_, _>>()?)
            }
            Value::Map(pairs) => {
                let pair = |(key, value): &(Node, Node)| {
                    let name = key.text().unwrap_or_default();
                    if name.is_empty() || name.len() > 128 || name.chars().any(|c| c.is_control()) {
                        return Err(ConfigError::new(self.file, format!("the key {} cannot be used", shown(name)))
                            .at_line(key.at.line)
                            .expected("at most 128 bytes without control characters"));
                    }
                    Ok((name.to_owned(), self.node(value, &inner(name))?))
                };
                PillarValue::Map(pairs.iter().map(pair).collect::<Result<_, _>>()?)
            }
            Value::Text(text) => {
                let value = match (self.resolve)(text) {
                    Ok(PillarText::Plain) => typed(text, node.is_plain),
                    Ok(PillarText::Decrypted(text)) => PillarValue::Literal(text),
                    Err(why) => return Err(problem(format!("{path}: {why}"))),
                };
                if let PillarValue::Text(text) | PillarValue::Literal(text) = &value {
                    if text.contains('\0') {
                        return Err(
                            problem(format!("{path} has a NUL character")).hint("encode the value, for example in base64")
                        );
                    }
                    if text.len() > MAX_PILLAR_VALUE {
                        return Err(problem(format!("{path} has {} bytes (limit {MAX_PILLAR_VALUE})", text.len()))
                            .hint("store the value in a file below data/, and write its path"));
                    }
                }
                value
            }
        };
        Ok(PillarNode { line, value })
    }
}

/// Returns the value of a scalar. A text without quotes is a number only if the number, written again, is the same text: `1.10` and `007`
/// stay texts.
fn typed(text: &str, is_plain: bool) -> PillarValue {
    let is_number = || serde_json::from_str::<serde_json::Number>(text).is_ok_and(|number| number.to_string() == text);
    match text {
        "true" if is_plain => PillarValue::Bool(true),
        "false" if is_plain => PillarValue::Bool(false),
        _ if is_plain && is_number() => PillarValue::Number(text.to_owned()),
        _ => PillarValue::Text(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<PillarLevel, ConfigError> {
        PillarLevel::parse("init.yml", text.as_bytes(), &|_| Ok(PillarText::Plain))
    }

    #[test]
    fn scalar_without_quotes_has_a_type_if_its_spelling_survives() {
        for (text, expected) in [
            ("5", PillarValue::Number("5".into())),
            ("-1", PillarValue::Number("-1".into())),
            ("0.5", PillarValue::Number("0.5".into())),
            ("true", PillarValue::Bool(true)),
            ("~", PillarValue::Null),
            ("\"5\"", PillarValue::Text("5".into())),
            ("'true'", PillarValue::Text("true".into())),
            ("1.10", PillarValue::Text("1.10".into())),
            ("007", PillarValue::Text("007".into())),
            ("yes", PillarValue::Text("yes".into())),
            (".inf", PillarValue::Text(".inf".into())),
            ("1e3", PillarValue::Text("1e3".into())),
            ("99999999999999999999", PillarValue::Text("99999999999999999999".into())),
        ] {
            let level = parse(&format!("a: {text}\n")).unwrap();
            assert_eq!(level.root.child("a").map(|node| node.value.clone()), Some(expected), "{text}");
        }
    }

    #[test]
    fn malformed_file_is_refused_with_line_and_without_value() {
        let long = format!("a: 1\nbig: {}hunter2\n", "x".repeat(MAX_PILLAR_VALUE));
        let deep = format!("a: {}hunter2{}", "[".repeat(17), "]".repeat(17));
        let many = format!("a:\n{}", "- 1\n".repeat(MAX_VALUES));
        let large = "#".repeat(super::super::MAX_PILLAR + 1);
        for (text, line, why) in [
            ("a: 1\nb: \"hunter2\\0\"\n", Some(2), "b has a NUL character"),
            (long.as_str(), Some(2), "big has 65543 bytes (limit 65536)"),
            ("a: {b: 1, b: hunter2}\n", Some(1), "the key \"b\" is repeated"),
            ("a: &x hunter2\nb: *x\n", Some(1), "an anchor"),
            ("- hunter2\n", Some(1), "the file is a list"),
            ("hunter2\n", Some(1), "the file is a text"),
            ("a: 1\n b: [hunter2\n", Some(2), "not YAML"),
            ("a: 1\n---\nb: hunter2\n", Some(2), "a second document"),
            (deep.as_str(), Some(1), "nested too deeply"),
            (many.as_str(), Some(10_000), "more than 10000 values"),
            (large.as_str(), None, "the file has 1048577 bytes"),
        ] {
            let error = parse(text).expect_err(why);
            assert_eq!(error.line, line, "{error}");
            assert!(error.to_string().contains(why) && !error.to_string().contains("hunter2"), "{error}");
        }
        let error = PillarLevel::parse("init.yml", b"a: 1\nb: \xff\n", &|_| Ok(PillarText::Plain)).unwrap_err();
        assert!(error.line == Some(2) && error.to_string().contains("not UTF-8"), "{error}");
        assert!(parse("").is_ok() && parse("# only a comment\n").is_ok());
    }

    #[test]
    fn debug_output_contains_no_value() {
        let shown = format!("{:?}", parse("a: {b: hunter2}\n").unwrap());
        assert!(shown.contains("a mapping") && !shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn decrypted_text_is_literal_and_a_failure_has_line_and_key() {
        let resolve = |text: &str| match text.strip_prefix("enc:") {
            Some("bad") => Err(String::from("no key of this server can decrypt the value")),
            Some(text) => Ok(PillarText::Decrypted(text.to_owned())),
            None => Ok(PillarText::Plain),
        };
        let level = PillarLevel::parse("init.yml", b"a: enc:${x}5\n", &resolve).unwrap();
        assert_eq!(level.root.child("a").unwrap().value, PillarValue::Literal("${x}5".into()));
        let error = PillarLevel::parse("init.yml", b"a:\n  b: enc:bad\n", &resolve).unwrap_err();
        assert_eq!(error.to_string(), "init.yml:2: a.b: no key of this server can decrypt the value");
    }
}
