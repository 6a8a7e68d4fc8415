//! What `larder dev` runs: the settings of the recipe, the variables of `.env`, and the processes.

use std::{fs, io, path::Path};

use super::checkout::Checkout;
use crate::{
    buildpack::LocalPaths,
    config::{self, LocalVariables, Settings, Stop, VariableName},
    host::random,
    model::{ConfigVariables, EnvironmentName, ProcessType},
    runtime::{PROFILE_DIR, RunJob},
    watch::{FilePatterns, patterns_of},
};

/// The file with the variables of this machine.
pub(super) const ENV_FILE: &str = ".env";
/// The variables by which frameworks select their mode, with the value for development. Every other source of variables takes precedence.
const DEFAULTS: [(&str, &str); 3] = [("NODE_ENV", "development"), ("RACK_ENV", "development"), ("RAILS_ENV", "development")];

/// The settings and variables of one moment.
#[derive(Debug, Clone)]
pub(super) struct LocalPlan {
    pub environment: EnvironmentName,
    pub settings: Settings,
    /// The variables of `.env`.
    pub variables: ConfigVariables,
    /// Sentences about files that are valid but not as intended.
    pub warnings: Vec<String>,
}

/// A process with everything that determines how it runs. A process whose definition changes is restarted.
#[derive(Debug, Clone)]
pub(super) struct LocalProcess {
    pub kind: ProcessType,
    /// The job without the variables that depend on the instance.
    pub job: RunJob,
    pub stop: Stop,
    /// The files whose change restarts the process.
    pub watch: FilePatterns,
}

impl LocalProcess {
    /// Returns the name of the only instance.
    pub fn name(&self) -> String {
        format!("{}.1", self.kind)
    }

    /// Returns true if the other definition starts the same process.
    pub fn is_same(&self, other: &LocalProcess) -> bool {
        self.job == other.job && self.stop == other.stop
    }
}

impl LocalPlan {
    /// Reads the recipe and `.env`. An error is one line for each problem.
    pub fn load(checkout: &Checkout, environment: &EnvironmentName) -> Result<LocalPlan, Vec<String>> {
        let lines = |problems: Vec<config::ConfigError>| problems.iter().map(ToString::to_string).collect::<Vec<_>>();
        let project = config::project::load(&checkout.files()).map_err(lines)?;
        let mut settings = project.settings(environment);
        let mut warnings = project.warnings().to_vec();
        let local = match fs::read(checkout.root.join(ENV_FILE)) {
            Ok(text) => config::parse_local_dotenv(&text).map_err(|error| lines(vec![in_env_file(error)]))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => LocalVariables::default(),
            Err(error) => return Err(vec![format!("cannot read {ENV_FILE}: {error}")]),
        };
        warnings.extend(local.left_out.into_iter().map(|error| format!("{} (left out)", in_env_file(error))));
        let variables: ConfigVariables = local.variables.into_iter().map(|(name, value)| (name.to_string(), value)).collect();
        for required in settings.required.clone() {
            if has_value(&settings, &variables, &required.name) {
                continue;
            }
            if !required.generate {
                let what = required.description.map(|text| format!(" ({text})")).unwrap_or_default();
                let name = required.name;
                return Err(vec![
                    format!("app.json requires a value for {name}{what}"),
                    format!("hint: add a line {name}=VALUE to {ENV_FILE}"),
                ]);
            }
            let value = generated(&checkout.cache, &required.name)
                .map_err(|error| vec![format!("cannot write the generated value of {}: {error}", required.name)])?;
            settings.env.insert(required.name, value);
        }
        Ok(LocalPlan { environment: environment.clone(), settings, variables, warnings })
    }

    /// Returns the processes, with those that buildpacks suggest. `wanted` selects process types; an empty list selects all of them.
    pub fn processes(
        &self,
        checkout: &Checkout,
        suggested: &[(ProcessType, String)],
        wanted: &[ProcessType],
    ) -> Result<Vec<LocalProcess>, Vec<String>> {
        let suggested = suggested.iter().filter_map(|(process, command)| Some((process.clone(), command.parse().ok()?)));
        let settings = self.settings.clone().with_defaults(suggested.collect());
        if settings.processes.is_empty() {
            return Err(vec![
                String::from("cannot start anything: there is no Procfile, and the buildpack defines no process"),
                String::from("hint: add a file named Procfile with a line such as `web: ./server --port $PORT`"),
            ]);
        }
        if let Some(unknown) = wanted.iter().find(|wanted| !settings.processes.contains_key(*wanted)) {
            let known: Vec<_> = settings.processes.keys().map(ProcessType::as_str).collect();
            return Err(vec![format!("there is no process {unknown}; the project has: {}", known.join(", "))]);
        }
        let mut processes = Vec::new();
        for (kind, spec) in settings.processes.iter().filter(|(kind, _)| wanted.is_empty() || wanted.contains(kind)) {
            let mut env = self.env(checkout);
            env.extend(spec.env.iter().map(|(name, value)| (name.to_string(), value.clone())));
            let command = spec.command.to_string();
            let watch = FilePatterns::new(patterns_of(&command, spec.watch.as_deref()))
                .map_err(|why| vec![format!("larder.yml: processes.{kind}.watch: {why}")])?;
            let job = RunJob { command, env, configuration: self.variables.clone(), ..RunJob::default() };
            processes.push(LocalProcess { kind: kind.clone(), job, stop: settings.stop_of(kind), watch });
        }
        Ok(processes)
    }

