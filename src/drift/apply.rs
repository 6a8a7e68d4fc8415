//! Applies a patch to the release in a slot. If a change of the patch conflicts with the release, no change is applied.
//!
//! All conflicts are found before the first file is written. If a later write fails, as on a full disk, a part of the patch stays in the
//! slot. The caller must then empty the slot before a process runs in the slot.
//!
//! A change that the release already contains is skipped, because the fix may have been committed after the patch was saved. If the release
//! and the patch change different lines of a text file, the changes are merged, as patch(1) does. Every other difference is a conflict.

use std::{
    fs::File,
    io::{Read, Write},
    os::unix::fs::{FileExt, PermissionsExt},
};

use larder_archive::{Archive, ArchiveError, ArchiveLimits, FrameReader, Sink};
use rustix::fs::FileType;
use serde::{Deserialize, Serialize};

use super::{DriftPaths, Drifted, SavedAs, look::hash, save::text, whole};
use crate::{
    host::files::{Confined, Cursor, FileError},
    model::{ArchiveInfo, Entry, EntryKind},
    release::{ChangeKind, ReleaseError, WorkerAnswer},
};

/// The job of the patch worker. Descriptor 5 is the diff. Descriptor 6 is the archive, if the patch has an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplyJob {
    /// The changes to apply.
    pub changes: Vec<Drifted>,
    /// The frames of the archive; `None` if the patch has no archive.
    pub archive: Option<ArchiveInfo>,
}

/// The result of applying a patch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Applied {
    /// All changes are in the slot.
    Done {
        /// The paths that were changed in the slot.
        changed: Vec<String>,
        /// The paths at which changes of the patch were merged with changes of the release.
        merged: Vec<String>,
        /// The number of changes that the release already contained.
        there: u64,
    },
    /// The slot was not changed, because of these conflicts. Each conflict is a pair of path and reason.
    Conflicts(Vec<(String, String)>),
}

/// Applies a patch. After an error, the slot may contain a part of the patch.
pub fn work(job: &ApplyJob, places: &DriftPaths, text: &File, archive: Option<&File>) -> WorkerAnswer<Applied> {
    apply(job, places, text, archive).into()
}

/// The action of the worker at a path.
enum Move {
    /// Do nothing, because the release already contains the change.
    There,
    /// Remove the entry.
    Remove,
    /// Create a directory or a symlink.
    Make(EntryKind),
    /// Write a text file with this content. The flag is true for an executable file.
    Write(String, bool),
    /// Set the mode of a file. The flag is true for an executable file.
    Mode(bool),
    /// Unpack the file from the archive.
    Whole,
}

/// The maximum size of the diff of one file, in bytes. Text files of up to 1 MiB are saved as diffs, and the diff of two such files is
/// smaller than this limit.
const MAX_DIFF: usize = 8 << 20;

fn apply(job: &ApplyJob, places: &DriftPaths, diffs: &File, archive: Option<&File>) -> Result<Applied, ReleaseError> {
    let app = Confined::open(&places.app)?;
    let (mut moves, mut conflicts, mut merged) = (Vec::new(), Vec::new(), Vec::new());
    for change in job.changes.iter().filter(|change| change.noise.is_none() && change.kept != SavedAs::No) {
        match decide(&app, change, diffs) {
            Ok((action, was_merged)) => {
                if was_merged {
                    merged.push(change.path.clone());
                }
                moves.push((change, action));
            }
            Err(why) => conflicts.push((change.path.clone(), why)),
        }
    }
    if !conflicts.is_empty() {
        return Ok(Applied::Conflicts(conflicts));
    }
    let there = moves.iter().filter(|(_, action)| matches!(action, Move::There)).count() as u64;
    let changed =
        moves.iter().filter(|(_, action)| !matches!(action, Move::There)).map(|(change, _)| change.path.clone()).collect();
    perform(&app, &moves)?;
    if let (Some(info), Some(file)) = (&job.archive, archive) {
        let wanted: Vec<&str> =
            moves.iter().filter(|(_, action)| matches!(action, Move::Whole)).map(|(change, _)| change.path.as_str()).collect();
        unpack(&app, &whole(&job.changes), info, file, &wanted)?;
    }
    Ok(Applied::Done { changed, merged, there })
}

