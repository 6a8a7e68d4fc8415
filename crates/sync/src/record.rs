//! The record of a sync: the stamps of all synced files, by which the next sync recognises unchanged files.
//!
//! A record is only an optimisation. A record of a killed sync, or of another target, contains stamps that no file of this target has.

use larder_archive::{Digest, Entry, EntryKind};
use serde::{Deserialize, Serialize};

use crate::sys::{FileTime, Metadata};

/// The first bytes of an encoded record, with the version of the format.
const MAGIC: &[u8; 8] = b"lsync-01";

/// The size of the digest, in bytes.
const DIGEST: usize = 32;

/// The size of the first bytes and the digest.
const HEADER: usize = MAGIC.len() + DIGEST;

/// The maximum size of a recorded file without the bytes of its path: the length of the path, the digest, two numbers and two times.
const MAX_FILE: usize = 10 + DIGEST + 2 * 10 + 2 * (10 + 5);

/// The identity of a file's content: every change of the file changes its stamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStamp {
    ino: u64,
    size: u64,
    pub(crate) mtime: FileTime,
    pub(crate) ctime: FileTime,
}

impl FileStamp {
    pub(crate) fn of(found: &Metadata) -> FileStamp {
        FileStamp { ino: found.ino, size: found.size, mtime: found.mtime, ctime: found.ctime }
    }
}

/// A synced file with its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RecordedFile {
    pub path: String,
    pub digest: Digest,
    pub stamp: FileStamp,
}

/// The record of a sync.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncRecord {
    /// The files in the order of their paths.
    files: Vec<RecordedFile>,
}

impl SyncRecord {
    pub(crate) fn new(files: Vec<RecordedFile>) -> SyncRecord {
        SyncRecord { files }
    }

    /// Returns the record as bytes, with a digest of the content.
    pub fn encode(&self) -> Vec<u8> {
        // The record of a large release has megabytes, so all parts are written into one buffer of sufficient size.
        let mut bytes = Vec::with_capacity(HEADER + self.files.iter().map(|file| file.path.len() + MAX_FILE).sum::<usize>());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&[0; DIGEST]);
        let mut bytes = postcard::to_extend(self, bytes).unwrap_or_default();
        let digest = Digest::of(bytes.get(HEADER..).unwrap_or_default());
        if let Some(place) = bytes.get_mut(MAGIC.len()..HEADER) {
            place.copy_from_slice(digest.as_bytes());
        }
        bytes
    }

    /// Reads a record. Returns `None` if the bytes are not a complete record of this version. A sync without a record reads all files.
    pub fn decode(bytes: &[u8]) -> Option<SyncRecord> {
        let (digest, content) = bytes.strip_prefix(MAGIC)?.split_first_chunk::<32>()?;
        if Digest::of(content).as_bytes() != digest {
            return None;
        }
        postcard::from_bytes(content).ok()
    }

    /// Returns the stamps of the files that have the content of `entries`, in the order of `entries`. Both lists are sorted by path.
    pub(crate) fn stamps_of(&self, entries: &[Entry]) -> Vec<Option<FileStamp>> {
        let mut files = self.files.iter().peekable();
        let stamp = |entry: &Entry| {
            while files.next_if(|file| file.path < entry.path).is_some() {}
            let file = files.next_if(|file| file.path == entry.path)?;
            matches!(&entry.kind, EntryKind::File { digest, .. } if *digest == file.digest).then_some(file.stamp)
        };
        entries.iter().map(stamp).collect()
    }
}
