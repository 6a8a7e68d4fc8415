//! Dumps of databases, which are parts of restore points. Each engine has a file with its [`Engine`]; `declared.rs` finds the databases of an
//! environment, and `tool.rs` runs the programs of an engine. The code runs in the dump and restore workers, as the run user of the
//! environment.
//!
//! The URL of a database contains a password. A URL is only in memory and in the pipe to a worker: never in a file, a log, an error, or the
//! arguments of a program.

mod admin;
mod declared;
mod mysql;
mod postgres;
mod postgres_copy;
mod redis;
mod scratch;
mod sqlite;
mod stream;
pub(in crate::backup) mod tool;
mod url;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use self::{
    admin::{DatabaseAccount, DatabaseServer},
    declared::{DatabaseConflict, databases_of},
    scratch::{create_scratch, drop_scratch, load_scratch},
    sqlite::is_database as is_sqlite,
    stream::{DatabaseStream, SHELL_VARIABLE, shell_main as database_shell, work as stream_work},
    url::{DatabaseAddress, DatabaseUrl},
};
use super::{BackupFailure, FailureKind};
use crate::model::{DatabaseEngine, DatabaseName, sanitise_line};

/// A database to dump or restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseJob {
    /// The name.
    pub name: DatabaseName,
    /// The engine.
    pub engine: DatabaseEngine,
    /// The location.
    pub at: DatabaseAt,
    /// False for a database that larder recognised by a variable or a data path. The file of such a database can be missing, or can be a
    /// file of another format. Its server can be one that the machine cannot reach.
    pub is_declared: bool,
}

/// The location of a database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DatabaseAt {
    /// A database on a server.
    Url(DatabaseUrl),
    /// A file: a path below `data/` in a job, and an absolute path in the calls of an [`Engine`].
    File(PathBuf),
}

impl DatabaseJob {
    /// Returns the parts of the URL, or an error for a database that is a file.
    pub fn address(&self) -> Result<DatabaseAddress, BackupFailure> {
        match &self.at {
            DatabaseAt::Url(url) => url.address(),
            DatabaseAt::File(_) => Err(self.refused("its location is a file, not a URL")),
        }
    }

    /// Returns the path of the file, or an error for a database on a server.
    pub fn file(&self) -> Result<&Path, BackupFailure> {
        match &self.at {
            DatabaseAt::File(path) => Ok(path),
            DatabaseAt::Url(_) => Err(self.refused("its location is a URL, not a file")),
        }
    }

    /// Returns a refusal that names the database.
    pub fn refused(&self, why: impl std::fmt::Display) -> BackupFailure {
        BackupFailure::new(FailureKind::Refused, format!("cannot use the {} database {}: {why}", self.engine.title(), self.name))
    }

    /// Returns the name of the dump in `databases/`.
    pub fn dump_name(&self) -> String {
        format!("{}.dump", self.name)
    }
}

/// The versions of an engine's tools and server, as each of them states its version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineVersions {
    /// The version of the program or library that reads the database.
    pub tool: String,
    /// The version of the database server. For SQLite, the version of the library.
    pub server: String,
}

/// The size of a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseSize {
    /// The size of tables and indexes, in bytes. A dump is usually smaller.
    pub bytes: u64,
}

/// A dump in a restore point, as its label describes the dump.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpInfo {
    /// The name of the database.
    pub name: DatabaseName,
    /// The engine.
    pub engine: DatabaseEngine,
    /// The versions at the time of the dump.
    pub versions: EngineVersions,
    /// The size of the dump, in bytes.
    pub bytes: u64,
    /// The path of the dump in the restore point: `databases/NAME.dump`, or the path of an SQLite file below `data/`.
    pub path: String,
    /// The copy of the database on its server from which the dump is still to be written; absent if the restore point has the dump.
    #[serde(default)]
    pub copy: Option<String>,
}

