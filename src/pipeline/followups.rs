//! Follow-ups: the work after the verdict. For example, the old slot is drained and stopped, old releases and records are pruned, the
//! release is published, and the repository is packed. A follow-up cannot fail the deployment and may run twice. If the server is killed,
//! the next server continues the follow-ups.

use std::fs;

use super::{
    context::{Deployment, Services},
    core::Pipeline,
    drift, fault,
    history::{History, Summary},
    journal::JournalState,
    phases::{
        bundle,
        deploy::{install, workspace},
        post_install,
    },
    publish,
    queue::Queue,
    spare::TreeCopy,
    state_files::Pins,
    util::{chain, run_blocking},
};
use crate::{
    config::{Age, ByteSize},
    git::{Expected, MoveRef, ReleaseRef, RepositoryId},
    host::{files, root::EnvironmentPaths},
    model::{Area, DeploymentId, Environment, Live, ReleaseId, Slot},
    proxy::Retired,
    release::{self, Keep, ReleaseSummary, prune_plan, store::forget_deltas},
    remote,
};

/// The number of releases of an environment after which the repository of the project is packed.
const PACK_EVERY: u32 = 25;

/// The age at which the partial files of an interrupted pull are removed.
const ABANDONED: std::time::Duration = std::time::Duration::from_secs(7 * 24 * 3600);

/// The minimum number of entries of a tree for which a spare tree is made. A smaller tree is linked in less time than a spare
/// tree is checked.
const WORTH_A_SPARE: u64 = 500;

/// The file that marks a deployment with unfinished follow-ups. larder 0.1 wrote the file only for deployments that went live.
const DUE: &str = "due";

/// Marks a deployment as having follow-ups. A power failure may lose the mark. The next deployment then repeats the pruning, but not the
/// publishing of this deployment's release.
pub(super) fn are_due(deployment: &Deployment) {
    let note = deployment.paths.deployment(deployment.spec.id).join(DUE);
    if let Err(error) = files::append(&note, 0o600) {
        tracing::warn!(%error, "the follow-ups of this deployment are lost if the server is killed now");
    }
}

/// Returns true if a deployment has unfinished follow-ups.
pub(super) fn are_left(services: &Services, environment: &Environment, deployment: DeploymentId) -> bool {
    services.root.environment(&environment.project, &environment.name).deployment(deployment).join(DUE).exists()
}

impl Pipeline {
    /// Starts the follow-ups of a deployment that has ended. `live` is the release that the deployment made live, if any. If a
    /// release went live, a follow-up makes the draining slot idle; the queue does not wait for this follow-up.
    pub(super) fn follow_up(&self, queue: &Queue, mut deployment: Deployment, live: Option<Live>) {
        if live.is_some() {
            tokio::spawn(post_install::watch(&deployment));
        }
        let (this, queue) = (self.clone(), queue.clone());
        tokio::spawn(async move {
            if live.is_some() {
                let retired = deployment.memory.retired.take();
                empty_draining_slot(&this.0.services, &queue, Some(&deployment), retired).await;
            }
            this.settle(&deployment, &queue, live.as_ref()).await;
        });
    }

    /// Starts the follow-ups that earlier servers did not finish, and empties the draining slot.
    pub(super) fn take_up_followups(&self, queue: &Queue) {
        let (live, history) = queue.snapshot();
        let environment = queue.environment();
        let is_due = |summary: &&Summary| summary.ended.is_some() && are_left(self.services(), &environment, summary.deployment);
        let due: Vec<_> = history.deployments.iter().filter(is_due).map(|summary| summary.deployment).collect();
        let draining = queue.slots.table().draining().is_some() && !queue.slots.are_unknown();
        if due.is_empty() && !draining {
            return;
        }
        let made = live.as_ref().and_then(|live| history.of_release(live.release).filter(|made| made.number == live.number));
        let made = made.map(|made| made.deployment);
        let (this, queue) = (self.clone(), queue.clone());
        tokio::spawn(async move {
            let reopen = |id| match this.reopen(&queue, id) {
                Ok((deployment, _)) => Some(deployment),
                Err(error) => {
                    tracing::warn!(error = chain(&error), "cannot continue the follow-ups of a deployment");
                    None
                }
            };
            // Each call empties one slot. If no release is live, both slots may be draining.
            for _ in Slot::ALL.into_iter().filter(|_| draining) {
                empty_draining_slot(&this.0.services, &queue, made.and_then(reopen).as_ref(), None).await;
            }
            for deployment in due.into_iter().filter_map(reopen) {
                let live = live.as_ref().filter(|_| made == Some(deployment.spec.id));
                this.settle(&deployment, &queue, live).await;
            }
        });
    }

