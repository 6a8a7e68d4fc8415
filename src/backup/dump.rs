//! The dump worker: captures the data, and reads, compares, verifies and removes restore points. The worker runs as the environment's run
//! user and has only read access to the data.

use std::{
    env,
    ffi::OsStr,
    fs::File,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use larder_points::{
    CaptureOptions, ChangeKind, Diff, LookOptions, Manifest, Point, SkipReason, Store, Usage, VerifyOptions, diff, diff_live,
    usage,
};

use super::{
    CopyRequest, DATA, DataChange, DataDiff, DatabaseJob, DumpJob, DumpReport, MAX_LISTED, PointCounts, PointInfo, PointLabel,
    PointState,
    error::{BackupFailure, FailureKind},
    retention::{self, ProtectedReleases},
    space::SpaceEstimate,
    staging::{self, Dumps},
};
use crate::{config::BackupKeep, model::PointId};

/// The number of threads that read files.
const THREADS: usize = 2;

/// The niceness of a quiet job (nice(2)).
const NICE: i32 = 15;

/// The minimum length of the beginning or end of an id that names a restore point, in characters.
const MIN_NAME: usize = 4;

/// The directories of the dump worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DumpPaths {
    /// The live data.
    pub data: PathBuf,
    /// The store of the restore points.
    pub points: PathBuf,
}

impl DumpPaths {
    /// Reads `LARDER_DATA` and `LARDER_POINTS`.
    pub fn from_environment() -> DumpPaths {
        DumpPaths { data: directory("LARDER_DATA", "/data"), points: directory("LARDER_POINTS", "/points") }
    }

    /// Opens the parent directory of the live data. The paths in a restore point are relative to this directory.
    fn base(&self) -> Result<File, BackupFailure> {
        let base = self.data.parent().unwrap_or(Path::new("/"));
        if self.data.file_name() != Some(OsStr::new(DATA)) {
            return Err(BackupFailure::new(
                FailureKind::Machine,
                format!("cannot use {} as the live data: expected the name `{DATA}`", self.data.display()),
            ));
        }
        File::open(base).map_err(|e| BackupFailure::io(&format!("open {}", base.display()), &e))
    }
}

/// Returns the path in an environment variable, or the default path if the variable is unset or empty.
pub(super) fn directory(variable: &str, default: &str) -> PathBuf {
    env::var_os(variable).filter(|path| !path.is_empty()).map_or_else(|| PathBuf::from(default), PathBuf::from)
}

/// Runs the dump worker.
pub fn work(job: &DumpJob, paths: &DumpPaths) -> Result<DumpReport, BackupFailure> {
    let store = Store::open(&paths.points)?;
    match job {
        DumpJob::Take { id, label, exact, databases, copies } => take(&store, paths, (*id, label), *exact, databases, copies),
        DumpJob::Survey { databases } => staging::survey(&paths.data, &paths.points, databases).map(DumpReport::Survey),
        DumpJob::Complete { point, databases } => {
            staging::complete(&store, &paths.points, point, databases)?;
            Ok(DumpReport::Completed)
        }
        DumpJob::DropCopies { point, databases } => {
            staging::drop_copies(point, databases)?;
            Ok(DumpReport::Dropped)
        }
        DumpJob::List => list(&store),
        DumpJob::Show { point } => Ok(DumpReport::Point(Box::new(described(&named(&store, point)?)?), Vec::new())),
        DumpJob::Verify { point } => verify(&store, point),
        DumpJob::Export { .. } | DumpJob::Serve { .. } | DumpJob::Receive { .. } => {
            Err(BackupFailure::new(FailureKind::Machine, "cannot send or receive a restore point: no descriptor is given"))
        }
        DumpJob::Plan { keep, protected } => plan(&store, keep, protected),
        DumpJob::Measure { restored } => {
            let restored = restored.as_ref().map(|point| named(&store, point)).transpose()?;
            let measured = SpaceEstimate::of(&store, &paths.base()?, newest(&store)?.as_ref(), restored.as_ref(), THREADS)?;
            Ok(DumpReport::Space(measured))
        }
        DumpJob::Sweep => {
            store.sweep()?;
            Ok(DumpReport::Swept)
        }
        DumpJob::Quietly(job) => {
            be_quiet();
            work(job, paths)
        }
        DumpJob::Remove { point } => {
            let id = resolve(&store, point)?;
            store.remove(&id)?;
            Ok(DumpReport::Removed(id))
        }
        DumpJob::Diff { from, to } => {
            let from = named(&store, from)?;
            let found = match to {
                Some(to) => {
                    let to = named(&store, to)?;
                    compared(&from, Some(to.id()), &diff(&from, &to, MAX_LISTED)?)
                }
                None => {
                    // The dumps of databases and the files of the project's script exist only in restore points.
                    let (listed, only) = (MAX_LISTED, Some(DATA));
                    let options = LookOptions { threads: THREADS, cross_mounts: true, listed, only, ..LookOptions::default() };
                    compared(&from, None, &diff_live(&from, paths.base()?.as_fd(), &options)?)
                }
            };
            Ok(DumpReport::Diff(found))
        }
    }
}

