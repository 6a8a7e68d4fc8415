//! Describes a long text as copies from an older version, with the new bytes between these copies. A text is any sequence of bytes.
//!
//! Two versions of a program mostly consist of the same runs of bytes at slightly different places. The search for the next run first
//! tries the place where the previous copy would continue, which is nearly always right. If this place does not match, the search uses
//! *marks*: windows of the older version at regular distances, found by their hash. A run is extended in both directions as far as both
//! texts are equal. Marks therefore need not be dense, and the search takes small steps only through new bytes.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{DeltaError, refused};

/// The minimum length of a copy, and the length of a compared window, in bytes.
const WINDOW: usize = 32;

/// The distance between marks in the older version, in bytes: [`NEAR`] if the version has at most [`SHORT`] bytes, otherwise [`FAR`]. The
/// marks are as dense as possible while all of them stay in the cache of the processor.
const NEAR: usize = 32;
const FAR: usize = 128;
const SHORT: usize = 8 << 20;

/// The step of the search after a failed comparison, in bytes. The step has no common factor with the distances between marks, so that the
/// search meets a mark in every long run.
const STEP: usize = 3;

/// The binary logarithm of the number of failed steps after which the step grows by one byte. New bytes mostly form long runs, through
/// which larger steps are faster.
const SPEED_UP_LOG: u32 = 5;

/// A run of new bytes, then a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Copy {
    /// The number of new bytes before the copy.
    own: u32,
    /// The number of bytes of the copy.
    length: u32,
    /// The shift of the copy, minus the shift of the previous copy if there is one. The shift of a copy is its offset in the older
    /// version, minus its offset in the text.
    moved: i32,
}

/// The description of a text.
#[derive(Debug)]
pub(super) struct Description {
    /// The new bytes, concatenated. New bytes after the last copy are at the end.
    own: Vec<u8>,
    copies: Vec<Copy>,
    /// The range of the older version that the copies use.
    taken: Range<usize>,
}

impl Description {
    /// Changes the copies so that they refer to [`Description::taken`] instead of the whole older version. Returns this range of the older
    /// version.
    pub fn narrow(&mut self) -> Range<usize> {
        let taken = self.taken.clone();
        if let Some(first) = self.copies.first_mut() {
            first.moved -= taken.start as i32;
        }
        self.taken = 0..taken.len();
        taken
    }

    /// Encodes the description: the number of new bytes, the new bytes, and the copies.
    pub fn bytes(&self) -> Result<Vec<u8>, DeltaError> {
        let mut bytes = Vec::with_capacity(self.own.len() + 6 * self.copies.len() + 8);
        let failed = |e: postcard::Error| refused(e.to_string());
        bytes = postcard::to_extend(&(self.own.len() as u32), bytes).map_err(failed)?;
        bytes.extend_from_slice(&self.own);
        for copy in &self.copies {
            bytes = postcard::to_extend(copy, bytes).map_err(failed)?;
        }
        Ok(bytes)
    }
}

/// The search for copies. All searches of a finder use the memory of one table.
#[derive(Debug, Default)]
pub(super) struct Finder {
    /// The table of marks. The index is the highest bits of the hash of a mark. The value consists of the lowest bits of the hash and,
    /// below these bits, the number of the mark, counted from 1. The value 0 stands for no mark.
    marks: Vec<u32>,
}

impl Finder {
    /// Describes `text` by copies from `old`. `shift` is the expected offset of the start of the text in `old`. Equal input gives
    /// equal descriptions.
    pub fn describe(&mut self, old: &[u8], text: &[u8], shift: i64) -> Description {
        let marks = Marks::set(&mut self.marks, old);
        let (mut own, mut copies, mut taken) = (Vec::new(), Vec::new(), old.len()..0);
        // `at`: the offset of the search in `text`. `described`: the length of the described part of `text`. `shift`: the shift of the
        // current copy. `before`: the shift of the previous copy. `misses`: the number of failed steps since the previous copy.
        let (mut at, mut described, mut shift, mut before, mut misses) = (0, 0, shift, 0, 0_usize);
        while let Some(window) = window(text, at) {
            let here = |from: usize| self::window(old, from) == Some(window);
            let same = moved(at, shift).filter(|from| here(*from));
            let Some(from) = same.or_else(|| marks.find(window).filter(|from| here(*from))) else {
                at += STEP + (misses >> SPEED_UP_LOG);
                misses += 1;
                continue;
            };
            let ahead = common_start(part(text, at, text.len()), part(old, from, old.len()));
            let behind = common_end(part(text, described, at), part(old, 0, from));
            own.extend_from_slice(part(text, described, at - behind));
            shift = from as i64 - at as i64;
            let (before_it, length) = ((at - behind - described) as u32, (behind + ahead) as u32);
            copies.push(Copy { own: before_it, length, moved: (shift - before) as i32 });
            taken = taken.start.min(from - behind)..taken.end.max(from + ahead);
            (before, misses) = (shift, 0);
            at += ahead;
            described = at;
        }
        own.extend_from_slice(part(text, described, text.len()));
        Description { own, taken: if copies.is_empty() { 0..0 } else { taken }, copies }
    }
}

