//! Staged files: contents that the caller has written for a capture, such as dumps of databases. A staged file either replaces the content of
//! a live file, which cannot be copied consistently, or is an additional file of a source without live files.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::ffi::OsStrExt,
    },
    sync::atomic::Ordering,
};

use rustix::{
    fs::{AtFlags, Mode, fchmod, linkat},
    io::Errno,
};

use super::file::{Attempt, Capture, entry};
use crate::{
    Digest, Entry, Kind, PointError, Result, Stamp,
    contents::NewName,
    index::Finder,
    pool::lock,
    sys::{self, Stat},
    walk::Found,
};

/// The staged files of a capture. The capture links these files into the restore point, so the caller must remove its names of the files
/// afterwards, and must not write to them.
#[derive(Debug, Clone)]
pub struct Staged<'a> {
    /// The directory of the staged files, on the file system of the store.
    pub dir: BorrowedFd<'a>,
    /// The live files whose content is replaced: the path in the restore point, and the name of the staged file. The metadata is that of
    /// the live file, which must exist.
    pub replaced: BTreeMap<String, String>,
    /// The live files that are left out without a report, because a staged file contains their content.
    pub hidden: BTreeSet<String>,
    /// The source, a directory, that consists of staged files only.
    pub source: Option<String>,
    /// The names of the staged files in this source. The files have the same names in the restore point.
    pub added: Vec<String>,
}

impl Staged<'_> {
    pub(super) fn is_hidden(&self, path: &[u8]) -> bool {
        std::str::from_utf8(path).is_ok_and(|path| self.hidden.contains(path))
    }
}

impl Capture<'_> {
    /// Returns the name of the staged file that replaces the content of the live file at `path`.
    pub(super) fn replacement(&self, path: &[u8]) -> Option<(&super::Staged<'_>, &str)> {
        let staged = self.options.staged.as_ref()?;
        Some((staged, staged.replaced.get(std::str::from_utf8(path).ok()?)?))
    }

    /// Captures the metadata of a live file with the content of a staged file.
    pub(super) fn replaced(
        &self,
        live: BorrowedFd<'_>,
        found: &Found,
        staged: &super::Staged<'_>,
        name: &str,
    ) -> Result<Attempt> {
        let Some((live, stat)) = self.open_live(live, found)? else { return Ok(Attempt::Skipped) };
        let xattrs = self.xattrs(&found.path, live.as_fd())?;
        let (size, digest, new) = self.adopt(found, staged, name)?;
        Ok(Attempt::Done(entry(&found.path, content(size, digest, &stat), &stat, xattrs), new))
    }

    /// Stores the staged file `name` as the content of `found`. Returns its size, its digest and its new name, or no name if the content is
    /// shared.
    fn adopt(&self, found: &Found, staged: &super::Staged<'_>, name: &str) -> Result<(u64, Digest, Option<NewName>)> {
        let wrong = |doing, e| PointError::io(doing, OsStr::new(name), e);
        let file = sys::open_file(staged.dir, OsStr::new(name)).map_err(|e| wrong("open the staged file", e))?;
        let stat = sys::stat_fd(&file).map_err(|e| wrong("look at the staged file", e))?;
        fchmod(&file, Mode::from_raw_mode(0o600)).map_err(|e| wrong("set the mode of the staged file", e))?;
        let (digest, size) = self.copier.digest(file.as_fd(), stat.size, &found.path)?;
        let known = self.known(&mut Finder::default(), found);
        if let Some(new) = self.share(found, known, size, digest)? {
            return Ok((size, digest, new));
        }
        let new = self.new.name();
        let to = new.to_string();
        match linkat(staged.dir, OsStr::new(name), self.new.dir(), to.as_str(), AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::XDEV | Errno::PERM | Errno::OPNOTSUPP) => {
                let stored = sys::create_file(self.new.dir(), OsStr::new(&to)).map_err(|e| self.failed("store", found, e))?;
                let reserve = || self.space.reserve(stat.allocated, &found.path);
                self.copier.copy(file.as_fd(), stored.as_fd(), stat.size, &found.path, reserve, || Ok(true))?;
            }
            Err(error) => return Err(self.failed("store", found, error)),
        }
        self.copied_bytes.fetch_add(size, Ordering::Relaxed);
        Ok((size, digest, Some(new)))
    }

    /// Adds the source that consists of staged files, and checks that each replaced file was found.
    pub(super) fn add_staged(&self, staged: &super::Staged<'_>) -> Result<()> {
        for path in staged.replaced.keys() {
            if !lock(&self.entries).iter().any(|entry| entry.path == path.as_bytes()) {
                let why = "a file with a staged content was removed, or is not below a source";
                return Err(PointError::Source { source_path: path.clone(), why });
            }
        }
        let Some(source) = &staged.source else { return Ok(()) };
        let stat = sys::stat_fd(staged.dir).map_err(|e| PointError::io("look at the directory of", source.as_str(), e))?;
        let mut directory = entry(source.as_bytes(), Kind::Directory, &stat, Vec::new());
        directory.mode = 0o700;
        lock(&self.entries).push(directory);
        for name in &staged.added {
            let path = sys::join(source.as_bytes(), name.as_bytes());
            let stat = sys::stat_at(staged.dir, OsStr::new(name))
                .map_err(|e| PointError::io("look at the staged file", OsStr::from_bytes(&path), e))?;
            let found = Found { path, stat };
            let (size, digest, new) = self.adopt(&found, staged, name)?;
            let mut added: Entry = entry(&found.path, content(size, digest, &found.stat), &found.stat, Vec::new());
            added.mode = 0o600;
            self.keep(&added, new)?;
            lock(&self.entries).push(added);
        }
        Ok(())
    }
}

/// Returns the kind of a file with a staged content. The content does not come from the live file, so no later capture may take the live
/// file for unchanged.
pub(super) fn content(size: u64, digest: Digest, stat: &Stat) -> Kind {
    Kind::File { size, digest, is_torn: false, stamp: Stamp::of(stat, false) }
}
