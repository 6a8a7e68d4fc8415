//! SQLite: consistent copies through SQLite's online backup API, while the application writes.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{
    Connection, ErrorCode, OpenFlags,
    backup::{Backup, StepResult},
};

use super::{DatabaseJob, DatabaseSize, DumpInfo, Engine, EngineVersions};
use crate::backup::{BackupFailure, FailureKind, clones_files};

/// The first bytes of every SQLite file that is not empty (<https://www.sqlite.org/fileformat2.html>, section 1.3).
const HEADER: &[u8; 16] = b"SQLite format 3\0";

/// The suffixes of the files that hold the content of a database. The empty suffix is that of the database file. The suffix `-shm` is not
/// listed, because SQLite rebuilds this file.
const PARTS: [&str; 3] = ["", "-wal", "-journal"];

/// The time for which one attempt waits for a lock of the application.
const BUSY: Duration = Duration::from_secs(5);

/// The number of attempts to get a lock, and to copy files that change meanwhile.
const ATTEMPTS: u32 = 6;

/// The engine of SQLite files.
pub(super) struct Sqlite;

/// Returns true if a file is empty or begins like an SQLite file.
pub fn is_database(path: &Path) -> bool {
    let mut header = Vec::new();
    let Ok(found) = fs::symlink_metadata(path) else { return false };
    let mut read = || File::open(path)?.take(HEADER.len() as u64).read_to_end(&mut header);
    found.is_file() && read().is_ok() && (header.is_empty() || header == HEADER)
}

/// Opens a file without following symlinks, because the application can put a symlink into its data directory.
fn open(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    let connection =
        Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW)?;
    connection.busy_timeout(BUSY)?;
    Ok(connection)
}

/// Copies all pages of `from` to `to`, in one transaction of each database.
fn copy(from: &Connection, to: &mut Connection) -> rusqlite::Result<()> {
    let backup = Backup::new(from, to)?;
    for _ in 0..ATTEMPTS {
        // With a limited number of pages per step, a busy application would restart the copy without end.
        if backup.step(-1)? == StepResult::Done {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err(rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY), None))
}

/// Returns the failure of an operation on `path`.
fn failure(doing: &str, path: &Path, error: &rusqlite::Error) -> BackupFailure {
    let kind = match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => FailureKind::NoSpace,
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => FailureKind::Damaged,
        _ => FailureKind::Refused,
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut failure = BackupFailure::new(kind, format!("cannot {doing} the SQLite file {name}: {error}"));
    if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) {
        failure.hint = Some(String::from("end the long transaction of the application, or stop the process that locks the file"));
    }
    failure
}

