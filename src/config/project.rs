//! Merges all configuration files of a project. The recipe takes precedence over the Procfile, the Procfile over `.buildpacks` and
//! `app.json`, and these two files over the defaults of buildpacks. The server file supplies missing values and limits the result. This
//! file also has the methods of the merged [`Settings`], so that `settings.rs` has only the settings and their keys.

use super::{
    app_json::AppJson,
    build::default_timeout,
    error::ConfigError,
    health::{GOOD, HealthCheck},
    pillar::{PillarLevel, PillarText, SAMPLE_FILE},
    policy::{DriftPolicy, Retention},
    process::{ProcessSpec, ProcessTuning, Stop},
    procfile::{Procfile, parse_buildpacks},
    quantity::{ByteSize, TimeSpan},
    recipe::Recipe,
    server::ServerConfig,
    settings::Settings,
    value::{BuildpackRef, CommandLine},
};
use crate::model::{EnvironmentName, Phase, ProcessType};

/// The maximum memory limit of a build without `builds.memory` in the server file. The keeper uses half of the machine's memory if that is
/// less.
const MAX_DEFAULT_BUILD_MEMORY: ByteSize = ByteSize::mebibytes(2048);

/// The unparsed configuration files of a commit; a missing file is `None`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProjectFiles {
    /// `larder.yml`.
    pub recipe: Option<Vec<u8>>,
    /// `Procfile`.
    pub procfile: Option<Vec<u8>>,
    /// `app.json`.
    pub app_json: Option<Vec<u8>>,
    /// `.buildpacks`.
    pub buildpacks: Option<Vec<u8>>,
    /// `.larder/pillar.sample.yml`.
    pub pillar_sample: Option<Vec<u8>>,
}

impl ProjectFiles {
    /// Returns the files with their paths in the repository, in the order of precedence.
    pub fn by_path(&mut self) -> [(&'static str, &mut Option<Vec<u8>>); 4] {
        [
            ("larder.yml", &mut self.recipe),
            ("Procfile", &mut self.procfile),
            (".buildpacks", &mut self.buildpacks),
            ("app.json", &mut self.app_json),
        ]
    }
}

/// The parsed configuration files of a commit.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ProjectConfig {
    /// `larder.yml`.
    pub recipe: Recipe,
    /// `Procfile`.
    pub procfile: Procfile,
    /// `app.json`.
    pub app_json: AppJson,
    /// `.buildpacks`.
    pub buildpacks: Vec<BuildpackRef>,
    /// `.larder/pillar.sample.yml`.
    pub pillar_sample: Option<PillarLevel>,
}

/// Parses all files. The problems of all files are reported together, at most 20 for each file.
pub fn load(files: &ProjectFiles) -> Result<ProjectConfig, Vec<ConfigError>> {
    let mut problems = Vec::new();
    let config = ProjectConfig {
        recipe: read(&files.recipe, Recipe::parse, &mut problems),
        procfile: read(&files.procfile, Procfile::parse, &mut problems),
        app_json: read(&files.app_json, AppJson::parse, &mut problems),
        buildpacks: read(&files.buildpacks, parse_buildpacks, &mut problems),
        pillar_sample: read(&files.pillar_sample, pillar_sample, &mut problems),
    };
    if problems.is_empty() { Ok(config) } else { Err(problems) }
}

/// The maximum size of the sample of a pillar, in bytes. The sample is a fact in the journal of each deployment.
const MAX_SAMPLE: usize = 64 * 1024;

fn pillar_sample(bytes: &[u8]) -> Result<Option<PillarLevel>, Vec<ConfigError>> {
    if bytes.len() > MAX_SAMPLE {
        let error = ConfigError::new(SAMPLE_FILE, format!("the file has {} bytes", bytes.len()));
        return Err(vec![error.expected(format!("at most {MAX_SAMPLE} bytes"))]);
    }
    PillarLevel::parse(SAMPLE_FILE, bytes, &|_| Ok(PillarText::Plain)).map(Some).map_err(|error| vec![error])
}

fn read<T: Default>(
    file: &Option<Vec<u8>>,
    parse: impl Fn(&[u8]) -> Result<T, Vec<ConfigError>>,
    problems: &mut Vec<ConfigError>,
) -> T {
    let Some(bytes) = file else { return T::default() };
    parse(bytes).unwrap_or_else(|found| {
        problems.extend(found);
        T::default()
    })
}

