//! Puts live files back in place: writes only the files that differ from a restore point, so that the time depends on the changes and not on
//! the size of the data.
//!
//! All new contents are written and compared with their digests before the first live file changes. A kill after the first change leaves a
//! mixture. The caller must stop all writers first, and must repeat the call, or restore by exchange, before an application starts.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ffi::OsStr,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    sync::Mutex,
};

use rustix::{
    fs::{AtFlags, linkat, renameat, symlinkat, syncfs},
    io::Errno,
};

use super::{
    RestoreOptions, RestoreReport,
    build::{Builder, failed},
    check_label, report,
};
use crate::{
    Entry, Kind, Point, PointError, Result, Source, SourceKind,
    content::Copier,
    entry::order,
    index,
    meta::{self, Apply},
    pool::{self, lock},
    step, sys,
    sys::Stat,
    walk::{Counts, Found, Visit, Walk},
};

/// The directory of the new contents, below the root of the source until the end of the call.
const STAGE: &str = ".larder-back";

/// The live files, directories and links.
struct Seen<'a> {
    entries: &'a [Entry],
    copier: Copier<'a>,
    /// The metadata of each live entry that the restore point contains, by its position in the index.
    known: Mutex<KnownEntries>,
    /// The live entries that the restore point does not contain.
    added: Mutex<Vec<Vec<u8>>>,
}

/// The live entries that the restore point contains, by their positions in the index.
type KnownEntries = HashMap<usize, Live>;

/// A live entry with the same path as an entry of the restore point.
struct Live {
    stat: Stat,
    state: State,
}

/// The comparison of a live entry with its entry in the restore point.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Content and metadata are equal.
    Equal,
    /// The content is equal, and the metadata differs.
    Metadata,
    /// The content, the target or the kind differs.
    Different,
}

impl Seen<'_> {
    fn note(&self, path: &[u8], stat: &Stat, compare: impl FnOnce(&Entry) -> Result<State>) -> Result<()> {
        match self.entries.binary_search_by(|entry| order(&entry.path, path)).ok() {
            Some(at) => {
                let Some(entry) = self.entries.get(at) else { return Ok(()) };
                let state = compare(entry)?;
                lock(&self.known).insert(at, Live { stat: *stat, state });
            }
            None => lock(&self.added).push(path.to_vec()),
        }
        Ok(())
    }
}

fn has_metadata(entry: &Entry, stat: &Stat) -> bool {
    (entry.mode, entry.uid, entry.gid, entry.mtime) == (stat.mode, stat.uid, stat.gid, stat.mtime)
}

impl Visit for Seen<'_> {
    fn directory(&self, path: &[u8], _: BorrowedFd<'_>, stat: &Stat) -> Result<()> {
        // The metadata of directories is compared after the changes to their entries.
        self.note(path, stat, |entry| Ok(if entry.kind == Kind::Directory { State::Metadata } else { State::Different }))
    }

    fn symlink(&self, path: &[u8], stat: &Stat, target: Vec<u8>) -> Result<()> {
        self.note(path, stat, |entry| {
            let is_same = entry.kind == Kind::Symlink { target } && has_metadata(entry, stat);
            Ok(if is_same { State::Equal } else { State::Different })
        })
    }

    fn files(&self, _: usize, dir: BorrowedFd<'_>, files: Vec<Found>, _: bool) -> Result<()> {
        for found in files {
            self.note(&found.path, &found.stat, |entry| {
                let Some(Kind::File { size, digest, stamp, is_torn }) =
                    index::file_of(self.entries, entry).map(|file| &file.kind)
                else {
                    return Ok(State::Different);
                };
                if stamp.is_current(&found.stat) && !is_torn {
                    return Ok(State::Equal);
                }
                if *size != found.stat.size {
                    return Ok(State::Different);
                }
                let file = sys::open_file(dir, found.name()).map_err(|e| failed("open", entry, e))?;
                let is_same = self.copier.digest(file.as_fd(), *size, &found.path)? == (*digest, *size);
                Ok(if is_same { State::Metadata } else { State::Different })
            })?;
        }
        Ok(())
    }
}

/// The state of one call of [`Point::put_back`].
struct Return<'a> {
    base: BorrowedFd<'a>,
    builder: Builder<'a>,
    how: Apply,
}

