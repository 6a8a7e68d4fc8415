//! The databases of an environment: the databases of the recipe's `databases:`, or, without this key, the databases that the environment's
//! variables and data paths name.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::{DatabaseAt, DatabaseJob, DatabaseUrl};
use crate::{
    config::{DatabaseLocation, DatabaseSpec, Settings},
    model::{DatabaseEngine, DatabaseName},
};

/// The variables in which larder recognises the URL of a database that is not declared, each with the name of this database.
const VARIABLES: [(&str, &str); 2] = [("DATABASE_URL", "main"), ("REDIS_URL", "redis")];

/// The file name extensions of the data paths that larder recognises as SQLite files.
const EXTENSIONS: [&str; 4] = ["sqlite3", "sqlite", "db", "db3"];

/// A database that cannot be located.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot locate the database {name}: {why}")]
pub struct DatabaseConflict {
    /// The name of the database.
    pub name: String,
    /// The cause.
    pub why: String,
    /// An instruction that solves the problem.
    pub hint: String,
}

/// Returns the databases of an environment with these settings. `env` holds the variables of its processes.
pub fn databases_of(settings: &Settings, env: &BTreeMap<String, String>) -> Result<Vec<DatabaseJob>, DatabaseConflict> {
    let mut databases = match &settings.databases {
        Some(declared) => {
            declared.iter().map(|(name, spec)| declared_job(settings, env, name, spec)).collect::<Result<Vec<_>, _>>()?
        }
        None => VARIABLES.iter().filter_map(|(variable, name)| recognised(settings, env.get(*variable)?, name)).collect(),
    };
    if settings.databases.is_none() {
        for path in &settings.data {
            let file = PathBuf::from(path.path());
            let is_known = databases.iter().any(|known| known.at == DatabaseAt::File(file.clone()));
            if !path.as_str().ends_with('/') && has_extension(&file) && !is_known {
                let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
                let name = unused_name(stem, &databases);
                databases.extend(name.map(|name| sqlite(name, file, false)));
            }
        }
    }
    Ok(databases)
}

fn sqlite(name: DatabaseName, file: PathBuf, is_declared: bool) -> DatabaseJob {
    DatabaseJob { name, engine: DatabaseEngine::Sqlite, at: DatabaseAt::File(file), is_declared }
}

fn has_extension(file: &Path) -> bool {
    file.extension().and_then(|text| text.to_str()).is_some_and(|text| EXTENSIONS.contains(&text))
}

/// Returns a name that resembles `stem` and that no database has.
fn unused_name(stem: &str, known: &[DatabaseJob]) -> Option<DatabaseName> {
    let stem: String = stem.to_ascii_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let stem: String = stem.split('-').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-").chars().take(24).collect();
    let stem = stem.trim_end_matches('-');
    let stem = if stem.starts_with(|c: char| c.is_ascii_lowercase()) { stem.to_owned() } else { format!("db{stem}") };
    let mut names = std::iter::once(stem.clone()).chain((2..100).map(|number| format!("{stem}-{number}")));
    names.find(|name| known.iter().all(|other| other.name.as_str() != name))?.parse().ok()
}

fn declared_job(
    settings: &Settings,
    env: &BTreeMap<String, String>,
    name: &DatabaseName,
    spec: &DatabaseSpec,
) -> Result<DatabaseJob, DatabaseConflict> {
    let wrong = |why: String, hint: &str| DatabaseConflict { name: name.to_string(), why, hint: hint.to_owned() };
    let variable = match &spec.location {
        DatabaseLocation::Path(path) => return Ok(sqlite(name.clone(), below_data(settings, path.as_str()), true)),
        DatabaseLocation::Variable(variable) => variable,
    };
    let Some(url) = env.get(variable.as_str()).filter(|url| !url.is_empty()) else {
        return Err(wrong(format!("the variable {variable} has no value in the live release"), "set the variable, and deploy"));
    };
    let url = DatabaseUrl::new(url.as_str());
    let of_scheme = DatabaseEngine::of_scheme(url.scheme());
    let Some(engine) = spec.engine.or(of_scheme) else {
        return Err(wrong(
            format!("the scheme of ${variable} names no engine that larder knows"),
            "add `type:` (postgres, mysql, sqlite or redis) to the database in larder.yml",
        ));
    };
    if let Some(other) = of_scheme.filter(|other| *other != engine) {
        return Err(wrong(
            format!("${variable} is the URL of a {} database (expected {})", other.title(), engine.title()),
            "correct `type:` or the variable",
        ));
    }
    if engine != DatabaseEngine::Sqlite {
        return Ok(DatabaseJob { name: name.clone(), engine, at: DatabaseAt::Url(url), is_declared: true });
    }
    match sqlite_file(settings, url.expose()) {
        Some(file) => Ok(sqlite(name.clone(), file, true)),
        None => Err(wrong(
            format!("${variable} names an SQLite file outside of the persistent data"),
            "add the file to `data:` in larder.yml, and deploy",
        )),
    }
}

