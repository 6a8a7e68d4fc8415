//! The plan of each mode: the names of its steps, in order.
//!
//! From `deploy.install` on, all plans are the same: every release is installed, booted, checked and switched the same way.

use crate::model::{Mode, Origin, StepName};

/// The step after which a deployment is finished rather than unwound: its code serves, and visitors have seen it.
pub const COMMIT_POINT: &str = "deploy.switch";

/// Builds a release from its commit, packs it into an archive, and serves what it unpacks from that archive.
const COOKING: &[&str] = &[
    "gather.source",
    "gather.layer",
    "gather.script",
    "pre_install.checks",
    "pre_install.script",
    "configure.script",
    "build.compile",
    "build.script",
    "post_build.script",
    "bundle.script",
    "bundle.archive",
    "deploy.install",
    "deploy.slot",
    "deploy.script",
    "deploy.release",
    "deploy.boot",
    "deploy.switch",
    "post_deploy.workers",
    "post_deploy.smoke",
    "post_deploy.first",
    "post_deploy.script",
    "post_install.script",
    "post_install.alive",
];

/// Finds a release that was built elsewhere, verifies it, and installs it. Never builds.
const DELIVERING: &[&str] = &[
    "gather.deliverable",
    "gather.source",
    "gather.proof",
    "gather.layer",
    "gather.script",
    "pre_install.checks",
    "pre_install.script",
    "configure.script",
    "deploy.install",
    "deploy.slot",
    "deploy.script",
    "deploy.release",
    "deploy.boot",
    "deploy.switch",
    "post_deploy.workers",
    "post_deploy.smoke",
    "post_deploy.first",
    "post_deploy.script",
    "post_install.script",
    "post_install.alive",
];

/// Goes back to a release that was live before. Its settings and processes come from the record of that deployment, and its tree,
/// if it is still there, is used as it is: so no step takes longer for a larger release.
const RECALLING: &[&str] = &[
    "gather.recall",
    "pre_install.checks",
    "deploy.install",
    "deploy.slot",
    "deploy.script",
    "deploy.release",
    "deploy.boot",
    "deploy.switch",
    "post_deploy.workers",
    "post_deploy.smoke",
    "post_deploy.script",
    "post_install.script",
    "post_install.alive",
];

/// Returns the steps for a release that comes from `origin` to an environment with this mode.
pub fn steps(mode: Mode, origin: &Origin) -> Vec<StepName> {
    let names = match (mode, origin) {
        // `project create` refuses this mode in this version; if such an environment is found, no step is run in it.
        (Mode::Editable, _) => &[],
        (Mode::Cooking, Origin::Commit) => COOKING,
        // Production never builds, whatever the request asks for.
        (Mode::Final, Origin::Commit) | (_, Origin::Store | Origin::Environment(_) | Origin::Remote(_)) => DELIVERING,
        (_, Origin::Previous) => RECALLING,
    };
    names.iter().copied().map(StepName::from).collect()
}

/// Returns the origin of what is pushed to an environment of this mode.
pub fn usual_origin(mode: Mode) -> Origin {
    match mode {
        Mode::Editable | Mode::Cooking => Origin::Commit,
        Mode::Final => Origin::Store,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::plan::Plan;

    #[test]
    fn every_plan_has_known_steps_and_the_commit_point() {
        for (mode, origin) in [(Mode::Cooking, Origin::Commit), (Mode::Final, Origin::Store), (Mode::Final, Origin::Previous)] {
            let names = steps(mode, &origin);
            let plan = Plan::of(&names).unwrap_or_else(|unknown| panic!("{unknown}"));
            assert_eq!(plan.names(), names);
            assert!(names.contains(&StepName::from(COMMIT_POINT)), "{names:?}");
        }
        assert_eq!(steps(Mode::Editable, &Origin::Commit), []);
    }
}
