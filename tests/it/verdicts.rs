//! Failing pushes: git's own line has the reason, and the old release serves all the time.

use crate::harness::{Repo, World, in_each_mode, in_one_mode};

in_each_mode!(failing_build_script_rejects_push, renamed_directory_of_the_source_is_explained, exiting_process_rejects_push);
in_one_mode!(
    missing_program_is_named_with_exit_127,
    unusable_script_is_named_with_its_defect,
    crashed_process_shows_its_own_sentence_without_port_hint,
    unhealthy_answer_is_shown_with_expected_status,
    long_output_keeps_verdict_and_last_lines,
    full_disk_is_refused_in_larders_own_words,
    syntax_error_in_application_rejects_push,
    failing_release_command_rejects_push,
    silent_process_rejects_push,
    failed_first_push_leaves_project_empty,
    failing_smoke_check_rejects_push
);

/// A shell application that serves its files with larder's own static server.
const SERVE: &str = "exec larder static-server --root .\n";
const SHORT: &str = "health:\n  timeout: 2s\n";

/// Pushes the change `break_it` while version one is live. Asserts that the push is rejected with `why`, that version one keeps serving,
/// that nothing is left behind, and that the next push after `mend` goes live.
fn breaks(world: &World, phase: &str, why: &str, break_it: impl FnOnce(&Repo<'_>), mend: impl FnOnce(&Repo<'_>)) {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("Procfile", "web: sh serve.sh\n").write("serve.sh", SERVE).write("larder.yml", SHORT);
    let good = repo.page("version one");
    repo.push().accepted();
    let before = world.snapshot("shop");
    let visitor = world.visitor("shop");

    break_it(&repo);
    repo.commit("broken");
    let push = repo.push();
    push.rejected_with(&format!("{phase}: ")).rejected_with(why).rejected_with("; v1 still live");
    world.serves("shop", "version one");
    assert_eq!(repo.live(), Some(good), "ls-remote names another commit");
    let (mut before, mut after) = (before, world.snapshot("shop"));
    if why == "the release command" {
        (before, after) = (before.without_processes(), after.without_processes());
    }
    assert_eq!(after, before, "the failed push left something behind");

    // The same commit can be pushed again: its deployment runs, and fails, again.
    repo.push().rejected_with(why);
    assert_eq!(world.journals("shop").len(), 3);

    mend(&repo);
    let mended = repo.page("version two");
    repo.push().accepted();
    world.serves("shop", "version two");
    assert_eq!(repo.live(), Some(mended));
    let seen = visitor.satisfied();
    assert!(seen.pages.len() <= 2, "the page flickered: {:?}", seen.pages);
    world.is_consistent("shop");
}

fn failing_build_script_rejects_push(world: &World) {
    let broken = |repo: &Repo<'_>| {
        repo.program(".larder/build", "#!/bin/sh\necho compiling\necho no such header >&2\nexit 3\n").write("x", "");
    };
    breaks(world, "build", ".larder/build exited 3", broken, |repo| {
        repo.remove(".larder/build");
    });
}

/// rename(2) of a directory that came with the source gives EXDEV, in builds and in processes.
fn renamed_directory_of_the_source_is_explained(world: &World) {
    let repo = live_shop(world);
    let hint = "a directory that came with the source cannot be renamed (EXDEV)";
    repo.write("public/page.html", "a page");
    repo.program(".larder/build", "#!/usr/bin/env python3\nimport os\nos.rename('public', 'dist')\n").commit("rename");
    repo.push().rejected_with("Invalid cross-device link").says(hint);
    // The command that the hint names works.
    repo.program(".larder/build", "#!/bin/sh\nset -e\nmv public dist\n").commit("mv");
    repo.push().accepted().0.keeps_quiet_about(hint);
    world.larder(&["run", "shop", "--", "cat", "dist/page.html"]).exits(0).says("a page");
    repo.remove(".larder/build");
    repo.write("Procfile", "web: python3 -c \"import os; os.rename('public', 'dist')\"\n").commit("a process");
    repo.push().rejected_with("Invalid cross-device link").says(hint);
}

fn syntax_error_in_application_rejects_push(world: &World) {
    let broken = |repo: &Repo<'_>| {
        repo.write("serve.sh", "if then fi (\n");
    };
    breaks(world, "deploy", "before it was healthy", broken, |repo| {
        repo.write("serve.sh", SERVE);
    });
}

