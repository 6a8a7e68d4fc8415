//! Tests of the workers of releases: listing, bundling, installing and verifying trees, and reading manifests.

use std::{
    fs::File,
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink},
    path::Path,
};

use larder_archive::{ArchiveLimits, ItemKind, tree_digest};
use proptest::prelude::*;

use super::{
    ReleaseError, WorkerAnswer,
    bundle::{self, BundleJob, BundleReport},
    install::{self, ContentSource, UnpackJob, UnpackReport},
    manifest::Head,
    store, tree,
    verify::{self, verify},
    walk::Warnings,
};
use crate::{
    host::files::Confined,
    model::{Digest, Manifest, Mode, ReleaseId, SourceEntry, SourceKind, SourceList},
};

pub(crate) fn head() -> Head {
    let created = jiff::Timestamp::from_second(1_700_000_000).unwrap();
    Head {
        project: "shop".parse().unwrap(),
        environment: "staging".parse().unwrap(),
        release: ReleaseId::new(created),
        commit: "a".repeat(40).parse().unwrap(),
        source: None,
        build: 1,
        tag: None,
        mode: Mode::Cooking,
        buildpacks: vec![],
        processes: vec![],
        created,
    }
}

pub(super) struct Made {
    pub archive: File,
    pub manifest: File,
    pub parsed: Manifest,
    report: BundleReport,
}

fn bundle_at(places: bundle::BundlePaths, previous: Option<&Made>) -> Result<Made, ReleaseError> {
    let (archive, manifest) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let job = BundleJob { head: head(), previous: previous.is_some(), threads: 2, limit: u64::MAX, secrets: Default::default() };
    let before = previous.map(|made| (&made.archive, &made.manifest));
    let report = bundle::work(job, &places, &archive, &manifest, before).into_result()?;
    let parsed = store::parse(&manifest, Path::new("m"))?;
    Ok(Made { archive, manifest, parsed, report })
}

pub(super) fn bundle_dir(dir: &Path, previous: Option<&Made>) -> Result<Made, ReleaseError> {
    bundle_at(bundle::BundlePaths { app: dir.into(), source: None, upper: None }, previous)
}

fn install_at(
    deploy: &Path,
    name: ReleaseId,
    made: &Made,
    previous: Option<(ReleaseId, &Made)>,
) -> Result<UnpackReport, ReleaseError> {
    install_on(deploy, name, made, previous, None)
}

fn install_on(
    deploy: &Path,
    name: ReleaseId,
    made: &Made,
    previous: Option<(ReleaseId, &Made)>,
    spare: Option<Digest>,
) -> Result<UnpackReport, ReleaseError> {
    let job = UnpackJob {
        previous: previous.map(|(id, _)| id),
        content: ContentSource::Archive,
        spare,
        live: None,
        threads: 2,
        limits: ArchiveLimits::default(),
    };
    let places = install::InstallPaths { tree: deploy.join(name.to_string()), deploy: deploy.into() };
    let _ = std::fs::create_dir(&places.tree);
    let before = previous.map(|(_, made)| &made.manifest);
    install::work(&job, &places, &made.archive, &made.manifest, before).into_result()
}

