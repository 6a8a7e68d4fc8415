//! The listing of a built tree.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
};

use larder_archive::{ArchiveError, BadPath, Item, ItemKind, Limits, check_path, check_target};
use rustix::fs::{FileType, Stat};

use super::{ReleaseError, ignored, walk};
use crate::{
    host::files::{Confined, Cursor},
    model::{SourceEntry, SourceKind, SourceList},
};

/// What a built tree holds: `app` is the tree itself; with `source` (the list of what was exported) and `upper` (the overlay's
/// upper directory) only the directories that the build changed are looked into, and digests of exported files are taken from
/// the list. `.larderignore` is applied. What is dropped is said in `warnings`. Without a list, `threads` threads look.
pub fn listing(
    app: &Confined,
    source: Option<SourceList>,
    upper: Option<&Confined>,
    threads: usize,
    warnings: &mut Warnings,
) -> Result<Vec<Item>, ReleaseError> {
    let mut items = match (source, upper) {
        (Some(source), Some(upper)) => merged(app, source, upper, warnings)?,
        _ => walk::walk(app, OsString::new(), 0, threads, warnings)?,
    };
    ignored::apply(app, &mut items)?;
    Ok(items)
}

/// Lines for the log of a deployment; a bounded number of them.
#[derive(Debug, Default)]
pub struct Warnings(Vec<String>, u64);

impl Warnings {
    const MAX: usize = 50;

    /// Adds a line.
    pub fn add(&mut self, line: String) {
        if self.0.len() < Self::MAX { self.0.push(line) } else { self.1 += 1 }
    }

    /// Takes over what another one holds.
    pub(super) fn take(&mut self, other: Warnings) {
        other.0.into_iter().for_each(|line| self.add(line));
        self.1 += other.1;
    }

    /// All lines, and one that counts the rest.
    pub fn into_lines(mut self) -> Vec<String> {
        if self.1 > 0 {
            self.0.push(format!("... and {} more", self.1));
        }
        self.0
    }
}

type Found = BTreeMap<String, ItemKind>;

/// Walks the directories that exist in `upper` only. What they hold is taken from the *merged* view, whose names are the truth
/// whatever kind of whiteout or opaque mark the overlay uses (an unprivileged worker could not even read some of them). All
/// other directories are as the export left them.
fn merged(app: &Confined, source: SourceList, upper: &Confined, warnings: &mut Warnings) -> Result<Vec<Item>, ReleaseError> {
    let mut found: Found = source.entries.into_iter().map(exported).collect();
    let mut pending = vec![OsString::new()];
    while let Some(directory) = pending.pop() {
        let above = upper.open_dir(&directory)?;
        let view = app.open_dir(&directory)?;
        let changed: std::collections::HashSet<OsString> = above.names()?.into_iter().collect();
        let names = view.names()?;
        // What the merged view no longer has, the build deleted.
        let prefix = directory.to_string_lossy();
        let kept: std::collections::HashSet<&OsStr> = names.iter().map(OsString::as_os_str).collect();
        for name in children(&found, &prefix) {
            if !kept.contains(OsStr::new(&name)) {
                forget(&mut found, &join(&prefix, &name));
            }
        }
        let mut here = view.cursor();
        let mut there = above.cursor();
        for name in &names {
            let path = checked(&directory, name)?;
            if !changed.contains(name) && found.contains_key(&path) {
                continue;
            }
            let stat = here.stat(name)?;
            let was_dir = matches!(found.get(&path), Some(ItemKind::Dir));
            let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if was_dir && !is_dir {
                forget(&mut found, &path);
            }
            match classify(&path, &stat, &mut here, name, warnings)? {
                Some(kind) => found.insert(path.clone(), kind),
                None => found.remove(&path),
            };
            if is_dir {
                let in_upper = changed.contains(name)
                    && there.stat(name).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
                if in_upper {
                    pending.push(path.into());
                } else {
                    // A directory from below that the list does not know: look for ourselves.
                    walk(app, path.into(), &mut found, warnings)?;
                }
            }
        }
        few_enough(found.len() as u64)?;
    }
    Ok(found.into_iter().map(|(path, kind)| Item { path, kind }).collect())
}

