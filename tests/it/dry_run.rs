//! `larder deploy --only`: a dry run of some phases reverts its changes, and the live release stays.

use std::process::{Child, Stdio};

use crate::delivering::{halfway, stored};
use crate::harness::{
    Repo, World,
    cli::Output,
    faults::{around, once},
    in_each_mode, in_one_mode, state, until,
};

in_each_mode!(dry_run_reverts_all_its_changes);
in_one_mode!(
    dry_run_of_unsupported_phases_is_refused,
    push_waits_for_a_running_dry_run,
    failure_at_any_step_of_a_dry_run_leaves_nothing,
    killed_dry_run_is_reverted,
    dry_run_of_gather_tells_if_production_accepts_a_release,
);

/// Sets up a live site, and a commit on the stored branch `topic` with `script` as its build.
fn live_and_topic<'w>(world: &'w World, script: &str) -> (Repo<'w>, String) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    let live = repo.head();
    topic(&repo, script);
    (repo, live)
}

fn topic(repo: &Repo<'_>, script: &str) {
    repo.program(".larder/build", &format!("#!/bin/sh\n{script}\n"));
    repo.page("version two");
    repo.push_as(&["--force", "HEAD:refs/heads/topic"]).accepted();
}

fn dry_run(world: &World, phases: &str) -> Output {
    world.larder(&["deploy", "shop", "--ref", "topic", "--only", phases])
}

fn dry_run_reverts_all_its_changes(world: &World) {
    let (repo, live) = live_and_topic(world, "echo built here; touch built; : > $LARDER_CACHE/kept");
    let before = world.snapshot("shop");
    let visitor = world.visitor("shop");
    dry_run(world, "post_build")
        .exits(0)
        .says("Dry run of gather, build, post_build: nothing goes live")
        .says("built here")
        .says("all changes were reverted: v1 is still live");
    assert_eq!(world.outcomes("shop"), [Some(String::from("live")), Some(String::from("tried"))]);
    let phases: Vec<_> = world.last_plan("shop").iter().map(|step| step.split_once('.').unwrap().0.to_owned()).collect();
    assert!(phases.iter().all(|phase| ["gather", "build", "post_build"].contains(&phase.as_str())), "{phases:?}");
    assert!(phases.last().is_some_and(|phase| phase == "post_build"), "{phases:?}");
    // The archive is made, but not kept.
    dry_run(world, "bundle").exits(0).says("dry run of gather, build, bundle succeeded");
    assert_eq!(world.snapshot("shop"), before);
    assert!(world.environment("shop").join("cache/kept").exists(), "the cache of a dry run is not kept");
    world.larder(&["deploy", "shop", "--follow"]).exits(0).says("dry run of");
    // A failed dry run does not count as a failed deployment.
    topic(&repo, "echo no such luck; exit 3");
    dry_run(world, "build").exits(1).says("no such luck").says("exited 3").says("v1 is still live").keeps_quiet_about("--retry");
    assert_eq!(world.snapshot("shop").files, before.files);
    world.larder(&["status"]).ok();
    world.larder(&["status"]).keeps_quiet_about("failed");
    world.larder(&["deploy", "shop", "--retry"]).exits(3).says("did not fail");
    visitor.satisfied();
    world.serves("shop", "version one");
    assert_eq!(repo.live(), Some(live));
    // The dry runs used up no release number.
    topic(&repo, "true");
    repo.push().accepted().says("v2 is live");
    world.serves("shop", "version two");
    world.is_consistent("shop");
}

fn dry_run_of_unsupported_phases_is_refused(world: &World) {
    world.project("shop");
    world.larder(&["deploy", "shop", "--only", "build"]).exits(4).says("nothing is live in shop/production yet");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    let deploy = |words: &[&str]| world.larder(&[&["deploy", "shop"], words].concat());
    deploy(&["--only", "build,deploy"]).exits(2).says("cannot run deploy in a dry run").says("from gather to bundle");
    deploy(&["--only", "cook"]).exits(2).says("the phases are gather");
    deploy(&["--only", "build", "--retry"]).exits(2);
    assert_eq!(world.journals("shop").len(), 1);
    // Without --ref, the dry run uses the live commit.
    deploy(&["--only", "pre_install"]).exits(0).says("dry run of gather, pre_install succeeded");
    let steps = world.last_plan("shop");
    assert!(steps.iter().all(|step| step.starts_with("gather.") || step.starts_with("pre_install.")), "{steps:?}");
}

const GATE: &str = "echo waiting for the gate; while ! [ -e \"$LARDER_CACHE/gate\" ]; do sleep 0.05; done";

