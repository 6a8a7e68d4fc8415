//! The strategy in-place: the old release stops, its directory is synced with the new release, and a failure puts everything back.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::PathBuf,
};

use rustix::process::Signal;

use crate::{
    harness::{
        Repo, World, cli::Output, faults, http, in_each_mode, in_one_mode, output::golden, processes, state::names, thorough,
        until,
    },
    promotion::{pair, production, staging},
};

in_each_mode!(release_replaces_the_old_release_in_its_directory, failed_release_goes_back_with_its_data);
in_one_mode!(
    failure_at_any_step_in_place_leaves_nothing,
    failure_at_any_step_of_a_delivery_in_place_leaves_nothing,
    deployment_in_place_with_every_step_run_twice_goes_live,
    environment_changes_its_strategy_in_both_directions,
    sync_leaves_exactly_the_manifest_after_changes_of_the_application,
    application_in_place_keeps_running_while_the_server_reloads,
);

pub const IN_PLACE: &str = "strategy: in-place\ndata: [store/]\n";

/// Returns the tree at which the application runs.
pub fn tree(world: &World) -> PathBuf {
    world.environment("shop").join("slots/in-place/upper")
}

/// Returns kind, mode, time and content of every entry of the data, without larder's own record of the seeded files.
pub fn data(world: &World) -> BTreeMap<PathBuf, String> {
    let mut all = crate::backup::walk(&world.environment("shop").join("data"));
    all.remove(std::path::Path::new(".larder-seed"));
    all.into_iter().map(|(path, seen)| (path, format!("{seen:?}"))).collect()
}

fn archived(world: &World) -> Vec<String> {
    let all = names(&world.environment("shop").join("archives/run"));
    all.into_iter().filter(|name| !name.ends_with(".sync")).collect()
}

/// Creates a project whose first release runs in place.
pub fn shop<'w>(world: &'w World, recipe: &str) -> Repo<'w> {
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

/// The upgrade of the release that fails.
const DAMAGE: &str = "upgrade: echo damaged > store/kept\n";

