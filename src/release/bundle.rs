//! The worker that bundles a built tree: it writes the archive and the manifest of a release.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use larder_archive::{self as archive, ArchiveError, Previous, between};
use serde::{Deserialize, Serialize};

use super::{
    ReleaseError, WorkerAnswer,
    leaks::LeakSearch,
    manifest::{self, Head, encode},
    tree,
    walk::Warnings,
};
use crate::{
    host::files::{Confined, read_limited},
    model::{ConfigVariables, Digest, EntryKind, SourceList},
};

/// The job of the bundle worker. Descriptor 5 is the archive to write, and 6 the manifest to write. If `previous` is true, descriptor 7 is
/// the archive to reuse, and 8 is the manifest of that archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleJob {
    /// The fields that the worker copies into the manifest.
    pub head: Head,
    /// True if the archive of a previous release is among the descriptors.
    pub previous: bool,
    /// The number of threads that read and compress.
    pub threads: usize,
    /// The maximum size of the archive, in bytes.
    pub limit: u64,
    /// The secrets that no file may contain.
    pub secrets: ConfigVariables,
}

/// The result of bundling.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleReport {
    /// The digest of the tree.
    pub tree: Digest,
    /// The digest of the archive.
    pub archive: Digest,
    /// The size of the archive in bytes.
    pub archive_bytes: u64,
    /// The number of entries of the release.
    pub entries: u64,
    /// The total size of all files, in bytes.
    pub bytes: u64,
    /// The number of entries that were added, changed or removed since the previous release. Without a previous release, all entries count.
    pub changed: u64,
    /// The number of all frames, and the number of frames that were copied from the previous archive.
    pub frames: (u64, u64),
    /// Warnings for the log of the deployment, one line each.
    pub warnings: Vec<String>,
}

/// The paths that the worker reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundlePaths {
    /// The built tree.
    pub app: PathBuf,
    /// The directory of the export, which contains the `list` of exported files.
    pub source: Option<PathBuf>,
    /// The overlay's upper directory.
    pub upper: Option<PathBuf>,
}

impl BundlePaths {
    /// Reads `LARDER_APP`, `LARDER_SOURCE` and `LARDER_UPPER`.
    pub fn from_environment() -> BundlePaths {
        let place = |name: &str| std::env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
        BundlePaths {
            app: place("LARDER_APP").unwrap_or_else(|| PathBuf::from("/app")),
            source: place("LARDER_SOURCE"),
            upper: place("LARDER_UPPER"),
        }
    }
}

/// Bundles the built tree: writes its archive and its unsigned manifest.
pub fn work(
    job: BundleJob,
    places: &BundlePaths,
    archive: &File,
    manifest: &File,
    previous: Option<(&File, &File)>,
) -> WorkerAnswer<BundleReport> {
    bundle(job, places, archive, manifest, previous).into()
}

fn bundle(
    job: BundleJob,
    places: &BundlePaths,
    archive: &File,
    manifest: &File,
    previous: Option<(&File, &File)>,
) -> Result<BundleReport, ReleaseError> {
    let app = Confined::open(&places.app)?;
    let mut warnings = Warnings::default();
    let source = places.source.as_deref().and_then(|source| source_list(source, &mut warnings));
    // A build without an overlay has no upper directory.
    let upper = places.upper.as_deref().filter(|upper| upper.is_dir()).map(Confined::open).transpose()?;
    let items = tree::listing(&app, source, upper.as_ref(), job.threads, &mut warnings)?;

    if let Some(search) = LeakSearch::new(&job.secrets) {
        search.tree(&app, &items)?.into_iter().for_each(|line| warnings.add(line));
    }

    let before =
        previous.and_then(|(file, manifest)| match manifest::parse_known(manifest, Path::new("the previous manifest")) {
            Ok(manifest) => Some((file, manifest)),
            Err(e) => {
                warnings.add(format!("cannot reuse the archive of the previous release: {e}"));
                None
            }
        });
    let reuse = before.as_ref().map(|(file, manifest)| Previous { file, entries: &manifest.entries, info: &manifest.archive });
    let written = archive::write(&app, &items, reuse, archive, job.threads, job.limit).map_err(unfit_or_written)?;

    let changed = before.as_ref().map_or(written.entries.len(), |(_, before)| between(&before.entries, &written.entries).count());
    let copied = written.copied as u64;
    let result = job.head.manifest(written);
    encode::write(&result, job.threads, manifest)?;
    let report = BundleReport {
        tree: result.tree,
        archive: result.archive.digest,
        archive_bytes: result.archive.bytes,
        entries: result.entries.len() as u64,
        bytes: result.entries.iter().map(|entry| if let EntryKind::File { size, .. } = &entry.kind { *size } else { 0 }).sum(),
        changed: changed as u64,
        frames: (result.archive.frames.len() as u64, copied),
        warnings: warnings.into_lines(),
    };
    // The process exits next; freeing a hundred thousand strings first would only delay the deployment.
    std::mem::forget((result, items, before));
    Ok(report)
}

fn unfit_or_written(source: ArchiveError) -> ReleaseError {
    ReleaseError::Archive { doing: "write", source }
}

/// Reads the list of exported files. If the list is unusable, adds a warning and returns `None`; the worker then reads every file, which is
/// slower.
fn source_list(source: &Path, warnings: &mut Warnings) -> Option<SourceList> {
    let path = source.join("list");
    let list = read_limited(&path, manifest::MAX_MANIFEST).map_err(|e| e.to_string()).and_then(|bytes| {
        let list: SourceList = postcard::from_bytes(&bytes).map_err(|e| e.to_string())?;
        if list.format == SourceList::FORMAT {
            Ok(list)
        } else {
            Err(format!("it has the format {} (expected {})", list.format, SourceList::FORMAT))
        }
    });
    match list {
        Ok(list) => Some(list),
        Err(why) => {
            warnings.add(format!("cannot use the list of exported files: {why}; all files are read instead"));
            None
        }
    }
}
