//! Certificates of OpenSSH: the authorities that may certify users, the conditions of a certificate, and revocation.

use std::{
    process::{Child, Stdio},
    thread,
};

use serde_json::json;

use crate::harness::{Repo, World, cli::Output, connection::Connection, in_one_mode, until};

in_one_mode!(
    certificate_logs_in_as_the_user_that_it_names,
    refused_certificate_tells_the_client_nothing_and_the_administrator_the_reason,
    command_of_a_certificate_replaces_every_other_command,
    revoked_certificate_ends_its_open_connections,
    certificate_ends_with_its_open_connections,
    many_unknown_keys_do_not_prevent_a_login,
    authority_is_added_and_removed_by_administrators_only,
);

/// Creates a key pair of a kind for a user or an authority.
fn key(world: &World, name: &str, kind: &[&str]) {
    let mut keygen = world.client("ssh-keygen");
    keygen.args(["-q", "-N", "", "-C", name, "-t"]).args(kind).arg("-f").arg(world.private_key(name));
    Output::of(&mut keygen).ok();
}

/// Certifies the key `name` with the key of `authority`. OpenSSH uses the certificate with the key.
fn certify(world: &World, authority: &str, name: &str, options: &[&str]) {
    let mut keygen = world.client("ssh-keygen");
    keygen.args(["-q", "-s"]).arg(world.private_key(authority)).args(options).arg(world.public_key(name));
    Output::of(&mut keygen).ok();
}

fn authority(world: &World, name: &str, options: &[&str]) -> Output {
    if !world.private_key(name).exists() {
        world.key(name);
    }
    world.larder(&[&["user", "ca", "add", name, "--key-file", &world.public_key(name)], options].concat())
}

fn fingerprint(world: &World, name: &str) -> String {
    let mut keygen = world.client("ssh-keygen");
    let listed = Output::of(keygen.arg("-lf").arg(world.public_key(name)));
    listed.ok().split_whitespace().nth(1).unwrap().to_owned()
}

