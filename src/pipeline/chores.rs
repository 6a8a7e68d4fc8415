//! What is left to do after the verdict: retire the old slot, prune, pack. None of it can fail the deployment any more, all of it
//! may be done again, and what a dead server left undone the next one does.

use std::fs;

use tokio::sync::OwnedMutexGuard;

use super::{
    context::{Deployment, Services},
    drift, fault,
    history::History,
    journal::Story,
    lane::{Lane, TreeCopy},
    phases::{bundle, post_install},
    publish,
    state_files::Pins,
    step::chain,
};
use crate::{
    config::{Age, ByteSize},
    git::{Expected, MoveRef, ReleaseRef},
    host::{files, root::EnvironmentPaths},
    model::{Area, DeploymentId, Environment, Live, ReleaseId},
    proxy::Retired,
    release::{
        self,
        store::{Info, Keep, forget_deltas, prune_plan},
    },
    remote,
    runtime::Label,
};

/// A repository is packed after so many deployments.
const PACK_EVERY: u32 = 25;

/// What a pull has left for so long, nobody comes back to.
const ABANDONED: std::time::Duration = std::time::Duration::from_secs(7 * 24 * 3600);

/// Smaller trees are linked in less time than a spare one is looked through.
const WORTH_A_SPARE: u64 = 500;

/// Does the chores of a deployment that has ended. Of one that went live, `idle` keeps the idle slot to us until it is empty; the
/// lane need not wait for that.
pub(super) fn after(mut deployment: Deployment, lane: &Lane, idle: Option<OwnedMutexGuard<()>>) {
    let Some(live) = lane.state.lock().live.clone() else { return };
    let went_live = idle.is_some();
    if went_live {
        tokio::spawn(post_install::watch(&deployment));
    }
    let lane = lane.clone();
    tokio::spawn(async move {
        if went_live {
            let retired = deployment.retired.take();
            retire(&deployment, &live, retired).await;
            // What was changed since the deployment looked for it.
            if let (Some(old), Some(settings)) = (&deployment.order.previous, &deployment.before) {
                drift::keep(&deployment, old, settings).await;
            }
        }
        drop(idle);
        settle(&deployment, &lane, went_live.then_some(&live)).await;
    });
}

/// The file that says that chores of a deployment are left to do.
const DUE: &str = "due";

/// Says on the disk that a deployment has chores. A power cut may lose that; the next deployment has the same ones.
pub(super) fn are_due(deployment: &Deployment) {
    let note = deployment.paths.deployment(deployment.order.id).join(DUE);
    if let Err(error) = files::append(&note, 0o600) {
        tracing::warn!(%error, "should the server be killed now, the chores of this deployment are not taken up");
    }
}

/// Whether chores of a deployment are left to do.
pub(super) fn left(services: &Services, environment: &Environment, deployment: DeploymentId) -> bool {
    services.root.environment(&environment.project, &environment.name).deployment(deployment).join(DUE).exists()
}

/// Does what a dead server has left to do of the deployment that went live last. The old slot is empty by then.
pub(super) fn take_up(deployment: Deployment, lane: &Lane) {
    let Some(live) = lane.state.lock().live.clone() else { return };
    let lane = lane.clone();
    tokio::spawn(async move { settle(&deployment, &lane, Some(&live)).await });
}

/// What does not concern the slots. `live` is what this deployment has made live, if it has.
async fn settle(deployment: &Deployment, lane: &Lane, live: Option<&Live>) {
    if live.is_some() {
        complete(deployment).await;
    }
    remote::sweep(&deployment.paths, ABANDONED);
    prune(deployment, lane).await;
    let Some(live) = live else { return };
    if deployment.entries >= WORTH_A_SPARE {
        make_spare(deployment, lane, live).await;
    }
    // Last: it may take long, and what this server needs does not wait for others.
    publish::everywhere(deployment, live).await;
    let _ = fs::remove_file(deployment.paths.deployment(deployment.order.id).join(DUE));
}

/// Makes the archive of a release that came as a delta: then it needs nothing but itself, here and wherever it goes next.
async fn complete(deployment: &Deployment) {
    let release = deployment.order.release;
    if !deployment.paths.delta(release).is_file() {
        return;
    }
    if let Err(error) = release::rebuild(&bundle::context(deployment), release).await {
        tracing::warn!(%release, error = chain(&error), "the archive could not be made again; the release stays as its delta");
    }
}

