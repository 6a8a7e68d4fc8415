//! Writes an archive: frames are read and compressed in parallel, or copied from the previous archive where nothing changed.

use std::{
    collections::HashMap,
    fs::File,
    io::{Read, Write},
    ops::Range,
    os::unix::fs::FileExt,
};

use zstd::{bulk::Compressor, zstd_safe::CParameter};

use super::{ArchiveError, ArchiveInfoExt, CHUNK, LEVEL, Limits, check_entries, check_path, frames, header, pool};
use crate::{
    host::files::{Confined, Cursor},
    model::{ArchiveInfo, Digest, Entry, EntryKind, Frame},
};

/// Something to be archived; what is not known of a file is found out while it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Relative path.
    pub path: String,
    /// What it is.
    pub kind: ItemKind,
}

/// What an item is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ItemKind {
    /// A directory.
    Dir,
    /// A regular file.
    File {
        /// Size in bytes.
        size: u64,
        /// Its digest, if it is known without reading it. The writer holds the file to it whenever it reads it.
        digest: Option<Digest>,
        /// Whether it may be executed.
        executable: bool,
    },
    /// A symbolic link.
    Link {
        /// Where it points to.
        target: String,
    },
}

impl From<&Entry> for Item {
    fn from(entry: &Entry) -> Item {
        let kind = match &entry.kind {
            EntryKind::Dir => ItemKind::Dir,
            EntryKind::File { size, digest, executable } => {
                ItemKind::File { size: *size, digest: Some(*digest), executable: *executable }
            }
            EntryKind::Link { target } => ItemKind::Link { target: target.clone() },
        };
        Item { path: entry.path.clone(), kind }
    }
}

/// An archive whose unchanged frames may be copied. Their digests are checked when they are read, not when they are copied.
#[derive(Debug, Clone, Copy)]
pub struct Previous<'a> {
    /// The archive.
    pub file: &'a File,
    /// What it holds.
    pub entries: &'a [Entry],
    /// Its frames.
    pub info: &'a ArchiveInfo,
}

/// What has been written.
#[derive(Debug)]
pub struct Written {
    /// The archive.
    pub info: ArchiveInfo,
    /// All entries with their digests.
    pub entries: Vec<Entry>,
    /// How many frames were copied from the previous archive.
    pub copied: usize,
}

/// Writes the files of `root` that `items` names, sorted by path, to `out` from its first byte. `out` is empty or overwritten.
/// It stops soon after `limit` bytes. The bytes depend on nothing but the content of the tree: not on `threads`, and not on `previous`.
pub fn write(
    root: &Confined,
    items: &[Item],
    previous: Option<Previous<'_>>,
    out: &File,
    threads: usize,
    limit: u64,
) -> Result<Written, ArchiveError> {
    let plan = frames::plan(items);
    let reuse = previous.and_then(|previous| Reuse::new(previous, items));
    let mut output = Output { out, previous: previous.map(|p| p.file), at: 0, limit, copy: None, frames: Vec::new() };
    let mut digests: Vec<Option<Digest>> = Vec::with_capacity(items.len());
    let mut copied = 0;
    let task = |index: usize| -> Option<Task<'_>> {
        let range = plan.get(index)?.clone();
        let last = index + 1 == plan.len();
        let items = items.get(range.clone())?;
        let candidate = reuse.as_ref().and_then(|reuse| reuse.candidate(range, last));
        Some(Task { items, last, candidate, raw: frames::raw_size(items, last) })
    };
    pool::ordered(
        plan.len(),
        threads,
        || Worker::new(root),
        |worker, index| task(index).map(|task| worker.make(task)).transpose(),
        |_, made| {
            match made {
                Some(Made::Copy { frame, digests: known }) => {
                    copied += 1;
                    digests.extend(known);
                    output.copy(frame)?;
                }
                Some(Made::New { frame, bytes, digests: read }) => {
                    digests.extend(read);
                    output.put(frame, &bytes)?;
                }
                Some(Made::Large { task, digest }) => {
                    digests.extend(output.put_large(root, &task, digest, threads)?);
                }
                None => {}
            }
            if output.at > limit { Err(ArchiveError::TooLarge { limit }) } else { Ok(()) }
        },
    )?;
    let entries = items.iter().zip(digests).map(|(item, digest)| entry(item, digest)).collect::<Result<Vec<_>, _>>()?;
    // The worst that can be said of our own work is that a reader would refuse it: so say it now.
    check_entries(&entries, &Limits::default())?;
    let info = output.finish()?;
    Ok(Written { info, entries, copied })
}

