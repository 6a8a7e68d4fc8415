//! Makes the patches of changed files.

use std::ops::Range;

use super::{
    DeltaError, MAX_REFERENCE,
    copies::{Description, Finder, common_end, common_start},
    format,
    groups::{self, Part},
    source::{Store, StoreReader},
};
use crate::{Digest, patch::pack};

/// A wanted file with its base, and its position in the list of wanted files.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pair {
    pub place: usize,
    pub file: groups::File,
}

/// A patch and its entry in the list.
pub(super) struct TextPatch {
    pub part: Part,
    pub packed: Vec<u8>,
}

impl TextPatch {
    /// Packs a description that consists of copies. The described text has `raw` bytes.
    fn of_copies(description: &Description, raw: usize, from: u64, reference: u64) -> Result<TextPatch, DeltaError> {
        let bytes = description.bytes()?;
        let packed = pack(&bytes, 0, if bytes.len() > MAX_LITTLE { -1 } else { 3 }).map_err(format::written)?;
        let digest = *Digest::of(&packed).as_bytes();
        let (told, raw) = (bytes.len() as u32, raw as u32);
        Ok(TextPatch { part: Part { packed: packed.len() as u32, told, raw, digest, from, reference }, packed })
    }
}

/// The readers and buffers of one thread that makes patches.
pub(super) struct PatchWorker<'a> {
    old: StoreReader<'a>,
    new: StoreReader<'a>,
    /// The old version of a file, or a part of it.
    was: Vec<u8>,
    /// The new version of a file.
    is: Vec<u8>,
    /// The reference. When a text is packed, the text follows the reference.
    both: Vec<u8>,
    /// The text to pack.
    text: Vec<u8>,
    finder: Finder,
}

impl<'a> PatchWorker<'a> {
    pub fn new((old, new): &'a (Store<'_>, Store<'_>)) -> PatchWorker<'a> {
        let (old, new) = (old.reader(), new.reader());
        PatchWorker { old, new, was: Vec::new(), is: Vec::new(), both: Vec::new(), text: Vec::new(), finder: Finder::default() }
    }

    /// Patches the middles of small files against the middles of their bases.
    pub fn batch(&mut self, pairs: &[Pair]) -> Result<(Vec<Pair>, Option<TextPatch>), DeltaError> {
        self.both.clear();
        self.text.clear();
        let mut done = Vec::with_capacity(pairs.len());
        for pair in pairs {
            let mut file = pair.file;
            self.new.open(file.entry)?.whole(&mut self.is)?;
            match file.base {
                Some((index, _)) => self.old.open(index)?.whole(&mut self.was)?,
                None => self.was.clear(),
            }
            file.head = common_start(&self.was, &self.is) as u64;
            let left = self.was.len().min(self.is.len()) - file.head as usize;
            let last = |bytes: &[u8]| (bytes.len() - left) as u64;
            file.tail =
                common_end(part(&self.was, last(&self.was), left as u64), part(&self.is, last(&self.is), left as u64)) as u64;
            let (from, count) = file.piece();
            self.both.extend_from_slice(part(&self.was, from, count));
            self.text.extend_from_slice(part(&self.is, file.head, file.middle()));
            done.push(Pair { file, ..*pair });
        }
        if let [pair] = done.as_mut_slice() {
            // The list of patches contains the range of the reference only for a single file.
            let (from, reference) = pair.file.piece();
            return Ok((done, self.pack(from, reference)?));
        }
        Ok((done, Some(self.pack_always(0, 0)?)))
    }

    /// Checks the digest of a file, or of its base if `base` is true.
    pub fn verify(&mut self, file: &groups::File, base: bool) -> Result<(), DeltaError> {
        let content = match file.base {
            Some((index, _)) if base => self.old.open(index)?,
            _ => self.new.open(file.entry)?,
        };
        content.verify(&mut self.is)
    }

    /// Patches a part of a large file against the bytes around the same place in its base.
    pub fn part(&mut self, pair: &Pair, range: &Range<u64>) -> Result<Option<TextPatch>, DeltaError> {
        let (from, reference) = neighbourhood(&pair.file, range);
        self.text.clear();
        self.new.open(pair.file.entry)?.append(range.start, range.end - range.start, &mut self.text)?;
        let Some((index, _)) = pair.file.base.filter(|_| reference > 0) else {
            self.both.clear();
            return self.pack(0, 0);
        };
        self.was.clear();
        self.old.open(index)?.append(from, reference, &mut self.was)?;
        let shift = range.start.cast_signed() - from.cast_signed();
        let mut description = self.finder.describe(&self.was, &self.text, shift);
        let taken = description.narrow();
        let (from, reference) = (from + taken.start as u64, taken.len() as u64);
        TextPatch::of_copies(&description, self.text.len(), from, reference).map(Some)
    }

    /// Packs `self.text` with the reference in `self.both`. An empty text needs no patch.
    fn pack(&mut self, from: u64, reference: u64) -> Result<Option<TextPatch>, DeltaError> {
        if self.text.is_empty() { Ok(None) } else { self.pack_always(from, reference).map(Some) }
    }

    fn pack_always(&mut self, from: u64, reference: u64) -> Result<TextPatch, DeltaError> {
        let before = self.both.len();
        if before > 0 && before + self.text.len() > MUCH {
            return TextPatch::of_copies(&self.finder.describe(&self.both, &self.text, 0), self.text.len(), from, reference);
        }
        self.both.append(&mut self.text);
        let packed = pack(&self.both, before, level(self.both.len())).map_err(format::written)?;
        let raw = (self.both.len() - before) as u32;
        let digest = *Digest::of(&packed).as_bytes();
        Ok(TextPatch { part: Part { packed: packed.len() as u32, told: 0, raw, digest, from, reference }, packed })
    }
}

/// Returns the highest compression level that takes little time. `both` is the size of reference and text together.
fn level(both: usize) -> i32 {
    match both {
        0..=0x8_0000 => 12,
        0x8_0001..=MUCH => 9,
        _ => 3,
    }
}

/// The size of reference and text together, in bytes, above which a text is described by copies. A description by copies takes much less
/// time than packing, and a few bytes more.
const MUCH: usize = 1 << 20;

/// The maximum size of a description that is packed at level 3, in bytes. A longer description is packed at a faster level.
const MAX_LITTLE: usize = 1 << 20;

/// Returns the offset and the length of the range of the base that a part may refer to. The range is the whole base if the base has at most
/// [`MAX_REFERENCE`] bytes. Otherwise the range has [`MAX_REFERENCE`] bytes around the place of the part.
fn neighbourhood(file: &groups::File, range: &Range<u64>) -> (u64, u64) {
    let Some((_, size)) = file.base else { return (0, 0) };
    let middle = range.start + (range.end - range.start) / 2;
    let place = u128::from(middle) * u128::from(size) / u128::from(file.size.max(1));
    ((place as u64).saturating_sub(MAX_REFERENCE / 2).min(size.saturating_sub(MAX_REFERENCE)), size.min(MAX_REFERENCE))
}

fn part(bytes: &[u8], from: u64, count: u64) -> &[u8] {
    bytes.get(from as usize..(from + count) as usize).unwrap_or_default()
}
