//! The steps that collect the inputs of a deployment: source, recipe and variables. For a rollback, the input is the record of an
//! earlier deployment.

use serde_json::{Map, Value, json};

use crate::{
    config::{DataPath, Settings, VariableName},
    drift::{Rules, patches::Patches},
    git::{
        GitError,
        source::{SourceJob, SourceLimits},
    },
    model::{Blame, Mode, Origin, Phase, ReleaseId, best_tag},
    pipeline::{
        context::Deployment,
        drift,
        facts::Facts,
        intake::{self, RecipeErrors},
        journal::JournalState,
        state_files::Secrets,
        step::{self, Acquired, Failure, Resource, Step, Work, chain},
    },
    release::PathPatterns,
};

/// The step that checks the commit's tree, exports the tree, and reads the recipe.
pub struct ExportSource;

impl Step for ExportSource {
    fn name(&self) -> &'static str {
        "gather.source"
    }

    fn phase(&self) -> Phase {
        Phase::Gather
    }

    fn about(&self) -> &'static str {
        "check the commit's tree, export what changed, read larder.yml, Procfile and app.json"
    }

    fn is_durable(&self, _: &Deployment) -> bool {
        false
    }

    fn acquire<'a>(&'a self, deployment: &'a Deployment) -> Acquired<'a> {
        step::permit(deployment, Resource::Unpack)
    }

    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            nothing_is_lost(deployment).await?;
            let spec = &deployment.spec;
            let services = deployment.services.clone();
            let limits = &services.config.limits;
            let is_editable = deployment.environment.mode == Mode::Editable;
            let job = SourceJob {
                commit: spec.commit.clone(),
                limits: SourceLimits {
                    entries: limits.tree_entries,
                    bytes: limits.tree_bytes.bytes(),
                    file_bytes: limits.file_bytes.bytes(),
                    ..SourceLimits::default()
                },
                export: !is_editable,
                fresh: false,
                quarantine: None,
                tags: deployment.spec.tags.clone(),
            };
            deployment.transcript.title(&format!(
                "Deploying {} of {} to {}",
                spec.commit.short(),
                spec.branch,
                deployment.environment.title()
            ));
            // The export and the scan for drift run at the same time.
            let exporting = services.repositories.source(deployment.environment.project_id, deployment.environment.id, job);
            let scanning = async || if is_editable { Ok(None) } else { drift::before(deployment).await };
            let (exported, drifted) = tokio::join!(exporting, scanning());
            let source = exported.map_err(failure)?;
            for warning in &source.warnings {
                deployment.transcript.error(warning);
            }
            let sample = source.files.pillar_sample.clone();
            let config = intake::load_recipe(source.files).map_err(|errors| refused(deployment, &errors))?;
            deployment.facts.pillar_sample = sample.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            deployment.evaluate_pillar().map_err(|failure| with_address(deployment, failure))?;
            config.warnings().iter().for_each(|warning| deployment.transcript.error(warning));
            let settings = config.settings(&deployment.environment.name).on_server(&services.config);
            let settings = supported(deployment, settings)?;
            deployment.facts.source = Some(source.tree);
            if let Some(wrong) = Rules::wrong(&settings.drift_ignore) {
                return Err(Failure::pusher(format!("larder.yml: {wrong}")).hint("write patterns as in .gitignore"));
            }
            if let Err(wrong) = PathPatterns::new(&settings.upgrade.paths) {
                let why = format!("larder.yml: upgrade.paths: {}", chain(&wrong));
                return Err(Failure::pusher(why).hint("write patterns as in .gitignore"));
            }
            drift::decide(deployment, drifted, &settings).await?;
            deployment.facts.scripts = source.scripts;
            deployment.facts.maintenance_page = source.maintenance_page.map(|page| String::from_utf8_lossy(&page).into_owned());
            deployment.facts.tag = best_tag(source.tags.iter().map(String::as_str)).map(str::to_owned);
            deployment.facts.variables = variables(deployment, &settings);
            deployment.facts.settings = Some(settings);
            Ok(())
        })
    }
}

