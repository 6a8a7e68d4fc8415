//! Tests with a process that is killed at each step of a capture, a restore or a removal.

use std::{fs, os::unix::process::ExitStatusExt, path::Path};

use super::*;
use crate::{Staged, VerifyOptions};

fn sources() -> Vec<Source> {
    vec![Source::directory("uploads"), Source::directory("more"), Source::file("db")]
}

/// Opens the directory of the live files and the store in `dir`. The parent process uses the same directory and store.
fn opened(dir: &Path) -> (PathBuf, Store) {
    (dir.join("base"), Store::create(&dir.join("store")).unwrap())
}

fn prepared() -> Scene {
    let scene = Scene::new();
    for n in 0..8 {
        scene.write(format!("uploads/{n}/file"), format!("upload {n}"));
        scene.write(format!("more/{n}"), format!("more {n}"));
    }
    scene.write("db", "database");
    scene.write("db-wal", "log");
    scene.settle();
    scene.capture("one", &sources(), None).unwrap();
    scene.write("uploads/1/file", "changed");
    scene.write("more/new", "new");
    scene.write("db", "new database");
    scene.write("db-wal", "new log");
    scene
}

fn directory() -> PathBuf {
    std::env::var_os("POINTS_DIR").expect("the directory of the parent").into()
}

#[test]
#[ignore = "a child of the tests below"]
fn child_captures() {
    let (base, store) = opened(&directory());
    capture(&store, &base, "two", &sources(), Some("one"), &CaptureOptions { threads: 1, ..options() }).unwrap();
}

#[test]
#[ignore = "a child of the tests below"]
fn child_restores() {
    let (base, store) = opened(&directory());
    let base = fs::File::open(base).unwrap();
    let options = RestoreOptions { threads: 1, ..restore_options() };
    store.restore(&store.point("one").unwrap(), base.as_fd(), "ticket", Some("kept"), &options).unwrap();
}

#[test]
#[ignore = "a child of the tests below"]
fn child_restores_beside() {
    let dir = directory();
    let (_, store) = opened(&dir);
    let parent = fs::File::open(dir).unwrap();
    store.point("one").unwrap().restore_into(parent.as_fd(), OsStr::new("into"), &restore_options()).unwrap();
}

#[test]
#[ignore = "a child of the tests below"]
fn child_removes() {
    opened(&directory()).1.remove("one").unwrap();
}

/// Adds a dump to the restore point `one`, from a directory of staged files.
fn attach(dir: &Path, store: &Store) {
    let staged = dir.join("staged");
    fs::create_dir_all(&staged).unwrap();
    let _ = fs::write(staged.join("main.dump"), "dump");
    let staged_dir = fs::File::open(&staged).unwrap();
    let staged = Staged {
        dir: staged_dir.as_fd(),
        replaced: Default::default(),
        hidden: Default::default(),
        source: Some("databases".to_owned()),
        added: vec!["main.dump".to_owned()],
    };
    store.attach("one", &serde_json::json!({"complete": true}), &staged).unwrap();
}

#[test]
#[ignore = "a child of the tests below"]
fn child_attaches() {
    let dir = directory();
    attach(&dir, &opened(&dir).1);
}

/// Runs the ignored test `test` in a new child for each step 1, 2, …, and kills the child at this step. Calls `check` after each child.
/// Ends when a child exits by itself, and returns the number of kills.
fn each_kill(test: &str, check: impl Fn(&Scene)) -> u64 {
    each_kill_of(test, |_| (), check)
}

/// Like [`each_kill`], with a call of `prepare` before each child.
fn each_kill_of(test: &str, prepare: impl Fn(&Scene), check: impl Fn(&Scene)) -> u64 {
    for at in 1.. {
        let scene = prepared();
        prepare(&scene);
        let status =
            child(&format!("tests::kill::{test}"), scene.dir.path()).env("POINTS_KILL_AT", at.to_string()).status().unwrap();
        assert!(status.signal() == Some(9) || status.success(), "{test} at {at}: {status}");
        check(&scene);
        if status.success() {
            return at - 1;
        }
    }
    0
}

#[test]
fn capture_killed_at_each_step_leaves_a_complete_point_or_a_leftover_to_sweep() {
    let kills = each_kill("child_captures", |scene| {
        let live = tree(&scene.base);
        scene.store.sweep().unwrap();
        let ids = scene.store.list().unwrap();
        assert!(ids == ["one"] || ids == ["one", "two"], "{ids:?}");
        if ids.len() == 1 {
            scene.capture("two", &sources(), Some("one")).unwrap();
        }
        for id in ["one", "two"] {
            assert_eq!(scene.store.point(id).unwrap().verify(&VerifyOptions::default()).unwrap().damaged, 0);
        }
        assert_eq!(scene.restored("two"), live);
        assert_eq!(fs::read_dir(scene.store.path()).unwrap().count(), 4, "leftovers in the store");
        scene.has_only_used_contents();
    });
    assert!(kills >= 8, "only {kills} steps");
}

