//! Tests of commands on a copy of a restore point's data.

use std::process::Stdio;

use crate::{
    backup::{data, id, sh, shop, take},
    harness::{World, in_each_mode, in_one_mode, state::names, until},
};

in_each_mode!(command_on_a_copy_sees_and_changes_the_copy_only);
in_one_mode!(copy_is_deleted_after_a_kill, copy_of_a_damaged_or_unknown_restore_point_is_refused);

fn on_copy(world: &World, script: &str) -> crate::harness::cli::Output {
    world.larder(&["run", "--restore-point", "latest", "shop", "--", "sh", "-ec", script])
}

fn is_deleted(world: &World) {
    let top = world.environment("shop");
    until("the copy is deleted", || names(&top.join("data-copy")).is_empty() && !top.join("data-copy.note").exists());
}

fn command_on_a_copy_sees_and_changes_the_copy_only(world: &World) {
    let repo = shop(world);
    repo.write(
        "larder.yml",
        "data: [media, db.sqlite3]\nenv: {REPORTS_URL: 'postgresql+psycopg://u:secret@127.0.0.1/live', KEPT: 'yes'}\n",
    );
    repo.page("version two");
    repo.push().accepted();
    sh(world, "echo one > media/file; echo database > db.sqlite3; mkdir media/closed; chmod 500 media/closed");
    let point = take(world);
    sh(world, "echo two > media/file");
    let script = "cat media/file db.sqlite3 /data/media/file; echo changed > media/file; echo added > media/added; cat media/file; \
        echo ${REPORTS_URL-none} $KEPT $LARDER_RESTORE_POINT; touch /app/x 2>/dev/null || echo read-only; exit 7";
    let said = on_copy(world, script);
    said.exits(7);
    let expected = format!("one\ndatabase\none\nchanged\nnone yes {}\nread-only\n", id(&point));
    assert_eq!(said.stdout, expected, "{said}");
    assert_eq!(sh(world, "cat media/file; ls media"), "two\nclosed\nfile");
    is_deleted(world);
    world.larder(&["backup", "verify", "shop"]).says("ok (");
    world.serves("shop", "version two");
}

fn copy_is_deleted_after_a_kill(world: &World) {
    shop(world);
    sh(world, "echo one > media/file");
    take(world);
    let mut command = world.larder_command();
    let words = ["run", "--restore-point", "latest", "shop", "--", "sh", "-c", "touch media/here; sleep 1000"];
    let mut running = command.args(words).stdin(Stdio::null()).spawn().unwrap();
    until("the command runs", || world.environment("shop").join("data-copy/media/here").exists());
    on_copy(world, "true").exits(3).says("another command on a copy");
    world.kill9_all();
    let _ = running.wait();
    world.start(&[]);
    is_deleted(world);
    assert_eq!(names(&data(world).join("media")), ["file"]);
    // The caller's end is the end of the command.
    let mut command = world.larder_command();
    let mut running = command.args(words).stdin(Stdio::null()).spawn().unwrap();
    until("the command runs", || world.environment("shop").join("data-copy/media/here").exists());
    running.kill().unwrap();
    let _ = running.wait();
    is_deleted(world);
    on_copy(world, "cat media/file").exits(0).says("one");
}

fn copy_of_a_damaged_or_unknown_restore_point_is_refused(world: &World) {
    shop(world);
    on_copy(world, "true").exits(4);
    sh(world, "echo one > media/file");
    take(world);
    let stored = crate::backup::stored(world, "one\n");
    std::fs::write(&stored, "oNe\n").unwrap();
    on_copy(world, "true").exits(3).says("damaged");
    is_deleted(world);
    world.larder(&["run", "--restore-point", "../x", "shop", "--", "true"]).exits(2);
}
