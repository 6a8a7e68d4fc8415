//! The new files that need patches, and the list of the patches of a delta.

use serde::{Deserialize, Serialize};

use super::{CONTEXT, DeltaError, MAX_COPIES, MAX_PART, MAX_REFERENCE, entries::Contents, refused};
use crate::{Entry, EntryKind, bounded};

/// The new files whose content comes from patches, because the old release does not have this content. Of several files with the same
/// content, the list contains only the first file. The maker and the reader of a delta compute the same list.
pub(super) struct Wanted {
    /// The indices of the files, in ascending order.
    pub entries: Vec<usize>,
    /// The indices of the files, by content.
    pub by_digest: Contents,
}

impl Wanted {
    /// Computes the list; `there` marks the unchanged entries of `new`. Returns an error if files with the same digest have different
    /// sizes. A copied file is checked only by its digest, so a false size would otherwise not be found.
    pub fn of(new: &[Entry], old: &[Entry], there: &[bool], known: &Contents) -> Result<Wanted, DeltaError> {
        let (mut entries, mut by_digest) = (Vec::new(), Contents::default());
        let changed = new.iter().enumerate().zip(there).filter(|(_, there)| !**there);
        for ((index, entry), _) in changed {
            let EntryKind::File { size: 1.., digest, .. } = &entry.kind else { continue };
            let same = match known.get(digest) {
                Some(known) => old.get(*known),
                None => new.get(*by_digest.entry(*digest).or_insert_with(|| {
                    entries.push(index);
                    index
                })),
            };
            if size(same) != size(Some(entry)) {
                return Err(refused(format!(
                    "the size of {:?} differs from the size of another file with the same content",
                    entry.path
                )));
            }
        }
        Ok(Wanted { entries, by_digest })
    }
}

/// One or more files that are patched together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PatchGroup {
    #[serde(deserialize_with = "bounded::entries")]
    pub members: Vec<Member>,
    /// The patches. A group with several members has one patch; a group with a single member has any number of patches.
    #[serde(deserialize_with = "bounded::entries")]
    pub parts: Vec<Part>,
}

/// A new file, which consists of the start of its base, the bytes from patches, and the end of its base.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Member {
    /// The number of wanted files between the previous member and this member. For the first member, the number of wanted files before
    /// it.
    pub skip: u32,
    /// The base: 0 for no base, 1 for the old file with the same path, otherwise the index of the old file plus 2.
    pub base: u32,
    /// The number of bytes at the start that equal the start of the base.
    pub head: u64,
    /// The number of bytes at the end that equal the end of the base.
    pub tail: u64,
}

/// An entry in the list of patches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Part {
    /// The size in the delta, in bytes.
    pub packed: u32,
    /// The size of the unpacked text, in bytes.
    pub raw: u32,
    /// The size of the unpacked description by copies (`copies.rs`), in bytes. The size is 0 for a text that is packed against the
    /// reference.
    pub told: u32,
    /// The digest of the bytes in the delta.
    pub digest: [u8; 32],
    /// The offset of the reference in the base. In a group with several members, the reference consists of the [`File::piece`] of each
    /// member, and this offset is 0.
    pub from: u64,
    /// The size of the reference, in bytes. In a group with several members, this size is 0.
    pub reference: u64,
}

/// A group whose indices have been resolved.
#[derive(Debug)]
pub(super) struct Resolved {
    pub members: Vec<File>,
    pub parts: Vec<Part>,
    /// The offset of the first patch in the delta.
    pub at: u64,
}

/// A resolved member of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct File {
    /// The index of the new entry.
    pub entry: usize,
    /// The size of the new file.
    pub size: u64,
    /// The index and the size of the base.
    pub base: Option<(usize, u64)>,
    pub head: u64,
    pub tail: u64,
}

impl File {
    /// Returns the number of bytes that come from patches.
    pub fn middle(&self) -> u64 {
        self.size - self.head - self.tail
    }

    /// Returns the offset and the length of the part of the base that the middle of a small file is compressed against.
    pub fn piece(&self) -> (u64, u64) {
        let Some((_, size)) = self.base else { return (0, 0) };
        if self.middle() == 0 {
            return (0, 0);
        }
        let from = self.head.saturating_sub(CONTEXT);
        let to = (size - self.tail).saturating_add(CONTEXT).min(size);
        (from, to - from)
    }
}

/// Returns the size of an entry that is a file, or `None` for other entries.
pub(super) fn size(entry: Option<&Entry>) -> Option<u64> {
    match entry.map(|entry| &entry.kind) {
        Some(EntryKind::File { size, .. }) => Some(*size),
        _ => None,
    }
}

