//! The parameters and results of requests to the keeper.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use rustix::process::Signal;

use crate::model::{EnvId, EnvironmentName, Launch, ProcessId, ProjectId, ProjectName, StopSignal, StorageKind, UserNumbers};

/// A failed request to the keeper.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The connection to the keeper is closed.
    #[error("the connection to the keeper is closed")]
    Gone,
    /// The keeper refused the request or failed to perform it.
    #[error("the keeper cannot {doing}: {why}")]
    Refused {
        /// The request, as a verb phrase after "cannot".
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
    /// A request was too large or could not be encoded.
    #[error("cannot encode a request to the keeper: {0}")]
    Message(String),
    /// A worker's report is truncated, too large or malformed, or could not be read.
    #[error("cannot read the worker's report: {0}")]
    Report(String),
}

/// The descriptors of a new process. `None` stands for `/dev/null`. For a supervised process, the keeper creates a pipe, whose write end
/// becomes descriptors 1 and 2.
#[derive(Debug, Default)]
pub struct Stdio {
    /// Descriptor 0.
    pub stdin: Option<OwnedFd>,
    /// Descriptor 1.
    pub stdout: Option<OwnedFd>,
    /// Descriptor 2.
    pub stderr: Option<OwnedFd>,
    /// The descriptors from 5 on. At most 8 are allowed.
    pub extra: Vec<OwnedFd>,
}

/// A supervised process that outlived the previous server.
#[derive(Debug)]
pub struct SupervisedProcess {
    /// The number that the keeper gave the process. A restart of the process does not change the number.
    pub id: ProcessId,
    /// The label that the previous server gave the process.
    pub label: Vec<u8>,
    /// The request that launched the process.
    pub launch: Launch,
    /// The read end of the pipe that is stdout and stderr of the process.
    pub output: OwnedFd,
    /// True if the previous server had begun to stop the process. The process uses its slot and its port until it has exited.
    pub stopping: bool,
}

/// The names of a project and an environment. No other request contains names. The keeper checks the names itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// The project's number and name.
    pub project: (ProjectId, ProjectName),
    /// The environment's number and name. With `None`, the keeper creates only the repository directory of the project.
    pub environment: Option<(EnvId, EnvironmentName)>,
    /// The means by which the kernel limits the project's space, and the limit in bytes. Zero is no limit, for a quota only.
    pub storage: Option<(StorageKind, u64)>,
}

/// The isolation and the limits that the keeper can enforce on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// True if the keeper is root. Every environment then has its own users. False if all processes run as one user.
    pub system: bool,
    /// The uids of the environments' users; `None` if all processes run as one user.
    pub users: Option<UserNumbers>,
    /// `Ok` if each worker has its own namespaces. An error is the reason why namespaces cannot be used.
    pub namespaces: Result<(), String>,
    /// `Ok` if `/app` is an overlay. An error is the reason why `/app` is a copy.
    pub overlay: Result<(), String>,
    /// `Ok` if the worker's user owns the release's files in the overlay. An error is the reason why idmapped mounts cannot be used.
    pub idmap: Result<(), String>,
    /// The control groups that limit processes.
    pub cgroup: Cgroups,
    /// `Ok` if the file system of the root limits the space of each project. An error is the reason why there are no project quotas.
    pub quota: Result<(), String>,
}

/// The version of the control groups on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cgroups {
    /// The unified hierarchy (v2).
    V2,
    /// The older hierarchies (v1) of the memory, pids and cpu controllers.
    V1,
    /// Control groups cannot be used. The keeper limits the data memory of each process instead (`RLIMIT_DATA`). Applications have no such
    /// limit: their runtimes reserve more memory than they use, and would exceed such a limit. The number of processes is limited for each
    /// user.
    None,
}

/// Returns the signal that a recipe names.
pub fn signal_of(stop: StopSignal) -> Signal {
    match stop {
        StopSignal::Term => Signal::TERM,
        StopSignal::Int => Signal::INT,
        StopSignal::Quit => Signal::QUIT,
        StopSignal::Hup => Signal::HUP,
        StopSignal::Usr1 => Signal::USR1,
        StopSignal::Usr2 => Signal::USR2,
        StopSignal::Winch => Signal::WINCH,
    }
}
