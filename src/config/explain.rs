//! The places of configuration files that set a variable, with their lines.

use super::{
    app_json::AppJson,
    error::ConfigError,
    project::ProjectFiles,
    recipe::Recipe,
    settings::ENVIRONMENTS,
    yaml::{self, FileLimits, Node},
};
use crate::model::EnvironmentName;

/// The name of the recipe's file.
const RECIPE: &str = "larder.yml";

/// A place that sets a variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VariablePlace {
    /// The file with the key, such as `larder.yml: environments.staging.env`.
    pub source: String,
    /// The line, counted from 1, if it is known.
    pub line: Option<u32>,
    /// The value; `None` if the file only declares the variable.
    pub value: Option<String>,
    /// The processes that get the value: a process type or `build`; `None` for all processes and the build.
    pub only: Option<String>,
}

/// Returns the places in the files of a project that set `name`, in rising order of precedence.
///
/// # Errors
/// The first problem of a file that cannot be read.
pub fn places_in_project(
    files: &ProjectFiles,
    environment: &EnvironmentName,
    name: &str,
) -> Result<Vec<VariablePlace>, ConfigError> {
    let mut places = Vec::new();
    if let Some(bytes) = &files.app_json {
        let first = |problems: Vec<ConfigError>| problems.into_iter().next();
        match AppJson::parse(bytes).map_err(first) {
            Ok(app) => {
                let value = app.env.get(name).cloned();
                if value.is_some() || app.required.iter().any(|required| required.name.as_str() == name) {
                    let source = String::from("app.json: env");
                    places.push(VariablePlace { source, line: json_line(bytes, name), value, only: None });
                }
            }
            Err(Some(problem)) => return Err(problem),
            Err(None) => {}
        }
    }
    if let Some(bytes) = &files.recipe {
        // The recipe is checked first, so that an invalid recipe explains nothing.
        if let Err(Some(problem)) = Recipe::parse(bytes).map_err(|problems| problems.into_iter().next()) {
            return Err(problem);
        }
        let root = yaml::parse_tree(RECIPE, bytes, FileLimits::RECIPE)?;
        level(&mut places, &root, "", name);
        if let Some(node) = root.child(ENVIRONMENTS).and_then(|node| node.child(environment.as_str())) {
            level(&mut places, node, &format!("{ENVIRONMENTS}.{environment}."), name);
        }
        // A value for single processes, or for the build, takes precedence over a value for all.
        places.sort_by_key(|place| place.only.is_some());
    }
    Ok(places)
}

/// Returns the place in the server file that sets `name`. `file` is the path of the file.
pub fn place_in_server(file: &str, bytes: &[u8], name: &str) -> Result<Option<VariablePlace>, ConfigError> {
    let root = yaml::parse_tree(file, bytes, FileLimits::SERVER)?;
    let mut places = Vec::new();
    variables(&mut places, root.child("env"), String::from("server file: env"), name, None);
    Ok(places.pop())
}

/// Adds the places of one level of the recipe.
fn level(places: &mut Vec<VariablePlace>, node: &Node, prefix: &str, name: &str) {
    let source = |key: &str| format!("{RECIPE}: {prefix}{key}");
    variables(places, node.child("env"), source("env"), name, None);
    let build = node.child("build").and_then(|build| build.child("env"));
    variables(places, build, source("build.env"), name, Some("build"));
    for (process, node) in node.child("processes").into_iter().flat_map(Node::children) {
        let key = source(&format!("processes.{process}.env"));
        variables(places, node.child("env"), key, name, Some(process));
    }
}

fn variables(places: &mut Vec<VariablePlace>, node: Option<&Node>, source: String, name: &str, only: Option<&str>) {
    let found = node.into_iter().flat_map(Node::children).find(|(key, _)| *key == name);
    if let Some((_, value)) = found {
        let (line, value) = (Some(value.at.line), value.text().map(str::to_owned));
        places.push(VariablePlace { source, line, value, only: only.map(str::to_owned) });
    }
}

/// Returns the line of the first key `name` in a JSON text.
fn json_line(bytes: &[u8], name: &str) -> Option<u32> {
    let text = std::str::from_utf8(bytes).ok()?;
    let key = format!("\"{name}\"");
    let is_key = |at: usize| text.get(at..).is_some_and(|rest| rest.trim_start_matches(&key).trim_start().starts_with(':'));
    let at = text.match_indices(&key).map(|(at, _)| at).find(|at| is_key(*at))?;
    let before = text.get(..at)?.matches('\n').count();
    u32::try_from(before).ok().map(|before| before.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_listed_with_lines_in_order_of_precedence() {
        let files = ProjectFiles {
            app_json: Some(b"{\n \"name\": \"LEVEL\",\n \"env\": {\n  \"LEVEL\" : \"app\",\n  \"SECRET\": {\"generator\": \"secret\"}\n }\n}\n".to_vec()),
            recipe: Some(
                b"build:\n  env: {LEVEL: build}\nenv:\n  LEVEL: recipe\nprocesses:\n  web:\n    command: x\n    env: {LEVEL: web}\nenvironments:\n  staging:\n    env:\n      OTHER: x\n      LEVEL: staging\n"
                    .to_vec(),
            ),
            ..ProjectFiles::default()
        };
        let places = |environment: &str, name: &str| {
            let found = places_in_project(&files, &environment.parse().unwrap(), name).unwrap();
            found
                .into_iter()
                .map(|place| (place.source, place.line.unwrap(), place.value.unwrap_or_default()))
                .collect::<Vec<_>>()
        };
        let expected = [
            ("app.json: env", 4, "app"),
            ("larder.yml: env", 4, "recipe"),
            ("larder.yml: environments.staging.env", 13, "staging"),
            ("larder.yml: build.env", 2, "build"),
            ("larder.yml: processes.web.env", 8, "web"),
        ];
        let of = |all: &[(&str, u32, &str)]| {
            all.iter().map(|(source, line, value)| ((*source).to_owned(), *line, (*value).to_owned())).collect::<Vec<_>>()
        };
        assert_eq!(places("staging", "LEVEL"), of(&expected));
        assert_eq!(places("production", "LEVEL"), of(&[expected[0], expected[1], expected[3], expected[4]]));
        assert_eq!(places("production", "SECRET"), of(&[("app.json: env", 5, "")]));
        assert_eq!(places("production", "NONE"), []);
        let server = place_in_server("/etc/larder.yml", b"domain: x.test\nenv:\n  LEVEL: server\n", "LEVEL").unwrap().unwrap();
        assert_eq!((server.line, server.value.as_deref()), (Some(3), Some("server")));
        let broken = ProjectFiles { recipe: Some(b"env: [".to_vec()), ..ProjectFiles::default() };
        assert!(places_in_project(&broken, &"production".parse().unwrap(), "X").is_err());
    }
}
