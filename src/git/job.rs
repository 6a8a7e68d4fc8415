//! The jobs of git workers and their answers. Only processes of the same version of larder exchange jobs and answers, so the format has no
//! version.

use serde::{Deserialize, Serialize};

use crate::model::{BranchName, CommitId, EnvId, ProjectId, ReleaseId};

/// The prefix of larder's own refs. Clients cannot see or write these refs.
pub const OWN_REFS: &str = "refs/larder";

/// A repository of a project.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RepositoryKind {
    /// The code.
    Code,
    /// The pillar: configuration and secrets.
    Pillar,
}

/// A repository of this server. A [`ProjectId`] converts to the repository of the project's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RepositoryId {
    pub project: ProjectId,
    pub kind: RepositoryKind,
}

impl RepositoryId {
    /// Returns the pillar of a project.
    pub fn pillar(project: ProjectId) -> RepositoryId {
        RepositoryId { project, kind: RepositoryKind::Pillar }
    }
}

impl From<ProjectId> for RepositoryId {
    fn from(project: ProjectId) -> RepositoryId {
        RepositoryId { project, kind: RepositoryKind::Code }
    }
}

/// The task of a git worker: a job, and the repository of the job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GitTask {
    pub kind: RepositoryKind,
    pub job: GitJob,
}

/// The git service that a client requests.
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
    /// The maximum compressed size of a received pack, in bytes.
    pub pack_bytes: u64,
}

impl Default for ServeLimits {
    fn default() -> Self {
        ServeLimits { pack_bytes: 2 << 30 }
    }
}

/// The value that a ref must have before the ref is changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expected {
    /// The ref can name any commit, or can be missing.
    Anything,
    /// The ref must not exist.
    Missing,
    /// The ref must name this commit.
    At(CommitId),
}

impl Expected {
    /// Returns true if a ref with the value `actual` meets the expectation.
    pub fn is_met_by(&self, actual: Option<&CommitId>) -> bool {
        match self {
            Expected::Anything => true,
            Expected::Missing => actual.is_none(),
            Expected::At(id) => actual == Some(id),
        }
    }
}

impl From<CommitId> for Expected {
    /// Converts git's notation, in which the null id stands for a missing ref.
    fn from(id: CommitId) -> Expected {
        if id.is_zero() { Expected::Missing } else { Expected::At(id) }
    }
}

/// An atomic change of refs. The worker answers after the change is on the disk, so the change survives a power failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveRef {
    /// The full name of the ref.
    pub refname: String,
    /// The value that the ref must have before the change.
    pub expected: Expected,
    /// The new value; `None` deletes the ref.
    pub new: Option<CommitId>,
    /// A release whose objects are kept after the change, and the release's commit.
    pub keep: Option<(ReleaseRef, CommitId)>,
    /// Releases whose objects are no longer kept after the change.
    pub forget: Vec<ReleaseRef>,
}

/// The ref that keeps the objects of a release for one environment. Each environment has its own refs, because several environments of a
/// project can keep the same release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseRef {
    /// The environment that keeps the release.
    pub environment: EnvId,
    /// The release whose objects are kept.
    pub release: ReleaseId,
}

impl ReleaseRef {
    /// Returns the full name of the ref.
    pub fn refname(self) -> String {
        format!("{OWN_REFS}/keep/{}/{}", self.environment.0, self.release)
    }
}

/// A description of a commit, from which [`GitJob::Resolve`] finds the commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CommitSpec {
    /// The tip of a branch.
    Branch(BranchName),
    /// Text from a user: a branch, a tag, or the first digits of a commit id. Revision expressions of git are not supported.
    Text(String),
    /// The commit of a release.
    Release(ReleaseRef),
}

