//! Tests of the preview of rollbacks with data, and of the question that a person answers before data is replaced.

use crate::harness::{Repo, World, in_one_mode};

in_one_mode!(
    rollback_preview_names_the_restore_point_and_the_loss,
    rollback_without_restore_point_of_the_release_lists_candidates,
    restore_on_a_terminal_asks_for_the_name_of_the_project,
);

/// Returns a project whose v1 wrote `one`, and whose v2 has a release command and wrote `two` and `added`. A restore point was taken while
/// v1 was live.
fn two_releases(world: &World) -> (Repo<'_>, String) {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("Procfile", "web: exec larder static-server --root .\n").write("larder.yml", "data: [media]\n");
    repo.page("version one");
    repo.push().accepted();
    sh(world, "echo one > media/file");
    let point = world.larder(&["--json", "backup", "take", "shop"]).json();
    let point = point["id"].as_str().unwrap().to_owned();
    repo.write("larder.yml", "data: [media]\nrelease: echo upgraded\n");
    repo.page("version two");
    repo.push().accepted();
    sh(world, "echo two > media/file; echo added > media/added");
    (repo, point)
}

fn sh(world: &World, script: &str) -> String {
    world.larder(&["run", "shop", "--", "sh", "-ec", script]).ok().trim().to_owned()
}

fn rollback_preview_names_the_restore_point_and_the_loss(world: &World) {
    let (repo, point) = two_releases(world);
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
    let (_, point) = two_releases(world);
    let later = world.larder(&["--json", "backup", "take", "shop"]).json();
    world.larder(&["backup", "remove", "shop", &point]).ok();
    let refused = world.larder(&["rollback", "shop", "v1", "--with-data", "--dry-run"]);
    refused.exits(3).says("no usable restore point was taken while v1 was live").says(later["id"].as_str().unwrap());
    world.larder(&["rollback", "shop", "v1", "--with-data", "--dry-run", "--point", &point]).exits(4);
    world.larder(&["rollback", "shop", "v1", "--with-data", "--dry-run", "--point", "../x"]).exits(2);
    world.larder(&["rollback", "shop", "v1", "--point", "latest"]).exits(2);
}

fn restore_on_a_terminal_asks_for_the_name_of_the_project(world: &World) {
    two_releases(world);
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
