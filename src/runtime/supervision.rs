//! [`Runtime`] starts, follows and stops the application processes in the slots of environments.

use std::{collections::HashMap, net::SocketAddr, os::fd::OwnedFd, sync::Arc, time::Duration};

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{
    logs::{LogPlace, Logs},
    ports::Ports,
    process::{Boot, Exits, Instance, Label, Process, RunJob},
};
use crate::{
    host::launch::{Child, LaunchError, Launcher, Stdio},
    model::{EnvId, Exit, ProcessId, Redactor, Role, Slot, Supervision},
};

/// The reason why a process could not be started or stopped.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The keeper refused the request or failed to carry out the request.
    #[error("cannot start or stop {process}")]
    Launch {
        /// The name of the process, such as `web.1`. For a task, see [`RunJob::title`].
        process: String,
        /// The cause.
        #[source]
        source: LaunchError,
    },
    /// All ports of the range are taken.
    #[error("cannot start {process}: every port from {from} to {to} is in use (`ports` in the server file sets this range)")]
    NoPort {
        /// The name of the process, such as `web.1`.
        process: String,
        /// The first port of the range.
        from: u16,
        /// The last port of the range.
        to: u16,
    },
}

struct Supervised {
    instance: Instance,
    exits: watch::Sender<Exits>,
}

/// A web process on the copy of the data. Dropping the value kills the process.
pub struct ProbedWeb {
    /// The process.
    pub child: Child,
    port: ProbedPort,
}

impl ProbedWeb {
    /// Returns the address on which the process must listen.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port.number))
    }
}

/// A port that is released when the value is dropped.
struct ProbedPort {
    number: u16,
    runtime: Runtime,
}

impl Drop for ProbedPort {
    fn drop(&mut self) {
        self.runtime.0.ports.lock().give_back(self.number);
    }
}

struct Shared {
    launcher: Launcher,
    ports: Mutex<Ports>,
    logs: Logs,
    supervised: Mutex<HashMap<ProcessId, Supervised>>,
    /// The processes that the previous server was stopping. These processes are not instances, but occupy their slot and their port until
    /// their exit.
    stopping: Mutex<HashMap<ProcessId, Label>>,
}

/// The application processes of this server; cheap to clone.
#[derive(Clone)]
pub struct Runtime(Arc<Shared>);

impl Runtime {
    /// Creates a runtime without processes. [`Runtime::adopt`] adds the processes that are running.
    pub fn new(launcher: Launcher, ports: Ports, logs: Logs) -> Runtime {
        Runtime(Arc::new(Shared {
            launcher,
            ports: Mutex::new(ports),
            logs,
            supervised: Mutex::default(),
            stopping: Mutex::default(),
        }))
    }

    /// Returns the processes of an environment in `slot`, or in both slots if `slot` is `None`, sorted by name.
    pub fn instances(&self, environment: EnvId, slot: Option<Slot>) -> Vec<Instance> {
        let matches = |label: &Label| label.environment == environment && slot.is_none_or(|slot| slot == label.slot);
        let supervised = self.0.supervised.lock();
        let instances = supervised.values().map(|process| &process.instance);
        let mut found: Vec<_> = instances.filter(|instance| matches(&instance.label)).cloned().collect();
        found.sort_by(|a, b| a.label.order().cmp(&b.label.order()));
        found
    }

    /// Returns the logs of all processes.
    pub fn logs(&self) -> &Logs {
        &self.0.logs
    }

    /// Records that a supervised process exited. Returns the label of the process, or `None` for an unknown process. The server calls this
    /// function for each exit after which the keeper restarts the process.
    pub fn exited(&self, id: ProcessId, exit: Exit) -> Option<Label> {
        let supervised = self.0.supervised.lock();
        let process = supervised.get(&id)?;
        tracing::warn!(process = %process.instance.label, %exit, "process exited; the keeper restarts it");
        process.exits.send_modify(|exits| *exits = Exits { count: exits.count.saturating_add(1), last: Some(exit) });
        Some(process.instance.label.clone())
    }