/// A job of a git worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum GitJob {
    /// Replaces the worker by git's own program, which serves the client on the worker's standard input and output.
    Serve {
        /// The requested service.
        service: Service,
        /// The protocol version that the client requests, if git supports this version.
        protocol: Option<u8>,
        /// The push token in text form; only for a push.
        token: Option<String>,
        /// The limits of a push.
        limits: ServeLimits,
    },
    /// Creates the repository if it does not exist, and sets its `HEAD`.
    Init {
        /// The branch that `HEAD` names. A clone checks out this branch.
        head: BranchName,
    },
    /// Moves, creates or deletes a ref. A repeated job succeeds.
    MoveRef(MoveRef),
    /// Lists all refs except larder's own refs, sorted by name.
    ReadRefs {
        /// The maximum number of refs.
        limit: usize,
    },
    /// Lists the tags that name commits. The names do not contain `refs/tags/`. Tags of other objects are left out.
    Tags,
    /// Finds a commit.
    Resolve {
        /// The description of the commit.
        spec: CommitSpec,
    },
    /// Finds the tree of a commit.
    Tree {
        /// The commit.
        commit: CommitId,
    },
    /// Lists the commits that are reachable from `to` and not from `from`, newest first.
    Log {
        /// The older commit. With `None`, all ancestors of `to` are listed.
        from: Option<CommitId>,
        /// The newer commit.
        to: CommitId,
        /// The maximum number of commits; never more than 50.
        limit: usize,
        /// The name of git's quarantine, which has the objects of a push that pre-receive has not accepted yet.
        quarantine: Option<String>,
    },
    /// Writes a pack to the worker's standard output. The pack contains all objects reachable from `want`, except the objects reachable
    /// from `haves`.
    ExportPack {
        /// The exported commit.
        want: CommitId,
        /// Commits that the receiver has. Commits that this repository does not have are ignored.
        haves: Vec<CommitId>,
    },
    /// Imports a pack from the worker's standard input. Afterwards, the repository has all objects reachable from `want`.
    ImportPack {
        /// The imported commit.
        want: CommitId,
        /// The maximum size of the pack, in bytes.
        bytes: u64,
    },
    /// Reads the files of a pillar.
    ReadPillar {
        /// The commit; `None` for the commit of the branch `main`.
        commit: Option<CommitId>,
        /// The commit that must be an ancestor of `commit`, so that the history of a pillar is never rewritten.
        after: Option<CommitId>,
        /// The name of git's quarantine, which has the objects of a push that is not accepted yet.
        quarantine: Option<String>,
    },
    /// Creates a commit of a pillar, which no ref names.
    CommitPillar {
        /// The parent; `None` for the first commit.
        parent: Option<CommitId>,
        /// The commit.
        new: PillarCommit,
    },
    /// Reads the files of all commits of a pillar.
    PillarHistory {
        /// The newest commit.
        from: CommitId,
    },
    /// Removes the lock files of killed processes.
    RemoveLocks,
    /// Packs the repository and removes unreachable objects that are older than two weeks.
    Gc,
}

/// A commit in a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// The id of the commit.
    pub commit: CommitId,
    /// The first line of the commit message, sanitised.
    pub subject: String,
    /// The name of the author, sanitised.
    pub author: String,
    /// The time of the commit, in seconds since 1970.
    pub time: i64,
}

/// A ref and its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefEntry {
    /// The full name of the ref. In the answer to [`GitJob::Tags`], the name of the tag without `refs/tags/`.
    pub refname: String,
    /// The object that the ref names. In the answer to [`GitJob::Tags`], the commit of the tag.
    pub id: CommitId,
}

/// The reason why a commit cannot be the values of a pillar.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PillarRefusal {
    /// The reason, with the file.
    pub reason: String,
    /// The remedy, as an imperative.
    pub hint: String,
}

impl std::fmt::Display for PillarRefusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.reason)
    }
}

/// A new commit of a pillar.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PillarCommit {
    /// The changed files of the top directory; `None` removes a file.
    pub files: Vec<(String, Option<Vec<u8>>)>,
    /// The name of the author.
    pub author: String,
    pub message: String,
    /// The time in seconds since 1970.
    pub time: i64,
}

/// Shows names only, because the files have secrets.
impl std::fmt::Debug for PillarCommit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.files.iter().map(|(name, _)| name.as_str()).collect();
        write!(f, "PillarCommit({:?} {names:?})", self.message)
    }
}

