//! Shares the files of the previous release with the new tree, by hard links.

use std::{
    io::Read,
    sync::atomic::{AtomicBool, Ordering},
};

use larder_archive::{compared, pool::for_each};
use parking_lot::Mutex;
use rustix::fs::FileType;

use crate::{
    host::files::{Confined, Cursor, FileError},
    model::{Digest, Entry, EntryKind},
    release::ReleaseError,
};

/// The installed tree of the previous release, whose files may be shared.
#[derive(Clone, Copy)]
pub(super) struct ReuseBase<'a> {
    pub(super) tree: &'a Confined,
    pub(super) entries: &'a [Entry],
}

/// Files of the previous release whose content differs from the manifest.
#[derive(Debug, Default)]
pub(super) struct Damaged(Mutex<(u64, Option<String>)>);

impl Damaged {
    fn add(&self, path: &str) {
        let mut found = self.0.lock();
        found.0 += 1;
        if found.1.as_deref().is_none_or(|first| path < first) {
            found.1 = Some(path.to_owned());
        }
    }

    /// Returns the number of damaged files and the first of them in path order.
    pub(super) fn found(&self) -> (u64, Option<String>) {
        self.0.lock().clone()
    }
}

/// Creates the directories of `entries` that are not yet `present`, parents before their children. `threads` threads create the directories
/// of the same depth.
pub(super) fn make_directories(tree: &Confined, entries: &[Entry], present: &[bool], threads: usize) -> Result<(), ReleaseError> {
    let mut depths: Vec<Vec<&str>> = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        if entry.kind == EntryKind::Dir && present.get(index) != Some(&true) {
            let depth = entry.path.bytes().filter(|byte| *byte == b'/').count();
            if depths.len() <= depth {
                depths.resize(depth + 1, Vec::new());
            }
            if let Some(paths) = depths.get_mut(depth) {
                paths.push(&entry.path);
            }
        }
    }
    for paths in &depths {
        for_each(paths, threads, || tree.cursor(), |cursor, path| cursor.create_dir(path, 0o755))?;
    }
    Ok(())
}

/// Removes from a spare tree, a copy of `old`, all entries that `new` has changed or removed, and creates the directories of `new`. Returns
/// two lists with one flag for each entry of `new`: true if the entry is present, and true if the entry is a present file.
pub(super) fn clear_changed(
    tree: &Confined,
    old: &[Entry],
    new: &[Entry],
    threads: usize,
) -> Result<(Vec<bool>, Vec<AtomicBool>), ReleaseError> {
    let (gone, present) = compared(old, new);
    let gone = gone.into_iter().filter_map(|index| old.get(index));
    let (directories, others): (Vec<&Entry>, Vec<&Entry>) = gone.partition(|entry| entry.kind == EntryKind::Dir);
    for_each(&others, threads, || tree.cursor(), |cursor, entry| cursor.remove(&entry.path))?;
    // The order is reversed, so that the content of a directory is removed before the directory.
    let mut cursor = tree.cursor();
    directories.iter().rev().try_for_each(|entry| cursor.remove_dir(&entry.path))?;
    make_directories(tree, new, &present, threads)?;
    let is_file = |entry: &Entry| matches!(entry.kind, EntryKind::File { .. });
    let linked = new.iter().zip(&present).map(|(entry, present)| AtomicBool::new(*present && is_file(entry))).collect();
    Ok((present, linked))
}

/// Links every file that both releases have under the same path with the same digest and mode. Returns one flag for each entry: true if the
/// entry was linked. The caller must unpack the files that were not linked.
pub(super) fn share(
    tree: &Confined,
    base: ReuseBase<'_>,
    entries: &[Entry],
    threads: usize,
    damaged: &Damaged,
) -> Result<Vec<AtomicBool>, ReleaseError> {
    let (_, same) = compared(base.entries, entries);
    let linked: Vec<AtomicBool> = entries.iter().map(|_| AtomicBool::new(false)).collect();
    let both: Vec<_> = entries.iter().zip(&linked).zip(same).filter(|(_, same)| *same).map(|(both, _)| both).collect();
    for_each(
        &both,
        threads,
        || Linker::new(base.tree, tree, damaged),
        |linker, (entry, linked)| {
            linked.store(linker.link(&entry.path, entry)?, Ordering::Relaxed);
            Ok::<(), ReleaseError>(())
        },
    )?;
    Ok(linked)
}

/// The state of one thread that links files from one tree into another.
pub(super) struct Linker<'a> {
    from: Cursor<'a>,
    to: Cursor<'a>,
    damaged: &'a Damaged,
    buffer: Vec<u8>,
}

impl<'a> Linker<'a> {
    pub(super) fn new(from: &'a Confined, to: &'a Confined, damaged: &'a Damaged) -> Linker<'a> {
        Linker { from: from.cursor(), to: to.cursor(), damaged, buffer: vec![0; 64 << 10] }
    }

    /// Links the file `old` of the previous release as `entry`. Returns true if the link has the kind, mode, size and digest of the entry.
    /// Otherwise removes the link and returns false.
    ///
    /// The content of a file is read once for each release that shares the file. Without this check, a flipped bit or an edit by an
    /// administrator would spread from release to release.
    pub(super) fn link(&mut self, old: &str, entry: &Entry) -> Result<bool, ReleaseError> {
        let EntryKind::File { size, digest, executable } = &entry.kind else { return Ok(false) };
        // After any error (EMLINK, EXDEV, EPERM, a missing file), the file can be unpacked instead.
        if self.to.hard_link(&mut self.from, old, &entry.path).is_err() {
            return Ok(false);
        }
        // The new link is checked, not the path in the old tree. A later rename in the old tree can therefore not replace the checked file.
        let stat = self.to.stat(&entry.path)?;
        let fits = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
            && u64::try_from(stat.st_size) == Ok(*size)
            && stat.st_mode & 0o7777 == if *executable { 0o755 } else { 0o644 };
        // A file that cannot be read (EIO) counts as damaged, like a file with other bytes.
        if fits && self.digest(&entry.path).is_ok_and(|found| found == *digest) {
            return Ok(true);
        }
        if fits {
            self.damaged.add(&entry.path);
        }
        self.to.remove(&entry.path)?;
        Ok(false)
    }

    fn digest(&mut self, path: &str) -> Result<Digest, FileError> {
        let mut file = self.to.open(path)?;
        let mut hasher = blake3::Hasher::new();
        loop {
            let read = file.read(&mut self.buffer).map_err(|e| self.to.failed("read", path, e))?;
            let part = self.buffer.get(..read).unwrap_or_default();
            if part.is_empty() {
                return Ok(hasher.finalize().into());
            }
            hasher.update(part);
        }
    }
}
