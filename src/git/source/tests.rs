//! Tests of the export with real commits, including hostile commits.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use super::{tree, *};
use crate::{
    git::{GitFailure, testing::World},
    model::{CommitId, Digest, SourceKind},
};

fn job(commit: &CommitId, export: bool) -> SourceJob {
    SourceJob {
        commit: commit.clone(),
        limits: SourceLimits::default(),
        export,
        fresh: false,
        quarantine: None,
        tags: Vec::new(),
    }
}

fn ready(world: &World, job: &SourceJob) -> CommitSource {
    match perform(&world.paths, job) {
        SourceReport::Ready(source) => *source,
        other => panic!("{other:?}"),
    }
}

fn refused(world: &World, job: &SourceJob) -> SourceRefusal {
    match perform(&world.paths, job) {
        SourceReport::Refused(refusal) => refusal,
        other => panic!("{other:?}"),
    }
}

/// Returns all entries below a directory by path: the mode bits, and the content of a file or the target of a link.
fn snapshot(root: &Path) -> BTreeMap<String, (u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    for entry in walkdir::WalkDir::new(root).min_depth(1) {
        let entry = entry.unwrap();
        let meta = entry.path().symlink_metadata().unwrap();
        let content = if meta.is_symlink() {
            fs::read_link(entry.path()).unwrap().into_os_string().into_encoded_bytes()
        } else if meta.is_dir() {
            Vec::new()
        } else {
            fs::read(entry.path()).unwrap()
        };
        let path = entry.path().strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        found.insert(path, (meta.permissions().mode() & 0o7777, content));
    }
    found
}

/// Asserts that the exported tree has exactly the entries and contents of its list.
fn assert_listed(world: &World, commit: &CommitId) {
    let list = tree::read_list(world.paths.source.as_ref().unwrap()).unwrap();
    assert_eq!(&list.commit, commit);
    let found = snapshot(&world.tree());
    let paths: Vec<&String> = list.entries.iter().map(|entry| &entry.path).collect();
    assert!(paths.is_sorted());
    assert_eq!(paths.len(), found.len(), "{paths:?} {found:?}");
    for entry in &list.entries {
        let (mode, content) = &found[&entry.path];
        match &entry.kind {
            SourceKind::Dir => assert_eq!(*mode, 0o755),
            SourceKind::Link { target } => assert_eq!(target.as_bytes(), content),
            SourceKind::File { size, digest, executable, .. } => {
                assert_eq!(*size, content.len() as u64);
                assert_eq!(*digest, Digest::of(content));
                assert_eq!(*mode, if *executable { 0o755 } else { 0o644 }, "{}", entry.path);
            }
        }
    }
}

#[test]
fn second_export_writes_only_changed_entries() {
    let world = World::new();
    let first = world.commit(&[
        ("a", false, b"1"),
        ("a-b", false, b"2"),
        ("lib/x", true, b"3"),
        ("lib/deep/y", false, b"4"),
        ("old/gone", false, b"5"),
        ("same/z", false, b"6"),
    ]);
    let source = ready(&world, &job(&first, true));
    assert_eq!((source.entries, source.changed, source.bytes), (10, Some(10), 6));
    assert_listed(&world, &first);
    let before = fs::metadata(world.tree().join("same/z")).unwrap().ino();
    // The hard link stands for another tree that shares the file.
    let shared = world.dir.path().join("shared");
    fs::hard_link(world.tree().join("lib/x"), &shared).unwrap();

    let second = world.commit(&[
        ("a/inside", false, b"1"),
        ("a-b", true, b"2"),
        ("lib/x", true, b"33"),
        ("lib/deep/y", false, b"4"),
        ("same/z", false, b"6"),
    ]);
    let source = ready(&world, &job(&second, true));
    // The export removes a, old and old/gone, creates a and a/inside, and replaces a-b and lib/x. A replaced entry counts twice.
    assert_eq!(source.changed, Some(9));
    assert_listed(&world, &second);
    assert_eq!(fs::metadata(world.tree().join("same/z")).unwrap().ino(), before, "the unchanged file was written again");
    assert_eq!(fs::read(shared).unwrap(), b"3", "the file was written in place");

    assert_eq!(ready(&world, &job(&second, true)).changed, Some(0));
    assert_eq!(ready(&world, &job(&first, true)).entries, 10);
    assert_listed(&world, &first);
}

