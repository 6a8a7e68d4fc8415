//! All files of a repository together. What the recipe says counts before the Procfile, that before `.buildpacks` and `app.json`,
//! and those before what buildpacks bring along.

use super::{
    app_json::AppJson,
    buildpacks_file,
    error::ConfigError,
    procfile::Procfile,
    recipe::Recipe,
    settings::{HealthCheck, ProcessSpec, ProcessTuning, Settings},
    value::BuildpackRef,
};
use crate::model::EnvironmentName;

/// The raw files, as they are in the commit; one that is not there is `None`.
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
}

impl ProjectFiles {
    /// The files by their path in the repository, in the order in which they count.
    pub fn by_path(&mut self) -> [(&'static str, &mut Option<Vec<u8>>); 4] {
        [
            ("larder.yml", &mut self.recipe),
            ("Procfile", &mut self.procfile),
            (".buildpacks", &mut self.buildpacks),
            ("app.json", &mut self.app_json),
        ]
    }
}

/// The files, read and checked.
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
}

/// Reads all files; the problems of all of them are reported together.
pub fn load(files: &ProjectFiles) -> Result<ProjectConfig, Vec<ConfigError>> {
    let mut problems = Vec::new();
    let config = ProjectConfig {
        recipe: read(&files.recipe, Recipe::parse, &mut problems),
        procfile: read(&files.procfile, Procfile::parse, &mut problems),
        app_json: read(&files.app_json, AppJson::parse, &mut problems),
        buildpacks: read(&files.buildpacks, buildpacks_file::parse, &mut problems),
    };
    if problems.is_empty() { Ok(config) } else { Err(problems) }
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
    /// The settings of an environment.
    pub fn settings(&self, environment: &EnvironmentName) -> Settings {
        let mut settings = Settings::default();
        let app = &self.app_json;
        settings.buildpacks = if self.buildpacks.is_empty() { app.buildpacks.clone() } else { self.buildpacks.clone() };
        settings.env = app.env.clone();
        settings.required = app.required.clone();
        settings.postdeploy = app.postdeploy.clone();
        if let Some(path) = app.health_path.clone() {
            settings.health.check = HealthCheck::Http { path, status: Settings::GOOD };
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
        self.recipe.apply(environment, &mut settings);
        settings
    }
}
