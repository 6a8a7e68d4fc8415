//! Drift: changes that were made by hand in a running release are listed, saved, refused, or applied to the next release.

use serde_json::Value;

use crate::harness::{Repo, World, in_each_mode, in_one_mode, until};

in_each_mode!(changes_by_hand_are_listed_and_saved, hotfix_is_applied_to_next_release);
in_one_mode!(
    drift_policy_refuse_stops_push_until_saved,
    restart_saves_changes_by_hand,
    changes_by_deployment_itself_are_no_drift,
    change_during_deployment_is_saved,
    change_during_deployment_survives_a_kill_after_its_end,
    changed_installed_tree_is_reported,
    invalid_drift_settings_are_refused,
    drift_commands_need_view_push_or_operate_right,
    rollback_without_its_patch_is_refused_before_any_change,
);

const PAGE: &str = "<!doctype html>\n<title>shop</title>\none\n\n\n\n\n\n\nlast\n";

fn shop<'w>(world: &'w World, recipe: &str) -> Repo<'w> {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("Procfile", "web: exec larder static-server --root .\n").write("larder.yml", recipe);
    repo.write("index.html", PAGE).write("lib/old.txt", "old\n").write("lib/data.bin", [0, 1, 2]);
    repo.commit("one");
    repo.push().accepted();
    repo
}

fn by_hand(world: &World, script: &str) {
    world.larder(&["run", "shop", "--", "sh", "-ec", script]).exits(0);
}

const HOTFIX: &str = "sed -i s/one/FIXED/ index.html; rm lib/old.txt; printf '\\1\\0\\3\\4' > lib/data.bin; echo new > extra.txt";

fn changes(world: &World) -> Vec<(String, String)> {
    let json = world.larder(&["drift", "shop", "--quick", "--json"]).json();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let real = json["changes"].as_array().unwrap().iter().filter(|change| change["noise"].is_null());
    real.map(|change| (text(&change["change"]), text(&change["path"]))).collect()
}

fn patches(world: &World) -> Vec<Value> {
    world.larder(&["drift", "shop", "--patches", "--json"]).json().as_array().unwrap().clone()
}

fn changes_by_hand_are_listed_and_saved(world: &World) {
    let repo = shop(world, "data: [media]\n");
    let clean = world.larder(&["drift", "shop"]);
    clean.exits(0).says("v1 of shop/production runs as it was released.").says("The installed tree matches its manifest.");
    world.larder(&["drift", "shop", "--save"]).exits(3).says("nothing in shop/production was changed by hand");
    by_hand(world, HOTFIX);
    by_hand(world, "echo mine > media/file; mkdir -p tmp log; echo x > tmp/x; echo x > log/web.log; touch lib/data.bin");
    let drift = world.larder(&["drift", "shop"]);
    drift.exits(0).says("4 files changed by hand in v1 of shop/production, and 2 expected changes:");
    drift.says("changed  index.html").says("removed  lib/old.txt").says("changed  lib/data.bin").says("added    extra.txt");
    drift.says("[temporary]").says("[a log]").says("larder drift shop/production --save").keeps_quiet_about("media");
    world.larder(&["status"]).says("live: 4 files changed by hand");
    world.larder(&["project", "info", "shop"]).says("4 files changed by hand");
    assert_eq!(world.ssh("alice", &["status", "--json"]).json()["environments"][0]["drift"]["changes"], 4);

    let saved = world.ssh("alice", &["drift", "shop", "--save", "--json"]).json();
    let id = saved["patch"].as_str().unwrap();
    let shown = world.larder(&["drift", "shop", "--show", &id[..5]]);
    shown
        .exits(0)
        .says("--- a/index.html\n+++ b/index.html\n")
        .says("-one\n+FIXED\n")
        .says("lib/data.bin")
        .says("saved as a whole");
    // git accepts the patch.
    let text = world.larder(&["drift", "shop", "--show", id]).stdout;
    repo.write("../hotfix.diff", text);
    repo.git(&["apply", "--check", "../hotfix.diff"]).ok();

    // By default, the next release does not contain the changes; the push says so, and the patch is kept.
    repo.write("index.html", PAGE.replace("last", "second")).commit("two");
    let push = repo.push();
    push.accepted().says("4 files of v1 were changed by hand").says("changed index.html").says(&format!("--show {id}"));
    world.get("shop", "/").holds("one");
    assert_eq!(world.get("shop", "/extra.txt").status, 404);
    assert_eq!(changes(world), []);
    let kept = patches(world);
    assert_eq!((kept.len(), &kept[0]["by"], &kept[0]["number"]), (1, &"alice".into(), &1.into()), "equal changes are saved once");
    world.larder(&["drift", "shop", "--patches"]).says(id).says("alice");
    // Changes until the retirement of the old slot are saved after the verdict. The next deployment waits until these changes are saved.
    repo.commit("three");
    repo.push().accepted();
    assert_eq!(patches(world).len(), 1);
    world.larder(&["drift", "shop", "--drop", id]).exits(0);
    world.larder(&["drift", "shop", "--drop", id]).exits(4).says("there is no patch");
    assert_eq!(patches(world).len(), 0);
}

