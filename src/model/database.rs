//! The databases of an environment: their names and engines.

use serde::{Deserialize, Serialize};

/// The kind of a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DatabaseEngine {
    /// PostgreSQL.
    Postgres,
    /// MySQL or MariaDB.
    #[serde(alias = "mariadb")]
    Mysql,
    /// SQLite, a file below `data/`.
    Sqlite,
    /// Redis or a compatible server.
    Redis,
}

impl DatabaseEngine {
    /// Every engine with its words in configuration files. The first word of an engine is its name in records.
    pub const WORDS: [(&'static str, DatabaseEngine); 6] = [
        ("postgres", DatabaseEngine::Postgres),
        ("postgresql", DatabaseEngine::Postgres),
        ("mysql", DatabaseEngine::Mysql),
        ("mariadb", DatabaseEngine::Mysql),
        ("sqlite", DatabaseEngine::Sqlite),
        ("redis", DatabaseEngine::Redis),
    ];

    /// Returns the name in records, such as `postgres`.
    pub fn as_str(self) -> &'static str {
        Self::WORDS.into_iter().find(|(_, engine)| *engine == self).map_or("postgres", |(word, _)| word)
    }

    /// Returns the name in messages.
    pub fn title(self) -> &'static str {
        match self {
            DatabaseEngine::Postgres => "PostgreSQL",
            DatabaseEngine::Mysql => "MySQL",
            DatabaseEngine::Sqlite => "SQLite",
            DatabaseEngine::Redis => "Redis",
        }
    }

    /// Returns the engine of a database URL with this scheme, the text before `:`. Frameworks use several schemes for one engine.
    pub fn of_scheme(scheme: &str) -> Option<DatabaseEngine> {
        let scheme = scheme.to_ascii_lowercase();
        // SQLAlchemy appends the driver, as in `postgresql+psycopg`.
        Some(match scheme.split('+').next().unwrap_or_default() {
            "postgres" | "postgresql" | "pgsql" | "postgis" => DatabaseEngine::Postgres,
            "mysql" | "mysql2" | "mariadb" | "mysqlgis" => DatabaseEngine::Mysql,
            "sqlite" | "sqlite3" | "spatialite" | "file" => DatabaseEngine::Sqlite,
            "redis" | "rediss" | "valkey" | "valkeys" => DatabaseEngine::Redis,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engine_is_read_by_each_word_and_written_by_its_name() {
        for (word, engine) in DatabaseEngine::WORDS {
            assert_eq!(DatabaseEngine::of_scheme(word), Some(engine), "{word}");
        }
        assert_eq!(serde_json::to_string(&DatabaseEngine::Mysql).unwrap(), "\"mysql\"");
        assert_eq!(serde_json::from_str::<DatabaseEngine>("\"mariadb\"").unwrap(), DatabaseEngine::Mysql);
        assert_eq!(DatabaseEngine::of_scheme("postgresql+psycopg"), Some(DatabaseEngine::Postgres));
        assert_eq!(DatabaseEngine::of_scheme("mongodb"), None);
        assert_eq!(DatabaseEngine::Mysql.as_str(), "mysql");
    }
}
