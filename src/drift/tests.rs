//! Tests of the comparison, the saving and the application of changes, with plain directories instead of an overlay.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

use super::{Applied, ApplyJob, Drift, DriftPaths, LookJob, LookReport, SavedAs, apply_work, look_work};
use crate::{
    model::{EntryKind, Manifest},
    release::{ChangeKind, WorkerAnswer, bundle, store, tests::head},
};

/// An installed tree, the live tree and the manifest.
struct World {
    _dir: tempfile::TempDir,
    places: DriftPaths,
    manifest: fs::File,
}

fn write(root: &Path, path: &str, content: impl AsRef<[u8]>) {
    fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
    fs::write(root.join(path), content).unwrap();
}

fn text(lines: &[&str]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn release(tree: &Path) {
    write(tree, "app.py", text(&["import os", "", "def main():", "    return 1", "", "", "", "", "# end"]));
    write(tree, "bin/tool", "#!/bin/sh\n");
    fs::set_permissions(tree.join("bin/tool"), fs::Permissions::from_mode(0o755)).unwrap();
    write(tree, "lib/a/one.txt", "one\n");
    write(tree, "lib/a/two.txt", "two\n");
    write(tree, "lib/b.bin", [0, 1, 2, 3]);
    write(tree, "tmp/keep.txt", "released\n");
    write(tree, "media/brought.txt", "data\n");
    symlink("app.py", tree.join("main")).unwrap();
}

fn copy(from: &Path, to: &Path) {
    let options = fs_extra::dir::CopyOptions::new().content_only(true).overwrite(true);
    fs::create_dir_all(to).unwrap();
    fs_extra::dir::copy(from, to, &options).unwrap();
    // `fs_extra` copies the target of a symlink, so the symlink is created again.
    let link = from.join("main");
    if link.is_symlink() {
        fs::remove_file(to.join("main")).unwrap();
        symlink(fs::read_link(link).unwrap(), to.join("main")).unwrap();
    }
}

/// Returns a world without a scratch layer. Without a scratch layer, the whole live tree is compared.
fn world(release: impl Fn(&Path)) -> World {
    let dir = tempfile::tempdir().unwrap();
    let (tree, app) = (dir.path().join("tree"), dir.path().join("app"));
    fs::create_dir(&tree).unwrap();
    release(&tree);
    copy(&tree, &app);
    let (archive, manifest) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let job = bundle::BundleJob { head: head(), previous: false, threads: 1, limit: u64::MAX, secrets: Default::default() };
    let from = bundle::BundlePaths { app: tree.clone(), source: None, upper: None };
    bundle::work(job, &from, &archive, &manifest, None).into_result().unwrap();
    World { places: DriftPaths { app, upper: None, tree }, manifest, _dir: dir }
}

fn look(world: &World, ignore: &[&str]) -> Drift {
    let job = LookJob::Slot {
        data: vec![String::from("media"), String::from("var/data")],
        ignore: ignore.iter().map(|pattern| (*pattern).to_owned()).collect(),
        known: vec![],
        save: false,
    };
    match look_work(&job, &world.places, &world.manifest, None).into_result().unwrap() {
        LookReport::Slot(drift, _) => drift,
        LookReport::Tree(..) => panic!(),
    }
}

struct Saved {
    drift: Drift,
    text: fs::File,
    files: fs::File,
    job: ApplyJob,
}

fn save(world: &World) -> Saved {
    let (text, files) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let job = LookJob::Slot { data: vec![String::from("media")], ignore: vec![], known: vec![], save: true };
    let report = look_work(&job, &world.places, &world.manifest, Some((&text, &files))).into_result().unwrap();
    let LookReport::Slot(drift, archive) = report else { panic!() };
    let job = ApplyJob { changes: drift.changes.clone(), archive };
    Saved { drift, text, files, job }
}

fn apply(saved: &Saved, world: &World) -> Applied {
    apply_work(&saved.job, &world.places, &saved.text, Some(&saved.files)).into_result().unwrap()
}

fn described(drift: &Drift) -> Vec<String> {
    let one = |change: &super::Drifted| {
        let extra = change.noise.as_deref().or(change.odd.as_deref());
        format!("{:?} {}{}", change.change, change.path, extra.map(|extra| format!(" [{extra}]")).unwrap_or_default())
    };
    drift.changes.iter().map(one).collect()
}

fn hotfix(app: &Path) {
    write(app, "app.py", text(&["import os", "", "def main():", "    return 2", "", "", "", "", "# end"]));
    fs::set_permissions(app.join("bin/tool"), fs::Permissions::from_mode(0o644)).unwrap();
    fs::remove_dir_all(app.join("lib/a")).unwrap();
    write(app, "lib/b.bin", [0, 1, 2, 3, 4]);
    write(app, "new/deep/file.txt", "new\n");
    fs::create_dir_all(app.join("empty/inner")).unwrap();
    fs::remove_file(app.join("main")).unwrap();
    symlink("new/deep/file.txt", app.join("main")).unwrap();
}

#[test]
fn look_after_changes_lists_all_changes_and_marks_expected_changes() {
    let world = world(release);
    assert_eq!(described(&look(&world, &[])), Vec::<String>::new());
    let app = &world.places.app;
    hotfix(app);
    fs::remove_dir_all(app.join("media")).unwrap();
    symlink("/data/media", app.join("media")).unwrap();
    fs::create_dir_all(app.join("var")).unwrap();
    symlink("/data/var/data", app.join("var/data")).unwrap();
    write(app, "pkg/__pycache__/x.pyc", "x");
    write(app, "tmp/pids/web.pid", "1");
    write(app, "tmp/keep.txt", "changed by hand\n");
    write(app, "log/production.log", "x");
    write(app, "uploads/x.jpg", "x");
    let _socket = std::os::unix::net::UnixListener::bind(app.join("app.socket")).unwrap();
    let found = look(&world, &["/uploads/"]);
    assert_eq!(
        described(&found),
        [
            "Changed app.py",
            "Added app.socket [a file of a running process]",
            "Changed bin/tool",
            "Added empty/inner",
            "Removed lib/a",
            "Removed lib/a/one.txt",
            "Removed lib/a/two.txt",
            "Changed lib/b.bin",
            "Added log/production.log [a log]",
            "Changed main",
            "Added new/deep/file.txt",
            "Added pkg/__pycache__/x.pyc [Python bytecode]",
            "Changed tmp/keep.txt",
            "Added tmp/pids/web.pid [temporary]",
            "Added uploads/x.jpg [matches drift.ignore]",
        ]
    );
    assert_eq!(found.counts(), (10, 5));
}

#[test]
fn look_with_an_overlay_reads_only_the_scratch_layer() {
    let mut world = world(release);
    hotfix(&world.places.app);
    write(&world.places.app, "lib/b.bin", [9, 9, 9, 9]);
    // The test creates the names that the kernel would create in the scratch layer: changed files, their parents, and a whiteout for a
    // removed entry.
    let upper = world.places.app.with_file_name("upper");
    for path in ["app.py", "new/deep/file.txt", "lib/a"] {
        write(&upper, path, "x");
    }
    world.places.upper = Some(upper);
    assert_eq!(
        described(&look(&world, &[])),
        ["Changed app.py", "Removed lib/a", "Removed lib/a/one.txt", "Removed lib/a/two.txt", "Added new/deep/file.txt"],
        "a change without an entry in the scratch layer is not found"
    );
}

#[test]
fn entries_that_no_release_can_hold_are_listed_and_not_saved() {
    use std::os::unix::ffi::OsStrExt;
    let world = world(release);
    let app = &world.places.app;
    fs::write(app.join(std::ffi::OsStr::from_bytes(b"caf\xe9")), "x").unwrap();
    fs::write(app.join("a\nb"), "x").unwrap();
    symlink("/etc/passwd", app.join("lib/out")).unwrap();
    symlink("..", app.join("lib/up")).unwrap();
    let saved = save(&world);
    let odd: Vec<_> = saved.drift.changes.iter().filter(|change| change.odd.is_some()).collect();
    assert_eq!(odd.len(), 2, "{:?}", described(&saved.drift));
    assert!(odd.iter().all(|change| change.kept == SavedAs::No));
    // A symlink is listed with its target. The file at the target is not read.
    let link = saved.drift.changes.iter().find(|change| change.path == "lib/out").unwrap();
    assert_eq!(link.now, Some(EntryKind::Link { target: String::from("/etc/passwd") }));
    assert_eq!(saved.drift.changes.len(), 4);
}

#[test]
fn patch_applied_to_its_own_release_restores_the_changes() {
    let world = world(release);
    hotfix(&world.places.app);
    let saved = save(&world);
    let text = fs::read_to_string(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&saved.text))).unwrap();
    for part in ["--- a/app.py\n+++ b/app.py\n", "-    return 1\n+    return 2\n", "+++ b/new/deep/file.txt"] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    let fresh = self::world(release);
    let Applied::Done { changed, merged, there } = apply(&saved, &fresh) else { panic!() };
    assert_eq!((changed.len(), merged.len(), there), (9, 0, 0), "{changed:?}");
    assert_eq!(described(&look(&fresh, &[])), described(&saved.drift));
    assert_eq!(fs::read(fresh.places.app.join("lib/b.bin")).unwrap(), [0, 1, 2, 3, 4]);
    // A second application of the patch changes no file.
    let Applied::Done { changed, there, .. } = apply(&saved, &fresh) else { panic!() };
    assert_eq!((changed.len(), there), (0, 9));
}