/// Lowers the priority of this process.
pub(super) fn be_quiet() {
    // The threads of the job inherit the niceness. The kernel derives the priority of disk accesses from the niceness (ionice(1)). If this
    // call fails, the job runs with the usual priority.
    let _ = rustix::process::nice(NICE);
}

fn take(
    store: &Store,
    paths: &DumpPaths,
    (id, label): (PointId, &PointLabel),
    exact: bool,
    databases: &[DatabaseJob],
    copies: &[CopyRequest],
) -> Result<DumpReport, BackupFailure> {
    // Partial restore points of killed captures would otherwise use disk space until a person deletes them.
    store.sweep()?;
    let base = paths.base()?;
    let data = File::open(&paths.data).map_err(|e| BackupFailure::io("open the data", &e))?;
    // A write through a shared mapping may update the times of a file only when the file system is synced. The capture itself would sync
    // the file system of the data's parent directory (`sync_sources`), which may be another file system, so the data is synced here.
    rustix::fs::syncfs(&data).map_err(|e| BackupFailure::io("sync the file system of the data", &e.into()))?;
    let previous = newest(store)?;
    // Before an exact capture, the caller stops the application. The caller has checked the free space before this stop.
    if !exact {
        SpaceEstimate::of(store, &base, previous.as_ref(), None, THREADS)?.check("take a restore point", 0)?;
    }
    let begun = std::time::Instant::now();
    let dumps = Dumps::write(&paths.data, &paths.points, &id.to_string(), databases, exact, copies)?;
    let dumped = begun.elapsed();
    let dump_bytes = dumps.list.iter().filter(|info| info.copy.is_none()).map(|info| info.bytes).sum();
    let options = CaptureOptions {
        threads: THREADS,
        // The data is a mount point in this worker's view, and an operator may have mounted another disk inside of it.
        cross_mounts: true,
        skip_unreadable: true,
        sync_sources: false,
        staged: dumps.staged(),
        ..CaptureOptions::default()
    };
    let label_custom = label.custom;
    let label = PointLabel { databases: dumps.list.clone(), sessions: dumps.sessions.clone(), ..label.clone() };
    let label = serde_json::to_value(label).map_err(|e| BackupFailure::new(FailureKind::Machine, e.to_string()))?;
    let id = id.to_string();
    let captured = store.capture(&id, &label, base.as_fd(), &dumps.sources(label_custom), previous.as_ref(), &options)?;
    if exact && !captured.is_exact() {
        let (missed, torn) = (captured.missed, captured.manifest.totals.torn);
        let first = skipped(&captured.manifest).into_iter().find(|(_, why)| why == UNREADABLE || why == CHANGED);
        let first = first.map(|(path, why)| format!("; first missing file: {path} ({why})")).unwrap_or_default();
        store.remove(&id)?;
        let why = format!(
            "cannot take an exact restore point: missing files: {missed}, files that changed while they were read: {torn}{first}"
        );
        return Err(BackupFailure::new(FailureKind::Refused, why));
    }
    let millis = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let mut info = described(&store.point(&id)?)?;
    info.counts.dumps_ms = millis(dumped);
    info.counts.files_ms = millis(begun.elapsed().saturating_sub(dumped));
    info.counts.dump_bytes = dump_bytes;
    info.runs.clone_from(&dumps.runs);
    Ok(DumpReport::Point(Box::new(info), Vec::new()))
}