/// Stops what is not live. Workers end at once, because two releases must not work side by side for long; web processes first
/// answer what they have begun.
async fn retire(deployment: &Deployment, live: &Live, retired: Option<Retired>) {
    let settings = deployment.settings();
    let environment = deployment.order.environment.id;
    let runtime = &deployment.services.runtime;
    let old = |label: &Label| label.slot != live.slot;
    let grace = |label: &Label| old(label).then(|| settings.stop_of(&label.process).grace.get());
    let workers = runtime.stop_each(environment, |label| grace(label).filter(|_| !label.process.is_web())).await;
    if let Some(retired) = retired {
        let report = retired.drain(settings.drain.get()).await;
        if report.cut > 0 {
            tracing::warn!(cut = report.cut, "requests of the old release were still running at the drain limit");
        }
    }
    let rest = runtime.stop_each(environment, grace).await;
    for error in [workers.err(), rest.err()].into_iter().flatten() {
        tracing::error!(error = chain(&error), "the old release could not be stopped");
    }
}

/// The file that names the spare tree.
fn spare_note(paths: &EnvironmentPaths) -> std::path::PathBuf {
    paths.deploy().join(".spare")
}

/// Makes the tree that the next installation begins with. Nothing is lost where that fails.
async fn make_spare(deployment: &Deployment, lane: &Lane, live: &Live) {
    // One at a time, because the note has room for one. What becomes outdated meanwhile, the next installation throws away.
    let Ok(_making) = lane.spare.making.try_lock() else { return };
    if lane.spare.take().is_some() {
        remove_spare(&deployment.services, &lane.environment).await;
    }
    let (name, of) = (ReleaseId::new(jiff::Timestamp::now()), live.release);
    let made = async {
        files::place_file(&spare_note(&deployment.paths), name.to_string().as_bytes(), 0o640).map_err(|e| chain(&e))?;
        let made = release::spare(&bundle::context(deployment), name, of).await.map_err(|e| chain(&e))?;
        made.report.seal.ok_or_else(|| "its worker gave it no seal".to_owned())
    };
    match made.await {
        Ok(seal) => lane.spare.put(TreeCopy { name, of, seal }),
        Err(why) => {
            tracing::warn!(why, "no spare tree could be made");
            remove_spare(&deployment.services, &lane.environment).await;
        }
    }
}

/// Removes the spare tree that `deploy/.spare` names: nobody knows how far a dead server got with it.
pub(super) async fn remove_spare(services: &Services, environment: &Environment) {
    let note = spare_note(&services.root.environment(&environment.project, &environment.name));
    let Some(name) = fs::read_to_string(&note).ok().and_then(|name| name.parse::<ReleaseId>().ok()) else { return };
    if let Err(error) = services.launcher.reset_area(environment.id, Area::Tree, Some(name), None).await {
        tracing::warn!(error = chain(&error), "a spare tree could not be removed");
        return;
    }
    let _ = fs::remove_file(note);
}

