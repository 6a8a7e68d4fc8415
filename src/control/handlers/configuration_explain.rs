//! The request that explains where a variable gets its value.

use serde::Serialize;

use super::configuration::of_snapshots;
use crate::{
    config::{
        ConfigError, ProjectFiles, VariableName,
        pillar::{PillarLevel, PillarText, SAMPLE_FILE},
        place_in_server, places_in_project,
    },
    control::{
        authz::Needs,
        error::{CommandError, run_blocking},
        request::{Context, Reply, Request},
        state::Control,
    },
    git::{
        RepositoryId,
        source::{RecipeFiles, SourceJob, SourceLimits},
    },
    model::{Access, CommitId, Environment, Target, sanitise_reason},
};

/// The request to list every layer that sets a variable.
#[derive(Debug)]
pub struct ConfigExplain {
    /// The environment.
    pub target: Target,
    /// The variable.
    pub name: String,
}

/// The layers that set a variable, in rising order of precedence.
#[derive(Debug, Serialize)]
pub struct ConfigExplanation {
    /// The environment, as `project/environment`.
    pub environment: String,
    /// The variable.
    pub name: String,
    /// The layers.
    pub layers: Vec<ConfigLayer>,
    /// A fact that limits the explanation, such as a recipe that cannot be read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// A layer that sets a variable.
#[derive(Debug, Clone, Serialize)]
pub struct ConfigLayer {
    /// The file and the key, or `configuration 5`.
    pub source: String,
    /// The line of the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// The user who set the value, or the author of the commit with the value; absent if it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// The value, if the caller may see values and the value is text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// The process type that gets the value, or `build`; absent if all processes get the value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub only: Option<String>,
    /// True if this layer takes precedence over all others.
    pub wins: bool,
}

impl Request for ConfigExplain {
    type View = ConfigExplanation;
    const NAME: &'static str = "config explain";

    fn needs(&self) -> Needs {
        Needs::environment(&self.target, Access::View)
    }

