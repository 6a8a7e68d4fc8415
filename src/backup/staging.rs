//! The dumps of a restore point in progress. The dump worker writes all dumps before it captures the files, into a directory of the store
//! that the next sweep removes after a kill.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, BufReader},
    os::{fd::AsFd, unix::fs::DirBuilderExt},
    path::{Path, PathBuf},
};

use larder_points::{Damage, Fault, Kind, Point, Source, Staged};

use super::{
    CUSTOM, DATA, DATABASES, DatabaseJob, DumpInfo, PointLabel,
    databases::{self, DatabaseAt, is_sqlite, tool},
    error::{BackupFailure, FailureKind},
};
use crate::model::DatabaseEngine;

/// The suffixes of the files beside an SQLite file. A copy of the database contains their content.
const SIDE_FILES: [&str; 3] = ["-wal", "-shm", "-journal"];

/// A dump is usually smaller than its database. A database of more than this many times the free space is refused before its dump.
const COMPRESSION: u64 = 10;

/// The dumps of a restore point in progress, and the directory that contains the dumps. Dropping the value removes the directory.
pub(super) struct Dumps {
    /// The dumps, in the order of the jobs.
    pub list: Vec<DumpInfo>,
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
    /// Dumps all databases. `data` has the live files, and `points` is the store. If `exact` is true, the processes of the application are stopped, so the files of a closed SQLite database are as
    /// good as its dump, and a database that cannot be copied is captured as files.
    pub fn write(data: &Path, points: &Path, id: &str, jobs: &[DatabaseJob], exact: bool) -> Result<Dumps, BackupFailure> {
        let mut dumps = Dumps { list: Vec::new(), directory: None };
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
                dumps.check_space(engine.size(&live).map_err(|failure| of(job, failure))?.bytes / COMPRESSION)?;
                dumps.list.push(engine.dump(&live, &path.join(job.dump_name())).map_err(|failure| of(job, failure))?);
                continue;
            };
            let is_empty = fs::metadata(file).is_ok_and(|found| found.len() == 0);
            if is_empty || (!is_sqlite(file) && (exact || !job.is_declared)) {
                continue;
            }
            dumps.check_space(engine.size(&live)?.bytes)?;
            match engine.dump(&live, &path.join(job.dump_name())) {
                Ok(info) => {
                    let below = file.strip_prefix(&data).unwrap_or(file);
                    dumps.list.push(DumpInfo { path: format!("{DATA}/{}", below.display()), ..info });
                }
                Err(failure) if exact && failure.kind == FailureKind::Damaged => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(dumps)
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
        let has_servers = self.list.iter().any(is_separate);
        let names = [(DATA, true), (DATABASES, has_servers), (CUSTOM, custom)];
        names.into_iter().filter(|(_, is_present)| *is_present).map(|(name, _)| Source::directory(name)).collect()
    }

    /// Returns the dumps for the capture. The dump of an SQLite file replaces this file.
    pub fn staged(&self) -> Option<Staged<'_>> {
        let (_, directory) = self.directory.as_ref()?;
        let name = |info: &DumpInfo| format!("{}.dump", info.name);
        let (servers, files): (Vec<_>, Vec<_>) = self.list.iter().partition(|info| is_separate(info));
        Some(Staged {
            dir: directory.as_fd(),
            replaced: files.iter().map(|info| (info.path.clone(), name(info))).collect(),
            hidden: files.iter().flat_map(|info| SIDE_FILES.map(|side| format!("{}{side}", info.path))).collect(),
            source: (!servers.is_empty()).then(|| DATABASES.to_owned()),
            added: servers.iter().map(|info| name(info)).collect(),
        })
    }
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

/// Returns the path of the dump of a database in a restore point, after a comparison of the dump with its digest.
pub(super) fn checked_dump(point: &Point, job: &DatabaseJob) -> Result<PathBuf, BackupFailure> {
    let path = format!("{DATABASES}/{}", job.dump_name());
    let damaged = |why: &str| BackupFailure::new(FailureKind::Damaged, format!("{path} of {} {why}", point.id()));
    let entries = point.entries()?;
    let entry = entries.iter().find(|entry| entry.path == path.as_bytes()).ok_or_else(|| damaged("is missing"))?;
    let Kind::File { size, digest, .. } = &entry.kind else { return Err(damaged("is not a file")) };
    let stored = point.content(&path);
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
        match databases::engine(info.engine).verify(&point.content(&info.path)) {
            Err(failure) if failure.kind == FailureKind::Damaged => {
                damages.push(Damage { path: info.path, fault: Fault::Unusable(failure.why) });
            }
            other => other?,
        }
    }
    Ok(damages)
}
