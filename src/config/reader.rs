//! Reads values from a YAML tree and collects all problems. The type to read first is [`ConfigReader`].

use std::net::SocketAddr;

use indexmap::IndexMap;

use super::{
    error::{ConfigError, did_you_mean, shown},
    quantity::{Age, ByteSize, StatusRange, TimeSpan},
    value::{BuildpackRef, CommandLine, DataPath, HttpPath, VariableName},
    yaml::{Node, Value},
};

/// The maximum number of problems that are reported for one file.
pub(super) const MAX_PROBLEMS: usize = 20;
/// The maximum number of items of a list.
const MAX_ITEMS: usize = 256;

/// A reader of the values of one file. The reader collects all problems of the file.
pub(super) struct ConfigReader<'f> {
    file: &'f str,
    problems: Vec<ConfigError>,
}

/// The pairs of a mapping that have known keys.
#[derive(Default)]
pub(super) struct Section<'n> {
    pairs: Vec<(&'n str, &'n Node)>,
}

impl<'n> Section<'n> {
    /// Returns the value of a key. A key without a value counts as absent.
    pub fn get(&self, key: &str) -> Option<&'n Node> {
        self.pairs.iter().find(|(name, node)| *name == key && node.value != Value::Null).map(|(_, node)| *node)
    }
}