/// Replaces the content of `into` by the text that `description` describes. Returns `None` if the description is invalid, or if the text
/// does not have exactly `length` bytes.
pub(super) fn copy(old: &[u8], description: &[u8], length: usize, into: &mut Vec<u8>) -> Option<()> {
    let (count, rest) = postcard::take_from_bytes::<u32>(description).ok()?;
    let (mut own, mut copies) = rest.split_at_checked(count as usize)?;
    into.clear();
    into.reserve(length);
    let mut shift = 0_i64;
    let give = |part: &[u8], into: &mut Vec<u8>| {
        into.extend_from_slice(part);
        (into.len() <= length).then_some(())
    };
    while !copies.is_empty() {
        let (copy, others) = postcard::take_from_bytes::<Copy>(copies).ok()?;
        copies = others;
        let (new, left) = own.split_at_checked(copy.own as usize)?;
        give(new, into)?;
        own = left;
        shift += i64::from(copy.moved);
        let from = moved(into.len(), shift)?;
        give(old.get(from..from.checked_add(copy.length as usize)?)?, into)?;
    }
    give(own, into)?;
    (into.len() == length).then_some(())
}

/// The number of bytes that are compared at once.
const BLOCK: usize = 32;

/// Returns the length of the common start of two texts.
pub(super) fn common_start(one: &[u8], other: &[u8]) -> usize {
    let blocks = one.as_chunks::<BLOCK>().0.iter().zip(other.as_chunks::<BLOCK>().0);
    let whole = blocks.take_while(|(one, other)| one == other).count() * BLOCK;
    let rest = one.iter().skip(whole).zip(other.iter().skip(whole));
    whole + rest.take_while(|(one, other)| one == other).count()
}

/// Returns the length of the common end of two texts.
pub(super) fn common_end(one: &[u8], other: &[u8]) -> usize {
    let blocks = one.as_rchunks::<BLOCK>().1.iter().rev().zip(other.as_rchunks::<BLOCK>().1.iter().rev());
    let whole = blocks.take_while(|(one, other)| one == other).count() * BLOCK;
    let rest = one.iter().rev().skip(whole).zip(other.iter().rev().skip(whole));
    whole + rest.take_while(|(one, other)| one == other).count()
}

/// The marks in the older version.
struct Marks<'a> {
    table: &'a [u32],
    /// The width of the index into the table, in bits. The index is the highest bits of the hash.
    index: u32,
    /// The width of the number of a mark, in bits. The number is the lowest bits of a value in the table.
    place: u32,
    distance: usize,
}