#[test]
fn change_of_one_file_in_a_wide_directory_writes_one_file() {
    let world = World::new();
    let names: Vec<String> = (0..600).map(|number| format!("file{number:04}")).collect();
    let mut files: Vec<(&str, bool, &[u8])> = names.iter().map(|name| (name.as_str(), false, name.as_bytes())).collect();
    let first = world.commit(&files);
    assert_eq!(ready(&world, &job(&first, true)).changed, Some(600));
    assert_listed(&world, &first);
    files[300].2 = b"changed";
    let second = world.commit(&files);
    assert_eq!(ready(&world, &job(&second, true)).changed, Some(2));
    assert_listed(&world, &second);
}

#[test]
fn export_over_an_invalid_list_or_a_changed_tree_starts_from_scratch() {
    let world = World::new();
    let first = world.commit(&[("d/a", false, b"1"), ("b", false, b"2")]);
    let second = world.commit(&[("b", false, b"3")]);
    ready(&world, &job(&first, true));
    let list = world.paths.source.as_ref().unwrap().join("list");
    for spoil in [
        &(|| fs::write(&list, b"nonsense").unwrap()) as &dyn Fn(),
        &|| fs::remove_file(&list).unwrap(),
        &|| fs::write(world.tree().join("d/foreign"), b"x").unwrap(),
        &|| fs::remove_file(world.tree().join("b")).unwrap(),
        &|| {
            fs::remove_dir_all(world.tree()).unwrap();
            std::os::unix::fs::symlink("/etc", world.tree()).unwrap();
        },
    ] {
        ready(&world, &job(&first, true));
        spoil();
        ready(&world, &job(&second, true));
        assert_listed(&world, &second);
    }
    fs::write(world.tree().join("b"), b"changed by another process").unwrap();
    ready(&world, &SourceJob { fresh: true, ..job(&second, true) });
    assert_listed(&world, &second);
    assert!(Path::new("/etc/passwd").exists());
}

