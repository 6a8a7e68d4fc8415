//! The strategy in-place: the old release stops, its directory is synced with the new release, and a failure puts everything back.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt, path::PathBuf};

use crate::harness::{Repo, World, faults, http, in_each_mode, in_one_mode, output::golden, state::names, until};

in_each_mode!(release_replaces_the_old_release_in_its_directory, failed_release_goes_back_with_its_data);
in_one_mode!(
    failure_at_any_step_in_place_leaves_nothing,
    deployment_in_place_with_every_step_run_twice_goes_live,
    environment_changes_its_strategy_in_both_directions,
);

const IN_PLACE: &str = "strategy: in-place\ndata: [store/]\n";

/// Returns the tree at which the application runs.
fn tree(world: &World) -> PathBuf {
    world.environment("shop").join("slots/in-place/upper")
}

/// Returns kind, mode, time and content of every entry of the data, without larder's own record of the seeded files.
fn data(world: &World) -> BTreeMap<PathBuf, String> {
    let mut all = crate::backup::walk(&world.environment("shop").join("data"));
    all.remove(std::path::Path::new(".larder-seed"));
    all.into_iter().map(|(path, seen)| (path, format!("{seen:?}"))).collect()
}

fn archived(world: &World) -> Vec<String> {
    let all = names(&world.environment("shop").join("archives/run"));
    all.into_iter().filter(|name| !name.ends_with(".sync")).collect()
}

/// Creates a project whose first release runs in place.
fn shop<'w>(world: &'w World, recipe: &str) -> Repo<'w> {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.write("larder.yml", format!("{IN_PLACE}{recipe}")).write("old/only", "one");
    repo.page("version one");
    repo.push().accepted();
    repo
}

fn release_replaces_the_old_release_in_its_directory(world: &World) {
    let repo = shop(world, "");
    world.serves("shop", "version one");
    assert_eq!(fs::read_link(world.environment("shop").join("run")).unwrap().to_str(), Some("slots/in-place/upper"));
    let run = |script: &str| world.larder(&["run", "shop", "--", "sh", "-ec", script]).ok().to_owned();
    assert_eq!(run("pwd; echo $HOME; echo $LARDER_SLOT"), "/app\n/app\nin-place\n");
    run(
        "echo junk > made-by-hand; mkdir -p deep/er; echo junk > deep/er/file; echo changed > index.html; echo kept > store/kept",
    );
    // The tree survives a restart, with the changes in the tree.
    world.larder(&["restart", "shop"]).ok();
    world.serves("shop", "changed");
    let go = "until [ -e $LARDER_DATA/go ]; do sleep 0.05; done";
    repo.write("larder.yml", format!("{IN_PLACE}upgrade: \"{go}\"\n")).remove("old/only");
    repo.write(".larder/maintenance.html", "<h1>We are painting</h1>").page("version two");
    std::thread::scope(|scope| {
        let push = scope.spawn(|| repo.push());
        let request = "GET / HTTP/1.1\r\nHost: shop.localhost\r\nAccept: text/html\r\nConnection: close\r\n\r\n";
        until("visitors get the maintenance page", || {
            http::request(world.http_port(), request).is_ok_and(|answer| answer.status == 503 && answer.body.contains("painting"))
        });
        let answer = world.get("shop", "/");
        assert!(answer.status == 503 && answer.head.to_ascii_lowercase().contains("retry-after: 3"), "{answer:?}");
        // The new release runs, and no visitor reaches it before the end of its upgrade.
        fs::write(world.environment("shop").join("data/go"), "").unwrap();
        push.join().unwrap().accepted().says("Replacing v1 in place").says("the application was interrupted for");
    });
    world.serves("shop", "version two");
    for gone in ["made-by-hand", "deep", "old"] {
        assert!(!tree(world).join(gone).exists(), "{gone} is not in the release");
    }
    assert_eq!(run("cat store/kept"), "kept\n");
    assert_eq!(archived(world).len(), 1, "the replaced tree is archived");
    world.is_consistent("shop");
    world.larder(&["rollback", "shop", "v1"]).ok();
    world.serves("shop", "version one");
    assert_eq!(fs::read_to_string(tree(world).join("old/only")).unwrap(), "one");
    world.is_consistent("shop");
    world.restart(&[]);
    world.serves("shop", "version one");
}

