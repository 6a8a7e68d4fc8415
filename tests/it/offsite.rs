//! Tests of copies of restore points in off-site stores: restic reads the copies, a store that loses bytes is found by reading, and a new
//! machine restores from the copies alone.
//!
//! Each start of the off-site worker derives the key of the repository, which takes a part of a second. `LARDER_TEST_THOROUGH` adds a
//! truncated pack and more kills.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use crate::{
    backup::{POPULATE, data, id, same, sh, shop, take, walk},
    harness::{World, cli::Output, databases::give_to_larder, in_one_mode, installed, server::log_file, thorough, until},
};

in_one_mode!(
    restic_checks_and_restores_the_copies,
    restic_restores_each_kept_copy_after_a_prune,
    store_has_the_copies_that_its_own_rules_select,
    store_that_loses_bytes_is_found_by_the_next_check,
    lost_repository_is_reported_and_written_again,
    new_machine_restores_from_the_copies_alone,
    unreachable_store_delays_nothing_and_is_shown,
    kill_during_a_copy_leaves_a_repository_that_restic_reads,
);

/// A function that damages a store.
type Damaging = fn(&Path);

pub(crate) const PASSWORD: &str = "correct horse 7f3a";

/// Creates a directory of larder's user.
pub(crate) fn directory(world: &World, name: &str) -> PathBuf {
    let path = world.directory().join(name);
    fs::create_dir(&path).unwrap();
    give_to_larder(world, &path);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    path
}

pub(crate) fn password_file(world: &World) -> PathBuf {
    let file = world.directory().join("offsite.password");
    fs::write(&file, format!("{PASSWORD}\n")).unwrap();
    give_to_larder(world, &file);
    file
}

/// Adds a store to the server file. No cycle begins by itself before a restore point is taken.
fn configure(world: &World, url: &str) {
    configure_with(world, url, "verify: 100M", "keep: {last: 3}");
}

/// Adds a store with further keys of the store and of `backup:`.
pub(crate) fn configure_with(world: &World, url: &str, of_store: &str, of_backup: &str) {
    let password = password_file(world);
    let file = world.root().join("larder.yml");
    let text = fs::read_to_string(&file).unwrap();
    let rest: String = text.lines().filter(|line| !line.starts_with("backup:")).map(|line| format!("{line}\n")).collect();
    fs::write(&file, rest).unwrap();
    world.add_settings(&format!(
        "backup: {{schedule: off, {of_backup}, offsite: [{{url: '{url}', password_file: {}, {of_store}}}]}}\n",
        password.display()
    ));
}

fn store(world: &World) -> PathBuf {
    let store = directory(world, "store");
    configure(world, store.to_str().unwrap());
    store
}

/// Restarts the server with an observer. Returns the file with the announcements.
pub(crate) fn listen(world: &World) -> PathBuf {
    let news = world.directory().join("news");
    fs::write(&news, "").unwrap();
    fs::set_permissions(&news, fs::Permissions::from_mode(0o666)).unwrap();
    world.restart(&[("FAILPOINTS", &format!("observer=return({})", news.display()))]);
    news
}

/// Returns the number of announcements with this text.
pub(crate) fn announced(news: &Path, text: &str) -> usize {
    fs::read_to_string(news).unwrap().lines().filter(|line| line.contains(text)).count()
}

/// Copies and checks now. Returns the report about the only store.
pub(crate) fn copy(world: &World) -> Value {
    world.larder(&["--json", "backup", "copy", "shop"]).any_json()["stores"][0].clone()
}

pub(crate) fn restic(world: &World, repository: &Path, words: &[&str]) -> Output {
    let mut restic = Command::new("restic");
    restic.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", world.directory()).env("RESTIC_PASSWORD", PASSWORD);
    restic.args(["--no-cache", "-r"]).arg(repository).args(words);
    Output::of(&mut restic)
}

fn packs(store: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    for directory in fs::read_dir(store.join("shop/production/data")).unwrap() {
        found.extend(fs::read_dir(directory.unwrap().path()).unwrap().map(|file| file.unwrap().path()));
    }
    found.sort();
    found
}

