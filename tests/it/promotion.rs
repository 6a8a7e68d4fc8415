//! Promotion: production serves the bytes that staging cooked, found by commit or by name, and never builds.

use crate::harness::{Repo, World, cli::Output, in_each_mode, in_one_mode, state::names};

in_each_mode!(production_serves_bytes_of_staging_on_one_server);
in_one_mode!(
    commit_that_was_not_cooked_is_refused,
    commit_with_equal_tree_uses_existing_release,
    production_does_not_build,
    production_serves_without_staging,
    production_pulls_from_staging_on_another_server,
    health_record_grows_while_staging_serves,
    promote_to_shared_remote_updates_health_record,
    promotion_policy_refuses_until_it_is_met,
    unusable_remote_ends_pull_and_promote_with_status_3_or_4,
);

/// Creates a project with staging, which cooks the branch `staging`, and production, which serves the branch `main`.
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

/// Reads the manifest of the live release of an environment.
pub fn live_manifest(world: &World, environment: &str, project: &str) -> serde_json::Value {
    let top = world.root().join("projects").join(project).join(environment);
    let release = std::fs::read_link(top.join("deploy/current")).unwrap();
    let path = top.join("releases").join(format!("{}.manifest.json", release.display()));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Checks that two servers have the same live release with its archive. A release that was fetched as a delta is packed after the verdict,
/// so this function waits for its archive.
#[track_caller]
pub fn are_alike(one: &World, other: &World) {
    crate::harness::until("the archive is rebuilt", || {
        let stored = names(&one.environment("shop").join("releases"));
        !stored.iter().any(|name| name.ends_with(".delta"))
            && live_manifest(one, "production", "shop") == live_manifest(other, "production", "shop")
    });
}

fn production_serves_bytes_of_staging_on_one_server(world: &World) {
    pair(world);
    let repo = Repo::site(world, "shop", "version one");
    staging(&repo).accepted();
    world.serves("staging--shop", "version one");
    let push = production(&repo);
    push.accepted().says("from the environment staging").says("v1 is live");
    world.serves("shop", "version one");
    let (there, here) = (live_manifest(world, "staging", "shop"), live_manifest(world, "production", "shop"));
    assert_eq!(here, there, "the same release, to the last digest");
    assert!(here["signature"]["key"].as_str().unwrap().starts_with("ed25519:"));
    world.is_consistent("shop");
    // `promote` deploys the next release, and `rollback` deploys the previous release.
    let second = repo.page("version two");
    staging(&repo).accepted();
    world.serves("shop", "version one");
    world.larder(&["promote", "shop", "v2", "--to", "production"]).ok();
    world.serves("shop", "version two");
    assert_eq!(repo.live(), Some(second));
    world.larder(&["rollback", "shop/production"]).ok();
    world.serves("shop", "version one");
    // `pull` deploys the newest release again.
    world.larder(&["pull", "shop"]).ok();
    world.serves("shop", "version two");
    world.larder(&["pull", "shop"]).says("is live already");
    assert_eq!(live_manifest(world, "production", "shop"), live_manifest(world, "staging", "shop"));
    world.is_consistent("shop");
}

fn commit_that_was_not_cooked_is_refused(world: &World) {
    pair(world);
    let repo = Repo::site(world, "shop", "version one");
    production(&repo).rejected_with("there is no deliverable of commit").says("push to the staging environment first");
    staging(&repo).accepted();
    production(&repo).accepted();
    repo.page("version two");
    let push = production(&repo);
    push.rejected_with("there is no deliverable of commit").says("choose an offered release: v1");
    world.serves("shop", "version one");
    assert_eq!(world.outcomes("shop").len(), 1, "no further deployment begins");
    // A release that failed on staging cannot be promoted.
    repo.program(".larder/post_build", "#!/bin/sh\nexit 1\n");
    repo.commit("tests fail");
    staging(&repo).rejected_with("post_build");
    production(&repo).rejected_with("there is no deliverable of commit");
    world.larder(&["pull", "shop", "v7"]).exits(4).says("no deliverable of v7");
    world.larder(&["promote", "shop", "v7", "--to", "production"]).exits(4).says("no release v7");
    world.larder(&["promote", "shop", "--to", "moon"]).exits(4).says("neither a remote nor another environment");
    world.larder(&["promote", "shop", "--to", "staging"]).exits(4);
    world.larder(&["pull", "shop/staging"]).exits(3).says("builds its own releases");
    let anyone: Output = world.larder(&["deploy", "shop/production"]);
    anyone.ok();
    world.serves("shop", "version one");
}

fn commit_with_equal_tree_uses_existing_release(world: &World) {
    pair(world);
    let repo = Repo::site(world, "shop", "version one");
    staging(&repo).accepted();
    repo.git(&["commit", "--quiet", "--allow-empty", "-m", "a merge that changes nothing"]).ok();
    production(&repo).accepted().says("has the same tree");
    world.serves("shop", "version one");
    assert_eq!(repo.live(), Some(repo.head()), "the branch names the pushed commit");
}

fn production_does_not_build(world: &World) {
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

fn production_serves_without_staging(world: &World) {
    pair(world);
    let repo = Repo::site(world, "shop", "version one");
    staging(&repo).accepted();
    production(&repo).accepted();
    repo.page("version two");
    staging(&repo).accepted();
    production(&repo).accepted();
    // The store of staging is removed; production has its own store.
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

/// Returns the output of `larder key show` of a world.
fn keys(world: &World) -> serde_json::Value {
    world.larder(&["key", "show", "--json"]).json()
}

/// A server, and the address and port at which the other server reaches it.
pub type Side<'w> = (&'w World, &'w str, u16);

/// Returns a server on this machine that is reached directly.
pub fn here(world: &World) -> Side<'_> {
    (world, "127.0.0.1", world.ssh_port())
}

/// Adds each of two servers as a remote of the other server. `production` serves, and `staging` cooks. `projects` are created on both
/// servers.
pub fn introduce(production: Side<'_>, staging: Side<'_>, projects: &[&str]) {
    let text =
        |value: &serde_json::Value, key: &str| value[key].as_str().unwrap_or_else(|| panic!("{key} in {value}")).to_owned();
    for ((at, ..), name, (other, ..)) in [(staging, "prod", production), (production, "staging", staging)] {
        at.larder(&["user", "add", name, "--key", &text(&keys(other), "pull")]).ok();
    }
    for project in projects {
        staging.0.project(project);
        production.0.larder(&["project", "create", project, "--mode", "final", "--branch", "main"]).ok();
        staging.0.larder(&["user", "grant", "prod", project, "view"]).ok();
        production.0.larder(&["user", "grant", "staging", project, "deploy"]).ok();
        for ((at, ..), name, (other, host, port)) in [(production, "staging", staging), (staging, "prod", production)] {
            let (keys, url) = (keys(other), format!("ssh://larder@{host}:{port}/{project}"));
            let trust = ["--trust", &text(&keys, "signing"), "--host-key", &text(&keys, "host")];
            at.larder(&[&["remote", "add", project, name, &url], &trust[..]].concat()).ok();
        }
    }
}

fn production_pulls_from_staging_on_another_server(world: &World) {
    let Some(staging) = World::any() else { return };
    introduce(here(world), here(&staging), &["shop"]);
    let repo = Repo::new(&staging, "shop");
    for number in 0..300 {
        repo.write(&format!("pages/{number}.html"), format!("page {number}\n").repeat(50));
    }
    repo.page("version one");
    repo.push().accepted();
    world.larder(&["pull", "shop"]).says("from the remote staging").says("v1 is live");
    world.serves("shop", "version one");
    assert_eq!(live_manifest(world, "production", "shop"), live_manifest(&staging, "production", "shop"));
    world.is_consistent("shop");
    // `promote` deploys the second release. Only changes are transferred, and the archive is the same.
    repo.page("version two");
    repo.push().accepted();
    let promoted = staging.larder(&["promote", "shop", "v2", "--to", "prod"]);
    promoted.says("v2 is live");
    let pulled = promoted.ok().lines().find_map(|line| line.trim().split_once(" KiB pulled")?.0.parse::<u64>().ok());
    assert!(pulled.is_some_and(|pulled| pulled < 8), "{promoted}");
    world.serves("shop", "version two");
    are_alike(world, &staging);
    world.is_consistent("shop");
    // A push deploys the third release, with the history of the repository.
    repo.page("version three");
    repo.push().accepted();
    let here = Repo::new(world, "shop");
    here.git(&["pull", "--quiet", repo.path().to_str().unwrap(), "HEAD"]).ok();
    here.push().accepted();
    world.serves("shop", "version three");
    // Without staging, production continues.
    staging.end();
    world.larder(&["deploy", "shop"]).ok();
    world.larder(&["rollback", "shop", "v1"]).ok();
    world.serves("shop", "version one");
    world.larder(&["rollback", "shop", "v3"]).ok();
    world.serves("shop", "version three");
    world.larder(&["pull", "shop"]).exits(3).says("cannot reach a remote");
    world.is_consistent("shop");
}

fn health_record_grows_while_staging_serves(world: &World) {
    let Some(staging) = World::any() else { return };
    introduce(here(world), here(&staging), &["shop"]);
    let repo = Repo::new(&staging, "shop");
    repo.write("larder.yml", "environments:\n  production:\n    promote:\n      min_healthy: 4s\n");
    repo.page("version one");
    repo.push().accepted();
    let pulled = world.larder(&["pull", "shop"]);
    pulled.exits(1).says("not fit for promotion").says("of the 4 s").says("wait until the release meets the policy");
    // Production has the release in its store now. Each further pull fetches only the health record of the release from staging.
    crate::harness::until("the release meets the policy", || world.larder(&["pull", "shop"]).status == 0);
    world.serves("shop", "version one");
    staging.end();
}

fn promote_to_shared_remote_updates_health_record(world: &World) {
    use std::os::unix::fs::PermissionsExt;
    let Some(staging) = World::any() else { return };
    let shared = staging.directory().join("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o777)).unwrap();
    let url = format!("file://{}", shared.display());
    let signing = keys(&staging)["signing"].as_str().unwrap().to_owned();
    staging.project("shop");
    staging.larder(&["remote", "add", "shop", "shared", &url, "--publish"]).ok();
    staging.larder(&["remote", "add", "shop", "other", &url, "--trust", &signing]).ok();
    world.larder(&["project", "create", "shop", "--mode", "final", "--branch", "main"]).ok();
    world.larder(&["remote", "add", "shop", "shared", &url, "--trust", &signing]).ok();
    let repo = Repo::new(&staging, "shop");
    repo.write("larder.yml", "environments:\n  production:\n    promote:\n      min_healthy: 4s\n");
    repo.page("version one");
    repo.push().accepted();
    let offered = || names(&shared.join("shop")).iter().any(|name| name.ends_with(".offer.json"));
    crate::harness::until("the release is published", offered);
    // A shared remote has no commits.
    world.larder(&["pull", "shop"]).exits(1).says("does not have the commit").says("push the commit to any branch");
    let here = Repo::new(world, "shop");
    here.git(&["pull", "--quiet", repo.path().to_str().unwrap(), "HEAD"]).ok();
    here.push_as(&["HEAD:refs/heads/kept"]).accepted();
    world.larder(&["pull", "shop"]).exits(1).says("not fit for promotion").says("of the 4 s");
    // The health record in the shared remote is from the time of publication.
    let is_old_enough = || {
        let record = staging.larder(&["deliverable", "get", "shop", "v1", "health"]).json();
        let moment = |value: &serde_json::Value| value.as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
        moment(&record["as_of"]).duration_since(moment(&record["served"][0]["since"])).as_secs() >= 4
    };
    crate::harness::until("the release has served long enough", is_old_enough);
    world.larder(&["pull", "shop"]).exits(1).says("not fit for promotion");
    staging.larder(&["promote", "shop", "--to", "other"]).exits(3).says("does not publish to").says("--publish");
    staging.larder(&["promote", "shop", "--to", "shared", "--override", "it cannot wait"]).exits(2).says("larder pull");
    staging.larder(&["promote", "shop", "v1", "--to", "shared"]).exits(0).says("v1").says("is in shared now");
    world.larder(&["pull", "shop", "v1"]).says("v1 is live").ok();
    world.serves("shop", "version one");
    world.is_consistent("shop");
    staging.end();
}

fn promotion_policy_refuses_until_it_is_met(world: &World) {
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

/// The exit status is 4 for an unknown remote, and 3 for a remote that does not answer. An unusable remote is neither a usage error, a
/// failed deployment nor an internal error.
fn unusable_remote_ends_pull_and_promote_with_status_3_or_4(world: &World) {
    pair(world);
    let repo = Repo::site(world, "shop", "version one");
    staging(&repo).accepted();
    world
        .larder(&["pull", "shop/production", "--from", "nowhere"])
        .exits(4)
        .says("cannot find the remote nowhere: shop/production has no such remote");
    world.larder(&["promote", "shop/staging", "--to", "nowhere"]).exits(4);
    let signing = world.larder(&["key", "show", "--json"]).json()["signing"].as_str().unwrap().to_owned();
    // The directory of a remote disappears.
    let shared = world.directory().join("home/shared");
    std::fs::create_dir(&shared).unwrap();
    let url = format!("file://{}", shared.display());
    world.larder(&["remote", "add", "shop/production", "shared", &url, "--trust", &signing]).ok();
    world.larder(&["remote", "add", "shop/staging", "shared", &url, "--publish"]).ok();
    world.larder(&["pull", "shop/production", "v9", "--from", "shared"]).exits(4).says("no deliverable of v9");
    std::fs::remove_dir(&shared).unwrap();
    world.larder(&["pull", "shop/production", "--from", "shared"]).exits(3).says("cannot reach a remote");
    world.larder(&["promote", "shop/staging", "--to", "shared"]).exits(3);
    // No server listens at the address of a remote.
    let host_key = std::fs::read_to_string(world.public_key("alice")).unwrap();
    let far = |environment: &str| {
        let words = ["remote", "add", environment, "far", "ssh://larder@127.0.0.1:1/shop", "--host-key", host_key.trim()];
        world.larder(&[&words[..], &["--trust", &signing]].concat()).ok();
    };
    far("shop/production");
    far("shop/staging");
    world.larder(&["pull", "shop/production", "--from", "far"]).exits(3).says("cannot reach a remote");
    world.larder(&["promote", "shop/staging", "--to", "far"]).exits(3).says("cannot connect to far");
    assert_eq!(world.larder(&["releases", "shop/production", "--json"]).json().as_array().map(Vec::len), Some(0));
}