    /// Returns the variables of every process, without those of `.env`.
    pub fn env(&self, checkout: &Checkout) -> Vec<(String, String)> {
        let recipe = self.settings.env.iter().map(|(name, value)| (name.to_string(), value.clone()));
        let mut env: Vec<_> = recipe.chain(self.fixed(checkout)).collect();
        env.push((PROFILE_DIR.to_owned(), checkout.profile().to_string_lossy().into_owned()));
        env
    }

    /// Returns the variables that larder sets for builds and processes.
    pub fn fixed(&self, checkout: &Checkout) -> Vec<(String, String)> {
        let root = checkout.root.to_string_lossy().into_owned();
        vec![
            (String::from("LARDER_PROJECT"), checkout.name.clone()),
            (String::from("LARDER_ENVIRONMENT"), self.environment.to_string()),
            (String::from("LARDER_MODE"), String::from("editable")),
            (String::from("LARDER_DATA"), root),
        ]
    }

    /// Returns the release command.
    pub fn release(&self, checkout: &Checkout) -> Option<RunJob> {
        let command = self.settings.upgrade_command()?.to_string();
        Some(RunJob { command, env: self.env(checkout), configuration: self.variables.clone(), ..RunJob::default() })
    }

    /// Returns the variables with text values that URLs of services may be in.
    pub fn texts(&self) -> Vec<(String, String)> {
        let recipe = self.settings.env.iter().map(|(name, value)| (name.to_string(), value.clone()));
        let local = self
            .variables
            .iter()
            .filter_map(|(name, value)| Some((name.to_owned(), std::str::from_utf8(value).ok()?.to_owned())));
        recipe.filter(|(name, _)| self.variables.get(name).is_none()).chain(local).collect()
    }

    /// Returns the paths that the application writes.
    pub fn data(&self) -> impl Iterator<Item = &str> {
        self.settings.data.iter().map(config::DataPath::path)
    }
}

/// Returns those variables for frameworks that this process's own environment does not set.
pub(super) fn defaults() -> impl Iterator<Item = (&'static str, &'static str)> {
    DEFAULTS.into_iter().filter(|(name, _)| std::env::var_os(name).is_none())
}

/// Returns the directories of a build.
pub(super) fn build_paths(checkout: &Checkout) -> LocalPaths {
    LocalPaths {
        app: checkout.root.clone(),
        cache: checkout.cache.clone(),
        buildpacks: checkout.buildpacks.clone(),
        path: search_path(),
        home: checkout.home.clone(),
        profile: checkout.profile(),
    }
}

/// Returns the developer's search path with the directory of this program at its end, because commands may start `larder static-server`.
pub(super) fn search_path() -> std::ffi::OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    if let Some(directory) = std::env::current_exe().ok().as_deref().and_then(Path::parent) {
        path.push(":");
        path.push(directory);
    }
    path
}

fn has_value(settings: &Settings, variables: &ConfigVariables, name: &VariableName) -> bool {
    settings.env.contains_key(name) || variables.get(name.as_str()).is_some() || std::env::var_os(name.as_str()).is_some()
}

fn in_env_file(error: config::ConfigError) -> config::ConfigError {
    config::ConfigError { file: ENV_FILE.to_owned(), ..error }
}

/// Returns the value that larder generated for a variable of `app.json` on this machine. The first call generates the value.
fn generated(cache: &Path, name: &VariableName) -> io::Result<String> {
    let path = cache.join("generated").join(name.as_str());
    match fs::read_to_string(&path) {
        Ok(value) if !value.is_empty() => return Ok(value),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let value = data_encoding::HEXLOWER.encode(&random::<32>()?);
    fs::create_dir_all(cache.join("generated"))?;
    // The cache is readable only by the user.
    fs::write(&path, &value)?;
    Ok(value)
}
