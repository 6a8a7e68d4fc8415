//! The steps of the strategy in-place that replace the tree in the slot `in-place`. The tree is a [`Workspace::Directory`].
//!
//! `archives/run/<deployment>` has the tree of an earlier deployment: the replaced tree, which an unwinding moves back to the slot, and the
//! trees of failed deployments. Each move is one rename, so that a kill leaves every tree complete under one of its two names.
//!
//! [`Workspace::Directory`]: crate::model::Workspace::Directory

use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::{boot, processes, slot};
use crate::{
    model::{Area, DeploymentId, Outcome, Phase, Slot},
    pipeline::{
        context::Deployment,
        drift,
        journal::JournalState,
        phases::bundle,
        step::{Failure, Step, Work},
    },
    release::sync,
};

/// The number of trees of replaced releases in the archive. The next deployment begins with the newest of them.
const KEEP_REPLACED: usize = 1;

/// The number of trees of failed deployments in the archive.
const KEEP_FAILED: usize = 2;

/// The step that moves the tree of the old release to the archive. The undo moves the tree of the failed deployment to the archive, and the
/// tree of the old release back.
pub struct ArchiveTree;

impl Step for ArchiveTree {
    fn name(&self) -> &'static str {
        "deploy.archive"
    }

    fn phase(&self) -> Phase {
        Phase::Deploy
    }

    fn about(&self) -> &'static str {
        "move the tree of the old release to archives/run/"
    }

    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            end_processes(deployment).await?;
            // A tree that no release has left in the slot is not archived: the sync replaces its content.
            if let Some(old) = replaced(deployment)
                && !exists(&deployment.paths.archived_run(old))
            {
                move_run(deployment, None, Some(old)).await?;
            }
            // The sync changes less in the tree of an earlier release than in an empty tree.
            if !exists(&deployment.paths.slot(Slot::InPlace))
                && let Some(base) = archived(deployment).into_iter().rev().find(|id| is_base(deployment, *id))
            {
                move_run(deployment, Some(base), None).await?;
            }
            // Creates an empty tree if the slot has none.
            end_processes(deployment).await
        })
    }

    fn undo<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            deployment.is_not_current()?;
            let (id, old) = (deployment.spec.id, replaced(deployment));
            let slot = deployment.paths.slot(Slot::InPlace);
            // The tree of the old release is still in the slot, or is in the slot again.
            if old.is_some_and(|old| !exists(&deployment.paths.archived_run(old))) {
                return Ok(());
            }
            if exists(&slot) {
                boot::stop_reverted(deployment).await?;
                end_processes(deployment).await?;
                let kept = exists(&deployment.paths.archived_run(id));
                let name = if kept { DeploymentId::new(Timestamp::now()) } else { id };
                move_run(deployment, None, Some(name)).await?;
                if kept {
                    discard(deployment, name).await?;
                }
            }
            match old {
                Some(old) => move_run(deployment, Some(old), None).await,
                // Creates an empty tree.
                None => end_processes(deployment).await,
            }
        })
    }
}

/// The step that makes the tree in the slot equal to the release, and links the persistent paths.
pub struct SyncTree;

impl Step for SyncTree {
    fn name(&self) -> &'static str {
        "deploy.sync"
    }

    fn phase(&self) -> Phase {
        Phase::Deploy
    }

    fn about(&self) -> &'static str {
        "make the tree of the slot equal to the release and link the persistent paths to data/"
    }

    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            end_processes(deployment).await?;
            let occupant = slot::occupant(deployment);
            let replaced = deployment.memory.slots.change(|table| {
                table.replace(occupant);
                Ok::<_, crate::model::SlotError>(())
            });
            replaced.map_err(|error| Failure::host(&error))?;
            deployment.facts.processes = processes::processes(deployment)?;
            deployment.facts.env = processes::environment(deployment);
            let context = bundle::context(deployment);
            let policy = sync::SyncPolicy::default();
            let synced = sync::sync_directory(&context, deployment.spec.release, Slot::InPlace, policy).await;
            let report = synced.map_err(bundle::failure)?;
            deployment.transcript.detail(&format!(
                "synced the directory: {} of {} entries written, {} removed",
                report.changed, report.entries, report.deleted
            ));
            slot::link(deployment).await?;
            drift::reapply(deployment).await
        })
    }

    fn undo<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            deployment.is_not_current()?;
            boot::stop_reverted(deployment).await?;
            // The undo of `deploy.stop` restores the data from before the seed, but not after the commit point.
            let is_restored = deployment.facts.upgrade.as_ref().is_some_and(|upgrade| upgrade.point.is_some());
            if !is_restored || deployment.memory.committed {
                slot::unseed(deployment).await?;
            }
            let (id, old) =
                (deployment.spec.id, deployment.facts.replaced.as_ref().and_then(|replaced| replaced.occupant.clone()));
            deployment.memory.slots.note(|table| table.put_back(id, old));
            Ok(())
        })
    }
}

