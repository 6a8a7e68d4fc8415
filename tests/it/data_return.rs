//! Tests of the preview of rollbacks with data, and of the question that a person answers before data is replaced.

use std::process::Stdio;

use crate::harness::{Repo, World, faults::once, in_one_mode, state::names, thorough, until};

in_one_mode!(
    rollback_preview_names_the_restore_point_and_the_loss,
    rollback_without_restore_point_of_the_release_lists_candidates,
    restore_on_a_terminal_asks_for_the_name_of_the_project,
    rollback_with_data_returns_code_and_data,
    rollback_with_data_that_fails_its_check_leaves_code_and_data,
    rollback_with_data_killed_at_its_events_leaves_a_pair,
    rollback_with_data_whose_undo_fails_is_unfrozen,
    rollback_in_place_with_data_whose_undo_fails_is_unfrozen,
);

/// Returns a project whose v1 wrote `one`, and whose v2 wrote `two` and `added`, and the newest restore point that was taken while v1 was live.
/// `recipe` is added to the recipe of v2.
fn two_releases<'w>(world: &'w World, procfile: &str, recipe: &str) -> (Repo<'w>, String) {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("Procfile", procfile).write("larder.yml", "data: [media]\nhealth: {timeout: 5s}\n");
    repo.page("version one");
    repo.push().accepted();
    sh(world, "echo one > media/file");
    world.larder(&["backup", "take", "shop"]).ok();
    repo.write("Procfile", WEB).write("larder.yml", format!("data: [media]\nhealth: {{timeout: 5s}}\n{recipe}"));
    repo.page("version two");
    repo.push().accepted();
    sh(world, "echo two > media/file; echo added > media/added");
    let points = world.larder(&["--json", "backup", "list", "shop"]).json();
    let point = points["points"].as_array().unwrap().iter().find(|point| point["number"] == 1).unwrap().clone();
    (repo, point["id"].as_str().unwrap().to_owned())
}

const WEB: &str = "web: exec larder static-server --root .\n";

/// Asserts that code and data are those of one version.
#[track_caller]
fn is_pair(world: &World, version: &str) {
    world.serves("shop", &format!("version {version}"));
    let data = world.environment("shop").join("data/media");
    let (file, all) = (std::fs::read_to_string(data.join("file")).unwrap(), names(&data));
    let expected = if version == "one" { ("one\n", &["file"][..]) } else { ("two\n", &["added", "file"][..]) };
    assert_eq!((file.as_str(), all.iter().map(String::as_str).collect::<Vec<_>>()), (expected.0, expected.1.to_vec()));
}

fn sh(world: &World, script: &str) -> String {
    world.larder(&["run", "shop", "--", "sh", "-ec", script]).ok().trim().to_owned()
}

fn rollback_preview_names_the_restore_point_and_the_loss(world: &World) {
    let (repo, point) = two_releases(world, WEB, "release: echo upgraded\n");
    let live = repo.live();
    let said = world.larder(&["rollback", "shop", "v1", "--dry-run"]);
    said.exits(0).says("would go back from v2 to v1").says("v2 at ").says("echo upgraded").says("the data stays as it is");
    let said = world.larder(&["rollback", "shop", "v1", "--with-data", "--dry-run"]);
    said.exits(0).says(&point).says("second").says("1 added and 1 changed").says("data/media/added").says("echo upgraded");
    let json = world.larder(&["--json", "rollback", "shop", "--with-data", "--dry-run"]).json();
    assert_eq!((&json["release"], &json["data"]["point"]["id"]), (&serde_json::json!(1), &serde_json::json!(point)), "{json}");
    assert_eq!(json["data"]["would_lose"]["added"], 1, "{json}");
    // A later restore point belongs to v2, and is used only if `--point` names it.
    let later = world.larder(&["--json", "backup", "take", "shop"]).json();
    let json = world.larder(&["--json", "rollback", "shop", "v1", "--with-data", "--dry-run"]).json();
    assert_eq!(json["data"]["point"]["id"], serde_json::json!(point), "{json}");
    let named = later["id"].as_str().unwrap();
    let said = world.larder(&["rollback", "shop", "v1", "--with-data", "--dry-run", "--point", named]);
    said.exits(0).says("v2 was live when this restore point was taken (expected v1)");
    assert_eq!((repo.live(), sh(world, "cat media/file")), (live, String::from("two")));
}

