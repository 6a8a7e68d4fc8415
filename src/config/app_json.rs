//! `app.json`, Heroku's description of an application. Keys that larder does not know are somebody else's and are left alone.

use indexmap::IndexMap;
use serde_json::{Map, Value};

use super::{
    error::{ConfigError, shown},
    recipe_read::MOST_INSTANCES,
    settings::RequiredVariable,
    value::{BuildpackRef, CommandLine, HttpPath, VariableName},
    yaml::{self, Limits},
};
use crate::model::ProcessType;

const FILE: &str = "app.json";

/// What larder takes from an `app.json`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AppJson {
    /// `buildpacks[].url`.
    pub buildpacks: Vec<BuildpackRef>,
    /// `env` entries with a value.
    pub env: IndexMap<VariableName, String>,
    /// `env` entries without one.
    pub required: Vec<RequiredVariable>,
    /// `formation.<type>.quantity`.
    pub formation: IndexMap<ProcessType, u16>,
    /// `scripts.postdeploy`.
    pub postdeploy: Option<CommandLine>,
    /// The path of the first `healthchecks.web` entry with one.
    pub health_path: Option<HttpPath>,
}

/// Collects problems, each at a JSON pointer.
#[derive(Default)]
struct Problems(Vec<ConfigError>);

impl Problems {
    fn add(&mut self, pointer: &str, problem: &str, expected: &str) {
        if self.0.len() < 20 {
            self.0.push(ConfigError::new(FILE, format!("{pointer}: {problem}")).expected(expected));
        }
    }

    fn object<'v>(&mut self, value: Option<&'v Value>, pointer: &str) -> Option<&'v Map<String, Value>> {
        match value? {
            Value::Object(map) => Some(map),
            Value::Null => None,
            other => {
                self.add(pointer, &described(other), "an object {...}");
                None
            }
        }
    }

    fn parsed<T: std::str::FromStr>(&mut self, value: &Value, pointer: &str, expected: &str) -> Option<T>
    where
        T::Err: std::fmt::Display,
    {
        let Some(text) = value.as_str() else {
            self.add(pointer, &described(value), expected);
            return None;
        };
        text.parse().map_err(|why: T::Err| self.add(pointer, &why.to_string(), expected)).ok()
    }
}

impl AppJson {
    /// Reads the file; all its problems are reported together.
    pub fn parse(bytes: &[u8]) -> Result<AppJson, Vec<ConfigError>> {
        let text = yaml::utf8(FILE, bytes, Limits::RECIPE).map_err(|error| vec![error])?;
        let value: Value = serde_json::from_str(text).map_err(|error| vec![syntax(&error)])?;
        let mut problems = Problems::default();
        let app = match &value {
            Value::Object(top) => read(&mut problems, top),
            other => {
                problems.add("/", &described(other), "an object {...}");
                AppJson::default()
            }
        };
        if problems.0.is_empty() { Ok(app) } else { Err(problems.0) }
    }
}

fn read(problems: &mut Problems, top: &Map<String, Value>) -> AppJson {
    let mut app = AppJson::default();
    match top.get("buildpacks") {
        None | Some(Value::Null) => {}
        Some(Value::Array(list)) if list.len() > 32 => {
            problems.add("/buildpacks", &format!("this list has {} items", list.len()), "at most 32 buildpacks");
        }
        Some(Value::Array(list)) => {
            for (index, item) in list.iter().enumerate() {
                let pointer = format!("/buildpacks/{index}");
                match item.get("url") {
                    Some(url) => app.buildpacks.extend(problems.parsed(url, &format!("{pointer}/url"), BuildpackRef::EXPECTED)),
                    None => problems.add(&pointer, "there is no \"url\"", "an object such as {\"url\": \"python\"}"),
                }
            }
        }
        Some(other) => problems.add("/buildpacks", &described(other), "a list [...]"),
    }
    for (name, value) in problems.object(top.get("env"), "/env").into_iter().flatten() {
        variable(problems, &mut app, name, value);
    }
    for (name, value) in problems.object(top.get("formation"), "/formation").into_iter().flatten() {
        formation(problems, &mut app, name, value);
    }
    if let Some(script) = problems.object(top.get("scripts"), "/scripts").and_then(|scripts| scripts.get("postdeploy")) {
        app.postdeploy = problems.parsed(script, "/scripts/postdeploy", "a command such as \"bin/seed\"");
    }
    if let Some(checks) = problems.object(top.get("healthchecks"), "/healthchecks").and_then(|checks| checks.get("web")) {
        match checks {
            Value::Array(list) => {
                let first = list.iter().enumerate().find_map(|(index, check)| Some((index, check.get("path")?)));
                app.health_path = first.and_then(|(index, path)| {
                    problems.parsed(path, &format!("/healthchecks/web/{index}/path"), "a path such as \"/healthz\"")
                });
            }
            other => problems.add("/healthchecks/web", &described(other), "a list [...]"),
        }
    }
    app
}

