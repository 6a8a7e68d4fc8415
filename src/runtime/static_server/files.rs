//! [`Directory`] opens the files that requests name. Files outside the served directory are not opened. The only exception is persistent
//! data to which a symlink in the directory points.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs::File,
    io,
    os::{
        fd::OwnedFd,
        unix::{
            ffi::OsStringExt,
            fs::{FileExt, MetadataExt},
        },
    },
    path::{Path, PathBuf},
};

use parking_lot::Mutex;
use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2, readlinkat},
    io::Errno,
};

/// The maximum size, in bytes, of a file whose entity tag is a digest of the content. The tag of a larger file is a digest of the state of
/// its inode.
const MAX_READ_FOR_TAG: u64 = 16 * 1024 * 1024;
/// The maximum number of cached entity tags.
const MAX_TAGS: usize = 16 * 1024;

/// The file or directory with a requested name.
#[derive(Debug)]
pub(super) enum ServedEntry {
    /// An open regular file.
    File(Opened),
    /// A directory. The caller must open the index of the directory by name.
    Directory,
}

/// An open regular file.
#[derive(Debug)]
pub(super) struct Opened {
    /// The file, opened for reading.
    pub file: File,
    /// The length in bytes.
    pub length: u64,
    /// The entity tag (RFC 9110, section 8.8.3), with its quotes.
    pub tag: String,
}

/// The state of an inode, which changes whenever the content changes. The state contains the change time instead of the modification time,
/// because all files of a release have the same modification time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Identity {
    device: u64,
    inode: u64,
    length: u64,
    changed: (i64, i64),
}

/// The served directory. The directory stays open, so that a later change of its path has no effect.
#[derive(Debug)]
pub(super) struct Directory {
    handle: OwnedFd,
    /// The path and the handle of the persistent data's directory. The targets of symlinks to the data begin with this path.
    data: Option<(PathBuf, OwnedFd)>,
    tags: Mutex<HashMap<Identity, String>>,
}

impl Directory {
    /// Opens the directory at `path`.
    pub fn open(path: &Path) -> io::Result<Directory> {
        let handle = openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Directory { handle, data: None, tags: Mutex::new(HashMap::new()) })
    }

    /// Adds the directory of the persistent data at `path`. Symlinks into this directory are followed if the kernel allows openat2(2). All
    /// other symlinks that lead out of the served directory are not followed.
    pub fn with_data(mut self, path: &Path) -> Directory {
        let opened = openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        self.data = opened.ok().map(|handle| (path.to_owned(), handle));
        self
    }

    /// Opens a name relative to the directory. Returns `None` if the name is not public, or if no readable file or directory has the name.
    pub fn entry(&self, name: &str) -> io::Result<Option<ServedEntry>> {
        if name.is_empty() {
            return Ok(Some(ServedEntry::Directory));
        }
        if !is_public(name) {
            return Ok(None);
        }
        // Without `NONBLOCK`, opening a FIFO would block the server's only thread.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        let opened = match openat2(&self.handle, name, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS)
        {
            Err(Errno::NOSYS | Errno::PERM) => match open_by_parts(&self.handle, name, flags) {
                Err(Errno::LOOP | Errno::NOTDIR) => self.open_persistent(name, flags),
                other => other,
            },
            Err(Errno::XDEV) => self.open_persistent(name, flags),
            other => other,
        };
        let file = match opened {
            Ok(handle) => File::from(handle),
            Err(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::IO) => {
                return Err(io::Error::other("the system has no free descriptors or memory, or the disk failed"));
            }
            // Clients cannot distinguish missing files, unreadable files, symlinks out of the directory and names that are too long.
            Err(_) => return Ok(None),
        };
        let found = file.metadata()?;
        if found.is_dir() {
            return Ok(Some(ServedEntry::Directory));
        }
        if !found.is_file() {
            return Ok(None);
        }
        let identity = Identity {
            device: found.dev(),
            inode: found.ino(),
            length: found.len(),
            changed: (found.ctime(), found.ctime_nsec()),
        };
        let tag = self.tag(&file, identity)?;
        Ok(Some(ServedEntry::File(Opened { file, length: found.len(), tag })))
    }

    /// Opens a file as [`Self::entry`] does, but returns `None` for a directory.
    pub fn file(&self, name: &str) -> io::Result<Option<Opened>> {
        Ok(match self.entry(name)? {
            Some(ServedEntry::File(opened)) => Some(opened),
            Some(ServedEntry::Directory) | None => None,
        })
    }

    /// Opens a name below a symlink to the persistent data, such as `media/a.jpg` if `media` is in `data:` of the recipe.
    fn open_persistent(&self, name: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let (path, data) = self.data.as_ref().ok_or(Errno::NOENT)?;
        let ends = name.match_indices('/').map(|(at, _)| at).chain([name.len()]);
        for (prefix, rest) in ends.filter_map(|at| name.split_at_checked(at)) {
            let here = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let link = open_without_links(&self.handle, prefix, here)?;
            let Ok(target) = readlinkat(&link, "", Vec::new()) else { continue };
            let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
            let inside = target.strip_prefix(path).map_err(|_| Errno::XDEV)?;
            // `join` with an empty path would append a slash, and a file cannot be opened with a slash.
            let rest = rest.trim_start_matches('/');
            let inside = if rest.is_empty() { inside.to_owned() } else { inside.join(rest) };
            return open_without_links(data, inside.to_str().ok_or(Errno::NOENT)?, flags);
        }
        Err(Errno::XDEV)
    }

    /// Returns the entity tag of a file. For a file of at most [`MAX_READ_FOR_TAG`] bytes, the tag is a digest of the content. A release
    /// that does not change the file therefore keeps the tag.
    fn tag(&self, file: &File, identity: Identity) -> io::Result<String> {
        if let Some(tag) = self.tags.lock().get(&identity) {
            return Ok(tag.clone());
        }
        let mut hasher = blake3::Hasher::new();
        if identity.length <= MAX_READ_FOR_TAG {
            let mut buffer = vec![0; 64 * 1024];
            let mut at = 0;
            loop {
                let count = file.read_at(&mut buffer, at)?;
                if count == 0 {
                    break;
                }
                hasher.update(buffer.get(..count).unwrap_or_default());
                at += count as u64;
            }
        } else {
            hasher.update(format!("{identity:?}").as_bytes());
        }
        let digest = hasher.finalize().to_hex();
        let tag = format!("\"{}\"", digest.get(..32).unwrap_or(&digest));
        let mut tags = self.tags.lock();
        if tags.len() >= MAX_TAGS {
            tags.clear();
        }
        tags.insert(identity, tag.clone());
        Ok(tag)
    }
}