impl Point {
    /// Makes the live files of a source below `base` equal to the restore point, and writes only the files that differ. The restore point, or
    /// `options.only`, must select exactly one source, which is a directory, and no source may have been absent at the capture. The report
    /// counts only the written files.
    ///
    /// The caller must stop all writers first. After an error or a kill, the files can be a mixture; a repeated call continues. Sockets,
    /// FIFOs and devices stay.
    pub fn put_back(&self, base: BorrowedFd<'_>, options: &RestoreOptions<'_>) -> Result<RestoreReport> {
        check_label(self, &options.expect)?;
        let is_wanted = |source: &&Source| options.only.is_none_or(|only| only == source.path);
        let records = self.manifest.sources.iter();
        let sources: Vec<Source> = records.map(|record| &record.source).filter(is_wanted).cloned().collect();
        let is_usual = self.manifest.sources.iter().all(|record| record.is_present)
            && sources.iter().all(|source| source.kind == SourceKind::Directory);
        let Some(first) = sources.first().filter(|_| is_usual && sources.len() == 1) else {
            let why = "only a single directory can be put back";
            return Err(PointError::Source { source_path: options.only.unwrap_or_default().to_owned(), why });
        };
        let all = self.entries()?;
        let root = first.path.as_bytes();
        let wrong = |e: Errno| PointError::io("put back the files of", first.path.as_str(), e);
        let top = sys::open_dir(base, root, true).map_err(wrong)?;
        sys::remove_tree(top.as_fd(), OsStr::new(STAGE)).map_err(wrong)?;
        let (known, added) = look(base, &all, &sources, options)?;
        sys::create_dir(top.as_fd(), OsStr::new(STAGE)).map_err(wrong)?;
        step();
        let stage = sys::open_dir(top.as_fd(), STAGE.as_bytes(), true).map_err(wrong)?;
        let builder = Builder::new(self, &all, top.as_fd(), options)?;
        let how = builder.how;
        let act = Return { base, builder, how };
        let changed = changed_files(&all, root, &known);
        // Nothing has changed yet, so an error leaves the live files as they were.
        let staged = act.stage(stage.as_fd(), &changed).and_then(|()| syncfs(&top).map_err(wrong));
        if let Err(error) = staged {
            let _ = sys::remove_tree(top.as_fd(), OsStr::new(STAGE));
            return Err(error);
        }
        step();
        act.remove(&all, &known, added)?;
        step();
        act.place(stage.as_fd(), root, &known, &changed)?;
        sys::remove_tree(top.as_fd(), OsStr::new(STAGE)).map_err(wrong)?;
        act.directories(root)?;
        syncfs(&top).map_err(wrong)?;
        Ok(report(act.builder))
    }
}

/// Walks over the live files. Returns the entries that the restore point contains, and the paths of the other entries.
fn look(
    base: BorrowedFd<'_>,
    entries: &[Entry],
    sources: &[Source],
    options: &RestoreOptions<'_>,
) -> Result<(KnownEntries, Vec<Vec<u8>>)> {
    let walk = Walk {
        base,
        sources,
        limits: options.limits,
        cross_mounts: true,
        skip_unreadable: false,
        threads: options.threads,
        cancel: options.cancel,
        counts: Counts::default(),
    };
    let copier = Copier::new(false, options.cancel);
    let seen = Seen { entries, copier, known: Mutex::default(), added: Mutex::default() };
    walk.run(&seen)?;
    let known = std::mem::take(&mut *lock(&seen.known));
    let added = std::mem::take(&mut *lock(&seen.added));
    Ok((known, added))
}

/// Returns the positions of the files whose content must be written, each with the positions of its further names. A file is written again
/// unless all of its names, and no other names, have the same inode with the right content.
fn changed_files(entries: &[Entry], root: &[u8], known: &KnownEntries) -> BTreeMap<usize, Vec<usize>> {
    let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (at, entry) in entries.iter().enumerate().filter(|(_, entry)| crate::entry::is_within(&entry.path, root)) {
        match entry.kind {
            Kind::File { .. } => drop(groups.entry(at).or_default()),
            Kind::HardLink { to } => groups.entry(to as usize).or_default().push(at),
            Kind::Directory | Kind::Symlink { .. } => {}
        }
    }
    groups.retain(|at, more| {
        let inodes: HashSet<_> = more
            .iter()
            .chain([at])
            .map(|at| {
                let live = known.get(at).filter(|live| live.state != State::Different);
                live.filter(|live| live.stat.links as usize == 1 + more.len()).map(|live| (live.stat.dev, live.stat.ino))
            })
            .collect();
        inodes.len() != 1 || inodes.contains(&None)
    });
    groups
}

