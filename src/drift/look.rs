//! Compares the live tree of a slot with the manifest of the release. If the live tree is an overlay, only the entries in the scratch layer
//! are compared.

use std::{
    collections::HashSet,
    ffi::{OsStr, OsString},
    io::Read,
};

use larder_archive::{check_path, check_target};
use rustix::fs::{FileType, Stat};

use super::{Drift, Drifted, MAX_CHANGES, SavedAs, noise::Rules};
use crate::{
    host::files::{Confined, Cursor, FileError},
    model::{Entry, EntryKind},
    release::{ChangeKind, ReleaseError},
};

/// The maximum number of bytes that a comparison reads. After this limit, a file counts as unchanged if its size is the size in the
/// manifest.
const MAX_BYTES: u64 = 4 << 30;
/// The name of the marker file in a slot without an overlay. The file exists while the release's tree is being copied into the slot.
const MARK: &str = ".larder-filling";

/// The entries of a release. The entries must be sorted by path, because lookups use binary search.
pub struct KnownEntries<'e>(pub &'e [Entry]);

impl<'e> KnownEntries<'e> {
    /// Returns the entry at a path, or `None` if the release has no entry at the path.
    pub fn get(&self, path: &str) -> Option<&'e EntryKind> {
        let at = self.0.binary_search_by(|entry| entry.path.as_str().cmp(path)).ok()?;
        self.0.get(at).map(|entry| &entry.kind)
    }

    /// Returns all entries below a directory.
    fn below(&self, directory: &str) -> &'e [Entry] {
        let start = if directory.is_empty() { String::new() } else { format!("{directory}/") };
        let from = self.0.partition_point(|entry| entry.path.as_str() < start.as_str());
        let rest = self.0.get(from..).unwrap_or_default();
        let length = rest.partition_point(|entry| entry.path.starts_with(&start));
        rest.get(..length).unwrap_or_default()
    }

    /// Returns the entries directly in a directory.
    fn children(&self, directory: &str) -> impl Iterator<Item = &'e Entry> {
        let skip = if directory.is_empty() { 0 } else { directory.len() + 1 };
        self.below(directory).iter().filter(move |entry| !entry.path.get(skip..).unwrap_or_default().contains('/'))
    }
}

