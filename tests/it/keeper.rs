//! The keeper with real processes, as root and as nobody in particular.
//!
//! The keeper runs in a process of its own, started from this binary. So does its server: it hands its end of the connection to
//! the test, which then gives the orders itself, and dies when the test wants it to.
#![allow(unsafe_code)] // for the one attribute of AS_KEEPER

use std::{
    env, fs,
    io::Read,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        linux::net::SocketAddrExt,
        unix::{
            fs::{MetadataExt, PermissionsExt, chown},
            net::{SocketAddr, UnixListener, UnixStream},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Command, Stdio as Std},
    time::Duration,
};

use larder::{
    host::launch::{Child, Event, LaunchError, Launcher, Registration, Stdio, take_inherited},
    keeper::{self, Config},
    model::{Area, EnvId, Exit, Launch, LimitClass, ProjectId, ReleaseId, Role, Slot, Supervision},
    runtime::RunJob,
};
use rustix::{
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg,
        sendmsg,
    },
    pipe::{PipeFlags, pipe_with},
    process::{Pid, Signal, geteuid, kill_process, test_kill_process},
};

const NOBODY: u32 = 54_321;
const PATIENCE: Duration = Duration::from_secs(60);

/// The keeper's process: this binary, taken over before the test harness makes its first thread.
#[used]
#[unsafe(link_section = ".init_array")]
static AS_KEEPER: extern "C" fn() = as_keeper;

extern "C" fn as_keeper() {
    let Some(root) = env::var_os("LARDER_TEST_ROOT") else { return };
    let mut config = Config::new(root.into());
    config.exe = env!("CARGO_BIN_EXE_larder").into();
    config.server_exe = Some(env::current_exe().unwrap());
    config.server_args = ["--exact", "keeper::as_server", "--ignored", "--nocapture"].map(Into::into).into();
    config.server_env = vec![("LARDER_TEST_SOCKET".into(), env::var_os("LARDER_TEST_SOCKET").unwrap())];
    config.http_listen = vec!["127.0.0.1:0".parse().unwrap()];
    match keeper::run(config) {
        Ok(_) => std::process::exit(0),
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(3)
        }
    }
}

/// Not a test: the server's process.
#[test]
#[ignore = "a part of the other tests"]
fn as_server() {
    let Ok(name) = env::var("LARDER_TEST_SOCKET") else { return };
    assert!(env::var("LARDER_LISTENERS").unwrap().starts_with("http=4"));
    let keeper = take_inherited(3).unwrap();
    let mut test = UnixStream::connect_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [keeper.as_fd()];
    assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
    let id = std::process::id().to_string();
    sendmsg(&test, &[std::io::IoSlice::new(id.as_bytes())], &mut control, SendFlags::empty()).unwrap();
    drop(keeper);
    // Until the test lets go.
    let _ = test.read(&mut [0]);
    std::process::exit(9);
}

/// A root, a keeper on it, and the server's place.
struct World {
    root: PathBuf,
    _directory: tempfile::TempDir,
    keeper: std::process::Child,
    listener: UnixListener,
    launcher: Launcher,
    server: UnixStream,
    server_id: i32,
    system: bool,
    release: ReleaseId,
}

const PROJECT: ProjectId = ProjectId(1);
const ENV: EnvId = EnvId(3);

impl World {
    async fn new(system: bool) -> World {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let root = directory.path().join("root");
        fs::create_dir(&root).unwrap();
        let name = format!("larder-test-{}", directory.path().display());
        let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let mut command = Command::new(env::current_exe().unwrap());
        command.env("LARDER_TEST_ROOT", &root).env("LARDER_TEST_SOCKET", &name).stdin(Std::null());
        if !system && geteuid().is_root() {
            chown(&root, Some(NOBODY), Some(NOBODY)).unwrap();
            command.uid(NOBODY).gid(NOBODY);
        }
        let keeper = command.spawn().unwrap();
        let (launcher, server, server_id) = meet(&listener);
        let release = ReleaseId::new(jiff::Timestamp::from_second(1_700_000_000).unwrap());
        let world = World { root, _directory: directory, keeper, listener, launcher, server, server_id, system, release };
        world.launcher.register(registration(PROJECT, "shop", ENV, "live")).await.unwrap();
        world.launcher.register(registration(ProjectId(2), "other", EnvId(4), "live")).await.unwrap();
        let tree = world.env().join("deploy").join(release.to_string());
        fs::create_dir_all(tree.join("sub")).unwrap();
        fs::write(tree.join("sub/file"), b"as released\n").unwrap();
        world.give(&tree, 1);
        world.give(&tree.join("sub"), 1);
        world.give(&tree.join("sub/file"), 1);
        world
    }

