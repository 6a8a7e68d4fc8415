//! The merge of the levels of a pillar, and the references between its values.
//!
//! Mappings are merged key by key; scalars and lists replace the value of the level before. A key without a value removes the value. In the
//! sample, a key without a value is required.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{
    MAX_PILLAR, MAX_PILLAR_VALUE, SAMPLE_FILE,
    level::{PillarLevel, PillarNode, PillarValue},
};
use crate::config::{
    error::{ConfigError, did_you_mean, shown},
    value::VariableName,
};

/// The key whose values are variables of the processes.
const ENV: &str = "env";
/// The key of larder's own values in templates.
const RESERVED: &str = "larder";
/// The maximum number of references that lead from one value to another value.
const MAX_CHAIN: usize = 32;

/// The values of one environment.
#[derive(Clone, Default, PartialEq)]
pub struct PillarValues {
    /// The variables of the processes.
    pub env: BTreeMap<String, String>,
    /// All values, for templates.
    pub tree: Map<String, Value>,
}

/// Shows names only, because values may be secrets.
impl std::fmt::Debug for PillarValues {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PillarValues").field("env", &self.env.keys()).field("tree", &self.tree.keys()).finish()
    }
}

/// A value of the merged tree, with the file of its level.
#[derive(Clone)]
struct Merged<'l> {
    file: &'l str,
    line: u32,
    value: MergedValue<'l>,
}

#[derive(Clone)]
enum MergedValue<'l> {
    Scalar(&'l PillarValue),
    List(Vec<Merged<'l>>),
    Map(BTreeMap<&'l str, Merged<'l>>),
    /// A key of the sample to which no level gives a value.
    Required,
}

/// Returns the values of the levels, which are in rising order of precedence. `has_variable` returns true for variables that have a value
/// in the configuration, which takes precedence over the pillar.
///
/// # Errors
/// The first problem: a required key without a value, a reference to nothing or to itself, or a variable that cannot be set. No error
/// contains a value.
pub fn evaluate<'l>(
    levels: impl IntoIterator<Item = &'l PillarLevel>,
    has_variable: &dyn Fn(&str) -> bool,
) -> Result<PillarValues, ConfigError> {
    let mut root = Merged { file: "", line: 1, value: MergedValue::Map(BTreeMap::new()) };
    for level in levels {
        if let Some(merged) = merged(Some(root.clone()), &level.root, &level.file) {
            root = merged;
        }
    }
    let evaluation = Evaluation { root: &root, has_variable };
    if let Some(reserved) = evaluation.find(RESERVED) {
        return Err(ConfigError::new(
            reserved.file,
            format!("the key {RESERVED} is reserved for larder's own values in templates"),
        )
        .at_line(reserved.line)
        .hint("choose another name for the key"));
    }
    let mut size = 0;
    let tree = match evaluation.value(&root, "", &mut Vec::new(), &mut size)? {
        Some(Value::Object(tree)) => tree,
        _ => Map::new(),
    };
    let env = evaluation.variables(&tree)?;
    Ok(PillarValues { env, tree })
}

/// Merges a value over the value of the level before. Returns `None` if the value is removed.
fn merged<'l>(before: Option<Merged<'l>>, node: &'l PillarNode, file: &'l str) -> Option<Merged<'l>> {
    let value = match &node.value {
        PillarValue::Null if file == SAMPLE_FILE => MergedValue::Required,
        // A required key stays required without a value.
        PillarValue::Null => return before.filter(|before| matches!(before.value, MergedValue::Required)),
        PillarValue::List(items) => MergedValue::List(items.iter().filter_map(|item| merged(None, item, file)).collect()),
        PillarValue::Map(pairs) => {
            let mut all = match before.map(|before| before.value) {
                Some(MergedValue::Map(all)) => all,
                _ => BTreeMap::new(),
            };
            for (key, node) in pairs {
                let earlier = all.remove(key.as_str());
                if let Some(value) = merged(earlier, node, file) {
                    all.insert(key, value);
                }
            }
            MergedValue::Map(all)
        }
        scalar => MergedValue::Scalar(scalar),
    };
    Some(Merged { file, line: node.line, value })
}

