//! Pushes through SSH clients other than OpenSSH, over shared connections, from unusual clones, and of unusual refs. Each client must see
//! the verdict.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, process::Command};

use crate::harness::{Repo, World, cli::Output, git::Push, in_one_mode, installed, until};

in_one_mode!(
    dropbear_client_pushes,
    putty_client_pushes,
    one_connection_carries_pushes_and_commands,
    shallow_or_partial_clone_pushes,
    refused_push_exits_1_on_the_ssh_channel,
    push_that_git_refuses_before_hooks_exits_1_on_the_ssh_channel,
    one_bad_ref_is_refused_alone,
);

/// Pushes a good and a bad commit with `ssh` in place of OpenSSH; git must show both verdicts.
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

fn dropbear_client_pushes(world: &World) {
    if installed("dbclient").is_none() || installed("dropbearconvert").is_none() {
        return;
    }
    let key = world.directory().join("home/alice.db");
    let mut convert = world.client("dropbearconvert");
    convert.args(["openssh", "dropbear"]).arg(world.private_key("alice")).arg(&key);
    Output::of(&mut convert).ok();
    // git passes `-p PORT`, which dbclient supports, too.
    verdicts_with(world, "ssh", &format!("dbclient -y -y -i {}", key.display()));
}

fn putty_client_pushes(world: &World) {
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

/// A shared connection of OpenSSH carries pushes and commands at the same time, each on a channel of its own.
fn one_connection_carries_pushes_and_commands(world: &World) {
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
    // Each request is authorized separately: an open connection gives no rights.
    world.key("bob");
    world.larder(&["user", "add", "bob", "--admin", "--key-file", &world.public_key("bob")]).ok();
    verb(&["whoami"]).exits(0).says("alice");
    world.larder(&["user", "remove", "alice"]).ok();
    assert_ne!(verb(&["releases", "shop"]).status, 0, "a removed user can still ask");
    repo.page("version three");
    assert_ne!(push().0.status, 0, "a removed user can still push");
    world.serves("shop", "version two");
    let _ = master.kill();
    let _ = master.wait();
}

fn shallow_or_partial_clone_pushes(world: &World) {
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

/// Pushes, and returns git's view of the push with the exit status of the SSH channel.
fn push_with_channel_status(world: &World, repo: &Repo<'_>, arguments: &[&OsStr]) -> (Push, String) {
    let note = world.directory().join("home/channel-status");
    let wrapper = world.directory().join("home/ssh-with-status");
    let options = world.ssh_options("alice").join(" ");
    let script = format!("#!/bin/sh\nssh {options} \"$@\"\nstatus=$?\necho $status > {}\nexit $status\n", note.display());
    std::fs::write(&wrapper, script).unwrap();
    std::fs::set_permissions(&wrapper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = repo.command();
    command.env_remove("GIT_SSH_COMMAND").env("GIT_SSH", &wrapper).arg("push").args(arguments);
    let push = Push(Output::of(&mut command));
    let status = std::fs::read_to_string(note).unwrap().trim().to_owned();
    (push, status)
}

fn refused_push_exits_1_on_the_ssh_channel(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    let url = repo.url();
    let options: Vec<String> = (0..33).map(|number| format!("--push-option=o{number}")).collect();
    let mut arguments: Vec<&OsStr> = options.iter().map(OsStr::new).collect();
    arguments.extend([OsStr::new(&url), OsStr::new("HEAD:refs/heads/main")]);
    let (push, status) = push_with_channel_status(world, &repo, &arguments);
    push.rejected();
    push.says("more than 32 options");
    assert_eq!(status, "1");
    let (push, status) = push_with_channel_status(world, &repo, &arguments[1..]);
    push.accepted();
    assert_eq!(status, "0");
}

/// git's receive-pack exits with 0 although it has refused a ref. The reasons are objects that fsck refuses, a pack above the limit, a
/// damaged pack, and hidden refs. For the refused refs, git runs no hook of larder.
fn push_that_git_refuses_before_hooks_exits_1_on_the_ssh_channel(world: &World) {
    let file = world.root().join("larder.yml");
    let settings = std::fs::read_to_string(&file).unwrap().replace("limits:\n", "limits:\n  push_bytes: 1M\n");
    std::fs::write(&file, settings).unwrap();
    world.restart(&[]);
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    let url = repo.url();
    let main = [OsStr::new(&url), OsStr::new("HEAD:refs/heads/main")];
    let good = repo.head();
    let (push, status) = push_with_channel_status(world, &repo, &main);
    push.accepted();
    assert_eq!(status, "0");
    // A push without changes and a dry run are not refused.
    assert_eq!(push_with_channel_status(world, &repo, &main).1, "0");
    repo.page("version two");
    let dry = [OsStr::new("--dry-run"), main[0], main[1]];
    assert_eq!(push_with_channel_status(world, &repo, &dry).1, "0");

    let hidden = [OsStr::new(&url), OsStr::new("HEAD:refs/larder/mine")];
    let (push, status) = push_with_channel_status(world, &repo, &hidden);
    assert!(push.0.status != 0 && status == "1", "a hidden ref: {status} {}", push.0);
    // A hidden ref is refused, even beside an accepted ref.
    let both = [OsStr::new(&url), OsStr::new("HEAD:refs/tags/beside"), OsStr::new("HEAD:refs/larder/mine")];
    let (push, status) = push_with_channel_status(world, &repo, &both);
    assert!(push.0.status != 0 && status == "1", "a hidden ref beside a tag: {status} {}", push.0);

    let mut noise = vec![0; 2_000_000];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    repo.write("large", noise).commit("too large");
    let (push, status) = push_with_channel_status(world, &repo, &main);
    assert!(push.0.status != 0 && status != "0", "a pack above the limit: {status} {}", push.0);

    repo.git(&["reset", "--quiet", "--hard", &good]).ok();
    let blob = repo.git(&["hash-object", "-w", "index.html"]).ok().trim().to_owned();
    repo.write("../tree", format!("100644 blob {blob}\tsame\n100644 blob {blob}\tsame\n"));
    let tree = Output::of(repo.command().arg("mktree").stdin(std::fs::File::open(repo.path().join("../tree")).unwrap()));
    let commit =
        repo.git(&["commit-tree", "-p", "HEAD", "-m", "a tree that fsck refuses", tree.ok().trim()]).ok().trim().to_owned();
    let refspec = format!("{commit}:refs/heads/main");
    let (push, status) = push_with_channel_status(world, &repo, &[OsStr::new(&url), OsStr::new(&refspec)]);
    push.says("unpacker error");
    assert_eq!(status, "1", "{}", push.0);

    // A client other than git sends a damaged pack.
    let command = format!("{good} {commit} refs/heads/main\0report-status");
    let input = [format!("{:04x}{command}0000", command.len() + 4).as_bytes(), b"PACK\0\0\0\x02\0\0\0\x01garbage"].concat();
    let file = world.directory().join("home/damaged");
    std::fs::write(&file, input).unwrap();
    let mut ssh = world.client("ssh");
    ssh.args(world.ssh_options("alice")).args(["larder@127.0.0.1", "git-receive-pack", "/shop"]);
    let sent = Output::of(ssh.stdin(std::fs::File::open(&file).unwrap()));
    assert_ne!(sent.status, 0, "a damaged pack: {sent}");
    assert_eq!(repo.live(), Some(good));
}

/// A ref whose name larder does not accept is refused alone; the branch that is pushed with this ref is deployed.
fn one_bad_ref_is_refused_alone(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    let url = repo.url();
    let long = format!("refs/tags/{}", ["long"; 120].join("/"));
    for name in [&b"refs/tags/caf\xe9"[..], long.as_bytes()] {
        let shown = String::from_utf8_lossy(name).into_owned();
        let refspec = [b"HEAD:", name].concat();
        repo.page(&shown);
        let arguments = [OsStr::new(&url), OsStr::new("HEAD:refs/heads/main"), OsStr::from_bytes(&refspec)];
        let (push, status) = push_with_channel_status(world, &repo, &arguments);
        push.rejected_with("this ref name is not allowed");
        assert_eq!(status, "1", "{shown}");
        assert_eq!(repo.live(), Some(repo.head()), "{shown}: the branch beside it was not deployed: {}", push.0);
        assert_eq!(repo.ls_remote().len(), 2, "{shown}: only HEAD and the branch are there");
    }
    // A bad ref is also refused without other refs. In an atomic push, all refs are refused.
    let bad = OsStr::from_bytes(b"HEAD:refs/tags/caf\xe9");
    let (push, status) = push_with_channel_status(world, &repo, &[OsStr::new(&url), bad]);
    push.rejected_with("this ref name is not allowed");
    assert_eq!(status, "1");
    let live = repo.head();
    repo.page("another");
    let arguments = [OsStr::new("--atomic"), OsStr::new(&url), OsStr::new("HEAD:refs/heads/main"), bad];
    let (push, status) = push_with_channel_status(world, &repo, &arguments);
    push.rejected();
    assert_eq!((status.as_str(), repo.live()), ("1", Some(live)));
}
