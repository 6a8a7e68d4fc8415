//! The worker that turns a built tree into an archive and a manifest.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use larder_archive::{self as archive, ArchiveError, Previous, Written, between, tree_digest};
use serde::{Deserialize, Serialize};

use super::{Answer, ReleaseError, forms, store, tree};
use crate::{
    host::files::{Confined, read_limited},
    model::{
        ArchiveInfo, BuildpackUse, CommitId, Digest, EntryKind, EnvironmentName, Manifest, Mode, ProcessType, ProjectName,
        ReleaseId, SourceList,
    },
};

/// What a manifest says besides its files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The project.
    pub project: ProjectName,
    /// The environment that makes the release.
    pub environment: EnvironmentName,
    /// The release.
    pub release: ReleaseId,
    /// The commit.
    pub commit: CommitId,
    /// The git tree of the commit.
    pub source: Option<CommitId>,
    /// The number of the build.
    pub build: u64,
    /// The version tag of the commit.
    pub tag: Option<String>,
    /// The mode of the environment.
    pub mode: Mode,
    /// The buildpacks that took part.
    pub buildpacks: Vec<BuildpackUse>,
    /// Process types that they gave.
    pub processes: Vec<(ProcessType, String)>,
    /// When it is made.
    pub created: Timestamp,
}

impl Head {
    /// The head of a manifest.
    pub fn of(manifest: &Manifest) -> Head {
        Head {
            project: manifest.project.clone(),
            environment: manifest.environment.clone(),
            release: manifest.release,
            commit: manifest.commit.clone(),
            source: manifest.source.clone(),
            build: manifest.build,
            tag: manifest.tag.clone(),
            mode: manifest.mode,
            buildpacks: manifest.buildpacks.clone(),
            processes: manifest.processes.clone(),
            created: manifest.created,
        }
    }

    fn manifest(self, written: Written) -> Manifest {
        Manifest {
            format: Manifest::FORMAT,
            project: self.project,
            environment: self.environment,
            release: self.release,
            commit: self.commit,
            source: self.source,
            build: self.build,
            tag: self.tag,
            mode: self.mode,
            buildpacks: self.buildpacks,
            processes: self.processes,
            created: self.created,
            tree: tree_digest(&written.entries),
            archive: written.info,
            entries: written.entries,
            signature: None,
        }
    }
}

/// The job. Descriptors: 5 archive to write, 6 manifest to write; if `previous`, 7 and 8 archive and manifest to reuse.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleJob {
    /// What goes into the manifest unchanged.
    pub head: Head,
    /// Whether a previous release is given.
    pub previous: bool,
    /// How many threads read and compress.
    pub threads: usize,
    /// The largest archive, in bytes.
    pub limit: u64,
}

/// What came out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleReport {
    /// The digest of the tree.
    pub tree: Digest,
    /// The digest of the archive.
    pub archive: Digest,
    /// The size of the archive in bytes.
    pub archive_bytes: u64,
    /// How many entries the release has.
    pub entries: u64,
    /// How many bytes its files have.
    pub bytes: u64,
    /// How many entries are new, changed or gone compared with the previous release; all of them if there is none.
    pub changed: u64,
    /// How many frames there are, and how many of them were copied from the previous archive.
    pub frames: (u64, u64),
    /// Lines for the log.
    pub warnings: Vec<String>,
}

/// Where the worker finds things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundlePaths {
    /// The built tree.
    pub app: PathBuf,
    /// The directory of the export, with its `list`.
    pub source: Option<PathBuf>,
    /// The overlay's upper directory.
    pub upper: Option<PathBuf>,
}

impl BundlePaths {
    /// From `LARDER_APP`, `LARDER_SOURCE` and `LARDER_UPPER`.
    pub fn from_environment() -> BundlePaths {
        let place = |name: &str| std::env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
        BundlePaths {
            app: place("LARDER_APP").unwrap_or_else(|| PathBuf::from("/app")),
            source: place("LARDER_SOURCE"),
            upper: place("LARDER_UPPER"),
        }
    }
}

/// Does the job.
pub fn work(
    job: BundleJob,
    places: &BundlePaths,
    archive: &File,
    manifest: &File,
    previous: Option<(&File, &File)>,
) -> Answer<BundleReport> {
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
    let mut warnings = tree::Warnings::default();
    let source = places.source.as_deref().and_then(|source| source_list(source, &mut warnings));
    // In plain mode there is no overlay, and then no such directory.
    let upper = places.upper.as_deref().filter(|upper| upper.is_dir()).map(Confined::open).transpose()?;
    let items = tree::listing(&app, source, upper.as_ref(), job.threads, &mut warnings)?;

    let before = previous.and_then(|(file, manifest)| match store::parse_known(manifest, Path::new("the previous manifest")) {
        Ok(manifest) => Some((file, manifest)),
        Err(e) => {
            warnings.add(format!("the previous release is not reused: {e}"));
            None
        }
    });
    let reuse = before.as_ref().map(|(file, manifest)| Previous { file, entries: &manifest.entries, info: &manifest.archive });
    let written = archive::write(&app, &items, reuse, archive, job.threads, job.limit).map_err(unfit_or_written)?;

    let changed = before.as_ref().map_or(written.entries.len(), |(_, before)| between(&before.entries, &written.entries).count());
    let copied = written.copied as u64;
    let result = job.head.manifest(written);
    forms::write(&result, job.threads, manifest)?;
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
    // The process ends next; to free a hundred thousand strings one by one would only keep the deployment waiting.
    std::mem::forget((result, items, before));
    Ok(report)
}

fn unfit_or_written(source: ArchiveError) -> ReleaseError {
    ReleaseError::Archive { doing: "written", source }
}

/// The exporter's list; without a usable one, everything is read, which is right but slower.
fn source_list(source: &Path, warnings: &mut tree::Warnings) -> Option<SourceList> {
    let path = source.join("list");
    let list = read_limited(&path, store::MAX_MANIFEST).map_err(|e| e.to_string()).and_then(|bytes| {
        let list: SourceList = postcard::from_bytes(&bytes).map_err(|e| e.to_string())?;
        if list.format == SourceList::FORMAT { Ok(list) } else { Err(format!("it has the format {}", list.format)) }
    });
    match list {
        Ok(list) => Some(list),
        Err(why) => {
            warnings.add(format!("reading every file, since the list of the export cannot be used: {why}"));
            None
        }
    }
}

/// Archives a directory as it is, without any list: for measurements and tools.
pub fn tree_to_archive(dir: &Path, out: &File, threads: usize) -> Result<(Vec<crate::model::Entry>, ArchiveInfo), ReleaseError> {
    let root = Confined::open(dir)?;
    let items = tree::listing(&root, None, None, threads, &mut tree::Warnings::default())?;
    let written = archive::write(&root, &items, None, out, threads, u64::MAX).map_err(unfit_or_written)?;
    Ok((written.entries, written.info))
}
