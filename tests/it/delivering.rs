//! Deliveries, which have no build: every step of the plan fails once and runs twice, and the server is killed once at every event. By
//! default, the kills happen at the events of the whole deployment and of `gather`; with `LARDER_TEST_THOROUGH`, at every event.

use crate::{
    harness::{
        Repo, World,
        faults::{self, Attempt},
        in_each_mode, in_one_mode,
        state::names,
        until,
    },
    promotion::{are_alike, here, introduce, live_manifest, pair, production, staging},
    recovery::{Course, Victim, at_every_event},
};

in_each_mode!(failure_at_any_step_of_delivery_leaves_nothing);
in_one_mode!(repeated_step_of_a_delivery_succeeds, fetch_from_a_second_server_survives_failure_repetition_and_kill);

/// A recipe that gives every step something to do.
const RECIPE: &str = "data:\n  - media\nsmoke:\n  - /\n";
const PROCFILE: &str = "release: echo released >> media/count\nworker: sleep 1000\n";

#[test]
fn server_killed_at_events_of_a_delivery_recovers() {
    at_every_event(Victim::Server, Course::Delivering);
}

/// Sets up a project with staging and production on one server. Production serves version one, and staging serves version two.
pub fn halfway<'w>(world: &'w World, recipe: &str, procfile: &str) -> (Repo<'w>, String) {
    pair(world);
    let repo = Repo::new(world, "shop");
    repo.write("larder.yml", recipe);
    if !procfile.is_empty() {
        repo.write("Procfile", procfile);
    }
    repo.program(".larder/deploy", "#!/bin/sh\nexit 0\n");
    repo.page("version one");
    staging(&repo).accepted();
    production(&repo).accepted();
    repo.page("version two");
    staging(&repo).accepted();
    world.serves("shop", "version one");
    world.serves("staging--shop", "version two");
    let release = std::fs::read_link(world.root().join("projects/shop/staging/deploy/current")).unwrap();
    (repo, release.display().to_string())
}

/// Returns the suffixes of a release's files in the store of production, such as `.tar.zst`.
pub fn stored(world: &World, release: &str) -> Vec<String> {
    let names = names(&world.environment("shop").join("releases"));
    names.into_iter().filter_map(|name| Some(name.strip_prefix(release)?.to_owned())).collect()
}

fn failure_at_any_step_of_delivery_leaves_nothing(world: &World) {
    let (repo, release) = halfway(world, "smoke:\n  - /\n", "");
    let steps = world.steps("shop");
    assert_eq!(steps, world.last_plan("shop"));
    assert!(steps[0] == "gather.deliverable" && steps.iter().all(|step| !step.starts_with("build.")), "{steps:?}");
    let ask = || world.larder(&["pull", "shop"]);
    // The fetched release stays in the store, because it is complete and verified.
    let stays = |name: &str| name.starts_with(&release);
    let attempt = Attempt { world, repo: &repo, ask: &ask, old: "version one", new: "version two", stays: &stays };
    let unwinds = attempt.fails_once_at_each(&steps);
    faults::compare(world, "unwinds of final", &unwinds);
    assert_eq!(stored(world, &release), [".health.json", ".index", ".manifest.json", ".tar.zst"]);
    assert_eq!(live_manifest(world, "production", "shop"), live_manifest(world, "staging", "shop"));
    world.serves("staging--shop", "version two");
    let outcomes = world.outcomes("shop");
    assert_eq!(outcomes.len(), unwinds.lines().count() + 2);
    assert!(outcomes.iter().all(|outcome| outcome.as_deref() != Some("stuck")), "{outcomes:?}");
}

