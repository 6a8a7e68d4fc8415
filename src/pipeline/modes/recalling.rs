//! Back to a release that was live before, through the same deploy steps that every release takes. What its own deployment found
//! out is taken over as it was, and its tree, if it is still there, as it is: so none of this grows with the size of the release.

use crate::{
    model::Phase,
    pipeline::{
        phases::{build, deploy, gather, post_deploy, post_install, script::Script},
        step::Step,
    },
};

/// The steps in order.
pub fn steps() -> Vec<Box<dyn Step>> {
    vec![
        Box::new(gather::LoadRelease),
        Box::new(build::Checks),
        Box::new(deploy::install::Install),
        Box::new(deploy::slot::Slot),
        Box::new(Script(Phase::Deploy)),
        Box::new(deploy::slot::Release),
        Box::new(deploy::boot::Boot),
        Box::new(deploy::switch::Switch),
        Box::new(post_deploy::Workers),
        Box::new(post_deploy::Smoke),
        Box::new(Script(Phase::PostDeploy)),
        Box::new(Script(Phase::PostInstall)),
        Box::new(post_install::Alive),
    ]
}
