//! The reasons to refuse a deliverable from elsewhere, each with a hint.

use larder_archive::ArchiveError;
use serde::{Deserialize, Serialize};

use crate::model::{CommitId, EnvironmentName, Manifest, ProjectName, PublicKey, ReleaseId};

/// See the module. Nothing of what is refused is installed, and nothing of it stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// Its manifest has no signature.
    #[error("release {release} is not signed")]
    Unsigned {
        /// The refused release.
        release: ReleaseId,
    },
    /// The signing key is not trusted here.
    #[error("release {release} is signed by {key}, which is not trusted for {project}")]
    UnknownSigner {
        /// The refused release.
        release: ReleaseId,
        /// The project that it says it belongs to.
        project: ProjectName,
        /// The signing key.
        key: PublicKey,
    },
    /// The signature is not over this manifest.
    #[error("the signature of release {release} does not match its manifest: the manifest was altered after {key} signed it")]
    BadSignature {
        /// The refused release.
        release: ReleaseId,
        /// The key that the signature names.
        key: PublicKey,
    },
    /// It belongs to another project.
    #[error("release {release} belongs to the project {found}, not to {wanted}")]
    OtherProject {
        /// The refused release.
        release: ReleaseId,
        /// The project in its manifest.
        found: ProjectName,
        /// The project that was expected.
        wanted: ProjectName,
    },
    /// It was built by an environment that is not accepted.
    #[error("release {release} was made by the environment {found}; accepted environments: {}", names(.wanted))]
    OtherEnvironment {
        /// The refused release.
        release: ReleaseId,
        /// The environment in its manifest.
        found: EnvironmentName,
        /// The accepted environments.
        wanted: Vec<EnvironmentName>,
    },
    /// Another release lies under the name of the requested one.
    #[error("the file of release {wanted} is release {found} under another name")]
    OtherRelease {
        /// The release in the manifest.
        found: ReleaseId,
        /// The release that was requested.
        wanted: ReleaseId,
    },
    /// It was built from another commit.
    #[error("release {release} was built from commit {}, not from {}", found.short(), wanted.short())]
    OtherCommit {
        /// The refused release.
        release: ReleaseId,
        /// Its commit.
        found: CommitId,
        /// The one that was asked for.
        wanted: CommitId,
    },
    /// An older release than one accepted before is offered as the newest.
    #[error(
        "release {release} (build {build}) is offered as the newest, but release {newer} (build {newer_build}) of the same server was accepted before: an old release is offered again"
    )]
    Replayed {
        /// The refused release.
        release: ReleaseId,
        /// Its build number.
        build: u64,
        /// The newer release that was accepted before.
        newer: ReleaseId,
        /// Its build number.
        newer_build: u64,
    },
    /// The store has this release with another manifest.
    #[error("there is a release {release} here already, with another manifest")]
    Contradicts {
        /// The refused release.
        release: ReleaseId,
    },
    /// A newer format.
    #[error("the {what} has the format {format}; this larder reads formats up to {reads}")]
    NewerFormat {
        /// `manifest`, `health record` or `export`.
        what: String,
        /// Its format.
        format: u32,
        /// The newest format that this version reads.
        reads: u32,
    },
    /// No manifest or record, or one that contradicts itself.
    #[error("the {what} cannot be read: {why}")]
    Unreadable {
        /// `manifest`, `health record` or `export`.
        what: String,
        /// The fault.
        why: String,
    },
    /// The archive ends too early.
    #[error("the archive of release {release} is cut off: it has {found} bytes of {expected}")]
    Truncated {
        /// The refused release.
        release: ReleaseId,
        /// The bytes of the archive.
        found: u64,
        /// The bytes that the manifest names.
        expected: u64,
    },
    /// The archive has other bytes than were signed.
    #[error("the archive of release {release} was altered or damaged: {why}")]
    Altered {
        /// The refused release.
        release: ReleaseId,
        /// The place of the damage.
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
    /// A health record of another release, or without a trusted signature.
    #[error("the health record of release {release} is not accepted: {why}")]
    Record {
        /// The release that it came with.
        release: ReleaseId,
        /// The fault.
        why: String,
    },
}

fn names(environments: &[EnvironmentName]) -> String {
    environments.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl Refusal {
    /// Returns the next step for the operator.
    pub fn hint(&self) -> String {
        match self {
            Refusal::Unsigned { .. } => {
                "deploy the commit again on the server that cooked the release; this version of larder signs releases".to_owned()
            }
            Refusal::UnknownSigner { project, key, .. } => format!(
                "compare it with what `larder key show` prints on the server that cooked it; if it is the same: `larder key trust {project} {key}`"
            ),
            Refusal::BadSignature { .. } => {
                "fetch the release again from the server that cooked it; if the error persists, files are changed on the way"
                    .to_owned()
            }
            Refusal::OtherProject { found, .. } => {
                format!("correct the address of the remote: it has the deliverables of {found}")
            }
            Refusal::OtherEnvironment { found, .. } => {
                format!("if {found} is meant to deliver here, name it in the address of the remote")
            }
            Refusal::OtherRelease { .. } => {
                "check who can write to the store of the remote: files there were renamed or exchanged".to_owned()
            }
            Refusal::OtherCommit { wanted, .. } => {
                format!("deploy {} on the server that cooks, then try again", wanted.short())
            }
            Refusal::Replayed { release, .. } => {
                format!("to deploy the older release, name it: {release}")
            }
            Refusal::Contradicts { .. } => {
                "a release never changes: check who has the signing key of the server that cooked it".to_owned()
            }
            Refusal::NewerFormat { .. } => "update larder here".to_owned(),
            Refusal::Unreadable { .. } | Refusal::Truncated { .. } | Refusal::Altered { .. } => {
                "fetch the release again".to_owned()
            }
            Refusal::Disagrees { .. } => "deploy the commit again on the server that cooked the release".to_owned(),
            Refusal::Record { .. } => "fetch the record again from the server that ran the release".to_owned(),
        }
    }

    /// Returns the reason to refuse an archive after `error`; none if the machine failed and not the archive.
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
                // Bounded, since names of a hostile archive are in it.
                Refusal::Disagrees { release, why: why.chars().take(1000).collect() }
            }
        })
    }
}
