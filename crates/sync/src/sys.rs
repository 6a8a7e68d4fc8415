//! System calls on names in an open directory. No function follows a link.

use std::{
    ffi::OsStr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, RawDir, Statx, StatxAttributes, StatxFlags, openat, statx},
    io::{Errno, Result},
};

/// A time in seconds and nanoseconds since 1970.
pub type FileTime = (i64, u32);

/// The metadata of an entry of the target.
#[derive(Debug, Clone, Copy)]
pub struct Metadata {
    pub kind: FileType,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    pub links: u32,
    pub owner: (u32, u32),
    pub size: u64,
    pub ino: u64,
    pub mtime: FileTime,
    pub ctime: FileTime,
    pub is_mount: bool,
}

impl From<Statx> for Metadata {
    fn from(found: Statx) -> Metadata {
        let mode = u32::from(found.stx_mode);
        let time = |time: rustix::fs::StatxTimestamp| (time.tv_sec, time.tv_nsec);
        Metadata {
            kind: FileType::from_raw_mode(mode),
            mode: mode & 0o7777,
            links: found.stx_nlink,
            owner: (found.stx_uid, found.stx_gid),
            size: found.stx_size,
            ino: found.stx_ino,
            mtime: time(found.stx_mtime),
            ctime: time(found.stx_ctime),
            is_mount: found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
        }
    }
}

pub fn metadata_at(dir: BorrowedFd<'_>, name: &OsStr) -> Result<Metadata> {
    Ok(statx(dir, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, StatxFlags::BASIC_STATS)?.into())
}

pub fn metadata_of(file: impl AsFd) -> Result<Metadata> {
    Ok(statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?.into())
}

/// Opens an entry for reading. The call does not block at a FIFO.
pub fn open(dir: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd> {
    openat(dir, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())
}

/// Calls `each` with the name and the kind of every entry of a directory, without `.` and `..`. Some file systems report the kind
/// `Unknown`.
pub fn each_name(dir: BorrowedFd<'_>, mut each: impl FnMut(&[u8], FileType)) -> Result<()> {
    let mut buffer = Vec::with_capacity(32 << 10);
    let mut names = RawDir::new(dir, buffer.spare_capacity_mut());
    while let Some(entry) = names.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            each(name, entry.file_type());
        }
    }
    Ok(())
}

/// Returns the extended attributes and ACLs that the owner of a file can set, as names with a final zero byte. Labels of security modules are
/// left out.
pub fn own_attributes(file: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>> {
    let mut list = [0_u8; 4096];
    let length = match rustix::fs::flistxattr(file, list.as_mut_slice()) {
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        // The list is longer than the buffer.
        Err(Errno::RANGE) => {
            let mut list = vec![0_u8; 64 << 10];
            let length = rustix::fs::flistxattr(file, list.as_mut_slice())?;
            return Ok(own(list.get(..length).unwrap_or_default()));
        }
        other => other?,
    };
    Ok(own(list.get(..length).unwrap_or_default()))
}

fn own(list: &[u8]) -> Vec<Vec<u8>> {
    let is_own = |name: &&[u8]| name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_");
    list.split_inclusive(|byte| *byte == 0).filter(is_own).map(<[u8]>::to_vec).collect()
}

/// Returns the time of the clock from which file systems take change times.
pub fn file_clock() -> FileTime {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    (now.tv_sec, u32::try_from(now.tv_nsec).unwrap_or(0))
}
