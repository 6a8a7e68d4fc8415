//! The expected content of every directory of the target.

use std::{
    collections::HashMap,
    ffi::OsStr,
    os::{fd::BorrowedFd, unix::ffi::OsStrExt},
};

use larder_archive::{Confined, Entry, EntryKind};

use crate::{DataLink, FileStamp};

/// An expected entry of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpectedKind {
    /// A directory. `required` is false for a parent directory of a data link that the release does not contain.
    Directory { required: bool },
    /// The file with this index in the entries of the release.
    File(usize),
    /// The symlink with this index in the entries of the release.
    Symlink(usize),
    /// A data link, which stays.
    Data,
}

/// A name in a directory, with the expected entry.
#[derive(Debug, Clone, Copy)]
pub struct ExpectedChild<'a> {
    pub name: &'a str,
    pub kind: ExpectedKind,
}

/// A directory of the target, whose path is relative to the target. The top directory has the empty path.
#[derive(Debug)]
pub struct PlannedDirectory<'a> {
    pub path: &'a str,
    /// The number of this directory in [`TreePlan::directories`].
    pub number: usize,
    /// False for a parent directory of a data link that the release does not contain.
    pub required: bool,
    /// The expected entries, sorted by the bytes of their names.
    pub children: Vec<ExpectedChild<'a>>,
}

impl<'a> PlannedDirectory<'a> {
    /// Returns the number and the expected entry of a name.
    pub fn find(&self, name: &[u8]) -> Option<(usize, &ExpectedChild<'a>)> {
        let at = self.children.binary_search_by(|child| child.name.as_bytes().cmp(name)).ok()?;
        Some((at, self.children.get(at)?))
    }
}

/// A file or symlink of the release, which is compared after all directories exist.
#[derive(Debug, Clone, Copy)]
pub struct PlannedItem {
    /// The number of the directory in [`TreePlan::directories`].
    pub directory: usize,
    /// The number of the entry in [`PlannedDirectory::children`].
    pub child: usize,
    /// True if the directory has an entry with this name.
    pub exists: bool,
}

/// A file or symlink of the target that is compared or replaced.
pub struct Place<'a> {
    pub dir: BorrowedFd<'a>,
    /// The path of `dir`, for messages.
    pub parent: &'a str,
    pub name: &'a OsStr,
    /// The path of the entry.
    pub path: &'a str,
}

/// The expected properties of a file.
pub struct ExpectedFile {
    pub size: u64,
    pub digest: larder_archive::Digest,
    pub mode: u32,
    pub known: Option<FileStamp>,
}

/// The expected directories of the target, upper directories first.
#[derive(Debug)]
pub struct TreePlan<'a> {
    pub directories: Vec<PlannedDirectory<'a>>,
    /// The number of expected entries of the release.
    pub expected: u64,
}

impl<'a> TreePlan<'a> {
    /// Returns the plan for the sorted `entries`. The links in `data` exist in the target and stay.
    pub fn new(entries: &'a [Entry], data: &[&'a DataLink]) -> TreePlan<'a> {
        let mut building = Building { directories: Vec::new(), numbers: HashMap::new() };
        building.directory("", true);
        let is_hidden = |path: &str| {
            data.iter()
                .any(|link| path.strip_prefix(link.path.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
        };
        let mut expected = 0;
        for (index, entry) in entries.iter().enumerate() {
            if !data.is_empty() && is_hidden(&entry.path) {
                continue;
            }
            expected += 1;
            match entry.kind {
                EntryKind::Dir => drop(building.directory(&entry.path, true)),
                EntryKind::File { .. } => building.child(&entry.path, ExpectedKind::File(index), true),
                EntryKind::Link { .. } => building.child(&entry.path, ExpectedKind::Symlink(index), true),
            }
        }
        for link in data {
            building.child(&link.path, ExpectedKind::Data, false);
        }
        let mut directories = building.directories;
        for directory in &mut directories {
            directory.children.sort_by_key(|child| child.name.as_bytes());
            // A file of the release at the path of a parent directory of a data link comes first and stays.
            directory.children.dedup_by_key(|child| child.name);
        }
        directories.sort_by_key(|directory| depth(directory.path));
        for (number, directory) in directories.iter_mut().enumerate() {
            directory.number = number;
        }
        TreePlan { directories, expected }
    }

    /// Returns the directories of each depth, starting with the top directory.
    pub fn levels(&self) -> impl Iterator<Item = &[PlannedDirectory<'a>]> {
        self.directories.chunk_by(|one, other| depth(one.path) == depth(other.path))
    }
}

/// Returns the number of directories from the top directory to `path`.
fn depth(path: &str) -> usize {
    if path.is_empty() { 0 } else { path.bytes().filter(|byte| *byte == b'/').count().saturating_add(1) }
}

struct Building<'a> {
    directories: Vec<PlannedDirectory<'a>>,
    numbers: HashMap<&'a str, usize>,
}

impl<'a> Building<'a> {
    /// Returns the number of the directory at `path`. Adds the directory and its missing parents.
    fn directory(&mut self, path: &'a str, required: bool) -> usize {
        if let Some(number) = self.numbers.get(path) {
            return *number;
        }
        let number = self.directories.len();
        self.numbers.insert(path, number);
        self.directories.push(PlannedDirectory { path, number, required, children: Vec::new() });
        if !path.is_empty() {
            self.child(path, ExpectedKind::Directory { required }, required);
        }
        number
    }

    fn child(&mut self, path: &'a str, kind: ExpectedKind, required: bool) {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let parent = self.directory(parent, required);
        if let Some(parent) = self.directories.get_mut(parent) {
            parent.children.push(ExpectedChild { name, kind });
        }
    }
}

/// Returns the data links that exist in the target.
pub fn present<'a>(target: &Confined, data: &'a [DataLink]) -> Vec<&'a DataLink> {
    let exists = |link: &&DataLink| {
        let is_plain = link.path.split('/').all(|part| !matches!(part, "" | "." | ".."));
        let read = || target.cursor().read_link(OsStr::from_bytes(link.path.as_bytes()));
        is_plain && read().is_ok_and(|found| found == link.target.as_str())
    };
    data.iter().filter(exists).collect()
}