/// Returns the live files of one source.
fn part(base: &Path, source: &str) -> BTreeMap<PathBuf, Node> {
    let mut nodes = tree(base);
    nodes.retain(|path, _| path.starts_with(source));
    nodes
}

#[test]
fn restore_killed_at_each_step_leaves_old_or_restored_sources_and_can_be_repeated() {
    let kills = each_kill("child_restores", |scene| {
        let restored = scene.restored("one");
        let read = |path: &str| fs::read_to_string(scene.path(path)).ok();
        // Each directory is old or restored as a whole. A log (`db-wal`) is never beside a database to which the log does not belong.
        let is_old = read("uploads/1/file").unwrap() == "changed";
        assert!(is_old || part(&scene.base, "uploads").iter().all(|(path, node)| restored.get(path) == Some(node)));
        let pair = (read("db"), read("db-wal"));
        let pair = (pair.0.as_deref(), pair.1.as_deref());
        assert!(
            matches!(pair, (Some("new database"), None | Some("new log")) | (Some("database"), None | Some("log"))),
            "{pair:?}"
        );
        scene.restore("one", "ticket", Some("kept")).unwrap();
        assert_eq!(read("kept/uploads/1/file").as_deref(), Some("changed"));
        assert_eq!(read("kept/more/new").as_deref(), Some("new"));
        assert_eq!((read("kept/db").as_deref(), read("kept/db-wal").as_deref()), (Some("new database"), Some("new log")));
        fs::remove_dir_all(scene.path("kept")).unwrap();
        assert_eq!(tree(&scene.base), restored);
    });
    assert!(kills >= 15, "only {kills} steps");
}

#[test]
fn restore_killed_at_each_step_is_recovered_without_its_caller() {
    each_kill("child_restores", |scene| {
        let old = part(&scene.base, "more");
        let base = fs::File::open(&scene.base).unwrap();
        let finished = scene.store.recover_restores(base.as_fd()).unwrap();
        let is_restored = fs::read_to_string(scene.path("uploads/1/file")).unwrap() == "upload 1";
        assert!(finished.is_empty() || is_restored);
        let is_whole = if is_restored { scene.path("kept/more/new").exists() } else { part(&scene.base, "more") == old };
        assert!(is_whole);
        let names = fs::read_dir(&scene.base).unwrap();
        let rests: Vec<_> = names.filter(|name| name.as_ref().unwrap().file_name().as_bytes().starts_with(b".larder")).collect();
        assert!(rests.is_empty(), "{rests:?}");
        // A restore with a new ticket works after each kill.
        scene.restore("one", "other", None).unwrap();
        assert_eq!(fs::read_to_string(scene.path("db")).unwrap(), "database");
    });
}

#[test]
fn restore_beside_killed_at_each_step_is_all_or_nothing() {
    each_kill("child_restores_beside", |scene| {
        let into = scene.dir.path().join("into");
        if !into.exists() {
            scene.restore_into("one", "into").unwrap();
        }
        assert_eq!(tree(&into), scene.restored("one"));
        assert_eq!(fs::read_dir(scene.dir.path()).unwrap().count(), 3, "leftovers beside the target");
    });
}

/// Adds the restore point "two", which shares contents with "one", to the store.
fn with_second(scene: &Scene) {
    scene.capture("two", &sources(), Some("one")).unwrap();
}

#[test]
fn removal_killed_at_each_step_leaves_a_complete_point_or_none() {
    let kills = each_kill_of("child_removes", with_second, |scene| {
        let ids = scene.store.list().unwrap();
        assert!(ids == ["two"] || ids == ["one", "two"], "{ids:?}");
        for id in ids {
            assert_eq!(scene.store.point(&id).unwrap().verify(&VerifyOptions::default()).unwrap().damaged, 0, "{id}");
        }
        scene.store.sweep().unwrap();
        let rests = scene.store.names().unwrap().into_iter().filter(|name| name.as_bytes().starts_with(b"."));
        assert_eq!(rests.map(|name| name.into_string().unwrap()).collect::<Vec<_>>(), [".contents"]);
        scene.has_only_used_contents();
    });
    assert!(kills >= 6, "only {kills} steps");
}

#[test]
#[ignore = "a child of the test below"]
fn child_sweeps() {
    opened(&directory()).1.sweep().unwrap();
}

/// Leaves the contents of the removed restore point "one", and of a killed capture, to the next sweep.
fn with_leftovers(scene: &Scene) {
    with_second(scene);
    let lock = scene.store.lock().unwrap();
    scene.store.remove("one").unwrap();
    drop(lock);
    fs::create_dir(scene.store.path().join(".new-three")).unwrap();
    let digest = crate::Digest::of(b"placed by a killed capture").to_string();
    fs::write(scene.store.path().join(".contents").join(digest), "placed by").unwrap();
}

