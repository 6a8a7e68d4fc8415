//! `larder db shell|dump|load`, whose input and output are those of the caller. Dump and load are jobs of the dump worker. The interactive
//! client can start any program, so it runs as a process of the application, which cannot reach the restore points.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::{fd::AsFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
};

use serde::{Deserialize, Serialize};

use super::{DatabaseAt, DatabaseJob, engine, tool};
use crate::{
    backup::{BackupFailure, FailureKind},
    model::DatabaseEngine,
};

/// A job on one database that uses the standard descriptors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DatabaseStream {
    /// Writes a dump to the standard output.
    Dump(DatabaseJob),
    /// Replaces the database with a dump from the standard input.
    Load(DatabaseJob),
}

/// Runs the job. `data` is the live data, and `scratch` is a directory for the dump. Returns the exit status; an error is written to the standard error.
pub fn work(job: &DatabaseStream, data: &Path, scratch: &Path) -> u8 {
    let done = match job {
        DatabaseStream::Dump(job) => located(job, data).and_then(|job| dump(&job, scratch)),
        DatabaseStream::Load(job) => load(job, scratch),
    };
    exit_status(done.map(|()| 0))
}

/// The variable with the database of [`shell_main`], as JSON.
pub const SHELL_VARIABLE: &str = "LARDER_DATABASE";

/// Becomes the interactive client of the database in [`SHELL_VARIABLE`]. Returns the exit status of a failure.
pub fn shell_main() -> u8 {
    let job = std::env::var(SHELL_VARIABLE).ok().and_then(|text| serde_json::from_str(&text).ok());
    let missing =
        || BackupFailure::new(FailureKind::Refused, format!("cannot start the client: {SHELL_VARIABLE} names no database"));
    exit_status(Err(job.map_or_else(missing, |job| shell(&job))))
}

/// Writes an error to the standard error, and returns the exit status.
fn exit_status(done: Result<u8, BackupFailure>) -> u8 {
    done.unwrap_or_else(|failure| {
        let hint = failure.hint.map(|hint| format!("hint: {hint}\n")).unwrap_or_default();
        let _ = io::stderr().write_all(format!("error: {}\n{hint}", failure.why).as_bytes());
        if failure.kind == FailureKind::Machine { 70 } else { 3 }
    })
}

/// The beginning of the name of a directory for one dump. A sweep of the store, which runs before each capture, leaves these directories alone.
const DIRECTORY: &str = ".stream-";

/// A directory for one dump, which is deleted when the value is dropped. The lock on the directory shows that its process runs.
struct StreamDirectory {
    directory: tempfile::TempDir,
    _lock: File,
}