struct Evaluation<'e, 'l> {
    root: &'e Merged<'l>,
    has_variable: &'e dyn Fn(&str) -> bool,
}

impl<'l> Evaluation<'_, 'l> {
    /// Returns a value without references. `chain` contains the paths of the values whose references lead here.
    fn value(
        &self,
        node: &Merged<'l>,
        path: &str,
        chain: &mut Vec<String>,
        size: &mut usize,
    ) -> Result<Option<Value>, ConfigError> {
        let inner = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        let value = match &node.value {
            MergedValue::Required => {
                let is_set = path.strip_prefix(ENV).and_then(|rest| rest.strip_prefix('.')).is_some_and(self.has_variable);
                if is_set && chain.is_empty() {
                    return Ok(None);
                }
                return Err(ConfigError::new(node.file, format!("{path} is required, and the pillar has no value for this key"))
                    .at_line(node.line)
                    .hint(format!("write a value for {path} into the pillar, and push the pillar")));
            }
            MergedValue::Scalar(PillarValue::Bool(value)) => Value::Bool(*value),
            MergedValue::Scalar(PillarValue::Number(text)) => {
                serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.clone()))
            }
            MergedValue::Scalar(PillarValue::Text(text)) => self.text(node, path, text, chain, size)?,
            MergedValue::Scalar(PillarValue::Literal(text)) => Value::String(text.clone()),
            MergedValue::Scalar(_) => return Ok(None),
            MergedValue::List(items) => {
                let mut all = Vec::with_capacity(items.len());
                for (at, item) in items.iter().enumerate() {
                    all.extend(self.value(item, &inner(&at.to_string()), chain, size)?);
                }
                Value::Array(all)
            }
            MergedValue::Map(pairs) => {
                let mut all = Map::new();
                for (key, node) in pairs {
                    if let Some(value) = self.value(node, &inner(key), chain, size)? {
                        all.insert((*key).to_owned(), value);
                    }
                }
                Value::Object(all)
            }
        };
        *size = size.saturating_add(match &value {
            Value::String(text) => text.len().max(8),
            _ => 8,
        });
        // Nested references can multiply the size of a value, so the size is checked while the values are made.
        if *size > MAX_PILLAR {
            return Err(ConfigError::new(node.file, format!("{path}: all values together have more than {MAX_PILLAR} bytes"))
                .at_line(node.line)
                .hint("remove references that repeat long values"));
        }
        Ok(Some(value))
    }

    /// Replaces the references of a text. A text that is one reference has the value of the other key, with its type.
    fn text(
        &self,
        node: &Merged<'l>,
        path: &str,
        text: &str,
        chain: &mut Vec<String>,
        size: &mut usize,
    ) -> Result<Value, ConfigError> {
        let problem = |why: String| ConfigError::new(node.file, format!("{path}: {why}")).at_line(node.line);
        let mut result = String::new();
        let mut rest = text;
        while let Some(at) = rest.find("${") {
            let (before, from) = rest.split_at(at);
            // `$${` is the text `${`.
            if let Some(before) = before.strip_suffix('$') {
                result.push_str(before);
                result.push_str("${");
                rest = from.get(2..).unwrap_or_default();
                continue;
            }
            let inside = from.get(2..).unwrap_or_default();
            let Some(end) = inside.find('}') else {
                return Err(problem(String::from("a reference ${ has no closing }")).hint("write $${ for the text ${"));
            };
            let (name, after) = inside.split_at(end);
            let after = after.get(1..).unwrap_or_default();
            let value = self.referenced(node, path, name, chain, size)?;
            if before.is_empty() && after.is_empty() && result.is_empty() && at == 0 && rest.len() == text.len() {
                return Ok(value);
            }
            result.push_str(before);
            match scalar_text(&value) {
                Some(text) => result.push_str(&text),
                None => {
                    return Err(problem(format!(
                        "the reference ${{{}}} is a list or a mapping inside of a text",
                        shown_key(name)
                    ))
                    .hint("refer to one of its values"));
                }
            }
            if result.len() > MAX_PILLAR_VALUE {
                return Err(problem(format!("the value has more than {MAX_PILLAR_VALUE} bytes"))
                    .hint("remove references that repeat long values"));
            }
            rest = after;
        }
        result.push_str(rest);
        Ok(Value::String(result))
    }

    fn referenced(
        &self,
        node: &Merged<'l>,
        path: &str,
        name: &str,
        chain: &mut Vec<String>,
        size: &mut usize,
    ) -> Result<Value, ConfigError> {
        let problem = |why: String| ConfigError::new(node.file, format!("{path}: {why}")).at_line(node.line);
        let key = shown_key(name);
        let undefined = || {
            let known = self.paths();
            let known: Vec<&str> = known.iter().map(String::as_str).collect();
            let hint = did_you_mean(name, &known);
            // The list of all keys would be too long for an error.
            let hint = if hint.starts_with("did you mean") {
                hint
            } else {
                format!("add {key} to the pillar, or write $${{ for the text ${{")
            };
            problem(format!("the reference ${{{key}}} names no value")).hint(hint)
        };
        let name = name.trim();
        let target = self.find(name).ok_or_else(undefined)?;
        // A value inside of `name`, or `name` inside of a value of the chain, also leads back.
        let leads_back = |other: &str| {
            let is_inside =
                |inner: &str, outer: &str| inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
            is_inside(other, name)
        };
        if leads_back(path) || chain.iter().any(|other| leads_back(other)) {
            let mut all: Vec<&str> = chain.iter().map(String::as_str).skip_while(|other| !leads_back(other)).collect();
            all.extend([path, name]);
            return Err(problem(format!("the references form a cycle: {}", all.join(" -> ")))
                .hint("write one of these values without a reference"));
        }
        if chain.len() >= MAX_CHAIN {
            return Err(
                problem(format!("more than {MAX_CHAIN} references follow each other")).hint("refer to the last value directly")
            );
        }
        chain.push(path.to_owned());
        let value = self.value(target, name, chain, size)?;
        chain.pop();
        value.ok_or_else(undefined)
    }

    /// Returns the value at a path such as `database.host` or `servers.0`.
    fn find(&self, path: &str) -> Option<&Merged<'l>> {
        path.split('.').try_fold(self.root, |node, key| match &node.value {
            MergedValue::Map(pairs) => pairs.get(key),
            MergedValue::List(items) => items.get(key.parse::<usize>().ok()?),
            _ => None,
        })
    }

    /// Returns the paths of all values of mappings, at most 1000.
    fn paths(&self) -> Vec<String> {
        fn add(node: &Merged<'_>, path: &str, all: &mut Vec<String>) {
            let MergedValue::Map(pairs) = &node.value else { return };
            for (key, node) in pairs {
                if all.len() >= 1000 {
                    return;
                }
                let path = if path.is_empty() { (*key).to_owned() } else { format!("{path}.{key}") };
                add(node, &path, all);
                all.push(path);
            }
        }
        let mut all = Vec::new();
        add(self.root, "", &mut all);
        all
    }

    fn variables(&self, tree: &Map<String, Value>) -> Result<BTreeMap<String, String>, ConfigError> {
        let mut variables = BTreeMap::new();
        let Some(node) = self.find(ENV) else { return Ok(variables) };
        let Some(Value::Object(env)) = tree.get(ENV) else {
            return Err(ConfigError::new(node.file, "env is not a mapping")
                .at_line(node.line)
                .expected("a mapping, such as {LOG_LEVEL: debug}"));
        };
        for (name, value) in env {
            let at = self.find(&format!("{ENV}.{name}")).unwrap_or(node);
            let problem = |why: String| ConfigError::new(at.file, why).at_line(at.line);
            match (name.parse::<VariableName>(), VariableName::remedy(name)) {
                (Ok(_), None) => {}
                (Ok(_), Some(remedy)) => {
                    return Err(problem(format!("env: the variable {name} is set by larder itself")).hint(remedy));
                }
                (Err(why), remedy) => return Err(problem(format!("env: {why}")).hint(remedy.unwrap_or("choose another name"))),
            }
            let Some(text) = scalar_text(value) else {
                return Err(problem(format!("env.{name} is a list or a mapping")).expected("a text, a number, true or false"));
            };
            variables.insert(name.clone(), text);
        }
        Ok(variables)
    }
}

