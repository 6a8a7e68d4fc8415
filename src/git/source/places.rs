//! A place in the exported tree, reached one directory at a time and never through a link.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, mkdirat, openat, symlinkat, unlinkat};

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::RDONLY);

/// Opens directories below a root and remembers the way to the last one: neighbours in a sorted list share most of it.
pub struct Places<'r> {
    root: BorrowedFd<'r>,
    way: Vec<(String, OwnedFd)>,
}

/// Opens the root itself.
pub fn root(path: &std::path::Path) -> io::Result<OwnedFd> {
    Ok(openat(CWD, path, DIRECTORY, Mode::empty())?)
}

impl<'r> Places<'r> {
    /// At the root.
    pub fn new(root: BorrowedFd<'r>) -> Places<'r> {
        Places { root, way: Vec::new() }
    }

    /// The directory that holds `path`, and the name in it.
    fn parent<'p>(&mut self, path: &'p str) -> io::Result<(BorrowedFd<'_>, &'p str)> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let names: Vec<&str> = parent.split('/').filter(|name| !name.is_empty()).collect();
        let shared = self.way.iter().zip(&names).take_while(|((one, _), other)| one == *other).count();
        self.way.truncate(shared);
        for step in names.iter().skip(shared) {
            let here = self.way.last().map_or(self.root, |(_, fd)| fd.as_fd());
            let next = openat(here, *step, DIRECTORY, Mode::empty())?;
            self.way.push((String::from(*step), next));
        }
        Ok((self.way.last().map_or(self.root, |(_, fd)| fd.as_fd()), name))
    }

    /// Removes an entry; a directory must be empty.
    pub fn remove(&mut self, path: &str, directory: bool) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        let flags = if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        Ok(unlinkat(parent, name, flags)?)
    }

    /// Makes a directory.
    pub fn directory(&mut self, path: &str) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        Ok(mkdirat(parent, name, Mode::from_raw_mode(0o755))?)
    }

    /// Makes a link.
    pub fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        Ok(symlinkat(target, parent, name)?)
    }

    /// Makes a file, always as a new one: another tree may share the old one's blocks or name.
    pub fn file(&mut self, path: &str, executable: bool, content: &[u8]) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        let mode = Mode::from_raw_mode(if executable { 0o755 } else { 0o644 });
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(openat(parent, name, flags, mode)?);
        file.write_all(content)
    }
}
