//! The client side of the keeper: asks it to start workers and follows them; and the worker's side of a job.
//!
//! A worker finds: 0, 1, 2 as the server chose them; 3 the sealed job; 4 the write end of its report; 5 and up further
//! descriptors in the order of [`Stdio::extra`]. `LARDER_*` variables say where in its view things are.

mod child;
mod client;
mod inherited;
mod job;
pub mod wire;

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

pub use child::Child;
pub use client::Launcher;
pub use inherited::take as take_inherited;
pub use job::{Errand, place, read_job, write_report};
pub use wire::Event;

use crate::model::{EnvId, EnvironmentName, Launch, ProcessId, ProjectId, ProjectName, UserNumbers};

/// What tells the C library of workers with buffers of many megabytes to ask for large pages, as a variable and its value: on a virtual
/// machine, each fault of a small one costs about as much as compressing a kilobyte. Where it is not glibc, it means nothing.
pub const LARGE_PAGES: (&str, &str) = ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1");

/// Why the keeper did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The keeper went away.
    #[error("the keeper does not answer")]
    Gone,
    /// The keeper refused or failed; its words.
    #[error("the keeper could not {doing}: {why}")]
    Refused {
        /// What was being done.
        doing: &'static str,
        /// Why not.
        why: String,
    },
    /// A message did not fit or could not be encoded.
    #[error("a message for the keeper could not be made: {0}")]
    Message(String),
    /// A worker's report is missing bytes, too long or not what was expected.
    #[error("the worker's report cannot be read: {0}")]
    Report(String),
}

/// The standard descriptors of a new process; what is `None` is `/dev/null`. A kept process gets one pipe for 1 and 2 from the
/// keeper instead.
#[derive(Debug, Default)]
pub struct Stdio {
    /// Descriptor 0.
    pub stdin: Option<OwnedFd>,
    /// Descriptor 1.
    pub stdout: Option<OwnedFd>,
    /// Descriptor 2.
    pub stderr: Option<OwnedFd>,
    /// Descriptors 5 and up; at most 8.
    pub extra: Vec<OwnedFd>,
}

/// A process that the keeper keeps running, as it reports it to a server that has just started.
#[derive(Debug)]
pub struct SupervisedProcess {
    /// Its number; stays the same over its restarts.
    pub id: ProcessId,
    /// What the server called it.
    pub label: Vec<u8>,
    /// How it was launched.
    pub launch: Launch,
    /// The read end of its stdout and stderr.
    pub output: OwnedFd,
}

/// Where the keeper finds an environment; the only message in which it takes names, and it checks them itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// The project's number and name.
    pub project: (ProjectId, ProjectName),
    /// The environment's number and name; without it, only the project's repository directory is made.
    pub environment: Option<(EnvId, EnvironmentName)>,
}

/// What is in force on this machine, for `larder status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Whether every project has users of its own (the keeper is root), or everything runs as one user.
    pub system: bool,
    /// The numbers of those users.
    pub users: Option<UserNumbers>,
    /// Whether workers live in namespaces of their own; otherwise the reason why not.
    pub namespaces: Result<(), String>,
    /// Whether `/app` is an overlay; otherwise the reason why not, and it is a copy.
    pub overlay: Result<(), String>,
    /// Whether files of a release appear as the worker's own in the overlay.
    pub idmap: Result<(), String>,
    /// Which limits of groups of processes work.
    pub cgroup: Cgroups,
}

/// How limits of groups of processes are set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cgroups {
    /// By the unified hierarchy.
    V2,
    /// By the older hierarchies of memory, processes and processor.
    V1,
    /// Not at all. Memory is limited for each process, but for applications, whose runtimes reserve more than they use; processes
    /// are counted for each user.
    None,
}
