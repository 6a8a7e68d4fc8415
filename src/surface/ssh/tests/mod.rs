//! The SSH server with real clients: a server with its own keys, and a handler that carries out a few requests.

mod clients;
mod hostile;
mod identity;

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    path::Path,
    process::{Output, Stdio},
    sync::Arc,
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use parking_lot::Mutex;
use russh::keys::{PrivateKey, ssh_key::LineEnding, ssh_key::private::Ed25519Keypair};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::unix::pipe,
    process::Command,
    sync::{Notify, watch},
};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::model::{ClientTerminal, TerminalSize};

type Call = (String, ExecRequest, Option<String>, Option<ClientTerminal>);

/// A handler that runs git's own programs on bare repositories, and carries out a few commands.
struct TestHandler {
    repositories: std::path::PathBuf,
    keys: Mutex<Vec<(String, SshIdentity)>>,
    calls: Mutex<Vec<Call>>,
    answers: Mutex<Vec<KeyAnswer>>,
    /// The sender for the receivers of [`ExecHandler::key_changes`].
    changed: watch::Sender<()>,
    /// The notification that the command `stuck` has ended because its client is gone.
    finished: Arc<Notify>,
}

impl ExecHandler for TestHandler {
    fn authenticate(&self, credential: &Credential, _source: IpAddr) -> Result<SshIdentity, KeyRefusal> {
        let Credential::Key(key) = credential else { panic!("a certificate, although none is accepted") };
        assert_ne!(key.openssh_line, line_of(&new_key(PANIC)), "a bug in a session");
        let keys = self.keys.lock();
        keys.iter()
            .find(|(line, _)| *line == key.openssh_line)
            .map(|(_, identity)| identity.clone())
            .ok_or_else(|| KeyRefusal { user: None, reason: String::from("the key is not known") })
    }

    fn accepts_certificates(&self) -> bool {
        false
    }

    fn recheck_after(&self, _identity: &SshIdentity) -> Option<Duration> {
        None
    }

    fn answered(&self, answer: KeyAnswer) {
        self.answers.lock().push(answer);
    }

    fn key_changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn exec(&self, call: ExecCall) -> BoxFuture<'static, u32> {
        let user = call.identity.user.to_string();
        let terminal = call.terminal.as_ref().map(|terminal| terminal.terminal.clone());
        self.calls.lock().push((user.clone(), call.request.clone(), call.git_protocol.clone(), terminal));
        if let Some(terminal) = &call.terminal {
            terminal.process_lines();
        }
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

impl TestHandler {
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

/// The seed of a key that makes the session panic when it is offered.
const PANIC: u8 = 99;

struct World {
    directory: TempDir,
    address: SocketAddr,
    handler: Arc<TestHandler>,
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

    async fn with(change: impl FnOnce(&mut SshServerConfig)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let (host_key, _) = keys::load_or_create_host_key(&root.join("host")).unwrap();
        let mut known = Vec::new();
        for (name, seed) in [("alice", 1), ("bob", 2)] {
            let key = new_key(seed);
            write_key(&root.join(name), &key);
            known.push((line_of(&key), SshIdentity { user: name.parse().unwrap(), key: line_of(&key), certificate: None }));
        }
        write_key(&root.join("stranger"), &new_key(3));
        let handler = Arc::new(TestHandler {
            repositories: root.to_owned(),
            keys: Mutex::new(known),
            calls: Mutex::default(),
            answers: Mutex::default(),
            changed: watch::Sender::new(()),
            finished: Arc::default(),
        });
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let host_line = host_key.public_key().to_openssh().unwrap();
        fs::write(root.join("known_hosts"), format!("[127.0.0.1]:{} {host_line}\n", address.port())).unwrap();
        let mut config = SshServerConfig::new(host_key);
        config.limits.refusal_delay = Duration::ZERO;
        // The three limits differ. The duration of a test that hangs therefore shows the limit that ended the test.
        config.limits.keepalive = Duration::from_secs(7);
        config.limits.login_grace = Duration::from_secs(13);
        config.drain = Duration::from_secs(19);
        change(&mut config);
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(serve(listener, config, Arc::clone(&handler) as Arc<dyn ExecHandler>, shutdown.clone()));
        Self { directory, address, handler, shutdown, server }
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
