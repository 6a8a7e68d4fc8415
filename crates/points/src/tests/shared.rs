//! Tests of the contents that restore points share: removal, repair, and restore points of version 1, whose contents are in `files/`.

use std::{
    fs::{self, File},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
};

use super::*;
use crate::{Digest, Kind, LookOptions, PointError, VerifyOptions, diff_live, store::checksum_line, usage};

fn uploads() -> Vec<Source> {
    vec![Source::directory("uploads")]
}

/// Returns a scene with the restore points "one" and "two", which share the contents of 20 files. Each has one content of its own.
fn filled() -> Scene {
    let scene = Scene::new();
    for n in 0..20 {
        scene.write(format!("uploads/{}/{n}", n % 3), format!("content {n}"));
    }
    scene.write("uploads/own", "only of one");
    fs::hard_link(scene.path("uploads/0/0"), scene.path("uploads/link")).unwrap();
    scene.settle();
    scene.capture("one", &uploads(), None).unwrap();
    scene.write("uploads/own", "only of two");
    scene.settle();
    scene.capture("two", &uploads(), Some("one")).unwrap();
    scene
}

/// Turns a restore point into the form that version 1 wrote: a copy of the file `base` aside, only the version and the place of the contents
/// differ.
pub fn turn_into_version_1(scene: &Scene, id: &str) {
    let directory = scene.store.path().join(id);
    let entries = scene.store.point(id).unwrap().entries().unwrap();
    for entry in &entries {
        let path = directory.join("files").join(OsStr::from_bytes(&entry.path));
        match &entry.kind {
            Kind::Directory => fs::create_dir_all(&path).unwrap(),
            Kind::File { digest, .. } => {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::hard_link(scene.store.path().join(".contents").join(digest.to_string()), path).unwrap();
            }
            _ => {}
        }
    }
    let manifest = fs::read_to_string(directory.join("point.json")).unwrap();
    let older = manifest.replacen("\"version\": 2", "\"version\": 1", 1);
    assert_ne!(manifest, older);
    fs::write(directory.join("checksums"), checksum_line(Digest::of(older.as_bytes()))).unwrap();
    fs::write(directory.join("point.json"), older).unwrap();
}

fn is_intact(scene: &Scene, id: &str) {
    let report = scene.store.point(id).unwrap().verify(&VerifyOptions::default()).unwrap();
    assert_eq!(report.damages, [], "{id}");
}

#[test]
fn removal_keeps_the_contents_of_other_points_only() {
    let scene = filled();
    let live = tree(&scene.base);
    let (one, two) = (Digest::of(b"only of one").to_string(), Digest::of(b"only of two").to_string());
    assert_eq!(scene.contents().len(), 22);
    scene.store.remove("one").unwrap();
    assert_eq!(scene.contents().len(), 21);
    assert!(!scene.contents().contains(&one) && scene.contents().contains(&two));
    scene.has_only_used_contents();
    is_intact(&scene, "two");
    assert_eq!(scene.restored("two"), live);
    scene.store.remove("two").unwrap();
    assert_eq!(scene.contents().len(), 0);
}

#[test]
fn removal_beside_an_unreadable_point_removes_no_content() {
    let scene = filled();
    let index = scene.store.path().join("two/index");
    let good = fs::read(&index).unwrap();
    fs::write(&index, b"damaged").unwrap();
    scene.store.remove("one").unwrap();
    assert_eq!(scene.contents().len(), 22, "the contents of two are unknown");
    fs::write(&index, good).unwrap();
    is_intact(&scene, "two");
    // The next removal also removes what the first removal left.
    scene.capture("three", &uploads(), Some("two")).unwrap();
    scene.store.remove("three").unwrap();
    scene.has_only_used_contents();
    assert_eq!(scene.contents().len(), 21);
}

