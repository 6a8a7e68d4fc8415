//! What a deployment works with: every setting of one environment, merged and with defaults filled in.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::age::Age;
use super::promote::Promote;
use super::server::ServerConfig;
use super::value::{BuildpackRef, ByteSize, CommandLine, Domain, HttpPath, RelativePath, StatusRange, TimeSpan, VariableName};
use crate::model::{Phase, ProcessType, StopSignal};

/// How a new release takes over from the old one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Strategy {
    /// The new release boots beside the old one, then requests are switched to it.
    BlueGreen,
    /// The old release stops before the new one starts.
    InPlace,
}

impl Strategy {
    /// Every strategy with its word.
    pub const WORDS: [(&'static str, Strategy); 2] = [("blue-green", Strategy::BlueGreen), ("in-place", Strategy::InPlace)];
}

/// What a deployment does about files that were changed by hand in what is live.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DriftPolicy {
    /// It says so, keeps them as a patch, and goes on without them.
    #[default]
    Keep,
    /// It is refused until somebody has looked and kept them.
    Refuse,
    /// It keeps them as a patch and puts that onto the new release; it fails if that does not fit.
    Reapply,
}

impl DriftPolicy {
    /// Every policy with its word.
    pub const WORDS: [(&'static str, DriftPolicy); 3] =
        [("keep", DriftPolicy::Keep), ("refuse", DriftPolicy::Refuse), ("reapply", DriftPolicy::Reapply)];
}

/// The settings of one environment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The buildpacks, in order; none means that they are detected.
    pub buildpacks: Vec<BuildpackRef>,
    /// How the build runs; its time limit is in [`Settings::timeouts`].
    pub build: BuildSettings,
    /// The processes, in the order in which they were named.
    pub processes: IndexMap<ProcessType, ProcessSpec>,
    /// What files say of processes that none of them gives a command; a buildpack may, see [`Settings::with_defaults`].
    pub unnamed: IndexMap<ProcessType, ProcessTuning>,
    /// Runs once before the switch.
    pub release: Option<CommandLine>,
    /// Paths of the application that persist; none is inside another.
    pub data: Vec<RelativePath>,
    /// Plain configuration variables.
    pub env: IndexMap<VariableName, String>,
    /// Variables that must have a value, which larder makes up if asked to; from `app.json`.
    pub required: Vec<RequiredVariable>,
    /// How a new release proves that it serves.
    pub health: Health,
    /// How long each phase may take.
    pub timeouts: IndexMap<Phase, TimeSpan>,
    /// The strategy, where the recipe names one; else the project's own counts.
    pub strategy: Option<Strategy>,
    /// Further host names.
    pub domains: Vec<Domain>,
    /// How processes are stopped.
    pub stop: Stop,
    /// How long requests may still run in the old release after a switch.
    pub drain: TimeSpan,
    /// How many releases are kept, where the recipe says so; else see [`Settings::on_server`].
    pub keep_releases: Option<u16>,
    /// What a deployment does about files that were changed by hand.
    #[serde(default)]
    pub drift: Option<DriftPolicy>,
    /// Patterns, as in `.gitignore`, of files whose changes are to be expected.
    #[serde(default)]
    pub drift_ignore: Vec<String>,
    /// The age beyond which releases go.
    #[serde(default)]
    pub keep_age: Option<Age>,
    /// How much disk the archives may take; above it the oldest releases go.
    #[serde(default)]
    pub keep_bytes: Option<ByteSize>,
    /// Requests that must succeed after the switch.
    pub smoke: Vec<Smoke>,
    /// What a release must have gone through elsewhere before it comes here.
    #[serde(default)]
    pub promote: Promote,
    /// Runs once, after the first deployment of the environment; from `app.json`.
    pub postdeploy: Option<CommandLine>,
}

/// How a build runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BuildSettings {
    /// Variables that only the build sees.
    pub env: IndexMap<VariableName, String>,
    /// Its memory; filled in and capped by [`Settings::on_server`].
    pub memory: Option<ByteSize>,
    /// Whether buildpacks keep their cache between builds.
    pub cache: bool,
}

/// A process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// What it runs.
    pub command: CommandLine,
    /// How many of it run.
    pub scale: u16,
    /// Its memory, if it is limited.
    pub memory: Option<ByteSize>,
    /// Variables that only this process sees.
    pub env: IndexMap<VariableName, String>,
    /// How it is stopped, where it differs from [`Settings::stop`].
    pub stop: Option<Stop>,
}

/// What a file may say of a process besides its command.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ProcessTuning {
    /// How many of it run.
    pub scale: Option<u16>,
    /// Its memory.
    pub memory: Option<ByteSize>,
    /// Variables that only this process sees.
    pub env: IndexMap<VariableName, String>,
    /// How it is stopped.
    pub stop: Option<Stop>,
}

impl ProcessSpec {
    /// A process with nothing but a command.
    pub(super) fn new(process: &ProcessType, command: CommandLine) -> ProcessSpec {
        // One web process, and none of the others until somebody scales them: as on Heroku and Dokku.
        ProcessSpec { command, scale: u16::from(process.is_web()), memory: None, env: IndexMap::new(), stop: None }
    }

