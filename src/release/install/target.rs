//! Fills the tree of an installation from an archive, from a delta or from a copy.

use std::{
    cmp::Reverse,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use larder_archive::{
    Archive, ArchiveError, FrameReader,
    delta::{ContentOrigin, Delta},
    pool::{each_thread, for_each},
};

use super::{
    UnpackReport,
    reuse::{Damaged, Linker, ReuseBase, clear_changed, make_directories, share},
    writer::{SYNCED_SINGLY, Writer, copy_file, empty, refused},
};
use crate::{
    host::files::{Confined, FileError, durable},
    model::{Entry, EntryKind},
    release::ReleaseError,
};

/// The number of copies for which one more thread is started.
const WORTH_A_THREAD: usize = 16;

/// A tree that an installation fills.
pub(super) struct InstallTarget<'a> {
    pub(super) tree: &'a Confined,
    /// The installed previous release, whose files may be shared.
    pub(super) base: Option<ReuseBase<'a>>,
    /// True if the tree is a complete copy of the base, so that only the differences are applied.
    pub(super) is_spare: bool,
    pub(super) threads: usize,
    /// The files of the base that could not be shared because of their content.
    pub(super) damaged: Damaged,
}

impl InstallTarget<'_> {
    pub(super) fn fill(&self, archive: &Archive<'_>, entries: &[Entry]) -> Result<UnpackReport, ReleaseError> {
        let (there, linked) = self.prepare(entries)?;
        let report = self.unpack(archive, entries, &linked).map_err(refused)?;
        self.finish(entries, &there, &linked, report)
    }

    pub(super) fn fill_by_delta(&self, delta: &Delta<'_>, entries: &[Entry]) -> Result<UnpackReport, ReleaseError> {
        let (there, linked) = self.prepare(entries)?;
        self.link_moved(delta, entries, &linked)?;
        let report = self.patch(delta, entries, &linked)?;
        self.finish(entries, &there, &linked, report)
    }

    pub(super) fn fill_by_copy(&self, base: &Confined, entries: &[Entry]) -> Result<UnpackReport, ReleaseError> {
        let (there, linked) = self.prepare(entries)?;
        let is_linked = |index: usize| linked.get(index).is_some_and(|linked| linked.load(Ordering::Relaxed));
        let (mut from, mut writer) = (base.cursor(), Writer::new(self.tree.cursor(), &is_linked));
        for (index, entry) in entries.iter().enumerate() {
            if matches!(entry.kind, EntryKind::File { .. }) && !is_linked(index) {
                copy_file(&mut from, &entry.path, index, entry, &mut writer)?;
            }
        }
        writer.write_out().map_err(refused)?;
        let report = UnpackReport { entries: entries.len() as u64, ..writer.report };
        self.finish(entries, &there, &linked, report)
    }

    /// Creates directories and shares files. Returns two lists with one flag for each entry: true if a spare tree already has the entry,
    /// and true if the file need not be written. An empty list means that all flags are false.
    fn prepare(&self, entries: &[Entry]) -> Result<(Vec<bool>, Vec<AtomicBool>), ReleaseError> {
        if let (Some(base), true) = (self.base, self.is_spare) {
            return clear_changed(self.tree, base.entries, entries, self.threads);
        }
        self.tree.clear()?;
        make_directories(self.tree, entries, &[], self.threads)?;
        let linked = match self.base {
            Some(base) => share(self.tree, base, entries, self.threads, &self.damaged)?,
            None => Vec::new(),
        };
        Ok((Vec::new(), linked))
    }

    /// Creates the symbolic links, then syncs everything to the disk.
    fn finish(
        &self,
        entries: &[Entry],
        there: &[bool],
        linked: &[AtomicBool],
        mut report: UnpackReport,
    ) -> Result<UnpackReport, ReleaseError> {
        (report.damaged, report.first_damaged) = self.damaged.found();
        report.linked = linked.iter().filter(|linked| linked.load(Ordering::Relaxed)).count() as u64;
        let mut cursor = self.tree.cursor();
        for (index, entry) in entries.iter().enumerate() {
            if let EntryKind::Link { target } = &entry.kind
                && there.get(index) != Some(&true)
            {
                cursor.symlink(target, &entry.path)?;
            }
        }
        if report.unpacked <= SYNCED_SINGLY && durable::is_ordered(self.tree) {
            durable::commit(self.tree).map_err(|e| FileError::io("sync", self.tree.path(), e))?;
        } else {
            self.tree.sync_file_system()?;
        }
        Ok(report)
    }

    /// Links files whose content is at another path of the previous release, and marks them in `linked`.
    fn link_moved(&self, delta: &Delta<'_>, entries: &[Entry], linked: &[AtomicBool]) -> Result<(), ReleaseError> {
        let Some(base) = self.base else { return Ok(()) };
        let places = entries.iter().zip(linked).enumerate();
        let left: Vec<_> = places.filter(|(_, (_, linked))| !linked.load(Ordering::Relaxed)).collect();
        for_each(
            &left,
            self.threads,
            || Linker::new(base.tree, self.tree, &self.damaged),
            |linker, (index, (entry, linked))| {
                if let EntryKind::File { executable, .. } = &entry.kind
                    && let ContentOrigin::Old(old) = delta.origin(*index)
                    && let Some(Entry { path, kind: EntryKind::File { executable: was, .. } }) = delta.old_entry(old)
                    && was == executable
                {
                    linked.store(linker.link(path, entry)?, Ordering::Relaxed);
                }
                Ok::<(), ReleaseError>(())
            },
        )
    }

    /// Writes the files that are not `linked`, from the patches of the delta or as copies of other files.
    fn patch(&self, delta: &Delta<'_>, entries: &[Entry], linked: &[AtomicBool]) -> Result<UnpackReport, ReleaseError> {
        let is_linked = |index: usize| linked.get(index).is_some_and(|linked| linked.load(Ordering::Relaxed));
        let groups = delta.groups();
        let is_left = |(index, entry): &(usize, &Entry)| matches!(entry.kind, EntryKind::File { .. }) && !is_linked(*index);
        let left = entries.iter().enumerate().filter(is_left).map(|(index, entry)| (index, entry, delta.origin(index)));
        let left = left.filter(|(.., from)| *from != ContentOrigin::Patch);
        let (second, copies): (Vec<_>, Vec<_>) = left.partition(|(.., from)| matches!(from, ContentOrigin::New(_)));
        let (next, next_copy) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let counted = each_thread(self.threads.min(groups.len().max(copies.len())), || -> Result<_, ReleaseError> {
            let (mut reader, mut writer) = (delta.reader(), Writer::new(self.tree.cursor(), &is_linked));
            while let Some(group) = groups.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(e) = delta.read(*group, &mut reader, &mut writer) {
                    next.store(groups.len(), Ordering::Relaxed); // All threads stop.
                    return Err(e.into());
                }
            }
            while let Some((index, entry, from)) = copies.get(next_copy.fetch_add(1, Ordering::Relaxed)) {
                match from {
                    ContentOrigin::Old(old) => reader.copy(*old, *index, entry, &mut writer)?,
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
        // A file with the same content as another new file is copied from that file, which has been written above.
        let next = AtomicUsize::new(0);
        let counted = each_thread(self.threads.min(second.len().div_ceil(WORTH_A_THREAD)), || -> Result<_, ReleaseError> {
            let (mut from, mut writer) = (self.tree.cursor(), Writer::new(self.tree.cursor(), &is_linked));
            while let Some((index, entry, origin)) = second.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let ContentOrigin::New(first) = origin
                    && let Some(first) = entries.get(*first)
                {
                    copy_file(&mut from, &first.path, *index, entry, &mut writer)?;
                }
            }
            writer.write_out().map_err(refused)?;
            Ok(writer.report)
        });
        for part in counted {
            report.add(&part?);
        }
        Ok(report)
    }

    /// Unpacks the files that are not `linked`, from the frames that hold them.
    fn unpack(&self, archive: &Archive<'_>, entries: &[Entry], linked: &[AtomicBool]) -> Result<UnpackReport, ArchiveError> {
        let is_linked = |index: usize| linked.get(index).is_some_and(|linked| linked.load(Ordering::Relaxed));
        let wanted = |range: std::ops::Range<usize>| {
            let mut part = entries.iter().enumerate().skip(range.start).take(range.len());
            part.any(|(index, entry)| matches!(entry.kind, EntryKind::File { .. }) && !is_linked(index))
        };
        let mut frames: Vec<usize> =
            archive.frames().enumerate().filter(|(_, range)| wanted(range.clone())).map(|(frame, _)| frame).collect();
        // The largest frames are unpacked first, so that all threads finish at about the same time.
        frames.sort_by_key(|frame| Reverse(archive.raw(*frame)));
        let next = AtomicUsize::new(0);
        let counted = each_thread(self.threads.min(frames.len()), || {
            let mut reader = FrameReader::new()?;
            let mut writer = Writer::new(self.tree.cursor(), &is_linked);
            while let Some(frame) = frames.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(e) = archive.read(*frame, &mut reader, &mut writer) {
                    next.store(frames.len(), Ordering::Relaxed); // All threads stop.
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
