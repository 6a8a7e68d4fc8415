//! The worker that installs a release: it fills a tree from an archive, or from a delta and the installed previous release.
//!
//! Unchanged files are hard-linked from the tree of the previous release after their digests have been compared (`reuse.rs`); only the
//! frames that hold the other files are decompressed. Symbolic links are created last, so that nothing is written through one.
//!
//! A *spare* is a copy of the live release that is made in advance, in the background, under the id of a release to come: installing
//! release `v` with previous release `v` makes a copy of hard links. Installing into a spare touches only what changed. Each release is
//! therefore read through once: when its spare is made, or, if there is no spare, when the next release shares its files.

mod fingerprint;
mod reuse;
mod target;
mod writer;

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use larder_archive::{Archive, ArchiveLimits, delta::Delta, pool::both};
use serde::{Deserialize, Serialize};

use self::{
    reuse::{Damaged, ReuseBase},
    target::InstallTarget,
    writer::refused,
};
use super::{ReleaseError, WorkerAnswer, delta, manifest, verify};
use crate::{
    host::files::Confined,
    model::{Digest, ReleaseId},
};

/// The source of the files that are not shared with the previous release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContentSource {
    /// The archive of the release.
    Archive,
    /// A delta that starts from the previous release.
    Delta,
    /// The previous release alone, of which the tree becomes a copy.
    Previous,
}

/// The job. Descriptors: 5 archive or delta (anything for a copy), 6 manifest; if `previous`, 7 its manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnpackJob {
    /// An installed release that may share unchanged files with the new one.
    pub previous: Option<ReleaseId>,
    /// The kind of descriptor 5.
    pub content: ContentSource,
    /// The fingerprint of the tree to fill, if that is a spare: a complete copy of `previous`, made by an earlier job that reported this
    /// fingerprint. If it still holds, only the difference is applied; otherwise the tree is cleared first.
    pub spare: Option<Digest>,
    /// The number of threads that link and write.
    pub threads: usize,
    /// The limits of the archive.
    pub limits: ArchiveLimits,
}

/// The result of an installation.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UnpackReport {
    /// The entries of the tree.
    pub entries: u64,
    /// The files that are shared with the previous release.
    pub linked: u64,
    /// The files that were unpacked.
    pub unpacked: u64,
    /// The bytes of the unpacked files.
    pub bytes: u64,
    /// The installed files of the previous release whose content differs from its manifest; they were unpacked instead of shared.
    pub damaged: u64,
    /// The first of the damaged files.
    pub first_damaged: Option<String>,
    /// The fingerprint of the tree, if it is a copy of the previous release.
    pub fingerprint: Option<Digest>,
}

impl UnpackReport {
    fn add(&mut self, part: &UnpackReport) {
        self.unpacked += part.unpacked;
        self.bytes += part.bytes;
    }
}

/// The paths of the worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstallPaths {
    /// The tree to fill. The remains of an interrupted attempt are removed first.
    pub tree: PathBuf,
    /// The directory of all installed trees.
    pub deploy: PathBuf,
}

impl InstallPaths {
    /// Reads `LARDER_TREE` and `LARDER_DEPLOY`.
    pub fn from_environment() -> InstallPaths {
        let place = |name: &str, default: &str| std::env::var_os(name).map_or_else(|| default.into(), PathBuf::from);
        InstallPaths { tree: place("LARDER_TREE", "/tree"), deploy: place("LARDER_DEPLOY", "/deploy") }
    }
}

/// Installs a release. May be repeated; the tree is complete and synced when it reports success.
pub fn work(
    job: &UnpackJob,
    places: &InstallPaths,
    archive: &File,
    manifest: &File,
    previous: Option<&File>,
) -> WorkerAnswer<UnpackReport> {
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
            let (manifest, previous) = manifest::parse_both((manifest, path), (file, Path::new("the previous manifest")));
            (manifest?, previous.ok())
        }
        None => (manifest::parse_known(manifest, path)?, None),
    };
    let tree = Confined::open(&places.tree)?;
    // A previous release that is damaged or missing costs time, not the deployment.
    let before = match (job.previous, previous) {
        (Some(id), Some(previous)) => {
            Confined::open(&places.deploy).and_then(|deploy| deploy.open_dir(id.to_string())).ok().map(|tree| (previous, tree))
        }
        _ => None,
    };
    let before_end = before.as_ref().map(|(manifest, _)| delta::plain_endpoint(manifest));
    let base = before.as_ref().map(|(manifest, tree)| ReuseBase { tree, entries: &manifest.entries });
    // Comparing a tree is mostly kernel work and reading lists is not, so both at a time take little longer than one.
    let (opened, spare) = both(
        || match (job.content, &before) {
            (ContentSource::Archive, _) => {
                let opened = Archive::open(archive, &manifest.entries, &manifest.archive, &job.limits);
                opened.map(Opened::Archive).map_err(refused)
            }
            (ContentSource::Delta, Some((_, base))) => match &before_end {
                Some(old) => Ok(Opened::Delta(Box::new(Delta::open(archive, old, base, &delta::plain_endpoint(&manifest))?))),
                None => Err(not_installed()),
            },
            (ContentSource::Previous, Some((previous, base))) if previous.entries == manifest.entries => {
                Ok(Opened::Previous(base))
            }
            _ => Err(not_installed()),
        },
        || match (job.spare, base) {
            (Some(expected), Some(base)) => is_spare(places, &tree, expected, base, job.threads),
            _ => Ok(false),
        },
    );
    let (opened, spare) = (opened?, spare?);
    let target = InstallTarget { tree: &tree, base, is_spare: spare, threads: job.threads, damaged: Damaged::default() };
    let report = match &opened {
        Opened::Archive(archive) => target.fill(archive, &manifest.entries),
        Opened::Delta(delta) => target.fill_by_delta(delta, &manifest.entries),
        Opened::Previous(base) => target.fill_by_copy(base, &manifest.entries),
    };
    let report = match report {
        Ok(report) if job.previous == Some(manifest.release) => fingerprint::fingerprint(&tree, &manifest.entries, job.threads)
            .map(|fingerprint| UnpackReport { fingerprint: Some(fingerprint), ..report })
            .map_err(Into::into),
        report => report,
    };
    // The process exits next; freeing a hundred thousand strings first would only delay the deployment.
    std::mem::forget(opened);
    std::mem::forget((manifest, before.map(|(previous, _)| previous)));
    report
}

/// The source of the content, checked as far as possible without reading content.
enum Opened<'a> {
    Archive(Archive<'a>),
    Delta(Box<Delta<'a>>),
    Previous(&'a Confined),
}

/// Returns whether a spare tree is a copy of `base`: by its fingerprint, or, if that does not hold, by comparing everything but the
/// content of its files.
fn is_spare(
    places: &InstallPaths,
    tree: &Confined,
    expected: Digest,
    base: ReuseBase<'_>,
    threads: usize,
) -> Result<bool, ReleaseError> {
    // An error means a missing directory.
    if fingerprint::fingerprint(tree, base.entries, threads).is_ok_and(|found| found == expected) {
        return Ok(true);
    }
    Ok(verify::compare(&places.tree, base.entries, threads, false)?.is_empty())
}
