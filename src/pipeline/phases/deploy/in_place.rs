//! The steps of the strategy in-place that stop the old release and start the new release.
//!
//! The plan stops the old release, takes a restore point, archives the tree of the slot, syncs the tree with the new release, starts the new
//! release, runs the upgrade command, and checks the result. Meanwhile visitors get the maintenance page: the hold of the route has the limit
//! zero. The rules of a hold apply (`hold.rs`): no request of a visitor reaches the new release before the commit point of the plan, so a
//! failure before the commit point restores the tree and the data exactly. `workspace.rs` has the steps for the tree.

use std::time::Duration;

use jiff::Timestamp;

use super::{boot, hold, slot, units, upgrade};
use crate::{
    model::{Phase, Slot},
    pipeline::{
        context::Deployment,
        live_app::Replaced,
        step::{Acquired, Step, Work},
    },
};

/// The step that shows the maintenance page and stops the old release. The undo restores the data and starts the old release again.
pub struct StopOld;

impl Step for StopOld {
    fn name(&self) -> &'static str {
        "deploy.stop"
    }

    fn phase(&self) -> Phase {
        Phase::Deploy
    }

    fn about(&self) -> &'static str {
        "show the maintenance page and stop the processes of the live release"
    }

    fn acquire<'a>(&'a self, deployment: &'a Deployment) -> Acquired<'a> {
        Box::pin(async {
            slot::drained(deployment).await;
            Ok(Vec::new())
        })
    }

    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            if deployment.facts.upgrade.is_none() {
                deployment.facts.upgrade = upgrade::decide(deployment).await?;
            }
            let table = deployment.memory.slots.table();
            let previous = deployment.spec.previous.clone();
            if deployment.facts.replaced.is_none() {
                let in_place = previous.as_ref().filter(|live| live.slot == Slot::InPlace);
                let occupant = in_place.and_then(|_| table.get(Slot::InPlace).occupant().cloned());
                deployment.facts.replaced = Some(Replaced { occupant, began: previous.as_ref().map(|_| Timestamp::now()) });
            }
            let Some(previous) = previous else { return units::stop(deployment).await };
            deployment.transcript.title(&format!("Replacing {} in place; visitors get the maintenance page", previous.number));
            hold::hold(deployment);
            let limit = deployment.previous_settings().drain().get();
            units::stop(deployment).await?;
            hold::stop_writers(deployment, &previous, limit).await
        })
    }

    fn undo_limit(&self) -> Duration {
        hold::RESTORE_TIMEOUT
    }

    fn undone_after(&self) -> &'static [&'static str] {
        // The old release must not start in the tree of the new release, and no process of the new release may write to the old data.
        &["deploy.archive", "deploy.sync", "deploy.start"]
    }

    fn undo<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            hold::restore_writers(deployment).await?;
            units::start_again(deployment).await;
            if let Some(held) = hold::release(deployment, false) {
                deployment.transcript.detail(&held);
            }
            Ok(())
        })
    }
}

/// The step that starts the web processes of the new release. `deploy.check` waits until the processes are healthy, after the upgrade.
pub struct StartNew;

impl Step for StartNew {
    fn name(&self) -> &'static str {
        "deploy.start"
    }

    fn phase(&self) -> Phase {
        Phase::Deploy
    }

    fn about(&self) -> &'static str {
        "start the web processes of the new release"
    }

    fn is_durable(&self, _: &Deployment) -> bool {
        false
    }

    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            boot::start_web(deployment).await?;
            units::start(deployment).await
        })
    }

    fn undo<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            units::stop(deployment).await?;
            boot::stop_reverted(deployment).await
        })
    }
}
