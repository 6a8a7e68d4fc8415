//! The world of a test: one server with its clients, in a temporary directory.

use std::{
    fs,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            fs::PermissionsExt,
            net::{SocketAddr, UnixListener},
        },
    },
    path::{Path, PathBuf},
    process::Command,
};

use parking_lot::{Mutex, RwLock};

use super::{
    cli::Output,
    disk::Disk,
    machine::Machine,
    processes,
    server::{Server, Setup, log_tail},
    watchdog::Watched,
};

/// The program under test.
const LARDER: &str = env!("CARGO_BIN_EXE_larder");

/// Returns the size of the program under test in bytes.
pub fn program_size() -> u64 {
    fs::metadata(LARDER).unwrap().len()
}

/// The maximum number of worlds at the same time. Each world has 50 ports below the kernel's ephemeral range.
const WORLDS: u32 = 400;

/// The mode of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The server runs as root, with users for each environment.
    System,
    /// The server runs as one unprivileged user.
    Rootless,
}

/// The world of a test. [`World::end`] checks that nothing is left behind. Dropping a world kills its processes and removes its directory.
/// With `LARDER_TEST_KEEP`, the directory of a failed test stays.
pub struct World {
    setup: Setup,
    /// The socket that reserves the ports and the user of this world.
    _reserved: UnixListener,
    _shared: SharedBinary,
    server: RwLock<Option<Server>>,
    _watched: Watched,
}

fn root() -> bool {
    rustix::process::geteuid().is_root()
}

impl World {
    /// Starts a server as root. Without root, prints `SKIPPED:` and returns `None`.
    pub fn system() -> Option<World> {
        if !root() {
            eprintln!("SKIPPED: system mode needs root");
            return None;
        }
        Some(World::new(Mode::System, "", None))
    }

    /// Starts a server as an unprivileged user: a user of the world if the tests run as root, otherwise the user of the tests.
    pub fn rootless() -> Option<World> {
        Some(World::new(Mode::Rootless, "", None))
    }

    /// Starts a server: in system mode if the tests run as root, otherwise in rootless mode.
    pub fn any() -> Option<World> {
        World::configured("")
    }

    /// Starts a server with further lines in the server file.
    pub fn configured(lines: &str) -> Option<World> {
        Some(World::new(if root() { Mode::System } else { Mode::Rootless }, lines, None))
    }

    /// Starts a server whose directory is on a disk of its own.
    pub fn on_disk(disk: &Disk) -> World {
        World::new_in(Some(&disk.path()), Mode::System, "", None)
    }

    /// Starts a server on a simulated machine, which needs root. Clients reach the server from [`Machine::inside`].
    pub fn on(machine: &Machine, lines: &str) -> World {
        World::new(Mode::System, lines, Some(machine))
    }

    fn new(mode: Mode, lines: &str, machine: Option<&Machine>) -> World {
        World::new_in(None, mode, lines, machine)
    }