pub(super) fn put(dir: &Path, path: &str, content: &str) {
    let path = dir.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

fn paths(made: &Made) -> Vec<&str> {
    made.parsed.entries.iter().map(|entry| entry.path.as_str()).collect()
}

#[test]
fn installed_tree_equals_bundled_tree() {
    let dir = tempfile::tempdir().unwrap();
    let app = dir.path().join("app");
    put(&app, "a/b/c.txt", "c");
    put(&app, "a-b/x", "");
    put(&app, "bin/run", "#!/bin/sh\n");
    std::fs::set_permissions(app.join("bin/run"), std::fs::Permissions::from_mode(0o770)).unwrap();
    symlink("/usr/bin/env", app.join("bin/env")).unwrap();
    std::fs::create_dir(app.join("empty")).unwrap();
    let made = bundle_dir(&app, None).unwrap();
    assert_eq!(paths(&made), ["a", "a-b", "a-b/x", "a/b", "a/b/c.txt", "bin", "bin/env", "bin/run", "empty"]);
    assert_eq!((made.report.entries, made.report.changed, made.report.tree), (9, 9, tree_digest(&made.parsed.entries)));
    let deploy = dir.path().join("deploy");
    std::fs::create_dir(&deploy).unwrap();
    let id = made.parsed.release;
    let report = install_at(&deploy, id, &made, None).unwrap();
    assert_eq!((report.entries, report.linked, report.unpacked), (9, 0, 3));
    let tree = deploy.join(id.to_string());
    assert_eq!(verify(&tree, &made.parsed).unwrap(), []);
    // The next installation replaces an incomplete tree.
    put(&tree, "half/done", "x");
    std::fs::remove_file(tree.join("a/b/c.txt")).unwrap();
    install_at(&deploy, id, &made, None).unwrap();
    assert_eq!(verify(&tree, &made.parsed).unwrap(), []);
}

#[test]
fn verify_names_every_kind_of_difference() {
    use super::Difference as D;
    let dir = tempfile::tempdir().unwrap();
    let app = dir.path().join("app");
    for path in ["content", "gone", "kind", "mode", "same", "d/x"] {
        put(&app, path, path);
    }
    symlink("same", app.join("link")).unwrap();
    let made = bundle_dir(&app, None).unwrap();
    let id = made.parsed.release;
    install_at(dir.path(), id, &made, None).unwrap();
    let tree = dir.path().join(id.to_string());
    put(&tree, "content", "CONTENT");
    put(&tree, "d/new", "");
    std::fs::remove_file(tree.join("gone")).unwrap();
    std::fs::remove_file(tree.join("kind")).unwrap();
    std::fs::create_dir(tree.join("kind")).unwrap();
    std::fs::set_permissions(tree.join("mode"), std::fs::Permissions::from_mode(0o666)).unwrap();
    std::fs::remove_file(tree.join("link")).unwrap();
    symlink("/etc", tree.join("link")).unwrap();
    let found = verify(&tree, &made.parsed).unwrap();
    let expected = [
        D::Missing("gone".into()),
        D::Extra("d/new".into()),
        D::Kind("kind".into()),
        D::Mode("mode".into()),
        D::Content("content".into()),
        D::Target("link".into()),
    ];
    assert_eq!(found, expected);
    // A directory that became a link is not walked through.
    std::fs::remove_dir_all(tree.join("d")).unwrap();
    symlink("/", tree.join("d")).unwrap();
    let found = verify(&tree, &made.parsed).unwrap();
    assert!(found.contains(&D::Kind("d".into())) && found.contains(&D::Missing("d/x".into())), "{found:?}");
}

#[test]
fn twenty_releases_share_unchanged_files() {
    let dir = tempfile::tempdir().unwrap();
    let (app, deploy) = (dir.path().join("app"), dir.path().join("deploy"));
    std::fs::create_dir(&deploy).unwrap();
    for n in 0..5000 {
        put(&app, &format!("d{}/f{n}", n % 50), &format!("{n}").repeat(300));
    }
    let mut last: Option<(ReleaseId, Made)> = None;
    let mut sizes = Vec::new();
    for round in 0..20 {
        put(&app, "d7/f7", &format!("round {round}"));
        let made = bundle_dir(&app, last.as_ref().map(|(_, made)| made)).unwrap();
        let id = made.parsed.release;
        let report = install_at(&deploy, id, &made, last.as_ref().map(|(id, made)| (*id, made))).unwrap();
        if round > 0 {
            assert_eq!((made.report.changed, report.linked, report.unpacked), (1, 4999, 1));
            assert_eq!(made.report.frames.0 - made.report.frames.1, 1);
        }
        sizes.push(usage(&deploy));
        last = Some((id, made));
    }
    for release in Confined::open(&deploy).unwrap().names().unwrap() {
        let found = verify::compare(&deploy.join(release), &last.as_ref().unwrap().1.parsed.entries, 2, false).unwrap();
        // Only sizes are compared, and only the size of the edited file differs between releases.
        assert!(found.len() <= 1, "{found:?}");
    }
    let each = (sizes[19] - sizes[0]) / 19;
    // Each release has its own directories and its own edited file; all other files are shared.
    assert!(each * 10 < sizes[0], "{each} for each of {}", sizes[0]);
}

/// Returns the disk usage as `du` counts it: blocks, every inode once.
fn usage(dir: &Path) -> u64 {
    let mut seen = std::collections::HashSet::new();
    let entries = walkdir::WalkDir::new(dir).into_iter().map(|entry| entry.unwrap().metadata().unwrap());
    entries.filter(|m| seen.insert(m.ino())).map(|m| m.blocks() * 512).sum()
}

/// The damaged file keeps its size and mode, so that only its digest differs.
#[test]
fn reused_file_with_a_flipped_byte_is_restored_from_the_archive() {
    let dir = tempfile::tempdir().unwrap();
    let (app, deploy) = (dir.path().join("app"), dir.path().join("deploy"));
    std::fs::create_dir(&deploy).unwrap();
    put(&app, "damaged", "some content");
    put(&app, "edited", "one");
    put(&app, "sound", "other content");
    let first = bundle_dir(&app, None).unwrap();
    put(&app, "edited", "two");
    let second = bundle_dir(&app, Some(&first)).unwrap();
    // An installation reports a fingerprint only if `previous` is the release in the manifest, so `one` is the id in the manifest.
    let one = first.parsed.release;
    let [two, spare] = [1, 2].map(|second| ReleaseId::new(jiff::Timestamp::from_second(second).unwrap()));
    install_at(&deploy, one, &first, None).unwrap();
    std::fs::write(deploy.join(one.to_string()).join("damaged"), "some c0ntent").unwrap();

    let report = install_at(&deploy, two, &second, Some((one, &first))).unwrap();
    assert_eq!(std::fs::read(deploy.join(two.to_string()).join("damaged")).unwrap(), b"some content");
    assert_eq!((report.linked, report.unpacked), (1, 2));

    // The worker that makes a spare finds the damage as well. The release that is installed into this spare has no damage.
    let copy = install_at(&deploy, spare, &first, Some((one, &first))).unwrap();
    let report = install_on(&deploy, spare, &second, Some((one, &first)), copy.fingerprint).unwrap();
    assert_eq!(std::fs::read(deploy.join(spare.to_string()).join("damaged")).unwrap(), b"some content");
    assert_eq!((report.linked, report.unpacked), (2, 1));
}

#[test]
fn damaged_previous_tree_is_not_shared() {
    let dir = tempfile::tempdir().unwrap();
    let app = dir.path().join("app");
    for path in ["grown", "gone", "linked", "mode", "same"] {
        put(&app, path, path);
    }
    let made = bundle_dir(&app, None).unwrap();
    let (old, new) = (made.parsed.release, ReleaseId::new(jiff::Timestamp::UNIX_EPOCH));
    install_at(dir.path(), old, &made, None).unwrap();
    let tree = dir.path().join(old.to_string());
    put(&tree, "grown", "grown and grown");
    std::fs::remove_file(tree.join("gone")).unwrap();
    std::fs::remove_file(tree.join("linked")).unwrap();
    symlink("/etc/passwd", tree.join("linked")).unwrap();
    std::fs::set_permissions(tree.join("mode"), std::fs::Permissions::from_mode(0o4755)).unwrap();
    let report = install_at(dir.path(), new, &made, Some((old, &made))).unwrap();
    assert_eq!((report.linked, report.unpacked), (1, 4));
    assert_eq!(verify(&dir.path().join(new.to_string()), &made.parsed).unwrap(), []);
}

#[test]
fn installation_into_a_spare_changes_only_different_files() {
    let dir = tempfile::tempdir().unwrap();
    let (app, deploy) = (dir.path().join("app"), dir.path().join("deploy"));
    std::fs::create_dir(&deploy).unwrap();
    for path in ["edited", "gone/deep/x", "kept/a", "kept/b", "to-dir", "to-file/x", "to-link"] {
        put(&app, path, path);
    }
    symlink("kept", app.join("link")).unwrap();
    symlink("kept", app.join("same-link")).unwrap();
    let old = bundle_dir(&app, None).unwrap();
    let (first, second) = (old.parsed.release, ReleaseId::new(jiff::Timestamp::UNIX_EPOCH));
    install_at(&deploy, first, &old, None).unwrap();
    let spare = install_at(&deploy, second, &old, Some((old.parsed.release, &old))).unwrap();
    assert_eq!((spare.linked, spare.unpacked), (7, 0));
    assert!(spare.fingerprint.is_some());

    put(&app, "edited", "EDITED");
    for path in ["gone", "to-file"] {
        std::fs::remove_dir_all(app.join(path)).unwrap();
    }
    for path in ["to-dir", "to-link", "link"] {
        std::fs::remove_file(app.join(path)).unwrap();
    }
    put(&app, "to-dir/x", "x");
    put(&app, "to-file", "x");
    symlink("kept/a", app.join("to-link")).unwrap();
    symlink("kept/b", app.join("link")).unwrap();
    let new = bundle_dir(&app, Some(&old)).unwrap();
    let report = install_on(&deploy, second, &new, Some((first, &old)), spare.fingerprint).unwrap();
    assert_eq!((report.linked, report.unpacked), (2, 3));
    assert_eq!(report.fingerprint, None);
    let tree = deploy.join(second.to_string());
    assert_eq!(verify(&tree, &new.parsed).unwrap(), []);
    assert_eq!(verify(&deploy.join(first.to_string()), &old.parsed).unwrap(), []);
    // A tree that is no longer a copy of the previous release is cleared before the installation.
    put(&tree, "kept/more", "x");
    let report = install_on(&deploy, second, &new, Some((first, &old)), spare.fingerprint).unwrap();
    assert_eq!((report.linked, report.unpacked), (2, 3));
    assert_eq!(verify(&tree, &new.parsed).unwrap(), []);
}

#[test]
fn damaged_archive_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    put(&dir.path().join("app"), "f", "content");
    let made = bundle_dir(&dir.path().join("app"), None).unwrap();
    made.archive.write_all_at(b"?", 20).unwrap();
    let refused = install_at(dir.path(), made.parsed.release, &made, None).unwrap_err();
    assert!(refused.to_string().contains("frame 0 of the archive is damaged"), "{refused}");
}

