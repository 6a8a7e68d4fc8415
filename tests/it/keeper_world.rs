//! A keeper with real processes for tests, as root and as an ordinary user. The keeper and its server run in separate processes, which are
//! started from this test binary. The server sends its connection with the keeper to the test, over a socket. The test then sends the
//! requests to the keeper by itself. The server exits when the test closes the socket.
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
    host::launch::{Child, Launcher, Registration, Stdio, take_inherited},
    keeper::{self, KeeperConfig},
    model::{EnvId, Exit, Launch, LimitClass, ProjectId, ReleaseId, Role, Slot, StopSignal, Supervision},
    runtime::RunJob,
};
use rustix::{
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg,
        sendmsg,
    },
    pipe::{PipeFlags, pipe_with},
    process::{Pid, Signal, geteuid, kill_process},
};

pub const NOBODY: u32 = 54_321;
pub const PATIENCE: Duration = Duration::from_secs(60);
pub const BUILD_MEMORY: u64 = 96 * 1024 * 1024;
pub const BUILD_PROCESSES: u64 = 64;

/// The entry of the keeper's process, which runs in this binary before the test harness starts its first thread.
#[used]
#[unsafe(link_section = ".init_array")]
static AS_KEEPER: extern "C" fn() = as_keeper;

extern "C" fn as_keeper() {
    let Some(root) = env::var_os("LARDER_TEST_ROOT") else { return };
    let mut config = KeeperConfig::new(root.into());
    config.exe = env!("CARGO_BIN_EXE_larder").into();
    config.server_exe = Some(env::current_exe().unwrap());
    config.server_args = ["--exact", "keeper_world::as_server", "--ignored", "--nocapture"].map(Into::into).into();
    config.server_env = vec![("LARDER_TEST_SOCKET".into(), env::var_os("LARDER_TEST_SOCKET").unwrap())];
    config.http_listen = vec!["127.0.0.1:0".parse().unwrap()];
    let without = env::var("LARDER_TEST_WITHOUT").unwrap();
    (config.namespaces, config.overlays) = (without != "namespaces", without != "overlays");
    (config.build_memory, config.build_processes) = (Some(BUILD_MEMORY), BUILD_PROCESSES);
    config.host_paths = env::var_os("LARDER_TEST_HOST_PATH").map(PathBuf::from).into_iter().collect();
    match keeper::run(config) {
        Ok(_) => std::process::exit(0),
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(3)
        }
    }
}

/// Runs the server's process. This function is not a test.
#[test]
#[ignore = "started by the keeper of other tests"]
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
    // The server runs until the test closes its socket.
    let _ = test.read(&mut [0]);
    std::process::exit(9);
}

/// The conditions of a keeper: its mode, and the feature of the machine that it must not use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ground {
    pub system: bool,
    pub without: &'static str,
}

/// A root, its keeper, and the connection of its server.
pub struct World {
    pub root: PathBuf,
    pub directory: tempfile::TempDir,
    pub elsewhere: tempfile::TempDir,
    pub keeper: std::process::Child,
    pub listener: UnixListener,
    pub launcher: Launcher,
    pub server: UnixStream,
    pub server_id: i32,
    pub ground: Ground,
    pub release: ReleaseId,
}

pub const PROJECT: ProjectId = ProjectId(1);
pub const ENV: EnvId = EnvId(3);

impl World {
    pub async fn new(ground: Ground) -> World {
        World::with(ground, false).await
    }

