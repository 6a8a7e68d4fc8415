//! The checkout of an editable environment: a work tree of git in which a person may work, and which a push updates.
//!
//! The code runs in a worker as the owner of the checkout, inside of the sandbox. The worker has no access to the project's repository: the objects of
//! a commit come as a pack on its standard input. Read [`perform`] first.
//!
//! The worker keeps its state in refs of the checkout, so that a job may be repeated after a kill: `refs/larder/base` is the commit that larder
//! checked out last, and `refs/larder/before/<deployment>` is the commit that was checked out before a deployment.

mod content;
mod files;
mod guard;
mod keep;
#[cfg(test)]
mod person_tests;
mod program;
mod settle;
#[cfg(test)]
mod state_tests;
#[cfg(test)]
mod tests;
mod update;

use std::{
    fs::File,
    io::{self, Write as _},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use super::job::GitFailure;
use crate::{
    host::launch::{read_job, write_report},
    model::{BranchName, CommitId, DeploymentId},
};

/// The maximum number of files that a report lists.
pub const MAX_FILES: usize = 200;

/// A job in the checkout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CheckoutJob {
    /// Checks out a commit. Files that a person changed stay, if the commit does not change them.
    Update(CheckoutUpdate),
    /// Checks out the commit that was checked out before a deployment, and brings the files back that the deployment stashed.
    Revert {
        /// The deployment.
        deployment: DeploymentId,
        /// The branch.
        branch: BranchName,
    },
    /// Returns the state of the checkout.
    Look,
    /// Commits all changed and new files that git does not ignore.
    Commit {
        /// The message.
        message: String,
        /// The name of the author.
        author: String,
        /// The branch that names the commit.
        branch: BranchName,
    },
    /// Puts all changed and new files into git's stash.
    Drop,
    /// Writes a pack with a commit of the checkout to the standard output.
    Pack {
        /// The commit.
        commit: CommitId,
        /// Commits that the receiver has.
        known: Vec<CommitId>,
    },
}

/// The parameters of an update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckoutUpdate {
    /// The deployment.
    pub deployment: DeploymentId,
    /// The branch that names the commit afterwards.
    pub branch: BranchName,
    /// The commit. A pack with its objects is the standard input.
    pub commit: CommitId,
    /// True if files that a person changed, and that the commit changes, too, are put into git's stash. Otherwise the update is refused.
    pub stash: bool,
    /// The live commit.
    pub live: Option<CommitId>,
    /// True if the pack has all objects of the commit. Otherwise the pack has no objects of the live commit.
    pub is_complete: bool,
}

/// A file that a person changed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EditedFile {
    /// The path in the checkout.
    pub path: String,
    /// The kind of the change.
    pub edit: EditKind,
}

/// The kind of a change by hand, compared with the commit that is checked out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EditKind {
    /// The file is new.
    Added,
    /// The content, the mode or the kind differs.
    Changed,
    /// The file was deleted.
    Deleted,
}

impl EditKind {
    /// Returns the word for people.
    pub fn as_str(self) -> &'static str {
        match self {
            EditKind::Added => "added",
            EditKind::Changed => "changed",
            EditKind::Deleted => "deleted",
        }
    }
}

/// The answer of a successful job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CheckoutAnswer {
    /// The commit is checked out.
    Updated {
        /// The files that were put into the stash.
        stashed: Vec<EditedFile>,
        /// The number of files that a person changed, and that stay changed.
        kept: usize,
        /// The new branches with commits of a person that would have been left behind.
        branches: Vec<String>,
    },
    /// Nothing was changed: the checkout is in a state that a person must end first.
    Objection(CheckoutObjection),
    /// Nothing was changed: a person changed files that the commit changes, too.
    Conflicts(Vec<EditedFile>),
    /// Nothing was changed: the checkout has commits that the commit does not contain.
    Ahead(CommitId),
    /// The earlier commit is checked out again, or nothing had to be done.
    Reverted(CheckoutRevert),
    /// The state of the checkout.
    State(CheckoutState),
    /// The commit that is checked out after [`CheckoutJob::Commit`].
    Committed(CommitId),
    /// The files that are in the stash after [`CheckoutJob::Drop`].
    Dropped(Vec<EditedFile>),
    /// The pack is complete.
    Packed,
}

/// The commits and files of a person that a revert has kept elsewhere.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckoutRevert {
    /// The new branches with commits that a person made during the deployment.
    pub branches: Vec<String>,
    /// The files that are in the stash: a person changed them during the deployment, and the earlier commit has another content.
    pub stashed: Vec<EditedFile>,
}

