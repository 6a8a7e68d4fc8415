//! Limits of the keeper: directories that it hides, roots that it refuses, and processes that it waits for.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::Path,
    process::{self, Command, Stdio as Std},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use larder::{
    buildpack::{BuildJob, BuildStep},
    host::{
        launch::{Child, Stdio},
        root::Root,
    },
    model::{Area, Phase, Role, Slot, StopSignal, Supervision},
};
use rustix::{
    pipe::{PipeFlags, pipe_with},
    process::{Pid, Signal, geteuid, kill_process},
};

use crate::keeper_world::{ENV, NOBODY, World, grounds, job, keep, namespaces, read_line};

#[tokio::test]
async fn root_below_a_visible_directory_is_hidden_from_workers() {
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
async fn process_can_reopen_its_standard_output() {
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

/// A killed process that cannot end, because its namespace has a member whose parent is outside and does not reap the member.
struct Lingering(process::Child);

impl Lingering {
    /// Finds the namespace of the process `sleep SECONDS`, and adds such a member to the namespace. Returns `None` if that process is in the
    /// namespace of this test.
    fn with(seconds: &str) -> Option<Lingering> {
        let line = format!("sleep\0{seconds}\0");
        let named = |path: &Path| fs::read_to_string(path.join("cmdline")).is_ok_and(|found| found == line);
        let sleep = || fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path()).find(|path| named(path));
        let sleep = until("the sleep", sleep);
        let namespace = |path: &Path| fs::read_link(path.join("ns/pid")).ok();
        let inside = namespace(&sleep);
        if inside == namespace(Path::new("/proc/self")) {
            return None;
        }
        let mut command = Command::new("nsenter");
        if !geteuid().is_root() {
            command.args(["--user", "--preserve-credentials"]);
        }
        command.args(["--pid", "--target"]).arg(sleep.file_name().unwrap());
        let nsenter = command.args(["sleep", "1000"]).stdin(Std::null()).spawn().unwrap();
        let children = format!("/proc/{0}/task/{0}/children", nsenter.id());
        let is_in = |child: &str| namespace(&Path::new("/proc").join(child)) == inside;
        until("the member", || fs::read_to_string(&children).unwrap().split_whitespace().any(is_in).then_some(()));
        kill_process(Pid::from_child(&nsenter), Signal::STOP).unwrap();
        // The signal takes effect only when the process is scheduled. Until then, the process would still reap the member.
        let status = format!("/proc/{}/status", nsenter.id());
        until("the stop", || fs::read_to_string(&status).unwrap().contains("\nState:\tT").then_some(()));
        Some(Lingering(nsenter))
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        kill_process(Pid::from_child(&self.0), Signal::CONT).unwrap();
        self.0.wait().unwrap();
    }
}

/// Returns a unique duration of `sleep`, by which a process can be found.
fn some_seconds() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("1000.{}0{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Returns true if the end of the process was reported.
async fn is_gone(child: &mut Child) -> bool {
    tokio::time::timeout(Duration::ZERO, child.wait()).await.is_ok()
}

/// A killed process holds its overlay until it has ended. The reset of a slot waits for this end, so the next process finds no old files.
#[tokio::test]
async fn slot_reset_waits_for_killed_processes() {
    for ground in grounds() {
        let world = World::new(ground).await;
        let seconds = some_seconds();
        let (mut child, output) = world.task(&format!("echo x > old; echo up; exec sleep {seconds}")).await;
        assert_eq!(read_line(&output).await, "up");
        let lingering = Lingering::with(&seconds);
        assert_eq!(lingering.is_some(), namespaces(&world).await);
        child.kill().await.unwrap(); // returns before the process has ended
        let fresh = || world.launcher.reset_area(ENV, Area::Slot, None, Some(Slot::Blue));
        if let Some(lingering) = lingering {
            let emptied = tokio::time::timeout(Duration::from_millis(300), fresh()).await;
            assert!(emptied.is_err() && !is_gone(&mut child).await, "{emptied:?}");
            drop(lingering);
        }
        fresh().await.unwrap();
        assert!(is_gone(&mut child).await);
        let (exit, text) = world.run("test ! -e old && echo y > new && cat new").await;
        assert!(exit.success() && text == "y\n", "{exit} {text}");
        assert!(world.env().join("slots/blue/upper/new").exists(), "the file is in the new slot");
    }
}

/// Only the reset of a slot waits for killed processes. After the reset of a build or source area, a killed build keeps the overlay of the
/// discarded directories, and the next build gets a new overlay.
#[tokio::test]
async fn new_build_gets_an_overlay_of_its_own() {
    for (ground, area) in grounds().into_iter().flat_map(|ground| [(ground, Area::Build), (ground, Area::Source)]) {
        let world = World::new(ground).await;
        if area == Area::Source && world.launcher.capabilities().await.unwrap().overlay.is_err() {
            continue; // without overlays, the source is copied once for each build area
        }
        let seconds = some_seconds();
        let script =
            |name| format!("#!/bin/sh\ntest -e {name} && echo not alone\necho x > {name}\necho {name}\nexec sleep {seconds}\n");
        source_with(&world, Phase::Build, &script("one")).await;
        world.launcher.reset_area(ENV, Area::Build, None, None).await.unwrap();
        let mut old = start_build(&world, "one").await;
        let lingering = Lingering::with(&seconds);
        assert_eq!(lingering.is_some(), namespaces(&world).await);
        old.kill().await.unwrap(); // returns before the build has ended
        let _new = if area == Area::Build {
            world.launcher.reset_area(ENV, Area::Build, None, None).await.unwrap();
            start_build(&world, "one").await
        } else {
            source_with(&world, Phase::Build, &script("two")).await;
            start_build(&world, "two").await
        };
        assert!(lingering.is_none() || !is_gone(&mut old).await, "the old build had ended, so the test shows nothing");
    }
}

/// Starts a build whose script prints `word`.
async fn start_build(world: &World, word: &str) -> Child {
    // The view of a build contains this directory.
    fs::create_dir_all(Root::new(&world.root).lib().join("buildpacks")).unwrap();
    let job = BuildJob {
        steps: vec![BuildStep::Script(Phase::Build)],
        buildpacks: Vec::new(),
        configuration: Vec::new(),
        environment: Vec::new(),
        variables: "{}".to_owned(),
        memory: None,
        deploy_key: None,
    };
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let stdio = Stdio { stdout: Some(write), ..Stdio::default() };
    let child = world.launcher.launch(world.launch(Role::Build, Supervision::Once), &job, stdio).await.unwrap();
    assert_eq!(read_line(&read).await, "-----> Running .larder/build");
    assert_eq!(read_line(&read).await, word);
    child
}

/// Creates a source whose only file is the script of a phase.
async fn source_with(world: &World, phase: Phase, script: &str) {
    world.launcher.reset_area(ENV, Area::Source, None, None).await.unwrap();
    let source = world.env().join("project");
    let path = source.join("tree/.larder").join(phase.to_string());
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let owner = fs::metadata(&source).unwrap().uid();
    for path in [source.join("tree"), source.join("tree/.larder"), path] {
        chown(&path, Some(owner), Some(owner)).unwrap();
    }
}

fn serve(root: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
    command.args(["serve", "--ssh", "127.0.0.1:0", "--http", "127.0.0.1:0", "--root"]).arg(root);
    command.stdin(Std::null()).stdout(Std::piped()).stderr(Std::piped());
    command
}

/// Starts a server and waits for its end; returns its exit code and its standard error.
fn refused(root: &Path) -> (Option<i32>, String) {
    let output = serve(root).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn root_that_another_user_can_change_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let root = directory.path().join("root");
    fs::create_dir(&root).unwrap();
    fs::set_permissions(&root, fs::Permissions::from_mode(0o777)).unwrap();
    let (code, text) = refused(&root);
    assert!(
        code == Some(5) && text.contains("other users can write to it (mode 0777)\n") && text.contains("hint: run: chmod 755"),
        "{code:?} {text}"
    );
    if geteuid().is_root() {
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
        chown(&root, Some(NOBODY), Some(NOBODY)).unwrap();
        let (code, text) = refused(&root);
        assert!(code == Some(5) && text.contains(&format!("its owner is user {NOBODY}")), "{code:?} {text}");
    }
    assert_eq!(fs::read_dir(&root).unwrap().count(), 0, "nothing is made in it");
}

/// root's own home is closed to the server's user and to the users of projects.
#[test]
fn root_below_closed_directory_is_refused_before_anything_is_made() {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let root = directory.path().join("new/root");
    if geteuid().is_root() {
        let (code, text) = refused(&root);
        let names_it = text.contains(&format!("{} has mode 0700", directory.path().display()));
        assert!(code == Some(5) && names_it && text.contains("hint: "), "{code:?} {text}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "nothing is made in it");
        chown(directory.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    // A user's own home is closed to all other users, and open to the user itself.
    let mut command = serve(&root);
    if geteuid().is_root() {
        std::os::unix::process::CommandExt::uid(&mut command, NOBODY);
        std::os::unix::process::CommandExt::gid(&mut command, NOBODY);
    }
    let server = command.current_dir("/").spawn().unwrap();
    wait_for(&root.join("state/control.sock"));
    kill_process(Pid::from_child(&server), Signal::TERM).unwrap();
    assert!(server.wait_with_output().unwrap().status.success());
}

/// A server whose first start fails prints the reason once and is not restarted.
#[test]
fn first_start_with_exposed_key_fails_with_one_message() {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let root = directory.path().join("root");
    let first = serve(&root).spawn().unwrap();
    wait_for(&root.join("state/signing_ed25519_key"));
    wait_for(&root.join("state/control.sock"));
    kill_process(Pid::from_child(&first), Signal::TERM).unwrap();
    let output = first.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !text.contains("cannot decode a request"), "{text}");
    fs::set_permissions(root.join("state/signing_ed25519_key"), fs::Permissions::from_mode(0o644)).unwrap();
    let (code, text) = refused(&root);
    assert_eq!(text.matches("cannot use the signing key").count(), 1, "{text}");
    assert!(code.is_some_and(|code| code != 0) && text.lines().count() < 10, "{code:?} {text}");
}

/// The shell of root often has the umask 077.
#[test]
fn start_with_umask_077_succeeds() {
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
    until(&path.display().to_string(), || path.exists().then_some(()));
}

/// Repeats `ask` until it returns a value.
fn until<T>(what: &str, ask: impl Fn() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "{what} does not appear");
        std::thread::sleep(Duration::from_millis(20));
    }
}
