//! The list of what an export wrote, kept beside the exported tree.

use serde::{Deserialize, Serialize};

use super::{CommitId, Digest};

/// What is in `project/tree`. Written by the exporter as postcard to `project/list`, after the tree itself is complete; the bundler reads digests from it instead of reading unchanged files, and the next export applies only what changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceList {
    /// The version of this format.
    pub format: u32,
    /// The boot of the machine in which it was written: a tree that nobody waited to have on the disk is not believed after
    /// another one. Empty where the system does not say; then it was waited for.
    pub boot: String,
    /// The commit that was exported.
    pub commit: CommitId,
    /// Every entry, sorted by the bytes of the path; a directory stands before what it holds.
    pub entries: Vec<SourceEntry>,
}

impl SourceList {
    /// The version that this code writes and reads; another one means "export from scratch".
    pub const FORMAT: u32 = 3;
}

/// One exported file, directory or link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceEntry {
    /// Relative path with `/`.
    pub path: String,
    /// What it is.
    pub kind: SourceKind,
}

/// What an exported entry is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SourceKind {
    /// A directory.
    Dir,
    /// A regular file.
    File {
        /// Size in bytes.
        size: u64,
        /// Digest of its content.
        digest: Digest,
        /// Whether it may be executed.
        executable: bool,
        /// The raw id of its blob in git.
        blob: Vec<u8>,
    },
    /// A symbolic link.
    Link {
        /// Where it points to.
        target: String,
    },
}
