//! Walks a built tree in several threads, and classifies its entries.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
    sync::atomic::{AtomicU64, Ordering},
};

use larder_archive::{ArchiveError, ArchiveLimits, BadPath, Item, ItemKind, check_path, check_target, pool::each_thread};
use parking_lot::{Condvar, Mutex};
use rustix::fs::{FileType, Stat};

use super::ReleaseError;
use crate::host::files::{Confined, Cursor};

/// The number of pending directories above which more threads are started.
const WORTH_A_THREAD: usize = 16;

/// The directories that are still to be read.
struct Queue {
    pending: Vec<OsString>,
    /// The number of threads that are reading a directory and may add to `pending`.
    busy: usize,
    failed: bool,
}

struct Walk<'a> {
    app: &'a Confined,
    queue: Mutex<Queue>,
    changed: Condvar,
    /// The number of entries of the tree that were found so far, including the `others` of [`walk`].
    count: AtomicU64,
}

/// Returns all entries below the directory `from` of `app`, sorted by path. `others` is the number of entries that the caller has found
/// before; these entries count against the limit as well.
pub(super) fn walk(
    app: &Confined,
    from: OsString,
    others: u64,
    threads: usize,
    warnings: &mut Warnings,
) -> Result<Vec<Item>, ReleaseError> {
    let queue = Queue { pending: vec![from], busy: 0, failed: false };
    let walk = Walk { app, queue: Mutex::new(queue), changed: Condvar::new(), count: AtomicU64::new(others) };
    let mut found = Vec::new();
    // Most trees are small: more threads start only when enough directories are pending.
    while let Some(directory) = walk.next(WORTH_A_THREAD) {
        let below = walk.look(&directory, &mut found, warnings)?;
        walk.done(below);
    }
    let left = !walk.queue.lock().pending.is_empty();
    if left {
        for part in each_thread(threads, || walk.rest()) {
            let (items, said) = part?;
            found.extend(items);
            warnings.take(said);
        }
    }
    // Each thread has sorted its part, so that the stable sort only merges the parts.
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

impl Walk<'_> {
    /// Returns the next directory to read. Returns `None` if more than `most` directories are pending, if no directory is left, or if
    /// another thread has failed.
    fn next(&self, most: usize) -> Option<OsString> {
        let mut queue = self.queue.lock();
        loop {
            if queue.failed || queue.pending.len() > most {
                return None;
            }
            if let Some(directory) = queue.pending.pop() {
                queue.busy += 1;
                return Some(directory);
            }
            if queue.busy == 0 {
                return None;
            }
            self.changed.wait(&mut queue);
        }
    }

    /// Marks a directory as read, and adds its subdirectories `below` to the queue.
    fn done(&self, below: Vec<OsString>) {
        let mut queue = self.queue.lock();
        queue.busy -= 1;
        queue.pending.extend(below);
        if queue.busy == 0 || !queue.pending.is_empty() {
            self.changed.notify_all();
        }
    }

    /// Reads directories until no directory is left. Each thread runs this function.
    fn rest(&self) -> Result<(Vec<Item>, Warnings), ReleaseError> {
        let (mut found, mut warnings) = (Vec::new(), Warnings::default());
        while let Some(directory) = self.next(usize::MAX) {
            match self.look(&directory, &mut found, &mut warnings) {
                Ok(below) => self.done(below),
                Err(e) => {
                    self.queue.lock().failed = true;
                    self.changed.notify_all();
                    return Err(e);
                }
            }
        }
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok((found, warnings))
    }

    /// Adds the entries of one directory to `found` and returns the directories among them.
    fn look(&self, directory: &OsString, found: &mut Vec<Item>, warnings: &mut Warnings) -> Result<Vec<OsString>, ReleaseError> {
        let view = self.app.open_dir(directory)?;
        let mut here = view.cursor();
        let (mut below, before) = (Vec::new(), found.len());
        for name in view.names()? {
            let path = checked(directory, &name)?;
            let stat = here.stat(&name)?;
            let Some(kind) = classify(&path, &stat, &mut here, &name, warnings)? else { continue };
            if kind == ItemKind::Dir {
                below.push(path.clone().into());
            }
            found.push(Item { path, kind });
        }
        let more = (found.len() - before) as u64;
        check_count(self.count.fetch_add(more, Ordering::Relaxed) + more)?;
        Ok(below)
    }
}

