//! The room against real clients: the machine's OpenSSH and git, and the library's own client for what those would never send.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    path::Path,
    process::{Output, Stdio},
    sync::Arc,
};

use futures_util::{FutureExt, future::BoxFuture};
use parking_lot::Mutex;
use russh::keys::{PrivateKey, ssh_key::LineEnding, ssh_key::private::Ed25519Keypair};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::unix::pipe,
    process::Command,
    sync::Notify,
};
use tokio_util::sync::CancellationToken;

use super::*;

type Call = (String, ExecRequest, Option<String>, Option<Tty>);

/// Carries out requests for tests: git's own programs on bare repositories, and a few verbs.
struct TestDesk {
    repositories: std::path::PathBuf,
    keys: Mutex<Vec<(String, Identity)>>,
    calls: Mutex<Vec<Call>>,
    /// Told when a request of the verb `stuck` has noticed that its client is gone.
    finished: Arc<Notify>,
}

impl Desk for TestDesk {
    fn authenticate(&self, key: &PublicKeyInfo, _source: IpAddr) -> Option<Identity> {
        let keys = self.keys.lock();
        keys.iter().find(|(line, _)| *line == key.openssh_line).map(|(_, identity)| identity.clone())
    }

    fn exec(&self, call: ExecCall) -> BoxFuture<'static, u32> {
        let user = call.identity.user.to_string();
        self.calls.lock().push((user.clone(), call.request.clone(), call.git_protocol.clone(), call.tty.clone()));
        let io = call.io;
        match call.request {
            ExecRequest::Git { service, path } => {
                let program = match service {
                    GitService::ReceivePack => "receive-pack",
                    GitService::UploadPack => "upload-pack",
                };
                let mut command = Command::new("git");
                command.arg(program).arg(self.repositories.join(format!("{}.git", path.project)));
                command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin");
                if let Some(version) = call.git_protocol {
                    command.env("GIT_PROTOCOL", version);
                }
                command.stdin(io.stdin).stdout(io.stdout).stderr(io.stderr);
                async move {
                    let mut child = command.spawn().unwrap();
                    drop(command);
                    child.wait().await.unwrap().code().unwrap_or(255) as u32
                }
                .boxed()
            }
            ExecRequest::Shell => say(io.stdout, format!("hello {user}\n").into_bytes(), 0),
            ExecRequest::Verb(words) => self.verb(words, io),
        }
    }
}

fn say(out: OwnedFd, text: Vec<u8>, status: u32) -> BoxFuture<'static, u32> {
    async move {
        let mut out = pipe::Sender::from_owned_fd(out).unwrap();
        let _ = out.write_all(&text).await;
        status
    }
    .boxed()
}

impl TestDesk {
    fn verb(&self, words: Vec<String>, io: ExecIo) -> BoxFuture<'static, u32> {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words[..] {
            ["true"] => async { 0 }.boxed(),
            ["false"] => async { 1 }.boxed(),
            ["bug"] => panic!("a bug in a request"),
            ["both"] => async move {
                let mut out = pipe::Sender::from_owned_fd(io.stdout).unwrap();
                let mut err = pipe::Sender::from_owned_fd(io.stderr).unwrap();
                out.write_all(b"out\n").await.unwrap();
                err.write_all(b"err\n").await.unwrap();
                3
            }
            .boxed(),
            ["zeros", megabytes] => say(io.stdout, vec![b'z'; megabytes.parse::<usize>().unwrap() << 20], 7),
            ["count"] => async move {
                let mut input = pipe::Receiver::from_owned_fd(io.stdin).unwrap();
                let mut total = 0;
                let mut buffer = vec![0; 65536];
                loop {
                    match input.read(&mut buffer).await.unwrap() {
                        0 => break,
                        count => total += count,
                    }
                }
                say(io.stdout, format!("{total}\n").into_bytes(), 0).await
            }
            .boxed(),
            ["cat"] => async move {
                let mut input = pipe::Receiver::from_owned_fd(io.stdin).unwrap();
                let mut out = pipe::Sender::from_owned_fd(io.stdout).unwrap();
                tokio::io::copy(&mut input, &mut out).await.map_or(1, |_| 0)
            }
            .boxed(),
            ["stuck"] => {
                let gone = io.gone.clone();
                let finished = Arc::clone(&self.finished);
                async move {
                    let io = io;
                    let mut out = pipe::Sender::from_owned_fd(io.stdout).unwrap();
                    out.write_all(b"stuck\n").await.unwrap();
                    gone.cancelled().await;
                    finished.notify_one();
                    0
                }
                .boxed()
            }
            _ => say(io.stderr, b"no such verb\n".to_vec(), 2),
        }
    }
}

struct World {
    directory: TempDir,
    address: SocketAddr,
    desk: Arc<TestDesk>,
    shutdown: CancellationToken,
    server: tokio::task::JoinHandle<()>,
}

