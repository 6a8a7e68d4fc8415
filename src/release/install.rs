//! The worker that turns an archive into an installed tree; or a delta and the installed tree of the release before.
//!
//! What the previous release holds unchanged is hard-linked from its tree; only the frames with the rest are decompressed. Links
//! are created last, so nothing is ever written through one.
//!
//! A *spare* is an installed copy of the live release, made in advance under the id of a release to come: installing a release
//! `v` with previous release `v` makes one, of hard links only. Installing into a spare touches what changed and nothing else.

use std::{
    fs::File,
    io::{Read, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use rustix::fs::FileType;
use serde::{Deserialize, Serialize};

use super::{
    Answer, ReleaseError,
    delta::{Delta, From},
    each_thread, store, verify,
};
use crate::{
    host::{
        archive::{Archive, ArchiveError, FrameReader, Limits, Sink},
        files::{Confined, Cursor, FileError, durable},
    },
    model::{ArchiveInfo, Digest, Entry, EntryKind, Manifest, ReleaseId},
};

/// Up to so many unpacked files are brought to the disk one by one; beyond, together with all else on the file system.
const BY_ITSELF: u64 = 64;

/// Where the content of a release comes from, besides what it shares with the previous one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// From its archive.
    Archive,
    /// From a delta, which starts from the previous release.
    Delta,
    /// From the previous release alone: the new one is a copy of it.
    Previous,
}

/// The job. Descriptors: 5 archive or delta (anything for a copy), 6 manifest; if `previous`, 7 its manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnpackJob {
    /// An installed release that may share unchanged files with the new one.
    pub previous: Option<ReleaseId>,
    /// What descriptor 5 is.
    pub content: Content,
    /// Whether the tree to fill is a spare: a complete copy of `previous`, made by an earlier job of this kind that reported
    /// success, and not touched since. Then only the difference is applied. Anything else in the tree is removed first.
    pub spare: bool,
    /// How many threads link and write.
    pub threads: usize,
    /// What the archive may hold.
    pub limits: Limits,
}

/// What came out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UnpackReport {
    /// How many entries the tree has.
    pub entries: u64,
    /// How many files are shared with the previous release.
    pub linked: u64,
    /// How many files were unpacked.
    pub unpacked: u64,
    /// How many bytes those have.
    pub bytes: u64,
}

impl UnpackReport {
    fn add(&mut self, part: &UnpackReport) {
        self.unpacked += part.unpacked;
        self.bytes += part.bytes;
    }
}

/// Where the worker finds things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// The tree to fill. What an interrupted attempt left in it is removed first.
    pub tree: PathBuf,
    /// The directory of all installed trees.
    pub deploy: PathBuf,
}

impl Places {
    /// From `LARDER_TREE` and `LARDER_DEPLOY`.
    pub fn from_environment() -> Places {
        let place = |name: &str, default: &str| std::env::var_os(name).map_or_else(|| default.into(), PathBuf::from);
        Places { tree: place("LARDER_TREE", "/tree"), deploy: place("LARDER_DEPLOY", "/deploy") }
    }
}

/// Does the job. May be repeated; the tree is complete and on the disk when it reports success.
pub fn work(job: &UnpackJob, places: &Places, archive: &File, manifest: &File, previous: Option<&File>) -> Answer<UnpackReport> {
    install(job, places, archive, manifest, previous).into()
}

fn install(
    job: &UnpackJob,
    places: &Places,
    archive: &File,
    manifest: &File,
    previous: Option<&File>,
) -> Result<UnpackReport, ReleaseError> {
    let path = Path::new("the manifest");
    let (manifest, previous) = match previous {
        Some(file) => {
            let (manifest, previous) = store::parse_both((manifest, path), (file, Path::new("the previous manifest")));
            (manifest?, previous.ok())
        }
        None => (store::parse(manifest, path)?, None),
    };
    let tree = Confined::open(&places.tree)?;
    // A previous release that is damaged or gone costs time, not the deployment.
    let before = match (job.previous, previous) {
        (Some(id), Some(previous)) => {
            Confined::open(&places.deploy).and_then(|deploy| deploy.open_dir(id.to_string())).ok().map(|tree| (previous, tree))
        }
        _ => None,
    };
    let base = before.as_ref().map(|(manifest, tree)| Base { tree, entries: &manifest.entries });
    let spare = job.spare && is_spare(&places.tree, base, job.threads)?;
    let target = Target { tree: &tree, base, spare, threads: job.threads };
    let report = match (job.content, &before) {
        (Content::Archive, _) => target.fill(archive, &manifest.entries, &manifest.archive, &job.limits),
        (Content::Delta, Some((previous, base))) => {
            target.fill_by_delta(&Delta::open(archive, previous, base, &manifest)?, &manifest.entries)
        }
        (Content::Previous, Some((previous, base))) if previous.entries == manifest.entries => {
            target.fill_by_copy(base, &manifest.entries)
        }
        _ => Err(ReleaseError::Delta { why: "the release that it starts from is not installed here".to_owned() }),
    };
    // The process ends next; to free a hundred thousand strings one by one would only keep the deployment waiting.
    std::mem::forget((manifest, before.map(|(previous, _)| previous)));
    report
}