#[test]
fn removal_beside_a_point_of_a_newer_version_removes_no_content() {
    let scene = filled();
    let path = scene.store.path().join("two/point.json");
    let newer = fs::read_to_string(&path).unwrap().replacen("\"version\": 2", "\"version\": 3", 1);
    fs::write(&path, newer).unwrap();
    assert!(matches!(scene.store.point("two"), Err(PointError::Version { found: 3, supported: 2, .. })));
    scene.store.remove("one").unwrap();
    assert_eq!(scene.contents().len(), 22);
}

#[test]
fn removal_during_a_capture_leaves_its_contents_to_the_next_sweep() {
    let scene = filled();
    let lock = scene.store.lock().unwrap();
    scene.store.remove("one").unwrap();
    assert_eq!((scene.store.list().unwrap(), scene.contents().len()), (vec!["two".to_owned()], 22));
    drop(lock);
    assert_eq!(scene.store.sweep().unwrap(), [".old-one"]);
    assert_eq!(scene.contents().len(), 21);
    is_intact(&scene, "two");
}

#[test]
fn moved_copied_and_equal_files_are_stored_once() {
    let scene = filled();
    fs::rename(scene.path("uploads/1"), scene.path("uploads/renamed")).unwrap();
    fs::copy(scene.path("uploads/0/3"), scene.path("uploads/copy")).unwrap();
    scene.write("uploads/twin-a", "twin");
    scene.write("uploads/twin-b", "twin");
    let live = tree(&scene.base);
    let three = scene.capture("three", &uploads(), Some("two")).unwrap();
    assert!(three.manifest.totals.copied_bytes <= 8, "{three:?}");
    assert_eq!(scene.contents().len(), 23);
    is_intact(&scene, "three");
    assert_eq!(scene.restored("three"), live);
}

#[test]
fn missing_content_is_stored_again() {
    let scene = filled();
    fs::remove_file(scene.stored("two", "uploads/1/4")).unwrap();
    let three = scene.capture("three", &uploads(), Some("two")).unwrap();
    assert_eq!((three.manifest.totals.shared_files, three.manifest.totals.copied_bytes), (20, 9));
    is_intact(&scene, "three");
    is_intact(&scene, "one");
}

#[test]
fn content_with_a_wrong_size_is_stored_again() {
    let scene = filled();
    let cut = |path: &str, size| {
        let stored = File::options().write(true).open(scene.stored("two", path)).unwrap();
        stored.set_len(size).unwrap();
    };
    cut("uploads/1/4", 0);
    cut("uploads/2/5", 4);
    cut("uploads/0/6", 4096);
    // The list of the contents shows that this content is missing. The first attempt stores it, and the second attempt shares it.
    fs::remove_file(scene.stored("two", "uploads/1/7")).unwrap();
    let live = tree(&scene.base);
    let three = scene.capture("three", &uploads(), Some("two")).unwrap();
    assert_eq!((three.manifest.totals.shared_files, three.manifest.totals.copied_bytes), (18, 27));
    for id in ["one", "two", "three"] {
        is_intact(&scene, id);
    }
    assert_eq!(scene.restored("three"), live);
    assert_eq!(scene.restored("two"), live);
    scene.has_only_used_contents();
    assert_eq!(scene.store.sweep().unwrap(), Vec::<String>::new());
}

#[test]
fn content_without_a_restore_point_is_not_trusted() {
    let scene = filled();
    // A power failure can leave a content that was not written completely. No index refers to such a content.
    let rest = scene.store.path().join(".contents").join(Digest::of(b"later").to_string());
    fs::write(&rest, b"\0\0\0\0\0").unwrap();
    scene.write("uploads/later", "later");
    let live = tree(&scene.base);
    scene.capture("three", &uploads(), Some("two")).unwrap();
    is_intact(&scene, "three");
    assert_eq!(scene.restored("three"), live);
}

#[test]
fn failed_capture_leaves_no_content() {
    let scene = filled();
    let before = scene.contents();
    scene.write("uploads/new", "new content");
    fs::create_dir(scene.store.path().join("three")).unwrap();
    assert!(matches!(scene.capture("three", &uploads(), Some("two")), Err(PointError::Exists { .. })));
    scene.write("uploads/0/long", "x");
    let options = CaptureOptions { limits: Limits { path_bytes: 12, ..limits() }, ..options() };
    assert!(capture(&scene.store, &scene.base, "four", &uploads(), Some("two"), &options).is_err());
    assert_eq!(scene.contents(), before);
}