    fn env(&self) -> PathBuf {
        self.root.join("projects/shop/live")
    }

    /// Makes `path` one of the environment's users', or in rootless mode the keeper's.
    fn give(&self, path: &Path, which: u32) {
        let uid = if self.system { 200_000 + ENV.0 * 4 + which } else { fs::metadata(&self.root).unwrap().uid() };
        chown(path, Some(uid), Some(uid)).unwrap();
    }

    fn launch(&self, role: Role, supervision: Supervision) -> Launch {
        Launch {
            role,
            project: PROJECT,
            environment: Some(ENV),
            release: Some(self.release),
            slot: Some(Slot::Blue),
            limits: LimitClass::Application { memory: None },
            supervision,
        }
    }

    /// Starts a task that runs `line`, and what reads its stdout and stderr.
    async fn task(&self, line: &str) -> (Child, OwnedFd) {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let stdio = Stdio { stdout: Some(write.try_clone().unwrap()), stderr: Some(write), ..Stdio::default() };
        let child = self.launcher.launch(self.launch(Role::Task, Supervision::Once), &job(line), stdio).await.unwrap();
        (child, read)
    }

    /// Runs `line` to its end.
    async fn run(&self, line: &str) -> (Exit, String) {
        let (mut child, output) = self.task(line).await;
        let text = read_all(output).await;
        let exit = tokio::time::timeout(PATIENCE, child.wait()).await.unwrap().unwrap();
        (exit, text)
    }

    /// Kills the server and takes the place of its successor.
    fn replace_server(&mut self) {
        kill_process(Pid::from_raw(self.server_id).unwrap(), Signal::KILL).unwrap();
        (self.launcher, self.server, self.server_id) = meet(&self.listener);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let id = Pid::from_child(&self.keeper);
        let _ = self.server.shutdown(std::net::Shutdown::Both);
        let _ = kill_process(id, Signal::TERM);
        let _ = self.keeper.wait();
    }
}

fn meet(listener: &UnixListener) -> (Launcher, UnixStream, i32) {
    let (stream, _) = listener.accept().unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut buffer = [0; 32];
    let got = recvmsg(&stream, &mut [std::io::IoSliceMut::new(&mut buffer)], &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let socket = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut received) => received.next(),
        _ => None,
    });
    let id = std::str::from_utf8(&buffer[..got.bytes]).unwrap().parse().unwrap();
    (Launcher::over(socket.unwrap()).unwrap(), stream, id)
}

fn registration(project: ProjectId, name: &str, env: EnvId, environment: &str) -> Registration {
    Registration { project: (project, name.parse().unwrap()), environment: Some((env, environment.parse().unwrap())) }
}

fn job(line: &str) -> RunJob {
    RunJob {
        command: line.to_owned(),
        arguments: Vec::new(),
        env: vec![("MARK".into(), "set".into())],
        variables: None,
        links: Vec::new(),
    }
}

async fn read_all(output: OwnedFd) -> String {
    let reading = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        fs::File::from(output).read_to_string(&mut text).unwrap();
        text
    });
    tokio::time::timeout(PATIENCE, reading).await.unwrap().unwrap()
}

async fn read_line(output: &OwnedFd) -> String {
    let mut output = fs::File::from(output.try_clone().unwrap());
    let reading = tokio::task::spawn_blocking(move || {
        let (mut text, mut byte) = (String::new(), [0]);
        while output.read(&mut byte).unwrap() == 1 && byte != *b"\n" {
            text.push(byte[0] as char);
        }
        text
    });
    tokio::time::timeout(PATIENCE, reading).await.unwrap().unwrap()
}

/// The modes that can be tried here.
fn modes() -> Vec<bool> {
    match geteuid().is_root() {
        true => vec![true, false],
        false => {
            eprintln!("SKIPPED: system mode needs root");
            vec![false]
        }
    }
}

async fn namespaces(world: &World) -> bool {
    let standing = world.launcher.standing().await.unwrap();
    eprintln!("{standing:?}");
    assert_eq!(standing.system, world.system);
    if let Err(why) = &standing.namespaces {
        eprintln!("SKIPPED in part: {why}");
    }
    standing.namespaces.is_ok()
}

