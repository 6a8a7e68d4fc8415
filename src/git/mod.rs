//! Repositories, git's own programs, hooks, and the export of a commit.
//!
//! Two halves. The server's: [`Repositories`] starts git workers, [`hook::Listener`] speaks to hooks. The workers': [`work`] and
//! [`work_source`] run inside the sandbox, as the git user, and are the only code that opens a repository.

pub mod embedded;
pub mod hook;
mod job;
mod libgit;
mod pack;
mod paths;
mod program;
mod refs;
mod repositories;
mod serve;
pub mod source;
#[cfg(test)]
mod testing;
mod tidy;
mod work;

pub use job::{Expected, GitAnswer, GitFailure, GitJob, Kept, LogEntry, MoveRef, RefEntry, ServeLimits, Service, Spec};
pub use paths::{MissingVariable, WorkerPaths};
pub use refs::keep_ref;
pub use repositories::{GitError, Repositories, Serving};
pub use serve::ServeError;
pub use work::{work, work_source};
