//! Makes a delta from two releases.

use std::{fs::File, ops::Range, os::unix::fs::FileExt};

use serde::{Deserialize, Serialize};

use super::{
    PART, REFERENCE, SMALL, Source, entries,
    format::{self, Outline},
    groups::{self, Group, Member, Part, Wanted},
    relatives,
    source::{Reader, Store},
};
use crate::{
    host::archive::{self, pool},
    model::{Digest, Manifest},
    release::ReleaseError,
};

/// What came out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeltaReport {
    /// The size of the delta in bytes.
    pub bytes: u64,
    /// How many of them the difference of the manifests has.
    pub manifest: u64,
    /// How many files are patched.
    pub files: u64,
    /// How many bytes those have.
    pub content: u64,
}

/// Writes what turns `old` into `new` to `out`, from its first byte; `out` is empty or overwritten. Every file that is read is held to
/// its manifest's digest. The bytes depend on nothing but both releases: not on `threads`, and not on where their files are.
pub fn make(
    old: &Manifest,
    old_files: Source<'_>,
    new: &Manifest,
    new_files: Source<'_>,
    out: &File,
    threads: usize,
) -> Result<DeltaReport, ReleaseError> {
    let known = entries::contents(&old.entries);
    let wanted = Wanted::of(&new.entries, &old.entries, &known)?;
    let [(columns, of_columns), (digests, of_digests)] = entries::encode(old, new, &known)?;
    drop(known);
    let mut outline = Outline::new(old, new, of_columns, of_digests);
    let put = |bytes: &[u8], at: u64| out.write_all_at(bytes, at).map_err(|e| format::failed("write", e));
    let start = outline.bytes()?.len() as u64;
    put(&columns, start)?;
    put(&digests, start + of_columns.bytes)?;
    let first = start + of_columns.bytes + of_digests.bytes;

    let pairs = pairs(old, new, &wanted);
    let bases: Vec<usize> = pairs.iter().filter_map(|pair| pair.file.base.map(|(index, _)| index)).collect();
    let stores = (Store::open(old_files, old, &bases, threads)?, Store::open(new_files, new, &wanted.entries, threads)?);
    let plan = plan(pairs, &stores, threads)?;
    let mut groups: Vec<Group> = Vec::new();
    let mut at = first;
    pool::ordered(
        plan.tasks.len(),
        threads,
        || Ok(Worker::new(&stores)),
        |worker, index| match plan.tasks.get(index) {
            Some(Task::Batch(range)) => worker.batch(plan.small.get(range.clone()).unwrap_or_default()).map(Made::Batch),
            Some(Task::Part { large, range, first }) => {
                let pair = plan.large.get(*large).ok_or_else(|| super::refused("a file was lost"))?;
                worker.part(pair, range).map(|made| Made::Part { pair: *pair, first: *first, made })
            }
            None => Ok(Made::Batch((Vec::new(), None))),
        },
        |_, made| {
            let made = match made {
                Made::Batch((pairs, Some(made))) => {
                    groups.push(Group { members: members(old, new, &pairs), parts: vec![made.part] });
                    Some(made)
                }
                Made::Batch((pairs, None)) => {
                    groups.push(Group { members: members(old, new, &pairs), parts: Vec::new() });
                    None
                }
                Made::Part { pair, first, made } => {
                    if first {
                        groups.push(Group { members: members(old, new, &[pair]), parts: Vec::new() });
                    }
                    if let (Some(group), Some(made)) = (groups.last_mut(), &made) {
                        group.parts.push(made.part);
                    }
                    made
                }
            };
            if let Some(made) = made {
                put(&made.packed, at)?;
                at += made.packed.len() as u64;
            }
            Ok(())
        },
    )?;
    groups.retain(|group| !group.members.is_empty());
    let (list, of_groups) = format::pack(groups::encode(&groups)?, &[])?;
    put(&list, at)?;
    outline.patches = at - first;
    outline.groups = of_groups;
    put(&outline.bytes()?, 0)?;
    let bytes = at + of_groups.bytes;
    out.set_len(bytes).map_err(|e| format::failed("write", e))?;
    let content = wanted.entries.iter().filter_map(|index| groups::size(new.entries.get(*index))).sum();
    Ok(DeltaReport { bytes, manifest: first, files: wanted.entries.len() as u64, content })
}

/// A wanted file, where it stands in the list of them, and its base.
#[derive(Debug, Clone, Copy)]
struct Pair {
    place: usize,
    file: groups::File,
}

fn pairs(old: &Manifest, new: &Manifest, wanted: &Wanted) -> Vec<Pair> {
    let bases = relatives::of(&old.entries, &new.entries, &wanted.entries);
    let mut pairs = Vec::with_capacity(wanted.entries.len());
    for (place, (entry, base)) in wanted.entries.iter().zip(bases).enumerate() {
        let size = groups::size(new.entries.get(*entry)).unwrap_or(0);
        let base = base.and_then(|index| Some((index, groups::size(old.entries.get(index))?)));
        pairs.push(Pair { place, file: groups::File { entry: *entry, size, base, head: 0, tail: 0 } });
    }
    pairs
}