#[test]
fn links_are_created_and_never_followed() {
    let world = World::new();
    let outside = world.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let target = world.blob(outside.to_str().unwrap().as_bytes());
    let first = world.commit_tree(&world.tree_object(&[("120000", b"lib", &target)]));
    ready(&world, &job(&first, true));
    assert_listed(&world, &first);
    let second = world.commit(&[("lib/file", false, b"1")]);
    ready(&world, &job(&second, true));
    assert_listed(&world, &second);
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    // An incremental export does not follow a link that replaces a directory. The export starts from scratch.
    let third = world.commit(&[("lib/file", false, b"2")]);
    fs::remove_dir_all(world.tree().join("lib")).unwrap();
    std::os::unix::fs::symlink(&outside, world.tree().join("lib")).unwrap();
    ready(&world, &job(&third, true));
    assert_listed(&world, &third);
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn git_bomb_exceeds_the_entry_limit() {
    let world = World::new();
    let mut id = world.blob(b"boom");
    let mut mode = "100644";
    for _ in 0..10 {
        let names: Vec<Vec<u8>> = (0..10).map(|number| format!("d{number}").into_bytes()).collect();
        let entries: Vec<(&str, &[u8], &str)> = names.iter().map(|name| (mode, name.as_slice(), id.as_str())).collect();
        id = world.tree_object(&entries);
        mode = "40000";
    }
    let bomb = world.commit_tree(&id);
    let refusal = refused(&world, &job(&bomb, true));
    assert!(refusal.to_string().contains("more than 200000 files"), "{refusal}");
    assert!(!world.tree().exists(), "a tree was written");
}

#[test]
fn hostile_tree_is_refused_with_path_and_reason() {
    let world = World::new();
    let (blob, empty) = (world.blob(b"x"), world.blob(b""));
    let long = [b'n'; 256];
    let deep =
        (0..70).fold(blob.clone(), |id, level| world.tree_object(&[(if level == 0 { "100644" } else { "40000" }, b"d", &id)]));
    let zero = world.blob(b"a\0b");
    for (mode, name, id, reason) in [
        ("100644", b"bad\xff".as_slice(), &blob, "not UTF-8"),
        ("100644", b"new\nline", &blob, "control characters"),
        ("100644", b"esc\x1b[2J", &blob, "control characters"),
        ("100644", long.as_slice(), &blob, "more than 255"),
        ("100644", b"..", &blob, "not allowed"),
        ("100644", b".GIT", &blob, "not allowed"),
        ("100644", b"git~1", &blob, "not allowed"),
        ("40000", b"d", &deep, "deeper than 64"),
        ("120000", b"link", &empty, "symbolic link"),
        ("120000", b"link", &zero, "control characters"),
        ("160000", b"vendor", &blob, "submodule"),
    ] {
        let commit = world.commit_tree(&world.tree_object(&[(mode, name, id)]));
        let refusal = refused(&world, &job(&commit, true));
        assert!(refusal.to_string().contains(reason), "{refusal} should say {reason}");
        assert!(!refusal.hint.is_empty() && !refusal.to_string().contains(['\n', '\u{1b}']), "{refusal}");
    }
    let twice = world.commit_tree(&world.tree_object(&[("100644", b"same", &blob), ("100644", b"same", &blob)]));
    assert!(refused(&world, &job(&twice, true)).to_string().contains("exists twice"));
}

#[test]
fn unusual_modes_are_reduced_to_the_executable_bit() {
    let world = World::new();
    let blob = world.blob(b"x");
    let commit = world.commit_tree(&world.tree_object(&[("104755", b"setuid", &blob), ("100664", b"writable", &blob)]));
    ready(&world, &job(&commit, true));
    let found = snapshot(&world.tree());
    assert_eq!((found["setuid"].0, found["writable"].0), (0o755, 0o644));
}

#[test]
fn unchanged_tree_beyond_a_limit_is_refused() {
    let world = World::new();
    let commit = world.commit(&[("a/b", false, b"12345"), ("c", false, b"678")]);
    ready(&world, &job(&commit, true));
    let limits = SourceLimits::default();
    for (limits, reason) in [
        (SourceLimits { entries: 2, ..limits }, "more than 2 files"),
        (SourceLimits { bytes: 7, ..limits }, "more than 7 bytes"),
        (SourceLimits { file_bytes: 4, ..limits }, "has 5 bytes"),
        (SourceLimits { path_bytes: 2, ..limits }, "more than 2 bytes"),
    ] {
        let fresh = refused(&world, &SourceJob { limits, fresh: true, ..job(&commit, true) });
        assert!(fresh.to_string().contains(reason), "{fresh}");
    }
    assert!(refused(&world, &SourceJob { limits: SourceLimits { entries: 2, ..limits }, ..job(&commit, true) }).path.is_none());
    assert_listed(&world, &commit);
}

#[test]
fn source_reports_recipe_scripts_and_warnings() {
    let world = World::new();
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n";
    let commit = world.commit(&[
        ("larder.yml", false, b"web: {}\n"),
        ("Procfile", false, b"web: ./run\n"),
        (".larder/build", true, b"#!/bin/sh\n"),
        (".larder/deploy", false, b"#!/bin/sh\n"),
        (".larder/notes", false, b"-"),
        (".gitattributes", false, b"*.png filter=lfs diff=lfs merge=lfs -text\n"),
        ("public/logo.png", false, pointer),
    ]);
    let source = ready(&world, &job(&commit, false));
    assert_eq!(source.files.larder_yml.as_deref(), Some(b"web: {}\n".as_slice()));
    assert_eq!(source.files.procfile.as_deref(), Some(b"web: ./run\n".as_slice()));
    assert_eq!((source.files.app_json, source.scripts), (None, vec![String::from("build")]));
    assert!(source.warnings.iter().any(|line| line.contains(".larder/deploy is not executable")), "{:?}", source.warnings);
    assert!(source.warnings.iter().any(|line| line.contains("public/logo.png") && line.contains("LFS")), "{:?}", source.warnings);
    assert!(source.root.contains(&String::from("public/")) && source.changed.is_none());
    assert!(!world.tree().exists());

    let link = world.blob(b"/etc/passwd");
    let commit = world.commit_tree(&world.tree_object(&[("120000", b"larder.yml", &link)]));
    assert!(refused(&world, &job(&commit, false)).to_string().contains("not a regular file"));
    let large = world.commit(&[("Procfile", false, &vec![b'x'; 300 * 1024])]);
    assert!(refused(&world, &job(&large, false)).to_string().contains("Procfile has"));
}

#[test]
fn missing_commit_or_invalid_quarantine_fails() {
    let world = World::new();
    let missing = "a".repeat(40).parse().unwrap();
    assert!(matches!(perform(&world.paths, &job(&missing, true)), SourceReport::Failed(GitFailure::NotFound(_))));
    let commit = world.commit(&[("a", false, b"1")]);
    for quarantine in ["..", "pack", "tmp_objdir-incoming-../x"] {
        let job = SourceJob { quarantine: Some(quarantine.into()), ..job(&commit, false) };
        assert!(matches!(perform(&world.paths, &job), SourceReport::Failed(_)), "{quarantine}");
    }
}

#[test]
fn push_from_a_shallow_clone_is_refused_with_a_hint() {
    let world = World::new();
    let name = "tmp_objdir-incoming-Ab12";
    fs::create_dir(world.repository().join("objects").join(name)).unwrap();
    let tree = world.git(&["mktree"], b"");
    let who = "A <a@example.org> 1700000000 +0000";
    let raw = format!("tree {tree}\nparent {}\nauthor {who}\ncommitter {who}\n\nx\n", "a".repeat(40));
    let shallow = world.git(&["hash-object", "-w", "-t", "commit", "--literally", "--stdin"], raw.as_bytes());
    let child = world.git(&["commit-tree", &tree, "-p", &shallow, "-m", "y"], b"").parse().unwrap();
    let pushed = SourceJob { quarantine: Some(name.into()), ..job(&child, false) };
    let refusal = refused(&world, &pushed);
    assert!(refusal.to_string().contains("shallow") && refusal.hint.contains("--unshallow"), "{refusal}");
    let whole = world.commit(&[("a", false, b"1")]);
    ready(&world, &SourceJob { quarantine: Some(name.into()), ..job(&whole, false) });
}

#[test]
fn annotated_tag_on_a_branch_is_refused_with_a_hint() {
    let world = World::new();
    let commit = world.commit(&[("index.html", false, b"one")]);
    let text = format!("object {commit}\ntype commit\ntag v1.0\ntagger a <a@b.invalid> 1700000000 +0000\n\nfirst\n");
    let tag = world.git(&["hash-object", "-w", "-t", "tag", "--stdin"], text.as_bytes()).parse().unwrap();
    let refusal = refused(&world, &job(&tag, true));
    assert!(refusal.to_string().contains("points to the annotated tag v1.0"), "{refusal}");
    assert!(refusal.hint.contains("git push REMOTE 'v1.0^{commit}:BRANCH'"), "{}", refusal.hint);
}