impl DumpInfo {
    /// Describes a dump in `databases/`.
    pub(in crate::backup) fn of(job: &DatabaseJob, versions: EngineVersions, bytes: u64) -> DumpInfo {
        let path = format!("databases/{}", job.dump_name());
        DumpInfo { name: job.name.clone(), engine: job.engine, versions, bytes, path, copy: None }
    }
}

/// The sessions of other clients on a database: of neither larder nor a process of the application, which larder has stopped. The writes of these
/// clients after the restore point are lost in a restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherSessions {
    /// The name of the database.
    pub database: DatabaseName,
    /// The number of sessions.
    pub count: u64,
    /// The description of one of them, such as `shop from 127.0.0.1 (psql)`.
    pub first: String,
}

/// The maximum length of the description of a session, in characters.
const MAX_SESSION: usize = 100;

impl OtherSessions {
    fn new(job: &DatabaseJob, count: u64, first: &str) -> OtherSessions {
        let first = sanitise_line(first).chars().take(MAX_SESSION).collect();
        OtherSessions { database: job.name.clone(), count, first }
    }
}

impl std::fmt::Display for OtherSessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let noun = if self.count == 1 { "session uses" } else { "sessions use" };
        write!(f, "{} other {noun} the database {}, such as {}", self.count, self.database, self.first)
    }
}

/// The ways in which a restore point gets files or a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CaptureMethod {
    /// A copy of the database by its server; the dump follows from the copy.
    TemplateCopy,
    /// A dump by the program of the engine.
    Dump,
    /// A copy by SQLite's online backup API.
    SqliteBackup,
    /// Clones of files, which share their blocks with the files.
    Reflink,
    /// Copies of the files that changed.
    Copy,
}

impl CaptureMethod {
    /// Returns the words for messages.
    pub fn title(self) -> &'static str {
        match self {
            CaptureMethod::TemplateCopy => "copy on the server",
            CaptureMethod::Dump => "dump",
            CaptureMethod::SqliteBackup => "SQLite backup",
            CaptureMethod::Reflink => "reflink",
            CaptureMethod::Copy => "copy of changed files",
        }
    }
}

/// The cheapest exact method for a database whose writers are stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseSurvey {
    /// The name.
    pub name: DatabaseName,
    /// The size of the database in bytes.
    pub bytes: u64,
    /// The method.
    pub method: CaptureMethod,
    /// The reason why no cheaper method is possible; empty if the method is the cheapest one.
    pub why: String,
}

/// The request to copy a database on its server instead of dumping the database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyRequest {
    /// The name of the database.
    pub name: DatabaseName,
    /// True to write a dump if the copy fails. False to fail.
    pub or_dump: bool,
}

/// An engine: the operations on one kind of database. An error names the database and the server, and contains no password.
pub trait Engine: Sync {
    /// Connects, and compares the versions of tool and server. The caller checks a database before it stops or changes anything.
    fn check(&self, job: &DatabaseJob) -> Result<EngineVersions, BackupFailure>;

    /// Checks additionally that the database can be replaced: the rights of the role, and the programs of a restore.
    fn check_restore(&self, job: &DatabaseJob) -> Result<EngineVersions, BackupFailure> {
        self.check(job)
    }

    /// Returns the size of the database.
    fn size(&self, job: &DatabaseJob) -> Result<DatabaseSize, BackupFailure>;

    /// Returns the sessions of other clients on the database, or `None` without such sessions. An engine shows only the sessions that the user of
    /// the URL may see. The caller has stopped the processes of the application.
    fn other_sessions(&self, _job: &DatabaseJob) -> Result<Option<OtherSessions>, BackupFailure> {
        Ok(None)
    }

    /// Writes a consistent dump of the database to the new file `into`. The application may write to the database meanwhile.
    fn dump(&self, job: &DatabaseJob, into: &Path) -> Result<DumpInfo, BackupFailure>;