fn failed_release_goes_back_with_its_data(world: &World) {
    let repo = shop(world, "");
    let run = |script: &str| world.larder(&["run", "shop", "--", "sh", "-ec", script]).ok().to_owned();
    run("mkdir -p store/uploads; echo one > store/uploads/one; echo two > store/two; ln store/two store/hard");
    run("echo handmade > handmade; chmod 700 handmade");
    let (before, live) = (data(world), repo.live());
    let damage = "rm -rf store/uploads; echo damaged > store/two; echo new > store/added; chmod 000 . ; exit 3";
    repo.write("larder.yml", format!("{IN_PLACE}upgrade: \"{damage}\"\n")).page("version two");
    let push = repo.push();
    push.rejected_with("the release command exited 3").says("reverting deploy.stop").says("the application was interrupted for");
    assert_eq!(data(world), before);
    assert_eq!(repo.live(), live);
    world.serves("shop", "version one");
    // The tree of the old release is back with its changes, and the failed tree is kept under the name of its deployment.
    assert_eq!(fs::metadata(tree(world).join("handmade")).unwrap().permissions().mode() & 0o777, 0o700);
    let failed = world.journals("shop").last().unwrap()[0]["deployment"].as_str().unwrap().to_owned();
    assert_eq!(archived(world), [failed]);
    world.is_consistent("shop");
    // The check after the upgrade fails.
    let damage = "echo damaged > store/two";
    repo.write("larder.yml", format!("{IN_PLACE}upgrade: \"{damage}\"\nsmoke: [/missing]\n")).page("version three");
    repo.push().rejected_with("smoke check /missing answered 404");
    assert_eq!(data(world), before);
    world.serves("shop", "version one");
    // A release whose process does not start.
    repo.write("larder.yml", IN_PLACE).write("Procfile", "web: exit 7\n").page("version four");
    repo.push().rejected_with("web.1 exited 7");
    assert_eq!(data(world), before);
    world.serves("shop", "version one");
    repo.write("Procfile", "web: exec larder static-server --root .\n").page("version five");
    repo.push().accepted();
    world.serves("shop", "version five");
    world.is_consistent("shop");
}

fn failure_at_any_step_in_place_leaves_nothing(world: &World) {
    let repo = shop(world, "");
    world.larder(&["run", "shop", "--", "sh", "-ec", "echo kept > store/kept; echo handmade > handmade"]).ok();
    let names = faults::around(&world.steps("shop"));
    world.restart(&[("FAILPOINTS", &faults::once(&names))]);
    world.serves("shop", "version one");
    let (before, stored, live) = (world.snapshot("shop"), data(world), repo.live());
    repo.write("larder.yml", format!("{IN_PLACE}upgrade: echo damaged > store/kept\n")).page("version two");
    let mut unwinds = String::new();
    for name in &names {
        let push = repo.push();
        let phase = name.trim_start_matches("step.").split('.').next().unwrap();
        push.rejected_with(&format!("{phase}: stopped by a failpoint")).rejected_with("v1 still live");
        // The old release was started again, so its processes differ.
        assert_eq!(world.snapshot("shop").without_processes(), before.clone().without_processes(), "{name}");
        assert_eq!(repo.live(), live, "{name}");
        let committed = push.0.to_string().contains("the data is not restored");
        if !committed {
            assert_eq!(data(world), stored, "{name}");
        }
        world.serves("shop", "version one");
        assert_eq!(fs::read_to_string(tree(world).join("handmade")).unwrap(), "handmade\n", "{name}");
        if committed {
            world.larder(&["run", "shop", "--", "sh", "-ec", "echo kept > store/kept"]).ok();
        }
        unwinds.push_str(&faults::unwind(world));
    }
    golden("unwinds of cooking in place", &unwinds);
    repo.push().accepted();
    world.serves("shop", "version two");
    world.is_consistent("shop");
}

fn deployment_in_place_with_every_step_run_twice_goes_live(world: &World) {
    let repo = shop(world, "");
    world.restart(&[("FAILPOINTS", "twice=return")]);
    repo.page("version two");
    repo.push().accepted();
    world.serves("shop", "version two");
    assert_eq!(world.ports("shop").len(), 1, "running twice must not mean two processes");
    world.is_consistent("shop");
}

fn environment_changes_its_strategy_in_both_directions(world: &World) {
    let repo = shop(world, "");
    repo.write("larder.yml", "data: [store/]\n").page("version two");
    repo.push().accepted().says("v2 is live");
    world.serves("shop", "version two");
    world.is_consistent("shop");
    until("the slot is idle", || {
        fs::read_to_string(world.environment("shop").join("slots.json")).unwrap().matches("idle").count() >= 1
    });
    // A failure goes back to the overlay slot.
    repo.write("larder.yml", format!("{IN_PLACE}upgrade: exit 4\n")).page("version three");
    repo.push().rejected_with("the release command exited 4");
    world.serves("shop", "version two");
    world.is_consistent("shop");
    repo.write("larder.yml", IN_PLACE).page("version four");
    repo.push().accepted();
    world.serves("shop", "version four");
    world.is_consistent("shop");
    world.larder(&["rollback", "shop", "v2"]).ok();
    world.serves("shop", "version two");
    world.is_consistent("shop");
}
