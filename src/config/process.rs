//! The processes of a project: command, scale, memory limit and stop signal, with the keys of the recipe that set them.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::{
    keys::{self, Fallback, KeyRow},
    quantity::{ByteSize, TimeSpan},
    reader::ConfigReader,
    value::{CommandLine, VariableName},
    yaml::Node,
};
use crate::model::{ProcessType, StopSignal};

/// The maximum number of instances of one process.
pub(super) const MAX_INSTANCES: u64 = 100;

/// A process with a command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// The shell command that starts one instance.
    pub command: CommandLine,
    /// The number of instances.
    pub scale: u16,
    /// The memory limit of one instance; `None` means no limit.
    pub memory: Option<ByteSize>,
    /// Variables that are set only for this process.
    pub env: IndexMap<VariableName, String>,
    /// The way to stop the process, if it differs from [`super::Settings::stop`].
    pub stop: Option<Stop>,
    /// Patterns, as in `.gitignore`, of the files whose change restarts the process in a checkout. `None` stands for every file.
    #[serde(default)]
    pub watch: Option<Vec<String>>,
}

/// The settings of a process except its command. An absent value leaves the setting unchanged.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ProcessTuning {
    /// The number of instances.
    pub scale: Option<u16>,
    /// The memory limit of one instance.
    pub memory: Option<ByteSize>,
    /// Variables that are set only for this process.
    pub env: IndexMap<VariableName, String>,
    /// The way to stop the process.
    pub stop: Option<Stop>,
    /// Patterns of the files whose change restarts the process in a checkout.
    #[serde(default)]
    pub watch: Option<Vec<String>>,
}

impl ProcessSpec {
    /// Creates a process from its command. The scale is 1 for `web` and 0 for other processes, as on Heroku and Dokku.
    pub(super) fn new(process: &ProcessType, command: CommandLine) -> ProcessSpec {
        ProcessSpec { command, scale: u16::from(process.is_web()), memory: None, env: IndexMap::new(), stop: None, watch: None }
    }

    /// Overwrites the settings that `tuning` contains.
    pub(super) fn tune(&mut self, tuning: ProcessTuning) {
        self.scale = tuning.scale.unwrap_or(self.scale);
        self.memory = tuning.memory.or(self.memory);
        self.stop = tuning.stop.or(self.stop);
        self.watch = tuning.watch.or_else(|| self.watch.take());
        self.env.extend(tuning.env);
    }
}

impl ProcessTuning {
    /// Overwrites the settings that `more` contains.
    pub(super) fn tune(&mut self, more: ProcessTuning) {
        self.scale = more.scale.or(self.scale);
        self.memory = more.memory.or(self.memory);
        self.stop = more.stop.or(self.stop);
        self.watch = more.watch.or_else(|| self.watch.take());
        self.env.extend(more.env);
    }
}

/// The way to stop a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// The signal that asks the process to exit.
    pub signal: StopSignal,
    /// The time between the signal and SIGKILL.
    pub grace: TimeSpan,
}

/// The keys of `stop:` that a recipe sets.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct StopOverrides {
    signal: Option<StopSignal>,
    grace: Option<TimeSpan>,
}

impl StopOverrides {
    /// Returns `stop` with the overrides applied.
    pub fn over(self, stop: Stop) -> Stop {
        Stop { signal: self.signal.unwrap_or(stop.signal), grace: self.grace.unwrap_or(stop.grace) }
    }
}

/// The merged keys of one process from the levels of a recipe.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct ProcessOverrides {
    pub command: Option<CommandLine>,
    pub scale: Option<u16>,
    memory: Option<ByteSize>,
    env: IndexMap<VariableName, String>,
    stop: StopOverrides,
    watch: Option<Vec<String>>,
}

impl ProcessOverrides {
    /// Returns the command, and the settings besides the command. If only one key of `stop:` is set, the argument `stop` supplies the other
    /// key.
    pub fn split(self, stop: Stop) -> (Option<CommandLine>, ProcessTuning) {
        let stop = (self.stop != StopOverrides::default()).then(|| self.stop.over(stop));
        (self.command, ProcessTuning { scale: self.scale, memory: self.memory, env: self.env, stop, watch: self.watch })
    }
}

pub(super) const STOP_KEYS: &[KeyRow<StopOverrides>] = &[
    KeyRow::value("signal", "", Fallback::Unstated, "TERM", |reader, node, key, stop| {
        stop.signal = reader.choice(node, key, &StopSignal::WORDS).or(stop.signal);
    }),
    KeyRow::value("grace", "", Fallback::Unstated, "10s", |reader, node, key, stop| {
        stop.grace = reader.time_within(node, key, TimeSpan::MAX_GRACE).or(stop.grace);
    }),
];

