//! The audit log: what is recorded, what is not, and how a change of the log is noticed.

use std::{fs, os::unix::fs::PermissionsExt as _};

use serde_json::Value;

use crate::harness::{Repo, World, in_one_mode};

in_one_mode!(audit_log_names_user_key_address_and_outcome, changed_audit_log_is_reported);

fn records(world: &World) -> Vec<Value> {
    let view = world.larder(&["--json", "audit", "--lines", "10000"]).json();
    assert_eq!(view["damage"], Value::Null, "{view:#}");
    view["records"].as_array().unwrap().clone()
}

fn audit_log_names_user_key_address_and_outcome(world: &World) {
    world.project("shop");
    world.key("bob");
    world.larder(&["user", "add", "bob", "--key-file", &world.public_key("bob")]).ok();
    world.larder(&["user", "grant", "bob", "shop", "push"]).ok();
    let repo = Repo::site(world, "shop", "version one").by("bob");
    repo.push().accepted();
    repo.write("larder.yml", "nonsense: true\n").commit("an invalid recipe");
    repo.push().rejected_with("nonsense");
    world.ssh("bob", &["restart", "shop"]).exits(3);
    world.ssh("bob", &["logs", "secret"]).exits(4);
    world.ssh("bob", &["logs", "shop"]).ok();
    let db = "ssh-ed25519 not-a-key";
    world.ssh("alice", &["key", "add", "bob", "--key", &format!("'{db}'")]).exits(2);
    let fingerprint = world.ssh("bob", &["whoami", "--json"]).json()["key"]["fingerprint"].as_str().unwrap().to_owned();
    world.restart(&[]);
    let all = records(world);
    let find = |what: &str, on: &str, outcome: &str| {
        let row = all.iter().find(|row| row["what"] == what && row["on"] == on && row["outcome"] == outcome);
        row.unwrap_or_else(|| panic!("no {what} on {on} {outcome} in {all:#?}")).clone()
    };
    let grant = find("user grant", "shop", "permitted");
    assert_eq!((&grant["who"], &grant["key"], &grant["detail"]), (&"operator".into(), &Value::Null, &"bob push".into()));
    let push = find("git push", "shop/production", "permitted");
    assert_eq!((&push["who"], &push["from"], &push["key"]), (&"bob".into(), &"127.0.0.1".into(), &fingerprint.clone().into()));
    assert!(push["detail"].as_str().unwrap().starts_with("refs/heads/main "), "{push}");
    assert!(find("git push", "shop", "refused")["why"].as_str().unwrap().contains("nonsense"), "{all:#?}");
    assert!(find("restart", "shop", "refused")["why"].as_str().unwrap().contains("bob may not operate"));
    find("logs", "secret", "refused");
    // A request that only reads is not recorded.
    assert!(!all.iter().any(|row| row["what"] == "logs" && row["on"] == "shop"), "{all:#?}");
    world.larder(&["audit", "--verify"]).exits(0).says("chain intact").keeps_quiet_about("user grant");
    world.ssh("bob", &["audit"]).exits(3).keeps_quiet_about("SHA256");
    let directory = world.root().join("state/audit");
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&directory), mode(&directory.join("000001.jsonl"))), (0o700, 0o600));
    assert!(!fs::read_to_string(directory.join("000001.jsonl")).unwrap().contains("not-a-key"));
    // A kill loses no record of a command that has answered.
    world.larder(&["user", "grant", "bob", "shop", "view"]).ok();
    world.kill9_all();
    world.start(&[]);
    let after = records(world);
    assert!(after.iter().any(|row| row["detail"] == "bob view"), "{after:#?}");
    assert!(after.len() > all.len());
}

fn changed_audit_log_is_reported(world: &World) {
    world.project("shop");
    world.larder(&["user", "add", "bob"]).ok();
    world.larder(&["user", "grant", "bob", "shop", "push"]).ok();
    world.larder(&["user", "grant", "bob", "shop", "view"]).ok();
    let path = world.root().join("state/audit/000001.jsonl");
    let honest = fs::read_to_string(&path).unwrap();
    fs::write(&path, honest.replace("bob push", "eve push")).unwrap();
    world.larder(&["audit", "--verify"]).exits(1).says("CHAIN DAMAGED: line").says("000001.jsonl");
    let cut: String = honest.lines().take(2).map(|line| format!("{line}\n")).collect();
    fs::write(&path, cut).unwrap();
    // The command that reads the log is recorded, too, so the gap is in the middle.
    world.larder(&["audit", "--verify"]).exits(1).says("CHAIN DAMAGED: line 3 of 000001.jsonl");
}
