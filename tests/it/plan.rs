//! `larder plan` prints the steps of a deployment without running them.

use crate::harness::{Repo, World, in_one_mode, output::golden};

in_one_mode!(
    plan_of_a_cooking_environment_matches_the_golden_file,
    plan_of_a_final_environment_matches_the_golden_file,
    plan_of_an_in_place_environment_matches_the_golden_file,
    plan_of_an_editable_environment_matches_the_golden_file,
);

fn plan_of_a_cooking_environment_matches_the_golden_file(world: &World) {
    world.project("shop");
    golden("plan of cooking", world.larder(&["plan", "shop"]).ok());
    let only = world.larder(&["plan", "shop", "--only", "gather,bundle"]);
    let phases: Vec<_> = only.ok().lines().filter(|line| !line.starts_with(' ')).collect();
    assert_eq!(phases, ["gather", "bundle"]);
    world.larder(&["plan", "shop", "--only", "cook"]).exits(2);
    assert_eq!(world.journals("shop").len(), 0);
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    assert_eq!(world.ssh("alice", &["plan", "shop"]).ok(), world.larder(&["plan", "shop"]).ok());
    assert_eq!(world.journals("shop").len(), 1);
    // The deployment runs the printed steps, in that order.
    let journal = &world.journals("shop")[0];
    let done: Vec<_> =
        journal.iter().filter(|record| record["event"] == "succeeded").map(|record| record["step"].as_str().unwrap()).collect();
    assert!(!done.is_empty(), "{journal:#?}");
    assert_eq!(done, world.steps("shop"));
    world.larder(&["plan", "shop", "--only", "deploy"]).says("deploy.switch").keeps_quiet_about("gather.source");
    world.larder(&["plan", "nowhere"]).exits(4);
}

fn plan_of_a_final_environment_matches_the_golden_file(world: &World) {
    world.larder(&["project", "create", "shop", "--mode", "final"]).ok();
    golden("plan of final", world.larder(&["plan", "shop"]).ok());
}

fn plan_of_an_editable_environment_matches_the_golden_file(world: &World) {
    world.larder(&["project", "create", "shop", "--mode", "editable"]).ok();
    golden("plan of editable", world.larder(&["plan", "shop"]).ok());
}

fn plan_of_an_in_place_environment_matches_the_golden_file(world: &World) {
    for mode in ["cooking", "final"] {
        world.larder(&["project", "create", mode, "--mode", mode, "--strategy", "in-place"]).ok();
        golden(&format!("plan of {mode} in place"), world.larder(&["plan", mode]).ok());
    }
}