#[test]
fn diff_of_a_patch_is_applied_by_git() {
    let world = world(release);
    write(&world.places.app, "app.py", "other\n");
    fs::set_permissions(world.places.app.join("app.py"), fs::Permissions::from_mode(0o755)).unwrap();
    write(&world.places.app, "with space.txt", "no newline at the end");
    fs::remove_file(world.places.app.join("lib/a/one.txt")).unwrap();
    let saved = save(&world);
    let patch = world.places.app.with_file_name("patch");
    fs::copy(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&saved.text)), &patch).unwrap();
    assert!(fs::read_to_string(&patch).unwrap().contains("old mode 100644\nnew mode 100755\n"));
    let git = std::process::Command::new("git")
        .arg("apply")
        .arg(&patch)
        .current_dir(&world.places.tree)
        .env("GIT_CEILING_DIRECTORIES", "/")
        .output();
    let Ok(git) = git else { return eprintln!("SKIPPED: git is not installed") };
    assert!(git.status.success(), "{}", String::from_utf8_lossy(&git.stderr));
    for path in ["app.py", "with space.txt"] {
        assert_eq!(fs::read(world.places.tree.join(path)).unwrap(), fs::read(world.places.app.join(path)).unwrap());
    }
    assert_eq!(fs::metadata(world.places.tree.join("app.py")).unwrap().permissions().mode() & 0o777, 0o755);
    assert!(!world.places.tree.join("lib/a/one.txt").exists());
}

