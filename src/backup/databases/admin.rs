//! Creates and drops databases on the database servers of the operator, for `larder db create` and `larder db destroy`.
//!
//! Unlike the other files of this directory, this file is for the server process: the URL of the administrator must reach no process of a
//! project, and the sockets of database servers are outside of all sandboxes.

use std::{fs, io::Read, os::unix::fs::MetadataExt, path::Path};

use super::{DatabaseAt, DatabaseJob, DatabaseUrl, mysql, postgres, url::SCRATCH_SUFFIX};
use crate::{
    backup::{BackupFailure, FailureKind},
    model::{DatabaseEngine, Environment},
};

/// The maximum size of the file with a URL, in bytes.
const MAX_URL: u64 = 4096;

/// The maximum length of the name of a database. MySQL allows 32 characters for a user.
const MAX_NAME: usize = 32;

/// A database and its only user, who has the same name.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseAccount {
    name: String,
    password: String,
}

impl DatabaseAccount {
    /// Returns the account of an environment, with a new random password of 256 bits.
    pub fn new(environment: &Environment) -> std::io::Result<DatabaseAccount> {
        let password = data_encoding::HEXLOWER.encode(&crate::host::random::<32>()?);
        Ok(DatabaseAccount { name: name_of(environment), password })
    }

    /// Returns the account in a URL that [`DatabaseAccount::url`] returned.
    pub fn of_url(url: &DatabaseUrl) -> Result<DatabaseAccount, BackupFailure> {
        let address = url.address()?;
        let is_plain = |text: &String| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        match (address.database.filter(is_plain), address.user.filter(is_plain), address.password.filter(is_plain)) {
            (Some(name), Some(user), Some(password)) if user == name => Ok(DatabaseAccount { name, password }),
            _ => Err(BackupFailure::new(FailureKind::Refused, "cannot use the stored URL: `larder db create` did not write it")),
        }
    }

    /// Returns the name of the database and its user.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the URL of the database on a server.
    pub fn url(&self, engine: DatabaseEngine, server: &str) -> DatabaseUrl {
        let DatabaseAccount { name, password } = self;
        let scheme = engine.as_str();
        DatabaseUrl::new(format!("{scheme}://{name}:{password}@{server}/{name}"))
    }
}

/// Returns the name of an environment's database. Names of projects have no underscore, so the name is unique unless it is shortened, and a
/// shortened name ends with a digest.
fn name_of(environment: &Environment) -> String {
    let full = format!("{}__{}", environment.project, environment.name);
    let plain = full.replace('-', "_");
    // Two names that differ only in a dash must stay different.
    let is_exact =
        full.len() <= MAX_NAME && !environment.project.as_str().contains('-') && !environment.name.as_str().contains('-');
    if is_exact {
        return plain;
    }
    let digest = blake3::hash(full.as_bytes()).to_hex();
    let start: String = plain.chars().take(MAX_NAME - 9).collect();
    format!("{start}_{}", digest.get(..8).unwrap_or_default())
}

/// A database server of the operator, with the URL of its administrator.
pub struct DatabaseServer {
    engine: DatabaseEngine,
    admin: DatabaseJob,
}

impl DatabaseServer {
    /// Reads the URL of the administrator from a file, which other users must not be able to read.
    pub fn open(engine: DatabaseEngine, file: &Path) -> Result<DatabaseServer, BackupFailure> {
        let name = file.display();
        let failed = |e: std::io::Error| BackupFailure::new(FailureKind::Refused, format!("cannot read {name}: {e}"));
        let opened = fs::File::open(file).map_err(failed)?;
        let mode = opened.metadata().map_err(failed)?.mode();
        if mode & 0o007 != 0 {
            return Err(BackupFailure {
                hint: Some(format!("run: chmod 640 {name}")),
                ..BackupFailure::new(
                    FailureKind::Refused,
                    format!("cannot use {name}: every user of the machine can read the file"),
                )
            });
        }
        let mut text = String::new();
        opened.take(MAX_URL).read_to_string(&mut text).map_err(failed)?;
        let url = DatabaseUrl::new(text.trim());
        if DatabaseEngine::of_scheme(url.scheme()) != Some(engine) {
            let why = format!("cannot use {name}: the file does not contain the URL of a {} server", engine.title());
            return Err(BackupFailure::new(FailureKind::Refused, why));
        }
        let admin = "admin".parse().map_err(|_| BackupFailure::new(FailureKind::Machine, "cannot name the administrator"))?;
        Ok(DatabaseServer { engine, admin: DatabaseJob { name: admin, engine, at: DatabaseAt::Url(url), is_declared: true } })
    }

