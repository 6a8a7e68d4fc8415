//! System calls on paths below an open directory. The functions do not follow links and do not leave the directory. The only exception is
//! in `open_to_empty`.

use std::{
    ffi::{OsStr, OsString},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
};

use rustix::{
    fs::{
        AtFlags, FileType, Mode, OFlags, RawDir, RenameFlags, ResolveFlags, SeekFrom, Statx, StatxAttributes, StatxFlags, fchmod,
        makedev, mkdirat, openat, openat2, renameat_with, seek, statx, unlinkat,
    },
    io::{Errno, Result},
};

use serde::{Deserialize, Serialize};

/// A time of a file, since 1970.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Time {
    /// Seconds, negative before 1970.
    pub seconds: i64,
    /// Nanoseconds, below 1,000,000,000.
    pub nanos: u32,
}

impl Time {
    /// Returns the time of the clock that file systems stamp files with.
    pub(crate) fn now() -> Time {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
        Time { seconds: now.tv_sec, nanos: u32::try_from(now.tv_nsec).unwrap_or(0) }
    }
}

/// The metadata of a file that this crate uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    pub kind: FileType,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    pub links: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    /// Allocated bytes.
    pub allocated: u64,
    pub dev: u64,
    pub ino: u64,
    pub mtime: Time,
    pub ctime: Time,
    /// The time of creation; zero if the file system does not record it.
    pub born: Time,
    pub is_mount: bool,
}

impl From<Statx> for Stat {
    fn from(stat: Statx) -> Stat {
        let mode = u32::from(stat.stx_mode);
        let time = |time: rustix::fs::StatxTimestamp| Time { seconds: time.tv_sec, nanos: time.tv_nsec };
        let has_born = stat.stx_mask & StatxFlags::BTIME.bits() != 0;
        Stat {
            kind: FileType::from_raw_mode(mode),
            mode: mode & 0o7777,
            links: stat.stx_nlink,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            size: stat.stx_size,
            allocated: stat.stx_blocks.saturating_mul(512),
            dev: makedev(stat.stx_dev_major, stat.stx_dev_minor),
            ino: stat.stx_ino,
            mtime: time(stat.stx_mtime),
            ctime: time(stat.stx_ctime),
            born: if has_born { time(stat.stx_btime) } else { Time::default() },
            is_mount: stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
        }
    }
}

const FIELDS: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME);

pub(crate) fn stat_at(dir: BorrowedFd<'_>, name: &OsStr) -> Result<Stat> {
    Ok(statx(dir, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, FIELDS)?.into())
}

pub(crate) fn stat_fd(fd: impl AsFd) -> Result<Stat> {
    Ok(statx(fd, c"", AtFlags::EMPTY_PATH, FIELDS)?.into())
}

/// Opens the directory at `path` below `root`; the empty path is the root itself. Fails with EXDEV at a mount point, unless
/// `cross_mounts` is set.
pub(crate) fn open_dir(root: BorrowedFd<'_>, path: &[u8], cross_mounts: bool) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if path.is_empty() {
        return openat(root, ".", flags, Mode::empty());
    }
    let mut resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    if !cross_mounts {
        resolve |= ResolveFlags::NO_XDEV;
    }
    match openat2(root, OsStr::from_bytes(path), flags, Mode::empty(), resolve) {
        // ENOSYS and EPERM mean that the kernel or the seccomp filter is older than openat2(2). EAGAIN means that a rename raced with the
        // resolution of the path.
        Err(Errno::NOSYS | Errno::PERM | Errno::AGAIN) => open_by_parts(root, path, flags, cross_mounts),
        other => other,
    }
}

fn open_by_parts(root: BorrowedFd<'_>, path: &[u8], flags: OFlags, cross_mounts: bool) -> Result<OwnedFd> {
    let mut at: Option<OwnedFd> = None;
    for part in path.split(|c| *c == b'/') {
        if part.is_empty() || part == b"." || part == b".." {
            return Err(Errno::INVAL);
        }
        let from = at.as_ref().map_or(root, AsFd::as_fd);
        let next = openat(from, OsStr::from_bytes(part), flags, Mode::empty())?;
        if !cross_mounts && stat_fd(&next)?.is_mount {
            return Err(Errno::XDEV);
        }
        at = Some(next);
    }
    at.ok_or(Errno::INVAL)
}

/// Opens a file for reading. A FIFO does not block the call; the caller must check the type of the opened file.
pub(crate) fn open_file(dir: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    openat(dir, name, flags, Mode::empty())
}

/// Creates a file with mode 0600. Fails if the name exists.
pub(crate) fn create_file(dir: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(dir, name, flags, Mode::from_raw_mode(0o600))
}

