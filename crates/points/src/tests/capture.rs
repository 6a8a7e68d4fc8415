//! Tests of captures: the files that are kept, shared, refused and reported.

use std::{
    fs::{self, File, Permissions},
    io::{Seek, SeekFrom, Write},
    os::{
        fd::AsFd,
        unix::{
            ffi::OsStrExt,
            fs::{FileExt, MetadataExt, PermissionsExt, symlink},
            net::UnixListener,
        },
    },
    sync::atomic::AtomicBool,
};

use serde_json::json;

use super::*;
use crate::{Kind, LimitKind, PointError, SkipReason, Staged, VerifyOptions};

fn uploads() -> Vec<Source> {
    vec![Source::directory("uploads")]
}

#[test]
fn tree_with_every_kind_of_file_is_restored_exactly() {
    let scene = Scene::new();
    scene.write("uploads/a/b/deep", "deep");
    scene.write("uploads/empty", "");
    scene.write(std::ffi::OsStr::from_bytes(b"uploads/\xff\xfe name"), "not UTF-8");
    scene.write("uploads/e\u{301}", "decomposed");
    scene.write("uploads/\u{e9}", "composed");
    scene.write("uploads/CASE", "upper");
    scene.write("uploads/case", "lower");
    fs::create_dir(scene.path("uploads/empty-dir")).unwrap();
    symlink("/etc/shadow", scene.path("uploads/shadow")).unwrap();
    symlink("nowhere/../..", scene.path("uploads/dangling")).unwrap();
    fs::hard_link(scene.path("uploads/a/b/deep"), scene.path("uploads/A-first")).unwrap();
    fs::hard_link(scene.path("uploads/a/b/deep"), scene.path("uploads/z-last")).unwrap();
    fs::set_permissions(scene.path("uploads/empty"), Permissions::from_mode(0o444)).unwrap();
    fs::set_permissions(scene.path("uploads/a/b"), Permissions::from_mode(0o3770)).unwrap();
    let file = File::open(scene.path("uploads/case")).unwrap();
    let has_xattrs = rustix::fs::fsetxattr(&file, "user.note", b"\0value", rustix::fs::XattrFlags::empty()).is_ok();
    let mut sparse = File::create(scene.path("uploads/sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    sparse.seek(SeekFrom::Start(32 << 20)).unwrap();
    sparse.write_all(b"in the middle").unwrap();
    drop(sparse);
    let old = std::time::UNIX_EPOCH + std::time::Duration::new(86_400, 123_456_789);
    file.set_modified(old).unwrap();

    let before = tree(&scene.base);
    let captured = scene.capture("one", &uploads(), None).unwrap();
    assert!(captured.is_exact() && captured.manifest.totals.hard_links == 2, "{captured:?}");
    assert_eq!(scene.restored("one"), before);
    scene.restore_into("one", "kept").unwrap();
    let restored = fs::metadata(scene.dir.path().join("kept/uploads/sparse")).unwrap();
    assert!(restored.blocks() * 512 < 1 << 20, "the restored file has {} blocks", restored.blocks());
    let stored = fs::metadata(scene.stored("one", "uploads/sparse")).unwrap();
    assert!(stored.blocks() * 512 < 1 << 20 && stored.mode() & 0o7777 == 0o600);
    assert!(has_xattrs, "this file system has no extended attributes: they were not tested");
    // Links are only in the index, so no link can lead a reader of the store to another directory.
    assert!(fs::read_dir(scene.store.path().join(".contents")).unwrap().all(|file| file.unwrap().file_type().unwrap().is_file()));
    let mut names: Vec<_> = fs::read_dir(scene.store.path().join("one")).unwrap().map(|file| file.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["checksums", "index", "point.json"]);
}

#[test]
fn access_lists_and_owners_are_restored() {
    if !is_root() {
        eprintln!("SKIPPED: needs root");
        return;
    }
    let scene = Scene::new();
    scene.write("uploads/d/f", "x");
    std::os::unix::fs::lchown(scene.path("uploads/d/f"), Some(1234), Some(4321)).unwrap();
    symlink("x", scene.path("uploads/d/l")).unwrap();
    std::os::unix::fs::lchown(scene.path("uploads/d/l"), Some(77), Some(88)).unwrap();
    // The access list has version 2, and the entries user::rwx, user:1000:r--, group::r-x, mask::rwx and other::---.
    let entry = |tag: u16, perm: u16, id: u32| [&tag.to_le_bytes()[..], &perm.to_le_bytes(), &id.to_le_bytes()].concat();
    let none = u32::MAX;
    let acl = [
        2_u32.to_le_bytes().to_vec(),
        entry(1, 7, none),
        entry(2, 4, 1000),
        entry(4, 5, none),
        entry(16, 7, none),
        entry(32, 0, none),
    ]
    .concat();
    for (path, name) in [
        ("uploads/d", "system.posix_acl_default"),
        ("uploads/d", "system.posix_acl_access"),
        ("uploads/d/f", "system.posix_acl_access"),
    ] {
        let file = File::open(scene.path(path)).unwrap();
        rustix::fs::fsetxattr(&file, name, &acl, rustix::fs::XattrFlags::empty()).unwrap();
    }
    // One new file inherits the access list of its directory. A second new file has no access list.
    scene.write("uploads/d/inherits", "x");
    scene.write("uploads/plain", "x");
    let before = tree(&scene.base);
    scene.capture("one", &uploads(), None).unwrap();
    assert_eq!(scene.restored("one"), before);
    // The restore must also be exact if new files below the live directory inherit an access list.
    let base = File::open(&scene.base).unwrap();
    rustix::fs::fsetxattr(&base, "system.posix_acl_default", &acl, rustix::fs::XattrFlags::empty()).unwrap();
    scene.restore("one", "ticket", None).unwrap();
    assert_eq!(tree(&scene.base), before);
}

#[test]
fn unchanged_files_are_shared_between_points_and_never_with_live_files() {
    let scene = Scene::new();
    for n in 0..300 {
        scene.write(format!("uploads/{}/{n}", n % 7), format!("content {n}"));
    }
    scene.settle();
    let one = scene.capture("one", &uploads(), None).unwrap();
    assert_eq!((one.manifest.totals.shared_files, one.manifest.totals.files), (0, 300));
    let before = tree(&scene.base);
    scene.write("uploads/3/3", "changed 3");
    fs::set_permissions(scene.path("uploads/4/4"), Permissions::from_mode(0o640)).unwrap();
    fs::remove_file(scene.path("uploads/5/5")).unwrap();
    let two = scene.capture("two", &uploads(), Some("one")).unwrap();
    assert_eq!((two.manifest.totals.shared_files, two.manifest.totals.files), (298, 299));
    assert_eq!(two.manifest.totals.copied_bytes, 9);
    let inode = |path: PathBuf| fs::metadata(path).unwrap().ino();
    let stored = |id: &str, path: &str| inode(scene.stored(id, path));
    assert_eq!(stored("one", "uploads/2/2"), stored("two", "uploads/2/2"));
    assert_eq!(stored("one", "uploads/4/4"), stored("two", "uploads/4/4"), "only the mode changed");
    assert_ne!(stored("one", "uploads/3/3"), stored("two", "uploads/3/3"));
    assert!(fs::metadata(scene.path("uploads/2/2")).unwrap().nlink() == 1);
    assert_eq!(scene.restored("one"), before);
    assert_eq!(scene.restored("two"), tree(&scene.base));
}

#[test]
fn file_rewritten_at_once_with_equal_size_counts_as_changed() {
    let scene = Scene::new();
    for round in 0..20 {
        scene.write("uploads/f", format!("{round:04}"));
        let previous = (round > 0).then(|| format!("p{}", round - 1));
        scene.capture(&format!("p{round}"), &uploads(), previous.as_deref()).unwrap();
    }
    for round in 0..20 {
        let stored = fs::read_to_string(scene.stored(&format!("p{round}"), "uploads/f")).unwrap();
        assert_eq!(stored, format!("{round:04}"));
    }
}

#[test]
fn file_with_side_files_is_one_unit() {
    let scene = Scene::new();
    scene.write("db.sqlite3", "database");
    scene.write("db.sqlite3-wal", "log");
    scene.write("db.sqlite3.bak", "other");
    let sources = [Source::file("db.sqlite3"), Source::directory("absent"), Source::file("none")];
    let captured = scene.capture("one", &sources, None).unwrap();
    assert_eq!(captured.manifest.totals.files, 2);
    let present: Vec<_> = captured.manifest.sources.iter().map(|source| source.is_present).collect();
    assert_eq!(present, [true, false, false]);
    // After the capture, the application writes a new log, a journal, and a directory that was absent.
    scene.write("db.sqlite3", "new database");
    scene.write("db.sqlite3-wal", "new log");
    scene.write("db.sqlite3-journal", "journal");
    scene.write("absent/file", "made later");
    scene.restore("one", "t", Some("replaced")).unwrap();
    let read = |path: &str| fs::read_to_string(scene.path(path)).ok();
    assert_eq!(read("db.sqlite3").as_deref(), Some("database"));
    assert_eq!(read("db.sqlite3-wal").as_deref(), Some("log"));
    assert_eq!(read("db.sqlite3.bak").as_deref(), Some("other"));
    assert_eq!((read("db.sqlite3-journal"), read("absent/file")), (None, None));
    assert_eq!(read("replaced/db.sqlite3-wal").as_deref(), Some("new log"));
    assert_eq!(read("replaced/db.sqlite3-journal").as_deref(), Some("journal"));
    assert_eq!(read("replaced/absent/file").as_deref(), Some("made later"));
    assert_eq!(fs::read_dir(&scene.base).unwrap().count(), 4);
}

#[test]
fn special_files_are_reported_and_do_not_block() {
    let scene = Scene::new();
    scene.write("uploads/f", "x");
    rustix::fs::mknodat(rustix::fs::CWD, scene.path("uploads/fifo"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
        .unwrap();
    let _socket = UnixListener::bind(scene.path("uploads/socket")).unwrap();
    let captured = scene.capture("one", &uploads(), None).unwrap();
    let reasons: Vec<_> = captured.manifest.skipped.iter().map(|skipped| (skipped.path.as_str(), skipped.reason)).collect();
    assert_eq!(reasons, [("uploads/fifo", SkipReason::Fifo), ("uploads/socket", SkipReason::Socket)]);
    assert!(captured.is_exact() && captured.manifest.totals.skipped == 2);
}

#[test]
fn sources_that_are_links_or_of_the_wrong_kind_are_refused() {
    let scene = Scene::new();
    scene.write("real/f", "x");
    symlink("real", scene.path("uploads")).unwrap();
    symlink("real", scene.path("above")).unwrap();
    for source in [Source::directory("uploads"), Source::file("real"), Source::directory("real/f"), Source::directory("above/x")]
    {
        let error = scene.capture("one", std::slice::from_ref(&source), None).unwrap_err();
        assert!(matches!(error, PointError::Source { .. }), "{source:?}: {error}");
    }
    assert!(scene.store.list().unwrap().is_empty() && scene.store.sweep().unwrap().is_empty(), "something was left behind");
}

#[test]
fn exceeded_limit_is_error_with_numbers_and_leaves_no_files() {
    let scene = Scene::new();
    for n in 0..50 {
        scene.write(format!("uploads/{n}"), vec![1; 100]);
    }
    let file = File::open(scene.path("uploads/7")).unwrap();
    rustix::fs::fsetxattr(&file, "user.long", &[7; 500], rustix::fs::XattrFlags::empty()).unwrap();
    let all = limits();
    for (kind, limits, limit) in [
        (LimitKind::Entries, Limits { entries: 50, ..all }, 50),
        (LimitKind::Bytes, Limits { bytes: 4999, ..all }, 4999),
        (LimitKind::PathBytes, Limits { path_bytes: 8, ..all }, 8),
        (LimitKind::XattrBytes, Limits { xattr_bytes: 400, ..all }, 400),
    ] {
        let options = CaptureOptions { limits, ..options() };
        let error = capture(&scene.store, &scene.base, "one", &uploads(), None, &options).unwrap_err();
        let PointError::Limit { what, seen, limit: found, .. } = error else { panic!("{error}") };
        assert!(what == kind && seen > limit && found == limit, "{what}: {seen} {found}");
    }
    let options = CaptureOptions { limits: Limits { free_bytes: 1 << 60, ..all }, clone: false, ..options() };
    let error = capture(&scene.store, &scene.base, "one", &uploads(), None, &options).unwrap_err();
    assert!(matches!(error, PointError::Limit { what: LimitKind::FreeBytes, .. }) && error.is_no_space(), "{error}");
    assert!(scene.store.list().unwrap().is_empty() && scene.store.sweep().unwrap().is_empty(), "something was left behind");
    // The whole size of a sparse file counts for the limit. The limit is checked before the file is read.
    File::create(scene.path("uploads/huge")).unwrap().set_len(1 << 43).unwrap();
    let options = CaptureOptions { limits: Limits { bytes: 1 << 40, ..all }, ..super::options() };
    assert!(capture(&scene.store, &scene.base, "one", &uploads(), None, &options).is_err());
}

#[test]
fn file_that_changes_while_it_is_read_is_marked_torn() {
    let scene = Scene::new();
    scene.write("uploads/busy", vec![0; 48 << 20]);
    scene.write("uploads/calm", "x");
    let (begun, stop) = (std::sync::Barrier::new(2), AtomicBool::new(false));
    let captured = std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = File::options().write(true).open(scene.path("uploads/busy")).unwrap();
            begun.wait();
            for n in 0_u64.. {
                if stop.load(std::sync::atomic::Ordering::Relaxed) {
                    break;
                }
                file.write_all_at(&n.to_le_bytes(), n % (48 << 20)).unwrap();
            }
        });
        begun.wait();
        // The capture makes only one attempt. On a loaded machine, the writer might not run during a retry, so the file would be exact.
        let options = CaptureOptions { clone: false, retries: 0, ..options() };
        let captured = capture(&scene.store, &scene.base, "one", &uploads(), None, &options);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        captured.unwrap()
    });
    assert!(captured.manifest.totals.torn == 1 && !captured.is_exact());
    let entries = scene.store.point("one").unwrap().entries().unwrap();
    let torn: Vec<_> = entries.iter().filter(|entry| matches!(entry.kind, Kind::File { is_torn: true, .. })).collect();
    assert!(torn.len() == 1 && torn[0].path == b"uploads/busy");
    // The stored copy nevertheless has the recorded digest. The next capture reads the live file again, because the copy is torn.
    assert_eq!(scene.store.point("one").unwrap().verify(&VerifyOptions::default()).unwrap().damaged, 0);
    let next = scene.capture("two", &uploads(), Some("one")).unwrap();
    assert!(next.is_exact());
}

