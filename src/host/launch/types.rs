//! The parameters and results of requests to the keeper.

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
    /// The server could not create the descriptors of a request.
    #[error("cannot create the {what} of a new process")]
    Descriptor {
        /// The descriptor: `job file` or `report pipe`.
        what: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A message was too large or could not be encoded.
    #[error("cannot encode a request to the keeper: {0}")]
    Message(String),
    /// A worker's report is truncated, too long or malformed.
    #[error("cannot read the worker's report: {0}")]
    Report(String),
}

/// The descriptors of a new process; `None` stands for `/dev/null`. For a supervised process, the keeper creates a pipe, which becomes
/// descriptors 1 and 2.
#[derive(Debug, Default)]
pub struct Stdio {
    /// Descriptor 0.
    pub stdin: Option<OwnedFd>,
    /// Descriptor 1.
    pub stdout: Option<OwnedFd>,
    /// Descriptor 2.
    pub stderr: Option<OwnedFd>,
    /// The descriptors from 5 on; at most 8.
    pub extra: Vec<OwnedFd>,
}

/// A supervised process that outlived the previous server.
#[derive(Debug)]
pub struct SupervisedProcess {
    /// The number that the keeper gave the process; a restart does not change it.
    pub id: ProcessId,
    /// The label that the previous server gave the process.
    pub label: Vec<u8>,
    /// The request that launched the process.
    pub launch: Launch,
    /// The read end of the pipe that the process has as stdout and stderr.
    pub output: OwnedFd,
    /// True if the previous server had begun to stop the process. The process uses its slot and its port until it has exited.
    pub stopping: bool,
}

/// The names of a project and an environment. No other request contains names; the keeper checks these names itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// The project's number and name.
    pub project: (ProjectId, ProjectName),
    /// The environment's number and name. If this is `None`, only the project's repository directory is created.
    pub environment: Option<(EnvId, EnvironmentName)>,
}

/// The isolation and the limits that are in force on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// True if the keeper is root, so that every environment has its own users; otherwise all processes run as one user.
    pub system: bool,
    /// The uids of the environments' users; `None` if all processes run as one user.
    pub users: Option<UserNumbers>,
    /// `Ok` if each worker has its own namespaces; otherwise the reason why namespaces cannot be used.
    pub namespaces: Result<(), String>,
    /// `Ok` if `/app` is an overlay; otherwise the reason why it is a copy.
    pub overlay: Result<(), String>,
    /// `Ok` if the worker's user owns the release's files in the overlay; otherwise the reason why idmapped mounts cannot be used.
    pub idmap: Result<(), String>,
    /// The control groups that limit processes.
    pub cgroup: Cgroups,
}

/// The kind of control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cgroups {
    /// The unified hierarchy (v2).
    V2,
    /// The older hierarchies (v1) of the memory, pids and cpu controllers.
    V1,
    /// No control groups. The memory of each process is limited, except for applications, because their runtimes reserve more memory than
    /// they use. The number of processes is limited per user.
    None,
}
