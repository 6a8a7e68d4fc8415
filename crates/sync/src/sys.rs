//! System calls on names in an open directory. No function follows a link.

use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::PathBuf,
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, Statx, StatxAttributes, StatxFlags, openat, openat2, statx},
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
    /// `immutable` or `append-only` if root has protected the entry with this attribute.
    pub protection: Option<&'static str>,
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
            protection: [(StatxAttributes::IMMUTABLE, "immutable"), (StatxAttributes::APPEND, "append-only")]
                .into_iter()
                .find_map(|(attribute, word)| found.stx_attributes.contains(attribute).then_some(word)),
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

/// Returns the path, relative to `dir`, and the attribute of the first protected entry: `name` itself, or an entry below it. An entry
/// that cannot be read is passed over, because this function only explains a refused operation.
pub fn protected_below(dir: BorrowedFd<'_>, name: &OsStr) -> Option<(PathBuf, &'static str)> {
    let mut pending = vec![PathBuf::from(name)];
    while let Some(path) = pending.pop() {
        let at = if path.as_os_str().is_empty() { metadata_of(dir) } else { metadata_at(dir, path.as_os_str()) };
        let Ok(found) = at else { continue };
        if let Some(attribute) = found.protection {
            return Some((path, attribute));
        }
        let shown = if path.as_os_str().is_empty() { OsStr::new(".") } else { path.as_os_str() };
        if found.kind == FileType::Directory
            && let Ok(inner) = openat2(dir, shown, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), CONFINED)
        {
            let _ = each_name(inner.as_fd(), |child, _| pending.push(path.join(OsStr::from_bytes(child))));
        }
    }
    None
}

/// The resolution of paths below a directory that an application can change: no link is followed.
const CONFINED: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);

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
