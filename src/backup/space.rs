//! The disk space that a capture or a restore needs, compared with the free space before the first file is written.

use std::{fs::File, os::fd::AsFd, path::Path};

use larder_points::{Limits, LookOptions, Point, Source, Store, estimate, usage};
use serde::{Deserialize, Serialize};

use super::{
    DATA,
    error::{BackupFailure, FailureKind},
};

/// The space that each entry needs besides the contents of files: a block of a directory, and the line of the index.
const ENTRY_BYTES: u64 = 512;

/// The files and directories of a restore point besides the contents of files.
const CAPTURE_ENTRIES: u64 = 8;

/// The file systems that clone files, so that a copy needs no space: btrfs, XFS and bcachefs (`statfs(2)`). If an XFS file system has no
/// reflinks, a lack of space is noticed only during the copy.
const CLONING: [u64; 3] = [0x9123_683e, 0x5846_5342, 0xca45_1a4e];

/// Returns true if the file system of `path` clones files, so that a copy needs no space.
pub fn clones_files(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|found| CLONING.contains(&(found.f_type as u64)))
}

/// The disk space that an operation needs, and the space that is free.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpaceEstimate {
    /// The number of files in the live data, counted by name.
    pub files: u64,
    /// The bytes that a capture of the live data writes.
    pub capture: u64,
    /// The files and directories that a capture of the live data creates.
    pub capture_entries: u64,
    /// The bytes that a copy of the live data writes.
    #[serde(default)]
    pub copy: u64,
    /// The bytes that a restore writes; zero if no restore point was named.
    pub restore: u64,
    /// The files and directories that a restore creates.
    pub restore_entries: u64,
    /// The free bytes.
    pub free: u64,
    /// The files and directories that can still be created.
    pub free_entries: u64,
}

impl SpaceEstimate {
    /// Measures the live data, the restore point to restore, and the file system of the store. Reads only metadata.
    pub(super) fn of(
        store: &Store,
        base: &File,
        previous: Option<&Point>,
        restored: Option<&Point>,
        threads: usize,
    ) -> Result<SpaceEstimate, BackupFailure> {
        let options = LookOptions { threads, cross_mounts: true, ..LookOptions::default() };
        let found = estimate(base.as_fd(), &[Source::directory(DATA)], previous, &options)?;
        let free = rustix::fs::statvfs(store.path()).map_err(|e| BackupFailure::io("get the free space", &e.into()))?;
        let clones = clones_files(store.path());
        let contents = |bytes: u64| if clones { 0 } else { bytes };
        let entries = |entries: u64| entries.saturating_mul(ENTRY_BYTES);
        let mut space = SpaceEstimate {
            files: found.files,
            capture: contents(found.copied_bytes).saturating_add(entries(found.entries)),
            copy: contents(found.allocated).saturating_add(entries(found.entries)),
            // Unchanged contents are shared. Directories and links are only in the index.
            capture_entries: found.copied_files.saturating_add(CAPTURE_ENTRIES),
            free: free.f_bavail.saturating_mul(free.f_frsize),
            // Some file systems have no fixed number of inodes, and report zero.
            free_entries: if free.f_files == 0 { u64::MAX } else { free.f_favail },
            ..SpaceEstimate::default()
        };
        if let Some(point) = restored {
            let stored = usage(&[point])?.points.first().map_or(0, |used| used.bytes);
            space.restore = contents(stored).saturating_add(entries(point.manifest.totals.entries));
            space.restore_entries = point.manifest.totals.entries;
        }
        Ok(space)
    }

    /// Returns the estimate of a restore that takes no restore point of the live data.
    pub fn without_capture(self) -> SpaceEstimate {
        SpaceEstimate { capture: 0, capture_entries: 0, ..self }
    }

    /// Returns an error with the needed and the free space if a capture, or a restore with its capture, does not fit. `reserve` is the
    /// number of bytes that must stay free. `doing` are the words that follow "cannot" in the error.
    pub fn check(&self, doing: &str, reserve: u64) -> Result<(), BackupFailure> {
        let reserve = reserve.max(Limits::default().free_bytes);
        let needed = self.capture.saturating_add(self.restore);
        let entries = self.capture_entries.saturating_add(self.restore_entries);
        let why = if needed > self.free.saturating_sub(reserve) {
            format!(
                "cannot {doing}: {needed} bytes of disk space are needed, and {} bytes are free, of which {reserve} bytes must stay free",
                self.free
            )
        } else if entries > self.free_entries {
            format!("cannot {doing}: {entries} new files and directories are needed, and {} can be created", self.free_entries)
        } else {
            return Ok(());
        };
        Err(BackupFailure::new(FailureKind::NoSpace, why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lack_of_bytes_or_inodes_is_refused_with_both_figures() {
        let reserve = Limits::default().free_bytes;
        let fits = SpaceEstimate {
            capture: 1000,
            restore: 500,
            capture_entries: 10,
            restore_entries: 5,
            free: reserve + 1500,
            free_entries: 15,
            ..SpaceEstimate::default()
        };
        assert_eq!(fits.check("restore", 0), Ok(()));
        let failure = SpaceEstimate { free: reserve + 1499, ..fits }.check("restore", 0).unwrap_err();
        assert_eq!(failure.kind, FailureKind::NoSpace);
        assert!(failure.why.starts_with("cannot restore: 1500 bytes of disk space are needed, and 67110363 bytes"), "{failure}");
        assert!(fits.check("restore", reserve + 1).is_err(), "the caller's reserve is larger");
        let failure = SpaceEstimate { free_entries: 14, ..fits }.check("restore", 0).unwrap_err();
        assert!(failure.why.contains("15 new files and directories are needed, and 14 can be created"), "{failure}");
    }
}