fn rollback_without_restore_point_of_the_release_lists_candidates(world: &World) {
    let (_, point) = two_releases(world, WEB, "");
    let later = world.larder(&["--json", "backup", "take", "shop"]).json();
    world.larder(&["backup", "remove", "shop", &point]).ok();
    let refused = world.larder(&["rollback", "shop", "v1", "--with-data", "--dry-run"]);
    refused.exits(3).says("no usable restore point was taken while v1 was live").says(later["id"].as_str().unwrap());
    world.larder(&["rollback", "shop", "v1", "--with-data", "--dry-run", "--point", &point]).exits(4);
    world.larder(&["rollback", "shop", "v1", "--with-data", "--dry-run", "--point", "../x"]).exits(2);
    world.larder(&["rollback", "shop", "v1", "--point", "latest"]).exits(2);
}

fn restore_on_a_terminal_asks_for_the_name_of_the_project(world: &World) {
    two_releases(world, WEB, "");
    let restore = &["backup", "restore", "shop", "latest"][..];
    let question = "type the name of the project (shop) to continue";
    for (typed, seen) in [("yes\n", "\"yes\" was typed"), ("\n", "\"\" was typed")] {
        let Some(said) = world.larder_on_terminal(restore, typed) else { return };
        said.exits(3).says("data/media/added").says(question).says("nothing was changed").says(seen);
    }
    let said = world.ssh_on_terminal("alice", restore, "shot\u{7f}x\r");
    said.exits(3).says(question).says("\"shox\" was typed");
    world.ssh_on_terminal("alice", restore, "shop").exits(3).says("was not completed");
    world.ssh_on_terminal("alice", restore, "sho\u{3}").exits(3);
    assert_eq!(sh(world, "cat media/file"), "two");
    world.larder(restore).exits(3).says("--yes").keeps_quiet_about(question);
    world
        .ssh_on_terminal("alice", &["backup", "restore", "shop", "latest", "--json"], "shop\r")
        .exits(3)
        .keeps_quiet_about(question);
    world.ssh_on_terminal("alice", restore, "shop\r").exits(0).says("has the data of");
    assert_eq!(sh(world, "cat media/file; ls media"), "one\nfile");
    sh(world, "echo three > media/file");
    let point = world.larder(&["--json", "backup", "list", "shop"]).json()["points"][1]["id"].as_str().unwrap().to_owned();
    let said = world.larder_on_terminal(&["backup", "restore", "shop", &point], "shop\n").unwrap();
    said.exits(0).says("has the data of");
    assert_eq!(sh(world, "cat media/file"), "one");
}

/// The follow-ups of a stuck deployment wait for the lock of the restore points, which the deployment must not keep. The unfreeze repeats only the
/// undo that failed, after the undos of earlier steps.
fn rollback_with_data_whose_undo_fails_is_unfrozen(world: &World) {
    let (repo, _) = two_releases(world, WEB, "");
    repo.write("Procfile", format!("{WEB}{WORKER}"));
    repo.write("larder.yml", "data: [media]\nhealth: {timeout: 5s}\nscale: {worker: 1}\n").page("version two");
    repo.push().accepted();
    let few = [
        ("deploy.fill.late", "deploy.fill", false),
        ("deploy.data.late", "deploy.data", false),
        ("deploy.switch.late", "deploy.quiesce.late", false),
        ("deploy.switch.late", "deploy.switch", true),
    ];
    let steps = ["install", "fill", "slot", "hold", "point", "quiesce", "data", "boot", "check", "switch"];
    undos_of_a_rollback_fail(world, &repo, &few, &steps);
}

/// The script `.larder/restore` of the old release must run in the tree of the old release.
fn rollback_in_place_with_data_whose_undo_fails_is_unfrozen(world: &World) {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("Procfile", format!("{WEB}{WORKER}"));
    let recipe = "data: [media, numbers]\nhealth: {timeout: 5s}\nstrategy: in-place\nscale: {worker: 1}\n";
    repo.write("larder.yml", recipe);
    let version = |version: &str| {
        repo.program(".larder/backup", &format!("#!/bin/sh\necho {version} > $LARDER_RESTORE_POINT/version\n"));
        repo.program(".larder/restore", &format!("#!/bin/sh\ngrep {version} $LARDER_RESTORE_POINT/version\n"));
        repo.page(&format!("version {version}"));
        repo.push().accepted();
    };
    version("one");
    sh(world, "echo one > media/file");
    world.larder(&["backup", "take", "shop"]).ok();
    version("two");
    sh(world, "echo two > media/file; echo added > media/added");
    let few = [("deploy.switch.late", "deploy.data.late", false), ("deploy.start.late", "deploy.archive", true)];
    let steps = ["install", "fill", "stop", "point", "archive", "sync", "data", "start", "check", "switch"];
    undos_of_a_rollback_fail(world, &repo, &few, &steps);
}