fn restic_checks_and_restores_the_copies(world: &World) {
    if installed("restic").is_none() {
        return;
    }
    shop(world);
    sh(world, POPULATE);
    let _ = rustix::fs::setxattr(data(world).join("media/script"), "user.colour", b"blue", rustix::fs::XattrFlags::empty());
    let store = store(world);
    let before = walk(&data(world));
    let first = take(world);
    // The copy follows the restore point by itself.
    until("the restore point was copied", || {
        let list = world.larder(&["--json", "backup", "list", "shop"]).json();
        list["points"][0]["offsite"][0]["state"] == "verified"
    });
    world.larder(&["backup", "list", "shop"]).says("OFF-SITE").says("verified").says("off-site ");
    let report = copy(world);
    assert_eq!((&report["copies"], &report["verified"]), (&Value::from(1), &Value::from(1)), "{report}");

    // A second copy stores only the changed file.
    let size = || packs(&store).iter().map(|pack| fs::metadata(pack).unwrap().len()).sum::<u64>();
    let one = size();
    sh(world, "echo changed > media/upload");
    take(world);
    copy(world);
    let added = size() - one;
    assert!(added < 64 << 10, "{added} bytes were added");

    let repository = store.join("shop/production");
    restic(world, &repository, &["check", "--read-data"]).ok();
    let snapshots = restic(world, &repository, &["snapshots", "--json"]).json();
    assert_eq!(snapshots.as_array().unwrap().len(), 2, "{snapshots}");
    let tags = snapshots[0]["tags"].to_string();
    assert!(tags.contains(&format!("point={}", id(&first))) && tags.contains("project=shop"), "{tags}");
    let to = world.directory().join("by-restic");
    let snapshot = snapshots[0]["id"].as_str().unwrap();
    restic(world, &repository, &["restore", snapshot, "--target", to.to_str().unwrap()]).ok();
    same(&walk(&to.join("data")), &before);
    assert!(to.join("larder/point.json").is_file());

    // Nothing but larder's user can read the store, and the password is nowhere but in its file.
    for pack in packs(&store) {
        assert_eq!(fs::metadata(&pack).unwrap().mode() & 0o077, 0);
    }
    let found = Command::new("grep").args(["-rl", PASSWORD]).arg(world.root()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
}

fn store_has_the_copies_that_its_own_rules_select(world: &World) {
    shop(world);
    let url = directory(world, "store").display().to_string();
    let rules = |last: u32| format!("verify: 0, keep: {{last: {last}, daily: 0, weekly: 0, monthly: 0}}");
    let here = "keep: {last: 3, daily: 0, weekly: 0, monthly: 0}";
    configure_with(world, &url, &rules(1), here);
    let points: Vec<Value> = ["one", "two", "three"]
        .iter()
        .map(|text| {
            sh(world, &format!("echo {text} > media/upload"));
            take(world)
        })
        .collect();
    let copies = || {
        until("the restore points were copied", || copy(world)["failure"].is_null());
        let list = world.larder(&["--json", "backup", "list", "shop"]).json();
        let all = list["points"].as_array().unwrap().iter();
        all.filter(|point| !point["offsite"].as_array().unwrap().is_empty()).map(|point| id(point).to_owned()).collect::<Vec<_>>()
    };
    // The store has less history than this machine.
    assert_eq!(copies(), [id(&points[2])]);
    // The store has more history than this machine.
    configure_with(world, &url, &rules(2), here);
    assert_eq!(copies(), [id(&points[2]), id(&points[1])]);
    world.larder(&["backup", "remove", "shop", id(&points[1])]).ok();
    let report = copy(world);
    assert_eq!((&report["copies"], &report["verified"]), (&Value::from(2), &Value::from(2)), "{report}");
    sh(world, "echo four > media/upload");
    let newest = take(world);
    assert_eq!(copies(), [id(&newest), id(&points[2])]);
    assert_eq!(copy(world)["copies"], 2);
}

/// Changes one bit of a file.
fn flip(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(file, bytes).unwrap();
}

fn restic_restores_each_kept_copy_after_a_prune(world: &World) {
    if installed("restic").is_none() {
        return;
    }
    shop(world);
    sh(world, POPULATE);
    let _ = rustix::fs::setxattr(data(world).join("media/script"), "user.colour", b"blue", rustix::fs::XattrFlags::empty());
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(data(world).join("media/deep/er/file"), Some(12_345), Some(23_456)).unwrap();
    }
    let store = directory(world, "store");
    let repository = store.join("shop/production");
    configure_with(world, store.to_str().unwrap(), "verify: 0", "keep: {last: 2, daily: 0, weekly: 0, monthly: 0}");
    let mut states = Vec::new();
    for change in
        ["true", "echo second > media/upload; rm media/hard; truncate -s 5M media/sparse; ln media/upload media/another"]
    {
        sh(world, change);
        states.push((walk(&data(world)), take(world)));
        until("the restore point was copied", || copy(world)["failure"].is_null());
    }
    sh(world, "head -c 4000000 /dev/urandom > media/large; ln -s gone media/deep/dangling; chmod 640 media/script");
    states.push((walk(&data(world)), take(world)));
    until("the restore point was copied", || copy(world)["failure"].is_null());
    // The oldest copy is removed, because no rule selects it, and its restore point is not on this machine.
    world.larder(&["backup", "remove", "shop", id(&states[0].1)]).ok();
    let report = copy(world);
    assert_eq!((&report["copies"], &report["verified"]), (&Value::from(2), &Value::from(2)), "{report}");
    restic(world, &repository, &["check", "--read-data"]).ok();
    let snapshots = restic(world, &repository, &["snapshots", "--json"]).json();
    assert_eq!(snapshots.as_array().unwrap().len(), 2, "{snapshots}");
    for snapshot in snapshots.as_array().unwrap() {
        let tags = snapshot["tags"].to_string();
        let (files, _) = states.iter().find(|(_, point)| tags.contains(id(point))).unwrap();
        let to = world.directory().join(format!("by-restic-{}", snapshot["short_id"].as_str().unwrap()));
        restic(world, &repository, &["restore", snapshot["id"].as_str().unwrap(), "--target", to.to_str().unwrap()]).ok();
        same(&walk(&to.join("data")), files);
    }
    // larder brings the same files back, with their holes.
    let (files, point) = states.pop().unwrap();
    world.larder(&["backup", "remove", "shop", id(&point)]).ok();
    world.larder(&["backup", "import", "shop", id(&point)]).ok();
    world.larder(&["backup", "restore", "shop", id(&point), "--into", "imported"]).ok();
    let imported = world.environment("shop").join("archives/restored/imported/data");
    let forget = |mut seen: std::collections::BTreeMap<PathBuf, crate::backup::Seen>| {
        seen.values_mut().for_each(crate::backup::Seen::forget_owner);
        seen
    };
    same(&forget(walk(&imported)), &forget(files));
    let sparse = fs::metadata(imported.join("media/sparse")).unwrap();
    assert!(sparse.blocks() * 512 < sparse.len() / 2, "{} blocks of {} bytes", sparse.blocks(), sparse.len());
}