/// Returns the failure of a copy of the live file `path`. No restore point is involved, so the remedy differs from that of a damaged dump.
fn live_failure(doing: &str, path: &Path, error: &rusqlite::Error) -> BackupFailure {
    match failure(doing, path, error) {
        damaged if damaged.kind == FailureKind::Damaged => BackupFailure {
            kind: FailureKind::Refused,
            hint: Some(String::from(
                "repair the file with `.recover` of the program sqlite3, or restore an earlier restore point",
            )),
            ..damaged
        },
        other => other,
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Removes an incomplete copy.
fn discard(path: &Path) -> io::Result<()> {
    for suffix in PARTS.into_iter().chain(["-shm"]) {
        match fs::remove_file(with_suffix(path, suffix)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Copies a database with a read transaction of SQLite.
fn online(live: &Path, into: &Path) -> rusqlite::Result<()> {
    let from = open(live, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let mut to = open(into, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)?;
    // The copy is synced when it is complete. An incomplete copy is removed.
    to.pragma_update(None, "synchronous", "off")?;
    copy(&from, &mut to)
}

/// Copies the files of a database that no process has open, so that SQLite can recover the copy. Returns false if the files changed during
/// every attempt. SQLite must write to open a database that has the journal of a killed process, or that lacks its write-ahead log. The
/// worker cannot write to the data, and therefore opens a copy.
fn recovered(live: &Path, into: &Path) -> io::Result<bool> {
    let stamps = || PARTS.map(|suffix| fs::symlink_metadata(with_suffix(live, suffix)).ok().map(|found| stamp(&found)));
    for _ in 0..ATTEMPTS {
        let before = stamps();
        for (suffix, _) in PARTS.into_iter().zip(before).filter(|(_, stamp)| stamp.is_some()) {
            let from = with_suffix(live, suffix);
            let opened = rustix::fs::open(
                &from,
                rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC,
                rustix::fs::Mode::empty(),
            );
            io::copy(&mut File::from(opened?), &mut File::create(with_suffix(into, suffix))?)?;
        }
        if stamps() == before {
            return Ok(true);
        }
        discard(into)?;
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(false)
}

/// Recovers the copy by its first read. The close then removes the log.
fn read_copy(live: &Path, into: &Path) -> Result<(), BackupFailure> {
    let opened = open(into, OpenFlags::SQLITE_OPEN_READ_WRITE);
    let read = opened.and_then(|copy| copy.query_row("select count(*) from sqlite_schema", [], |_| Ok(())));
    read.map_err(|e| live_failure("recover the copy of", live, &e))
}

/// Syncs a complete copy, and describes the copy.
fn finished(job: &DatabaseJob, versions: EngineVersions, into: &Path) -> Result<DumpInfo, BackupFailure> {
    let synced = File::open(into).and_then(|file| file.sync_all().map(|()| file)).and_then(|file| file.metadata());
    let synced = synced.map_err(|e| BackupFailure::io(&format!("copy the SQLite database {}", job.name), &e))?;
    Ok(DumpInfo::of(job, versions, synced.len()))
}

fn stamp(found: &fs::Metadata) -> (u64, u64, i64, i64, i64, i64) {
    (found.ino(), found.len(), found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec())
}

impl Engine for Sqlite {
    fn check(&self, job: &DatabaseJob) -> Result<EngineVersions, BackupFailure> {
        let file = job.file()?;
        if !is_database(file) {
            let why = match fs::symlink_metadata(file) {
                Ok(found) if found.is_symlink() => String::from("the file is a symbolic link"),
                Ok(_) => String::from("the file is not an SQLite file, or cannot be read"),
                Err(error) => error.to_string(),
            };
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            return Err(BackupFailure {
                hint: Some(String::from("correct the path in `databases:` of larder.yml; the file must be below data/")),
                ..job.refused(format!("{name}: {why}"))
            });
        }
        let version = rusqlite::version().to_owned();
        Ok(EngineVersions { tool: version.clone(), server: version })
    }

    fn size(&self, job: &DatabaseJob) -> Result<DatabaseSize, BackupFailure> {
        let file = job.file()?;
        let bytes = |suffix| fs::symlink_metadata(with_suffix(file, suffix)).map_or(0, |found| found.len());
        Ok(DatabaseSize { bytes: PARTS.into_iter().map(bytes).sum() })
    }

    fn dump(&self, job: &DatabaseJob, into: &Path) -> Result<DumpInfo, BackupFailure> {
        let (live, versions) = (job.file()?, self.check(job)?);
        let io_failure = |e: &io::Error| BackupFailure::io(&format!("copy the SQLite database {}", job.name), e);
        if let Err(error) = online(live, into) {
            discard(into).map_err(|e| io_failure(&e))?;
            let is_closed = matches!(error.sqlite_error_code(), Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly));
            if !is_closed || !recovered(live, into).map_err(|e| io_failure(&e))? {
                discard(into).map_err(|e| io_failure(&e))?;
                return Err(live_failure("copy", live, &error));
            }
            read_copy(live, into)?;
        }
        finished(job, versions, into)
    }

    fn dump_stopped(&self, job: &DatabaseJob, into: &Path) -> Result<DumpInfo, BackupFailure> {
        if !into.parent().is_some_and(clones_files) {
            return self.dump(job, into);
        }
        let (live, versions) = (job.file()?, self.check(job)?);
        // The clones need no time. SQLite then recovers the clone as it would recover the file after a power cut.
        match recovered(live, into) {
            Ok(true) if read_copy(live, into).is_ok() => finished(job, versions, into),
            _ => {
                discard(into).map_err(|e| BackupFailure::io(&format!("copy the SQLite database {}", job.name), &e))?;
                self.dump(job, into)
            }
        }
    }

    fn verify(&self, dump: &Path) -> Result<(), BackupFailure> {
        if fs::metadata(dump).is_ok_and(|found| found.len() == 0) {
            return Ok(());
        }
        let check = || -> rusqlite::Result<String> {
            let path = dump.to_str().ok_or_else(|| rusqlite::Error::InvalidPath(dump.into()))?;
            let path = percent_encoding::utf8_percent_encode(path, percent_encoding::NON_ALPHANUMERIC);
            // Nothing changes a stored dump, so SQLite needs no lock and no file beside the dump.
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let stored = Connection::open_with_flags(format!("file:{path}?immutable=1"), flags)?;
            stored.query_row("pragma quick_check(1)", [], |row| row.get(0))
        };
        match check() {
            Ok(answer) if answer == "ok" => Ok(()),
            Ok(answer) => Err(BackupFailure::new(FailureKind::Damaged, format!("the SQLite file is damaged: {answer}"))),
            Err(error) => Err(failure("read", dump, &error)),
        }
    }

    fn restore(&self, job: &DatabaseJob, from: &Path) -> Result<(), BackupFailure> {
        let live = job.file()?;
        let restored = || -> rusqlite::Result<()> {
            let from = open(from, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
            // The copy is one transaction of the live file. After a kill, SQLite reverts the transaction.
            copy(&from, &mut open(live, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)?)
        };
        restored().map_err(|error| failure("restore", live, &error))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::DatabaseAt, *};
    use crate::model::DatabaseEngine;

    fn job(file: &Path) -> DatabaseJob {
        let at = DatabaseAt::File(file.to_owned());
        DatabaseJob { name: "main".parse().unwrap(), engine: DatabaseEngine::Sqlite, at, is_declared: true }
    }

    fn rows(file: &Path) -> i64 {
        Connection::open(file).unwrap().query_row("select count(*) from t", [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn dump_contains_committed_rows_of_an_open_database_only() {
        for mode in ["wal", "delete"] {
            let place = tempfile::tempdir().unwrap();
            let (file, into) = (place.path().join("a.sqlite3"), place.path().join("dump"));
            let mut live = Connection::open(&file).unwrap();
            live.query_row(&format!("pragma journal_mode={mode}"), [], |_| Ok(())).unwrap();
            live.execute_batch("create table t(x); insert into t values (1), (2);").unwrap();
            let open = live.transaction().unwrap();
            open.execute("insert into t values (3)", []).unwrap();
            let info = Sqlite.dump(&job(&file), &into).unwrap();
            assert_eq!((rows(&into), info.bytes), (2, fs::metadata(&into).unwrap().len()), "{mode}");
            open.commit().unwrap();
            Sqlite.verify(&into).unwrap();
            assert_eq!(rows(&file), 3);
            Sqlite.restore(&job(&file), &into).unwrap();
            assert_eq!(rows(&file), 2, "{mode}");
        }
    }

    #[test]
    fn dump_of_a_killed_writers_database_is_recovered() {
        for mode in ["wal", "delete"] {
            let place = tempfile::tempdir().unwrap();
            let (file, copy, into) = (place.path().join("a.sqlite3"), place.path().join("b.sqlite3"), place.path().join("dump"));
            let mut live = Connection::open(&file).unwrap();
            live.query_row(&format!("pragma journal_mode={mode}"), [], |_| Ok(())).unwrap();
            live.execute_batch("pragma cache_size=1; create table t(x); insert into t values (1), (2);").unwrap();
            let open = live.transaction().unwrap();
            // The cache is too small for the rows, so the transaction writes to the file, and the journal is hot.
            for _ in 0..200 {
                open.execute("insert into t values (randomblob(1000))", []).unwrap();
            }
            for suffix in PARTS {
                if with_suffix(&file, suffix).exists() {
                    fs::copy(with_suffix(&file, suffix), with_suffix(&copy, suffix)).unwrap();
                }
            }
            assert!(recovered(&copy, &into).unwrap());
            assert_eq!(rows(&into), 2, "{mode}");
        }
    }

    #[test]
    fn damaged_missing_or_linked_database_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let (file, into) = (place.path().join("a.sqlite3"), place.path().join("dump"));
        assert_eq!(Sqlite.dump(&job(&file), &into).unwrap_err().kind, FailureKind::Refused);
        std::os::unix::fs::symlink("/etc/passwd", &file).unwrap();
        assert!(Sqlite.dump(&job(&file), &into).unwrap_err().why.contains("symbolic link"));
        fs::remove_file(&file).unwrap();
        fs::write(&file, "text").unwrap();
        assert!(Sqlite.check(&job(&file)).unwrap_err().why.contains("not an SQLite file"));
        fs::remove_file(&file).unwrap();
        Connection::open(&file).unwrap().execute_batch("create table t(x); insert into t values (randomblob(9000));").unwrap();
        Sqlite.dump(&job(&file), &into).unwrap();
        let mut bytes = fs::read(&into).unwrap();
        bytes[100..140].fill(0xff);
        fs::write(&into, bytes).unwrap();
        assert_eq!(Sqlite.verify(&into).unwrap_err().kind, FailureKind::Damaged);
    }
}
