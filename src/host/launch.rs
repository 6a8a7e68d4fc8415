//! The client side of the keeper: asks it to start workers and follows them; and the worker's side of a job.
//!
//! A worker finds: 0, 1, 2 as the server chose them; 3 the sealed job; 4 the write end of its report; 5 and up further
//! descriptors in the order of [`Stdio::extra`].

use std::{
    io::{self, Read, Write},
    os::fd::OwnedFd,
};

use serde::{Serialize, de::DeserializeOwned};

use crate::model::{EnvId, EnvironmentName, Exit, Launch, ProcessId, ProjectId, ProjectName};

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
}

/// The standard descriptors of a new process; what is `None` is `/dev/null`.
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
pub struct Kept {
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
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Registration {
    /// The project's number and name.
    pub project: (ProjectId, ProjectName),
    /// The environment's number and name; without it, only the project's repository directory is made.
    pub environment: Option<(EnvId, EnvironmentName)>,
}

/// A started process.
#[derive(Debug)]
pub struct Child {
    id: ProcessId,
    report: Option<OwnedFd>,
}

impl Child {
    /// The keeper's number for it.
    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// Waits for its end; everything that it started has ended too by then.
    pub async fn wait(&mut self) -> Result<Exit, LaunchError> {
        Err(LaunchError::Gone)
    }

    /// Asks it to end (SIGTERM to the process itself).
    pub async fn terminate(&self) -> Result<(), LaunchError> {
        Err(LaunchError::Gone)
    }

    /// Ends it and everything that it started, now.
    pub async fn kill(&self) -> Result<(), LaunchError> {
        Err(LaunchError::Gone)
    }

    /// Reads its report, at most `limit` bytes; `None` where it ended without one.
    pub async fn report<T: DeserializeOwned>(&mut self, limit: usize) -> Result<Option<T>, LaunchError> {
        let _ = (limit, self.report.take());
        Ok(None)
    }
}

/// The server's connection to the keeper.
#[derive(Debug, Clone)]
pub struct Launcher {}

impl Launcher {
    /// Starts a process. `job` reaches it sealed; the keeper does not read it.
    pub async fn launch<J: Serialize>(&self, launch: Launch, job: &J, stdio: Stdio) -> Result<Child, LaunchError> {
        let _ = (launch, postcard::to_stdvec(job), stdio);
        Err(LaunchError::Gone)
    }

    /// The processes that outlived the previous server.
    pub async fn kept(&self) -> Result<Vec<Kept>, LaunchError> {
        Err(LaunchError::Gone)
    }

    /// Makes the directories (and in system mode the users) of a project or an environment. Safe to repeat.
    pub async fn register(&self, registration: Registration) -> Result<(), LaunchError> {
        let _ = registration;
        Err(LaunchError::Gone)
    }

    /// Ends all processes of an environment and removes its directory, or those of a whole project.
    pub async fn unregister(&self, project: ProjectId, environment: Option<EnvId>) -> Result<(), LaunchError> {
        let _ = (project, environment);
        Err(LaunchError::Gone)
    }
}

/// Worker side: the job on descriptor 3.
pub fn read_job<J: DeserializeOwned>(from: &mut impl Read) -> io::Result<J> {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes)?;
    postcard::from_bytes(&bytes).map_err(io::Error::other)
}

/// Worker side: the report on descriptor 4.
pub fn write_report<R: Serialize>(to: &mut impl Write, report: &R) -> io::Result<()> {
    to.write_all(&postcard::to_stdvec(report).map_err(io::Error::other)?)
}
