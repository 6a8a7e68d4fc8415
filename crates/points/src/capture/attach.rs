//! The addition of files to a complete restore point. The dump of a database can be written after the capture, from a copy of the database
//! that belongs to the same moment as the captured files.

use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::ffi::OsStrExt,
    },
};

use rustix::{
    fs::{AtFlags, FlockOperation, Mode, RenameFlags, fchmod, flock, fsync, linkat, renameat_with},
    io::Errno,
};

use super::{Staged, file::entry, staged::content};
use crate::{
    Digest, Entry, Kind, Manifest, Point, PointError, Result, Source, SourceRecord, Store, Totals, content::Copier, entry::order,
    index, source, step, store, sys,
};

impl Store {
    /// Adds the source of `staged` to the restore point `id`, and replaces its label. The time of the capture and all other files stay. A
    /// kill leaves the old or the new restore point. Returns [`PointError::Busy`] if the restore point is open.
    pub fn attach(&self, id: &str, label: &serde_json::Value, staged: &Staged<'_>) -> Result<Manifest> {
        let _lock = self.lock()?;
        let point = self.point(id)?;
        match flock(&point.fd, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::AGAIN) => return Err(PointError::Busy { path: point.path().to_owned() }),
            other => other.map_err(|e| PointError::io("lock", point.path(), e))?,
        }
        let new = format!("{}{id}", store::NEW);
        let wrong = |e: Errno| PointError::io("create", self.path().join(&new), e);
        sys::remove_tree(self.fd.as_fd(), OsStr::new(&new)).map_err(wrong)?;
        sys::create_dir(self.fd.as_fd(), OsStr::new(&new)).map_err(wrong)?;
        step();
        let attached = self.write_attached(&new, &point, label, staged).and_then(|manifest| {
            step();
            self.sync_all()?;
            step();
            renameat_with(&self.fd, new.as_str(), &self.fd, id, RenameFlags::EXCHANGE).map_err(wrong)?;
            step();
            fsync(&self.fd).map_err(wrong)?;
            Ok(manifest)
        });
        step();
        // The directory is the replaced restore point, or an unfinished one. If this removal fails, a sweep repeats the removal.
        let _ = sys::remove_tree(self.fd.as_fd(), OsStr::new(&new));
        attached
    }

    fn write_attached(&self, new: &str, point: &Point, label: &serde_json::Value, staged: &Staged<'_>) -> Result<Manifest> {
        let shown = self.path().join(new);
        let wrong = |e: Errno| PointError::io("create", &shown, e);
        let dir = sys::open_dir(self.fd.as_fd(), new.as_bytes(), true).map_err(wrong)?;
        sys::create_dir(dir.as_fd(), OsStr::new(store::FILES)).map_err(wrong)?;
        let files = sys::open_dir(dir.as_fd(), store::FILES.as_bytes(), true).map_err(wrong)?;
        let before = point.entries()?;
        let mut entries = before.clone();
        let old = point.files()?;
        for source in &point.manifest.sources {
            super::create_parents(files.as_fd(), source.source.path.as_bytes(), 0o700)?;
        }
        for entry in &entries {
            share(old.as_fd(), files.as_fd(), entry)?;
        }
        let mut sources = point.manifest.sources.clone();
        let mut totals = point.manifest.totals;
        if let Some(added) = &staged.source {
            let (mut more, bytes) = add(files.as_fd(), added, staged)?;
            entries.append(&mut more);
            entries.sort_unstable_by(|a, b| order(&a.path, &b.path));
            totals.copied_bytes = totals.copied_bytes.saturating_add(bytes);
            sources.push(SourceRecord { source: Source::directory(added.clone()), is_present: true });
            source::check(sources.iter().map(|record| &record.source))?;
        }
        let entries = renumbered(&before, entries);
        let index = index::encode(&entries)?;
        let manifest = Manifest {
            label: label.clone(),
            sources,
            totals: Totals {
                shared_files: totals.shared_files,
                copied_bytes: totals.copied_bytes,
                skipped: totals.skipped,
                ..Totals::of(&entries)
            },
            index_bytes: index.len() as u64,
            index_digest: Digest::of(&index).to_string(),
            ..point.manifest.clone()
        };
        manifest.check_entries(&entries)?;
        let bytes = manifest.encode()?;
        step();
        store::write_new(dir.as_fd(), store::INDEX, &index, &shown)?;
        store::write_new(dir.as_fd(), store::MANIFEST, &bytes, &shown)?;
        store::write_new(dir.as_fd(), store::CHECKSUMS, store::checksum_line(Digest::of(&bytes)).as_bytes(), &shown)?;
        Ok(manifest)
    }
}