#[test]
fn entries_that_no_release_can_hold_are_refused_or_left_out() {
    use std::os::unix::ffi::OsStrExt;
    let refuse = |make: &dyn Fn(&Path)| {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path(), "d/ok", "x");
        make(&dir.path().join("d"));
        bundle_dir(dir.path(), None).map(|made| (made.parsed.entries.len(), made.report.warnings)).map_err(|e| e.to_string())
    };
    let mode =
        |mode: u32| refuse(&move |dir| std::fs::set_permissions(dir.join("ok"), std::fs::Permissions::from_mode(mode)).unwrap());
    assert!(mode(0o4755).unwrap_err().contains("set-user-id"));
    assert!(mode(0o2755).unwrap_err().contains("\"d/ok\""));
    assert!(mode(0o1755).is_ok());
    let name = |name: &[u8]| {
        let name = std::ffi::OsStr::from_bytes(name).to_owned();
        refuse(&move |dir| std::fs::write(dir.join(&name), "").unwrap()).unwrap_err()
    };
    assert!(name(b"a\xff").contains("not UTF-8"));
    assert!(name(b"a\nb").contains("control character"));
    assert!(name(b"a\x1b[2Jb").contains("control character"));
    let target = refuse(&|dir| symlink("a\nb", dir.join("l")).unwrap()).unwrap_err();
    assert!(target.contains("target"), "{target}");
    let node = |kind| move |dir: &Path| rustix::fs::mknodat(rustix::fs::CWD, dir.join("n"), kind, 0o600.into(), 0x103).unwrap();
    let (entries, warnings) = refuse(&node(rustix::fs::FileType::Fifo)).unwrap();
    assert_eq!((entries, warnings.len()), (2, 1));
    assert!(warnings[0].contains("d/n"), "{warnings:?}");
    let (entries, _) = refuse(&|dir| drop(std::os::unix::net::UnixListener::bind(dir.join("s")).unwrap())).unwrap();
    assert_eq!(entries, 2);
    if rustix::process::geteuid().is_root() {
        assert!(refuse(&node(rustix::fs::FileType::CharacterDevice)).unwrap_err().contains("device"));
    } else {
        eprintln!("skipped: device nodes need root");
    }
}