fn store_that_loses_bytes_is_found_by_the_next_check(world: &World) {
    shop(world);
    sh(world, "head -c 300000 /dev/urandom > media/a; head -c 30000 /dev/urandom > media/b");
    let store = store(world);
    let news = listen(world);
    let point = take(world);
    assert_eq!(copy(world)["verified"], 1);
    let largest = |packs: &[PathBuf]| packs.iter().max_by_key(|pack| fs::metadata(pack).unwrap().len()).unwrap().clone();
    let in_directory =
        |name: &str| fs::read_dir(store.join("shop/production").join(name)).unwrap().next().unwrap().unwrap().path();
    let damages: [(&str, Damaging); 3] = [
        ("digest", flip),
        ("missing", |pack| fs::remove_file(pack).unwrap()),
        ("bytes", |pack| {
            let file = fs::OpenOptions::new().write(true).open(pack).unwrap();
            file.set_len(fs::metadata(pack).unwrap().len() - 1).unwrap();
        }),
    ];
    let count = if thorough() { 3 } else { 2 };
    for (word, damage) in damages.into_iter().take(count) {
        damage(&largest(&packs(&store)));
        let report = copy(world);
        assert_eq!((&report["damaged"], &report["verified"]), (&Value::from(1), &Value::from(0)), "{word}: {report}");
        assert!(report["defects"].to_string().contains(word), "{word}: {report}");
        world.larder(&["status"]).says("1 copy in ").says("damaged or missing");
        world.larder(&["backup", "list", "shop"]).says("failed: ").keeps_quiet_about("verified,");
        let json = world.larder(&["--json", "backup", "list", "shop"]).json();
        assert_eq!(json["points"][0]["offsite"][0]["state"], "failed", "{json}");
        // The restore point is still here, so the next cycle repairs the store.
        let report = copy(world);
        assert_eq!((&report["damaged"], &report["verified"]), (&Value::from(0), &Value::from(1)), "{word}: {report}");
    }
    // One bit of the list of files has the same effect as a damaged pack.
    flip(&in_directory("index"));
    let report = copy(world);
    assert_eq!((&report["damaged"], &report["verified"]), (&Value::from(1), &Value::from(0)), "{report}");
    assert!(report["defects"].to_string().contains("index/"), "{report}");
    world.larder(&["status"]).says("damaged or missing");
    // The restore point of a damaged snapshot is copied at once. The damage is reported all the same, and the next cycle removes the file.
    let report = copy(world);
    assert_eq!((&report["damaged"], &report["verified"]), (&Value::from(0), &Value::from(1)), "{report}");
    flip(&in_directory("snapshots"));
    let report = copy(world);
    assert!(report["defects"].to_string().contains("snapshots/"), "{report}");
    world.larder(&["status"]).says("the store ").says(" is damaged: snapshots/");
    until("the observers were notified", || announced(&news, "backup_failed") == 1);
    let report = copy(world);
    assert_eq!((&report["defects"], &report["verified"]), (&Value::Array(Vec::new()), &Value::from(1)), "{report}");
    let count = count + 1;
    let log = fs::read_to_string(log_file(world.directory())).unwrap();
    assert!(log.contains("its copy in ") && log.contains(id(&point)), "{log}");
    // The observers are notified of each damage once.
    until("the observers were notified", || announced(&news, "backup_damaged") == count);
    if installed("restic").is_some() {
        restic(world, &store.join("shop/production"), &["check", "--read-data"]).ok();
    }
}

