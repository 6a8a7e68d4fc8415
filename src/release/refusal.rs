//! Why a deliverable from elsewhere is not accepted: one reason each, in words that say what to do.

use larder_archive::ArchiveError;
use serde::{Deserialize, Serialize};

use crate::model::{CommitId, EnvironmentName, Manifest, ProjectName, PublicKey, ReleaseId};

/// See the module. Nothing of what is refused is installed, and nothing of it stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// Its manifest has no signature.
    #[error("release {release} is not signed")]
    Unsigned {
        /// Which.
        release: ReleaseId,
    },
    /// The signature is by somebody who is not trusted here.
    #[error("release {release} is signed by {key}, which is not trusted for {project}")]
    UnknownSigner {
        /// Which.
        release: ReleaseId,
        /// The project that it says it belongs to.
        project: ProjectName,
        /// Who signed it.
        key: PublicKey,
    },
    /// The signature is not over this manifest.
    #[error("the signature of release {release} does not fit its manifest: it was altered after {key} had signed it")]
    BadSignature {
        /// Which.
        release: ReleaseId,
        /// Who is said to have signed it.
        key: PublicKey,
    },
    /// It belongs to another project.
    #[error("release {release} belongs to the project {found}, not to {wanted}")]
    OtherProject {
        /// Which.
        release: ReleaseId,
        /// Whose it is.
        found: ProjectName,
        /// Whose it should be.
        wanted: ProjectName,
    },
    /// It was made by an environment that is not meant.
    #[error("release {release} was made by the environment {found}; accepted is what comes from {}", names(.wanted))]
    OtherEnvironment {
        /// Which.
        release: ReleaseId,
        /// Who made it.
        found: EnvironmentName,
        /// Whose releases are accepted.
        wanted: Vec<EnvironmentName>,
    },
    /// Under one release's name lies another one.
    #[error("what is offered as release {wanted} is release {found} under another name")]
    OtherRelease {
        /// What it is.
        found: ReleaseId,
        /// What was asked for.
        wanted: ReleaseId,
    },
    /// It was built from another commit.
    #[error("release {release} was built from commit {}, not from {}", found.short(), wanted.short())]
    OtherCommit {
        /// Which.
        release: ReleaseId,
        /// Its commit.
        found: CommitId,
        /// The one that was asked for.
        wanted: CommitId,
    },
    /// As the newest release, an older one than was there before.
    #[error(
        "release {release} (build {build}) is offered as the newest, but release {newer} (build {newer_build}) of the same server was accepted before: this is an old release again"
    )]
    Replayed {
        /// Which.
        release: ReleaseId,
        /// Its build number.
        build: u64,
        /// What was accepted before.
        newer: ReleaseId,
        /// Its build number.
        newer_build: u64,
    },
    /// One release, two statements.
    #[error("there is a release {release} here already, and its manifest says something else")]
    Contradicts {
        /// Which.
        release: ReleaseId,
    },
    /// A format of the future.
    #[error("the {what} has the format {format}; this larder reads formats up to {reads}")]
    NewerFormat {
        /// `manifest`, `health record` or `export`.
        what: String,
        /// Its format.
        format: u32,
        /// The newest that is understood.
        reads: u32,
    },
    /// Not a manifest (or record) at all, or one that contradicts itself.
    #[error("the {what} cannot be read: {why}")]
    Unreadable {
        /// `manifest`, `health record` or `export`.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// The archive ends too early.
    #[error("the archive of release {release} is cut off: it has {found} bytes of {expected}")]
    Truncated {
        /// Which.
        release: ReleaseId,
        /// How many bytes it has.
        found: u64,
        /// How many it should have.
        expected: u64,
    },
    /// Bytes of the archive are not those that were signed.
    #[error("the archive of release {release} was altered or damaged: {why}")]
    Altered {
        /// Which.
        release: ReleaseId,
        /// Where.
        why: String,
    },
    /// The archive holds something else than its manifest lists.
    #[error("the archive of release {release} and its manifest disagree: {why}")]
    Disagrees {
        /// Which.
        release: ReleaseId,
        /// About what.
        why: String,
    },
    /// A health record that belongs to something else, or that nobody vouches for.
    #[error("the health record of release {release} is not accepted: {why}")]
    Record {
        /// Which release came with it.
        release: ReleaseId,
        /// What is wrong.
        why: String,
    },
}

fn names(environments: &[EnvironmentName]) -> String {
    environments.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl Refusal {
    /// What to do next.
    pub fn hint(&self) -> String {
        match self {
            Refusal::Unsigned { .. } => {
                "deploy it once more on the server that cooked it; a larder of today signs what it makes".to_owned()
            }
            Refusal::UnknownSigner { project, key, .. } => format!(
                "compare it with what `larder key show` prints on the server that cooked it; if it is the same: `larder key trust {project} {key}`"
            ),
            Refusal::BadSignature { .. } => {
                "fetch it again from the server that cooked it; if that does not help, somebody changes it on the way".to_owned()
            }
            Refusal::OtherProject { found, .. } => {
                format!("look at the address of the remote: it leads to deliverables of {found}")
            }
            Refusal::OtherEnvironment { found, .. } => {
                format!("if {found} is meant to deliver here, name it in the address of the remote")
            }
            Refusal::OtherRelease { .. } => {
                "look who can write where the deliverables lie; files there were renamed or exchanged".to_owned()
            }
            Refusal::OtherCommit { wanted, .. } => {
                format!("deploy {} on the server that cooks, then try again", wanted.short())
            }
            Refusal::Replayed { release, .. } => {
                format!("if you do want the older one, ask for it by name: {release}")
            }
            Refusal::Contradicts { .. } => {
                "a release never changes; look what happened to the key of the server that cooked it".to_owned()
            }
            Refusal::NewerFormat { .. } => "update larder here".to_owned(),
            Refusal::Unreadable { .. } | Refusal::Truncated { .. } | Refusal::Altered { .. } => "fetch it again".to_owned(),
            Refusal::Disagrees { .. } => "deploy it once more on the server that cooked it; do not use this one".to_owned(),
            Refusal::Record { .. } => "fetch the record again from the server that ran the release".to_owned(),
        }
    }

    /// What an archive that was refused is refused for; nothing where the machine failed and not the archive.
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
