//! `larder.yml` of a repository: what a project says about its own deployment. Every key is optional.

use indexmap::IndexMap;

use super::{
    age::Age,
    error::ConfigError,
    promote::PromoteOverrides,
    reader::Reader,
    recipe_read::{read_environments, read_overrides},
    settings::{DriftPolicy, HealthCheck, ProcessSpec, ProcessTuning, Settings, Smoke, Stop, Strategy},
    value::{BuildpackRef, ByteSize, CommandLine, Domain, HttpPath, RelativePath, StatusRange, TimeSpan, VariableName},
    yaml::{self, Limits},
};
use crate::model::{EnvironmentName, Phase, ProcessType, StopSignal};

/// The name of the file, for errors.
pub const FILE: &str = "larder.yml";

/// A recipe: what counts everywhere, and what differs in single environments.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Recipe {
    /// What counts in every environment.
    pub(super) common: Overrides,
    /// What is laid over it in an environment.
    pub(super) environments: IndexMap<EnvironmentName, Overrides>,
}

/// What one level of a recipe says; what it leaves out stays as it is.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Overrides {
    pub buildpacks: Option<Vec<BuildpackRef>>,
    pub build_env: IndexMap<VariableName, String>,
    pub build_memory: Option<ByteSize>,
    pub build_cache: Option<bool>,
    pub processes: IndexMap<ProcessType, ProcessOverrides>,
    pub release: Option<CommandLine>,
    pub data: Option<Vec<RelativePath>>,
    pub env: IndexMap<VariableName, String>,
    pub health: HealthOverrides,
    pub timeouts: IndexMap<Phase, TimeSpan>,
    pub strategy: Option<Strategy>,
    pub domains: Option<Vec<Domain>>,
    pub stop: StopOverrides,
    pub drain: Option<TimeSpan>,
    pub keep_releases: Option<u16>,
    pub drift: Option<DriftPolicy>,
    pub drift_ignore: Option<Vec<String>>,
    pub keep_age: Option<Age>,
    pub keep_bytes: Option<ByteSize>,
    pub smoke: Option<Vec<Smoke>>,
    pub promote: PromoteOverrides,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct ProcessOverrides {
    pub command: Option<CommandLine>,
    pub scale: Option<u16>,
    pub memory: Option<ByteSize>,
    pub env: IndexMap<VariableName, String>,
    pub stop: StopOverrides,
}

