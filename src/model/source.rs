//! The list of exported files, which is stored beside the exported tree. The export and the bundling share this format, which has its own
//! version.

use serde::{Deserialize, Serialize};

use super::{CommitId, Digest};

/// The list of the entries in `project/tree`. The export writes the list in the postcard encoding to `project/list` after the tree is
/// complete. The list makes later work faster: bundling takes the digests of unchanged files from the list, and the next export writes only
/// changed files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceList {
    /// The version of this format.
    pub format: u32,
    /// The boot id of the machine when the list was written. A list from an earlier boot is ignored, because the tree was not synced to the
    /// disk. The boot id is empty if the system has no boot id; in this case, the tree was synced.
    pub boot: String,
    /// The commit that was exported.
    pub commit: CommitId,
    /// All entries, sorted by the bytes of the path, directories before their contents.
    pub entries: Vec<SourceEntry>,
}

impl SourceList {
    /// The version that this code writes and reads. A list of another version is ignored, and all files are exported again.
    pub const FORMAT: u32 = 3;
}

/// One exported file, directory or link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceEntry {
    /// The path relative to `project/tree`, with `/` as the separator.
    pub path: String,
    pub kind: SourceKind,
}

/// The kind of an exported entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SourceKind {
    /// A directory.
    Dir,
    /// A regular file.
    File {
        /// The size in bytes.
        size: u64,
        /// The digest of the content.
        digest: Digest,
        executable: bool,
        /// The raw id of the git blob.
        blob: Vec<u8>,
    },
    /// A symbolic link.
    Link { target: String },
}