fn hotfix_is_applied_to_next_release(world: &World) {
    let repo = shop(world, "drift: reapply\n");
    by_hand(world, HOTFIX);
    // The next release changes another line of the same file, and has the binary file with the content of the hotfix.
    repo.write("index.html", PAGE.replace("last", "second")).write("lib/data.bin", [1, 0, 3, 4]).commit("two");
    let push = repo.push();
    push.accepted()
        .says("4 files of v1 were changed by hand")
        .says("3 files changed; of these merged: index.html; 1 file already contained the change");
    let page = world.get("shop", "/").body;
    assert!(page.contains("FIXED") && page.contains("second"), "{page}");
    assert_eq!(world.get("shop", "/lib/old.txt").status, 404);
    world.get("shop", "/extra.txt").holds("new");
    assert_eq!(changes(world).len(), 3);
    // The changes of the patch survive a restart and another deployment.
    world.larder(&["restart", "shop"]).exits(0);
    world.get("shop", "/").holds("FIXED");
    repo.commit("three");
    repo.push().accepted();
    world.get("shop", "/").holds("FIXED");
    // A release that changes the same lines as the patch is refused, and visitors see no change.
    let live = repo.live();
    repo.write("index.html", PAGE.replace("one", "another")).commit("four");
    repo.push().rejected_with("to this release: index.html: this release has changed the same lines").says("drift: keep");
    assert_eq!(repo.live(), live);
    world.get("shop", "/").holds("FIXED");
    // A patch whose changes were committed causes no conflict.
    repo.write("index.html", PAGE.replace("one", "FIXED").replace("last", "second")).remove("lib/old.txt");
    repo.write("extra.txt", "new\n").commit("five");
    repo.push().accepted().says("3 files already contained the change");
    assert_eq!(changes(world), []);
    repo.commit("six");
    repo.push().accepted().0.keeps_quiet_about("by hand");
    world.is_consistent("shop");
}

fn drift_policy_refuse_stops_push_until_saved(world: &World) {
    let repo = shop(world, "drift: {policy: refuse, ignore: [/uploads/, \"*.sqlite3\"]}\n");
    by_hand(world, "mkdir uploads; echo x > uploads/x; echo x > db.sqlite3");
    repo.commit("two");
    repo.push().accepted().0.keeps_quiet_about("by hand");
    by_hand(world, HOTFIX);
    let live = repo.live();
    repo.commit("three");
    repo.push().rejected_with("gather: 4 files of v2 were changed by hand").says("--save").says("removed lib/old.txt");
    assert_eq!(repo.live(), live);
    world.get("shop", "/").holds("FIXED");
    // The patch was saved automatically, and no user has acknowledged it.
    assert_eq!((patches(world).len(), &patches(world)[0]["by"]), (1, &Value::Null));
    world.ssh("alice", &["drift", "shop", "--save"]).exits(0).says("Saved as patch");
    repo.push().accepted().says("the new release does not contain these changes");
    world.get("shop", "/").holds("one");
    assert_eq!((patches(world).len(), &patches(world)[0]["by"]), (1, &"alice".into()));
}

