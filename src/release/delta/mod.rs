//! What turns one release into the next: production holds release N and pulls only what N+1 has that N has not.
//!
//! A delta is a file of static bytes: it can be cached, served by ranges, resumed, put on a web server. The same two releases give
//! the same bytes with the same version of larder. It holds, one behind the other,
//!
//! 1. an outline (`format.rs`): which release it starts from, which it leads to, and the sizes and digests of what follows;
//! 2. the difference of the two manifests (`entries.rs`), from which [`manifest()`] rebuilds the new one (`rebuild.rs`), so that its
//!    signature can be checked before anything else is done. Only [`ArchiveInfo::frames`](crate::model::ArchiveInfo) stays behind:
//!    whoever packs the installed tree again finds the same frames;
//! 3. patches (`texts.rs`), and at the end the list of them (`groups.rs`). What both ends of a changed small file share with its old
//!    version is not in any patch; the middles of many make one patch against the middles of their old versions. A large file is cut
//!    into parts, each told by copies out of the neighbourhood of the same place in its old version (`copies.rs`).
//!
//! Files whose content the old release holds anywhere, empty files and second copies need nothing but their manifest entry.
//!
//! *Memory*: [`memory`] says the bound. It depends on the number of threads and of entries, not on the bytes of a release.

mod apply;
mod copies;
mod entries;
#[cfg(any(test, fuzzing))]
pub mod forge;
#[cfg(test)]
mod forge_tests;
mod format;
mod groups;
mod make;
mod rebuild;
mod relatives;
mod source;
mod texts;

pub use apply::{Delta, From, GroupReader};
pub use format::base_of;
pub use make::{DeltaReport, make};
pub use source::Source;

use std::fs::File;

use super::ReleaseError;
use crate::model::Manifest;

/// The file name's ending, as `.tar.zst` is that of an archive.
pub const SUFFIX: &str = ".delta";

/// Files up to this size, old and new, are patched together with others; larger ones by parts.
const SMALL: u64 = 4 << 20;

/// The bytes of files that are patched together, old or new, unless a single one has more. Less would compress worse, more would leave a
/// thread alone with the last ones.
const GROUP: u64 = 2 << 20;

/// The most bytes of a large file that make one part.
const PART: u64 = 16 << 20;

/// The most bytes that tell a part by copies: all of it is new, and something to say so.
const TOLD: u64 = PART + (1 << 20);

/// How many bytes of the old version a part may refer to.
const REFERENCE: u64 = 24 << 20;

/// How many bytes around what changed in the old version of a small file help to compress what it became.
const CONTEXT: u64 = 256;

/// The new manifest that `delta` leads to from `old`: complete but for `archive.frames`, which are empty. Its entries are those of
/// its tree digest; whether its signature is right, the caller has to ask.
pub fn manifest(delta: &File, old: Manifest) -> Result<Manifest, ReleaseError> {
    let outline = format::Outline::read(delta)?;
    outline.starts_from(&old)?;
    rebuild::manifest(delta, &outline, old)
}

/// The most memory that making or applying a delta takes with `threads` threads, in bytes, for what depends on contents; manifests
/// come on top, with about 300 bytes for each entry of both.
pub fn memory(threads: usize) -> u64 {
    // Each thread holds a reference, a text, what tells it and its patch, and tables; three finished patches per thread wait for their
    // turn.
    let each = REFERENCE + PART + TOLD + PART + (24 << 20) + 3 * PART;
    threads as u64 * each
}

fn refused(why: impl Into<String>) -> ReleaseError {
    ReleaseError::Delta { why: why.into() }
}

#[cfg(test)]
mod tests;
