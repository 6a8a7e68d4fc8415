//! Production serves what staging cooked: the very bytes, found by commit or by name, never built again.

use crate::harness::{Repo, World, cli::Output, in_each_mode, in_one_mode, state::names};

in_each_mode!(one_server_two_environments);
in_one_mode!(
    what_was_not_cooked_is_refused_early,
    an_equal_tree_is_the_same_release,
    production_never_builds,
    staging_off_production_goes_on,
    two_servers,
    policy_asks_for_proof
);

/// A project with staging, which cooks the branch `staging`, and production, which serves the branch `main`.
pub fn pair(world: &World) {
    world.larder(&["project", "create", "shop", "--env", "production", "--mode", "final", "--branch", "main"]).ok();
    world.larder(&["project", "create", "shop", "--env", "staging", "--mode", "cooking", "--branch", "staging"]).ok();
}

pub fn staging(repo: &Repo<'_>) -> crate::harness::git::Push {
    repo.push_as(&["HEAD:refs/heads/staging"])
}

pub fn production(repo: &Repo<'_>) -> crate::harness::git::Push {
    repo.push_as(&["HEAD:refs/heads/main"])
}

/// The manifest of what is live in an environment.
pub fn live_manifest(world: &World, environment: &str) -> serde_json::Value {
    let top = world.root().join("projects/shop").join(environment);
    let release = std::fs::read_link(top.join("deploy/current")).unwrap();
    let path = top.join("releases").join(format!("{}.manifest.json", release.display()));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Two servers have the same release, and both have its archive: what came as a delta is packed again after the verdict.
#[track_caller]
pub fn are_alike(one: &World, other: &World) {
    crate::harness::until("the archive is made again", || {
        let stored = names(&one.environment("shop").join("releases"));
        !stored.iter().any(|name| name.ends_with(".delta"))
            && live_manifest(one, "production") == live_manifest(other, "production")
    });
}

fn one_server_two_environments(world: &World) {
    pair(world);
    let repo = Repo::site(world, "shop", "version one");
    staging(&repo).accepted();
    world.serves("staging--shop", "version one");
    let push = production(&repo);
    push.accepted().says("from the environment staging").says("v1 is live");
    world.serves("shop", "version one");
    let (there, here) = (live_manifest(world, "staging"), live_manifest(world, "production"));
    assert_eq!(here, there, "the same release, to the last digest");
    assert!(here["signature"]["key"].as_str().unwrap().starts_with("ed25519:"));
    world.is_consistent("shop");
    // The next one by `promote`, and back by `rollback`.
    let second = repo.page("version two");
    staging(&repo).accepted();
    world.serves("shop", "version one");
    world.larder(&["promote", "shop", "v2", "--to", "production"]).ok();
    world.serves("shop", "version two");
    assert_eq!(repo.live(), Some(second));
    world.larder(&["rollback", "shop/production"]).ok();
    world.serves("shop", "version one");
    // And forward again by `pull`, which finds the newest by itself.
    world.larder(&["pull", "shop"]).ok();
    world.serves("shop", "version two");
    world.larder(&["pull", "shop"]).says("is live already");
    assert_eq!(live_manifest(world, "production"), live_manifest(world, "staging"));
    world.is_consistent("shop");
}

fn what_was_not_cooked_is_refused_early(world: &World) {
    pair(world);
    let repo = Repo::site(world, "shop", "version one");
    production(&repo).rejected_with("there is no deliverable of commit").says("push to the staging environment first");
    staging(&repo).accepted();
    production(&repo).accepted();
    repo.page("version two");
    let push = production(&repo);
    push.rejected_with("there is no deliverable of commit").says("on offer: v1");
    world.serves("shop", "version one");
    assert_eq!(world.outcomes("shop").len(), 1, "nothing was begun");
    // A release that failed on staging is none.
    repo.program(".larder/post_build", "#!/bin/sh\nexit 1\n");
    repo.commit("tests fail");
    staging(&repo).rejected_with("post_build");
    production(&repo).rejected_with("there is no deliverable of commit");
    world.larder(&["pull", "shop", "v7"]).exits(4).says("no deliverable of v7");
    world.larder(&["promote", "shop", "v7", "--to", "production"]).exits(4).says("no release v7");
    world.larder(&["promote", "shop", "--to", "moon"]).exits(4).says("neither a remote nor another environment");
    world.larder(&["promote", "shop", "--to", "staging"]).exits(4);
    world.larder(&["pull", "shop/staging"]).exits(3).says("makes its releases itself");
    let anyone: Output = world.larder(&["deploy", "shop/production"]);
    anyone.ok();
    world.serves("shop", "version one");
}

fn an_equal_tree_is_the_same_release(world: &World) {
    pair(world);
    let repo = Repo::site(world, "shop", "version one");
    staging(&repo).accepted();
    repo.git(&["commit", "--quiet", "--allow-empty", "-m", "a merge that changes nothing"]).ok();
    production(&repo).accepted().says("has the same tree");
    world.serves("shop", "version one");
    assert_eq!(repo.live(), Some(repo.head()), "the branch names what was pushed");
}

fn production_never_builds(world: &World) {
    pair(world);
    let repo = Repo::site(world, "shop", "version one");
    for phase in ["build", "post_build", "bundle"] {
        repo.program(
            &format!(".larder/{phase}"),
            &format!("#!/bin/sh\necho \"{phase} by $LARDER_ENVIRONMENT\"\necho {phase} >> built-by\n"),
        );
    }
    repo.program(".larder/deploy", "#!/bin/sh\necho \"deploy in $LARDER_ENVIRONMENT\"\n");
    repo.commit("with scripts");
    staging(&repo).accepted().says("build by staging").says("bundle by staging").says("deploy in staging");
    let push = production(&repo);
    push.accepted().says("deploy in production");
    push.0.keeps_quiet_about("by production");
    let plan = world.larder(&["plan", "shop/production"]);
    for line in plan.ok().lines() {
        assert!(!line.trim().starts_with("build") && !line.trim().starts_with("bundle"), "{line}");
    }
    assert_eq!(world.get("shop", "/built-by").body, "build\npost_build\nbundle\n");
}

fn staging_off_production_goes_on(world: &World) {
    pair(world);
    let repo = Repo::site(world, "shop", "version one");
    staging(&repo).accepted();
    production(&repo).accepted();
    repo.page("version two");
    staging(&repo).accepted();
    production(&repo).accepted();
    // What staging keeps is gone; production has its own.
    let releases = world.root().join("projects/shop/staging/releases");
    for name in names(&releases) {
        let _ = std::fs::remove_file(releases.join(name));
    }
    world.larder(&["deploy", "shop/production"]).ok();
    world.serves("shop", "version two");
    world.larder(&["rollback", "shop/production"]).ok();
    world.serves("shop", "version one");
    world.is_consistent("shop");
}

/// What `larder key show` says of a world.
fn keys(world: &World) -> serde_json::Value {
    world.larder(&["key", "show", "--json"]).json()
}

/// Makes two servers known to each other: `staging` cooks, `world` serves.
pub fn introduce(world: &World, staging: &World) {
    introduce_over(world, staging, staging.ssh_port());
}

/// The same where production reaches staging at another port.
pub fn introduce_over(world: &World, staging: &World, port: u16) {
    staging.project("shop");
    world.larder(&["project", "create", "shop", "--mode", "final", "--branch", "main"]).ok();
    let (here, there) = (keys(world), keys(staging));
    let text =
        |value: &serde_json::Value, key: &str| value[key].as_str().unwrap_or_else(|| panic!("{key} in {value}")).to_owned();
    for (at, name, other, right) in [(staging, "prod", &here, "view"), (world, "staging", &there, "push")] {
        at.larder(&["user", "add", name, "--key", &text(other, "pull")]).ok();
        at.larder(&["user", "grant", name, "shop", right]).ok();
    }
    for (at, name, other, port) in [(world, "staging", &there, port), (staging, "prod", &here, world.ssh_port())] {
        let url = format!("ssh://larder@127.0.0.1:{port}/shop");
        let words = ["remote", "add", "shop", name, &url, "--trust", &text(other, "signing"), "--host-key", &text(other, "host")];
        at.larder(&words).ok();
    }
}

fn two_servers(world: &World) {
    let Some(staging) = World::any() else { return };
    introduce(world, &staging);
    let repo = Repo::new(&staging, "shop");
    for number in 0..300 {
        repo.write(&format!("pages/{number}.html"), format!("page {number}\n").repeat(50));
    }
    repo.page("version one");
    repo.push().accepted();
    world.larder(&["pull", "shop"]).says("from the remote staging").says("v1 is live");
    world.serves("shop", "version one");
    assert_eq!(live_manifest(world, "production"), live_manifest(&staging, "production"));
    world.is_consistent("shop");
    // The second one from the other side. Only what changed travels, and the archive is the same again.
    repo.page("version two");
    repo.push().accepted();
    let promoted = staging.larder(&["promote", "shop", "v2", "--to", "prod"]);
    promoted.says("v2 is live");
    let pulled = promoted.ok().lines().find_map(|line| line.trim().split_once(" KiB pulled")?.0.parse::<u64>().ok());
    assert!(pulled.is_some_and(|pulled| pulled < 8), "{promoted}");
    world.serves("shop", "version two");
    are_alike(world, &staging);
    world.is_consistent("shop");
    // By push, with the repository's own history.
    repo.page("version three");
    repo.push().accepted();
    let here = Repo::new(world, "shop");
    here.git(&["pull", "--quiet", repo.path().to_str().unwrap(), "HEAD"]).ok();
    here.push().accepted();
    world.serves("shop", "version three");
    // With staging gone, production goes on by itself.
    staging.end();
    world.larder(&["deploy", "shop"]).ok();
    world.larder(&["rollback", "shop", "v1"]).ok();
    world.serves("shop", "version one");
    world.larder(&["rollback", "shop", "v3"]).ok();
    world.serves("shop", "version three");
    world.larder(&["pull", "shop"]).exits(4).says("could not be asked");
    world.is_consistent("shop");
}

fn policy_asks_for_proof(world: &World) {
    pair(world);
    let repo = Repo::site(world, "shop", "version one");
    repo.write("larder.yml", "environments:\n  production:\n    promote:\n      min_healthy: 1h\n      checks: [smoke]\n");
    repo.commit("with a policy");
    staging(&repo).accepted();
    production(&repo).rejected_with("not fit for promotion").rejected_with("1 h").says("--override");
    assert_eq!(repo.ls_remote().get("refs/heads/main"), None, "nothing is live");
    world.larder(&["pull", "shop", "--override", "no"]).exits(2).says("needs a reason");
    let overridden = world.larder(&["pull", "shop", "--override", "the shop is down"]);
    overridden.says("promoted against the policy").says("the shop is down").ok();
    world.serves("shop", "version one");
    let opened = world.journals("shop").last().unwrap()[0].clone();
    assert_eq!(opened["overriding"], "the shop is down");
}