/// Looks again whether a spare tree is what it is said to be, all but reading the files.
fn is_spare(tree: &Path, base: Option<Base<'_>>, threads: usize) -> Result<bool, ReleaseError> {
    match base {
        Some(base) => Ok(verify::compare(tree, base.entries, threads, false)?.is_empty()),
        None => Ok(false),
    }
}

/// Unpacks an archive into an empty directory, without any previous release: for measurements and tools.
pub fn archive_to_tree(
    archive: &File,
    entries: &[Entry],
    info: &ArchiveInfo,
    dir: &Path,
    threads: usize,
) -> Result<UnpackReport, ReleaseError> {
    let tree = Confined::open(dir)?;
    Target { tree: &tree, base: None, spare: false, threads }.fill(archive, entries, info, &Limits::default())
}

/// Installs `manifest` from `archive` into the directory `dir`, sharing files with an installed tree of `previous`.
pub fn archive_to_tree_with(
    archive: &File,
    manifest: &Manifest,
    dir: &Path,
    previous: Option<(&Manifest, &Path)>,
    threads: usize,
) -> Result<UnpackReport, ReleaseError> {
    let base = previous.map(|(manifest, tree)| Confined::open(tree).map(|tree| (manifest, tree))).transpose()?;
    let base = base.as_ref().map(|(manifest, tree)| Base { tree, entries: &manifest.entries });
    let tree = Confined::open(dir)?;
    Target { tree: &tree, base, spare: false, threads }.fill(archive, &manifest.entries, &manifest.archive, &Limits::default())
}

#[derive(Clone, Copy)]
struct Base<'a> {
    tree: &'a Confined,
    entries: &'a [Entry],
}

/// The tree to fill, and what may help.
struct Target<'a> {
    tree: &'a Confined,
    base: Option<Base<'a>>,
    spare: bool,
    threads: usize,
}