/// Removes old releases and records. The live release and its predecessor are never pruned, and failed ones do not count.
async fn prune(deployment: &Deployment, lane: &Lane) {
    let services = &deployment.services;
    fault::delay("chores.prune").await;
    // Nobody may make up his mind for a release that is being removed.
    let settled = lane.store.lock().await;
    // Only now: other deployments may have ended since this one did.
    let (live, history) = {
        let state = lane.state.lock();
        (state.live.clone(), state.history.clone())
    };
    let Some(live) = live else { return };
    let previous = history.releases().rev().map(|summary| summary.release).find(|release| *release != live.release);
    let pinned = match Pins::read(&deployment.paths.pins()) {
        Ok(pins) => pins.releases(),
        Err(error) => {
            tracing::error!(%error, "nothing is pruned, because the pins cannot be read");
            return;
        }
    };
    // What is live says what stays: not a recipe that failed or was only tried, and not its absence.
    let made = history.of_release(live.release).map(|summary| Story::read(&deployment.paths.deployment(summary.deployment)));
    let settings = match made {
        Some(Ok(story)) => story.facts.settings.unwrap_or_default(),
        Some(Err(error)) => {
            tracing::error!(error = chain(&error), "nothing is pruned, because the record of what is live cannot be read");
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
    let doomed = prune_plan(&prunable(deployment, lane, &history, &live), Some(live.release), previous, &pinned, &keep);
    let mut forget = Vec::new();
    for release in doomed {
        let environment = deployment.order.environment.id;
        if let Err(error) = services.launcher.reset_area(environment, Area::Tree, Some(release), None).await {
            tracing::error!(%release, error = chain(&error), "an old release could not be removed");
            continue;
        }
        let paths = &deployment.paths;
        // The manifest first: it is what makes a release exist.
        let [manifest, index, archive] = [paths.manifest(release), paths.index(release), paths.archive(release)];
        for file in [manifest, index, archive, paths.health(release), paths.ran(release)] {
            if let Err(error) = fs::remove_file(&file)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::error!(file = %file.display(), %error, "an old archive could not be removed");
            }
        }
        if let Err(error) = forget_deltas(&deployment.paths, release) {
            tracing::error!(%release, error = chain(&error), "deltas of an old release could not be removed");
        }
        forget.push(ReleaseRef { environment, release });
    }
    drop(settled);
    // No branch is named here: where the deploy branch stands is the business of deployments.
    if let Some((first, rest)) = forget.split_first() {
        let change =
            MoveRef { refname: first.refname(), expected: Expected::Anything, new: None, keep: None, forget: rest.to_vec() };
        if let Err(error) = services.repositories.move_ref(deployment.order.environment.project_id, change).await {
            tracing::warn!(error = chain(&error), "objects of old releases stay in the repository");
        }
    }
    prune_records(&deployment.paths, lane, &history, services.config.keep.deployments as usize);
    if deployment.order.number.0.is_multiple_of(PACK_EVERY)
        && let Err(error) = services.repositories.gc(deployment.order.environment.project_id).await
    {
        tracing::warn!(error = chain(&error), "the repository could not be packed");
    }
}

/// Something that was brought here is left alone for so long; somebody may be about to deploy it.
const FRESH: std::time::Duration = std::time::Duration::from_secs(3600);

/// The releases that retention looks at: those that went live, and older ones that were brought here and lie unused. What is
/// newer than the live one may be about to become it.
fn prunable(deployment: &Deployment, lane: &Lane, history: &History, live: &Live) -> Vec<Info> {
    let paths = &deployment.paths;
    let size = |release| fs::metadata(paths.archive(release)).map_or(0, |found| found.len());
    let making = lane.state.lock().making;
    let tried: std::collections::HashSet<_> = history.deployments.iter().map(|summary| summary.release).chain(making).collect();
    let unused = |release: &ReleaseId| {
        let brought = fs::metadata(paths.manifest(*release)).and_then(|found| found.modified());
        let fresh = brought.is_ok_and(|at| at.elapsed().is_ok_and(|age| age < FRESH));
        !tried.contains(release) && *release < live.release && !fresh
    };
    let stored = release::store::list(&paths.releases()).unwrap_or_default();
    // One that is made live a second time counts once.
    let all: std::collections::BTreeSet<_> =
        history.releases().map(|summary| summary.release).chain(stored.into_iter().filter(unused)).collect();
    let all = all.into_iter().filter(|release| Some(*release) != making);
    all.map(|id| Info { id, good: true, bytes: size(id) }).filter(|info| on_disk(paths, info.id)).collect()
}

fn on_disk(paths: &EnvironmentPaths, release: ReleaseId) -> bool {
    paths.manifest(release).exists() || paths.archive(release).exists() || paths.tree(release).exists()
}

fn prune_records(paths: &EnvironmentPaths, lane: &Lane, history: &History, keep: usize) {
    let kept: Vec<_> = history.releases().map(|summary| summary.release).filter(|release| on_disk(paths, *release)).collect();
    let gone: Vec<_> = history
        .prunable(keep, &kept)
        .into_iter()
        .filter(|deployment| fs::remove_dir_all(paths.deployment(*deployment)).is_ok())
        .collect();
    lane.state.lock().history.deployments.retain(|summary| !gone.contains(&summary.deployment));
}
