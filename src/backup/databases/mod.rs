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
use crate::model::{DatabaseEngine, DatabaseName};

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

    /// Writes a consistent dump of the database to the new file `into`. The application may write to the database meanwhile.
    fn dump(&self, job: &DatabaseJob, into: &Path) -> Result<DumpInfo, BackupFailure>;

    /// Reads a dump back. Returns an error with [`FailureKind::Damaged`] for a dump that cannot be restored.
    fn verify(&self, dump: &Path) -> Result<(), BackupFailure>;

    /// Replaces the whole database with a dump, in one transaction or by a rename. A kill leaves the old or the restored database. The call
    /// may be repeated, also after a kill. An error with [`FailureKind::Machine`], such as a lost connection, leaves the content of the
    /// database unknown. After any other error, the database is unchanged.
    fn restore(&self, job: &DatabaseJob, from: &Path) -> Result<(), BackupFailure>;
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