#[test]
fn patch_applied_to_another_release_merges_or_conflicts() {
    let hot = world(release);
    hotfix(&hot.places.app);
    let saved = save(&hot);
    // The next release has the fix of the binary file, a different last line in the text file, and a new file in the removed directory.
    let next = world(|tree| {
        release(tree);
        write(tree, "app.py", text(&["import os", "", "def main():", "    return 1", "", "", "", "", "# the end"]));
        write(tree, "lib/b.bin", [0, 1, 2, 3, 4]);
        write(tree, "lib/a/three.txt", "three\n");
    });
    let Applied::Done { merged, there, .. } = apply(&saved, &next) else { panic!() };
    assert_eq!((merged, there), (vec![String::from("app.py")], 1));
    let merged = fs::read_to_string(next.places.app.join("app.py")).unwrap();
    assert!(merged.contains("return 2") && merged.contains("# the end"), "{merged}");
    assert!(next.places.app.join("lib/a/three.txt").exists() && !next.places.app.join("lib/a/one.txt").exists());

    // This release conflicts with the patch. All conflicts are reported, and no change is applied.
    let other = world(|tree| {
        release(tree);
        write(tree, "app.py", text(&["import os", "", "def main():", "    return 3", "", "", "", "", "# end"]));
        write(tree, "lib/b.bin", [7]);
        write(tree, "new", "a file where the patch needs a directory");
        fs::remove_file(tree.join("bin/tool")).unwrap();
        write(tree, "lib/a/one.txt", "another\n");
    });
    let Applied::Conflicts(conflicts) = apply(&saved, &other) else { panic!() };
    let paths: Vec<_> = conflicts.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(paths, ["app.py", "bin/tool", "lib/a/one.txt", "lib/b.bin", "new/deep/file.txt"]);
    assert_eq!(described(&look(&other, &[])), Vec::<String>::new(), "nothing was changed");
}

#[test]
fn patch_with_a_path_outside_the_application_conflicts() {
    let hot = world(release);
    write(&hot.places.app, "lib/new.txt", "mine\n");
    write(&hot.places.app, "lib/new.bin", [0, 1]);
    let saved = save(&hot);
    let outside = tempfile::tempdir().unwrap();
    let trap = world(|tree| {
        release(tree);
        fs::remove_dir_all(tree.join("lib")).unwrap();
    });
    symlink(outside.path(), trap.places.app.join("lib")).unwrap();
    let Applied::Conflicts(conflicts) = apply(&saved, &trap) else { panic!() };
    assert_eq!(conflicts.len(), 2, "{conflicts:?}");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    // A damaged list with a path outside the application is also refused.
    let mut evil = saved.job.clone();
    evil.changes.iter_mut().for_each(|change| change.path = String::from("../out"));
    let trap = world(release);
    let answer = apply_work(&evil, &trap.places, &saved.text, Some(&saved.files));
    assert!(matches!(answer, WorkerAnswer::Done(Applied::Conflicts(_)) | WorkerAnswer::Refused(_)), "{answer:?}");
    assert!(!trap.places.app.with_file_name("out").exists());
}

#[test]
fn changed_installed_tree_differs_from_its_manifest() {
    let world = world(release);
    let tree = |world: &World| match look_work(&LookJob::Tree, &world.places, &world.manifest, None).into_result().unwrap() {
        LookReport::Tree(found, more) => (found, more),
        LookReport::Slot(..) => panic!(),
    };
    let manifest: Manifest = store::parse(&world.manifest, Path::new("m")).unwrap();
    assert!(!manifest.entries.is_empty());
    assert_eq!(tree(&world), (vec![], 0));
    write(&world.places.tree, "app.py", "tampered\n");
    assert_eq!(tree(&world), (vec![(String::from("app.py"), String::from("has other content"))], 0));
    let _ = ChangeKind::Added;
}
