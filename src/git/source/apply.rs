//! Changes the exported tree to the planned entries: removes, creates and replaces the entries that differ from the previous export.

use std::{fs, io, os::fd::AsFd, path::Path, thread};

use git2::Oid;

use super::{
    tree::{self, TREE, TreeWriter},
    walk::{PlannedEntry, PlannedKind},
};
use crate::{
    git::libgit,
    model::{Digest, SourceEntry, SourceKind},
};

/// The number of files from which a second thread makes an export faster.
const PARALLEL: usize = 256;
/// The number of threads that write a large export.
const THREADS: usize = 2;

/// Applies `plan` to the tree in the environment's directory `project/`. `old` lists the current entries of the tree; without `old`, the
/// tree is emptied first. Returns the entries of the new list, and the number of entries that were removed or created.
pub fn apply(
    repository: &Path,
    project: &Path,
    old: Option<&[SourceEntry]>,
    mut plan: Vec<PlannedEntry>,
) -> io::Result<(Vec<SourceEntry>, u64)> {
    let directory = project.join(TREE);
    if old.is_none() {
        empty(&directory)?;
    }
    let root = tree::root(&directory)?;
    let mut at = TreeWriter::new(root.as_fd());
    let changes = compare(old.unwrap_or_default(), &plan);
    // The order is reversed, so that the content of a directory is removed before the directory.
    for entry in changes.gone.iter().rev() {
        at.remove(&entry.path, entry.kind == SourceKind::Dir)?;
    }
    let mut files = Vec::new();
    for index in &changes.new {
        let Some(entry) = plan.get(*index) else { continue };
        match &entry.kind {
            PlannedKind::Dir => at.directory(&entry.path)?,
            PlannedKind::Link { target } => at.link(&entry.path, target)?,
            PlannedKind::File { .. } => files.push(*index),
        }
    }
    drop(at);
    for (index, written) in write_files(repository, &root, &plan, &files)? {
        if let Some(PlannedEntry { kind: PlannedKind::File { digest, .. }, .. }) = plan.get_mut(index) {
            *digest = Some(written);
        }
    }
    let changed = (changes.gone.len() + changes.new.len()) as u64;
    let entries: io::Result<Vec<SourceEntry>> = plan.into_iter().map(listed).collect();
    Ok((entries?, changed))
}

/// Empties the directory `tree`, or creates the directory if it does not exist. An existing directory is kept, because the directory may be
/// a mount point or the source of a bind mount.
fn empty(tree: &Path) -> io::Result<()> {
    match fs::symlink_metadata(tree) {
        Ok(meta) if meta.is_dir() => {}
        Ok(_) => {
            fs::remove_file(tree)?;
            fs::create_dir(tree)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::create_dir(tree)?,
        Err(error) => return Err(error),
    }
    for entry in fs::read_dir(tree)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

struct Changes<'o> {
    /// The entries to remove.
    gone: Vec<&'o SourceEntry>,
    /// The indices in the plan of the entries to create.
    new: Vec<usize>,
}

/// Compares two lists that are sorted by path, in one pass. A replaced entry is both removed and created.
fn compare<'o>(old: &'o [SourceEntry], plan: &[PlannedEntry]) -> Changes<'o> {
    let mut changes = Changes { gone: Vec::new(), new: Vec::new() };
    let mut old = old.iter().peekable();
    for (index, entry) in plan.iter().enumerate() {
        while let Some(gone) = old.next_if(|known| known.path < entry.path) {
            changes.gone.push(gone);
        }
        match old.next_if(|known| known.path == entry.path) {
            Some(known) if same(known, entry) => {}
            Some(known) => {
                changes.gone.push(known);
                changes.new.push(index);
            }
            None => changes.new.push(index),
        }
    }
    changes.gone.extend(old);
    changes
}

fn same(old: &SourceEntry, new: &PlannedEntry) -> bool {
    match (&old.kind, &new.kind) {
        (SourceKind::Dir, PlannedKind::Dir) => true,
        (SourceKind::Link { target: before }, PlannedKind::Link { target }) => before == target,
        // The walk has set the digest if the previous export had the same content at this path.
        (SourceKind::File { blob, executable: before, .. }, PlannedKind::File { oid, executable, digest, .. }) => {
            before == executable && blob.as_slice() == oid.as_bytes() && digest.is_some()
        }
        _ => false,
    }
}

fn write_files(repository: &Path, root: &impl AsFd, plan: &[PlannedEntry], files: &[usize]) -> io::Result<Vec<(usize, Digest)>> {
    let threads = if files.len() >= PARALLEL { THREADS } else { 1 };
    if threads == 1 {
        return write_some(repository, root, plan, files);
    }
    let share = files.len().div_ceil(threads);
    let root = root.as_fd();
    thread::scope(|scope| {
        let work: Vec<_> =
            files.chunks(share).map(|files| scope.spawn(move || write_some(repository, &root, plan, files))).collect();
        let mut done = Vec::with_capacity(files.len());
        for thread in work {
            done.extend(thread.join().map_err(|_| io::Error::other("a writer thread panicked"))??);
        }
        Ok(done)
    })
}

/// Writes files in one thread. Each thread opens the repository itself, because two threads must not use the same handle of libgit2.
fn write_some(repository: &Path, root: &impl AsFd, plan: &[PlannedEntry], files: &[usize]) -> io::Result<Vec<(usize, Digest)>> {
    let wrong = |error: git2::Error| io::Error::other(error.message().to_owned());
    let mut done = Vec::with_capacity(files.len());
    if files.is_empty() {
        return Ok(done);
    }
    let repository = libgit::open(repository).map_err(wrong)?;
    let odb = repository.odb().map_err(wrong)?;
    let mut at = TreeWriter::new(root.as_fd());
    for index in files {
        let Some(PlannedEntry { path, kind: PlannedKind::File { oid, size, executable, .. } }) = plan.get(*index) else {
            continue;
        };
        let content = odb.read(*oid).map_err(wrong)?;
        if content.data().len() as u64 != *size {
            return Err(io::Error::other(format!("{path}: the size of the object differs from its header")));
        }
        at.file(path, *executable, content.data())?;
        done.push((*index, Digest::of(content.data())));
    }
    Ok(done)
}

fn listed(entry: PlannedEntry) -> io::Result<SourceEntry> {
    let kind = match entry.kind {
        PlannedKind::Dir => SourceKind::Dir,
        PlannedKind::Link { target } => SourceKind::Link { target },
        PlannedKind::File { oid, size, executable, digest } => {
            let digest = digest.ok_or_else(|| io::Error::other(format!("{} was not written", entry.path)))?;
            SourceKind::File { size, digest, executable, blob: blob_id(oid) }
        }
    };
    Ok(SourceEntry { path: entry.path, kind })
}

fn blob_id(oid: Oid) -> Vec<u8> {
    oid.as_bytes().to_vec()
}
