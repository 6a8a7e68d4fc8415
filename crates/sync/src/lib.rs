//! The strict sync of a directory: after [`sync`], the directory contains exactly the entries of a release. All other entries are deleted,
//! except the links to persistent data ([`DataLink`]).
//!
//! The target belongs to an application, which may have changed every part of it. No link in the target is therefore followed, no special
//! file is opened for writing, and no file shares its inode with the release. A changed file is written under a temporary name and then
//! renamed. The temporary names of a killed sync are not entries of the release, so the next sync deletes them.
//!
//! An unchanged file stays in place. A file is unchanged if its [`FileStamp`] is equal to the stamp that an earlier sync recorded for the
//! same content, or if its digest is equal to the digest in the manifest. No process can set the change time (ctime) of a file, and every
//! change of content, mode, owner, name or attributes sets it. A sync ends only after the clock of the file system has passed all recorded
//! change times, so a later change always differs from the record.
//!
//! The caller must have ended all processes that write to the target.

mod copy;
mod directories;
mod error;
mod files;
mod plan;
mod record;
mod sys;
#[cfg(test)]
mod tests;

use std::{
    os::fd::AsFd,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use larder_archive::{Confined, Entry, pool::for_each};
use parking_lot::Mutex;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

pub use self::{
    error::SyncError,
    record::{FileStamp, SyncRecord},
};
use self::{
    plan::{PlannedItem, TreePlan},
    record::RecordedFile,
};

/// The maximum time to wait until the clock of the file system has passed the change times of the synced files. The clock advances at
/// least every 10 ms; only a clock that was set back takes longer.
const SETTLE_LIMIT: Duration = Duration::from_millis(200);

/// The owners, modes and exceptions of a sync.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncPolicy {
    /// The uid and gid of all entries. `None` stands for the user and group of this process. Other owners need root.
    pub owner: Option<(u32, u32)>,
    /// The mode of directories.
    pub directory_mode: u32,
    /// The mode of files that are not executable.
    pub file_mode: u32,
    /// The mode of executable files.
    pub executable_mode: u32,
    /// The links to persistent data.
    pub data: Vec<DataLink>,
    /// The number of threads.
    pub threads: usize,
}

impl Default for SyncPolicy {
    fn default() -> SyncPolicy {
        SyncPolicy { owner: None, directory_mode: 0o755, file_mode: 0o644, executable_mode: 0o755, data: Vec::new(), threads: 2 }
    }
}

/// A path that a symlink to persistent data may replace. If the target has exactly this symlink, the symlink and its parent directories stay,
/// and the entries of the release at and below the path are left out. Otherwise the path is synced like all other paths.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataLink {
    /// The path in the target, without a slash at the end.
    pub path: String,
    /// The target of the symlink.
    pub target: String,
}

/// The result of a sync.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncReport {
    /// The number of entries of the release in the target.
    pub entries: u64,
    /// The number of entries that were created or replaced.
    pub changed: u64,
    /// The number of deleted names. A directory with its content counts once.
    pub deleted: u64,
    /// The size of all written files, in bytes.
    pub bytes: u64,
}

/// The counters of a sync in progress.
#[derive(Debug, Default)]
struct Counters {
    changed: AtomicU64,
    deleted: AtomicU64,
    bytes: AtomicU64,
    /// The number of the last temporary name.
    temporary: AtomicU64,
}

fn add(counter: &AtomicU64, more: u64) -> u64 {
    counter.fetch_add(more, Ordering::Relaxed)
}

/// The state that all threads of a sync share.
struct Sync<'a> {
    release: &'a Confined,
    target: &'a Confined,
    entries: &'a [Entry],
    policy: &'a SyncPolicy,
    /// The uid and gid of all entries.
    owner: (u32, u32),
    /// The recorded stamps of the files with the content of the release, in the order of `entries`.
    known: Vec<Option<FileStamp>>,
    counters: Counters,
}

/// Makes `target` equal to the installed tree `release`, whose manifest lists `entries`, and makes the result durable. `previous` is the
/// record of the last sync of `target`; without the record, every file is read. The call may be repeated after a kill.
///
/// # Errors
///
/// Returns an error if a file of the release differs from its digest, if a file system is mounted inside the target, or if the operating
/// system refuses an operation. The target is then partly synced.
pub fn sync(
    release: &Confined,
    target: &Confined,
    entries: &[Entry],
    previous: Option<&SyncRecord>,
    policy: &SyncPolicy,
) -> Result<(SyncReport, SyncRecord), SyncError> {
    sync_entries(release, target, entries, previous, policy).map_err(|error| explained(target, error))
}

