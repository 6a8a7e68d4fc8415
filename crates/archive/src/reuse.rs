//! The frames that can be copied from the previous archive.

use std::{collections::HashMap, fs::File, ops::Range, os::unix::fs::FileExt};

use super::{CHUNK, Item, ItemKind, Previous, settings};
use crate::{Digest, Entry, EntryKind, Frame};

/// The frames of the previous archive, by the path of their first entry.
pub(super) struct Reuse<'a> {
    items: &'a [Item],
    file: &'a File,
    by_first: HashMap<&'a str, (Frame, &'a [Entry], bool)>,
}

/// A frame of the previous archive that has the same paths, kinds, modes and sizes as a new frame.
#[derive(Clone, Copy)]
pub(super) struct FrameCandidate<'a> {
    frame: Frame,
    file: &'a File,
    entries: &'a [Entry],
}

impl<'a> Reuse<'a> {
    pub(super) fn new(previous: Previous<'a>, items: &'a [Item]) -> Option<Reuse<'a>> {
        let found = previous.file.metadata().ok()?.len();
        if found != previous.info.bytes {
            return None; // the file is truncated or overwritten
        }
        if !settings::compresses_like(previous.info) {
            return None; // the same content has other bytes with the current settings
        }
        let mut by_first = HashMap::new();
        let (mut at, count) = (0usize, previous.info.frames.len());
        for (index, frame) in previous.info.frames.iter().enumerate() {
            let end = at.checked_add(frame.entries as usize)?;
            let entries = previous.entries.get(at..end)?;
            at = end;
            if let Some(first) = entries.first() {
                by_first.insert(first.path.as_str(), (*frame, entries, index + 1 == count));
            }
        }
        Some(Reuse { items, file: previous.file, by_first })
    }

    pub(super) fn candidate(&self, range: Range<usize>, last: bool) -> Option<FrameCandidate<'a>> {
        let items = self.items.get(range)?;
        let (frame, entries, was_last) = self.by_first.get(items.first()?.path.as_str())?;
        let same = *was_last == last && entries.len() == items.len();
        let same = same && items.iter().zip(*entries).all(|(item, entry)| may_be(item, entry));
        same.then_some(FrameCandidate { frame: *frame, file: self.file, entries })
    }
}

/// Returns true if an item may equal an entry, as far as this is known without reading the file.
fn may_be(item: &Item, entry: &Entry) -> bool {
    item.path == entry.path
        && match (&item.kind, &entry.kind) {
            (ItemKind::Dir, EntryKind::Dir) => true,
            (ItemKind::Link { target: a }, EntryKind::Link { target: b }) => a == b,
            (ItemKind::File { size: a, digest, executable: x }, EntryKind::File { size: b, digest: known, executable: y }) => {
                a == b && x == y && digest.is_none_or(|digest| digest == *known)
            }
            _ => false,
        }
}

impl FrameCandidate<'_> {
    /// Returns the frame if its bytes still have their digest. Without this check, a frame that the disk has damaged would be copied into
    /// the next archive, and from that archive into all later archives. `buffer` is overwritten.
    pub(super) fn intact(&self, buffer: &mut Vec<u8>) -> Option<Frame> {
        let (mut hasher, mut done) = (blake3::Hasher::new(), 0);
        while done < self.frame.bytes {
            buffer.resize(usize::try_from(self.frame.bytes - done).unwrap_or(usize::MAX).min(CHUNK), 0);
            self.file.read_exact_at(buffer, self.frame.offset.checked_add(done)?).ok()?;
            hasher.update(buffer);
            done += buffer.len() as u64;
        }
        (Digest::from(hasher.finalize()) == self.frame.digest).then_some(self.frame)
    }

    /// Returns the digest of each file, and `None` for each entry that is not a file.
    pub(super) fn digests(&self) -> Vec<Option<Digest>> {
        self.entries
            .iter()
            .map(|entry| if let EntryKind::File { digest, .. } = &entry.kind { Some(*digest) } else { None })
            .collect()
    }
}