impl StreamDirectory {
    /// Creates a directory, and deletes the directories of killed processes.
    fn create(scratch: &Path) -> Result<StreamDirectory, BackupFailure> {
        let failed = |e: io::Error| BackupFailure::io("create a directory for the dump", &e);
        for entry in fs::read_dir(scratch).map_err(failed)?.flatten() {
            let is_stream = entry.file_name().as_encoded_bytes().starts_with(DIRECTORY.as_bytes());
            if is_stream && File::open(entry.path()).is_ok_and(|found| locked(&found).is_ok()) {
                // The next dump repeats a failed removal.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let directory = tempfile::Builder::new().prefix(DIRECTORY).tempdir_in(scratch).map_err(failed)?;
        let lock = File::open(directory.path()).and_then(|lock| locked(&lock).map(|()| lock)).map_err(failed)?;
        Ok(StreamDirectory { directory, _lock: lock })
    }

    fn dump(&self, job: &DatabaseJob) -> PathBuf {
        self.directory.path().join(job.dump_name())
    }
}

fn locked(file: &File) -> io::Result<()> {
    rustix::fs::flock(file, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(io::Error::from)
}

/// Returns a job with the absolute path of a file.
fn located(job: &DatabaseJob, data: &Path) -> Result<DatabaseJob, BackupFailure> {
    let mut job = job.clone();
    if let DatabaseAt::File(file) = &job.at {
        let data = fs::canonicalize(data).map_err(|e| BackupFailure::io("find the data", &e))?;
        job.at = DatabaseAt::File(data.join(file));
    }
    Ok(job)
}

fn dump(job: &DatabaseJob, scratch: &Path) -> Result<(), BackupFailure> {
    let directory = StreamDirectory::create(scratch)?;
    let path = directory.dump(job);
    engine(job.engine).dump(job, &path)?;
    let copied = File::open(&path).and_then(|mut file| {
        // `io::stdout` would flush after each line.
        let mut out = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        io::copy(&mut file, &mut out)
    });
    match copied {
        Ok(_) => Ok(()),
        Err(error) => Err(BackupFailure::io("send the dump", &error)),
    }
}

fn load(job: &DatabaseJob, scratch: &Path) -> Result<(), BackupFailure> {
    let engine = engine(job.engine);
    engine.check(job)?;
    let directory = StreamDirectory::create(scratch)?;
    let path = directory.dump(job);
    let received = File::create_new(&path).and_then(|mut file| {
        let bytes = io::copy(&mut io::stdin().lock(), &mut file)?;
        file.sync_all().map(|()| bytes)
    });
    let bytes = received.map_err(|e| match e.kind() {
        io::ErrorKind::StorageFull => BackupFailure::new(FailureKind::NoSpace, "cannot receive the dump: the disk is full"),
        _ => BackupFailure::io("receive the dump", &e),
    })?;
    engine.verify(&path)?;
    engine.restore(job, &path)?;
    let _ = io::stderr().write_all(format!("the database {} was replaced by a dump of {bytes} bytes\n", job.name).as_bytes());
    Ok(())
}

/// Becomes the interactive client, with the password in a variable. Returns only an error. A process in between would exit when Ctrl-C cancels a
/// statement, because the terminal sends the signal to all processes in the foreground.
fn shell(job: &DatabaseJob) -> BackupFailure {
    match client(job) {
        // The variable contains the password, which the client gets in a variable of its own.
        Ok(mut command) => {
            let error = command.env_remove(SHELL_VARIABLE).exec();
            BackupFailure::io("start the client of the database", &error)
        }
        Err(failure) => failure,
    }
}

fn client(job: &DatabaseJob) -> Result<Command, BackupFailure> {
    let find = |names: &[&str]| {
        let found = tool::find(names, &[]).map(Command::new);
        found.ok_or_else(|| job.refused(format!("{} is not installed on the server", names.join(" or "))))
    };
    if job.engine == DatabaseEngine::Sqlite {
        let data = std::env::var_os("LARDER_DATA").unwrap_or_else(|| "/data".into());
        let mut command = find(&["sqlite3"])?;
        command.arg(Path::new(&data).join(job.file()?));
        return Ok(command);
    }
    let address = job.address()?;
    let host = address.host.clone().unwrap_or_else(|| String::from("127.0.0.1"));
    let port = |default: u16| address.port.unwrap_or(default).to_string();
    let password = address.password.clone().unwrap_or_default();
    let database = address.database.clone().unwrap_or_default();
    Ok(match job.engine {
        DatabaseEngine::Postgres => {
            let mut command = find(&["psql"])?;
            command.env("PGHOST", &host).env("PGPORT", port(5432)).env("PGDATABASE", &database).env("PGPASSWORD", &password);
            if let Some(mode) = address.parameters.get("sslmode") {
                command.env("PGSSLMODE", mode);
            }
            command.envs(address.user.as_ref().map(|user| ("PGUSER", user)));
            command
        }
        DatabaseEngine::Mysql => {
            let mut command = find(&["mariadb", "mysql"])?;
            command.args(["--no-defaults", "--protocol=TCP", "--default-character-set=utf8mb4"]);
            command.arg(format!("--host={host}")).arg(format!("--port={}", port(3306)));
            command.args(address.user.as_ref().map(|user| format!("--user={user}"))).arg(&database).env("MYSQL_PWD", &password);
            command
        }
        DatabaseEngine::Redis => {
            let mut command = find(&["redis-cli"])?;
            let number = if database.is_empty() { "0" } else { database.as_str() };
            command.args(["-h", &host, "-p", &port(6379), "-n", number, "--no-auth-warning"]);
            if let Some(user) = &address.user {
                command.args(["--user", user]);
            }
            if !password.is_empty() {
                command.env("REDISCLI_AUTH", &password);
            }
            command
        }
        DatabaseEngine::Sqlite => return Err(job.refused("an SQLite database has no server")),
    })
}
