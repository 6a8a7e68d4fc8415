//! Deltas between releases: a server that has release N fetches only the content of release N+1 that N does not have.
//!
//! A delta is a file of static bytes: it can be cached, served by ranges, resumed, put on a web server. The same two releases give
//! the same bytes with the same version of larder. It consists of
//!
//! 1. an outline (`format.rs`): the release that it starts from, the release that it leads to, and the sizes and digests of the sections;
//! 2. the difference of the two manifests (`entries.rs`), from which [`Changes`] rebuilds the new one (`rebuild.rs`), so that its
//!    signature can be checked before anything else is done. Only [`ArchiveInfo::frames`] stays behind: packing the installed tree
//!    again gives the same frames;
//! 3. patches (`texts.rs`), and at the end the list of them (`groups.rs`). The start and the end that a changed small file
//!    shares with its old version are in no patch; the middles of many files make one patch against the middles of their old versions. A
//!    large file is cut into parts, each described by copies from the neighbourhood of the same place in its old version (`copies.rs`).
//!
//! Files whose content the old release has anywhere, empty files and second copies need only their manifest entry.
//!
//! *Memory*: [`memory`] returns the bound. It depends on the number of threads and of entries, not on the bytes of a release.

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

/// Files up to this size, old and new, are patched together with others; larger ones by parts.
const MAX_SMALL: u64 = 4 << 20;

/// The most bytes of files that are patched together, old or new, unless a single file has more. Fewer would compress worse, more would
/// leave the last ones to a single thread.
const MAX_GROUP: u64 = 2 << 20;

/// The most bytes of a large file that make one part.
const MAX_PART: u64 = 16 << 20;

/// The most bytes that describe a part by copies: a part without any copy, and a few bytes more.
const MAX_COPIES: u64 = MAX_PART + (1 << 20);

/// The most bytes of the old version that a part may refer to.
const MAX_REFERENCE: u64 = 24 << 20;

/// The bytes around a change in the old version of a small file that help to compress the new version.
const CONTEXT: u64 = 256;

/// The most memory that making or applying a delta takes with `threads` threads, in bytes, for what depends on contents; manifests
/// come on top, with about 300 bytes for each entry of both.
pub fn memory(threads: usize) -> u64 {
    // Each thread holds a reference, a text, its description, its patch, and tables; three finished patches per thread wait for their turn.
    let each = MAX_REFERENCE + MAX_PART + MAX_COPIES + MAX_PART + (24 << 20) + 3 * MAX_PART;
    threads as u64 * each
}

/// A release at one end of a delta.
#[derive(Debug, Clone)]
pub struct DeltaEndpoint<'a> {
    /// The id of the release, as text; this crate only compares it.
    pub id: String,
    /// The digest of its tree.
    pub tree: Digest,
    /// The frames of its archive; read only where the files come from the archive.
    pub archive: &'a ArchiveInfo,
    /// Its entries, sorted by path.
    pub entries: &'a [Entry],
    /// The other fields of its manifest, in any serialisation that both ends agree on. [`make`] puts them into the delta, compressed
    /// against those of the old release; [`Delta::open`] does not use them.
    pub head: Vec<u8>,
}

/// The reasons why a delta cannot be made or applied.
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
    /// The delta itself is not acceptable.
    #[error("the delta is refused: {why}")]
    Refused {
        /// The cause, with "it" for the delta.
        why: String,
    },
    /// A file of an installed release differs from its manifest entry, and the delta needs that file.
    #[error(
        "the installed {path:?} of release {release} is not what its manifest says; fetch the whole archive of the new release instead of a delta"
    )]
    Damaged {
        /// The file.
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
