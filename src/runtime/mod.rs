//! Application processes: booting them in a slot, following them, stopping them, and their logs.
//!
//! The keeper owns the processes and starts them again when they end; this room decides which there should be. After a restart
//! of the server [`Runtime::adopt`] finds them by the labels that the keeper kept.

mod boot;
mod label;
mod links;
mod logs;
mod ports;
pub mod static_server;
pub mod worker;

use std::{collections::HashMap, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::sync::watch;

pub use boot::{Boot, Process, RunJob};
pub use label::Label;
pub use logs::{LogLimits, LogLine, Logs, tail};
pub use ports::Ports;

use crate::{
    host::launch::{LaunchError, Launcher},
    model::{EnvId, Exit, ProcessId, Slot},
};

/// Why a process could not be started or stopped.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The keeper said no.
    #[error("starting {process} failed")]
    Launch {
        /// The process, as `web.1`.
        process: String,
        /// The keeper's words.
        #[source]
        source: LaunchError,
    },
    /// All ports of the range are taken.
    #[error("no free port between {from} and {to} for {process}; widen `ports` in the server file")]
    NoPort {
        /// The process, as `web.1`.
        process: String,
        /// The first port of the range.
        from: u16,
        /// The last port of the range.
        to: u16,
    },
    /// A log file could not be opened.
    #[error("the log of {process} could not be opened at {path}")]
    Log {
        /// The process, as `web.1`.
        process: String,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// A running process of a slot.
#[derive(Debug, Clone)]
pub struct Instance {
    /// The keeper's number.
    pub id: ProcessId,
    /// What it is.
    pub label: Label,
    /// How often it has ended since it was started, and how it ended last.
    pub exits: watch::Receiver<Exits>,
}

/// What is known of the ends of a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Exits {
    /// How often it has ended and was started again.
    pub count: u32,
    /// How it ended last.
    pub last: Option<Exit>,
}

impl Instance {
    /// Where it listens, for a process that was given a port.
    pub fn address(&self) -> Option<SocketAddr> {
        self.label.port.map(|port| SocketAddr::from(([127, 0, 0, 1], port)))
    }
}

struct Kept {
    instance: Instance,
    exits: watch::Sender<Exits>,
}

struct Shared {
    launcher: Launcher,
    ports: Mutex<Ports>,
    logs: Logs,
    kept: Mutex<HashMap<ProcessId, Kept>>,
}

/// The desk of this room; cheap to clone.
#[derive(Clone)]
pub struct Runtime(Arc<Shared>);

impl Runtime {
    /// A runtime without processes; [`Runtime::adopt`] fills it.
    pub fn new(launcher: Launcher, ports: Ports, logs: Logs) -> Runtime {
        Runtime(Arc::new(Shared { launcher, ports: Mutex::new(ports), logs, kept: Mutex::new(HashMap::new()) }))
    }

    /// The processes of an environment, in a slot or in all, sorted by name.
    pub fn instances(&self, environment: EnvId, slot: Option<Slot>) -> Vec<Instance> {
        let matches = |label: &Label| label.environment == environment && slot.is_none_or(|slot| slot == label.slot);
        let kept = self.0.kept.lock();
        let mut found: Vec<_> = kept.values().map(|kept| &kept.instance).filter(|one| matches(&one.label)).cloned().collect();
        found.sort_by(|a, b| a.label.order().cmp(&b.label.order()));
        found
    }

    /// The logs of all processes.
    pub fn logs(&self) -> &Logs {
        &self.0.logs
    }

    /// Notes that a kept process ended; the server calls this for each report of the keeper. Says which process that was.
    pub fn exited(&self, id: ProcessId, exit: Exit) -> Option<Label> {
        let kept = self.0.kept.lock();
        let kept = kept.get(&id)?;
        tracing::warn!(process = %kept.instance.label, %exit, "a process ended and is started again");
        kept.exits.send_modify(|exits| *exits = Exits { count: exits.count.saturating_add(1), last: Some(exit) });
        Some(kept.instance.label.clone())
    }

    /// Stops the processes of a slot: asks them to end, and ends those that have not after `grace`. Safe to repeat.
    pub async fn stop(&self, environment: EnvId, slot: Slot, grace: Duration) -> Result<(), RuntimeError> {
        self.stop_where(environment, grace, |label| label.slot == slot).await
    }

    /// Stops the processes of an environment for which `which` holds, as [`Runtime::stop_each`].
    pub async fn stop_where(
        &self,
        environment: EnvId,
        grace: Duration,
        which: impl Fn(&Label) -> bool,
    ) -> Result<(), RuntimeError> {
        self.stop_each(environment, |label| which(label).then_some(grace)).await
    }

    /// Stops the processes of an environment that `grace` gives some time to end by themselves, all at once, and waits until they
    /// have ended: until then they use their slot.
    pub async fn stop_each(&self, environment: EnvId, grace: impl Fn(&Label) -> Option<Duration>) -> Result<(), RuntimeError> {
        let doomed = self.instances(environment, None).into_iter();
        let doomed: Vec<_> = doomed.filter_map(|one| grace(&one.label).map(|grace| (one, grace))).collect();
        let stops = doomed.into_iter().map(|(instance, grace)| async move {
            let process = instance.label.name();
            let stopped = self.end(instance.id, grace).await;
            self.0.kept.lock().remove(&instance.id);
            if let Some(port) = instance.label.port {
                self.0.ports.lock().give_back(port);
            }
            stopped.map_err(|source| RuntimeError::Launch { process, source })
        });
        futures_util::future::join_all(stops).await.into_iter().collect()
    }

    async fn end(&self, id: ProcessId, grace: Duration) -> Result<(), LaunchError> {
        match self.0.launcher.stop(id, grace).await {
            Ok(()) => self.0.launcher.ended(id).await.map(drop),
            // Somebody else was quicker.
            Err(error) => match tokio::time::timeout(Duration::ZERO, self.0.launcher.ended(id)).await {
                Ok(Ok(_)) => Ok(()),
                _ => Err(error),
            },
        }
    }
}