#[test]
fn store_of_version_1_is_read_shared_and_removed() {
    // An earlier version of this crate wrote the files in `version1`: restore point "one", and "two" with one more file. The file `sparse`
    // had 100,003 bytes, almost all of them in a hole, and is written here.
    let scene = Scene::new();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/tests/version1");
    let mut sparse = vec![0; 100_000];
    sparse.extend_from_slice(b"end");
    for id in ["one", "two"] {
        copy_tree(&from.join(id), &scene.store.path().join(id));
        fs::write(scene.store.path().join(id).join("files/data/sparse"), &sparse).unwrap();
    }
    for id in ["one", "two"] {
        is_intact(&scene, id);
    }
    let restored = scene.restored("two");
    let content = |path: &str| restored[Path::new(path)].content.as_slice();
    assert_eq!((content("data/a"), content("data/sub/b"), content("data/c")), (&b"first"[..], &b"second"[..], &b"third"[..]));
    assert_eq!((content("data/link"), content("data/sparse")), (&b"nowhere"[..], &sparse[..]));
    assert_eq!(restored[Path::new("data/sub/a-too")].same_as, Path::new("data/a"));
    // The restored files are the live files of the next restore point, which shares the contents of version 1.
    scene.restore("two", "ticket", None).unwrap();
    let live = tree(&scene.base);
    let three = scene.capture("three", &[Source::directory("data")], Some("two")).unwrap();
    assert_eq!((three.manifest.version, three.manifest.totals.shared_files, three.manifest.totals.copied_bytes), (2, 4, 0));
    scene.has_only_used_contents();
    for id in ["one", "two"] {
        scene.store.remove(id).unwrap();
    }
    is_intact(&scene, "three");
    assert_eq!(scene.restored("three"), live);
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &to.join(entry.file_name()));
        } else {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[test]
fn unchanged_files_share_the_contents_of_version_1() {
    let scene = filled();
    turn_into_version_1(&scene, "one");
    turn_into_version_1(&scene, "two");
    fs::remove_dir_all(scene.store.path().join(".contents")).unwrap();
    is_intact(&scene, "two");
    let base = File::open(&scene.base).unwrap();
    let unchanged = diff_live(&scene.store.point("two").unwrap(), base.as_fd(), &LookOptions::default()).unwrap();
    assert!(unchanged.is_empty(), "{unchanged:?}");
    scene.write("uploads/own", "only of three");
    fs::remove_file(scene.store.path().join("two/files/uploads/0/3")).unwrap();
    fs::write(scene.store.path().join("two/files/uploads/0/6"), "cut").unwrap();
    let live = tree(&scene.base);
    let three = scene.capture("three", &uploads(), Some("two")).unwrap();
    assert_eq!(three.manifest.totals.shared_files, 18, "the missing and the damaged content are stored again");
    let inode = |path: PathBuf| fs::metadata(path).unwrap().ino();
    assert_eq!(inode(scene.stored("three", "uploads/1/4")), inode(scene.store.path().join("two/files/uploads/1/4")));
    let points: Vec<_> = ["one", "two", "three"].map(|id| scene.store.point(id).unwrap()).into();
    let used = usage(&points.iter().collect::<Vec<_>>()).unwrap();
    assert!(used.total < used.points.iter().map(|point| point.bytes).sum(), "{used:?}");
    drop(points);
    // The next restore point shares without links.
    let four = scene.capture("four", &uploads(), Some("three")).unwrap();
    assert_eq!(four.manifest.totals.shared_files, 21);
    for id in ["two", "one", "three"] {
        scene.store.remove(id).unwrap();
        scene.has_only_used_contents();
    }
    is_intact(&scene, "four");
    assert_eq!(scene.restored("four"), live);
}