    /// Creates a world. If `shown` is true, the root is in a directory that workers see.
    pub async fn with(ground: Ground, shown: bool) -> World {
        eprintln!("{ground:?}");
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let name = format!("larder-test-{}", directory.path().display());
        let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        // This home directory, which other users cannot enter, contains a language runtime.
        let elsewhere = ["/srv", "/var/lib"].into_iter().find_map(|place| tempfile::tempdir_in(place).ok());
        let elsewhere = elsewhere.unwrap_or_else(|| tempfile::tempdir_in(env::var_os("HOME").unwrap()).unwrap());
        fs::set_permissions(elsewhere.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let home = elsewhere.path().join("home");
        fs::create_dir(&home).unwrap();
        fs::create_dir_all(home.join("tool/bin")).unwrap();
        fs::write(home.join("tool/bin/larder-greets"), b"#!/bin/sh\necho hello\n").unwrap();
        fs::set_permissions(home.join("tool/bin/larder-greets"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(home.join("secret"), b"").unwrap();
        let root = if shown { elsewhere.path().join("root") } else { directory.path().join("root") };
        fs::create_dir(&root).unwrap();
        fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).unwrap();
        if !ground.system && geteuid().is_root() {
            chown(&root, Some(NOBODY), Some(NOBODY)).unwrap();
            chown(&home, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let seen = if shown { elsewhere.path().to_owned() } else { home.join("tool") };
        let keeper = keeper_command(ground, &root, &seen, &name).spawn().unwrap();
        let (launcher, server, server_id) = meet(&listener);
        let release = ReleaseId::new(jiff::Timestamp::from_second(1_700_000_000).unwrap());
        let world = World { root, directory, elsewhere, keeper, listener, launcher, server, server_id, ground, release };
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

    pub fn env(&self) -> PathBuf {
        self.root.join("projects/shop/live")
    }

    /// Changes the owner of `path` to one of the environment's users, or in rootless mode to the keeper's user.
    pub fn give(&self, path: &Path, which: u32) {
        let uid = if self.ground.system { self.number(which) } else { fs::metadata(&self.root).unwrap().uid() };
        chown(path, Some(uid), Some(uid)).unwrap();
    }

    /// Returns the number of one of the environment's users in system mode.
    pub fn number(&self, which: u32) -> u32 {
        let first: u32 = fs::read_to_string(self.root.join("keeper/numbers")).unwrap().trim().parse().unwrap();
        first + 1000 + ENV.0 * 4 + which
    }

    pub fn launch(&self, role: Role, supervision: Supervision) -> Launch {
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

    /// Starts a task that runs `line`. Returns the task, and the read end of its stdout and stderr.
    pub async fn task(&self, line: &str) -> (Child, OwnedFd) {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let stdio = Stdio { stdout: Some(write.try_clone().unwrap()), stderr: Some(write), ..Stdio::default() };
        let child = self.launcher.launch(self.launch(Role::Task, Supervision::Once), &job(line), stdio).await.unwrap();
        (child, read)
    }

    /// Runs `line` to its end.
    pub async fn run(&self, line: &str) -> (Exit, String) {
        let (mut child, output) = self.task(line).await;
        let text = read_all(output).await;
        let exit = tokio::time::timeout(PATIENCE, child.wait()).await.unwrap().unwrap();
        (exit, text)
    }

    pub async fn trash_is_emptied(&self) {
        let end = std::time::Instant::now() + PATIENCE;
        while fs::read_dir(self.root.join("trash")).unwrap().count() > 0 {
            assert!(std::time::Instant::now() < end, "{:?}", fs::read_dir(self.root.join("trash")).unwrap().collect::<Vec<_>>());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Kills the server, and takes over the connection of the next server.
    pub fn replace_server(&mut self) {
        kill_process(Pid::from_raw(self.server_id).unwrap(), Signal::KILL).unwrap();
        self.next_server();
    }

    /// Takes over the keeper connection of the server that the keeper starts next.
    pub fn next_server(&mut self) {
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

pub fn keeper_command(ground: Ground, root: &Path, shown: &Path, socket: &str) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.env("LARDER_TEST_ROOT", root).env("LARDER_TEST_SOCKET", socket);
    command.env("LARDER_TEST_WITHOUT", ground.without).env("LARDER_TEST_HOST_PATH", shown);
    // Without a private `/tmp`, workers use this directory, which is deleted with the world, even if a worker is killed.
    let temporary = root.with_file_name("tmp");
    fs::create_dir_all(&temporary).unwrap();
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o1777)).unwrap();
    command.stdin(Std::null()).env("TMPDIR", temporary);
    if !ground.system && geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

pub fn meet(listener: &UnixListener) -> (Launcher, UnixStream, i32) {
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

pub fn registration(project: ProjectId, name: &str, env: EnvId, environment: &str) -> Registration {
    Registration {
        project: (project, name.parse().unwrap()),
        environment: Some((env, environment.parse().unwrap())),
        storage: None,
    }
}

pub fn keep(label: &[u8], stop: StopSignal) -> Supervision {
    Supervision::Keep { label: label.to_vec(), stop }
}

pub fn job(line: &str) -> RunJob {
    RunJob {
        command: line.to_owned(),
        arguments: Vec::new(),
        env: vec![("MARK".into(), "set".into())],
        configuration: Default::default(),
        variables: None,
        data: None,
        templates: None,
        secret_files: Default::default(),
    }
}

pub async fn read_all(output: OwnedFd) -> String {
    let reading = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        fs::File::from(output).read_to_string(&mut text).unwrap();
        text
    });
    tokio::time::timeout(PATIENCE, reading).await.unwrap().unwrap()
}

pub async fn read_line(output: &OwnedFd) -> String {
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

/// Returns all conditions that can be tested on this machine.
pub fn grounds() -> Vec<Ground> {
    if !geteuid().is_root() {
        eprintln!("SKIPPED: system mode needs root");
    }
    let modes = [true, false].into_iter().filter(|system| !system || geteuid().is_root());
    modes.flat_map(|system| ["nothing", "overlays", "namespaces"].map(|without| Ground { system, without })).collect()
}

pub async fn namespaces(world: &World) -> bool {
    let standing = world.launcher.capabilities().await.unwrap();
    eprintln!("{standing:?}");
    assert_eq!(standing.system, world.ground.system);
    assert!(world.ground.without == "nothing" || standing.overlay.is_err());
    if let Err(why) = &standing.namespaces {
        eprintln!("SKIPPED in part: {why}");
    }
    standing.namespaces.is_ok()
}