    /// Returns the address of the server for applications, as `HOST:PORT`. A server that the administrator reaches by a socket is reached by
    /// applications at 127.0.0.1.
    pub fn address(&self) -> Result<String, BackupFailure> {
        let address = self.admin.address()?;
        let has_socket = ["host", "socket", "unix_socket"].iter().any(|name| address.parameters.contains_key(*name));
        if let (Some(host), false) = (&address.host, has_socket) {
            let host = if host == "localhost" { "127.0.0.1" } else { host.as_str() };
            let port = address.port.unwrap_or(if self.engine == DatabaseEngine::Postgres { 5432 } else { 3306 });
            return Ok(if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") });
        }
        let port = match self.engine {
            DatabaseEngine::Postgres => postgres::query(&self.admin, "select current_setting('port');")?.into_iter().next(),
            _ => mysql::admin(&self.admin, "SELECT @@port;\n")?.into_iter().flatten().next(),
        };
        let port = port.and_then(|port| port.parse::<u16>().ok()).filter(|port| *port != 0);
        Ok(format!("127.0.0.1:{}", port.ok_or_else(|| self.admin.refused("the server does not listen on a TCP port"))?))
    }

    /// Returns true if the server has a database or a user with the name of the account.
    pub fn has(&self, account: &DatabaseAccount) -> Result<bool, BackupFailure> {
        let name = &account.name;
        let found = match self.engine {
            DatabaseEngine::Postgres => postgres::query(
                &self.admin,
                &format!(
                    "select (select count(*) from pg_roles where rolname = '{name}') \
                     + (select count(*) from pg_database where datname = '{name}');"
                ),
            )?,
            _ => mysql::admin(
                &self.admin,
                &format!(
                    "SELECT (SELECT COUNT(*) FROM mysql.user WHERE User = '{name}') \
                     + (SELECT COUNT(*) FROM information_schema.schemata WHERE schema_name = '{name}');\n"
                ),
            )?
            .concat(),
        };
        Ok(found.first().is_none_or(|count| count != "0"))
    }

    /// Creates the scratch database of a drill beside the database of an account, unless it exists. An account of MySQL has the right to create
    /// this database itself.
    pub fn create_scratch(&self, account: &DatabaseAccount) -> Result<(), BackupFailure> {
        if self.engine != DatabaseEngine::Postgres {
            return Ok(());
        }
        let live = &account.name;
        let name = format!("{live}{SCRATCH_SUFFIX}");
        let found = postgres::query(&self.admin, &format!("select count(*) from pg_database where datname = '{name}';"))?;
        if found.first().is_none_or(|count| count != "0") {
            return Ok(());
        }
        let statements = postgres::scratch::creation(live, &name, &format!("owner {live}"));
        postgres::query(&self.admin, &format!("{statements}revoke all on database {name} from public;\n")).map(drop)
    }

    /// Creates database and user. A database and a user of an earlier call with this account stay, and the user gets the password of the account.
    pub fn create(&self, account: &DatabaseAccount) -> Result<(), BackupFailure> {
        let DatabaseAccount { name, password } = account;
        if self.engine != DatabaseEngine::Postgres {
            let pattern = name.replace('_', "\\_");
            let statements = format!(
                "CREATE USER IF NOT EXISTS '{name}'@'%' IDENTIFIED BY '{password}';\n\
                 ALTER USER '{name}'@'%' IDENTIFIED BY '{password}';\n\
                 CREATE DATABASE IF NOT EXISTS `{name}` CHARACTER SET utf8mb4;\n\
                 GRANT ALL PRIVILEGES ON `{pattern}`.* TO '{name}'@'%';\n\
                 GRANT ALL PRIVILEGES ON `{pattern}\\_larder\\_%`.* TO '{name}'@'%';\n"
            );
            return mysql::admin(&self.admin, &statements).map(drop);
        }
        let count = |table: &str, column: &str| {
            let found = postgres::query(&self.admin, &format!("select count(*) from {table} where {column} = '{name}';"))?;
            Ok::<bool, BackupFailure>(found.first().is_none_or(|count| count != "0"))
        };
        let verb = if count("pg_roles", "rolname")? { "alter" } else { "create" };
        // Only a member of a role may create a database that belongs to the role.
        // With CREATEDB, a hold copies the database on the server, which takes less time than a dump.
        let role = format!("{verb} role {name} login createdb password '{password}';\ngrant {name} to current_user;\n");
        postgres::query(&self.admin, &role)?;
        if !count("pg_database", "datname")? {
            postgres::query(&self.admin, &format!("create database {name} owner {name};\n"))?;
        }
        postgres::query(&self.admin, &format!("revoke all on database {name} from public;\n")).map(drop)
    }

    /// Drops database and user, and ends the connections to the database.
    pub fn drop(&self, account: &DatabaseAccount) -> Result<(), BackupFailure> {
        let name = &account.name;
        if self.engine != DatabaseEngine::Postgres {
            let statements = format!(
                "DROP DATABASE IF EXISTS `{name}`;\nDROP DATABASE IF EXISTS `{name}_larder_new`;\n\
                 DROP DATABASE IF EXISTS `{name}_larder_old`;\nDROP USER IF EXISTS '{name}'@'%';\n"
            );
            return mysql::admin(&self.admin, &statements).map(drop);
        }
        // The names of accounts have no characters with a meaning in patterns, except the underscore.
        let pattern = format!("^{name}_larder_[0-9a-f]{{12}}(_old)?$");
        let copies = format!(
            "select format('drop database %I with (force)', datname) from pg_database where datname ~ '{pattern}' \\gexec\n"
        );
        postgres::query(&self.admin, &copies)?;
        postgres::query(&self.admin, &format!("drop database if exists {name} with (force);\n"))?;
        postgres::query(&self.admin, &format!("drop role if exists {name};\n")).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn account_is_read_from_its_own_url_only() {
        let account = DatabaseAccount { name: String::from("shop__production"), password: String::from("0a") };
        let url = account.url(DatabaseEngine::Mysql, "127.0.0.1:3306");
        assert_eq!(url.expose(), "mysql://shop__production:0a@127.0.0.1:3306/shop__production");
        assert!(DatabaseAccount::of_url(&url).is_ok_and(|found| found == account));
        for other in ["mysql://a:b@h/c", "mysql://a@h/a", "mysql://a;b:c@h/a;b", "mysql://h"] {
            assert!(DatabaseAccount::of_url(&DatabaseUrl::new(other)).is_err(), "{other}");
        }
    }

    #[test]
    fn file_of_an_administrator_must_be_private_and_fit_the_engine() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("url");
        fs::write(&file, "mysql://admin:secret@localhost/\n").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let why = |engine| DatabaseServer::open(engine, &file).err().map(|failure| failure.why).unwrap_or_default();
        assert!(why(DatabaseEngine::Mysql).contains("every user"));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        let wrong = why(DatabaseEngine::Postgres);
        assert!(wrong.contains("PostgreSQL") && !wrong.contains("secret"), "{wrong}");
        assert_eq!(DatabaseServer::open(DatabaseEngine::Mysql, &file).ok().unwrap().address().unwrap(), "127.0.0.1:3306");
    }
}