fn entry(item: &Item, digest: Option<Digest>) -> Result<Entry, ArchiveError> {
    let kind = match (&item.kind, digest) {
        (ItemKind::Dir, _) => EntryKind::Dir,
        (ItemKind::Link { target }, _) => EntryKind::Link { target: target.clone() },
        (ItemKind::File { size, executable, .. }, Some(digest)) => {
            EntryKind::File { size: *size, digest, executable: *executable }
        }
        (ItemKind::File { .. }, None) => return Err(ArchiveError::Changed { path: item.path.clone() }),
    };
    Ok(Entry { path: item.path.clone(), kind })
}

/// The frames of the previous archive, by their first entry.
struct Reuse<'a> {
    items: &'a [Item],
    by_first: HashMap<&'a str, (Frame, &'a [Entry], bool)>,
}

/// A frame of the previous archive that has the same paths, kinds, modes and sizes.
#[derive(Clone, Copy)]
struct Candidate<'a> {
    frame: Frame,
    entries: &'a [Entry],
}

impl<'a> Reuse<'a> {
    fn new(previous: Previous<'a>, items: &'a [Item]) -> Option<Reuse<'a>> {
        let found = previous.file.metadata().ok()?.len();
        if found != previous.info.bytes {
            return None; // cut off or overwritten: not worth copying from
        }
        let mut by_first = HashMap::new();
        let (mut at, count) = (0usize, previous.info.frames.len());
        for (index, frame) in previous.info.frames.iter().enumerate() {
            let end = at.checked_add(frame.entries as usize)?;
            let entries = previous.entries.get(at..end)?;
            at = end;
            if let Some(first) = entries.first() {
                by_first.insert(first.path.as_str(), (*frame, entries, index + 1 == count));
            }
        }
        Some(Reuse { items, by_first })
    }

    fn candidate(&self, range: Range<usize>, last: bool) -> Option<Candidate<'a>> {
        let items = self.items.get(range)?;
        let (frame, entries, was_last) = self.by_first.get(items.first()?.path.as_str())?;
        let same = *was_last == last && entries.len() == items.len();
        let same = same && items.iter().zip(*entries).all(|(item, entry)| may_be(item, entry));
        same.then_some(Candidate { frame: *frame, entries })
    }
}

/// Whether an item can still turn out to be this entry.
fn may_be(item: &Item, entry: &Entry) -> bool {
    item.path == entry.path
        && match (&item.kind, &entry.kind) {
            (ItemKind::Dir, EntryKind::Dir) => true,
            (ItemKind::Link { target: a }, EntryKind::Link { target: b }) => a == b,
            (ItemKind::File { size: a, digest, executable: x }, EntryKind::File { size: b, digest: known, executable: y }) => {
                a == b && x == y && digest.is_none_or(|digest| digest == *known)
            }
            _ => false,
        }
}

impl Candidate<'_> {
    fn digests(&self) -> Vec<Option<Digest>> {
        self.entries
            .iter()
            .map(|entry| if let EntryKind::File { digest, .. } = &entry.kind { Some(*digest) } else { None })
            .collect()
    }
}

struct Task<'a> {
    items: &'a [Item],
    last: bool,
    candidate: Option<Candidate<'a>>,
    raw: u64,
}

