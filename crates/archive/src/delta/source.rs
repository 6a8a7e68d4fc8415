//! The files of a release, in an installed tree or in an archive.

use std::{
    collections::HashMap,
    fs::File,
    io::{Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
    sync::atomic::{AtomicUsize, Ordering},
};

use super::{DeltaEndpoint, DeltaError, format, groups};
use crate::{
    Archive, ArchiveError, ArchiveLimits, Confined, Cursor, Digest, Entry, EntryKind, FileError, FrameReader, Sink,
    pool::each_thread,
};

/// The size of the pieces in which a file is streamed, in bytes.
pub(super) const CHUNK: usize = 1 << 20;

/// The location of the files of a release.
#[derive(Debug, Clone, Copy)]
pub enum FileSource<'a> {
    /// The installed tree.
    Tree(&'a Confined),
    /// The archive. The needed files are unpacked into `spool`, an empty file.
    Archive {
        /// The archive.
        archive: &'a File,
        /// The file for unpacked content.
        spool: &'a File,
    },
}

/// The files of one release.
pub(super) struct Store<'a> {
    release: &'a str,
    entries: &'a [Entry],
    place: Place<'a>,
}

enum Place<'a> {
    Tree(&'a Confined),
    Spool { file: &'a File, at: HashMap<usize, u64> },
}

impl<'a> Store<'a> {
    /// Opens the files with the indices `wanted`. Unpacks these files if the source is an archive.
    pub fn open(
        source: FileSource<'a>,
        end: &'a DeltaEndpoint<'_>,
        wanted: &[usize],
        threads: usize,
    ) -> Result<Store<'a>, DeltaError> {
        let entries = end.entries;
        let place = match source {
            FileSource::Tree(tree) => Place::Tree(tree),
            FileSource::Archive { archive, spool } => {
                let mut at = HashMap::with_capacity(wanted.len());
                let mut next = 0u64;
                for index in wanted {
                    at.entry(*index).or_insert(next);
                    next += groups::size(entries.get(*index)).unwrap_or(0);
                }
                spool_files(archive, end, spool, &at, threads)?;
                Place::Spool { file: spool, at }
            }
        };
        Ok(Store { release: &end.id, entries, place })
    }

    /// Returns a reader of the files. Each thread needs its own reader.
    pub fn reader(&self) -> StoreReader<'_> {
        let cursor = if let Place::Tree(tree) = &self.place { Some(tree.cursor()) } else { None };
        StoreReader { store: self, cursor }
    }
}

/// Unpacks files into `spool`. `at` contains the indices of the files and their offsets.
fn spool_files(
    archive: &File,
    end: &DeltaEndpoint<'_>,
    spool: &File,
    at: &HashMap<usize, u64>,
    threads: usize,
) -> Result<(), DeltaError> {
    let archive = Archive::open(archive, end.entries, end.archive, &ArchiveLimits::default()).map_err(format::accepted)?;
    let frames: Vec<usize> = archive
        .frames()
        .enumerate()
        .filter(|(_, range)| range.clone().any(|index| at.contains_key(&index)))
        .map(|(n, _)| n)
        .collect();
    let next = AtomicUsize::new(0);
    let results = each_thread(threads.min(frames.len()), || {
        let mut reader = FrameReader::new()?;
        let mut spooler = Spooler { spool, places: at, at: 0 };
        while let Some(frame) = frames.get(next.fetch_add(1, Ordering::Relaxed)) {
            archive.read(*frame, &mut reader, &mut spooler)?;
        }
        Ok(())
    });
    results.into_iter().collect::<Result<(), ArchiveError>>().map_err(format::accepted)
}

struct Spooler<'a> {
    spool: &'a File,
    places: &'a HashMap<usize, u64>,
    at: u64,
}

impl Sink for Spooler<'_> {
    fn begin(&mut self, index: usize, _: &Entry) -> Result<bool, ArchiveError> {
        Ok(self.places.get(&index).is_some_and(|at| {
            self.at = *at;
            true
        }))
    }

    fn data(&mut self, part: &[u8]) -> Result<(), ArchiveError> {
        self.spool.write_all_at(part, self.at).map_err(|source| ArchiveError::Io { doing: "unpack a part of", source })?;
        self.at += part.len() as u64;
        Ok(())
    }

    fn end(&mut self) -> Result<(), ArchiveError> {
        Ok(())
    }
}

/// A reader of the files of a store; see [`Store::reader`].
pub(super) struct StoreReader<'a> {
    store: &'a Store<'a>,
    cursor: Option<Cursor<'a>>,
}