/// Returns the text of a scalar; `None` for a list or a mapping.
fn scalar_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(value) => Some(value.to_string()),
        Value::Number(number) => Some(number.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Returns a part of the name of a key for an error.
fn shown_key(name: &str) -> String {
    match name.len() <= 128 && name.chars().all(|c| c.is_alphanumeric() || matches!(c, '.' | '_' | '-')) {
        true => name.to_owned(),
        false => shown(name),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::pillar::level::PillarText;

    fn level(file: &str, text: &str) -> PillarLevel {
        PillarLevel::parse(file, text.as_bytes(), &|text| match text.strip_prefix("enc:") {
            Some(text) => Ok(PillarText::Decrypted(text.to_owned())),
            None => Ok(PillarText::Plain),
        })
        .unwrap_or_else(|error| panic!("{error}"))
    }

    fn of(files: &[(&str, &str)]) -> Result<PillarValues, ConfigError> {
        let levels: Vec<_> = files.iter().map(|(file, text)| level(file, text)).collect();
        evaluate(&levels, &|name| name == "CONFIGURED")
    }

    fn env(files: &[(&str, &str)]) -> Vec<(String, String)> {
        of(files).unwrap_or_else(|error| panic!("{error}")).env.into_iter().collect()
    }

    fn fails(files: &[(&str, &str)], file: &str, line: u32, why: &str) {
        let error = of(files).expect_err(why);
        assert_eq!((error.file.as_str(), error.line), (file, Some(line)), "{error}");
        assert!(error.to_string().contains(why) && !error.to_string().contains("hunter2"), "{error}");
        assert!(error.hint.is_some() || error.expected.is_some(), "{error}");
    }

    #[test]
    fn mappings_merge_and_scalars_and_lists_replace() {
        let values = of(&[
            (SAMPLE_FILE, "a: {b: 1, c: 2}\nlist: [1, 2, 3]\nkept: true\n"),
            ("init.yml", "a: {b: 5}\nlist: [9]\ngone: {x: 1}\nword: a\n"),
            ("production.yml", "a: {d: x}\ngone: ~\nword: {b: 1}\n"),
        ])
        .unwrap();
        let expected = json!({"a": {"b": 5, "c": 2, "d": "x"}, "list": [9], "kept": true, "word": {"b": 1}});
        assert_eq!(Value::Object(values.tree), expected);
    }

    #[test]
    fn references_keep_types_and_fill_texts() {
        let values = of(&[(
            "init.yml",
            "database: {host: db1, port: 5432, tags: [a, b]}\nenv:\n  URL: postgres://${database.host}:${database.port}/x\n  PORT_ONLY: ${database.port}\n  TAG: ${database.tags.1}\n  TEXT: $${HOME} and $$ and $HOME\n  FLAG: true\ncopy: ${database}\nport: ${database.port}\n",
        )])
        .unwrap();
        let shown: Vec<_> = values.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(shown, ["FLAG=true", "PORT_ONLY=5432", "TAG=b", "TEXT=${HOME} and $$ and $HOME", "URL=postgres://db1:5432/x"]);
        assert_eq!(values.tree["port"], json!(5432));
        assert_eq!(values.tree["copy"]["tags"], json!(["a", "b"]));
        // A decrypted value has no references.
        let literal = env(&[("init.yml", "p: enc:a${b}\nenv: {P: \"x${p}\"}\n")]);
        assert_eq!(literal, [("P".to_owned(), "xa${b}".to_owned())]);
        // A reference sees the value of the last level.
        let late = env(&[("init.yml", "host: a\nenv: {H: \"${host}\"}\n"), ("production.yml", "host: b\n")]);
        assert_eq!(late, [("H".to_owned(), "b".to_owned())]);
    }

    #[test]
    fn cycle_and_undefined_key_are_refused_with_file_line_and_key() {
        fails(&[("init.yml", "x: hunter2\na: ${b}\nb: ${a}\n")], "init.yml", 3, "b: the references form a cycle: a -> b -> a");
        fails(&[("init.yml", "a: ${a}\n")], "init.yml", 1, "cycle: a -> a");
        fails(&[("init.yml", "a: {b: \"${a}\"}\n")], "init.yml", 1, "cycle: a.b -> a");
        fails(&[("init.yml", "a:\n  b: ${c}\nc: ${a}\n")], "init.yml", 3, "cycle: a.b -> c -> a");
        fails(&[("init.yml", "a: ${b}\n"), ("production.yml", "c: 1\nb: ${a}\n")], "production.yml", 2, "cycle: a -> b -> a");
        fails(
            &[("init.yml", "database: {host: hunter2}\nenv:\n  URL: x${database.hosst}\n")],
            "init.yml",
            3,
            "env.URL: the reference ${database.hosst} names no value; did you mean \"database.host\"?",
        );
        fails(&[("init.yml", "a: ${nothing}\n")], "init.yml", 1, "add nothing to the pillar");
        fails(&[("init.yml", "a: [1]\nb: x${a}\n")], "init.yml", 2, "is a list or a mapping inside of a text");
        fails(&[("init.yml", "a: x${b\n")], "init.yml", 1, "no closing }");
        fails(&[("init.yml", "b: 1\na: ${b.c}\n")], "init.yml", 2, "names no value");
    }

    #[test]
    fn references_cannot_multiply_values_without_limit() {
        let mut text = String::from("v0: 0123456789abcdef\n");
        for number in 1..30 {
            let before = number - 1;
            text.push_str(&format!("v{number}: \"${{v{before}}}${{v{before}}}\"\n"));
        }
        let error = of(&[("init.yml", &text)]).unwrap_err().to_string();
        assert!(error.contains("bytes") && error.len() < 300, "{error}");
        let mut maps = String::from("m0: {a: 1, b: 2, c: 3, d: 4}\n");
        for number in 1..20 {
            let before = number - 1;
            maps.push_str(&format!("m{number}: {{a: \"${{m{before}}}\", b: \"${{m{before}}}\", c: \"${{m{before}}}\"}}\n"));
        }
        assert!(of(&[("init.yml", &maps)]).unwrap_err().to_string().contains("all values together"));
        let mut chain = String::from("c0: x\n");
        (1..60).for_each(|number| chain.push_str(&format!("c{number}: ${{c{}}}\n", number - 1)));
        assert!(of(&[("init.yml", &chain)]).unwrap_err().to_string().contains("follow each other"));
    }

    #[test]
    fn required_key_without_value_is_refused_with_the_place_in_the_sample() {
        let sample = (SAMPLE_FILE, "database:\n  host: localhost\n  password:\nenv:\n  CONFIGURED:\n  LEVEL: info\n");
        fails(&[sample], SAMPLE_FILE, 3, "database.password is required");
        fails(&[sample, ("init.yml", "database: {password: ~}\n")], SAMPLE_FILE, 3, "database.password is required");
        let values = of(&[sample, ("production.yml", "database: {password: enc:hunter2}\n")]).unwrap();
        assert_eq!(values.tree["database"], json!({"host": "localhost", "password": "hunter2"}));
        // The configuration has a value for CONFIGURED.
        assert_eq!(values.env.into_iter().collect::<Vec<_>>(), [("LEVEL".to_owned(), "info".to_owned())]);
        fails(&[(SAMPLE_FILE, "env:\n  OTHER:\n")], SAMPLE_FILE, 2, "env.OTHER is required");
    }

    #[test]
    fn variable_that_cannot_be_set_is_refused() {
        fails(&[("init.yml", "a: 1\nlarder: {b: 1}\n")], "init.yml", 2, "the key larder is reserved");
        fails(&[("init.yml", "env:\n  A: 1\n  PORT: 80\n")], "init.yml", 3, "PORT is set by larder itself");
        fails(&[("init.yml", "env:\n  A-B: hunter2\n")], "init.yml", 2, "not the name of a variable");
        fails(&[("init.yml", "env:\n  A: [hunter2]\n")], "init.yml", 2, "env.A is a list or a mapping");
        fails(&[("init.yml", "env: hunter2\n")], "init.yml", 1, "env is not a mapping");
        assert_eq!(env(&[("init.yml", "env: {A: \"\", B: 1.10}\n")]).len(), 2);
    }
}
