//! The step that makes the new release live.

use std::{collections::BTreeMap, fs, io, path::Path, sync::Arc, time::Duration};

use super::processes;
use crate::{
    git::{Expected, MoveRef, ReleaseRef},
    host::files::{self, durable},
    model::{Live, Phase, Slot, Strategy},
    pipeline::{
        context::{Deployment, Services},
        fault,
        step::{Failure, Step, Work},
        util::run_blocking,
    },
    proxy::RouteState,
};

/// The maximum time that an undo waits for requests in flight. The rest of the undo's own time limit remains for the changes of the links,
/// the ref and the route.
const UNDO_DRAIN: Duration = Duration::from_secs(120);

/// The step that points the links, the ref and the route to the new release. The ref moves in the same journalled step, because a
/// deploy branch must name the live commit.
pub struct Switch;

impl Step for Switch {
    fn name(&self) -> &'static str {
        "deploy.switch"
    }

    fn phase(&self) -> Phase {
        Phase::Deploy
    }

    fn about(&self) -> &'static str {
        "point `current`, the branch and the proxy's route at the new release"
    }

    fn interruptible(&self) -> bool {
        // A git process that is killed while it moves the branch leaves a lock file. The undo could then not restore the branch.
        false
    }

    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            let spec = &deployment.spec;
            let live = Live { release: spec.release, number: spec.number, commit: spec.commit.clone(), slot: spec.slot };
            links(deployment, Some(&live)).map_err(|error| Failure::host(&error))?;
            // The table of slots changes after the links, because the links decide what is live. The table changes before the
            // links are synced, because the same sync makes the table durable.
            let switched = deployment.memory.slots.change(|table| table.switch(spec.slot, spec.id));
            switched.map_err(|error| Failure::host(&error))?;
            fault::delay("deploy.switch").await;
            move_ref(deployment, Some(&live)).await?;
            // The sync follows the ref: on most file systems, the sync of the ref has already written the links, so this call
            // returns at once.
            sync(deployment).map_err(|error| Failure::host(&error))?;
            let addresses = addresses(deployment, spec.slot);
            let route = deployment.services.route(&deployment.environment);
            let state = route.state();
            let there = matches!(&state, RouteState::Live(target) if target.addresses() == addresses);
            if matches!(state, RouteState::Failed(_) | RouteState::Stopped) {
                deployment.memory.replaced_state = Some(state);
            }
            let retired = match addresses.is_empty() {
                // The web processes have no address, because they were lost with an earlier server. The recovery boots them next.
                true if processes::any_web(deployment) => None,
                true => route.set(RouteState::Stopped),
                false if there => None,
                false => route.switch(deployment.services.target(&deployment.environment, addresses)),
            };
            // If this step runs twice, the upstream that the first switch replaced has the requests to drain.
            deployment.memory.retired = deployment.memory.retired.take().or(retired);
            deployment.services.open_domains(&deployment.environment, &deployment.settings());
            Ok(())
        })
    }

    fn undo<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            let previous = deployment.spec.previous.clone();
            let route = deployment.services.route(&deployment.environment);
            let new = match (&previous, deployment.memory.retired.take()) {
                // Requests that the old release still answers continue.
                (_, Some(retired)) => route.switch(retired.restore()),
                // This undo failed before, and a later undo has started the old release since.
                (Some(_), None) if deployment.spec.strategy == Strategy::InPlace && is_put_back(deployment) => None,
                // The old release does not run. A later undo starts the old release.
                (Some(_), None) if deployment.spec.strategy == Strategy::InPlace => route.set(RouteState::Starting),
                (Some(live), None) => {
                    let addresses = addresses(deployment, live.slot);
                    let there = matches!(route.state(), RouteState::Live(target) if target.addresses() == addresses);
                    match addresses.is_empty() {
                        // All web processes were lost in a restart; the recovery boots them next.
                        true if matches!(route.state(), RouteState::Starting) => None,
                        // The release has no web process, or its web process did not start. The page that explains this is shown
                        // again.
                        true => route.set(deployment.memory.replaced_state.take().unwrap_or(RouteState::Stopped)),
                        false if there => None,
                        false => route.switch(deployment.services.target(&deployment.environment, addresses)),
                    }
                }
                (None, None) => route.set(RouteState::Empty),
            };
            let settings = previous.as_ref().map(|_| deployment.previous_settings());
            deployment.services.open_domains(&deployment.environment, &settings.unwrap_or_default());
            // The links are reverted first, and each change is reverted even if the revert of an earlier change fails. The next undos
            // remove the new tree, and the tree that `current` names must never be removed.
            let linked = links(deployment, previous.as_ref()).map_err(|error| Failure::host(&error));
            let (spec, old) = (&deployment.spec, previous.as_ref().map(|live| live.slot));
            deployment.memory.slots.note(|table| table.revert(spec.slot, spec.id, old));
            let moved = move_ref(deployment, previous.as_ref()).await;
            let synced = sync(deployment).map_err(|error| Failure::host(&error));
            if let Some(new) = new {
                // The new release finishes its requests in flight, because the next undo stops its processes.
                let report = new.drain(deployment.previous_settings().drain().get().min(UNDO_DRAIN)).await;
                if report.cut > 0 {
                    tracing::warn!(cut = report.cut, "requests of a reverted release cut at the drain limit");
                }
            }
            Failure::all([linked, moved, synced])
        })
    }
}

