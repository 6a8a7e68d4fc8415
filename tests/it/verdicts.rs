//! Every way in which a push can be wrong: git itself says so and why, and the old version answers all the while.

use crate::harness::{Repo, World, in_each_mode, in_one_mode};

in_each_mode!(a_failing_build_script, a_process_that_exits);
in_one_mode!(
    a_syntax_error_in_the_application,
    a_failing_release_command,
    a_process_that_never_answers,
    a_first_push_that_fails,
    a_failing_smoke_check
);

/// A shell application that answers every request with a file, by larder's own file server.
const SERVE: &str = "exec larder static-server --root .\n";
const SHORT: &str = "health:\n  timeout: 2s\n";

/// Version one is live; then `break_it` is pushed, and everything must be as DESIGN.md promises.
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
    assert_eq!(world.snapshot("shop"), before, "the failed push left something behind");

    // The same commit is not "up-to-date": it runs again, and fails again.
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

fn a_failing_build_script(world: &World) {
    let broken = |repo: &Repo<'_>| {
        repo.program(".larder/build", "#!/bin/sh\necho compiling\necho no such header >&2\nexit 3\n").write("x", "");
    };
    breaks(world, "build", ".larder/build exited 3", broken, |repo| {
        repo.remove(".larder/build");
    });
}

fn a_syntax_error_in_the_application(world: &World) {
    let broken = |repo: &Repo<'_>| {
        repo.write("serve.sh", "if then fi (\n");
    };
    breaks(world, "deploy", "before it was healthy", broken, |repo| {
        repo.write("serve.sh", SERVE);
    });
}

fn a_failing_release_command(world: &World) {
    let procfile = "web: sh serve.sh\nrelease: echo migrating; exit 4\n";
    let broken = |repo: &Repo<'_>| {
        repo.write("Procfile", procfile);
    };
    breaks(world, "deploy", "the release command", broken, |repo| {
        repo.write("Procfile", "web: sh serve.sh\n");
    });
}

fn a_process_that_exits(world: &World) {
    let broken = |repo: &Repo<'_>| {
        repo.write("serve.sh", "echo cannot find the database >&2\nexit 7\n");
    };
    breaks(world, "deploy", "before it was healthy", broken, |repo| {
        repo.write("serve.sh", SERVE);
    });
}

fn a_process_that_never_answers(world: &World) {
    let broken = |repo: &Repo<'_>| {
        repo.write("serve.sh", "exec sleep 1000\n");
    };
    breaks(world, "deploy", "did not listen on its port", broken, |repo| {
        repo.write("serve.sh", SERVE);
    });
}

fn a_failing_smoke_check(world: &World) {
    let broken = |repo: &Repo<'_>| {
        repo.write("larder.yml", format!("{SHORT}smoke:\n  - path: /nowhere\n    status: 200\n"));
    };
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    let before = world.snapshot("shop");
    broken(&repo);
    repo.page("version two");
    repo.push().rejected_with("post_deploy: smoke check /nowhere answered 404");
    // A page may be there and still be the wrong one.
    let contains = |text: &str| format!("{SHORT}smoke:\n  - path: /index.html\n    contains: {text}\n");
    repo.write("larder.yml", contains("'<title>version three'"));
    repo.page("version two");
    let push = repo.push();
    push.rejected_with("smoke check /index.html: the answer does not hold \"<title>version three\"").says("v1 is still live");
    world.serves("shop", "version one");
    assert_eq!(world.snapshot("shop"), before);
    repo.page("version three");
    repo.push().accepted();
    world.serves("shop", "version three");
}

#[test]
fn an_archive_above_the_limit() {
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
    repo.push().rejected_with("bundle: the release archive cannot be written: it would have more than 65536 bytes");
    assert_eq!(world.snapshot("shop"), before);
    repo.write(".larderignore", "photo.jpg\n");
    repo.page("version three");
    repo.push().accepted();
    world.end();
}

fn a_first_push_that_fails(world: &World) {
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
