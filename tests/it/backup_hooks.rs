//! The project's scripts `.larder/backup` and `.larder/restore`, here for a Redis database that the recipe does not declare.

use std::{fs, os::unix::fs::PermissionsExt};

use crate::{
    backup::{data, id, sh, stored, take},
    harness::{
        Repo, World,
        databases::{PASSWORD, Redis},
        in_each_mode, in_one_mode, processes,
        state::names,
        until,
    },
};

in_each_mode!(scripts_of_the_project_save_and_restore_data_that_larder_does_not_know);
in_one_mode!(
    drill_runs_the_restore_script_with_scratch_data_if_the_recipe_allows,
    restore_killed_after_the_exchange_still_runs_the_script,
    repeated_undo_of_an_upgrade_does_not_run_the_script_again,
);

const BACKUP: &str = r#"#!/bin/sh
set -eu
if test -e "$LARDER_DATA/media/locked"; then echo "the index is locked" >&2; exit 3; fi
redis-cli -p $INDEX get index > "$LARDER_RESTORE_POINT/index"
"#;

const RESTORE: &str = r#"#!/bin/sh
set -eu
if test "$(redis-cli -p $INDEX get refuse)" = yes; then echo "the index refuses"; exit 4; fi
redis-cli -p $INDEX set index "$(cat "$LARDER_RESTORE_POINT/index")"
"#;

const UPGRADE: &str = "#!/bin/sh\necho broken > media/file\nredis-cli -p $INDEX set index broken\n";

fn script(repo: &Repo<'_>, name: &str, text: &str) {
    repo.write(name, text);
    fs::set_permissions(repo.path().join(name), fs::Permissions::from_mode(0o755)).unwrap();
}

/// Deploys a site with both scripts and the content `one` in the index and in a file. Returns the repository and its recipe.
fn shop<'w>(world: &'w World, server: &Redis, restore: &str) -> (Repo<'w>, String) {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    let password = serde_json::to_string(PASSWORD).unwrap();
    let recipe = format!("data: [media]\nenv: {{INDEX: \"{}\", REDISCLI_AUTH: {password}}}\n", server.port);
    repo.write("Procfile", "web: exec larder static-server --root .\n").write("larder.yml", &recipe);
    script(&repo, ".larder/backup", BACKUP);
    script(&repo, ".larder/restore", restore);
    repo.page("version one");
    repo.push().accepted();
    server.ask(0, &["SET", "index", "one"]);
    sh(world, "echo one > media/file");
    (repo, recipe)
}

fn scripts_of_the_project_save_and_restore_data_that_larder_does_not_know(world: &World) {
    let Some(server) = Redis::start(world, "") else { return };
    let index = || server.ask(0, &["GET", "index"]);
    let (repo, recipe) = shop(world, &server, RESTORE);
    let point = take(world);
    assert_eq!(fs::read_to_string(stored(world, "one\n")).unwrap(), "one\n");
    world.larder(&["backup", "verify", "shop"]).says("ok (");
    let diff = world.larder(&["--json", "backup", "diff", "shop", id(&point)]).json();
    assert_eq!((&diff["removed"], &diff["added"]), (&0.into(), &0.into()), "{diff}");
    let file = || fs::read_to_string(data(world).join("media/file")).unwrap();

    server.ask(0, &["SET", "index", "two"]);
    sh(world, "echo two > media/file");
    let restore = ["backup", "restore", "shop", id(&point), "--yes"];
    world.larder(&restore).ok();
    assert_eq!((index(), file()), ("one".into(), "one\n".into()));
    world.serves("shop", "version one");

    // A failed upgrade runs the scripts as well.
    script(&repo, "upgrade.sh", UPGRADE);
    repo.write("larder.yml", format!("{recipe}upgrade: sh upgrade.sh\nhealth: {{path: /missing, timeout: 1s}}\n"));
    repo.page("version two");
    repo.push().rejected_with("web.1 answered 404 to GET /missing").says("Upgrade with a hold");
    assert_eq!((index(), file()), ("one".into(), "one\n".into()));
    world.serves("shop", "version one");

    // Without the files of the script there is no restore point, and a deployment that needs a restore point changes nothing.
    sh(world, "touch media/locked");
    let processes = world.application("shop");
    world.larder(&["backup", "take", "shop"]).exits(3).says(".larder/backup of shop/production: exited 3: the index is locked");
    repo.push().rejected_with("the index is locked");
    assert_eq!(world.application("shop"), processes);
    sh(world, "rm media/locked");

    // A failed script of a restore is named, and the restore can be repeated.
    server.ask(0, &["SET", "index", "three"]);
    server.ask(0, &["SET", "refuse", "yes"]);
    let failed = world.larder(&restore);
    failed.exits(3).says("files and databases are restored").says("exited 4: the index refuses").says("repeat the restore");
    assert_eq!(index(), "three");
    world.serves("shop", "version one");
    server.ask(0, &["DEL", "refuse"]);
    world.larder(&restore).ok();
    assert_eq!((index(), file()), ("one".into(), "one\n".into()));
}

