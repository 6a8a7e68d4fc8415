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
    fs::{AtFlags, FlockOperation, Mode, RenameFlags, fchmod, flock, linkat},
    io::Errno,
};

use super::{Staged, file::entry, staged::content};
use crate::{
    Digest, Entry, Kind, Manifest, Point, PointError, Result, Source, SourceRecord, Store, Totals, content::Copier,
    contents::NewContents, entry::order, index, manifest, publish::NewPoint, source, step, store, sys,
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
        let attached = self.write_point(id, RenameFlags::EXCHANGE, |new, _| self.write_attached(new, &point, label, staged))?;
        step();
        // The directory is the replaced restore point, whose contents also belong to the new restore point. If this removal fails, a sweep
        // repeats the removal.
        let _ = sys::remove_tree(self.fd.as_fd(), OsStr::new(&format!("{}{id}", store::NEW)));
        Ok(attached)
    }

    fn write_attached(
        &self,
        new: &str,
        point: &Point,
        label: &serde_json::Value,
        staged: &Staged<'_>,
    ) -> Result<(Manifest, NewPoint)> {
        let shown = self.path().join(new);
        let (dir, contents) = self.open_new(new)?;
        let before = point.entries()?;
        let mut entries = before.clone();
        if !point.has_shared_contents() {
            let old = point.files()?;
            entries.iter().try_for_each(|entry| share(old.as_fd(), &contents, entry))?;
        }
        let mut sources = point.manifest.sources.clone();
        let mut totals = point.manifest.totals;
        if let Some(added) = &staged.source {
            let (mut more, bytes) = add(&contents, added, staged)?;
            entries.append(&mut more);
            entries.sort_unstable_by(|a, b| order(&a.path, &b.path));
            totals.copied_bytes = totals.copied_bytes.saturating_add(bytes);
            sources.push(SourceRecord { source: Source::directory(added.clone()), is_present: true });
            source::check(sources.iter().map(|record| &record.source))?;
        }
        let entries = renumbered(&before, entries);
        let index = index::encode(&entries)?;
        let manifest = Manifest {
            version: manifest::VERSION,
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
        Ok((manifest, NewPoint { entries, dir, contents, shared: None }))
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

/// Links the stored content of a file of a restore point of version 1.
fn share(old: BorrowedFd<'_>, contents: &NewContents, entry: &Entry) -> Result<()> {
    let Kind::File { digest, .. } = entry.kind else { return Ok(()) };
    let wrong = |e: Errno| PointError::io("share", OsStr::from_bytes(&entry.path), e);
    let (parent, name) = sys::split(&entry.path);
    let from = sys::open_dir(old, parent, true).map_err(wrong)?;
    let new = contents.name();
    linkat(from, name, contents.dir(), new.to_string(), AtFlags::empty()).map_err(wrong)?;
    contents.keep(new, digest).map_err(wrong)
}

/// Adds the staged files to the new contents. Returns the entries of the directory `source`, and the size of the files.
fn add(contents: &NewContents, source: &str, staged: &Staged<'_>) -> Result<(Vec<Entry>, u64)> {
    let stat = sys::stat_fd(staged.dir).map_err(|e| PointError::io("look at the directory of", source, e))?;
    let mut directory = entry(source.as_bytes(), Kind::Directory, &stat, Vec::new());
    directory.mode = 0o700;
    let mut entries = vec![directory];
    let mut bytes: u64 = 0;
    for name in &staged.added {
        let path = sys::join(source.as_bytes(), name.as_bytes());
        let wrong = |e: Errno| PointError::io("store the staged file", OsStr::from_bytes(&path), e);
        let file = sys::open_file(staged.dir, OsStr::new(name)).map_err(wrong)?;
        let stat = sys::stat_fd(&file).map_err(wrong)?;
        fchmod(&file, Mode::from_raw_mode(0o600)).map_err(wrong)?;
        let (digest, size) = Copier::new(false, None).digest(file.as_fd(), stat.size, &path)?;
        let new = contents.name();
        linkat(staged.dir, name.as_str(), contents.dir(), new.to_string(), AtFlags::empty()).map_err(wrong)?;
        contents.keep(new, digest).map_err(wrong)?;
        let mut added = entry(&path, content(size, digest, &stat), &stat, Vec::new());
        added.mode = 0o600;
        entries.push(added);
        bytes = bytes.saturating_add(size);
    }
    Ok((entries, bytes))
}