    /// Stops the processes of a slot: the keeper sends their stop signals, and kills the processes that have not exited after `grace`. The
    /// call may be repeated.
    pub async fn stop(&self, environment: EnvId, slot: Slot, grace: Duration) -> Result<(), RuntimeError> {
        self.stop_where(environment, grace, |label| label.slot == slot).await
    }

    /// Stops those processes of an environment for whose labels `which` returns true, with the time limit `grace` for each process. See
    /// [`Runtime::stop_each`].
    pub async fn stop_where(
        &self,
        environment: EnvId,
        grace: Duration,
        which: impl Fn(&Label) -> bool,
    ) -> Result<(), RuntimeError> {
        self.stop_each(environment, |label| which(label).then_some(grace)).await
    }

    /// Stops those processes of an environment for whose labels `grace` returns a time limit, all at the same time. The method waits until
    /// the processes have exited, because a process occupies its slot until its exit.
    pub async fn stop_each(&self, environment: EnvId, grace: impl Fn(&Label) -> Option<Duration>) -> Result<(), RuntimeError> {
        let stopping = self.instances(environment, None).into_iter();
        let stopping: Vec<_> = stopping.filter_map(|one| grace(&one.label).map(|grace| (one, grace))).collect();
        let stops = stopping.into_iter().map(|(instance, grace)| async move {
            let process = instance.label.name();
            let stopped = self.stop_one(instance.id, grace).await;
            self.0.supervised.lock().remove(&instance.id);
            if let Some(port) = instance.label.port {
                self.0.ports.lock().give_back(port);
            }
            stopped.map_err(|source| RuntimeError::Launch { process, source })
        });
        let earlier: Vec<_> = self.0.stopping.lock().iter().map(|(id, label)| (*id, label.clone())).collect();
        let earlier = earlier.into_iter().filter(|(_, label)| label.environment == environment);
        let ends = earlier.filter_map(|(id, label)| Some((id, grace(&label)?, label))).map(|(id, grace, label)| async move {
            let ended = self.stop_one(id, grace).await;
            ended.map_err(|source| RuntimeError::Launch { process: label.name(), source })
        });
        let (stopped, ended) = tokio::join!(futures_util::future::join_all(stops), futures_util::future::join_all(ends));
        stopped.into_iter().chain(ended).collect()
    }

    async fn stop_one(&self, id: ProcessId, grace: Duration) -> Result<(), LaunchError> {
        match self.0.launcher.stop(id, grace).await {
            Ok(()) => self.0.launcher.ended(id).await.map(drop),
            // The keeper refuses the request if the process has already exited, or if another task has already stopped the process.
            Err(error) => match tokio::time::timeout(Duration::ZERO, self.0.launcher.ended(id)).await {
                Ok(Ok(_)) => Ok(()),
                _ => Err(error),
            },
        }
    }
}