fn restart_saves_changes_by_hand(world: &World) {
    shop(world, "env: {A: b}\n");
    by_hand(world, HOTFIX);
    world.larder(&["restart", "shop"]).exits(0);
    world.get("shop", "/").holds("one");
    assert_eq!(patches(world).len(), 1);
    by_hand(world, "echo again > other.txt");
    world.kill9_all();
    world.start(&[]);
    until("the application is back", || world.get("shop", "/").status == 200);
    assert_eq!(world.get("shop", "/other.txt").status, 404);
    assert_eq!(patches(world).len(), 2, "{:?}", patches(world));
}

fn changes_by_deployment_itself_are_no_drift(world: &World) {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("larder.yml", "release: echo released > released.txt\n");
    repo.write("Procfile", "web: date +%N > started.txt; exec larder static-server --root .\n");
    repo.program(".larder/deploy", "#!/bin/sh\necho $$ > generated.txt\n").page("one");
    repo.push().accepted();
    until("the changes by the deployment are known", || changes(world).is_empty());
    world
        .larder(&["drift", "shop"])
        .says("except for 3 expected")
        .says("generated.txt")
        .says("[unchanged since the release went live]");
    repo.commit("two");
    repo.push().accepted().0.keeps_quiet_about("by hand");
    // A later change of a generated file by hand is drift.
    by_hand(world, "echo mine > generated.txt");
    assert_eq!(changes(world), [(String::from("added"), String::from("generated.txt"))]);
    repo.commit("three");
    repo.push().accepted().says("1 file of v2 was changed by hand");
    world.larder(&["restart", "shop"]).exits(0);
    assert_eq!((changes(world), patches(world).len()), (vec![], 1));
}

fn change_during_deployment_is_saved(world: &World) {
    let repo = shop(world, "env: {A: b}\n");
    repo.program(".larder/build", "#!/bin/sh\necho waiting\nsleep 3\n").commit("slow");
    std::thread::scope(|scope| {
        let push = scope.spawn(|| repo.push());
        until("the build waits", || world.larder(&["status"]).stdout.contains("deploying"));
        std::thread::sleep(std::time::Duration::from_millis(1000));
        by_hand(world, "echo late > late.txt");
        push.join().unwrap().accepted().0.keeps_quiet_about("by hand");
    });
    until("the patch is saved", || patches(world).len() == 1);
    let patch = patches(world);
    assert_eq!(patch[0]["number"], 1);
    let id = patch[0]["id"].as_str().unwrap();
    world.larder(&["drift", "shop", "--show", id]).says("+late");
}

