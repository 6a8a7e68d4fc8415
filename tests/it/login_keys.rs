//! Login keys with limits: name, end, addresses, and the only environment of a CI key.

use std::process::Stdio;

use crate::harness::{Repo, World, cli::Output, in_one_mode, sshd::Sshd, until};

in_one_mode!(
    key_is_limited_to_its_environment_and_addresses,
    key_ends_with_its_open_connections,
    refused_keys_are_listed_for_administrators_only,
    security_key_is_added_only_without_the_check_of_touch,
    key_that_is_accepted_from_a_jump_host_only_is_useless_elsewhere,
);

/// Adds the key of `name` to the user `user`, with limits.
fn add_key(world: &World, user: &str, name: &str, limits: &[&str]) -> Output {
    world.key(name);
    let key = world.public_key(name);
    world.larder(&[&["key", "add", user, "--key-file", &key, "--key-name", name], limits].concat())
}

fn key_is_limited_to_its_environment_and_addresses(world: &World) {
    world.project("shop").project("blog");
    world.larder(&["project", "create", "shop", "--env", "staging", "--branch", "next"]).ok();
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    // Alice is an administrator. Her key for CI is not.
    add_key(world, "alice", "ci", &["--only", "shop/staging", "--from", "127.0.0.0/8,192.0.2.7", "--expires", "90d"]).ok();
    let whoami = world.ssh("ci", &["whoami", "--json"]).json();
    assert_eq!((&whoami["name"], &whoami["key"]["name"]), (&"alice".into(), &"ci".into()));
    assert_eq!(whoami["access"], serde_json::json!({"shop/staging": "push"}));
    assert_eq!(whoami["key"]["only"], serde_json::json!({"on": "shop/staging", "right": "push"}));
    world.ssh("ci", &["whoami"]).says("key ci SHA256:").says("only push on shop/staging").says("from 127.0.0.0/8, 192.0.2.7");
    let ci = repo.by("ci");
    ci.page("version two");
    ci.git(&["push", &ci.url(), "HEAD:refs/heads/next"]).exits(0).says("v1 is live");
    for refs in ["HEAD:refs/heads/main", "HEAD:refs/heads/topic", "HEAD:refs/tags/v9"] {
        ci.git(&["push", &ci.url(), refs]).exits(1).says("you may not push this ref");
    }
    for (words, status) in [
        (&["user", "list"][..], 3),
        (&["key", "remove", "SHA256:x"], 3),
        (&["project", "create", "more", "--mode", "cooking"], 3),
        (&["rollback", "shop/staging"], 3),
        (&["logs", "shop/production"], 4),
        (&["logs", "blog"], 4),
        (&["logs", "shop/staging"], 0),
    ] {
        world.ssh("ci", words).exits(status);
    }
    world.serves("shop", "version one");
    // A key of a foreign range is refused before the login, and the reason is not for the client.
    add_key(world, "alice", "office", &["--from", "192.0.2.0/24"]).ok();
    world.ssh("office", &["whoami"]).exits(255).says("Permission denied").keeps_quiet_about("192.0.2");
    world.ssh("alice", &["key", "list"]).exits(0).says("office").says("from 192.0.2.0/24").says("only push on shop/staging");
    world.larder(&["key", "list", "alice", "--json"]).says("\"expires\"");
    world.larder(&["key", "list", "nobody"]).exits(4);
    // Limits survive a restart.
    world.restart(&[]);
    world.ssh("office", &["whoami"]).exits(255);
    world.ssh("ci", &["user", "list"]).exits(3);
    let wrong: [(&[&str], i32, &str); 8] = [
        (&["--only", "shop/nothing"], 4, "there is no environment shop/nothing"),
        (&["--only", "nowhere"], 4, "there is no project nowhere"),
        (&["--only", "shop", "--right", "admin"], 2, "invalid value 'admin'"),
        (&["--right", "view"], 2, "--only"),
        (&["--from", "192.0.2.0/33"], 2, "is not a range of addresses"),
        (&["--from", "office.example.com"], 2, "is not a range of addresses"),
        (&["--expires", "2020-01-01"], 2, "is in the past"),
        (&["--expires", "soon"], 2, "is not a time"),
    ];
    for (at, (limits, status, message)) in wrong.into_iter().enumerate() {
        add_key(world, "alice", &format!("wrong{at}"), limits).exits(status).says(message);
    }
}

fn key_ends_with_its_open_connections(world: &World) {
    world.project("shop");
    // The shortest span that the command accepts is a minute, so this end is a moment.
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(4);
    add_key(world, "alice", "guest", &["--expires", &soon.to_string()]).ok();
    let mut command = world.client("ssh");
    command.args(world.ssh_options("guest")).args(["larder@127.0.0.1", "logs", "shop", "--follow"]);
    let mut logs = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("the connection of the expired key ends", || logs.try_wait().unwrap().is_some());
    assert!(jiff::Timestamp::now() >= soon, "the connection ended before the key");
    world.ssh("guest", &["whoami"]).exits(255);
    world.larder(&["doctor", "keys"]).says("the key expired at");
}