#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct StopOverrides {
    pub signal: Option<StopSignal>,
    pub grace: Option<TimeSpan>,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct HealthOverrides {
    pub kind: Option<HealthKind>,
    pub path: Option<HttpPath>,
    pub status: Option<StatusRange>,
    pub command: Option<CommandLine>,
    pub timeout: Option<TimeSpan>,
    pub interval: Option<TimeSpan>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HealthKind {
    Http,
    Tcp,
    Command,
    None,
}

impl Recipe {
    /// Reads a recipe; all its problems are reported together.
    pub fn parse(bytes: &[u8]) -> Result<Recipe, Vec<ConfigError>> {
        let root = yaml::parse_tree(FILE, bytes, Limits::RECIPE).map_err(|error| vec![error])?;
        let mut reader = Reader::new(FILE);
        let common = read_overrides(&mut reader, &root, None);
        let environments = read_environments(&mut reader, &root);
        let recipe = Recipe { common, environments };
        reader.finish(recipe)
    }

    /// The settings that the recipe alone gives an environment, with defaults filled in.
    pub fn for_environment(&self, environment: &EnvironmentName) -> Settings {
        let mut settings = Settings::default();
        self.apply(environment, &mut settings);
        settings
    }

    /// Lays the recipe over settings from other files.
    pub(super) fn apply(&self, environment: &EnvironmentName, settings: &mut Settings) {
        let mut health = HealthOverrides::default();
        let mut processes = IndexMap::new();
        for overrides in [Some(&self.common), self.environments.get(environment)].into_iter().flatten() {
            overrides.apply(settings, &mut health, &mut processes);
        }
        if let Some(check) = health.check() {
            settings.health.check = check;
        }
        replace(&mut settings.health.timeout, &health.timeout);
        replace(&mut settings.health.interval, &health.interval);
        for (process, overrides) in processes {
            overrides.apply(process, settings);
        }
    }
}

impl Overrides {
    fn apply(
        &self,
        settings: &mut Settings,
        health: &mut HealthOverrides,
        processes: &mut IndexMap<ProcessType, ProcessOverrides>,
    ) {
        replace(&mut settings.buildpacks, &self.buildpacks);
        extend(&mut settings.build.env, &self.build_env);
        settings.build.memory = self.build_memory.or(settings.build.memory);
        replace(&mut settings.build.cache, &self.build_cache);
        settings.release = self.release.clone().or_else(|| settings.release.take());
        replace(&mut settings.data, &self.data);
        extend(&mut settings.env, &self.env);
        settings.required.retain(|required| !self.env.contains_key(&required.name));
        extend(&mut settings.timeouts, &self.timeouts);
        settings.strategy = self.strategy.or(settings.strategy);
        replace(&mut settings.domains, &self.domains);
        settings.stop = self.stop.over(settings.stop);
        replace(&mut settings.drain, &self.drain);
        settings.keep_releases = self.keep_releases.or(settings.keep_releases);
        settings.drift = self.drift.or(settings.drift);
        replace(&mut settings.drift_ignore, &self.drift_ignore);
        settings.keep_age = self.keep_age.or(settings.keep_age);
        settings.keep_bytes = self.keep_bytes.or(settings.keep_bytes);
        replace(&mut settings.smoke, &self.smoke);
        self.promote.apply(&mut settings.promote);
        health.extend(&self.health);
        for (process, more) in &self.processes {
            processes.entry(process.clone()).or_default().extend(more);
        }
    }
}

impl ProcessOverrides {
    fn extend(&mut self, more: &ProcessOverrides) {
        self.command = more.command.clone().or_else(|| self.command.take());
        self.scale = more.scale.or(self.scale);
        self.memory = more.memory.or(self.memory);
        extend(&mut self.env, &more.env);
        self.stop.signal = more.stop.signal.or(self.stop.signal);
        self.stop.grace = more.stop.grace.or(self.stop.grace);
    }

    fn apply(self, process: ProcessType, settings: &mut Settings) {
        let stop = (self.stop != StopOverrides::default()).then(|| self.stop.over(settings.stop));
        let tuning = ProcessTuning { scale: self.scale, memory: self.memory, env: self.env, stop };
        match (settings.processes.get_mut(&process), self.command) {
            (Some(spec), command) => {
                if let Some(command) = command {
                    spec.command = command;
                }
                spec.tune(tuning);
            }
            (None, Some(command)) => {
                let mut spec = ProcessSpec::new(&process, command);
                spec.tune(settings.unnamed.shift_remove(&process).unwrap_or_default());
                spec.tune(tuning);
                settings.processes.insert(process, spec);
            }
            (None, None) => {
                let earlier = settings.unnamed.entry(process).or_default();
                earlier.scale = tuning.scale.or(earlier.scale);
                earlier.memory = tuning.memory.or(earlier.memory);
                earlier.stop = tuning.stop.or(earlier.stop);
                earlier.env.extend(tuning.env);
            }
        }
    }
}

impl HealthOverrides {
    fn extend(&mut self, more: &HealthOverrides) {
        // Naming another kind of check takes back what belongs to the first one.
        if more.kind.is_some() || more.implied().is_some_and(|kind| Some(kind) != self.implied()) {
            self.kind = None;
        }
        if more.implied() == Some(HealthKind::Http) {
            self.command = None;
        }
        if more.implied() == Some(HealthKind::Command) {
            (self.path, self.status) = (None, None);
        }
        self.kind = more.kind.or(self.kind);
        self.path = more.path.clone().or_else(|| self.path.take());
        self.status = more.status.or(self.status);
        self.command = more.command.clone().or_else(|| self.command.take());
        self.timeout = more.timeout.or(self.timeout);
        self.interval = more.interval.or(self.interval);
    }

    /// The kind of check that the keys mean.
    pub fn implied(&self) -> Option<HealthKind> {
        let by_keys = match (&self.command, &self.path, self.status) {
            (Some(_), ..) => Some(HealthKind::Command),
            (None, None, None) => None,
            _ => Some(HealthKind::Http),
        };
        self.kind.or(by_keys)
    }

    fn check(&self) -> Option<HealthCheck> {
        Some(match self.implied()? {
            HealthKind::None => HealthCheck::None,
            HealthKind::Tcp => HealthCheck::Tcp,
            HealthKind::Command => HealthCheck::Command(self.command.clone()?),
            HealthKind::Http => HealthCheck::Http {
                path: self.path.clone().or_else(|| "/".parse().ok())?,
                status: self.status.unwrap_or(Settings::GOOD),
            },
        })
    }
}

impl StopOverrides {
    fn over(self, stop: Stop) -> Stop {
        Stop { signal: self.signal.unwrap_or(stop.signal), grace: self.grace.unwrap_or(stop.grace) }
    }
}

fn replace<T: Clone>(target: &mut T, value: &Option<T>) {
    if let Some(value) = value {
        target.clone_from(value);
    }
}

fn extend<K: Clone + std::hash::Hash + Eq, V: Clone>(target: &mut IndexMap<K, V>, more: &IndexMap<K, V>) {
    target.extend(more.iter().map(|(key, value)| (key.clone(), value.clone())));
}
