//! Reads files into frames and compresses the frames, in several threads.

use std::fs::File;

use parking_lot::Mutex;
use rustix::{buffer::spare_capacity, io::Errno};
use zstd::bulk::Compressor;

use super::{ArchiveError, Item, ItemKind, check_path, frames, header, reuse::FrameCandidate, settings};
use crate::{Confined, Cursor, Digest, Frame};

/// The task to build a frame.
pub(super) struct Task<'a> {
    pub(super) items: &'a [Item],
    /// True for the last frame, which also contains the end of the tar.
    pub(super) last: bool,
    pub(super) candidate: Option<FrameCandidate<'a>>,
    /// The size of the frame before compression, in bytes.
    pub(super) raw: u64,
}

/// The result of a task.
pub(super) enum BuiltFrame<'a> {
    Copy {
        frame: Frame,
        digests: Vec<Option<Digest>>,
    },
    New {
        frame: Frame,
        bytes: Vec<u8>,
        digests: Vec<Option<Digest>>,
    },
    /// A file that is too large to be compressed in memory. The consumer streams the file after all earlier frames.
    Large {
        task: Task<'a>,
        digest: Option<Digest>,
    },
}

/// The state of one thread that reads and compresses frames.
pub(super) struct CompressWorker<'a> {
    cursor: Cursor<'a>,
    compressor: Compressor<'static>,
    raw: Vec<u8>,
    /// Buffers for compressed frames.
    spare: &'a SpareBuffers,
}

/// Buffers that are reused, because allocating fresh memory takes as much time as filling the memory.
#[derive(Default)]
pub(super) struct SpareBuffers(Mutex<Vec<Vec<u8>>>);

impl SpareBuffers {
    fn take(&self) -> Vec<u8> {
        self.0.lock().pop().unwrap_or_default()
    }

    /// Puts a buffer back for reuse.
    pub(super) fn put(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        self.0.lock().push(buffer);
    }
}

impl<'a> CompressWorker<'a> {
    pub(super) fn new(root: &'a Confined, spare: &'a SpareBuffers) -> Result<CompressWorker<'a>, ArchiveError> {
        Ok(CompressWorker { cursor: root.cursor(), compressor: settings::compressor()?, raw: Vec::new(), spare })
    }

    /// Returns a new frame, an equal frame of the previous archive, or the task itself if the frame is so large that it must be streamed.
    pub(super) fn make<'t>(&mut self, task: Task<'t>) -> Result<BuiltFrame<'t>, ArchiveError> {
        let unknown = |item: &Item| matches!(item.kind, ItemKind::File { digest: None, .. });
        if let Some(same) = &task.candidate
            && !task.items.iter().any(unknown)
            && let Some(frame) = same.intact(&mut self.raw)
        {
            return Ok(BuiltFrame::Copy { frame, digests: same.digests() });
        }
        if task.raw > frames::MAX + header::END as u64 {
            // The frame consists of one large file. If the previous archive has a similar frame, the file is hashed first, so that an
            // unchanged file is not compressed.
            let digest = match (&task.candidate, task.items.iter().find(|item| unknown(item))) {
                (Some(_), Some(item)) => Some(hash(&mut self.cursor, item)?),
                _ => None,
            };
            if let Some(same) = task.candidate.filter(|same| digest.is_some() && same.digests().contains(&digest))
                && let Some(frame) = same.intact(&mut self.raw)
            {
                return Ok(BuiltFrame::Copy { frame, digests: same.digests() });
            }
            return Ok(BuiltFrame::Large { task, digest });
        }
        let digests = self.read(&task)?;
        let mut bytes = self.spare.take();
        if let Some(same) = task.candidate.filter(|same| same.digests() == digests)
            && let Some(frame) = same.intact(&mut bytes)
        {
            self.spare.put(bytes);
            return Ok(BuiltFrame::Copy { frame, digests });
        }
        bytes.clear();
        settings::tune(&mut self.compressor, task.raw)?;
        bytes.reserve(zstd::zstd_safe::compress_bound(self.raw.len()));
        self.compressor.compress_to_buffer(&self.raw, &mut bytes).map_err(|source| ArchiveError::Compress {
            path: task.items.first().map(|item| item.path.clone()).unwrap_or_default(),
            source,
        })?;
        let frame =
            Frame { offset: 0, bytes: bytes.len() as u64, raw: task.raw, entries: count(task.items), digest: Digest::of(&bytes) };
        Ok(BuiltFrame::New { frame, bytes, digests })
    }

    /// Fills `self.raw` with the tar of the task's items.
    fn read(&mut self, task: &Task<'_>) -> Result<Vec<Option<Digest>>, ArchiveError> {
        self.raw.clear();
        // The buffer is one byte larger than the frame, so that the read detects a file that has grown.
        self.raw.reserve(usize::try_from(task.raw).unwrap_or_default().saturating_add(1));
        let mut digests = Vec::with_capacity(task.items.len());
        for item in task.items {
            header::encode(&item.path, &item.kind, &mut self.raw);
            let ItemKind::File { size, digest: known, .. } = &item.kind else {
                digests.push(None);
                continue;
            };
            let digest = self.content(item, *size)?;
            held(item, known.as_ref(), &digest)?;
            digests.push(Some(digest));
            header::pad(&mut self.raw, *size);
        }
        if task.last {
            self.raw.resize(self.raw.len() + header::END, 0);
        }
        Ok(digests)
    }

    /// Appends the content of a file to `self.raw`. Returns [`ArchiveError::Changed`] if the file does not have `size` bytes.
    fn content(&mut self, item: &Item, size: u64) -> Result<Digest, ArchiveError> {
        checked(item)?;
        let changed = || ArchiveError::Changed { path: item.path.clone() };
        let start = self.raw.len();
        let end = usize::try_from(size).ok().and_then(|size| start.checked_add(size)).ok_or_else(changed)?;
        let file = self.cursor.open(&item.path)?;
        loop {
            match rustix::io::read(&file, spare_capacity(&mut self.raw)) {
                Ok(0) if self.raw.len() < end => return Err(changed()),
                Ok(_) if self.raw.len() >= end => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(reading(&self.cursor, item, e.into())),
            }
        }
        if self.raw.len() > end {
            return Err(changed());
        }
        Ok(Digest::of(self.raw.get(start..).unwrap_or_default()))
    }
}