/// Opens a name below `directory` without following symlinks.
fn open_without_links(directory: &OwnedFd, name: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    match openat2(directory, name, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS) {
        Err(Errno::NOSYS | Errno::PERM) => open_by_parts(directory, name, flags),
        other => other,
    }
}

/// Opens a name part by part without following symlinks, on kernels before 5.6 and under seccomp filters that forbid openat2(2).
fn open_by_parts(directory: &OwnedFd, name: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let mut parts = name.split('/').peekable();
    let mut current: Option<OwnedFd> = None;
    while let Some(part) = parts.next() {
        if matches!(part, "" | "." | "..") {
            return Err(Errno::NOENT);
        }
        let from = current.as_ref().unwrap_or(directory);
        let flags = if parts.peek().is_some() { OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC } else { flags };
        current = Some(openat(from, part, flags | OFlags::NOFOLLOW, Mode::empty())?);
    }
    current.ok_or(Errno::NOENT)
}

/// Returns true if a name may be served. Names with a part that begins with a dot are not served, except `.well-known` (RFC 8615). The
/// files that configure the deployment are not served, because the site may be the root of the repository.
fn is_public(name: &str) -> bool {
    !RECIPE.contains(&name)
        && name.split('/').enumerate().all(|(depth, part)| !part.starts_with('.') || (depth == 0 && part == ".well-known"))
}

/// The files that configure a deployment.
const RECIPE: [&str; 4] = ["larder.yml", "Procfile", "app.json", "static.json"];

/// Splits and percent-decodes the path of a request. Returns `None` if the path is malformed or contains `.` or `..`.
pub(super) fn decode(path: &str) -> Option<Vec<String>> {
    let mut parts = Vec::new();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        let mut bytes = Vec::with_capacity(part.len());
        let mut rest = part.bytes();
        while let Some(byte) = rest.next() {
            if byte == b'%' {
                let mut digit =
                    || rest.next().and_then(|c| char::from(c).to_digit(16)).and_then(|digit| u8::try_from(digit).ok());
                bytes.push(digit()? << 4 | digit()?);
            } else {
                bytes.push(byte);
            }
        }
        // A decoded slash or NUL is rejected, because a part of a path cannot contain these bytes.
        if bytes.iter().any(|byte| matches!(byte, 0 | b'/')) || bytes == b".." || bytes == b"." {
            return None;
        }
        parts.push(String::from_utf8(bytes).ok()?);
    }
    Some(parts)
}