#[test]
fn concurrent_capture_and_reused_id_are_refused() {
    let scene = Scene::new();
    scene.write("uploads/f", "x");
    let lock = scene.store.lock().unwrap();
    assert!(matches!(scene.capture("one", &uploads(), None), Err(PointError::Busy { .. })));
    assert!(matches!(scene.store.sweep(), Err(PointError::Busy { .. })));
    drop(lock);
    scene.capture("one", &uploads(), None).unwrap();
    assert!(matches!(scene.capture("one", &uploads(), None), Err(PointError::Exists { .. })));
    for bad in ["", ".x", "a/b", "..", "lock", "a b", "é"] {
        assert!(matches!(scene.capture(bad, &uploads(), None), Err(PointError::BadName { .. })), "{bad:?}");
        assert!(scene.store.point(bad).is_err() && scene.store.remove(bad).is_err(), "{bad:?}");
    }
    assert!(matches!(scene.store.point("none"), Err(PointError::NotFound { .. })));
}

#[test]
fn cancelled_capture_leaves_no_files() {
    let scene = Scene::new();
    scene.write("uploads/f", "x");
    let cancel = AtomicBool::new(true);
    let options = CaptureOptions { cancel: Some(&cancel), ..options() };
    assert!(matches!(capture(&scene.store, &scene.base, "one", &uploads(), None, &options), Err(PointError::Cancelled)));
    assert!(scene.store.names().unwrap().iter().all(|name| name == "lock" || name == ".contents"));
    assert_eq!(scene.contents().len(), 0);
}

