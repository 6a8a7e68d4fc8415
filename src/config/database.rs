//! The databases of an environment (`databases:`), whose dumps belong to each restore point.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::{
    reader::ConfigReader,
    value::{RelativePath, VariableName},
    yaml::Node,
};
use crate::model::{DatabaseEngine, DatabaseName};

/// A declared database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseSpec {
    /// The engine. If the recipe does not set the engine, the scheme of the URL determines the engine.
    pub engine: Option<DatabaseEngine>,
    /// The location of the database.
    pub location: DatabaseLocation,
}

/// The location of a declared database. The recipe is in the repository, so a location never contains a password.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DatabaseLocation {
    /// The variable of the application that contains the URL.
    Variable(VariableName),
    /// The path of an SQLite file: `data/` with a path below the data directory, or a path in the application that `data:` persists.
    Path(RelativePath),
}

const EXAMPLE: &str = "{type: postgres, url: $DATABASE_URL}";

/// Returns the lines of the reference.
pub(super) fn example() -> String {
    String::from(
        "main:\n  # postgres, mysql (or mariadb), sqlite or redis. Default: by the scheme of the URL.\n  type: postgres\n  \
         # The variable that contains the URL.\n  url: $DATABASE_URL\ncounters:\n  type: sqlite\n  \
         # An SQLite file below the data directory.\n  path: data/counters.sqlite3",
    )
}

/// Reads the key `databases`.
pub(super) fn read_all(reader: &mut ConfigReader, node: &Node, key: &str, databases: &mut IndexMap<DatabaseName, DatabaseSpec>) {
    for (name, at, node) in reader.pairs(node, key, "a mapping, such as {main: {type: postgres, url: $DATABASE_URL}}") {
        match name.parse::<DatabaseName>() {
            Ok(parsed) => databases.extend(read(reader, node, &format!("{key}.{name}")).map(|spec| (parsed, spec))),
            Err(error) => drop(reader.problem(at, error.to_string())),
        }
    }
}

/// Reads one database of the key `databases`.
fn read(reader: &mut ConfigReader, node: &Node, key: &str) -> Option<DatabaseSpec> {
    let section = reader.section(node, key, &["type", "url", "path"], EXAMPLE);
    let engine = match section.get("type") {
        Some(node) => Some(reader.choice(node, &format!("{key}.type"), &DatabaseEngine::WORDS)?),
        None => None,
    };
    match (section.get("url"), section.get("path")) {
        (Some(node), None) => {
            let variable = reader.value(node, &format!("{key}.url"), "a variable such as $DATABASE_URL", variable)?;
            Some(DatabaseSpec { engine, location: DatabaseLocation::Variable(variable) })
        }
        (None, Some(node)) => {
            if engine.is_some_and(|engine| engine != DatabaseEngine::Sqlite) {
                reader.problem(node, format!("{key}.path is only possible for sqlite")).hint =
                    Some(String::from("write `url: $DATABASE_URL` for a database server"));
                return None;
            }
            let expected = "the path of a file below data/, such as data/app.sqlite3";
            let path = reader.value(node, &format!("{key}.path"), expected, str::parse::<RelativePath>)?;
            Some(DatabaseSpec { engine: Some(DatabaseEngine::Sqlite), location: DatabaseLocation::Path(path) })
        }
        (Some(node), Some(_)) => {
            reader.problem(node, format!("both {key}.url and {key}.path are given")).hint = Some("keep one of them".to_owned());
            None
        }
        (None, None) => {
            reader.mismatch(node, key, &format!("a mapping with `url` or `path`, such as {EXAMPLE}"));
            None
        }
    }
}

/// Reads `$NAME` or `${NAME}`.
fn variable(text: &str) -> Result<VariableName, String> {
    let name = text.strip_prefix('$').map(|name| name.strip_prefix('{').and_then(|name| name.strip_suffix('}')).unwrap_or(name));
    // The text may be a URL with a password, so it is not repeated.
    let literal = || String::from("the value is not the name of a variable with a leading $");
    name.ok_or_else(literal)?.parse().map_err(|_| literal())
}
