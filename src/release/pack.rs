//! The worker that reads installed trees: it makes deltas for other servers, and packs releases that were transferred as a delta.

use std::{fs::File, path::Path};

use larder_archive::{
    self as archive, ArchiveError, Item, Previous,
    delta::{self, DeltaError, DeltaReport, FileSource},
};
use serde::{Deserialize, Serialize};

use super::{
    ReleaseError, WorkerAnswer,
    delta::endpoint,
    manifest::{self, encode},
};
use crate::{host::files::Confined, model::ReleaseId};

/// The job of the pack worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PackJob {
    /// The job to make a delta.
    Delta(DeltaJob),
    /// The job to pack an installed release.
    Archive(ArchiveJob),
}

/// The job to make a delta. Descriptor 5 is the delta to write, 6 the older manifest, and 7 the newer manifest. Two descriptors follow for
/// each release with an archive: the archive, and an empty file for its unpacked content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeltaJob {
    /// The location of the files of the older release.
    pub old: PackSource,
    /// The location of the files of the newer release.
    pub new: PackSource,
    /// The number of threads that read and compress.
    pub threads: usize,
}

/// The location of the files of a release. The worker reads the tree. If the tree is damaged or incomplete, the worker reads the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackSource {
    /// The id of the installed tree; `None` if the release is not installed.
    pub tree: Option<ReleaseId>,
    /// True if the archive is among the descriptors.
    pub archive: bool,
}

/// The job to pack an installed release. Descriptor 5 is the archive to write, 6 the manifest to write, and 7 the manifest without frames.
/// If `previous` is true, descriptor 8 is the archive to reuse, and 9 is the manifest of that archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveJob {
    /// The installed release.
    pub release: ReleaseId,
    /// True if an older archive, whose frames may be reused, is among the descriptors.
    pub previous: bool,
    /// The number of threads that read and compress.
    pub threads: usize,
}

/// The result of packing a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveReport {
    /// The size of the archive in bytes.
    pub bytes: u64,
    /// The number of all frames, and the number of frames that were copied from the previous archive.
    pub frames: (u64, u64),
}

/// Makes a delta. `deploy` is the directory of all installed trees.
pub fn delta(job: &DeltaJob, deploy: &Path, files: &[File]) -> WorkerAnswer<DeltaReport> {
    make(job, deploy, files).into()
}

fn make(job: &DeltaJob, deploy: &Path, files: &[File]) -> Result<DeltaReport, ReleaseError> {
    let [out, old, new, rest @ ..] = files else { return Err(missing()) };
    let (old, new) = manifest::parse_both((old, Path::new("the older manifest")), (new, Path::new("the newer manifest")));
    let (old, new) = (old?, new?);
    let (old_end, new_end) = (endpoint(&old)?, endpoint(&new)?);
    let (of_old, of_new) = rest.split_at_checked(if job.old.archive { 2 } else { 0 }).ok_or_else(missing)?;
    let (mut old_files, mut new_files) = (Location::of(job.old, deploy, of_old)?, Location::of(job.new, deploy, of_new)?);
    loop {
        let made = delta::make(&old_end, old_files.source()?, &new_end, new_files.source()?, out, job.threads);
        match made {
            Err(DeltaError::Damaged { release, .. }) if release == old_end.id && old_files.use_archive() => {}
            Err(DeltaError::Damaged { release, .. }) if release == new_end.id && new_files.use_archive() => {}
            made => {
                // The process exits next; freeing a hundred thousand strings first would only take time.
                std::mem::forget((old, new));
                return Ok(made?);
            }
        }
    }
}

/// The opened files of a release: its tree, and its archive with an empty file for unpacked content.
struct Location<'a> {
    tree: Option<Confined>,
    archive: Option<(&'a File, &'a File)>,
}

impl<'a> Location<'a> {
    fn of(origin: PackSource, deploy: &Path, files: &'a [File]) -> Result<Location<'a>, ReleaseError> {
        let archive = match (origin.archive, files) {
            (true, [archive, spool]) => Some((archive, spool)),
            (false, []) => None,
            _ => return Err(missing()),
        };
        let tree = origin.tree.map(|id| Confined::open(deploy).and_then(|deploy| deploy.open_dir(id.to_string())));
        match tree.transpose() {
            Ok(tree) => Ok(Location { tree, archive }),
            Err(_) if archive.is_some() => Ok(Location { tree: None, archive }),
            Err(e) => Err(e.into()),
        }
    }

    fn source(&self) -> Result<FileSource<'_>, ReleaseError> {
        match (&self.tree, self.archive) {
            (Some(tree), _) => Ok(FileSource::Tree(tree)),
            (None, Some((archive, spool))) => Ok(FileSource::Archive { archive, spool }),
            (None, None) => Err(missing()),
        }
    }

    /// Switches from a damaged tree to the archive. Returns false if no tree is in use or no archive is given.
    fn use_archive(&mut self) -> bool {
        self.archive.is_some() && self.tree.take().is_some()
    }
}

/// Packs the installed tree of a release below `deploy`. The job fails if the new archive differs in any byte from the archive that the
/// manifest names.
pub fn archive(job: &ArchiveJob, deploy: &Path, files: &[File]) -> WorkerAnswer<ArchiveReport> {
    again(job, deploy, files).into()
}

fn again(job: &ArchiveJob, deploy: &Path, files: &[File]) -> Result<ArchiveReport, ReleaseError> {
    let [out, out_manifest, manifest, rest @ ..] = files else { return Err(missing()) };
    let mut manifest = manifest::parse_known(manifest, Path::new("the manifest"))?;
    if !archive::compresses_like(&manifest.archive) {
        return Err(ReleaseError::OtherBytes { release: job.release });
    }
    // The reuse of frames only saves time, so an unreadable previous manifest does not fail the job.
    let previous = match rest {
        [archive, older] if job.previous => {
            manifest::parse_known(older, Path::new("the previous manifest")).ok().map(|older| (archive, older))
        }
        _ => None,
    };
    let tree = Confined::open(deploy)?.open_dir(job.release.to_string())?;
    let items: Vec<Item> = manifest.entries.iter().map(Item::from).collect();
    let previous = previous.as_ref().map(|(file, older)| Previous { file, entries: &older.entries, info: &older.archive });
    let written =
        archive::write(&tree, &items, previous, out, job.threads, manifest.archive.bytes).map_err(|source| match source {
            // The limit is the expected size of the archive, so a larger archive differs from the expected archive.
            ArchiveError::TooLarge { .. } => ReleaseError::OtherBytes { release: job.release },
            source => ReleaseError::Archive { doing: "write", source },
        })?;
    if (written.info.digest, written.info.bytes) != (manifest.archive.digest, manifest.archive.bytes) {
        return Err(ReleaseError::OtherBytes { release: job.release });
    }
    manifest.archive = written.info;
    encode::write(&manifest, job.threads, out_manifest)?;
    Ok(ArchiveReport { bytes: manifest.archive.bytes, frames: (manifest.archive.frames.len() as u64, written.copied as u64) })
}

fn missing() -> ReleaseError {
    ReleaseError::Refused { why: "cannot read a release: the worker did not receive all files of its job".to_owned() }
}