/// The reason why a checkout is not changed. Paths are relative to the checkout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CheckoutObjection {
    /// An operation of git is in progress, such as `merge`.
    InProgress(String),
    /// A file has an unresolved conflict.
    Unmerged(String),
    /// A file or directory does not belong to the owner of the checkout.
    Foreign {
        /// The path.
        path: String,
        /// The id of the owner of the file.
        owner: u32,
        /// The id of the owner of the checkout.
        expected: u32,
    },
    /// The lock of a git command of a person.
    Locked(String),
    /// `.git` is a file or a link.
    NoDirectory,
    /// A directory is a git repository of its own, so its files cannot be committed.
    Nested(String),
}

impl CheckoutObjection {
    /// Returns the reason and the remedy. `checkout` is the path of the checkout on the server.
    pub fn words(&self, checkout: &std::path::Path) -> (String, String) {
        let checkout = checkout.display();
        match self {
            CheckoutObjection::InProgress(name) => (
                format!("a {name} is in progress in the checkout"),
                format!("end it in {checkout} with `git {name} --continue` or `git {name} --abort`, and try again"),
            ),
            CheckoutObjection::Unmerged(path) => (
                format!("{path} has an unresolved conflict in the checkout"),
                format!("resolve the conflict in {checkout}, run `git add` for the file, and try again"),
            ),
            CheckoutObjection::Foreign { path, owner, expected } => {
                let path = if path.is_empty() { "." } else { path };
                let why = format!(
                    "{path} in the checkout belongs to another user: uid {owner} (expected the owner of the checkout, uid {expected})"
                );
                (why, format!("run as root: chown -R --no-dereference --reference={checkout}/ {checkout}/"))
            }
            CheckoutObjection::Locked(path) => (
                format!("another git command uses the checkout: {path} exists"),
                format!("end the command; if none runs, delete {checkout}/{path}"),
            ),
            CheckoutObjection::NoDirectory => (
                String::from(".git in the checkout is a file or a link (expected a directory)"),
                format!("move {checkout}/.git away; the next push creates the repository again"),
            ),
            CheckoutObjection::Nested(path) => (
                format!("{path} in the checkout is a git repository of its own; larder does not fetch submodules"),
                format!("delete {checkout}/{path}/.git, or add {path}/ to .gitignore, and try again"),
            ),
        }
    }
}

/// The state of a checkout.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckoutState {
    /// The commit that is checked out; `None` for an empty checkout.
    pub head: Option<CommitId>,
    /// The branch that is checked out; `None` if `HEAD` is detached.
    pub branch: Option<String>,
    /// The commit that larder checked out last.
    pub base: Option<CommitId>,
    /// The files that a person changed, at most [`MAX_FILES`].
    pub edits: Vec<EditedFile>,
    /// The number of changed files.
    pub count: usize,
    /// The entries of the stash, newest first.
    pub stashes: Vec<String>,
    /// The branches that keep commits of a person.
    pub kept: Vec<String>,
}

/// The report of a worker.
pub type CheckoutReport = Result<CheckoutAnswer, GitFailure>;

/// Performs the job of a worker. `job` is descriptor 3, and `report` is descriptor 4. Returns the exit code.
pub fn work(mut job: File, mut report: File) -> io::Result<u8> {
    let app = std::env::var_os("LARDER_APP").map_or_else(|| PathBuf::from("/app"), PathBuf::from);
    let job: CheckoutJob = read_job(&mut job)?;
    let answer = perform(&app, &job);
    if let Err(failure) = &answer {
        // The report has the same text; the line helps if the report is lost.
        let _ = writeln!(io::stderr(), "larder: {failure}");
    }
    write_report(&mut report, &answer)?;
    Ok(0)
}

/// Performs a job in the checkout `app`. Objects are read from the standard input.
pub fn perform(app: &std::path::Path, job: &CheckoutJob) -> CheckoutReport {
    match job {
        CheckoutJob::Update(job) => update::update(app, job, std::process::Stdio::inherit()),
        CheckoutJob::Revert { deployment, branch } => update::revert(app, *deployment, branch),
        CheckoutJob::Look => files::look(app).map(CheckoutAnswer::State),
        CheckoutJob::Commit { message, author, branch } => files::commit_all(app, message, author, branch),
        CheckoutJob::Drop => files::drop_all(app),
        CheckoutJob::Pack { commit, known } => files::pack(app, commit, known, std::process::Stdio::inherit()),
    }
}