/// Returns the database of a variable, or `None` if the value is neither the URL of a known engine nor that of an SQLite file in the data.
fn recognised(settings: &Settings, value: &str, name: &str) -> Option<DatabaseJob> {
    let url = DatabaseUrl::new(value);
    let (engine, name) = (DatabaseEngine::of_scheme(url.scheme())?, name.parse().ok()?);
    if engine == DatabaseEngine::Sqlite {
        return Some(sqlite(name, sqlite_file(settings, value)?, false));
    }
    Some(DatabaseJob { name, engine, at: DatabaseAt::Url(url), is_declared: false })
}

/// Returns the path below `data/` of the file in an SQLite URL. A URL with three slashes has a path relative to `/app`, and a URL with four
/// slashes has an absolute path.
fn sqlite_file(settings: &Settings, url: &str) -> Option<PathBuf> {
    let (_, rest) = url.split_once(':')?;
    let path = rest.split(['?', '#']).next()?;
    let path = path.strip_prefix("//").map_or(path, |path| path.strip_prefix('/').unwrap_or(path));
    let path = percent_encoding::percent_decode_str(path).decode_utf8().ok()?;
    let path = path.trim_start_matches("./");
    if let Some(absolute) = path.strip_prefix('/') {
        if let Some(below) = absolute.strip_prefix("data/") {
            return is_clean(below).then(|| PathBuf::from(below));
        }
        return in_data(settings, absolute.strip_prefix("app/")?);
    }
    in_data(settings, path)
}

fn is_clean(path: &str) -> bool {
    !path.is_empty() && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// Returns the path below `data/` of a file of the application, or `None` if no data path contains the file.
fn in_data(settings: &Settings, path: &str) -> Option<PathBuf> {
    let holds = |outer: &str| path.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    (is_clean(path) && settings.data.iter().any(|data| holds(data.path()))).then(|| PathBuf::from(path))
}

/// Returns the path below `data/` of a declared SQLite file. A file in a data path keeps its whole path. All other paths lose the prefix
/// `data/`.
fn below_data(settings: &Settings, path: &str) -> PathBuf {
    in_data(settings, path).unwrap_or_else(|| PathBuf::from(path.strip_prefix("data/").unwrap_or(path)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Recipe;

    fn found(recipe: &str, env: &[(&str, &str)]) -> Result<Vec<(String, DatabaseEngine, Option<String>)>, DatabaseConflict> {
        let settings = Recipe::parse(recipe.as_bytes()).unwrap().for_environment(&"production".parse().unwrap());
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let file = |job: &DatabaseJob| job.file().ok().map(|path| path.to_str().unwrap().to_owned());
        databases_of(&settings, &env).map(|all| all.iter().map(|job| (job.name.to_string(), job.engine, file(job))).collect())
    }

    #[test]
    fn database_is_recognised_by_variables_and_data_paths() {
        use DatabaseEngine::*;
        let file = |name: &str, file: &str| (name.to_owned(), Sqlite, Some(file.to_owned()));
        let urls = [("DATABASE_URL", "postgis://u:p@h/d"), ("REDIS_URL", "rediss://h")];
        let main = |engine| ("main".to_owned(), engine, None);
        assert_eq!(found("", &urls).unwrap(), [main(Postgres), ("redis".to_owned(), Redis, None)]);
        assert_eq!(found("databases: {}", &urls).unwrap(), []);
        assert_eq!(found("", &[("DATABASE_URL", "mongodb://h/d")]).unwrap(), []);
        let recipe = "data: [db.sqlite3, media, var/My App.db, x.db/]";
        assert_eq!(found(recipe, &[]).unwrap(), [file("db", "db.sqlite3"), file("my-app", "var/My App.db")]);
        for url in
            ["sqlite:///db.sqlite3", "sqlite:////app/db.sqlite3", "sqlite3:db.sqlite3?mode=rw", "sqlite:////data/db.sqlite3"]
        {
            assert_eq!(found("data: [db.sqlite3]", &[("DATABASE_URL", url)]).unwrap(), [file("main", "db.sqlite3")], "{url}");
        }
        assert_eq!(found("", &[("DATABASE_URL", "sqlite:////etc/passwd")]).unwrap(), []);
    }

    #[test]
    fn declared_database_replaces_recognition_and_must_fit_its_variable() {
        use DatabaseEngine::*;
        let recipe =
            "data: [data, media]\ndatabases: {one: {type: postgres, url: $PG}, two: {path: data/x.sqlite3}, three: {path: y}}";
        let env = [("PG", "postgres://h/d"), ("DATABASE_URL", "mysql://h/d")];
        let file = |name: &str, file: &str| (name.to_owned(), Sqlite, Some(file.to_owned()));
        let expected = [("one".to_owned(), Postgres, None), file("two", "data/x.sqlite3"), file("three", "y")];
        assert_eq!(found(recipe, &env).unwrap(), expected);
        let path = found("databases: {main: {type: sqlite, path: data/app.sqlite3}}", &[]).unwrap();
        assert_eq!(path, [file("main", "app.sqlite3")]);
        let recipe = "databases: {main: {type: mariadb, url: $DATABASE_URL}}";
        assert!(found(recipe, &[]).unwrap_err().to_string().contains("DATABASE_URL has no value"));
        let secret = found(recipe, &[("DATABASE_URL", "postgres://u:secret@h/d")]).unwrap_err().to_string();
        assert!(secret.contains("PostgreSQL") && !secret.contains("secret"), "{secret}");
    }
}
