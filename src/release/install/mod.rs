//! The worker that installs a release: it fills a tree from an archive, or from a delta and the installed previous release.
//!
//! Unchanged files are hard-linked from the tree of the previous release after their digests have been compared (`reuse.rs`); only the
//! frames that contain other files are decompressed. Symbolic links are created last, so that no file is written through a symbolic link.
//!
//! A *spare* is a copy of the live release, made of hard links in the background, under a new id. The next installation renames the spare
//! to the id of its own release. A job makes a spare if its previous release is the release that it installs. An installation into a spare
//! writes only the entries that changed. The files of each release are therefore read once: when its spare is made, or, without a spare,
//! when the next release shares the files.

mod fingerprint;
mod reuse;
mod target;
mod times;
mod writer;

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use larder_archive::{Archive, ArchiveLimits, delta::Delta, pool::both};
use serde::{Deserialize, Serialize};

pub use self::times::LiveSince;
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
    /// The previous release alone. The tree becomes a copy of this release.
    Previous,
    /// The tree itself, which is already installed. Only the times of its files change.
    Installed,
}

/// The job of the unpack worker. Descriptor 5 is the archive or the delta (any file if `content` is neither an archive nor a delta), and 6
/// is the manifest. If `previous` is given, descriptor 7 is the manifest of the previous release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnpackJob {
    /// An installed release that may share unchanged files with the new release.
    pub previous: Option<ReleaseId>,
    /// The source of the files that are not shared.
    pub content: ContentSource,
    /// The fingerprint that an earlier job reported when it filled the tree with a copy of `previous` (the spare). If the tree is still
    /// this copy, only the differences are applied; otherwise the tree is cleared first. `None` if the tree is not a spare.
    pub spare: Option<Digest>,
    /// The live release, which this release replaces. `None` if no release is live, or if the job makes a spare.
    pub live: Option<LiveSince>,
    /// The number of threads that link and write.
    pub threads: usize,
    /// The limits of the archive.
    pub limits: ArchiveLimits,
}

/// The result of an installation.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UnpackReport {
    /// The number of entries in the tree.
    pub entries: u64,
    /// The number of files that are shared with the previous release.
    pub linked: u64,
    /// The number of files that were unpacked.
    pub unpacked: u64,
    /// The size of the unpacked files, in bytes.
    pub bytes: u64,
    /// The number of installed files of the previous release that differ from its manifest. These files were unpacked instead of shared.
    pub damaged: u64,
    /// The path of the first damaged file.
    pub first_damaged: Option<String>,
    /// The fingerprint of the tree, if the tree is a copy of the previous release.
    pub fingerprint: Option<Digest>,
    /// The number of files that differ from the live release, but keep a time before the switch to the live release.
    pub outdated: u64,
}

impl UnpackReport {
    fn add(&mut self, part: &UnpackReport) {
        self.unpacked += part.unpacked;
        self.bytes += part.bytes;
    }
}

/// The paths that the worker uses.
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

/// Installs a release. When this function returns a report, the tree is complete and synced. A job may be repeated.
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
    // If the previous release is damaged or missing, an archive is installed without shared files, which only takes longer.
    let before = match (job.previous, previous) {
        (Some(id), Some(previous)) => {
            Confined::open(&places.deploy).and_then(|deploy| deploy.open_dir(id.to_string())).ok().map(|tree| (previous, tree))
        }
        _ => None,
    };
    let base = before.as_ref().map(|(manifest, tree)| ReuseBase { tree, entries: &manifest.entries });
    let renewed = |report: UnpackReport| match job.live {
        None => Ok(report),
        Some(live) => {
            let outdated = times::renew(&tree, &manifest.entries, base, live, job.threads)?;
            Ok(UnpackReport { outdated, ..report })
        }
    };
    if job.content == ContentSource::Installed {
        return renewed(UnpackReport { entries: manifest.entries.len() as u64, ..UnpackReport::default() });
    }
    let before_end = before.as_ref().map(|(manifest, _)| delta::plain_endpoint(manifest));
    // The check of a spare tree is mostly work of the kernel, and the opening of the content is not, so both run in parallel.
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
    let report = report.and_then(renewed);
    // The process exits next; freeing a hundred thousand strings first would only delay the deployment.
    std::mem::forget(opened);
    std::mem::forget((manifest, before.map(|(previous, _)| previous)));
    report
}

/// The opened source of the content. All checks that do not read the content are done.
enum Opened<'a> {
    Archive(Archive<'a>),
    Delta(Box<Delta<'a>>),
    Previous(&'a Confined),
}

/// Returns true if a spare tree is a copy of `base`. If the fingerprint of the tree differs from `expected`, everything except the content
/// of files is compared.
fn is_spare(
    places: &InstallPaths,
    tree: &Confined,
    expected: Digest,
    base: ReuseBase<'_>,
    threads: usize,
) -> Result<bool, ReleaseError> {
    // An error means that a directory is missing, so the fingerprint differs.
    if fingerprint::fingerprint(tree, base.entries, threads).is_ok_and(|found| found == expected) {
        return Ok(true);
    }
    Ok(verify::compare(&places.tree, base.entries, threads, false)?.is_empty())
}