fn failing_release_command_rejects_push(world: &World) {
    let procfile = "web: sh serve.sh\nrelease: echo migrating; exit 4\n";
    let broken = |repo: &Repo<'_>| {
        repo.write("Procfile", procfile);
    };
    breaks(world, "deploy", "the release command", broken, |repo| {
        repo.write("Procfile", "web: sh serve.sh\n");
    });
}

fn exiting_process_rejects_push(world: &World) {
    let broken = |repo: &Repo<'_>| {
        repo.write("serve.sh", "echo cannot find the database >&2\nexit 7\n");
    };
    breaks(world, "deploy", "before it was healthy", broken, |repo| {
        repo.write("serve.sh", SERVE);
    });
}

fn silent_process_rejects_push(world: &World) {
    let broken = |repo: &Repo<'_>| {
        repo.write("serve.sh", "exec sleep 1000\n");
    };
    breaks(world, "deploy", "did not listen on its port", broken, |repo| {
        repo.write("serve.sh", SERVE);
    });
}

fn failing_smoke_check_rejects_push(world: &World) {
    let broken = |repo: &Repo<'_>| {
        repo.write("larder.yml", format!("{SHORT}smoke:\n  - path: /nowhere\n    status: 200\n"));
    };
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    let before = world.snapshot("shop");
    broken(&repo);
    repo.page("version two");
    repo.push().rejected_with("post_deploy: smoke check /nowhere answered 404 (expected 200)");
    // A page with an expected status can still have the wrong content.
    let contains = |text: &str| format!("{SHORT}smoke:\n  - path: /index.html\n    contains: {text}\n");
    repo.write("larder.yml", contains("'<title>version three'"));
    repo.page("version two");
    let push = repo.push();
    push.rejected_with("smoke check /index.html: the answer does not contain \"<title>version three\"").says("v1 is still live");
    world.serves("shop", "version one");
    assert_eq!(world.snapshot("shop"), before);
    repo.page("version three");
    repo.push().accepted();
    world.serves("shop", "version three");
}

#[test]
fn archive_above_limit_rejects_push() {
    let Some(world) = World::configured("  archive_bytes: 64K\n") else { return };
    world.project("shop");
    let repo = Repo::site(&world, "shop", "version one");
    repo.push().accepted();
    let before = world.snapshot("shop");
    let mut state = 1_u64;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    });
    repo.write("photo.jpg", noise.take(200_000).collect::<Vec<_>>());
    repo.page("version two");
    repo.push().rejected_with("bundle: cannot write the release archive: it would have more than 65536 bytes");
    assert_eq!(world.snapshot("shop"), before);
    repo.write(".larderignore", "photo.jpg\n");
    repo.page("version three");
    repo.push().accepted();
    world.end();
}

fn failed_first_push_leaves_project_empty(world: &World) {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("Procfile", "web: exit 1\n");
    repo.commit("broken");
    repo.push().rejected_with("nothing is live yet");
    assert_eq!(repo.live(), None);
    assert_eq!(world.snapshot("shop").refs, Vec::<String>::new());
    repo.remove("Procfile");
    repo.page("version one");
    repo.push().accepted();
    world.serves("shop", "version one");
}

/// Deploys a first version whose recipe has short time limits; tests then push a second version that is rejected.
fn live_shop(world: &World) -> Repo<'_> {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("Procfile", "web: sh serve.sh\n").write("serve.sh", SERVE).write("larder.yml", SHORT);
    repo.page("version one");
    repo.push().accepted();
    repo
}

fn missing_program_is_named_with_exit_127(world: &World) {
    let repo = live_shop(world);
    // The first command needs no shell, the second command needs a shell, and the third command is a path.
    for command in ["no-such-server --port 80", "no-such-server --port $PORT", "bin/no-such-server"] {
        repo.write("Procfile", format!("web: {command}\n")).commit("broken");
        let push = repo.push();
        push.rejected_with("web.1 exited 127").rejected_with("no-such-server").rejected_with("; v1 still live");
        push.0.keeps_quiet_about("$PORT or").keeps_quiet_about("worker").keeps_quiet_about("\u{1b}[");
    }
    repo.write("Procfile", "web: sh serve.sh\nrelease: no-such-migration up\n").commit("broken");
    repo.push().rejected_with("the release command exited 127").rejected_with("no-such-migration");
    repo.write("Procfile", "web: sh serve.sh\nworker: no-such-worker\n")
        .write("larder.yml", format!("{SHORT}scale: {{worker: 1}}\n"));
    repo.commit("broken");
    repo.push().rejected_with("worker.1 exited 127").rejected_with("no-such-worker");
}