/// Corrects the targets of hard links, which are positions in the list of entries. `before` is the list to which the positions refer.
fn renumbered(before: &[Entry], mut entries: Vec<Entry>) -> Vec<Entry> {
    let targets: Vec<_> = entries
        .iter()
        .enumerate()
        .filter_map(|(at, entry)| match entry.kind {
            Kind::HardLink { to } => Some((at, before.get(to as usize)?.path.clone())),
            _ => None,
        })
        .collect();
    for (at, path) in targets {
        let position = entries.binary_search_by(|entry| order(&entry.path, &path)).ok().and_then(|at| u32::try_from(at).ok());
        if let (Some(position), Some(Entry { kind: Kind::HardLink { to }, .. })) = (position, entries.get_mut(at)) {
            *to = position;
        }
    }
    entries
}

/// Creates the directory of an entry, or links the stored content of an entry, from `old` to `files`.
fn share(old: BorrowedFd<'_>, files: BorrowedFd<'_>, entry: &Entry) -> Result<()> {
    let wrong = |e: Errno| PointError::io("share", OsStr::from_bytes(&entry.path), e);
    let (parent, name) = sys::split(&entry.path);
    match entry.kind {
        Kind::Directory => {
            let parent = sys::open_dir(files, parent, true).map_err(wrong)?;
            match sys::create_dir(parent.as_fd(), name) {
                Ok(()) | Err(Errno::EXIST) => Ok(()),
                Err(other) => Err(wrong(other)),
            }
        }
        Kind::File { .. } => {
            let (from, to) = (sys::open_dir(old, parent, true), sys::open_dir(files, parent, true));
            linkat(from.map_err(wrong)?, name, to.map_err(wrong)?, name, AtFlags::empty()).map_err(wrong)
        }
        Kind::Symlink { .. } | Kind::HardLink { .. } => Ok(()),
    }
}

/// Links the staged files into the directory `source` of the stored files. Returns the entries and the size of the files.
fn add(files: BorrowedFd<'_>, source: &str, staged: &Staged<'_>) -> Result<(Vec<Entry>, u64)> {
    let wrong = |e: Errno| PointError::io("store", source, e);
    super::create_parents(files, source.as_bytes(), 0o700)?;
    let (parent, name) = sys::split(source.as_bytes());
    let parent = sys::open_dir(files, parent, true).map_err(wrong)?;
    sys::create_dir(parent.as_fd(), name).map_err(wrong)?;
    let stored = sys::open_dir(files, source.as_bytes(), true).map_err(wrong)?;
    let stat = sys::stat_fd(&stored).map_err(wrong)?;
    let mut entries = vec![entry(source.as_bytes(), Kind::Directory, &stat, Vec::new())];
    let mut bytes: u64 = 0;
    for name in &staged.added {
        let path = sys::join(source.as_bytes(), name.as_bytes());
        let wrong = |e: Errno| PointError::io("store the staged file", OsStr::from_bytes(&path), e);
        let file = sys::open_file(staged.dir, OsStr::new(name)).map_err(wrong)?;
        let stat = sys::stat_fd(&file).map_err(wrong)?;
        fchmod(&file, Mode::from_raw_mode(0o600)).map_err(wrong)?;
        let (digest, size) = Copier::new(false, None).digest(file.as_fd(), stat.size, &path)?;
        linkat(staged.dir, name.as_str(), &stored, name.as_str(), AtFlags::empty()).map_err(wrong)?;
        let mut added = entry(&path, content(size, digest, &stat), &stat, Vec::new());
        added.mode = 0o600;
        entries.push(added);
        bytes = bytes.saturating_add(size);
    }
    Ok((entries, bytes))
}
