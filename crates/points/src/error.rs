//! The errors of restore points.

use std::{fmt, io, path::PathBuf};

use crate::Digest;

/// The result of an operation on restore points.
pub type Result<T> = std::result::Result<T, PointError>;

/// The kind of a limit that the caller of an operation sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LimitKind {
    /// The number of files, directories and links.
    Entries,
    /// The bytes of all files, holes included.
    Bytes,
    /// The bytes of one path.
    PathBytes,
    /// The bytes of the extended attributes of one file, names included.
    XattrBytes,
    /// The bytes that the operation needs on the file system, including the bytes that must stay free.
    FreeBytes,
}

impl fmt::Display for LimitKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LimitKind::Entries => "entries",
            LimitKind::Bytes => "bytes of files",
            LimitKind::PathBytes => "bytes in a path",
            LimitKind::XattrBytes => "bytes of extended attributes",
            LimitKind::FreeBytes => "bytes of free space needed",
        })
    }
}

/// The error of an operation on restore points. Causes are chained with `source()` and not part of the text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PointError {
    /// A system call failed.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// The operation that failed, as a verb.
        doing: &'static str,
        /// The file or directory. The path of a live file is relative to the directory of the sources.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A limit was exceeded. The operation left no files behind.
    #[error("cannot continue at {}: {seen} {what} (limit {limit})", path.display())]
    Limit {
        /// The kind of the limit.
        what: LimitKind,
        /// The number that was reached.
        seen: u64,
        /// The number that is allowed.
        limit: u64,
        /// The file or directory at which the limit was exceeded.
        path: PathBuf,
    },
    /// Another operation holds the lock.
    #[error("cannot lock {}: another operation on restore points is running", path.display())]
    Busy {
        /// The lock.
        path: PathBuf,
    },
    /// Stored contents, which a capture was to share, have other sizes than the restore points record.
    #[error("cannot share {} stored contents: their sizes are wrong", contents.len())]
    WrongSize {
        /// The contents.
        contents: Vec<Digest>,
    },
    /// A restore point with this id already exists.
    #[error("cannot create restore point {id}: it exists")]
    Exists {
        /// The id.
        id: String,
    },
    /// No restore point has this id.
    #[error("cannot find restore point {id}")]
    NotFound {
        /// The id.
        id: String,
    },
    /// The name cannot be used as an id or ticket.
    #[error("cannot use {name:?} as a name: expected 1 to 128 of A-Z a-z 0-9 . _ -, not starting with a dot")]
    BadName {
        /// The name.
        name: String,
    },
    /// The source cannot be captured or restored, or the path cannot be the directory for replaced files.
    #[error("cannot use source {source_path:?}: {why}")]
    Source {
        /// The path of the source or of the directory for replaced files.
        source_path: String,
        /// The fault.
        why: &'static str,
    },
    /// Another user could read or change the directory of the store.
    #[error("cannot use {} as a store: {why}", path.display())]
    UnsafeStore {
        /// The directory.
        path: PathBuf,
        /// The fault.
        why: &'static str,
    },
    /// The format is newer than this program supports.
    #[error(
        "cannot read {what} of restore point {id}: format version {found} (expected at most {supported})\nhint: update larder"
    )]
    Version {
        /// The file.
        what: &'static str,
        /// The restore point.
        id: String,
        /// The version in the file.
        found: u64,
        /// The newest version that this program reads.
        supported: u64,
    },
    /// The restore point was made with another label.
    #[error("cannot restore {id}: its label is {found} (expected {expected})")]
    Label {
        /// The restore point.
        id: String,
        /// The label in the restore point.
        found: String,
        /// The label that the caller expected.
        expected: String,
    },
    /// The manifest or the index is damaged or was not written by this program.
    #[error("cannot read {what} of restore point {id}: {why}")]
    Malformed {
        /// The file.
        what: &'static str,
        /// The restore point.
        id: String,
        /// The fault.
        why: String,
    },
    /// Stored files differ from the captured files.
    #[error("cannot restore {id}: {count} of its stored files are damaged (expected 0), first {first}")]
    Damaged {
        /// The restore point.
        id: String,
        /// The number of damaged files that were found so far.
        count: u64,
        /// The path of the first damaged file.
        first: String,
    },
    /// The target directory of a restore beside the live files is not empty, or the directory for replaced files exists.
    #[error("cannot restore into {}: the directory is not empty", path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// The files of an interrupted restore were changed by another program.
    #[error("cannot finish the restore {ticket}: {} is neither the replaced file nor the restored file", path.display())]
    Interfered {
        /// The ticket of the restore.
        ticket: String,
        /// The live file or directory.
        path: PathBuf,
    },
    /// The caller cancelled the operation.
    #[error("cannot finish the operation: it was cancelled")]
    Cancelled,
}

impl PointError {
    pub(crate) fn io(doing: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> PointError {
        PointError::Io { doing, path: path.into(), source: source.into() }
    }

    /// Returns true if the file system had no space, no inode or no quota left.
    pub fn is_no_space(&self) -> bool {
        match self {
            PointError::Io { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            PointError::Limit { what: LimitKind::FreeBytes, .. } => true,
            _ => false,
        }
    }
}