impl<'a> StoreReader<'a> {
    /// Opens the file with this index. Returns an error if the kind or the size of the file differs from the manifest.
    pub fn open(&mut self, index: usize) -> Result<FileContent<'a>, DeltaError> {
        let entry = self.store.entries.get(index).ok_or_else(|| super::refused("it names a file that is not in the manifest"))?;
        let EntryKind::File { size, digest, .. } = &entry.kind else { return Err(self.damaged(entry)) };
        let (bytes, at) = match (&mut self.cursor, &self.store.place) {
            (Some(cursor), _) => (Bytes::Own(open(cursor, entry, *size).ok_or_else(|| damaged(self.store.release, entry))?), 0),
            (None, Place::Spool { file, at }) => (Bytes::Spool(file), at.get(&index).copied().unwrap_or_default()),
            (None, Place::Tree(_)) => return Err(self.damaged(entry)),
        };
        Ok(FileContent { bytes, at, size: *size, digest, entry, release: self.store.release })
    }

    fn damaged(&self, entry: &Entry) -> DeltaError {
        damaged(self.store.release, entry)
    }
}

pub(super) fn damaged(release: &str, entry: &Entry) -> DeltaError {
    DeltaError::Damaged { path: entry.path.clone(), release: release.to_owned() }
}

/// Opens a file of a tree. Returns `None` if the file does not have the kind and the size of its manifest entry, or cannot be opened.
fn open(cursor: &mut Cursor<'_>, entry: &Entry, size: u64) -> Option<File> {
    let file = cursor.open(&entry.path).ok()?;
    let found = file.metadata().ok()?;
    (found.is_file() && found.len() == size).then_some(file)
}

enum Bytes<'a> {
    Own(File),
    Spool(&'a File),
}

/// An open file of a release.
pub(super) struct FileContent<'a> {
    bytes: Bytes<'a>,
    at: u64,
    pub size: u64,
    digest: &'a Digest,
    entry: &'a Entry,
    release: &'a str,
}

impl FileContent<'_> {
    /// Fills `into` with the bytes at the offset `from`.
    pub fn read(&self, from: u64, into: &mut [u8]) -> Result<(), DeltaError> {
        let file = match &self.bytes {
            Bytes::Own(file) => file,
            Bytes::Spool(file) => file,
        };
        file.read_exact_at(into, self.at + from).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => self.damaged(),
            _ => FileError::io("read", &self.entry.path, e).into(),
        })
    }

    /// Appends `count` bytes, from the offset `from` on, to `into`.
    pub fn append(&self, from: u64, count: u64, into: &mut Vec<u8>) -> Result<(), DeltaError> {
        let Bytes::Own(file) = &self.bytes else {
            let start = into.len();
            into.resize(start + count as usize, 0);
            return self.read(from, into.get_mut(start..).unwrap_or_default());
        };
        // `read_to_end` needs no buffer of zeros. The call moves the position of the file, which no other code uses.
        into.reserve(count as usize);
        let mut file: &File = file;
        let read = file.seek(SeekFrom::Start(from)).and_then(|_| file.take(count).read_to_end(into));
        match read {
            Ok(read) if read as u64 == count => Ok(()),
            Ok(_) => Err(self.damaged()),
            Err(e) => Err(FileError::io("read", &self.entry.path, e).into()),
        }
    }

    /// Passes `count` bytes, from the offset `from` on, to `act`, in pieces.
    pub fn pieces(
        &self,
        from: u64,
        count: u64,
        buffer: &mut Vec<u8>,
        mut act: impl FnMut(&[u8]) -> Result<(), DeltaError>,
    ) -> Result<(), DeltaError> {
        let mut done = 0;
        while done < count {
            buffer.resize((count - done).min(CHUNK as u64) as usize, 0);
            self.read(from + done, buffer)?;
            act(buffer)?;
            done += buffer.len() as u64;
        }
        Ok(())
    }

    /// Replaces the content of `into` by the content of the whole file, and checks the digest of the file.
    pub fn whole(&self, into: &mut Vec<u8>) -> Result<(), DeltaError> {
        into.clear();
        self.append(0, self.size, into)?;
        if Digest::of(into) == *self.digest { Ok(()) } else { Err(self.damaged()) }
    }

    /// Reads the whole file and checks the digest of the file.
    pub fn verify(&self, buffer: &mut Vec<u8>) -> Result<(), DeltaError> {
        let mut hasher = blake3::Hasher::new();
        self.pieces(0, self.size, buffer, |piece| {
            hasher.update(piece);
            Ok(())
        })?;
        if Digest::from(hasher.finalize()) == *self.digest { Ok(()) } else { Err(self.damaged()) }
    }

    /// Returns the error for content that differs from the manifest.
    pub fn damaged(&self) -> DeltaError {
        damaged(self.release, self.entry)
    }
}
