//! The restore worker: writes the files of a restore point. The worker runs as the environment's run user. Only [`RestoreJob::PutBack`], a
//! job of a stopped application, writes to the live data; all other jobs write into a directory that is not live.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
};

use larder_points::{LookOptions, Point, RestoreOptions, RestoreReport, Store, diff_live};

use super::{
    CUSTOM, DATA, DATABASES, DatabaseJob, Filled, PointLabel, PointOwner, RestoreJob, databases,
    dump::{directory, named},
    error::{BackupFailure, FailureKind},
    staging::{check_complete, checked_dump, other_sessions, unwritten},
};

/// The number of threads that write files.
const THREADS: usize = 2;

/// The name of the scratch directory of drills by earlier versions of larder. A restored copy cannot have this name, because it begins with
/// a dot.
const SCRATCH: &str = ".drill";

/// The beginning of the names of copies that are not complete yet.
const PARTIAL: &str = ".larder-into-";

/// The maximum length of the name of a restored copy, in bytes.
const MAX_NAME: usize = 64;

/// The directories of the restore worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestorePaths {
    /// The live data.
    pub data: PathBuf,
    /// The store of the restore points.
    pub points: PathBuf,
    /// The directory of restored copies.
    pub restored: PathBuf,
    /// The directory that is exchanged with the live data.
    pub restoring: PathBuf,
    /// The directory of the copy for a single command.
    pub copy: PathBuf,
    /// The directory that the project's script `.larder/restore` reads.
    pub custom: PathBuf,
}

impl RestorePaths {
    /// Reads `LARDER_DATA`, `LARDER_POINTS`, `LARDER_RESTORED`, `LARDER_RESTORING`, `LARDER_DATA_COPY` and `LARDER_CUSTOM`.
    pub fn from_environment() -> RestorePaths {
        RestorePaths {
            data: directory("LARDER_DATA", "/data"),
            points: directory("LARDER_POINTS", "/points"),
            restored: directory("LARDER_RESTORED", "/restored"),
            restoring: directory("LARDER_RESTORING", "/restoring"),
            copy: directory("LARDER_DATA_COPY", "/copy"),
            custom: directory("LARDER_CUSTOM", "/custom"),
        }
    }
}

/// Runs the restore worker. `empty` deletes everything in a directory.
pub fn work(job: &RestoreJob, paths: &RestorePaths, empty: fn(&Path) -> io::Result<()>) -> Result<Filled, BackupFailure> {
    match job {
        RestoreJob::Beside { point, owner, name } => beside(paths, point, owner, name),
        RestoreJob::Fill { point, owner, databases } => {
            clear(&paths.restoring, empty)?;
            let filled = fill(paths, point, owner, databases);
            if filled.is_err() {
                // The error of the restore is reported, not an error of this cleanup. The next restore empties the directory again.
                let _ = clear(&paths.restoring, empty);
            }
            filled
        }
        RestoreJob::Copy { point, owner } => {
            clear(&paths.copy, empty)?;
            let point = named(&Store::open(&paths.points)?, point)?;
            check_owner(&point, owner)?;
            place(&point, DATA, &paths.copy, owner)
        }
        RestoreJob::PutBack { point, owner } => {
            let point = named(&Store::open(&paths.points)?, point)?;
            check_owner(&point, owner)?;
            let base = opened(paths.data.parent().unwrap_or(Path::new("/")))?;
            let report = point.put_back(base.as_fd(), &RestoreOptions { only: Some(DATA), ..options(owner)? })?;
            Ok(filled(&point, &report))
        }
        RestoreJob::Custom { point, owner } => {
            clear(&paths.custom, empty)?;
            let point = named(&Store::open(&paths.points)?, point)?;
            check_owner(&point, owner)?;
            place(&point, CUSTOM, &paths.custom, owner)
        }
        RestoreJob::ClearCustom => clear(&paths.custom, empty).map(|()| Filled::default()),
        RestoreJob::ClearCopy => clear(&paths.copy, empty).map(|()| Filled::default()),
        RestoreJob::Database { point, owner, database } => {
            let point = named(&Store::open(&paths.points)?, point)?;
            check_owner(&point, owner)?;
            let unwritten = unwritten(&point);
            let copy = unwritten.iter().find(|info| (&info.name, info.engine) == (&database.name, database.engine));
            // The replacement ends some of the sessions.
            let sessions = other_sessions(database);
            match (copy.and_then(|info| info.copy.as_ref()), databases::server_copies(database.engine)) {
                (Some(copy), Some(copies)) => copies.put_back(database, copy, &paths.restoring)?,
                _ => {
                    let dump = checked_dump(&point, database)?;
                    databases::engine(database.engine).restore(database, &dump)?;
                }
            }
            Ok(Filled { point: point.id().to_owned(), sessions, ..Filled::default() })
        }
        RestoreJob::Clear => clear(&paths.restoring, empty).map(|()| Filled::default()),
        RestoreJob::Drill { point, owner } => {
            discard(paths, empty)?;
            sweep_copies(&paths.restored)?;
            clear(&paths.copy, empty)?;
            let drilled = drill(paths, point, owner, empty);
            if drilled.is_err() {
                // The error of the drill is reported, not an error of this cleanup. The server empties the directory again.
                let _ = clear(&paths.copy, empty);
            }
            drilled
        }
        RestoreJob::CreateScratch(database) => {
            Ok(Filled { scratch: Some(databases::create_scratch(database)?), ..Filled::default() })
        }
        RestoreJob::LoadScratch { point, owner, database, scratch } => {
            let point = named(&Store::open(&paths.points)?, point)?;
            check_owner(&point, owner)?;
            let dump = checked_dump(&point, database)?;
            let bytes = fs::metadata(&dump).map_err(|e| BackupFailure::io("read the dump", &e))?.len();
            let left_out = databases::load_scratch(database, scratch, &dump)?;
            Ok(Filled { point: point.id().to_owned(), bytes, left_out, ..Filled::default() })
        }
        RestoreJob::DropScratch(database) => databases::drop_scratch(database).map(|()| Filled::default()),
    }
}

