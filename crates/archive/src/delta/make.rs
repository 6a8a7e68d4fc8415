//! Makes deltas: pairs the new files with old files, and patches the pairs in several threads.

use std::{fs::File, ops::Range, os::unix::fs::FileExt};

use serde::{Deserialize, Serialize};

use super::{
    DeltaEndpoint, DeltaError, FileSource, MAX_GROUP, MAX_PART, MAX_SMALL, entries,
    format::{self, Outline},
    groups::{self, Member, PatchGroup, Wanted},
    relatives,
    source::Store,
    texts::{Pair, PatchWorker, TextPatch},
};
use crate::{
    compare::compared,
    pool::{self, both},
};

/// The figures of a delta.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeltaReport {
    /// The size of the delta in bytes.
    pub bytes: u64,
    /// The size of the outline and the manifest difference in the delta, in bytes.
    pub manifest: u64,
    /// The number of patched files.
    pub files: u64,
    /// The size of the patched files, in bytes.
    pub content: u64,
}

/// Writes the delta from `old` to `new` into the file `out`, and replaces the content of `out`. Checks the digest of every file that is
/// read. The bytes depend only on the two releases: not on `threads`, and not on the location of their files.
pub fn make(
    old: &DeltaEndpoint<'_>,
    old_files: FileSource<'_>,
    new: &DeltaEndpoint<'_>,
    new_files: FileSource<'_>,
    out: &File,
    threads: usize,
) -> Result<DeltaReport, DeltaError> {
    let (gone, there) = compared(old.entries, new.entries);
    let known = entries::contents(old.entries, new.entries, &there);
    let wanted = Wanted::of(new.entries, old.entries, &there, &known)?;
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
    let mut groups: Vec<PatchGroup> = Vec::new();
    let mut at = first;
    pool::ordered(
        plan.tasks.len(),
        threads,
        || Ok(PatchWorker::new(&stores)),
        |worker, index| match plan.tasks.get(index) {
            Some(Task::Batch(range)) => worker.batch(plan.small.get(range.clone()).unwrap_or_default()).map(Made::Batch),
            Some(Task::Verify { large, base }) => {
                let file = plan.large.get(*large).map(|pair| pair.file).ok_or_else(|| super::refused("a task has no file"))?;
                worker.verify(&file, *base).map(|()| Made::Nothing)
            }
            Some(Task::Part { large, range, first }) => {
                let pair = plan.large.get(*large).ok_or_else(|| super::refused("a task has no file"))?;
                worker.part(pair, range).map(|made| Made::Part { pair: *pair, first: *first, made })
            }
            None => Ok(Made::Nothing),
        },
        |_, made| {
            let made = match made {
                Made::Nothing => None,
                Made::Batch((pairs, Some(made))) => {
                    groups.push(PatchGroup { members: members(old, new, &pairs), parts: vec![made.part] });
                    Some(made)
                }
                Made::Batch((pairs, None)) => {
                    groups.push(PatchGroup { members: members(old, new, &pairs), parts: Vec::new() });
                    None
                }
                Made::Part { pair, first, made } => {
                    if first {
                        groups.push(PatchGroup { members: members(old, new, &[pair]), parts: Vec::new() });
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

fn pairs(old: &DeltaEndpoint<'_>, new: &DeltaEndpoint<'_>, gone: &[usize], wanted: &Wanted) -> Vec<Pair> {
    let bases = relatives::of(old.entries, new.entries, gone, &wanted.entries);
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
    /// The range of small files to patch together.
    Batch(Range<usize>),
    /// A large file, or its base, to read and to compare with its digest.
    Verify { large: usize, base: bool },
    /// A part of a large file to patch.
    Part { large: usize, range: Range<u64>, first: bool },
}

/// Divides the files into tasks. The division depends only on the sizes of the files.
fn plan(pairs: Vec<Pair>) -> Plan {
    let is_small = |pair: &Pair| pair.file.size <= MAX_SMALL && pair.file.base.is_none_or(|(_, size)| size <= MAX_SMALL);
    let (small, large): (Vec<Pair>, Vec<Pair>) = pairs.into_iter().partition(is_small);
    let mut tasks = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (at, pair) in small.iter().enumerate() {
        let weight = pair.file.size.max(pair.file.base.map_or(0, |(_, size)| size));
        if bytes > 0 && bytes + weight > MAX_GROUP {
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
        for at in (0..pair.file.size).step_by(MAX_PART as usize) {
            tasks.push(Task::Part { large: index, range: at..pair.file.size.min(at + MAX_PART), first: at == 0 });
        }
    }
    Plan { small, large, tasks }
}

enum Made {
    Nothing,
    Batch((Vec<Pair>, Option<TextPatch>)),
    Part { pair: Pair, first: bool, made: Option<TextPatch> },
}

/// Returns the members of a group, as they are encoded in the list of patches.
fn members(old: &DeltaEndpoint<'_>, new: &DeltaEndpoint<'_>, pairs: &[Pair]) -> Vec<Member> {
    let mut next = 0;
    let mut members = Vec::with_capacity(pairs.len());
    for Pair { place, file } in pairs {
        let path = |release: &DeltaEndpoint<'_>, index: usize| release.entries.get(index).map(|entry| entry.path.clone());
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
