//! Users, keys and rights, as clients see them.

use std::{process::Stdio, time::Duration};

use crate::harness::{Repo, World, cli::Output, git::Push, in_each_mode, in_one_mode, processes, until, within};

in_each_mode!(rights_allow_and_refuse_commands);
in_one_mode!(
    data_of_a_project_needs_the_right_of_each_command,
    unknown_key_is_refused,
    removed_user_is_disconnected,
    requests_per_user_are_limited,
    changes_during_a_push_apply_to_the_push,
    right_that_is_taken_away_between_two_refs_refuses_the_second_ref,
    ssh_request_outside_the_grammar_is_refused,
    environment_of_the_client_is_ignored,
    command_output_is_the_same_locally_and_over_ssh,
    keys_are_added_and_removed,
    private_key_is_refused_and_not_logged,
    largest_accepted_rsa_key_can_be_added_over_ssh,
);

fn rights_allow_and_refuse_commands(world: &World) {
    world.project("shop").project("secret");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    world.key("bob");
    world.larder(&["user", "add", "bob", "--key-file", &world.public_key("bob")]).ok();
    let bob = repo.by("bob");
    // To a user without a right, the project seems not to exist.
    let unseen = bob.git(&["ls-remote", &bob.url()]);
    assert_ne!(unseen.status, 0);
    unseen.says("no project shop that you may see");
    world.larder(&["user", "grant", "bob", "shop", "view"]).ok();
    assert_eq!(bob.live(), Some(repo.head()));
    bob.page("version two");
    let push = bob.push();
    assert_ne!(push.0.status, 0, "{}", push.0);
    push.says("bob may not push to shop");
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
    // Requests for a hidden project and for a missing project get the same answer.
    let words = |project: &str| world.ssh("bob", &["releases", project]).exits(4).stderr.replace(project, "X");
    assert_eq!(words("secret"), words("nowhere"));
    world.ssh("bob", &["project", "list"]).keeps_quiet_about("secret").says("shop");
    world.ssh("bob", &["status"]).keeps_quiet_about("secret").says("shop");
    world.larder(&["user", "grant", "bob", "shop", "none"]).ok();
    world.ssh("bob", &["releases", "shop"]).exits(4);
    world.larder(&["user", "remove", "bob"]).ok();
    world.ssh("bob", &["whoami"]).exits(255);
}

fn data_of_a_project_needs_the_right_of_each_command(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.write("larder.yml", "data: [media]\n").page("version two");
    repo.push().accepted();
    world.larder(&["backup", "take", "shop"]).ok();
    for user in ["eve", "vic", "pat"] {
        world.key(user);
        world.larder(&["user", "add", user, "--key-file", &world.public_key(user)]).ok();
    }
    world.larder(&["user", "grant", "vic", "shop", "view"]).ok();
    world.larder(&["user", "grant", "pat", "shop", "deploy"]).ok();
    let push: [&[&str]; 7] = [
        &["backup", "take", "shop"],
        &["backup", "list", "shop"],
        &["backup", "show", "shop", "latest"],
        &["backup", "verify", "shop", "latest"],
        &["backup", "diff", "shop", "latest"],
        &["db", "list", "shop"],
        &["rollback", "shop", "--with-data", "--dry-run"],
    ];
    let operate: [&[&str]; 10] = [
        &["backup", "export", "shop", "latest"],
        &["backup", "restore", "shop", "latest", "--yes"],
        &["backup", "restore", "shop", "latest", "--into", "copy"],
        &["backup", "remove", "shop", "latest"],
        &["run", "--restore-point", "latest", "shop", "--", "ls", "/data"],
        &["rollback", "shop", "--with-data", "--confirm", "shop"],
        &["db", "dump", "shop"],
        &["db", "load", "shop", "--confirm", "shop"],
        &["db", "shell", "shop"],
        &["db", "destroy", "shop", "--confirm", "shop"],
    ];
    for words in push.iter().chain(&operate) {
        // To a user without a right, the project seems not to exist.
        world.ssh("eve", words).exits(4).says("no project shop that you may see").keeps_quiet_about("media");
        world.ssh("vic", words).exits(3).says("vic may not").keeps_quiet_about("media");
    }
    for words in operate {
        world.ssh("pat", words).exits(3).says("pat may not");
    }
    world.serves("shop", "version two");
    assert_eq!(world.larder(&["--json", "backup", "list", "shop"]).json()["points"].as_array().unwrap().len(), 1);
}