/// Returns an error if `count` exceeds the maximum number of entries of a release. The count is checked after every directory, so that a
/// huge tree is refused early.
pub(super) fn check_count(count: u64) -> Result<(), ReleaseError> {
    let limit = ArchiveLimits::default().entries;
    if count <= limit {
        return Ok(());
    }
    Err(ReleaseError::Archive { doing: "write", source: ArchiveError::TooManyEntries { count, limit } })
}

/// Warnings for the log of a deployment: a limited number of lines, and the number of further warnings.
#[derive(Debug, Default)]
pub struct Warnings(Vec<String>, u64);

impl Warnings {
    /// The maximum number of warnings that are kept.
    const MAX_LINES: usize = 50;

    /// Adds a warning. After `MAX_LINES` warnings, further warnings are only counted.
    pub fn add(&mut self, line: String) {
        if self.0.len() < Self::MAX_LINES { self.0.push(line) } else { self.1 += 1 }
    }

    /// Appends the warnings of `other`.
    fn take(&mut self, other: Warnings) {
        other.0.into_iter().for_each(|line| self.add(line));
        self.1 += other.1;
    }

    /// Returns the warnings, one line each. If further warnings were only counted, the last line has their number.
    pub fn into_lines(mut self) -> Vec<String> {
        if self.1 > 0 {
            self.0.push(format!("... and {} more", self.1));
        }
        self.0
    }
}

/// Returns the path of the entry `name` in `directory`. Returns an error if no release can contain this path.
pub(super) fn checked(directory: &OsStr, name: &OsStr) -> Result<String, ReleaseError> {
    let mut path = directory.to_owned();
    if !path.is_empty() {
        path.push("/");
    }
    path.push(name);
    let unfit = |why: BadPath| {
        let (why, hint) = match why {
            BadPath::NotUtf8 => ("its name is not UTF-8", "rename it, or let the build delete it"),
            BadPath::Long => ("its path has more than 4096 bytes", "shorten the path"),
            BadPath::LongPart => ("its name has more than 255 bytes", "rename it"),
            _ => ("its name contains a control character", "rename it, or let the build delete it"),
        };
        ReleaseError::Unfit { path: path.to_string_lossy().chars().take(300).collect(), why, hint }
    };
    check_path(path.as_bytes()).map(str::to_owned).map_err(unfit)
}

/// Returns the kind of an entry in the release. Returns `None` for sockets and FIFOs, which are left out with a warning.
pub(super) fn classify(
    path: &str,
    stat: &Stat,
    here: &mut Cursor<'_>,
    name: &OsStr,
    warnings: &mut Warnings,
) -> Result<Option<ItemKind>, ReleaseError> {
    let unfit = |why, hint| Err(ReleaseError::Unfit { path: path.to_owned(), why, hint });
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => ItemKind::Dir,
        FileType::RegularFile if stat.st_mode & 0o6000 != 0 => {
            return unfit("its set-user-id or set-group-id bit is set", "let the build clear the bit: chmod u-s,g-s");
        }
        FileType::RegularFile => ItemKind::File {
            size: u64::try_from(stat.st_size).unwrap_or_default(),
            digest: None,
            executable: stat.st_mode & 0o100 != 0,
        },
        FileType::Symlink => {
            let target = here.read_link(name)?;
            match check_target(target.as_bytes()) {
                Ok(target) => ItemKind::Link { target: target.to_owned() },
                Err(_) => return unfit("its target is not plain UTF-8 text", "let the build delete the link"),
            }
        }
        FileType::Socket | FileType::Fifo => {
            warnings.add(format!("left out {path}: sockets and FIFOs are not part of a release"));
            return Ok(None);
        }
        _ => return unfit("it is a device", "let the build delete it"),
    };
    Ok(Some(kind))
}
