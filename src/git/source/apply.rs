//! Brings the tree on disk to a plan: removes, makes and replaces what differs from the last export, and nothing else.

use std::{fs, io, os::fd::AsFd, path::Path, thread};

use git2::Oid;

use super::{
    list::TREE,
    places::{self, Places},
    walk::{Kind, Planned},
};
use crate::{
    git::refs,
    model::{Digest, SourceEntry, SourceKind},
};

/// From how many files on a second thread pays.
const PARALLEL: usize = 256;
/// How many threads write a large export.
const THREADS: usize = 2;

/// Applies `plan` to `place/tree`. `old` is what is there; without it the tree is emptied first. Returns the new list's entries and
/// how many entries were removed or made.
pub fn apply(
    repository: &Path,
    place: &Path,
    old: Option<&[SourceEntry]>,
    mut plan: Vec<Planned>,
) -> io::Result<(Vec<SourceEntry>, u64)> {
    let tree = place.join(TREE);
    if old.is_none() {
        empty(&tree)?;
    }
    let root = places::root(&tree)?;
    let mut at = Places::new(root.as_fd());
    let changes = compare(old.unwrap_or_default(), &plan);
    // Backwards, so that a directory's content goes before it.
    for entry in changes.gone.iter().rev() {
        at.remove(&entry.path, entry.kind == SourceKind::Dir)?;
    }
    let mut files = Vec::new();
    for index in &changes.new {
        let Some(entry) = plan.get(*index) else { continue };
        match &entry.kind {
            Kind::Dir => at.directory(&entry.path)?,
            Kind::Link { target } => at.link(&entry.path, target)?,
            Kind::File { .. } => files.push(*index),
        }
    }
    drop(at);
    for (index, written) in write_files(repository, &root, &plan, &files)? {
        if let Some(Planned { kind: Kind::File { digest, .. }, .. }) = plan.get_mut(index) {
            *digest = Some(written);
        }
    }
    let changed = (changes.gone.len() + changes.new.len()) as u64;
    let entries: io::Result<Vec<SourceEntry>> = plan.into_iter().map(listed).collect();
    Ok((entries?, changed))
}

/// Empties the tree, or makes it. The directory itself stays: something may be mounted on or from it.
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
    gone: Vec<&'o SourceEntry>,
    /// Indices into the plan.
    new: Vec<usize>,
}

/// Both lists are sorted by path: one pass.
fn compare<'o>(old: &'o [SourceEntry], plan: &[Planned]) -> Changes<'o> {
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

fn same(old: &SourceEntry, new: &Planned) -> bool {
    match (&old.kind, &new.kind) {
        (SourceKind::Dir, Kind::Dir) => true,
        (SourceKind::Link { target: before }, Kind::Link { target }) => before == target,
        // The digest is known wherever the walk found the same content at the same path in the list.
        (SourceKind::File { blob, executable: before, .. }, Kind::File { oid, executable, digest, .. }) => {
            before == executable && blob.as_slice() == oid.as_bytes() && digest.is_some()
        }
        _ => false,
    }
}

fn write_files(repository: &Path, root: &impl AsFd, plan: &[Planned], files: &[usize]) -> io::Result<Vec<(usize, Digest)>> {
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
            done.extend(thread.join().map_err(|_| io::Error::other("a writer stopped half-way"))??);
        }
        Ok(done)
    })
}

/// Each thread has its own handle: one of libgit2's may not be used by two at a time.
fn write_some(repository: &Path, root: &impl AsFd, plan: &[Planned], files: &[usize]) -> io::Result<Vec<(usize, Digest)>> {
    let wrong = |error: git2::Error| io::Error::other(error.message().to_owned());
    let mut done = Vec::with_capacity(files.len());
    if files.is_empty() {
        return Ok(done);
    }
    let repository = refs::open(repository).map_err(wrong)?;
    let odb = repository.odb().map_err(wrong)?;
    let mut at = Places::new(root.as_fd());
    for index in files {
        let Some(Planned { path, kind: Kind::File { oid, size, executable, .. } }) = plan.get(*index) else { continue };
        let content = odb.read(*oid).map_err(wrong)?;
        if content.data().len() as u64 != *size {
            return Err(io::Error::other(format!("{path} has another size than its object says")));
        }
        at.file(path, *executable, content.data())?;
        done.push((*index, Digest::of(content.data())));
    }
    Ok(done)
}

fn listed(entry: Planned) -> io::Result<SourceEntry> {
    let kind = match entry.kind {
        Kind::Dir => SourceKind::Dir,
        Kind::Link { target } => SourceKind::Link { target },
        Kind::File { oid, size, executable, digest } => {
            let digest = digest.ok_or_else(|| io::Error::other(format!("{} was not written", entry.path)))?;
            SourceKind::File { size, digest, executable, blob: blob_id(oid) }
        }
    };
    Ok(SourceEntry { path: entry.path, kind })
}

fn blob_id(oid: Oid) -> Vec<u8> {
    oid.as_bytes().to_vec()
}