    /// Runs the follow-ups that do not concern the slots. `live` is the release that this deployment made live, if any.
    async fn settle(&self, deployment: &Deployment, queue: &Queue, live: Option<&Live>) {
        if live.is_some() {
            complete(deployment).await;
        }
        if deployment.spec.data.is_some() {
            self.discard_replaced(queue).await;
        }
        self.settle_copies(queue);
        remote::sweep(&deployment.paths, ABANDONED);
        prune(deployment, queue).await;
        workspace::prune(deployment).await;
        if let Some(live) = live {
            // The times are renewed before the spare tree is made, because a rollback to the predecessor waits for the renewal. An
            // installation without a spare tree only takes longer.
            renew_predecessor(deployment, live).await;
            if deployment.memory.entries >= WORTH_A_SPARE {
                make_spare(deployment, queue, live).await;
            }
            // Publishing is last: it may take long, and local follow-ups must not wait for remotes.
            publish::everywhere(deployment, live, self.health_record(deployment)).await;
        }
        let _ = fs::remove_file(deployment.paths.deployment(deployment.spec.id).join(DUE));
    }

    /// Returns the signed health record of a release for remotes; `None` if the environment publishes to no remote, or if the release has
    /// no health record.
    fn health_record(&self, deployment: &Deployment) -> Option<Vec<u8>> {
        let environment = &deployment.environment;
        let published = environment.remotes.iter().any(|remote| remote.publish);
        let record = published.then(|| run_blocking(|| self.health(environment, deployment.spec.release)))??;
        serde_json::to_vec(&record).ok()
    }
}

/// Renews the modification times of the files in the tree of the live release's predecessor. The predecessor is the most likely target of a
/// rollback, and such a rollback then does not wait for this work.
async fn renew_predecessor(deployment: &Deployment, live: &Live) {
    let predecessor = deployment.previous_release().filter(|release| deployment.paths.tree(*release).is_dir());
    if let Some(predecessor) = predecessor {
        install::renew_times(deployment, predecessor, live.release).await;
    }
}

/// Rebuilds the archive of a release that arrived as a delta, so that the release no longer depends on the delta's base.
async fn complete(deployment: &Deployment) {
    let release = deployment.spec.release;
    if !deployment.paths.delta(release).is_file() {
        return;
    }
    if let Err(error) = release::rebuild(&bundle::context(deployment), release).await {
        tracing::warn!(%release, error = chain(&error), "cannot rebuild the archive of a release that arrived as a delta; the delta stays");
    }
}

/// Empties the draining slot and makes the slot idle, with the time limits of the slot's own release. `successor` is the
/// deployment that replaced this release. Processes other than web processes are stopped at once, because such processes of two
/// releases must not run side by side for long. Web processes first answer their open requests. Changes by hand since the
/// successor's scan for drift are saved before the slot becomes idle.
async fn empty_draining_slot(services: &Services, queue: &Queue, successor: Option<&Deployment>, retired: Option<Retired>) {
    let table = queue.slots.table();
    let Some((slot, occupant)) = table.draining() else { return };
    let runtime = &services.runtime;
    let grace = queue.slots.grace_in(slot);
    let workers = runtime.stop_each(queue.id, |label| grace(label).filter(|_| !label.process.is_web())).await;
    if let Some(retired) = retired {
        let report = retired.drain(occupant.stop.drain()).await;
        if report.cut > 0 {
            tracing::warn!(cut = report.cut, "requests of the old release were cut at the drain limit");
        }
    }
    let rest = runtime.stop_each(queue.id, grace).await;
    for error in [workers.err(), rest.err()].into_iter().flatten() {
        tracing::error!(error = chain(&error), "cannot stop the old release");
    }
    if let Some(deployment) = successor
        && let (Some(old), Some(settings)) = (&deployment.spec.previous, &deployment.memory.previous_settings)
        && old.release == occupant.release
    {
        drift::keep(deployment, old, settings).await;
        fault::in_followups("kept");
    }
    queue.slots.release(slot, occupant.deployment);
}

/// Returns the path of the file that names the spare tree.
fn spare_note(paths: &EnvironmentPaths) -> std::path::PathBuf {
    paths.deploy().join(".spare")
}