/// Opens the file of an item. Returns [`ArchiveError::Changed`] if the kind or the size of the file differs from the item.
pub(super) fn open(cursor: &mut Cursor<'_>, item: &Item) -> Result<File, ArchiveError> {
    checked(item)?;
    let file = cursor.open(&item.path)?;
    let metadata = file.metadata().map_err(|e| reading(cursor, item, e))?;
    let ItemKind::File { size, .. } = &item.kind else { return Err(ArchiveError::Changed { path: item.path.clone() }) };
    if metadata.is_file() && metadata.len() == *size { Ok(file) } else { Err(ArchiveError::Changed { path: item.path.clone() }) }
}

fn checked(item: &Item) -> Result<(), ArchiveError> {
    check_path(item.path.as_bytes()).map(drop).map_err(|why| ArchiveError::Path { path: item.path.clone(), why })
}

/// Returns the error for a failed read. An unexpected end of the file means that the file has changed.
pub(super) fn reading(cursor: &Cursor<'_>, item: &Item, e: std::io::Error) -> ArchiveError {
    match e.kind() {
        std::io::ErrorKind::UnexpectedEof => ArchiveError::Changed { path: item.path.clone() },
        _ => cursor.failed("read", &item.path, e).into(),
    }
}

/// Returns an error if the digest of a file is known and differs from the found digest.
pub(super) fn held(item: &Item, known: Option<&Digest>, found: &Digest) -> Result<(), ArchiveError> {
    match known {
        Some(known) if known != found => Err(ArchiveError::Changed { path: item.path.clone() }),
        _ => Ok(()),
    }
}

fn hash(cursor: &mut Cursor<'_>, item: &Item) -> Result<Digest, ArchiveError> {
    let file = open(cursor, item)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file).map_err(|e| reading(cursor, item, e))?;
    Ok(hasher.finalize().into())
}

fn count(items: &[Item]) -> u32 {
    u32::try_from(items.len()).unwrap_or(u32::MAX)
}
