//! The registry of steps: the one place that leads from a step's name to its code.

use super::{
    phases::{build, bundle, deliver, deploy, gather, post_deploy, post_install, script::Script},
    step::Step,
};
use crate::model::Phase;

/// Makes a step.
type Make = fn() -> Box<dyn Step>;

/// All steps that this version of larder has. A name that was once in a journal keeps its meaning, or goes for good.
const STEPS: &[(&str, Make)] = &[
    ("gather.deliverable", || Box::new(deliver::SupplyDeliverable)),
    ("gather.recall", || Box::new(gather::LoadRelease)),
    ("gather.source", || Box::new(gather::ExportSource)),
    ("gather.proof", || Box::new(deliver::PromotionCheck)),
    ("gather.layer", || Box::new(build::PrepareLayer)),
    ("gather.script", || Box::new(Script(Phase::Gather))),
    ("pre_install.checks", || Box::new(build::Checks)),
    ("pre_install.script", || Box::new(Script(Phase::PreInstall))),
    ("configure.script", || Box::new(Script(Phase::Configure))),
    ("build.compile", || Box::new(build::Compile)),
    ("build.script", || Box::new(Script(Phase::Build))),
    ("post_build.script", || Box::new(Script(Phase::PostBuild))),
    ("bundle.script", || Box::new(Script(Phase::Bundle))),
    ("bundle.archive", || Box::new(bundle::WriteArchive)),
    ("deploy.install", || Box::new(deploy::install::Install)),
    ("deploy.slot", || Box::new(deploy::slot::PrepareSlot)),
    ("deploy.script", || Box::new(Script(Phase::Deploy))),
    ("deploy.release", || Box::new(deploy::slot::ReleaseCommand)),
    ("deploy.boot", || Box::new(deploy::boot::BootWeb)),
    ("deploy.switch", || Box::new(deploy::switch::Switch)),
    ("post_deploy.workers", || Box::new(post_deploy::Workers)),
    ("post_deploy.smoke", || Box::new(post_deploy::SmokeChecks)),
    ("post_deploy.first", || Box::new(post_deploy::First)),
    ("post_deploy.script", || Box::new(Script(Phase::PostDeploy))),
    ("post_install.script", || Box::new(Script(Phase::PostInstall))),
    ("post_install.alive", || Box::new(post_install::Alive)),
];

/// Makes the step with this name; `None` if this version has none.
pub fn step(name: &str) -> Option<Box<dyn Step>> {
    STEPS.iter().find(|(known, _)| *known == name).map(|(_, make)| make())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_registered_under_their_own_names() {
        for (name, make) in STEPS {
            let step = make();
            assert_eq!(step.name(), *name);
            assert!(name.starts_with(&format!("{}.", step.phase())), "{name}");
        }
        assert!(step("deploy.teleport").is_none());
    }
}