#[test]
fn entries_that_match_larderignore_are_left_out() {
    let dir = tempfile::tempdir().unwrap();
    for path in ["keep", "node_modules/x/y", "src/a.o", "src/b.c"] {
        put(dir.path(), path, path);
    }
    put(dir.path(), ".larderignore", "node_modules\n*.o\n");
    assert_eq!(paths(&bundle_dir(dir.path(), None).unwrap()), [".larderignore", "keep", "src", "src/b.c"]);
    put(dir.path(), ".larderignore", "[z-a]\n");
    assert!(bundle_dir(dir.path(), None).err().unwrap().to_string().starts_with(".larderignore:1: "));
}

/// Returns the list that an export of `dir` would have written.
fn source_list(dir: &Path) -> SourceList {
    let root = Confined::open(dir).unwrap();
    let items = tree::listing(&root, None, None, 2, &mut Warnings::default()).unwrap();
    let entry = |item: larder_archive::Item| SourceEntry {
        kind: match item.kind {
            ItemKind::Dir => SourceKind::Dir,
            ItemKind::File { size, executable, .. } => SourceKind::File {
                size,
                digest: Digest::of(&std::fs::read(dir.join(&item.path)).unwrap()),
                executable,
                blob: vec![],
            },
            ItemKind::Link { target } => SourceKind::Link { target },
        },
        path: item.path,
    };
    SourceList {
        format: SourceList::FORMAT,
        boot: String::new(),
        commit: "a".repeat(40).parse().unwrap(),
        entries: items.into_iter().map(entry).collect(),
    }
}

