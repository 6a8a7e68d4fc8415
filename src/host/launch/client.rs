//! The requests of the server to the keeper, as methods of [`Launcher`].

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::pipe::{PipeFlags, pipe_with};
use serde::Serialize;
use tokio::sync::broadcast;

use super::{
    child::Child,
    connection::{KeeperConnection, unexpected, wait},
    inherited::take,
    job::sealed,
    types::{Capabilities, LaunchError, Registration, Stdio, SupervisedProcess},
    wire::{Given, LaunchReply, LaunchRequest, MAX_EXTRA, MAX_GRACE, ProcessEvent, Supervised},
};
use crate::model::{Area, DeploymentId, EnvId, Exit, Launch, ProcessId, ProjectId, ReleaseId, Slot, Supervision, TreeName};

/// The maximum time for which [`Launcher::reset_area`] waits for processes that use the area and are not being stopped.
const MAX_WAIT_IN_USE: Duration = Duration::from_secs(2);
/// The maximum time for which [`Launcher::reset_area`] waits for the exit of processes that were killed.
const MAX_WAIT_KILLED: Duration = Duration::from_secs(30);
/// The maximum pause between two attempts of [`Launcher::reset_area`].
const MAX_PAUSE: Duration = Duration::from_millis(100);

/// The server's connection to the keeper.
#[derive(Debug, Clone)]
pub struct Launcher {
    connection: Arc<KeeperConnection>,
}

impl Launcher {
    /// Takes over the connection that the keeper passes to the server as descriptor 3. Fails if the keeper has another version than this
    /// server. The caller must run in a tokio runtime.
    pub fn from_inherited() -> io::Result<Launcher> {
        let (ours, keeper) = (env!("CARGO_PKG_VERSION"), std::env::var("LARDER_KEEPER").unwrap_or_default());
        if keeper != ours {
            let text = format!(
                "cannot connect to the keeper: the keeper has version {keeper:?} (expected {ours:?}, the version of this server)\nhint: restart larder; a reload does not replace the keeper"
            );
            return Err(io::Error::other(text));
        }
        Launcher::over(take(3)?)
    }

    /// Opens a connection over `socket`, which must be a sequenced-packet socket to a keeper. The caller must run in a tokio runtime.
    pub fn over(socket: OwnedFd) -> io::Result<Launcher> {
        KeeperConnection::open(socket).map(|connection| Launcher { connection })
    }

    /// Starts a process. The process receives `job` in a sealed memory file, which the keeper does not read.
    pub async fn launch<J: Serialize>(&self, launch: Launch, job: &J, stdio: Stdio) -> Result<Child, LaunchError> {
        let supervised = matches!(launch.supervision, Supervision::Keep { .. });
        let job = postcard::to_stdvec(job).map_err(|error| LaunchError::Message(error.to_string()))?;
        let job = sealed(&job).map_err(|source| LaunchError::Descriptor { what: "job file", source })?;
        let (report, writer) = match supervised {
            true => (None, None),
            false => {
                let (read, write) = pipe_with(PipeFlags::CLOEXEC)
                    .map_err(|source| LaunchError::Descriptor { what: "report pipe", source: source.into() })?;
                (Some(read), Some(write))
            }
        };
        if stdio.extra.len() > MAX_EXTRA {
            return Err(LaunchError::Message(format!("{} extra descriptors (limit {MAX_EXTRA})", stdio.extra.len())));
        }
        let given = Given {
            report: writer.is_some(),
            stdin: stdio.stdin.is_some(),
            stdout: stdio.stdout.is_some(),
            stderr: stdio.stderr.is_some(),
            extra: stdio.extra.len() as u8,
        };
        let standard = [&writer, &stdio.stdin, &stdio.stdout, &stdio.stderr].into_iter().flatten();
        let descriptors: Vec<_> = [&job].into_iter().chain(standard).chain(&stdio.extra).map(AsFd::as_fd).collect();
        let doing = "start a process";
        let (reply, descriptors) = self.connection.ask(doing, &LaunchRequest::Launch { launch, given }, &descriptors).await?;
        match reply {
            LaunchReply::Started { id, writable } => {
                let end = self.connection.end_of(id);
                let output = descriptors.into_iter().next();
                Ok(Child { id, writable, report, output, end, connection: Arc::clone(&self.connection), supervised })
            }
            other => Err(unexpected(doing, &other)),
        }
    }