/// The files of all commits of a pillar.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PillarHistory {
    /// The commits, newest first: the names of their files, with the index of the content in `versions`.
    pub commits: Vec<Vec<(String, usize)>>,
    /// The contents of files.
    pub versions: Vec<Vec<u8>>,
}

impl PillarHistory {
    /// Returns the files of each commit, newest first.
    pub fn files(&self) -> impl Iterator<Item = Vec<(&str, &[u8])>> {
        // The worker numbers only contents that it returns.
        let content = |at: usize| self.versions.get(at).map(Vec::as_slice).unwrap_or_default();
        self.commits.iter().map(move |files| files.iter().map(|(name, at)| (name.as_str(), content(*at))).collect())
    }
}

/// Shows numbers only, because the files have secrets.
impl std::fmt::Debug for PillarHistory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PillarHistory({} commits, {} versions)", self.commits.len(), self.versions.len())
    }
}

/// The files of a commit of a pillar.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PillarFiles {
    /// The commit.
    pub commit: CommitId,
    /// The files in the top directory that larder reads, sorted by name.
    pub files: Vec<(String, Vec<u8>)>,
}

/// Shows names only, because the files have secrets.
impl std::fmt::Debug for PillarFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.files.iter().map(|(name, _)| name.as_str()).collect();
        write!(f, "PillarFiles({} {names:?})", self.commit)
    }
}

/// A git worker's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum GitAnswer {
    /// The answer to jobs that return no data.
    Done,
    /// The answer to [`GitJob::ReadRefs`] and [`GitJob::Tags`].
    Refs {
        /// The refs up to the limit.
        refs: Vec<RefEntry>,
        /// True if there are more refs than the limit.
        more: bool,
    },
    /// The answer to [`GitJob::Resolve`] and [`GitJob::CommitPillar`].
    Commit(CommitId),
    /// The answer to [`GitJob::Tree`].
    Tree(CommitId),
    /// The answer to [`GitJob::ReadPillar`]; `None` if the repository or its branch `main` does not exist.
    Pillar(Option<PillarFiles>),
    /// The answer to [`GitJob::PillarHistory`].
    PillarHistory(PillarHistory),
    /// The answer to [`GitJob::ReadPillar`] if the commit cannot be a pillar.
    PillarRefused(PillarRefusal),
    /// The answer to [`GitJob::Log`].
    Log {
        /// The commits up to the limit.
        entries: Vec<LogEntry>,
        /// True if there are more commits than the limit.
        more: bool,
    },
}

/// The reason why a git job failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum GitFailure {
    /// A ref did not have the expected value.
    #[error("cannot move {refname}: {}", current_value(.actual))]
    Moved {
        /// The full name of the ref.
        refname: String,
        /// The actual value of the ref; `None` if the ref does not exist.
        actual: Option<CommitId>,
    },
    /// The repository does not have the branch, the tag, the commit or the release.
    #[error("the repository has no {0}")]
    NotFound(String),
    /// An abbreviated commit id is not unique.
    #[error("cannot find the commit {0}: more than one commit id starts with these digits")]
    Ambiguous(String),
    /// The text is not a valid name of a branch, a tag or a commit.
    #[error("{0:?} is not the name of a branch, a tag or a commit")]
    BadName(String),
    /// The git program is missing.
    #[error("cannot run git: there is no git in /usr/local/bin, /usr/bin or /bin (expected git 2.29 or newer)")]
    NoGit,
    /// A failure that has no variant of its own.
    #[error("cannot {doing}: {why}")]
    Failed {
        /// The failed operation and its object, such as `move refs/heads/main`.
        doing: String,
        /// The cause.
        why: String,
    },
}

fn current_value(actual: &Option<CommitId>) -> String {
    match actual {
        Some(id) => format!("the ref names {} now", id.short()),
        None => String::from("the ref does not exist now"),
    }
}

/// The report of a git worker.
pub type GitReport = Result<GitAnswer, GitFailure>;
