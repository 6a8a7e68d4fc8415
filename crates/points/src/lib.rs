//! Restore points of files: copies of the directories of an environment at one moment, from which all files can be restored. A restore
//! point of larder has more parts (release, configuration, database dumps). This crate stores only the files of a restore point; it starts
//! no processes and does not depend on environments. Read [`Store`] and [`Store::capture`] first.
//!
//! ```text
//! <store>/                  0700, owned by the user that runs this code
//!   lock                    held by a capture, an import, a sweep and the end of a removal
//!   .contents/<digest>      contents of regular files of all restore points, 0600
//!   <id>/                   one complete restore point
//!     point.json            manifest: time, label, sources, totals, digest of the index
//!     checksums             digest of point.json; `b3sum --check` reads it
//!     index                 one entry per file, directory or link, with metadata and digest; or the changes of `base`
//!     base                  an earlier whole index, if `index` has changes
//!     verified.json         result of the last verification; the only file that changes
//!     files/                only in version 1: contents of regular files below their paths, 0600
//!   .new-<id>/              a capture in progress, or a killed capture that the next sweep removes
//!   .old-<id>/              a removal in progress, or a killed removal that the next sweep completes
//!   .restore-<ticket>.json  state of a restore that replaces live files
//! ```
//!
//! - *Metadata is in the index.* Paths, owners, modes, times, extended attributes and symbolic links are in the index only. Files in the store
//!   are 0600 and belong to the user of the store. Two restore points therefore share a content even if the name or the owner of its file
//!   changed between them, and no other user can read the content. A stored file is never a hard link to a live file.
//! - *No link is followed.* Live trees belong to applications, which may exchange directories for links at any moment. Every path is
//!   resolved below an open directory with `openat2(RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)`.
//! - *Unchanged* means equal size, mtime, ctime, inode and device, and a ctime that was already past when the file was read. The content of
//!   such a file is shared with the previous restore point: the live file is not opened, and nothing is written. A file that was only touched
//!   is compared by digest. A stored content is not examined when it is shared; only a content that is missing is stored again.
//! - *Power cuts.* A capture writes below `.new-<id>` without waiting for the disk, moves the contents to `.contents`, syncs the file system
//!   once, renames the directory, and syncs the store. The rename cannot reach the disk before the files, because the rename follows the sync
//!   of the files. A content replaces an existing content only after this sync. A restore syncs
//!   the complete new tree, then records the exchange of the trees, then exchanges them. After a crash, [`Store::restore`] or
//!   [`Store::recover_restores`] continues from the record.
//! - *Removal.* A content is removed when no index refers to it. If an index cannot be read, no content is removed until the restore point of
//!   this index is removed.
//! - *Verified* restore points were read back after the capture. A capture does not mark its restore point as verified.

mod capture;
mod changes;
mod content;
mod contents;
mod diff;
mod entry;
mod error;
mod export;
mod import;
mod index;
mod manifest;
mod meta;
mod pool;
mod publish;
mod restore;
mod retention;
mod source;
mod store;
mod sys;
mod usage;
mod verify;
mod walk;

pub use capture::{CaptureOptions, Captured, Staged};
pub use changes::decode as decode_index_changes;
pub use diff::{Change, ChangeKind, Diff, Estimate, LookOptions, diff, diff_live, estimate};
pub use entry::{Digest, Entry, Kind, Stamp, Xattr};
pub use error::{LimitKind, PointError, Result};
pub use export::StoredFile;
pub use import::{Content, PointParts};
pub use index::{decode as decode_index, encode as encode_index};
pub use manifest::{Manifest, Totals, Verified};
pub use restore::{RestoreOptions, RestoreReport, remove_kept};
pub use retention::{Candidate, Decision, Keep, plan_retention};
pub use source::{Source, SourceKind, SourceRecord};
pub use store::{Point, Store};
pub use sys::{Time, remove_tree};
pub use usage::{PointUsage, Usage, usage};
pub use verify::{Damage, Fault, VerifyOptions, VerifyReport};
pub use walk::{Limits, SkipReason, Skipped};

#[cfg(test)]
mod tests;

/// Counts the calls, and kills this process at the call whose number is in `POINTS_KILL_AT`. Outside of tests, the function does nothing.
#[cfg(test)]
pub(crate) fn step() {
    use std::sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    };
    static AT: LazyLock<u64> =
        LazyLock::new(|| std::env::var("POINTS_KILL_AT").ok().and_then(|text| text.parse().ok()).unwrap_or(0));
    static SEEN: AtomicU64 = AtomicU64::new(0);
    if *AT > 0 && SEEN.fetch_add(1, Ordering::SeqCst) + 1 == *AT {
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
        loop {
            std::thread::park();
        }
    }
}

#[cfg(not(test))]
#[inline(always)]
pub(crate) fn step() {}
