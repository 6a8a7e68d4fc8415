//! Reading known keys out of a tree, collecting every problem on the way.

use super::{
    error::{ConfigError, did_you_mean, shown},
    yaml::{Node, Value},
};

/// How many problems of one file are reported; the rest would be noise.
const MOST_PROBLEMS: usize = 20;

/// Collects the problems of one file.
pub(super) struct Reader<'f> {
    file: &'f str,
    problems: Vec<ConfigError>,
}

/// The pairs of a mapping whose keys have all been found known.
#[derive(Default)]
pub(super) struct Section<'n> {
    pairs: Vec<(&'n str, &'n Node)>,
}

impl<'n> Section<'n> {
    /// The value of a key; a key with nothing behind it counts as absent.
    pub fn get(&self, key: &str) -> Option<&'n Node> {
        self.pairs.iter().find(|(name, node)| *name == key && node.value != Value::Null).map(|(_, node)| *node)
    }
}

impl<'f> Reader<'f> {
    pub fn new(file: &'f str) -> Reader<'f> {
        Reader { file, problems: Vec::new() }
    }

    /// The value, if there was no problem; else all problems in the order of the file.
    pub fn finish<T>(mut self, value: T) -> Result<T, Vec<ConfigError>> {
        if self.problems.is_empty() {
            return Ok(value);
        }
        self.problems.sort_by_key(|problem| (problem.line, problem.column));
        self.problems.truncate(MOST_PROBLEMS);
        Err(self.problems)
    }

    /// Notes a problem at a node.
    pub fn problem(&mut self, node: &Node, problem: impl Into<String>) -> &mut ConfigError {
        self.problems.push(ConfigError::new(self.file, problem).at(node.at.line, node.at.column));
        let last = self.problems.len() - 1;
        #[allow(clippy::indexing_slicing)] // It has just been pushed.
        &mut self.problems[last]
    }

    /// Notes that a value is not what its key takes.
    pub fn mismatch(&mut self, node: &Node, key: &str, expected: &str) {
        let problem = format!("{key} is {}", node.described());
        self.problem(node, problem).expected = Some(expected.to_owned());
    }

    /// The pairs of a mapping, in order.
    pub fn pairs<'n>(&mut self, node: &'n Node, key: &str, expected: &str) -> Vec<(&'n str, &'n Node, &'n Node)> {
        match &node.value {
            Value::Null => Vec::new(),
            Value::Map(pairs) => pairs.iter().filter_map(|(key, value)| Some((key.text()?, key, value))).collect(),
            _ => {
                self.mismatch(node, key, expected);
                Vec::new()
            }
        }
    }

    /// The pairs of a mapping with a fixed set of keys.
    pub fn section<'n>(&mut self, node: &'n Node, key: &str, known: &[&str], example: &str) -> Section<'n> {
        let mut section = Section::default();
        for (name, at, value) in self.pairs(node, key, &format!("a mapping, such as {example}")) {
            if known.contains(&name) {
                section.pairs.push((name, value));
            } else {
                let inside = if key == "the file" { String::new() } else { format!(" in {key}") };
                self.problem(at, format!("unknown key {}{inside}", shown(name))).hint = Some(did_you_mean(name, known));
            }
        }
        section
    }

    /// The items of a list.
    pub fn list<'n>(&mut self, node: &'n Node, key: &str, example: &str) -> &'n [Node] {
        match &node.value {
            Value::List(items) => items,
            _ => {
                self.mismatch(node, key, &format!("a list, such as {example}"));
                &[]
            }
        }
    }

    /// A scalar, checked by `parse`, whose error says why the text will not do.
    pub fn value<T>(
        &mut self,
        node: &Node,
        key: &str,
        expected: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let Some(text) = node.text() else {
            self.mismatch(node, key, expected);
            return None;
        };
        match parse(text) {
            Ok(value) => Some(value),
            Err(why) => {
                let problem = format!("{key}: {why}");
                self.problem(node, problem).expected = Some(expected.to_owned());
                None
            }
        }
    }

    /// One of a few words.
    pub fn choice<T: Copy>(&mut self, node: &Node, key: &str, choices: &[(&str, T)]) -> Option<T> {
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        let Some(text) = node.text() else {
            self.mismatch(node, key, &format!("one of {}", words.join(", ")));
            return None;
        };
        let found = choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if found.is_none() {
            self.problem(node, format!("{key} is {}", shown(text))).hint = Some(did_you_mean(text, &words));
        }
        found
    }

    /// `true` or `false`.
    pub fn boolean(&mut self, node: &Node, key: &str) -> Option<bool> {
        match node.text() {
            Some("true") => Some(true),
            Some("false") => Some(false),
            _ => {
                self.mismatch(node, key, "true or false");
                None
            }
        }
    }

    /// A whole number within bounds.
    pub fn number(&mut self, node: &Node, key: &str, from: u64, to: u64) -> Option<u64> {
        let number = node.text().and_then(|text| {
            // `parse` would also take "+5".
            text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten()
        });
        match number {
            Some(number) if (from..=to).contains(&number) => Some(number),
            _ => {
                self.mismatch(node, key, &format!("a whole number from {from} to {to}"));
                None
            }
        }
    }
}
