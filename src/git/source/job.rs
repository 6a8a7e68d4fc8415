//! The job of a source worker, and its report.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{git::job::GitFailure, model::CommitId};

/// Limits of an exported tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceLimits {
    /// The maximum number of files, links and directories.
    pub entries: u64,
    /// The maximum size of all files together, in bytes.
    pub bytes: u64,
    /// The maximum size of one file, in bytes. The export holds each file in memory while it writes the file.
    pub file_bytes: u64,
    /// The maximum depth of directories.
    pub depth: usize,
    /// The maximum length of a path, in bytes.
    pub path_bytes: usize,
}

impl Default for SourceLimits {
    fn default() -> Self {
        SourceLimits { entries: 200_000, bytes: 4 << 30, file_bytes: 256 << 20, depth: 64, path_bytes: 1024 }
    }
}

/// A job of a source worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceJob {
    /// The commit to check.
    pub commit: CommitId,
    /// The limits of the commit's tree.
    pub limits: SourceLimits,
    /// True if the commit is exported to `project/tree`. Otherwise, the commit is only checked and described.
    pub export: bool,
    /// True if the list of the previous export is ignored and all entries are written.
    pub fresh: bool,
    /// The name of git's quarantine, which has the objects of a push that pre-receive has not accepted yet
    /// ([`crate::git::hook::HookRequest::quarantine`]).
    pub quarantine: Option<String>,
    /// The pushed tags that git has not stored yet, each with its name and its object.
    pub tags: Vec<(String, CommitId)>,
}

/// The files of the recipe, which are in the project's root directory, and the sample of the pillar. A file that does not exist is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // The fields have the names of the files.
pub struct RecipeFiles {
    pub larder_yml: Option<Vec<u8>>,
    pub procfile: Option<Vec<u8>>,
    pub app_json: Option<Vec<u8>>,
    pub buildpacks: Option<Vec<u8>>,
    pub pillar_sample: Option<Vec<u8>>,
}

impl RecipeFiles {
    /// The maximum size of a file, in bytes.
    pub const LIMIT: u64 = 256 * 1024;

    /// The path of the sample of the pillar.
    pub const PILLAR_SAMPLE: &'static str = ".larder/pillar.sample.yml";
}

/// A commit that can be deployed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitSource {
    /// The id of the commit.
    pub commit: CommitId,
    /// The tree of the commit. Commits with the same tree have the same source.
    pub tree: CommitId,
    /// The files of the commit's recipe.
    pub files: RecipeFiles,
    /// The names of the executable files in `.larder/`, at most 64.
    pub scripts: Vec<String>,
    /// The project's maintenance page, `.larder/maintenance.html`; `None` if the file does not exist or is too large.
    pub maintenance_page: Option<Vec<u8>>,
    /// The names in the project's root directory, at most 1000; directories end with a slash.
    pub root: Vec<String>,
    /// The number of files, links and directories.
    pub entries: u64,
    /// The size of all files together, in bytes.
    pub bytes: u64,
    /// The number of entries that were written or removed; `None` if the commit was not exported.
    pub changed: Option<u64>,
    /// The tags of the commit, without `refs/tags/`.
    pub tags: Vec<String>,
    /// Warnings for the pusher.
    pub warnings: Vec<String>,
}

/// The reason why a commit cannot be deployed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRefusal {
    /// The file or directory, sanitised; `None` if the reason concerns the whole tree.
    pub path: Option<String>,
    /// The reason, to be read after the path, such as `is a git submodule`.
    pub reason: String,
    /// The remedy, as an imperative.
    pub hint: String,
}

impl fmt::Display for SourceRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(f, "{path} {}", self.reason),
            None => write!(f, "the commit {}", self.reason),
        }
    }
}

/// The report of a source worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SourceReport {
    /// The commit was checked, and was exported if [`SourceJob::export`] is set.
    Ready(Box<CommitSource>),
    /// The commit cannot be deployed. The pusher must push another commit.
    Refused(SourceRefusal),
    /// The job failed on the server.
    Failed(GitFailure),
}

/// The reason why an export stops early.
#[derive(Debug)]
pub(in crate::git) enum ExportStop {
    Refused(SourceRefusal),
    Failed(GitFailure),
}

impl From<SourceRefusal> for ExportStop {
    fn from(refusal: SourceRefusal) -> ExportStop {
        ExportStop::Refused(refusal)
    }
}

impl From<GitFailure> for ExportStop {
    fn from(failure: GitFailure) -> ExportStop {
        ExportStop::Failed(failure)
    }
}

/// Converts an error of git or of the system to the failure of the operation `doing`.
pub(super) fn failed<E: fmt::Display>(doing: impl Into<String>) -> impl FnOnce(E) -> ExportStop {
    let doing = doing.into();
    move |error| ExportStop::Failed(GitFailure::Failed { doing, why: error.to_string() })
}