impl Return<'_> {
    /// Opens the live directory that contains an entry. Returns this directory and the name of the entry.
    fn above<'e>(&self, entry: &'e Entry) -> Result<(OwnedFd, &'e OsStr)> {
        let (parent, name) = sys::split(&entry.path);
        let dir = sys::open_dir(self.base, parent, true).map_err(|e| failed("open the directory of", entry, e))?;
        Ok((dir, name))
    }

    fn entries(&self) -> &[Entry] {
        self.builder.entries
    }

    /// Writes the contents of the changed files.
    fn stage(&self, stage: BorrowedFd<'_>, changed: &BTreeMap<usize, Vec<usize>>) -> Result<()> {
        let files: Vec<usize> = changed.keys().copied().collect();
        let RestoreOptions { threads, cancel, .. } = *self.builder.options;
        pool::each_chunk(threads, &files, 16, cancel, |chunk| {
            step();
            for (at, entry) in chunk.iter().filter_map(|at| Some((at, self.entries().get(*at)?))) {
                self.builder.file(stage, OsStr::new(&at.to_string()), entry, entry)?;
            }
            Ok(())
        })
    }

    /// Removes the live entries that the restore point does not contain. Also removes a live directory if the restore point has a file or
    /// link at its path, and a live file or link if the restore point has a directory at its path.
    fn remove(&self, entries: &[Entry], known: &KnownEntries, added: Vec<Vec<u8>>) -> Result<()> {
        let is_in_the_way = |entry: &Entry, live: &Live| {
            live.state == State::Different
                && (entry.kind == Kind::Directory) != (live.stat.kind == rustix::fs::FileType::Directory)
        };
        let other = known.iter().filter_map(|(at, live)| Some((entries.get(*at)?, live)));
        let other = other.filter(|(entry, live)| is_in_the_way(entry, live)).map(|(entry, _)| entry.path.clone());
        let mut paths: Vec<_> = added.into_iter().chain(other).collect();
        // A directory is removed before its content is considered.
        paths.sort_unstable_by(|a, b| order(a, b));
        for path in paths {
            let (parent, name) = sys::split(&path);
            let wrong = |e| PointError::io("remove", OsStr::from_bytes(&path), e);
            match sys::open_dir(self.base, parent, true).and_then(|dir| sys::remove_tree(dir.as_fd(), name)) {
                Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(other) => return Err(wrong(other)),
            }
            step();
        }
        Ok(())
    }

    /// Creates the missing directories and links, moves the written files to their names, and sets the metadata of files.
    fn place(
        &self,
        stage: BorrowedFd<'_>,
        root: &[u8],
        known: &KnownEntries,
        changed: &BTreeMap<usize, Vec<usize>>,
    ) -> Result<()> {
        let mut late = Vec::new();
        let inside = |entry: &Entry| crate::entry::is_within(&entry.path, root);
        for (at, entry) in self.entries().iter().enumerate().filter(|(_, entry)| inside(entry)) {
            let live = known.get(&at);
            match &entry.kind {
                Kind::Directory if live.is_none_or(|live| live.state == State::Different) => {
                    let (dir, name) = self.above(entry)?;
                    sys::create_dir(dir.as_fd(), name).map_err(|e| failed("create", entry, e))?;
                }
                Kind::Symlink { target } if live.is_none_or(|live| live.state == State::Different) => {
                    let (dir, name) = self.above(entry)?;
                    sys::remove_tree(dir.as_fd(), name).map_err(|e| failed("replace", entry, e))?;
                    symlinkat(OsStr::from_bytes(target), &dir, name).map_err(|e| failed("create", entry, e))?;
                    self.builder.note_owner(meta::apply_link(dir.as_fd(), name, entry, self.how)?);
                }
                Kind::File { .. } if changed.contains_key(&at) => {
                    let (dir, name) = self.above(entry)?;
                    renameat(stage, at.to_string(), &dir, name).map_err(|e| failed("replace", entry, e))?;
                    step();
                }
                Kind::File { .. } if live.is_some_and(|live| live.state == State::Metadata) => {
                    let (dir, name) = self.above(entry)?;
                    let file = sys::open_file(dir.as_fd(), name).map_err(|e| failed("open", entry, e))?;
                    self.builder.note_owner(meta::restore_to(file.as_fd(), entry, self.how)?);
                }
                // A link needs its written file, so links are created after all files.
                Kind::HardLink { to } if changed.contains_key(&(*to as usize)) => late.push((entry, *to as usize)),
                _ => {}
            }
        }
        for (entry, to) in late {
            let file = self.entries().get(to).ok_or_else(|| failed("link", entry, Errno::NOENT))?;
            let ((from, first), (dir, name)) = (self.above(file)?, self.above(entry)?);
            sys::remove_tree(dir.as_fd(), name).map_err(|e| failed("replace", entry, e))?;
            linkat(&from, first, &dir, name, AtFlags::empty()).map_err(|e| failed("link", entry, e))?;
        }
        Ok(())
    }

    /// Sets the metadata of the directories, after all changes to their entries, because such a change sets the times of a directory. The
    /// deepest directories come first, because the restored mode of a directory can deny access to the directories below.
    fn directories(&self, root: &[u8]) -> Result<()> {
        let entries = self.entries().iter().rev().filter(|entry| crate::entry::is_within(&entry.path, root));
        for entry in entries.filter(|entry| entry.kind == Kind::Directory) {
            let dir = sys::open_dir(self.base, &entry.path, true).map_err(|e| failed("open", entry, e))?;
            let stat = sys::stat_fd(&dir).map_err(|e| failed("look at", entry, e))?;
            let xattrs = meta::read_xattrs(dir.as_fd(), &entry.path, u64::MAX, self.how.capabilities)?;
            if !has_metadata(entry, &stat) || xattrs != entry.xattrs {
                self.builder.note_owner(meta::restore_to(dir.as_fd(), entry, self.how)?);
            }
        }
        Ok(())
    }
}