    fn new_in(base: Option<&Path>, mode: Mode, lines: &str, machine: Option<&Machine>) -> World {
        let (number, reserved) = reserve();
        let mut directory = tempfile::Builder::new();
        directory.prefix("lt").rand_bytes(5);
        let directory = base.map_or_else(|| directory.tempdir(), |base| directory.tempdir_in(base)).unwrap().keep();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        // The program's path identifies the processes of the world.
        let binary = directory.join("larder");
        let shared = SharedBinary::link(&binary);
        let mut program = machine.map_or_else(Vec::new, Machine::prefix);
        let server_root = directory.join("r");
        for path in [&server_root, &directory.join("home")] {
            fs::create_dir(path).unwrap();
        }
        if mode == Mode::Rootless && root() {
            let user = 70_000 + number;
            program.extend(
                ["setpriv", "--reuid", &user.to_string(), "--regid", &user.to_string(), "--clear-groups", "--"]
                    .map(str::to_owned),
            );
            std::os::unix::fs::chown(&server_root, Some(user), Some(user)).unwrap();
        }
        program.push(binary.display().to_string());
        let first_port = 10_000 + number * 50;
        // A scheduled restore point must not disturb the tests of other features. Tests of the schedule set `backup:` themselves.
        let backup = if lines.contains("backup:") { "" } else { "backup: {schedule: off}\n" };
        // A file of this size for each world would use much of a small disk. Tests of disk space set `space:` themselves.
        let space = if lines.contains("space:") { "" } else { "space: {ballast: off}\n" };
        let server_file = format!(
            "ports:\n  from: {first_port}\n  to: {}\n{backup}{space}limits:\n  disk_reserve: 64M\n{lines}",
            first_port + 49
        );
        fs::write(server_root.join("larder.yml"), server_file).unwrap();
        fs::write(directory.join("home/gitconfig"), GIT_CONFIG).unwrap();
        let listen = if machine.is_some() { "0.0.0.0" } else { "127.0.0.1" };
        let watched = Watched::new(&directory);
        let setup = Setup { directory, program, root: server_root, env: Vec::new(), listen };
        let world = World { setup, _reserved: reserved, _shared: shared, server: RwLock::new(None), _watched: watched };
        world.start(&[]);
        world.key("alice");
        world.larder(&["user", "add", "alice", "--admin", "--key-file", &world.public_key("alice")]).ok();
        world
    }

    /// Returns true if the same test also runs in system mode, because the tests run as root.
    pub fn is_second_mode(&self) -> bool {
        root() && self.setup.program.iter().any(|word| word == "setpriv")
    }

    /// Starts the server, with `env` in its environment.
    pub fn start(&self, env: &[(&str, &str)]) {
        assert!(self.start_unless(env, &|| false));
    }

    /// Starts the server, and kills the server if `abort` becomes true before the server is ready. Returns true if the server runs.
    pub fn start_unless(&self, env: &[(&str, &str)], abort: &dyn Fn() -> bool) -> bool {
        assert!(self.server.read().is_none(), "the server runs already");
        let env = env.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        *self.server.write() = Server::start_unless(&Setup { env, ..self.setup.clone() }, abort);
        self.server.read().is_some()
    }

    /// Adds lines to the server file and restarts the server, which reads the file when it starts.
    pub fn add_settings(&self, lines: &str) {
        let file = self.root().join("larder.yml");
        fs::write(&file, fs::read_to_string(&file).unwrap() + lines).unwrap();
        self.restart(&[]);
    }

    /// Stops the server gracefully.
    pub fn stop(&self) {
        self.server.write().take().expect("the server does not run").stop();
    }

    /// Stops the server gracefully, which may take up to `limit`.
    pub fn stop_within(&self, limit: std::time::Duration) {
        self.server.write().take().expect("the server does not run").stop_within(limit);
    }

    /// Stops the server gracefully and starts it with another environment.
    pub fn restart(&self, env: &[(&str, &str)]) {
        self.stop();
        self.start(env);
    }

    /// Kills the server process.
    pub fn kill9_server(&self) {
        self.server.read().as_ref().expect("the server does not run").kill9_role();
    }

    /// Kills keeper and server; [`World::start`] starts them again.
    pub fn kill9_all(&self) {
        self.server.write().take().expect("the server does not run").kill9_all();
    }

    /// Kills keeper, server, workers and applications, as a reset of the machine does; [`World::start`] starts the server again.
    pub fn kill9_everything(&self) {
        self.kill9_all();
        processes::kill_all(self.directory());
    }

    /// Calls a function with the running server.
    pub fn with<T>(&self, ask: impl FnOnce(&Server) -> T) -> T {
        ask(self.server.read().as_ref().expect("the server does not run"))
    }

    /// Returns the directory of the world.
    pub fn directory(&self) -> &Path {
        &self.setup.directory
    }

    /// Returns the root of the server.
    pub fn root(&self) -> &Path {
        &self.setup.root
    }