/// Compares the live tree `app` with `entries`. If `upper` is given, `app` is an overlay with the scratch layer `upper`, and only the
/// entries of the scratch layer are compared. All other entries of `app` come from the installed tree, which this function does not
/// compare.
pub fn look(app: &Confined, upper: Option<&Confined>, entries: &[Entry], rules: &Rules) -> Result<Drift, ReleaseError> {
    let mut look = Look {
        app,
        upper,
        known: KnownEntries(entries),
        rules,
        found: Vec::new(),
        left_out: 0,
        bytes: MAX_BYTES,
        made: Vec::new(),
    };
    let mut pending = vec![String::new()];
    while let Some(directory) = pending.pop() {
        look.directory(&directory, &mut pending);
    }
    let Look { mut found, mut left_out, mut made, .. } = look;
    made.sort();
    found.sort_by(|a, b| a.path.cmp(&b.path));
    // An added directory is listed only if no entry in the directory is listed.
    let empty: Vec<String> = made
        .iter()
        .filter(|path| {
            let inside = format!("{path}/");
            let next = found.partition_point(|change| change.path.as_str() < inside.as_str());
            let more = made.partition_point(|made| made.as_str() < inside.as_str());
            !rules.leads_to_data(path)
                && !found.get(next).is_some_and(|change| change.path.starts_with(&inside))
                && !made.get(more).is_some_and(|made| made.starts_with(&inside))
        })
        .cloned()
        .collect();
    for path in empty {
        match found.len() < MAX_CHANGES {
            true => found.push(change(path, None, Ok(EntryKind::Dir), rules)),
            false => left_out += 1,
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(Drift { changes: found, left_out })
}

struct Look<'a> {
    app: &'a Confined,
    upper: Option<&'a Confined>,
    known: KnownEntries<'a>,
    rules: &'a Rules,
    found: Vec<Drifted>,
    left_out: u64,
    /// The number of bytes that the comparison may still read.
    bytes: u64,
    /// The directories of `app` that the release does not contain.
    made: Vec<String>,
}

impl Look<'_> {
    fn directory(&mut self, directory: &str, pending: &mut Vec<String>) {
        let listed = self.app.open_dir(directory).and_then(|view| Ok((view.names()?, view)));
        let (names, view) = match listed {
            Ok(listed) => listed,
            // The comparison continues if a directory was removed during the comparison or is not readable.
            Err(error) => return self.note(directory.to_owned(), Err(odd(&error))),
        };
        let above: Option<HashSet<OsString>> = self
            .upper
            .map(|upper| upper.open_dir(directory).and_then(|dir| dir.names()).unwrap_or_default().into_iter().collect());
        let present: HashSet<&OsStr> = names.iter().map(OsString::as_os_str).collect();
        let known = KnownEntries(self.known.0);
        for entry in known.children(directory) {
            let name = entry.path.rsplit('/').next().unwrap_or_default();
            if !present.contains(OsStr::new(name)) {
                self.gone(&entry.path);
                self.note_gone(&entry.path);
            }
        }
        let mut cursor = view.cursor();
        for name in &names {
            if above.as_ref().is_some_and(|above| !above.contains(name)) || (directory.is_empty() && name == MARK) {
                continue;
            }
            let shown = name.to_string_lossy();
            let path = if directory.is_empty() { shown.into_owned() } else { format!("{directory}/{shown}") };
            if name.to_str().is_none() || check_path(path.as_bytes()).is_err() {
                self.note(path, Err("the name cannot be in a release"));
            } else if !self.rules.persists(&path) {
                self.compare_entry(&mut cursor, name, path, pending);
            }
        }
    }

    /// Compares the entry `name` of a directory with the manifest.
    fn compare_entry(&mut self, cursor: &mut Cursor<'_>, name: &OsStr, path: String, pending: &mut Vec<String>) {
        let known = self.known.get(&path);
        let now = match cursor.stat(name) {
            Ok(stat) => self.entry_kind(cursor, name, &stat, known),
            Err(error) => Err(odd(&error)),
        };
        if now == Ok(EntryKind::Dir) {
            pending.push(path.clone());
            match known {
                Some(EntryKind::Dir) => return,
                None => return self.made.push(path),
                Some(_) => {}
            }
        }
        if known == Some(&EntryKind::Dir) {
            self.gone(&path);
        }
        if known != now.as_ref().ok() || now.is_err() {
            self.note(path, now);
        }
    }

    /// Returns the kind of the entry with the status `stat`, or the reason why the entry cannot be saved.
    fn entry_kind(
        &mut self,
        cursor: &mut Cursor<'_>,
        name: &OsStr,
        stat: &Stat,
        known: Option<&EntryKind>,
    ) -> Result<EntryKind, &'static str> {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Ok(EntryKind::Dir),
            FileType::RegularFile => {
                let size = u64::try_from(stat.st_size).unwrap_or_default();
                let executable = stat.st_mode & 0o100 != 0;
                if self.bytes < size {
                    // A file with the size in the manifest counts as unchanged.
                    return match known {
                        Some(EntryKind::File { size: was, digest, .. }) if *was == size => {
                            Ok(EntryKind::File { size, digest: *digest, executable })
                        }
                        _ => Err("not compared: the comparison has reached its limit of 4 GiB"),
                    };
                }
                self.bytes -= size;
                let (size, digest) = hash(cursor, name, size).map_err(|error| odd(&error))?;
                Ok(EntryKind::File { size, digest, executable })
            }
            FileType::Symlink => {
                let target = cursor.read_link(name).map_err(|error| odd(&error))?;
                let target = check_target(std::os::unix::ffi::OsStrExt::as_bytes(target.as_os_str()));
                target
                    .map(|target| EntryKind::Link { target: target.to_owned() })
                    .map_err(|_| "the target of the symlink is not plain text")
            }
            FileType::Fifo | FileType::Socket => Err("a socket or FIFO"),
            _ => Err("a device"),
        }
    }

    /// Records that all entries of the release below a path were removed.
    fn gone(&mut self, path: &str) {
        let known = KnownEntries(self.known.0);
        for entry in known.below(path) {
            self.note_gone(&entry.path);
        }
    }

    fn note_gone(&mut self, path: &str) {
        if self.rules.persists(path) {
            return;
        }
        if self.found.len() >= MAX_CHANGES {
            self.left_out += 1;
            return;
        }
        let was = self.known.get(path).cloned();
        let is_dir = was == Some(EntryKind::Dir);
        let noise = self.rules.noise(path, is_dir, true).map(str::to_owned);
        self.found.push(Drifted {
            path: path.to_owned(),
            change: ChangeKind::Removed,
            was,
            now: None,
            odd: None,
            noise,
            kept: SavedAs::No,
        });
    }

    fn note(&mut self, path: String, now: Result<EntryKind, &'static str>) {
        if self.found.len() >= MAX_CHANGES {
            self.left_out += 1;
            return;
        }
        let was = self.known.get(&path).cloned();
        self.found.push(change(path, was, now, self.rules));
    }
}

fn change(path: String, was: Option<EntryKind>, now: Result<EntryKind, &'static str>, rules: &Rules) -> Drifted {
    let is_dir = now == Ok(EntryKind::Dir);
    let (now, odd) = match now {
        Ok(now) => (Some(now), None),
        Err(why) => (None, Some(why.to_owned())),
    };
    let running = odd.as_deref() == Some("a socket or FIFO") && was.is_none();
    let noise = rules.noise(&path, is_dir, was.is_some()).or(running.then_some("a file of a running process"));
    let way = if was.is_some() { ChangeKind::Changed } else { ChangeKind::Added };
    Drifted { path, change: way, was, now, odd, noise: noise.map(str::to_owned), kept: SavedAs::No }
}

fn odd(error: &FileError) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => "no permission to read the entry",
        std::io::ErrorKind::NotFound => "the entry was removed during the comparison",
        _ => "the entry cannot be read",
    }
}

/// Reads at most `size` bytes of a file. Returns the number and the digest of the bytes that were read. The number can be smaller than
/// `size`, because another process may write the file at the same time.
pub fn hash(cursor: &mut Cursor<'_>, name: &OsStr, size: u64) -> Result<(u64, crate::model::Digest), FileError> {
    let file = cursor.open(name)?;
    let mut file = file.take(size);
    let mut hasher = blake3::Hasher::new();
    let (mut buffer, mut total) = (vec![0; 1 << 16], 0);
    loop {
        let read = file.read(&mut buffer).map_err(|e| cursor.failed("read", name, e))?;
        if read == 0 {
            return Ok((total, hasher.finalize().into()));
        }
        total += read as u64;
        hasher.update(buffer.get(..read).unwrap_or_default());
    }
}