/// Returns true if the slot `in-place` has the old release again.
fn is_put_back(deployment: &Deployment) -> bool {
    let table = deployment.memory.slots.table();
    let occupant = table.get(Slot::InPlace).occupant();
    occupant.is_some_and(|occupant| occupant.deployment != deployment.spec.id)
}

fn addresses(deployment: &Deployment, slot: Slot) -> Vec<std::net::SocketAddr> {
    let instances = deployment.services.runtime.instances(deployment.environment.id, Some(slot));
    instances.iter().filter(|instance| instance.label.process.is_web()).filter_map(|instance| instance.address()).collect()
}

/// Writes the links `deploy/current` and `run`, and the file `metadata.yml`. If no release is live, removes the two links. Each write is
/// one atomic rename, which is durable after [`sync`].
fn links(deployment: &Deployment, live: Option<&Live>) -> io::Result<()> {
    let paths = &deployment.paths;
    match live {
        Some(live) => {
            link(&paths.current(), live.release.to_string().as_ref())?;
            let slot = Path::new("slots").join(live.slot.as_str());
            // The link names the tree of a directory workspace, and the directory of both layers of an overlay.
            link(&paths.run(), &if live.slot.is_directory() { slot.join("upper") } else { slot })?;
        }
        None => {
            unlink(&paths.current())?;
            unlink(&paths.run())?;
        }
    }
    let environment = &deployment.environment;
    let mut words = BTreeMap::from([
        ("project", environment.project.to_string()),
        ("environment", environment.name.to_string()),
        ("mode", environment.mode.to_string()),
    ]);
    if let Some(live) = live {
        words.insert("active_slot", live.slot.to_string());
        words.insert("release", live.release.to_string());
        words.insert("number", live.number.to_string());
        words.insert("commit", live.commit.to_string());
    }
    // The types allow only values that need no escaping in YAML.
    let text: String = words.iter().map(|(key, value)| format!("{key}: \"{value}\"\n")).collect();
    files::place_file(&paths.metadata(), text.as_bytes(), 0o644).map_err(io::Error::other)
}

/// Makes the links durable.
fn sync(deployment: &Deployment) -> io::Result<()> {
    run_blocking(|| {
        files::sync_dir(&deployment.paths.deploy()).map_err(io::Error::other)?;
        fs::File::open(deployment.paths.path()).and_then(durable::commit)
    })
}

fn link(path: &Path, target: &Path) -> io::Result<()> {
    if fs::read_link(path).is_ok_and(|now| now == target) {
        return Ok(());
    }
    files::place_symlink(path, target).map_err(io::Error::other)
}

fn unlink(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

async fn move_ref(deployment: &Deployment, live: Option<&Live>) -> Result<(), Failure> {
    let spec = &deployment.spec;
    let kept = |release| ReleaseRef { environment: deployment.environment.id, release };
    let keep = live.map(|live| (kept(live.release), live.commit.clone()));
    let undoing = !spec.again && live.is_none_or(|live| live.release != spec.release);
    let change = MoveRef {
        refname: spec.branch.full_ref(),
        expected: Expected::Anything,
        new: live.map(|live| live.commit.clone()),
        keep,
        forget: if undoing { vec![kept(spec.release)] } else { Vec::new() },
    };
    let services: &Arc<Services> = &deployment.services;
    services.repositories.move_ref(deployment.environment.project_id, change).await.map_err(|error| Failure::host(&error))
}