enum Made<'a> {
    Copy {
        frame: Frame,
        digests: Vec<Option<Digest>>,
    },
    New {
        frame: Frame,
        bytes: Vec<u8>,
        digests: Vec<Option<Digest>>,
    },
    /// Too large to be held: the consumer streams it when its turn comes.
    Large {
        task: Task<'a>,
        digest: Option<Digest>,
    },
}

struct Worker<'a> {
    cursor: Cursor<'a>,
    compressor: Compressor<'static>,
    raw: Vec<u8>,
}

impl<'a> Worker<'a> {
    fn new(root: &'a Confined) -> Result<Worker<'a>, ArchiveError> {
        let mut compressor = Compressor::new(LEVEL).map_err(|e| ArchiveError::io("start to compress", e))?;
        compressor.set_parameter(CParameter::ChecksumFlag(true)).map_err(|e| ArchiveError::io("start to compress", e))?;
        Ok(Worker { cursor: root.cursor(), compressor, raw: Vec::new() })
    }

    fn make<'t>(&mut self, task: Task<'t>) -> Result<Made<'t>, ArchiveError> {
        let unknown = |item: &Item| matches!(item.kind, ItemKind::File { digest: None, .. });
        if let Some(same) = &task.candidate
            && !task.items.iter().any(unknown)
        {
            return Ok(Made::Copy { frame: same.frame, digests: same.digests() });
        }
        if task.raw > frames::MAX + header::END as u64 {
            // One file. Whether it changed must be known before it is compressed, not after.
            let digest = match (&task.candidate, task.items.iter().find(|item| unknown(item))) {
                (Some(_), Some(item)) => Some(hash(&mut self.cursor, item)?),
                _ => None,
            };
            return match task.candidate {
                Some(same) if same.digests().contains(&digest) => Ok(Made::Copy { frame: same.frame, digests: same.digests() }),
                _ => Ok(Made::Large { task, digest }),
            };
        }
        let digests = self.read(&task)?;
        if let Some(same) = &task.candidate
            && same.digests() == digests
        {
            return Ok(Made::Copy { frame: same.frame, digests });
        }
        let mut bytes = Vec::with_capacity(zstd::zstd_safe::compress_bound(self.raw.len()));
        self.compressor.compress_to_buffer(&self.raw, &mut bytes).map_err(|source| ArchiveError::Compress {
            path: task.items.first().map(|item| item.path.clone()).unwrap_or_default(),
            source,
        })?;
        // The bound is far more than what is used, and finished frames wait for their turn.
        bytes.shrink_to_fit();
        let frame =
            Frame { offset: 0, bytes: bytes.len() as u64, raw: task.raw, entries: count(task.items), digest: Digest::of(&bytes) };
        Ok(Made::New { frame, bytes, digests })
    }

    /// Fills `self.raw` with the tar of the task's items.
    fn read(&mut self, task: &Task<'_>) -> Result<Vec<Option<Digest>>, ArchiveError> {
        self.raw.clear();
        let mut digests = Vec::with_capacity(task.items.len());
        for item in task.items {
            header::encode(&item.path, &item.kind, &mut self.raw);
            let ItemKind::File { size, digest: known, .. } = &item.kind else {
                digests.push(None);
                continue;
            };
            let mut file = open(&mut self.cursor, item)?;
            let start = self.raw.len();
            self.raw.resize(start + *size as usize, 0);
            let content = self.raw.get_mut(start..).unwrap_or_default();
            file.read_exact(content).map_err(|e| reading(&self.cursor, item, e))?;
            let digest = Digest::of(content);
            held(item, known.as_ref(), &digest)?;
            digests.push(Some(digest));
            header::pad(&mut self.raw, *size);
        }
        if task.last {
            self.raw.resize(self.raw.len() + header::END, 0);
        }
        Ok(digests)
    }
}

