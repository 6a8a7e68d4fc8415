//! Tests of restores: in place, beside the live files, repeated, and refused.

use std::{
    fs::{self, File},
    os::{fd::AsFd, unix::fs::PermissionsExt},
};

use serde_json::json;

use super::*;
use crate::{PointError, remove_kept};

fn sources() -> Vec<Source> {
    vec![Source::directory("uploads"), Source::directory("storage/app")]
}

fn filled() -> Scene {
    let scene = Scene::new();
    for n in 0..20 {
        scene.write(format!("uploads/{n}"), format!("upload {n}"));
        scene.write(format!("storage/app/{n}/file"), format!("stored {n}"));
    }
    scene.capture("one", &sources(), None).unwrap();
    scene
}

#[test]
fn replaced_files_are_kept_and_files_outside_of_sources_are_untouched() {
    let scene = filled();
    let before = tree(&scene.base);
    scene.write("uploads/new", "made later");
    scene.write("other", "not a source");
    fs::remove_dir_all(scene.path("storage/app/3")).unwrap();
    let replaced = tree(&scene.path("uploads"));
    let report = scene.restore("one", "deploy-7", Some("kept/7")).unwrap();
    assert!(report.files == 40 && !report.was_complete && report.damaged.is_empty());
    assert_eq!(tree(&scene.path("kept/7/uploads")), replaced);
    assert!(!scene.path("kept/7/storage/app/3").exists() && scene.path("kept/7/storage/app/4").exists());
    let base = File::open(&scene.base).unwrap();
    assert!(remove_kept(base.as_fd(), "../base").is_err());
    for _ in 0..2 {
        remove_kept(base.as_fd(), "kept").unwrap();
    }
    fs::remove_file(scene.path("other")).unwrap();
    // A restore does not restore `storage`, the parent directory of a source. The restore has changed the time of this directory.
    let without = |mut tree: BTreeMap<PathBuf, Node>| {
        tree.remove(Path::new("storage"));
        tree
    };
    assert_eq!(without(tree(&scene.base)), without(before));
}

#[test]
fn restore_with_a_finished_ticket_does_nothing() {
    let scene = filled();
    fs::remove_file(scene.path("uploads/1")).unwrap();
    scene.restore("one", "t1", Some("kept")).unwrap();
    scene.write("uploads/after", "written after the restore");
    assert!(scene.restore("one", "t1", Some("kept")).unwrap().was_complete);
    assert!(scene.path("uploads/after").exists());
    // A new ticket starts a new restore, which must not overwrite the kept files.
    assert!(matches!(scene.restore("one", "t2", Some("kept")), Err(PointError::Source { .. })));
    scene.restore("one", "t2", None).unwrap();
    assert!(!scene.path("uploads/after").exists());
    assert!(matches!(scene.restore("one", "t3", Some("uploads/kept")), Err(PointError::Source { .. })));
}

#[test]
fn restore_on_an_empty_machine_creates_the_sources() {
    let scene = filled();
    let before = tree(&scene.path("uploads"));
    fs::remove_dir_all(&scene.base).unwrap();
    fs::create_dir(&scene.base).unwrap();
    scene.restore("one", "t", Some("kept")).unwrap();
    assert_eq!(tree(&scene.path("uploads")), before);
    assert!(!scene.path("kept").exists());
}

#[test]
fn target_beside_live_files_must_be_empty_and_keeps_its_mode() {
    let scene = filled();
    let into = scene.dir.path().join("into");
    fs::create_dir(&into).unwrap();
    fs::write(into.join("mine"), "x").unwrap();
    assert!(matches!(scene.restore_into("one", "into"), Err(PointError::NotEmpty { .. })));
    fs::remove_file(into.join("mine")).unwrap();
    fs::set_permissions(&into, fs::Permissions::from_mode(0o751)).unwrap();
    scene.restore_into("one", "into").unwrap();
    assert_eq!(fs::metadata(&into).unwrap().permissions().mode() & 0o7777, 0o751);
    assert_eq!(tree(&into.join("uploads")), tree(&scene.path("uploads")));
    assert_eq!(fs::read_dir(scene.dir.path()).unwrap().count(), 3);
    std::os::unix::fs::symlink(&scene.base, scene.dir.path().join("link")).unwrap();
    assert!(scene.restore_into("one", "link").is_err());
}

#[test]
fn point_of_another_project_is_refused() {
    let scene = filled();
    let base = File::open(&scene.base).unwrap();
    let point = scene.store.point("one").unwrap();
    let restore = |expect: serde_json::Value| {
        let options = RestoreOptions { expect, ..restore_options() };
        scene.store.restore(&point, base.as_fd(), "t", None, &options)
    };
    for other in [json!({"project": "blog"}), json!({"project": "shop", "environment": "x"}), json!("shop")] {
        assert!(matches!(restore(other), Err(PointError::Label { .. })));
    }
    assert!(restore(json!({"project": "shop"})).is_ok());
}

#[test]
fn set_id_bits_are_restored_only_on_request() {
    let scene = Scene::new();
    scene.write("uploads/tool", "x");
    fs::set_permissions(scene.path("uploads/tool"), fs::Permissions::from_mode(0o4755)).unwrap();
    scene.capture("one", &[Source::directory("uploads")], None).unwrap();
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    scene.restore_into("one", "plain").unwrap();
    assert_eq!(mode(scene.dir.path().join("plain/uploads/tool")), 0o755);
    let parent = File::open(scene.dir.path()).unwrap();
    let options = RestoreOptions { set_ids: true, ..restore_options() };
    scene.store.point("one").unwrap().restore_into(parent.as_fd(), OsStr::new("all"), &options).unwrap();
    assert_eq!(mode(scene.dir.path().join("all/uploads/tool")), 0o4755);
}

#[test]
fn restored_file_is_not_linked_to_the_store() {
    let scene = filled();
    scene.restore("one", "t", None).unwrap();
    fs::write(scene.path("uploads/1"), "overwritten").unwrap();
    assert_eq!(fs::read_to_string(scene.stored("one", "uploads/1")).unwrap(), "upload 1");
}

#[test]
fn tree_deeper_than_any_path_is_removed() {
    let scene = filled();
    // The path of 3,000 nested directories with names of 3 bytes is longer than a path that the kernel resolves at once.
    let mut dir = File::open(scene.path("uploads")).unwrap();
    for _ in 0..3000 {
        crate::sys::create_dir(dir.as_fd(), OsStr::new("dir")).unwrap();
        dir = crate::sys::open_dir(dir.as_fd(), b"dir", false).unwrap().into();
    }
    crate::sys::create_file(dir.as_fd(), OsStr::new("file")).unwrap();
    assert!(matches!(scene.capture("deep", &sources(), None), Err(PointError::Limit { what: crate::LimitKind::PathBytes, .. })));
    scene.restore("one", "t", None).unwrap();
    assert_eq!(fs::read_dir(scene.path("uploads")).unwrap().count(), 20);
}