    pub fn ssh_port(&self) -> u16 {
        self.with(|server| server.ssh.port())
    }

    pub fn http_port(&self) -> u16 {
        self.with(|server| server.http.port())
    }

    /// Runs `larder` with arguments, as the operator on the server.
    pub fn larder(&self, arguments: &[&str]) -> Output {
        let mut command = self.larder_command();
        command.args(arguments);
        Output::of(&mut command)
    }

    /// Returns a `larder` command, as the operator on the server.
    pub fn larder_command(&self) -> Command {
        let mut command = self.setup.command();
        command.arg("--root").arg(self.root());
        command
    }

    /// Runs larder on a terminal on which a person types `input`. If the program `script` is missing, prints `SKIPPED:` and returns `None`.
    pub fn larder_on_terminal(&self, words: &[&str], input: &str) -> Option<Output> {
        super::installed("script")?;
        let mut command = self.larder_command();
        command.args(words);
        let line: Vec<_> =
            std::iter::once(command.get_program()).chain(command.get_args()).map(|word| word.to_str().unwrap()).collect();
        let line = shlex::try_join(line).unwrap();
        Some(Output::of_input(self.client("script").args(["-qec", &line, "/dev/null"]), input))
    }

    /// Runs `ssh -tt larder@server WORDS...` as a user who types `input`.
    pub fn ssh_on_terminal(&self, user: &str, words: &[&str], input: &str) -> Output {
        let mut command = self.client("ssh");
        command.args(self.ssh_options(user)).args(["-tt", "larder@127.0.0.1"]).args(words);
        Output::of_input(&mut command, input)
    }

    /// Creates a project that deploys `main` to production.
    pub fn project(&self, name: &str) -> &World {
        self.larder(&["project", "create", name, "--mode", "cooking"]).ok();
        self
    }

    /// Creates a key pair for a user.
    pub fn key(&self, user: &str) {
        let mut keygen = self.client("ssh-keygen");
        keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", user, "-f"]).arg(self.private_key(user));
        Output::of(&mut keygen).ok();
    }

    pub fn private_key(&self, user: &str) -> PathBuf {
        self.directory().join("home").join(user)
    }

    pub fn public_key(&self, user: &str) -> String {
        self.private_key(user).with_extension("pub").display().to_string()
    }

    /// Returns a command of a client, which runs as the user of the tests in the world's environment.
    pub fn client(&self, program: &str) -> Command {
        let home = self.directory().join("home");
        let mut command = Command::new(program);
        command.env_clear().env("PATH", super::server::PATH).env("HOME", &home).env("LC_ALL", "C.UTF-8").current_dir(&home);
        command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", home.join("gitconfig")).env("GIT_TERMINAL_PROMPT", "0");
        command.stdin(std::process::Stdio::null());
        command
    }

    /// Returns the options of OpenSSH for a user, independent of the files of the user who runs the tests.
    pub fn ssh_options(&self, user: &str) -> Vec<String> {
        let known_hosts = format!("UserKnownHostsFile={}", self.directory().join("home/known_hosts").display());
        let key = self.private_key(user).display().to_string();
        let port = self.ssh_port().to_string();
        let options = ["-F", "/dev/null", "-i", &key, "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-o", &known_hosts];
        let more = ["-o", "StrictHostKeyChecking=accept-new", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR", "-p", &port];
        options.into_iter().chain(more).map(str::to_owned).collect()
    }

    /// Runs `ssh larder@server WORDS...` as a user.
    pub fn ssh(&self, user: &str, words: &[&str]) -> Output {
        let mut command = self.client("ssh");
        command.args(self.ssh_options(user)).arg("larder@127.0.0.1").args(words);
        Output::of(&mut command)
    }

    /// Ends the server gracefully and checks that it leaves no process and no mount.
    pub fn end(self) {
        self.stop();
        let left = processes::of(self.directory());
        assert!(left.is_empty(), "processes are left behind: {left:#?}");
        let mounts = processes::mounts(self.directory());
        assert!(mounts.is_empty(), "mounts are left behind: {mounts:#?}");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- the server's log\n{}----", log_tail(self.directory()));
            eprintln!("---- its processes\n{:#?}", processes::of(self.directory()));
            eprintln!("---- its last deployments\n{}----", self.last_deployments());
        }
        if let Some(server) = self.server.get_mut() {
            server.kill();
        }
        processes::kill_all(self.directory());
        if std::env::var_os("LARDER_TEST_KEEP").is_some() && std::thread::panicking() {
            eprintln!("kept: {}", self.directory().display());
            return;
        }
        if fs::remove_dir_all(self.directory()).is_err() {
            // The kernel creates the work directories of an overlay with mode 000, so only root can open these directories without chmod.
            let _ = Command::new("chmod").args(["-R", "u+rwX", "--"]).arg(self.directory()).status();
            let _ = fs::remove_dir_all(self.directory());
        }
    }
}

