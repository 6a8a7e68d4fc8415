//! The release's tree, unpacked from its archive.

use std::{fs, time::Duration};

use crate::{
    host::{files, root::EnvironmentPaths},
    model::Phase,
    pipeline::{
        context::Deployment,
        phases::bundle,
        step::{Step, Work, chain},
    },
    release,
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
            if installed.is_err() {
                forget_delta(deployment);
            }
            deployment.entries = installed.map_err(bundle::failure)?.report.entries;
            Ok(())
        })
    }

    fn undo<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
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

/// Removes a release that came as a delta and could not be installed: the next attempt fetches its archive.
fn forget_delta(deployment: &Deployment) {
    let (paths, release) = (&deployment.paths, deployment.order.release);
    if !paths.delta(release).is_file() || paths.archive(release).is_file() {
        return;
    }
    deployment.transcript.error("It came as a delta, which is thrown away; the next attempt brings the whole archive.");
    let marked = files::write_atomic(&paths.releases().join(DISTRUST), b"", 0o640);
    for outcome in [marked, files::remove_if_present(&paths.manifest(release)), files::remove_if_present(&paths.delta(release))] {
        if let Err(error) = outcome {
            tracing::error!(error = chain(&error), "a delta that is no good could not be put away");
        }
    }
}

/// Whether a delta was no good lately.
pub fn distrusts_deltas(paths: &EnvironmentPaths) -> bool {
    let marked = fs::metadata(paths.releases().join(DISTRUST)).and_then(|found| found.modified());
    marked.is_ok_and(|at| at.elapsed().is_ok_and(|age| age < DISTRUST_FOR))
}

/// Makes the spare tree the one to install to, if there is one of the live release. It is taken in any case: where this step is
/// done again, the tree is no copy any more.
async fn spare(deployment: &Deployment) -> bool {
    let order = &deployment.order;
    let Some(copy) = deployment.spare.take() else { return false };
    let launcher = &deployment.services.launcher;
    if Some(copy.of) == deployment.previous_release()
        && launcher.adopt(order.environment.id, copy.name, order.release).await.is_ok()
    {
        return true;
    }
    // Removed in the background.
    if let Err(failure) = bundle::remove_tree(deployment, copy.name).await {
        tracing::warn!(why = failure.why, "a spare tree could not be removed");
    }
    false
}
