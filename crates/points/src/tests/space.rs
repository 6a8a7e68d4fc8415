//! Tests with a full file system: a tmpfs that a child process mounts in its own mount namespace.

use std::{fs, process::Command};

use super::*;
use crate::VerifyOptions;

#[test]
#[ignore = "a child of the test below"]
fn child_fills_its_file_system() {
    let dir: PathBuf = std::env::var_os("POINTS_DIR").unwrap().into();
    let scene = Scene::at(tempfile::tempdir_in(dir).unwrap());
    let sources = [Source::directory("uploads")];
    for n in 0..40 {
        scene.write(format!("uploads/{n}"), vec![n; 20_000]);
    }
    let before = tree(&scene.base);
    scene.capture("one", &sources, None).unwrap();
    let filler = |bytes: usize| {
        let path = scene.dir.path().join("filler");
        let mut length = bytes;
        while fs::write(&path, vec![1; length]).is_err() {
            length -= 4096;
        }
    };
    for left in [0, 20_000, 100_000, 400_000] {
        filler(3 << 20);
        let filler = File::options().write(true).open(scene.dir.path().join("filler")).unwrap();
        filler.set_len(filler.metadata().unwrap().len().saturating_sub(left)).unwrap();
        drop(filler);
        scene.write("uploads/0", vec![99; 20_000]);
        let error = scene.capture("two", &sources, None).unwrap_err();
        assert!(error.is_no_space(), "{error}");
        let error = scene.restore("one", "t", Some("kept")).unwrap_err();
        assert!(error.is_no_space(), "{error}");
        let error = scene.restore_into("one", "into").unwrap_err();
        assert!(error.is_no_space(), "{error}");
        fs::remove_file(scene.dir.path().join("filler")).unwrap();
        assert_eq!(fs::read_dir(scene.dir.path()).unwrap().count(), 2);
        assert_eq!(fs::read_dir(&scene.base).unwrap().count(), 1);
        assert_eq!(scene.store.list().unwrap(), ["one"]);
        assert_eq!(scene.store.point("one").unwrap().verify(&VerifyOptions::default()).unwrap().damaged, 0);
    }
    fs::write(scene.path("uploads/0"), vec![0; 20_000]).unwrap();
    scene.restore("one", "t", None).unwrap();
    assert_eq!(tree(&scene.base), before);
}

#[test]
fn full_file_system_fails_each_operation_and_changes_no_files() {
    if !is_root() {
        eprintln!("SKIPPED: this test mounts a file system, which needs root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=3m,mode=700 tmpfs \"$POINTS_DIR\" || exit 77; exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", script, "sh"]).arg(std::env::current_exe().unwrap());
    command.args(["--exact", "tests::space::child_fills_its_file_system", "--ignored"]).env("POINTS_DIR", dir.path());
    let output = command.output().unwrap();
    if output.status.code() == Some(77) || String::from_utf8_lossy(&output.stderr).contains("unshare failed") {
        eprintln!("SKIPPED: this process may not mount");
        return;
    }
    assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
}
