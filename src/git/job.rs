//! What the server asks a git worker, and what it answers.

use serde::{Deserialize, Serialize};

use crate::model::{BranchName, CommitId, EnvId, ReleaseId};

/// Which of git's programs serves a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Service {
    /// `git push`.
    ReceivePack,
    /// `git fetch`, `git clone`, `git ls-remote`.
    UploadPack,
}

/// Limits of a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServeLimits {
    /// The largest pack that is received, in bytes as sent (compressed).
    pub pack_bytes: u64,
}

impl Default for ServeLimits {
    fn default() -> Self {
        ServeLimits { pack_bytes: 2 << 30 }
    }
}

/// Where a ref must stand for a change to happen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expected {
    /// Anywhere.
    Anything,
    /// It must not exist.
    Missing,
    /// It must name this.
    At(CommitId),
}

impl From<CommitId> for Expected {
    /// As git writes it: zero is "does not exist".
    fn from(id: CommitId) -> Expected {
        if id.is_zero() { Expected::Missing } else { Expected::At(id) }
    }
}

/// A change of refs, all or nothing, on the disk for good when it is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveRef {
    /// Its full name.
    pub refname: String,
    /// Where it must stand before.
    pub expected: Expected,
    /// Where it shall stand; nothing to delete it.
    pub new: Option<CommitId>,
    /// The release whose objects are kept from now on, and its commit.
    pub keep: Option<(Kept, CommitId)>,
    /// Releases whose objects need not be kept any longer.
    pub forget: Vec<Kept>,
}

/// A release that an environment has. Several environments of a project can have the same one, each for its own reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Which environment.
    pub environment: EnvId,
    /// Which release.
    pub release: ReleaseId,
}

/// What names a commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Spec {
    /// A branch.
    Branch(BranchName),
    /// What a person typed: a branch, a tag, or the first digits of a commit. Never an expression.
    Text(String),
    /// The commit of a release.
    Release(Kept),
}

/// A task for a git worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum GitJob {
    /// Becomes git's own program, speaking to the client on the worker's stdio.
    Serve {
        /// Which program.
        service: Service,
        /// The client's `GIT_PROTOCOL`, if it is one that git knows.
        protocol: Option<u8>,
        /// The token of this push, in text form.
        token: Option<String>,
        /// Its limits.
        limits: ServeLimits,
    },
    /// Makes the repository; safe to repeat. `HEAD` names the branch that is deployed.
    Init {
        /// The branch that a clone checks out.
        head: BranchName,
    },
    /// Moves, makes or deletes a ref. Safe to repeat.
    MoveRef(MoveRef),
    /// All refs of clients (not larder's own), by name.
    ReadRefs {
        /// At most so many.
        limit: usize,
    },
    /// All tags with the commits that they name, the name without `refs/tags/`; those of other objects are left out.
    Tags,
    /// Finds a commit.
    Resolve {
        /// By this.
        spec: Spec,
    },
    /// The tree of a commit.
    Tree {
        /// Which.
        commit: CommitId,
    },
    /// What is in `to` and not in `from`, newest first.
    Log {
        /// The older one.
        from: Option<CommitId>,
        /// The newer one.
        to: CommitId,
        /// At most so many; never more than 50.
        limit: usize,
    },
    /// Writes a pack with a commit and all that it leads to, without what `haves` lead to, to the worker's standard output.
    ExportPack {
        /// The commit.
        want: CommitId,
        /// Commits of the receiver; those that are not here count for nothing.
        haves: Vec<CommitId>,
    },
    /// Takes in a pack from the worker's standard input; afterwards the repository has a commit and all that it leads to.
    ImportPack {
        /// The commit.
        want: CommitId,
        /// The largest pack that is taken, in bytes.
        bytes: u64,
    },
    /// Removes the locks that killed processes have left.
    Tidy,
    /// Packs the repository and removes what nothing names and is older than two weeks.
    Gc,
}

/// A commit, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// Its id.
    pub commit: CommitId,
    /// The first line of its message, printable.
    pub subject: String,
    /// Its author's name, printable.
    pub author: String,
    /// When it was committed, in seconds since 1970.
    pub time: i64,
}

/// A ref and what it names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefEntry {
    /// Its full name.
    pub refname: String,
    /// What it names.
    pub id: CommitId,
}

/// A git worker's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum GitAnswer {
    /// Done.
    Done,
    /// To [`GitJob::ReadRefs`] and [`GitJob::Tags`]; `more` if the limit left some out.
    Refs {
        /// Those found.
        refs: Vec<RefEntry>,
        /// Whether there are others.
        more: bool,
    },
    /// To [`GitJob::Resolve`].
    Commit(CommitId),
    /// To [`GitJob::Tree`].
    Tree(CommitId),
    /// To [`GitJob::Log`]; `more` if the limit left some out.
    Log {
        /// Those found.
        entries: Vec<LogEntry>,
        /// Whether there are others.
        more: bool,
    },
}

/// Why a git worker could not do it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum GitFailure {
    /// A ref was not where it was expected.
    #[error("{refname} {}, so it was not moved", stands(.actual))]
    Moved {
        /// The ref.
        refname: String,
        /// Where it stands.
        actual: Option<CommitId>,
    },
    /// Nothing has that name.
    #[error("the repository has no {0}")]
    NotFound(String),
    /// More than one thing has that name.
    #[error("{0} is the beginning of more than one commit; give more digits")]
    Ambiguous(String),
    /// A name is not one.
    #[error("{0:?} is not the name of a branch, a tag or a commit")]
    BadName(String),
    /// git is not installed.
    #[error("git is not installed: there is none in /usr/local/bin, /usr/bin or /bin; install git 2.29 or newer")]
    NoGit,
    /// Something else went wrong.
    #[error("could not {doing}: {why}")]
    Failed {
        /// What was being done, to what.
        doing: String,
        /// Why it failed.
        why: String,
    },
}

fn stands(actual: &Option<CommitId>) -> String {
    match actual {
        Some(id) => format!("names {} now", id.short()),
        None => String::from("does not exist now"),
    }
}

/// What travels back.
pub type GitReport = Result<GitAnswer, GitFailure>;