impl<'a> Marks<'a> {
    fn set(table: &'a mut Vec<u32>, old: &[u8]) -> Marks<'a> {
        let bits = |count: usize| count.next_power_of_two().trailing_zeros().clamp(1, 31);
        let distance = if old.len() > SHORT { FAR } else { NEAR };
        let count = old.len() / distance;
        // The table has two to four times as many cells as marks: few marks share a cell, and the table stays in the processor's cache.
        let (index, place) = (bits(2 * count), bits(count + 2));
        table.clear();
        table.resize(1 << index, 0);
        for (number, piece) in (1_u32..).zip(old.chunks_exact(distance)) {
            let Some(window) = piece.first_chunk() else { continue };
            let hash = hash(window);
            if let Some(mark) = table.get_mut((hash >> (32 - index)) as usize) {
                *mark = hash << place | number;
            }
        }
        Marks { table, index, place, distance }
    }

    /// Returns the offset of a mark in the older version. The mark has the same hash as `window`, but its bytes may differ.
    fn find(&self, window: &[u8; WINDOW]) -> Option<usize> {
        let hash = hash(window);
        let mark = *self.table.get((hash >> (32 - self.index)) as usize)?;
        let number = mark & !(u32::MAX << self.place);
        (mark == hash << self.place | number).then_some((number as usize).checked_sub(1)? * self.distance)
    }
}

fn hash(window: &[u8; WINDOW]) -> u32 {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let words = window.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
    (words.fold(FACTOR, |hash, word| (hash.rotate_left(29) ^ word).wrapping_mul(FACTOR)) >> 32) as u32
}

fn window(bytes: &[u8], at: usize) -> Option<&[u8; WINDOW]> {
    bytes.get(at..)?.first_chunk()
}

fn part(bytes: &[u8], from: usize, to: usize) -> &[u8] {
    bytes.get(from..to).unwrap_or_default()
}

fn moved(at: usize, shift: i64) -> Option<usize> {
    usize::try_from(i64::try_from(at).ok()?.checked_add(shift)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::noise;
    use proptest::prelude::*;

    fn description_of(old: &[u8], text: &[u8], shift: i64) -> Vec<u8> {
        let mut description = Finder::default().describe(old, text, shift);
        let (whole, taken) = (description.bytes().unwrap(), description.narrow());
        let narrow = description.bytes().unwrap();
        for (old, description) in [(old, &whole), (&old[taken], &narrow)] {
            let mut back = vec![7];
            assert_eq!(copy(old, description, text.len(), &mut back), Some(()));
            assert!(back == text);
        }
        narrow
    }

    #[test]
    fn moved_content_costs_a_few_bytes() {
        let old = noise(1, 1 << 20);
        assert!(description_of(&old, &old, 0).len() < 16);
        // Bytes were inserted, removed and moved.
        let text = [&old[..300_000], b"new", &old[300_000..500_000], &old[500_007..900_000], &old[100_000..200_000]].concat();
        for shift in [0, 5, -5, 1 << 40, i64::MIN] {
            let description = description_of(&old, &text, shift);
            assert!(description.len() < 600, "{} bytes at {shift}", description.len());
        }
        let other = noise(2, 1 << 20);
        let description = description_of(&old, &other, 0);
        assert!(description.len() < other.len() + 16, "{}", description.len());
    }

    #[test]
    fn frequent_small_changes_give_a_short_description() {
        let old = noise(3, 200_000);
        let mut text = old.clone();
        text.iter_mut().step_by(100).for_each(|byte| *byte ^= 1);
        // Each of the 2000 changes costs one new byte and at most five bytes for the encoded copy; the limit of 7 leaves a margin.
        assert!(description_of(&old, &text, 0).len() < 2000 * 7);
    }

    #[test]
    fn short_and_empty_texts_round_trip() {
        let old = noise(4, 100);
        for old in [&old[..], &old[..31], &old[..64], &[]] {
            for text in [old, &noise(4, 100)[..], &noise(5, 33), &[], b"x", &[0; 5000]] {
                description_of(old, text, 0);
            }
        }
    }

    #[test]
    fn invalid_description_is_refused() {
        let old = noise(6, 1000);
        let encode = |copies: &[Copy], own: &[u8]| {
            Description { copies: copies.to_vec(), own: own.to_vec(), taken: 0..0 }.bytes().unwrap()
        };
        let mut into = Vec::new();
        let whole = Copy { own: 0, length: 1000, moved: 0 };
        assert!(copy(&old, &encode(&[whole], b""), 1000, &mut into).is_some());
        for (bad, own, length) in [
            (whole, &b""[..], 999),
            (whole, b"", 1001),
            (whole, b"x", 1000),
            (Copy { length: 1001, ..whole }, b"", 1001),
            (Copy { moved: 1, ..whole }, b"", 1000),
            (Copy { moved: -1, ..whole }, b"", 1000),
            (Copy { own: 1, ..whole }, b"", 1001),
            (Copy { length: u32::MAX, moved: i32::MAX, ..whole }, b"", 1000),
        ] {
            assert!(copy(&old, &encode(&[bad], own), length, &mut into).is_none(), "{bad:?}");
        }
        assert!(copy(&old, &[], 0, &mut into).is_none() && copy(&old, &[255; 40], 1000, &mut into).is_none());
        // A short description can stand for a long text. The decoding stops soon after the expected length.
        let many = vec![Copy { own: 0, length: 1000, moved: -1000 }; 1000];
        assert!(copy(&old, &encode(&many, b""), 5000, &mut into).is_none() && into.len() <= 6000);
    }

    proptest! {
        #[test]
        fn any_text_round_trips(seed in any::<u64>(), cuts in prop::collection::vec((0usize..4000, 0usize..4000, prop::collection::vec(any::<u8>(), 0..50)), 0..20), shift in any::<i64>()) {
            let old = noise(seed, 4000);
            let mut text = Vec::new();
            for (from, to, new) in cuts {
                text.extend_from_slice(&old[from.min(to)..from.max(to)]);
                text.extend(new);
            }
            description_of(&old, &text, shift);
        }
    }
}
