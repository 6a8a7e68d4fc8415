//! The server as the keeper holds it: its process, the connection, what waits to be sent.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::{
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
    process::{Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_send_signal, waitid},
};

use super::{
    Config,
    spawn::{self, Plan, Process},
    users::{User, Users},
};
use crate::host::launch::wire::{self, Frame, MAX_MESSAGE, Reply, Request};

/// Answers and events that may wait for a server that does not read them.
const MOST_WAITING: usize = 8192;

/// What there is to hear of a server.
pub enum Heard {
    /// What it wants, and the descriptors beside it.
    Order(Frame<Request>, Vec<OwnedFd>),
    /// Nothing yet.
    Nothing,
    /// Nothing any more: it is about to end.
    End,
}

/// A running server.
pub struct Server {
    /// Its process.
    pub process: Process,
    /// The keeper's end of the connection.
    pub socket: OwnedFd,
    /// Whether it has closed its own.
    pub silent: bool,
    outbox: VecDeque<(Vec<u8>, Option<OwnedFd>)>,
    since: Instant,
}

impl Server {
    /// Starts one. Gives also the program that its workers are.
    pub fn start(
        config: &Config,
        users: Users,
        listeners: &[(&'static str, OwnedFd)],
        nothing: &OwnedFd,
    ) -> io::Result<(Server, File)> {
        let (socket, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        // Held open, so that all workers of this server are of its version, even if the file is replaced meanwhile.
        let program = File::open(&config.exe).or_else(|_| File::open("/proc/self/exe"))?;
        let server = config.server_exe.as_ref().map(File::open).transpose()?;
        let mut descriptors = vec![nothing.as_raw_fd(), 1, 2, theirs.as_raw_fd()];
        let mut names = Vec::new();
        for (name, listener) in listeners {
            names.push(format!("{name}={}", descriptors.len()));
            descriptors.push(listener.as_raw_fd());
        }
        let mut environment = config.server_env.clone();
        environment.push(("LARDER_KEEPER".into(), env!("CARGO_PKG_VERSION").into()));
        environment.push(("LARDER_ROOT".into(), config.root.clone().into()));
        environment.push(("LARDER_LISTENERS".into(), names.join(",").into()));
        let argv = ["larder", "server"].map(Into::into).into_iter().chain(config.server_args.iter().cloned()).collect();
        let plan = Plan {
            argv,
            environment,
            identity: users.system().then(|| users.identity(User::Server)),
            view: None,
            directory: "/".into(),
            limits: None,
            data: None,
            processes: None,
            descriptors,
            program: server.as_ref().unwrap_or(&program).as_raw_fd(),
            guarded: false,
        };
        let process = Process::start(&plan, None)?;
        Ok((Server { process, socket, silent: false, outbox: VecDeque::new(), since: Instant::now() }, program))
    }

    /// How long it has lived.
    pub fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// How it ended, once it has.
    pub fn end(&self) -> Option<WaitIdStatus> {
        let status = waitid(WaitId::PidFd(self.process.pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
        let status = status.unwrap_or_else(|error| {
            tracing::error!(%error, "the server cannot be waited for");
            None
        })?;
        while let spawn::Heard::Note(note) = self.process.note() {
            tracing::error!(?note, "the server could not be started");
        }
        Some(status)
    }

    /// Asks it to finish what it is doing and end.
    pub fn terminate(&self) {
        let _ = pidfd_send_signal(&self.process.pidfd, Signal::TERM);
    }

    /// Ends it.
    pub fn kill(&self) {
        let _ = pidfd_send_signal(&self.process.pidfd, Signal::KILL);
    }

    /// Its next order.
    pub fn order(&self) -> Result<Heard, String> {
        let mut buffer = vec![0; MAX_MESSAGE];
        match wire::receive(&self.socket, &mut buffer) {
            Ok((0, _)) => Ok(Heard::End),
            Ok((length, descriptors)) => {
                let frame = wire::decode(buffer.get(..length).unwrap_or_default())?;
                Ok(Heard::Order(frame, descriptors))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Heard::Nothing),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(Heard::End),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Has a message for it. A server that does not take its messages is ended.
    pub fn tell(&mut self, seq: u64, body: Reply, descriptor: Option<OwnedFd>) {
        let bytes = wire::encode(&Frame { seq, body }).or_else(|why| wire::encode(&Frame { seq, body: Reply::Refused(why) }));
        match bytes {
            Ok(bytes) if self.outbox.len() < MOST_WAITING => self.outbox.push_back((bytes, descriptor)),
            _ => {
                tracing::error!("the server does not take its answers");
                self.kill();
            }
        }
    }

    /// Whether a message waits.
    pub fn waits(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Sends what waits, as far as the server takes it.
    pub fn deliver(&mut self) {
        while let Some((bytes, descriptor)) = self.outbox.front() {
            let beside: Vec<_> = descriptor.iter().map(AsFd::as_fd).collect();
            if wire::send(&self.socket, bytes, &beside).is_err() {
                // Full: later. Broken: its end will be seen.
                return;
            }
            self.outbox.pop_front();
        }
    }
}