impl ProjectConfig {
    /// Returns the settings of an environment before the server file is applied ([`Settings::on_server`]).
    pub fn settings(&self, environment: &EnvironmentName) -> Settings {
        let mut settings = Settings::default();
        let app = &self.app_json;
        settings.buildpacks = if self.buildpacks.is_empty() { app.buildpacks.clone() } else { self.buildpacks.clone() };
        settings.env = app.env.clone();
        settings.required = app.required.clone();
        settings.postdeploy = app.postdeploy.clone();
        if let Some(path) = app.health_path.clone() {
            settings.health.check = HealthCheck::Http { path, status: GOOD };
        }
        for (process, command) in &self.procfile.processes {
            if process.is_release() {
                settings.release = Some(command.clone());
            } else {
                settings.processes.insert(process.clone(), ProcessSpec::new(process, command.clone()));
            }
        }
        for (process, quantity) in &app.formation {
            let tuning = ProcessTuning { scale: Some(*quantity), ..ProcessTuning::default() };
            match settings.processes.get_mut(process) {
                Some(spec) => spec.tune(tuning),
                None => drop(settings.unnamed.insert(process.clone(), tuning)),
            }
        }
        let mut settings = self.recipe.apply(environment, settings);
        // A rendered file is no change by hand, and no patch must contain its values.
        let rendered = settings.templates.iter().map(|template| format!("/{}", template.to));
        settings.drift_ignore.extend(rendered.collect::<Vec<_>>());
        settings
    }

    /// Returns the warnings about keys of `app.json` that have no effect in larder.
    pub fn warnings(&self) -> &[String] {
        &self.app_json.warnings
    }
}

impl Settings {
    /// Returns the time limit of a phase. A value that an earlier version stored is lowered to the current maximum.
    pub fn timeout(&self, phase: Phase) -> TimeSpan {
        self.timeouts.get(&phase).copied().unwrap_or_else(|| default_timeout(phase)).min(TimeSpan::MAX_PHASE)
    }

    /// Returns the way to stop a process: the setting of the process, or else the setting of all processes.
    pub fn stop_of(&self, process: &ProcessType) -> Stop {
        let stop = self.processes.get(process).and_then(|spec| spec.stop).unwrap_or(self.stop);
        Stop { grace: stop.grace.min(TimeSpan::MAX_GRACE), ..stop }
    }

    /// Adds the processes and the release command that buildpacks suggest, except those that a file already defines.
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

    /// Returns a process that should run but has no command. Call this method after [`Settings::with_defaults`], which adds the commands of
    /// buildpacks. A process that is scaled to zero needs no command: an application with only workers sets `web: 0`.
    pub fn without_command(&self) -> Option<&ProcessType> {
        self.unnamed.iter().find(|(_, tuning)| tuning.scale != Some(0)).map(|(process, _)| process)
    }

    /// Applies the server file: adds variables that the project does not set, limits builds, and adds conditions to the promotion policy.
    /// The result is stored with a deployment. The result does not contain the operator's values for retention and drift, because new
    /// values must also apply to old deployments; [`Settings::retention`] and [`Settings::drift_policy`] read the current values.
    pub fn on_server(mut self, server: &ServerConfig) -> Settings {
        for (name, value) in &server.env {
            if !self.env.contains_key(name) {
                self.env.insert(name.clone(), value.clone());
            }
        }
        self.required.retain(|required| !server.env.contains_key(&required.name));
        let limit = server.builds.memory.unwrap_or(MAX_DEFAULT_BUILD_MEMORY);
        self.build.memory = Some(self.build.memory.map_or(limit, |asked| asked.min(limit)));
        let timeout = self.timeout(Phase::Build).min(server.builds.timeout);
        self.timeouts.insert(Phase::Build, timeout);
        // The result is the stricter of both policies, so a project cannot weaken the operator's conditions.
        self.promote = self.promote.and(&server.promote);
        self
    }

    /// Returns the time limit for requests in flight to this release after a switch to the next release, at most
    /// [`TimeSpan::MAX_DRAIN`].
    pub fn drain(&self) -> TimeSpan {
        self.drain.min(TimeSpan::MAX_DRAIN)
    }

    /// Returns the upgrade command: the command of the key `upgrade`, or else the release command.
    pub fn upgrade_command(&self) -> Option<&CommandLine> {
        self.upgrade.run.as_ref().or(self.release.as_ref())
    }

    /// Returns the time for which requests wait during an upgrade, at most [`TimeSpan::MAX_HOLD`].
    pub fn hold(&self) -> TimeSpan {
        self.upgrade.hold.min(TimeSpan::MAX_HOLD)
    }

    /// Returns the time limit within which a process must become healthy, at most [`TimeSpan::MAX_HEALTH`].
    pub fn health_timeout(&self) -> TimeSpan {
        self.health.timeout.min(TimeSpan::MAX_HEALTH)
    }

    /// Returns the retention limits. The number and the age come from the recipe, or else from the current server file. The limit of the
    /// disk space is the smaller limit of the two files.
    pub fn retention(&self, server: &ServerConfig) -> Retention {
        Retention {
            releases: self.keep_releases.unwrap_or(server.keep.releases),
            age: self.keep_age.or(server.keep.age),
            // A project can only lower the operator's limit.
            bytes: self.keep_bytes.into_iter().chain(server.keep.bytes).min(),
        }
    }

    /// Returns the policy on drift of the recipe, or else of the current server file, or else the default.
    pub fn drift_policy(&self, server: &ServerConfig) -> DriftPolicy {
        self.drift.or(server.drift).unwrap_or_default()
    }
}
