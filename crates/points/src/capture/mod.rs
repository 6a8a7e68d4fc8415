//! The capture of a restore point: the walk over the sources. The content of each file is shared with the previous restore point, cloned or
//! copied.

mod assemble;
mod attach;
mod file;
mod staged;

use std::{
    collections::HashSet,
    ffi::OsStr,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::ffi::OsStrExt,
    },
    panic::resume_unwind,
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use rustix::{
    fs::{AtFlags, Mode, linkat, mkdirat, syncfs},
    io::Errno,
};

use self::file::{Capture, Old};
pub use self::staged::Staged;
use crate::{
    Digest, Entry, Limits, Manifest, Point, PointError, Result, Source, SourceRecord, Store, Time, Totals, changes,
    content::Copier,
    contents::SharedContents,
    index, manifest,
    publish::NewPoint,
    source, step,
    store::{self, Space},
    sys,
    walk::{Counts, Walk},
};

/// The options and limits of a capture.
#[derive(Debug, Clone)]
pub struct CaptureOptions<'a> {
    /// The limits; `free_bytes` applies to the file system of the store.
    pub limits: Limits,
    /// The number of threads.
    pub threads: usize,
    /// True to capture file systems that are mounted below the sources, instead of reporting them.
    pub cross_mounts: bool,
    /// True to report files that this user may not read, instead of failing.
    pub skip_unreadable: bool,
    /// True to clone files if the file system can.
    pub clone: bool,
    /// True to keep the attribute `security.capability`, which only root can restore.
    pub capabilities: bool,
    /// True to sync the file system of the sources first. Without this sync, a write through a shared mapping to a dirty page can
    /// leave the ctime of the file unchanged. The *next* capture would then treat the file as unchanged.
    pub sync_sources: bool,
    /// The maximum number of times that a file is read again because it changed while it was read.
    pub retries: u32,
    /// A flag that stops the capture when it becomes true.
    pub cancel: Option<&'a AtomicBool>,
    /// Contents that the caller has written for this capture.
    pub staged: Option<Staged<'a>>,
}

impl Default for CaptureOptions<'_> {
    fn default() -> Self {
        CaptureOptions {
            limits: Limits::default(),
            threads: 4,
            cross_mounts: false,
            skip_unreadable: false,
            clone: true,
            capabilities: false,
            sync_sources: true,
            retries: 3,
            cancel: None,
            staged: None,
        }
    }
}

/// A finished capture.
#[derive(Debug, Clone, PartialEq)]
pub struct Captured {
    /// The manifest, with totals and skipped files.
    pub manifest: Manifest,
    /// The digest of the manifest. If the digest is also stored elsewhere, it proves later that the restore point was not
    /// replaced.
    pub digest: Digest,
    /// The number of files with data that were left out: unreadable files, and files that were removed or changed in kind during
    /// the walk.
    pub missed: u64,
}

impl Captured {
    /// Returns true if no file with data was left out, and no file changed while it was read.
    pub fn is_exact(&self) -> bool {
        self.missed == 0 && self.manifest.totals.torn == 0
    }
}