    /// Writes a dump like [`Engine::dump`], in a cheaper way if there is one. The caller has stopped all processes that write to the database.
    fn dump_stopped(&self, job: &DatabaseJob, into: &Path) -> Result<DumpInfo, BackupFailure> {
        self.dump(job, into)
    }

    /// Reads a dump back. Returns an error with [`FailureKind::Damaged`] for a dump that cannot be restored.
    fn verify(&self, dump: &Path) -> Result<(), BackupFailure>;

    /// Replaces the whole database with a dump, in one transaction or by a rename. A kill leaves the old or the restored database. The call
    /// may be repeated, also after a kill. An error with [`FailureKind::Machine`], such as a lost connection, leaves the content of the
    /// database unknown. After any other error, the database is unchanged.
    fn restore(&self, job: &DatabaseJob, from: &Path) -> Result<(), BackupFailure>;
}

/// The copies of an engine that a server makes of its own databases. A copy is named by the restore point to which it belongs.
pub trait ServerCopies: Sync {
    /// Returns the name of the copy of a database for a restore point.
    fn name(&self, job: &DatabaseJob, point: &str) -> Result<String, BackupFailure>;

    /// Returns the reason why the server cannot copy the database, or `None`.
    fn obstacle(&self, job: &DatabaseJob) -> Result<Option<String>, BackupFailure>;

    /// Ends the sessions of the role in the URL, and copies the database. Returns the size of the copy in bytes.
    fn copy(&self, job: &DatabaseJob, copy: &str) -> Result<u64, BackupFailure>;

    /// Replaces the database with its copy. A kill leaves the old or the copied database. The call may be repeated until
    /// [`ServerCopies::discard`]. `scratch` is a directory for a dump.
    fn put_back(&self, job: &DatabaseJob, copy: &str, scratch: &Path) -> Result<(), BackupFailure>;

    /// Returns the job of a copy, or `None` if the server has no such copy.
    fn of_copy(&self, job: &DatabaseJob, copy: &str) -> Result<Option<DatabaseJob>, BackupFailure>;

    /// Drops a copy, and the database that the copy has replaced. Ends a copy that is in progress.
    fn discard(&self, job: &DatabaseJob, copy: &str) -> Result<(), BackupFailure>;
}

/// Returns the copies of an engine, or `None` if its servers make no copies.
pub fn server_copies(engine: DatabaseEngine) -> Option<&'static dyn ServerCopies> {
    (engine == DatabaseEngine::Postgres).then_some(&postgres::Postgres as &dyn ServerCopies)
}

/// Returns the cheapest exact method for a database whose writers are stopped. `clones` is true if the file system clones files.
pub fn survey(job: &DatabaseJob, clones: bool) -> Result<DatabaseSurvey, BackupFailure> {
    let bytes = engine(job.engine).size(job)?.bytes;
    let (method, why) = match (server_copies(job.engine), &job.at) {
        (_, DatabaseAt::File(_)) if clones => (CaptureMethod::Reflink, String::new()),
        (_, DatabaseAt::File(_)) => (CaptureMethod::SqliteBackup, String::from("the file system has no reflinks")),
        (Some(copies), _) => match copies.obstacle(job)? {
            None => (CaptureMethod::TemplateCopy, String::new()),
            Some(why) => (CaptureMethod::Dump, why),
        },
        (None, _) => (CaptureMethod::Dump, String::new()),
    };
    Ok(DatabaseSurvey { name: job.name.clone(), bytes, method, why })
}

/// Connects to a database as its application does.
pub fn check_database(job: &DatabaseJob) -> Result<(), BackupFailure> {
    engine(job.engine).check(job).map(drop)
}

/// Returns the engine of a kind of database.
pub fn engine(engine: DatabaseEngine) -> &'static dyn Engine {
    match engine {
        DatabaseEngine::Sqlite => &sqlite::Sqlite,
        DatabaseEngine::Mysql => &mysql::Mysql,
        DatabaseEngine::Redis => &redis::Redis,
        DatabaseEngine::Postgres => &postgres::Postgres,
    }
}
