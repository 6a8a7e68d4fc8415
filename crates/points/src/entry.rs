//! Entries of the index. An entry describes one file, directory or link.

use std::{cmp::Ordering, fmt};

use serde::{Deserialize, Serialize};

use crate::sys::{Stat, Time};

/// The maximum length of a path, in bytes: the longest path that the kernel resolves in one call (`PATH_MAX` without the final zero).
pub(crate) const MAX_PATH: usize = 4095;

/// A blake3 digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Returns the digest of bytes.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(blake3::hash(bytes).into())
    }

    /// Parses 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Digest> {
        blake3::Hash::from_hex(text).ok().map(|hash| Digest(hash.into()))
    }

    /// Returns the 64 hexadecimal digits without an allocation.
    pub(crate) fn hex(&self) -> impl std::ops::Deref<Target = str> {
        blake3::Hash::from_bytes(self.0).to_hex()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The identity and version of a live file when it was captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Device number.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// Size in bytes.
    pub size: u64,
    /// Time of the last write.
    pub mtime: Time,
    /// The time of the last change of content or metadata, which applications cannot set.
    pub ctime: Time,
    /// False if the last change was at about the time of the capture, so that a later change may have the same ctime.
    pub is_settled: bool,
}

impl Stamp {
    pub(crate) fn of(stat: &Stat, is_settled: bool) -> Stamp {
        Stamp { dev: stat.dev, ino: stat.ino, size: stat.size, mtime: stat.mtime, ctime: stat.ctime, is_settled }
    }

    /// Returns true if the live file has not changed since the capture.
    pub(crate) fn is_current(&self, stat: &Stat) -> bool {
        self.is_settled && *self == Stamp::of(stat, true)
    }
}

/// An extended attribute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Xattr {
    /// The full name, such as `user.comment`.
    pub name: Vec<u8>,
    /// The value.
    pub value: Vec<u8>,
}

/// The kind of an entry, with the fields that only this kind has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File {
        /// Size in bytes, holes included.
        size: u64,
        /// The digest of the content, holes read as zeros.
        digest: Digest,
        /// True if the file or one of its side files changed during each attempt to read them. The content may then be a mixture of
        /// versions.
        is_torn: bool,
        /// The identity and version of the live file that was read.
        stamp: Stamp,
    },
    /// A symbolic link.
    Symlink {
        /// The target, which may be missing or outside of the source.
        target: Vec<u8>,
    },
    /// A further name of a file that has its own entry.
    HardLink {
        /// The position of the file in the index, which is lower than the position of this entry.
        to: u32,
    },
}

/// One file, directory or link of a restore point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The path, relative to the directory that contains the sources.
    pub path: Vec<u8>,
    /// The kind.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Time of the last write.
    pub mtime: Time,
    /// Extended attributes, sorted by name.
    pub xattrs: Vec<Xattr>,
}

impl Entry {
    /// Returns the path for messages, with U+FFFD in place of bytes that are not UTF-8.
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.path).into_owned()
    }
}

/// Compares paths so that a directory is followed by everything below it: `a`, `a/b`, `a-b`.
pub(crate) fn order(a: &[u8], b: &[u8]) -> Ordering {
    let rank = |c: u8| if c == b'/' { 0 } else { c };
    match a.iter().zip(b).find(|(a, b)| a != b) {
        Some((a, b)) => rank(*a).cmp(&rank(*b)),
        None => a.len().cmp(&b.len()),
    }
}

/// Returns the fault, if any, of a path that must be relative and stay below its directory.
pub(crate) fn path_fault(path: &[u8]) -> Option<&'static str> {
    if path.is_empty() {
        return Some("the path is empty");
    }
    if path.len() > MAX_PATH {
        return Some("the path has more than 4095 bytes");
    }
    path.split(|c| *c == b'/').find_map(|part| match part {
        b"" => Some("the path is absolute or has an empty part"),
        b"." | b".." => Some("the path has a part \".\" or \"..\""),
        part if part.contains(&0) => Some("the path contains a byte 0"),
        part if part.len() > 255 => Some("a part of the path has more than 255 bytes"),
        _ => None,
    })
}

/// Returns true if `path` is `parent` or lies below it.
pub(crate) fn is_within(path: &[u8], parent: &[u8]) -> bool {
    path.strip_prefix(parent).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}
