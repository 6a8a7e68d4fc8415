//! Repositories, git's own programs, hooks, and the export of a commit.
//!
//! The module has two halves. On the server, [`Repositories`] starts git workers and [`hook::Listener`] answers hooks. In the workers,
//! [`work`] and [`work_source`] run inside the sandbox as the git user; only they open a repository.

pub mod hook;
mod job;
mod libgit;
mod lookup;
mod maintenance;
mod pack;
mod program;
mod refs;
#[cfg(test)]
mod refs_tests;
mod repositories;
mod serve;
pub mod source;
#[cfg(test)]
mod testing;
mod work;

pub use job::{
    CommitSpec, Expected, GitAnswer, GitFailure, GitJob, LogEntry, MoveRef, RefEntry, ReleaseRef, ServeLimits, Service,
};
pub use program::{MissingVariable, WorkerPaths};
pub use repositories::{GitError, Repositories, Serving};
pub use serve::ServeError;
pub use work::{work, work_source};
