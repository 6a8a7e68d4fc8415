//! The build in a checkout after a file of which the build is made was saved.

use tokio::sync::mpsc;

use crate::{
    buildpack::{self, BuildStep, BuildpackError, Built},
    model::{Phase, Slot},
    pipeline::{
        context::Deployment,
        core::Pipeline,
        failure::Failure,
        permits::Resource,
        phases::build::{failed, job},
    },
};

/// Builds in the checkout, with the scripts of the phases configure and build. The output becomes lines of the environment's logs. The build ends
/// when the deployment is cancelled.
pub(super) async fn run(pipeline: &Pipeline, deployment: &Deployment) -> Result<Built, Failure> {
    let (environment, cancelled) = (&deployment.environment, &deployment.memory.cancelled);
    let mut job = job(deployment)?;
    job.steps = vec![
        BuildStep::Script(Phase::Configure),
        BuildStep::Detect,
        BuildStep::Compile,
        BuildStep::Release,
        BuildStep::Inputs,
        BuildStep::Script(Phase::Build),
    ];
    let acquired = cancelled.run_until_cancelled(deployment.services.permits.acquire_quietly(Resource::Build)).await;
    let Some(permit) = acquired else { return Err(failed(BuildpackError::Cancelled)) };
    let _permit = permit.map_err(|error| Failure::host(&error))?;
    let (sender, mut lines) = mpsc::channel::<String>(256);
    let copy = async {
        while let Some(line) = lines.recv().await {
            pipeline.tell(environment, &deployment.transcript.redacted(&line));
        }
    };
    let launcher = &deployment.services.launcher;
    let checkout = Some(deployment.spec.release).filter(|_| deployment.spec.slot == Slot::InPlace);
    let building = buildpack::build(launcher, environment.project_id, environment.id, checkout, &job, sender, cancelled);
    let (built, ()) = tokio::join!(building, copy);
    built.map_err(|error| failed(error).redacted(|text| deployment.transcript.redacted(text)))
}
