//! Production serves: finds what staging cooked, proves that it is that, and installs it. Never builds, whatever is installed on
//! this machine.

use crate::{
    model::Phase,
    pipeline::{
        phases::{build, deliver, deploy, gather, post_deploy, post_install, script::Script},
        step::Step,
    },
};

/// The steps in order.
pub fn steps() -> Vec<Box<dyn Step>> {
    vec![
        Box::new(deliver::Deliverable),
        Box::new(gather::Source),
        Box::new(deliver::PromotionCheck),
        Box::new(build::Layer),
        Box::new(Script(Phase::Gather)),
        Box::new(build::Checks),
        Box::new(Script(Phase::PreInstall)),
        Box::new(Script(Phase::Configure)),
        Box::new(deploy::install::Install),
        Box::new(deploy::slot::Slot),
        Box::new(Script(Phase::Deploy)),
        Box::new(deploy::slot::Release),
        Box::new(deploy::boot::Boot),
        Box::new(deploy::switch::Switch),
        Box::new(post_deploy::Workers),
        Box::new(post_deploy::Smoke),
        Box::new(post_deploy::First),
        Box::new(Script(Phase::PostDeploy)),
        Box::new(Script(Phase::PostInstall)),
        Box::new(post_install::Alive),
    ]
}
