//! What the new release has in common with the previous one.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::fs::FileType;

use super::target::Base;
use crate::{
    host::files::{Confined, Cursor},
    model::{Entry, EntryKind},
    release::{ReleaseError, each_thread},
};

/// With fewer directories than this at one depth, a thread of its own costs more than it helps.
const WORTH_A_THREAD: usize = 64;

/// Makes the directories that are not `there` yet: one depth after the other, those of the same depth in `threads` threads.
pub(super) fn make_directories(tree: &Confined, entries: &[Entry], there: &[bool], threads: usize) -> Result<(), ReleaseError> {
    let mut depths: Vec<Vec<&str>> = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        if entry.kind == EntryKind::Dir && there.get(index) != Some(&true) {
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
        let next = AtomicUsize::new(0);
        let parts: Vec<_> = paths.chunks(WORTH_A_THREAD).collect();
        let results = each_thread(threads.min(parts.len()), || {
            let mut cursor = tree.cursor();
            while let Some(part) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
                part.iter().try_for_each(|path| cursor.create_dir(path, 0o755))?;
            }
            Ok::<(), ReleaseError>(())
        });
        results.into_iter().collect::<Result<(), _>>()?;
    }
    Ok(())
}

/// Turns a spare tree of `old` into the common part of `old` and `new`, with the directories of `new`. Says which entries of
/// `new` are there, and which of those are files.
pub(super) fn clear_changed(
    tree: &Confined,
    old: &[Entry],
    new: &[Entry],
    threads: usize,
) -> Result<(Vec<bool>, Vec<AtomicBool>), ReleaseError> {
    let mut cursor = tree.cursor();
    let (gone, there) = compared(old, new);
    // Backwards: what a directory holds goes before the directory.
    for entry in gone.into_iter().rev() {
        if entry.kind == EntryKind::Dir { cursor.remove_dir(&entry.path)? } else { cursor.remove(&entry.path)? }
    }
    make_directories(tree, new, &there, threads)?;
    let is_file = |entry: &Entry| matches!(entry.kind, EntryKind::File { .. });
    let linked = new.iter().zip(&there).map(|(entry, there)| AtomicBool::new(*there && is_file(entry))).collect();
    Ok((there, linked))
}

/// Which entries of `old` the new list does not have as they are, and of each in `new` whether the old list has it. Both are sorted.
fn compared<'a>(old: &'a [Entry], new: &[Entry]) -> (Vec<&'a Entry>, Vec<bool>) {
    let (mut gone, mut there) = (Vec::new(), Vec::with_capacity(new.len()));
    let mut old = old.iter().peekable();
    for entry in new {
        while let Some(before) = old.next_if(|old| old.path < entry.path) {
            gone.push(before);
        }
        let same = old.next_if(|old| old.path == entry.path);
        there.push(same.is_some_and(|old| old.kind == entry.kind));
        gone.extend(same.filter(|old| old.kind != entry.kind));
    }
    gone.extend(old);
    (gone, there)
}

/// Links every file that both releases have with the same digest and mode; says which ones. What cannot be linked is unpacked.
pub(super) fn share(tree: &Confined, base: Base<'_>, entries: &[Entry], threads: usize) -> Result<Vec<AtomicBool>, ReleaseError> {
    let (_, same) = compared(base.entries, entries);
    let linked: Vec<AtomicBool> = entries.iter().map(|_| AtomicBool::new(false)).collect();
    let parts: Vec<_> = entries.chunks(256).zip(same.chunks(256)).zip(linked.chunks(256)).collect();
    let next = AtomicUsize::new(0);
    let results = each_thread(threads, || {
        let (mut from, mut to) = (base.tree.cursor(), tree.cursor());
        while let Some(((entries, same), linked)) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
            for ((entry, same), linked) in entries.iter().zip(*same).zip(*linked) {
                if let EntryKind::File { size, executable, .. } = &entry.kind
                    && *same
                {
                    linked.store(share_one(&mut from, &mut to, &entry.path, &entry.path, *size, *executable)?, Ordering::Relaxed);
                }
            }
        }
        Ok::<(), ReleaseError>(())
    });
    for result in results {
        result?;
    }
    Ok(linked)
}

pub(super) fn share_one(
    from: &mut Cursor<'_>,
    to: &mut Cursor<'_>,
    old: &str,
    path: &str,
    size: u64,
    executable: bool,
) -> Result<bool, ReleaseError> {
    // EMLINK, EXDEV, EPERM, a file that is gone: whatever the reason, it can be written or is missed later.
    if to.hard_link(from, old, path).is_err() {
        return Ok(false);
    }
    // Looked at after linking: what has this name now is what the release gets.
    let stat = to.stat(path)?;
    let right = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        && u64::try_from(stat.st_size) == Ok(size)
        && stat.st_mode & 0o7777 == if executable { 0o755 } else { 0o644 };
    if !right {
        to.remove(path)?;
    }
    Ok(right)
}