/// Opens the newest restore point that can be opened.
fn newest(store: &Store) -> Result<Option<Point>, BackupFailure> {
    Ok(store.list()?.iter().rev().find_map(|id| store.point(id).ok()))
}

fn list(store: &Store) -> Result<DumpReport, BackupFailure> {
    let (points, mut all) = opened(store)?;
    let used = usage(&points.iter().collect::<Vec<_>>()).unwrap_or_default();
    all.extend(points.iter().map(|point| listed(point, &used)));
    all.sort_by(|a, b| b.id.cmp(&a.id));
    Ok(DumpReport::List(all, used.total))
}

/// Opens all restore points, newest first. Also returns the descriptions of the restore points that cannot be opened.
fn opened(store: &Store) -> Result<(Vec<Point>, Vec<PointInfo>), BackupFailure> {
    let (mut points, mut broken) = (Vec::new(), Vec::new());
    for id in store.list()?.into_iter().rev() {
        match store.point(&id) {
            Ok(point) => points.push(point),
            Err(error) => broken.push(unusable(&id, error.into())),
        }
    }
    Ok((points, broken))
}

/// Describes a restore point of a list. `used` is the disk usage of all restore points of the list.
fn listed(point: &Point, used: &Usage) -> PointInfo {
    let space = used.points.iter().find(|space| space.id == point.id());
    let mut info = info(point, space.map_or((0, 0), |space| (space.bytes, space.unique)));
    // A list of many restore points would otherwise be large.
    if let Some(configuration) = info.label.as_mut().and_then(|label| label.configuration.as_mut()) {
        configuration.file.clear();
    }
    info
}

fn plan(store: &Store, keep: &BackupKeep, protected: &ProtectedReleases) -> Result<DumpReport, BackupFailure> {
    let (points, unusable) = opened(store)?;
    let used = usage(&points.iter().collect::<Vec<_>>()).unwrap_or_default();
    let infos = points.iter().map(|point| listed(point, &used)).collect();
    Ok(DumpReport::Plan(retention::plan(&points, infos, unusable, &used, keep, protected)))
}

fn verify(store: &Store, name: &str) -> Result<DumpReport, BackupFailure> {
    let mut point = named(store, name)?;
    staging::check_complete(&point)?;
    let also = staging::damaged_dumps(&point)?;
    let report = point.verify(&VerifyOptions { threads: THREADS, also, ..VerifyOptions::default() })?;
    let damages = report.damages.iter().take(MAX_LISTED).map(|damage| format!("{}: {}", damage.path, damage.fault));
    let damages = damages.collect();
    Ok(DumpReport::Point(Box::new(described(&point)?), damages))
}

/// Opens a restore point by its name.
pub(super) fn named(store: &Store, name: &str) -> Result<Point, BackupFailure> {
    Ok(store.point(&resolve(store, name)?)?)
}

