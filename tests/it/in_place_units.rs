//! `services:` in the recipe: units of systemd that a deployment in place stops and starts, with a program in the place of systemctl that
//! records its calls; and the project's scripts in the order of a deployment in place.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use crate::{
    harness::{Repo, World, in_one_mode},
    in_place::{IN_PLACE, data},
};

in_one_mode!(scripts_run_in_the_order_of_a_deployment_in_place);

/// Writes a program that records its arguments and refuses what the file `refuse` beside it names. Returns the file of the records.
fn systemctl(world: &World) -> PathBuf {
    let (program, calls) = (world.directory().join("systemctl"), world.directory().join("calls"));
    let refuse = world.directory().join("refuse");
    let text = format!(
        "#!/bin/sh\nif test \"$(id -u)\" != 0; then echo not root; exit 9; fi\necho \"$*\" >> {calls}\n\
         if test -e {refuse} && test \"$*\" = \"$(cat {refuse})\"; then echo 'Job for the unit failed' >&2; exit 1; fi\n",
        calls = calls.display(),
        refuse = refuse.display(),
    );
    fs::write(&program, text).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(&calls, "").unwrap();
    calls
}

fn site<'w>(world: &'w World, recipe: &str) -> Repo<'w> {
    world.project("shop");
    let repo = Repo::site(world, "shop", "version one");
    repo.write("larder.yml", format!("{IN_PLACE}{recipe}")).page("version one");
    repo
}

#[test]
fn units_stop_and_start_around_a_deployment_in_place() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("SKIPPED: units need root");
    }
    let Some(world) = World::configured("") else { return };
    let calls = systemctl(&world);
    let program = world.directory().join("systemctl");
    let units = "{shop: [index.service, mail@1.service], blog: [other.service]}";
    world.add_settings(&format!("services: {{systemctl: {}, units: {units}}}\n", program.display()));
    let said = || {
        let text = fs::read_to_string(&calls).unwrap();
        fs::write(&calls, "").unwrap();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let services = "services: [index.service, mail@1.service]\n";
    let around = ["stop -- index.service", "stop -- mail@1.service", "start -- mail@1.service", "start -- index.service"];
    let repo = site(&world, services);
    repo.push().accepted();
    assert_eq!(said(), around);
    // A failed deployment starts the units again with the old release.
    repo.write("larder.yml", format!("{IN_PLACE}{services}upgrade: exit 3\n")).page("version two");
    repo.push().rejected_with("the release command exited 3");
    assert_eq!(said(), [&around[..], &around[..]].concat());
    world.serves("shop", "version one");
    // A unit that does not stop: nothing of the release has changed.
    fs::write(world.directory().join("refuse"), "stop -- mail@1.service").unwrap();
    repo.write("larder.yml", format!("{IN_PLACE}{services}")).page("version three");
    repo.push().rejected_with("cannot stop mail@1.service: systemctl exited 1: Job for the unit failed");
    assert_eq!(said().last().unwrap(), "start -- index.service");
    world.serves("shop", "version one");
    world.is_consistent("shop");
    fs::remove_file(world.directory().join("refuse")).unwrap();
    // The units of the old recipe stop for a release without units, too.
    repo.write("larder.yml", IN_PLACE).page("version four");
    repo.push().accepted();
    assert_eq!(said(), around);
    // Units of another project, names that are no units, and the other strategy.
    for (recipe, why) in [
        ("strategy: in-place\nservices: [other.service]\n", "the server file does not allow other.service for shop"),
        ("strategy: in-place\nservices: [\"--now.service\"]\n", "is not a valid unit name"),
        ("strategy: blue-green\nservices: [index.service]\n", "`services:` needs `strategy: in-place`"),
    ] {
        repo.write("larder.yml", format!("data: [store/]\n{recipe}")).page(why);
        let push = repo.push();
        push.rejected();
        push.says(why);
    }
    assert_eq!(said(), Vec::<String>::new());
    world.serves("shop", "version four");
    world.end();
}

#[test]
fn units_are_refused_without_systemd() {
    let Some(world) = World::configured("services: {units: {shop: [index.service]}}\n") else { return };
    if std::path::Path::new("/run/systemd/system").is_dir() {
        eprintln!("SKIPPED: systemd runs on this machine");
    } else {
        let repo = site(&world, "services: [index.service]\n");
        repo.push().rejected_with("cannot stop and start index.service: systemd does not run on this machine");
    }
    world.end();
}

/// Each part of the deployment appends a word to a file of the data.
fn scripts_run_in_the_order_of_a_deployment_in_place(world: &World) {
    let repo = site(world, "");
    let start = "#!/bin/sh\necho start >> store/order\ntrap 'echo stop >> store/order; exit 0' TERM\nlarder static-server --root . &\nwait\n";
    let note = |word: &str| format!("#!/bin/sh\necho {word} >> $LARDER_DATA/store/order\n");
    repo.program("start.sh", start).write("Procfile", "web: exec ./start.sh\n");
    repo.program(".larder/backup", &note("backup")).program(".larder/restore", &note("restore"));
    repo.program(".larder/deploy", &note("deploy")).page("version two");
    repo.push().accepted();
    let order = || fs::read_to_string(world.environment("shop").join("data/store/order")).unwrap_or_default();
    let before = order();
    repo.write("larder.yml", format!("{IN_PLACE}upgrade: echo upgrade >> store/order\n")).page("version three");
    repo.push().accepted();
    let words: Vec<_> = order().strip_prefix(before.as_str()).unwrap().lines().map(str::to_owned).collect();
    // The new processes and the upgrade command run at the same time.
    assert_eq!(words[..4], ["backup", "stop", "backup", "deploy"], "{words:?}");
    assert!(words.len() == 6 && words.contains(&"start".into()) && words.contains(&"upgrade".into()), "{words:?}");
    // A failure runs the script of the restore, after the files of the data are back.
    let (stored, kept) = (order(), data(world).len());
    repo.write("larder.yml", format!("{IN_PLACE}upgrade: rm store/order; exit 3\n")).page("version four");
    repo.push().rejected_with("the release command exited 3");
    let after = order();
    let words: Vec<_> = after.strip_prefix(stored.as_str()).unwrap().lines().collect();
    assert_eq!(words, ["backup", "stop", "backup", "restore", "start"], "{after}");
    assert_eq!(data(world).len(), kept);
    world.serves("shop", "version three");
    world.is_consistent("shop");
}
