//! The end of a capture: sorts the entries, and joins the several names (hard links) of one file.

use std::{collections::HashMap, os::fd::AsFd};

use super::file::{Capture, InodeName};
use crate::{Entry, Kind, LimitKind, PointError, Result, entry::order, index, pool::lock, sys, walk::Found};

impl Capture<'_> {
    /// Returns the sorted entries. If a file has several names, the entry that sorts first is the file, and the entries of the other names are
    /// hard links to this entry.
    pub(super) fn assemble(&self) -> Result<Vec<Entry>> {
        let mut names: HashMap<InodeName, Vec<Vec<u8>>> = HashMap::new();
        for (inode, path) in std::mem::take(&mut *lock(&self.more_names)) {
            names.entry(inode).or_default().push(path);
        }
        // Maps the path of each hard link to the path of its file. Positions of files are not known before all entries are sorted.
        let mut links: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
        let mut renamed: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
        for (inode, mut paths) in names {
            paths.sort_unstable_by(|a, b| order(a, b));
            paths.dedup();
            let holder = match lock(&self.inodes).get(&inode).cloned().flatten() {
                Some(holder) => holder,
                None => match self.orphan(&paths)? {
                    Some(holder) => holder,
                    None => continue,
                },
            };
            paths.retain(|path| *path != holder);
            let first = paths.first().filter(|first| order(first, &holder).is_lt()).cloned().unwrap_or_else(|| holder.clone());
            for path in paths.into_iter().chain([holder.clone()]).filter(|path| *path != first) {
                links.insert(path, first.clone());
            }
            if first != holder {
                renamed.insert(holder, first);
            }
        }
        let mut entries = std::mem::take(&mut *lock(&self.entries));
        for entry in &mut entries {
            if let Some(first) = renamed.get(&entry.path) {
                entry.path.clone_from(first);
            }
        }
        let order_entries = |entries: &mut Vec<Entry>| {
            // This sort is fast because the entries of each batch are sorted already.
            entries.sort_by(|a, b| order(&a.path, &b.path));
            entries.dedup_by(|a, b| a.path == b.path);
        };
        order_entries(&mut entries);
        let mut more = Vec::with_capacity(links.len());
        for (path, first) in &links {
            if let Some(file) = index::find(&entries, first) {
                more.push(Entry { path: path.clone(), kind: Kind::HardLink { to: 0 }, ..file.clone() });
            }
        }
        if !more.is_empty() {
            entries.append(&mut more);
            order_entries(&mut entries);
        }
        if u32::try_from(entries.len()).is_err() {
            let (what, seen, limit) = (LimitKind::Entries, entries.len() as u64, u32::MAX.into());
            return Err(PointError::Limit { what, seen, limit, path: "the index".into() });
        }
        let position = |path: &[u8]| entries.binary_search_by(|entry| order(&entry.path, path)).ok();
        let targets: Vec<(usize, u32)> =
            links.iter().filter_map(|(path, first)| Some((position(path)?, u32::try_from(position(first)?).ok()?))).collect();
        for (at, target) in targets {
            if let Some(Entry { kind: Kind::HardLink { to }, .. }) = entries.get_mut(at) {
                *to = target;
            }
        }
        Ok(entries)
    }

    /// Captures a file under one of `paths`. The walk found the file first under a name that is not in `paths`, but this name was removed
    /// before the file was read.
    fn orphan(&self, paths: &[Vec<u8>]) -> Result<Option<Vec<u8>>> {
        for path in paths {
            let (parent, name) = sys::split(path);
            let live = match sys::open_dir(self.walk.base, parent, self.options.cross_mounts) {
                Ok(live) => live,
                Err(error) => {
                    self.walk.skip_or_fail("open", path, error)?;
                    continue;
                }
            };
            let stat = match sys::stat_at(live.as_fd(), name) {
                Ok(stat) => stat,
                Err(error) => {
                    self.walk.skip_or_fail("look at", path, error)?;
                    continue;
                }
            };
            let found = Found { path: path.clone(), stat };
            let known = self.known(&mut index::Finder::default(), &found);
            if let Some(entry) = self.file(live.as_fd(), &found, known)? {
                lock(&self.entries).push(entry);
                return Ok(Some(path.clone()));
            }
        }
        Ok(None)
    }
}
