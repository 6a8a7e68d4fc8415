//! Verification of a restore point: reads every stored file back and compares the file with the index.

use std::{
    ffi::OsStr,
    os::{fd::AsFd, unix::ffi::OsStrExt},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use rustix::{fs::FileType, io::Errno};

use crate::{
    Entry, Kind, Point, PointError, Result, Time, Verified,
    content::{Copier, forget_cache},
    pool::{self, lock},
    sys,
};

/// The options of a verification.
#[derive(Debug, Clone)]
pub struct VerifyOptions<'a> {
    /// The number of threads.
    pub threads: usize,
    /// True to drop cached contents from the page cache first, so that the contents are read from the disk.
    pub from_disk: bool,
    /// A flag that cancels the verification when it becomes true. A cancelled verification records no result.
    pub cancel: Option<&'a AtomicBool>,
    /// Damaged files that the caller has found, such as a dump that its program cannot read.
    pub also: Vec<Damage>,
}

impl Default for VerifyOptions<'_> {
    fn default() -> Self {
        VerifyOptions { threads: 4, from_disk: true, cancel: None, also: Vec::new() }
    }
}

/// A difference between a stored file and the index.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The file does not exist, or a link is in its place, or one of its parents is not a directory.
    #[error("it is missing")]
    Missing,
    /// The path exists, but is not a regular file.
    #[error("it is not a regular file")]
    NotRegular,
    /// The size differs.
    #[error("it has {seen} bytes (expected {expected})")]
    Size {
        /// The size of the stored file.
        seen: u64,
        /// The size that was captured.
        expected: u64,
    },
    /// The digest differs.
    #[error("its content differs from the captured content")]
    Content,
    /// The file cannot be read. The text is the cause.
    #[error("it cannot be read: {0}")]
    Unreadable(String),
    /// The index itself is damaged, so no file can be restored. The text is the cause.
    #[error("{0}")]
    Index(String),
    /// The content is as captured, but no program can use the file. The text is the cause.
    #[error("{0}")]
    Unusable(String),
}

/// A damaged file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The path of the file, or `index` for the index itself.
    pub path: String,
    /// The fault.
    pub fault: Fault,
}

/// The outcome of a verification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyReport {
    /// The number of files that were checked, missing files included.
    pub files: u64,
    /// The total size of these files according to the index, in bytes.
    pub bytes: u64,
    /// The number of damaged files.
    pub damaged: u64,
    /// At most 1000 of the damaged files, sorted by path.
    pub damages: Vec<Damage>,
    /// The result that was recorded on the disk.
    pub verified: Verified,
}

/// The maximum number of damaged files in the list. Further damaged files are only counted.
const MAX_LISTED: usize = 1000;

impl Point {
    /// Reads back all files and records the result durably beside the restore point.
    pub fn verify(&mut self, options: &VerifyOptions<'_>) -> Result<VerifyReport> {
        let at = Time::now();
        let (files, bytes, damaged) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        let damages = Mutex::new(Vec::new());
        let note = |path: String, fault| {
            damaged.fetch_add(1, Ordering::Relaxed);
            let mut damages = lock(&damages);
            if damages.len() < MAX_LISTED {
                damages.push(Damage { path, fault });
            }
        };
        options.also.iter().cloned().for_each(|damage| note(damage.path, damage.fault));
        match self.entries() {
            Ok(entries) => {
                let copier = Copier::new(false, options.cancel);
                pool::each_chunk(options.threads, &entries, 64, options.cancel, |chunk| {
                    for entry in chunk {
                        let Kind::File { size, .. } = entry.kind else { continue };
                        files.fetch_add(1, Ordering::Relaxed);
                        bytes.fetch_add(size, Ordering::Relaxed);
                        if let Some(fault) = self.fault(entry, &copier, options.from_disk)? {
                            note(entry.shown(), fault);
                        }
                    }
                    Ok(())
                })?;
            }
            Err(error @ (PointError::Malformed { .. } | PointError::Limit { .. })) => {
                note("index".into(), Fault::Index(error.to_string()))
            }
            Err(PointError::Io { source, .. }) => note("index".into(), Fault::Unreadable(source.to_string())),
            Err(other) => return Err(other),
        }
        let mut damages = damages.into_inner().unwrap_or_else(PoisonError::into_inner);
        damages.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        let damaged = damaged.into_inner();
        let verified = Verified { at, point: self.digest, damaged };
        self.record(verified)?;
        Ok(VerifyReport { files: files.into_inner(), bytes: bytes.into_inner(), damaged, damages, verified })
    }

    fn fault(&self, entry: &Entry, copier: &Copier<'_>, from_disk: bool) -> Result<Option<Fault>> {
        let Kind::File { size: expected, digest, .. } = &entry.kind else { return Ok(None) };
        let unreadable = |e: Errno| Fault::Unreadable(std::io::Error::from(e).to_string());
        let file = match self.open_stored(entry) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(Some(Fault::Missing)),
            // A lack of resources of this process does not mean that the file is damaged.
            Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM)) => {
                return Err(PointError::io("open", OsStr::from_bytes(&entry.path), error));
            }
            Err(error) => return Ok(Some(unreadable(error))),
            Ok(file) => file,
        };
        let stat = match sys::stat_fd(&file) {
            Ok(stat) => stat,
            Err(error) => return Ok(Some(unreadable(error))),
        };
        if stat.kind != FileType::RegularFile {
            return Ok(Some(Fault::NotRegular));
        }
        if stat.size != *expected {
            return Ok(Some(Fault::Size { seen: stat.size, expected: *expected }));
        }
        if from_disk {
            forget_cache(&file);
        }
        match copier.digest(file.as_fd(), *expected, &entry.path) {
            Ok((seen, length)) if (seen, length) == (*digest, *expected) => Ok(None),
            Ok(_) => Ok(Some(Fault::Content)),
            Err(PointError::Io { source, .. }) => Ok(Some(Fault::Unreadable(source.to_string()))),
            Err(other) => Err(other),
        }
    }
}