fn unknown_key_is_refused(world: &World) {
    world.project("shop");
    world.key("eve");
    world.ssh("eve", &["whoami"]).exits(255).says("Permission denied");
    let repo = Repo::site(world, "shop", "version one").by("eve");
    let push = repo.push();
    assert_eq!(push.0.status, 128, "{}", push.0);
    assert_eq!(world.journals("shop").len(), 0);
}

fn keys_are_added_and_removed(world: &World) {
    world.key("laptop");
    // The server cannot read a file of the client. The command in the server's hint works.
    world.ssh("alice", &["key", "add", "alice", "--key-file", "k.pub"]).exits(2).says("--key \"'$(cat FILE)'\"");
    let key = std::fs::read_to_string(world.public_key("laptop")).unwrap();
    world.ssh("alice", &["key", "add", "alice", "--key", &format!("'{}'", key.trim())]).ok();
    world.ssh("laptop", &["whoami"]).exits(0).says("alice");
    world.larder(&["user", "add", "bob", "--key-file", &world.public_key("laptop")]).exits(3).says("already belongs to alice");
    let fingerprint = Output::of(world.client("ssh-keygen").arg("-lf").arg(world.public_key("laptop")));
    let fingerprint = fingerprint.ok().split(' ').nth(1).unwrap().to_owned();
    world.larder(&["user", "list"]).says(&fingerprint);
    // Open connections of the removed key end; connections of other keys stay.
    let open = |user: &str| {
        let control = world.directory().join("home").join(format!("c-{user}"));
        let mut command = world.client("ssh");
        command.args(world.ssh_options(user)).args(["-M", "-N", "-S"]).arg(&control).arg("larder@127.0.0.1");
        let child = command.spawn().unwrap();
        until("the connection is there", || control.exists());
        child
    };
    let (mut laptop, mut alice) = (open("laptop"), open("alice"));
    world.larder(&["key", "remove", &fingerprint]).ok();
    until("the connection of the removed key ends", || laptop.try_wait().unwrap().is_some());
    assert!(alice.try_wait().unwrap().is_none(), "the connection of another key ended, too");
    alice.kill().unwrap();
    alice.wait().unwrap();
    world.ssh("laptop", &["whoami"]).exits(255);
    world.ssh("alice", &["whoami"]).exits(0);
    world.larder(&["key", "remove", &fingerprint]).exits(4);
}

fn ssh_request_outside_the_grammar_is_refused(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    // Without a command, the server shows the name of the user; there is no shell.
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
        assert!(!output.stderr.is_empty() || !output.stdout.is_empty(), "{words}: no explanation");
    }
    world.ssh("alice", &["--root", "/etc", "whoami"]).keeps_quiet_about("uid=");
    // Subsystems and forwarded ports are not served.
    let mut sftp = world.client("ssh");
    sftp.args(world.ssh_options("alice")).args(["-s", "larder@127.0.0.1", "sftp"]);
    assert_ne!(Output::of(&mut sftp).status, 0);
    let mut tunnel = world.client("ssh");
    tunnel.args(world.ssh_options("alice")).args(["-W", "127.0.0.1:22", "larder@127.0.0.1"]);
    assert_ne!(Output::of(&mut tunnel).status, 0);
}

