//! Compares two sorted lists of entries. Deltas, installations and the diff of releases share this comparison.

use std::{cmp::Ordering, iter::Peekable, slice::Iter};

use super::Entry;

/// Returns the entries that differ between two sorted lists. Each item has the removed entry of the older list, the added entry of the
/// newer list, or both entries if the entry was changed.
pub fn between<'e>(before: &'e [Entry], after: &'e [Entry]) -> Between<'e> {
    Between { old: before.iter().peekable(), new: after.iter().peekable() }
}

/// Compares two sorted lists. Returns the indices of the entries of `old` that were removed or changed. Also returns a flag for each
/// entry of `new`, which is true if `old` has an equal entry.
pub fn compared(old: &[Entry], new: &[Entry]) -> (Vec<usize>, Vec<bool>) {
    let (mut gone, mut there) = (Vec::new(), Vec::with_capacity(new.len()));
    let mut old = old.iter().enumerate().peekable();
    for entry in new {
        while let Some((index, _)) = old.next_if(|(_, old)| old.path < entry.path) {
            gone.push(index);
        }
        let same = old.next_if(|(_, old)| old.path == entry.path);
        there.push(same.is_some_and(|(_, old)| old.kind == entry.kind));
        gone.extend(same.filter(|(_, old)| old.kind != entry.kind).map(|(index, _)| index));
    }
    gone.extend(old.map(|(index, _)| index));
    (gone, there)
}

/// The iterator of [`between`].
pub struct Between<'e> {
    old: Peekable<Iter<'e, Entry>>,
    new: Peekable<Iter<'e, Entry>>,
}

impl<'e> Iterator for Between<'e> {
    type Item = (Option<&'e Entry>, Option<&'e Entry>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let order = match (self.old.peek(), self.new.peek()) {
                (None, None) => return None,
                (Some(old), Some(new)) => old.path.cmp(&new.path),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
            };
            match order {
                Ordering::Less => return Some((self.old.next(), None)),
                Ordering::Greater => return Some((None, self.new.next())),
                Ordering::Equal => {
                    let (old, new) = (self.old.next(), self.new.next());
                    if old.map(|old| &old.kind) != new.map(|new| &new.kind) {
                        return Some((old, new));
                    }
                }
            }
        }
    }
}