/// A process that writes numbers into the data, and acknowledges each number in its log.
const WORKER: &str =
    "worker: while :; do n=$(date +%s%N); echo $n >> $LARDER_DATA/numbers/all && echo wrote $n; sleep 0.05; done\n";

/// Fails at a step of a rollback with data, and then in the undo of a step, for each of `few`. The last element of a case is true if all
/// processes are killed before the unfreeze. With `LARDER_TEST_THOROUGH`, the undo of each of `steps` fails before and after its work.
fn undos_of_a_rollback_fail(world: &World, repo: &Repo<'_>, few: &[(&str, &str, bool)], steps: &[&str]) {
    let live = repo.live();
    sh(world, "mkdir -p $LARDER_DATA/numbers");
    let mut cases: Vec<_> = few.iter().map(|(fails, undo, kill)| ((*fails).to_owned(), (*undo).to_owned(), *kill)).collect();
    if thorough() {
        for step in steps {
            cases.push((format!("deploy.{step}.late"), format!("deploy.{step}"), false));
            for undo in [format!("deploy.{step}"), format!("deploy.{step}.late")] {
                cases.extend([false, true].map(|kill| (String::from("deploy.switch.late"), undo.clone(), kill)));
            }
        }
    }
    let count = cases.len();
    for (fails, undo, is_killed) in cases {
        world.restart(&[("FAILPOINTS", &format!("step.{fails}=1*return;undo.{undo}=1*return"))]);
        let back = world.larder(&["rollback", "shop", "v1", "--with-data", "--confirm", "shop"]);
        let about = format!("{fails} fails, and the undo of {undo}, killed: {is_killed}");
        eprintln!("{about}: {}", back.status);
        back.says("is frozen").says(&format!("{}: stopped by a failpoint", undo.trim_end_matches(".late")));
        assert_ne!(back.status, 0, "{back}");
        let old_or_none = || {
            let answer = world.get("shop", "/");
            let is_old = answer.status == 200 && answer.body.contains("version two");
            assert!(is_old || answer.status == 503, "{about}: {answer:?}");
        };
        old_or_none();
        world.larder(&["backup", "list", "shop"]).ok();
        if is_killed {
            world.kill9_everything();
            world.start(&[]);
            old_or_none();
        }
        world.larder(&["deploy", "shop", "--unfreeze"]).ok();
        assert_eq!(repo.live(), live);
        is_pair(world, "two");
        let log = std::fs::read_to_string(world.environment("shop").join("log/worker.1.log")).unwrap();
        let written = std::fs::read_to_string(world.environment("shop").join("data/numbers/all")).unwrap();
        let written: std::collections::BTreeSet<_> = written.lines().collect();
        let lost: Vec<_> =
            log.lines().filter_map(|line| Some(line.split_once("wrote ")?.1)).filter(|line| !written.contains(line)).collect();
        assert!(!written.is_empty() && lost.is_empty(), "{about}: acknowledged writes are lost: {lost:?}");
        world.larder(&["backup", "take", "shop"]).ok();
        world.is_consistent("shop");
    }
    eprintln!("{count} undos failed and were repeated");
}