/// The next server runs the script before the release starts.
fn restore_killed_after_the_exchange_still_runs_the_script(world: &World) {
    let Some(server) = Redis::start(world, "") else { return };
    shop(world, &server, RESTORE);
    let point = take(world);
    sh(world, "echo two > media/file");
    let marks = crate::recovery::marks(world);
    for event in ["exchanged", "taken"] {
        server.ask(0, &["SET", "index", "two"]);
        world.restart(&[("FAILPOINTS", &format!("restore.{event}=return({})", marks.display()))]);
        assert_ne!(world.larder(&["backup", "restore", "shop", id(&point), "--yes"]).status, 0);
        until("the release serves", || world.get("shop", "/").status == 200);
        let file = fs::read_to_string(data(world).join("media/file")).unwrap();
        let expected = if event == "exchanged" { "one" } else { "two" };
        assert_eq!((server.ask(0, &["GET", "index"]).as_str(), file.trim()), (expected, "one"), "{event}");
    }
    world.is_consistent("shop");
}

/// The undo fails after its work, so the old release runs, and changes the index. The index has no other copy.
fn repeated_undo_of_an_upgrade_does_not_run_the_script_again(world: &World) {
    let Some(server) = Redis::start(world, "") else { return };
    let (repo, recipe) = shop(world, &server, RESTORE);
    let index = || server.ask(0, &["GET", "index"]);
    script(&repo, "upgrade.sh", UPGRADE);
    repo.write("larder.yml", format!("{recipe}upgrade: sh upgrade.sh\nhealth: {{path: /missing, timeout: 1s}}\n"));
    repo.page("version two");
    world.restart(&[("FAILPOINTS", "undo.deploy.quiesce.late=1*return")]);
    repo.push().rejected_with("is frozen");
    world.serves("shop", "version one");
    assert_eq!(index(), "one");
    server.ask(0, &["SET", "index", "written while frozen"]);
    world.kill9_all();
    processes::kill_all_of_larder(world.directory());
    world.start(&[]);
    world.larder(&["deploy", "shop", "--unfreeze"]).ok();
    world.serves("shop", "version one");
    assert_eq!(index(), "written while frozen");
    assert_eq!(fs::read_to_string(data(world).join("media/file")).unwrap(), "one\n");
    world.is_consistent("shop");
}

/// A script that restores into a scratch index during a drill.
const DRILLED: &str = r#"#!/bin/sh
set -eu
name=index
if test "${LARDER_DRILL:-}" = 1; then name=scratch; fi
redis-cli -p $INDEX set $name "$(cat "$LARDER_RESTORE_POINT/index")"
echo drilled > "$LARDER_DATA/media/file"
if test "$(redis-cli -p $INDEX get refuse)" = yes; then echo "the index refuses"; exit 4; fi
"#;

fn drill_runs_the_restore_script_with_scratch_data_if_the_recipe_allows(world: &World) {
    let Some(server) = Redis::start(world, "") else { return };
    let index = |name: &str| server.ask(0, &["GET", name]);
    let (repo, recipe) = shop(world, &server, DRILLED);
    take(world);
    server.ask(0, &["SET", "index", "two"]);
    let drill = || world.larder(&["--json", "backup", "drill", "shop"]);
    // Without the permission of the recipe, the script does not run.
    let drilled = drill().json();
    assert!(drilled["unproven"].to_string().contains("does not set `drill_restore: true`"), "{drilled}");
    assert_eq!((index("index"), index("scratch")), ("two".into(), String::new()));
    repo.write("larder.yml", format!("{recipe}drill_restore: true\n")).page("version two");
    repo.push().accepted();
    // The script of another release than the live release does not run.
    let drilled = drill().json();
    assert!(drilled["unproven"].to_string().contains("its release is not live"), "{drilled}");
    server.ask(0, &["SET", "index", "three"]);
    take(world);
    server.ask(0, &["SET", "index", "four"]);
    let drilled = drill().json();
    let passed = serde_json::json!(["restore script", "health"]);
    assert_eq!((&drilled["failure"], &drilled["checks"]), (&serde_json::Value::Null, &passed), "{drilled}");
    assert!(!drilled["unproven"].to_string().contains(".larder/restore"), "{drilled}");
    // The script has changed the copy, and neither the live data nor the live index.
    assert_eq!((index("index"), index("scratch")), ("four".into(), "three".into()));
    assert_eq!(fs::read_to_string(data(world).join("media/file")).unwrap(), "one\n");
    world.larder(&["backup", "list", "shop"]).says("checks passed: restore script, health");
    // A script that fails makes the drill fail.
    server.ask(0, &["SET", "refuse", "yes"]);
    drill().exits(1).says(".larder/restore exited 4").says("the index refuses");
    world.larder(&["status"]).says("the index refuses");
    let top = world.environment("shop");
    assert_eq!(names(&top.join("custom")), Vec::<String>::new());
    assert_eq!(names(&top.join("data-copy")), Vec::<String>::new());
    world.serves("shop", "version two");
}