#[test]
fn store_that_other_users_can_read_is_refused() {
    let scene = Scene::new();
    fs::set_permissions(scene.store.path(), Permissions::from_mode(0o750)).unwrap();
    assert!(matches!(Store::open(scene.store.path()), Err(PointError::UnsafeStore { .. })));
    fs::set_permissions(scene.store.path(), Permissions::from_mode(0o700)).unwrap();
    symlink(scene.store.path(), scene.dir.path().join("link")).unwrap();
    assert!(Store::open(&scene.dir.path().join("link")).is_err());
}

#[test]
fn open_point_cannot_be_removed_and_removal_keeps_shared_files() {
    let scene = Scene::new();
    scene.write("uploads/f", "x");
    scene.settle();
    scene.capture("one", &uploads(), None).unwrap();
    scene.capture("two", &uploads(), Some("one")).unwrap();
    let point = scene.store.point("one").unwrap();
    assert!(matches!(scene.store.remove("one"), Err(PointError::Busy { .. })));
    drop(point);
    scene.store.remove("one").unwrap();
    assert_eq!(scene.store.list().unwrap(), ["two"]);
    assert_eq!(scene.restored("two"), tree(&scene.base));
    assert!(matches!(scene.store.remove("one"), Err(PointError::NotFound { .. })));
}

