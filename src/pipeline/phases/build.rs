//! The steps of a build: an empty layer over the source, and buildpacks in the build's sandbox.

use std::{ffi::OsString, os::unix::ffi::OsStringExt as _, time::Duration};

use serde_json::Value;

use crate::{
    buildpack::{self, BuildJob, BuildKey, BuildStep, BuildpackError, Built},
    host::files,
    model::{Area, Mode, Phase},
    pipeline::{
        context::Deployment,
        output,
        step::{self, Acquired, Failure, Resource, Step, Work, chain},
    },
};

/// The time limit of each wait for free disk space after a build layer was emptied.
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(10);

/// The step that creates an empty build layer over the exported source.
pub struct PrepareLayer;

impl Step for PrepareLayer {
    fn name(&self) -> &'static str {
        "gather.layer"
    }

    fn phase(&self) -> Phase {
        Phase::Gather
    }

    fn about(&self) -> &'static str {
        "lay an empty build layer over the exported source"
    }

    fn is_durable(&self, _: &Deployment) -> bool {
        false
    }

    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async { reset(deployment).await })
    }

    fn undo<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            // The files of a failed build may fill the disk, so that no project could push any more.
            let upper = deployment.paths.build().join("upper");
            let was_used = std::fs::read_dir(upper).is_ok_and(|mut names| names.next().is_some());
            reset(deployment).await?;
            if was_used {
                wait_for_space(deployment).await;
            }
            Ok(())
        })
    }
}

/// Empties the build layer. The files of the layer are removed in the background.
async fn reset(deployment: &Deployment) -> Result<(), Failure> {
    let environment = deployment.environment.id;
    let reset = deployment.services.launcher.reset_area(environment, Area::Build, None, None).await;
    reset.map_err(|error| Failure::host(&error))
}

/// Waits until the disk has the free space that the server reserves, because the files of the build layer are deleted in the background.
/// If the space is still missing after the wait, clears the build cache of the environment, which can be recreated.
async fn wait_for_space(deployment: &Deployment) {
    let reserve = deployment.services.config.limits.disk_reserve.bytes();
    let is_full = || files::free_space(deployment.paths.path()).is_ok_and(|free| free.bytes < reserve);
    let wait = async || {
        let deadline = tokio::time::Instant::now() + CLEANUP_TIMEOUT;
        while is_full() && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    if !is_full() {
        return;
    }
    wait().await;
    if is_full() {
        let environment = &deployment.environment;
        let cleared = buildpack::clear_cache(&deployment.services.launcher, environment.project_id, environment.id).await;
        if let Err(error) = cleared {
            tracing::warn!(%error, "cannot clear the build cache on a full disk");
        }
        wait().await;
    }
}

/// The step that selects the buildpacks, compiles the application, and reads the process types of the buildpacks.
pub struct Compile;

impl Step for Compile {
    fn name(&self) -> &'static str {
        "build.compile"
    }

    fn phase(&self) -> Phase {
        Phase::Build
    }

    fn about(&self) -> &'static str {
        "run the buildpacks in a sandbox at /app"
    }

    fn is_durable(&self, _: &Deployment) -> bool {
        false
    }

    fn acquire<'a>(&'a self, deployment: &'a Deployment) -> Acquired<'a> {
        // Builds are limited, because they slow down the sites on the same machine.
        step::permit(deployment, Resource::Build)
    }

    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            let services = deployment.services.clone();
            let settings = deployment.settings();
            if !settings.build.cache {
                let environment = &deployment.environment;
                let cleared = buildpack::clear_cache(&services.launcher, environment.project_id, environment.id).await;
                cleared.map_err(|error| Failure::host(&error))?;
            }
            let is_editable = deployment.environment.mode == Mode::Editable;
            let mut job = job(deployment)?;
            if is_editable {
                job.steps.push(BuildStep::Inputs);
            }
            let built = run(deployment, &job).await?;
            deployment.facts.inputs = is_editable.then(|| built.inputs.into());
            deployment.facts.buildpacks = built.buildpacks;
            deployment.facts.buildpack_processes = built.processes;
            Ok(())
        })
    }
}

/// Returns the job of a whole build.
pub(in crate::pipeline) fn job(deployment: &Deployment) -> Result<BuildJob, Failure> {
    let spec = &deployment.spec;
    let settings = deployment.settings();
    let build = settings.build.env.iter().map(|(name, value)| (name.to_string(), value.clone()));
    let recipe = super::deploy::processes::configured(deployment).into_iter().chain(build);
    let snapshot = deployment.configuration()?.iter().map(|(name, value)| (name.to_owned(), OsString::from_vec(value.to_vec())));
    let configuration = recipe.map(|(name, value)| (name, value.into())).chain(snapshot).collect();
    Ok(BuildJob {
        steps: vec![BuildStep::Detect, BuildStep::Compile, BuildStep::Release],
        buildpacks: settings.buildpacks.clone(),
        configuration,
        environment: vec![
            (String::from("LARDER_PROJECT"), deployment.environment.project.to_string()),
            (String::from("LARDER_ENVIRONMENT"), deployment.environment.name.to_string()),
            (String::from("LARDER_MODE"), deployment.environment.mode.to_string()),
            (String::from("SOURCE_VERSION"), spec.commit.to_string()),
            (String::from("REQUEST_ID"), spec.id.to_string()),
        ],
        variables: Value::Object(deployment.facts.variables.clone()).to_string(),
        memory: settings.build.memory.map(|memory| memory.bytes()),
        deploy_key: deployment.deploy_key()?.map(|key| BuildKey::new(key.private.to_string(), key.known_hosts.clone())),
    })
}

/// Runs a job in the build sandbox, and copies its output to the transcript.
pub(super) async fn run(deployment: &Deployment, job: &BuildJob) -> Result<Built, Failure> {
    let environment = &deployment.environment;
    let (lines, copying) = output::channel(&deployment.transcript);
    let launcher = &deployment.services.launcher;
    let checkout = (environment.mode == Mode::Editable).then_some(deployment.spec.release);
    let built =
        buildpack::build(launcher, environment.project_id, environment.id, checkout, job, lines, &deployment.memory.cancelled)
            .await;
    let _ = copying.await;
    built.map_err(failed)
}

/// Returns the failure of a build.
pub(in crate::pipeline) fn failed(error: BuildpackError) -> Failure {
    match error {
        BuildpackError::Cancelled => Failure::blameless("cancelled"),
        other => {
            let why = match &other {
                BuildpackError::Failed(failure) => failure.why.clone(),
                other => chain(other),
            };
            Failure { blame: other.blame(), why, hints: other.hints() }
        }
    }
}
