//! Reads archives, and refuses every difference from the manifest.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, BufReader, Read},
    ops::Range,
    os::unix::fs::FileExt,
};

use zstd::{bulk::Decompressor, zstd_safe};

use super::{ArchiveError, ArchiveInfoExt, ArchiveLimits, CHUNK, MAX_WINDOW_LOG, check_entries, diagnose, frames, header};
use crate::{ArchiveInfo, Digest, Entry, EntryKind, Frame};

/// The maximum size of a frame that is decompressed as a whole, in bytes after decompression. Larger frames are streamed.
const MAX_HELD: u64 = 16 << 20;

/// A receiver of the files of a frame, one after another.
pub trait Sink {
    /// Begins a file. Returns true if the content is to be passed to [`Sink::data`]. Otherwise only the digest of the frame is
    /// checked, not the digest of the file.
    fn begin(&mut self, index: usize, entry: &Entry) -> Result<bool, ArchiveError>;
    /// Receives a part of the content.
    fn data(&mut self, part: &[u8]) -> Result<(), ArchiveError>;
    /// Ends the file. The content is complete and has the digest of the manifest.
    fn end(&mut self) -> Result<(), ArchiveError>;
}

/// An archive whose outline has been checked: entries, frames, limits, size and seek table.
#[derive(Debug)]
pub struct Archive<'a> {
    file: &'a File,
    entries: &'a [Entry],
    frames: Vec<(Frame, Range<usize>)>,
}

