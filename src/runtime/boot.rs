//! Booting a release in a slot, and finding what an earlier server had booted.

use std::{os::fd::OwnedFd, path::PathBuf};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{Exits, Instance, Kept, Label, Runtime, RuntimeError};
use crate::{
    host::launch::{Child, LaunchError, Stdio},
    model::{Environment, Launch, LimitClass, ProcessType, ReleaseId, Role, Slot, StopSignal, Supervision},
};

/// The job of a worker that runs a command of the project at `/app`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunJob {
    /// The command line as the project wrote it; the project's own shell reads it, as the project's own user. Empty: the
    /// arguments are the command.
    pub command: String,
    /// Arguments, as they are; `"$@"` in the command line.
    pub arguments: Vec<String>,
    /// The environment, complete but for what the keeper adds.
    pub env: Vec<(String, String)>,
    /// For a phase script: the variables as JSON. It finds them in the file `$LARDER_VARIABLES`, and what it leaves there is the
    /// worker's report.
    pub variables: Option<String>,
    /// Persistent paths to link from `/app` to `/data` first; then there may be no command.
    pub links: Vec<String>,
}

/// A kind of process of a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its type.
    pub kind: ProcessType,
    /// How many of it run.
    pub count: u32,
    /// Its command line.
    pub command: String,
    /// Variables that only it sees.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// The most memory of one of it, in bytes.
    #[serde(default)]
    pub memory: Option<u64>,
    /// What asks it to end.
    #[serde(default)]
    pub stop: StopSignal,
}

/// What to boot.
#[derive(Debug, Clone)]
pub struct Boot {
    /// Where.
    pub environment: Environment,
    /// In which slot.
    pub slot: Slot,
    /// Which release.
    pub release: ReleaseId,
    /// The processes.
    pub processes: Vec<Process>,
    /// The environment of all processes; `PORT` and the process name are added.
    pub env: Vec<(String, String)>,
    /// The directory of the logs.
    pub logs: PathBuf,
}

impl Boot {
    fn launch(&self, role: Role, supervision: Supervision, memory: Option<u64>) -> Launch {
        Launch {
            role,
            project: self.environment.project_id,
            environment: Some(self.environment.id),
            release: Some(self.release),
            slot: Some(self.slot),
            limits: LimitClass::Application { memory },
            supervision,
        }
    }
}

impl Runtime {
    /// Starts all processes of `boot`. If one cannot be started, those started before it keep running: the caller stops the slot.
    pub async fn boot(&self, boot: &Boot) -> Result<Vec<Instance>, RuntimeError> {
        let mut started = Vec::new();
        for process in &boot.processes {
            for index in 1..=process.count {
                started.push(self.start(boot, process, index).await?);
            }
        }
        Ok(started)
    }

    async fn start(&self, boot: &Boot, process: &Process, index: u32) -> Result<Instance, RuntimeError> {
        let mut label = Label {
            environment: boot.environment.id,
            slot: boot.slot,
            release: boot.release,
            process: process.kind.clone(),
            index,
            port: None,
        };
        let port = {
            let mut ports = self.0.ports.lock();
            let (from, to) = ports.bounds();
            ports.take().ok_or_else(|| RuntimeError::NoPort { process: label.name(), from, to })?
        };
        label.port = Some(port);
        let mut env = boot.env.clone();
        env.extend(process.env.iter().cloned());
        env.push((String::from("PORT"), port.to_string()));
        // Not Heroku's DYNO: applications take that for a promise of Heroku's surroundings, such as a router that speaks TLS.
        env.push((String::from("LARDER_PROCESS"), label.name()));
        let job = RunJob { command: process.command.clone(), arguments: Vec::new(), env, variables: None, links: Vec::new() };
        let supervision = Supervision::Keep { label: label.to_bytes(), stop: process.stop };
        let launch = boot.launch(Role::Run, supervision, process.memory);
        let launched = self.0.launcher.launch(launch, &job, Stdio::default()).await;
        let mut child = match launched {
            Ok(child) => child,
            Err(source) => {
                self.0.ports.lock().give_back(port);
                return Err(RuntimeError::Launch { process: label.name(), source });
            }
        };
        let output = child.output();
        let logs = boot.logs.clone();
        Ok(self.keep(child.id(), label, output, logs))
    }

    fn keep(&self, id: crate::model::ProcessId, label: Label, output: Option<OwnedFd>, logs: PathBuf) -> Instance {
        let (sender, exits) = watch::channel(Exits::default());
        let instance = Instance { id, label: label.clone(), exits };
        self.0.kept.lock().insert(id, Kept { instance: instance.clone(), exits: sender });
        if let Some(output) = output {
            self.0.logs.follow(label, output, logs);
        }
        instance
    }

    /// Takes over the processes that outlived the previous server. `logs` gives the directory of an environment's logs, or
    /// nothing for an environment that is gone, whose processes are then stopped.
    pub async fn adopt(&self, logs: impl Fn(&Label) -> Option<PathBuf>) -> Result<usize, LaunchError> {
        let mut adopted = 0_usize;
        for kept in self.0.launcher.supervised().await? {
            let known = Label::from_bytes(&kept.label).and_then(|label| logs(&label).map(|logs| (label, logs)));
            let Some((label, logs)) = known else {
                self.0.launcher.stop(kept.id, std::time::Duration::ZERO).await?;
                continue;
            };
            if let Some(port) = label.port {
                self.0.ports.lock().claim(port);
            }
            self.keep(kept.id, label, Some(kept.output), logs);
            adopted = adopted.saturating_add(1);
        }
        Ok(adopted)
    }

    /// Runs one command in a slot, outside supervision.
    pub async fn task(&self, boot: &Boot, job: &RunJob, stdio: Stdio) -> Result<Child, RuntimeError> {
        let launch = boot.launch(Role::Task, Supervision::Once, None);
        let launched = self.0.launcher.launch(launch, job, stdio).await;
        launched.map_err(|source| RuntimeError::Launch { process: job.command.chars().take(60).collect(), source })
    }
}
