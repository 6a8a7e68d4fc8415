//! The difference of two manifests: fields as JSON, and entries column by column, since similar values compress best together.

use std::{cmp::Ordering, collections::HashMap};

use serde::{Deserialize, Serialize};

use super::{
    DeltaEndpoint, DeltaError,
    format::{self, DeltaSection},
    refused,
};
use crate::{Digest, Entry, EntryKind, bounded};

/// The actions of a change: remove the next old entry, change the next old entry, or add an entry before the next old entry. [`ACTION`]
/// is the mask of the actions.
pub(super) const REMOVE: u8 = 0;
pub(super) const CHANGE: u8 = 1;
pub(super) const ADD: u8 = 2;
pub(super) const ACTION: u8 = 3;
/// The kinds of the new entry. [`KIND`] is the mask of the kinds.
pub(super) const DIR: u8 = 0 << 2;
pub(super) const PLAIN: u8 = 1 << 2;
pub(super) const EXECUTABLE: u8 = 2 << 2;
pub(super) const LINK: u8 = 3 << 2;
pub(super) const KIND: u8 = 3 << 2;
/// The flag of a file whose content the old release has.
pub(super) const KNOWN: u8 = 1 << 4;

/// The columns of the difference. Each column is read from its front, whenever a change needs a value.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Columns {
    /// The new manifest without entries and frames, as JSON.
    pub head: Vec<u8>,
    /// One byte for each change: an action, a kind and perhaps [`KNOWN`], combined by a bitwise or.
    #[serde(deserialize_with = "bounded::changes")]
    pub changes: Vec<u8>,
    /// The number of unchanged old entries before each change.
    #[serde(deserialize_with = "bounded::changes")]
    pub skips: Vec<u32>,
    /// Two lengths for each added path, in bytes: the start that the path has in common with the previous path in the new list, and the
    /// remaining part.
    #[serde(deserialize_with = "bounded::entries")]
    pub shared: Vec<(u32, u32)>,
    /// The remaining parts of all added paths, concatenated.
    pub names: String,
    /// The size of each added or changed file, minus the size of the old file with the same path, if there is one.
    #[serde(deserialize_with = "bounded::entries")]
    pub sizes: Vec<i64>,
    /// The index of the old entry with the same content, for each file with [`KNOWN`].
    #[serde(deserialize_with = "bounded::entries")]
    pub known: Vec<u32>,
    /// The targets of links.
    #[serde(deserialize_with = "bounded::entries")]
    pub targets: Vec<String>,
}

/// Indices of entries by the digests of their content.
pub(super) type Contents = HashMap<Digest, usize, foldhash::fast::RandomState>;

/// Returns the index of the first old entry for each content that an added or changed file of the new release shares with the old
/// release.
pub(super) fn contents(old: &[Entry], new: &[Entry], there: &[bool]) -> Contents {
    const NOWHERE: usize = usize::MAX;
    let digest = |entry: &Entry| if let EntryKind::File { digest, .. } = &entry.kind { Some(*digest) } else { None };
    let changed = new.iter().zip(there).filter(|(_, there)| !**there).filter_map(|(entry, _)| digest(entry));
    let mut found: Contents = changed.map(|digest| (digest, NOWHERE)).collect();
    if found.is_empty() {
        return found;
    }
    for (index, entry) in old.iter().enumerate() {
        if let Some(place) = digest(entry).and_then(|digest| found.get_mut(&digest)) {
            *place = index.min(*place);
        }
    }
    found.retain(|_, place| *place != NOWHERE);
    found
}

/// Returns both sections of the difference, columns and digests, each with its entry in the outline.
pub(super) fn encode(
    old: &DeltaEndpoint<'_>,
    new: &DeltaEndpoint<'_>,
    known: &Contents,
) -> Result<[(Vec<u8>, DeltaSection); 2], DeltaError> {
    let mut columns = Columns { head: new.head.clone(), ..Columns::default() };
    let mut digests = Vec::new();
    let (mut at, mut skip) = (0usize, 0u32);
    let (mut entries, mut before) = (new.entries.iter().peekable(), "");
    loop {
        let (was, is) = (old.entries.get(at), entries.peek().copied());
        let order = match (was, is) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(was), Some(is)) => was.path.as_str().cmp(&is.path),
        };
        let unchanged = order.is_eq() && was.map(|was| &was.kind) == is.map(|is| &is.kind);
        if unchanged {
            skip += 1;
        } else {
            columns.skips.push(std::mem::take(&mut skip));
        }
        if order.is_le() {
            at += 1;
        }
        let Some(is) = is.filter(|_| order.is_ge()) else {
            columns.changes.push(REMOVE);
            continue;
        };
        entries.next();
        if !unchanged {
            let action = if order.is_eq() { CHANGE } else { ADD };
            if action == ADD {
                let shared = common(before, &is.path);
                let own = is.path.get(shared..).unwrap_or_default();
                columns.shared.push((shared as u32, own.len() as u32));
                columns.names.push_str(own);
            }
            let was = was.filter(|_| order.is_eq());
            columns.push(action, was, &is.kind, known, &mut digests);
        }
        before = &is.path;
    }
    let raw = postcard::to_stdvec(&columns).map_err(|e| refused(e.to_string()))?;
    let of_digests = format::plain(&digests);
    Ok([format::pack(raw, &old.head)?, (digests, of_digests)])
}

/// Returns the length of the common start of two paths, in bytes. Characters are not split.
fn common(one: &str, other: &str) -> usize {
    let mut length = one.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
    while !other.is_char_boundary(length) {
        length -= 1;
    }
    length
}

impl Columns {
    fn push(&mut self, action: u8, was: Option<&Entry>, is: &EntryKind, known: &Contents, digests: &mut Vec<u8>) {
        let what = match is {
            EntryKind::Dir => DIR,
            EntryKind::Link { target } => {
                self.targets.push(target.clone());
                LINK
            }
            EntryKind::File { size, digest, executable } => {
                self.sizes.push((*size).cast_signed() - size_of(was));
                let kind = if *executable { EXECUTABLE } else { PLAIN };
                match known.get(digest) {
                    Some(index) => {
                        self.known.push(*index as u32);
                        kind | KNOWN
                    }
                    None => {
                        digests.extend_from_slice(digest.as_bytes());
                        kind
                    }
                }
            }
        };
        self.changes.push(action | what);
    }
}

/// Returns the size of a file, or 0 for other entries.
pub(super) fn size_of(entry: Option<&Entry>) -> i64 {
    match entry.map(|entry| &entry.kind) {
        Some(EntryKind::File { size, .. }) => size.cast_signed(),
        _ => 0,
    }
}
