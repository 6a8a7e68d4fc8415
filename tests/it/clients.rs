//! Other SSH clients than OpenSSH below git, and other kinds of clones: each must see the verdict.

use std::process::Command;

use crate::harness::{Repo, World, cli::Output, git::Push, in_one_mode, installed, until};

in_one_mode!(dropbear, putty, one_connection_for_everything, shallow_and_partial_clones_can_push);

/// A good push and a bad one with `ssh` in place of OpenSSH; git must show both verdicts.
fn verdicts_with(world: &World, variant: &str, ssh: &str) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    let push = || {
        let mut command = repo.command();
        command.env("GIT_SSH_COMMAND", ssh).env("GIT_SSH_VARIANT", variant);
        command.args(["push", &repo.url(), "HEAD:refs/heads/main"]);
        Push(Output::of(&mut command))
    };
    push().accepted().says("v1 is live");
    world.serves("shop", "version one");
    repo.write("Procfile", "web: exit 6\n");
    repo.commit("broken");
    push().rejected_with("v1 still live");
    repo.remove("Procfile");
    repo.page("version two");
    push().accepted();
    world.serves("shop", "version two");
}

fn dropbear(world: &World) {
    if installed("dbclient").is_none() || installed("dropbearconvert").is_none() {
        return;
    }
    let key = world.directory().join("home/alice.db");
    let mut convert = world.client("dropbearconvert");
    convert.args(["openssh", "dropbear"]).arg(world.private_key("alice")).arg(&key);
    Output::of(&mut convert).ok();
    // git gives `-p PORT`, which dbclient knows too.
    verdicts_with(world, "ssh", &format!("dbclient -y -y -i {}", key.display()));
}

fn putty(world: &World) {
    if installed("plink").is_none() || installed("puttygen").is_none() {
        return;
    }
    let key = world.directory().join("home/alice.ppk");
    let mut convert = world.client("puttygen");
    convert.arg(world.private_key("alice")).args(["-O", "private", "-o"]).arg(&key);
    Output::of(&mut convert).ok();
    let status = world.larder(&["status", "--json"]).json();
    let host_key = status["host_key"].as_str().unwrap().to_owned();
    verdicts_with(world, "plink", &format!("plink -batch -ssh -noagent -hostkey {host_key} -i {}", key.display()));
}

/// OpenSSH's own sharing of a connection: pushes and verbs at the same time, each with a channel of its own.
fn one_connection_for_everything(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    let control = world.directory().join("home/c");
    let shared = |command: &mut Command| {
        command.args(world.ssh_options("alice")).arg("-S").arg(&control);
    };
    let mut master = world.client("ssh");
    shared(&mut master);
    let mut master = master.args(["-M", "-N", "larder@127.0.0.1"]).spawn().unwrap();
    until("the shared connection is there", || control.exists());
    let verb = |words: &[&str]| {
        let mut command = world.client("ssh");
        shared(&mut command);
        Output::of(command.arg("larder@127.0.0.1").args(words))
    };
    let push = || {
        let mut command = repo.command();
        let options = world.ssh_options("alice").join(" ");
        command.env("GIT_SSH_COMMAND", format!("ssh {options} -S {}", control.display()));
        Push(Output::of(command.args(["push", &repo.url(), "HEAD:refs/heads/main"])))
    };
    push().accepted();
    std::thread::scope(|scope| {
        repo.page("version two");
        let pushing = scope.spawn(push);
        let verbs: Vec<_> = (0..5).map(|_| scope.spawn(|| verb(&["releases", "shop"]))).collect();
        for asked in verbs {
            asked.join().unwrap().exits(0).says("v1");
        }
        pushing.join().unwrap().accepted();
    });
    world.serves("shop", "version two");
    // Each request is decided by itself: the connection is no pass.
    world.key("bob");
    world.larder(&["user", "add", "bob", "--admin", "--key-file", &world.public_key("bob")]).ok();
    verb(&["whoami"]).exits(0).says("alice");
    world.larder(&["user", "remove", "alice"]).ok();
    assert_ne!(verb(&["releases", "shop"]).status, 0, "a removed user goes on asking");
    repo.page("version three");
    assert_ne!(push().0.status, 0, "a removed user goes on pushing");
    world.serves("shop", "version two");
    let _ = master.kill();
    let _ = master.wait();
}

fn shallow_and_partial_clones_can_push(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.write("photo", vec![b'x'; 100_000]);
    repo.commit("a photo");
    repo.page("version two");
    repo.push().accepted();
    for (number, options) in
        [&["--depth", "1"][..], &["--filter=blob:none"], &["--no-single-branch", "--depth", "2"]].iter().enumerate()
    {
        let copy = world.directory().join(format!("clones/copy-{number}"));
        Output::of(repo.command().args(["clone", "--quiet"]).args(*options).args([&repo.url(), copy.to_str().unwrap()])).ok();
        let page = format!("from clone {number}");
        std::fs::write(copy.join("index.html"), &page).unwrap();
        Output::of(repo.command().current_dir(&copy).args(["commit", "--quiet", "-a", "-m", &page])).ok();
        let push = Push(Output::of(repo.command().current_dir(&copy).args(["push", "origin", "HEAD:main"])));
        push.accepted();
        world.serves("shop", &page);
    }
}