fn lost_repository_is_reported_and_written_again(world: &World) {
    shop(world);
    sh(world, "echo one > media/a");
    let store = store(world);
    let news = listen(world);
    let first = take(world);
    assert_eq!(copy(world)["verified"], 1);
    let second = take(world);
    assert_eq!(copy(world)["verified"], 2);
    // A damaged key makes all copies useless, and is not called a wrong password.
    let repository = store.join("shop/production");
    let key = fs::read_dir(repository.join("keys")).unwrap().next().unwrap().unwrap().path();
    let good = fs::read(&key).unwrap();
    flip(&key);
    let report = copy(world);
    assert_eq!(report["damaged"], 2, "{report}");
    assert!(report["failure"].as_str().unwrap().contains("is damaged"), "{report}");
    world.larder(&["status"]).says("keys/").keeps_quiet_about("another password");
    fs::write(&key, good).unwrap();
    assert_eq!(copy(world)["verified"], 2);
    // The whole repository is gone, and the first restore point is not on this machine any more: its copy is lost.
    world.larder(&["backup", "remove", "shop", id(&first)]).ok();
    fs::remove_dir_all(&repository).unwrap();
    let report = copy(world);
    assert_eq!((&report["damaged"], &report["verified"]), (&Value::from(1), &Value::from(1)), "{report}");
    assert!(report["defects"][0].as_str().unwrap().contains(id(&first)), "{report}");
    assert_eq!(report["retry"], Value::Null, "a repetition cannot bring the copy back: {report}");
    world.larder(&["backup", "list", "shop"]).says("verified");
    until("the observers were notified", || announced(&news, "backup_damaged") == 1 && announced(&news, "backup_failed") == 1);
    // The loss is shown for a week, and announced once.
    assert_eq!(copy(world)["damaged"], 1);
    world.stop();
    let record = world.environment("shop").join("offsite.json");
    let text = fs::read_to_string(&record).unwrap();
    let begin = text.find("\"lost\":\"").unwrap() + 8;
    fs::write(&record, text[..begin].to_owned() + "2025-01-01T00:00:00Z" + &text[begin + text[begin..].find('"').unwrap()..])
        .unwrap();
    world.start(&[]);
    copy(world);
    let report = copy(world);
    assert_eq!((&report["damaged"], &report["defects"]), (&Value::from(0), &Value::Array(Vec::new())), "{report}");
    world.larder(&["backup", "show", "shop", id(&second)]).ok();
    assert_eq!(announced(&news, "backup_damaged"), 1);
}