fn new_key(seed: u8) -> PrivateKey {
    PrivateKey::new(Ed25519Keypair::from_seed(&[seed; 32]).into(), "test").unwrap()
}

fn line_of(key: &PrivateKey) -> String {
    keys::info(key.public_key()).unwrap().openssh_line
}

impl World {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut SshConfig)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let (host_key, _) = hostkey::load_or_create(&root.join("host")).unwrap();
        let mut known = Vec::new();
        for (name, seed) in [("alice", 1), ("bob", 2)] {
            let key = new_key(seed);
            write_key(&root.join(name), &key);
            known.push((line_of(&key), Identity { user: name.parse().unwrap() }));
        }
        write_key(&root.join("stranger"), &new_key(3));
        let desk = Arc::new(TestDesk {
            repositories: root.to_owned(),
            keys: Mutex::new(known),
            calls: Mutex::default(),
            finished: Arc::default(),
        });
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let host_line = host_key.public_key().to_openssh().unwrap();
        fs::write(root.join("known_hosts"), format!("[127.0.0.1]:{} {host_line}\n", address.port())).unwrap();
        let mut config = SshConfig::new(host_key);
        config.limits.refusal_delay = Duration::ZERO;
        change(&mut config);
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(serve(listener, config, Arc::clone(&desk) as Arc<dyn Desk>, shutdown.clone()));
        Self { directory, address, desk, shutdown, server }
    }

    fn root(&self) -> &Path {
        self.directory.path()
    }

    fn options(&self, user: &str) -> Vec<String> {
        let root = self.root().display();
        let mut options =
            vec![String::from("-F"), String::from("/dev/null"), String::from("-p"), self.address.port().to_string()];
        for option in [
            String::from("IdentitiesOnly=yes"),
            String::from("IdentityAgent=none"),
            String::from("BatchMode=yes"),
            String::from("StrictHostKeyChecking=yes"),
            format!("UserKnownHostsFile={root}/known_hosts"),
            String::from("GlobalKnownHostsFile=/dev/null"),
            format!("IdentityFile={root}/{user}"),
        ] {
            options.extend([String::from("-o"), option]);
        }
        options
    }

    fn ssh(&self, user: &str) -> Command {
        let mut command = Command::new("ssh");
        command.args(self.options(user)).kill_on_drop(true).stdin(Stdio::null());
        command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", self.root());
        command
    }

    async fn run(&self, user: &str, words: &[&str]) -> Output {
        self.ssh(user).arg("git@127.0.0.1").args(words).output().await.unwrap()
    }

    async fn git(&self, directory: &Path, extra: &str, arguments: &[&str]) -> Output {
        let quoted: Vec<_> = self.options("alice").iter().map(|option| format!("'{option}'")).collect();
        let output = Command::new("git")
            .current_dir(directory)
            .args(["-c", "user.name=a", "-c", "user.email=a@b.invalid", "-c", "init.defaultBranch=main"])
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", self.root())
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_SSH_COMMAND", format!("ssh {extra} {}", quoted.join(" ")))
            .output()
            .await
            .unwrap();
        assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        output
    }

    fn url(&self) -> String {
        format!("ssh://larder@127.0.0.1:{}/shop", self.address.port())
    }

    async fn end(self) {
        self.shutdown.cancel();
        self.server.await.unwrap();
    }
}

