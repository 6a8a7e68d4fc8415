//! The errors of writing and reading archives. An archive is refused as a whole; no entry is ever skipped.

use std::{fmt, io, path::PathBuf};

/// A fault of a path or of the target of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadPath {
    /// The path is empty.
    Empty,
    /// The path starts with `/`.
    Absolute,
    /// A part is `..`.
    Parent,
    /// A part is `.`.
    Here,
    /// A part is empty: `//` or a `/` at the end.
    EmptyPart,
    /// The path contains a zero byte.
    Nul,
    /// The path contains a control character, such as a line break or ESC.
    Control,
    /// The path is not UTF-8.
    NotUtf8,
    /// A part has more than 255 bytes.
    LongPart,
    /// The path has more than 4096 bytes.
    Long,
}

impl fmt::Display for BadPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BadPath::Empty => "it is empty",
            BadPath::Absolute => "it starts with /",
            BadPath::Parent => "it has a part \"..\"",
            BadPath::Here => "it has a part \".\"",
            BadPath::EmptyPart => "it has an empty part",
            BadPath::Nul => "it contains a zero byte",
            BadPath::Control => "it contains a control character",
            BadPath::NotUtf8 => "it is not UTF-8",
            BadPath::LongPart => "a part has more than 255 bytes",
            BadPath::Long => "it has more than 4096 bytes",
        })
    }
}

