//! Copies of single files of the release. A copy shares blocks with the original if the file system supports shared blocks, and never shares
//! the inode.

use std::{
    fs::File,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use larder_archive::Digest;
use rustix::{
    fs::{
        Gid, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_OMIT, Uid, fchmod, fchown, fstat, futimens, ioctl_ficlone, openat,
    },
    io::{Errno, Result, pread, pwrite},
};

use crate::{
    FileStamp, SyncError,
    directories::failed,
    plan::{ExpectedFile, Place},
    sys::{self, FileTime},
};

/// The size of the pieces in which files are read, in bytes.
pub const BUFFER: usize = 256 << 10;

/// Creates a file that only its owner can read.
pub fn create(dir: BorrowedFd<'_>, name: &str) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(dir, name, flags, Mode::RUSR | Mode::WUSR)
}

/// Returns the digest of a file, or `None` if the file does not have exactly `size` bytes.
pub fn digest(file: impl AsFd, size: u64, buffer: &mut [u8]) -> Result<Option<Digest>> {
    through(file, size, buffer, |_, _| Ok(()))
}

/// Reads a file, calls `each` with each piece and its offset, and returns the digest. Returns `None` if the file does not have exactly `size`
/// bytes.
fn through(
    file: impl AsFd,
    size: u64,
    buffer: &mut [u8],
    mut each: impl FnMut(&[u8], u64) -> Result<()>,
) -> Result<Option<Digest>> {
    let mut hasher = blake3::Hasher::new();
    let mut done = 0_u64;
    loop {
        let read = match pread(&file, &mut *buffer, done) {
            Err(Errno::INTR) => continue,
            other => other?,
        };
        let piece = buffer.get(..read).unwrap_or_default();
        if piece.is_empty() {
            return Ok((done == size).then(|| hasher.finalize().into()));
        }
        hasher.update(piece);
        each(piece, done)?;
        done = done.saturating_add(read as u64);
        if done > size {
            return Ok(None);
        }
    }
}

fn write_all(file: &OwnedFd, mut piece: &[u8], mut at: u64) -> Result<()> {
    while !piece.is_empty() {
        let written = match pwrite(file, piece, at) {
            Err(Errno::INTR) => continue,
            Ok(0) => return Err(Errno::IO),
            other => other?,
        };
        piece = piece.get(written..).unwrap_or_default();
        at = at.saturating_add(written as u64);
    }
    Ok(())
}

/// Copies content and modification time of `source` to the new file `file`, and sets its mode and owner.
pub fn fill(
    source: &File,
    file: &OwnedFd,
    place: &Place<'_>,
    expected: &ExpectedFile,
    owner: (u32, u32),
    buffer: &mut [u8],
) -> std::result::Result<(), SyncError> {
    let wrong = |doing| failed(doing, place.parent, place.name);
    let digest = if ioctl_ficlone(file, source).is_ok() {
        through(file, expected.size, buffer, |_, _| Ok(()))
    } else {
        through(source, expected.size, buffer, |piece, at| write_all(file, piece, at))
    };
    if digest.map_err(wrong("write"))? != Some(expected.digest) {
        return Err(SyncError::Damaged { path: place.path.to_owned() });
    }
    let found = sys::metadata_of(file).map_err(wrong("read the metadata of"))?;
    if found.owner != owner {
        let (uid, gid) = owner;
        fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).map_err(wrong("change the owner of"))?;
    }
    fchmod(file, Mode::from_raw_mode(expected.mode)).map_err(wrong("change the mode of"))?;
    let original = fstat(source).map_err(wrong("read the time of"))?;
    set_mtime(file, &original, FileStamp::of(&found)).map_err(wrong("change the time of"))
}

/// Gives a file the modification time of `original`, unless `stamp` shows that the file has this time.
pub fn set_mtime(file: impl AsFd, original: &Stat, stamp: FileStamp) -> Result<()> {
    let wanted: FileTime = (original.st_mtime, u32::try_from(original.st_mtime_nsec).unwrap_or(0));
    if stamp.mtime == wanted {
        return Ok(());
    }
    let (tv_sec, tv_nsec) = (wanted.0, i64::from(wanted.1));
    let last_access = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    futimens(file, &Timestamps { last_access, last_modification: Timespec { tv_sec, tv_nsec } })
}
