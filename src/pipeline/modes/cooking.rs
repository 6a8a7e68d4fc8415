//! Staging cooks: builds from a clean tree, makes a release archive, and serves what it unpacks from that archive.

use crate::{
    model::Phase,
    pipeline::{
        phases::{build, bundle, deploy, gather, post_deploy, post_install, script::Script},
        step::Step,
    },
};

/// The steps in order.
pub fn steps() -> Vec<Box<dyn Step>> {
    vec![
        Box::new(gather::Source),
        Box::new(build::Layer),
        Box::new(Script(Phase::Gather)),
        Box::new(build::Checks),
        Box::new(Script(Phase::PreInstall)),
        Box::new(Script(Phase::Configure)),
        Box::new(build::Compile),
        Box::new(Script(Phase::Build)),
        Box::new(Script(Phase::PostBuild)),
        Box::new(Script(Phase::Bundle)),
        Box::new(bundle::Archive),
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