/// Returns the id of a restore point. The name is an id, the beginning or end of exactly one id, or `latest`.
fn resolve(store: &Store, name: &str) -> Result<String, BackupFailure> {
    let ids = store.list()?;
    let missing = |why: &str| BackupFailure {
        hint: Some(String::from("name a restore point that `larder backup list` shows, or four characters at the end of its id")),
        ..BackupFailure::new(FailureKind::NotFound, why)
    };
    let name = name.trim();
    if name == "latest" {
        return ids.last().cloned().ok_or_else(|| missing("there is no restore point yet"));
    }
    let shown: String = name.chars().filter(|c| !c.is_control()).take(100).collect();
    // An id begins with its date, which many ids have in common. The end of each id is different.
    let fits = |id: &&String| *id == name || (name.len() >= MIN_NAME && (id.starts_with(name) || id.ends_with(name)));
    let mut found = ids.iter().filter(fits);
    match (found.next(), found.next()) {
        (Some(id), None) => Ok(id.clone()),
        (None, _) => Err(missing(&format!("there is no restore point {shown}"))),
        (Some(_), Some(_)) => Err(missing(&format!("more than one restore point has an id that begins or ends with {shown}"))),
    }
}

fn described(point: &Point) -> Result<PointInfo, BackupFailure> {
    let space = usage(&[point])?.points.first().map_or((0, 0), |space| (space.bytes, 0));
    let mut info = info(point, space);
    info.skipped = skipped(&point.manifest);
    Ok(info)
}

fn info(point: &Point, (stored, unique): (u64, u64)) -> PointInfo {
    let totals = &point.manifest.totals;
    let unwritten: Vec<_> = staging::unwritten(point).iter().map(|info| info.name.to_string()).collect();
    PointInfo {
        id: point.id().to_owned(),
        taken: Some(point.manifest.taken),
        label: serde_json::from_value(point.manifest.label.clone()).ok(),
        state: match point.verified {
            _ if !unwritten.is_empty() => {
                PointState::Incomplete(format!("the dump of {} is not written yet", unwritten.join(", ")))
            }
            None => PointState::Unverified,
            Some(verified) if verified.damaged == 0 => PointState::Verified(verified.at.seconds),
            Some(verified) => PointState::Damaged(verified.damaged, verified.at.seconds),
        },
        counts: PointCounts {
            entries: totals.entries,
            files: totals.files,
            bytes: totals.bytes,
            shared_files: totals.shared_files,
            copied_bytes: totals.copied_bytes,
            torn: totals.torn,
            skipped: totals.skipped,
            stored,
            unique,
            ..PointCounts::default()
        },
        skipped: Vec::new(),
        runs: Vec::new(),
    }
}

fn unusable(id: &str, failure: BackupFailure) -> PointInfo {
    PointInfo {
        id: id.to_owned(),
        taken: None,
        label: None,
        state: PointState::Unusable(failure.why),
        counts: PointCounts::default(),
        skipped: Vec::new(),
        runs: Vec::new(),
    }
}

const UNREADABLE: &str = "unreadable";
const CHANGED: &str = "disappeared or changed its kind during the capture";

fn skipped(manifest: &Manifest) -> Vec<(String, String)> {
    let reason = |reason: SkipReason| match reason {
        SkipReason::Socket => "a socket",
        SkipReason::Fifo => "a FIFO",
        SkipReason::Device => "a device",
        SkipReason::Mount => "on another file system",
        SkipReason::Unreadable => UNREADABLE,
        SkipReason::Changed => CHANGED,
        _ => "left out",
    };
    manifest.skipped.iter().take(MAX_LISTED).map(|skipped| (skipped.path.clone(), reason(skipped.reason).to_owned())).collect()
}

fn compared(from: &Point, to: Option<&str>, diff: &Diff) -> DataDiff {
    let change = |kind: ChangeKind| match kind {
        ChangeKind::Added => "added",
        ChangeKind::Removed => "removed",
        ChangeKind::Metadata => "metadata",
        _ => "changed",
    };
    let changes = diff.changes.iter().map(|found| DataChange {
        path: String::from_utf8_lossy(&found.path).into_owned(),
        change: change(found.kind).to_owned(),
        before: found.size_before,
        after: found.size_after,
    });
    DataDiff {
        from: from.id().to_owned(),
        to: to.map(str::to_owned),
        added: diff.added,
        removed: diff.removed,
        changed: diff.changed,
        metadata: diff.metadata,
        new_bytes: diff.new_bytes,
        changes: changes.collect(),
    }
}
