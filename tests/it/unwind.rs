//! Failures of every step, before and after its work, and steps that run twice: the environment stays consistent.

use crate::harness::{Repo, World, faults, in_each_mode, in_one_mode};

in_each_mode!(failure_at_any_step_leaves_nothing, deployment_with_every_step_run_twice_goes_live);
in_one_mode!(failing_undo_freezes_the_environment, panicking_step_fails_its_deployment, switch_is_not_cut_by_a_time_limit);

fn failure_at_any_step_leaves_nothing(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    let good = repo.head();
    repo.push().accepted();
    let steps = world.steps("shop");
    // Each failpoint fires once, so each push fails at the next failpoint.
    let names = faults::chosen(world, faults::around(&steps));
    world.restart(&[("FAILPOINTS", &faults::once(&names))]);
    world.serves("shop", "version one");
    let before = world.snapshot("shop");
    let visitor = world.visitor("shop");
    repo.page("version two");
    let mut unwinds = String::new();
    for name in &names {
        let push = repo.push();
        let phase = name.trim_start_matches("step.").split('.').next().unwrap();
        push.rejected_with(&format!("{phase}: stopped by a failpoint")).rejected_with("v1 still live");
        assert_eq!(world.snapshot("shop"), before, "{name} left something behind");
        assert_eq!(repo.live().as_ref(), Some(&good), "{name}");
        world.serves("shop", "version one");
        unwinds.push_str(&faults::unwind(world));
    }
    faults::compare(world, "unwinds of cooking", &unwinds);
    repo.push().accepted();
    world.serves("shop", "version two");
    let seen = visitor.satisfied();
    let flickers = seen.pages.len();
    // Only a failure after the switch may show the new version for a moment.
    assert!(flickers <= 2 * steps.len(), "{flickers} changes of the page");
    world.is_consistent("shop");
    let outcomes = world.outcomes("shop");
    assert_eq!(outcomes.len(), names.len() + 2);
    assert!(outcomes.iter().all(|outcome| outcome.as_deref() != Some("stuck")), "{outcomes:?}");
}

fn panicking_step_fails_its_deployment(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    world.restart(&[("FAILPOINTS", "panic.deploy.boot=1*panic(on purpose)")]);
    repo.page("version two");
    repo.push().rejected_with("internal error in deploy.boot").says("reverting deploy.slot").says("v1 is still live");
    world.serves("shop", "version one");
    // The queue accepts the next deployment.
    repo.push().accepted().says("v2 is live");
    world.serves("shop", "version two");
    world.is_consistent("shop");
}

/// A git process that is killed while it moves the branch leaves its lock, which would also block the undo. Therefore no time limit
/// interrupts the switch.
fn switch_is_not_cut_by_a_time_limit(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    world.restart(&[("FAILPOINTS", "deploy.switch=1*sleep(4000)")]);
    repo.write("larder.yml", "timeouts: {deploy: 3s}\n").page("version two");
    repo.push().accepted().says("v2 is live");
    world.serves("shop", "version two");
    world.is_consistent("shop");
}

fn deployment_with_every_step_run_twice_goes_live(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.write("larder.yml", "data:\n  - media\nsmoke:\n  - /\n").write("Procfile", "release: echo released >> media/count\n");
    repo.page("version one");
    world.restart(&[("FAILPOINTS", "twice=return")]);
    repo.push().accepted();
    world.serves("shop", "version one");
    assert_eq!(world.ports("shop").len(), 1, "running twice must not mean two processes");
    world.is_consistent("shop");
    repo.page("version two");
    repo.push().accepted();
    world.serves("shop", "version two");
    world.is_consistent("shop");
    crate::harness::until("the old release has retired", || world.ports("shop").len() == 1);
    assert_eq!(world.larder(&["run", "shop", "--", "cat", "media/count"]).ok().lines().count(), 4);
}

fn failing_undo_freezes_the_environment(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    world.restart(&[("FAILPOINTS", "step.post_deploy.smoke=1*return;undo.deploy.install=1*return")]);
    repo.page("version two");
    repo.push().rejected_with("post_deploy: stopped by a failpoint").rejected_with("the environment is frozen: deploy.install");
    world.serves("shop", "version one");
    repo.push().rejected_with("frozen since deployment").rejected_with("deploy.install");
    world.larder(&["deploy", "shop", "--retry"]).exits(3).says("frozen");
    world.larder(&["status"]).says("frozen");
    // The environment stays frozen across a restart, until an operator unfreezes it.
    world.restart(&[]);
    repo.push().rejected_with("frozen since deployment");
    world.serves("shop", "version one");
    world.larder(&["deploy", "shop", "--unfreeze"]).ok();
    repo.push().accepted();
    world.serves("shop", "version two");
    world.larder(&["deploy", "shop", "--unfreeze"]).exits(4);
}
