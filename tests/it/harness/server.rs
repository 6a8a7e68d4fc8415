//! The server of a world: a keeper, the server process below it, and their ports.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rustix::process::Signal;

use super::processes;

/// The time limit of a start on a busy machine.
const START: Duration = Duration::from_secs(60);
/// The time limit of a graceful stop.
const STOP: Duration = Duration::from_secs(30);

/// The pauses of the keeper before its next server (`SERVER_BACKOFF` of the keeper) in milliseconds, without the first pause, which is zero.
const PAUSES: [u64; 8] = [100, 200, 400, 800, 1600, 3200, 6400, 10_000];
/// The time before the end of a pause in which the keeper gets no signal.
const MARGIN: Duration = Duration::from_millis(100);

/// A running `larder serve`.
#[derive(Debug)]
pub struct Server {
    keeper: Child,
    directory: PathBuf,
    /// The number of `ready` lines.
    ready: Arc<AtomicUsize>,
    /// The time at which [`Server::hurry`] has first seen that no server process runs.
    absent_since: Mutex<Option<Instant>>,
    pub ssh: SocketAddr,
    pub http: SocketAddr,
}

/// The settings of a start.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The world's directory, which contains all files of the world.
    pub directory: PathBuf,
    /// The program, with words before it such as `setpriv`.
    pub program: Vec<String>,
    /// The server's root.
    pub root: PathBuf,
    /// Additional environment, such as `FAILPOINTS`.
    pub env: Vec<(String, String)>,
    /// The address to listen on: loopback, or all addresses of a simulated machine.
    pub listen: &'static str,
}

impl Setup {
    /// Returns a command in the world's environment, as the user of larder.
    pub fn command(&self) -> Command {
        let (program, before) = self.program.split_first().unwrap();
        let mut command = Command::new(program);
        command.args(before).env_clear().env("PATH", PATH).env("HOME", self.directory.join("home")).env("LC_ALL", "C.UTF-8");
        command.current_dir("/").stdin(Stdio::null());
        command
    }
}

