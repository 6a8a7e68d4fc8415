//! Secrets in the formats of SOPS and age, which larder reads.

use std::{fs, path::PathBuf};

use crate::{
    configuration::{of_bytes, shop},
    harness::{World, cli::Output, in_one_mode},
    pillar::pillar,
};

in_one_mode!(files_of_sops_and_age_are_read_and_never_written);

fn set(world: &World, words: &[&str], value: &str) -> Output {
    let mut command = world.client("ssh");
    command.args(world.ssh_options("alice")).args(["larder@127.0.0.1", "secret", "set"]).args(words);
    of_bytes(&mut command, value.as_bytes())
}

fn shown(world: &World, name: &str) -> String {
    world.ssh("alice", &["secret", "show", "shop", name]).ok().to_owned()
}

/// A value that the program sops encrypted for the key of a test, which the server of a world does not have.
const FOREIGN: &str = include_str!("../fixtures/secrets/sops-3.11.yml");

fn files_of_sops_and_age_are_read_and_never_written(world: &World) {
    let repo = shop(world);
    repo.push().accepted();
    let recipients = world.ssh("alice", &["secret", "recipients", "shop", "--json"]).json();
    let server = recipients["recipients"][0]["key"].as_str().unwrap().to_owned();
    let clone = pillar(world);
    clone.write("production.yml", FOREIGN).commit("a file for somebody else");
    let push = clone.push();
    push.rejected_with(&format!(
        "the file is encrypted for other recipients than this project (expected the recipient {server})"
    ))
    .rejected_with("production.yml line ");
    push.says("sops updatekeys production.yml").says("Nothing was changed.");
    clone.remove("production.yml");
    // A file of age is one value.
    let recipient: age::x25519::Recipient = server.parse().unwrap();
    clone.write("API_TOKEN.age", age::encrypt(&recipient, b"whole-file").unwrap());
    clone.write("tls.key.age", age::encrypt_and_armor(&recipient, b"-----BEGIN KEY-----\n").unwrap());
    clone.write("init.yml", "env: {PAGE: \"${tls.key}\"}\n").commit("files of age");
    clone.push().accepted();
    world.get("shop", "/env/API_TOKEN").holds(&data_encoding::HEXLOWER.encode(b"whole-file"));
    world.get("shop", "/env/PAGE").holds(&data_encoding::HEXLOWER.encode(b"-----BEGIN KEY-----\n"));
    world
        .ssh("alice", &["secret", "show", "shop"])
        .says("API_TOKEN.age:1")
        .says("tls.key.age:1")
        .keeps_quiet_about("whole-file")
        .ok();
    assert_eq!(shown(world, "API_TOKEN"), "whole-file");
    world.ssh("alice", &["secret", "rotate", "shop"]).says("the values of shop/production are unchanged").ok();
    assert_eq!(shown(world, "API_TOKEN"), "whole-file");
    clone.git(&["pull", "--quiet", &clone.url(), "main"]).ok();
    clone.write("broken.key.age", "hunter2").commit("no file of age");
    clone.push().rejected_with("broken.key.age line 1: the encrypted value cannot be read").0.keeps_quiet_about("hunter2");
    clone.remove("broken.key.age").commit("without it");
    // With the program sops itself.
    let Some(sops) = std::env::var_os("LARDER_TEST_SOPS").map(PathBuf::from).or_else(|| crate::harness::installed("sops")) else {
        return;
    };
    clone.write("production.yml", "env:\n    API_TOKEN: token-of-sops\n    DEBUG: true\ndatabase:\n    port: 5432\n");
    let sops = |words: &[&str]| {
        let mut command = world.client(sops.to_str().unwrap());
        Output::of(command.arg("--disable-version-check").args(words).current_dir(clone.path())).ok().to_owned()
    };
    sops(&["encrypt", "--in-place", "--age", &server, "production.yml"]);
    clone.commit("a file of sops");
    clone.push().accepted();
    world.get("shop", "/env/API_TOKEN").holds(&data_encoding::HEXLOWER.encode(b"token-of-sops"));
    world.get("shop", "/env/DEBUG").holds(&data_encoding::HEXLOWER.encode(b"true"));
    world.ssh("alice", &["secret", "show", "shop/production"]).says("production.yml:2").keeps_quiet_about("token-of-sops").ok();
    world.ssh("alice", &["secret", "rotate", "shop"]).says("change its recipients with `sops updatekeys production.yml`").ok();
    // The server does not write such a file.
    clone.git(&["pull", "--quiet", &clone.url(), "main"]).ok();
    clone.git(&["mv", "production.yml", "production.secrets.yml"]).ok();
    clone.commit("the file for secrets");
    clone.push().accepted();
    set(world, &["shop/production", "API_TOKEN"], "x").exits(3).says("in the format of SOPS").says("sops production.secrets.yml");
    let text = fs::read_to_string(clone.path().join("production.secrets.yml")).unwrap();
    let tampered = text.replace("    DEBUG:", "    VERBOSE:");
    clone.write("production.secrets.yml", tampered).commit("another key");
    clone.push().rejected_with("production.secrets.yml line ").says("restore it from an earlier commit");
}
