//! The server's side of drift. These functions open the files, start the drift worker or the patch worker, and wait for the exit of the
//! worker.

use std::{fs::File, os::fd::OwnedFd, path::Path};

use super::{Applied, ApplyJob, Drift, KnownEntry, LookJob, LookReport, Patch, patches::Patches};
use crate::{
    host::{files::FileError, launch::Stdio},
    model::{Launch, LimitClass, ReleaseId, Role, Slot, Supervision, UserName},
    release::{
        ReleaseError, WorkerAnswer, WorkerContext,
        manifest::{self, index},
    },
};

/// The maximum size of a worker's report, in bytes.
const MAX_REPORT: usize = 16 << 20;

/// The slot to compare or to patch, and the rules for expected changes.
#[derive(Debug)]
pub struct DriftTarget<'a> {
    /// The environment.
    pub context: WorkerContext<'a>,
    /// The release in the slot.
    pub release: ReleaseId,
    /// The slot.
    pub slot: Slot,
    /// Persistent paths, which are not part of a release.
    pub data: Vec<String>,
    /// Patterns of expected changes, as in `.gitignore`.
    pub ignore: Vec<String>,
    /// The changes that the deployment itself made, with their exact content. These changes are expected.
    pub known: Vec<KnownEntry>,
}

/// Compares the live tree with its release. The caller must ensure that the slot is not emptied during the comparison.
pub async fn look(place: &DriftTarget<'_>) -> Result<Drift, ReleaseError> {
    let manifest = manifest(&place.context, place.release).await?;
    let job = job(place, false);
    match run(&place.context, Role::Drift, place.release, Some(place.slot), &job, vec![manifest.into()]).await? {
        LookReport::Slot(drift, _) => Ok(drift),
        LookReport::Tree(..) => Err(unexpected_report()),
    }
}

fn job(place: &DriftTarget<'_>, save: bool) -> LookJob {
    LookJob::Slot { data: place.data.clone(), ignore: place.ignore.clone(), known: place.known.clone(), save }
}

/// Saves the unexpected changes as a patch. Returns no patch if all changes are expected. The returned drift records how each change was
/// saved.
pub async fn save(place: &DriftTarget<'_>, by: Option<UserName>) -> Result<(Drift, Option<Patch>), ReleaseError> {
    let patches = Patches::of(&place.context.paths.archives());
    let path = place.context.paths.manifest(place.release);
    let (new, manifest, about) = {
        let patches = patches.clone();
        blocking(move || {
            let manifest = manifest::read(&path)?;
            Ok((patches.begin()?, index::open(&path)?, (manifest.release, manifest.commit, manifest.tree)))
        })
        .await?
    };
    let given = |file: &File| {
        file.try_clone().map(OwnedFd::from).map_err(|e| FileError::io("duplicate the descriptor of", Path::new("a patch"), e))
    };
    let extra = vec![manifest.into(), given(&new.text)?, given(&new.files)?];
    let job = job(place, true);
    let report = run(&place.context, Role::Drift, place.release, Some(place.slot), &job, extra).await?;
    let LookReport::Slot(drift, archive) = report else { return Err(unexpected_report()) };
    if drift.real().next().is_none() {
        return Ok((drift, None));
    }
    let kept = drift.clone();
    let patch = blocking(move || patches.finish(new, about, kept, archive, by)).await?;
    Ok((drift, Some(patch)))
}

/// Compares an installed tree with its manifest. Returns the differences, as pairs of path and description, and the number of differences
/// that are not listed.
pub async fn verify_tree(context: &WorkerContext<'_>, release: ReleaseId) -> Result<(Vec<(String, String)>, u64), ReleaseError> {
    let manifest = manifest(context, release).await?;
    match run(context, Role::Drift, release, None, &LookJob::Tree, vec![manifest.into()]).await? {
        LookReport::Tree(found, more) => Ok((found, more)),
        LookReport::Slot(..) => Err(unexpected_report()),
    }
}

/// Applies a patch to the release in the slot. If a change of the patch conflicts with the release, no change is applied. After an error,
/// the slot may contain a part of the patch, and the caller must empty the slot.
pub async fn apply(place: &DriftTarget<'_>, patch: &Patch) -> Result<Applied, ReleaseError> {
    let patches = Patches::of(&place.context.paths.archives());
    let (text, files) = {
        let (patch, release) = (patch.clone(), place.release);
        blocking(move || {
            patches.mark_used(&patch, release)?;
            patches.open(&patch)
        })
        .await?
    };
    let job = ApplyJob { changes: patch.changes.clone(), archive: patch.archive.clone() };
    let extra = std::iter::once(text).chain(files).map(OwnedFd::from).collect();
    run(&place.context, Role::Patch, place.release, Some(place.slot), &job, extra).await
}

async fn manifest(context: &WorkerContext<'_>, release: ReleaseId) -> Result<File, ReleaseError> {
    let path = context.paths.manifest(release);
    blocking(move || Ok(index::open(&path)?)).await
}

async fn run<J: serde::Serialize, R: serde::de::DeserializeOwned>(
    context: &WorkerContext<'_>,
    role: Role,
    release: ReleaseId,
    slot: Option<Slot>,
    job: &J,
    extra: Vec<OwnedFd>,
) -> Result<R, ReleaseError> {
    let what = if role == Role::Patch { "patch" } else { "drift" };
    let failed = |source| ReleaseError::Launch { what, source };
    let launch = Launch {
        role,
        project: context.project,
        environment: Some(context.environment),
        release: Some(release),
        slot,
        limits: LimitClass::Service,
        supervision: Supervision::Once,
    };
    let stdio = Stdio { extra, ..Stdio::default() };
    let mut child = context.launcher.launch(launch, job, stdio).await.map_err(failed)?;
    let report: Option<WorkerAnswer<R>> = child.report(MAX_REPORT).await.map_err(failed)?;
    // The overlay of the slot is in use until the worker exits. Without this wait, the caller could not empty the slot.
    let exit = child.wait().await.map_err(failed)?;
    match report {
        Some(answer) => answer.into_result(),
        None => Err(ReleaseError::Died { what, exit }),
    }
}

fn unexpected_report() -> ReleaseError {
    ReleaseError::Refused { why: String::from("the drift worker sent the report of another kind of job") }
}

async fn blocking<T: Send + 'static>(act: impl FnOnce() -> Result<T, ReleaseError> + Send + 'static) -> Result<T, ReleaseError> {
    tokio::task::spawn_blocking(act).await.map_err(|_| ReleaseError::Cancelled)?
}