struct Plan {
    small: Vec<Pair>,
    large: Vec<Pair>,
    tasks: Vec<Task>,
}

enum Task {
    /// Several of the small ones.
    Batch(Range<usize>),
    /// Bytes of a large one.
    Part { large: usize, range: Range<u64>, first: bool },
}

/// Says who is patched with whom: a matter of sizes alone, but for what large files share with their bases at both ends.
fn plan(pairs: Vec<Pair>, stores: &(Store<'_>, Store<'_>), threads: usize) -> Result<Plan, ReleaseError> {
    let is_small = |pair: &Pair| pair.file.size <= SMALL && pair.file.base.is_none_or(|(_, size)| size <= SMALL);
    let (small, mut large): (Vec<Pair>, Vec<Pair>) = pairs.into_iter().partition(is_small);
    let mut tasks = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (at, pair) in small.iter().enumerate() {
        let weight = pair.file.size.max(pair.file.base.map_or(0, |(_, size)| size));
        if bytes > 0 && bytes + weight > SMALL {
            tasks.push(Task::Batch(start..at));
            (start, bytes) = (at, 0);
        }
        bytes += weight;
    }
    if start < small.len() {
        tasks.push(Task::Batch(start..small.len()));
    }
    let mut looked_at = Vec::with_capacity(large.len());
    pool::ordered(
        large.len(),
        threads,
        || Ok(Worker::new(stores)),
        |worker, index| large.get(index).map(|pair| worker.ends(pair)).transpose(),
        |_, pair| {
            looked_at.extend(pair);
            Ok::<(), ReleaseError>(())
        },
    )?;
    large = looked_at;
    for (index, pair) in large.iter().enumerate() {
        let (mut at, end) = (pair.file.head, pair.file.size - pair.file.tail);
        let mut first = true;
        while at < end || first {
            let next = end.min(at + PART);
            tasks.push(Task::Part { large: index, range: at..next, first });
            (at, first) = (next, false);
        }
    }
    Ok(Plan { small, large, tasks })
}

/// A patch, with what the list says of it.
struct Patch {
    part: Part,
    packed: Vec<u8>,
}

enum Made {
    Batch((Vec<Pair>, Option<Patch>)),
    Part { pair: Pair, first: bool, made: Option<Patch> },
}

/// One thread's memory.
struct Worker<'a> {
    old: Reader<'a>,
    new: Reader<'a>,
    was: Vec<u8>,
    is: Vec<u8>,
    both: Vec<u8>,
    text: Vec<u8>,
}

impl<'a> Worker<'a> {
    fn new((old, new): &'a (Store<'_>, Store<'_>)) -> Worker<'a> {
        let (old, new) = (old.reader(), new.reader());
        Worker { old, new, was: Vec::new(), is: Vec::new(), both: Vec::new(), text: Vec::new() }
    }

    /// The middles of small files against the middles of their bases.
    fn batch(&mut self, pairs: &[Pair]) -> Result<(Vec<Pair>, Option<Patch>), ReleaseError> {
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
            file.tail = common_end(&self.was, &self.is, left) as u64;
            let (from, count) = file.piece();
            self.both.extend_from_slice(part(&self.was, from, count));
            self.text.extend_from_slice(part(&self.is, file.head, file.middle()));
            done.push(Pair { file, ..*pair });
        }
        if let [pair] = done.as_mut_slice() {
            // Alone, its reference has to be told.
            let (from, reference) = pair.file.piece();
            return Ok((done, self.pack(from, reference)?));
        }
        Ok((done, Some(self.pack_always(0, 0)?)))
    }

    /// What a large file and its base have in common at both ends.
    fn ends(&mut self, pair: &Pair) -> Result<Pair, ReleaseError> {
        let mut file = pair.file;
        let new = self.new.open(file.entry)?;
        new.verify(&mut self.is)?;
        let Some((index, size)) = file.base else { return Ok(*pair) };
        let old = self.old.open(index)?;
        old.verify(&mut self.was)?;
        let shorter = size.min(file.size);
        let step = |done: u64| (shorter - done).min(super::source::CHUNK as u64);
        while file.head < shorter {
            let count = step(file.head);
            self.read_both(&new, file.head, &old, file.head, count)?;
            let same = common_start(&self.was, &self.is) as u64;
            file.head += same;
            if same < count {
                break;
            }
        }
        while file.head + file.tail < shorter {
            let count = step(file.head + file.tail);
            self.read_both(&new, file.size - file.tail - count, &old, size - file.tail - count, count)?;
            let same = common_end(&self.was, &self.is, count as usize) as u64;
            file.tail += same;
            if same < count {
                break;
            }
        }
        Ok(Pair { file, ..*pair })
    }

