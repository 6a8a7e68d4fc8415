//! Release archives, which are written and read frame by frame, and the [deltas](delta) between releases. This crate starts no processes
//! and does not depend on environments. Read [`Archive`] and [`write()`] first.
//!
//! An archive is a sequence of independent zstd frames, each with whole tar entries, and one skippable frame with the seek table of the
//! "zstd seekable format". The last data frame ends with the two empty blocks of tar. Plain `tar --zstd -x` opens the file.
//!
//! - *The same tree gives the same bytes.* Entries are sorted, owners are 0:0, times are [`MTIME`], and modes are 0644 or 0755 (0777 for
//!   symlinks). The boundaries of frames depend only on the paths and sizes of entries (`frames.rs`). An edit of a file therefore changes
//!   only the frame of this file, or a few frames near it if the size has changed. The writer copies the unchanged frames from the previous
//!   archive.
//! - *The reader does not interpret headers.* The manifest determines the bytes of every header, and the reader compares them. A header
//!   that differs is parsed only to report the reason of the refusal (`diagnose.rs`). An archive can therefore create no name, link or
//!   device that the manifest cannot express.
//! - *A patch* is one plain zstd frame whose text may refer to a second text that sender and receiver have (`patch.rs`).
//! - *Memory*: a frame has at most 8 MiB before compression, or contains a single larger file, which is streamed. Each thread of the writer
//!   holds one uncompressed frame. At most three compressed frames per thread are in progress or queued, in buffers that are reused. Frames
//!   and buffers take 33 MiB per thread, plus 8 MiB regardless of the number of threads. One compressor, which all files of more than 8 MiB
//!   share, adds about 100 MiB. Each thread of a reader holds one frame, compressed and uncompressed.
//! - *Versions*: different compression settings give different archives of one tree (`settings.rs`). The writer copies frames only from
//!   an archive with its own settings. Packing an installed release fails if the new archive does not have the digest in the manifest.

pub mod bounded;
mod compare;
mod compress;
mod confined;
pub mod container;
pub mod delta;
mod diagnose;
mod digest;
mod entry;
mod error;
mod frames;
mod header;
mod item;
mod output;
mod patch;
pub mod pool;
mod portable;
mod reader;
mod reuse;
mod rules;
mod settings;
mod writer;

pub use compare::{Between, between, compared};
pub use confined::{Confined, Cursor};
pub use digest::Digest;
pub use entry::{ArchiveInfo, Entry, EntryKind, Frame, tree_digest};
pub use error::{ArchiveError, BadPath, FileError};
pub use frames::{ArchiveInfoExt, plan};
pub use item::{Item, ItemKind, Previous};
pub use portable::{PortableEntry, PortableKind, PortableWriter};
pub use reader::{Archive, FrameReader, Sink};
pub use rules::{ArchiveLimits, check_entries, check_path, check_target};
pub use settings::compresses_like;
pub use writer::{Written, write};

/// The mtime of every entry: 2000-01-01, in seconds since the Unix epoch. Some tools refuse times in the year 1970.
pub const MTIME: u64 = 946_684_800;

/// The compression level of zstd. Higher levels cost more time than they save in transfer.
pub const LEVEL: i32 = 3;

/// The maximum size of a file in a release, in bytes. Sizes in the seek table have 32 bits.
pub const MAX_FILE: u64 = (4 << 30) - (4 << 20);

/// The binary logarithm of the maximum window size that a reader accepts, in bytes.
const MAX_WINDOW_LOG: u32 = 27;

/// The size of the pieces in which a large file is read, in bytes.
const CHUNK: usize = 1 << 20;

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod tests;