    /// Lays `tuning` over it.
    pub(super) fn tune(&mut self, tuning: ProcessTuning) {
        self.scale = tuning.scale.unwrap_or(self.scale);
        self.memory = tuning.memory.or(self.memory);
        self.stop = tuning.stop.or(self.stop);
        self.env.extend(tuning.env);
    }
}

/// A variable that must have a value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequiredVariable {
    /// Its name.
    pub name: VariableName,
    /// Whether larder makes up a random value when there is none.
    pub generate: bool,
    /// What it is for, in the project's words.
    pub description: Option<String>,
}

/// How a new release proves that it serves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// What is asked.
    pub check: HealthCheck,
    /// How long it may take until the first success.
    pub timeout: TimeSpan,
    /// The pause between two attempts.
    pub interval: TimeSpan,
}

/// What a health check asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HealthCheck {
    /// A GET request.
    Http {
        /// Its path.
        path: HttpPath,
        /// The statuses that are good.
        status: StatusRange,
    },
    /// The port accepts connections.
    Tcp,
    /// A command in the sandbox exits 0.
    Command(CommandLine),
    /// Nothing: the process runs.
    None,
}

/// How a process is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// The signal that asks it to end.
    pub signal: StopSignal,
    /// How long it may take before it is killed.
    pub grace: TimeSpan,
}

/// A request that must succeed after the switch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Smoke {
    /// Its path.
    pub path: HttpPath,
    /// The statuses that are good.
    pub status: StatusRange,
    /// Text that the answer must hold.
    pub contains: Option<String>,
}

impl Settings {
    /// The statuses that are good where nothing else is said.
    pub const GOOD: StatusRange = StatusRange { from: 200, to: 399 };

    /// How long a phase may take.
    pub fn timeout(&self, phase: Phase) -> TimeSpan {
        self.timeouts.get(&phase).copied().unwrap_or_else(|| default_timeout(phase))
    }

    /// How a process is stopped: as the recipe says for it, else for all.
    pub fn stop_of(&self, process: &ProcessType) -> Stop {
        self.processes.get(process).and_then(|spec| spec.stop).unwrap_or(self.stop)
    }

    /// The same under the rules of a server: its variables where the project sets none, its limits on builds, its number of
    /// releases where the recipe names none.
    pub fn on_server(mut self, server: &ServerConfig) -> Settings {
        for (name, value) in &server.env {
            if !self.env.contains_key(name) {
                self.env.insert(name.clone(), value.clone());
            }
        }
        self.required.retain(|required| !server.env.contains_key(&required.name));
        let most = server.builds.memory;
        self.build.memory = Some(self.build.memory.map_or(most, |asked| asked.min(most)));
        let timeout = self.timeout(Phase::Build).min(server.builds.timeout);
        self.timeouts.insert(Phase::Build, timeout);
        self.keep_releases.get_or_insert(server.keep.releases);
        self.drift = self.drift.or(server.drift);
        self.keep_age = self.keep_age.or(server.keep.age);
        // The disk is the operator's: a project can ask for less of it, not for more.
        self.keep_bytes = self.keep_bytes.into_iter().chain(server.keep.bytes).min();
        // So is what may run: a project can ask for more proof, not for less.
        self.promote = self.promote.and(&server.promote);
        self
    }

    /// Adds what buildpacks bring along: processes (and the release command) that no file names. What is left in
    /// [`Settings::unnamed`] after this has no command anywhere.
    pub fn with_defaults(mut self, defaults: Vec<(ProcessType, CommandLine)>) -> Settings {
        for (process, command) in defaults {
            if process.is_release() {
                self.release.get_or_insert(command);
            } else if !self.processes.contains_key(&process) {
                let mut spec = ProcessSpec::new(&process, command);
                spec.tune(self.unnamed.shift_remove(&process).unwrap_or_default());
                self.processes.insert(process, spec);
            }
        }
        self
    }
}

fn default_timeout(phase: Phase) -> TimeSpan {
    match phase {
        Phase::Gather | Phase::PreInstall | Phase::Configure | Phase::PostInstall => TimeSpan::minutes(5),
        Phase::Build => TimeSpan::minutes(15),
        Phase::PostBuild | Phase::Bundle | Phase::Deploy | Phase::PostDeploy => TimeSpan::minutes(10),
    }
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            buildpacks: Vec::new(),
            build: BuildSettings { env: IndexMap::new(), memory: None, cache: true },
            processes: IndexMap::new(),
            unnamed: IndexMap::new(),
            release: None,
            data: Vec::new(),
            env: IndexMap::new(),
            required: Vec::new(),
            health: Health { check: HealthCheck::Tcp, timeout: TimeSpan::seconds(60), interval: TimeSpan::seconds(1) },
            timeouts: Phase::ALL.into_iter().map(|phase| (phase, default_timeout(phase))).collect(),
            strategy: None,
            domains: Vec::new(),
            stop: Stop { signal: StopSignal::Term, grace: TimeSpan::seconds(10) },
            drain: TimeSpan::seconds(30),
            keep_releases: None,
            drift: None,
            drift_ignore: Vec::new(),
            keep_age: None,
            keep_bytes: None,
            smoke: Vec::new(),
            promote: Promote::default(),
            postdeploy: None,
        }
    }
}