/// Makes one attempt for each of `points`, which are active in the server, and asserts that each failure leaves nothing. `stays` is the predicate
/// for the names in `releases/` that a failed attempt may leave. Returns the failed step and the reverted steps of each attempt.
fn fails_once_at_each(
    world: &World,
    repo: &Repo<'_>,
    points: &[String],
    ask: &dyn Fn() -> Output,
    stays: &dyn Fn(&str) -> bool,
) -> String {
    let keep = "echo kept > store/kept; echo handmade > handmade";
    world.larder(&["run", "shop", "--", "sh", "-ec", keep]).ok();
    world.restart(&[("FAILPOINTS", &faults::once(points))]);
    world.serves("shop", "version one");
    let state = || {
        let mut found = world.snapshot("shop");
        found.files.retain(|name, _| !name.strip_prefix("releases/").is_some_and(stays));
        // The old release is started again, so its processes differ.
        found.without_processes()
    };
    let (before, stored, live) = (state(), data(world), repo.live());
    let mut unwinds = String::new();
    for name in points {
        let answer = ask();
        answer.exits(1).says("stopped by a failpoint").says("still live");
        assert_eq!(state(), before, "{name}");
        assert_eq!(repo.live(), live, "{name}");
        let committed = answer.to_string().contains("the data is not restored");
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
    unwinds
}

fn failure_at_any_step_in_place_leaves_nothing(world: &World) {
    let repo = shop(world, "");
    let points = faults::around(&world.steps("shop"));
    repo.write("larder.yml", format!("{IN_PLACE}{DAMAGE}")).page("version two");
    let unwinds = fails_once_at_each(world, &repo, &points, &|| repo.push().0, &|_| false);
    golden("unwinds of cooking in place", &unwinds);
    repo.push().accepted();
    world.serves("shop", "version two");
    world.is_consistent("shop");
}

/// By default, the deployment fails only after each step of the phase `deploy`, and the order of the unwinds is not compared.
fn failure_at_any_step_of_a_delivery_in_place_leaves_nothing(world: &World) {
    pair(world);
    let repo = Repo::site(world, "shop", "version one");
    repo.write("larder.yml", IN_PLACE).page("version one");
    staging(&repo).accepted();
    production(&repo).accepted();
    repo.write("larder.yml", format!("{IN_PLACE}{DAMAGE}")).page("version two");
    staging(&repo).accepted();
    world.serves("shop", "version one");
    let steps = world.steps("shop");
    assert_eq!(steps, world.last_plan("shop"));
    let mut points = faults::around(&steps);
    if !thorough() {
        points.retain(|point| point.starts_with("step.deploy.") && point.ends_with(".late"));
    }
    // The fetched release stays in the store, because it is complete and verified.
    let release = fs::read_link(world.root().join("projects/shop/staging/deploy/current")).unwrap().display().to_string();
    let ask = || world.larder(&["pull", "shop"]);
    let unwinds = fails_once_at_each(world, &repo, &points, &ask, &|name| name.starts_with(&release));
    if thorough() {
        golden("unwinds of final in place", &unwinds);
    }
    world.larder(&["pull", "shop"]).ok();
    world.serves("shop", "version two");
    assert_eq!(fs::read_to_string(world.environment("shop").join("data/store/kept")).unwrap(), "damaged\n");
    world.is_consistent_with_a_store("shop");
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

/// Returns one line for each difference between the tree of the slot and the manifest of the live release: entries, contents, targets, modes
/// and owners. `data` lists the links to persistent data.
pub fn differences_from_the_manifest(world: &World, data: &[&str]) -> Vec<String> {
    let top = world.environment("shop");
    let release = fs::read_link(top.join("deploy/current")).unwrap();
    let manifest = top.join("releases").join(format!("{}.manifest.json", release.display()));
    let manifest: serde_json::Value = serde_json::from_slice(&fs::read(manifest).unwrap()).unwrap();
    let is_data = |path: &str| data.iter().any(|link| path == *link || path.starts_with(&format!("{link}/")));
    let mut expected = BTreeMap::new();
    for entry in manifest["entries"].as_array().unwrap() {
        let path = entry["path"].as_str().unwrap();
        let description = match entry["type"].as_str().unwrap() {
            "dir" => String::from("directory 755"),
            "link" => format!("link to {}", entry["target"].as_str().unwrap()),
            _ => {
                let mode = if entry["executable"] == true { "755" } else { "644" };
                format!("file {mode} with {}", entry["digest"].as_str().unwrap())
            }
        };
        if !is_data(path) {
            expected.insert(PathBuf::from(path), description);
        }
    }
    expected.extend(data.iter().map(|link| (PathBuf::from(link), format!("link to /data/{link}"))));
    let owner = fs::metadata(top.join("data")).unwrap();
    let (mut found, tree) = (Vec::new(), tree(world));
    for (path, seen) in crate::backup::walk(&tree) {
        let metadata = fs::symlink_metadata(tree.join(&path)).unwrap();
        let mode = metadata.mode() & 0o7777;
        let description = if metadata.is_dir() {
            format!("directory {mode:o}")
        } else if metadata.is_symlink() {
            format!("link to {}", fs::read_link(tree.join(&path)).unwrap().display())
        } else {
            format!("file {mode:o} with {}", blake3::hash(&fs::read(tree.join(&path)).unwrap()))
        };
        if expected.get(&path) != Some(&description) {
            found.push(format!("{} is a {description} (expected {:?})", path.display(), expected.get(&path)));
        }
        expected.remove(&path);
        if (metadata.uid(), metadata.gid()) != (owner.uid(), owner.gid()) {
            found.push(format!("{} belongs to {}:{}", path.display(), metadata.uid(), metadata.gid()));
        }
        // Only the application's own tree has the inode.
        if metadata.is_file() && metadata.nlink() != 1 {
            found.push(format!("{} has {} names: {seen:?}", path.display(), metadata.nlink()));
        }
    }
    found.extend(expected.keys().map(|path| format!("{} is missing", path.display())));
    let top_mode = fs::metadata(&tree).unwrap().mode() & 0o7777;
    if top_mode != 0o755 {
        found.push(format!("the tree has mode {top_mode:o}"));
    }
    found
}

/// Changes of an application to its own tree.
const VANDALISM: &str = "\
    echo more > added; mkdir -p new/deep; echo more > new/deep/file; echo more > .hidden; mkfifo pipe; : > 'odd name'; ln -s nowhere dangling
    cp -p config/same kept; printf XXXX > config/same; touch -r kept config/same; rm kept
    chmod 777 config/plain; chmod 4755 bin/tool; chmod 000 config/secret; chmod 700 docs; chmod 000 docs/deep
    rm config/gone; rm -r assets; echo a file > assets; rm bin/other; mkdir bin/other; echo more > bin/other/file
    ln -sfn /etc config/to-link; ln -sf /etc/passwd config/also; rm -r lib; ln -s ../data lib; ln -sfn /etc/hostname alias
    ln config/plain config/second; mv docs/readme docs/moved; ln -sfn /etc/passwd index.html";

fn sync_leaves_exactly_the_manifest_after_changes_of_the_application(world: &World) {
    let repo = shop(world, "");
    let files = [
        ("config/same", "same"),
        ("config/plain", "plain"),
        ("config/secret", "secret"),
        ("config/gone", "gone"),
        ("config/to-link", "a file"),
        ("config/also", "a file"),
        ("assets/style.css", "body {}"),
        ("docs/readme", "read"),
        ("docs/deep/page", "page"),
        ("lib/code", "code"),
    ];
    for (path, text) in files {
        repo.write(path, text);
    }
    repo.program("bin/tool", "#!/bin/sh\n").program("bin/other", "#!/bin/sh\n");
    std::os::unix::fs::symlink("config/plain", repo.path().join("alias")).unwrap();
    let run = |script: &str| world.larder(&["run", "shop", "--", "sh", "-ec", script]).ok().to_owned();
    // The tree of the second last release is the base of the next sync, so the changes to one tree are met two deployments later.
    for number in 2..=4 {
        repo.page(&format!("version {number}"));
        repo.push().accepted();
        world.serves("shop", &format!("version {number}"));
        assert_eq!(differences_from_the_manifest(world, &["store"]), Vec::<String>::new(), "version {number}");
        world.is_consistent("shop");
        if number == 2 {
            run("echo kept > store/kept");
        }
        run(VANDALISM);
        assert!(differences_from_the_manifest(world, &["store"]).len() > 20);
    }
    assert_eq!(run("cat store/kept"), "kept\n");
    // A release that removes files, and a rollback.
    repo.remove("config/plain").remove("alias").page("version 5");
    repo.push().accepted();
    assert_eq!(differences_from_the_manifest(world, &["store"]), Vec::<String>::new());
    world.larder(&["rollback", "shop", "v3"]).ok();
    world.serves("shop", "version 3");
    assert_eq!(differences_from_the_manifest(world, &["store"]), Vec::<String>::new());
}

fn application_in_place_keeps_running_while_the_server_reloads(world: &World) {
    let repo = shop(world, "");
    world.larder(&["run", "shop", "--", "sh", "-ec", "echo handmade > handmade"]).ok();
    let (processes, visitor) = (world.application("shop"), world.visitor("shop"));
    for _ in 0..2 {
        let ready = world.with(|server| server.ready());
        world.with(|server| processes::signal(server.keeper(), Signal::HUP));
        until("the next server is ready", || world.with(|server| server.ready()) > ready);
        world.serves("shop", "version one");
    }
    visitor.satisfied();
    world.with(crate::harness::server::Server::kill9_role);
    world.serves("shop", "version one");
    assert_eq!(world.application("shop"), processes, "the application was restarted");
    assert_eq!(fs::read_to_string(tree(world).join("handmade")).unwrap(), "handmade\n");
    world.is_consistent("shop");
    repo.page("version two");
    repo.push().accepted().says("Replacing v1 in place");
    world.serves("shop", "version two");
    world.is_consistent("shop");
}