/// Creates a directory with mode 0700. Fails if the name exists.
pub(crate) fn create_dir(dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    mkdirat(dir, name, Mode::from_raw_mode(0o700))
}

/// Splits a path into its parent, which may be empty, and its last part.
pub(crate) fn split(path: &[u8]) -> (&[u8], &OsStr) {
    match path.iter().rposition(|c| *c == b'/') {
        Some(slash) => {
            let (parent, name) = path.split_at(slash);
            (parent, OsStr::from_bytes(name.strip_prefix(b"/").unwrap_or(name)))
        }
        None => (b"", OsStr::from_bytes(path)),
    }
}

pub(crate) fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}

/// Calls `each` with the names in a directory, without `.` and `..`. Threads must not share `dir`, because the call moves its position.
pub(crate) fn each_name<E: From<Errno>>(
    dir: BorrowedFd<'_>,
    mut each: impl FnMut(&[u8]) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    each_inode(dir, |name, _| each(name))
}

/// Calls `each` with the names and inode numbers in a directory, like [`each_name`].
pub(crate) fn each_inode<E: From<Errno>>(
    dir: BorrowedFd<'_>,
    mut each: impl FnMut(&[u8], u64) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    seek(dir, SeekFrom::Start(0))?;
    let mut buffer = Vec::with_capacity(32 << 10);
    let mut names = RawDir::new(dir, buffer.spare_capacity_mut());
    while let Some(entry) = names.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            each(name, entry.ino())?;
        }
    }
    Ok(())
}

/// Returns true if the directory is empty.
pub(crate) fn is_empty(dir: BorrowedFd<'_>) -> Result<bool> {
    let mut found = false;
    each_name(dir, |_| -> Result<()> {
        found = true;
        Ok(())
    })?;
    Ok(!found)
}

/// Removes the file or directory `name` with everything below it. A missing `name` is not an error. Subdirectories are moved up to the
/// top before they are removed. The depth of the tree and the length of its paths therefore do not matter, and at most two directories
/// are open. Another process may remove the same tree at the same time.
pub fn remove_tree(dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(other) => return Err(other),
    }
    let top = match open_to_empty(dir, name) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    let mut moved = 0_u64;
    loop {
        let mut children = Vec::new();
        each_name(top.as_fd(), |child| -> Result<()> {
            children.push(OsString::from_vec(child.to_vec()));
            Ok(())
        })?;
        if children.is_empty() {
            break;
        }
        for child in children {
            empty_into(top.as_fd(), &child, &mut moved)?;
        }
    }
    drop(top);
    ignore_absent(unlinkat(dir, name, AtFlags::REMOVEDIR))
}

/// Removes a child of `top`. Directories inside the child become children of `top` under new names.
fn empty_into(top: BorrowedFd<'_>, child: &OsStr, moved: &mut u64) -> Result<()> {
    match unlinkat(top, child, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(other) => return Err(other),
    }
    let inner = match open_to_empty(top, child) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    let mut names = Vec::new();
    each_name(inner.as_fd(), |name| -> Result<()> {
        names.push(OsString::from_vec(name.to_vec()));
        Ok(())
    })?;
    for name in names {
        match unlinkat(&inner, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => continue,
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(other) => return Err(other),
        }
        loop {
            *moved += 1;
            let unique = format!(".{moved}");
            match renameat_with(&inner, &name, top, unique.as_str(), RenameFlags::NOREPLACE) {
                Err(Errno::EXIST) => {}
                // Moving a directory changes its `..` entry, which needs write permission for the directory.
                Err(Errno::ACCESS) => {
                    drop(open_to_empty(inner.as_fd(), &name)?);
                    ignore_absent(renameat_with(&inner, &name, top, unique.as_str(), RenameFlags::NOREPLACE))?;
                    break;
                }
                other => {
                    ignore_absent(other)?;
                    break;
                }
            }
        }
    }
    ignore_absent(unlinkat(top, child, AtFlags::REMOVEDIR))
}

/// Opens a directory to remove its content. Adds missing permissions of the owner.
fn open_to_empty(dir: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = match openat(dir, name, flags, Mode::empty()) {
        // Only a process without root gets this error. `chmodat` follows a link that replaces the directory meanwhile, but the process
        // can change only files of its own user.
        Err(Errno::ACCESS) => {
            rustix::fs::chmodat(dir, name, Mode::RWXU, AtFlags::empty())?;
            openat(dir, name, flags, Mode::empty())?
        }
        other => other?,
    };
    if stat_fd(&opened)?.mode & 0o700 != 0o700 {
        fchmod(&opened, Mode::RWXU)?;
    }
    Ok(opened)
}

fn ignore_absent(result: Result<()>) -> Result<()> {
    match result {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}
