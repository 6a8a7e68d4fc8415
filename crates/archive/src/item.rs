//! The input of the writer, which the planning of frames, the compression and the reuse of frames share.

use std::fs::File;

use super::{ArchiveInfo, Digest, Entry, EntryKind};

/// An entry to archive. If the digest of a file is unknown, it is computed while the file is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The relative path.
    pub path: String,
    /// The kind of the entry.
    pub kind: ItemKind,
}

/// The kind of an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ItemKind {
    /// A directory.
    Dir,
    /// A regular file.
    File {
        /// The size in bytes.
        size: u64,
        /// The digest, if it is known. If the content that the writer reads has a different digest, the writer returns an error.
        digest: Option<Digest>,
        /// True if the file is executable.
        executable: bool,
    },
    /// A symbolic link.
    Link {
        /// The target, verbatim.
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

/// An archive from which unchanged frames are copied to the new archive. A frame is copied only if its bytes still have its digest.
#[derive(Debug, Clone, Copy)]
pub struct Previous<'a> {
    /// The archive.
    pub file: &'a File,
    /// The entries of the archive.
    pub entries: &'a [Entry],
    /// The frames of the archive.
    pub info: &'a ArchiveInfo,
}
