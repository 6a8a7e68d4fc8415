//! Tests of the stores of copies of restore points: a bucket that lies, a server over ssh, a full store, a store of two servers, and other
//! bad stores.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use serde_json::Value;

use crate::{
    backup::{id, sh, shop, take},
    harness::{
        World,
        bucket::{Lie, LyingBucket},
        databases::give_to_larder,
        disk::Disk,
        in_one_mode, installed,
        sshd::Sshd,
        thorough, until,
    },
    offsite::{PASSWORD, announced, configure_with, copy, directory, listen, password_file, restic},
};

in_one_mode!(
    lying_bucket_is_found_within_one_cycle,
    copies_over_ssh_need_a_known_host_key,
    full_store_is_shown_and_used_again_when_space_returns,
    two_servers_that_use_one_repository_lose_no_copy,
    store_with_another_password_or_owner_is_refused,
    no_secret_is_in_a_file_of_the_root,
);

const KEY: &str = "key-of-the-bucket-5e1f";
const SECRET: &str = "secret-of-the-bucket-9c2d";

/// Writes the credentials of the bucket.
fn bucket_settings(world: &World) -> String {
    let file = world.directory().join("bucket.credentials");
    fs::write(&file, format!("AWS_ACCESS_KEY_ID={KEY}\nAWS_SECRET_ACCESS_KEY={SECRET}\nAWS_REGION=us-east-1\n")).unwrap();
    give_to_larder(world, &file);
    format!("credentials_file: {}", file.display())
}

