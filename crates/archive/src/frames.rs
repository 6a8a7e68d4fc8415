//! The boundaries of frames, and the seek table at the end of an archive.
//!
//! A frame ends after an entry with a probability that is proportional to the size of the entry. A hash of the path serves as the random
//! number. The boundaries therefore depend only on paths and sizes: they are the same on every machine, and an added or changed entry
//! moves only the boundaries near it.

use std::ops::Range;

use super::{Item, header};
use crate::{ArchiveInfo, Digest, Frame};

/// The mean size of a frame in bytes. Smaller frames make it cheaper to bundle an edit; larger frames compress better.
const TARGET: u64 = 4 << 20;

/// The size in bytes below which the hash of a path does not end a frame.
const MIN: u64 = 1 << 20;

/// The maximum size of a frame, in bytes, unless the frame contains a single larger file.
pub(super) const MAX: u64 = 8 << 20;

/// Divides sorted items into frames. Returns at least one frame, which is empty if there are no items.
pub fn plan(items: &[Item]) -> Vec<Range<usize>> {
    let mut frames = Vec::new();
    let (mut start, mut weight) = (0, 0u64);
    for (at, item) in items.iter().enumerate() {
        let span = header::span(&item.path, &item.kind);
        if weight > 0 && weight + span > MAX {
            frames.push(start..at);
            (start, weight) = (at, 0);
        }
        weight += span;
        if weight >= MIN && draw(&item.path) < odds(span) {
            frames.push(start..at + 1);
            (start, weight) = (at + 1, 0);
        }
    }
    if start < items.len() || frames.is_empty() {
        frames.push(start..items.len());
    }
    frames
}

/// Returns a pseudo-random number that depends only on the path.
fn draw(path: &str) -> u64 {
    let mut bytes = [0; 8];
    for (to, from) in bytes.iter_mut().zip(Digest::of(path.as_bytes()).as_bytes()) {
        *to = *from;
    }
    u64::from_le_bytes(bytes)
}

/// Returns the number below which a [`draw`] ends the frame. `span` is the size of the last entry.
fn odds(span: u64) -> u64 {
    u64::try_from(u128::from(u64::MAX) * u128::from(span) / u128::from(TARGET)).unwrap_or(u64::MAX)
}

/// Returns the size before compression, in bytes, of a frame with these paths and shapes.
pub(super) fn raw_size<'a>(parts: impl Iterator<Item = (&'a str, header::Shape<'a>)>, last: bool) -> u64 {
    let spans: u64 = parts.map(|(path, shape)| header::span(path, shape)).sum();
    spans + if last { header::END as u64 } else { 0 }
}

/// Returns the paths and shapes of items, for [`raw_size`].
pub(super) fn parts(items: &[Item]) -> impl Iterator<Item = (&str, header::Shape<'_>)> {
    items.iter().map(|item| (item.path.as_str(), (&item.kind).into()))
}

/// Values that follow from the frames of an archive.
pub trait ArchiveInfoExt {
    /// Returns the description of an archive with these frames, and with 0 as the number of its settings.
    fn of_frames(frames: Vec<Frame>) -> ArchiveInfo;
    /// Returns the seek table, a skippable frame at the end of the archive.
    fn seek_table(&self) -> Vec<u8>;
}

impl ArchiveInfoExt for ArchiveInfo {
    fn of_frames(frames: Vec<Frame>) -> ArchiveInfo {
        let mut hasher = blake3::Hasher::new();
        for frame in &frames {
            hasher.update(frame.digest.as_bytes());
        }
        let data: u64 = frames.iter().map(|frame| frame.bytes).sum();
        let mut info = ArchiveInfo { digest: Digest::from(hasher.finalize()), bytes: 0, settings: 0, frames };
        info.bytes = data + info.seek_table().len() as u64;
        info
    }

    fn seek_table(&self) -> Vec<u8> {
        // The "zstd seekable format" has these little-endian fields: a magic number and the size of the table; the compressed and the raw
        // size of each frame; the number of frames, flags, and a second magic number.
        let low = |n: u64| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
        let count = self.frames.len() as u64;
        let mut table = Vec::new();
        table.extend_from_slice(&0x184D_2A5E_u32.to_le_bytes());
        table.extend_from_slice(&low(count * 8 + 9));
        for frame in &self.frames {
            table.extend_from_slice(&low(frame.bytes));
            table.extend_from_slice(&low(frame.raw));
        }
        table.extend_from_slice(&low(count));
        table.push(0);
        table.extend_from_slice(&0x8F92_EAB1_u32.to_le_bytes());
        table
    }
}

#[cfg(test)]
mod tests {
    use super::{super::ItemKind, *};

    fn items(count: usize) -> Vec<Item> {
        (0..count)
            .map(|n| Item {
                path: format!("f{n:06}"),
                kind: ItemKind::File { size: (n as u64 * 7919) % 40_000, digest: None, executable: false },
            })
            .collect()
    }

    #[test]
    fn plan_covers_all_items_within_the_frame_size() {
        let items = items(5000);
        let frames = plan(&items);
        assert!(frames.len() > 8, "{}", frames.len());
        let mut at = 0;
        for frame in &frames {
            assert_eq!(frame.start, at);
            assert!(raw_size(parts(&items[frame.clone()]), false) <= MAX);
            at = frame.end;
        }
        assert_eq!(at, items.len());
        assert_eq!(plan(&[]), vec![0..0]);
    }

    #[test]
    fn new_file_moves_only_nearby_boundaries() {
        let mut items = items(5000);
        let ends = |items: &[Item]| -> Vec<String> { plan(items).iter().map(|f| items[f.end - 1].path.clone()).collect() };
        let before = ends(&items);
        items.insert(2500, Item { path: "f002499x".into(), kind: ItemKind::File { size: 100, digest: None, executable: false } });
        let after = ends(&items);
        let moved = before.iter().filter(|end| !after.contains(end)).count();
        assert!(moved <= 2, "{moved} of {}", before.len());
    }

    #[test]
    fn large_file_has_its_own_frame() {
        let mut items = items(10);
        items[5].kind = ItemKind::File { size: MAX * 3, digest: None, executable: false };
        assert!(plan(&items).contains(&(5..6)));
    }
}