#[tokio::test]
async fn a_worker_sees_its_own_things_and_nothing_else() {
    for system in modes() {
        let world = World::new(system).await;
        let (exit, text) =
            world.run("echo $MARK $HOME; cat sub/file; pwd; echo hello >> sub/file; cat sub/file; touch $LARDER_DATA/x").await;
        assert!(exit.success(), "{exit} {text}");
        if !namespaces(&world).await {
            continue;
        }
        assert_eq!(text, "set /app\nas released\n/app\nas released\nhello\n");
        // What was released is untouched; what was written lies in the slot.
        let released = fs::read_to_string(world.env().join("deploy").join(world.release.to_string()).join("sub/file")).unwrap();
        assert_eq!(released, "as released\n");
        assert_eq!(fs::read_to_string(world.env().join("slots/blue/upper/sub/file")).unwrap(), "as released\nhello\n");
        assert!(world.env().join("data/x").exists());

        let line = format!(
            "ls -d {0} {0}/state {0}/projects /root /home /work 2>/dev/null; ls /; ls /proc | grep -c '^[0-9]'",
            world.root.display()
        );
        let (_, text) = world.run(&line).await;
        assert!(!text.contains("root\n") && !text.contains("state") && !text.contains("home"), "{text}");
        let (_, text) = world.run("ls /proc/self/fd | tr '\\n' ' '; grep -E '^(Cap|NoNew|Groups|Uid)' /proc/self/status").await;
        assert!(text.starts_with("0 1 2 3 "), "{text}");
        for line in text.lines().filter(|line| line.starts_with("Cap")) {
            assert!(line.ends_with("\t0000000000000000"), "{line}");
        }
        assert!(text.contains("NoNewPrivs:\t1"), "{text}");
        if system {
            let uid = 200_000 + ENV.0 * 4 + 2;
            assert!(text.contains(&format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}")) && text.contains("Groups:\t \n"), "{text}");
        }
        let (_, text) =
            world.run("id -un; mount -t tmpfs x /app 2>/dev/null && echo MOUNTED; echo x > /etc/x; echo x > /usr/x; umount /proc 2>/dev/null && echo UNMOUNTED; head -c1 /etc/shadow; :").await;
        assert!(text.starts_with("app\n"), "{text}");
        assert!(text.lines().count() == 4 && !text.contains("MOUNTED"), "{text}");
    }
}

#[tokio::test]
async fn nothing_that_a_worker_started_survives_it() {
    for system in modes() {
        let world = World::new(system).await;
        // A grandchild that ignores SIGTERM, has a session of its own and holds stdout; and one that it leaves behind.
        let line = "(setsid sh -c 'trap \"\" TERM HUP; while :; do sleep 1; done' &) ; sleep 1000 & exit 7";
        let (exit, text) = world.run(line).await;
        assert_eq!((exit.code, text.as_str()), (Some(7), ""));

        let (mut child, output) = world.task("trap '' TERM; echo up; while :; do sleep 1; done").await;
        assert_eq!(read_line(&output).await, "up");
        child.terminate().await.unwrap();
        child.kill().await.unwrap();
        let exit = tokio::time::timeout(PATIENCE, child.wait()).await.unwrap().unwrap();
        assert_eq!(exit.signal, Some(9));
        assert_eq!(read_all(output).await, "");

        let (mut child, output) = world.task("trap 'exit 5' TERM; echo up; while :; do sleep 0.1; done").await;
        assert_eq!(read_line(&output).await, "up");
        child.terminate().await.unwrap();
        assert_eq!(tokio::time::timeout(PATIENCE, child.wait()).await.unwrap().unwrap().code, Some(5));

        // Nobody waits for it any more.
        let (child, output) = world.task("echo up; sleep 1000").await;
        assert_eq!(read_line(&output).await, "up");
        drop(child);
        assert_eq!(read_all(output).await, "");
    }
}

#[tokio::test]
async fn kept_processes_outlive_the_server_and_start_again() {
    for system in modes() {
        let mut world = World::new(system).await;
        let keep = Supervision::Keep { label: b"web.1".to_vec() };
        let line = "echo up; while [ ! -e $LARDER_DATA/end ]; do sleep 0.05; done; rm $LARDER_DATA/end; exit 3";
        let launch = world.launch(Role::Run, keep);
        let mut child = world.launcher.launch(launch.clone(), &job(line), Stdio::default()).await.unwrap();
        let id = child.id();
        assert_eq!(read_line(&child.output().unwrap()).await, "up");
        let (_once, once) = world.task("echo up; sleep 1000").await;
        assert_eq!(read_line(&once).await, "up");

        world.replace_server();
        assert_eq!(read_all(once).await, "", "what was started once ends with the server");
        let kept = world.launcher.kept().await.unwrap();
        assert_eq!(kept.len(), 1);
        assert_eq!((kept[0].id, kept[0].label.as_slice(), &kept[0].launch), (id, b"web.1".as_slice(), &launch));

        let mut events = world.launcher.events();
        fs::write(world.env().join("data/end"), b"").unwrap();
        world.give(&world.env().join("data/end"), 2);
        let event = tokio::time::timeout(PATIENCE, events.recv()).await.unwrap().unwrap();
        let Event::Exited { exit, last: false, .. } = event else { panic!("{event:?}") };
        assert_eq!(exit.code, Some(3));
        assert_eq!(read_line(&kept[0].output).await, "up");
        let event = tokio::time::timeout(PATIENCE, events.recv()).await.unwrap().unwrap();
        assert_eq!(event, Event::Restarted { id, restarts: 1 });

        let refused = world.launcher.fresh(ENV, Area::Slot, None, Some(Slot::Blue)).await;
        assert!(matches!(refused, Err(LaunchError::Refused { .. })), "{refused:?}");
        world.launcher.stop(id, Duration::from_secs(5)).await.unwrap();
        tokio::time::timeout(PATIENCE, world.launcher.ended(id)).await.unwrap().unwrap();
        assert_eq!(world.launcher.kept().await.unwrap().len(), 0);
    }
}

#[tokio::test]
async fn areas_are_emptied_and_environments_removed() {
    for system in modes() {
        let world = World::new(system).await;
        let (exit, text) = world.run("mkdir -p a/b && touch a/b/c && chmod 000 a").await;
        assert!(exit.success(), "{text}");
        world.launcher.fresh(ENV, Area::Slot, None, Some(Slot::Blue)).await.unwrap();
        assert_eq!(fs::read_dir(world.env().join("slots/blue/upper")).unwrap().count(), 0);
        let (exit, text) = world.run("touch $LARDER_DATA/x; cat sub/file").await;
        assert!(exit.success() && text == "as released\n" || !namespaces(&world).await, "{text}");
        world.launcher.unregister(PROJECT, None).await.unwrap();
        assert!(!world.root.join("projects/shop").exists() && world.root.join("projects/other/live").exists());
        let end = std::time::Instant::now() + PATIENCE;
        while fs::read_dir(world.root.join("trash")).unwrap().count() > 0 {
            assert!(std::time::Instant::now() < end, "{:?}", fs::read_dir(world.root.join("trash")).unwrap().collect::<Vec<_>>());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let launch = world.launch(Role::Task, Supervision::Once);
        assert!(world.launcher.launch(launch, &job("true"), Stdio::default()).await.is_err());
    }
}

#[tokio::test]
async fn everything_dies_with_the_keeper() {
    for system in modes() {
        let mut world = World::new(system).await;
        let keep = Supervision::Keep { label: Vec::new() };
        let line = "(setsid sh -c 'echo up; while :; do sleep 1; done' &); sleep 1000";
        let mut child = world.launcher.launch(world.launch(Role::Run, keep), &job(line), Stdio::default()).await.unwrap();
        let output = child.output().unwrap();
        assert_eq!(read_line(&output).await, "up");
        world.keeper.kill().unwrap();
        world.keeper.wait().unwrap();
        assert_eq!(read_all(output).await, "");
        assert!(matches!(child.wait().await, Err(LaunchError::Gone)));
        let mut byte = [0];
        assert_eq!(world.server.read(&mut byte).unwrap_or(0), 0);
        assert!(world.launcher.standing().await.is_err());
        let _ = test_kill_process(Pid::from_raw(world.server_id).unwrap());
    }
}

#[tokio::test]
async fn a_root_has_one_keeper() {
    for system in modes() {
        let world = World::new(system).await;
        let mut second = Command::new(env::current_exe().unwrap());
        second.env("LARDER_TEST_ROOT", &world.root).env("LARDER_TEST_SOCKET", "none");
        if !system && geteuid().is_root() {
            second.uid(NOBODY).gid(NOBODY);
        }
        let second = second.output().unwrap();
        let text = String::from_utf8_lossy(&second.stderr);
        assert!(second.status.code() == Some(3) && text.contains("is in use by another larder"), "{text}");
    }
}

/// Prints what a launch costs; decides nothing.
#[tokio::test]
#[ignore = "a measurement"]
async fn cost_of_a_launch() {
    for system in modes() {
        let world = World::new(system).await;
        for (what, count) in [("alone", 50), ("beside a kept one", 50)] {
            let mut times = Vec::new();
            for _ in 0..count {
                let begin = std::time::Instant::now();
                let (exit, _) = world.run(":").await;
                assert!(exit.success());
                times.push(begin.elapsed());
            }
            times.sort();
            eprintln!("system={system} {what}: median {:?}, worst {:?}", times[count / 2], times[count - 1]);
            let keep = Supervision::Keep { label: Vec::new() };
            let launch = world.launch(Role::Run, keep);
            world.launcher.launch(launch, &job("sleep 1000"), Stdio::default()).await.unwrap();
        }
    }
}