/// Returns an error if a commit that this push does not contain went live while this push waited. Without this check, the push would
/// silently revert that commit. Git's own check ran earlier, against the branch as the pusher's client had read it.
async fn nothing_is_lost(deployment: &Deployment) -> Result<(), Failure> {
    let spec = &deployment.spec;
    let (Some(seen), Some(live)) = (&deployment.spec.seen, &spec.previous) else { return Ok(()) };
    if *seen == live.commit || spec.commit == live.commit {
        return Ok(());
    }
    let repositories = &deployment.services.repositories;
    let missing = repositories.log(deployment.environment.project_id, Some(spec.commit.clone()), live.commit.clone(), 1).await;
    let (missing, _) = missing.map_err(|error| Failure::host(&error))?;
    if missing.is_empty() {
        return Ok(());
    }
    let why = format!("{} went live in the meantime, and this push does not contain {}", live.number, live.commit.short());
    Err(Failure { blame: Blame::Nobody, ..Failure::pusher(why) }
        .hint("fetch, merge, and push again; to revert the live commit on purpose, push again without a merge"))
}

fn failure(error: GitError) -> Failure {
    match error {
        GitError::Refused(refusal) => {
            let hint = refusal.hint.clone();
            let failure = Failure::pusher(&refusal);
            if hint.is_empty() { failure } else { failure.hint(hint) }
        }
        other => Failure::host(&other),
    }
}

/// Adds the address of the pillar to a failure that a value of the pillar causes.
fn with_address(deployment: &Deployment, failure: Failure) -> Failure {
    let project = &deployment.environment.project;
    failure.hint(format!("the pillar of {project} is a repository of its own: git clone ssh://larder@HOST:PORT/{project}/pillar"))
}

/// Returns an error for settings that this environment does not support, and adds generated values for required variables.
fn supported(deployment: &Deployment, mut settings: Settings) -> Result<Settings, Failure> {
    let environment = &deployment.environment;
    // The plan was fixed before the first step. The recipe could not be read then if its commit was not in the repository yet.
    let strategy = settings.strategy.unwrap_or(environment.strategy);
    if strategy != deployment.spec.strategy && environment.mode != Mode::Editable {
        let (wanted, planned) = (strategy.as_str(), deployment.spec.strategy.as_str());
        return Err(Failure::blameless(format!(
            "the recipe has the strategy {wanted}, and the deployment was planned as {planned}"
        ))
        .hint("deploy the release again: its recipe is in the repository now"));
    }
    for domain in &settings.domains {
        if let Some(other) = deployment.services.taken(environment, domain.as_str()) {
            return Err(Failure::pusher(format!("the domain {domain} belongs to {other}"))
                .hint("remove the domain from `domains:` of one of the two environments"));
        }
    }
    for template in &settings.templates {
        let inside = template.to.as_str().parse::<DataPath>().ok();
        let persistent = settings.data.iter().find(|path| inside.as_ref().is_some_and(|inside| inside.overlaps(path)));
        if let Some(path) = persistent {
            return Err(Failure::pusher(format!(
                "larder.yml: the template {} writes into the persistent path {path}",
                template.from
            ))
            .hint("choose another `to` in `templates:`: a rendered file belongs to one release and its configuration"));
        }
    }
    let secrets = Secrets::open(&deployment.paths.secrets()).map_err(|error| Failure::host(&error))?;
    let wanted = settings.required.iter().filter(|required| required.generate).map(|required| &required.name);
    let url = secrets.database_url();
    let made = secrets.ensure(wanted).map_err(|error| Failure::host(&error))?;
    settings.env.extend(made);
    if let Some((name, url)) = url {
        settings.env.entry(name).or_insert(url);
    }
    nothing_is_missing(deployment, &settings)?;
    Ok(settings)
}

/// Returns an error if a variable that `app.json` requires has a value neither in the settings nor in the configuration.
fn nothing_is_missing(deployment: &Deployment, settings: &Settings) -> Result<(), Failure> {
    let configuration = deployment.configuration()?;
    let has_value = |name: &VariableName| settings.env.contains_key(name) || configuration.get(name.as_str()).is_some();
    let missing: Vec<_> = settings.required.iter().filter(|required| !has_value(&required.name)).collect();
    let Some(first) = missing.first() else { return Ok(()) };
    let names: Vec<_> = missing.iter().map(|required| required.name.to_string()).collect();
    let what = first.description.as_ref().map(|text| format!(" ({}: {text})", first.name)).unwrap_or_default();
    let title = deployment.environment.target();
    Err(Failure::pusher(format!("app.json requires a value for {}{what}", names.join(", "))).hint(format!(
        "set the value with `larder config set {title} {}=VALUE`, or under `env:` in larder.yml or in the server file",
        first.name
    )))
}