fn clear(directory: &Path, empty: fn(&Path) -> io::Result<()>) -> Result<(), BackupFailure> {
    empty(directory).map_err(|e| BackupFailure::io("delete the replaced files", &e))?;
    let mode = fs::Permissions::from_mode(0o700);
    fs::set_permissions(directory, mode).map_err(|e| BackupFailure::io("set the mode of the restored data", &e))
}

fn opened(path: &Path) -> Result<File, BackupFailure> {
    File::open(path).map_err(|e| BackupFailure::io(&format!("open {}", path.display()), &e))
}

fn beside(paths: &RestorePaths, point: &str, owner: &PointOwner, name: &str) -> Result<Filled, BackupFailure> {
    check_copy_name(name)?;
    let point = named(&Store::open(&paths.points)?, point)?;
    check_complete(&point)?;
    let parent = opened(&paths.restored)?;
    sweep_copies(&paths.restored)?;
    let report = point.restore_into(parent.as_fd(), OsStr::new(name), &options(owner)?)?;
    Ok(filled(&point, &report))
}

/// Removes the partial copies of killed restores. The server runs only one job on the restored copies of an environment at a time.
fn sweep_copies(restored: &Path) -> Result<(), BackupFailure> {
    let failed = |e: io::Error| BackupFailure::io("delete a partial copy", &e);
    let parent = opened(restored)?;
    for entry in fs::read_dir(restored).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if let Some(name) = name.to_str().filter(|name| name.starts_with(PARTIAL)) {
            larder_points::remove_kept(parent.as_fd(), name)?;
        }
    }
    Ok(())
}

/// Deletes the scratch directory of a drill by an earlier version of larder.
fn discard(paths: &RestorePaths, empty: fn(&Path) -> io::Result<()>) -> Result<(), BackupFailure> {
    let scratch = paths.restored.join(SCRATCH);
    match fs::symlink_metadata(&scratch) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        _ => {}
    }
    let deleted = fs::set_permissions(&scratch, fs::Permissions::from_mode(0o700)).and_then(|()| empty(&scratch));
    deleted.and_then(|()| fs::remove_dir(&scratch)).map_err(|e| BackupFailure::io("delete the copy of a drill", &e))
}

/// Restores all sources into the copy, compares the restored files with the restore point as they are on the disk, reads the dumps with the
/// programs of their engines, and leaves only the data in the copy.
fn drill(
    paths: &RestorePaths,
    point: &str,
    owner: &PointOwner,
    empty: fn(&Path) -> io::Result<()>,
) -> Result<Filled, BackupFailure> {
    let point = named(&Store::open(&paths.points)?, point)?;
    check_owner(&point, owner)?;
    check_complete(&point)?;
    let parent = opened(&paths.copy)?;
    let name = format!(".larder-{}", point.id());
    let report = point.restore_into(parent.as_fd(), OsStr::new(&name), &options(owner)?)?;
    let tree = paths.copy.join(&name);
    let scratch = opened(&tree)?;
    let options = LookOptions { threads: THREADS, listed: 1, ..LookOptions::default() };
    let found = diff_live(&point, scratch.as_fd(), &options)?;
    let different = found.added + found.removed + found.changed;
    // An entry whose owner could not be restored differs only in its metadata.
    if different > 0 || found.metadata > report.lost_owners {
        let first = found.changes.first().map(|change| String::from_utf8_lossy(&change.path).into_owned()).unwrap_or_default();
        let why = format!(
            "the restored copy differs from {}: content of {different} entries, metadata of {}; first: {first}",
            point.id(),
            found.metadata
        );
        return Err(BackupFailure::new(FailureKind::Damaged, why));
    }
    let label: Option<PointLabel> = serde_json::from_value(point.manifest.label.clone()).ok();
    for info in label.map(|label| label.databases).unwrap_or_default() {
        databases::engine(info.engine).verify(&tree.join(&info.path))?;
    }
    let only_data = || {
        raise(&tree.join(DATA), &paths.copy)?;
        empty(&tree)?;
        fs::remove_dir(&tree)
    };
    only_data().map_err(|e| BackupFailure::io("move the restored files", &e))?;
    point.restore_metadata(DATA, parent.as_fd())?;
    Ok(filled(&point, &report))
}