#[test]
fn build_in_an_overlay_gives_the_same_release_as_a_walk() {
    let dir = tempfile::tempdir().unwrap();
    let [source, lower, upper, work, app] = ["source", "source/tree", "upper", "work", "app"].map(|name| dir.path().join(name));
    for path in [&source, &lower, &upper, &work, &app] {
        std::fs::create_dir(path).unwrap();
    }
    for path in
        ["deleted", "dir-deleted/a", "dir-deleted/b/c", "edited", "file-to-dir", "opaque/old", "opaque/sub/old", "dir-to-file/x"]
    {
        put(&lower, path, path);
    }
    for path in ["kept/a", "kept/deep/b", "kept/deep-er", "mode", "dir-a-b", "dir/x", "mixed/kept", "mixed/gone", "link-target"] {
        put(&lower, path, path);
    }
    symlink("link-target", lower.join("link")).unwrap();
    std::fs::write(source.join("list"), postcard::to_stdvec(&source_list(&lower)).unwrap()).unwrap();
    let options = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    let mounted = std::process::Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(&app).output();
    if !mounted.is_ok_and(|mounted| mounted.status.success()) {
        eprintln!("skipped: no overlay can be mounted here");
        return;
    }
    let _unmount = Unmount(&app);
    std::fs::remove_file(app.join("deleted")).unwrap();
    std::fs::remove_dir_all(app.join("dir-deleted")).unwrap();
    put(&app, "edited", "EDITED");
    std::fs::remove_file(app.join("file-to-dir")).unwrap();
    put(&app, "file-to-dir/now", "x");
    std::fs::remove_dir_all(app.join("opaque")).unwrap();
    put(&app, "opaque/new", "x");
    std::fs::remove_dir_all(app.join("dir-to-file")).unwrap();
    put(&app, "dir-to-file", "x");
    std::fs::set_permissions(app.join("mode"), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::remove_file(app.join("mixed/gone")).unwrap();
    put(&app, "mixed/deep/er/new", "x");
    put(&app, "all/new/tree", "x");
    std::fs::remove_file(app.join("link")).unwrap();
    symlink("kept", app.join("link")).unwrap();

    let walked = bundle_dir(&app, None).unwrap();
    let merged =
        bundle_at(bundle::BundlePaths { app: app.clone(), source: Some(source.clone()), upper: Some(upper.clone()) }, None)
            .unwrap();
    assert_eq!(paths(&walked), paths(&merged));
    assert_eq!(walked.parsed.entries, merged.parsed.entries);
    assert_eq!(walked.parsed.archive, merged.parsed.archive);
    assert!(merged.report.warnings.is_empty(), "{:?}", merged.report.warnings);
    assert!(!paths(&merged).iter().any(|path| path.contains("old") || path.contains("deleted")));
    // The digests of unchanged files are taken from the list. A wrong digest is found when the file is read.
    let mut lying = source_list(&lower);
    for entry in &mut lying.entries {
        if let (SourceKind::File { digest, .. }, "kept/a") = (&mut entry.kind, entry.path.as_str()) {
            *digest = Digest::of(b"lie");
        }
    }
    std::fs::write(source.join("list"), postcard::to_stdvec(&lying).unwrap()).unwrap();
    let places = bundle::BundlePaths { app: app.clone(), source: Some(source.clone()), upper: Some(upper.clone()) };
    assert!(bundle_at(places.clone(), None).err().unwrap().to_string().contains("kept/a"));
    // If the list cannot be read, every file is read, and the release is the same.
    std::fs::write(source.join("list"), b"\xff\xff\xff").unwrap();
    let slow = bundle_at(places, None).unwrap();
    assert_eq!((slow.parsed.tree, slow.report.warnings.len()), (walked.parsed.tree, 1));
}

struct Unmount<'a>(&'a Path);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[test]
fn manifest_with_a_contradiction_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    put(&dir.path().join("app"), "f", "x");
    let made = bundle_dir(&dir.path().join("app"), None).unwrap();
    let with = |change: &dyn Fn(&mut Manifest)| {
        let mut manifest = made.parsed.clone();
        change(&mut manifest);
        store::from_bytes(&serde_json::to_vec(&manifest).unwrap(), Path::new("m")).map_err(|e| e.to_string())
    };
    assert_eq!(with(&|_| {}).unwrap(), made.parsed);
    assert!(with(&|m| m.format = 2).unwrap_err().contains("update larder"));
    assert!(with(&|m| m.format = 0).unwrap_err().ends_with("update larder on the server that wrote it"));
    assert!(with(&|m| m.tree = Digest::of(b"")).unwrap_err().contains("tree digest"));
    assert!(with(&|m| m.entries[0].path = "../f".into()).unwrap_err().contains("cannot accept"));
    assert!(store::from_bytes(b"{\"format\":1}", Path::new("m")).is_err());
    assert!(store::from_bytes(b"", Path::new("m")).is_err());
}