impl<'a> Archive<'a> {
    /// Opens an archive and checks everything that can be checked without decompression.
    pub fn open(
        file: &'a File,
        entries: &'a [Entry],
        info: &ArchiveInfo,
        limits: &ArchiveLimits,
    ) -> Result<Archive<'a>, ArchiveError> {
        check_entries(entries, limits)?;
        let contradiction = |why: &str| ArchiveError::Manifest { why: why.to_owned() };
        let mut frames = Vec::with_capacity(info.frames.len());
        let (mut at, mut offset, mut raw_total) = (0usize, 0u64, 0u64);
        for (index, frame) in info.frames.iter().enumerate() {
            let end = at.saturating_add(frame.entries as usize);
            let part = entries.get(at..end).ok_or_else(|| contradiction("its frames contain more entries than it lists"))?;
            let parts = part.iter().map(|entry| (entry.path.as_str(), (&entry.kind).into()));
            if frame.raw != frames::raw_size(parts, index + 1 == info.frames.len()) {
                return Err(contradiction("the size of a frame does not match its entries"));
            }
            if frame.offset != offset || frame.bytes == 0 {
                return Err(contradiction("its frames do not follow each other"));
            }
            offset = offset.checked_add(frame.bytes).ok_or_else(|| contradiction("its frames are too large"))?;
            raw_total += frame.raw;
            frames.push((*frame, at..end));
            at = end;
        }
        if at != entries.len() || frames.is_empty() {
            return Err(contradiction("its frames contain fewer entries than it lists"));
        }
        if raw_total > ArchiveLimits::RATIO_FROM && raw_total / info.bytes.max(1) >= limits.ratio {
            return Err(ArchiveError::Ratio { raw: raw_total, bytes: info.bytes, limit: limits.ratio });
        }
        if *info != (ArchiveInfo { settings: info.settings, ..ArchiveInfo::of_frames(info.frames.clone()) }) {
            return Err(contradiction("the digest or size of the archive does not match its frames"));
        }
        let found = file.metadata().map_err(|e| ArchiveError::io("read the metadata of", e))?.len();
        if found != info.bytes {
            return Err(ArchiveError::ArchiveSize { expected: info.bytes, found });
        }
        let expected = info.seek_table();
        let mut table = vec![0; expected.len()];
        file.read_exact_at(&mut table, offset).map_err(|e| ArchiveError::io("read the end of", e))?;
        if table != expected {
            return Err(ArchiveError::SeekTable);
        }
        Ok(Archive { file, entries, frames })
    }

    /// Returns the range of entries of each frame.
    pub fn frames(&self) -> impl ExactSizeIterator<Item = Range<usize>> + '_ {
        self.frames.iter().map(|(_, range)| range.clone())
    }

    /// Returns the size of a frame before compression, in bytes.
    pub fn raw(&self, frame: usize) -> u64 {
        self.frames.get(frame).map_or(0, |(info, _)| info.raw)
    }

    /// Reads one frame and passes to `sink` the files that the sink accepts. [`Sink::end`] is called only for files with the right digest.
    /// All bytes of the frame are compared with the manifest, except the content of the files that the sink does not accept.
    pub fn read(&self, frame: usize, reader: &mut FrameReader, sink: &mut impl Sink) -> Result<(), ArchiveError> {
        let Some((info, range)) = self.frames.get(frame) else {
            return Err(ArchiveError::Frame { frame, why: "there is no such frame" });
        };
        let last = frame + 1 == self.frames.len();
        if info.raw > MAX_HELD {
            return self.stream(frame, info, range.clone(), last, sink);
        }
        // An impossible size is refused before memory is allocated.
        if info.bytes > zstd_safe::compress_bound(MAX_HELD as usize) as u64 {
            return Err(ArchiveError::Frame { frame, why: "its compressed size is too large for its content" });
        }
        reader.packed.resize(info.bytes as usize, 0);
        self.file.read_exact_at(&mut reader.packed, info.offset).map_err(|e| ArchiveError::io("read", e))?;
        if Digest::of(&reader.packed) != info.digest {
            return Err(ArchiveError::FrameDigest { frame });
        }
        check_frame_header(frame, &reader.packed, info.raw)?;
        if zstd_safe::find_frame_compressed_size(&reader.packed).ok() != Some(reader.packed.len()) {
            return Err(ArchiveError::Frame { frame, why: "it is not one single frame" });
        }
        reader.raw.clear();
        reader.raw.reserve(info.raw as usize);
        let failed = |source| ArchiveError::Decompress { frame, source };
        let size = reader.context.decompress_to_buffer(&reader.packed, &mut reader.raw).map_err(failed)?;
        if size as u64 != info.raw {
            return Err(ArchiveError::Frame { frame, why: "it is shorter than the manifest states" });
        }
        let mut content = Content::Held(&reader.raw);
        self.walk(frame, range.clone(), last, &mut content, sink)
    }

    fn stream(
        &self,
        frame: usize,
        info: &Frame,
        range: Range<usize>,
        last: bool,
        sink: &mut impl Sink,
    ) -> Result<(), ArchiveError> {
        let mut start = vec![0; 18.min(info.bytes as usize)];
        self.file.read_exact_at(&mut start, info.offset).map_err(|e| ArchiveError::io("read", e))?;
        check_frame_header(frame, &start, info.raw)?;
        let failed = |source| ArchiveError::Decompress { frame, source };
        let part = Part { file: self.file, at: info.offset, left: info.bytes, hasher: blake3::Hasher::new() };
        let input = BufReader::with_capacity(CHUNK, part);
        let mut decoder = zstd::stream::read::Decoder::with_buffer(input).map_err(failed)?.single_frame();
        decoder.window_log_max(MAX_WINDOW_LOG).map_err(failed)?;
        let mut content = Content::Streamed { from: &mut decoder, buffer: Vec::new() };
        let walked = self.walk(frame, range, last, &mut content, sink);
        if let Err(ArchiveError::Sink(_) | ArchiveError::File(_)) = walked {
            return walked;
        }
        // If the digest of the frame is wrong, the error names the digest instead of a fault in the decompressed content.
        let mut input = decoder.finish();
        let clean = input.buffer().is_empty() && input.get_ref().left == 0;
        io::copy(&mut input, &mut io::sink()).map_err(|e| ArchiveError::io("read", e))?;
        if Digest::from(input.get_ref().hasher.finalize()) != info.digest {
            return Err(ArchiveError::FrameDigest { frame });
        }
        walked?;
        if clean { Ok(()) } else { Err(ArchiveError::Frame { frame, why: "it is not one single frame" }) }
    }

    fn walk(
        &self,
        frame: usize,
        range: Range<usize>,
        last: bool,
        content: &mut Content<'_>,
        sink: &mut impl Sink,
    ) -> Result<(), ArchiveError> {
        let failed = |source| ArchiveError::Decompress { frame, source };
        let mut expected = Vec::new();
        for index in range {
            let Some(entry) = self.entries.get(index) else { return Err(ArchiveError::Trailing { frame }) };
            expected.clear();
            header::encode(&entry.path, &entry.kind, &mut expected);
            let found = content.take(expected.len()).map_err(failed)?;
            if found != expected {
                return Err(self.diagnose(found, index, entry));
            }
            let EntryKind::File { size, digest, .. } = &entry.kind else { continue };
            if let Content::Held(_) = content {
                let found = content.take(usize::try_from(*size).unwrap_or(usize::MAX)).map_err(failed)?;
                give(found, index, entry, (*size, digest), sink)?;
                content.zeros((header::padded(*size) - size) as usize, frame)?;
                continue;
            }
            let wanted = sink.begin(index, entry)?;
            let mut hasher = blake3::Hasher::new();
            let mut left = *size;
            while left > 0 {
                let part = content.take(usize::try_from(left).unwrap_or(CHUNK)).map_err(failed)?;
                if part.is_empty() {
                    return Err(ArchiveError::Missing { path: entry.path.clone() });
                }
                left -= part.len() as u64;
                if wanted {
                    hasher.update(part);
                    sink.data(part)?;
                }
            }
            if wanted {
                if Digest::from(hasher.finalize()) != *digest {
                    return Err(ArchiveError::Digest { path: entry.path.clone() });
                }
                sink.end()?;
            }
            content.zeros((header::padded(*size) - size) as usize, frame)?;
        }
        if last {
            content.zeros(header::END, frame)?;
        }
        if content.take(1).map_err(failed)?.is_empty() { Ok(()) } else { Err(ArchiveError::Trailing { frame }) }
    }

    fn diagnose(&self, found: &[u8], index: usize, entry: &Entry) -> ArchiveError {
        let names: HashSet<&str> = self.entries.iter().map(|entry| entry.path.as_str()).collect();
        diagnose::why(found, entry, self.entries.get(..index).unwrap_or_default(), |path| names.contains(path))
    }
}

