//! What the server asks of an export, and what it learns.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{git::GitFailure, model::CommitId};

/// Limits of an exported tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceLimits {
    /// Files, links and directories.
    pub entries: u64,
    /// All files together, in bytes.
    pub bytes: u64,
    /// One file, in bytes; it is held in memory while it is written.
    pub file_bytes: u64,
    /// Directories within directories.
    pub depth: usize,
    /// The length of a path, in bytes.
    pub path_bytes: usize,
}

impl Default for SourceLimits {
    fn default() -> Self {
        SourceLimits { entries: 200_000, bytes: 4 << 30, file_bytes: 256 << 20, depth: 64, path_bytes: 1024 }
    }
}

/// A task for a source worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceJob {
    /// The commit.
    pub commit: CommitId,
    /// Limits of its tree.
    pub limits: SourceLimits,
    /// Whether to bring `project/tree` to it; without, it is only checked and described.
    pub export: bool,
    /// Whether to write everything, whatever the previous export's list says.
    pub fresh: bool,
    /// Where git keeps the objects of a push that pre-receive has not accepted yet
    /// ([`crate::git::hook::HookRequest::quarantine`]).
    pub quarantine: Option<String>,
    /// Tags that come in the same push and are not stored yet: name and object.
    pub tags: Vec<(String, CommitId)>,
}

/// The files of the project's root that say how it is deployed, as they are; `None` where there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // The names of the files.
pub struct RecipeFiles {
    pub larder_yml: Option<Vec<u8>>,
    pub procfile: Option<Vec<u8>>,
    pub app_json: Option<Vec<u8>>,
    pub buildpacks: Option<Vec<u8>>,
}

impl RecipeFiles {
    /// The largest file that is read, in bytes.
    pub const LIMIT: u64 = 256 * 1024;
}

/// A commit that may be deployed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The commit.
    pub commit: CommitId,
    /// Its tree: commits with the same tree are the same source.
    pub tree: CommitId,
    /// Its recipe.
    pub files: RecipeFiles,
    /// The names of the executable files in `.larder/`.
    pub scripts: Vec<String>,
    /// The names in the project's root, at most 1000, directories with a slash at the end.
    pub root: Vec<String>,
    /// Files, links and directories.
    pub entries: u64,
    /// All files together, in bytes.
    pub bytes: u64,
    /// How many entries were written or removed, if it was exported.
    pub changed: Option<u64>,
    /// The tags of the commit, without `refs/tags/`.
    pub tags: Vec<String>,
    /// Lines for the person who pushes.
    pub warnings: Vec<String>,
}

/// Why a commit cannot be deployed, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Which file or directory, printable; nothing if it is about the tree as a whole.
    pub path: Option<String>,
    /// What is wrong with it.
    pub reason: String,
    /// What to do.
    pub hint: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(f, "{path} {}", self.reason),
            None => write!(f, "the commit {}", self.reason),
        }
    }
}

/// A source worker's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SourceReport {
    /// Checked, and exported if that was asked.
    Ready(Box<Source>),
    /// Not deployable; the pusher has to act.
    Refused(Refusal),
    /// It could not be done; the server has to act.
    Failed(GitFailure),
}
