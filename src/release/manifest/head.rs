//! The head of a manifest: the fields that describe a release before its archive is written.

use jiff::Timestamp;
use larder_archive::{Written, tree_digest};
use serde::{Deserialize, Serialize};

use crate::model::{BuildpackUse, CommitId, EnvironmentName, Manifest, Mode, ProcessType, ProjectName, ReleaseId};

/// The fields of a manifest except the format, the tree digest, the archive, the entries and the signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The project that the release belongs to.
    pub project: ProjectName,
    /// The environment that builds the release.
    pub environment: EnvironmentName,
    /// The id of the release.
    pub release: ReleaseId,
    /// The commit that the release is built from.
    pub commit: CommitId,
    /// The git tree of the commit.
    pub source: Option<CommitId>,
    /// The number of the build, which rises with every build of the project.
    pub build: u64,
    /// The version tag of the commit.
    pub tag: Option<String>,
    /// The mode of the environment.
    pub mode: Mode,
    /// The buildpacks that built the release, in the order in which they ran.
    pub buildpacks: Vec<BuildpackUse>,
    /// The process types that the buildpacks add, with their commands.
    pub processes: Vec<(ProcessType, String)>,
    /// The time of the build.
    pub created: Timestamp,
}

impl Head {
    /// Returns the head of a manifest.
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

    /// Returns the unsigned manifest that consists of this head and the data of the written archive.
    pub(crate) fn manifest(self, written: Written) -> Manifest {
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