    async fn handle(self, Context { control, caller }: &Context<'_>) -> Result<Reply<ConfigExplanation>, CommandError> {
        let environment = control.environment(&self.target)?;
        let pipeline = control.pipeline();
        let shows_values = control.sees_values(caller, &environment);
        let (name, mut notes) = (self.name, Vec::new());
        let mut layers = Vec::new();
        let mut has_value = false;
        let layer = |source: String, value: Option<String>| ConfigLayer {
            source,
            line: None,
            by: None,
            value: value.filter(|_| shows_values),
            only: None,
            wins: false,
        };
        if pipeline.services().config.env.contains_key(name.as_str()) {
            let (file, wanted) = (control.root().server_file(), name.clone());
            let read = run_blocking(move || {
                let bytes = std::fs::read(&file).map_err(|error| CommandError::internal(&error))?;
                Ok(place_in_server(&file.display().to_string(), &bytes, &wanted).ok().flatten())
            });
            let place = read.await.ok().flatten();
            has_value = true;
            let value = pipeline.services().config.env.get(name.as_str()).cloned();
            layers
                .push(ConfigLayer { line: place.and_then(|place| place.line), ..layer(String::from("server file: env"), value) });
        }
        match pipeline.live(environment.id) {
            None => notes.push(String::from("nothing is live: the files of the project are not known yet")),
            Some(live) => {
                let job = SourceJob {
                    commit: live.commit.clone(),
                    limits: SourceLimits::default(),
                    export: false,
                    fresh: false,
                    quarantine: None,
                    tags: Vec::new(),
                };
                let read = pipeline.services().repositories.source(environment.project_id, environment.id, job).await;
                let source = read.map_err(|error| CommandError::internal(&error))?;
                let RecipeFiles { larder_yml, procfile, app_json, buildpacks, pillar_sample } = source.files;
                let files = ProjectFiles { recipe: larder_yml, procfile, app_json, buildpacks, pillar_sample: None };
                match places_in_project(&files, &environment.name, &name) {
                    Ok(places) => {
                        has_value |= places.iter().any(|place| place.value.is_some() && place.only.is_none());
                        layers.extend(places.into_iter().map(|place| ConfigLayer {
                            line: place.line,
                            only: place.only,
                            ..layer(place.source, place.value)
                        }));
                    }
                    Err(problem) => notes.push(format!("the files of {} cannot be read: {problem}", live.commit.short())),
                }
                if let Some(sample) = pillar_sample.as_deref().and_then(|bytes| sample(bytes).ok()) {
                    let place = variable(&sample, &name);
                    layers.extend(place.map(|(line, value)| ConfigLayer { line, ..layer(SAMPLE_FILE.to_owned(), value) }));
                }
                let facts = pipeline.facts(&environment, live.release).map_err(|error| CommandError::internal(&error))?;
                let generated = pipeline.generated_variables(&environment).map_err(|error| CommandError::internal(&error))?;
                if generated.iter().any(|known| known.as_str() == name) && !has_value {
                    layers.push(layer(String::from("generated by larder"), facts.env.get(&name).cloned()));
                }
            }
        }
        let current = pipeline.configuration(&environment).map_err(|error| of_snapshots(&error))?;
        if let Some(pillar) = &current.pillar {
            let found: Vec<_> = pillar.levels.iter().filter_map(|level| Some((level, variable(level, &name)?))).collect();
            let by = match found.is_empty() {
                true => None,
                false => author(control, &environment, &pillar.commit).await,
            };
            layers.extend(found.into_iter().map(|(level, (line, value))| {
                let source = format!("pillar {}: {}", pillar.commit.short(), level.file);
                ConfigLayer { line, by: by.clone(), ..layer(source, value) }
            }));
        }
        if let (Some(next), Some(value)) = (current.next, current.variables.get(&name)) {
            let source = format!("configuration {}", next.number);
            let by = pipeline.configuration_author(&environment, next.number, &name).map(|by| by.to_string());
            layers.push(ConfigLayer { by, ..layer(source, std::str::from_utf8(value).ok().map(str::to_owned)) });
            if current.live.map(|live| live.number) != Some(next.number) {
                notes.push(format!("configuration {} is used by the next deployment", next.number));
            }
        }
        if let Some(remedy) = VariableName::remedy(&name) {
            notes.push(format!("larder sets {} itself or refuses it: {remedy}", sanitise_reason(&name)));
        }
        // A layer for single processes takes precedence for these processes only.
        let is_configured = layers.iter().any(is_of_all_processes);
        let last = layers.iter().rposition(|layer| layer.only.is_none());
        if let Some(winner) = last.and_then(|last| layers.get_mut(last)) {
            winner.wins = true;
        }
        if !is_configured {
            layers.iter_mut().filter(|layer| layer.only.is_some()).for_each(|layer| layer.wins = true);
        }
        Ok(ConfigExplanation { environment: environment.title(), name, layers, notes }.into())
    }
}

/// Returns true for the pillar and the configuration, which also take precedence over the values for single processes.
fn is_of_all_processes(layer: &ConfigLayer) -> bool {
    ["configuration ", "pillar ", SAMPLE_FILE].iter().any(|start| layer.source.starts_with(start))
}

/// Parses the sample of a pillar.
fn sample(bytes: &[u8]) -> Result<PillarLevel, ConfigError> {
    PillarLevel::parse(SAMPLE_FILE, bytes, &|_| Ok(PillarText::Plain))
}

/// Returns the line and the text of a variable in a file of a pillar; the text is `None` if the file has no value for the variable.
fn variable(level: &PillarLevel, name: &str) -> Option<(Option<u32>, Option<String>)> {
    let node = level.root.child("env")?.child(name)?;
    let mut text = None;
    node.texts("", &mut |_, found| text = Some(found.to_owned()));
    Some((Some(node.line), text))
}

/// Returns the author of a commit of a pillar.
async fn author(control: &Control, environment: &Environment, commit: &CommitId) -> Option<String> {
    let repositories = &control.pipeline().services().repositories;
    let log = repositories.log(RepositoryId::pillar(environment.project_id), None, commit.clone(), 1).await.ok()?;
    log.0.into_iter().next().map(|entry| entry.author)
}