/// Reserves a number for a world. No other world on this machine, in this or another test run, has this number while the socket is open. An
/// abstract socket leaves no file behind, even if this process is killed.
fn reserve() -> (u32, UnixListener) {
    let first = std::process::id() * 7;
    let numbers = (0..WORLDS).map(|number| (first + number) % WORLDS);
    let mut free = numbers.filter_map(|number| {
        let name = SocketAddr::from_abstract_name(format!("larder-test-world-{number}")).ok()?;
        UnixListener::bind_addr(&name).ok().map(|socket| (number, socket))
    });
    free.next().expect("too many worlds at once")
}

/// The number of worlds that use the copy of the program, and the path of the copy.
static COPY: Mutex<(usize, Option<PathBuf>)> = Mutex::new((0, None));

/// The program under test in a world, which is a hard link. If the program cannot be linked, or if not every user can run it, the worlds
/// share a copy, which is removed with the last world.
struct SharedBinary {
    copied: bool,
}

impl SharedBinary {
    fn link(to: &Path) -> SharedBinary {
        let usable = fs::metadata(LARDER).unwrap().permissions().mode() & 0o005 == 0o005;
        if usable && fs::hard_link(LARDER, to).is_ok() {
            return SharedBinary { copied: false };
        }
        let mut copy = COPY.lock();
        let path = copy.1.get_or_insert_with(|| {
            let path = std::env::temp_dir().join(format!("lt-larder-{}", std::process::id()));
            let fresh = tempfile::NamedTempFile::new().unwrap();
            fs::copy(LARDER, fresh.path()).unwrap();
            fs::set_permissions(fresh.path(), fs::Permissions::from_mode(0o755)).unwrap();
            // The file is closed before it is linked; otherwise its execution fails with ETXTBSY.
            fs::rename(fresh.into_temp_path().keep().unwrap(), &path).unwrap();
            path
        });
        if fs::hard_link(path, to).is_err() {
            // The world is on a disk of its own. A process of this program that another thread starts would inherit a file that is open for
            // writing, and the execution of the copy would fail with ETXTBSY, so another program copies.
            assert!(Command::new("cp").arg(LARDER).arg(to).status().unwrap().success());
            fs::set_permissions(to, fs::Permissions::from_mode(0o755)).unwrap();
        }
        copy.0 += 1;
        SharedBinary { copied: true }
    }
}

impl Drop for SharedBinary {
    fn drop(&mut self) {
        if !self.copied {
            return;
        }
        let mut copy = COPY.lock();
        copy.0 -= 1;
        if copy.0 == 0
            && let Some(path) = copy.1.take()
        {
            let _ = fs::remove_file(path);
        }
    }
}

const GIT_CONFIG: &str = "\
[user]
\tname = Alice
\temail = alice@example.com
[init]
\tdefaultBranch = main
[advice]
\tdetachedHead = false
[safe]
\tdirectory = *
[gc]
\tauto = 0
";