fn waits(world: &World, deployments: usize) {
    let directory = world.environment("shop").join("deployments");
    until("the build is waiting", || {
        let names = state::names(&directory);
        let logs = names.iter().map(|name| std::fs::read_to_string(directory.join(name).join("log")).unwrap_or_default());
        names.len() == deployments && logs.filter(|log| log.contains("waiting for the gate")).count() == 1
    });
}

fn start_dry_run(world: &World) -> Child {
    let mut command = world.larder_command();
    command.args(["deploy", "shop", "--ref", "topic", "--only", "build"]).stdout(Stdio::null()).spawn().unwrap()
}

fn push_waits_for_a_running_dry_run(world: &World) {
    let (repo, _) = live_and_topic(world, GATE);
    let mut first = start_dry_run(world);
    waits(world, 2);
    // While a dry run is under way, a further dry run is refused, and a push waits.
    dry_run(world, "gather").exits(3).says("shop/production is being deployed");
    repo.page("version three");
    std::thread::scope(|scope| {
        let push = scope.spawn(|| repo.push());
        until("the push waits", || world.larder(&["status"]).ok().contains("another deployment waits"));
        dry_run(world, "gather").exits(3);
        std::fs::write(world.environment("shop").join("cache/gate"), "").unwrap();
        push.join().unwrap().accepted().says("this deployment waits for its end").says("v2 is live");
    });
    assert!(first.wait().unwrap().success());
    world.serves("shop", "version three");
    world.is_consistent("shop");
}

fn failure_at_any_step_of_a_dry_run_leaves_nothing(world: &World) {
    let (_, _) = live_and_topic(world, "true");
    dry_run(world, "pre_install,configure,post_build,bundle").ok();
    let points = around(&world.last_plan("shop"));
    assert!(points.len() > 15, "{points:?}");
    world.restart(&[("FAILPOINTS", &once(&points))]);
    world.serves("shop", "version one");
    let before = world.snapshot("shop");
    for point in &points {
        dry_run(world, "pre_install,configure,post_build,bundle").exits(1).says("stopped by a failpoint").says("is still live");
        assert_eq!(world.snapshot("shop"), before, "{point} left something behind");
    }
    dry_run(world, "pre_install,configure,post_build,bundle").ok();
    assert_eq!(world.snapshot("shop"), before);
    // If the revert of a successful dry run fails, the environment is frozen.
    world.restart(&[("FAILPOINTS", "undo.bundle.archive=1*return")]);
    dry_run(world, "bundle").exits(1).says("is frozen");
    world.larder(&["deploy", "shop", "--unfreeze"]).ok();
    assert_eq!(world.snapshot("shop").files, before.files);
    dry_run(world, "bundle").ok();
}

fn killed_dry_run_is_reverted(world: &World) {
    let (repo, live) = live_and_topic(world, GATE);
    let before = world.snapshot("shop");
    let mut dry_run = start_dry_run(world);
    waits(world, 2);
    world.kill9_all();
    let _ = dry_run.wait();
    world.start(&[]);
    until("the dry run is reverted", || world.has_ended("shop"));
    assert_eq!(world.outcomes("shop")[1].as_deref(), Some("rolled_back"));
    world.serves("shop", "version one");
    assert_eq!((world.snapshot("shop").files, repo.live()), (before.files, Some(live)));
    world.larder(&["status"]).keeps_quiet_about("failed");
    // The second kill happens while a successful dry run is reverted.
    std::fs::write(world.environment("shop").join("cache/gate"), "").unwrap();
    world.restart(&[("FAILPOINTS", "journal.undo_started.build.compile=1*sleep(60000)")]);
    let mut dry_run = start_dry_run(world);
    until("the dry run is being reverted", || {
        world.journals("shop").get(2).is_some_and(|journal| journal.iter().any(|event| event["event"] == "undo_started"))
    });
    world.kill9_all();
    assert!(!dry_run.wait().unwrap().success());
    world.start(&[]);
    until("the dry run is reverted", || world.has_ended("shop"));
    world.serves("shop", "version one");
    world.is_consistent("shop");
}

fn dry_run_of_gather_tells_if_production_accepts_a_release(world: &World) {
    let (repo, release) = halfway(world, "", "");
    let (live, commit) = (repo.live(), repo.head());
    let ask = || world.larder(&["deploy", "shop", "--ref", &commit, "--only", "gather"]);
    ask().exits(0).says("dry run of gather succeeded; all changes were reverted: v1 is still live");
    // The verified deliverable stays in the store.
    assert_eq!(stored(world, &release), [".health.json", ".index", ".manifest.json", ".tar.zst"]);
    world.serves("shop", "version one");
    assert_eq!(repo.live(), live);
    world.is_consistent_with_a_store("shop");
    repo.page("not cooked");
    repo.push_as(&["HEAD:refs/heads/topic"]).accepted();
    world.larder(&["deploy", "shop", "--ref", "topic", "--only", "gather"]).exits(4).says("no deliverable of commit");
}
