//! The reasons to refuse a received deliverable, each with a hint.

use larder_archive::ArchiveError;
use serde::{Deserialize, Serialize};

use crate::model::{CommitId, EnvironmentName, Manifest, ProjectName, PublicKey, ReleaseId};

/// The reason to refuse a received deliverable. A refused deliverable is neither installed nor kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The manifest has no signature.
    #[error("release {release} is not signed")]
    Unsigned {
        /// The refused release.
        release: ReleaseId,
    },
    /// The signing key is not trusted for the project.
    #[error("release {release} is signed by {key}, which is not trusted for {project}")]
    UnknownSigner {
        /// The refused release.
        release: ReleaseId,
        /// The project that the release was requested for.
        project: ProjectName,
        /// The signing key.
        key: PublicKey,
    },
    /// The signature does not match the manifest.
    #[error("the signature of release {release} does not match its manifest: the manifest was altered after {key} signed it")]
    BadSignature {
        /// The refused release.
        release: ReleaseId,
        /// The key that the signature names.
        key: PublicKey,
    },
    /// The release belongs to another project.
    #[error("release {release} belongs to the project {found} (expected {wanted})")]
    OtherProject {
        /// The refused release.
        release: ReleaseId,
        /// The project in its manifest.
        found: ProjectName,
        /// The project that was expected.
        wanted: ProjectName,
    },
    /// The release was built by an environment that is not accepted.
    #[error("release {release} was built by the environment {found} (expected {})", names(.wanted))]
    OtherEnvironment {
        /// The refused release.
        release: ReleaseId,
        /// The environment in its manifest.
        found: EnvironmentName,
        /// The accepted environments.
        wanted: Vec<EnvironmentName>,
    },
    /// The file of the requested release contains another release.
    #[error("the file of release {wanted} contains release {found}")]
    OtherRelease {
        /// The release in the manifest.
        found: ReleaseId,
        /// The release that was requested.
        wanted: ReleaseId,
    },
    /// The release was built from another commit.
    #[error("release {release} was built from commit {} (expected {})", found.short(), wanted.short())]
    OtherCommit {
        /// The refused release.
        release: ReleaseId,
        /// The commit in the manifest.
        found: CommitId,
        /// The requested commit.
        wanted: CommitId,
    },
    /// An old release is offered as the newest release, although a newer release was accepted before.
    #[error(
        "release {release} (build {build}) is offered as the newest, but release {newer} (build {newer_build}) of the same server was accepted before: an old release is offered again"
    )]
    Replayed {
        /// The refused release.
        release: ReleaseId,
        /// The build number of the refused release.
        build: u64,
        /// The newer release that was accepted before.
        newer: ReleaseId,
        /// The build number of the newer release.
        newer_build: u64,
    },
    /// The store has this release with another manifest.
    #[error("the store already has release {release} with another manifest")]
    Contradicts {
        /// The refused release.
        release: ReleaseId,
    },
    /// The manifest, health record or export has a newer format than this version can read.
    #[error("the {what} has the format {format} (expected at most {reads})")]
    NewerFormat {
        /// `manifest`, `health record` or `export`.
        what: String,
        /// The format that was found.
        format: u32,
        /// The newest format that this version reads.
        reads: u32,
    },
    /// The manifest, health record or export cannot be parsed, or contradicts itself.
    #[error("cannot read the {what}: {why}")]
    Unreadable {
        /// `manifest`, `health record` or `export`.
        what: String,
        /// The cause.
        why: String,
    },
    /// The archive ends too early.
    #[error("the archive of release {release} is truncated: it has {found} bytes (expected {expected})")]
    Truncated {
        /// The refused release.
        release: ReleaseId,
        /// The size of the archive, in bytes.
        found: u64,
        /// The size of the archive in the manifest, in bytes.
        expected: u64,
    },
    /// The bytes of the archive differ from the signed digests.
    #[error("the archive of release {release} was altered or damaged: {why}")]
    Altered {
        /// The refused release.
        release: ReleaseId,
        /// The damaged part.
        why: String,
    },
    /// The content of the archive differs from its manifest.
    #[error("the archive of release {release} and its manifest disagree: {why}")]
    Disagrees {
        /// The refused release.
        release: ReleaseId,
        /// The difference.
        why: String,
    },
    /// The health record belongs to another release, or has no trusted signature.
    #[error("cannot accept the health record of release {release}: {why}")]
    Record {
        /// The release that the record was offered for.
        release: ReleaseId,
        /// The cause.
        why: String,
    },
}

fn names(environments: &[EnvironmentName]) -> String {
    environments.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl Refusal {
    /// Returns the hint: the next step for the operator.
    pub fn hint(&self) -> String {
        match self {
            Refusal::Unsigned { .. } => {
                "update larder on the server that cooked the release, then deploy the commit there again".to_owned()
            }
            Refusal::UnknownSigner { project, key, .. } => format!(
                "compare the key with the output of `larder key show` on the server that cooked the release; if they are the same, run: larder key trust {project} {key}"
            ),
            Refusal::BadSignature { .. } => {
                "fetch the release again from the server that cooked it; if the error persists, check who can write to the store of the remote"
                    .to_owned()
            }
            Refusal::OtherProject { found, .. } => {
                format!("correct the address of the remote: it has the deliverables of {found}")
            }
            Refusal::OtherEnvironment { found, .. } => {
                format!("if releases of {found} are expected, name {found} in the address of the remote")
            }
            Refusal::OtherRelease { .. } => {
                "check who can write to the store of the remote; its files were renamed or exchanged".to_owned()
            }
            Refusal::OtherCommit { wanted, .. } => {
                format!("deploy {} on the server that cooks, then try again", wanted.short())
            }
            Refusal::Replayed { release, .. } => {
                format!("to deploy the older release, request it by its id: {release}")
            }
            Refusal::Contradicts { .. } => {
                "check who has the signing key of the server that cooked the release; a release never changes".to_owned()
            }
            Refusal::NewerFormat { .. } => "update larder on this server".to_owned(),
            Refusal::Unreadable { .. } | Refusal::Truncated { .. } | Refusal::Altered { .. } => {
                "fetch the release again".to_owned()
            }
            Refusal::Disagrees { .. } => "deploy the commit again on the server that cooked the release".to_owned(),
            Refusal::Record { .. } => "fetch the record again from the server that ran the release".to_owned(),
        }
    }

    /// Returns the reason to refuse an archive that could not be read because of `error`. Returns `None` if this machine caused the error.
    pub fn of_archive(manifest: &Manifest, error: &ArchiveError) -> Option<Refusal> {
        let release = manifest.release;
        Some(match error {
            ArchiveError::Io { .. } | ArchiveError::File(_) => return None,
            ArchiveError::ArchiveSize { expected, found } if found < expected => {
                Refusal::Truncated { release, found: *found, expected: *expected }
            }
            ArchiveError::FrameDigest { .. } | ArchiveError::SeekTable | ArchiveError::ArchiveSize { .. } => {
                Refusal::Altered { release, why: error.to_string() }
            }
            _ => {
                let mut why = error.to_string();
                let mut source = std::error::Error::source(error);
                while let Some(deeper) = source {
                    why.push_str(&format!(": {deeper}"));
                    source = deeper.source();
                }
                // The length is limited, since the message contains names from a hostile archive.
                Refusal::Disagrees { release, why: why.chars().take(1000).collect() }
            }
        })
    }
}
