//! The step for releases that are not built in this environment. The release is in the environment's own store, is taken from a
//! sibling environment, or is pulled from a remote.

mod promotion;
mod remote;

use std::{fs, path::Path, time::Duration};

pub use self::promotion::PromotionCheck;

use crate::{
    host::{files, root::EnvironmentPaths},
    model::{EnvironmentName, Manifest, Origin, Phase, ReleaseId},
    pipeline::{
        context::Deployment,
        phases::bundle,
        step::{Failure, Step, Work, chain, seconds},
    },
    release::{self, Body, Incoming, ReleaseError, VerifyLevel, store, trust::Expectation},
};

/// The time limit for the transfer of a release.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(6 * 3600);

/// The step that makes sure that the release is in the environment's own store and that its signature and digests are valid. Later steps
/// need neither the sibling environment nor the remote.
pub struct SupplyDeliverable;

impl Step for SupplyDeliverable {
    fn name(&self) -> &'static str {
        "gather.deliverable"
    }

    fn phase(&self) -> Phase {
        Phase::Gather
    }

    fn about(&self) -> &'static str {
        "find the deliverable, pull its missing parts, check signature and digests"
    }

    fn limit(&self, _: &Deployment) -> (Duration, Failure) {
        // The recipe, which sets the time limits of phases, is not read yet, and the project cannot change the bandwidth. A transfer that
        // stalls fails sooner.
        let why = format!("took longer than {}", seconds(TRANSFER_TIMEOUT));
        (TRANSFER_TIMEOUT, Failure::blameless(why).hint("try again: the next attempt resumes the transfer"))
    }

    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            let spec = &deployment.spec;
            deployment.transcript.title(&format!("Fetching {} from {}", spec.commit.short(), spec.origin));
            let manifest = match spec.origin.clone() {
                Origin::Environment(name) => bring_from_sibling(deployment, &name).await?,
                Origin::Remote(name) => remote::bring(deployment, &name).await?,
                Origin::Store | Origin::Previous | Origin::Configuration | Origin::Commit => read(deployment).await?,
            };
            is_of_commit(deployment, &manifest).await?;
            deployment.transcript.detail(&format!(
                "build {} of {}, made {}, tree {}, signed by {}",
                manifest.build,
                manifest.environment,
                manifest.created.strftime("%Y-%m-%d %H:%M:%S UTC"),
                manifest.tree.short(),
                manifest.signature.map_or_else(|| String::from("no key"), |signature| signature.key.to_string()),
            ));
            deployment.facts.tree = Some(manifest.tree);
            deployment.facts.archive_bytes = manifest.archive.bytes;
            deployment.facts.build = Some(manifest.build);
            deployment.facts.buildpacks = manifest.buildpacks;
            deployment.facts.buildpack_processes = manifest.processes;
            Ok(())
        })
    }

    // This step has no undo: an accepted release is complete, and the next attempt need not fetch it again.
}

/// Reads the manifest from the environment's own store.
async fn read(deployment: &Deployment) -> Result<Manifest, Failure> {
    let path = deployment.paths.manifest(deployment.spec.release);
    let read = tokio::task::spawn_blocking(move || store::read(&path)).await;
    read.map_err(Failure::blameless)?.map_err(|error| Failure::host(&error))
}

/// Returns the expected properties of the release: this project, the requested id, and the deployed commit or a commit with the
/// same tree. If the newest release was requested, the release must not be older than the last accepted release.
async fn expectation(deployment: &Deployment) -> Expectation {
    let spec = &deployment.spec;
    let source = deployment.services.repositories.tree(deployment.environment.project_id, spec.commit.clone()).await.ok();
    let (release, commit) = (Some(spec.release), Some(spec.commit.clone()));
    Expectation {
        release,
        commit,
        source,
        newest: deployment.spec.newest,
        ..Expectation::of(deployment.environment.project.clone())
    }
}

/// Returns an error unless the release was built from the deployed commit, or from a commit with the same tree. The list that
/// offered the release is not signed, so this check uses the signed manifest.
async fn is_of_commit(deployment: &Deployment, manifest: &Manifest) -> Result<(), Failure> {
    let spec = &deployment.spec;
    if manifest.commit == spec.commit {
        return Ok(());
    }
    let tree = deployment.services.repositories.tree(deployment.environment.project_id, spec.commit.clone()).await;
    if manifest.source.is_some() && manifest.source == tree.ok() {
        let same = format!("built from {}, which has the same tree as {}", manifest.commit.short(), spec.commit.short());
        deployment.transcript.detail(&same);
        return Ok(());
    }
    let why = format!("release {} was built from {} (expected {})", spec.release, manifest.commit.short(), spec.commit.short());
    Err(Failure::blameless(why)
        .hint("run `larder remote check`: the remote that offered the release is misconfigured or dishonest"))
}

fn refused(error: ReleaseError) -> Failure {
    let hint = error.hint();
    let failure = Failure::blameless(chain(&error));
    hint.into_iter().fold(failure, Failure::hint)
}

/// Accepts a release that another environment of the project on this server has cooked.
async fn bring_from_sibling(deployment: &Deployment, name: &EnvironmentName) -> Result<Manifest, Failure> {
    let spec = &deployment.spec;
    let sibling = deployment.services.root.environment(&deployment.environment.project, name);
    if deployment.paths.manifest(spec.release).is_file() {
        keep_record(deployment)?;
        return read(deployment).await;
    }
    let (own, release) = (deployment.paths.clone(), spec.release);
    let shared = tokio::task::spawn_blocking(move || share(&sibling, &own, release)).await;
    let body = shared.map_err(Failure::blameless)?.map_err(|error| Failure::host(&error))?;
    let directory = deployment.paths.incoming().join(release.to_string());
    let trust = [deployment.services.signing.public()];
    let expect = Expectation { environments: vec![name.clone()], ..expectation(deployment).await };
    let incoming = Incoming { body, record: None };
    let taken = release::accept(&bundle::context(deployment), incoming, &expect, &trust, VerifyLevel::Digests).await;
    let _ = fs::remove_dir_all(directory);
    let manifest = taken.map_err(refused)?;
    // The record is stored last, so that no file of a refused release stays.
    keep_record(deployment)?;
    Ok(manifest)
}

/// Stores the current health record of the sibling environment with the release.
fn keep_record(deployment: &Deployment) -> Result<(), Failure> {
    let told = deployment.memory.sibling_record.as_ref().and_then(|record| serde_json::to_vec(record).ok());
    let Some(record) = told else { return Ok(()) };
    let path = deployment.paths.health(deployment.spec.release);
    files::write_atomic(&path, &record, 0o640).map_err(|error| Failure::host(&error))
}

/// Links the files of a sibling's release into this environment's incoming directory. These files are never written again, so
/// hard links are safe. If the file system does not support hard links, the files are copied.
fn share(from: &EnvironmentPaths, to: &EnvironmentPaths, release: ReleaseId) -> Result<Body, files::FileError> {
    let directory = to.incoming().join(release.to_string());
    files::ensure_dir(&directory, 0o750).map_err(|error| files::FileError::io("create", &directory, error))?;
    let name = |source: &Path, name: &str| {
        let target = directory.join(name);
        files::remove_if_present(&target)?;
        let linked = fs::hard_link(source, &target).or_else(|_| fs::copy(source, &target).map(drop));
        linked.map_err(|error| files::FileError::io("copy", source, error))?;
        Ok(target)
    };
    let archive = name(&from.archive(release), "archive.tar.zst")?;
    Ok(Body::Archive { archive, manifest: name(&from.manifest(release), "manifest.json")? })
}