/// Makes the spare tree from which the next installation starts. If this fails, the next installation only takes longer.
async fn make_spare(deployment: &Deployment, queue: &Queue, live: &Live) {
    // Only one spare tree is made at a time, because `deploy/.spare` names only one tree. The next installation discards an outdated spare
    // tree.
    let Ok(_in_progress) = queue.spare.in_progress.try_lock() else { return };
    if queue.spare.take().is_some() {
        remove_spare(&deployment.services, &deployment.environment).await;
    }
    let (name, of) = (ReleaseId::new(jiff::Timestamp::now()), live.release);
    let made = async {
        files::place_file(&spare_note(&deployment.paths), name.to_string().as_bytes(), 0o640).map_err(|e| chain(&e))?;
        let made = release::spare(&bundle::context(deployment), name, of).await.map_err(|e| chain(&e))?;
        made.report.fingerprint.ok_or_else(|| "the worker returned no fingerprint".to_owned())
    };
    match made.await {
        Ok(seal) => queue.spare.put(TreeCopy { name, of, seal }),
        Err(why) => {
            tracing::warn!(why, "cannot make a spare tree");
            remove_spare(&deployment.services, &deployment.environment).await;
        }
    }
}

/// Removes the spare tree that `deploy/.spare` names. The tree may be incomplete, because an earlier server may have been killed.
pub(super) async fn remove_spare(services: &Services, environment: &Environment) {
    let note = spare_note(&services.root.environment(&environment.project, &environment.name));
    let Some(name) = fs::read_to_string(&note).ok().and_then(|name| name.parse::<ReleaseId>().ok()) else { return };
    if let Err(error) = services.launcher.reset_area(environment.id, Area::Tree, Some(name), None).await {
        tracing::warn!(error = chain(&error), "cannot remove a spare tree");
        return;
    }
    let _ = fs::remove_file(note);
}

/// Removes old releases and records, and packs the repository after every `PACK_EVERY` releases. The live release and its predecessor are
/// never pruned. Failed releases do not count towards the limits.
async fn prune(deployment: &Deployment, queue: &Queue) {
    let services = &deployment.services;
    fault::delay("followups.prune").await;
    // No request may choose a release that is being removed.
    let settled = queue.store.lock().await;
    // The history is read after the lock is acquired, because other deployments may have ended since this deployment ended.
    let (live, history) = queue.snapshot();
    let Some(live) = live else {
        // No release is live, so no release is pruned. The records of failed attempts are pruned.
        return prune_records(deployment, queue, &history);
    };
    let previous = history.releases().rev().map(|summary| summary.release).find(|release| *release != live.release);
    let pinned = match Pins::read(&deployment.paths.pins()) {
        Ok(pins) => pins.releases(),
        Err(error) => {
            tracing::error!(%error, "cannot read the pins; no release is pruned");
            return;
        }
    };
    // The limits come from the recipe of the live release. The recipe of a failed deployment or of a dry run must not remove
    // releases.
    let made =
        history.of_release(live.release).map(|summary| JournalState::read(&deployment.paths.deployment(summary.deployment)));
    let settings = match made {
        Some(Ok(state)) => state.facts.settings.unwrap_or_default(),
        Some(Err(error)) => {
            tracing::error!(error = chain(&error), "cannot read the journal of the live release; no release is pruned");
            return;
        }
        None => return,
    };
    let retention = settings.retention(&services.config);
    let keep = Keep {
        releases: retention.releases.into(),
        age: retention.age.map(Age::get),
        bytes: retention.bytes.map(ByteSize::bytes),
        now: jiff::Timestamp::now(),
    };
    let mut doomed = prune_plan(&prunable(deployment, queue, &history, &live), Some(live.release), previous, &pinned, &keep);
    // The refs are removed first: after the files of a release are removed, no later pruning finds the release, and its ref would
    // stay. `forget` names no branch, because only deployments move the deploy branch.
    let environment = deployment.environment.id;
    let forget: Vec<_> = doomed.iter().map(|release| ReleaseRef { environment, release: *release }).collect();
    if let Some((first, rest)) = forget.split_first() {
        let change =
            MoveRef { refname: first.refname(), expected: Expected::Anything, new: None, keep: None, forget: rest.to_vec() };
        if let Err(error) = services.repositories.move_ref(deployment.environment.project_id, change).await {
            tracing::warn!(error = chain(&error), "cannot remove the refs of old releases; no release is pruned");
            doomed.clear();
        }
    }
    if !doomed.is_empty() {
        fault::in_followups("refs-pruned");
    }
    for release in doomed {
        if let Err(error) = services.launcher.reset_area(environment, Area::Tree, Some(release), None).await {
            tracing::error!(%release, error = chain(&error), "cannot remove an old release");
            continue;
        }
        let paths = &deployment.paths;
        // The manifest is removed first, because a release without a manifest does not count as stored.
        let [manifest, index, archive] = [paths.manifest(release), paths.index(release), paths.archive(release)];
        for file in [manifest, index, archive, paths.health(release), paths.ran(release)] {
            if let Err(error) = fs::remove_file(&file)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::error!(file = %file.display(), %error, "cannot remove a file of an old release");
            }
        }
        fault::in_followups("files-pruned");
        if let Err(error) = forget_deltas(&deployment.paths, release) {
            tracing::error!(%release, error = chain(&error), "cannot remove deltas of an old release");
        }
    }
    drop(settled);
    prune_records(deployment, queue, &history);
    if deployment.spec.number.0.is_multiple_of(PACK_EVERY)
        && let Err(error) = services.repositories.gc(deployment.environment.project_id).await
    {
        tracing::warn!(error = chain(&error), "cannot pack the repository");
    }
    if deployment.spec.number.0.is_multiple_of(PACK_EVERY)
        && deployment.spec.pillar.is_some()
        && let Err(error) = services.repositories.gc(RepositoryId::pillar(deployment.environment.project_id)).await
    {
        tracing::warn!(error = chain(&error), "cannot pack the pillar");
    }
}