    fn read_both(
        &mut self,
        new: &super::source::Content<'_>,
        new_at: u64,
        old: &super::source::Content<'_>,
        old_at: u64,
        count: u64,
    ) -> Result<(), ReleaseError> {
        self.is.clear();
        new.append(new_at, count, &mut self.is)?;
        self.was.clear();
        old.append(old_at, count, &mut self.was)
    }

    /// A part of a large file against the neighbourhood of the same place in its base.
    fn part(&mut self, pair: &Pair, range: &Range<u64>) -> Result<Option<Patch>, ReleaseError> {
        let (from, reference) = neighbourhood(&pair.file, range);
        self.both.clear();
        self.text.clear();
        if let Some((index, _)) = pair.file.base {
            self.old.open(index)?.append(from, reference, &mut self.both)?;
        }
        self.new.open(pair.file.entry)?.append(range.start, range.end - range.start, &mut self.text)?;
        self.pack(from, reference)
    }

    /// Packs `self.text` with the reference in `self.both`; nothing needs no patch.
    fn pack(&mut self, from: u64, reference: u64) -> Result<Option<Patch>, ReleaseError> {
        if self.text.is_empty() { Ok(None) } else { self.pack_always(from, reference).map(Some) }
    }

    fn pack_always(&mut self, from: u64, reference: u64) -> Result<Patch, ReleaseError> {
        let before = self.both.len();
        self.both.append(&mut self.text);
        let packed = archive::pack(&self.both, before, level(before, self.both.len())).map_err(format::written)?;
        let raw = (self.both.len() - before) as u32;
        let digest = *Digest::of(&packed).as_bytes();
        Ok(Patch { part: Part { packed: packed.len() as u32, raw, digest, from, reference }, packed })
    }
}

/// The most effort that costs hardly any time, by the size of reference and text together.
fn level(reference: usize, both: usize) -> i32 {
    match both {
        0..=0x8_0000 => 12,
        0x8_0001..=0x20_0000 => 9,
        // What a large file has in common with its base, the search for long matches finds; the lowest level then gives fewer bytes
        // than higher ones, whose short matches cut the long ones up, and takes half the time.
        _ if reference > LARGE => 1,
        _ => 3,
    }
}

/// From this size of a reference on, in bytes, long matches are what counts.
const LARGE: usize = 8 << 20;

/// Where in the base to look for a part: the whole middle if it is small enough, else as much around the same place as may be held.
fn neighbourhood(file: &groups::File, range: &Range<u64>) -> (u64, u64) {
    let (from, count) = file.piece();
    if count <= REFERENCE {
        return (from, count);
    }
    let middle = u128::from(file.middle().max(1));
    let place = u128::from(range.start + (range.end - range.start) / 2 - file.head) * u128::from(count) / middle;
    let start = (place as u64).saturating_sub(REFERENCE / 2).min(count - REFERENCE);
    (from + start, REFERENCE)
}

/// The members as the list has them.
fn members(old: &Manifest, new: &Manifest, pairs: &[Pair]) -> Vec<Member> {
    let mut next = 0;
    let mut members = Vec::with_capacity(pairs.len());
    for Pair { place, file } in pairs {
        let path = |manifest: &Manifest, index: usize| manifest.entries.get(index).map(|entry| entry.path.clone());
        let base = match file.base {
            None => 0,
            Some((index, _)) if path(old, index) == path(new, file.entry) => 1,
            Some((index, _)) => index as u32 + 2,
        };
        members.push(Member { skip: (place - next) as u32, base, head: file.head, tail: file.tail });
        next = place + 1;
    }
    members
}

fn part(bytes: &[u8], from: u64, count: u64) -> &[u8] {
    bytes.get(from as usize..(from + count) as usize).unwrap_or_default()
}

/// Compared block by block first, which is as fast as memory is.
const BLOCK: usize = 512;

fn common_start(one: &[u8], other: &[u8]) -> usize {
    let blocks = one.chunks_exact(BLOCK).zip(other.chunks_exact(BLOCK)).take_while(|(a, b)| a == b).count() * BLOCK;
    let rest = one.iter().skip(blocks).zip(other.iter().skip(blocks));
    blocks + rest.take_while(|(a, b)| a == b).count()
}

/// At most `limit`.
fn common_end(one: &[u8], other: &[u8], limit: usize) -> usize {
    let last = |bytes: &[u8]| bytes.len() - limit;
    let (one, other) = (one.get(last(one)..).unwrap_or_default(), other.get(last(other)..).unwrap_or_default());
    let blocks = one.rchunks_exact(BLOCK).zip(other.rchunks_exact(BLOCK)).take_while(|(a, b)| a == b).count() * BLOCK;
    let rest = one.iter().rev().skip(blocks).zip(other.iter().rev().skip(blocks));
    blocks + rest.take_while(|(a, b)| a == b).count()
}