/// Variables that a client sets are ignored, except for git's own protocol version.
fn environment_of_the_client_is_ignored(world: &World) {
    world.project("shop");
    let trace = world.directory().join("trace");
    let wishes = format!(
        "SetEnv=LD_PRELOAD=/tmp/x.so GIT_TRACE={0} GIT_TRACE2_EVENT={0} GIT_EXEC_PATH=/tmp GIT_DIR=/tmp GIT_CONFIG_COUNT=1 \
         GIT_CONFIG_KEY_0=core.hooksPath GIT_CONFIG_VALUE_0=/tmp PATH=/tmp BASH_ENV=/tmp/x HOME=/tmp LARDER_PUSH_TOKEN=x WISH=granted",
        trace.display()
    );
    let repo = Repo::site(world, "shop", "version one");
    repo.program(".larder/build", "#!/bin/sh\nenv > environment.txt\n");
    repo.commit("a build that shows its environment");
    let options = world.ssh_options("alice");
    let mut push = repo.command();
    push.env("GIT_SSH_COMMAND", format!("ssh {} -o '{wishes}'", options.join(" ")));
    push.args(["push", &repo.url(), "HEAD:refs/heads/main"]);
    Push(Output::of(&mut push)).accepted().says("v1 is live");
    let environment = world.get("shop", "/environment.txt");
    assert_eq!(environment.status, 200);
    for wish in ["WISH", "LD_PRELOAD", "BASH_ENV", "GIT_TRACE", "GIT_CONFIG_COUNT", "LARDER_PUSH_TOKEN"] {
        assert!(!environment.body.contains(wish), "{wish} reached the build:\n{}", environment.body);
    }
    assert!(!trace.exists(), "git obeyed GIT_TRACE of the client");
    for words in [&["whoami"][..], &["run", "shop", "--", "env"]] {
        let mut verb = world.client("ssh");
        verb.args(&options).args(["-o", &wishes, "larder@127.0.0.1"]).args(words);
        Output::of(&mut verb).exits(0).keeps_quiet_about("granted").keeps_quiet_about("LD_PRELOAD");
    }
    // The protocol variable is not interpreted by a shell.
    for protocol in ["version=2", "version=99", "x'; id; '", "version=2:LD_PRELOAD=/tmp/x"] {
        let mut list = repo.command();
        list.env("GIT_PROTOCOL", protocol).args(["ls-remote", &repo.url()]);
        Output::of(&mut list).exits(0).says("refs/heads/main").keeps_quiet_about("uid=");
    }
}

fn command_output_is_the_same_locally_and_over_ssh(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    for words in [
        &["releases", "shop"][..],
        &["releases", "shop", "--json"],
        &["ps", "shop"],
        &["plan", "shop"],
        &["project", "info", "shop"],
        &["project", "list"],
        &["user", "list"],
        &["logs", "shop", "-n", "1"],
        &["deploy", "shop", "--follow"],
        &["ps:scale", "shop"],
        &["releases", "nowhere"],
        &["releases"],
        &["relases", "shop"],
        &["run", "shop", "--", "sh", "-c", "'exit 7'"],
    ] {
        let here = world.larder(&words.iter().map(|word| word.trim_matches('\'')).collect::<Vec<_>>());
        let there = world.ssh("alice", words);
        assert_eq!((there.status, &there.stdout, &there.stderr), (here.status, &here.stdout, &here.stderr), "{words:?}");
    }
}

fn removed_user_is_disconnected(world: &World) {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    repo.write("Procfile", "web: sh serve.sh\n").write("serve.sh", "exec larder static-server --root .\n");
    repo.page("version one");
    repo.push().accepted();
    world.key("bob");
    world.larder(&["user", "add", "bob", "--key-file", &world.public_key("bob")]).ok();
    world.larder(&["user", "grant", "bob", "shop", "operate"]).ok();
    world.ssh("bob", &["whoami"]).exits(0).says("bob");
    // Each of these connections has a running request.
    let open = |words: &[&str]| {
        let mut open = world.client("ssh");
        open.args(world.ssh_options("bob")).arg("larder@127.0.0.1").args(words);
        let mut open = open.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        assert!(!within(Duration::from_millis(500), || open.try_wait().unwrap().is_some()), "the connection did not stay open");
        open
    };
    let mut logs = open(&["logs", "shop", "--follow"]);
    let mut run = open(&["run", "shop", "--", "sleep", "98764"]);
    // A smaller right ends only the requests that need the greater right.
    world.larder(&["user", "grant", "bob", "shop", "view"]).ok();
    until("the command of a user without the right ends", || run.try_wait().unwrap().is_some());
    let runs = || processes::of(world.directory()).iter().any(|process| process.arguments.contains(&String::from("98764")));
    until("the command itself has ended", || !runs());
    assert!(logs.try_wait().unwrap().is_none(), "a request that needs only the remaining right ended");
    world.larder(&["user", "remove", "bob"]).ok();
    until("the open connection of a removed user ends", || logs.try_wait().unwrap().is_some());
    world.ssh("bob", &["whoami"]).exits(255).says("Permission denied");
    repo.page("version two");
    let push = repo.by("bob").push();
    assert_eq!(push.0.status, 128, "{}", push.0);
    world.serves("shop", "version one");
    world.larder(&["user", "list"]).keeps_quiet_about("bob");
    world.larder(&["user", "remove", "bob"]).exits(4);
}

