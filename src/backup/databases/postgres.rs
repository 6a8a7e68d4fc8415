//! PostgreSQL: dumps by `pg_dump --format=custom`. A restore replaces the database in one transaction of `psql`: it drops all objects that no
//! extension owns, runs the script of `pg_restore`, and commits. A kill at any moment leaves the old or the restored database.
//!
//! A restore needs no right to create databases, keeps the settings and rights of the database itself, and keeps installed extensions, which
//! often only a superuser can create.

pub(super) mod scratch;

use std::{
    fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::Stdio,
};

use super::{
    DatabaseJob, DatabaseSize, DumpInfo, Engine, EngineVersions, OtherSessions,
    tool::{self, Tool, ToolError},
};
use crate::backup::{BackupFailure, FailureKind};

/// The port of a server whose URL names no port.
const PORT: u16 = 5432;

/// The engine of PostgreSQL databases.
pub(super) struct Postgres;

/// The variables of libpq that a parameter of the URL sets. Other parameters are for the application's own library.
const PARAMETERS: [(&str, &str); 11] = [
    ("host", "PGHOST"),
    ("port", "PGPORT"),
    ("user", "PGUSER"),
    ("dbname", "PGDATABASE"),
    ("sslmode", "PGSSLMODE"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslcert", "PGSSLCERT"),
    ("sslkey", "PGSSLKEY"),
    ("channel_binding", "PGCHANNELBINDING"),
    ("gssencmode", "PGGSSENCMODE"),
    ("target_session_attrs", "PGTARGETSESSIONATTRS"),
];

/// Drops everything in the database that no extension owns, except the schema `public` itself. `psql` has begun a transaction.
const WIPE: &str = include_str!("postgres_wipe.sql");

/// Returns the relations and routines that the restore would have to drop, and whose owner's rights this role does not have.
const FOREIGN: &str = "select count(*), min(what) from (
  select c.relname::text as what, c.relowner as owner, c.oid, 'pg_class'::regclass as class, c.relnamespace as namespace
    from pg_catalog.pg_class c where c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
  union all
  select p.proname::text, p.proowner, p.oid, 'pg_proc'::regclass, p.pronamespace from pg_catalog.pg_proc p
) o join pg_catalog.pg_namespace n on n.oid = o.namespace
where n.nspname !~ '^pg_' and n.nspname <> 'information_schema' and not pg_has_role(current_user, o.owner, 'USAGE')
  and not exists (select 1 from pg_catalog.pg_depend d where d.classid = o.class and d.objid = o.oid and d.deptype = 'e');";

/// A program of PostgreSQL.
struct Program {
    path: PathBuf,
    major: u32,
}

/// Returns the installed programs `name` with their major versions, newest first. Distributions install several versions side by side.
fn installed(name: &str) -> Vec<Program> {
    let mut found = Vec::new();
    for (directory, prefix, suffix) in [("/usr/lib/postgresql", "", "bin"), ("/usr", "pgsql-", "bin"), ("/opt", "pgsql-", "bin")]
    {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let major = entry.file_name().to_str().and_then(|name| name.strip_prefix(prefix)?.parse().ok());
            let path = entry.path().join(suffix).join(name);
            found.extend(major.filter(|_| path.is_file()).map(|major| Program { path, major }));
        }
    }
    found.sort_by_key(|program| std::cmp::Reverse(program.major));
    if let Some(path) = tool::find(&[name], &[])
        && let Some(version) = version_of(&path)
        && found.is_empty()
    {
        found.push(Program { path, major: major_of(&version) });
    }
    found
}

/// Returns the version that a program states, such as `15.8`, from `pg_dump (PostgreSQL) 15.8 (Debian 15.8-1)`.
fn version_of(path: &Path) -> Option<String> {
    let output = Tool::new(path).args(["--version"]).output(b"").ok()?.ok()?;
    let text = String::from_utf8(output).ok()?;
    text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit())).map(str::to_owned)
}

