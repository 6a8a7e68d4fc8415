//! Disk space that a deployment holds for its end. Each journal has allocated blocks behind its end, and the file `reserve` beside the journal
//! holds further space. A deployment that fails because the disk is full removes this file, and reverts its steps with that space.

use std::{
    fs::{self, File},
    io,
    path::Path,
    time::Duration,
};

use rustix::{
    fs::{FallocateFlags, fallocate},
    io::Errno,
};

use crate::{
    host::files::{self, FreeSpace},
    space::shown,
};

/// The file in the directory of a deployment that holds space.
const FILE: &str = "reserve";

/// The size of the reserve of a deployment, in bytes. The undos of the switch write a few links and files of one block each.
const BYTES: u64 = 256 << 10;

/// A disk with less free space than this is full: a write of a small file may fail.
pub(super) const FULL: FreeSpace = FreeSpace { bytes: 1 << 20, inodes: 32 };

/// The maximum time for which a deployment waits for space. After this time, the environment is frozen until the disk has space.
pub(super) const TIMEOUT: Duration = Duration::from_secs(600);

/// The maximum time for which a recovered deployment waits for space, because the live release does not serve before the end of the recovery.
pub(super) const SHORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Returns true if the cause of an error is a full disk or an exhausted quota.
pub(super) fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Allocates `length` bytes from `offset` on, and does not change the size of the file. Returns false if the file system cannot allocate
/// space in advance.
pub(super) fn allocate(file: &File, offset: u64, length: u64) -> io::Result<bool> {
    match fallocate(file, FallocateFlags::KEEP_SIZE, offset, length) {
        Ok(()) => Ok(true),
        Err(error @ (Errno::NOSPC | Errno::DQUOT)) => Err(error.into()),
        Err(_) => Ok(false),
    }
}

/// Creates the reserve of a deployment.
pub(super) fn hold(directory: &Path) -> io::Result<()> {
    let file = files::append(&directory.join(FILE), 0o600)?;
    allocate(&file, 0, BYTES).map(drop)
}

/// Releases the reserve of a deployment.
pub(super) fn release(directory: &Path) {
    match fs::remove_file(directory.join(FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, directory = %directory.display(), "cannot release the reserved disk space of a deployment");
        }
        _ => {}
    }
}

/// Returns the free space of the file system of a directory, or of its first parent that exists, for a message.
pub(super) fn free_figures(path: &Path) -> String {
    let free = path.ancestors().find_map(|directory| files::free_space(directory).ok());
    free.map_or_else(|| String::from("its free space is unknown"), figures)
}

pub(super) fn figures(free: FreeSpace) -> String {
    match free.inodes {
        u64::MAX => format!("{} are free", shown(free.bytes)),
        inodes => format!("{} and {inodes} inodes are free", shown(free.bytes)),
    }
}

/// Returns true if the file system of `path` has space for small files.
pub(super) fn has_space(path: &Path) -> bool {
    files::free_space(path)
        .is_ok_and(|free| free.bytes >= FULL.bytes.saturating_mul(2) && free.inodes >= FULL.inodes.saturating_mul(2))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn reserve_holds_space_until_it_is_released() {
        let directory = tempfile::tempdir().unwrap();
        hold(directory.path()).unwrap();
        hold(directory.path()).unwrap();
        let found = fs::metadata(directory.path().join(FILE)).unwrap();
        assert_eq!(found.len(), 0);
        assert!(found.blocks() * 512 >= BYTES, "{} blocks", found.blocks());
        release(directory.path());
        release(directory.path());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn lack_of_space_is_recognised() {
        assert!(is_no_space(&Errno::NOSPC.into()) && is_no_space(&Errno::DQUOT.into()) && !is_no_space(&Errno::IO.into()));
    }
}
