//! The step that checks the disk before large files are written.

use std::path::Path;

use crate::{
    config::Safety,
    host::files::{self, FreeSpace},
    model::{Blame, Origin, Phase},
    pipeline::{
        context::Deployment,
        phases::deploy::units,
        step::{Failure, Step, Work},
    },
    space::SpaceNeeds,
};

/// The minimum number of free inodes for a deployment.
const MIN_INODES: u64 = 10_000;

/// The hint for a full disk.
const HINT: &str = "ask the server's operator to free space, keep fewer releases, or lower `limits: {disk_reserve: ...}`";

/// The hint for a project whose own file system or quota has no space.
const OWN_HINT: &str =
    "`larder disk` shows what uses the space; remove files, or ask an administrator to run `larder project enlarge`";

/// The space that must stay free in a project's own file system or quota, in bytes. A restore point needs the same reserve.
const STORAGE_RESERVE: u64 = 64 << 20;

/// The step that checks the disk before large files are written.
pub struct Checks;

impl Step for Checks {
    fn name(&self) -> &'static str {
        "pre_install.checks"
    }

    fn phase(&self) -> Phase {
        Phase::PreInstall
    }

    fn about(&self) -> &'static str {
        "check that the disk has space for a build, an archive and a release"
    }

    fn is_durable(&self, _: &Deployment) -> bool {
        false
    }

    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            units::check(deployment)?;
            let path = deployment.paths.path();
            let mut free = files::free_space(path).map_err(|error| Failure::host(&error))?;
            let mut reserve = deployment.services.config.limits.disk_reserve.bytes();
            let needs = needs(deployment).await?;
            let live_app = &deployment.memory.live_app;
            let storage = live_app.storage();
            if let Some(kind) = storage {
                if !kind.is_file_system() {
                    // `free` is the rest of the quota. The file system that the projects share can have less.
                    let shared = path.parent().and_then(Path::parent).unwrap_or(path);
                    let disk = files::free_space(shared).map_err(|error| Failure::host(&error))?;
                    ensure_fits(&needs, disk, reserve, false)?;
                }
                // The reserve for larder and for other projects is not part of the project's space.
                reserve = reserve.min(STORAGE_RESERVE);
                let missing = needs.missing(free, reserve);
                if missing > 0
                    && let Some(note) = live_app.enlarge(missing).await?
                {
                    deployment.transcript.title(&note);
                    free = files::free_space(path).map_err(|error| Failure::host(&error))?;
                }
            }
            ensure_fits(&needs, free, reserve, storage.is_some())?;
            // The rollback of a project at its limit, and a change of its configuration, need little space, and may be the remedy.
            if !matches!(deployment.spec.origin, Origin::Previous | Origin::Configuration)
                && let Some(note) = deployment.memory.live_app.admit(&needs).await?
            {
                deployment.transcript.title(&note);
            }
            Ok(())
        })
    }
}

/// Returns an error if the needs do not fit into the free space of the disk or, if `own` is true, of the project.
fn ensure_fits(needs: &SpaceNeeds, free: FreeSpace, reserve: u64, own: bool) -> Result<(), Failure> {
    let (full, hint) = match own {
        true => ("the space of the project is nearly used up", OWN_HINT),
        false => ("the server's disk is nearly full", HINT),
    };
    let failure = |why: String| Failure { blame: Blame::Host, ..Failure::pusher(why) };
    if free.bytes < reserve {
        let (free, reserve) = (free.bytes >> 20, reserve >> 20);
        return Err(failure(format!("{full}: {free} MiB are free (expected at least {reserve} MiB)")).hint(hint));
    }
    if free.inodes < MIN_INODES {
        return Err(failure(format!("{full}: {} inodes are free (expected at least {MIN_INODES})", free.inodes)).hint(hint));
    }
    needs.lack(free, reserve, MIN_INODES).map_or(Ok(()), |why| Err(failure(why).hint(hint)))
}

/// Returns the space that the deployment needs: the sizes of the last deployment, and the sizes of the data.
async fn needs(deployment: &Deployment) -> Result<SpaceNeeds, Failure> {
    let (spec, live_app) = (&deployment.spec, &deployment.memory.live_app);
    let has = |step: &str| spec.plan.iter().any(|name| name.as_str() == step);
    let earlier = live_app.earlier_sizes();
    let mut needs = SpaceNeeds::default();
    if has("build.compile") {
        needs.add("build", earlier.tree);
        needs.add("archive", earlier.archive);
    }
    if !deployment.paths.tree(spec.release).is_dir() {
        needs.add("installed tree", earlier.installed.max(earlier.archive).max(deployment.facts.archive_bytes));
        needs.entries = earlier.entries;
    }
    let upgrades = spec.previous.is_some() && deployment.facts.release_command().is_some();
    if has("deploy.point") && (upgrades || spec.data.is_some()) {
        let data = live_app.data_space(spec.data.clone()).await?;
        needs.add("restore point", data.capture);
        needs.entries = needs.entries.saturating_add(data.capture_entries);
        if spec.data.is_some() {
            needs.add("returned data", data.restore);
            needs.entries = needs.entries.saturating_add(data.restore_entries);
        } else if deployment.settings().upgrade.safety == Safety::Hold {
            // A failure during the hold restores the data beside the live data. Without `safety: hold`, the upgrade has no hold if this
            // space is missing.
            needs.add("restored data", data.copy);
        }
    }
    Ok(needs)
}