/// Passes a file that is in memory as a whole to `sink` if the sink accepts the file. Returns an error if the digest of the file is
/// wrong.
fn give(
    content: &[u8],
    index: usize,
    entry: &Entry,
    (size, digest): (u64, &Digest),
    sink: &mut impl Sink,
) -> Result<(), ArchiveError> {
    if (content.len() as u64) < size {
        return Err(ArchiveError::Missing { path: entry.path.clone() });
    }
    if !sink.begin(index, entry)? {
        return Ok(());
    }
    if Digest::of(content) != *digest {
        return Err(ArchiveError::Digest { path: entry.path.clone() });
    }
    if !content.is_empty() {
        sink.data(content)?;
    }
    sink.end()
}

/// The buffers of one thread that reads frames.
pub struct FrameReader {
    packed: Vec<u8>,
    raw: Vec<u8>,
    context: Decompressor<'static>,
}

impl FrameReader {
    /// Creates empty buffers.
    pub fn new() -> Result<FrameReader, ArchiveError> {
        let context = Decompressor::new().map_err(|e| ArchiveError::io("start to decompress", e))?;
        Ok(FrameReader { packed: Vec::new(), raw: Vec::new(), context })
    }
}

/// Checks the header of a frame, before the decompressor allocates the window that the header requests.
fn check_frame_header(frame: usize, bytes: &[u8], raw: u64) -> Result<(), ArchiveError> {
    let window = window_of(bytes, raw).map_err(|why| ArchiveError::Frame { frame, why })?;
    let limit = 1 << MAX_WINDOW_LOG;
    if window > limit { Err(ArchiveError::Window { frame, window, limit }) } else { Ok(()) }
}