/// Returns the deployment whose tree is in the slot when this deployment begins.
fn replaced(deployment: &Deployment) -> Option<DeploymentId> {
    deployment.facts.replaced.as_ref()?.occupant.as_ref().map(|occupant| occupant.deployment)
}

fn exists(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok()
}

/// Ends the commands of `larder run` in the slot, and waits until no process uses the slot. Creates an empty tree if the slot has no tree.
async fn end_processes(deployment: &Deployment) -> Result<(), Failure> {
    let (environment, slot) = (deployment.environment.id, Slot::InPlace);
    let _unwatched = deployment.services.drift.hold(environment).await;
    deployment.services.drift.forget(environment, slot);
    let ended = deployment.services.launcher.reset_area(environment, Area::Slot, None, Some(slot)).await;
    ended.map_err(|error| Failure::host(&error))
}

/// Moves a tree together with the record of its last sync. A record that is lost only makes the next sync read more files.
async fn move_run(deployment: &Deployment, from: Option<DeploymentId>, to: Option<DeploymentId>) -> Result<(), Failure> {
    let moved = deployment.services.launcher.move_run(deployment.environment.id, from, to).await;
    moved.map_err(|error| Failure::host(&error))?;
    let record = |id: Option<DeploymentId>| match id {
        Some(id) => record(deployment, id),
        None => deployment.paths.sync_record(Slot::InPlace),
    };
    if let Err(error) = std::fs::rename(record(from), record(to))
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(%error, "cannot move the record of a sync");
    }
    Ok(())
}

/// Returns the path of the record of the last sync of a tree in the archive.
fn record(deployment: &Deployment, id: DeploymentId) -> PathBuf {
    deployment.paths.archived_runs().join(format!("{id}.sync"))
}

/// Returns the deployments whose trees are in the archive, oldest first.
fn archived(deployment: &Deployment) -> Vec<DeploymentId> {
    let entries = std::fs::read_dir(deployment.paths.archived_runs()).into_iter().flatten().flatten();
    let mut ids: Vec<DeploymentId> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    ids.sort();
    ids
}

/// Returns true if the tree of a deployment in the archive may become the tree of this deployment: its release went live, and is not the
/// release that this deployment replaces.
fn is_base(deployment: &Deployment, id: DeploymentId) -> bool {
    replaced(deployment) != Some(id) && went_live(deployment, id)
}

fn went_live(deployment: &Deployment, id: DeploymentId) -> bool {
    let state = JournalState::read(&deployment.paths.deployment(id)).ok();
    matches!(state.and_then(|state| state.ended), Some((_, Outcome::Live { .. })))
}

/// Deletes the trees in the archive beyond [`KEEP_REPLACED`] and [`KEEP_FAILED`], in the background. A failure is only logged.
pub async fn prune(deployment: &Deployment) {
    let (live, failed): (Vec<_>, Vec<_>) = archived(deployment).into_iter().rev().partition(|id| went_live(deployment, *id));
    for id in live.into_iter().skip(KEEP_REPLACED).chain(failed.into_iter().skip(KEEP_FAILED)) {
        if let Err(failure) = discard(deployment, id).await {
            tracing::warn!(deployment = %id, why = failure.why, "cannot delete an archived tree");
        }
    }
}

/// Deletes a tree in the archive, in the background.
async fn discard(deployment: &Deployment, name: DeploymentId) -> Result<(), Failure> {
    let environment = deployment.environment.id;
    let removed = deployment.services.launcher.reset_area(environment, Area::Archive, Some(name.into()), None).await;
    let _ = std::fs::remove_file(record(deployment, name));
    removed.map_err(|error| Failure::host(&error))
}