/// Returns the index of the entry with this path.
pub(super) fn find(entries: &[Entry], path: &str) -> Option<usize> {
    entries.binary_search_by(|entry| entry.path.as_str().cmp(path)).ok()
}

/// Encodes the list of the groups of a delta.
pub(super) fn encode(groups: &[PatchGroup]) -> Result<Vec<u8>, DeltaError> {
    postcard::to_stdvec(groups).map_err(|e| refused(e.to_string()))
}

/// Decodes and resolves the list. Every wanted file must occur exactly once, and no group may need more memory than [`super::memory`]
/// allows. `at` is the offset of the patches, and `bytes` is their size.
pub(super) fn decode(
    list: &[u8],
    old: &[Entry],
    new: &[Entry],
    wanted: &Wanted,
    mut at: u64,
    bytes: u64,
) -> Result<Vec<Resolved>, DeltaError> {
    let contradiction = || refused("its list of patches contradicts itself");
    let unreadable = |e: postcard::Error| refused(format!("its list of patches cannot be read: {e}"));
    let (count, mut list) = postcard::take_from_bytes::<u64>(list).map_err(unreadable)?;
    let end = at.checked_add(bytes).ok_or_else(contradiction)?;
    let mut seen = vec![false; wanted.entries.len()];
    let mut resolved = Vec::new();
    for _ in 0..count {
        // Groups are decoded one at a time. A short list can contain very many members, but decoding stops at the first repeated file.
        let (group, rest) = postcard::take_from_bytes::<PatchGroup>(list).map_err(unreadable)?;
        list = rest;
        let mut members = Vec::with_capacity(group.members.len());
        let mut next = 0usize;
        for member in &group.members {
            next = next.checked_add(member.skip as usize).ok_or_else(contradiction)?;
            match seen.get_mut(next) {
                Some(seen) if !*seen => *seen = true,
                _ => return Err(contradiction()),
            }
            let entry = *wanted.entries.get(next).ok_or_else(contradiction)?;
            members.push(file(member, entry, old, new).ok_or_else(contradiction)?);
            next += 1;
        }
        check(&members, &group.parts).ok_or_else(contradiction)?;
        let start = at;
        for part in &group.parts {
            at = at.checked_add(u64::from(part.packed)).filter(|at| *at <= end).ok_or_else(contradiction)?;
        }
        resolved.push(Resolved { members, parts: group.parts, at: start });
    }
    if at != end || seen.contains(&false) || !list.is_empty() {
        return Err(contradiction());
    }
    Ok(resolved)
}

/// Resolves a member of a group. Returns `None` if the member contradicts the entries.
pub(super) fn file(member: &Member, entry: usize, old: &[Entry], new: &[Entry]) -> Option<File> {
    let new_size = size(new.get(entry))?;
    let base = match member.base {
        0 => None,
        1 => Some(find(old, &new.get(entry)?.path)?),
        other => Some(other as usize - 2),
    };
    let base = match base {
        Some(index) => Some((index, size(old.get(index))?)),
        None => None,
    };
    let shared = member.head.checked_add(member.tail)?;
    (shared <= new_size.min(base.map_or(0, |(_, size)| size))).then_some(File {
        entry,
        size: new_size,
        base,
        head: member.head,
        tail: member.tail,
    })
}

/// Checks the sizes of members and parts. Returns `None` if the sizes contradict each other or exceed the limits of memory.
fn check(members: &[File], parts: &[Part]) -> Option<()> {
    let middles = members.iter().try_fold(0u64, |sum, file| sum.checked_add(file.middle()))?;
    let raw: u64 = parts.iter().map(|part| u64::from(part.raw)).sum();
    let small = |part: &Part| {
        u64::from(part.raw) <= MAX_PART && u64::from(part.told) <= MAX_COPIES && u64::from(part.packed) <= MAX_PART + (1 << 20)
    };
    if middles != raw || !parts.iter().all(small) {
        return None;
    }
    if let [file] = members {
        let size = file.base.map_or(0, |(_, size)| size);
        let inside = |part: &Part| part.from.checked_add(part.reference).is_some_and(|end| end <= size);
        return parts.iter().all(|part| inside(part) && part.reference <= MAX_REFERENCE).then_some(());
    }
    let pieces = members.iter().try_fold(0u64, |sum, file| sum.checked_add(file.piece().1))?;
    let by_rule = |part: &Part| part.from == 0 && part.reference == 0;
    (members.len() > 1 && parts.len() == 1 && parts.iter().all(by_rule) && pieces <= MAX_REFERENCE).then_some(())
}
