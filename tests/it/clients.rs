//! Other clients than OpenSSH and git's own: each must see the verdict.

use std::process::Command;

use crate::harness::{Repo, World, cli::Output, git::Push, in_one_mode, installed};

in_one_mode!(dropbear, putty, dulwich);

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

fn dulwich(world: &World) {
    let python = world.client("python3").args(["-c", "import dulwich"]).output();
    if !python.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: python3 has no dulwich");
        return;
    }
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    let push = || {
        let script = "import os, sys\nfrom dulwich import porcelain\nporcelain.push('.', sys.argv[1], 'refs/heads/main')\n";
        let mut command: Command = world.client("python3");
        let options = world.ssh_options("alice").join(" ");
        command.current_dir(repo.path()).env("GIT_SSH_COMMAND", format!("ssh {options}")).args(["-c", script, &repo.url()]);
        Output::of(&mut command)
    };
    push().exits(0);
    world.serves("shop", "version one");
    repo.write("Procfile", "web: exit 6\n");
    repo.commit("broken");
    assert_ne!(push().says("v1 still live").status, 0);
    world.serves("shop", "version one");
}