/// Joins and percent-encodes the parts of a path for the header `Location`. This function is the inverse of [`decode`].
pub(super) fn encode(parts: &[String]) -> String {
    let mut path = String::new();
    for part in parts {
        path.push('/');
        for byte in part.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&byte) {
                path.push(char::from(byte));
            } else {
                path.push_str(&format!("%{byte:02X}"));
            }
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world() -> (tempfile::TempDir, Directory) {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("root");
        std::fs::create_dir_all(root.join("sub")).unwrap();
        std::fs::write(temp.path().join("secret"), "secret").unwrap();
        std::fs::write(root.join("sub/a"), "a").unwrap();
        std::fs::write(root.join(".env"), "secret").unwrap();
        let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, root.join(name)).unwrap();
        link("../secret", "out");
        link("/etc/passwd", "absolute");
        link("/proc/self/root", "magic");
        link("sub/a", "inside");
        let directory = Directory::open(&root).unwrap();
        (temp, directory)
    }

    #[test]
    fn name_that_leads_out_of_the_directory_is_not_served() {
        let (_temp, directory) = world();
        for name in
            ["out", "absolute", "magic/etc/passwd", "../secret", "sub/../../secret", "/etc/passwd", ".env", "sub/.x", "no"]
        {
            assert!(directory.file(name).unwrap().is_none(), "{name}");
        }
        assert!(directory.file("sub/a").unwrap().is_some() && directory.file("inside").unwrap().is_some());
        assert!(matches!(directory.entry("sub").unwrap(), Some(ServedEntry::Directory)));
    }

    #[test]
    fn opening_without_openat2_follows_no_symlink() {
        let (_temp, directory) = world();
        for name in ["out", "absolute", "inside", "magic/etc/passwd", "../secret", "sub/../../secret", "/etc/passwd"] {
            assert!(open_by_parts(&directory.handle, name, OFlags::RDONLY).is_err(), "{name}");
        }
        assert!(open_by_parts(&directory.handle, "sub/a", OFlags::RDONLY).is_ok());
    }

    #[test]
    fn symlink_to_persistent_data_is_followed() {
        let (temp, directory) = world();
        let data = temp.path().join("data");
        std::fs::create_dir_all(data.join("media/deep")).unwrap();
        std::fs::write(data.join("media/deep/a"), "kept").unwrap();
        std::os::unix::fs::symlink(temp.path().join("secret"), data.join("media/out")).unwrap();
        std::os::unix::fs::symlink(data.join("media"), temp.path().join("root/sub/media")).unwrap();
        assert!(directory.entry("sub/media/deep/a").unwrap().is_none(), "the data directory was not added yet");
        let directory = directory.with_data(&data);
        assert_eq!(directory.file("sub/media/deep/a").unwrap().unwrap().length, 4);
        assert!(matches!(directory.entry("sub/media").unwrap(), Some(ServedEntry::Directory)));
        std::fs::write(data.join("one.txt"), "one").unwrap();
        std::os::unix::fs::symlink(data.join("one.txt"), temp.path().join("root/one.txt")).unwrap();
        assert_eq!(directory.file("one.txt").unwrap().unwrap().length, 3, "a persistent file");
        for name in ["sub/media/out", "sub/media/none", "absolute", "out"] {
            assert!(directory.entry(name).unwrap().is_none(), "{name}");
        }
    }

    #[test]
    fn entity_tag_changes_with_content_of_equal_time_and_size() {
        let (temp, directory) = world();
        let path = temp.path().join("root/sub/a");
        let first = directory.file("sub/a").unwrap().unwrap().tag;
        let time = std::fs::metadata(&path).unwrap().modified().unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "b").unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        assert_ne!(directory.file("sub/a").unwrap().unwrap().tag, first);
    }

    #[test]
    fn fifo_is_not_served() {
        let (temp, directory) = world();
        let path = temp.path().join("root/pipe");
        rustix::fs::mknodat(CWD, &path, rustix::fs::FileType::Fifo, Mode::from(0o600), 0).unwrap();
        assert!(directory.entry("pipe").unwrap().is_none());
    }

    #[test]
    fn request_path_is_decoded_only_once() {
        let decoded = |path| decode(path).map(|parts| parts.join("/"));
        assert_eq!(decoded("//a///b%20c/%C3%BC").as_deref(), Some("a/b c/\u{fc}"));
        assert_eq!(decoded("/%252e%252e").as_deref(), Some("%2e%2e"));
        for bad in ["/..", "/%2e%2e/x", "/a%2fb", "/%00", "/%zz", "/%f", "/%ff", "/."] {
            assert_eq!(decode(bad), None, "{bad}");
        }
        assert_eq!(encode(&["a b".into(), "\u{fc}?".into()]), "/a%20b/%C3%BC%3F");
    }
}