fn rollback_with_data_returns_code_and_data(world: &World) {
    let (repo, point) = two_releases(world, WEB, "");
    let live = repo.live();
    let visitor = world.visitor("shop");
    let back = &["rollback", "shop", "v1", "--with-data"][..];
    world.larder(back).exits(3).says(&point).says("1 added and 1 changed").says("--confirm shop");
    world.larder(&[back, &["--confirm", "blog"]].concat()).exits(2).says("--confirm names \"blog\" (expected shop)");
    world.ssh_on_terminal("alice", back, "blog\r").exits(3).says("nothing was changed");
    assert_eq!(repo.live(), live);
    is_pair(world, "two");
    // A command that runs in the live release cannot write to the replaced data.
    let mut running = world.larder_command();
    let mut running =
        running.args(["run", "shop", "--", "sh", "-c", "touch media/running; sleep 1000"]).stdin(Stdio::null()).spawn().unwrap();
    until("the command runs", || world.environment("shop").join("data/media/running").exists());
    sh(world, "rm media/running");
    let said = world.larder(&[back, &["--confirm", "shop"]].concat());
    said.exits(0).says("v3 is live").says(&format!("the data is that of restore point {point}"));
    is_pair(world, "one");
    assert!(!running.wait().unwrap().success());
    let list = world.larder(&["--json", "backup", "list", "shop"]).json();
    let fresh = &list["points"][0];
    assert_eq!((&fresh["number"], &fresh["reason"]), (&2.into(), &"before the rollback with data of v3".into()), "{list}");
    until("the replaced data is deleted", || names(&world.environment("shop").join("restoring")).is_empty());
    // The fresh restore point belongs to v2, so the way forward needs no name of a restore point.
    world.ssh_on_terminal("alice", &["rollback", "shop", "v2", "--with-data"], "shop\r").exits(0).says("v4 is live");
    is_pair(world, "two");
    visitor.satisfied();
    world.is_consistent("shop");
    // A rollback without data leaves the data.
    world.larder(&["rollback", "shop", "v1"]).ok();
    world.serves("shop", "version one");
    assert_eq!(sh(world, "cat media/file"), "two");
}

fn rollback_with_data_that_fails_its_check_leaves_code_and_data(world: &World) {
    // v1 does not start with the data that it left behind.
    let procfile = "web: test \"$(cat media/file 2>/dev/null)\" != one && exec larder static-server --root .\n";
    let (repo, _) = two_releases(world, procfile, "");
    let live = repo.live();
    let visitor = world.visitor("shop");
    let failed = world.larder(&["rollback", "shop", "v1", "--with-data", "--confirm", "shop"]);
    failed.exits(1).says("v2 is still live");
    assert_eq!(repo.live(), live);
    is_pair(world, "two");
    visitor.satisfied();
    world.is_consistent("shop");
    assert_eq!(names(&world.environment("shop").join("restoring")), Vec::<String>::new());
}

fn rollback_with_data_killed_at_its_events_leaves_a_pair(world: &World) {
    let (_, _) = two_releases(world, WEB, "");
    let back = ["rollback", "shop", "v1", "--with-data", "--confirm", "shop"];
    // Each failure reverts code and data.
    let steps = ["deploy.fill", "deploy.point", "deploy.data", "deploy.boot", "deploy.switch", "post_install.resume"];
    let points: Vec<_> = steps.iter().map(|step| format!("step.{step}.late")).collect();
    world.restart(&[("FAILPOINTS", &once(&points))]);
    for point in &points {
        world.larder(&back).exits(1).says("stopped by a failpoint");
        is_pair(world, "two");
        assert_eq!(names(&world.environment("shop").join("restoring")), Vec::<String>::new(), "{point}");
    }
    let mut events =
        Vec::from(["started.deploy.data", "succeeded.deploy.data", "succeeded.deploy.switch", "succeeded.post_install.resume"]);
    if thorough() {
        events.extend(["started.deploy.fill", "succeeded.deploy.fill", "started.deploy.hold", "succeeded.deploy.quiesce"]);
        events.extend(["succeeded.deploy.point", "started.deploy.boot", "succeeded.deploy.boot", "started.post_deploy.workers"]);
        events.extend(["started.post_install.resume"]);
    }
    for event in events {
        world.restart(&[("FAILPOINTS", &format!("journal.{event}=1*sleep(60000)"))]);
        let before = world.journals("shop").len();
        let mut asking = world.larder_command();
        let mut asking = asking.args(back).stdout(Stdio::null()).spawn().unwrap();
        let (word, step) = event.split_once('.').unwrap();
        until("the event is written", || {
            let journals = world.journals("shop");
            journals.len() > before && journals.last().unwrap().iter().any(|line| line["event"] == word && line["step"] == step)
        });
        world.kill9_all();
        let _ = asking.wait();
        world.start(&[]);
        let version = if event == "succeeded.post_install.resume" { "one" } else { "two" };
        is_pair(world, version);
        world.is_consistent("shop");
        if version == "one" {
            world.larder(&["rollback", "shop", "v2", "--with-data", "--confirm", "shop"]).ok();
            is_pair(world, "two");
        }
    }
}