/// The error of an operation on an archive.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// A file of the tree or the archive could not be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The archive could not be read or written.
    #[error("cannot {doing} the archive")]
    Io {
        /// The operation that failed, as a verb.
        doing: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The archive would be larger than allowed.
    #[error(
        "it would have more than {limit} bytes, the limit of this server; list files that the release does not need in .larderignore"
    )]
    TooLarge {
        /// The limit, in bytes.
        limit: u64,
    },
    /// The compressor returned an error.
    #[error("cannot compress {path:?}")]
    Compress {
        /// The first entry of the frame.
        path: String,
        /// The cause.
        #[source]
        source: io::Error,
    },

    /// A path that no release may have.
    #[error("the path {path:?} cannot be in a release: {why}")]
    Path {
        /// The path. Bytes that are not UTF-8 are replaced.
        path: String,
        /// The fault of the path.
        why: BadPath,
    },
    /// A link target that no release may have.
    #[error("the link {path:?} cannot be in a release: its target is not allowed: {why}")]
    Target {
        /// The link.
        path: String,
        /// The fault of the target.
        why: BadPath,
    },
    /// Two entries have the same path.
    #[error("{path:?} is listed twice")]
    Duplicate {
        /// The path.
        path: String,
    },
    /// Entries are not in the order of their paths' bytes.
    #[error("{path:?} is out of order")]
    Unsorted {
        /// The first entry that sorts before the previous entry.
        path: String,
    },
    /// An entry below a file.
    #[error("{path:?} lies below {parent:?}, which is a file")]
    BelowFile {
        /// The entry.
        path: String,
        /// The file.
        parent: String,
    },
    /// An entry below a symbolic link.
    #[error("{path:?} lies below {parent:?}, which is a symbolic link")]
    BelowLink {
        /// The entry.
        path: String,
        /// The link.
        parent: String,
    },
    /// An entry without its parent directory.
    #[error("{path:?} lies in {parent:?}, which is not in the release")]
    NoParent {
        /// The entry.
        path: String,
        /// The missing directory.
        parent: String,
    },
    /// More entries than allowed.
    #[error("the release has {count} entries (expected at most {limit})")]
    TooManyEntries {
        /// The number of entries.
        count: u64,
        /// The limit.
        limit: u64,
    },
    /// One file is too large.
    #[error("{path:?} has {bytes} bytes (expected at most {limit} for a single file)")]
    FileTooLarge {
        /// The path of the file.
        path: String,
        /// The size of the file, in bytes.
        bytes: u64,
        /// The limit, in bytes.
        limit: u64,
    },
    /// All files together are too large.
    #[error("the files have {bytes} bytes (expected at most {limit})")]
    TooManyBytes {
        /// The size of all files together, in bytes.
        bytes: u64,
        /// The limit, in bytes.
        limit: u64,
    },
    /// A compression ratio that ordinary files do not reach.
    #[error("{raw} bytes are compressed to {bytes} (expected a ratio below {limit} to 1), which looks like a decompression bomb")]
    Ratio {
        /// The size after decompression, in bytes.
        raw: u64,
        /// The size before decompression, in bytes.
        bytes: u64,
        /// The limit of the ratio.
        limit: u64,
    },

    /// A file changed while it was read.
    #[error("{path:?} changed while it was being read")]
    Changed {
        /// The file.
        path: String,
    },

    /// The list of frames in the manifest contradicts its list of entries.
    #[error("the manifest contradicts itself: {why}")]
    Manifest {
        /// The contradiction.
        why: String,
    },
    /// The size of the file differs from the manifest.
    #[error("the archive has {found} bytes (expected {expected}): it {}", if found < expected { "is cut off" } else { "has bytes after its end" })]
    ArchiveSize {
        /// The size in the manifest.
        expected: u64,
        /// The size of the file.
        found: u64,
    },
    /// The seek table at the end of the archive differs from the manifest.
    #[error("the archive's seek table differs from its manifest")]
    SeekTable,
    /// The bytes of a frame do not have the digest in the manifest.
    #[error("frame {frame} of the archive is damaged: its digest differs from the manifest")]
    FrameDigest {
        /// The number of the frame, counted from 0.
        frame: usize,
    },
    /// A frame is not a single plain zstd frame.
    #[error("cannot accept frame {frame} of the archive: {why}")]
    Frame {
        /// The number of the frame, counted from 0.
        frame: usize,
        /// The cause.
        why: &'static str,
    },
    /// A frame that requires too much memory.
    #[error("frame {frame} of the archive needs a window of {window} bytes (expected at most {limit})")]
    Window {
        /// The number of the frame, counted from 0.
        frame: usize,
        /// The window that the frame needs, in bytes.
        window: u64,
        /// The limit, in bytes.
        limit: u64,
    },
    /// A frame could not be decompressed.
    #[error("cannot decompress frame {frame} of the archive")]
    Decompress {
        /// The number of the frame, counted from 0.
        frame: usize,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Bytes after the last entry of a frame.
    #[error("frame {frame} of the archive has bytes after its last entry")]
    Trailing {
        /// The number of the frame, counted from 0.
        frame: usize,
    },
    /// An entry of the manifest is missing in the tar.
    #[error("{path:?} is in the manifest but not in the archive")]
    Missing {
        /// The entry.
        path: String,
    },
    /// An entry of the tar that is not in the manifest.
    #[error("{path:?} is in the archive but not in the manifest")]
    NotInManifest {
        /// The entry.
        path: String,
    },
    /// A hard link.
    #[error("{path:?} is a hard link, which releases cannot contain")]
    HardLink {
        /// The entry.
        path: String,
    },
    /// A device node.
    #[error("{path:?} is a device, which releases cannot contain")]
    Device {
        /// The entry.
        path: String,
    },
    /// A FIFO.
    #[error("{path:?} is a FIFO, which releases cannot contain")]
    Fifo {
        /// The entry.
        path: String,
    },
    /// A sparse file.
    #[error("{path:?} is stored as a sparse file, which releases do not use")]
    Sparse {
        /// The entry.
        path: String,
    },
    /// An unknown type of entry.
    #[error("{path:?} has the unknown type {kind:?}")]
    UnknownType {
        /// The entry.
        path: String,
        /// The type letter.
        kind: char,
    },
    /// An entry whose kind differs from the manifest.
    #[error("the kind of {path:?} differs from the manifest")]
    Kind {
        /// The entry.
        path: String,
    },
    /// An entry with the set-user-id, set-group-id or sticky bit.
    #[error("{path:?} has special mode bits ({mode:o}), which releases cannot contain")]
    SpecialMode {
        /// The entry.
        path: String,
        /// The whole mode.
        mode: u32,
    },
    /// Extended attributes, capabilities or access lists.
    #[error("{path:?} has extended attributes ({key}), which releases cannot contain")]
    Xattr {
        /// The entry.
        path: String,
        /// The key.
        key: String,
    },
    /// A PAX record that releases do not use.
    #[error("the archive has a PAX record {key:?}, which releases do not use")]
    PaxKey {
        /// The key.
        key: String,
    },
    /// A PAX record that cannot be read.
    #[error("the archive has a malformed PAX header")]
    PaxMalformed,
    /// A PAX record with a second size of an entry.
    #[error("{path:?} has two sizes, one in a PAX record and one in its header")]
    PaxSize {
        /// The entry.
        path: String,
    },
    /// A file whose size differs from the manifest.
    #[error("{path:?} has {found} bytes in the archive (expected {expected}, as in the manifest)")]
    Size {
        /// The file.
        path: String,
        /// The size in the manifest.
        expected: u64,
        /// The size in the header.
        found: u64,
    },
    /// A file whose content differs from the manifest.
    #[error("the content of {path:?} differs from the manifest")]
    Digest {
        /// The file.
        path: String,
    },
    /// A header that differs from the manifest in a field that no other variant names.
    #[error("the header of {path:?} differs from its entry in the manifest")]
    Header {
        /// The entry that was expected.
        path: String,
    },
    /// A patch is not a single plain zstd frame of the stated size.
    #[error("cannot apply a patch: {why}")]
    Patch {
        /// The cause.
        why: &'static str,
    },
    /// A patch could not be made.
    #[error("cannot make a patch: {why}")]
    Unpatched {
        /// The cause, which may be a message of zstd.
        why: &'static str,
    },
    /// The consumer of the entries returned an error.
    #[error("{0}")]
    Sink(String),
}

impl ArchiveError {
    pub(super) fn io(doing: &'static str, source: impl Into<io::Error>) -> ArchiveError {
        ArchiveError::Io { doing, source: source.into() }
    }
}

/// The error of an operation on a file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The operating system returned an error.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// The operation that failed, as a verb.
        doing: &'static str,
        /// The path of the file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file is larger than its reader allows.
    #[error("{} is too large (expected at most {limit} bytes)", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
    /// The path is a directory, link, FIFO, socket or device.
    #[error("{} is not a regular file", path.display())]
    NotRegular {
        /// The path.
        path: PathBuf,
    },
}

impl FileError {
    /// Creates the error of the failed operation `doing` on `path`.
    pub fn io(doing: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> FileError {
        FileError::Io { doing, path: path.into(), source: source.into() }
    }

    /// Returns the kind of the operating system's error, or `Other` for errors with other causes.
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            FileError::Io { source, .. } => source.kind(),
            FileError::TooLarge { .. } | FileError::NotRegular { .. } => io::ErrorKind::Other,
        }
    }
}