fn requests_per_user_are_limited(world: &World) {
    world.project("shop");
    world.key("bob");
    world.larder(&["user", "add", "bob", "--key-file", &world.public_key("bob")]).ok();
    let follow = || {
        let mut logs = world.client("ssh");
        logs.args(world.ssh_options("alice")).args(["larder@127.0.0.1", "logs", "shop", "--follow"]);
        logs.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    // The command below also counts as a request, and may be accepted before some of the connections. Therefore more connections are opened
    // than the limit allows.
    let mut all: Vec<_> = (0..19).map(|_| follow()).collect();
    until("there are too many requests", || {
        let more = world.ssh("alice", &["whoami"]);
        more.status == 3 && more.stderr.contains("alice has 16 requests in progress")
    });
    world.ssh("bob", &["whoami"]).exits(0);
    for one in &mut all {
        one.kill().unwrap();
        one.wait().unwrap();
    }
    until("requests are accepted again", || world.ssh("alice", &["whoami"]).status == 0);
}

/// The client of a push has read the server's refs and waits before it sends anything, while environments and rights change.
fn changes_during_a_push_apply_to_the_push(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    world.key("bob");
    world.larder(&["user", "add", "bob", "--key-file", &world.public_key("bob")]).ok();
    world.larder(&["user", "grant", "bob", "shop", "push"]).ok();
    let bob = repo.by("bob");
    let gate = world.directory().join("home/gate");
    let slow = world.directory().join("home/slow-ssh");
    let lines = format!(
        "#!/bin/sh\n(touch {0}.here; while ! [ -e {0} ]; do sleep 0.05; done; cat) | ssh {1} \"$@\"\n",
        gate.display(),
        world.ssh_options("bob").join(" ")
    );
    std::fs::write(&slow, lines).unwrap();
    let started = |branch: &str| {
        let _ = std::fs::remove_file(gate.with_extension("here"));
        let _ = std::fs::remove_file(&gate);
        let mut push = bob.command();
        push.env("GIT_SSH_COMMAND", format!("sh {}", slow.display()));
        push.args(["push", &bob.url(), &format!("HEAD:refs/heads/{branch}")]);
        let push = push.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        until("the push has begun", || gate.with_extension("here").exists());
        let served =
            || processes::of(world.directory()).iter().any(|process| process.arguments.iter().any(|a| a == "receive-pack"));
        until("git serves the push", served);
        push
    };
    // An environment that is created during the push deploys its branch.
    bob.page("version two");
    let push = started("next");
    world.larder(&["project", "create", "shop", "--env", "staging", "--branch", "next"]).ok();
    std::fs::write(&gate, "").unwrap();
    Push(Output::from(String::from("the push"), push.wait_with_output().unwrap())).accepted().says("v1 is live");
    world.serves("staging--shop", "version two");
    // A right that is taken away ends running requests at once.
    let push = started("main");
    world.larder(&["user", "grant", "bob", "shop", "view"]).ok();
    let gone = || processes::of(world.directory()).iter().all(|process| process.arguments.iter().all(|a| a != "receive-pack"));
    until("git is ended", gone);
    std::fs::write(&gate, "").unwrap();
    let cut = Output::from(String::from("the push"), push.wait_with_output().unwrap());
    assert_ne!(cut.status, 0, "{cut}");
    cut.says("your right to push to shop was taken away");
    world.serves("shop", "version one");
    let mut fetch = world.client("ssh");
    fetch.args(world.ssh_options("bob")).args(["larder@127.0.0.1", "git-upload-pack 'shop'"]).stdin(Stdio::piped());
    let fetch = fetch.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let served = || processes::of(world.directory()).iter().any(|process| process.arguments.iter().any(|a| a == "upload-pack"));
    until("git serves a fetch", served);
    world.larder(&["user", "grant", "bob", "shop", "none"]).ok();
    Output::from(String::from("the fetch"), fetch.wait_with_output().unwrap())
        .exits(3)
        .says("your right to read shop was taken away");
}

/// A push deploys one branch and then stores another one. Meanwhile the pusher loses the right on the project, and keeps the right on the
/// environment, so the push goes on.
fn right_that_is_taken_away_between_two_refs_refuses_the_second_ref(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.program(".larder/build", "#!/bin/sh\nwhile ! [ -e \"$LARDER_CACHE/gate\" ]; do sleep 0.05; done\n").commit("a gate");
    world.key("bob");
    world.larder(&["user", "add", "bob", "--key-file", &world.public_key("bob")]).ok();
    for on in ["shop", "shop/production"] {
        world.larder(&["user", "grant", "bob", on, "push"]).ok();
    }
    let bob = repo.by("bob");
    let mut push = bob.command();
    push.args(["push", &bob.url(), "HEAD:refs/heads/main", "HEAD:refs/heads/topic"]);
    let push = push.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("the first ref is being deployed", || !world.journals("shop").is_empty());
    world.larder(&["user", "grant", "bob", "shop", "view"]).ok();
    std::fs::write(world.environment("shop").join("cache/gate"), "").unwrap();
    let push = Push(Output::from(String::from("the push"), push.wait_with_output().unwrap()));
    assert_eq!(push.0.status, 1, "{}", push.0);
    push.says("v1 is live").says("! [remote rejected] HEAD -> topic (you may not push this ref)");
    let refs = repo.ls_remote();
    assert!(refs.contains_key("refs/heads/main") && !refs.contains_key("refs/heads/topic"), "{refs:?}");
}

fn private_key_is_refused_and_not_logged(world: &World) {
    world.key("laptop");
    let private = std::fs::read_to_string(world.private_key("laptop")).unwrap();
    let secret = private.lines().nth(1).unwrap();
    let file = world.private_key("laptop").display().to_string();
    for words in [
        &["key", "add", "alice", "--key-file", &file][..],
        &["key", "add", "alice", "--key", &private],
        &["user", "add", "bob", "--key", &private],
    ] {
        let refused = world.larder(words);
        refused.exits(2).says("PRIVATE key").keeps_quiet_about(secret);
    }
    world.larder(&["user", "list"]).keeps_quiet_about("bob");
    world.ssh("laptop", &["whoami"]).exits(255);
    let log = std::fs::read_to_string(world.directory().join("server.log")).unwrap();
    assert!(!log.contains(secret), "a private key is in the server's log");
}

/// Every accepted key, even with a long comment, fits into a command over ssh.
fn largest_accepted_rsa_key_can_be_added_over_ssh(world: &World) {
    let field = |bytes: &[u8]| [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat();
    let modulus = [&[0][..], &[0xff; 1023], &[0xfd]].concat();
    let blob = [field(b"ssh-rsa"), field(&[1, 0, 1]), field(&modulus)].concat();
    let line = format!("ssh-rsa {} {}", data_encoding::BASE64.encode(&blob), "comment".repeat(200));
    world.ssh("alice", &["key", "add", "alice", "--key", &format!("'{line}'")]).exits(0).says("SHA256:");
    let users = world.larder(&["user", "list", "--json"]).json();
    assert!(users[0]["keys"].as_array().unwrap().iter().any(|key| key["line"].as_str().unwrap().len() > 1300), "{users}");
}
