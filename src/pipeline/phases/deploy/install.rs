//! The release's tree, unpacked from its archive.

use crate::{
    model::Phase,
    pipeline::{
        context::Deployment,
        phases::bundle,
        step::{Step, Work},
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