#[test]
fn answer_has_the_whole_chain_of_causes() {
    let e = ReleaseError::Archive { doing: "accept", source: larder_archive::ArchiveError::SeekTable };
    let WorkerAnswer::<()>::Refused(why) = WorkerAnswer::from(Err(e)) else { panic!() };
    assert_eq!(why, "cannot accept the release archive: the archive's seek table differs from its manifest");
}

#[derive(Debug, Clone)]
enum Node {
    Dir(Vec<(String, Node)>),
    File(Vec<u8>, bool),
    Link(String),
}

fn node() -> impl Strategy<Value = Node> {
    let name = "[a-c./ -]{1,3}|[a-zäöü_]{1,120}".prop_map(|name| name.replace('/', "_"));
    let name = name.prop_filter("not a special name", |name| name != "." && name != "..");
    let leaf = prop_oneof![
        (prop::collection::vec(any::<u8>(), 0..2000), any::<bool>()).prop_map(|(content, x)| Node::File(content, x)),
        "[a-z/.]{1,150}".prop_map(Node::Link),
    ];
    leaf.prop_recursive(4, 40, 8, move |inner| prop::collection::vec((name.clone(), inner), 0..8).prop_map(Node::Dir))
}

fn plant(at: &Path, node: &Node) {
    if at.symlink_metadata().is_ok() {
        return;
    }
    match node {
        Node::Dir(children) => {
            std::fs::create_dir(at).unwrap();
            children.iter().for_each(|(name, node)| plant(&at.join(name), node));
        }
        Node::File(content, executable) => {
            std::fs::write(at, content).unwrap();
            let mode = if *executable { 0o755 } else { 0o600 };
            std::fs::set_permissions(at, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        Node::Link(target) => symlink(target, at).unwrap(),
    }
}

/// Returns the number of entries that [`plant`] creates for `node`.
fn entries_of(node: &Node) -> usize {
    let Node::Dir(children) = node else { return 1 };
    let mut names = std::collections::HashSet::new();
    1 + children.iter().filter(|(name, _)| names.insert(name)).map(|(_, child)| entries_of(child)).sum::<usize>()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_installed_tree_equals_bundled_tree(first in node(), second in node()) {
        let dir = tempfile::tempdir().unwrap();
        let wrap = |node: &Node| Node::Dir(vec![("x".into(), node.clone())]);
        plant(&dir.path().join("one"), &wrap(&first));
        plant(&dir.path().join("two"), &wrap(&second));
        let one = bundle_dir(&dir.path().join("one"), None).unwrap();
        let two = bundle_dir(&dir.path().join("two"), Some(&one)).unwrap();
        let alone = bundle_dir(&dir.path().join("two"), None).unwrap();
        prop_assert_eq!(&two.parsed.archive, &alone.parsed.archive);
        let (a, b) = (one.parsed.release, two.parsed.release);
        install_at(dir.path(), a, &one, None).unwrap();
        install_at(dir.path(), b, &two, Some((a, &one))).unwrap();
        prop_assert_eq!(verify(&dir.path().join(a.to_string()), &one.parsed).unwrap(), vec![]);
        let out = dir.path().join(b.to_string());
        prop_assert_eq!(verify(&out, &two.parsed).unwrap(), vec![]);
        // Bundling the installed tree again gives the same tree.
        let again = bundle_dir(&out, None).unwrap();
        prop_assert_eq!(again.parsed.tree, two.parsed.tree);
        // The manifest lists every planted file, link and directory, except the root.
        prop_assert_eq!(two.parsed.entries.len(), entries_of(&wrap(&second)) - 1);
    }
}
