//! Deltas between releases: a server that has release N fetches only the content of release N+1 that N does not have.
//!
//! A delta is a file that never changes: it can be cached, sent in ranges, resumed, or put on a web server. The same version of larder makes
//! the same bytes from the same two releases. A delta consists of
//!
//! 1. an outline (`format.rs`): the ids of the old and the new release, and the sizes and digests of the sections;
//! 2. the difference of the two manifests (`entries.rs`). [`Changes`] rebuilds the new manifest (`rebuild.rs`), so that its signature can
//!    be checked before anything else is done. Only [`ArchiveInfo::frames`] is left out, because packing the installed tree gives the same
//!    frames;
//! 3. patches (`texts.rs`), and after them the list of patches (`groups.rs`). A changed small file often shares its start and its end
//!    with its old version; a patch contains only the middle. The middles of many small files make one patch against the middles of their
//!    old versions. A large file is cut into parts. Each part is described by copies from about the same place in its old version
//!    (`copies.rs`).
//!
//! A new file needs no patch if the file is empty. A new file also needs no patch if an old file or an earlier new file has the same
//! content.
//!
//! *Memory*: [`memory`] returns the maximum memory that the contents of files take. The maximum depends on the number of threads, not on
//! the size of a release.

mod apply;
mod copies;
mod entries;
#[cfg(any(test, fuzzing))]
pub mod forge;
mod format;
mod groups;
mod make;
mod rebuild;
mod relatives;
mod source;
mod texts;

pub use apply::{ContentOrigin, Delta, GroupReader};
pub use format::endpoints;
pub use make::{DeltaReport, make};
pub use rebuild::Changes;
pub use source::FileSource;

use crate::{ArchiveError, ArchiveInfo, Digest, Entry, FileError};

/// The suffix of the file name of a delta.
pub const SUFFIX: &str = ".delta";

/// The maximum size of a file, old or new, that is patched together with other files, in bytes. Larger files are patched in parts.
const MAX_SMALL: u64 = 4 << 20;

/// The maximum total size of the files that are patched together, in bytes, where the larger version of each file counts. A single file may
/// be larger. Smaller groups compress worse. With larger groups, a single thread would work on the last group while all other threads are
/// idle.
const MAX_GROUP: u64 = 2 << 20;

/// The maximum size of a part of a large file, in bytes.
const MAX_PART: u64 = 16 << 20;

/// The maximum length of the description of a part by copies, in bytes. A description without any copy is the longest, because this
/// description contains the whole part. The constant adds a margin.
const MAX_COPIES: u64 = MAX_PART + (1 << 20);

/// The maximum size of the range of the old version that a part may refer to, in bytes.
const MAX_REFERENCE: u64 = 24 << 20;

/// The number of bytes before and after a change in the old version of a small file that help to compress the new version.
const CONTEXT: u64 = 256;

/// Returns the maximum memory for contents, in bytes, that making or applying a delta with `threads` threads takes. In addition, manifests
/// take about 300 bytes for each entry of both releases.
pub fn memory(threads: usize) -> u64 {
    // Each thread holds a reference, a text, its description, its patch, and tables; up to three finished patches per thread wait to be
    // written.
    let each = MAX_REFERENCE + MAX_PART + MAX_COPIES + MAX_PART + (24 << 20) + 3 * MAX_PART;
    threads as u64 * each
}

/// A release at one end of a delta.
#[derive(Debug, Clone)]
pub struct DeltaEndpoint<'a> {
    /// The id of the release, as text; this crate only compares it.
    pub id: String,
    /// The digest of the tree.
    pub tree: Digest,
    /// The description of the archive, which is used only if the files come from the archive.
    pub archive: &'a ArchiveInfo,
    /// The entries, sorted by path.
    pub entries: &'a [Entry],
    /// The head: the manifest without its entries and frames, in any serialisation that maker and reader agree on. [`make`] stores the head
    /// in the delta, compressed against the head of the old release. [`Delta::open`] does not use the head.
    pub head: Vec<u8>,
}

/// The reason why a delta cannot be made or applied.
#[derive(Debug, thiserror::Error)]
pub enum DeltaError {
    /// A file could not be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// An archive or a compressed section was refused or could not be written.
    #[error("cannot {doing} the release archive")]
    Archive {
        /// `write` or `accept`.
        doing: &'static str,
        /// The cause.
        #[source]
        source: ArchiveError,
    },
    /// The delta itself is refused, or cannot be made.
    #[error("cannot use the delta: {why}")]
    Refused {
        /// The cause, in which "it" stands for the delta.
        why: String,
    },
    /// A file of an installed release differs from its manifest entry, and the delta needs that file.
    #[error(
        "the installed file {path:?} of release {release} differs from the manifest; fetch the whole archive of the new release instead of a delta"
    )]
    Damaged {
        /// The path of the file.
        path: String,
        /// The id of the release that the file belongs to.
        release: String,
    },
}

fn refused(why: impl Into<String>) -> DeltaError {
    DeltaError::Refused { why: why.into() }
}

#[cfg(test)]
mod tests;