impl Target<'_> {
    fn fill(&self, file: &File, entries: &[Entry], info: &ArchiveInfo, limits: &Limits) -> Result<UnpackReport, ReleaseError> {
        let archive = Archive::open(file, entries, info, limits).map_err(refused)?;
        let (there, linked) = self.prepare(entries)?;
        let report = self.unpack(&archive, entries, &linked).map_err(refused)?;
        self.finish(entries, &there, &linked, report)
    }

    fn fill_by_delta(&self, delta: &Delta<'_>, entries: &[Entry]) -> Result<UnpackReport, ReleaseError> {
        let (there, linked) = self.prepare(entries)?;
        self.link_moved(delta, entries, &linked)?;
        let report = self.patch(delta, entries, &linked)?;
        self.finish(entries, &there, &linked, report)
    }

    fn fill_by_copy(&self, base: &Confined, entries: &[Entry]) -> Result<UnpackReport, ReleaseError> {
        let (there, linked) = self.prepare(entries)?;
        let is_linked = |index: usize| linked.get(index).is_some_and(|linked| linked.load(Ordering::Relaxed));
        let (mut from, mut writer) = (base.cursor(), Writer::new(self.tree.cursor(), &is_linked));
        for (index, entry) in entries.iter().enumerate() {
            if matches!(entry.kind, EntryKind::File { .. }) && !is_linked(index) {
                again(&mut from, &entry.path, index, entry, &mut writer)?;
            }
        }
        writer.write_out().map_err(refused)?;
        let report = UnpackReport { entries: entries.len() as u64, ..writer.report };
        self.finish(entries, &there, &linked, report)
    }

    /// Directories and shared files. Says which entries of a spare stay, and which files need not be written.
    fn prepare(&self, entries: &[Entry]) -> Result<(Vec<bool>, Vec<AtomicBool>), ReleaseError> {
        if let (Some(base), true) = (self.base, self.spare) {
            return clear_changed(self.tree, base.entries, entries);
        }
        self.tree.clear()?;
        make_directories(self.tree, entries, &[])?;
        let linked = match self.base {
            Some(base) => share(self.tree, base, entries, self.threads)?,
            None => Vec::new(),
        };
        Ok((Vec::new(), linked))
    }

    /// Links, and then everything is brought to the disk.
    fn finish(
        &self,
        entries: &[Entry],
        there: &[bool],
        linked: &[AtomicBool],
        mut report: UnpackReport,
    ) -> Result<UnpackReport, ReleaseError> {
        report.linked = linked.iter().filter(|linked| linked.load(Ordering::Relaxed)).count() as u64;
        let mut cursor = self.tree.cursor();
        for (index, entry) in entries.iter().enumerate() {
            if let EntryKind::Link { target } = &entry.kind
                && there.get(index) != Some(&true)
            {
                cursor.symlink(target, &entry.path)?;
            }
        }
        if report.unpacked <= BY_ITSELF && durable::is_ordered(self.tree) {
            durable::commit(self.tree).map_err(|e| FileError::io("sync", self.tree.path(), e))?;
        } else {
            self.tree.sync_file_system()?;
        }
        Ok(report)
    }

    /// Links files whose content stood elsewhere in the previous release, and says so in `linked`.
    fn link_moved(&self, delta: &Delta<'_>, entries: &[Entry], linked: &[AtomicBool]) -> Result<(), ReleaseError> {
        let Some(base) = self.base else { return Ok(()) };
        let (mut from, mut to) = (base.tree.cursor(), self.tree.cursor());
        for (index, (entry, linked)) in entries.iter().zip(linked).enumerate() {
            let EntryKind::File { size, executable, .. } = &entry.kind else { continue };
            if linked.load(Ordering::Relaxed) {
                continue;
            }
            if let From::Old(old) = delta.origin(index)
                && let Some(Entry { path, kind: EntryKind::File { executable: was, .. } }) = delta.old_entry(old)
                && was == executable
            {
                linked.store(share_one(&mut from, &mut to, path, &entry.path, *size, *executable)?, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Writes the files that are not `linked`, from patches and copies.
    fn patch(&self, delta: &Delta<'_>, entries: &[Entry], linked: &[AtomicBool]) -> Result<UnpackReport, ReleaseError> {
        let is_linked = |index: usize| linked.get(index).is_some_and(|linked| linked.load(Ordering::Relaxed));
        let groups = delta.groups();
        let is_left = |(index, entry): &(usize, &Entry)| matches!(entry.kind, EntryKind::File { .. }) && !is_linked(*index);
        let left = || entries.iter().enumerate().filter(is_left).map(|(index, entry)| (index, entry, delta.origin(index)));
        let copies: Vec<_> = left().filter(|(.., from)| matches!(from, From::Nowhere | From::Old(_))).collect();
        let (next, next_copy) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let counted = each_thread(self.threads.min(groups.len().max(copies.len())), || {
            let (mut reader, mut writer) = (delta.reader(), Writer::new(self.tree.cursor(), &is_linked));
            while let Some(group) = groups.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(e) = delta.read(*group, &mut reader, &mut writer) {
                    next.store(groups.len(), Ordering::Relaxed); // the others need not go on
                    return Err(e);
                }
            }
            while let Some((index, entry, from)) = copies.get(next_copy.fetch_add(1, Ordering::Relaxed)) {
                match from {
                    From::Old(old) => reader.copy(*old, *index, entry, &mut writer)?,
                    _ => empty(*index, entry, &mut writer)?,
                }
            }
            writer.write_out().map_err(refused)?;
            Ok(writer.report)
        });
        let mut report = UnpackReport { entries: entries.len() as u64, ..UnpackReport::default() };
        for part in counted {
            report.add(&part?);
        }
        // Second copies, of what is there by now.
        let mut writer = Writer::new(self.tree.cursor(), &is_linked);
        let mut from = self.tree.cursor();
        for (index, entry, origin) in left() {
            if let From::New(first) = origin
                && let Some(first) = entries.get(first)
            {
                again(&mut from, &first.path, index, entry, &mut writer)?;
            }
        }
        writer.write_out().map_err(refused)?;
        report.add(&writer.report);
        Ok(report)
    }

    /// Unpacks the files that are not `linked`, from the frames that hold them.
    fn unpack(&self, archive: &Archive<'_>, entries: &[Entry], linked: &[AtomicBool]) -> Result<UnpackReport, ArchiveError> {
        let is_linked = |index: usize| linked.get(index).is_some_and(|linked| linked.load(Ordering::Relaxed));
        let wanted = |range: std::ops::Range<usize>| {
            let mut part = entries.iter().enumerate().skip(range.start).take(range.len());
            part.any(|(index, entry)| matches!(entry.kind, EntryKind::File { .. }) && !is_linked(index))
        };
        let frames: Vec<usize> =
            archive.frames().enumerate().filter(|(_, range)| wanted(range.clone())).map(|(frame, _)| frame).collect();
        let next = AtomicUsize::new(0);
        let counted = each_thread(self.threads.min(frames.len()), || {
            let mut reader = FrameReader::new()?;
            let mut writer = Writer::new(self.tree.cursor(), &is_linked);
            while let Some(frame) = frames.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(e) = archive.read(*frame, &mut reader, &mut writer) {
                    next.store(frames.len(), Ordering::Relaxed); // the others need not go on
                    return Err(e);
                }
            }
            writer.write_out()?;
            Ok(writer.report)
        });
        let mut report = UnpackReport { entries: entries.len() as u64, ..UnpackReport::default() };
        for part in counted {
            report.add(&part?);
        }
        Ok(report)
    }
}

/// Makes the directories that are not `there` yet.
fn make_directories(tree: &Confined, entries: &[Entry], there: &[bool]) -> Result<(), ReleaseError> {
    let mut cursor = tree.cursor();
    for (index, entry) in entries.iter().enumerate() {
        if entry.kind == EntryKind::Dir && there.get(index) != Some(&true) {
            cursor.create_dir(&entry.path, 0o755)?;
        }
    }
    Ok(())
}

/// Turns a spare tree of `old` into the common part of `old` and `new`, with the directories of `new`. Says which entries of
/// `new` are there, and which of those are files.
fn clear_changed(tree: &Confined, old: &[Entry], new: &[Entry]) -> Result<(Vec<bool>, Vec<AtomicBool>), ReleaseError> {
    let mut cursor = tree.cursor();
    let (gone, there) = compared(old, new);
    // Backwards: what a directory holds goes before the directory.
    for entry in gone.into_iter().rev() {
        if entry.kind == EntryKind::Dir { cursor.remove_dir(&entry.path)? } else { cursor.remove(&entry.path)? }
    }
    make_directories(tree, new, &there)?;
    let is_file = |entry: &Entry| matches!(entry.kind, EntryKind::File { .. });
    let linked = new.iter().zip(&there).map(|(entry, there)| AtomicBool::new(*there && is_file(entry))).collect();
    Ok((there, linked))
}

/// Which entries of `old` the new list does not have as they are, and of each in `new` whether the old list has it. Both are sorted.
fn compared<'a>(old: &'a [Entry], new: &[Entry]) -> (Vec<&'a Entry>, Vec<bool>) {
    let (mut gone, mut there) = (Vec::new(), Vec::with_capacity(new.len()));
    let mut old = old.iter().peekable();
    for entry in new {
        while let Some(before) = old.next_if(|old| old.path < entry.path) {
            gone.push(before);
        }
        let same = old.next_if(|old| old.path == entry.path);
        there.push(same.is_some_and(|old| old.kind == entry.kind));
        gone.extend(same.filter(|old| old.kind != entry.kind));
    }
    gone.extend(old);
    (gone, there)
}

