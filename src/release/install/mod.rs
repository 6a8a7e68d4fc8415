//! The worker that turns an archive into an installed tree; or a delta and the installed tree of the release before.
//!
//! What the previous release holds unchanged is hard-linked from its tree; only the frames with the rest are decompressed. Links
//! are created last, so nothing is ever written through one.
//!
//! A *spare* is an installed copy of the live release, made in advance under the id of a release to come: installing a release
//! `v` with previous release `v` makes one, of hard links only. Installing into a spare touches what changed and nothing else.

mod seal;
mod shared;
mod target;
mod writer;

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use larder_archive::{Archive, Limits, delta::Delta, pool::both};
use serde::{Deserialize, Serialize};

use self::{
    target::{Base, Target},
    writer::refused,
};
use super::{Answer, ReleaseError, delta, store, verify};
use crate::{
    host::files::Confined,
    model::{ArchiveInfo, Digest, Entry, Manifest, ReleaseId},
};

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
    /// Whether the tree to fill is a spare: a complete copy of `previous`, made by an earlier job of this kind that reported success
    /// and this seal, and not touched since. Then only the difference is applied. Anything else in the tree is removed first.
    pub spare: Option<Digest>,
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
    /// Of a copy of the previous release: what tells later whether somebody has been in it.
    pub seal: Option<Digest>,
}

impl UnpackReport {
    fn add(&mut self, part: &UnpackReport) {
        self.unpacked += part.unpacked;
        self.bytes += part.bytes;
    }
}

/// Where the worker finds things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstallPaths {
    /// The tree to fill. What an interrupted attempt left in it is removed first.
    pub tree: PathBuf,
    /// The directory of all installed trees.
    pub deploy: PathBuf,
}

impl InstallPaths {
    /// From `LARDER_TREE` and `LARDER_DEPLOY`.
    pub fn from_environment() -> InstallPaths {
        let place = |name: &str, default: &str| std::env::var_os(name).map_or_else(|| default.into(), PathBuf::from);
        InstallPaths { tree: place("LARDER_TREE", "/tree"), deploy: place("LARDER_DEPLOY", "/deploy") }
    }
}

/// Does the job. May be repeated; the tree is complete and on the disk when it reports success.
pub fn work(
    job: &UnpackJob,
    places: &InstallPaths,
    archive: &File,
    manifest: &File,
    previous: Option<&File>,
) -> Answer<UnpackReport> {
    install(job, places, archive, manifest, previous).into()
}

fn not_installed() -> ReleaseError {
    ReleaseError::delta("the release that it starts from is not installed here")
}

fn install(
    job: &UnpackJob,
    places: &InstallPaths,
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
        None => (store::parse_known(manifest, path)?, None),
    };
    let tree = Confined::open(&places.tree)?;
    // A previous release that is damaged or gone costs time, not the deployment.
    let before = match (job.previous, previous) {
        (Some(id), Some(previous)) => {
            Confined::open(&places.deploy).and_then(|deploy| deploy.open_dir(id.to_string())).ok().map(|tree| (previous, tree))
        }
        _ => None,
    };
    let before_end = before.as_ref().map(|(manifest, _)| delta::plain_endpoint(manifest));
    let base = before.as_ref().map(|(manifest, tree)| Base { tree, entries: &manifest.entries });
    // To look at a tree is mostly the kernel's work, to look at lists is our own: one fills the pauses of the other.
    let (opened, spare) = both(
        || match (job.content, &before) {
            (Content::Archive, _) => {
                let opened = Archive::open(archive, &manifest.entries, &manifest.archive, &job.limits);
                opened.map(Opened::Archive).map_err(refused)
            }
            (Content::Delta, Some((_, base))) => match &before_end {
                Some(old) => Ok(Opened::Delta(Box::new(Delta::open(archive, old, base, &delta::plain_endpoint(&manifest))?))),
                None => Err(not_installed()),
            },
            (Content::Previous, Some((previous, base))) if previous.entries == manifest.entries => Ok(Opened::Previous(base)),
            _ => Err(not_installed()),
        },
        || match (job.spare, base) {
            (Some(seal), Some(base)) => is_spare(places, &tree, seal, base, job.threads),
            _ => Ok(false),
        },
    );
    let (opened, spare) = (opened?, spare?);
    let target = Target { tree: &tree, base, spare, threads: job.threads };
    let report = match &opened {
        Opened::Archive(archive) => target.fill(archive, &manifest.entries),
        Opened::Delta(delta) => target.fill_by_delta(delta, &manifest.entries),
        Opened::Previous(base) => target.fill_by_copy(base, &manifest.entries),
    };
    let report = match report {
        Ok(report) if job.previous == Some(manifest.release) => seal::seal(&tree, &manifest.entries, job.threads)
            .map(|seal| UnpackReport { seal: Some(seal), ..report })
            .map_err(Into::into),
        report => report,
    };
    // The process ends next; to free a hundred thousand strings one by one would only keep the deployment waiting.
    std::mem::forget(opened);
    std::mem::forget((manifest, before.map(|(previous, _)| previous)));
    report
}

/// Where the content of the release comes from, looked at as far as possible without reading that.
enum Opened<'a> {
    Archive(Archive<'a>),
    Delta(Box<Delta<'a>>),
    Previous(&'a Confined),
}

/// Looks again whether a spare tree is what it is said to be: by its seal, or if that does not hold, at all but what is in its files.
fn is_spare(places: &InstallPaths, tree: &Confined, seal: Digest, base: Base<'_>, threads: usize) -> Result<bool, ReleaseError> {
    // A directory that is missing has no seal.
    if seal::seal(tree, base.entries, threads).is_ok_and(|found| found == seal) {
        return Ok(true);
    }
    Ok(verify::compare(&places.tree, base.entries, threads, false)?.is_empty())
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
    let archive = Archive::open(archive, entries, info, &Limits::default()).map_err(refused)?;
    Target { tree: &tree, base: None, spare: false, threads }.fill(&archive, entries)
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
    let archive = Archive::open(archive, &manifest.entries, &manifest.archive, &Limits::default()).map_err(refused)?;
    Target { tree: &tree, base, spare: false, threads }.fill(&archive, &manifest.entries)
}
