//! Rebuilds the new entries from the old entries and the columns of a delta.

use std::fs::File;

use super::{
    DeltaError,
    entries::{ACTION, ADD, CHANGE, Columns, DIR, EXECUTABLE, KIND, KNOWN, LINK, PLAIN, REMOVE, size_of},
    format::{self, Outline},
    refused,
};
use crate::{ArchiveLimits, Digest, Entry, EntryKind, check_entries, pool::both, tree_digest};

/// The maximum size of all added paths together, in bytes.
const MAX_PATHS: usize = 256 << 20;

/// The new release of a delta, before its entries are rebuilt.
pub struct Changes {
    outline: Outline,
    columns: Columns,
    digests: Vec<u8>,
}

impl Changes {
    /// Reads and checks the outline of `delta` and the columns that describe the new entries. The delta must start from the release with
    /// the id `id` and the tree digest `tree`. `head` is the [head](super::DeltaEndpoint::head) of this old release; the columns are
    /// compressed against this head.
    pub fn read(delta: &File, id: &str, tree: &Digest, head: &[u8]) -> Result<Changes, DeltaError> {
        let outline = Outline::read(delta)?;
        outline.starts_from(id, tree)?;
        let columns: Columns = format::decode(&outline.read_columns(delta, head)?, "entries")?;
        let digests = outline.read_digests(delta)?;
        Ok(Changes { outline, columns, digests })
    }

    /// Returns the id of the new release, as text.
    pub fn id(&self) -> &str {
        &self.outline.target
    }

    /// Returns the digest of the new tree. [`Changes::entries`] refuses entries with a different digest.
    pub fn tree(&self) -> Digest {
        self.outline.target_tree.into()
    }

    /// Returns the head of the new release: the bytes that [`DeltaEndpoint::head`](super::DeltaEndpoint::head) had when the delta was
    /// made.
    pub fn head(&self) -> &[u8] {
        &self.columns.head
    }

    /// Rebuilds the new entries from the old entries. Returns an error if the columns contradict each other or the old entries. Also returns
    /// an error if [`check_entries`] refuses the new entries, or if their digest is not the tree digest of the delta.
    pub fn entries(self, old: Vec<Entry>) -> Result<Vec<Entry>, DeltaError> {
        let tree = self.tree();
        let entries = entries(self.columns, &self.digests, old)?;
        let (checked, digest) = both(|| check_entries(&entries, &ArchiveLimits::default()), || tree_digest(&entries));
        checked.map_err(format::accepted)?;
        if digest != tree {
            return Err(refused("its tree digest does not match its entries"));
        }
        Ok(entries)
    }
}

/// Returns the new list of entries, made from the old list and the columns.
pub(super) fn entries(columns: Columns, digests: &[u8], old: Vec<Entry>) -> Result<Vec<Entry>, DeltaError> {
    let mut reader = Reader {
        at: 0,
        paths: 0,
        new: Vec::with_capacity(old.len()),
        old,
        shared: columns.shared.iter(),
        names: &columns.names,
        sizes: columns.sizes.iter(),
        known: columns.known.iter(),
        targets: columns.targets.into_iter(),
        digests,
    };
    if columns.skips.len() != columns.changes.len() {
        return Err(contradiction());
    }
    for (what, skip) in columns.changes.iter().zip(&columns.skips) {
        reader.keep(*skip as usize)?;
        reader.change(*what).ok_or_else(contradiction)?;
    }
    reader.keep(reader.old.len().saturating_sub(reader.at))?;
    reader.finish()
}

fn contradiction() -> DeltaError {
    refused("its list of entries contradicts itself")
}

/// The unread rest of each column, and the finished part of the new list.
struct Reader<'a> {
    /// The old entries. If an entry before `at` was kept or changed, its path was moved to the new list.
    old: Vec<Entry>,
    at: usize,
    /// The size of the added paths, in bytes.
    paths: usize,
    new: Vec<Entry>,
    shared: std::slice::Iter<'a, (u32, u32)>,
    names: &'a str,
    sizes: std::slice::Iter<'a, i64>,
    known: std::slice::Iter<'a, u32>,
    targets: std::vec::IntoIter<String>,
    digests: &'a [u8],
}

impl Reader<'_> {
    /// Moves the next `count` old entries, which are unchanged, to the new list.
    fn keep(&mut self, count: usize) -> Result<(), DeltaError> {
        let end = self.at.checked_add(count).ok_or_else(contradiction)?;
        let kept = self.old.get_mut(self.at..end).ok_or_else(contradiction)?;
        self.new.extend(kept.iter_mut().map(|entry| Entry { path: std::mem::take(&mut entry.path), kind: entry.kind.clone() }));
        self.at = end;
        // A list that is too long is refused before the list fills the memory.
        if self.new.len() as u64 > ArchiveLimits::default().entries {
            return Err(refused("it has more entries than a release may have"));
        }
        Ok(())
    }

    /// Applies one change. Returns `None` if the columns contradict each other.
    fn change(&mut self, what: u8) -> Option<()> {
        let action = what & ACTION;
        let mut before = 0;
        let path = match action {
            REMOVE | CHANGE => {
                let was = self.old.get_mut(self.at)?;
                self.at += 1;
                if action == REMOVE {
                    return (what == REMOVE).then_some(());
                }
                before = size_of(Some(was));
                std::mem::take(&mut was.path)
            }
            ADD => self.path()?,
            _ => return None,
        };
        if what & !(ACTION | KIND | KNOWN) != 0 {
            return None;
        }
        let kind = match what & (KIND | KNOWN) {
            DIR => EntryKind::Dir,
            LINK => EntryKind::Link { target: self.targets.next()? },
            file if file & KIND == PLAIN || file & KIND == EXECUTABLE => {
                let size = before.checked_add(*self.sizes.next()?)?;
                EntryKind::File {
                    size: u64::try_from(size).ok()?,
                    digest: self.digest(file & KNOWN != 0)?,
                    executable: file & KIND == EXECUTABLE,
                }
            }
            _ => return None,
        };
        self.new.push(Entry { path, kind });
        Some(())
    }

    fn path(&mut self) -> Option<String> {
        let (shared, own) = self.shared.next()?;
        let (name, rest) = self.names.split_at_checked(*own as usize)?;
        self.names = rest;
        let before = self.new.last().map_or("", |entry| entry.path.as_str()).get(..*shared as usize)?;
        self.paths += before.len() + name.len();
        (self.paths <= MAX_PATHS).then(|| format!("{before}{name}"))
    }

    fn digest(&mut self, known: bool) -> Option<Digest> {
        if known {
            let entry = self.old.get(*self.known.next()? as usize)?;
            return if let EntryKind::File { digest, .. } = &entry.kind { Some(*digest) } else { None };
        }
        let (digest, rest) = self.digests.split_first_chunk::<32>()?;
        self.digests = rest;
        Some(Digest::from(*digest))
    }

    fn finish(self) -> Result<Vec<Entry>, DeltaError> {
        let used_up = self.shared.as_slice().is_empty()
            && self.names.is_empty()
            && self.sizes.as_slice().is_empty()
            && self.known.as_slice().is_empty()
            && self.targets.as_slice().is_empty()
            && self.digests.is_empty();
        if used_up { Ok(self.new) } else { Err(contradiction()) }
    }
}