fn refused_keys_are_listed_for_administrators_only(world: &World) {
    world.key("stranger");
    world.ssh("stranger", &["whoami"]).exits(255);
    let mut wrong_login = world.client("ssh");
    wrong_login.args(world.ssh_options("alice")).args(["root@127.0.0.1", "whoami"]);
    Output::of(&mut wrong_login).exits(255);
    world.ssh("alice", &["whoami"]).ok();
    let rows = world.larder(&["--json", "doctor", "keys"]).json();
    let find = |text: &str| {
        let row = rows.as_array().unwrap().iter().find(|row| row["refused"].as_str().unwrap_or_default().contains(text));
        row.unwrap_or_else(|| panic!("{text} is not in {rows:#}")).clone()
    };
    let unknown = find("the key is not known");
    assert_eq!((&unknown["user"], &unknown["source"]), (&serde_json::Value::Null, &"127.0.0.1".into()));
    assert_eq!(find("the login is root")["user"], "alice");
    assert!(rows.as_array().unwrap().iter().any(|row| row["refused"].is_null() && row["user"] == "alice"), "{rows:#}");
    world.key("bob");
    world.larder(&["user", "add", "bob", "--key-file", &world.public_key("bob")]).ok();
    world.ssh("bob", &["doctor", "keys"]).exits(3).keeps_quiet_about("SHA256");
    world.ssh("alice", &["doctor", "keys"]).exits(0).says("the key is not known").says("logged in");
}

/// larder cannot check that a security key is touched, so a person must accept that, as with `no-touch-required` of OpenSSH.
fn security_key_is_added_only_without_the_check_of_touch(world: &World) {
    let keys = [
        "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4fAAAABHNzaDo=",
        "sk-ecdsa-sha2-nistp256@openssh.com AAAAInNrLWVjZHNhLXNoYTItbmlzdHAyNTZAb3BlbnNzaC5jb20AAAAIbmlzdHAyNTYAAABBBGsX0fLhLEJH+Lzm5WOkQPJ3A32BLeszoPShOUXYmMKWT+NC4v4af5uO5+tKfA+eFivOM1drMV7Oy7ZAaDe/UfUAAAAEc3NoOg==",
    ];
    for (number, key) in keys.into_iter().enumerate() {
        let name = format!("token{number}");
        let refused = world.larder(&["key", "add", "alice", "--key", key, "--key-name", &name]);
        refused.exits(3).says("larder cannot check that the security key is touched").says("--no-touch-required");
        world.larder(&["user", "add", &name, "--key", key]).exits(3);
        world.larder(&["key", "add", "alice", "--key", key, "--key-name", &name, "--no-touch-required"]).exits(0);
        world.larder(&["key", "list", "alice"]).says("touch not checked");
    }
    world.larder(&["audit"]).says("no touch required");
    world
        .larder(&["key", "add", "alice", "--key", &format!("no-touch-required {}", keys[0])])
        .exits(2)
        .says("add --no-touch-required");
    world
        .larder(&["key", "add", "alice", "--key", &format!("verify-required {}", keys[0])])
        .exits(2)
        .says("cannot check that the user");
}

/// The way of docs/access.md to require the touch of a security key: the `sshd` of a jump host checks the touch. In this test, the jump host has
/// the address 127.0.0.1, and the user's machine has the address 127.0.0.2.
fn key_that_is_accepted_from_a_jump_host_only_is_useless_elsewhere(world: &World) {
    let Some(sshd) = Sshd::start(world) else { return };
    add_key(world, "alice", "token", &["--from", "127.0.0.1"]).ok();
    let ssh = |key: &str, options: &[&str]| {
        let mut command = world.client("ssh");
        Output::of(command.args(world.ssh_options(key)).args(options).args(["larder@127.0.0.1", "whoami"]))
    };
    ssh("token", &["-b", "127.0.0.2"]).exits(255).says("Permission denied");
    let jump = |key: &str| {
        let known_hosts = world.directory().join("home/known_hosts.jump");
        format!(
            "ProxyCommand=ssh -F /dev/null -b 127.0.0.2 -i {} -o IdentitiesOnly=yes -o IdentityAgent=none -o BatchMode=yes -o LogLevel=ERROR \
             -o StrictHostKeyChecking=accept-new -o UserKnownHostsFile={} -p {} -W %h:%p root@127.0.0.1",
            world.private_key(key).display(),
            known_hosts.display(),
            sshd.port
        )
    };
    ssh("token", &["-o", &jump("alice")]).exits(0).says("alice");
    // A user whom the jump host refuses does not reach larder.
    ssh("token", &["-o", &jump("token")]).exits(255);
}
