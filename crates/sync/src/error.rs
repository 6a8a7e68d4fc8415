//! The errors of a sync.

use std::{
    io,
    path::{Path, PathBuf},
};

use larder_archive::FileError;

/// The reason why a sync failed. Paths are relative to the target.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// An operation on a file of the target failed.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// The operation, as a verb.
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// An operation on a directory or on a file of the release failed.
    #[error(transparent)]
    File(FileError),
    /// A file of the installed release differs from its digest in the manifest.
    #[error("the installed file {path} is damaged: its content differs from the manifest")]
    Damaged { path: String },
    /// The operator has protected an entry of the target with an attribute, so that no process of the application can change the entry.
    #[error("cannot sync {}: the file or directory is {attribute}", shown(path))]
    Protected {
        path: PathBuf,
        /// `immutable` or `append-only`.
        attribute: &'static str,
    },
    /// A file system is mounted at a path in the target.
    #[error("cannot sync {}: a file system is mounted there", path.display())]
    Mounted { path: PathBuf },
}

/// Returns the path for messages. The target itself has the empty path.
fn shown(path: &Path) -> std::path::Display<'_> {
    if path.as_os_str().is_empty() { Path::new(".").display() } else { path.display() }
}
