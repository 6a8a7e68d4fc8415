//! Writes the journals of one deployment of each kind, to become fixtures of this version under `tests/fixtures/journals`.

use std::{fs, path::Path};

use crate::harness::{Repo, World, until};

/// Writes `<kind>.jsonl` files to `$LARDER_TEST_JOURNALS`. Run this test before the format of journals changes: `LARDER_TEST_JOURNALS=DIR
/// cargo test --test it journals:: -- --ignored`.
#[test]
#[ignore = "writes fixtures"]
fn journal_fixtures_of_this_version_are_written() {
    let directory = std::env::var_os("LARDER_TEST_JOURNALS").expect("LARDER_TEST_JOURNALS names a directory");
    let directory = Path::new(&directory);
    fs::create_dir_all(directory).unwrap();
    let world = World::any().unwrap();
    crate::promotion::pair(&world);
    let repo = Repo::new(&world, "shop");
    repo.write("Procfile", "web: larder static-server --root .\nworker: sleep 1000\n");
    repo.write(
        "larder.yml",
        "smoke: [/]\nscale: {worker: 1}\ndata: [media]\nenv: {GREETING: hello}\nhealth: {interval: 100ms}\n",
    );
    let keep = |environment: &str, kind: &str| {
        let deployments = world.root().join("projects/shop").join(environment).join("deployments");
        let last = crate::harness::state::names(&deployments).pop().unwrap();
        let journal = deployments.join(last).join("journal.jsonl");
        until("the deployment has ended", || fs::read_to_string(&journal).unwrap().contains("\"ended\""));
        fs::copy(journal, directory.join(format!("{kind}.jsonl"))).unwrap();
    };
    repo.page("version one");
    crate::promotion::staging(&repo).accepted();
    keep("staging", "first-push");
    crate::promotion::production(&repo).accepted();
    keep("production", "first-promotion");
    repo.page("version two");
    crate::promotion::staging(&repo).accepted();
    keep("staging", "push");
    crate::promotion::production(&repo).accepted();
    keep("production", "promotion");
    world.larder(&["rollback", "shop/production"]).ok();
    keep("production", "rollback");
    world.larder(&["deploy", "shop/staging", "--only", "build,bundle"]).ok();
    keep("staging", "dry-run");
    let failpoints = |points: &str| world.restart(&[("FAILPOINTS", points)]);
    failpoints("step.gather.source=1*return;step.post_deploy.smoke=1*return");
    repo.page("version three");
    crate::promotion::staging(&repo).rejected_with("stopped by a failpoint");
    keep("staging", "refused");
    crate::promotion::staging(&repo).rejected_with("stopped by a failpoint");
    keep("staging", "rolled-back");
    failpoints("step.post_deploy.smoke=1*return;undo.deploy.install=1*return");
    crate::promotion::staging(&repo).rejected_with("frozen");
    keep("staging", "stuck");
    world.larder(&["deploy", "shop/staging", "--unfreeze"]).ok();
    keep("staging", "cleared");
    failpoints("journal.succeeded.deploy.switch=1*sleep(60000)");
    let push = std::thread::scope(|scope| {
        let staging = world.root().join("projects/shop/staging/deployments");
        let before = crate::harness::state::names(&staging).len();
        let push = scope.spawn(|| crate::promotion::staging(&repo));
        until("the deployment has switched", || {
            let names = crate::harness::state::names(&staging);
            let Some(last) = names.last().filter(|_| names.len() > before) else { return false };
            fs::read_to_string(staging.join(last).join("journal.jsonl"))
                .unwrap_or_default()
                .contains("\"event\":\"succeeded\",\"step\":\"deploy.switch\"")
        });
        world.kill9_all();
        world.start(&[]);
        push.join().unwrap()
    });
    assert_ne!(push.0.status, 0);
    keep("staging", "recovered");
    world.end();
}
