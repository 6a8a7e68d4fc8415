//! Makes a delta from two releases.

use std::{fs::File, ops::Range, os::unix::fs::FileExt};

use serde::{Deserialize, Serialize};

use super::{
    GROUP, PART, REFERENCE, SMALL, Source,
    copies::{Finder, Told, common_end, common_start},
    entries,
    format::{self, Outline},
    groups::{self, Group, Member, Part, Wanted},
    relatives,
    source::{Reader, Store},
};
use crate::{
    host::archive::{self, pool},
    model::{Digest, Manifest},
    release::{ReleaseError, both, changes::compared},
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
    let (gone, there) = compared(&old.entries, &new.entries);
    let known = entries::contents(&old.entries, &new.entries, &there);
    let wanted = Wanted::of(&new.entries, &old.entries, &there, &known)?;
    let (sections, pairs) = both(|| entries::encode(old, new, &known), || pairs(old, new, &gone, &wanted));
    let [(columns, of_columns), (digests, of_digests)] = sections?;
    let mut outline = Outline::new(old, new, of_columns, of_digests);
    let put = |bytes: &[u8], at: u64| out.write_all_at(bytes, at).map_err(|e| format::failed("write", e));
    let start = outline.bytes()?.len() as u64;
    put(&columns, start)?;
    put(&digests, start + of_columns.bytes)?;
    let first = start + of_columns.bytes + of_digests.bytes;

    let bases: Vec<usize> = pairs.iter().filter_map(|pair| pair.file.base.map(|(index, _)| index)).collect();
    let stores = (Store::open(old_files, old, &bases, threads)?, Store::open(new_files, new, &wanted.entries, threads)?);
    let plan = plan(pairs);
    let mut groups: Vec<Group> = Vec::new();
    let mut at = first;
    pool::ordered(
        plan.tasks.len(),
        threads,
        || Ok(Worker::new(&stores)),
        |worker, index| match plan.tasks.get(index) {
            Some(Task::Batch(range)) => worker.batch(plan.small.get(range.clone()).unwrap_or_default()).map(Made::Batch),
            Some(Task::Verify { large, base }) => {
                let file = plan.large.get(*large).map(|pair| pair.file).ok_or_else(|| super::refused("a file was lost"))?;
                worker.verify(&file, *base).map(|()| Made::Nothing)
            }
            Some(Task::Part { large, range, first }) => {
                let pair = plan.large.get(*large).ok_or_else(|| super::refused("a file was lost"))?;
                worker.part(pair, range).map(|made| Made::Part { pair: *pair, first: *first, made })
            }
            None => Ok(Made::Nothing),
        },
        |_, made| {
            let made = match made {
                Made::Nothing => None,
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

fn pairs(old: &Manifest, new: &Manifest, gone: &[usize], wanted: &Wanted) -> Vec<Pair> {
    let bases = relatives::of(&old.entries, &new.entries, gone, &wanted.entries);
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
    /// A large one, or its base, is read through to see whether it is what its manifest says.
    Verify { large: usize, base: bool },
    /// Bytes of a large one.
    Part { large: usize, range: Range<u64>, first: bool },
}

/// Says who is patched with whom: a matter of sizes alone.
fn plan(pairs: Vec<Pair>) -> Plan {
    let is_small = |pair: &Pair| pair.file.size <= SMALL && pair.file.base.is_none_or(|(_, size)| size <= SMALL);
    let (small, large): (Vec<Pair>, Vec<Pair>) = pairs.into_iter().partition(is_small);
    let mut tasks = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (at, pair) in small.iter().enumerate() {
        let weight = pair.file.size.max(pair.file.base.map_or(0, |(_, size)| size));
        if bytes > 0 && bytes + weight > GROUP {
            tasks.push(Task::Batch(start..at));
            (start, bytes) = (at, 0);
        }
        bytes += weight;
    }
    if start < small.len() {
        tasks.push(Task::Batch(start..small.len()));
    }
    for (index, pair) in large.iter().enumerate() {
        tasks.push(Task::Verify { large: index, base: false });
        if pair.file.base.is_some() {
            tasks.push(Task::Verify { large: index, base: true });
        }
        for at in (0..pair.file.size).step_by(PART as usize) {
            tasks.push(Task::Part { large: index, range: at..pair.file.size.min(at + PART), first: at == 0 });
        }
    }
    Plan { small, large, tasks }
}

/// A patch, with what the list says of it.
struct Patch {
    part: Part,
    packed: Vec<u8>,
}

impl Patch {
    /// A text of `raw` bytes that is told by copies.
    fn told(told: &Told, raw: usize, from: u64, reference: u64) -> Result<Patch, ReleaseError> {
        let bytes = told.bytes()?;
        let packed = archive::pack(&bytes, 0, if bytes.len() > LITTLE { -1 } else { 3 }).map_err(format::written)?;
        let digest = *Digest::of(&packed).as_bytes();
        let (told, raw) = (bytes.len() as u32, raw as u32);
        Ok(Patch { part: Part { packed: packed.len() as u32, told, raw, digest, from, reference }, packed })
    }
}

enum Made {
    Nothing,
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
    finder: Finder,
}

impl<'a> Worker<'a> {
    fn new((old, new): &'a (Store<'_>, Store<'_>)) -> Worker<'a> {
        let (old, new) = (old.reader(), new.reader());
        Worker { old, new, was: Vec::new(), is: Vec::new(), both: Vec::new(), text: Vec::new(), finder: Finder::default() }
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
            let last = |bytes: &[u8]| (bytes.len() - left) as u64;
            file.tail =
                common_end(part(&self.was, last(&self.was), left as u64), part(&self.is, last(&self.is), left as u64)) as u64;
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

    fn verify(&mut self, file: &groups::File, base: bool) -> Result<(), ReleaseError> {
        let content = match file.base {
            Some((index, _)) if base => self.old.open(index)?,
            _ => self.new.open(file.entry)?,
        };
        content.verify(&mut self.is)
    }

    /// A part of a large file, told by the neighbourhood of the same place in its base.
    fn part(&mut self, pair: &Pair, range: &Range<u64>) -> Result<Option<Patch>, ReleaseError> {
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
        let mut told = self.finder.tell(&self.was, &self.text, shift);
        let taken = told.narrow();
        let (from, reference) = (from + taken.start as u64, taken.len() as u64);
        Patch::told(&told, self.text.len(), from, reference).map(Some)
    }

    /// Packs `self.text` with the reference in `self.both`; nothing needs no patch.
    fn pack(&mut self, from: u64, reference: u64) -> Result<Option<Patch>, ReleaseError> {
        if self.text.is_empty() { Ok(None) } else { self.pack_always(from, reference).map(Some) }
    }

    fn pack_always(&mut self, from: u64, reference: u64) -> Result<Patch, ReleaseError> {
        let before = self.both.len();
        if before > 0 && before + self.text.len() > MUCH {
            return Patch::told(&self.finder.tell(&self.both, &self.text, 0), self.text.len(), from, reference);
        }
        self.both.append(&mut self.text);
        let packed = archive::pack(&self.both, before, level(self.both.len())).map_err(format::written)?;
        let raw = (self.both.len() - before) as u32;
        let digest = *Digest::of(&packed).as_bytes();
        Ok(Patch { part: Part { packed: packed.len() as u32, told: 0, raw, digest, from, reference }, packed })
    }
}

/// The most effort that costs hardly any time, by the size of reference and text together.
fn level(both: usize) -> i32 {
    match both {
        0..=0x8_0000 => 12,
        0x8_0001..=MUCH => 9,
        _ => 3,
    }
}

/// From so many bytes of reference and text together on, telling takes so much less time than packing that it may take more bytes.
const MUCH: usize = 1 << 20;

/// Up to so many bytes that tell a text are worth some effort.
const LITTLE: usize = 1 << 20;

/// Where in the base to look for a part: all of it if it is small enough, else as much around the same place as may be held.
fn neighbourhood(file: &groups::File, range: &Range<u64>) -> (u64, u64) {
    let Some((_, size)) = file.base else { return (0, 0) };
    let middle = range.start + (range.end - range.start) / 2;
    let place = u128::from(middle) * u128::from(size) / u128::from(file.size.max(1));
    ((place as u64).saturating_sub(REFERENCE / 2).min(size.saturating_sub(REFERENCE)), size.min(REFERENCE))
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
