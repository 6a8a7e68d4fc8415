//! Protected environments: release freezes, deploy windows, approvals by a second person, and overrides.

use crate::harness::{Repo, World, in_one_mode};

in_one_mode!(
    release_freeze_refuses_pushes_with_end_and_reason,
    deployment_needs_the_approval_of_a_second_person,
    deploy_window_refuses_deployments_at_other_times,
);

fn user(world: &World, name: &str, rights: &[(&str, &str)]) {
    world.key(name);
    world.larder(&["user", "add", name, "--key-file", &world.public_key(name)]).ok();
    for (target, right) in rights {
        world.larder(&["user", "grant", name, target, right]).ok();
    }
}

fn release_freeze_refuses_pushes_with_end_and_reason(world: &World) {
    world.project("shop");
    world.larder(&["project", "create", "shop", "--env", "staging", "--branch", "next"]).ok();
    user(world, "ops", &[("shop", "operate")]);
    user(world, "lead", &[("shop", "admin")]);
    user(world, "bob", &[("shop", "push")]);
    let repo = Repo::site(world, "shop", "version one").by("bob");
    repo.push().accepted();
    world.ssh("bob", &["freeze", "shop", "--why", "no"]).exits(3);
    world
        .ssh("ops", &["freeze", "shop/production", "--until", "2999-12-24", "--why", "stocktaking"])
        .exits(0)
        .says("stocktaking");
    repo.page("version two");
    let refused = repo.push();
    refused.rejected_with("shop/production has a release freeze until");
    refused.says("2999-12-25 00:00 UTC: stocktaking (ops)").says(&format!("larder approve shop/production {}", repo.head()));
    world.serves("shop", "version one");
    // The word "frozen" belongs to environments whose deployment got stuck.
    world.ssh("bob", &["status"]).exits(0).keeps_quiet_about("frozen");
    refused.0.keeps_quiet_about("is frozen");
    world.ssh("ops", &["deploy", "shop"]).exits(3).says("has a release freeze until");
    // Another environment, a dry run, and a rollback are not concerned.
    repo.git(&["push", &repo.url(), "HEAD:refs/heads/next"]).exits(0);
    world.ssh("ops", &["deploy", "shop", "--only", "gather"]).exits(0);
    // The release freeze survives a restart.
    world.restart(&[]);
    repo.push().rejected_with("has a release freeze until");
    // An override is for one commit, by an administrator of the environment, and is recorded.
    let head = repo.head();
    world.ssh("ops", &["approve", "shop/production", &head, "--override", "'payment page is broken'"]).exits(3);
    world.ssh("lead", &["approve", "shop/production", &head, "--override", "'payment page is broken'"]).exits(0);
    repo.push().accepted();
    world.serves("shop", "version two");
    world.larder(&["audit"]).says("override: payment page is broken");
    repo.page("version three");
    repo.push().rejected_with("has a release freeze until");
    world.ssh("ops", &["rollback", "shop"]).exits(0);
    world.serves("shop", "version one");
    world.ssh("ops", &["freeze", "shop/production", "--end"]).exits(0).says("has no release freeze");
    repo.push().accepted();
    world.ssh("ops", &["freeze", "shop/production", "--end"]).exits(4).says("deploy --unfreeze");
    for (words, status) in [
        (&["freeze", "shop", "--until", "yesterday", "--why", "x"][..], 2),
        (&["freeze", "shop", "--until", "2020-01-01", "--why", "x"], 2),
        (&["freeze", "shop", "--until", "3d"], 2),
        (&["freeze", "shop", "--end", "--why", "x"], 2),
        (&["freeze", "nowhere", "--why", "x"], 4),
        (&["freeze", "shop/nothing", "--why", "x"], 4),
    ] {
        world.larder(words).exits(status);
    }
}

fn deployment_needs_the_approval_of_a_second_person(world: &World) {
    world.project("shop");
    user(world, "ann", &[("shop", "deploy")]);
    user(world, "bob", &[("shop", "deploy")]);
    user(world, "pat", &[("shop", "push")]);
    let repo = Repo::site(world, "shop", "version one").by("bob");
    world.ssh("bob", &["protect", "shop", "--approval", "on"]).exits(3);
    world.larder(&["protect", "shop/production", "--approval", "on"]).exits(0).says("need the approval of a second person");
    let head = repo.head();
    let refused = repo.push();
    refused.rejected_with("wants the approval of");
    refused.says(&format!("larder approve shop/production {head}"));
    // Neither the pusher nor a user without the right to deploy approves.
    world.ssh("bob", &["approve", "shop", &head]).exits(0);
    repo.push().rejected_with("by a second person");
    world.ssh("pat", &["approve", "shop", &head]).exits(3);
    world.ssh("ann", &["approve", "shop", &head]).exits(0).says("is approved for shop/production by ann");
    repo.push().accepted();
    world.serves("shop", "version one");
    repo.page("version two");
    repo.push().rejected_with("wants the approval of");
    world.ssh("ann", &["approve", "shop", "abc123"]).exits(2);
    world.larder(&["protect", "shop/production", "--approval", "off"]).exits(0).says("need no approval");
    repo.push().accepted();
}

fn deploy_window_refuses_deployments_at_other_times(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    // A window of one minute on another day of the week than today.
    let days = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).weekday().to_monday_zero_offset();
    let other = days[usize::try_from((today + 3).rem_euclid(7)).unwrap()];
    let window = format!("{other} 03:00-03:01");
    world.larder(&["protect", "shop", "--window", &window]).exits(0).says(&format!("may begin at {window}"));
    repo.push().rejected_with(&format!("is deployed only at {window} (UTC)"));
    world.larder(&["protect", "shop", "--window", &window, "--window", "Mon-Sun 00:00-24:00"]).exits(0);
    repo.push().accepted();
    world.larder(&["protect", "shop", "--window", "always"]).exits(2).says("is not a deploy window");
    world.larder(&["protect", "shop", "--window", "none"]).exits(0).says("at any time");
    world.ssh("alice", &["protect", "shop", "--json"]).exits(0).says("\"approval\": false");
}
