//! The table of steps: the code of each step, and the plans that contain it.

use super::{
    phases::{build, bundle, checkout, checks, deliver, deploy, gather, post_deploy, post_install, script::Script},
    step::Step,
};
use crate::model::{Mode, Origin, Phase, StepName, Strategy};

/// The commit point of all plans except a rollback with data: the step after which a deployment is finished instead of unwound,
/// because visitors use the new release.
pub const COMMIT_POINT: &str = "deploy.resume";

/// The commit point of a rollback with data: its last step, so that no failure separates the code from the data.
const RETURN_COMMIT_POINT: &str = "post_install.resume";

/// The plans, one for each way in which a deployment gets its release. From `deploy.install` on, `Build` and `Deliver` have the same steps,
/// and `Recall` omits only `post_deploy.first`. `Return` also exchanges the data, has no smoke requests, and has a later commit point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PlanKind {
    /// The plan that builds a release from its commit and packs the release into an archive. The installed tree is unpacked from
    /// that archive.
    Build,
    /// The plan that finds and verifies a release that another environment or server built. This plan never builds.
    Deliver,
    /// The plan that takes a release that was live before. The settings and processes come from the record of the deployment that made the
    /// release live. If the tree of the release is still installed, no files are unpacked, and the duration of the steps does not depend on
    /// the size of the release.
    Recall,
    /// The plan that makes an earlier release live, together with the data of a restore point. Requests wait until the last step.
    /// Smoke checks would wait, too, so this plan has no smoke checks.
    Return,
    /// The plan that starts the live release again with a changed configuration. Code and data stay, so the release command does not run, and
    /// with the strategy blue-green no request waits.
    Reconfigure,
}

use PlanKind::{Build, Deliver, Recall, Reconfigure, Return};

/// A function that creates a step.
type NewStep = fn() -> Box<dyn Step>;

/// A row of the table: the name of a step, the plans that contain the step, and its constructor.
type Row = (&'static str, &'static [PlanKind], NewStep);

/// All steps of this version, in the order in which every plan runs its steps.
///
/// Journals name steps, so a name never gets another meaning. A step that no plan contains any more keeps its row, with an empty list of
/// plans, as long as a journal may name the step.
const STEPS: &[Row] = &[
    ("gather.deliverable", &[Deliver], || Box::new(deliver::SupplyDeliverable)),
    ("gather.recall", &[Recall, Return, Reconfigure], || Box::new(gather::LoadRelease)),
    ("gather.source", &[Build, Deliver], || Box::new(gather::ExportSource)),
    ("gather.proof", &[Deliver], || Box::new(deliver::PromotionCheck)),
    ("gather.layer", &[Build, Deliver], || Box::new(build::PrepareLayer)),
    ("gather.script", &[Build, Deliver], || Box::new(Script(Phase::Gather))),
    ("pre_install.checks", &[Build, Deliver, Recall, Return, Reconfigure], || Box::new(checks::Checks)),
    ("pre_install.script", &[Build, Deliver], || Box::new(Script(Phase::PreInstall))),
    ("configure.script", &[Build, Deliver], || Box::new(Script(Phase::Configure))),
    ("build.compile", &[Build], || Box::new(build::Compile)),
    ("build.script", &[Build], || Box::new(Script(Phase::Build))),
    ("post_build.script", &[Build], || Box::new(Script(Phase::PostBuild))),
    ("bundle.script", &[Build], || Box::new(Script(Phase::Bundle))),
    ("bundle.archive", &[Build], || Box::new(bundle::WriteArchive)),
    ("deploy.install", &[Build, Deliver, Recall, Return, Reconfigure], || Box::new(deploy::install::Install)),
    ("deploy.slot", &[Build, Deliver, Recall, Return, Reconfigure], || Box::new(deploy::slot::PrepareSlot)),
    ("deploy.script", &[Build, Deliver, Recall, Return, Reconfigure], || Box::new(Script(Phase::Deploy))),
    ("deploy.fill", &[Return], || Box::new(deploy::data::FillData)),
    ("deploy.hold", &[Build, Deliver, Recall, Return], || Box::new(deploy::hold::HoldRequests)),
    ("deploy.quiesce", &[Build, Deliver, Recall, Return], || Box::new(deploy::hold::StopWriters)),
    ("deploy.point", &[Build, Deliver, Recall, Return], || Box::new(deploy::hold::TakePoint)),
    ("deploy.data", &[Return], || Box::new(deploy::data::ExchangeData)),
    ("deploy.release", &[Build, Deliver, Recall, Return], || Box::new(deploy::upgrade::ReleaseCommand)),
    ("deploy.boot", &[Build, Deliver, Recall, Return, Reconfigure], || Box::new(deploy::boot::BootWeb)),
    ("deploy.check", &[Build, Deliver, Recall, Return, Reconfigure], || Box::new(deploy::hold::CheckPages)),
    ("deploy.switch", &[Build, Deliver, Recall, Return, Reconfigure], || Box::new(deploy::switch::Switch)),
    (COMMIT_POINT, &[Build, Deliver, Recall, Reconfigure], || Box::new(deploy::hold::Resume(COMMIT_POINT))),
    ("post_deploy.workers", &[Build, Deliver, Recall, Return, Reconfigure], || Box::new(post_deploy::Workers)),
    ("post_deploy.smoke", &[Build, Deliver, Recall, Reconfigure], || Box::new(post_deploy::SmokeChecks)),
    ("post_deploy.first", &[Build, Deliver], || Box::new(post_deploy::First)),
    ("post_deploy.script", &[Build, Deliver, Recall, Return, Reconfigure], || Box::new(Script(Phase::PostDeploy))),
    ("post_install.script", &[Build, Deliver, Recall, Return, Reconfigure], || Box::new(Script(Phase::PostInstall))),
    ("post_install.alive", &[Build, Deliver, Recall, Return, Reconfigure], || Box::new(post_install::Alive)),
    (RETURN_COMMIT_POINT, &[Return], || Box::new(deploy::hold::Resume(RETURN_COMMIT_POINT))),
];

