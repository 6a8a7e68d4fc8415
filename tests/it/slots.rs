//! The record of the slots. Every server, also one that starts later, stops old processes with the times of their own recipe. An unusable
//! record freezes the environment.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use crate::harness::{Repo, World, in_one_mode, until};

in_one_mode!(
    old_release_is_stopped_by_its_own_grace,
    old_release_is_stopped_by_its_own_grace_after_a_kill_of_the_server,
    unusable_record_freezes_the_environment,
    missing_record_is_made_again,
    missing_record_of_a_draining_slot_is_made_from_its_processes,
);

/// A web process that writes its release to `media/ended` two seconds after SIGTERM.
const SLOW_END: &str = "#!/bin/sh\n\
    finish() { sleep 2; echo \"$LARDER_RELEASE\" >> media/ended; exit 0; }\n\
    trap finish TERM\n\
    larder static-server --root . &\n\
    while kill -0 $! 2>/dev/null; do wait $!; done\n\
    exit 1\n";

/// Pushes a version whose processes need two seconds to end, and returns after the verdict.
fn push(repo: &Repo<'_>, page: &str, grace: &str) {
    repo.program("run", SLOW_END).write("Procfile", "web: ./run\n");
    repo.write("larder.yml", format!("data: [media]\nstop: {{grace: {grace}}}\n")).page(page);
    repo.push().accepted();
}

fn ended(world: &World) -> String {
    fs::read_to_string(world.environment("shop").join("data/media/ended")).unwrap_or_default()
}

fn record(world: &World) -> PathBuf {
    world.environment("shop").join("slots.json")
}

fn use_of_slots(world: &World) -> Vec<String> {
    let record: serde_json::Value = serde_json::from_slice(&fs::read(record(world)).unwrap()).unwrap();
    ["blue", "green"].map(|slot| record[slot]["use"].as_str().unwrap().to_owned()).into()
}

fn old_release_is_stopped_by_its_own_grace(world: &World) {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    push(&repo, "version one", "30s");
    push(&repo, "version two", "50ms");
    assert_eq!(use_of_slots(world), ["draining", "live"]);
    // Version three needs the slot in which version one is still being stopped.
    push(&repo, "version three", "50ms");
    assert_eq!(ended(world), "v1\n");
    world.serves("shop", "version three");
    until("version two has ended", || use_of_slots(world) == ["live", "idle"]);
    assert_eq!(ended(world), "v1\n", "version two has no time to write");
    world.is_consistent("shop");
}

fn old_release_is_stopped_by_its_own_grace_after_a_kill_of_the_server(world: &World) {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    push(&repo, "version one", "30s");
    push(&repo, "version two", "50ms");
    world.kill9_server();
    assert_eq!(use_of_slots(world), ["draining", "live"]);
    world.serves("shop", "version two");
    push(&repo, "version three", "50ms");
    assert_eq!(ended(world), "v1\n");
    world.serves("shop", "version three");
    until("version two has ended", || use_of_slots(world) == ["live", "idle"]);
    world.is_consistent("shop");
}

/// An environment that an earlier version of larder served has no record.
fn missing_record_of_a_draining_slot_is_made_from_its_processes(world: &World) {
    world.project("shop");
    let repo = Repo::new(world, "shop");
    push(&repo, "version one", "30s");
    push(&repo, "version two", "50ms");
    fs::remove_file(record(world)).unwrap();
    world.kill9_server();
    world.serves("shop", "version two");
    assert_eq!(use_of_slots(world), ["draining", "live"]);
    push(&repo, "version three", "50ms");
    assert_eq!(ended(world), "v1\n");
    world.serves("shop", "version three");
    world.is_consistent("shop");
}

fn unusable_record_freezes_the_environment(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    for (text, reason) in [("{\"version\":7}", "format version 7"), ("{\"version\":1,", "is damaged")] {
        world.stop();
        fs::write(record(world), text).unwrap();
        world.start(&[]);
        world.serves("shop", "version one");
        repo.page("version two");
        repo.push().rejected_with("is frozen").rejected_with(reason);
        world.larder(&["deploy", "shop", "--unfreeze"]).exits(3).says(reason);
        assert_eq!(fs::read_to_string(record(world)).unwrap(), text, "the record was overwritten");
        fs::remove_file(record(world)).unwrap();
        world.larder(&["deploy", "shop", "--unfreeze"]).ok();
        world.serves("shop", "version one");
    }
    repo.push().accepted();
    world.serves("shop", "version two");
    world.is_consistent("shop");
}

fn missing_record_is_made_again(world: &World) {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.push().accepted();
    repo.page("version two");
    repo.push().accepted();
    until("version one has left its slot", || use_of_slots(world) == ["idle", "live"]);
    let before = fs::read_to_string(record(world)).unwrap();
    world.stop();
    fs::remove_file(record(world)).unwrap();
    world.start(&[]);
    world.serves("shop", "version two");
    // In the new record, the slot of version one is draining until a follow-up has found that no process runs in this slot.
    until("the record is as before", || fs::read_to_string(record(world)).is_ok_and(|text| text == before));
    assert_eq!(fs::metadata(record(world)).unwrap().permissions().mode() & 0o777, 0o600);
    repo.page("version three");
    repo.push().accepted();
    world.serves("shop", "version three");
    world.is_consistent("shop");
}