/// The search path of programs in a world.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Server {
    /// Starts the server and waits for its ready line. If `abort` returns true before the server is ready, kills keeper and server, and returns
    /// `None`.
    pub fn start_unless(setup: &Setup, abort: &dyn Fn() -> bool) -> Option<Server> {
        let log = File::options().create(true).append(true).open(log_file(&setup.directory)).unwrap();
        let mut command = setup.command();
        let listen = format!("{}:0", setup.listen);
        command.arg("serve").arg("--root").arg(&setup.root).args(["--ssh", &listen, "--http", &listen]);
        command.envs(setup.env.iter().cloned()).env("RUST_BACKTRACE", "1").stdout(Stdio::piped()).stderr(log);
        let mut keeper = command.spawn().unwrap();
        let (send, lines) = mpsc::channel();
        let stdout = BufReader::new(keeper.stdout.take().unwrap());
        let ready = Arc::new(AtomicUsize::new(0));
        let counted = ready.clone();
        // The output is read to its end, so that the server never blocks on a full pipe.
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok).filter(|line| line.starts_with("ready ")) {
                counted.fetch_add(1, Ordering::SeqCst);
                let _ = send.send(line);
            }
        });
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut server = Server {
            keeper,
            directory: setup.directory.clone(),
            ready,
            absent_since: Mutex::default(),
            ssh: nowhere,
            http: nowhere,
        };
        let start = Instant::now();
        let line = loop {
            match lines.recv_timeout(Duration::from_millis(20)) {
                Ok(line) => break line,
                Err(_) if abort() => {
                    server.kill9_all();
                    return None;
                }
                Err(mpsc::RecvTimeoutError::Timeout) if start.elapsed() < START => {}
                Err(error) => {
                    server.kill();
                    panic!("the server did not get ready ({error}):\n{}", log_tail(&setup.directory));
                }
            }
        };
        [server.ssh, server.http] = ["ssh=", "http="].map(|key| {
            let word = line.split_whitespace().find_map(|word| word.strip_prefix(key));
            word.unwrap_or_else(|| panic!("no {key} in {line:?}")).parse().unwrap_or_else(|_| panic!("no address in {line:?}"))
        });
        Some(server)
    }

    /// Returns the process id of the keeper.
    pub fn keeper(&self) -> i32 {
        self.keeper.id() as i32
    }

    /// Returns the process id of the server process, which is a child of the keeper. Returns `None` if no server process runs.
    pub fn role(&self) -> Option<i32> {
        let is_role =
            |pid: &i32| processes::arguments(*pid).is_some_and(|words| words.get(1).is_some_and(|role| role == "server"));
        processes::children(self.keeper()).into_iter().find(is_role)
    }

    /// Ends a long pause of the keeper before its next server; the pauses grow with each kill. Call this function repeatedly while waiting for
    /// the server. A keeper that may be about to start the server gets no signal, because it would replace the new server.
    pub fn hurry(&self) {
        let mut since = self.absent_since.lock();
        if self.role().is_some() {
            *since = None;
            return;
        }
        let absent = since.get_or_insert_with(Instant::now).elapsed();
        let next = PAUSES.into_iter().map(Duration::from_millis).find(|pause| *pause > absent);
        if absent > Duration::from_millis(PAUSES[1]) + MARGIN / 2 && next.is_some_and(|next| next - absent > MARGIN) {
            processes::signal(self.keeper(), Signal::HUP);
            *since = None;
        }
    }

    /// Returns the number of `ready` lines since the keeper started.
    pub fn ready(&self) -> usize {
        self.ready.load(Ordering::SeqCst)
    }

    /// Kills the server process, and waits until the keeper's next server is ready.
    pub fn kill9_role(&self) {
        let ready = self.ready();
        self.shoot_role();
        super::until("the keeper's next server is ready", || {
            self.hurry();
            self.ready() > ready
        });
    }

    /// Waits until a server process runs, and kills this process.
    pub fn shoot_role(&self) {
        super::until("there is a server role to kill", || match self.role() {
            Some(role) => {
                processes::signal(role, Signal::KILL);
                true
            }
            None => false,
        });
    }

    /// Kills the keeper and the server at once, and no other process.
    pub fn kill9_all(mut self) {
        let role = self.role();
        let _ = self.keeper.kill();
        if let Some(role) = role {
            processes::signal(role, Signal::KILL);
        }
        let _ = self.keeper.wait();
    }

    /// Returns the path of the program in the world.
    pub fn binary(&self) -> PathBuf {
        self.directory.join("larder")
    }

    /// Stops the server gracefully, and waits for its end.
    pub fn stop(self) {
        self.stop_within(STOP);
    }

    /// Stops the server gracefully, with the time limit `limit`.
    pub fn stop_within(mut self, limit: Duration) {
        processes::signal(self.keeper(), Signal::TERM);
        let mut status = None;
        super::within(limit, || {
            status = self.keeper.try_wait().unwrap();
            status.is_some()
        });
        let Some(status) = status else {
            let left = processes::of(&self.directory);
            let _ = self.keeper.kill();
            let _ = self.keeper.wait();
            panic!("the server did not stop within {limit:?}; {left:#?}\n{}", log_tail(&self.directory));
        };
        assert!(status.success(), "the server ended with {status}:\n{}", log_tail(&self.directory));
    }

    /// Kills the keeper, after a failed start or for a world that is being removed.
    pub fn kill(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

/// Returns the path of the file with the server's standard error.
pub fn log_file(directory: &Path) -> PathBuf {
    directory.join("server.log")
}

/// Returns the last 16 KiB of the server's standard error, for messages.
pub fn log_tail(directory: &Path) -> String {
    let log = fs::read(log_file(directory)).unwrap_or_default();
    let start = log.len().saturating_sub(16 * 1024);
    String::from_utf8_lossy(&log[start..]).into_owned()
}
