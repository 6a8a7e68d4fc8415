//! Release archives, which are written and read frame by frame, and the [deltas](delta) between releases. This crate starts no processes
//! and knows nothing of environments. Read [`Archive`] and [`write()`] first.
//!
//! An archive is a sequence of independent zstd frames, each with whole tar entries, and one skippable frame with the seek table of the
//! "zstd seekable format". The last data frame ends with the two empty blocks of tar. Plain `tar --zstd -x` opens the file.
//!
//! - *The same tree gives the same bytes.* Entries are sorted, owners are 0:0, times are [`MTIME`], modes 0644 or 0755. The
//!   boundaries of frames depend only on the paths and sizes of entries (`frames.rs`), so an edit changes the frame that holds it and no
//!   other: the writer copies all others from the previous archive.
//! - *The reader does not interpret.* It knows from the manifest the bytes of every header, and compares. A header that differs is parsed
//!   only to name the reason of the refusal (`diagnose.rs`). A name, link or device that the manifest cannot express therefore cannot be
//!   created.
//! - *A patch* is one plain zstd frame whose text may refer to another text that both sides hold (`patch.rs`).
//! - *Memory*: a frame has at most 8 MiB before compression, or it holds one single larger file, which is streamed. Each thread
//!   holds one frame raw, and at most three frames per thread are in progress or wait for their turn, in buffers that are reused: 33 MiB per thread and 8 more, and about 100 MiB from the first larger file on. A reader holds one frame raw and
//!   compressed per thread.
//! - *Versions*: other compression settings give other archives of the same tree (`settings.rs`). Frames of such an archive are not
//!   copied, and packing an installed release is refused if it does not give the bytes of its manifest.

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
pub use reader::{Archive, FrameReader, Sink};
pub use rules::{ArchiveLimits, check_entries, check_path, check_target};
pub use settings::compresses_like;
pub use writer::{Written, write};

/// The mtime of every entry, 2000-01-01, since some tools refuse 1970.
pub const MTIME: u64 = 946_684_800;

/// The compression level. Higher levels cost more time than they save in transfer.
pub const LEVEL: i32 = 3;

/// The largest file that a release may hold: sizes in the seek table have 32 bits.
pub const MAX_FILE: u64 = (4 << 30) - (4 << 20);

/// The largest window, as power of two, that a reader provides memory for.
const MAX_WINDOW_LOG: u32 = 27;

/// The bytes of a large file that are held at once.
const CHUNK: usize = 1 << 20;

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod tests;
