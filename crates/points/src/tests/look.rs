//! Tests of differences, estimates and usage.

use std::{fs, os::fd::AsFd};

use super::*;
use crate::{ChangeKind, LookOptions, diff, diff_live, estimate, usage};

fn sources() -> Vec<Source> {
    vec![Source::directory("uploads"), Source::directory("later")]
}

fn edited() -> Scene {
    let scene = Scene::new();
    for n in 0..10 {
        scene.write(format!("uploads/{n}"), vec![n; 10_000]);
    }
    fs::hard_link(scene.path("uploads/9"), scene.path("uploads/9-too")).unwrap();
    scene.settle();
    scene.capture("one", &sources(), None).unwrap();
    scene.write("uploads/1", vec![77; 20_000]);
    scene.write("uploads/2", vec![2; 10_000]);
    fs::remove_file(scene.path("uploads/3")).unwrap();
    scene.write("uploads/new/file", "12345");
    scene.write("later/x", "x");
    fs::remove_file(scene.path("uploads/4")).unwrap();
    std::os::unix::fs::symlink("5", scene.path("uploads/4")).unwrap();
    scene
}

const EXPECTED: [(&str, ChangeKind, u64, u64); 9] = [
    ("later", ChangeKind::Added, 0, 0),
    ("later/x", ChangeKind::Added, 0, 1),
    ("uploads", ChangeKind::Metadata, 0, 0),
    ("uploads/1", ChangeKind::Changed, 10_000, 20_000),
    // The file was written again with the same content.
    ("uploads/2", ChangeKind::Metadata, 10_000, 10_000),
    ("uploads/3", ChangeKind::Removed, 10_000, 0),
    ("uploads/4", ChangeKind::Changed, 10_000, 0),
    ("uploads/new", ChangeKind::Added, 0, 0),
    ("uploads/new/file", ChangeKind::Added, 0, 5),
];

#[test]
fn differences_are_named_with_sizes() {
    let scene = edited();
    let base = fs::File::open(&scene.base).unwrap();
    let one = scene.store.point("one").unwrap();
    let live = diff_live(&one, base.as_fd(), &LookOptions::default()).unwrap();
    scene.capture("two", &sources(), Some("one")).unwrap();
    let two = scene.store.point("two").unwrap();
    let between = diff(&one, &two, 1000).unwrap();
    for found in [&live, &between] {
        let changes: Vec<_> = found
            .changes
            .iter()
            .map(|change| (std::str::from_utf8(&change.path).unwrap(), change.kind, change.size_before, change.size_after))
            .collect();
        assert_eq!(changes, EXPECTED);
        assert_eq!((found.added, found.removed, found.changed, found.metadata), (4, 1, 2, 2));
        assert_eq!(found.new_bytes, 20_006);
    }
    assert!(diff(&one, &one, 10).unwrap().is_empty());
    assert!(diff_live(&two, base.as_fd(), &LookOptions::default()).unwrap().is_empty());
    assert_eq!(diff(&one, &two, 2).unwrap().changes.len(), 2);
    let back = diff(&two, &one, 1000).unwrap();
    assert_eq!((back.added, back.removed, back.new_bytes), (1, 4, 30_000));
}

#[test]
fn difference_of_one_source_names_no_other_source() {
    let scene = edited();
    let two: Vec<_> = sources().into_iter().chain([Source::directory("dumps")]).collect();
    scene.write("dumps/main.dump", "dump");
    scene.settle();
    scene.capture("two", &two, Some("one")).unwrap();
    fs::remove_dir_all(scene.path("dumps")).unwrap();
    scene.write("uploads/later", "12345");
    let (base, point) = (fs::File::open(&scene.base).unwrap(), scene.store.point("two").unwrap());
    let all = diff_live(&point, base.as_fd(), &LookOptions::default()).unwrap();
    assert_eq!((all.added, all.removed), (1, 2));
    let only = diff_live(&point, base.as_fd(), &LookOptions { only: Some("uploads"), ..LookOptions::default() }).unwrap();
    assert_eq!((only.added, only.removed, only.changed, only.new_bytes), (1, 0, 0, 5));
}

#[test]
fn estimate_counts_what_a_capture_copies() {
    let scene = edited();
    let base = fs::File::open(&scene.base).unwrap();
    let look = |previous| estimate(base.as_fd(), &sources(), previous, &LookOptions::default()).unwrap();
    let all = look(None);
    assert_eq!((all.entries, all.files, all.copied_files), (15, 11, 11));
    let one = scene.store.point("one").unwrap();
    let more = look(Some(&one));
    assert_eq!((more.entries, more.copied_files), (15, 4), "1, 2, new/file and later/x");
    assert!(more.copied_bytes >= 30_006 && more.copied_bytes < 60_000);
}

#[test]
fn shared_bytes_count_once() {
    let scene = edited();
    scene.capture("two", &sources(), Some("one")).unwrap();
    scene.capture("three", &sources(), Some("two")).unwrap();
    let points: Vec<_> = ["one", "two", "three"].iter().map(|id| scene.store.point(id).unwrap()).collect();
    let used = usage(&points.iter().collect::<Vec<_>>()).unwrap();
    let sum: u64 = used.points.iter().map(|point| point.bytes).sum();
    assert!(used.total < sum && used.total > 100_000, "{used:?}");
    // Only the first restore point has the old contents of the files 1, 3 and 4.
    assert!((30_000..70_000).contains(&used.points[0].unique), "{used:?}");
    assert!(used.points[1].unique < 40_000, "{used:?}");
    assert_eq!(used.bytes_of(&["one", "two", "three"]), used.total);
    assert_eq!(used.bytes_of(&["one"]), used.points[0].bytes);
    assert_eq!(used.total - used.bytes_of(&["two", "three"]), used.points[0].unique);
    assert_eq!(used.bytes_of(&[]), 0);
}
