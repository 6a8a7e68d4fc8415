//! The idle slot, emptied and made ready for the release.

use super::processes;
use crate::{
    model::{Area, Phase},
    pipeline::{
        context::Deployment,
        drift,
        step::{Admission, Failure, Step, Work},
    },
    runtime::{Label, RunJob},
};

/// Empties the slot, decides what runs in it, and links the persistent paths.
pub struct Slot;

impl Step for Slot {
    fn name(&self) -> &'static str {
        "deploy.slot"
    }

    fn phase(&self) -> Phase {
        Phase::Deploy
    }

    fn about(&self) -> &'static str {
        "empty the idle slot and link the persistent paths to data/"
    }

    fn lasts(&self, deployment: &Deployment) -> bool {
        // A link may move a directory into data/.
        !deployment.settings().data.is_empty()
    }

    fn admission<'a>(&'a self, deployment: &'a Deployment) -> Admission<'a> {
        // Requests of the release before last may still be answered there.
        Box::pin(async { Ok(vec![Box::new(deployment.idle_slot.clone().lock_owned().await) as Box<dyn Send>]) })
    }

    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            empty(deployment).await?;
            deployment.facts.processes = processes::processes(deployment)?;
            deployment.facts.env = processes::environment(deployment);
            link(deployment).await?;
            drift::reapply(deployment).await
        })
    }

    fn undo<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            // Like the tree, it stays while `current` names it.
            deployment.is_not_current()?;
            let idle = deployment.idle_slot.clone();
            let _emptied = idle.lock().await;
            empty(deployment).await
        })
    }
}

/// Stops what runs in the slot and gives it a new layer.
pub async fn empty(deployment: &Deployment) -> Result<(), Failure> {
    let environment = deployment.order.environment.id;
    let slot = deployment.order.slot;
    let settings = deployment.settings();
    let grace = |label: &Label| (label.slot == slot).then(|| settings.stop_of(&label.process).grace.get());
    deployment.services.runtime.stop_each(environment, grace).await.map_err(|error| Failure::host(&error))?;
    // Whoever looks at it would keep what it had.
    let _unwatched = deployment.services.drift.hold(environment).await;
    deployment.services.drift.forget(environment, slot);
    let fresh = deployment.services.launcher.reset_area(environment, Area::Slot, None, Some(slot)).await;
    fresh.map_err(|error| Failure::host(&error))
}

/// Links the persistent paths.
pub async fn link(deployment: &Deployment) -> Result<(), Failure> {
    let links: Vec<_> = deployment.settings().data.iter().map(|path| path.to_string()).collect();
    if links.is_empty() {
        return Ok(());
    }
    let job = RunJob { links, ..processes::job(deployment) };
    let (exit, _) = processes::task(deployment, &job).await?;
    if exit.success() {
        Ok(())
    } else {
        Err(Failure::pusher("the persistent paths could not be linked").hint("look at `data:` in larder.yml"))
    }
}
