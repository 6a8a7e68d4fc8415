//! The dumps of a restore point in progress. The dump worker writes all dumps before it captures the files, into a directory of the store
//! that the next sweep removes after a kill.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, BufReader},
    os::{fd::AsFd, unix::fs::DirBuilderExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use larder_points::{Damage, Fault, Kind, Point, PointError, Source, Staged, Store};

use super::{
    CUSTOM, CaptureMethod, CopyRequest, DATA, DATABASES, DatabaseJob, DatabaseSurvey, DumpInfo, MethodRun, OtherSessions,
    PointLabel,
    databases::{self, DatabaseAt, is_sqlite, tool},
    error::{BackupFailure, FailureKind},
    space::clones_files,
};
use crate::model::DatabaseEngine;

/// The suffixes of the files beside an SQLite file. A copy of the database contains their content.
const SIDE_FILES: [&str; 3] = ["-wal", "-shm", "-journal"];

/// A dump is usually smaller than its database. A database of more than this many times the free space is refused before its dump.
const COMPRESSION: u64 = 10;

/// The time in which a database server ends the sessions of stopped processes. Later sessions are those of other clients.
const LINGERING: Duration = Duration::from_millis(500);

/// The pause between two looks at the sessions on a database.
const POLL: Duration = Duration::from_millis(50);

/// The dumps of a restore point in progress, and the directory that contains the dumps. Dropping the value removes the directory.
pub(super) struct Dumps {
    /// The dumps, in the order of the jobs.
    pub list: Vec<DumpInfo>,
    /// The durations of the dumps and copies.
    pub runs: Vec<MethodRun>,
    /// The sessions of other clients on the databases, if the processes of the application are stopped.
    pub sessions: Vec<OtherSessions>,
    directory: Option<(PathBuf, File)>,
}

impl Drop for Dumps {
    fn drop(&mut self) {
        if let Some((path, _)) = &self.directory {
            // The next sweep repeats a failed removal.
            let _ = fs::remove_dir_all(path);
        }
    }
}

impl Dumps {
    /// Dumps all databases. `data` has the live files, and `points` is the store. If `exact` is true, the processes of the application are
    /// stopped, so the files of a closed SQLite database are as good as its dump, and a database that cannot be copied is captured as files.
    /// The databases in `copies` are copied on their servers instead.
    pub fn write(
        data: &Path,
        points: &Path,
        id: &str,
        jobs: &[DatabaseJob],
        exact: bool,
        copies: &[CopyRequest],
    ) -> Result<Dumps, BackupFailure> {
        let mut dumps = Dumps { list: Vec::new(), runs: Vec::new(), sessions: Vec::new(), directory: None };
        if jobs.is_empty() {
            return Ok(dumps);
        }
        let path = points.join(format!(".new-dumps-{id}"));
        let made = DirBuilder::new().mode(0o700).create(&path).and_then(|()| File::open(&path));
        let directory = made.map_err(|e| BackupFailure::io("create the directory of the dumps", &e))?;
        dumps.directory = Some((path.clone(), directory));
        let data = fs::canonicalize(data).map_err(|e| BackupFailure::io("find the data", &e))?;
        for job in jobs {
            let live = located(job, &data);
            let engine = databases::engine(job.engine);
            let DatabaseAt::File(file) = &live.at else {
                if exact {
                    // A copy ends the sessions of the role in the URL, so the sessions are counted before.
                    dumps.sessions.extend(other_sessions(&live));
                }
                let mut fallback = String::new();
                if let Some(copy) = copies.iter().find(|copy| copy.name == job.name) {
                    match dumps.copy_on_server(&live, id) {
                        Ok(()) => continue,
                        Err(failure) if copy.or_dump => fallback = failure.why,
                        Err(failure) => return Err(failure),
                    }
                }
                let begun = Instant::now();
                dumps.check_space(engine.size(&live).map_err(|failure| of(job, failure))?.bytes / COMPRESSION)?;
                let info = engine.dump(&live, &path.join(job.dump_name())).map_err(|failure| of(job, failure))?;
                dumps.done(info, CaptureMethod::Dump, engine.size(&live).map_or(0, |size| size.bytes), begun, fallback);
                continue;
            };
            let is_empty = fs::metadata(file).is_ok_and(|found| found.len() == 0);
            if is_empty || (!is_sqlite(file) && (exact || !job.is_declared)) {
                continue;
            }
            let (begun, bytes) = (Instant::now(), engine.size(&live)?.bytes);
            dumps.check_space(bytes)?;
            let into = path.join(job.dump_name());
            let dumped = if exact { engine.dump_stopped(&live, &into) } else { engine.dump(&live, &into) };
            match dumped {
                Ok(info) => {
                    let below = file.strip_prefix(&data).unwrap_or(file);
                    let info = DumpInfo { path: format!("{DATA}/{}", below.display()), ..info };
                    let method = if exact && clones_files(points) { CaptureMethod::Reflink } else { CaptureMethod::SqliteBackup };
                    dumps.done(info, method, bytes, begun, String::new());
                }
                Err(failure) if exact && failure.kind == FailureKind::Damaged => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(dumps)
    }

    fn done(&mut self, info: DumpInfo, method: CaptureMethod, bytes: u64, begun: Instant, fallback: String) {
        let ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.runs.push(MethodRun { what: info.name.to_string(), method, bytes, ms, fallback });
        self.list.push(info);
    }

    /// Copies a database on its server. The dump is written later from the copy.
    fn copy_on_server(&mut self, job: &DatabaseJob, id: &str) -> Result<(), BackupFailure> {
        let begun = Instant::now();
        let Some(copies) = databases::server_copies(job.engine) else { return Err(job.refused("its server makes no copies")) };
        let versions = databases::engine(job.engine).check(job)?;
        let copy = copies.name(job, id)?;
        let bytes = copies.copy(job, &copy)?;
        let info = DumpInfo { copy: Some(copy), ..DumpInfo::of(job, versions, bytes) };
        self.done(info, CaptureMethod::TemplateCopy, bytes, begun, String::new());
        Ok(())
    }

    fn check_space(&self, needed: u64) -> Result<(), BackupFailure> {
        let Some((_, directory)) = &self.directory else { return Ok(()) };
        let free = tool::free_space(directory).map_err(|e| BackupFailure::io("get the free space", &e))?;
        let needed = needed.saturating_add(tool::LEAVE);
        if free < needed { Err(tool::no_space(free, needed)) } else { Ok(()) }
    }

    /// Returns the sources of the capture: the data, and the dumps of database servers if there are such dumps.
    /// `custom` is true if the project's script `.larder/backup` has written files.
    pub fn sources(&self, custom: bool) -> Vec<Source> {
        let has_servers = self.list.iter().any(|info| is_separate(info) && info.copy.is_none());
        let names = [(DATA, true), (DATABASES, has_servers), (CUSTOM, custom)];
        names.into_iter().filter(|(_, is_present)| *is_present).map(|(name, _)| Source::directory(name)).collect()
    }

    /// Returns the dumps for the capture. The dump of an SQLite file replaces this file.
    pub fn staged(&self) -> Option<Staged<'_>> {
        let (_, directory) = self.directory.as_ref()?;
        let name = |info: &DumpInfo| format!("{}.dump", info.name);
        let written = self.list.iter().filter(|info| info.copy.is_none());
        let (servers, files): (Vec<_>, Vec<_>) = written.partition(|info| is_separate(info));
        Some(Staged {
            dir: directory.as_fd(),
            replaced: files.iter().map(|info| (info.path.clone(), name(info))).collect(),
            hidden: files.iter().flat_map(|info| SIDE_FILES.map(|side| format!("{}{side}", info.path))).collect(),
            source: (!servers.is_empty()).then(|| DATABASES.to_owned()),
            added: servers.iter().map(|info| name(info)).collect(),
        })
    }
}

/// Returns the sessions of other clients on a database on a server. The server may end the sessions of the stopped processes a moment later, so the
/// answer is repeated while there are sessions. A server that does not show its sessions has none.
pub(super) fn other_sessions(job: &DatabaseJob) -> Option<OtherSessions> {
    let begun = Instant::now();
    loop {
        let found = databases::engine(job.engine).other_sessions(job).ok().flatten()?;
        if begun.elapsed() > LINGERING {
            return Some(found);
        }
        std::thread::sleep(POLL);
    }
}

/// Returns the cheapest exact method for each database, if the processes of the application are stopped.
pub(super) fn survey(data: &Path, points: &Path, jobs: &[DatabaseJob]) -> Result<Vec<DatabaseSurvey>, BackupFailure> {
    let data = fs::canonicalize(data).map_err(|e| BackupFailure::io("find the data", &e))?;
    jobs.iter().map(|job| databases::survey(&located(job, &data), clones_files(points))).collect()
}

/// Marks the refusal of a database that the recipe does not declare.
fn of(job: &DatabaseJob, failure: BackupFailure) -> BackupFailure {
    match failure.kind {
        FailureKind::Refused if !job.is_declared => BackupFailure { kind: FailureKind::Recognised, ..failure },
        _ => failure,
    }
}

/// Returns true if the dump is a file in `databases/` of the restore point, which the files of `data/` do not contain.
pub fn is_separate(info: &DumpInfo) -> bool {
    info.engine != DatabaseEngine::Sqlite
}

/// Returns the job with an absolute path if the database is a file.
fn located(job: &DatabaseJob, data: &Path) -> DatabaseJob {
    let at = match &job.at {
        DatabaseAt::File(file) => DatabaseAt::File(data.join(file)),
        DatabaseAt::Url(url) => DatabaseAt::Url(url.clone()),
    };
    DatabaseJob { at, ..job.clone() }
}

/// Returns the databases whose dumps the restore point does not have yet.
pub(super) fn unwritten(point: &Point) -> Vec<DumpInfo> {
    let label: Option<PointLabel> = serde_json::from_value(point.manifest.label.clone()).ok();
    label.map(|label| label.databases).unwrap_or_default().into_iter().filter(|info| info.copy.is_some()).collect()
}

/// Returns a refusal if a dump of the restore point is not written yet.
pub(super) fn check_complete(point: &Point) -> Result<(), BackupFailure> {
    match unwritten(point).first() {
        None => Ok(()),
        Some(info) => Err(BackupFailure {
            hint: Some(String::from("repeat the command when the dump is written, or choose another restore point")),
            ..BackupFailure::new(
                FailureKind::Refused,
                format!("cannot use the restore point {}: the dump of the database {} is not written yet", point.id(), info.name),
            )
        }),
    }
}

/// Writes the missing dumps of a restore point from the copies of the databases, and then drops the copies. Removes a restore point whose
/// copies do not exist. The call may be repeated. `points` is the store.
pub(super) fn complete(store: &Store, points: &Path, id: &str, jobs: &[DatabaseJob]) -> Result<(), BackupFailure> {
    match store.point(id) {
        Ok(point) => {
            let missing = unwritten(&point);
            if !missing.is_empty() && !write_missing(store, points, point, &missing, jobs)? {
                store.remove(id)?;
            }
        }
        Err(PointError::NotFound { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    drop_copies(id, jobs)
}

/// Drops the copies of databases that the restore point `id` has on their servers.
pub(super) fn drop_copies(id: &str, jobs: &[DatabaseJob]) -> Result<(), BackupFailure> {
    for job in jobs {
        if let Some(copies) = databases::server_copies(job.engine) {
            copies.discard(job, &copies.name(job, id)?)?;
        }
    }
    Ok(())
}

/// Adds the missing dumps to a restore point. Returns false if a copy does not exist.
fn write_missing(
    store: &Store,
    points: &Path,
    point: Point,
    missing: &[DumpInfo],
    jobs: &[DatabaseJob],
) -> Result<bool, BackupFailure> {
    let wrong = |doing: &str, e: &io::Error| BackupFailure::io(doing, e);
    let mut label: PointLabel = serde_json::from_value(point.manifest.label.clone())
        .map_err(|e| BackupFailure::new(FailureKind::Machine, e.to_string()))?;
    let id = point.id().to_owned();
    drop(point);
    let path = points.join(format!(".new-dumps-{id}"));
    match fs::remove_dir_all(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(wrong("delete an unfinished dump", &error)),
        _ => {}
    }
    let made = DirBuilder::new().mode(0o700).create(&path).and_then(|()| File::open(&path));
    let directory = made.map_err(|e| wrong("create the directory of the dumps", &e))?;
    let mut dumps =
        Dumps { list: Vec::new(), runs: Vec::new(), sessions: Vec::new(), directory: Some((path.clone(), directory)) };
    for info in missing {
        let job = jobs.iter().find(|job| (&job.name, job.engine) == (&info.name, info.engine));
        let (Some(job), Some(copies), Some(copy)) = (job, databases::server_copies(info.engine), &info.copy) else {
            return Ok(false);
        };
        let Some(copied) = copies.of_copy(job, copy)? else { return Ok(false) };
        let engine = databases::engine(job.engine);
        dumps.check_space(engine.size(&copied)?.bytes / COMPRESSION)?;
        dumps.list.push(engine.dump(&copied, &path.join(job.dump_name()))?);
    }
    for info in &mut label.databases {
        if let Some(dump) = dumps.list.iter().find(|dump| dump.name == info.name) {
            *info = dump.clone();
        }
    }
    let label = serde_json::to_value(label).map_err(|e| BackupFailure::new(FailureKind::Machine, e.to_string()))?;
    if let Some(staged) = dumps.staged() {
        store.attach(&id, &label, &staged)?;
    }
    Ok(true)
}

/// Returns the path of the dump of a database in a restore point, after a comparison of the dump with its digest.
pub(super) fn checked_dump(point: &Point, job: &DatabaseJob) -> Result<PathBuf, BackupFailure> {
    let path = format!("{DATABASES}/{}", job.dump_name());
    let damaged = |why: &str| BackupFailure::new(FailureKind::Damaged, format!("{path} of {} {why}", point.id()));
    let entries = point.entries()?;
    let entry = entries.iter().find(|entry| entry.path == path.as_bytes()).ok_or_else(|| damaged("is missing"))?;
    let Kind::File { size, digest, .. } = &entry.kind else { return Err(damaged("is not a file")) };
    let stored = point.content(&path)?;
    let mut hasher = blake3::Hasher::new();
    let read = File::open(&stored).and_then(|file| io::copy(&mut BufReader::with_capacity(1 << 20, file), &mut hasher));
    let read = read.map_err(|e| BackupFailure::io(&format!("read {path} of {}", point.id()), &e))?;
    if read != *size || *hasher.finalize().as_bytes() != digest.0 {
        return Err(damaged("is damaged: its content differs from the captured content"));
    }
    Ok(stored)
}

/// Reads the dumps of a restore point back with the programs of their engines. Returns the damaged dumps.
pub(super) fn damaged_dumps(point: &Point) -> Result<Vec<Damage>, BackupFailure> {
    let label: Option<PointLabel> = serde_json::from_value(point.manifest.label.clone()).ok();
    let mut damages = Vec::new();
    for info in label.map(|label| label.databases).unwrap_or_default() {
        let stored = match point.content(&info.path) {
            Ok(stored) => stored,
            Err(PointError::Source { .. }) => {
                damages.push(Damage { path: info.path, fault: Fault::Missing });
                continue;
            }
            // The index is damaged, which the verification of the files reports.
            Err(PointError::Malformed { .. } | PointError::Limit { .. } | PointError::Io { .. }) => return Ok(damages),
            Err(other) => return Err(other.into()),
        };
        match databases::engine(info.engine).verify(&stored) {
            Err(failure) if failure.kind == FailureKind::Damaged => {
                damages.push(Damage { path: info.path, fault: Fault::Unusable(failure.why) });
            }
            other => other?,
        }
    }
    Ok(damages)
}