fn lying_bucket_is_found_within_one_cycle(world: &World) {
    shop(world);
    let bucket = LyingBucket::serve();
    // One byte per day: each cycle of this day reads only new packs, after the first one has read one old pack.
    configure_with(world, &bucket.url(), &format!("{}, verify: 1", bucket_settings(world)), "keep: {last: 2}");
    let news = listen(world);
    let mut damages = 0;
    let lies =
        [(Lie::FlipPacks, "digest"), (Lie::DropAll, "missing"), (Lie::CutPacks, "bytes (expected"), (Lie::DropPacks, "missing")];
    let tried = if thorough() { lies.len() } else { 2 };
    for (lie, word) in lies.into_iter().take(tried) {
        bucket.lie(lie);
        sh(world, "head -c 30000 /dev/urandom > media/a");
        let point = take(world);
        let report = copy(world);
        assert!(report["damaged"].as_u64().unwrap() >= 1, "{lie:?}: {report}");
        assert!(report["defects"].to_string().contains(word), "{lie:?}: {report}");
        world.larder(&["status"]).says("in s3+http://").says("damaged or missing");
        let list = world.larder(&["--json", "backup", "list", "shop"]).json();
        assert_eq!(list["points"][0]["offsite"][0]["state"], "failed", "{lie:?}: {list}");
        damages += 1;
        until("the observers were notified", || announced(&news, "backup_damaged") >= damages);
        damages = announced(&news, "backup_damaged");
        // An honest store is repaired by the next cycle.
        bucket.lie(Lie::None);
        let report = copy(world);
        assert_eq!((&report["damaged"], &report["failure"]), (&Value::from(0), &Value::Null), "{lie:?}: {report}");
        let list = world.larder(&["--json", "backup", "list", "shop"]).json();
        assert_eq!(
            (&list["points"][0]["id"], &list["points"][0]["offsite"][0]["state"]),
            (&point["id"], &Value::from("verified")),
            "{list}"
        );
    }
    // The rules of `keep` apply to the copies. Restore points of this machine stay.
    let list = world.larder(&["--json", "backup", "list", "shop"]).json();
    let all: Vec<_> = list["points"].as_array().unwrap().iter().map(|point| point["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(all.len(), tried);
    for old in &all[1..] {
        world.larder(&["backup", "remove", "shop", old]).ok();
    }
    let report = copy(world);
    assert_eq!((&report["copies"], &report["verified"]), (&Value::from(2), &Value::from(2)), "{report}");
    let snapshots = bucket.keys().iter().filter(|key| key.contains("/snapshots/")).count();
    assert_eq!(snapshots, 2);
    // The budget of the day is used up, so nothing is read again.
    copy(world);
    bucket.whole_packs();
    copy(world);
    assert_eq!(bucket.whole_packs(), 0);
    // The copy is whole: it can be imported. A store that does not answer is announced once.
    world.larder(&["backup", "import", "shop", "--list"]).says(&all[1]);
    world.larder(&["backup", "import", "shop", &all[1]]).ok();
    bucket.set_online(false);
    let failed = announced(&news, "backup_failed");
    assert!(copy(world)["failure"].is_string());
    assert!(copy(world)["failure"].is_string());
    until("the observers were notified", || announced(&news, "backup_failed") == failed + 1);
    bucket.set_online(true);
    assert_eq!(copy(world)["failure"], Value::Null);
    assert_eq!(announced(&news, "backup_failed"), failed + 1);
}

fn copies_over_ssh_need_a_known_host_key(world: &World) {
    let Some(sshd) = Sshd::start(world) else { return };
    shop(world);
    sh(world, "head -c 3000000 /dev/urandom > media/a; echo b > media/b");
    let store = directory(world, "store");
    let key = world.directory().join("offsite.key");
    fs::copy(world.private_key("alice"), &key).unwrap();
    give_to_larder(world, &key);
    let url = format!("sftp://root@127.0.0.1:{}/{}", sshd.port, store.display());
    configure_with(world, &url, &format!("credentials_file: {}", key.display()), "keep: {last: 3}");
    let point = take(world);
    let report = copy(world);
    assert!(report["failure"].as_str().unwrap().contains("the host key SHA256:"), "{report}");
    world.larder(&["backup", "import", "shop", "--list"]).exits(3).says("ssh-keyscan");
    assert!(!store.join("shop").exists(), "nothing was sent to an unknown server");
    // The server has two host keys. Only the kind that is not the usual first choice is known.
    let known = world.directory().join("offsite.key.known_hosts");
    let other = fs::read_to_string(world.public_key("alice")).unwrap();
    fs::write(&known, format!("[127.0.0.1]:{} {other}", sshd.port)).unwrap();
    give_to_larder(world, &known);
    assert!(copy(world)["failure"].as_str().unwrap().contains("the host key SHA256:"), "the key of another server is known");
    fs::write(&known, sshd.known_hosts()).unwrap();
    let report = copy(world);
    assert_eq!((&report["verified"], &report["failure"]), (&Value::from(1), &Value::Null), "{report} {}", sshd.log());
    // A second copy, and an import over the same connection.
    sh(world, "echo changed > media/b");
    take(world);
    assert_eq!(copy(world)["verified"], 2);
    world.larder(&["backup", "remove", "shop", id(&point)]).ok();
    world.larder(&["backup", "import", "shop", id(&point)]).ok();
    if installed("restic").is_some() {
        restic(world, &store.join("shop/production"), &["check", "--read-data"]).ok();
    }
    let left = fs::read_dir(store.join("shop/production/data")).unwrap();
    let names = left.flat_map(|entry| fs::read_dir(entry.unwrap().path()).unwrap()).map(|entry| entry.unwrap().file_name());
    assert!(names.into_iter().all(|name| name.len() == 64), "no temporary file stays");
    // The server does not accept another key.
    world.key("mallory");
    fs::copy(world.private_key("mallory"), &key).unwrap();
    give_to_larder(world, &key);
    let report = copy(world);
    assert!(report["failure"].as_str().unwrap().contains("does not accept the private key"), "{report}");
    fs::write(&key, "no key\n").unwrap();
    assert!(copy(world)["failure"].as_str().unwrap().contains("not an unencrypted key"));
}

fn full_store_is_shown_and_used_again_when_space_returns(world: &World) {
    let Some(disk) = Disk::new("ext4", 8) else { return };
    shop(world);
    sh(world, "head -c 6000000 /dev/urandom > media/a");
    let store = disk.path().join("store");
    fs::create_dir(&store).unwrap();
    give_to_larder(world, &store);
    fs::set_permissions(&store, fs::Permissions::from_mode(0o700)).unwrap();
    let filler = disk.path().join("filler");
    fs::write(&filler, vec![1; 3 << 20]).unwrap();
    configure_with(world, store.to_str().unwrap(), "verify: 0", "keep: {last: 3}");
    take(world);
    let report = copy(world);
    assert!(report["failure"].as_str().unwrap().contains("No space left"), "{report}");
    assert_eq!(report["copies"], 0, "{report}");
    world.larder(&["status"]).says("No space left");
    fs::remove_file(&filler).unwrap();
    let report = copy(world);
    assert_eq!((&report["verified"], &report["failure"]), (&Value::from(1), &Value::Null), "{report}");
    if installed("restic").is_some() {
        restic(world, &store.join("shop/production"), &["check", "--read-data"]).ok();
    }
    world.stop();
    world.start(&[]);
}

fn two_servers_that_use_one_repository_lose_no_copy(world: &World) {
    let Some(other) = World::any() else { return };
    let store = directory(world, "store");
    fs::set_permissions(&store, fs::Permissions::from_mode(0o777)).unwrap();
    for (world, text) in [(world, "one"), (&other, "two")] {
        shop(world);
        sh(world, &format!("echo {text} > media/a"));
        configure_with(world, store.to_str().unwrap(), "verify: 0", "keep: {last: 1, daily: 0, weekly: 0, monthly: 0}");
    }
    let users = || fs::read_dir(store.join("shop/production/keys")).map_or(0, |keys| keys.count());
    // Both servers create the repository at the same time. Exactly one of them succeeds, and the other one uses it afterwards.
    let rounds = if thorough() { 5 } else { 1 };
    for _ in 0..rounds {
        std::thread::scope(|scope| {
            for world in [world, &other] {
                scope.spawn(move || take(world));
            }
        });
        // The servers have different users, as two machines that share a store have not.
        let open = |path: &Path| {
            let _ = std::process::Command::new("chmod").args(["-R", "a+rwX"]).arg(path).status();
        };
        until("both servers have copied", || {
            open(&store);
            let done = [world, &other].map(|world| copy(world)["verified"].as_u64().unwrap_or(0));
            open(&store);
            done.iter().all(|count| *count >= 2)
        });
        assert_eq!(users(), 1, "the repository has one key");
    }
    let points = |world: &World| world.larder(&["--json", "backup", "list", "shop"]).json()["points"].as_array().unwrap().clone();
    let all: Vec<_> = [points(world), points(&other)].concat();
    let snapshots = fs::read_dir(store.join("shop/production/snapshots")).unwrap().count();
    assert_eq!(snapshots, all.len(), "neither server has removed a copy of the other");
    assert!(
        [world, &other].iter().any(|world| world.larder(&["status"]).stdout.contains("another server has copied ")),
        "one of the servers sees the other one"
    );
    if installed("restic").is_some() {
        restic(world, &store.join("shop/production"), &["check", "--read-data"]).ok();
    }
    other.end();
}

fn store_with_another_password_or_owner_is_refused(world: &World) {
    shop(world);
    sh(world, "echo one > media/a");
    let store = directory(world, "store");
    configure_with(world, store.to_str().unwrap(), "verify: 0", "keep: {last: 3}");
    let point = take(world);
    assert_eq!(copy(world)["verified"], 1);
    let password = password_file(world);
    fs::write(&password, "another one\n").unwrap();
    assert!(copy(world)["failure"].as_str().unwrap().contains("another password"));
    fs::write(&password, format!("{PASSWORD}\n")).unwrap();
    fs::set_permissions(&password, fs::Permissions::from_mode(0o644)).unwrap();
    let report = copy(world);
    assert!(report["failure"].as_str().unwrap().contains("mode 0644"), "{report}");
    give_to_larder(world, &password);
    assert_eq!(copy(world)["failure"], Value::Null);

    // The repository of another project in the place of this project's repository: its restore points are listed, and not imported.
    world.larder(&["project", "create", "blog", "--mode", "cooking"]).ok();
    let foreign = store.join("blog");
    fs::rename(store.join("shop"), &foreign).unwrap();
    world.larder(&["backup", "import", "blog", "--list"]).says(id(&point));
    world.larder(&["backup", "import", "blog", id(&point)]).exits(3).says("not a restore point of blog/production");
    let list = world.larder(&["--json", "backup", "list", "blog"]).json();
    assert_eq!(list["points"].as_array().unwrap().len(), 0, "{list}");
}

fn no_secret_is_in_a_file_of_the_root(world: &World) {
    shop(world);
    sh(world, "echo one > media/a");
    let bucket = LyingBucket::serve();
    configure_with(world, &bucket.url(), &bucket_settings(world), "keep: {last: 3}");
    let news = listen(world);
    take(world);
    assert_eq!(copy(world)["verified"], 1);
    let mut arguments = String::new();
    bucket.lie(Lie::FlipPacks);
    take(world);
    bucket.set_online(false);
    std::thread::scope(|scope| {
        let copying = scope.spawn(|| copy(world));
        while !copying.is_finished() {
            for process in crate::harness::processes::of(world.directory()) {
                let environment = fs::read(format!("/proc/{}/environ", process.pid)).unwrap_or_default();
                let is_worker = process.arguments.get(1).is_some_and(|role| role == "offsite-worker");
                arguments += &process.arguments.join(" ");
                arguments += &if is_worker { String::from_utf8_lossy(&environment).into_owned() } else { String::new() };
            }
        }
        assert!(copying.join().unwrap()["failure"].is_string());
    });
    assert!(arguments.contains("offsite-worker"), "the worker was seen: {arguments}");
    bucket.set_online(true);
    world.larder(&["backup", "import", "shop", "nothing"]).exits(4);
    world.stop();
    for secret in [PASSWORD, SECRET] {
        assert!(!arguments.contains(secret));
        let found = std::process::Command::new("grep").args(["-rlaF", secret]).arg(world.directory()).output().unwrap();
        let found = String::from_utf8_lossy(&found.stdout).into_owned();
        let kept = |line: &&str| !line.ends_with("/offsite.password") && !line.ends_with("/bucket.credentials");
        assert_eq!(found.lines().filter(kept).collect::<Vec<_>>(), Vec::<&str>::new());
    }
    assert!(news.is_file());
    world.start(&[]);
}
