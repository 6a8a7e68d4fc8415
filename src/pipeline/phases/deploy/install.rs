//! The release's tree, unpacked from its archive.

use std::{fs, path::PathBuf, time::Duration};

use crate::{
    host::{
        files::{self, FileError},
        root::EnvironmentPaths,
    },
    model::{Digest, Origin, Phase, ReleaseId},
    pipeline::{
        context::Deployment,
        phases::bundle,
        step::{Failure, Step, Work, chain},
    },
    release::{self, Refusal, ReleaseError},
};

/// Unpacks into `deploy/<id>`. What did not change since the live release is shared with it.
pub struct Install;

impl Step for Install {
    fn name(&self) -> &'static str {
        "deploy.install"
    }

    fn phase(&self) -> Phase {
        Phase::Deploy
    }

    fn about(&self) -> &'static str {
        "unpack the release into deploy/, sharing unchanged files with the live one"
    }

    fn lasts(&self, deployment: &Deployment) -> bool {
        !deployment.order.again
    }

    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            if deployment.order.again {
                return Ok(());
            }
            let begun = spare(deployment).await;
            let context = bundle::context(deployment);
            let installed = release::install(&context, deployment.order.release, deployment.previous_release(), begun).await;
            deployment.entries = match installed {
                Ok(installed) => installed.report.entries,
                Err(error) => return Err(forget(deployment, error)),
            };
            Ok(())
        })
    }

    fn undo<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            deployment.is_not_current()?;
            match deployment.order.again {
                true => Ok(()),
                false => bundle::remove_tree(deployment, deployment.order.release).await,
            }
        })
    }
}

/// The file that says that a delta was no good here.
const DISTRUST: &str = ".no-deltas";

/// How long whole archives are fetched after that.
const DISTRUST_FOR: Duration = Duration::from_secs(24 * 3600);

/// What an installation failed of. A release that was brought here and is no good does not stay.
fn forget(deployment: &Deployment, error: ReleaseError) -> Failure {
    let (paths, order) = (&deployment.paths, &deployment.order);
    if matches!(error, ReleaseError::Failed { .. }) {
        // A full disk, for instance, says nothing about the release.
        return bundle::failure(error);
    }
    let release = order.release;
    if !paths.archive(release).is_file() && paths.delta(release).is_file() {
        deployment.transcript.error("It came as a delta, which is thrown away; the next attempt brings the whole archive.");
        let marked = files::write_atomic(&paths.releases().join(DISTRUST), b"", 0o640);
        put_away(marked);
        remove(paths, release, paths.delta(release));
        return bundle::failure(error);
    }
    // Its worker says no to what is in the archive. One that served here before is left for a person to look at.
    let brought = matches!(order.origin, Origin::Environment(_) | Origin::Remote(_) | Origin::Store) && order.recorded.is_none();
    match error {
        ReleaseError::Refused { why } if brought => {
            remove(paths, release, paths.archive(release));
            let refusal = Refusal::Disagrees { release, why };
            Failure::nobody(refusal.to_string()).hint(refusal.hint())
        }
        error => bundle::failure(error),
    }
}

/// Removes a release from the store; first what makes it exist.
fn remove(paths: &EnvironmentPaths, release: ReleaseId, content: PathBuf) {
    for path in [paths.manifest(release), paths.index(release), content, paths.health(release)] {
        put_away(files::remove_if_present(&path));
    }
}

fn put_away(outcome: Result<(), FileError>) {
    if let Err(error) = outcome {
        tracing::error!(error = chain(&error), "a release that is no good could not be put away");
    }
}

/// Whether a delta was no good lately.
pub fn distrusts_deltas(paths: &EnvironmentPaths) -> bool {
    let marked = fs::metadata(paths.releases().join(DISTRUST)).and_then(|found| found.modified());
    marked.is_ok_and(|at| at.elapsed().is_ok_and(|age| age < DISTRUST_FOR))
}

/// Makes the spare tree the one to install to, if there is one of the live release, and gives its seal. It is taken in any case: where
/// this step is done again, the tree is no copy any more.
async fn spare(deployment: &Deployment) -> Option<Digest> {
    let order = &deployment.order;
    let copy = deployment.spare.take()?;
    let launcher = &deployment.services.launcher;
    if Some(copy.of) == deployment.previous_release()
        && launcher.rename_tree(order.environment.id, copy.name, order.release).await.is_ok()
    {
        return Some(copy.seal);
    }
    // Removed in the background.
    if let Err(failure) = bundle::remove_tree(deployment, copy.name).await {
        tracing::warn!(why = failure.why, "a spare tree could not be removed");
    }
    None
}