impl<'f> ConfigReader<'f> {
    pub fn new(file: &'f str) -> ConfigReader<'f> {
        ConfigReader { file, problems: Vec::new() }
    }

    /// Returns `value` if no problem was recorded, or else the first [`MAX_PROBLEMS`] problems in the order of the file.
    pub fn finish<T>(mut self, value: T) -> Result<T, Vec<ConfigError>> {
        if self.problems.is_empty() {
            return Ok(value);
        }
        self.problems.sort_by_key(|problem| (problem.line, problem.column));
        self.problems.truncate(MAX_PROBLEMS);
        Err(self.problems)
    }

    /// Records a problem at a node.
    pub fn problem(&mut self, node: &Node, problem: impl Into<String>) -> &mut ConfigError {
        self.problems.push(ConfigError::new(self.file, problem).at(node.at.line, node.at.column));
        let last = self.problems.len() - 1;
        #[allow(clippy::indexing_slicing)] // `problems` is not empty after the push.
        &mut self.problems[last]
    }

    /// Records that a value does not have the form that its key expects.
    pub fn mismatch(&mut self, node: &Node, key: &str, expected: &str) {
        let problem = format!("{key} is {}", node.described());
        self.problem(node, problem).expected = Some(expected.to_owned());
    }

    /// Returns the pairs of a mapping in their order in the file. Each pair has the key's text, the key and the value.
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

    /// Returns the pairs of a mapping whose keys are in `known`. Reports each unknown key.
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

    /// Returns the items of a list. Reports a value that is not a list.
    pub fn list<'n>(&mut self, node: &'n Node, key: &str, example: &str) -> &'n [Node] {
        match &node.value {
            Value::List(items) => items,
            _ => {
                self.mismatch(node, key, &format!("a list, such as {example}"));
                &[]
            }
        }
    }

    /// Reads a scalar with `parse`. An error of `parse` is reported as the problem.
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

    /// Reads one of the words of `choices`.
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

    /// Reads `true` or `false`.
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

    /// Reads a whole number between `from` and `to`, both inclusive.
    pub fn number(&mut self, node: &Node, key: &str, from: u64, to: u64) -> Option<u64> {
        let number = node.text().and_then(|text| {
            // `parse` would also accept "+5".
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

    /// Reads a list. Reports a list of more than [`MAX_ITEMS`] items.
    pub fn bounded<'n>(&mut self, node: &'n Node, key: &str, example: &str) -> &'n [Node] {
        self.list_up_to(node, key, example, MAX_ITEMS)
    }

    /// Reads a list. Reports a list of more than `max` items.
    pub fn list_up_to<'n>(&mut self, node: &'n Node, key: &str, example: &str, max: usize) -> &'n [Node] {
        let list = self.list(node, key, example);
        if list.len() > max {
            self.problem(node, format!("{key} has {} items", list.len())).expected = Some(format!("at most {max}"));
        }
        list
    }

    /// Reads each item of a list with `read`. The result has no items for which `read` returns `None`.
    pub fn items<T>(&mut self, node: &Node, key: &str, example: &str, read: impl Fn(&mut Self, &Node) -> Option<T>) -> Vec<T> {
        self.bounded(node, key, example).iter().filter_map(|node| read(self, node)).collect()
    }

    /// Reads a list of patterns as in `.gitignore`.
    pub fn patterns(&mut self, node: &Node, key: &str) -> Vec<String> {
        /// The maximum length of a pattern, in bytes.
        const MAX_PATTERN: usize = 250;
        let expected = "a pattern as in .gitignore, such as \"*.tmp\" or \"/uploads/\"";
        self.items(node, key, "[\"*.tmp\", \"/uploads/\"]", |reader, node| {
            reader.value(node, key, expected, |text| {
                let fits = !text.trim().is_empty() && text.len() <= MAX_PATTERN && !text.chars().any(char::is_control);
                let problem = || format!("the pattern is empty, longer than {MAX_PATTERN} bytes, or has control characters");
                if fits { Ok(text.to_owned()) } else { Err(problem()) }
            })
        })
    }

    /// Reads a buildpack.
    pub fn buildpack(&mut self, node: &Node) -> Option<BuildpackRef> {
        self.value(node, "buildpack", BuildpackRef::EXPECTED, str::parse)
    }

    /// Reads a list of paths that persist between releases. No path may be inside another path.
    pub fn data_paths(&mut self, node: &Node, key: &str) -> Vec<DataPath> {
        let mut paths: Vec<DataPath> = Vec::new();
        for node in self.bounded(node, key, "[media, var/uploads]") {
            let expected = "a path inside the application, such as media";
            let Some(path) = self.value(node, key, expected, str::parse::<DataPath>) else { continue };
            match paths.iter().find(|other| other.overlaps(&path)) {
                Some(other) => {
                    let problem = format!("{key}: \"{path}\" and \"{other}\" overlap");
                    self.problem(node, problem).hint = Some("keep only the outer path".to_owned());
                }
                None => paths.push(path),
            }
        }
        paths
    }

    /// Reads a command, such as `python app.py`.
    pub fn command(&mut self, node: &Node, key: &str) -> Option<CommandLine> {
        self.value(node, key, "a command such as \"python app.py\"", str::parse)
    }

    /// Reads a time, such as `30s`.
    pub fn time(&mut self, node: &Node, key: &str) -> Option<TimeSpan> {
        self.value(node, key, TimeSpan::EXPECTED, str::parse)
    }

    /// Reads a time. Reports a time longer than `max`.
    pub fn time_within(&mut self, node: &Node, key: &str, max: TimeSpan) -> Option<TimeSpan> {
        let time = self.time(node, key)?;
        if time > max {
            self.mismatch(node, key, &format!("at most {max}"));
            return None;
        }
        Some(time)
    }

    /// Reads an age, such as `90d`.
    pub fn age(&mut self, node: &Node, key: &str) -> Option<Age> {
        self.value(node, key, Age::EXPECTED, str::parse)
    }

    /// Reads a size, such as `2G`.
    pub fn size(&mut self, node: &Node, key: &str) -> Option<ByteSize> {
        self.value(node, key, ByteSize::EXPECTED, str::parse)
    }

    /// Reads the path of a request, such as `/healthz`.
    pub fn path(&mut self, node: &Node, key: &str) -> Option<HttpPath> {
        self.value(node, key, "a path such as /healthz", str::parse)
    }

    /// Reads a status or a range of statuses, such as `200-399`.
    pub fn status(&mut self, node: &Node, key: &str) -> Option<StatusRange> {
        self.value(node, key, "a status such as 200, or a range such as 200-399", str::parse)
    }

    /// Reads a size. Reports a size below 1 KiB.
    pub fn bytes(&mut self, node: &Node, key: &str) -> Option<ByteSize> {
        let size = self.size(node, key)?;
        if size.bytes() < 1024 {
            self.mismatch(node, key, "at least 1K");
        }
        Some(size)
    }

    /// Reads an IP address with a port.
    pub fn address(&mut self, node: &Node, key: &str) -> Option<SocketAddr> {
        self.value(node, key, "an address and a port such as \"0.0.0.0:2222\" or \"[::]:2222\"", |text| {
            text.parse().map_err(|_| format!("{} is not an address with a port", shown(text)))
        })
    }

    /// Reads environment variables. Every value is text; numbers and booleans keep their spelling in the file.
    pub fn env(&mut self, node: &Node, key: &str) -> IndexMap<VariableName, String> {
        /// The maximum length of a value, in bytes.
        const MAX_BYTES: usize = 32 * 1024;
        let mut variables = IndexMap::new();
        for (name, at, value) in self.pairs(node, key, "a mapping, such as {LOG_LEVEL: debug}") {
            let name = match name.parse::<VariableName>() {
                Ok(name) => name,
                Err(why) => {
                    self.problem(at, format!("{key}: {why}")).hint = Some("choose another name".to_owned());
                    continue;
                }
            };
            let key = format!("{key}.{name}");
            if value.value == Value::Null {
                self.problem(at, format!("{key} has no value")).hint = Some("write \"\" for an empty value".to_owned());
                continue;
            }
            let checked = self.value(value, &key, "text, such as debug or \"on\"", |text| {
                if text.contains('\0') {
                    return Err("the value has a NUL character".to_owned());
                }
                if text.len() > MAX_BYTES {
                    return Err(format!("the value has {} bytes; at most {MAX_BYTES} are allowed", text.len()));
                }
                Ok(text.to_owned())
            });
            variables.extend(checked.map(|value| (name, value)));
        }
        variables
    }
}