fn write_key(path: &Path, key: &PrivateKey) {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, key.to_openssh(LineEnding::LF).unwrap().as_bytes()).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_have_output_errors_and_status() {
    let world = World::new().await;
    let output = world.run("alice", &["both"]).await;
    assert_eq!((text(&output.stdout), text(&output.stderr), output.status.code()), ("out\n".into(), "err\n".into(), Some(3)));
    assert_eq!(world.run("alice", &["true"]).await.status.code(), Some(0));
    assert_eq!(world.run("bob", &["false"]).await.status.code(), Some(1));
    assert_eq!(text(&world.run("bob", &[]).await.stdout), "hello bob\n");
    let calls = world.desk.calls.lock().clone();
    assert_eq!(calls[0].0, "alice");
    assert_eq!(calls[3], (String::from("bob"), ExecRequest::Shell, None, None));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_get_one_clear_line() {
    let world = World::new().await;
    for command in ["git-receive-pack '../etc'", "git-upload-archive 'shop'", "git-receive-pack --help", "x 'y"] {
        let output = world.run("alice", &[command]).await;
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{command}: {errors}");
        assert!(errors.starts_with("larder: ") && errors.lines().count() == 1, "{command}: {errors}");
    }
    assert!(world.desk.calls.lock().is_empty());
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_known_keys_and_logins_come_in() {
    let world = World::new().await;
    let refused =
        |output: &Output| output.status.code() == Some(255) && text(&output.stderr).contains("Permission denied (publickey)");
    assert!(refused(&world.run("stranger", &["true"]).await));
    let wrong_login = world.ssh("alice").args(["root@127.0.0.1", "true"]).output().await.unwrap();
    assert!(refused(&wrong_login));
    world.desk.keys.lock().clear();
    assert!(refused(&world.run("alice", &["true"]).await));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_ends_one_request_only() {
    let world = World::new().await;
    assert_eq!(world.run("alice", &["bug"]).await.status.code(), Some(70));
    assert_eq!(world.run("alice", &["true"]).await.status.code(), Some(0));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn git_pushes_fetches_and_clones() {
    let world = World::new().await;
    let root = world.root().to_owned();
    world.git(&root, "", &["init", "--bare", "shop.git"]).await;
    world.git(&root, "", &["init", "work"]).await;
    let work = root.join("work");
    // Incompressible, so that a rekey every megabyte happens several times.
    let mut noise = vec![0; 6 << 20];
    let mut state = 1_u64;
    for chunk in noise.chunks_mut(8) {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let bytes = (state ^ (state >> 29)).to_le_bytes();
        chunk.copy_from_slice(&bytes[..chunk.len()]);
    }
    fs::write(work.join("noise"), &noise).unwrap();
    world.git(&work, "", &["add", "."]).await;
    world.git(&work, "", &["commit", "-m", "one"]).await;
    world.git(&work, "-o RekeyLimit=1M", &["push", &world.url(), "main"]).await;
    world.git(&root, "-o RekeyLimit=1M", &["clone", &world.url(), "copy"]).await;
    assert_eq!(fs::read(root.join("copy/noise")).unwrap(), noise);
    fs::write(work.join("more"), "more").unwrap();
    world.git(&work, "", &["add", "."]).await;
    world.git(&work, "", &["commit", "-m", "two"]).await;
    world.git(&work, "", &["push", &world.url(), "main"]).await;
    world.git(&root.join("copy"), "", &["pull"]).await;
    assert_eq!(fs::read_to_string(root.join("copy/more")).unwrap(), "more");
    let calls = world.desk.calls.lock().clone();
    assert!(calls.iter().any(|(_, _, protocol, _)| protocol.as_deref() == Some("version=2")), "{calls:?}");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_gets_everything_and_the_status() {
    let world = World::new().await;
    let mut child = world.ssh("alice").args(["git@127.0.0.1", "zeros 12"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = child.stdout.take().unwrap();
    let mut total = 0;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match output.read(&mut buffer).await.unwrap() {
            0 => break,
            count => total += count,
        }
        if total % (1 << 20) < 32 * 1024 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    assert_eq!(total, 12 << 20);
    assert_eq!(child.wait().await.unwrap().code(), Some(7));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn much_input_arrives_and_echoes_do_not_deadlock() {
    let world = World::new().await;
    let file = world.root().join("input");
    fs::write(&file, vec![b'i'; 24 << 20]).unwrap();
    let counted = world.ssh("alice").args(["git@127.0.0.1", "count"]).stdin(fs::File::open(&file).unwrap()).output();
    assert_eq!(text(&counted.await.unwrap().stdout), format!("{}\n", 24 << 20));
    let echoed = world.ssh("alice").args(["git@127.0.0.1", "cat"]).stdin(fs::File::open(&file).unwrap()).output();
    let echoed = echoed.await.unwrap();
    assert_eq!((echoed.stdout.len(), echoed.status.code()), (24 << 20, Some(0)));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_stuck_channel_does_not_hold_up_another() {
    let world = World::new().await;
    let socket = world.root().join("mux");
    let file = world.root().join("input");
    fs::write(&file, vec![b'i'; 40 << 20]).unwrap();
    let path = socket.display().to_string();
    let mut stuck = world
        .ssh("alice")
        .args(["-M", "-S", &path, "git@127.0.0.1", "stuck"])
        .stdin(fs::File::open(&file).unwrap())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 6];
    stuck.stdout.as_mut().unwrap().read_exact(&mut first).await.unwrap();
    for _ in 0..3 {
        let other = world.ssh("alice").args(["-S", &path, "git@127.0.0.1", "zeros 4"]).output().await.unwrap();
        assert_eq!((other.stdout.len(), other.status.code()), (4 << 20, Some(7)));
    }
    // A reader of output that does not read is no hindrance either.
    let mut lazy = world.ssh("alice").args(["-S", &path, "git@127.0.0.1", "zeros 30"]).stdout(Stdio::piped()).spawn().unwrap();
    lazy.stdout.as_mut().unwrap().read_exact(&mut first).await.unwrap();
    for _ in 0..3 {
        let other = world.ssh("alice").args(["-S", &path, "git@127.0.0.1", "zeros 4"]).output().await.unwrap();
        assert_eq!((other.stdout.len(), other.status.code()), (4 << 20, Some(7)));
    }
    assert_eq!(world.desk.calls.lock().len(), 8);
    lazy.kill().await.unwrap();
    stuck.kill().await.unwrap();
    world.end().await;
}