/// Links every file that both releases have with the same digest and mode; says which ones. What cannot be linked is unpacked.
fn share(tree: &Confined, base: Base<'_>, entries: &[Entry], threads: usize) -> Result<Vec<AtomicBool>, ReleaseError> {
    let (_, same) = compared(base.entries, entries);
    let linked: Vec<AtomicBool> = entries.iter().map(|_| AtomicBool::new(false)).collect();
    let parts: Vec<_> = entries.chunks(256).zip(same.chunks(256)).zip(linked.chunks(256)).collect();
    let next = AtomicUsize::new(0);
    let results = each_thread(threads, || {
        let (mut from, mut to) = (base.tree.cursor(), tree.cursor());
        while let Some(((entries, same), linked)) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
            for ((entry, same), linked) in entries.iter().zip(*same).zip(*linked) {
                if let EntryKind::File { size, executable, .. } = &entry.kind
                    && *same
                {
                    linked.store(share_one(&mut from, &mut to, &entry.path, &entry.path, *size, *executable)?, Ordering::Relaxed);
                }
            }
        }
        Ok::<(), ReleaseError>(())
    });
    for result in results {
        result?;
    }
    Ok(linked)
}

fn share_one(
    from: &mut Cursor<'_>,
    to: &mut Cursor<'_>,
    old: &str,
    path: &str,
    size: u64,
    executable: bool,
) -> Result<bool, ReleaseError> {
    // EMLINK, EXDEV, EPERM, a file that is gone: whatever the reason, it can be written or is missed later.
    if to.hard_link(from, old, path).is_err() {
        return Ok(false);
    }
    // Looked at after linking: what has this name now is what the release gets.
    let stat = to.stat(path)?;
    let right = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        && u64::try_from(stat.st_size) == Ok(size)
        && stat.st_mode & 0o7777 == if executable { 0o755 } else { 0o644 };
    if !right {
        to.remove(path)?;
    }
    Ok(right)
}

