//! What the new release has in common with the previous one.

use std::sync::atomic::{AtomicBool, Ordering};

use larder_archive::{compared, pool::for_each};
use rustix::fs::FileType;

use super::target::Base;
use crate::{
    host::files::{Confined, Cursor},
    model::{Entry, EntryKind},
    release::ReleaseError,
};

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
        for_each(paths, threads, || tree.cursor(), |cursor, path| cursor.create_dir(path, 0o755))?;
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
    let (gone, there) = compared(old, new);
    let gone = gone.into_iter().filter_map(|index| old.get(index));
    let (directories, others): (Vec<&Entry>, Vec<&Entry>) = gone.partition(|entry| entry.kind == EntryKind::Dir);
    for_each(&others, threads, || tree.cursor(), |cursor, entry| cursor.remove(&entry.path))?;
    // Backwards: what a directory holds goes before the directory.
    let mut cursor = tree.cursor();
    directories.iter().rev().try_for_each(|entry| cursor.remove_dir(&entry.path))?;
    make_directories(tree, new, &there, threads)?;
    let is_file = |entry: &Entry| matches!(entry.kind, EntryKind::File { .. });
    let linked = new.iter().zip(&there).map(|(entry, there)| AtomicBool::new(*there && is_file(entry))).collect();
    Ok((there, linked))
}

/// Links every file that both releases have with the same digest and mode; says which ones. What cannot be linked is unpacked.
pub(super) fn share(tree: &Confined, base: Base<'_>, entries: &[Entry], threads: usize) -> Result<Vec<AtomicBool>, ReleaseError> {
    let (_, same) = compared(base.entries, entries);
    let linked: Vec<AtomicBool> = entries.iter().map(|_| AtomicBool::new(false)).collect();
    let both: Vec<_> = entries.iter().zip(&linked).zip(same).filter(|(_, same)| *same).map(|(both, _)| both).collect();
    for_each(
        &both,
        threads,
        || (base.tree.cursor(), tree.cursor()),
        |(from, to), (entry, linked)| {
            if let EntryKind::File { size, executable, .. } = &entry.kind {
                linked.store(share_one(from, to, &entry.path, &entry.path, *size, *executable)?, Ordering::Relaxed);
            }
            Ok::<(), ReleaseError>(())
        },
    )?;
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