const PROCESS_KEYS: &[KeyRow<ProcessOverrides>] = &[
    KeyRow::value("command", "", Fallback::Unstated, "bin/worker", |reader, node, key, process| {
        process.command = reader.command(node, key).or_else(|| process.command.take());
    }),
    KeyRow::value(
        "scale",
        "The number of instances, at most 100.",
        Fallback::Says("1 for `web`, 0 for other processes"),
        "1",
        |reader, node, key, process| process.scale = instances(reader, node, key).or(process.scale),
    ),
    KeyRow::value(
        "memory",
        "The memory limit of one instance.",
        Fallback::Says("no limit"),
        "512M",
        |reader, node, key, process| process.memory = reader.size(node, key).or(process.memory),
    ),
    KeyRow::custom(
        "env",
        "Variables that are set only for this process.",
        Fallback::Unstated,
        || "QUEUE: mail".to_owned(),
        |reader, node, key, process| process.env.extend(reader.env(node, key)),
    ),
    KeyRow::custom(
        "stop",
        "",
        Fallback::Says("as in the top-level key `stop`"),
        || "grace: 5m".to_owned(),
        |reader, node, key, process| read_stop(reader, node, key, &mut process.stop),
    ),
    KeyRow::value(
        "watch",
        "Patterns, as in .gitignore, of the files whose change restarts the process under `larder dev` and in an editable environment. With [], no change of a file restarts the process: for programs that read their files again themselves.",
        Fallback::Says("every file"),
        "\n- /worker/\n- \"*.py\"",
        |reader, node, key, process| process.watch = Some(reader.patterns(node, key)),
    ),
];

/// Renders the example of `processes:` in the reference.
pub(super) fn processes_example() -> String {
    let worker: String = keys::render(PROCESS_KEYS).lines().map(|line| format!("  {line}\n")).collect();
    format!("web: bin/web --port $PORT\nworker:\n{worker}")
}

/// Reads the key `processes`.
pub(super) fn read_processes(
    reader: &mut ConfigReader,
    node: &Node,
    key: &str,
    processes: &mut IndexMap<ProcessType, ProcessOverrides>,
) {
    for (name, at, node) in reader.pairs(node, key, "a mapping, such as {web: \"python app.py\"}") {
        let Some(process) = process_type(reader, at, name) else { continue };
        read_process(reader, node, &format!("{key}.{name}"), processes.entry(process).or_default());
    }
}

/// Reads the key `scale`.
pub(super) fn read_scale(
    reader: &mut ConfigReader,
    node: &Node,
    key: &str,
    processes: &mut IndexMap<ProcessType, ProcessOverrides>,
) {
    for (name, at, node) in reader.pairs(node, key, "a mapping, such as {web: 2, worker: 1}") {
        let Some(process) = process_type(reader, at, name) else { continue };
        let overrides = processes.entry(process).or_default();
        overrides.scale = instances(reader, node, &format!("{key}.{name}")).or(overrides.scale);
    }
}

/// Reads a process. The value is a command, or a mapping with the keys [`PROCESS_KEYS`].
pub(super) fn read_process(reader: &mut ConfigReader, node: &Node, key: &str, process: &mut ProcessOverrides) {
    if node.text().is_some() {
        process.command = reader.command(node, key).or_else(|| process.command.take());
        return;
    }
    keys::read_section(reader, node, key, "{command: \"python app.py\", scale: 2}", PROCESS_KEYS, process);
}

/// Reads the section `stop:`, and overwrites the keys in `stop` that the section sets.
pub(super) fn read_stop(reader: &mut ConfigReader, node: &Node, key: &str, stop: &mut StopOverrides) {
    keys::read_section(reader, node, key, "{grace: 10s, signal: TERM}", STOP_KEYS, stop);
}

/// Reads a number of instances.
pub(super) fn instances(reader: &mut ConfigReader, node: &Node, key: &str) -> Option<u16> {
    reader.number(node, key, 0, MAX_INSTANCES).and_then(|number| u16::try_from(number).ok())
}

/// Reads the name of a process that can be scaled. Reports `release`, which is a command that runs once.
pub(super) fn process_type(reader: &mut ConfigReader, key: &Node, name: &str) -> Option<ProcessType> {
    match name.parse::<ProcessType>() {
        Ok(process) if process.is_release() => {
            reader.problem(key, "release is not a process that keeps running").hint =
                Some("write the command as `release: COMMAND` at the top level of the file".to_owned());
            None
        }
        Ok(process) => Some(process),
        Err(error) => {
            reader.problem(key, error.to_string());
            None
        }
    }
}
