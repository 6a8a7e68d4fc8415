//! Forged deltas: arbitrary sections with correct sizes and digests. Tests and the fuzzer use forged deltas, because all other inputs
//! would be refused at the first digest.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use super::{
    DeltaEndpoint, DeltaError,
    entries::{self, ACTION, ADD, Columns, EXECUTABLE, KIND, KNOWN, LINK, PLAIN, REMOVE},
    format::{self, Outline},
    groups::{self, Member, Part, PatchGroup, Wanted},
    rebuild,
};
use crate::{ArchiveInfo, ArchiveInfoExt, Digest, Entry, EntryKind, FileError, compare::compared, patch::pack, tree_digest};

/// A bit of the mode: the columns get consistent lengths and the right tree digest.
pub const FIT_ENTRIES: u8 = 1;
/// A bit of the mode: every patch gets the right length and digest, and every wanted file gets a patch.
pub const FIT_GROUPS: u8 = 2;
/// A bit of the mode, for use with [`FIT_GROUPS`]: the given patches are texts, which are then packed.
pub const TEXTS: u8 = 4;

/// The maximum length to which a text or the list of names is filled up if the input is too short, in bytes.
const MAX_MADE_UP: usize = 64 << 10;

/// The parts of a forged delta. The encoding consists of the mode, the lengths of `columns`, `digests` and `groups` as u16, these three
/// fields, and the patches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forged {
    /// The corrections to make: [`FIT_ENTRIES`], [`FIT_GROUPS`] and [`TEXTS`], combined by a bitwise or.
    pub mode: u8,
    /// The encoded columns, not packed. If the columns have no head, they get the head of the old release.
    pub columns: Vec<u8>,
    /// The digests of changed files.
    pub digests: Vec<u8>,
    /// The encoded list of groups, not packed.
    pub groups: Vec<u8>,
    /// The patches, concatenated.
    pub patches: Vec<u8>,
}