/// Returns the major version of `15.8`, `17beta1` or `18devel`.
pub(super) fn major_of(version: &str) -> u32 {
    let end = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    version.get(..end).and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

fn missing(name: &str) -> BackupFailure {
    BackupFailure {
        hint: Some(String::from(
            "install the client programs of PostgreSQL on the server, for example the package postgresql-client; or leave the database out of \
             restore points with `databases: {}` in larder.yml",
        )),
        ..BackupFailure::new(FailureKind::Refused, format!("cannot find the program {name} of PostgreSQL"))
    }
}

/// Returns the program for a server of version `server`: of the same major version if it is installed, or else of the next newer version.
/// A program can read older servers, but not newer servers.
fn program_for(name: &str, server: &str) -> Result<Program, BackupFailure> {
    let (all, wanted) = (installed(name), major_of(server));
    let newest = all.first().ok_or_else(|| missing(name))?.major;
    all.into_iter().rev().find(|program| program.major >= wanted).ok_or_else(|| BackupFailure {
        hint: Some(format!("install the package postgresql-client-{wanted} on the server")),
        ..BackupFailure::new(
            FailureKind::Refused,
            format!(
                "{name} of version {newest} cannot read a PostgreSQL server of version {server} (expected {wanted} or newer)"
            ),
        )
    })
}

/// Adds the connection of a database to a program. The password is in a variable.
fn connected(tool: Tool, job: &DatabaseJob) -> Result<Tool, BackupFailure> {
    let address = job.address()?;
    let mut tool = tool
        .args(["--no-password"])
        .env("PGHOST", address.host.as_deref().unwrap_or("localhost"))
        .env("PGPORT", address.port.unwrap_or(PORT).to_string())
        .env("PGCONNECT_TIMEOUT", "10")
        .env("PGAPPNAME", "larder")
        .env("PGCLIENTENCODING", "UTF8")
        // Files of this machine must not change the connection.
        .env("PGPASSFILE", "/nonexistent")
        .env("PGSERVICEFILE", "/nonexistent")
        .env("PGSYSCONFDIR", "/nonexistent");
    if let Some(user) = &address.user {
        tool = tool.env("PGUSER", user);
    }
    if let Some(database) = address.database.as_ref().or(address.user.as_ref()) {
        tool = tool.env("PGDATABASE", database);
    }
    for (parameter, variable) in PARAMETERS {
        if let Some(value) = address.parameters.get(parameter) {
            tool = tool.env(variable, value);
        }
    }
    match address.password.as_ref().or(address.parameters.get("password")) {
        Some(password) => Ok(tool.secret("PGPASSWORD", password)),
        None => Ok(tool),
    }
}

/// Returns the failure of a program that could not connect, or whose work on the database failed.
pub(super) fn failed(job: &DatabaseJob, doing: &str, error: &ToolError) -> BackupFailure {
    let server = job.address().map(|address| address.server(PORT)).unwrap_or_default();
    let has = |text: &str| error.text.contains(text);
    let hint = if has("password authentication failed") || has("no password supplied") {
        Some("correct the password in the URL of the database, and deploy")
    } else if has("does not exist") && has("FATAL") {
        Some("create the database or the role, or correct the URL, and deploy")
    } else if has("Connection refused") || has("timeout expired") || has("could not translate host name") || has("starting up") {
        Some("start the database server, or correct the host and the port in the URL of the database")
    } else if has("lock timeout") {
        Some("end the other connections to the database, and repeat the command")
    } else if has("permission denied") || has("must be owner") {
        Some("let the role in the URL own the database and its objects")
    } else if has("o space left on device") {
        Some("free disk space on the database server")
    } else {
        None
    };
    let what = format!("{doing} the PostgreSQL database {} at {server}", job.name);
    // After the loss of a connection, the end of the transaction is unknown.
    let is_lost =
        ["server closed the connection", "connection to server was lost", "terminating connection"].into_iter().any(has);
    let kind = if is_lost { FailureKind::Machine } else { FailureKind::Refused };
    BackupFailure { hint: hint.map(str::to_owned), ..error.failed(kind, &what) }
}

pub(super) fn psql(job: &DatabaseJob) -> Result<Tool, BackupFailure> {
    let program = installed("psql").into_iter().next().ok_or_else(|| missing("psql"))?;
    let tool = Tool::new(&program.path).args(["--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--set=ON_ERROR_STOP=1"]);
    connected(tool, job)
}

/// Runs statements, and returns the fields of the last row.
pub(super) fn query(job: &DatabaseJob, statements: &str) -> Result<Vec<String>, BackupFailure> {
    let answer = psql(job)?.output(statements.as_bytes())?.map_err(|error| failed(job, "use", &error))?;
    let text = String::from_utf8_lossy(&answer);
    Ok(text.lines().rfind(|line| !line.is_empty()).unwrap_or_default().split('|').map(str::to_owned).collect())
}

/// Returns the version of the server, such as `15.8`.
fn server_version(job: &DatabaseJob) -> Result<String, BackupFailure> {
    let row = query(job, "select split_part(current_setting('server_version'), ' ', 1);")?;
    row.into_iter().next().filter(|version| major_of(version) > 0).ok_or_else(|| job.refused("the server states no version"))
}

impl Engine for Postgres {
    fn check(&self, job: &DatabaseJob) -> Result<EngineVersions, BackupFailure> {
        let server = server_version(job)?;
        let program = program_for("pg_dump", &server)?;
        let tool = version_of(&program.path).unwrap_or_else(|| program.major.to_string());
        Ok(EngineVersions { tool, server })
    }

    fn check_restore(&self, job: &DatabaseJob) -> Result<EngineVersions, BackupFailure> {
        let versions = self.check(job)?;
        program_for("pg_restore", &versions.server)?;
        let hint = Some(String::from("let the role in the URL own the database and its objects"));
        let row = query(job, FOREIGN)?;
        if let [count, first] = row.as_slice()
            && count != "0"
        {
            let why = format!("the role in its URL does not own {count} of its tables and functions, such as {first}");
            return Err(BackupFailure { hint, ..job.refused(why) });
        }
        let row = query(job, "select has_schema_privilege('public', 'CREATE'), pg_is_in_recovery();");
        match row?.as_slice() {
            [_, recovery] if recovery == "t" => Err(job.refused("the server is a read-only standby")),
            [create, _] if create == "f" => {
                Err(BackupFailure { hint, ..job.refused("the role in its URL may not create tables in the schema public") })
            }
            _ => Ok(versions),
        }
    }

    fn size(&self, job: &DatabaseJob) -> Result<DatabaseSize, BackupFailure> {
        let row = query(job, "select pg_database_size(current_database());")?;
        let bytes = row.first().and_then(|bytes| bytes.parse().ok());
        bytes.map(|bytes| DatabaseSize { bytes }).ok_or_else(|| job.refused("the server states no size"))
    }

    fn other_sessions(&self, job: &DatabaseJob) -> Result<Option<OtherSessions>, BackupFailure> {
        // Sessions of other roles have a user name, but neither an address nor an application for a role without `pg_read_all_stats`.
        let sessions =
            "select count(*), min(concat(usename, ' from ' || host(client_addr), ' (' || nullif(application_name, '') || ')'))
            from pg_stat_activity where datname = current_database() and usename is not null and pid <> pg_backend_pid()
            and coalesce(backend_type, 'client backend') = 'client backend';";
        let row = query(job, sessions)?;
        let count = row.first().and_then(|count| count.parse().ok()).unwrap_or(0);
        Ok((count > 0).then(|| OtherSessions::new(job, count, &row.get(1..).unwrap_or_default().join("|"))))
    }

    fn dump(&self, job: &DatabaseJob, into: &Path) -> Result<DumpInfo, BackupFailure> {
        let versions = self.check(job)?;
        let program = program_for("pg_dump", &versions.server)?;
        // A statement of the application that holds a lock on a table for long must not stop the dump for ever.
        let tool = Tool::new(&program.path).args(["--format=custom", "--lock-wait-timeout=60000"]);
        let bytes = connected(tool, job)?.output_to(into)?.map_err(|error| failed(job, "dump", &error))?;
        self.verify(into)?;
        Ok(DumpInfo::of(job, versions, bytes))
    }

    fn verify(&self, dump: &Path) -> Result<(), BackupFailure> {
        let program = installed("pg_restore").into_iter().next().ok_or_else(|| missing("pg_restore"))?;
        // The script contains all rows, so the whole dump is read and decompressed.
        let tool = Tool::new(&program.path).args(["--file=-"]).args([dump]);
        let ended = tool.spawn(Stdio::null(), Stdio::null())?.wait()?;
        ended.map_err(|error| error.failed(FailureKind::Damaged, "read the dump of a PostgreSQL database"))
    }

    fn restore(&self, job: &DatabaseJob, from: &Path) -> Result<(), BackupFailure> {
        let versions = self.check_restore(job)?;
        let program = program_for("pg_restore", &versions.server)?;
        let list = tempfile::NamedTempFile::new().map_err(|e| BackupFailure::io("create a temporary file", &e))?;
        fs::write(list.path(), self.contents(&program, from)?).map_err(|e| BackupFailure::io("write a temporary file", &e))?;
        let is_superuser = query(job, "select current_setting('is_superuser');")?.first().is_some_and(|is| is == "on");
        // Only a superuser can create objects for other roles.
        let owner: &[&str] = if is_superuser { &[] } else { &["--no-owner"] };
        let script = Tool::new(&program.path).args(["--file=-", "--use-list"]).args([list.path()]).args(owner).args([from]);
        // Connections that the stopped processes or a killed restore left open hold locks until they end.
        let own = "select count(pg_terminate_backend(pid)) from pg_stat_activity
            where datname = current_database() and pid <> pg_backend_pid() and usename = current_user;";
        query(job, own)?;
        let mut psql = psql(job)?.spawn(Stdio::piped(), Stdio::null())?;
        let mut script = script.spawn(Stdio::null(), Stdio::piped())?;
        let fed = match (psql.child.stdin.take(), script.child.stdout.take()) {
            (Some(mut to), Some(mut from)) => feed(&mut to, &mut from, || script.wait()),
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        };
        // The transaction was committed only if `psql` has read the last statement. An early end of `psql` reverts the transaction.
        psql.wait()?.map_err(|error| failed(job, "restore", &error))?;
        match fed {
            Ok(Ok(())) => Ok(()),
            Ok(Err(failure)) => Err(failure),
            Err(error) => Err(BackupFailure::io("pass the dump to psql", &error)),
        }
    }
}

/// Passes the statements of a restore to `psql`. Without the last statement, the server reverts the transaction at the end of the connection.
fn feed(
    to: &mut impl Write,
    from: &mut impl Read,
    ended: impl FnOnce() -> Result<Result<(), ToolError>, BackupFailure>,
) -> io::Result<Result<(), BackupFailure>> {
    to.write_all(b"begin;\nset local lock_timeout = '30s';\n")?;
    to.write_all(WIPE.as_bytes())?;
    io::copy(from, to)?;
    match ended() {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            return Ok(Err(error.failed(FailureKind::Damaged, "read the dump of a PostgreSQL database")));
        }
        Err(failure) => return Ok(Err(failure)),
    }
    to.write_all(b"\ncommit;\n")?;
    to.flush()?;
    Ok(Ok(()))
}

