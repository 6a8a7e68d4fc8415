//! The manifest of a release, which lists the contents of the release, file by file. Read [`Manifest`] first.

use larder_archive::{ArchiveInfo, Digest, Entry, bounded};
use serde::{Deserialize, Serialize};

use super::{CommitId, EnvironmentName, Mode, ProcessType, ProjectName, ReleaseId, Signature};

/// The description of a release archive, in the file `<id>.manifest.json` beside the archive.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of this format. A reader refuses newer versions.
    pub format: u32,
    /// The project to which the release belongs.
    pub project: ProjectName,
    /// The environment that built the release.
    pub environment: EnvironmentName,
    pub release: ReleaseId,
    /// The commit that was built.
    pub commit: CommitId,
    /// The id of the git tree of `commit`. Commits with the same tree have the same source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<CommitId>,
    /// The build number, which increases with every build of the project.
    pub build: u64,
    /// The tag with the highest version among the tags of the commit, or the last tag in alphabetical order if no tag is a version. `None`
    /// if the commit has no tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// The mode of the environment that built the release.
    pub mode: Mode,
    /// The buildpacks of the build in the order in which they ran.
    pub buildpacks: Vec<BuildpackUse>,
    /// The processes that the buildpacks suggest, for process types without a command in the project's files.
    pub processes: Vec<(ProcessType, String)>,
    /// The time of the build (RFC 3339).
    pub created: jiff::Timestamp,
    /// The digest of the tree. Equal trees have equal digests.
    pub tree: Digest,
    /// The archive that contains the files of the release.
    pub archive: ArchiveInfo,
    /// All entries of the tree, sorted by path, directories before their contents.
    #[serde(deserialize_with = "bounded::entries")]
    pub entries: Vec<Entry>,
    /// The builder's signature over [`Manifest::statement`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
}

/// A buildpack and its exact version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildpackUse {
    /// The name or the address of the buildpack.
    pub name: String,
    /// The commit of a buildpack from git, larder's version for a built-in buildpack, `project` for a directory of the project, or
    /// `operator` for a buildpack of the operator.
    pub version: String,
}

impl Manifest {
    /// The version that this code writes, and the newest version that it reads.
    pub const FORMAT: u32 = 1;

    /// Returns the manifest without the lists of entries and frames, which make up nearly all of its size.
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

    /// Returns the signed text, which contains the fields in one canonical encoding. The text contains the digest of the tree instead of
    /// the entries, and the digest of the archive instead of the frames. A verifier must therefore compare both digests with the entries
    /// and the frames before it relies on the signature. The signature is also valid for a manifest whose frames are not known yet.
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
        // Serialisation cannot fail, because the statement consists of strings and numbers.
        serde_json::to_vec(&statement).unwrap_or_default()
    }
}