/// Returns the entry at a path of the slot, or `None` if the path does not exist. Fails with the reason for a conflict.
fn current(app: &Confined, path: &str) -> Result<Option<EntryKind>, String> {
    let mut cursor = app.cursor();
    let stat = match cursor.stat(path) {
        Ok(stat) => stat,
        Err(FileError::Io { source, .. }) => {
            use rustix::io::Errno;
            let is = |errno: Errno| source.raw_os_error() == Some(errno.raw_os_error());
            return match () {
                () if is(Errno::NOENT) => Ok(None),
                () if is(Errno::NOTDIR) || is(Errno::LOOP) => {
                    Err(String::from("a parent of this path is not a directory in this release"))
                }
                () => Err(format!("cannot read this path: {source}")),
            };
        }
        Err(error) => return Err(error.to_string()),
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Ok(Some(EntryKind::Dir)),
        FileType::RegularFile => {
            let size = u64::try_from(stat.st_size).unwrap_or_default();
            let (size, digest) = hash(&mut cursor, path.as_ref(), size).map_err(|error| error.to_string())?;
            Ok(Some(EntryKind::File { size, digest, executable: stat.st_mode & 0o100 != 0 }))
        }
        FileType::Symlink => {
            let target = cursor.read_link(path).map_err(|error| error.to_string())?;
            Ok(Some(EntryKind::Link { target: target.to_string_lossy().into_owned() }))
        }
        _ => Err(String::from("this release has a special file at this path")),
    }
}

/// Returns the action for a change. The flag is true if the change is merged: the entry in the slot differs from the entry that the patch
/// changed. Fails with the reason for a conflict.
fn decide(app: &Confined, change: &Drifted, diffs: &File) -> Result<(Move, bool), String> {
    let current = current(app, &change.path)?;
    if current == change.now {
        return Ok((Move::There, false));
    }
    if current != change.was {
        return merge(app, change, current.as_ref(), diffs).map(|action| (action, true));
    }
    let clean = match (&change.now, change.kept) {
        (None, _) => Move::Remove,
        (Some(EntryKind::File { executable, digest, .. }), SavedAs::Text { .. }) => {
            let base = match &change.was {
                Some(EntryKind::File { size, digest, .. }) => {
                    text(app, &change.path, *size, digest).ok_or("this release has no text file of at most 1 MiB at this path")?
                }
                _ => String::new(),
            };
            let new = patched(&base, change, diffs)?;
            if crate::model::Digest::of(new.as_bytes()) != *digest {
                return Err(String::from("the patch is damaged: the result has another digest than expected"));
            }
            Move::Write(new, *executable)
        }
        (Some(EntryKind::File { .. }), SavedAs::Whole) => Move::Whole,
        (Some(EntryKind::File { executable, .. }), _) => Move::Mode(*executable),
        (Some(kind), _) => Move::Make(kind.clone()),
    };
    Ok((clean, false))
}

/// Returns the action for a path at which this release differs from the release that the patch was saved from.
fn merge(app: &Confined, change: &Drifted, current: Option<&EntryKind>, diffs: &File) -> Result<Move, String> {
    let now_executable = |was: &Option<EntryKind>, now: bool, current: bool| match was {
        Some(EntryKind::File { executable, .. }) if *executable == now => current,
        _ => now,
    };
    match (current, &change.was, &change.now) {
        (
            Some(EntryKind::File { size, digest, executable: current }),
            Some(EntryKind::File { digest: was, .. }),
            Some(EntryKind::File { executable, digest: now, .. }),
        ) => {
            let executable = now_executable(&change.was, *executable, *current);
            match change.kept {
                // Only the mode must be set: the patch changes no content, or the release already has the new content.
                SavedAs::Listed => Ok(Move::Mode(executable)),
                _ if digest == now => Ok(Move::Mode(executable)),
                SavedAs::Whole if digest == was => Ok(Move::Whole),
                SavedAs::Text { .. } => {
                    let base = text(app, &change.path, *size, digest)
                        .ok_or("this release has no text file of at most 1 MiB at this path")?;
                    patched(&base, change, diffs).map(|new| Move::Write(new, executable))
                }
                _ => Err(String::from("this release has another version of the file")),
            }
        }
        (None, Some(_), Some(_)) => Err(String::from("this release no longer has the file")),
        (_, _, None) => Err(String::from("this release has another version of the file that the patch removes")),
        (_, None, Some(_)) => Err(String::from("this release has another file at this path")),
        _ => Err(String::from("this release has another version of the file")),
    }
}

fn patched(base: &str, change: &Drifted, diffs: &File) -> Result<String, String> {
    let SavedAs::Text { at, length } = change.kept else { return Err(String::from("the patch has no diff for this file")) };
    let length = usize::try_from(length).ok().filter(|length| *length <= MAX_DIFF).ok_or("the patch is damaged")?;
    let mut bytes = vec![0; length];
    diffs.read_exact_at(&mut bytes, at).map_err(|error| format!("cannot read the patch: {error}"))?;
    let text = std::str::from_utf8(&bytes).map_err(|_| "the patch is damaged")?;
    let patch = diffy::Patch::from_str(text).map_err(|error| format!("the patch is damaged: {error}"))?;
    diffy::apply(base, &patch).map_err(|_| String::from("this release has changed the same lines"))
}