/// Opens the file of an item and makes sure that it is the one that was listed.
fn open(cursor: &mut Cursor<'_>, item: &Item) -> Result<File, ArchiveError> {
    check_path(item.path.as_bytes()).map_err(|why| ArchiveError::Path { path: item.path.clone(), why })?;
    let file = cursor.open(&item.path)?;
    let metadata = file.metadata().map_err(|e| reading(cursor, item, e))?;
    let ItemKind::File { size, .. } = &item.kind else { return Err(ArchiveError::Changed { path: item.path.clone() }) };
    if metadata.is_file() && metadata.len() == *size { Ok(file) } else { Err(ArchiveError::Changed { path: item.path.clone() }) }
}

fn reading(cursor: &Cursor<'_>, item: &Item, e: std::io::Error) -> ArchiveError {
    match e.kind() {
        std::io::ErrorKind::UnexpectedEof => ArchiveError::Changed { path: item.path.clone() },
        _ => cursor.failed("read", &item.path, e).into(),
    }
}

fn held(item: &Item, known: Option<&Digest>, found: &Digest) -> Result<(), ArchiveError> {
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

/// The end of the file that grows, and a copy that may still grow.
struct Output<'a> {
    out: &'a File,
    previous: Option<&'a File>,
    at: u64,
    limit: u64,
    /// Where from and how much; the destination ends at `at`.
    copy: Option<(u64, u64)>,
    frames: Vec<Frame>,
}

impl Output<'_> {
    fn put(&mut self, mut frame: Frame, bytes: &[u8]) -> Result<(), ArchiveError> {
        self.flush()?;
        self.out.write_all_at(bytes, self.at).map_err(|e| ArchiveError::io("write", e))?;
        frame.offset = self.at;
        self.at += frame.bytes;
        self.frames.push(frame);
        Ok(())
    }

    fn copy(&mut self, mut frame: Frame) -> Result<(), ArchiveError> {
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

    fn flush(&mut self) -> Result<(), ArchiveError> {
        let (Some((from, bytes)), Some(previous)) = (self.copy.take(), self.previous) else { return Ok(()) };
        copy_range(previous, from, self.out, self.at - bytes, bytes)
            .map_err(|e| ArchiveError::io("copy a part of the previous", e))
    }

    /// Compresses one large file, in `threads` threads; the bytes do not depend on how many.
    fn put_large(
        &mut self,
        root: &Confined,
        task: &Task<'_>,
        hashed: Option<Digest>,
        threads: usize,
    ) -> Result<Vec<Option<Digest>>, ArchiveError> {
        self.flush()?;
        let [item] = task.items else {
            return Err(ArchiveError::Manifest { why: "a large frame holds more than one entry".to_owned() });
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
        let mut encoder = zstd::stream::write::Encoder::new(sink, LEVEL).map_err(wrong)?;
        encoder.include_checksum(true).map_err(wrong)?;
        encoder.set_pledged_src_size(Some(task.raw)).map_err(wrong)?;
        encoder.multithread(u32::try_from(threads.clamp(1, 64)).unwrap_or(1)).map_err(wrong)?;

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

    fn finish(mut self) -> Result<ArchiveInfo, ArchiveError> {
        self.flush()?;
        let info = ArchiveInfo::of_frames(self.frames);
        self.out.write_all_at(&info.seek_table(), self.at).map_err(|e| ArchiveError::io("write", e))?;
        self.out.set_len(info.bytes).map_err(|e| ArchiveError::io("write", e))?;
        Ok(info)
    }
}

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

/// Copies inside the kernel, sharing blocks where the file system can; by hand where the kernel will not.
fn copy_range(from: &File, mut from_at: u64, to: &File, mut to_at: u64, mut bytes: u64) -> std::io::Result<()> {
    let ended = || std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "it is shorter than its manifest says");
    while bytes > 0 {
        let part = usize::try_from(bytes).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(from, Some(&mut from_at), to, Some(&mut to_at), part) {
            Ok(0) => break, // the end of the file, or a file system that pretends so
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