/// Starts a request that runs until its connection ends.
fn follow(connection: &Connection<'_>) -> Child {
    let words = ["logs", "shop", "--follow"].map(str::to_owned);
    connection.command(&words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn certificate_logs_in_as_the_user_that_it_names(world: &World) {
    world.project("shop");
    world.larder(&["project", "create", "shop", "--env", "staging", "--branch", "next"]).ok();
    world.larder(&["user", "add", "bob"]).ok();
    world.larder(&["user", "grant", "bob", "shop", "push"]).ok();
    authority(world, "office", &[]).exits(0).says("users may log in with certificates that office signs (SHA256:");
    world.key("laptop");
    // Without the certificate, the key is not known.
    world.ssh("laptop", &["whoami"]).exits(255);
    certify(world, "office", "laptop", &["-I", "bob at home", "-n", "staff,bob", "-z", "7", "-V", "-1h:+1d"]);
    let whoami = world.ssh("laptop", &["whoami", "--json"]).json();
    assert_eq!((&whoami["name"], &whoami["access"]), (&"bob".into(), &json!({"shop": "push"})));
    assert_eq!(whoami["key"]["fingerprint"], fingerprint(world, "laptop"));
    assert_eq!(whoami["key"]["certificate"], json!({"id": "bob at home", "serial": 7, "authority": "office"}));
    world.ssh("laptop", &["whoami"]).says("certificate \"bob at home\" serial 7 of the authority office (until 20");
    let repo = Repo::site(world, "shop", "version one").by("laptop");
    repo.push().accepted();
    world.serves("shop", "version one");
    world.ssh("laptop", &["restart", "shop"]).exits(3).says("bob may not operate");
    let credential =
        format!("{} certificate serial 7 of {} ID \"bob at home\"", fingerprint(world, "laptop"), fingerprint(world, "office"));
    let audit = world.larder(&["--json", "audit"]).json();
    let push = audit["records"].as_array().unwrap().iter().find(|row| row["what"] == "git push").unwrap().clone();
    assert_eq!((&push["who"], &push["key"]), (&"bob".into(), &credential.into()));
    // Certificates and authorities of the other kinds are accepted, too, also after a restart.
    key(world, "rsa-office", &["rsa", "-b", "2048"]);
    authority(world, "rsa-office", &["--user", "bob"]).ok();
    world.restart(&[]);
    for (name, kind) in [("rsa", &["rsa", "-b", "2048"][..]), ("ecdsa", &["ecdsa", "-b", "256"])] {
        key(world, name, kind);
        certify(world, "rsa-office", name, &["-t", "rsa-sha2-512", "-I", name, "-n", "bob"]);
        world.ssh(name, &["whoami"]).exits(0).says("bob").says("authority rsa-office");
    }
    // An administrator's certificate has the limits of its authority.
    authority(world, "runner", &["--only", "shop/staging", "--expires", "30d"]).ok();
    world.key("ci");
    certify(world, "runner", "ci", &["-I", "ci", "-n", "alice"]);
    assert_eq!(world.ssh("ci", &["whoami", "--json"]).json()["access"], json!({"shop/staging": "push"}));
    world.ssh("ci", &["user", "list"]).exits(3);
    world.ssh("ci", &["logs", "shop/production"]).exits(4);
    world.larder(&["user", "ca", "list"]).says("only push on shop/staging").says("rsa-office").says("bob");
}

fn refused_certificate_tells_the_client_nothing_and_the_administrator_the_reason(world: &World) {
    for user in ["bob", "ann"] {
        world.larder(&["user", "add", user]).ok();
    }
    world.larder(&["group", "add", "crew", "ann"]).ok();
    authority(world, "office", &[]).ok();
    authority(world, "personal", &["--user", "ann"]).ok();
    authority(world, "team", &["--group", "crew"]).ok();
    authority(world, "remote", &["--from", "192.0.2.0/24"]).ok();
    world.key("foreign");
    world.larder(&["user", "ca", "revoke", "office", "--serial", "13"]).ok();
    world.larder(&["user", "ca", "revoke", "office", "--key-id", "lost laptop"]).ok();
    // The name of the key, the authority, the options of the certificate, the reason.
    let cases: &[(&str, &str, &[&str], &str)] = &[
        ("foreign-ca", "foreign", &["-n", "bob"], "is not trusted"),
        // The SSH library itself refuses these two. The client then offers the plain key.
        ("expired", "office", &["-n", "bob", "-V", "-2d:-1d"], "has no certificate that is signed and valid now"),
        ("early", "office", &["-n", "bob", "-V", "+1d:+2d"], "has no certificate that is signed and valid now"),
        ("principal", "office", &["-n", "eve"], "no user has the name of a principal of the certificate: eve"),
        ("case", "office", &["-n", "Bob"], "no user has the name of a principal of the certificate: Bob"),
        ("several", "office", &["-n", "bob,ann"], "is for several users (expected one): bob, ann"),
        ("nameless", "office", &[], "has no principals"),
        ("range", "office", &["-n", "bob", "-O", "source-address=192.0.2.0/24"], "accepted from 192.0.2.0/24 only"),
        ("ranges", "office", &["-n", "bob", "-O", "critical:source-address=nowhere"], "source-address of the certificate"),
        ("option", "office", &["-n", "bob", "-O", "critical:x@example.com=1"], "critical option \"x@example.com\""),
        ("verified", "office", &["-n", "bob", "-O", "verify-required"], "critical option \"verify-required\""),
        ("command", "office", &["-n", "bob", "-O", "force-command=git-shell '/shop'"], "forced command of the certificate"),
        ("serial", "office", &["-n", "bob", "-z", "13"], "the certificate was revoked"),
        ("lost", "office", &["-n", "bob", "-z", "14", "-I", "lost laptop"], "the certificate was revoked"),
        ("other-user", "personal", &["-n", "bob"], "personal may certify ann only"),
        ("no-member", "team", &["-n", "bob"], "team may certify members of crew only"),
        ("ca-range", "remote", &["-n", "bob"], "remote is limited: the key is accepted from 192.0.2.0/24 only"),
    ];
    // A refused login is answered after a second, so several logins are made at the same time. The list has the last 16 offers of an address,
    // and a client offers the certificate and the plain key.
    for cases in cases.chunks(6) {
        thread::scope(|scope| {
            for (name, authority, options, _) in cases {
                scope.spawn(move || {
                    world.key(name);
                    let id: &[&str] = if options.contains(&"-I") { &[] } else { &["-I", name] };
                    certify(world, authority, name, &[options, id].concat());
                    let answer = world.ssh(name, &["whoami"]);
                    answer.exits(255).says("Permission denied").keeps_quiet_about("certificate");
                });
            }
        });
        let rows = world.larder(&["--json", "doctor", "keys"]).json();
        let rows = rows.as_array().unwrap();
        for (name, _, _, reason) in cases {
            let key = fingerprint(world, name);
            let of_key: Vec<_> = rows.iter().filter(|row| row["fingerprint"] == key).collect();
            let is_given = of_key.iter().any(|row| row["refused"].as_str().is_some_and(|refused| refused.contains(reason)));
            assert!(is_given, "{name}: {reason:?} is not in {of_key:#?}");
        }
        assert!(rows.iter().all(|row| row["refused"].is_string()), "{rows:#?}");
    }
    world.larder(&["doctor", "keys"]).says("ssh-ed25519-cert-v01@openssh.com SHA256:").says("\"no-member\" serial 0");
}

/// The forced command runs instead of the command of the client, as with OpenSSH.
fn command_of_a_certificate_replaces_every_other_command(world: &World) {
    world.project("shop");
    world.larder(&["user", "add", "bob"]).ok();
    world.larder(&["user", "grant", "bob", "shop", "operate"]).ok();
    authority(world, "office", &[]).ok();
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    let certified = |name: &str, options: &[&str]| {
        world.key(name);
        certify(world, "office", name, &[&["-I", name, "-n", "bob"], options].concat());
    };
    certified("asker", &["-O", "force-command=whoami"]);
    for words in [&["freeze", "shop", "--why", "x"][..], &["whoami"], &["run", "shop", "--", "true"], &[]] {
        world.ssh("asker", words).exits(0).says("bob").says("certificate \"asker\"");
    }
    world.larder(&["freeze", "shop"]).says("no release freeze");
    let asker = repo.by("asker");
    asker.page("version two");
    asker.git(&["push", &asker.url(), "HEAD:refs/heads/main"]).exits(128);
    asker.git(&["ls-remote", &asker.url()]).exits(128);
    world.serves("shop", "version one");
    // A command of git serves one repository and one direction.
    certified("reader", &["-O", "force-command=git-upload-pack '/shop'"]);
    assert!(repo.by("reader").ls_remote().contains_key("refs/heads/main"));
    assert_ne!(repo.by("reader").git(&["push", &repo.url(), "HEAD:refs/heads/main"]).status, 0);
    world.serves("shop", "version one");
    // Without the extension permit-pty, a session has no terminal.
    certified("plain", &["-O", "no-pty"]);
    let terminal = |name: &str| world.ssh_on_terminal(name, &["whoami"], "");
    let refused = terminal("plain");
    refused.exits(255).says("PTY allocation request failed").keeps_quiet_about("bob");
    certified("full", &[]);
    terminal("full").exits(0).says("bob").keeps_quiet_about("PTY allocation");
}

fn revoked_certificate_ends_its_open_connections(world: &World) {
    world.project("shop");
    for user in ["bob", "ann"] {
        world.larder(&["user", "add", user]).ok();
        world.larder(&["user", "grant", user, "shop", "view"]).ok();
    }
    world.larder(&["group", "add", "crew", "bob"]).ok();
    authority(world, "office", &[]).ok();
    authority(world, "team", &["--group", "crew"]).ok();
    authority(world, "personal", &["--user", "ann"]).ok();
    for (name, authority, user, serial) in [
        ("first", "office", "bob", "1"),
        ("second", "office", "bob", "2"),
        ("third", "office", "bob", "3"),
        ("member", "team", "bob", "1"),
        ("own", "personal", "ann", "1"),
    ] {
        world.key(name);
        certify(world, authority, name, &["-I", name, "-n", user, "-z", serial]);
    }
    let ends = |name: &str, change: &[&str]| {
        let (mut connection, mut other) = (Connection::open(world, name), Connection::open(world, "alice"));
        let mut logs = follow(&connection);
        world.larder(change).exits(0);
        until(change.join(" ").as_str(), || logs.try_wait().unwrap().is_some() && !connection.is_open());
        assert!(other.is_open(), "another connection ended");
        world.ssh(name, &["whoami"]).exits(255);
    };
    ends("first", &["user", "ca", "revoke", "office", "--serial", "1"]);
    ends("second", &["user", "ca", "revoke", "office", "--key-id", "second"]);
    // Other certificates of the authority stay valid, and so does a certificate with this serial number of another authority.
    for name in ["third", "member"] {
        world.ssh(name, &["whoami"]).exits(0);
    }
    world.restart(&[]);
    world.ssh("first", &["whoami"]).exits(255);
    world.larder(&["user", "ca", "revoke", "office", "--serial", "1", "--undo"]).exits(0).says("0 serial numbers and 1 key ID");
    world.ssh("first", &["whoami"]).exits(0);
    ends("member", &["group", "remove", "crew", "bob"]);
    ends("third", &["user", "ca", "remove", "office"]);
    ends("own", &["user", "remove", "ann"]);
    // A later user with the name of a removed user is another user.
    world.larder(&["user", "add", "ann"]).ok();
    world.ssh("own", &["whoami"]).exits(255);
}

fn certificate_ends_with_its_open_connections(world: &World) {
    world.project("shop");
    world.larder(&["user", "add", "bob"]).ok();
    world.larder(&["user", "grant", "bob", "shop", "view"]).ok();
    authority(world, "office", &[]).ok();
    world.key("guest");
    let begun = jiff::Timestamp::now();
    certify(world, "office", "guest", &["-I", "guest", "-n", "bob", "-V", "-1m:+5s"]);
    let mut connection = Connection::open(world, "guest");
    let mut logs = follow(&connection);
    until("the connection of the expired certificate ends", || logs.try_wait().unwrap().is_some() && !connection.is_open());
    assert!(jiff::Timestamp::now() >= begun + jiff::SignedDuration::from_secs(4), "the connection ended before the certificate");
    world.ssh("guest", &["whoami"]).exits(255);
}

/// An offer does not tell a key from its certificate, so unknown keys are proven as well.
fn many_unknown_keys_do_not_prevent_a_login(world: &World) {
    authority(world, "office", &[]).ok();
    let mut ssh = world.client("ssh");
    let options = world.ssh_options("alice");
    for number in 0..8 {
        let name = format!("unknown{number}");
        world.key(&name);
        ssh.arg("-i").arg(world.private_key(&name));
    }
    Output::of(ssh.args(options).args(["larder@127.0.0.1", "whoami"])).exits(0).says("alice");
    world.larder(&["doctor", "keys"]).says("the key is not known, and has no certificate").says("logged in");
    // A key of which the client has only the public half is listed as well.
    world.key("half");
    std::fs::copy(world.public_key("half"), world.private_key("half")).unwrap();
    world.ssh("half", &["whoami"]).exits(255);
    let rows = world.larder(&["--json", "doctor", "keys"]).json();
    let half = fingerprint(world, "half");
    assert!(rows.as_array().unwrap().iter().any(|row| row["fingerprint"] == half), "{rows:#}");
}

fn authority_is_added_and_removed_by_administrators_only(world: &World) {
    world.project("shop");
    world.key("bob");
    world.larder(&["user", "add", "bob", "--key-file", &world.public_key("bob")]).ok();
    world.larder(&["user", "grant", "bob", "shop", "admin"]).ok();
    authority(world, "office", &[]).ok();
    for words in [
        &[
            "user",
            "ca",
            "add",
            "mine",
            "--key",
            "'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f'",
        ][..],
        &["user", "ca", "list"],
        &["user", "ca", "remove", "office"],
        &["user", "ca", "revoke", "office", "--serial", "1"],
    ] {
        world.ssh("bob", words).exits(3).says("bob is not an administrator of this server").keeps_quiet_about("SHA256");
    }
    // The key of a security key signs no certificates, because nothing shows that it was touched.
    let security_key = "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4fAAAABHNzaDo=";
    let bob = world.public_key("bob");
    world.key("spare");
    let spare = world.public_key("spare");
    let wrong: [(&[&str], i32, &str); 9] = [
        (&["office", "--key-file", &spare], 3, "there is one with this name already"),
        (&["other", "--key-file", &world.public_key("office")], 3, "its key is the key of the authority office"),
        (&["other", "--key-file", &bob], 3, "its key is a login key of bob"),
        (&["other", "--key", security_key], 2, "are not accepted"),
        (&["other"], 2, "no key is given"),
        (&["other", "--key-file", &spare, "--user", "eve"], 4, "there is no user eve"),
        (&["other", "--key-file", &spare, "--group", "crew"], 4, "there is no group crew"),
        (&["other", "--key-file", &spare, "--only", "nowhere"], 4, "there is no project nowhere"),
        (&["other", "--key-file", &spare, "--user", "bob", "--group", "crew"], 2, "cannot be used with"),
    ];
    for (words, status, message) in wrong {
        world.larder(&[&["user", "ca", "add"], words].concat()).exits(status).says(message);
    }
    for (words, status) in [
        (&["revoke", "office"][..], 2),
        (&["revoke", "office", "--serial", "0"], 2),
        (&["revoke", "office", "--serial", "1", "--key-id", "x"], 2),
        (&["revoke", "office", "--serial", "1", "--undo"], 4),
        (&["revoke", "ofice", "--serial", "1"], 4),
        (&["remove", "ofice"], 4),
    ] {
        world.larder(&[&["user", "ca"], words].concat()).exits(status);
    }
    world.larder(&["user", "ca", "remove", "ofice"]).says("did you mean office?");
    world.larder(&["user", "ca", "remove", "office"]).exits(0).says("are no longer accepted");
}