/// Performs the actions, except the unpacking of whole files.
fn perform(app: &Confined, moves: &[(&Drifted, Move)]) -> Result<(), ReleaseError> {
    let mut cursor = app.cursor();
    // Entries are removed in reverse order, so that a directory is emptied before it is removed.
    for (change, action) in moves.iter().rev() {
        let replaced = matches!(action, Move::Make(_) | Move::Write(..) | Move::Whole);
        if !(matches!(action, Move::Remove) || (replaced && cursor.stat(&change.path).is_ok())) {
            continue;
        }
        if change.was == Some(EntryKind::Dir) {
            // If the release has new entries in the directory, the removal fails and the directory stays.
            let removed = cursor.remove_dir(&change.path);
            if change.change != ChangeKind::Removed {
                removed?;
            }
        } else {
            cursor.remove(&change.path)?;
        }
    }
    for (change, action) in moves {
        if !matches!(action, Move::There | Move::Remove) {
            parents(&mut cursor, &change.path)?;
        }
        match action {
            Move::There | Move::Remove | Move::Whole => {}
            Move::Make(EntryKind::Link { target }) => cursor.symlink(target, &change.path)?,
            Move::Make(_) => cursor.create_dir(&change.path, 0o755)?,
            Move::Write(text, executable) => {
                let mut file = cursor.create(&change.path, mode(*executable))?;
                file.write_all(text.as_bytes()).map_err(|e| cursor.failed("write", &change.path, e))?;
            }
            Move::Mode(executable) => set_mode(&mut cursor, &change.path, *executable)?,
        }
    }
    Ok(())
}

fn mode(executable: bool) -> u32 {
    if executable { 0o755 } else { 0o644 }
}

/// Sets the mode of a file. The mode of a file that belongs to another user cannot be changed. Such a file, which comes from the release,
/// is replaced by a copy.
fn set_mode(cursor: &mut Cursor<'_>, path: &str, executable: bool) -> Result<(), ReleaseError> {
    let mut content = Vec::new();
    let file = cursor.open(path)?;
    if file.set_permissions(std::fs::Permissions::from_mode(mode(executable))).is_ok() {
        return Ok(());
    }
    (&file).read_to_end(&mut content).map_err(|e| cursor.failed("read", path, e))?;
    cursor.remove(path)?;
    let mut file = cursor.create(path, mode(executable))?;
    Ok(file.write_all(&content).map_err(|e| cursor.failed("write", path, e))?)
}

fn parents(cursor: &mut Cursor<'_>, path: &str) -> Result<(), ReleaseError> {
    for (at, _) in path.match_indices('/') {
        let parent = path.get(..at).unwrap_or_default();
        match cursor.stat(parent) {
            Ok(_) => {}
            Err(_) => cursor.create_dir(parent, 0o755)?,
        }
    }
    Ok(())
}

/// Unpacks the files whose paths are in `wanted` from the archive of whole files.
fn unpack(app: &Confined, entries: &[Entry], info: &ArchiveInfo, file: &File, wanted: &[&str]) -> Result<(), ReleaseError> {
    let refused = |source| ReleaseError::PatchArchive { doing: "accept", source };
    let archive = Archive::open(file, entries, info, &ArchiveLimits::default()).map_err(refused)?;
    let mut reader = FrameReader::new().map_err(refused)?;
    let mut writer = Writer { cursor: app.cursor(), wanted, open: None };
    for frame in 0..archive.frames().len() {
        archive.read(frame, &mut reader, &mut writer).map_err(refused)?;
    }
    Ok(())
}

struct Writer<'a> {
    cursor: Cursor<'a>,
    wanted: &'a [&'a str],
    open: Option<(File, String)>,
}

impl Sink for Writer<'_> {
    fn begin(&mut self, _: usize, entry: &Entry) -> Result<bool, ArchiveError> {
        if !self.wanted.contains(&entry.path.as_str()) {
            return Ok(false);
        }
        let executable = matches!(entry.kind, EntryKind::File { executable: true, .. });
        self.open = Some((self.cursor.create(&entry.path, mode(executable))?, entry.path.clone()));
        Ok(true)
    }

    fn data(&mut self, part: &[u8]) -> Result<(), ArchiveError> {
        match &mut self.open {
            Some((file, path)) => file.write_all(part).map_err(|e| self.cursor.failed("write", &*path, e).into()),
            None => Ok(()),
        }
    }

    fn end(&mut self) -> Result<(), ArchiveError> {
        self.open = None;
        Ok(())
    }
}