    /// Returns the supervised processes that outlived the previous server, including the processes that the previous server was stopping.
    pub async fn supervised(&self) -> Result<Vec<SupervisedProcess>, LaunchError> {
        let doing = "list the supervised processes";
        let mut all: Vec<SupervisedProcess> = Vec::new();
        loop {
            let after = all.last().map(|process| process.id);
            let (reply, descriptors) = self.connection.ask(doing, &LaunchRequest::Supervised { after }, &[]).await?;
            let Supervised { id, launch, stopping } = match reply {
                LaunchReply::Supervised(Some(process)) => process,
                LaunchReply::Supervised(None) => return Ok(all),
                other => return Err(unexpected(doing, &other)),
            };
            let label = match &launch.supervision {
                Supervision::Keep { label, .. } => label.clone(),
                Supervision::Once => Vec::new(),
            };
            match descriptors.into_iter().next() {
                Some(output) => all.push(SupervisedProcess { id, label, launch, output, stopping }),
                None => return Err(LaunchError::Refused { doing, why: "the descriptor of the output is missing".to_owned() }),
            }
        }
    }

    /// Subscribes to events of supervised processes. A receiver that falls more than 1024 events behind receives an error and misses the
    /// oldest events.
    pub fn events(&self) -> broadcast::Receiver<ProcessEvent> {
        self.connection.events()
    }

    /// Stops a supervised process permanently. The keeper sends the stop signal to the process and its descendants, and kills the remaining
    /// processes after `grace`. The maximum of `grace` is [`MAX_GRACE`]; longer times are shortened. A second call can only shorten the
    /// remaining time.
    pub async fn stop(&self, id: ProcessId, grace: Duration) -> Result<(), LaunchError> {
        let grace = u32::try_from(grace.min(MAX_GRACE).as_millis()).unwrap_or(u32::MAX);
        self.connection.done("stop a process", &LaunchRequest::Stop { id, grace }).await
    }

    /// Waits for the final exit of process `id`, after which the keeper does not restart the process. `id` may also be a process that
    /// [`Launcher::supervised`] returned.
    pub async fn ended(&self, id: ProcessId) -> Result<Exit, LaunchError> {
        wait(&mut self.connection.end_of(id)).await
    }

    /// Creates the directories of a project or an environment, and prepares the file system of the project, if the project has its own.
    /// The call may be repeated.
    pub async fn register(&self, registration: Registration) -> Result<(), LaunchError> {
        let (doing, request) = ("create the directories", LaunchRequest::Register(registration));
        let mut pause = Duration::from_millis(1);
        loop {
            match self.connection.ask(doing, &request, &[]).await?.0 {
                LaunchReply::Done => return Ok(()),
                LaunchReply::Busy { .. } => tokio::time::sleep(pause).await,
                other => return Err(unexpected(doing, &other)),
            }
            pause = pause.saturating_mul(2).min(MAX_PAUSE);
        }
    }

    /// Returns the bytes that the kernel counts for a project with a quota.
    pub async fn quota_usage(&self, project: ProjectId) -> Result<u64, LaunchError> {
        let doing = "report the space of a project";
        match self.connection.ask(doing, &LaunchRequest::QuotaUsage { project }, &[]).await?.0 {
            LaunchReply::QuotaUsage(bytes) => Ok(bytes),
            other => Err(unexpected(doing, &other)),
        }
    }