fn variable(problems: &mut Problems, app: &mut AppJson, name: &str, value: &Value) {
    let pointer = format!("/env/{}", escaped(name));
    let variable = match name.parse::<VariableName>() {
        Ok(variable) => variable,
        Err(why) => return problems.add(&pointer, &why, "another name"),
    };
    let expected = "text, or an object such as {\"value\": \"text\"}";
    let text = |value: &Value| match value {
        Value::String(text) if !text.contains('\0') => Some(text.clone()),
        _ => None,
    };
    let entry = match value {
        Value::String(_) => {
            match text(value) {
                Some(text) => drop(app.env.insert(variable, text)),
                None => problems.add(&pointer, "the value has a NUL character", expected),
            }
            return;
        }
        Value::Object(entry) => entry,
        other => return problems.add(&pointer, &described(other), expected),
    };
    match entry.get("value") {
        None | Some(Value::Null) => {}
        Some(value) => {
            match text(value) {
                Some(text) => drop(app.env.insert(variable, text)),
                None => problems.add(&format!("{pointer}/value"), &described(value), "text without NUL characters"),
            }
            return;
        }
    }
    let generate = match entry.get("generator") {
        None | Some(Value::Null) => false,
        Some(Value::String(kind)) if kind == "secret" => true,
        Some(other) => return problems.add(&format!("{pointer}/generator"), &described(other), "\"secret\""),
    };
    let required = match entry.get("required") {
        None | Some(Value::Null) => true,
        Some(Value::Bool(required)) => *required,
        Some(other) => return problems.add(&format!("{pointer}/required"), &described(other), "true or false"),
    };
    if required || generate {
        let description = entry.get("description").and_then(Value::as_str);
        let description = description.map(|text| text.chars().filter(|c| !c.is_control()).take(200).collect());
        app.required.push(RequiredVariable { name: variable, generate, description });
    }
}

fn formation(problems: &mut Problems, app: &mut AppJson, name: &str, value: &Value) {
    let pointer = format!("/formation/{}", escaped(name));
    let process = match name.parse::<ProcessType>() {
        Ok(process) => process,
        Err(error) => return problems.add(&pointer, &error.to_string(), "a process type such as \"web\""),
    };
    let Some(entry) = problems.object(Some(value), &pointer) else { return };
    match entry.get("quantity") {
        None | Some(Value::Null) => {}
        Some(quantity) => {
            match quantity.as_u64().filter(|quantity| *quantity <= MOST_INSTANCES).and_then(|n| u16::try_from(n).ok()) {
                Some(quantity) => drop(app.formation.insert(process, quantity)),
                None => {
                    let expected = format!("a whole number from 0 to {MOST_INSTANCES}");
                    problems.add(&format!("{pointer}/quantity"), &described(quantity), &expected);
                }
            }
        }
    }
}

fn described(value: &Value) -> String {
    match value {
        Value::Null => "this is null".to_owned(),
        Value::Bool(value) => format!("this is {value}"),
        Value::Number(number) => format!("this is the number {number}"),
        Value::String(text) => format!("this is the text {}", shown(text)),
        Value::Array(_) => "this is a list".to_owned(),
        Value::Object(_) => "this is an object".to_owned(),
    }
}

/// A name as part of a pointer, on one line.
fn escaped(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(60).collect::<String>().replace('~', "~0").replace('/', "~1")
}

fn syntax(error: &serde_json::Error) -> ConfigError {
    let text = error.to_string();
    let reason = text.split(" at line ").next().unwrap_or(&text);
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    if reason.starts_with("recursion limit") {
        return ConfigError::new(FILE, "the values are nested too deeply")
            .at(number(error.line()), number(error.column()))
            .expected("at most 127 levels");
    }
    ConfigError::new(FILE, format!("this is not JSON: {reason}"))
        .at(number(error.line()), number(error.column()))
        .hint("JSON has double quotes, no comments and no comma after the last item")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn herokus_example_is_understood() {
        let app = AppJson::parse(
            br#"{"name": "Small App", "keywords": ["x"], "stack": "heroku-24", "addons": ["openredis"],
                "scripts": {"postdeploy": "bundle exec rake bootstrap"},
                "env": {"SECRET_TOKEN": {"description": "signs", "generator": "secret"}, "WEB_CONCURRENCY": {"value": "5"},
                        "PLAIN": "x", "OPTIONAL": {"required": false}, "NEEDED": {}},
                "formation": {"web": {"quantity": 2, "size": "standard-1x"}},
                "healthchecks": {"web": [{"type": "startup", "path": "/up"}]},
                "buildpacks": [{"url": "heroku/ruby"}]}"#,
        )
        .unwrap();
        assert_eq!(app.buildpacks, [BuildpackRef::Named("ruby".to_owned())]);
        assert_eq!(app.env.get("WEB_CONCURRENCY").unwrap(), "5");
        assert_eq!(app.formation.get("web"), Some(&2));
        let required: Vec<_> = app.required.iter().map(|one| (one.name.as_str(), one.generate)).collect();
        assert_eq!(required, [("NEEDED", false), ("SECRET_TOKEN", true)]);
        assert_eq!(app.health_path.unwrap().as_str(), "/up");
    }

    #[test]
    fn wrong_types_are_named_by_their_pointer() {
        let problems =
            AppJson::parse(br#"{"env": {"A": 5}, "formation": {"web": {"quantity": -1}}, "buildpacks": "x"}"#).unwrap_err();
        let all = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        for pointer in ["/env/A:", "/formation/web/quantity:", "/buildpacks:"] {
            assert!(all.contains(pointer), "{all}");
        }
        assert_eq!(AppJson::parse(b"{\n,}").unwrap_err()[0].line, Some(2));
        assert!(AppJson::parse("[".repeat(30_000).as_bytes()).is_err());
    }
}