#[test]
fn one_changed_bit_is_found_and_recorded() {
    let scene = Scene::new();
    for n in 0..40 {
        scene.write(format!("uploads/{n}"), format!("content {n}").repeat(100));
    }
    scene.settle();
    scene.capture("one", &uploads(), None).unwrap();
    let verify = || scene.store.point("one").and_then(|mut point| point.verify(&VerifyOptions::default()));
    assert!(scene.store.point("one").unwrap().verified.is_none(), "nothing was read back yet");
    let report = verify().unwrap();
    assert!(report.damaged == 0 && report.files == 40);
    assert!(scene.store.point("one").unwrap().is_verified());

    let flip = |path: &str| {
        let path = match path {
            "index" | "point.json" => scene.store.path().join("one").join(path),
            path => scene.stored("one", path),
        };
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        File::options().write(true).open(&path).unwrap().write_all_at(&bytes, 0).unwrap();
    };
    flip("uploads/7");
    let report = verify().unwrap();
    assert_eq!((report.damaged, report.damages[0].path.as_str()), (1, "uploads/7"));
    let point = scene.store.point("one").unwrap();
    assert!(!point.is_verified() && point.verified.unwrap().damaged == 1);
    drop(point);
    assert!(matches!(scene.restore("one", "t", None), Err(PointError::Damaged { .. })));
    assert!(matches!(scene.restore_into("one", "into"), Err(PointError::Damaged { .. })));
    assert_eq!(fs::read_dir(&scene.base).unwrap().count(), 1, "leftovers beside the live files");
    // With `force`, the restore succeeds and reports the damaged file.
    let parent = File::open(scene.dir.path()).unwrap();
    let options = RestoreOptions { force: true, ..restore_options() };
    let report = scene.store.point("one").unwrap().restore_into(parent.as_fd(), OsStr::new("forced"), &options).unwrap();
    assert_eq!(report.damaged, ["uploads/7"]);
    // The damage does not spread to the next restore point, which writes the content again.
    scene.capture("two", &uploads(), Some("one")).unwrap();
    assert_eq!(scene.store.point("two").unwrap().verify(&VerifyOptions::default()).unwrap().damaged, 0);
    assert_eq!(verify().unwrap().damaged, 0, "the new content repairs the older restore point");
    let report = scene.store.point("one").unwrap().restore_into(parent.as_fd(), OsStr::new("repaired"), &restore_options());
    assert_eq!(report.unwrap().files, 40);
    scene.store.remove("two").unwrap();

    flip("index");
    assert_eq!(verify().unwrap().damages[0].path, "index");
    assert!(matches!(scene.restore_into("one", "into"), Err(PointError::Malformed { .. })));
    flip("index");
    assert_eq!(verify().unwrap().damaged, 0);
    flip("point.json");
    assert!(matches!(verify(), Err(PointError::Malformed { .. })));
    flip("point.json");
    fs::remove_file(scene.stored("one", "uploads/9")).unwrap();
    File::options().append(true).open(scene.stored("one", "uploads/8")).unwrap().write_all(b"x").unwrap();
    assert_eq!(verify().unwrap().damaged, 2);
}