/// The age up to which a release from another environment or server is never pruned, because a deployment of this release may
/// follow.
const FRESH: std::time::Duration = std::time::Duration::from_secs(3600);

/// Returns the releases that retention considers: releases that went live, and unused releases from other environments or servers
/// that are older than the live release. A newer unused release may be about to go live.
fn prunable(deployment: &Deployment, queue: &Queue, history: &History, live: &Live) -> Vec<ReleaseSummary> {
    let paths = &deployment.paths;
    let size = |release| fs::metadata(paths.archive(release)).map_or(0, |found| found.len());
    let in_progress = queue.state.lock().in_progress;
    let tried: std::collections::HashSet<_> =
        history.deployments.iter().map(|summary| summary.release).chain(in_progress).collect();
    let unused = |release: &ReleaseId| {
        let brought = fs::metadata(paths.manifest(*release)).and_then(|found| found.modified());
        let fresh = brought.is_ok_and(|at| at.elapsed().is_ok_and(|age| age < FRESH));
        !tried.contains(release) && *release < live.release && !fresh
    };
    let stored = release::store::list(&paths.releases()).unwrap_or_default();
    // A release that went live twice counts once.
    let all: std::collections::BTreeSet<_> =
        history.releases().map(|summary| summary.release).chain(stored.into_iter().filter(unused)).collect();
    let all = all.into_iter().filter(|release| Some(*release) != in_progress);
    // A release that never went live here does not displace a release that did.
    let went_live: std::collections::BTreeSet<_> = history.releases().map(|summary| summary.release).collect();
    let info = |id| ReleaseSummary { id, good: went_live.contains(&id), bytes: size(id) };
    all.map(info).filter(|info| on_disk(paths, info.id)).collect()
}

fn on_disk(paths: &EnvironmentPaths, release: ReleaseId) -> bool {
    paths.manifest(release).exists() || paths.archive(release).exists() || paths.tree(release).exists()
}

/// Removes the records of old deployments, and the configuration snapshots that only old deployments used.
fn prune_records(deployment: &Deployment, queue: &Queue, history: &History) {
    let (services, paths) = (&deployment.services, &deployment.paths);
    let keep = services.config.keep.deployments as usize;
    let kept: Vec<_> = history.releases().map(|summary| summary.release).filter(|release| on_disk(paths, *release)).collect();
    let gone: Vec<_> = history
        .prunable(keep, &kept)
        .into_iter()
        .filter(|deployment| fs::remove_dir_all(paths.deployment(*deployment)).is_ok())
        .collect();
    let (oldest, used) = {
        let deployments = &mut queue.state.lock().history.deployments;
        deployments.retain(|summary| !gone.contains(&summary.deployment));
        let number = |summary: &Summary| summary.configuration.map(|snapshot| snapshot.number);
        let oldest = deployments.iter().rev().take(keep).filter_map(number).min();
        (oldest, deployments.iter().filter_map(number).collect())
    };
    if let Some(oldest) = oldest
        && let Err(error) = services.snapshots.prune(&paths.configuration(), oldest, &used)
    {
        tracing::warn!(error = chain(&error), "cannot remove old configurations");
    }
}
