//! What a release consists of, file by file.

use larder_archive::{ArchiveInfo, Digest, Entry, bounded};
use serde::{Deserialize, Serialize};

use super::{CommitId, EnvironmentName, Mode, ProcessType, ProjectName, ReleaseId, Signature};

/// The description that stands beside a release archive, `<id>.manifest.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of this format; a reader refuses a newer one.
    pub format: u32,
    /// The project that the release belongs to.
    pub project: ProjectName,
    /// The environment that made it.
    pub environment: EnvironmentName,
    /// The release.
    pub release: ReleaseId,
    /// The commit that it was built from.
    pub commit: CommitId,
    /// The git tree of that commit, an object name like a commit's: other commits with the same tree are the same source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<CommitId>,
    /// Rises with every build of the project.
    pub build: u64,
    /// The version tag of the commit, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// The mode of the environment that made it.
    pub mode: Mode,
    /// The buildpacks that took part, in order.
    pub buildpacks: Vec<BuildpackUse>,
    /// Process types that the buildpacks gave, used where the Procfile has none.
    pub processes: Vec<(ProcessType, String)>,
    /// When it was made, RFC 3339.
    pub created: jiff::Timestamp,
    /// The digest of the tree: equal trees have equal digests, whatever built them.
    pub tree: Digest,
    /// The archive that holds the files.
    pub archive: ArchiveInfo,
    /// Every entry of the tree, sorted by path, directories before what they hold.
    #[serde(deserialize_with = "bounded::entries")]
    pub entries: Vec<Entry>,
    /// Who made it, over [`Manifest::statement`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
}

/// A buildpack and exactly which version of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildpackUse {
    /// Its name, or the address it came from.
    pub name: String,
    /// The commit of a buildpack from git, or larder's version for one of ours.
    pub version: String,
}

impl Manifest {
    /// The version that this code writes, and the newest that it reads.
    pub const FORMAT: u32 = 1;

    /// The same manifest without its lists of entries and frames, which are nearly all of it.
    pub fn without_entries(&self) -> Manifest {
        Manifest {
            format: self.format,
            project: self.project.clone(),
            environment: self.environment.clone(),
            release: self.release,
            commit: self.commit.clone(),
            source: self.source.clone(),
            build: self.build,
            tag: self.tag.clone(),
            mode: self.mode,
            buildpacks: self.buildpacks.clone(),
            processes: self.processes.clone(),
            created: self.created,
            tree: self.tree,
            archive: ArchiveInfo { frames: Vec::new(), ..self.archive },
            entries: Vec::new(),
            signature: self.signature,
        }
    }

    /// What a signature is over: everything that this manifest says, in one spelling. The entries stand in it by the digest of the
    /// tree, which follows from them, and the frames by the digest of the archive, which follows from them; whoever checks a
    /// signature has compared those two first. So a manifest keeps its signature where its frames are not known (yet).
    pub fn statement(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Statement<'a> {
            larder: &'static str,
            format: u32,
            project: &'a ProjectName,
            environment: &'a EnvironmentName,
            release: ReleaseId,
            commit: &'a CommitId,
            source: &'a Option<CommitId>,
            build: u64,
            tag: &'a Option<String>,
            mode: Mode,
            buildpacks: &'a [BuildpackUse],
            processes: &'a [(ProcessType, String)],
            created: jiff::Timestamp,
            tree: Digest,
            archive: Digest,
            archive_bytes: u64,
            #[serde(skip_serializing_if = "Option::is_none")]
            archive_settings: Option<u32>,
        }
        let statement = Statement {
            larder: "release manifest",
            format: self.format,
            project: &self.project,
            environment: &self.environment,
            release: self.release,
            commit: &self.commit,
            source: &self.source,
            build: self.build,
            tag: &self.tag,
            mode: self.mode,
            buildpacks: &self.buildpacks,
            processes: &self.processes,
            created: self.created,
            tree: self.tree,
            archive: self.archive.digest,
            archive_bytes: self.archive.bytes,
            archive_settings: Some(self.archive.settings).filter(|number| *number != 0),
        };
        // Strings and numbers only: nothing in it can fail to become text.
        serde_json::to_vec(&statement).unwrap_or_default()
    }
}