impl Forged {
    /// Reads arbitrary bytes as a forged delta.
    pub fn of(bytes: &[u8]) -> Forged {
        let (head, mut rest) = bytes.split_at_checked(7).unwrap_or_default();
        let mut next = |at: usize| {
            let length = head.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |two| u16::from_le_bytes(*two));
            let (part, left) = rest.split_at(rest.len().min(length.into()));
            rest = left;
            part.to_vec()
        };
        let (columns, digests, groups) = (next(1), next(3), next(5));
        Forged { mode: head.first().copied().unwrap_or_default(), columns, digests, groups, patches: rest.to_vec() }
    }

    /// Returns the bytes that [`Forged::of`] reads as this value.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![self.mode];
        let lists = [&self.columns, &self.digests, &self.groups];
        bytes.extend(lists.iter().flat_map(|list| u16::try_from(list.len()).unwrap_or(u16::MAX).to_le_bytes()));
        bytes.extend(lists.into_iter().chain([&self.patches]).flatten());
        bytes
    }

    /// Returns the bytes of the delta file. The delta starts from the release `old`.
    pub fn delta(mut self, old: &DeltaEndpoint<'_>) -> Result<Vec<u8>, DeltaError> {
        let mut tree = old.tree;
        if let Some(entries) = self.fit_entries(old, &mut tree)
            && self.mode & FIT_GROUPS != 0
        {
            self.fit_groups(old.entries, &entries);
        }
        let (columns, of_columns) = format::pack(self.columns, &old.head)?;
        let (groups, of_groups) = format::pack(self.groups, &[])?;
        let new = DeltaEndpoint { tree, ..old.clone() };
        let mut outline = Outline::new(old, &new, of_columns, format::plain(&self.digests));
        (outline.patches, outline.groups) = (self.patches.len() as u64, of_groups);
        Ok([outline.bytes()?, columns, self.digests, self.patches, groups].concat())
    }

    /// Gives the columns a head and corrects `tree` to the digest of the new entries. Returns the new entries if the
    /// columns are readable.
    fn fit_entries(&mut self, old: &DeltaEndpoint<'_>, tree: &mut Digest) -> Option<Vec<Entry>> {
        let mut columns: Columns = format::decode(&self.columns, "entries").ok()?;
        if self.mode & FIT_ENTRIES != 0 {
            fit(&mut columns, &mut self.digests, old.entries);
        }
        let head = std::mem::take(&mut columns.head);
        let again = postcard::to_stdvec(&columns).ok()?;
        let entries = rebuild::entries(columns, &self.digests, old.entries.to_vec()).ok();
        if self.mode & FIT_ENTRIES != 0 || head.is_empty() {
            *tree = entries.as_deref().map_or(*tree, tree_digest);
            // The head is the first column. In `again`, the head is empty, so only its length precedes the other columns, in one byte.
            let head = postcard::to_stdvec(if head.is_empty() { &old.head } else { &head }).ok()?;
            self.columns = [&head, again.get(1..)?].concat();
        }
        entries
    }

    /// Makes groups and patches match each other and the wanted files.
    fn fit_groups(&mut self, old: &[Entry], new: &[Entry]) -> Option<()> {
        let (_, there) = compared(old, new);
        let wanted = Wanted::of(new, old, &there, &entries::contents(old, new, &there)).ok()?;
        let mut groups: Vec<PatchGroup> = format::decode(&self.groups, "groups").ok()?;
        let mut seen = vec![false; wanted.entries.len()];
        for group in &mut groups {
            let (mut next, mut middles) = (0usize, 0u64);
            for member in &group.members {
                next = next.checked_add(member.skip as usize)?;
                *seen.get_mut(next)? = true;
                middles = middles.checked_add(groups::file(member, *wanted.entries.get(next)?, old, new)?.middle())?;
                next += 1;
            }
            if let Some((last, parts)) = group.parts.split_last_mut() {
                let others = parts.iter().map(|part| u64::from(part.raw)).sum();
                last.raw = u32::try_from(middles.saturating_sub(others)).ok()?;
            }
        }
        for (skip, _) in seen.iter().enumerate().filter(|(_, seen)| !**seen) {
            let size = groups::size(new.get(*wanted.entries.get(skip)?))?;
            let member = Member { skip: u32::try_from(skip).ok()?, base: 0, head: 0, tail: 0 };
            let raw = u32::try_from(size).ok()?;
            groups.push(PatchGroup {
                members: vec![member],
                parts: vec![Part { packed: 30, raw, told: 0, digest: [0; 32], from: 0, reference: 0 }],
            });
        }
        let (given, mut patches) = (std::mem::take(&mut self.patches), Vec::new());
        let mut left = given.as_slice();
        for part in groups.iter_mut().flat_map(|group| &mut group.parts) {
            let length = if self.mode & TEXTS == 0 { part.packed } else { part.raw } as usize;
            let (taken, rest) = left.split_at(length.min(left.len()));
            left = rest;
            let mut patch = taken.to_vec();
            if self.mode & TEXTS != 0 {
                patch.resize(length.min(MAX_MADE_UP).max(patch.len()), 0);
                patch = pack(&patch, 0, 1).ok()?;
            }
            part.packed = u32::try_from(patch.len()).ok()?;
            part.digest = *Digest::of(&patch).as_bytes();
            patches.append(&mut patch);
        }
        self.patches = patches;
        self.groups = groups::encode(&groups).ok()?;
        Some(())
    }
}

/// Gives every column the length that the changes need, and replaces impossible values.
fn fit(columns: &mut Columns, digests: &mut Vec<u8>, old: &[Entry]) {
    columns.skips.resize(columns.changes.len(), 0);
    // `files` has an element for each file: the old size of the file, and true if the content is known.
    let (mut files, mut added, mut links, mut at) = (Vec::new(), 0, 0, 0);
    for (change, skip) in columns.changes.iter_mut().zip(&mut columns.skips) {
        *skip = (*skip).min((old.len() - at) as u32);
        at += *skip as usize;
        let was = old.get(at);
        let action = if was.is_none() { ADD } else { (*change & ACTION).min(ADD) };
        let kind = *change & KIND;
        let is_file = kind == PLAIN || kind == EXECUTABLE;
        *change = match action {
            REMOVE => REMOVE,
            _ if is_file => action | kind | *change & KNOWN,
            _ => action | kind,
        };
        at += usize::from(action != ADD);
        added += usize::from(action == ADD);
        links += usize::from(*change & KIND == LINK);
        if action != REMOVE && is_file {
            let before = groups::size(was.filter(|_| action != ADD)).unwrap_or_default();
            files.push((before.cast_signed(), *change & KNOWN != 0));
        }
    }
    columns.shared.resize(added, (0, 1));
    let mut names = 0;
    for (_, own) in &mut columns.shared {
        *own = if names < MAX_MADE_UP { (*own).min(300) } else { 0 };
        names += *own as usize;
    }
    while columns.names.len() < names {
        columns.names.push('z');
    }
    if columns.names.is_char_boundary(names) {
        columns.names.truncate(names);
    }
    let known = files.iter().filter(|(_, known)| *known).count();
    digests.resize((files.len() - known) * 32, 0);
    columns.targets.resize(links, "z".to_owned());
    columns.sizes.resize(files.len(), 5);
    columns.known.resize(known, 0);
    let same = columns.sizes.iter_mut().zip(&files).filter(|(_, (_, known))| *known);
    for (index, (size, (before, _))) in columns.known.iter_mut().zip(same) {
        // The index becomes the index of the next old entry that is a file.
        let found = (0..).zip(old).cycle().skip(*index as usize % old.len().max(1)).take(old.len());
        let found = found.filter_map(|(n, entry)| Some((n, groups::size(Some(entry))?))).next();
        if let Some((n, bytes)) = found {
            (*index, *size) = (n, bytes.cast_signed() - before);
        }
    }
}

