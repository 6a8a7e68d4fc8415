//! The processes of a release: the jobs that start them, and the labels that identify the running processes.

use std::{fmt, net::SocketAddr, path::PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{data::DataJob, secret_files::SecretFiles, templates::TemplateJob};
use crate::model::{
    ConfigVariables, EnvId, Environment, Exit, Launch, LimitClass, ProcessId, ProcessType, ReleaseId, Role, Slot, StopSignal,
    Supervision,
};

/// The job of a worker that runs a command of the project at `/app`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunJob {
    /// The command line from the Procfile or the recipe. Only the worker in the sandbox parses the line. If the line is empty, the
    /// arguments are the command.
    pub command: String,
    /// The arguments, which the command line receives unchanged as `"$@"`.
    pub arguments: Vec<String>,
    /// The environment variables of the command, without the variables that the keeper adds.
    pub env: Vec<(String, String)>,
    /// The variables of the configuration snapshot, which replace variables of the same name in `env`.
    pub configuration: ConfigVariables,
    /// The variables of a phase script, as JSON; `None` if the command is not a phase script. The script reads and changes the variables in
    /// the file `$LARDER_VARIABLES`. After the script succeeds, the worker reports the content of this file.
    pub variables: Option<String>,
    /// The work on the persistent paths that the worker does before the command. A job with such work may have no command.
    pub data: Option<DataJob>,
    /// The files that the worker renders before the command.
    pub templates: Option<TemplateJob>,
    /// The secrets that the command gets as files.
    pub secret_files: SecretFiles,
}

impl RunJob {
    /// Returns the first 60 characters of the command, or a description of work without a command.
    pub(super) fn title(&self) -> String {
        match (self.command.is_empty(), self.arguments.first()) {
            (false, _) => self.command.chars().take(60).collect(),
            (true, Some(program)) => program.chars().take(60).collect(),
            (true, None) => String::from("the worker for the persistent paths"),
        }
    }
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
    /// The environment variables that only processes of this type get.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// The memory limit of each instance, in bytes.
    #[serde(default)]
    pub memory: Option<u64>,
    /// The signal that requests an instance to exit.
    #[serde(default)]
    pub stop: StopSignal,
}

/// The processes of a release for a slot, and the parameters of their start.
#[derive(Debug, Clone)]
pub struct Boot {
    /// The environment that the processes belong to.
    pub environment: Environment,
    /// The slot in which the processes run.
    pub slot: Slot,
    /// The release that the processes run.
    pub release: ReleaseId,
    /// The process types.
    pub processes: Vec<Process>,
    /// The environment variables that all processes have in common. `PORT` and `LARDER_PROCESS` are added for each process.
    pub env: Vec<(String, String)>,
    /// The variables of the configuration snapshot, which replace variables of the same name.
    pub configuration: ConfigVariables,
    /// The secrets that all processes get as files.
    pub secret_files: SecretFiles,
    /// The directory of the logs.
    pub logs: PathBuf,
}

impl Boot {
    /// Returns the boot request for tasks, which have their command, their variables and their secrets in a [`RunJob`](super::RunJob). `logs` is the
    /// directory of the logs.
    pub fn for_tasks(environment: Environment, slot: Slot, release: ReleaseId, logs: PathBuf) -> Boot {
        Boot {
            environment,
            slot,
            release,
            processes: Vec::new(),
            env: Vec::new(),
            configuration: ConfigVariables::default(),
            secret_files: SecretFiles::default(),
            logs,
        }
    }

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

/// The identity of an application process. The keeper stores the label, so that a restarted server can identify the process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    /// The environment.
    pub environment: EnvId,
    /// The slot in which the process runs.
    pub slot: Slot,
    /// The release that the process runs.
    pub release: ReleaseId,
    /// The process type.
    pub process: ProcessType,
    /// The number of the process among the instances of its type, starting at 1.
    pub index: u32,
    /// The port on which the process must listen, if the process has a port.
    pub port: Option<u16>,
}

impl Label {
    /// Returns the name of the process within its slot, such as `web.1`.
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

    /// Decodes a label from the keeper. Returns `None` if the bytes are not a label.
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
    /// The keeper's number of the process.
    pub id: ProcessId,
    /// The identity of the process.
    pub label: Label,
    /// The time at which this server started the process; `None` for a process that an earlier server started.
    pub started: Option<Timestamp>,
    /// The exits of the process since this server started or adopted it.
    pub exits: watch::Receiver<Exits>,
}

impl Instance {
    /// Returns the address on which the process must listen, if the process has a port.
    pub fn address(&self) -> Option<SocketAddr> {
        self.label.port.map(|port| SocketAddr::from(([127, 0, 0, 1], port)))
    }
}

/// The exits of a supervised process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Exits {
    /// The number of exits since this server started or adopted the process. The keeper restarts the process after each exit.
    pub count: u32,
    /// The last exit.
    pub last: Option<Exit>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoded_label_decodes_to_the_same_label() {
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
