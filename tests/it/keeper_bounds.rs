//! Where the keeper stops: what it does not show, whose directories it does not use, what it does not start with.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::Path,
    process::{Command, Stdio as Std},
    time::{Duration, Instant},
};

use larder::{
    host::launch::Stdio,
    model::{Area, Role, Slot, StopSignal},
};
use rustix::process::{Pid, Signal, geteuid, kill_process};

use crate::keeper::{ENV, NOBODY, World, grounds, job, keep, namespaces, read_line};

#[tokio::test]
async fn a_root_below_a_directory_that_workers_see_is_hidden() {
    for ground in grounds() {
        let world = World::with(ground, true).await;
        if !namespaces(&world).await {
            continue;
        }
        let (root, parent) = (world.root.display(), world.root.parent().unwrap().display());
        let (_, text) = world.run(&format!("ls {parent}; ls {root}; cat {root}/keeper/numbers; touch {root}/x; :")).await;
        assert!(text.contains("home\n"), "the directory itself is there: {text}");
        assert!(!text.contains("projects") && !text.contains("state") && !world.root.join("x").exists(), "{text}");
        assert!(text.contains("Permission denied"), "{text}");
    }
}

#[tokio::test]
async fn a_process_can_open_its_output_again() {
    for ground in grounds() {
        let world = World::new(ground).await;
        let launch = world.launch(Role::Run, keep(b"", StopSignal::Term));
        let line = "echo one > /dev/stdout && echo two > /dev/stderr; sleep 1000";
        let mut child = world.launcher.launch(launch, &job(line), Stdio::default()).await.unwrap();
        let output = child.output().unwrap();
        assert_eq!((read_line(&output).await.as_str(), read_line(&output).await.as_str()), ("one", "two"));
        world.launcher.stop(child.id(), Duration::ZERO).await.unwrap();
    }
}

/// What has just been killed still holds its overlay for a moment; the next process must not get into it.
#[tokio::test]
async fn a_new_slot_is_not_the_old_ones_overlay() {
    for ground in grounds() {
        let world = World::new(ground).await;
        for round in 0..5 {
            // Slow to go: it has much memory to give back.
            let line =
                "echo x > old; head -c 300000000 /dev/zero | tail -c 300000000 > /dev/null & sleep 0.3; echo up; sleep 1000";
            let (child, output) = world.task(line).await;
            assert_eq!(read_line(&output).await, "up");
            drop(child); // kills it, and waits for nothing
            while world.launcher.fresh(ENV, Area::Slot, None, Some(Slot::Blue)).await.is_err() {}
            let (exit, text) = world.run("test ! -e old && echo y > new && cat new").await;
            assert!(exit.success() && text == "y\n", "round {round}: {exit} {text}");
            assert!(world.env().join("slots/blue/upper/new").exists(), "it lies in the slot that there is now");
        }
    }
}

fn serve(root: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
    command.args(["serve", "--ssh", "127.0.0.1:0", "--http", "127.0.0.1:0", "--root"]).arg(root);
    command.stdin(Std::null()).stdout(Std::piped()).stderr(Std::piped());
    command
}

/// Starts a server, waits for its end and gives its exit code and what it said.
fn refused(root: &Path) -> (Option<i32>, String) {
    let output = serve(root).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_directory_that_somebody_else_can_change_is_no_root() {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let root = directory.path().join("root");
    fs::create_dir(&root).unwrap();
    fs::set_permissions(&root, fs::Permissions::from_mode(0o777)).unwrap();
    let (code, text) = refused(&root);
    assert!(code == Some(5) && text.contains("others may write it (mode 777); chmod 755 it"), "{code:?} {text}");
    if geteuid().is_root() {
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
        chown(&root, Some(NOBODY), Some(NOBODY)).unwrap();
        let (code, text) = refused(&root);
        assert!(code == Some(5) && text.contains(&format!("it belongs to user {NOBODY}")), "{code:?} {text}");
    }
    assert_eq!(fs::read_dir(&root).unwrap().count(), 0, "nothing is made in it");
}

/// A server that refuses to work says why, once, and is not started again; and the keeper's log is not full of it.
#[test]
fn a_server_has_its_last_word() {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let root = directory.path().join("root");
    let first = serve(&root).spawn().unwrap();
    wait_for(&root.join("state/signing_ed25519_key"));
    wait_for(&root.join("state/control.sock"));
    kill_process(Pid::from_child(&first), Signal::TERM).unwrap();
    let output = first.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !text.contains("cannot be understood"), "{text}");
    fs::set_permissions(root.join("state/signing_ed25519_key"), fs::Permissions::from_mode(0o644)).unwrap();
    let (code, text) = refused(&root);
    assert_eq!(text.matches("signing key cannot be used").count(), 1, "{text}");
    assert!(code.is_some_and(|code| code != 0) && text.lines().count() < 10, "{code:?} {text}");
}

/// root's shell often has the umask 077.
#[test]
fn the_umask_at_the_start_does_not_matter() {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let root = directory.path().join("root");
    let line = r#"umask 077; exec "$0" serve --ssh 127.0.0.1:0 --http 127.0.0.1:0 --root "$1""#;
    let mut server = Command::new("sh")
        .args(["-c", line, env!("CARGO_BIN_EXE_larder")])
        .arg(&root)
        .stdin(Std::null())
        .stdout(Std::piped())
        .spawn()
        .unwrap();
    wait_for(&root.join("state/control.sock"));
    kill_process(Pid::from_child(&server), Signal::TERM).unwrap();
    assert!(server.wait().unwrap().success());
}

fn wait_for(path: &Path) {
    let end = Instant::now() + Duration::from_secs(60);
    while !path.exists() {
        assert!(Instant::now() < end, "{} does not appear", path.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}
