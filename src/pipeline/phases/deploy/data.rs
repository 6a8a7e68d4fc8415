//! The steps that return the data of a restore point together with the code, in a rollback with data. All of these steps do nothing in other
//! deployments.
//!
//! The data is written beside the live data while the old release serves, and exchanged with the live data by one rename while requests wait
//! and no process runs. The commit point of such a rollback is the last step of its plan: until then, every failure and every kill leaves the
//! old release with its data, because the undo exchanges the data again. After the commit point, the new release has the returned data.

use std::os::unix::fs::MetadataExt;

use super::{slot, upgrade};
use crate::{
    host::files,
    model::{Area, Phase},
    pipeline::{
        context::Deployment,
        drift, fault,
        live_app::DataReturn,
        step::{Failure, Step, Work, chain},
        util::run_blocking,
    },
};

/// The step that writes the data of the restore point beside the live data.
pub struct FillData;

impl Step for FillData {
    fn name(&self) -> &'static str {
        "deploy.fill"
    }

    fn phase(&self) -> Phase {
        Phase::Deploy
    }

    fn about(&self) -> &'static str {
        "write the data of the restore point beside the live data, in a rollback with data"
    }

    fn is_durable(&self, deployment: &Deployment) -> bool {
        deployment.spec.data.is_some()
    }

    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            let Some(point) = deployment.spec.data.clone() else { return Ok(()) };
            let live_app = deployment.memory.live_app.clone();
            // No restore point is removed, and no other restore uses the same directory, until the end of this deployment.
            live_app.lock().await;
            if let Some(obstacle) = live_app.obstacle() {
                return Err(Failure::blameless(format!("cannot exchange the data: {obstacle}")));
            }
            let inode = inode(deployment).map_err(|error| Failure::host(&error))?;
            let point = live_app.fill(point).await?;
            deployment.transcript.title(&format!("Going back with the data of restore point {point}"));
            deployment.facts.data_return = Some(DataReturn { point, inode });
            Ok(())
        })
    }

    fn undo<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            if deployment.spec.data.is_none() || is_exchanged(deployment) {
                return Ok(());
            }
            deployment.memory.live_app.lock().await;
            deployment.memory.live_app.clear().await;
            deployment.memory.live_app.unlock();
            Ok(())
        })
    }
}

/// The step that exchanges the live data with the data of the restore point.
pub struct ExchangeData;

impl Step for ExchangeData {
    fn name(&self) -> &'static str {
        "deploy.data"
    }

    fn phase(&self) -> Phase {
        Phase::Deploy
    }

    fn about(&self) -> &'static str {
        "exchange the live data with the data of the restore point, in a rollback with data"
    }

    fn is_durable(&self, deployment: &Deployment) -> bool {
        deployment.spec.data.is_some()
    }

    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            let Some(returned) = deployment.facts.data_return.clone() else { return Ok(()) };
            // This step may run twice.
            if !is_exchanged(deployment) {
                let live_app = deployment.memory.live_app.clone();
                let replaced = live_app.replace_databases(returned.point.clone(), deployment.spec.previous.clone()).await;
                upgrade::report_lost(deployment);
                replaced?;
                exchange(deployment)?;
            }
            let (release, slot) = (deployment.spec.release, deployment.spec.slot);
            deployment.memory.live_app.restore_custom(returned.point.clone(), release, slot).await?;
            fault::in_restore("exchanged");
            let fresh = deployment.facts.upgrade.as_ref().and_then(|upgrade| upgrade.point.clone()).unwrap_or_default();
            let text =
                format!("the data is that of restore point {}; the replaced data is restore point {fresh}", returned.point);
            deployment.transcript.detail(&text);
            // The paths were linked before the exchange. A path that the returned data does not have gets its first content.
            slot::link(deployment).await
        })
    }

    fn undo<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            // If only databases are replaced, the undo of `deploy.quiesce` restores the old data and databases from the fresh restore point.
            if deployment.facts.data_return.is_none() || !is_exchanged(deployment) {
                return Ok(());
            }
            let fresh = deployment.facts.upgrade.as_ref().and_then(|upgrade| upgrade.point.clone());
            let live_app = deployment.memory.live_app.clone();
            // This undo failed before, and the undo of `deploy.quiesce` has restored the old data since. Another exchange would make the
            // leftovers of that restore live.
            if fresh.as_ref().is_some_and(|fresh| live_app.has_restored(fresh)) {
                return Ok(());
            }
            if let Some(fresh) = &fresh {
                let replaced = live_app.replace_databases(fresh.clone(), deployment.spec.previous.clone()).await;
                upgrade::report_lost(deployment);
                replaced?;
            }
            match (exchange(deployment), fresh) {
                // The old files and databases are live again. The next undo restores only the files of `.larder/backup`, and starts the old
                // release. Its workers then write, so no repeated undo may restore the data once more.
                (Ok(()), Some(fresh)) => live_app.note_restored(fresh, deployment.spec.trigger.by().clone()),
                (Ok(()), None) => {}
                // The undo of `deploy.quiesce` then restores the old data from the fresh restore point.
                (Err(failure), _) => deployment.transcript.error(&failure.why),
            }
            Ok(())
        })
    }
}

/// Ends the commands of `larder run` in the slot of the old release. Such a command would otherwise continue to write to the replaced data,
/// which is deleted later. Changes made by hand in the slot are saved first.
pub async fn end_commands(deployment: &Deployment) -> Result<(), Failure> {
    let Some(previous) = &deployment.spec.previous else { return Ok(()) };
    drift::keep(deployment, previous, &deployment.previous_settings()).await;
    let environment = deployment.environment.id;
    deployment.services.drift.forget(environment, previous.slot);
    let reset = deployment.services.launcher.reset_area(environment, Area::Slot, None, Some(previous.slot)).await;
    reset.map_err(|error| Failure::host(&error))
}

fn exchange(deployment: &Deployment) -> Result<(), Failure> {
    let before = inode(deployment).ok();
    match run_blocking(|| files::exchange(&deployment.paths.data(), &deployment.paths.restoring())) {
        Ok(()) => Ok(()),
        Err(error) if inode(deployment).ok() == before => Err(Failure::host(&error)),
        // A power cut may revert the exchange. The live data is then the data from before the exchange, and is complete.
        Err(error) => {
            tracing::warn!(error = chain(&error), "cannot sync the exchange of the data to the disk");
            Ok(())
        }
    }
}

/// Returns true if the live data is not the directory that was live before this deployment.
fn is_exchanged(deployment: &Deployment) -> bool {
    let before = deployment.facts.data_return.as_ref().map(|returned| returned.inode);
    before.is_some_and(|before| inode(deployment).is_ok_and(|now| now != before))
}

fn inode(deployment: &Deployment) -> std::io::Result<u64> {
    std::fs::symlink_metadata(deployment.paths.data()).map(|found| found.ino())
}
