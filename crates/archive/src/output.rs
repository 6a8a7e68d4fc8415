//! The output of the writer, which appends new frames and copies frames of the previous archive.

use std::{
    fs::File,
    io::{Read, Write},
    os::unix::fs::FileExt,
};

use zstd::{stream::write::Encoder, zstd_safe::CCtx};

use super::{
    ArchiveError, ArchiveInfoExt, CHUNK, ItemKind,
    compress::{Task, held, open, reading},
    header, settings,
};
use crate::{ArchiveInfo, Confined, Digest, Frame};

/// An archive that is being written, with a pending copy from the previous archive.
pub(super) struct ArchiveOutput<'a> {
    pub(super) out: &'a File,
    pub(super) previous: Option<&'a File>,
    pub(super) at: u64,
    pub(super) limit: u64,
    /// The pending copy: its offset in the previous archive, and its length. The destination of the copy ends at `at`.
    pub(super) copy: Option<(u64, u64)>,
    pub(super) frames: Vec<Frame>,
    /// The compressor of large files. The compressor is reused, since new threads and tens of megabytes of fresh memory would cost time
    /// for each file.
    pub(super) large: CCtx<'static>,
}

impl ArchiveOutput<'_> {
    /// Appends a new frame.
    pub(super) fn put(&mut self, mut frame: Frame, bytes: &[u8]) -> Result<(), ArchiveError> {
        self.flush()?;
        self.out.write_all_at(bytes, self.at).map_err(|e| ArchiveError::io("write", e))?;
        frame.offset = self.at;
        self.at += frame.bytes;
        self.frames.push(frame);
        Ok(())
    }

    /// Appends a frame of the previous archive. The copy is made later, together with adjacent frames.
    pub(super) fn copy(&mut self, mut frame: Frame) -> Result<(), ArchiveError> {
        match &mut self.copy {
            Some((from, bytes)) if *from + *bytes == frame.offset => *bytes += frame.bytes,
            _ => {
                self.flush()?;
                self.copy = Some((frame.offset, frame.bytes));
            }
        }
        frame.offset = self.at;
        self.at += frame.bytes;
        self.frames.push(frame);
        Ok(())
    }

    /// Makes the pending copy.
    fn flush(&mut self) -> Result<(), ArchiveError> {
        let (Some((from, bytes)), Some(previous)) = (self.copy.take(), self.previous) else { return Ok(()) };
        copy_range(previous, from, self.out, self.at - bytes, bytes)
            .map_err(|e| ArchiveError::io("copy a part of the previous", e))
    }

    /// Compresses one large file in `threads` threads. The bytes do not depend on the number of threads.
    pub(super) fn put_large(
        &mut self,
        root: &Confined,
        task: &Task<'_>,
        hashed: Option<Digest>,
        threads: usize,
    ) -> Result<Vec<Option<Digest>>, ArchiveError> {
        self.flush()?;
        let [item] = task.items else {
            return Err(ArchiveError::Manifest { why: "a large frame contains more than one entry".to_owned() });
        };
        let ItemKind::File { size, digest: known, .. } = &item.kind else {
            return Err(ArchiveError::Changed { path: item.path.clone() });
        };
        let limit = self.limit;
        let wrong = |source: std::io::Error| match source.kind() {
            std::io::ErrorKind::FileTooLarge => ArchiveError::TooLarge { limit },
            _ => ArchiveError::Compress { path: item.path.clone(), source },
        };
        let sink = Appender { out: self.out, at: self.at, limit, hasher: blake3::Hasher::new() };
        let mut encoder = Encoder::with_context(sink, &mut self.large);
        settings::stream(&mut encoder, task.raw, threads).map_err(wrong)?;

        let mut blocks = Vec::new();
        header::encode(&item.path, &item.kind, &mut blocks);
        encoder.write_all(&blocks).map_err(wrong)?;
        let mut cursor = root.cursor();
        let mut file = open(&mut cursor, item)?;
        let mut hasher = blake3::Hasher::new();
        let mut left = *size;
        let mut buffer = vec![0; CHUNK];
        while left > 0 {
            let part = buffer.get_mut(..CHUNK.min(left as usize)).unwrap_or_default();
            file.read_exact(part).map_err(|e| reading(&cursor, item, e))?;
            hasher.update(part);
            encoder.write_all(part).map_err(wrong)?;
            left -= part.len() as u64;
        }
        let digest = Digest::from(hasher.finalize());
        held(item, known.as_ref().or(hashed.as_ref()), &digest)?;
        blocks.clear();
        header::pad(&mut blocks, *size);
        if task.last {
            blocks.resize(blocks.len() + header::END, 0);
        }
        encoder.write_all(&blocks).map_err(wrong)?;
        let sink = encoder.finish().map_err(wrong)?;
        let bytes = sink.at - self.at;
        self.frames.push(Frame { offset: self.at, bytes, raw: task.raw, entries: 1, digest: sink.hasher.finalize().into() });
        self.at = sink.at;
        Ok(vec![Some(digest)])
    }

    pub(super) fn finish(mut self) -> Result<ArchiveInfo, ArchiveError> {
        self.flush()?;
        let info = ArchiveInfo { settings: settings::NUMBER, ..ArchiveInfo::of_frames(self.frames) };
        self.out.write_all_at(&info.seek_table(), self.at).map_err(|e| ArchiveError::io("write", e))?;
        self.out.set_len(info.bytes).map_err(|e| ArchiveError::io("write", e))?;
        Ok(info)
    }
}

/// A writer that appends to an archive up to a limit, and hashes the appended bytes.
struct Appender<'a> {
    out: &'a File,
    at: u64,
    limit: u64,
    hasher: blake3::Hasher,
}

impl Write for Appender<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.at > self.limit {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        let written = self.out.write_at(bytes, self.at)?;
        self.hasher.update(bytes.get(..written).unwrap_or_default());
        self.at += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Copies a range inside the kernel, which shares blocks if the file system can. Falls back to reading and writing if the kernel cannot
/// copy.
fn copy_range(from: &File, mut from_at: u64, to: &File, mut to_at: u64, mut bytes: u64) -> std::io::Result<()> {
    let ended = || std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the archive is shorter than its manifest states");
    while bytes > 0 {
        let part = usize::try_from(bytes).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(from, Some(&mut from_at), to, Some(&mut to_at), part) {
            Ok(0) => break, // the end of the file, or a file system without this call
            Ok(copied) => bytes -= copied as u64,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => break,
        }
    }
    let mut buffer = vec![0; if bytes > 0 { CHUNK } else { 0 }];
    while bytes > 0 {
        let part = buffer.get_mut(..CHUNK.min(usize::try_from(bytes).unwrap_or(CHUNK))).unwrap_or_default();
        let read = from.read_at(part, from_at)?;
        if read == 0 {
            return Err(ended());
        }
        to.write_all_at(part.get(..read).unwrap_or_default(), to_at)?;
        (from_at, to_at, bytes) = (from_at + read as u64, to_at + read as u64, bytes - read as u64);
    }
    Ok(())
}