/// Returns the error with the protected entry, if an operation was refused because root has protected an entry of the target.
fn explained(target: &Confined, error: SyncError) -> SyncError {
    // A name that cannot be deleted is deleted as a directory next, so the error may also be that the name is not a directory.
    let causes = [Errno::PERM, Errno::NOTDIR].map(|errno| Some(errno.raw_os_error()));
    let path = match &error {
        SyncError::Io { path, source, .. } if causes.contains(&source.raw_os_error()) => path,
        _ => return error,
    };
    // The entry itself, an entry below it, or a directory above it can be protected.
    let above = path.ancestors().skip(1).find_map(|above| {
        let found = if above.as_os_str().is_empty() {
            sys::metadata_of(target)
        } else {
            sys::metadata_at(target.as_fd(), above.as_os_str())
        };
        Some((above.to_owned(), found.ok()?.protection?))
    });
    match above.or_else(|| sys::protected_below(target.as_fd(), path.as_os_str())) {
        Some((path, attribute)) => SyncError::Protected { path, attribute },
        None => error,
    }
}

fn sync_entries(
    release: &Confined,
    target: &Confined,
    entries: &[Entry],
    previous: Option<&SyncRecord>,
    policy: &SyncPolicy,
) -> Result<(SyncReport, SyncRecord), SyncError> {
    let owner = policy.owner.unwrap_or_else(|| (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()));
    let known = previous.map_or_else(|| vec![None; entries.len()], |record| record.stamps_of(entries));
    let sync = Sync { release, target, entries, policy, owner, known, counters: Counters::default() };
    let plan = TreePlan::new(entries, &plan::present(target, &policy.data));
    let items = Mutex::new(Vec::with_capacity(entries.len()));
    for level in plan.levels() {
        for_each(
            level,
            policy.threads,
            || (),
            |(), directory| {
                let found = sync.directory(directory)?;
                items.lock().extend(found);
                Ok::<_, SyncError>(())
            },
        )?;
    }
    let items = grouped(items.into_inner());
    let recorded = Mutex::new(Vec::with_capacity(items.len()));
    for_each(
        &items,
        policy.threads,
        || files::Worker::new(&sync),
        |worker, batch: &Vec<PlannedItem>| {
            let stamps = worker.batch(&plan, batch)?;
            recorded.lock().extend(stamps);
            Ok::<_, SyncError>(())
        },
    )?;
    let (durable, files) = std::thread::scope(|scope| {
        let durable = scope.spawn(|| target.sync_file_system());
        let files = settled(sync.recorded(recorded.into_inner()));
        (durable.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), files)
    });
    durable.map_err(SyncError::File)?;
    let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let Counters { changed, deleted, bytes, .. } = &sync.counters;
    let report = SyncReport { entries: plan.expected, changed: of(changed), deleted: of(deleted), bytes: of(bytes) };
    Ok((report, SyncRecord::new(files)))
}

/// Splits the items into batches, each of one directory.
fn grouped(items: Vec<Vec<PlannedItem>>) -> Vec<Vec<PlannedItem>> {
    const BATCH: usize = 64;
    let mut batches = Vec::new();
    for mut directory in items {
        while directory.len() > BATCH {
            let rest = directory.split_off(BATCH);
            batches.push(std::mem::replace(&mut directory, rest));
        }
        if !directory.is_empty() {
            batches.push(directory);
        }
    }
    batches
}

impl Sync<'_> {
    /// Returns the records of the synced files in the order of the entries.
    fn recorded(&self, mut stamps: Vec<(usize, FileStamp)>) -> Vec<RecordedFile> {
        stamps.sort_unstable_by_key(|(index, _)| *index);
        let file = |(index, stamp): (usize, FileStamp)| {
            let entry = self.entries.get(index)?;
            let larder_archive::EntryKind::File { digest, .. } = entry.kind else { return None };
            Some(RecordedFile { path: entry.path.clone(), digest, stamp })
        };
        stamps.into_iter().filter_map(file).collect()
    }
}

/// Waits until the clock of the file system has passed the change times of `files`. Leaves out the files whose change times are still in
/// the future, because a later change might get the recorded change time.
fn settled(mut files: Vec<RecordedFile>) -> Vec<RecordedFile> {
    let Some(last) = files.iter().map(|file| file.stamp.ctime).max() else { return files };
    let begun = std::time::Instant::now();
    while sys::file_clock() <= last && begun.elapsed() < SETTLE_LIMIT {
        std::thread::sleep(Duration::from_millis(1));
    }
    let now = sys::file_clock();
    files.retain(|file| file.stamp.ctime < now);
    files
}
