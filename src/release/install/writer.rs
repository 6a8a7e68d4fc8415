//! Writes the files that an installation does not share with the previous release.

use std::{
    fs::File,
    io::{Read, Write},
};

use larder_archive::{ArchiveError, Sink};

use super::UnpackReport;
use crate::{
    host::files::{Cursor, durable},
    model::{Digest, Entry, EntryKind},
    release::ReleaseError,
};

/// The maximum number of unpacked files that are synced one by one. If there are more files, the whole file system is synced instead.
pub(super) const SYNCED_SINGLY: u64 = 64;

pub(super) fn refused(source: ArchiveError) -> ReleaseError {
    ReleaseError::Archive { doing: "accept", source }
}

/// Writes an empty file. Refuses an entry whose digest is not the digest of an empty file.
pub(super) fn empty(index: usize, entry: &Entry, sink: &mut impl Sink) -> Result<(), ReleaseError> {
    if matches!(&entry.kind, EntryKind::File { digest, .. } if *digest != Digest::of(b"")) {
        return Err(refused(ArchiveError::Digest { path: entry.path.clone() }));
    }
    let mut act = || if sink.begin(index, entry)? { sink.end() } else { Ok(()) };
    act().map_err(refused)
}

/// Writes a file with the content of the file at `path` below `from`. Refuses content that does not match the digest of the entry.
pub(super) fn copy_file(
    from: &mut Cursor<'_>,
    path: &str,
    index: usize,
    entry: &Entry,
    sink: &mut impl Sink,
) -> Result<(), ReleaseError> {
    let EntryKind::File { digest, .. } = &entry.kind else { return Ok(()) };
    let mut file = from.open(path)?;
    if !sink.begin(index, entry).map_err(refused)? {
        return Ok(());
    }
    let (mut hasher, mut buffer) = (blake3::Hasher::new(), vec![0; 1 << 16]);
    loop {
        let read = file.read(&mut buffer).map_err(|e| from.failed("read", path, e))?;
        let piece = buffer.get(..read).unwrap_or_default();
        if piece.is_empty() {
            break;
        }
        hasher.update(piece);
        sink.data(piece).map_err(refused)?;
    }
    if Digest::from(hasher.finalize()) != *digest {
        return Err(refused(ArchiveError::Digest { path: entry.path.clone() }));
    }
    sink.end().map_err(refused)
}

/// The sink of one thread, which writes files into the tree.
pub(super) struct Writer<'a, S> {
    cursor: Cursor<'a>,
    open: Option<(File, String)>,
    /// A function that returns true for the index of an entry that is not written.
    skip: &'a S,
    pub(super) report: UnpackReport,
    /// The files whose content is possibly not on the disk yet.
    held: Vec<(File, String)>,
}

impl<'a, S> Writer<'a, S> {
    pub(super) fn new(cursor: Cursor<'a>, skip: &'a S) -> Writer<'a, S> {
        Writer { cursor, open: None, skip, report: UnpackReport::default(), held: Vec::new() }
    }

    /// Syncs the content of the unpacked files, but not their names and sizes. The kernel began to write each file when the file was
    /// complete, so this call waits only briefly. If this sink has written more than [`SYNCED_SINGLY`] files, nothing is synced here,
    /// because the whole file system is synced later.
    pub(super) fn write_out(&mut self) -> Result<(), ArchiveError> {
        if self.report.unpacked > SYNCED_SINGLY {
            self.held.clear();
        }
        for (file, path) in self.held.drain(..) {
            durable::write_out(&file).map_err(|e| self.cursor.failed("sync", path.as_str(), e))?;
        }
        Ok(())
    }
}

impl<S: Fn(usize) -> bool> Sink for Writer<'_, S> {
    fn begin(&mut self, index: usize, entry: &Entry) -> Result<bool, ArchiveError> {
        let EntryKind::File { executable, size, .. } = &entry.kind else { return Ok(false) };
        if (self.skip)(index) {
            return Ok(false);
        }
        let file = self.cursor.create(&entry.path, if *executable { 0o755 } else { 0o644 })?;
        self.open = Some((file, entry.path.clone()));
        self.report.unpacked += 1;
        self.report.bytes += size;
        Ok(true)
    }

    fn data(&mut self, part: &[u8]) -> Result<(), ArchiveError> {
        match &mut self.open {
            Some((file, path)) => file.write_all(part).map_err(|e| self.cursor.failed("write", path.as_str(), e).into()),
            None => Ok(()),
        }
    }

    fn end(&mut self) -> Result<(), ArchiveError> {
        let Some((file, path)) = self.open.take() else { return Ok(()) };
        if self.report.unpacked <= SYNCED_SINGLY {
            durable::begin(&file);
            self.held.push((file, path));
        }
        Ok(())
    }
}