/// The steps of the strategy in-place that the strategy blue-green does not have.
const IN_PLACE_STEPS: &[(&str, NewStep)] = &[
    ("deploy.stop", || Box::new(deploy::in_place::StopOld)),
    ("deploy.archive", || Box::new(deploy::workspace::ArchiveTree)),
    ("deploy.sync", || Box::new(deploy::workspace::SyncTree)),
    ("deploy.start", || Box::new(deploy::in_place::StartNew)),
];

/// The steps of the phase deploy with the strategy in-place, in the order in which they run. A plan has those of these steps that are in
/// [`IN_PLACE_STEPS`], or that its kind of plan has with the strategy blue-green. Every plan has `deploy.point`, because a process that starts
/// may change the data.
const IN_PLACE_ORDER: &[&str] = &[
    "deploy.install",
    "deploy.fill",
    "deploy.stop",
    "deploy.point",
    "deploy.archive",
    "deploy.sync",
    "deploy.data",
    "deploy.script",
    "deploy.start",
    "deploy.release",
    "deploy.check",
    "deploy.switch",
    "deploy.resume",
];

/// The steps that only plans of editable environments have.
const EDITABLE_STEPS: &[(&str, NewStep)] =
    &[("gather.checkout", || Box::new(checkout::UpdateCheckout)), ("deploy.prepare", || Box::new(checkout::PrepareCheckout))];

/// The plan of an editable environment. It updates the checkout and builds there. There is no archive, and therefore no release to install.
const EDITABLE_PLAN: &[&str] = &[
    "gather.source",
    "gather.checkout",
    "gather.script",
    "pre_install.checks",
    "pre_install.script",
    "configure.script",
    "build.compile",
    "build.script",
    "post_build.script",
    "deploy.stop",
    "deploy.prepare",
    "deploy.script",
    "deploy.start",
    "deploy.release",
    "deploy.check",
    "deploy.switch",
    "deploy.resume",
    "post_deploy.workers",
    "post_deploy.smoke",
    "post_deploy.first",
    "post_deploy.script",
    "post_install.script",
    "post_install.alive",
];

/// The plan of an editable environment that starts the processes again with a changed configuration.
const EDITABLE_CONFIGURATION_PLAN: &[&str] = &[
    "gather.recall",
    "pre_install.checks",
    "deploy.stop",
    "deploy.prepare",
    "deploy.script",
    "deploy.start",
    "deploy.check",
    "deploy.switch",
    "deploy.resume",
    "post_deploy.workers",
    "post_deploy.smoke",
    "post_deploy.script",
    "post_install.script",
    "post_install.alive",
];

/// Creates the step with this name. Returns `None` if this version has no such step.
pub fn step(name: &str) -> Option<Box<dyn Step>> {
    let all = STEPS.iter().map(|(known, _, make)| (*known, *make)).chain(IN_PLACE_STEPS.iter().chain(EDITABLE_STEPS).copied());
    all.into_iter().find(|(known, _)| *known == name).map(|(_, make)| make())
}

/// Returns the names of the steps for a release that comes from `origin` to an environment with this mode, in the order in which the steps
/// run.
pub fn steps(mode: Mode, strategy: Strategy, origin: &Origin) -> Vec<StepName> {
    let kind = match (mode, origin) {
        (Mode::Editable, Origin::Configuration) => return names(EDITABLE_CONFIGURATION_PLAN),
        // The commit of an earlier release is built again.
        (Mode::Editable, _) => return names(EDITABLE_PLAN),
        (Mode::Cooking, Origin::Commit) => Build,
        // A final environment never builds, whatever the origin in the request is.
        (Mode::Final, Origin::Commit) | (_, Origin::Store | Origin::Environment(_) | Origin::Remote(_)) => Deliver,
        (_, Origin::Previous) => Recall,
        (_, Origin::Configuration) => Reconfigure,
    };
    of_kind(kind, strategy)
}