fn repeated_step_of_a_delivery_succeeds(world: &World) {
    let (_repo, release) = halfway(world, RECIPE, PROCFILE);
    world.restart(&[("FAILPOINTS", "twice=return")]);
    world.larder(&["pull", "shop"]).ok();
    world.serves("shop", "version two");
    assert_eq!(stored(world, &release), [".health.json", ".index", ".manifest.json", ".tar.zst"]);
    assert_eq!(live_manifest(world, "production", "shop"), live_manifest(world, "staging", "shop"));
    until("the old release has retired", || world.ports("shop").len() == 1);
    world.is_consistent("shop");
    // The release command of version one ran once, and the release command of version two ran twice. Staging has its own data.
    assert_eq!(world.larder(&["run", "shop/production", "--", "cat", "media/count"]).ok().lines().count(), 3);
    world.larder(&["rollback", "shop/production"]).ok();
    world.serves("shop", "version one");
    world.is_consistent("shop");
}

/// Fails, repeats and kills the steps of deliveries from another server. The release is fetched as an archive or as a delta.
fn fetch_from_a_second_server_survives_failure_repetition_and_kill(world: &World) {
    let Some(staging) = World::any() else { return };
    introduce(here(world), here(&staging), &["shop"]);
    let repo = Repo::new(&staging, "shop");
    for number in 0..100 {
        repo.write(&format!("pages/{number}.html"), format!("page {number}\n").repeat(50));
    }
    let cook = |page: &str| {
        repo.page(page);
        repo.push().accepted();
    };
    let newest = || std::fs::read_link(staging.environment("shop").join("deploy/current")).unwrap().display().to_string();
    let here = Repo::new(world, "shop");
    let deltas = std::cell::Cell::new(0);
    let ask = || {
        let said = world.larder(&["pull", "shop"]);
        let stored = names(&world.environment("shop").join("releases"));
        deltas.set(deltas.get() + u32::from(stored.iter().any(|name| name.ends_with(".delta"))));
        said
    };
    let complete = || are_alike(world, &staging);
    cook("version 1");
    ask().ok();
    world.serves("shop", "version 1");

    cook("version 2");
    let release = newest();
    let stays = |name: &str| name.starts_with(&release);
    let attempt = Attempt { world, repo: &here, ask: &ask, old: "version 1", new: "version 2", stays: &stays };
    let steps = world.last_plan("shop");
    let fetching: Vec<_> =
        steps.iter().filter(|step| step.starts_with("gather.") || *step == "deploy.install").cloned().collect();
    assert!(fetching.len() > 4, "{fetching:?}");
    drop(attempt.fails_once_at_each(&fetching));
    assert!(deltas.get() > 4, "no release was fetched as a delta");
    complete();
    assert_eq!(stored(world, &release), [".health.json", ".index", ".manifest.json", ".tar.zst"]);

    cook("version 3");
    world.restart(&[("FAILPOINTS", "twice=return")]);
    ask().ok();
    world.serves("shop", "version 3");
    complete();
    world.is_consistent("shop");

    let events =
        ["started.gather.deliverable", "succeeded.gather.deliverable", "started.deploy.install", "succeeded.deploy.install"];
    for (version, event) in (3..).zip(events) {
        let (old, new) = (format!("version {version}\n"), format!("version {}\n", version + 1));
        cook(new.trim_end());
        world.restart(&[("FAILPOINTS", &format!("journal.{event}=1*sleep(60000)"))]);
        let before = world.journals("shop").len();
        let mut asking = world.larder_command();
        let mut asking = asking.args(["pull", "shop"]).stdout(std::process::Stdio::null()).spawn().unwrap();
        let step = event.split_once('.').unwrap().1;
        until("the pull has reached the step", || {
            let journals = world.journals("shop");
            journals.len() > before && journals.last().unwrap().iter().any(|line| line["step"] == step)
        });
        world.kill9_all();
        let _ = asking.wait();
        world.start(&[]);
        world.serves("shop", &old);
        let outcome = world.outcomes("shop").pop().flatten();
        assert!(matches!(outcome.as_deref(), Some("refused" | "rolled_back")), "{event}: {outcome:?}");
        let trees = names(&world.environment("shop").join("deploy"));
        assert!(!trees.contains(&newest()), "{event}: a tree is left: {trees:?}");
        ask().ok();
        world.serves("shop", &new);
        complete();
        world.is_consistent("shop");
    }
    staging.end();
}
