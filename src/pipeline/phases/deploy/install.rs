//! The step that installs the release's tree from its archive or its delta.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, UNIX_EPOCH},
};

use crate::{
    host::{
        files::{self, FileError},
        root::EnvironmentPaths,
    },
    model::{Digest, Origin, Phase, ReleaseId},
    pipeline::{
        context::Deployment,
        phases::bundle,
        spare::Renewal,
        step::{self, Acquired, Failure, Resource, Step, Work, chain},
    },
    release::{self, Installed, Refusal, ReleaseError},
};

/// The step that unpacks the archive or the delta of a release into `deploy/<id>`. Files that are equal in the live release are hard links
/// to the files of the live release.
pub struct Install;

impl Step for Install {
    fn name(&self) -> &'static str {
        "deploy.install"
    }

    fn phase(&self) -> Phase {
        Phase::Deploy
    }

    fn about(&self) -> &'static str {
        "unpack the release into deploy/, sharing unchanged files with the live release"
    }

    fn is_durable(&self, deployment: &Deployment) -> bool {
        !deployment.spec.again
    }

    fn acquire<'a>(&'a self, deployment: &'a Deployment) -> Acquired<'a> {
        match deployment.spec.again {
            true => Box::pin(async { Ok(Vec::new()) }),
            false => step::permit(deployment, Resource::Unpack),
        }
    }

    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            if deployment.spec.again {
                if let Some(live) = deployment.previous_release() {
                    renew_times(deployment, deployment.spec.release, live).await;
                }
                return Ok(());
            }
            let begun = spare(deployment).await;
            let context = bundle::context(deployment);
            let installed =
                release::install(&context, deployment.spec.release, deployment.previous_release(), begun, live_since(deployment))
                    .await;
            deployment.memory.entries = match installed {
                Ok(Installed { report }) => {
                    if let (1.., Some(first)) = (report.damaged, &report.first_damaged) {
                        let files = if report.damaged == 1 { "1 file" } else { &format!("{} files", report.damaged) };
                        deployment.transcript.error(&format!(
                            "{files} of the previous release differed from its manifest (first: {first}); the new release has the correct content"
                        ));
                    }
                    deployment.facts.installed_bytes = report.bytes;
                    deployment.facts.entries = report.entries;
                    report.entries
                }
                Err(error) => return Err(discard(deployment, error)),
            };
            Ok(())
        })
    }

    fn undone_after(&self) -> &'static [&'static str] {
        // The work in a slot needs the installed tree.
        &["deploy.slot"]
    }

    fn undo<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            deployment.is_not_current()?;
            match deployment.spec.again {
                true => Ok(()),
                false => bundle::remove_tree(deployment, deployment.spec.release).await,
            }
        })
    }
}

/// Returns the time of the switch to the live release, in seconds since 1970.
fn live_since(deployment: &Deployment) -> Option<u64> {
    deployment.previous_release()?;
    let switched = fs::symlink_metadata(deployment.paths.current()).and_then(|link| link.modified()).ok()?;
    switched.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
}

/// Renews the times of files of the installed release `release`, if these files differ from the files of the release `live`. Browsers then
/// do not keep the files of the live release. A renewal that was made already, after the switch to `live`, is not repeated. A failure is
/// only logged.
pub async fn renew_times(deployment: &Deployment, release: ReleaseId, live: ReleaseId) {
    let Some(since) = live_since(deployment).filter(|_| live != release) else { return };
    let renewal = Renewal { release, live, since };
    if deployment.memory.renewed.is(renewal) {
        return;
    }
    match release::renew_times(&bundle::context(deployment), release, live, since).await {
        Ok(()) => deployment.memory.renewed.put(renewal),
        Err(error) => {
            tracing::warn!(%release, error = chain(&error), "cannot renew the times of files; browsers may keep the files of the live release");
        }
    }
}

/// The file whose modification time is the time of the last delta failure in this environment.
const DISTRUST: &str = ".no-deltas";

/// The time after a delta failure in which no deltas are requested.
const DISTRUST_FOR: Duration = Duration::from_secs(24 * 3600);

/// Returns the failure of an installation, and removes a fetched release or delta that is unusable.
fn discard(deployment: &Deployment, error: ReleaseError) -> Failure {
    let (paths, spec) = (&deployment.paths, &deployment.spec);
    if matches!(error, ReleaseError::Failed { .. }) {
        // An error of this machine, such as a full disk, does not mean that the release is unusable.
        return bundle::failure(error);
    }
    let release = spec.release;
    if !paths.archive(release).is_file() && paths.delta(release).is_file() {
        deployment.transcript.error("The release came as a delta, which is removed; the next attempt fetches the whole archive.");
        let marked = files::write_atomic(&paths.releases().join(DISTRUST), b"", 0o640);
        log_failure(marked);
        remove(paths, release, paths.delta(release));
        return bundle::failure(error);
    }
    // The worker refused the archive's content. A release that was live in this environment before is kept for a person to
    // inspect.
    let brought = matches!(spec.origin, Origin::Environment(_) | Origin::Remote(_) | Origin::Store) && spec.recorded.is_none();
    match error {
        ReleaseError::Refused { why } if brought => {
            remove(paths, release, paths.archive(release));
            let refusal = Refusal::Disagrees { release, why };
            Failure::blameless(refusal.to_string()).hint(refusal.hint())
        }
        error => bundle::failure(error),
    }
}

/// Removes a release from the store. The manifest is removed first, because a release without a manifest does not count as
/// stored.
fn remove(paths: &EnvironmentPaths, release: ReleaseId, content: PathBuf) {
    for path in [paths.manifest(release), paths.index(release), content, paths.health(release)] {
        log_failure(files::remove_if_present(&path));
    }
}

fn log_failure(outcome: Result<(), FileError>) {
    if let Err(error) = outcome {
        tracing::error!(error = chain(&error), "cannot discard an unusable release");
    }
}

/// Returns true if a delta failed in this environment within the last day.
pub fn distrusts_deltas(paths: &EnvironmentPaths) -> bool {
    let marked = fs::metadata(paths.releases().join(DISTRUST)).and_then(|found| found.modified());
    marked.is_ok_and(|at| at.elapsed().is_ok_and(|age| age < DISTRUST_FOR))
}

/// Renames the spare tree to the tree of this release, if the spare tree is a copy of the live release, and returns the fingerprint of the
/// spare tree. The spare tree is never used again: after an interrupted installation, the tree may no longer be a copy.
async fn spare(deployment: &Deployment) -> Option<Digest> {
    let spec = &deployment.spec;
    let copy = deployment.memory.spare.take()?;
    let launcher = &deployment.services.launcher;
    if Some(copy.of) == deployment.previous_release()
        && launcher.rename_tree(deployment.environment.id, copy.name, spec.release).await.is_ok()
    {
        return Some(copy.seal);
    }
    // The files are removed in the background.
    if let Err(failure) = bundle::remove_tree(deployment, copy.name).await {
        tracing::warn!(why = failure.why, "cannot remove a spare tree");
    }
    None
}
