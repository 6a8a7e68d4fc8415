//! The types of requests to the keeper and of their results.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use crate::model::{EnvId, EnvironmentName, Launch, ProcessId, ProjectId, ProjectName, UserNumbers};

/// A failed request to the keeper.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The connection to the keeper is closed.
    #[error("the connection to the keeper is closed")]
    Gone,
    /// The keeper refused the request or failed to perform it.
    #[error("the keeper cannot {doing}: {why}")]
    Refused {
        /// The request, as a verb phrase.
        doing: &'static str,
        /// The reason.
        why: String,
    },
    /// A message was too large or could not be encoded.
    #[error("cannot encode a request to the keeper: {0}")]
    Message(String),
    /// A worker's report is truncated, too long or malformed.
    #[error("cannot read the worker's report: {0}")]
    Report(String),
}

/// The standard descriptors of a new process; `None` stands for `/dev/null`. A supervised process gets one pipe for 1 and 2 from the
/// keeper instead.
#[derive(Debug, Default)]
pub struct Stdio {
    /// Descriptor 0.
    pub stdin: Option<OwnedFd>,
    /// Descriptor 1.
    pub stdout: Option<OwnedFd>,
    /// Descriptor 2.
    pub stderr: Option<OwnedFd>,
    /// Descriptors from 5 on; at most 8.
    pub extra: Vec<OwnedFd>,
}

/// A process that outlived the previous server.
#[derive(Debug)]
pub struct SupervisedProcess {
    /// Its number, which survives restarts.
    pub id: ProcessId,
    /// The label that the previous server gave the process.
    pub label: Vec<u8>,
    /// The request that launched it.
    pub launch: Launch,
    /// The read end of its stdout and stderr.
    pub output: OwnedFd,
    /// True if the previous server had begun to stop the process. It uses its slot and its port until it has exited.
    pub stopping: bool,
}

/// The names of a project and an environment; the only message with names, which the keeper checks itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// The project's number and name.
    pub project: (ProjectId, ProjectName),
    /// The environment's number and name; without it, only the project's repository directory is created.
    pub environment: Option<(EnvId, EnvironmentName)>,
}

/// The isolation and the limits that are in force on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// True if every environment has users of its own (the keeper is root); otherwise everything runs as one user.
    pub system: bool,
    /// The user numbers of environments.
    pub users: Option<UserNumbers>,
    /// `Ok` if workers have namespaces of their own; otherwise the reason.
    pub namespaces: Result<(), String>,
    /// `Ok` if `/app` is an overlay; otherwise the reason why it is a copy.
    pub overlay: Result<(), String>,
    /// `Ok` if the worker owns the release's files in the overlay; otherwise the reason.
    pub idmap: Result<(), String>,
    /// The control groups that limit processes.
    pub cgroup: Cgroups,
}

/// The kind of control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cgroups {
    /// The unified hierarchy (v2).
    V2,
    /// The older hierarchies (v1) of memory, processes and processor.
    V1,
    /// None. Memory is limited for each process, except for applications, whose runtimes reserve more than they use; processes are
    /// counted for each user.
    None,
}
