//! Shared remotes: staging publishes its releases to a directory or bucket, and production pulls them from there. The two servers never
//! connect to each other.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use crate::{
    harness::{Repo, World, in_one_mode, state::names, until},
    places::{Bucket, Web, settings},
    promotion::live_manifest,
};

in_one_mode!(
    release_is_published_to_and_pulled_from_directory,
    release_is_pulled_from_web_server,
    release_is_published_to_and_pulled_from_bucket
);

/// Creates a directory that every server may write to.
fn open_directory(world: &World) -> PathBuf {
    let directory = world.directory().join("home/shared");
    fs::create_dir(&directory).unwrap();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).unwrap();
    directory
}

fn release_is_published_to_and_pulled_from_directory(world: &World) {
    let directory = open_directory(world);
    let url = format!("file://{}", directory.display());
    scenario(world, &url, &url, Some(&directory), &[]);
}

fn release_is_pulled_from_web_server(world: &World) {
    let directory = open_directory(world);
    let web = Web::serve(&directory, true);
    let url = format!("file://{}", directory.display());
    scenario(world, &url, &format!("http://127.0.0.1:{}", web.port), Some(&directory), &[]);
}

fn release_is_published_to_and_pulled_from_bucket(world: &World) {
    let Some(bucket) = Bucket::serve(world) else { return };
    let settings = settings(bucket.port);
    let env: Vec<_> = settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    scenario(world, "s3://deliverables/ours", "s3://deliverables/ours", None, &env);
}

/// Runs the scenario: staging publishes to `publish`, and production pulls from `read`. Both servers have `env` in their environment. If the
/// remote is a local directory, `directory` is its path.
fn scenario(world: &World, publish: &str, read: &str, directory: Option<&Path>, env: &[(&str, &str)]) {
    let Some(staging) = World::any() else { return };
    if !env.is_empty() {
        world.restart(env);
        staging.restart(env);
    }
    staging.project("shop");
    staging.larder(&["remote", "add", "shop", "shared", publish, "--publish"]).ok();
    world.larder(&["project", "create", "shop", "--mode", "final"]).ok();
    let key = staging.larder(&["key", "show", "--json"]).json()["signing"].as_str().unwrap().to_owned();
    let repo = Repo::new(&staging, "shop");
    for number in 0..50 {
        repo.write(&format!("pages/{number}.html"), format!("page {number}\n").repeat(50));
    }
    let cook = |page: &str| {
        repo.page(page);
        repo.push().accepted();
    };
    cook("version one");
    until("the remote is added", || world.larder(&["remote", "add", "shop", "shared", read, "--trust", &key]).status == 0);
    let offers = |count: &str| {
        until("the release is in the remote", || {
            world.larder(&["remote", "check", "shop", "shared"]).stdout.contains(&format!("the remote offers {count}"))
        });
    };
    offers("one deliverable");

    // A shared remote has releases and no commits.
    let refused = world.larder(&["pull", "shop"]);
    refused
        .exits(1)
        .says("the repository on this server does not have the commit")
        .says("push the commit to any branch of this project first");
    let here = Repo::new(world, "shop");
    let fetch = || here.git(&["pull", "--quiet", repo.path().to_str().unwrap(), "HEAD"]);
    fetch().ok();
    here.push_as(&["HEAD:refs/heads/incoming"]).accepted();
    world.larder(&["pull", "shop"]).says("from the remote shared").says("v1 is live");
    world.serves("shop", "version one");
    assert_eq!(live_manifest(world, "production", "shop"), live_manifest(&staging, "production", "shop"));
    world.is_consistent("shop");

    // The health record was fetched with the release.
    let release = fs::read_link(world.environment("shop").join("deploy/current")).unwrap();
    let record = world.environment("shop").join("releases").join(format!("{}.health.json", release.display()));
    let record: serde_json::Value = serde_json::from_slice(&fs::read(record).unwrap()).unwrap();
    assert_eq!(record["signature"]["key"], key.as_str());

    // The next release is deployed by a push, which brings the commit.
    cook("version two");
    offers("2 deliverables");
    fetch().ok();
    here.push().accepted().says("from the remote shared").says("v2 is live");
    world.serves("shop", "version two");
    assert_eq!(live_manifest(world, "production", "shop"), live_manifest(&staging, "production", "shop"));
    world.is_consistent("shop");

    // A release that was changed in the remote is refused, and leaves nothing behind.
    if let Some(directory) = directory {
        cook("version three");
        offers("3 deliverables");
        let newest = fs::read_link(staging.environment("shop").join("deploy/current")).unwrap();
        let archive = directory.join("shop").join(format!("{}.tar.zst", newest.display()));
        let good = fs::read(&archive).unwrap();
        let mut bytes = good.clone();
        bytes[good.len() / 3] ^= 1;
        fs::write(&archive, bytes).unwrap();
        let before = world.snapshot("shop");
        fetch().ok();
        here.push().rejected_with("the archive from shared").rejected_with("is damaged: its digest does not match");
        assert_eq!(world.snapshot("shop"), before);
        world.serves("shop", "version two");
        fs::write(&archive, good).unwrap();
        here.push().accepted();
        world.serves("shop", "version three");
    }
    let stored = names(&world.environment("shop").join("releases/.incoming"));
    assert!(stored.is_empty(), "{stored:?}");

    // Production needs neither staging nor the remote for its own releases.
    staging.end();
    world.larder(&["remote", "remove", "shop", "shared"]).ok();
    world.larder(&["rollback", "shop", "v1"]).ok();
    world.serves("shop", "version one");
    world.larder(&["deploy", "shop"]).ok();
    world.serves("shop", "version one");
    world.is_consistent("shop");
}
