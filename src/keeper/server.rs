//! The keeper's handle of the server process: the connection, the messages that wait to be sent, and the check before a reload.

use std::{
    ffi::OsString,
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
    time::{Duration, Instant},
};

use larder_sandbox::{ChildProcess, ChildSpec, ProcessEnd, Received};
use rustix::{
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
    stdio,
};

use super::{
    config::KeeperConfig,
    lifecycle::ServerProgram,
    users::{SystemUser, Users},
};
use crate::host::launch::{KeeperEnd, wire::LaunchReply};

/// The path of the program that the keeper itself runs.
const OWN: &str = "/proc/self/exe";

/// Opens the program of the server role, and the program of its workers.
///
/// Both files stay open, so that all workers of a server have the server's version, even if the installed file is replaced meanwhile.
fn open_programs(config: &KeeperConfig, program: ServerProgram) -> io::Result<(File, File)> {
    let workers = match program {
        ServerProgram::Installed => File::open(&config.exe)?,
        ServerProgram::Own => File::open(OWN)?,
    };
    let server = config.server_exe.as_ref().map_or_else(|| workers.try_clone(), File::open)?;
    Ok((server, workers))
}

/// Returns true if the installed program is not the file that the keeper runs.
pub fn is_replaced(config: &KeeperConfig) -> bool {
    let file = |path: &Path| std::fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    file(&config.exe) != file(Path::new(OWN))
}

/// Returns the process specification of a server, or of the check before a reload. The process inherits no environment variables.
fn spec<'fd>(
    config: &KeeperConfig,
    users: Users,
    words: &[&str],
    arguments: &[OsString],
    descriptors: Vec<BorrowedFd<'fd>>,
    program: &'fd File,
) -> ChildSpec<'fd> {
    let mut environment = config.server_env.clone();
    environment.push(("LARDER_KEEPER".into(), env!("CARGO_PKG_VERSION").into()));
    environment.push(("LARDER_ROOT".into(), config.root.clone().into()));
    ChildSpec {
        argv: words.iter().map(OsString::from).chain(arguments.iter().cloned()).collect(),
        environment,
        user: users.system().then(|| users.numbers(SystemUser::Server)),
        descriptors,
        ..ChildSpec::new(program.as_fd())
    }
}

/// Returns the end of a process, or `None` if the process still runs. Logs the reason if its program could not be started.
pub fn end_of(process: &ChildProcess) -> Option<ProcessEnd> {
    let end = process.try_wait()?;
    while let Received::Event(event) = process.receive() {
        tracing::error!(?event, "cannot start the server's program");
    }
    Some(end)
}

/// A running server.
pub struct ServerProcess {
    pub process: ChildProcess,
    pub connection: KeeperEnd,
    /// True if the server has closed its end of the connection.
    pub closed: bool,
    pub since: Instant,
}

impl ServerProcess {
    /// Starts a server. Also returns the program of the server's workers.
    pub fn start(
        config: &KeeperConfig,
        program: ServerProgram,
        users: Users,
        listeners: &[(&'static str, OwnedFd)],
        null: &OwnedFd,
    ) -> io::Result<(ServerProcess, File)> {
        let (socket, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let (server, workers) = open_programs(config, program)?;
        let mut descriptors = vec![null.as_fd(), stdio::stdout(), stdio::stderr(), theirs.as_fd()];
        let mut names = Vec::new();
        for (name, listener) in listeners {
            names.push(format!("{name}={}", descriptors.len()));
            descriptors.push(listener.as_fd());
        }
        let mut spec = spec(config, users, &["larder", "server"], &config.server_args, descriptors, &server);
        spec.environment.push(("LARDER_LISTENERS".into(), names.join(",").into()));
        let process = ChildProcess::start(&spec, None)?;
        let server = ServerProcess { process, connection: KeeperEnd::over(socket), closed: false, since: Instant::now() };
        Ok((server, workers))
    }

    /// Queues a message. A server that does not read its messages is killed.
    pub fn send(&mut self, seq: u64, body: LaunchReply, descriptor: Option<OwnedFd>) {
        if !self.connection.send(seq, body, descriptor) {
            tracing::error!("the server does not read its messages; killing the server");
            self.process.kill();
        }
    }
}

/// The check before a reload: the installed program reads the configuration and exits, while the old server continues to run.
pub struct ReloadCheck {
    pub process: ChildProcess,
    /// The time at which the check is killed.
    pub deadline: Instant,
}

impl ReloadCheck {
    /// The time limit of a check, which only reads a few small files.
    const LIMIT: Duration = Duration::from_secs(20);

    /// Starts the check. Returns `None` if the keeper's configuration has no check.
    pub fn start(config: &KeeperConfig, users: Users, null: &OwnedFd) -> io::Result<Option<ReloadCheck>> {
        let Some(words) = config.check_args.as_deref() else { return Ok(None) };
        let (server, _) = open_programs(config, ServerProgram::Installed)?;
        let spec = spec(config, users, &["larder"], words, vec![null.as_fd(), stdio::stderr(), stdio::stderr()], &server);
        let process = ChildProcess::start(&spec, None)?;
        Ok(Some(ReloadCheck { process, deadline: Instant::now() + ReloadCheck::LIMIT }))
    }
}
