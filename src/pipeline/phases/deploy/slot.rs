//! The step that prepares the idle slot for the release: the step empties the slot and links the persistent paths.

use std::time::Duration;

use super::{processes, upgrade};
use crate::{
    model::{Area, Occupant, Phase, SlotUse},
    pipeline::{
        context::Deployment,
        drift, slots,
        space_wait::is_out_of_space,
        state_files::Postdeploy,
        step::{Acquired, Failure, Step, Work, seconds},
    },
    runtime::{DataJob, RunJob, SeedRemoval},
};

/// The time that a deployment waits for its slot before the transcript shows the wait.
const QUIET_WAIT: Duration = Duration::from_secs(1);

/// The time limit for the removal of seeded data. This limit is far below the time limit of an undo.
const UNSEED_TIMEOUT: Duration = Duration::from_secs(60);

/// The step that empties the slot, determines the processes that will run in the slot, and links the persistent paths.
pub struct PrepareSlot;

impl Step for PrepareSlot {
    fn name(&self) -> &'static str {
        "deploy.slot"
    }

    fn phase(&self) -> Phase {
        Phase::Deploy
    }

    fn about(&self) -> &'static str {
        "empty the idle slot, link the persistent paths to data/, and render the templates"
    }

    fn is_durable(&self, deployment: &Deployment) -> bool {
        // The first content of a new path is stored in data/.
        !deployment.settings().data.is_empty()
    }

    fn acquire<'a>(&'a self, deployment: &'a Deployment) -> Acquired<'a> {
        // The release before the live release may still answer requests in this slot.
        Box::pin(async {
            drained(deployment).await;
            Ok(Vec::new())
        })
    }

    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            empty(deployment).await?;
            let spec = &deployment.spec;
            let occupant = occupant(deployment);
            let filled = deployment.memory.slots.change(|table| table.fill(spec.slot, occupant));
            filled.map_err(|error| Failure::host(&error))?;
            deployment.facts.processes = processes::processes(deployment)?;
            deployment.facts.env = processes::environment(deployment);
            link(deployment).await?;
            drift::reapply(deployment).await
        })
    }

    fn undone_after(&self) -> &'static [&'static str] {
        // The restore point has the first content of new paths. A later restore would bring this content back.
        &["deploy.quiesce"]
    }

    fn undo<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            // While `current` names the release of this deployment, neither the slot nor the installed tree is removed.
            deployment.is_not_current()?;
            let spec = &deployment.spec;
            // If this step did not fill the slot, the draining release in the slot belongs to an earlier deployment.
            if matches!(deployment.memory.slots.table().get(spec.slot), SlotUse::Draining(old) if old.deployment != spec.id) {
                return Ok(());
            }
            let stopped =
                deployment.memory.slots.stop_reverted(&deployment.services.runtime, deployment.environment.id, spec.slot);
            stopped.await.map_err(|error| Failure::host(&error))?;
            unseed(deployment).await?;
            reset(deployment).await?;
            deployment.memory.slots.release(spec.slot, spec.id);
            Ok(())
        })
    }
}

/// Returns the release of this deployment as the occupant of its slot.
pub(in crate::pipeline) fn occupant(deployment: &Deployment) -> Occupant {
    let stop = slots::stop_limits(&deployment.settings());
    Occupant { deployment: deployment.spec.id, release: deployment.spec.release, stop }
}

/// Waits until an earlier release has left the slot.
pub(super) async fn drained(deployment: &Deployment) {
    let slot = deployment.spec.slot;
    let mut drained = std::pin::pin!(deployment.memory.slots.drained(slot));
    if tokio::time::timeout(QUIET_WAIT, drained.as_mut()).await.is_err() {
        deployment.transcript.detail(&format!("waiting until an earlier release has left the slot {slot}"));
        drained.await;
    }
}

/// Stops the processes and commands in the slot. An overlay slot gets a new layer; the directory of the slot `in-place` stays.
pub async fn empty(deployment: &Deployment) -> Result<(), Failure> {
    stop(deployment).await?;
    reset(deployment).await
}

