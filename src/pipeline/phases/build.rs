//! Buildpacks, in the build's sandbox.

use serde_json::Value;

use crate::{
    buildpack::{self, BuildJob, BuildStep, BuildpackError, Built},
    model::Phase,
    pipeline::{
        context::Deployment,
        output,
        step::{Admission, Failure, Step, Work},
    },
};

/// Chooses buildpacks, compiles, and asks them for process types.
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

    fn lasts(&self, _: &Deployment) -> bool {
        false
    }

    fn admission<'a>(&'a self, deployment: &'a Deployment) -> Admission<'a> {
        Box::pin(async {
            // Builds hurt the sites that are served from the same machine; so few run at a time.
            let builds = &deployment.services.builds;
            let permit = match builds.clone().try_acquire_owned() {
                Ok(permit) => permit,
                Err(_) => {
                    deployment.transcript.detail("waiting for another build on this server");
                    builds.clone().acquire_owned().await.map_err(|error| Failure::host(&error))?
                }
            };
            Ok(vec![Box::new(permit) as Box<dyn Send>])
        })
    }

    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            let services = deployment.services.clone();
            let settings = deployment.settings();
            if !settings.build.cache {
                let environment = &deployment.order.environment;
                let cleared = buildpack::clear_cache(&services.launcher, environment.project_id, environment.id).await;
                cleared.map_err(|error| Failure::host(&error))?;
            }
            let built = run(deployment, &job(deployment)).await?;
            deployment.facts.buildpacks = built.buildpacks;
            deployment.facts.buildpack_processes = built.processes;
            Ok(())
        })
    }
}

/// The job of a whole build.
pub(super) fn job(deployment: &Deployment) -> BuildJob {
    let order = &deployment.order;
    let settings = deployment.settings();
    let build = settings.build.env.iter().map(|(name, value)| (name.to_string(), value.clone()));
    let configuration = super::deploy::processes::configured(deployment).into_iter().chain(build).collect();
    BuildJob {
        steps: vec![BuildStep::Detect, BuildStep::Compile, BuildStep::Release],
        buildpacks: settings.buildpacks.clone(),
        configuration,
        environment: vec![
            (String::from("LARDER_PROJECT"), order.environment.project.to_string()),
            (String::from("LARDER_ENVIRONMENT"), order.environment.name.to_string()),
            (String::from("LARDER_MODE"), order.environment.mode.to_string()),
            (String::from("SOURCE_VERSION"), order.commit.to_string()),
            (String::from("REQUEST_ID"), order.id.to_string()),
        ],
        variables: Value::Object(deployment.facts.variables.clone()).to_string(),
        memory: settings.build.memory.map(|memory| memory.bytes()),
    }
}

/// Runs a job of the build's sandbox, its output in the transcript.
pub(super) async fn run(deployment: &Deployment, job: &BuildJob) -> Result<Built, Failure> {
    let environment = &deployment.order.environment;
    let (lines, copying) = output::channel(&deployment.transcript);
    let launcher = &deployment.services.launcher;
    let built = buildpack::build(launcher, environment.project_id, environment.id, job, lines, &deployment.cancelled).await;
    let _ = copying.await;
    built.map_err(|error| match error {
        BuildpackError::Cancelled => Failure::nobody("cancelled"),
        other => Failure { blame: other.blame(), why: other.why(), hints: other.hints() },
    })
}