fn unusable_script_is_named_with_its_defect(world: &World) {
    let repo = live_shop(world);
    repo.program("start.sh", "#!/bin/sh\r\nexec larder static-server --root .\r\n");
    for command in ["./start.sh", "./start.sh $PORT", "sh start.sh"] {
        repo.write("Procfile", format!("web: {command}\n")).commit("broken");
        repo.push().rejected_with("start.sh").rejected_with("Windows line endings").says("eol=lf");
    }
    repo.remove("start.sh").write("run.sh", "#!/bin/sh\nexec larder static-server --root .\n");
    for command in ["./run.sh", "./run.sh $PORT"] {
        repo.write("Procfile", format!("web: {command}\n")).commit("broken");
        repo.push().rejected_with("run.sh").rejected_with("not executable").says("git update-index --chmod=+x run.sh");
    }
    repo.program("run.sh", "#!/no/such/shell\nexit 0\n").commit("broken");
    repo.push().rejected_with("run.sh").rejected_with("/no/such/shell");
    repo.program("run.sh", "#!/bin/sh\nexec larder static-server --root .\n").page("version two");
    repo.push().accepted();
}

fn crashed_process_shows_its_own_sentence_without_port_hint(world: &World) {
    let repo = live_shop(world);
    repo.write("serve.sh", "echo starting\necho 'Error: cannot find the database' >&2\nexit 7\n").commit("broken");
    let push = repo.push();
    push.rejected_with("web.1 exited 7 before it was healthy: ").rejected_with("cannot find the database");
    push.0.keeps_quiet_about("0.0.0.0:$PORT");
    repo.write("serve.sh", SERVE).write("Procfile", "web: sh serve.sh\nrelease: sh migrate.sh\n");
    repo.write("migrate.sh", "echo migrating\necho 'KeyError: SECRET_KEY'\necho Details:\nexit 1\n").commit("broken");
    repo.push().rejected_with("the release command exited 1: KeyError: SECRET_KEY;");
}

fn unhealthy_answer_is_shown_with_expected_status(world: &World) {
    let repo = live_shop(world);
    repo.write("larder.yml", "health:\n  path: /nowhere\n  timeout: 2s\n").commit("broken");
    let push = repo.push();
    push.rejected_with("deploy: web.1 answered 404 to GET /nowhere (expected 200-399)");
    push.0.keeps_quiet_about("0.0.0.0:$PORT");
    repo.write("larder.yml", "health:\n  path: /\n  timeout: 2s\n").write("serve.sh", "exec sleep 1000\n").commit("silent");
    repo.push().rejected_with("did not listen on its port").says("0.0.0.0:$PORT");
    repo.write("larder.yml", "health:\n  command: sh check.sh\n  timeout: 2s\n").write("serve.sh", SERVE);
    repo.write("check.sh", "exit 3\n").commit("unhealthy");
    repo.push().rejected_with("`sh check.sh` exited 3");
}

/// The output exceeds the limit of the transcript; larder's own lines and the last lines of the tool are kept.
fn long_output_keeps_verdict_and_last_lines(world: &World) {
    let repo = live_shop(world);
    let flood = format!("yes {} | head -n 60000\n", "0123456789".repeat(20));
    repo.program(".larder/build", &format!("#!/bin/sh\n{flood}echo the last word of the build\n"));
    repo.page("version two");
    let push = repo.push();
    push.accepted().says("left out").says("the last word of the build").says("v2 is live: http").says("to go back to v1");
    repo.program(".larder/build", &format!("#!/bin/sh\n{flood}echo no such header\nexit 3\n")).commit("broken");
    let push = repo.push();
    push.rejected_with("no such header").says("left out").says("All changes were reverted. v2 is still live.");
    let shown = push.remote().iter().filter(|line| line.trim() == "no such header").count();
    assert!(shown >= 1, "{}", push.0);
    // A later follower reads the same output.
    world.larder(&["deploy", "shop", "--follow"]).says("is left out").says("no such header");
}

fn full_disk_is_refused_in_larders_own_words(world: &World) {
    let repo = live_shop(world);
    let file = world.root().join("larder.yml");
    let settings = std::fs::read_to_string(&file).unwrap().replace("disk_reserve: 64M", "disk_reserve: 900000G");
    std::fs::write(&file, settings).unwrap();
    world.restart(&[]);
    repo.page("version two");
    let push = repo.push();
    assert_ne!(push.0.status, 0, "{}", push.0);
    push.says("remote error: the server's disk is nearly full").0.keeps_quiet_about("unpacker error");
    // Reading needs no free disk space.
    assert!(repo.live().is_some());
}