fn refused(source: ArchiveError) -> ReleaseError {
    ReleaseError::Archive { doing: "accepted", source }
}

/// Writes a file without content.
fn empty(index: usize, entry: &Entry, sink: &mut impl Sink) -> Result<(), ReleaseError> {
    if matches!(&entry.kind, EntryKind::File { digest, .. } if *digest != Digest::of(b"")) {
        return Err(refused(ArchiveError::Digest { path: entry.path.clone() }));
    }
    let mut act = || if sink.begin(index, entry)? { sink.end() } else { Ok(()) };
    act().map_err(refused)
}

/// Writes a file with the content of another one, which is only opened here.
fn again(from: &mut Cursor<'_>, path: &str, index: usize, entry: &Entry, sink: &mut impl Sink) -> Result<(), ReleaseError> {
    let EntryKind::File { digest, .. } = &entry.kind else { return Ok(()) };
    let mut file = from.open(path)?;
    if !sink.begin(index, entry).map_err(refused)? {
        return Ok(());
    }
    let (mut hasher, mut buffer) = (blake3::Hasher::new(), vec![0; 1 << 16]);
    loop {
        let read = file.read(&mut buffer).map_err(|e| from.failed("read", path, e))?;
        let piece = buffer.get(..read).unwrap_or_default();
        if piece.is_empty() {
            break;
        }
        hasher.update(piece);
        sink.data(piece).map_err(refused)?;
    }
    if Digest::from(hasher.finalize()) != *digest {
        return Err(refused(ArchiveError::Digest { path: entry.path.clone() }));
    }
    sink.end().map_err(refused)
}

struct Writer<'a, S> {
    cursor: Cursor<'a>,
    open: Option<(File, String)>,
    skip: &'a S,
    report: UnpackReport,
    /// Files whose content may not be on the disk yet.
    held: Vec<(File, String)>,
}

impl<'a, S> Writer<'a, S> {
    fn new(cursor: Cursor<'a>, skip: &'a S) -> Writer<'a, S> {
        Writer { cursor, open: None, skip, report: UnpackReport::default(), held: Vec::new() }
    }

    /// Has what was unpacked on the disk, but for names and sizes; all are in good time, because their writing began long ago.
    fn write_out(&mut self) -> Result<(), ArchiveError> {
        if self.report.unpacked > BY_ITSELF {
            self.held.clear();
        }
        for (file, path) in self.held.drain(..) {
            durable::write_out(&file).map_err(|e| self.cursor.failed("sync", path.as_str(), e))?;
        }
        Ok(())
    }
}

impl<S: Fn(usize) -> bool> Sink for Writer<'_, S> {
    fn begin(&mut self, index: usize, entry: &Entry) -> Result<bool, ArchiveError> {
        let EntryKind::File { executable, size, .. } = &entry.kind else { return Ok(false) };
        if (self.skip)(index) {
            return Ok(false);
        }
        let file = self.cursor.create(&entry.path, if *executable { 0o755 } else { 0o644 })?;
        self.open = Some((file, entry.path.clone()));
        self.report.unpacked += 1;
        self.report.bytes += size;
        Ok(true)
    }

    fn data(&mut self, part: &[u8]) -> Result<(), ArchiveError> {
        match &mut self.open {
            Some((file, path)) => file.write_all(part).map_err(|e| self.cursor.failed("write", path.as_str(), e).into()),
            None => Ok(()),
        }
    }

    fn end(&mut self) -> Result<(), ArchiveError> {
        let Some((file, path)) = self.open.take() else { return Ok(()) };
        if self.report.unpacked <= BY_ITSELF {
            durable::begin(&file);
            self.held.push((file, path));
        }
        Ok(())
    }
}
