//! Repositories, git's own programs, hooks, and the export of a commit.
//!
//! The module has two halves. In the server, [`Repositories`] starts git workers, and [`hook::Listener`] receives the requests of hooks. In
//! the workers, [`work`] and [`work_source`] run as the git user inside a sandbox. Only workers and hooks open a repository.

pub mod checkout;
pub mod hook;
mod job;
mod libgit;
mod lookup;
mod maintenance;
mod pack;
mod pillar;
mod pillar_commit;
mod program;
mod push_commands;
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
    CommitSpec, Expected, GitAnswer, GitFailure, GitJob, LogEntry, MoveRef, PillarCommit, PillarFiles, PillarHistory,
    PillarRefusal, RefEntry, ReleaseRef, RepositoryId, RepositoryKind, ServeLimits, Service,
};
pub use pillar::MAX_PILLAR_PACK;
pub use program::{MissingVariable, WorkerPaths};
pub use push_commands::{CommandCounter, PushCommands};
pub use repositories::{GitError, Repositories, Serving};
pub use serve::ServeError;
pub use work::{work, work_source};
