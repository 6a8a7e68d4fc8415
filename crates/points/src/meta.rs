//! Owners, modes, times and extended attributes of files: read from live files for the index, and applied to restored files.

use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use rustix::{
    fs::{
        AtFlags, Gid, Mode, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags, chownat, fchmod, fchown, fgetxattr,
        fgetxattr_query, flistxattr, flistxattr_query, fremovexattr, fsetxattr, futimens, utimensat,
    },
    io::Errno,
};

use crate::{
    LimitKind, PointError, Result,
    entry::{Entry, Kind, Xattr},
    sys::Time,
};

const ACCESS_ACL: &[u8] = b"system.posix_acl_access";
const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";
const CAPABILITY: &[u8] = b"security.capability";

/// The maximum size of the names of one file's attributes, in bytes: `XATTR_LIST_MAX` of the kernel.
const MAX_NAMES: usize = 64 << 10;

/// Returns true for attributes that restore points keep.
pub(crate) fn is_kept(name: &[u8]) -> bool {
    name.starts_with(b"user.") || [ACCESS_ACL, DEFAULT_ACL, CAPABILITY].contains(&name)
}

/// Reads the attributes that restore points keep. File capabilities are read only if `with_capabilities` is true.
pub(crate) fn read_xattrs(fd: BorrowedFd<'_>, path: &[u8], limit: u64, with_capabilities: bool) -> Result<Vec<Xattr>> {
    let wrong = |e: Errno| PointError::io("read the extended attributes of", OsStr::from_bytes(path), e);
    // Most files have no attributes. A call without a buffer is enough to detect this.
    match flistxattr_query(fd) {
        Ok(0) | Err(Errno::NOTSUP) => return Ok(Vec::new()),
        Ok(_) | Err(Errno::RANGE) => {}
        Err(other) => return Err(wrong(other)),
    }
    let mut list = vec![0; MAX_NAMES];
    let length = flistxattr(fd, list.as_mut_slice()).map_err(wrong)?;
    list.truncate(length);
    let mut xattrs = Vec::new();
    let mut seen = 0_u64;
    for name in list.split(|c| *c == 0) {
        if name.is_empty() || !is_kept(name) || (name == CAPABILITY && !with_capabilities) {
            continue;
        }
        let name_str = OsStr::from_bytes(name);
        let size = match fgetxattr_query(fd, name_str) {
            Err(Errno::NODATA) => continue,
            other => other.map_err(wrong)?,
        };
        seen = seen.saturating_add((name.len() + size) as u64);
        if seen > limit {
            return Err(PointError::Limit { what: LimitKind::XattrBytes, seen, limit, path: OsStr::from_bytes(path).into() });
        }
        let mut value = vec![0; size];
        match fgetxattr(fd, name_str, value.as_mut_slice()) {
            // The value has changed since the query: the file is being changed. The caller detects this change by the file's
            // times.
            Err(Errno::NODATA | Errno::RANGE) => continue,
            got => value.truncate(got.map_err(wrong)?),
        }
        xattrs.push(Xattr { name: name.to_vec(), value });
    }
    xattrs.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(xattrs)
}

/// The options for applying metadata.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Apply {
    /// True to set the setuid and setgid bits of files. The bits of directories are always set.
    pub set_ids: bool,
    /// True to set the file capabilities.
    pub capabilities: bool,
    pub is_root: bool,
}

/// Applies owner, mode, attributes and times of an entry, in this order, because a change of the owner clears bits and
/// capabilities. Returns false if the owner or the group could not be set because the caller is not root.
pub(crate) fn apply(fd: BorrowedFd<'_>, entry: &Entry, how: Apply) -> Result<bool> {
    let wrong = |e: Errno| PointError::io("set the metadata of", OsStr::from_bytes(&entry.path), e);
    let is_owned = set_owner(how, entry, |uid, gid| fchown(fd, uid, gid)).map_err(wrong)?;
    let mut mode = entry.mode;
    if !how.set_ids && entry.kind != Kind::Directory {
        mode &= 0o1777;
    }
    fchmod(fd, Mode::from_raw_mode(mode)).map_err(wrong)?;
    for xattr in &entry.xattrs {
        if xattr.name == CAPABILITY && !how.capabilities {
            continue;
        }
        fsetxattr(fd, OsStr::from_bytes(&xattr.name), &xattr.value, XattrFlags::empty()).map_err(wrong)?;
    }
    futimens(fd, &times(entry.mtime)).map_err(wrong)?;
    Ok(is_owned)
}

/// Applies the metadata of an entry like [`apply`] to a live file or directory, which can have other attributes.
pub(crate) fn restore_to(fd: BorrowedFd<'_>, entry: &Entry, how: Apply) -> Result<bool> {
    let wrong = |e: Errno| PointError::io("set the metadata of", OsStr::from_bytes(&entry.path), e);
    for xattr in read_xattrs(fd, &entry.path, u64::MAX, how.capabilities)? {
        if !entry.xattrs.iter().any(|wanted| wanted.name == xattr.name) {
            match fremovexattr(fd, OsStr::from_bytes(&xattr.name)) {
                Ok(()) | Err(Errno::NODATA) => {}
                Err(other) => return Err(wrong(other)),
            }
        }
    }
    apply(fd, entry, how)
}

/// Applies owner and times of a symbolic link. Returns false if the owner or the group could not be set because the caller is not root.
pub(crate) fn apply_link(dir: BorrowedFd<'_>, name: &OsStr, entry: &Entry, how: Apply) -> Result<bool> {
    let wrong = |e: Errno| PointError::io("set the metadata of", OsStr::from_bytes(&entry.path), e);
    let is_owned = set_owner(how, entry, |uid, gid| chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)).map_err(wrong)?;
    utimensat(dir, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW).map_err(wrong)?;
    Ok(is_owned)
}

fn set_owner(
    how: Apply,
    entry: &Entry,
    set: impl Fn(Option<Uid>, Option<Gid>) -> rustix::io::Result<()>,
) -> rustix::io::Result<bool> {
    // To the kernel, a number with all bits set means "unchanged". The index refuses such numbers.
    let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    if how.is_root {
        return set(Some(uid), Some(gid)).map(|()| true);
    }
    let has_group = match set(None, Some(gid)) {
        Ok(()) => true,
        Err(Errno::PERM) => false,
        Err(other) => return Err(other),
    };
    Ok(has_group && uid == rustix::process::geteuid())
}

fn times(mtime: Time) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: mtime.seconds, tv_nsec: mtime.nanos.into() },
    }
}

/// Removes all attributes and access lists that the owner of a file can set.
pub(crate) fn drop_own(fd: BorrowedFd<'_>, path: &[u8]) -> Result<()> {
    for xattr in read_xattrs(fd, path, u64::MAX, false)? {
        match fremovexattr(fd, OsStr::from_bytes(&xattr.name)) {
            Ok(()) | Err(Errno::NODATA) => {}
            Err(other) => return Err(PointError::io("remove an attribute of", OsStr::from_bytes(path), other)),
        }
    }
    Ok(())
}

/// Removes the access lists that a new file or directory inherited from its parent directory.
pub(crate) fn drop_inherited(fd: impl AsFd, path: &Path) -> Result<()> {
    for name in [ACCESS_ACL, DEFAULT_ACL] {
        match fremovexattr(&fd, OsStr::from_bytes(name)) {
            Ok(()) | Err(Errno::NODATA | Errno::NOTSUP | Errno::ACCESS) => {}
            Err(other) => return Err(PointError::io("remove the access list of", path, other)),
        }
    }
    Ok(())
}