impl Store {
    /// Captures `sources`, which are paths below `base`, as restore point `id`. Files that did not change since `previous` are
    /// shared with `previous`. `label` is data of the caller; a restore compares the label with the label that the restore expects. A
    /// failed capture leaves no files behind.
    pub fn capture(
        &self,
        id: &str,
        label: &serde_json::Value,
        base: BorrowedFd<'_>,
        sources: &[Source],
        previous: Option<&Point>,
        options: &CaptureOptions<'_>,
    ) -> Result<Captured> {
        source::check(sources)?;
        let mut distrusted = HashSet::new();
        loop {
            let captured = self.create_point(id, |new, contents| {
                self.write(new, id, label, base, contents, sources, previous, options, &distrusted)
            });
            match captured {
                // The next attempt copies the files of these contents again, and thereby repairs the contents.
                Err(PointError::WrongSize { contents }) if contents.iter().any(|content| !distrusted.contains(content)) => {
                    distrusted.extend(contents);
                }
                other => return other,
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "only the function above calls this function")]
    fn write(
        &self,
        new: &str,
        id: &str,
        label: &serde_json::Value,
        base: BorrowedFd<'_>,
        contents: BorrowedFd<'_>,
        sources: &[Source],
        previous: Option<&Point>,
        options: &CaptureOptions<'_>,
        distrusted: &HashSet<Digest>,
    ) -> Result<(Captured, NewPoint)> {
        let shown = self.path().join(new);
        let (dir, new_contents) = self.open_new(new)?;
        // The time is taken before the sync. A page that is written after the sync is dirty, and the next write to a dirty page can leave
        // the ctime of the file unchanged. The file of such a page has a ctime after `begun`, so the file does not count as settled.
        let begun = Time::now();
        if options.sync_sources {
            syncfs(base).map_err(|e| PointError::io("sync the file system of", "the sources", e))?;
        }
        let staged_source = options.staged.as_ref().and_then(|staged| staged.source.as_deref());
        let live: Vec<Source> = sources.iter().filter(|source| Some(source.path.as_str()) != staged_source).cloned().collect();
        let walk = Walk {
            base,
            sources: &live,
            limits: options.limits,
            cross_mounts: options.cross_mounts,
            skip_unreadable: options.skip_unreadable,
            threads: options.threads,
            cancel: options.cancel,
            counts: Counts::default(),
        };
        // A restore point that is known to be damaged would pass on the damage to the new restore point.
        let previous = previous.filter(|point| point.verified.is_none_or(|verified| verified.damaged == 0));
        let old = match previous {
            Some(point) => {
                // The names and the sizes of the contents are read meanwhile.
                let is_over = AtomicBool::new(false);
                let (index, shared) = thread::scope(|scope| {
                    let shared = scope.spawn(|| self.shared_contents(point, contents, &is_over));
                    let index = point.index();
                    is_over.store(true, Ordering::Relaxed);
                    (index, shared.join().unwrap_or_else(|panic| resume_unwind(panic)))
                });
                Some(Old { index: index?, shared: shared? })
            }
            None => None,
        };
        let capture = Capture {
            walk: &walk,
            options,
            begun,
            new: new_contents,
            old: old.as_ref(),
            distrusted,
            copier: Copier::new(options.clone, options.cancel),
            space: Space::new(self.fd.as_fd(), options.limits.free_bytes),
            entries: Mutex::default(),
            inodes: Mutex::default(),
            more_names: Mutex::default(),
            shared_files: AtomicU64::new(0),
            copied_bytes: AtomicU64::new(0),
        };
        let absent = walk.run(&capture)?;
        if let Some(staged) = &options.staged {
            capture.add_staged(staged)?;
        }
        let entries = capture.assemble()?;
        let Capture { shared_files, copied_bytes, new: new_contents, .. } = capture;
        let (skipped_count, missed, skipped) = walk.counts.skipped();
        let index = match changed_index(&entries, old.as_ref(), previous, dir.as_fd())? {
            Some(changes) => changes,
            None => index::encode(&entries)?,
        };
        let is_absent = |source: &Source| live.iter().position(|live| live == source).is_some_and(|at| absent.contains(&at));
        let record = |source: &Source| SourceRecord { source: source.clone(), is_present: !is_absent(source) };
        let manifest = Manifest {
            version: manifest::VERSION,
            id: id.to_owned(),
            taken: begun.seconds,
            label: label.clone(),
            sources: sources.iter().map(record).collect(),
            totals: Totals {
                shared_files: shared_files.into_inner(),
                copied_bytes: copied_bytes.into_inner(),
                skipped: skipped_count,
                ..Totals::of(&entries)
            },
            index_bytes: index.len() as u64,
            index_digest: Digest::of(&index).to_string(),
            previous: previous.map(|point| point.id().to_owned()),
            skipped,
        };
        manifest.check_entries(&entries)?;
        let bytes = manifest.encode()?;
        let digest = Digest::of(&bytes);
        step();
        store::write_new(dir.as_fd(), store::INDEX, &index, &shown)?;
        store::write_new(dir.as_fd(), store::MANIFEST, &bytes, &shown)?;
        store::write_new(dir.as_fd(), store::CHECKSUMS, store::checksum_line(digest).as_bytes(), &shown)?;
        let shared = old.and_then(|old| match old.shared {
            SharedContents::Listed { sizes, .. } => Some(sizes),
            SharedContents::Files(_) => None,
        });
        Ok((Captured { manifest, digest, missed }, NewPoint { entries, dir, contents: new_contents, shared }))
    }

    /// Returns the contents that can be shared with a restore point. Looks at the sizes of some contents until `is_over` becomes true.
    fn shared_contents(&self, point: &Point, contents: BorrowedFd<'_>, is_over: &AtomicBool) -> Result<SharedContents> {
        if point.has_shared_contents() {
            let (names, sizes) = self.sized_contents(contents, is_over)?;
            Ok(SharedContents::Listed { names, sizes, indexed: OnceLock::new() })
        } else {
            Ok(SharedContents::Files(point.files()?))
        }
    }
}

/// Returns the index as changes of the previous index, and links the base of the changes into the new restore point `dir`. Returns `None` if
/// the index must be written as a whole.
fn changed_index(entries: &[Entry], old: Option<&Old>, previous: Option<&Point>, dir: BorrowedFd<'_>) -> Result<Option<Vec<u8>>> {
    let (Some(old), Some(previous)) = (old, previous) else { return Ok(None) };
    let Some(changes) = changes::encode(&old.index, entries)? else { return Ok(None) };
    match linkat(&previous.fd, old.index.base_name, dir, changes::BASE, AtFlags::empty()) {
        Ok(()) => Ok(Some(changes)),
        Err(Errno::MLINK | Errno::PERM | Errno::ACCESS | Errno::NOENT | Errno::OPNOTSUPP) => Ok(None),
        Err(other) => Err(PointError::io("share the index of", previous.path(), other)),
    }
}

/// Creates the missing directories above `path`.
pub(crate) fn create_parents(root: BorrowedFd<'_>, path: &[u8], mode: u32) -> Result<()> {
    for (at, _) in path.iter().enumerate().filter(|(_, c)| **c == b'/') {
        let above = OsStr::from_bytes(path.get(..at).unwrap_or_default());
        let (parent, name) = sys::split(above.as_bytes());
        let created = sys::open_dir(root, parent, true).and_then(|dir| mkdirat(&dir, name, Mode::from_raw_mode(mode)));
        match created {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(other) => return Err(PointError::io("create", above, other)),
        }
    }
    Ok(())
}