/// Asked after every directory, so that a build's million of files costs no more than that.
pub(super) fn few_enough(count: u64) -> Result<(), ReleaseError> {
    let limit = Limits::default().entries;
    if count <= limit {
        return Ok(());
    }
    Err(ReleaseError::Archive { doing: "written", source: ArchiveError::TooManyEntries { count, limit } })
}

fn exported(entry: SourceEntry) -> (String, ItemKind) {
    let kind = match entry.kind {
        SourceKind::Dir => ItemKind::Dir,
        SourceKind::File { size, digest, executable, .. } => ItemKind::File { size, digest: Some(digest), executable },
        SourceKind::Link { target } => ItemKind::Link { target },
    };
    (entry.path, kind)
}

fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() { name.to_owned() } else { format!("{parent}/{name}") }
}

/// The names directly in a directory.
fn children(found: &Found, directory: &str) -> Vec<String> {
    let start = if directory.is_empty() { String::new() } else { format!("{directory}/") };
    let mut names = Vec::new();
    let mut from = std::ops::Bound::Included(start.clone());
    // Jump over what each child holds, so that a directory costs what is directly in it.
    while let Some((path, _)) = found.range((from.clone(), std::ops::Bound::Unbounded)).next() {
        let Some(rest) = path.strip_prefix(&start) else { break };
        match rest.split_once('/') {
            // '0' follows '/': the first path behind everything below.
            Some((name, _)) => from = std::ops::Bound::Included(format!("{start}{name}0")),
            None => {
                names.push(rest.to_owned());
                from = std::ops::Bound::Excluded(path.clone());
            }
        }
    }
    names
}

/// Forgets a path and everything below it.
fn forget(found: &mut Found, path: &str) {
    found.remove(path);
    let below: Vec<String> = found.range(format!("{path}/")..format!("{path}0")).map(|(path, _)| path.clone()).collect();
    for path in below {
        found.remove(&path);
    }
}

fn walk(app: &Confined, from: OsString, found: &mut Found, warnings: &mut Warnings) -> Result<(), ReleaseError> {
    found.extend(walk::walk(app, from, found.len() as u64, 1, warnings)?.into_iter().map(|item| (item.path, item.kind)));
    Ok(())
}

pub(super) fn checked(directory: &OsStr, name: &OsStr) -> Result<String, ReleaseError> {
    let mut path = directory.to_owned();
    if !path.is_empty() {
        path.push("/");
    }
    path.push(name);
    let unfit = |why: BadPath| {
        let (why, hint) = match why {
            BadPath::NotUtf8 => ("its name is not UTF-8", "rename it, or let the build delete it"),
            BadPath::Long => ("its path has more than 4096 bytes", "make the directories less deep"),
            BadPath::LongPart => ("its name has more than 255 bytes", "rename it"),
            _ => ("its name holds a control character", "rename it, or let the build delete it"),
        };
        ReleaseError::Unfit { path: path.to_string_lossy().chars().take(300).collect(), why, hint }
    };
    check_path(path.as_bytes()).map(str::to_owned).map_err(unfit)
}

/// What a file of the tree becomes in the release; `None` for what is left out.
pub(super) fn classify(
    path: &str,
    stat: &Stat,
    here: &mut Cursor<'_>,
    name: &OsStr,
    warnings: &mut Warnings,
) -> Result<Option<ItemKind>, ReleaseError> {
    let unfit = |why, hint| Err(ReleaseError::Unfit { path: path.to_owned(), why, hint });
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => ItemKind::Dir,
        FileType::RegularFile if stat.st_mode & 0o6000 != 0 => {
            return unfit("it is set-user-id or set-group-id", "let the build remove those mode bits: chmod u-s,g-s");
        }
        FileType::RegularFile => ItemKind::File {
            size: u64::try_from(stat.st_size).unwrap_or_default(),
            digest: None,
            executable: stat.st_mode & 0o100 != 0,
        },
        FileType::Symlink => {
            let target = here.read_link(name)?;
            match check_target(target.as_bytes()) {
                Ok(target) => ItemKind::Link { target: target.to_owned() },
                Err(_) => return unfit("its target is not plain UTF-8 text", "let the build delete the link"),
            }
        }
        FileType::Socket | FileType::Fifo => {
            warnings.add(format!("left out {path}: sockets and FIFOs are not part of a release"));
            return Ok(None);
        }
        _ => return unfit("it is a device", "let the build delete it"),
    };
    Ok(Some(kind))
}
