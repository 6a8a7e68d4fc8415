//! The only integration binary: the real server, real git and real ssh, with a separate world for each test.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stderr)]

mod access;
mod architecture;
mod audit;
mod backup;
mod backup_export;
mod backup_hooks;
mod backup_schedule;
mod badinput;
mod certificates;
mod cli;
mod client;
mod client_docs;
mod client_hostile;
mod client_projects;
mod clients;
mod configuration;
mod configuration_pairs;
mod configuration_secrecy;
mod contributing;
mod copies;
mod data;
mod data_copy;
mod data_return;
mod database_servers;
mod databases;
mod delivering;
mod deltas;
mod deploy_keys;
mod dev;
mod disk_full;
mod django;
mod drift;
mod drill;
mod dry_run;
mod editable;
mod editable_kills;
mod editable_watch;
mod environments;
mod event_mails;
mod examples;
mod forged;
mod fronted;
mod frozen;
mod harness;
mod held_clients;
mod hold;
mod hostile;
mod hostile_data;
mod identities;
mod in_place;
mod in_place_attacks;
mod in_place_kills;
mod in_place_units;
mod journals;
mod keeper;
mod keeper_bounds;
mod keeper_world;
mod language;
mod libraries;
mod login_keys;
mod machines;
mod mail_servers;
mod mail_verdicts;
mod mirrors;
mod modes;
mod neighbours;
mod notifications;
mod offsite;
mod offsite_docs;
mod offsite_stores;
mod other_clients;
mod pillar;
mod places;
mod plan;
mod power_cut;
mod project_quota;
mod promotion;
mod protection;
mod pulling;
mod push;
mod queue;
mod random_runs;
mod recipe;
mod recovery;
mod refs;
mod refusals;
mod releases;
mod remote;
mod remote_hostile;
mod renewal;
mod repeated_undos;
mod repository_secrets;
mod rights;
mod rollback;
mod roundabout;
mod secret_formats;
mod secrets;
mod secrets_attacks;
mod secrets_edit;
mod serving;
mod shared;
mod slots;
mod space;
mod storage;
mod streams;
mod syscall_faults;
mod templates;
mod terminal;
mod unwind;
mod upgrade_kills;
mod verdicts;
mod webhooks;
mod week;

/// A file in `tests/it` without a `mod` line would not be compiled, and its tests would never run.
#[test]
fn every_test_file_is_a_module() {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it");
    for (listing, directory) in [("main.rs", directory.clone()), ("harness/mod.rs", directory.join("harness"))] {
        if !directory.exists() {
            continue;
        }
        let text =
            std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it").join(listing)).unwrap();
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap();
            if matches!(name, "main" | "mod") {
                continue;
            }
            let named = text.lines().any(|line| line.trim_start_matches("pub ") == format!("mod {name};"));
            assert!(named, "{} is not in {listing}", path.display());
        }
    }
}
