//! The plan of each mode: the names of its steps, in order.
//!
//! From `deploy.install` on, all plans are the same.

use crate::model::{Mode, Origin, StepName};

/// The step after which a deployment is finished rather than unwound: its code serves, and visitors have seen it.
pub const COMMIT_POINT: &str = "deploy.switch";

/// The end of every plan: a complete release is installed, booted, checked and switched the same way, wherever it comes from.
const SERVING: &[&str] = &[
    "deploy.install",
    "deploy.slot",
    "deploy.script",
    "deploy.release",
    "deploy.boot",
    "deploy.switch",
    "post_deploy.workers",
    "post_deploy.smoke",
    FIRST,
    "post_deploy.script",
    "post_install.script",
    "post_install.alive",
];

/// The step that only a release which was never live here can need.
const FIRST: &str = "post_deploy.first";

/// Builds a release from its commit and packs it into an archive. The installed tree is unpacked from that archive.
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
];

/// Finds a release that was built elsewhere and verifies it. Never builds.
const DELIVERING: &[&str] = &[
    "gather.deliverable",
    "gather.source",
    "gather.proof",
    "gather.layer",
    "gather.script",
    "pre_install.checks",
    "pre_install.script",
    "configure.script",
];

/// Goes back to a release that was live before. Its settings and processes come from the record of that deployment, and its tree,
/// if it still exists, is used as it is: so no step takes longer for a larger release.
const RECALLING: &[&str] = &["gather.recall", "pre_install.checks"];

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
    let serving = SERVING.iter().filter(|name| !names.is_empty() && (**name != FIRST || *origin != Origin::Previous));
    names.iter().chain(serving).copied().map(StepName::from).collect()
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