#[test]
fn sweep_killed_at_each_step_is_completed_by_the_next_sweep() {
    let kills = each_kill_of("child_sweeps", with_leftovers, |scene| {
        assert_eq!(scene.store.point("two").unwrap().verify(&VerifyOptions::default()).unwrap().damaged, 0);
        scene.store.sweep().unwrap();
        scene.has_only_used_contents();
        assert_eq!(scene.store.list().unwrap(), ["two"]);
        assert_eq!(fs::read_dir(scene.store.path()).unwrap().count(), 3, "leftovers in the store");
    });
    assert!(kills >= 6, "only {kills} steps");
}

/// Turns the restore point "one" into the form of version 1, as in a store of an earlier larder.
fn with_version_1(scene: &Scene) {
    super::shared::turn_into_version_1(scene, "one");
    fs::remove_dir_all(scene.store.path().join(".contents")).unwrap();
}

#[test]
fn capture_after_version_1_killed_at_each_step_keeps_both_points() {
    let kills = each_kill_of("child_captures", with_version_1, |scene| {
        let live = tree(&scene.base);
        scene.store.sweep().unwrap();
        if scene.store.list().unwrap().len() == 1 {
            scene.capture("two", &sources(), Some("one")).unwrap();
        }
        for id in ["one", "two"] {
            assert_eq!(scene.store.point(id).unwrap().verify(&VerifyOptions::default()).unwrap().damaged, 0, "{id}");
        }
        scene.has_only_used_contents();
        scene.store.remove("one").unwrap();
        assert_eq!(scene.restored("two"), live);
    });
    assert!(kills >= 8, "only {kills} steps");
}

#[test]
fn capture_killed_at_random_instants_keeps_earlier_points() {
    let scene = prepared();
    for n in 0..400 {
        scene.write(format!("uploads/many/{n}"), vec![7; 3000]);
    }
    for round in 0..15_u64 {
        let mut process = child("tests::kill::child_captures", scene.dir.path()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(round * 7));
        process.kill().unwrap();
        process.wait().unwrap();
        scene.store.sweep().unwrap();
        if scene.store.list().unwrap().len() == 2 {
            assert_eq!(scene.store.point("two").unwrap().verify(&VerifyOptions::default()).unwrap().damaged, 0);
            assert_eq!(scene.restored("two"), tree(&scene.base));
            scene.store.remove("two").unwrap();
        }
    }
    assert_eq!(scene.store.point("one").unwrap().verify(&VerifyOptions::default()).unwrap().damaged, 0);
}

#[test]
fn attached_file_is_part_of_the_point_and_other_files_stay() {
    let scene = Scene::new();
    scene.write("uploads/a", "a");
    fs::hard_link(scene.path("uploads/a"), scene.path("uploads/z")).unwrap();
    scene.write("more/b", "b");
    scene.write("db", "database");
    scene.capture("one", &sources(), None).unwrap();
    let before = scene.restored("one");
    attach(scene.dir.path(), &scene.store);
    let mut point = scene.store.point("one").unwrap();
    assert_eq!(point.manifest.label["complete"], true);
    assert_eq!(fs::read_to_string(point.content("databases/main.dump").unwrap()).unwrap(), "dump");
    assert_eq!(point.verify(&VerifyOptions::default()).unwrap().damages, []);
    drop(point);
    let mut after = scene.restored("one");
    after.retain(|path, _| !path.starts_with("databases"));
    assert_eq!(after, before);
    scene.store.remove("one").unwrap();
}

#[test]
fn attach_killed_at_each_step_leaves_the_old_or_the_new_point() {
    let kills = each_kill("child_attaches", |scene| {
        scene.store.sweep().unwrap();
        assert_eq!(scene.store.list().unwrap(), ["one"]);
        let mut point = scene.store.point("one").unwrap();
        let is_complete = point.manifest.label["complete"] == true;
        assert_eq!(point.content("databases/main.dump").is_ok(), is_complete);
        assert_eq!(point.verify(&VerifyOptions::default()).unwrap().damages, []);
        drop(point);
        scene.has_only_used_contents();
        attach_again(scene, is_complete);
        scene.has_only_used_contents();
    });
    assert!(kills >= 5, "{kills}");
}

#[test]
fn attach_to_a_point_of_version_1_killed_at_each_step_leaves_the_old_or_the_new_point() {
    let kills = each_kill_of("child_attaches", with_version_1, |scene| {
        scene.store.sweep().unwrap();
        let mut point = scene.store.point("one").unwrap();
        let is_complete = point.manifest.label["complete"] == true;
        assert_eq!(point.manifest.version, if is_complete { 2 } else { 1 });
        assert_eq!(point.verify(&VerifyOptions::default()).unwrap().damages, []);
        drop(point);
        scene.has_only_used_contents();
        attach_again(scene, is_complete);
    });
    assert!(kills >= 5, "{kills}");
}

/// A repetition completes a point that is not complete yet.
fn attach_again(scene: &Scene, is_complete: bool) {
    if !is_complete {
        attach(scene.dir.path(), &scene.store);
        assert!(scene.store.point("one").unwrap().content("databases/main.dump").unwrap().exists());
    }
}
