//! `app.json`, the description of an application that Heroku and Dokku read.
//!
//! larder uses some keys of the file. Other keys are ignored, but larder warns about keys that would change a deployment on Heroku or
//! Dokku.

use indexmap::IndexMap;
use serde_json::{Map, Value};

use super::{
    build::RequiredVariable,
    error::{ConfigError, shown},
    process::MAX_INSTANCES,
    reader::MAX_PROBLEMS,
    value::{BuildpackRef, CommandLine, HttpPath, VariableName},
    yaml::{self, FileLimits},
};
use crate::model::ProcessType;

const FILE: &str = "app.json";
/// The maximum number of warnings about unused keys.
const MAX_WARNINGS: usize = 10;
/// The maximum length of a key in a warning, in characters.
const MAX_WARNING_KEY: usize = 80;
/// The maximum length of a name in a JSON pointer, in characters.
const MAX_POINTER_NAME: usize = 60;
/// The maximum length of the description of a variable, in characters.
const MAX_DESCRIPTION: usize = 200;
/// The maximum depth of nested values. serde_json fails at the 128th level.
const MAX_DEPTH: usize = 127;

/// The values of an `app.json` that larder uses.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AppJson {
    /// `buildpacks[].url`.
    pub buildpacks: Vec<BuildpackRef>,
    /// The `env` entries that have a value.
    pub env: IndexMap<VariableName, String>,
    /// The `env` entries without a value that are required or have a generator.
    pub required: Vec<RequiredVariable>,
    /// `formation.<type>.quantity`.
    pub formation: IndexMap<ProcessType, u16>,
    /// `scripts.postdeploy`.
    pub postdeploy: Option<CommandLine>,
    /// The path of the first entry of `healthchecks.web` that has a path.
    pub health_path: Option<HttpPath>,
    /// Warnings about keys that would change a deployment on Heroku or Dokku and have no effect in larder.
    pub warnings: Vec<String>,
}

/// The problems of the file. Each problem names the JSON pointer of the wrong value.
#[derive(Default)]
struct Problems(Vec<ConfigError>);