/// Checks the name of a restored copy.
fn check_copy_name(name: &str) -> Result<(), BackupFailure> {
    let is_good = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty() || name.len() > MAX_NAME || name.starts_with('.') || !name.chars().all(is_good) {
        let shown: String = name.chars().filter(|c| !c.is_control()).take(100).collect();
        let why = format!("cannot restore into {shown:?}: expected 1 to {MAX_NAME} of A-Z a-z 0-9 . _ -, without a leading dot");
        return Err(BackupFailure::new(FailureKind::Refused, why));
    }
    Ok(())
}

/// Checks that a restore point belongs to an environment.
fn check_owner(point: &Point, owner: &PointOwner) -> Result<(), BackupFailure> {
    let found: Option<PointOwner> = serde_json::from_value(point.manifest.label.clone()).ok();
    if found.as_ref() == Some(owner) {
        return Ok(());
    }
    let found = found.map_or_else(|| String::from("unknown"), |found| format!("{}/{}", found.project, found.environment));
    let why =
        format!("cannot restore {}: its label is of {found} (expected {}/{})", point.id(), owner.project, owner.environment);
    Err(BackupFailure::new(FailureKind::Refused, why))
}

fn options(owner: &PointOwner) -> Result<RestoreOptions<'static>, BackupFailure> {
    let expect = serde_json::to_value(owner).map_err(|e| BackupFailure::new(FailureKind::Machine, e.to_string()))?;
    Ok(RestoreOptions { expect, threads: THREADS, ..RestoreOptions::default() })
}

fn filled(point: &Point, report: &RestoreReport) -> Filled {
    let (point, RestoreReport { files, bytes, lost_owners, .. }) = (point.id().to_owned(), report);
    Filled { point, files: *files, bytes: *bytes, lost_owners: *lost_owners, ..Filled::default() }
}

/// Checks the databases, and restores the data into `restoring/`.
fn fill(paths: &RestorePaths, point: &str, owner: &PointOwner, jobs: &[DatabaseJob]) -> Result<Filled, BackupFailure> {
    let point = named(&Store::open(&paths.points)?, point)?;
    check_owner(&point, owner)?;
    // The databases without dumps are put back from their copies, which only the undo of an upgrade does.
    let unwritten = unwritten(&point);
    let jobs: Vec<_> = jobs.iter().filter(|job| unwritten.iter().all(|info| info.name != job.name)).collect();
    let is_known = |path: &str| path == DATA || path == CUSTOM || (path == DATABASES && !jobs.is_empty());
    let sources = &point.manifest.sources;
    let custom = sources.iter().filter(|one| one.source.path == CUSTOM).count();
    let is_usual = sources.len() == 1 + usize::from(!jobs.is_empty()) + custom
        && sources.iter().all(|one| is_known(&one.source.path) && one.is_present);
    if !is_usual {
        let why = format!(
            "cannot restore {}: the restore point must hold the directory `{DATA}`, and `{DATABASES}` if it has dumps, and no other directory except `{CUSTOM}`",
            point.id()
        );
        return Err(BackupFailure::new(FailureKind::Refused, why));
    }
    // A database that cannot be replaced is found before the application is stopped.
    for &job in &jobs {
        let engine = databases::engine(job.engine);
        engine.check_restore(job)?;
        engine.verify(&checked_dump(&point, job)?)?;
    }
    place(&point, DATA, &paths.restoring, owner)
}

/// Restores the source `source` into a subdirectory of `into`, and then moves its files to the top of `into`, because `into` itself takes the
/// place of the source.
fn place(point: &Point, source: &str, into: &Path, owner: &PointOwner) -> Result<Filled, BackupFailure> {
    let parent = opened(into)?;
    let name = format!(".larder-{}", point.id());
    let options = RestoreOptions { only: Some(source), ..options(owner)? };
    let report = point.restore_into(parent.as_fd(), OsStr::new(&name), &options)?;
    let tree = into.join(&name);
    let moved = raise(&tree.join(source), into);
    let moved = moved.and_then(|()| fs::remove_dir(tree.join(source))).and_then(|()| fs::remove_dir(&tree));
    moved.map_err(|e| BackupFailure::io("move the restored files", &e))?;
    point.restore_metadata(source, parent.as_fd())?;
    parent.sync_all().map_err(|e| BackupFailure::io("sync the restored files", &e))?;
    Ok(filled(point, &report))
}

/// Moves everything in `from` to `to`.
fn raise(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let Err(error) = fs::rename(entry.path(), &target) else { continue };
        // A user cannot move a directory to another parent without write permission for the directory itself, because the move changes its
        // entry `..`.
        let found = fs::symlink_metadata(entry.path())?;
        if error.kind() != io::ErrorKind::PermissionDenied || !found.is_dir() {
            return Err(error);
        }
        let mode = found.permissions();
        fs::set_permissions(entry.path(), fs::Permissions::from_mode(mode.mode() | 0o700))?;
        fs::rename(entry.path(), &target)?;
        fs::set_permissions(&target, mode)?;
    }
    Ok(())
}
