//! Answers about releases.

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    git::LogEntry,
    model::{BuildpackUse, Digest, EntryKind, EnvironmentName, Manifest, Mode, ProcessType, ProjectName},
    pipeline::{KnownRelease, Pin, Summary},
    release::Change,
};

/// Everything about one release.
#[derive(Debug, Clone, Serialize)]
pub struct ReleaseDetail {
    /// It.
    #[serde(flatten)]
    pub known: KnownRelease,
    /// What its manifest says; nothing where it was pruned.
    pub manifest: Option<ManifestBrief>,
    /// Who pinned it.
    pub pin: Option<Pin>,
    /// The deployments that made it or made it live, oldest first.
    pub deployments: Vec<Summary>,
}

/// A manifest without its entries.
#[derive(Debug, Clone, Serialize)]
pub struct ManifestBrief {
    /// The version of its format.
    pub format: u32,
    /// The project that it belongs to.
    pub project: ProjectName,
    /// The environment that made it.
    pub environment: EnvironmentName,
    /// The mode of that environment.
    pub mode: Mode,
    /// The number of the build.
    pub build: u64,
    /// The tag that the commit had then.
    pub tag: Option<String>,
    /// When it was made.
    pub created: Timestamp,
    /// The digest of the tree.
    pub tree: Digest,
    /// The digest of the archive.
    pub archive: Digest,
    /// The size of the archive, bytes.
    pub archive_bytes: u64,
    /// How many entries the tree has, and how many of them are files.
    pub entries: u64,
    /// How many of them are files.
    pub files: u64,
    /// The size of all files together, bytes.
    pub bytes: u64,
    /// The buildpacks that took part.
    pub buildpacks: Vec<BuildpackUse>,
    /// The process types that they gave.
    pub processes: Vec<(ProcessType, String)>,
}

impl From<&Manifest> for ManifestBrief {
    fn from(manifest: &Manifest) -> ManifestBrief {
        let sizes = manifest.entries.iter().filter_map(|entry| match &entry.kind {
            EntryKind::File { size, .. } => Some(*size),
            _ => None,
        });
        let (files, bytes) = sizes.fold((0_u64, 0_u64), |(files, bytes), size| (files + 1, bytes.saturating_add(size)));
        ManifestBrief {
            format: manifest.format,
            project: manifest.project.clone(),
            environment: manifest.environment.clone(),
            mode: manifest.mode,
            build: manifest.build,
            tag: manifest.tag.clone(),
            created: manifest.created,
            tree: manifest.tree,
            archive: manifest.archive.digest,
            archive_bytes: manifest.archive.bytes,
            entries: manifest.entries.len() as u64,
            files,
            bytes,
            buildpacks: manifest.buildpacks.clone(),
            processes: manifest.processes.clone(),
        }
    }
}

/// What one release has that another one has not.
#[derive(Debug, Clone, Serialize)]
pub struct ReleaseDiff {
    /// The first one named.
    pub from: KnownRelease,
    /// The second one.
    pub to: KnownRelease,
    /// The files that differ, by path.
    pub files: Vec<Change>,
    /// The commits between them; nothing where the repository does not have them any more.
    pub commits: Option<CommitsBetween>,
}

/// The commits between two releases.
#[derive(Debug, Clone, Serialize)]
pub struct CommitsBetween {
    /// Those that the second has and the first has not, newest first.
    pub added: Vec<Commit>,
    /// Those that the first has and the second has not, newest first.
    pub removed: Vec<Commit>,
    /// Whether there are more than are listed.
    pub more: bool,
}

/// A commit.
#[derive(Debug, Clone, Serialize)]
pub struct Commit {
    /// Its id.
    pub commit: String,
    /// The first line of its message.
    pub subject: String,
    /// Who wrote it.
    pub author: String,
    /// When it was committed.
    pub at: Option<Timestamp>,
}

impl From<LogEntry> for Commit {
    fn from(entry: LogEntry) -> Commit {
        let LogEntry { commit, subject, author, time } = entry;
        Commit { commit: commit.to_string(), subject, author, at: Timestamp::from_second(time).ok() }
    }
}