async fn stop(deployment: &Deployment) -> Result<(), Failure> {
    let stopped = deployment.memory.slots.stop(&deployment.services.runtime, deployment.environment.id, deployment.spec.slot);
    stopped.await.map_err(|error| Failure::host(&error))
}

async fn reset(deployment: &Deployment) -> Result<(), Failure> {
    let (environment, slot) = (deployment.environment.id, deployment.spec.slot);
    // A drift scan at the same time would record the old content of the slot.
    let _unwatched = deployment.services.drift.hold(environment).await;
    deployment.services.drift.forget(environment, slot);
    let reset = deployment.services.launcher.reset_area(environment, Area::Slot, None, Some(slot)).await;
    reset.map_err(|error| Failure::host(&error))
}

/// Links the persistent paths to data/, and renders the templates of the release.
pub async fn link(deployment: &Deployment) -> Result<(), Failure> {
    link_paths(deployment).await?;
    let Some(templates) = deployment.templates()? else { return Ok(()) };
    let count = templates.files.len();
    let job = RunJob { templates: Some(templates), ..RunJob::default() };
    let ended = processes::task(deployment, &job).await?;
    if !ended.exit.success() {
        let target = deployment.environment.target();
        return Err(Failure::pusher(ended.cause.after("cannot render the templates")).hint(format!(
            "correct the template or the values; `larder config render {target}` shows the files of the live release"
        )));
    }
    deployment.transcript.detail(&format!("{count} {} rendered", if count == 1 { "template" } else { "templates" }));
    Ok(())
}

async fn link_paths(deployment: &Deployment) -> Result<(), Failure> {
    let paths: Vec<_> = deployment.settings().data.iter().map(|path| path.to_string()).collect();
    if paths.is_empty() {
        return Ok(());
    }
    let data = DataJob::Link { paths, deployment: deployment.spec.id };
    let job = RunJob { data: Some(data), ..RunJob::default() };
    let ended = processes::task(deployment, &job).await?;
    match ended.exit.success() {
        true => Ok(()),
        false => Err(Failure::pusher(ended.cause.after("cannot link the persistent paths")).hint("check `data:` in larder.yml")),
    }
}

/// Removes the content that this deployment created in data/. Changed content stays in two cases. If a release was live before, its
/// application may have changed the content for visitors. If the postdeploy script has run in this deployment, the content may be the work
/// of the script, which is not repeated. Returns an error only if the disk is full, so that the undo is repeated when there is space.
pub(in crate::pipeline) async fn unseed(deployment: &Deployment) -> Result<(), Failure> {
    if deployment.settings().data.is_empty() {
        return Ok(());
    }
    let id = deployment.spec.id;
    let postdeploy = Postdeploy::read(&deployment.paths.postdeploy());
    let ran_here = postdeploy.as_ref().map_or(true, |record| record.as_ref().is_some_and(|record| record.deployment == id));
    // The undo of an upgrade with a hold has restored the data from a restore point that has the content.
    let is_restored = upgrade::is_held(deployment) && !deployment.memory.committed;
    let removal = match deployment.spec.previous.is_none() && !ran_here {
        true => SeedRemoval::All,
        false if is_restored => SeedRemoval::Restored,
        false => SeedRemoval::Unchanged,
    };
    let data = DataJob::Unseed { deployment: id, removal };
    let job = RunJob { data: Some(data), ..RunJob::default() };
    // Another failure is only reported: data that stays does no harm, but a failed undo would freeze the environment.
    let late = || Err(Failure::blameless(format!("the removal took longer than {}", seconds(UNSEED_TIMEOUT))));
    let removed = tokio::time::timeout(UNSEED_TIMEOUT, processes::task(deployment, &job)).await.unwrap_or_else(|_| late());
    match removed.and_then(|ended| ended.success("removing seeded data").map(drop)) {
        Err(failure) if is_out_of_space(deployment, &failure) => return Err(failure),
        Ok(()) => {}
        Err(failure) => {
            deployment
                .transcript
                .error(&format!("cannot remove the content that this deployment created in data/: {}", failure.why));
            tracing::warn!(deployment = %id, why = failure.why, "seeded data stays");
        }
    }
    Ok(())
}