#[test]
fn unreadable_file_is_an_error_or_reported() {
    if is_root() {
        eprintln!("SKIPPED: root reads everything");
        return;
    }
    let scene = Scene::new();
    scene.write("uploads/f", "x");
    fs::set_permissions(scene.path("uploads/f"), Permissions::from_mode(0o0)).unwrap();
    assert!(scene.capture("one", &uploads(), None).is_err());
    let options = CaptureOptions { skip_unreadable: true, ..options() };
    let captured = capture(&scene.store, &scene.base, "one", &uploads(), None, &options).unwrap();
    assert!(captured.missed == 1 && captured.manifest.skipped[0].reason == SkipReason::Unreadable);
}

#[test]
fn label_and_totals_are_in_the_manifest() {
    let scene = Scene::new();
    scene.write("uploads/f", "four");
    let captured = scene.capture("one", &uploads(), None).unwrap();
    let point = scene.store.point("one").unwrap();
    assert_eq!(point.manifest, captured.manifest);
    assert_eq!(point.digest, captured.digest);
    assert_eq!(point.manifest.label, json!({"project": "shop"}));
    let totals = point.manifest.totals;
    assert_eq!((totals.entries, totals.directories, totals.files, totals.bytes), (2, 1, 1, 4));
}

#[test]
fn staged_content_replaces_a_live_file_and_adds_a_source() {
    let scene = Scene::new();
    scene.write("data/db", "torn live content");
    scene.write("data/db-wal", "log");
    scene.write("data/other", "other");
    fs::set_permissions(scene.path("data/db"), fs::Permissions::from_mode(0o640)).unwrap();
    let take = |id: &str, content: &str, previous: Option<&str>| {
        let stage = scene.dir.path().join("store/.new-stage");
        fs::create_dir(&stage).unwrap();
        fs::write(stage.join("copy"), content).unwrap();
        fs::write(stage.join("main.dump"), "dump").unwrap();
        let dir = fs::File::open(&stage).unwrap();
        let staged = Staged {
            dir: dir.as_fd(),
            replaced: [("data/db".to_owned(), "copy".to_owned())].into(),
            hidden: ["data/db-wal".to_owned()].into(),
            source: Some("databases".to_owned()),
            added: vec!["main.dump".to_owned()],
        };
        let options = CaptureOptions { staged: Some(staged), ..options() };
        let sources = [Source::directory("data"), Source::directory("databases")];
        let captured = capture(&scene.store, &scene.base, id, &sources, previous, &options);
        fs::remove_dir_all(&stage).unwrap();
        captured.unwrap()
    };
    scene.settle();
    let first = take("first", "consistent", None);
    assert!(first.is_exact() && first.manifest.sources.iter().all(|source| source.is_present), "{first:?}");
    let restored = scene.restored("first");
    let names: Vec<_> = restored.keys().map(|path| path.to_str().unwrap()).collect();
    assert_eq!(names, ["data", "data/db", "data/other", "databases", "databases/main.dump"]);
    assert_eq!(restored[std::path::Path::new("data/db")].mode & 0o7777, 0o640);
    assert_eq!(fs::read_to_string(scene.store.point("first").unwrap().content("data/db").unwrap()).unwrap(), "consistent");
    // The live file is unchanged, but its staged content has changed.
    take("second", "later", Some("first"));
    assert_eq!(fs::read_to_string(scene.store.point("second").unwrap().content("data/db").unwrap()).unwrap(), "later");
    let third = take("third", "later", Some("second"));
    assert_eq!((third.manifest.totals.shared_files, third.manifest.totals.copied_bytes), (3, 0));
    // Without staged content, the live content is captured again.
    let fourth = capture(&scene.store, &scene.base, "fourth", &[Source::directory("data")], Some("third"), &options());
    assert_eq!(fourth.unwrap().manifest.totals.files, 3);
    assert_eq!(
        fs::read_to_string(scene.store.point("fourth").unwrap().content("data/db").unwrap()).unwrap(),
        "torn live content"
    );
    // One source of several can be restored.
    let parent = fs::File::open(scene.dir.path()).unwrap();
    let only = crate::RestoreOptions { only: Some("databases"), ..super::restore_options() };
    scene.store.point("third").unwrap().restore_into(parent.as_fd(), std::ffi::OsStr::new("one"), &only).unwrap();
    assert!(scene.dir.path().join("one/databases/main.dump").is_file() && !scene.dir.path().join("one/data").exists());
    // If a file with staged content does not exist, the capture fails and leaves no files.
    fs::remove_file(scene.path("data/db")).unwrap();
    let stage = scene.dir.path().join("stage");
    fs::create_dir(&stage).unwrap();
    let dir = fs::File::open(&stage).unwrap();
    let (replaced, hidden) = ([("data/db".to_owned(), "copy".to_owned())].into(), Default::default());
    let staged = Staged { dir: dir.as_fd(), replaced, hidden, source: None, added: Vec::new() };
    let options = CaptureOptions { staged: Some(staged), ..options() };
    assert!(capture(&scene.store, &scene.base, "fifth", &[Source::directory("data")], None, &options).is_err());
}

