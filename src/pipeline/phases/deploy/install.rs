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
        "unpack the archive into deploy/, sharing unchanged files with the live release"
    }

    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            let context = bundle::context(deployment);
            let installed = release::install(&context, deployment.order.release, deployment.previous_release(), false).await;
            installed.map(drop).map_err(bundle::failure)
        })
    }

    fn undo<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async { bundle::remove_tree(deployment, deployment.order.release).await })
    }
}