    /// Kills all processes of an environment and removes the directory of the environment. If `environment` is `None`, the call applies to
    /// the whole project. The call may be repeated.
    pub async fn unregister(&self, project: ProjectId, environment: Option<EnvId>) -> Result<(), LaunchError> {
        self.connection.done("remove the directories", &LaunchRequest::Unregister { project, environment }).await
    }

    /// Replaces an area by an empty directory; [`Area::Tree`] is only removed. The old content is deleted in the background, so the
    /// duration of the call does not depend on the size of the content.
    ///
    /// If processes that use the area are being stopped, the call waits until these processes have exited, at most 30 seconds longer than
    /// their remaining stop time. For other processes that use the area, the call waits at most two seconds. Such a process can be a worker
    /// that has reported its result and whose sandbox is not removed yet. Returns an error if the area is still in use after this time.
    pub async fn reset_area(
        &self,
        environment: EnvId,
        area: Area,
        release: Option<ReleaseId>,
        slot: Option<Slot>,
    ) -> Result<(), LaunchError> {
        let doing = "reset a directory";
        let request = LaunchRequest::ResetArea { environment, area, release, slot };
        let (begun, mut pause, mut max_wait) = (Instant::now(), Duration::from_millis(1), MAX_WAIT_IN_USE);
        loop {
            let (why, left) = match self.connection.ask(doing, &request, &[]).await?.0 {
                LaunchReply::Done => return Ok(()),
                LaunchReply::Busy { why, left } => (why, left),
                other => return Err(unexpected(doing, &other)),
            };
            if let Some(left) = left.filter(|_| max_wait == MAX_WAIT_IN_USE) {
                let stopped = Duration::from_millis(left.into()).saturating_add(begun.elapsed());
                max_wait = stopped.min(MAX_GRACE).saturating_add(MAX_WAIT_KILLED);
            }
            if begun.elapsed() > max_wait {
                return Err(LaunchError::Refused { doing, why });
            }
            tokio::time::sleep(pause).await;
            pause = pause.saturating_mul(2).min(MAX_PAUSE);
        }
    }

    /// Renames the installed tree of release `from`, so that the tree belongs to release `to`. Release `to` must have no tree yet.
    pub async fn rename_tree(&self, environment: EnvId, from: ReleaseId, to: ReleaseId) -> Result<(), LaunchError> {
        let name = |id| TreeName { area: Area::Tree, id: Some(id) };
        let request = LaunchRequest::MoveTree { environment, from: name(from), to: name(to) };
        self.connection.done("rename a tree", &request).await
    }

    /// Moves the workspace of the slot `in-place` to the archive under the id of a deployment, or back. `None` is the slot. The caller must
    /// have stopped all processes of the slot.
    pub async fn move_run(
        &self,
        environment: EnvId,
        from: Option<DeploymentId>,
        to: Option<DeploymentId>,
    ) -> Result<(), LaunchError> {
        let name = |id: Option<DeploymentId>| match id {
            Some(id) => TreeName { area: Area::Archive, id: Some(id.into()) },
            None => TreeName { area: Area::Slot, id: None },
        };
        let request = LaunchRequest::MoveTree { environment, from: name(from), to: name(to) };
        self.connection.done("move a workspace", &request).await
    }

    /// Asks the keeper to prepare for launches that follow soon, so that these launches take less time. The call does not wait for the
    /// keeper.
    pub fn prewarm(&self) {
        self.connection.tell(&LaunchRequest::Prewarm);
    }

    /// Returns the isolation and the limits that the keeper can enforce on this machine.
    pub async fn capabilities(&self) -> Result<Capabilities, LaunchError> {
        let doing = "report its capabilities";
        match self.connection.ask(doing, &LaunchRequest::Capabilities, &[]).await?.0 {
            LaunchReply::Capabilities(capabilities) => Ok(capabilities),
            other => Err(unexpected(doing, &other)),
        }
    }
}