/// The server is killed twice. The first kill is after the end of the deployment is recorded, and before the changes in the old slot are
/// saved. The second kill is after the changes are saved, and before the follow-ups end. The changes are saved exactly once.
fn change_during_deployment_survives_a_kill_after_its_end(world: &World) {
    let repo = shop(world, "env: {A: b}\n");
    let marks = world.directory().join("marks");
    std::fs::create_dir(&marks).unwrap();
    std::fs::set_permissions(&marks, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let points = ["journal.ended", "followups.kept"].map(|point| format!("{point}=return({})", marks.display())).join(";");
    world.restart(&[("FAILPOINTS", &points)]);
    repo.program(".larder/build", "#!/bin/sh\necho waiting\nsleep 3\n").commit("slow");
    std::thread::scope(|scope| {
        let push = scope.spawn(|| repo.push());
        until("the build waits", || world.larder(&["status"]).stdout.contains("deploying"));
        std::thread::sleep(std::time::Duration::from_millis(1000));
        by_hand(world, "echo late > late.txt");
        let _ = push.join().unwrap();
    });
    until("the server was killed twice", || marks.join("journal.ended").exists() && marks.join("followups.kept").exists());
    until("the follow-ups are done", || {
        let deployments = world.environment("shop").join("deployments");
        world.has_ended("shop")
            && crate::harness::state::names(&deployments).iter().all(|name| !deployments.join(name).join("due").exists())
    });
    until("the server answers", || world.larder(&["status"]).status == 0);
    let patch = patches(world);
    assert_eq!(patch.len(), 1, "{patch:?}");
    world.larder(&["drift", "shop", "--show", patch[0]["id"].as_str().unwrap()]).says("+late");
}

fn changed_installed_tree_is_reported(world: &World) {
    shop(world, "env: {A: b}\n");
    let top = world.environment("shop");
    let tree = top.join("deploy").join(std::fs::read_link(top.join("deploy/current")).unwrap());
    std::fs::write(tree.join("index.html"), "tampered").unwrap();
    let drift = world.larder(&["drift", "shop"]);
    drift.exits(0).says("does NOT match its manifest").says("index.html has other content").says("runs as it was released");
    assert_eq!(world.larder(&["drift", "shop", "--json"]).json()["tree"]["differences"][0]["path"], "index.html");
    world.larder(&["drift", "shop", "--quick"]).keeps_quiet_about("manifest");
}

fn invalid_drift_settings_are_refused(world: &World) {
    let repo = shop(world, "env: {A: b}\n");
    world.larder(&["drift", "blog"]).exits(4);
    world.larder(&["drift", "shop", "--show", "../../x"]).exits(4).says("there is no patch");
    world.larder(&["drift", "shop", "--save", "--patches"]).exits(2);
    repo.write("larder.yml", "drift: reaply\n").commit("bad");
    repo.push().rejected_with("larder.yml:1").says("reapply");
    repo.write("larder.yml", "drift: {ignore: [\"[z-a]\"]}\n").commit("bad");
    repo.push().rejected_with("pattern 1 of drift.ignore");
    world.larder(&["project", "create", "empty"]).ok();
    world.larder(&["drift", "empty"]).exits(4).says("nothing is live in empty/production yet");
}

fn drift_commands_need_view_push_or_operate_right(world: &World) {
    shop(world, "env: {A: b}\n");
    by_hand(world, HOTFIX);
    world.key("bob");
    world.larder(&["user", "add", "bob", "--key-file", &world.public_key("bob")]).ok();
    world.ssh("bob", &["drift", "shop"]).exits(4);
    world.larder(&["user", "grant", "bob", "shop", "view"]).ok();
    world.ssh("bob", &["drift", "shop"]).exits(0).says("4 files changed by hand");
    world.ssh("bob", &["drift", "shop", "--save"]).exits(3);
    world.ssh("bob", &["release", "pin", "shop", "v1"]).exits(3);
    world.ssh("bob", &["release", "show", "shop", "v1"]).exits(0);
    let id = world.larder(&["drift", "shop", "--save", "--json"]).json()["patch"].as_str().unwrap().to_owned();
    world.ssh("bob", &["drift", "shop", "--show", &id]).exits(3);
    world.ssh("bob", &["drift", "shop", "--drop", &id]).exits(3);
    world.larder(&["user", "grant", "bob", "shop", "deploy"]).ok();
    world.ssh("bob", &["drift", "shop", "--show", &id]).exits(0).says("+FIXED");
}

fn rollback_without_its_patch_is_refused_before_any_change(world: &World) {
    let repo = shop(world, "drift: reapply\n");
    by_hand(world, HOTFIX);
    repo.write("second.txt", "two").commit("two");
    repo.push().accepted();
    repo.write("larder.yml", "").write("third.txt", "three").commit("three");
    repo.push().accepted();
    // While the patch exists, a rollback applies the patch again.
    world.larder(&["rollback", "shop", "v2"]).ok();
    world.get("shop", "/extra.txt").holds("new");
    world.larder(&["rollback", "shop", "v3"]).ok();
    for patch in patches(world) {
        world.larder(&["drift", "shop", "--drop", patch["id"].as_str().unwrap()]).ok();
    }
    let refused = world.larder(&["rollback", "shop", "v2"]);
    refused.exits(1).says("which was applied to it, no longer exists").says("larder deploy shop/production --ref");
    let journal = world.journals("shop").pop().unwrap();
    assert!(journal.iter().all(|record| record["step"].is_null() || record["step"] == "gather.recall"), "{journal:#?}");
    world.get("shop", "/third.txt").holds("three");
    world.is_consistent("shop");
}
