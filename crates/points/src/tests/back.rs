//! Tests of the return of live files in place.

use std::{
    fs::{self, File},
    os::{
        fd::AsFd,
        unix::fs::{MetadataExt, PermissionsExt, symlink},
    },
};

use super::*;

fn sources() -> Vec<Source> {
    vec![Source::directory("data")]
}

fn put_back(scene: &Scene, id: &str) -> Result<RestoreReport> {
    let base = File::open(&scene.base).unwrap();
    let options = RestoreOptions { only: Some("data"), threads: 1, ..restore_options() };
    scene.store.point(id)?.put_back(base.as_fd(), &options)
}

pub fn filled() -> Scene {
    let scene = Scene::new();
    for n in 0..30 {
        scene.write(format!("data/{}/{n}", n % 5), format!("content {n}"));
    }
    fs::hard_link(scene.path("data/0/0"), scene.path("data/4/link")).unwrap();
    symlink("nowhere", scene.path("data/1/symlink")).unwrap();
    fs::create_dir(scene.path("data/empty")).unwrap();
    scene.settle();
    scene.capture("one", &sources(), None).unwrap();
    scene
}

/// Changes entries of each kind in each way.
pub fn damage(scene: &Scene) {
    let path = |path: &str| scene.path(format!("data/{path}"));
    fs::write(path("0/0"), "changed through one of two names").unwrap();
    fs::write(path("1/1"), "CONTENT 1").unwrap();
    fs::remove_dir_all(path("2")).unwrap();
    fs::write(path("2"), "a file in place of a directory").unwrap();
    fs::remove_file(path("3/3")).unwrap();
    fs::create_dir_all(path("3/3/deep/er")).unwrap();
    fs::write(path("3/3/deep/er/file"), "new").unwrap();
    fs::set_permissions(path("3/8"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::remove_file(path("1/symlink")).unwrap();
    symlink("elsewhere", path("1/symlink")).unwrap();
    fs::remove_file(path("4/9")).unwrap();
    fs::hard_link(path("4/4"), path("4/9")).unwrap();
    fs::rename(path("4/14"), path("4/renamed")).unwrap();
    fs::remove_dir(path("empty")).unwrap();
    fs::set_permissions(path("4"), fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn put_back_restores_every_kind_of_change() {
    let scene = filled();
    let before = tree(&scene.base);
    damage(&scene);
    let untouched = fs::metadata(scene.path("data/0/5")).unwrap();
    let report = put_back(&scene, "one").unwrap();
    assert_eq!(tree(&scene.base), before);
    assert!(report.files < 15, "only the changed files are written: {}", report.files);
    let now = fs::metadata(scene.path("data/0/5")).unwrap();
    assert_eq!((now.ino(), now.ctime_nsec()), (untouched.ino(), untouched.ctime_nsec()), "an unchanged file is not touched");
    let (first, link) = (fs::metadata(scene.path("data/0/0")).unwrap(), fs::metadata(scene.path("data/4/link")).unwrap());
    assert_eq!((first.ino(), first.nlink()), (link.ino(), 2));
    assert_eq!(put_back(&scene, "one").unwrap().files, 0, "nothing is left to write");
    assert_eq!(tree(&scene.base), before);
}

#[test]
fn put_back_of_a_damaged_point_changes_nothing() {
    let scene = filled();
    scene.write("data/1/1", "changed");
    let files = |scene: &Scene| {
        let mut nodes = tree(&scene.base);
        nodes.remove(Path::new("data"));
        nodes
    };
    let changed = files(&scene);
    fs::write(scene.stored("one", "data/1/1"), "damaged 1").unwrap();
    assert!(matches!(put_back(&scene, "one"), Err(crate::PointError::Damaged { .. })));
    assert_eq!(files(&scene), changed);
}

#[test]
#[ignore = "a child of the test below"]
fn child_puts_back() {
    let dir = PathBuf::from(std::env::var_os("POINTS_DIR").unwrap());
    let base = File::open(dir.join("base")).unwrap();
    let store = Store::create(&dir.join("store")).unwrap();
    let options = RestoreOptions { only: Some("data"), threads: 1, ..restore_options() };
    store.point("one").unwrap().put_back(base.as_fd(), &options).unwrap();
}

#[test]
fn put_back_killed_at_each_step_is_completed_by_the_next_call() {
    let mut kills = 0;
    for at in 1.. {
        let scene = filled();
        let before = tree(&scene.base);
        damage(&scene);
        let mut child = child("tests::back::child_puts_back", scene.dir.path());
        let status = child.env("POINTS_KILL_AT", at.to_string()).status().unwrap();
        put_back(&scene, "one").unwrap();
        assert_eq!(tree(&scene.base), before, "killed at step {at}");
        if status.success() {
            break;
        }
        kills = at;
    }
    assert!(kills >= 10, "only {kills} steps");
}

#[test]
#[ignore = "a child of the test below"]
fn child_clones() {
    let scene = Scene::at(tempfile::tempdir_in(std::env::var_os("POINTS_DIR").unwrap()).unwrap());
    let used = || {
        rustix::fs::sync();
        let stat = rustix::fs::statvfs(scene.dir.path()).unwrap();
        (stat.f_blocks - stat.f_bfree) * stat.f_frsize
    };
    scene.write("data/large", vec![7; 24 << 20]);
    scene.settle();
    let before = used();
    scene.capture("one", &sources(), None).unwrap();
    let live = tree(&scene.base);
    fs::write(scene.path("data/large"), "changed").unwrap();
    assert_eq!(put_back(&scene, "one").unwrap().bytes, 24 << 20);
    assert_eq!(tree(&scene.base), live);
    scene.restore_into("one", "beside").unwrap();
    let grown = used().saturating_sub(before);
    assert!(grown < 12 << 20, "the copies use {grown} bytes");
}

#[test]
fn capture_and_restore_clone_files_on_xfs_and_btrfs() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: this test mounts file systems, which needs root");
        return;
    }
    for kind in ["xfs", "btrfs"] {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        File::create(&image).unwrap().set_len(400 << 20).unwrap();
        let made = std::process::Command::new(format!("mkfs.{kind}")).arg("-q").arg(&image).status();
        if !made.is_ok_and(|status| status.success()) {
            eprintln!("SKIPPED: mkfs.{kind} is not installed");
            continue;
        }
        let place = dir.path().join("place");
        fs::create_dir(&place).unwrap();
        let script = "mount -o loop \"$0\" \"$POINTS_DIR\" || exit 77; chmod 700 \"$POINTS_DIR\"; \"$@\"; status=$?; umount \"$POINTS_DIR\"; exit $status";
        let child = child("tests::back::child_clones", &place);
        let status = std::process::Command::new("unshare")
            .args(["--mount", "sh", "-c", script])
            .arg(&image)
            .arg(child.get_program())
            .args(child.get_args())
            .env("POINTS_DIR", &place)
            .status()
            .unwrap();
        if status.code() == Some(77) {
            eprintln!("SKIPPED: this process may not mount {kind}");
            continue;
        }
        assert!(status.success(), "{kind}: {status}");
    }
}