/// Returns the window, in bytes, that a frame of `raw` bytes requests, or the fault of its header. RFC 8878, section 3.1.1.1, describes the
/// header.
pub(super) fn window_of(bytes: &[u8], raw: u64) -> Result<u64, &'static str> {
    let cut = "it is too short";
    let (magic, rest) = bytes.split_at_checked(4).ok_or(cut)?;
    if magic != [0x28, 0xB5, 0x2F, 0xFD] {
        return Err("it is not a zstd frame");
    }
    let (descriptor, mut rest) = rest.split_first().ok_or(cut)?;
    if descriptor & 0b11 != 0 || descriptor & 0b1000 != 0 {
        return Err("it needs a dictionary or a feature that releases do not use");
    }
    let single = descriptor & 0b10_0000 != 0;
    let mut window = None;
    if !single {
        let (byte, after) = rest.split_first().ok_or(cut)?;
        let base = 1u64 << (10 + (byte >> 3));
        window = Some(base + base / 8 * u64::from(byte & 7));
        rest = after;
    }
    let (width, add) = match descriptor >> 6 {
        0 if single => (1, 0),
        0 => return Err("it does not state its size"),
        1 => (2, 256),
        2 => (4, 0),
        _ => (8, 0),
    };
    let mut little = [0; 8];
    let field = rest.get(..width).ok_or(cut)?;
    for (to, from) in little.iter_mut().zip(field) {
        *to = *from;
    }
    if u64::from_le_bytes(little).checked_add(add) != Some(raw) {
        return Err("its header states another size than expected");
    }
    Ok(window.unwrap_or(raw))
}

/// A reader of the compressed bytes of one frame, which also hashes them.
struct Part<'a> {
    file: &'a File,
    at: u64,
    left: u64,
    hasher: blake3::Hasher,
}

impl Read for Part<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = into.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let into = into.get_mut(..most).unwrap_or_default();
        let read = self.file.read_at(into, self.at)?;
        self.hasher.update(into.get(..read).unwrap_or_default());
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

/// The decompressed bytes of one frame.
enum Content<'a> {
    Held(&'a [u8]),
    Streamed { from: &'a mut dyn Read, buffer: Vec<u8> },
}

impl Content<'_> {
    /// Returns the next `want` bytes. Returns fewer bytes while a large file is streamed, and no bytes at the end.
    fn take(&mut self, want: usize) -> io::Result<&[u8]> {
        match self {
            Content::Held(bytes) => {
                let (part, rest) = bytes.split_at_checked(want).unwrap_or((bytes, &[]));
                *bytes = rest;
                Ok(part)
            }
            Content::Streamed { from, buffer } => {
                buffer.resize(want.min(CHUNK), 0);
                let mut filled = 0;
                while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
                    match from.read(rest) {
                        Ok(0) => break,
                        Ok(read) => filled += read,
                        Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                        Err(e) => return Err(e),
                    }
                }
                Ok(buffer.get(..filled).unwrap_or_default())
            }
        }
    }

    /// Reads `count` bytes. Returns an error if one of these bytes is missing or is not zero.
    fn zeros(&mut self, count: usize, frame: usize) -> Result<(), ArchiveError> {
        let found = self.take(count).map_err(|source| ArchiveError::Decompress { frame, source })?;
        let right = found.len() == count && found.iter().all(|byte| *byte == 0);
        if right { Ok(()) } else { Err(ArchiveError::Trailing { frame }) }
    }
}