impl Postgres {
    /// Returns the table of contents of a dump, without the comments on extensions, which only the owner of an extension can set.
    fn contents(&self, program: &Program, dump: &Path) -> Result<String, BackupFailure> {
        let listed = Tool::new(&program.path).args(["--list"]).args([dump]).output(b"")?;
        let listed = listed.map_err(|error| error.failed(FailureKind::Damaged, "read the dump of a PostgreSQL database"))?;
        let text = String::from_utf8_lossy(&listed).into_owned();
        Ok(text.lines().filter(|line| !line.contains(" COMMENT - EXTENSION ")).map(|line| format!("{line}\n")).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn major_version_is_read_from_each_form() {
        for (version, major) in [("15.8", 15), ("9.6.24", 9), ("17beta1", 17), ("18devel", 18), ("x", 0)] {
            assert_eq!(major_of(version), major, "{version}");
        }
    }

    #[test]
    fn restore_without_the_last_statement_is_not_committed() {
        let (mut to, mut from) = (Vec::new(), &b"create table t();"[..]);
        assert!(feed(&mut to, &mut from, || Ok(Ok(()))).unwrap().is_ok());
        assert!(to.starts_with(b"begin;\n") && to.ends_with(b"create table t();\ncommit;\n"));
        let (mut to, mut from) = (Vec::new(), &b"create"[..]);
        let damaged = || Err(BackupFailure::new(FailureKind::Damaged, "cut"));
        assert!(feed(&mut to, &mut from, damaged).unwrap().is_err());
        assert!(!String::from_utf8(to).unwrap().contains("commit"));
    }
}