#[test]
fn index_of_few_changes_shares_the_whole_index_of_an_earlier_point() {
    let scene = Scene::new();
    let sources = [Source::directory("uploads")];
    for n in 0..200 {
        scene.write(format!("uploads/{n:03}"), format!("{n}"));
    }
    scene.settle();
    let mut previous = None;
    for round in 0..4 {
        if round > 0 {
            scene.write("uploads/changed", format!("{round}"));
            fs::remove_file(scene.path(format!("uploads/{round:03}"))).unwrap();
            fs::hard_link(scene.path("uploads/100"), scene.path(format!("uploads/link{round}"))).unwrap();
        }
        let id = format!("p{round}");
        scene.capture(&id, &sources, previous.as_deref()).unwrap();
        assert_eq!(scene.restored(&id), tree(&scene.base), "{id}");
        let at = |name: &str| scene.store.path().join(&id).join(name);
        let size = fs::metadata(at("index")).unwrap().len();
        if round > 0 {
            assert!(size < 3000, "{id}: {size} bytes");
            let inode = |path: PathBuf| fs::metadata(path).unwrap().ino();
            assert_eq!(inode(at("base")), inode(scene.store.path().join("p0/index")));
        }
        previous = Some(id);
    }
    // The base stays after the removal of the restore point that wrote the base.
    scene.store.remove("p0").unwrap();
    assert_eq!(scene.store.point("p3").unwrap().verify(&VerifyOptions::default()).unwrap().damaged, 0);
    let base = scene.store.path().join("p3/base");
    let mut bytes = fs::read(&base).unwrap();
    bytes[40] ^= 1;
    fs::write(&base, bytes).unwrap();
    assert!(matches!(scene.store.point("p3").unwrap().entries(), Err(PointError::Malformed { .. })));
    assert_eq!(scene.store.point("p3").unwrap().verify(&VerifyOptions::default()).unwrap().damages[0].path, "index");
    // A capture does not share with a restore point that is known to be damaged.
    scene.capture("p4", &sources, Some("p3")).unwrap();
    assert!(!scene.store.path().join("p4/base").exists());
}