impl Problems {
    fn add(&mut self, pointer: &str, problem: &str, expected: &str) {
        if self.0.len() < MAX_PROBLEMS {
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
    /// Parses the file. The first 20 problems of the file are reported together.
    pub fn parse(bytes: &[u8]) -> Result<AppJson, Vec<ConfigError>> {
        let text = yaml::utf8(FILE, bytes, FileLimits::RECIPE).map_err(|error| vec![error])?;
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
        Some(Value::Array(list)) if list.len() > BuildpackRef::MAX => {
            problems.add(
                "/buildpacks",
                &format!("this list has {} items", list.len()),
                &format!("at most {} buildpacks", BuildpackRef::MAX),
            );
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
    app.warnings.extend(unused(top));
    app.warnings.truncate(MAX_WARNINGS);
    app
}

/// Returns warnings about keys that would change a deployment on Heroku or Dokku and have no effect in larder.
fn unused(top: &Map<String, Value>) -> Vec<String> {
    let object = |key: &str| top.get(key).and_then(Value::as_object);
    let is_set = |value: &Value| match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        _ => true,
    };
    let mut found = Vec::new();
    for (name, script) in object("scripts").into_iter().flatten().filter(|(_, script)| is_set(script)) {
        let nested =
            script.as_object().into_iter().flatten().map(|(inner, _)| (format!("scripts.{name}.{inner}"), inner.as_str()));
        match name.as_str() {
            "postdeploy" => {}
            // Heroku runs these scripts in its CI, not in a deployment.
            "test" | "test-setup" => {}
            _ if script.is_object() => found.extend(nested.map(|(key, inner)| (key, script_remedy(inner)))),
            _ => found.push((format!("scripts.{name}"), script_remedy(name))),
        }
    }
    for (name, entry) in object("formation").into_iter().flatten() {
        for key in ["autoscaling", "max_parallel"].into_iter().filter(|key| entry.get(key).is_some_and(is_set)) {
            found.push((format!("formation.{name}.{key}"), "use `scale` in larder.yml"));
        }
    }
    for (name, _) in object("healthchecks").into_iter().flatten().filter(|(name, checks)| *name != "web" && is_set(checks)) {
        found.push((format!("healthchecks.{name}"), "remove the key, because larder checks only processes of the type web"));
    }
    for check in object("healthchecks").and_then(|checks| checks.get("web")?.as_array()).into_iter().flatten() {
        for key in
            ["command", "content", "port", "uptime", "listening"].into_iter().filter(|key| check.get(key).is_some_and(is_set))
        {
            found.push((format!("healthchecks.web[].{key}"), "use `health` in larder.yml"));
        }
    }
    for (key, remedy) in [
        ("addons", "install the service on the server and set its address under `env`"),
        ("cron", "use a worker process or the server's cron"),
    ] {
        if top.get(key).is_some_and(is_set) {
            found.push((key.to_owned(), remedy));
        }
    }
    let line = |(key, remedy): (String, &str)| {
        let key: String = key.chars().filter(|c| !c.is_control()).take(MAX_WARNING_KEY).collect();
        format!("{FILE}: {key} has no effect; {remedy}")
    };
    let mut warnings: Vec<_> = found.into_iter().map(line).collect();
    warnings.dedup();
    warnings.truncate(MAX_WARNINGS);
    warnings
}

/// Returns the instruction for replacing a script that larder does not run.
fn script_remedy(name: &str) -> &'static str {
    match name {
        "predeploy" => "use .larder/pre_install, or `release` in larder.yml",
        "postdeploy" => "use .larder/post_deploy, or scripts.postdeploy, which runs once",
        _ => "use a script of a phase, .larder/<phase>",
    }
}

fn variable(problems: &mut Problems, app: &mut AppJson, name: &str, value: &Value) {
    let pointer = format!("/env/{}", escaped(name));
    // Files for Heroku and Dokku often set these variables, and an application also works with larder's values.
    if matches!(name, "PORT" | "HOME") {
        app.warnings.push(format!("{FILE}: env.{name} has no effect; larder sets {name} itself"));
        return;
    }
    if matches!(value, Value::Number(number) if number.is_f64())
        || matches!(value.get("value"), Some(Value::Number(number)) if number.is_f64())
    {
        let shown = escaped(name);
        app.warnings.push(format!(
            "{FILE}: env.{shown} is a fraction, of which JSON keeps the value but not the digits; write the value in quotes"
        ));
    }
    let variable = match name.parse::<VariableName>() {
        Ok(variable) => variable,
        Err(why) => return problems.add(&pointer, &why, "another name"),
    };
    let expected = "text, or an object such as {\"value\": \"text\"}";
    let Value::Object(entry) = value else {
        match plain(value) {
            Ok(text) => drop(app.env.insert(variable, text)),
            Err(why) => problems.add(&pointer, &why, expected),
        }
        return;
    };
    match entry.get("value") {
        None | Some(Value::Null) => {}
        Some(value) => {
            match plain(value) {
                Ok(text) => drop(app.env.insert(variable, text)),
                Err(why) => problems.add(&format!("{pointer}/value"), &why, "text without NUL characters"),
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
        let description = description.map(|text| text.chars().filter(|c| !c.is_control()).take(MAX_DESCRIPTION).collect());
        app.required.push(RequiredVariable { name: variable, generate, description });
    }
}

/// Returns the value of a variable as text. Numbers and booleans are converted to text. The JSON parser does not preserve the digits of
/// fractions: `1.10` becomes `1.1`, which is the subject of a warning.
fn plain(value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) if text.contains('\0') => Err("the value has a NUL character".to_owned()),
        Value::String(text) => Ok(text.clone()),
        Value::Bool(value) => Ok(value.to_string()),
        Value::Number(number) => Ok(number.to_string()),
        other => Err(described(other)),
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
            match quantity.as_u64().filter(|quantity| *quantity <= MAX_INSTANCES).and_then(|n| u16::try_from(n).ok()) {
                Some(quantity) => drop(app.formation.insert(process, quantity)),
                None => {
                    let expected = format!("a whole number from 0 to {MAX_INSTANCES}");
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

/// Renders a name as part of a JSON pointer, on one line.
fn escaped(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(MAX_POINTER_NAME).collect::<String>().replace('~', "~0").replace('/', "~1")
}

fn syntax(error: &serde_json::Error) -> ConfigError {
    let text = error.to_string();
    let reason = text.split(" at line ").next().unwrap_or(&text);
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    if reason.starts_with("recursion limit") {
        return ConfigError::new(FILE, "the values are nested too deeply")
            .at(number(error.line()), number(error.column()))
            .expected(format!("at most {MAX_DEPTH} levels"));
    }
    ConfigError::new(FILE, format!("this is not JSON: {reason}"))
        .at(number(error.line()), number(error.column()))
        .hint("use double quotes, and remove comments and a comma after the last item")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_used_key_of_a_heroku_file_is_read() {
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
    fn value_of_wrong_type_is_reported_with_its_pointer() {
        let problems =
            AppJson::parse(br#"{"env": {"A": [5]}, "formation": {"web": {"quantity": -1}}, "buildpacks": "x"}"#).unwrap_err();
        let all = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        for pointer in ["/env/A:", "/formation/web/quantity:", "/buildpacks:"] {
            assert!(all.contains(pointer), "{all}");
        }
        assert_eq!(AppJson::parse(b"{\n,}").unwrap_err()[0].line, Some(2));
        assert!(AppJson::parse("[".repeat(30_000).as_bytes()).is_err());
    }

    #[test]
    fn number_or_boolean_in_env_becomes_text() {
        let app = AppJson::parse(br#"{"env": {"A": 5, "B": {"value": true}, "C": -1}}"#).unwrap();
        assert_eq!(app.env.values().collect::<Vec<_>>(), ["5", "true", "-1"]);
        assert!(app.warnings.is_empty());
        let app = AppJson::parse(br#"{"env": {"A": 1.10, "PORT": 3000, "HOME": {"value": "/x"}, "ENV": "production"}}"#).unwrap();
        assert_eq!(app.env.values().collect::<Vec<_>>(), ["1.1", "production"]);
        let of = |name: &str| app.warnings.iter().filter(|line| line.contains(&format!("env.{name} "))).count();
        assert_eq!([of("A"), of("PORT"), of("HOME"), of("ENV")], [1, 1, 1, 0], "{:?}", app.warnings);
    }

    #[test]
    fn unused_key_that_changes_deployments_on_heroku_or_dokku_gives_a_warning() {
        let app = AppJson::parse(
            br#"{"name": "x", "repository": "https://example.com", "stack": "heroku-24", "environments": {"test": {}}, "addons": ["redis"],
                "scripts": {"postdeploy": "a", "dokku": {"predeploy": "b", "postdeploy": "c"}, "pr-predestroy": "d", "test": "e"},
                "cron": [{"command": "f", "schedule": "@daily"}], "formation": {"web": {"quantity": 1, "autoscaling": {"max_quantity": 9}}},
                "healthchecks": {"worker": [{"type": "startup", "command": ["g"]}], "web": [{"path": "/up", "content": "ok"}]}}"#,
        )
        .unwrap();
        let keys: Vec<_> = app.warnings.iter().map(|line| line.split(' ').nth(1).unwrap()).collect();
        assert_eq!(
            keys,
            [
                "scripts.dokku.postdeploy",
                "scripts.dokku.predeploy",
                "scripts.pr-predestroy",
                "formation.web.autoscaling",
                "healthchecks.worker",
                "healthchecks.web[].content",
                "addons",
                "cron"
            ]
        );
        assert!(AppJson::parse(br#"{"scripts": {"postdeploy": "a"}, "addons": [], "cron": null}"#).unwrap().warnings.is_empty());
    }
}