/// Shows all errors of a recipe to the pusher. The first error becomes the reason of the failure.
fn refused(deployment: &Deployment, errors: &RecipeErrors) -> Failure {
    errors.lines.iter().for_each(|line| deployment.transcript.error(line));
    Failure::pusher(&errors.why)
}

/// Returns the mapping of variables that every phase reads and may change.
fn variables(deployment: &Deployment, settings: &Settings) -> Map<String, Value> {
    let spec = &deployment.spec;
    let mut map = Map::new();
    map.insert(String::from("server"), json!({ "domain": deployment.services.config.domain.to_string() }));
    map.insert(String::from("project"), json!({ "name": deployment.environment.project }));
    map.insert(
        String::from("environment"),
        json!({ "name": deployment.environment.name, "mode": deployment.environment.mode, "branch": spec.branch }),
    );
    map.insert(String::from("deployment"), about(deployment));
    let env: Map<String, Value> =
        settings.env.iter().map(|(name, value)| (name.to_string(), Value::String(value.clone()))).collect();
    map.insert(String::from("env"), Value::Object(env));
    map
}

/// Returns the variables about the deployment itself.
pub(super) fn about(deployment: &Deployment) -> Value {
    let spec = &deployment.spec;
    json!({
        "id": spec.id,
        "commit": spec.commit,
        "release": spec.release,
        "tag": deployment.facts.tag,
        "number": spec.number,
        "previous": spec.previous.as_ref().map(|live| live.number),
    })
}

/// The step that loads the settings and processes of an earlier live release from the record of its deployment.
pub struct LoadRelease;

impl Step for LoadRelease {
    fn name(&self) -> &'static str {
        "gather.recall"
    }

    fn phase(&self) -> Phase {
        Phase::Gather
    }

    fn about(&self) -> &'static str {
        "take settings and processes from the record of the deployment that made the release live"
    }

    fn is_durable(&self, _: &Deployment) -> bool {
        false
    }

    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            let spec = &deployment.spec;
            let release = spec.release;
            let title = deployment.environment.title();
            deployment.transcript.title(&match (&spec.origin, &spec.configuration) {
                (Origin::Configuration, Some(snapshot)) => {
                    format!("Starting {} in {title} with configuration {}", spec.commit.short(), snapshot.number)
                }
                _ => format!("Going back to {} in {title}", spec.commit.short()),
            });
            let known = match &spec.recorded {
                Some(id) => JournalState::read(&deployment.paths.deployment(*id)).map_err(|error| Failure::host(&error))?.facts,
                None => Facts::default(),
            };
            let Some(settings) = known.settings else { return Err(unknown(release)) };
            if let Some(id) = &known.patch
                && Patches::of(&deployment.paths.archives()).find(id).is_none()
            {
                let title = deployment.environment.title();
                let why = format!("cannot restore {release}: the patch {id}, which was applied to it, no longer exists");
                let without = format!("deploy its commit without the patch: larder deploy {title} --ref {}", spec.commit);
                return Err(Failure::blameless(why).hint(without));
            }
            // The variables about this deployment are new; all other variables are unchanged.
            let mut variables = known.variables;
            variables.insert(String::from("deployment"), about(deployment));
            let (upgrade, data_return, replaced, processes) = (None, None, None, Vec::new());
            deployment.facts.pillar_sample.clone_from(&known.pillar_sample);
            deployment.evaluate_pillar()?;
            nothing_is_missing(deployment, &settings)?;
            deployment.facts = Facts { settings: Some(settings), variables, processes, upgrade, data_return, replaced, ..known };
            Ok(())
        })
    }
}

fn unknown(release: ReleaseId) -> Failure {
    Failure::blameless(format!("the record of the deployment that made {release} live no longer exists"))
        .hint("choose another release (`larder releases` lists them), or deploy the commit again with `larder deploy --ref`")
}
