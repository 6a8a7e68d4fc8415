//! The section `databases:` of the server file: the database servers on which `larder db create` creates databases.

use std::path::PathBuf;

use super::{
    keys::{Fallback::Says, KeyRow},
    reader::ConfigReader,
    yaml::Node,
};

/// The database servers of the operator. Each value is the path of a file with the URL of an administrator, because the server file itself
/// may be readable by other users.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DatabaseServers {
    /// The file for PostgreSQL.
    pub postgres: Option<PathBuf>,
    /// The file for MariaDB or MySQL.
    pub mariadb: Option<PathBuf>,
}

/// The keys of the section.
pub(super) const DATABASE_SERVER_KEYS: &[KeyRow<DatabaseServers>] = &[
    KeyRow::value(
        "postgres",
        "The file may contain postgresql:///postgres?host=/run/postgresql&user=larder.",
        Says("no server"),
        "/etc/larder/postgres.url",
        |reader, node, key, servers| servers.postgres = admin_file(reader, node, key),
    ),
    KeyRow::value(
        "mariadb",
        "The file may contain mysql://larder@localhost/?socket=/run/mysqld/mysqld.sock.",
        Says("no server"),
        "/etc/larder/mariadb.url",
        |reader, node, key, servers| servers.mariadb = admin_file(reader, node, key),
    ),
];

/// Reads the path of a file with the URL of an administrator.
fn admin_file(reader: &mut ConfigReader, node: &Node, key: &str) -> Option<PathBuf> {
    reader.value(node, key, "the absolute path of a file that contains a URL", |text| {
        // The value may be a URL with a password, so the message does not repeat the value.
        let path = PathBuf::from(text);
        if path.is_absolute() { Ok(path) } else { Err(String::from("the value is not an absolute path")) }
    })
}
