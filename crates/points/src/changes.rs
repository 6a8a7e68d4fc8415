//! The index of a restore point as changes of an earlier index. Most entries of two consecutive restore points are equal, and each entry
//! needs more than 100 bytes, so a whole index would be larger than the changed files of many captures.
//!
//! If the index is stored as changes, the file `index` has a magic, a version, the digest and the length of the file `base`, the paths that
//! `base` lists and this restore point does not have, and the added and changed entries. The file `base` is a whole index: a hard link to
//! `index` or `base` of the previous restore point. The digests of both files follow from the manifest.

use std::collections::HashSet;

use crate::{Digest, Entry, PointError, Result, entry::order, index, source::Source};

/// The name of the file with the whole index to which the index of a restore point refers.
pub(crate) const BASE: &str = "base";

const MAGIC: &[u8; 20] = b"larder points delta\n";

/// The version that this program writes.
const VERSION: u32 = 1;

/// The divisor of the size limit: an index is written as changes if the changes have at most a quarter of the bytes of `base`.
const PART: usize = 4;

/// The identity of the file `base`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BaseIndex {
    pub digest: Digest,
    pub bytes: u64,
}

/// Returns the base of an index, or `None` for a whole index.
pub(crate) fn base_of(bytes: &[u8], id: &str) -> Result<Option<BaseIndex>> {
    Ok(header(bytes, id)?.map(|(base, _)| base))
}

/// Splits the header from the changes. Returns `None` for a whole index.
fn header<'b>(bytes: &'b [u8], id: &str) -> Result<Option<(BaseIndex, &'b [u8])>> {
    let Some(rest) = bytes.strip_prefix(MAGIC) else { return Ok(None) };
    let short = || index::malformed(id, "it ends in its header".into());
    let (version, rest) = rest.split_first_chunk::<4>().ok_or_else(short)?;
    index::check_version(u32::from_le_bytes(*version), VERSION, id)?;
    let (digest, rest) = rest.split_first_chunk::<32>().ok_or_else(short)?;
    let (length, rest) = rest.split_first_chunk::<8>().ok_or_else(short)?;
    Ok(Some((BaseIndex { digest: Digest(*digest), bytes: u64::from_le_bytes(*length) }, rest)))
}

/// The index of a restore point, and its differences from the whole index to which the next index can refer.
#[derive(Debug)]
pub(crate) struct ReadIndex {
    pub entries: Vec<Entry>,
    pub base: BaseIndex,
    /// The name of the file with the whole index.
    pub base_name: &'static str,
    /// The paths that the whole index may have and this index does not have.
    removed: HashSet<Vec<u8>>,
    /// For each entry, true if the whole index may have no equal entry; empty if both indexes are the same.
    is_changed: Vec<bool>,
}

impl ReadIndex {
    /// Returns an index that is whole.
    pub(crate) fn whole(entries: Vec<Entry>, base: BaseIndex, base_name: &'static str) -> ReadIndex {
        ReadIndex { entries, base, base_name, removed: HashSet::new(), is_changed: Vec::new() }
    }
}

/// Returns the bytes of an index as changes of the whole index to which the index `old` refers, or `None` if a whole index is not much larger.
pub(crate) fn encode(old: &ReadIndex, entries: &[Entry]) -> Result<Option<Vec<u8>>> {
    let limit = usize::try_from(old.base.bytes).unwrap_or(usize::MAX) / PART;
    let mut removed: Vec<&[u8]> =
        old.removed.iter().map(Vec::as_slice).filter(|path| index::find(entries, path).is_none()).collect();
    let mut changed: Vec<&Entry> = Vec::new();
    let (mut before, mut after) = (old.entries.iter().enumerate().peekable(), entries.iter().peekable());
    loop {
        let order = match (before.peek(), after.peek()) {
            (None, None) => break,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some((_, old)), Some(new)) => order(&old.path, &new.path),
        };
        let known = if order.is_le() { before.next() } else { None };
        let new = if order.is_ge() { after.next() } else { None };
        match (known, new) {
            (Some((_, known)), None) => removed.push(&known.path),
            (Some((at, known)), Some(new)) if known == new && !old.is_changed.get(at).is_some_and(|changed| *changed) => {}
            (_, Some(new)) => changed.push(new),
            (None, None) => {}
        }
    }
    removed.sort_unstable();
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&old.base.digest.0);
    bytes.extend_from_slice(&old.base.bytes.to_le_bytes());
    let wrong = |e| PointError::io("encode", "the index", std::io::Error::other(e));
    bytes = postcard::to_extend(&removed, bytes).map_err(wrong)?;
    for entry in changed {
        bytes = postcard::to_extend(entry, bytes).map_err(wrong)?;
        if bytes.len() > limit {
            return Ok(None);
        }
    }
    Ok(if bytes.len() > limit { None } else { Some(bytes) })
}

/// Reads an index that consists of changes. Refuses an index that no capture of `sources` can have written. The caller
/// must have checked the digest of `base`.
pub fn decode(bytes: &[u8], base: &[u8], id: &str, sources: &[Source]) -> Result<Vec<Entry>> {
    read(bytes, base, id, sources).map(|index| index.entries)
}

/// Reads an index like [`decode`], for the capture of the next restore point.
pub(crate) fn read(bytes: &[u8], base: &[u8], id: &str, sources: &[Source]) -> Result<ReadIndex> {
    let wrong = |why: String| index::malformed(id, why);
    let Some((base_of, rest)) = header(bytes, id)? else { return Err(wrong("it does not start like a list of changes".into())) };
    let (removed, mut rest) =
        postcard::take_from_bytes::<Vec<Vec<u8>>>(rest).map_err(|e| wrong(format!("the removed paths: {e}")))?;
    let removed: HashSet<Vec<u8>> = removed.into_iter().collect();
    let mut changed = Vec::new();
    while !rest.is_empty() {
        let (entry, after) = postcard::take_from_bytes::<Entry>(rest).map_err(|e| wrong(format!("a changed entry: {e}")))?;
        rest = after;
        changed.push(entry);
    }
    let mut changed = changed.into_iter().peekable();
    let base = index::parse(base, id)?;
    let (mut entries, mut is_changed) = (Vec::with_capacity(base.len()), Vec::with_capacity(base.len()));
    let mut push = |entry: Entry, changed: bool| {
        entries.push(entry);
        is_changed.push(changed);
    };
    for old in base {
        while let Some(new) = changed.next_if(|new| order(&new.path, &old.path).is_lt()) {
            push(new, true);
        }
        match changed.next_if(|new| new.path == old.path) {
            Some(new) => push(new, true),
            None if removed.contains(&old.path) => {}
            None => push(old, false),
        }
    }
    changed.for_each(|new| push(new, true));
    index::check(&entries, id, sources)?;
    Ok(ReadIndex { entries, base: base_of, base_name: BASE, removed, is_changed })
}
