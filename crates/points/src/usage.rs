//! The space that restore points use, where shared files count once.

use std::{
    collections::{HashMap, hash_map::Entry},
    ffi::OsStr,
    os::{fd::AsFd, unix::ffi::OsStrExt},
};

use crate::{Digest, Kind, Point, PointError, Result, changes, contents::digests, store, store::CONTENTS, sys};

/// The space of one restore point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PointUsage {
    /// The id.
    pub id: String,
    /// The allocated bytes of all stored files and directories of the restore point, its index, its manifest and its checksums.
    pub bytes: u64,
    /// The part of `bytes` that no other restore point uses. A removal of the restore point frees this part.
    pub unique: u64,
}

/// The space of several restore points. Blocks that a file system shares by clones count for each file.
#[derive(Debug, Clone, Default)]
pub struct Usage {
    /// The restore points, in the given order.
    pub points: Vec<PointUsage>,
    /// The bytes of all restore points together, where shared files count once.
    pub total: u64,
    /// Sets of restore points, with the bytes that each restore point of the set and no other restore point uses. A set is a sorted list of
    /// positions in `points`.
    sets: Vec<(Vec<u32>, u64)>,
}

impl Usage {
    /// Returns the bytes that these restore points would use if all other restore points were removed.
    pub fn bytes_of(&self, ids: &[&str]) -> u64 {
        let is_given = |at: &u32| self.points.get(*at as usize).is_some_and(|point| ids.contains(&point.id.as_str()));
        self.sets.iter().filter(|(set, _)| set.iter().any(is_given)).map(|(_, bytes)| bytes).sum()
    }
}

/// Returns `None` for a missing content, which a verification reports.
fn stat_of_content(point: &Point, digest: Digest) -> Result<Option<sys::Stat>> {
    let Some(contents) = point.contents() else { return Ok(None) };
    match sys::stat_at(contents, OsStr::new(&digest.to_string())) {
        Ok(stat) => Ok(Some(stat)),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(other) => Err(PointError::io("look at", point.path().with_file_name(CONTENTS).join(digest.to_string()), other)),
    }
}

/// Returns the space that restore points use.
pub fn usage(points: &[&Point]) -> Result<Usage> {
    // The key is the device and the inode of a file. The value is the restore points that use the file, and its allocated bytes.
    let mut files: HashMap<(u64, u64), (Vec<u32>, u64)> = HashMap::new();
    // Most contents belong to several restore points, and are looked up once.
    let mut stored: HashMap<Digest, Option<sys::Stat>> = HashMap::new();
    let mut found = Vec::new();
    for (at, point) in points.iter().enumerate() {
        let at = u32::try_from(at).unwrap_or(u32::MAX);
        let mut bytes = 0_u64;
        let mut add = |stat: sys::Stat| {
            let (users, _) = files.entry((stat.dev, stat.ino)).or_insert_with(|| (Vec::new(), stat.allocated));
            if users.last() != Some(&at) {
                users.push(at);
                bytes = bytes.saturating_add(stat.allocated);
            }
        };
        for name in [store::INDEX, store::MANIFEST, store::CHECKSUMS, changes::BASE] {
            match sys::stat_at(point.fd.as_fd(), OsStr::new(name)) {
                Ok(stat) => add(stat),
                // A restore point with a whole index has no `base`.
                Err(rustix::io::Errno::NOENT) if name == changes::BASE => {}
                Err(other) => return Err(PointError::io("look at", point.path().join(name), other)),
            }
        }
        let entries = point.entries()?;
        if point.has_shared_contents() {
            if let Some(contents) = point.contents() {
                add(sys::stat_fd(contents).map_err(|e| PointError::io("look at", point.path().with_file_name(CONTENTS), e))?);
            }
            for digest in digests(&entries) {
                let stat = match stored.entry(digest) {
                    Entry::Occupied(known) => *known.get(),
                    Entry::Vacant(free) => *free.insert(stat_of_content(point, digest)?),
                };
                stat.into_iter().for_each(&mut add);
            }
        } else {
            let top = point.files()?;
            for entry in entries.iter().filter(|entry| matches!(entry.kind, Kind::File { .. } | Kind::Directory)) {
                // The path cannot lead out of the store, because no other user can write to the store, and the store has no links.
                match sys::stat_at(top.as_fd(), OsStr::from_bytes(&entry.path)) {
                    Ok(stat) => add(stat),
                    // Missing files are reported by a verification.
                    Err(rustix::io::Errno::NOENT) => {}
                    Err(other) => return Err(PointError::io("look at", OsStr::from_bytes(&entry.path), other)),
                }
            }
        }
        found.push(PointUsage { id: point.id().to_owned(), bytes, unique: 0 });
    }
    let mut sets: HashMap<Vec<u32>, u64> = HashMap::new();
    for (users, bytes) in files.into_values() {
        let sum = sets.entry(users).or_default();
        *sum = sum.saturating_add(bytes);
    }
    let total = sets.values().sum();
    for (users, bytes) in &sets {
        if let [only] = users.as_slice()
            && let Some(point) = found.get_mut(*only as usize)
        {
            point.unique += bytes;
        }
    }
    Ok(Usage { points: found, total, sets: sets.into_iter().collect() })
}