/// A tree on disk and its entries.
#[derive(Debug, Clone)]
pub struct Planted {
    /// The entries of the tree, sorted by path.
    pub entries: Vec<Entry>,
    archive: ArchiveInfo,
}

impl Planted {
    /// Reads the tree in `directory`.
    ///
    /// # Errors
    ///
    /// Returns an error if a file cannot be read.
    pub fn read(directory: &Path) -> Result<Planted, DeltaError> {
        let mut entries = Vec::new();
        let mut pending = vec![String::new()];
        while let Some(parent) = pending.pop() {
            let failed = |e| FileError::io("read", directory.join(&parent), e);
            for found in fs::read_dir(directory.join(&parent)).map_err(failed)? {
                let found = found.map_err(failed)?;
                let name = found.file_name().to_string_lossy().into_owned();
                let path = if parent.is_empty() { name } else { format!("{parent}/{name}") };
                let metadata = found.metadata().map_err(failed)?;
                let kind = if metadata.is_dir() {
                    pending.push(path.clone());
                    EntryKind::Dir
                } else if metadata.is_symlink() {
                    EntryKind::Link { target: fs::read_link(found.path()).map_err(failed)?.to_string_lossy().into_owned() }
                } else {
                    let content = fs::read(found.path()).map_err(failed)?;
                    let executable = metadata.permissions().mode() & 0o100 != 0;
                    EntryKind::File { size: content.len() as u64, digest: Digest::of(&content), executable }
                };
                entries.push(Entry { path, kind });
            }
        }
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Planted { entries, archive: ArchiveInfo::of_frames(Vec::new()) })
    }

    /// Returns the tree as one end of a delta.
    pub fn endpoint(&self) -> DeltaEndpoint<'_> {
        let tree = tree_digest(&self.entries);
        DeltaEndpoint {
            id: format!("release-{tree}"),
            tree,
            archive: &self.archive,
            entries: &self.entries,
            head: b"a head".to_vec(),
        }
    }
}

/// Writes the small tree of the fuzzer's seeds to an empty directory.
pub fn plant(directory: &Path) -> Result<Planted, DeltaError> {
    let lines = |count: usize| (0..count).map(|line| format!("{line}: {}\n", line * line)).collect::<String>();
    let mut noise = vec![0; 5000];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    let write = |path: &str, content: &[u8]| fs::write(directory.join(path), content);
    let written = fs::create_dir(directory.join("a"))
        .and_then(|()| fs::create_dir(directory.join("b")))
        .and_then(|()| write("a/edited", lines(60).as_bytes()))
        .and_then(|()| write("a/gone", b"gone"))
        .and_then(|()| write("a/same", lines(3).as_bytes()))
        .and_then(|()| write("b/noise", &noise))
        .and_then(|()| write("b/tool", b"#!/bin/sh\n"))
        .and_then(|()| fs::set_permissions(directory.join("b/tool"), fs::Permissions::from_mode(0o755)))
        .and_then(|()| write("empty", b""))
        .and_then(|()| std::os::unix::fs::symlink("a/same", directory.join("link")));
    written.map_err(|e| format::failed("write", e))?;
    Planted::read(directory)
}