fn names(plan: &[&str]) -> Vec<StepName> {
    plan.iter().map(|name| StepName::from(*name)).collect()
}

/// Returns the names of the steps of a rollback with data, in the order in which the steps run.
pub fn return_steps(strategy: Strategy) -> Vec<StepName> {
    of_kind(Return, strategy)
}

fn of_kind(kind: PlanKind, strategy: Strategy) -> Vec<StepName> {
    let all: Vec<_> = STEPS.iter().filter(|(_, plans, _)| plans.contains(&kind)).map(|(name, ..)| *name).collect();
    if strategy == Strategy::BlueGreen {
        return all.into_iter().map(StepName::from).collect();
    }
    let in_deploy = |name: &&str| name.starts_with("deploy.");
    let before = all.iter().take_while(|name| !in_deploy(name));
    let after = all.iter().skip_while(|name| !in_deploy(name)).skip_while(|name| in_deploy(name));
    let added = |name: &str| name == "deploy.point" || IN_PLACE_STEPS.iter().any(|(known, _)| *known == name);
    let own = |name: &&&str| all.contains(*name) || added(name);
    before.chain(IN_PLACE_ORDER.iter().filter(own)).chain(after).map(|name| StepName::from(*name)).collect()
}

/// Returns the commit point of a plan.
pub fn commit_point(plan: &[StepName]) -> StepName {
    let last = StepName::from(RETURN_COMMIT_POINT);
    if plan.contains(&last) { last } else { StepName::from(COMMIT_POINT) }
}

/// Returns the origin of the release that a push to an environment of this mode deploys.
pub fn usual_origin(mode: Mode) -> Origin {
    match mode {
        Mode::Editable | Mode::Cooking => Origin::Commit,
        Mode::Final => Origin::Store,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_registered_under_their_own_names() {
        for (name, _, make) in STEPS {
            let step = make();
            assert_eq!(step.name(), *name);
            assert!(name.starts_with(&format!("{}.", step.phase())), "{name}");
        }
        assert!(step("deploy.teleport").is_none());
    }

    #[test]
    fn steps_are_in_the_order_of_their_phases() {
        let phases: Vec<_> = STEPS.iter().map(|(.., make)| make().phase()).collect();
        let positions: Vec<_> = phases.iter().map(|phase| Phase::ALL.iter().position(|other| other == phase).unwrap()).collect();
        assert!(positions.is_sorted(), "{phases:?}");
    }

    #[test]
    fn every_plan_has_the_commit_point() {
        for (mode, origin) in [(Mode::Cooking, Origin::Commit), (Mode::Final, Origin::Store), (Mode::Final, Origin::Previous)] {
            for strategy in [Strategy::BlueGreen, Strategy::InPlace] {
                let names = steps(mode, strategy, &origin);
                assert!(names.contains(&StepName::from(COMMIT_POINT)), "{names:?}");
            }
        }
        for origin in [Origin::Commit, Origin::Previous, Origin::Configuration] {
            let names = steps(Mode::Editable, Strategy::InPlace, &origin);
            assert!(names.contains(&StepName::from(COMMIT_POINT)), "{names:?}");
            assert!(names.iter().all(|name| step(name.as_str()).is_some()), "{names:?}");
        }
        for strategy in [Strategy::BlueGreen, Strategy::InPlace] {
            let names = return_steps(strategy);
            assert!(names.last() == Some(&commit_point(&names)) && !names.contains(&StepName::from(COMMIT_POINT)), "{names:?}");
        }
    }

    #[test]
    fn changed_configuration_neither_builds_nor_upgrades() {
        let names = |strategy| steps(Mode::Cooking, strategy, &Origin::Configuration);
        let has = |strategy, step: &str| names(strategy).contains(&StepName::from(step));
        for strategy in [Strategy::BlueGreen, Strategy::InPlace] {
            assert!(has(strategy, COMMIT_POINT) && has(strategy, "deploy.switch") && has(strategy, "post_deploy.workers"));
            assert!(!has(strategy, "deploy.release") && !names(strategy).iter().any(|name| name.as_str().starts_with("bu")));
        }
        assert!(!has(Strategy::BlueGreen, "deploy.hold") && has(Strategy::InPlace, "deploy.point"));
    }

    #[test]
    fn in_place_plans_have_every_step_of_the_order() {
        for name in IN_PLACE_ORDER {
            assert!(step(name).is_some_and(|step| step.name() == *name && step.phase() == Phase::Deploy), "{name}");
        }
        let names = steps(Mode::Cooking, Strategy::InPlace, &Origin::Commit);
        let at = |name: &str| names.iter().position(|step| step.as_str() == name).unwrap();
        assert!(at("bundle.archive") < at("deploy.install") && at("deploy.resume") < at("post_deploy.workers"), "{names:?}");
        assert!(!names.contains(&StepName::from("deploy.hold")) && !names.contains(&StepName::from("deploy.data")), "{names:?}");
        assert!(return_steps(Strategy::InPlace).contains(&StepName::from("deploy.data")));
    }
}