impl Runtime {
    /// Starts all processes of `boot`. If a process cannot be started, the processes that were started before it keep running, and the
    /// caller must stop the slot.
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
        // Heroku's variable `DYNO` is not set, because applications with this variable assume Heroku's environment, such as a router that
        // terminates TLS.
        env.push((String::from("LARDER_PROCESS"), label.name()));
        let configuration = boot.configuration.clone();
        let secret_files = boot.secret_files.clone();
        let job = RunJob { command: process.command.clone(), env, configuration, secret_files, ..RunJob::default() };
        let supervision = Supervision::Keep { label: label.to_bytes(), stop: process.stop };
        let launch = boot.launch(Role::Run, supervision, process.memory);
        let started = Timestamp::now();
        let launched = self.0.launcher.launch(launch, &job, Stdio::default()).await;
        let mut child = match launched {
            Ok(child) => child,
            Err(source) => {
                self.0.ports.lock().give_back(port);
                return Err(RuntimeError::Launch { process: label.name(), source });
            }
        };
        let output = child.output();
        let logs = LogPlace { directory: boot.logs.clone(), redactor: Redactor::new(&boot.configuration) };
        Ok(self.register(child.id(), label, Some(started), output, logs))
    }

    /// Adds a running process as an instance, and starts to copy its output to the log.
    fn register(
        &self,
        id: ProcessId,
        label: Label,
        started: Option<Timestamp>,
        output: Option<OwnedFd>,
        logs: LogPlace,
    ) -> Instance {
        let (sender, exits) = watch::channel(Exits::default());
        let instance = Instance { id, label: label.clone(), started, exits };
        self.0.supervised.lock().insert(id, Supervised { instance: instance.clone(), exits: sender });
        if let Some(output) = output {
            self.0.logs.follow(label, output, logs);
        }
        instance
    }

    /// Adds the processes that outlived the previous server, and returns the number of added processes. `logs` returns the place of a process's
    /// log, or `None` for an environment that no longer exists. The processes of a removed environment are stopped, as are
    /// processes whose label cannot be decoded.
    ///
    /// A process that the previous server was stopping does not become an instance. [`Runtime::stop_each`] waits for the exit of such a
    /// process.
    pub async fn adopt(&self, logs: impl Fn(&Label) -> Option<LogPlace>) -> Result<usize, LaunchError> {
        let mut adopted = 0_usize;
        for known in self.0.launcher.supervised().await? {
            let label = Label::from_bytes(&known.label).and_then(|label| logs(&label).map(|logs| (label, logs)));
            let Some((label, logs)) = label else {
                self.0.launcher.stop(known.id, Duration::ZERO).await?;
                continue;
            };
            if let Some(port) = label.port {
                self.0.ports.lock().claim(port);
            }
            if known.stopping {
                self.follow_stopping(known.id, label, known.output, logs);
                continue;
            }
            self.register(known.id, label, None, Some(known.output), logs);
            adopted = adopted.saturating_add(1);
        }
        Ok(adopted)
    }

    /// Reserves the port of a process that is being stopped, and copies the output of the process to the log, until the process has exited.
    fn follow_stopping(&self, id: ProcessId, label: Label, output: OwnedFd, logs: LogPlace) {
        self.0.stopping.lock().insert(id, label.clone());
        self.0.logs.follow(label.clone(), output, logs);
        let runtime = self.clone();
        tokio::spawn(async move {
            // An error means that the connection to the keeper is closed. Without the keeper, this server also exits.
            let _ = runtime.0.launcher.ended(id).await;
            runtime.0.stopping.lock().remove(&id);
            if let Some(port) = label.port {
                runtime.0.ports.lock().give_back(port);
            }
        });
    }

    /// Starts one command in a slot. The keeper does not restart the command.
    pub async fn task(&self, boot: &Boot, job: &RunJob, stdio: Stdio) -> Result<Child, RuntimeError> {
        let launch = boot.launch(Role::Task, Supervision::Once, None);
        let launched = self.0.launcher.launch(launch, job, stdio).await;
        launched.map_err(|source| RuntimeError::Launch { process: job.title(), source })
    }

    /// Starts a web process in a slot, on the copy of the data instead of the data, with a port of its own. The keeper does not restart the
    /// process, and the proxy has no route to the process.
    pub async fn probe_web(
        &self,
        boot: &Boot,
        mut job: RunJob,
        memory: Option<u64>,
        stdio: Stdio,
    ) -> Result<ProbedWeb, RuntimeError> {
        let process = String::from("web.1");
        let taken = {
            let mut ports = self.0.ports.lock();
            let (from, to) = ports.bounds();
            ports.take().ok_or_else(|| RuntimeError::NoPort { process: process.clone(), from, to })?
        };
        let port = ProbedPort { number: taken, runtime: self.clone() };
        job.env.push((String::from("PORT"), taken.to_string()));
        job.env.push((String::from("LARDER_PROCESS"), process.clone()));
        let launch = boot.launch(Role::Probe, Supervision::Once, memory);
        let launched = self.0.launcher.launch(launch, &job, stdio).await;
        let child = launched.map_err(|source| RuntimeError::Launch { process, source })?;
        Ok(ProbedWeb { child, port })
    }

    /// Starts one command in a slot, on the copy of the data instead of the data. The keeper does not restart the command.
    pub async fn probe(&self, boot: &Boot, job: &RunJob, stdio: Stdio) -> Result<Child, RuntimeError> {
        let launch = boot.launch(Role::Probe, Supervision::Once, None);
        let launched = self.0.launcher.launch(launch, job, stdio).await;
        launched.map_err(|source| RuntimeError::Launch { process: job.title(), source })
    }
}
