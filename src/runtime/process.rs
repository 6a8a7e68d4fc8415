//! The processes of a release: what to start, and how those that run are told apart.

use std::{fmt, net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::data::DataJob;
use crate::model::{
    EnvId, Environment, Exit, Launch, LimitClass, ProcessId, ProcessType, ReleaseId, Role, Slot, StopSignal, Supervision,
};

/// The job of a worker that runs a command of the project at `/app`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunJob {
    /// The command line as the project wrote it. The project's own shell reads it, as the project's own user. If empty, the arguments
    /// are the command.
    pub command: String,
    /// Arguments as they are; `"$@"` in the command line.
    pub arguments: Vec<String>,
    /// The environment, complete except for the variables that the keeper adds.
    pub env: Vec<(String, String)>,
    /// For a phase script: the variables as JSON. The script finds them in the file `$LARDER_VARIABLES`; the content of this file
    /// when the script ends is the worker's report.
    pub variables: Option<String>,
    /// Work on the persistent paths, done before the command; there may be no command then.
    pub data: Option<DataJob>,
}

/// A process type of a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The type, such as `web`.
    pub kind: ProcessType,
    /// The number of instances.
    pub count: u32,
    /// The command line as the project wrote it.
    pub command: String,
    /// Variables that only processes of this type get.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// The memory limit of each instance, in bytes.
    #[serde(default)]
    pub memory: Option<u64>,
    /// The signal that asks an instance to exit.
    #[serde(default)]
    pub stop: StopSignal,
}

/// Processes to start.
#[derive(Debug, Clone)]
pub struct Boot {
    /// The environment that they belong to.
    pub environment: Environment,
    /// The slot in which they run.
    pub slot: Slot,
    /// The release that they run.
    pub release: ReleaseId,
    /// The process types.
    pub processes: Vec<Process>,
    /// The environment of all processes; `PORT` and the process name are added.
    pub env: Vec<(String, String)>,
    /// The directory of the logs.
    pub logs: PathBuf,
}

impl Boot {
    pub(super) fn launch(&self, role: Role, supervision: Supervision, memory: Option<u64>) -> Launch {
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

/// The identity of an application process. The keeper stores it for the next server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    /// The environment.
    pub environment: EnvId,
    /// The slot in which it runs.
    pub slot: Slot,
    /// The release that it runs.
    pub release: ReleaseId,
    /// The process type.
    pub process: ProcessType,
    /// The number among the instances of its type, from 1.
    pub index: u32,
    /// The port on which it should listen.
    pub port: Option<u16>,
}

impl Label {
    /// Returns the name among the processes of the slot, such as `web.1`.
    pub fn name(&self) -> String {
        format!("{}.{}", self.process, self.index)
    }

    /// Returns a key that sorts `web.2` before `web.10`.
    pub fn order(&self) -> (String, u32, &'static str) {
        (self.process.to_string(), self.index, self.slot.as_str())
    }

    /// Encodes the label for the keeper.
    pub fn to_bytes(&self) -> Vec<u8> {
        postcard::to_stdvec(self).unwrap_or_default()
    }

    /// Decodes a label from the keeper; nothing where it is none.
    pub fn from_bytes(bytes: &[u8]) -> Option<Label> {
        postcard::from_bytes(bytes).ok()
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{} in {}", self.process, self.index, self.slot)
    }
}

/// A running process of a slot.
#[derive(Debug, Clone)]
pub struct Instance {
    /// The keeper's number for it.
    pub id: ProcessId,
    /// Its identity.
    pub label: Label,
    /// Its exits since it was started.
    pub exits: watch::Receiver<Exits>,
}

impl Instance {
    /// Returns the address on which it should listen, for a process that was given a port.
    pub fn address(&self) -> Option<SocketAddr> {
        self.label.port.map(|port| SocketAddr::from(([127, 0, 0, 1], port)))
    }
}

/// The exits of a supervised process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Exits {
    /// The number of exits; the process was restarted after each.
    pub count: u32,
    /// The last exit.
    pub last: Option<Exit>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_survives_the_keeper() {
        let label = Label {
            environment: EnvId(3),
            slot: Slot::Green,
            release: ReleaseId::new(jiff::Timestamp::UNIX_EPOCH),
            process: "web".parse().unwrap(),
            index: 2,
            port: Some(20_001),
        };
        let bytes = label.to_bytes();
        assert!(bytes.len() <= 1024);
        assert_eq!(Label::from_bytes(&bytes), Some(label));
        assert_eq!(Label::from_bytes(b"nonsense"), None);
    }
}