fn new_machine_restores_from_the_copies_alone(world: &World) {
    shop(world);
    sh(world, POPULATE);
    let store = store(world);
    let before = walk(&data(world));
    let point = take(world);
    assert_eq!(copy(world)["verified"], 1);
    let Some(other) = World::any() else { return };
    // The store is all that is left of the old machine.
    let there = other.directory().join("store");
    Command::new("cp").arg("-a").arg(&store).arg(&there).status().unwrap();
    let owner = fs::metadata(other.root().join("state")).unwrap();
    Command::new("chown").args(["-R", &format!("{}:{}", owner.uid(), owner.gid())]).arg(&there).status().unwrap();
    let password = password_file(&other);
    let from = ["--from", there.to_str().unwrap(), "--password-file", password.to_str().unwrap()];
    let import = |words: &[&str]| other.larder(&[&["backup", "import", "shop"], words, &from].concat());
    shop(&other);
    import(&["--list"]).says(id(&point));
    import(&["latest"]).says("to restore it: ");
    other.larder(&["backup", "list", "shop"]).says("ok (");
    other.larder(&["backup", "restore", "shop", id(&point), "--yes"]).ok();
    // The copy has the record of the seeded files. The start of the release removes this record, because the record names a deployment
    // of the old machine.
    let note = Path::new(".larder-seed");
    assert!(before.contains_key(note) && crate::backup::stored(&other, &before[note].content).is_file());
    let comparable = |mut seen: std::collections::BTreeMap<PathBuf, crate::backup::Seen>| {
        seen.remove(note);
        seen.values_mut().for_each(crate::backup::Seen::forget_owner);
        seen
    };
    same(&comparable(walk(&data(&other))), &comparable(before));
    import(&["latest"]).exits(3);
    fs::write(&password, "wrong\n").unwrap();
    import(&["--list"]).exits(3).says("another password").keeps_quiet_about(PASSWORD);
    fs::set_permissions(&password, fs::Permissions::from_mode(0o644)).unwrap();
    import(&["--list"]).exits(3).says("chmod 600");
    other
        .ssh("alice", &["backup", "import", "shop", "--list", from[0], from[1], from[2], from[3]])
        .exits(3)
        .says("only the command line");
    other.end();
}

fn unreachable_store_delays_nothing_and_is_shown(world: &World) {
    let repo = shop(world);
    sh(world, "echo upload > media/upload");
    let missing = world.directory().join("not-mounted");
    configure(world, missing.to_str().unwrap());
    take(world);
    until("the failure is shown", || world.larder(&["status"]).stdout.contains("next attempt"));
    world.larder(&["backup", "list", "shop"]).says("not-mounted failed: cannot open");
    repo.page("version two");
    repo.push().accepted();
    directory(world, "not-mounted");
    assert_eq!(copy(world)["verified"], 1);
    world.larder(&["status"]).keeps_quiet_about("next attempt");
}

fn kill_during_a_copy_leaves_a_repository_that_restic_reads(world: &World) {
    if installed("restic").is_none() {
        return;
    }
    shop(world);
    sh(world, "for i in $(seq 20); do head -c 400000 /dev/urandom > media/$i; done");
    let store = store(world);
    let repository = store.join("shop/production");
    take(world);
    for _ in 0..if thorough() { 3 } else { 1 } {
        until("the copy writes files", || has_files(&store));
        world.kill9_server();
        if repository.join("config").is_file() {
            restic(world, &repository, &["check"]).ok();
        }
    }
    until("the copy was repeated", || copy(world)["verified"] == 1);
    restic(world, &repository, &["check", "--read-data"]).ok();
}

fn has_files(store: &Path) -> bool {
    store.join("shop/production/keys").is_dir()
}
