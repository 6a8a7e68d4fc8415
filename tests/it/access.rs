//! Who may do what, seen from the client's side.

use crate::harness::{Repo, World, cli::Output, in_each_mode, in_one_mode};

in_each_mode!(rights_are_what_they_say);
in_one_mode!(strangers_stay_outside, the_ssh_side_is_a_closed_grammar, keys_come_and_go);

fn rights_are_what_they_say(world: &World) {
    world.project("shop").project("secret");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    world.key("bob");
    world.larder(&["user", "add", "bob", "--key-file", &world.public_key("bob")]).ok();
    let bob = repo.by("bob");
    // Without a right there is no project.
    let unseen = bob.git(&["ls-remote", &bob.url()]);
    assert_ne!(unseen.status, 0);
    unseen.says("no project shop that you may see");
    world.larder(&["user", "grant", "bob", "shop", "view"]).ok();
    assert_eq!(bob.live(), Some(repo.head()));
    bob.page("version two");
    let push = bob.push();
    assert_ne!(push.0.status, 0, "{}", push.0);
    push.says("push to it");
    world.serves("shop", "version one");
    world.ssh("bob", &["releases", "shop"]).exits(0).says("v1");
    world.ssh("bob", &["deploy", "shop"]).exits(3);
    world.larder(&["user", "grant", "bob", "shop", "push"]).ok();
    bob.push().accepted();
    world.serves("shop", "version two");
    world.larder(&["releases", "shop"]).says("bob");
    world.ssh("bob", &["restart", "shop"]).exits(3);
    world.ssh("bob", &["run", "shop", "--", "true"]).exits(3);
    world.larder(&["user", "grant", "bob", "shop", "operate"]).ok();
    world.ssh("bob", &["run", "shop", "--", "true"]).exits(0);
    for words in [&["project", "create", "more"][..], &["user", "list"], &["project", "destroy", "shop", "--confirm", "shop"]] {
        world.ssh("bob", words).exits(3);
    }
    // A project that one may not see and one that is not there read the same.
    let words = |project: &str| world.ssh("bob", &["releases", project]).exits(4).stderr.replace(project, "X");
    assert_eq!(words("secret"), words("nowhere"));
    world.ssh("bob", &["project", "list"]).keeps_quiet_about("secret").says("shop");
    world.ssh("bob", &["status"]).keeps_quiet_about("secret").says("shop");
    world.larder(&["user", "grant", "bob", "shop", "none"]).ok();
    world.ssh("bob", &["releases", "shop"]).exits(4);
    world.larder(&["user", "remove", "bob"]).ok();
    world.ssh("bob", &["whoami"]).exits(255);
}

fn strangers_stay_outside(world: &World) {
    world.project("shop");
    world.key("eve");
    world.ssh("eve", &["whoami"]).exits(255).says("Permission denied");
    let repo = Repo::site(world, "shop", "version one").by("eve");
    let push = repo.push();
    assert_eq!(push.0.status, 128, "{}", push.0);
    assert_eq!(world.journals("shop").len(), 0);
}

fn keys_come_and_go(world: &World) {
    world.key("laptop");
    world.larder(&["key", "add", "alice", "--key-file", &world.public_key("laptop")]).ok();
    world.ssh("laptop", &["whoami"]).exits(0).says("alice");
    world.larder(&["user", "add", "bob", "--key-file", &world.public_key("laptop")]).exits(3).says("alice's already");
    let fingerprint = Output::of(world.client("ssh-keygen").arg("-lf").arg(world.public_key("laptop")));
    let fingerprint = fingerprint.ok().split(' ').nth(1).unwrap().to_owned();
    world.larder(&["user", "list"]).says(&fingerprint);
    world.larder(&["key", "remove", &fingerprint]).ok();
    world.ssh("laptop", &["whoami"]).exits(255);
    world.ssh("alice", &["whoami"]).exits(0);
    world.larder(&["key", "remove", &fingerprint]).exits(4);
}

fn the_ssh_side_is_a_closed_grammar(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    // Without a command one is told who one is; there is no shell.
    world.ssh("alice", &[]).exits(0).says("alice");
    for words in [
        "git-upload-archive 'shop'",
        "git-receive-pack '../shop'",
        "git-receive-pack 'shop/../shop'",
        "git-receive-pack '/etc/passwd'",
        "git-receive-pack --help",
        "git-upload-pack -h",
        "git-upload-pack --upload-pack='sh' shop",
        "git-receive-pack 'shop'; id",
        "git-receive-pack 'shop' && id",
        "sh -c id",
        "id",
        "scp -t /tmp",
        "serve --root /tmp/x",
        "server",
        "worker run",
        "hook pre-receive",
        "static-server --root /",
        "whoami 'unclosed",
    ] {
        let output = world.ssh("alice", &[words]);
        assert!(matches!(output.status, 1..=5), "{words}: {output}");
        assert!(!output.stdout.contains("uid="), "{output}");
        assert!(!output.stderr.is_empty() || !output.stdout.is_empty(), "{words}: no word of explanation");
    }
    world.ssh("alice", &["--root", "/etc", "whoami"]).keeps_quiet_about("uid=");
    // A subsystem or a forwarded port is nothing that larder has.
    let mut sftp = world.client("ssh");
    sftp.args(world.ssh_options("alice")).args(["-s", "larder@127.0.0.1", "sftp"]);
    assert_ne!(Output::of(&mut sftp).status, 0);
    let mut tunnel = world.client("ssh");
    tunnel.args(world.ssh_options("alice")).args(["-W", "127.0.0.1:22", "larder@127.0.0.1"]);
    assert_ne!(Output::of(&mut tunnel).status, 0);
    // Environment requests do not reach anything.
    let mut env = world.client("ssh");
    env.args(world.ssh_options("alice")).args([
        "-o",
        "SetEnv=GIT_PROTOCOL=version=2 LD_PRELOAD=/tmp/x LARDER_PUSH_TOKEN=x",
        "larder@127.0.0.1",
        "whoami",
    ]);
    Output::of(&mut env).exits(0);
}
