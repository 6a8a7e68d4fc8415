//! The loop: keeps a server running, takes its orders, follows all processes, stops when asked.

use std::{
    collections::VecDeque,
    fs::File,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    process::ExitCode,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{Mode, OFlags, open},
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
    process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid},
};

use super::{
    Config, KeeperError,
    place::Places,
    sandbox::Base,
    spawn::{Plan, Process},
    sys,
    table::{News, STABLE, Table},
    users::{User, Users},
};
use crate::{
    host::launch::wire::{self, Frame, MAX_MESSAGE, Reply, Request},
    model::ProcessId,
};

/// The longest pause before the server is started again.
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// How long the server may take to finish what it is doing.
const SERVER_GRACE: Duration = Duration::from_secs(30);
/// How long applications may take.
const GRACE: Duration = Duration::from_secs(10);
/// Answers and events that may wait for a server that does not read them.
const MOST_WAITING: usize = 8192;
/// Orders that are taken before other things are looked at again.
const ORDERS_AT_ONCE: usize = 64;

/// A running server.
struct Server {
    process: Process,
    socket: OwnedFd,
    outbox: VecDeque<(Vec<u8>, Option<OwnedFd>)>,
    since: Instant,
}

/// The keeper at work.
pub struct Desk {
    config: Config,
    users: Users,
    table: Table,
    listeners: Vec<(&'static str, OwnedFd)>,
    signals: OwnedFd,
    nothing: OwnedFd,
    server: Option<Server>,
    /// When to start the next one.
    again: Option<Instant>,
    pause: Duration,
    /// Whether a server has ever given an order.
    proven: bool,
    stopping: Option<Stopping>,
    code: u8,
}

/// How far a stop has come.
struct Stopping {
    /// When patience with the server ends.
    server: Instant,
    hurry: bool,
}

/// What there is to wait for.
#[derive(Clone, Copy)]
enum Cause {
    Signal,
    Server,
    ServerEnd,
    Notes(ProcessId),
    End(ProcessId),
}

impl Desk {
    /// Everything ready, no server yet.
    pub fn open(
        config: Config,
        users: Users,
        places: Places,
        listeners: Vec<(&'static str, OwnedFd)>,
        base: Result<Base, String>,
    ) -> Result<Desk, KeeperError> {
        let in_root = |source| KeeperError::Root { path: config.root.clone(), source };
        let signals = sys::signal_descriptor(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP]).map_err(KeeperError::Wait)?;
        let nothing =
            open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|error| KeeperError::Wait(error.into()))?;
        let table = Table::new(config.clone(), users, places, base).map_err(in_root)?;
        let (again, pause) = (Some(Instant::now()), Duration::ZERO);
        let (server, stopping) = (None, None);
        Ok(Desk { config, users, table, listeners, signals, nothing, server, again, pause, proven: false, stopping, code: 0 })
    }

    /// Works until asked to stop.
    pub fn serve(mut self) -> Result<ExitCode, KeeperError> {
        loop {
            self.tick();
            if self.stopping.is_some() && self.server.is_none() && !self.table.stop_all(GRACE) {
                return Ok(ExitCode::from(self.code));
            }
            self.deliver();
            for cause in self.wait().map_err(|error| KeeperError::Wait(error.into()))? {
                match cause {
                    Cause::Signal => self.signalled(),
                    Cause::Server => self.orders(),
                    Cause::ServerEnd => self.server_ended(),
                    Cause::Notes(id) => self.table.notes(id),
                    Cause::End(id) => self.table.ended(id),
                }
            }
        }
    }

    fn wait(&self) -> rustix::io::Result<Vec<Cause>> {
        let mut ready = vec![PollFd::new(&self.signals, PollFlags::IN)];
        let mut causes = vec![Cause::Signal];
        if let Some(server) = &self.server {
            let write = if server.outbox.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            ready.push(PollFd::new(&server.socket, PollFlags::IN | write));
            ready.push(PollFd::new(&server.process.pidfd, PollFlags::IN));
            causes.extend([Cause::Server, Cause::ServerEnd]);
        }
        for (id, control, pidfd) in self.table.waiting() {
            // The end includes the last notes.
            ready.push(PollFd::new(pidfd, PollFlags::IN));
            ready.push(PollFd::new(control, PollFlags::IN));
            causes.extend([Cause::End(id), Cause::Notes(id)]);
        }
        let deadline = [self.table.deadline(), self.again, self.stopping.as_ref().map(|stopping| stopping.server)];
        let timeout = deadline.into_iter().flatten().min().map(|at| {
            let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) }
        });
        match poll(&mut ready, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        Ok(ready.iter().zip(causes).filter(|(ready, _)| !ready.revents().is_empty()).map(|(_, cause)| cause).collect())
    }

    /// Does what is due.
    fn tick(&mut self) {
        let now = Instant::now();
        self.table.tick();
        if self.again.is_some_and(|at| at <= now) && self.stopping.is_none() {
            self.again = None;
            if let Err(error) = self.start_server() {
                tracing::error!(%error, "the server cannot be started");
                self.try_again();
            }
        }
        if let (Some(stopping), Some(server)) = (&mut self.stopping, &self.server)
            && (stopping.server <= now || stopping.hurry)
        {
            server.kill();
            stopping.server = now + Duration::from_secs(1);
        }
    }

    fn try_again(&mut self) {
        self.again = Some(Instant::now() + self.pause);
        self.pause = (self.pause * 2).clamp(Duration::from_millis(100), LAST_PAUSE);
    }

    fn start_server(&mut self) -> std::io::Result<()> {
        let (socket, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        // Held open, so that all workers of this server are of its version, even if the file is replaced meanwhile.
        let program = File::open(&self.config.exe).or_else(|_| File::open("/proc/self/exe"))?;
        let server = self.config.server_exe.as_ref().map(File::open).transpose()?;
        let mut descriptors = vec![self.nothing.as_raw_fd(), 1, 2, theirs.as_raw_fd()];
        let mut names = Vec::new();
        for (name, listener) in &self.listeners {
            names.push(format!("{name}={}", descriptors.len()));
            descriptors.push(listener.as_raw_fd());
        }
        let mut environment = self.config.server_env.clone();
        environment.push(("LARDER_ROOT".into(), self.config.root.clone().into()));
        environment.push(("LARDER_LISTENERS".into(), names.join(",").into()));
        let argv = ["larder", "server"].map(Into::into).into_iter().chain(self.config.server_args.iter().cloned()).collect();
        let plan = Plan {
            argv,
            environment,
            identity: self.users.system().then(|| self.users.identity(User::Server)),
            view: None,
            directory: "/".into(),
            limits: None,
            limit_data: false,
            descriptors,
            program: server.as_ref().unwrap_or(&program).as_raw_fd(),
            guarded: false,
        };
        let process = Process::start(&plan, None)?;
        self.table.use_program(program);
        self.server = Some(Server { process, socket, outbox: VecDeque::new(), since: Instant::now() });
        Ok(())
    }

    fn server_ended(&mut self) {
        let Some(server) = &self.server else { return };
        let status = match waitid(WaitId::PidFd(server.process.pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
            Ok(None) => return,
            Ok(Some(status)) => status,
            Err(error) => return tracing::error!(%error, "the server cannot be waited for"),
        };
        while let Some(note) = server.process.note() {
            tracing::error!(?note, "the server could not be started");
        }
        if server.since.elapsed() >= STABLE {
            self.pause = Duration::ZERO;
        }
        self.server = None;
        self.table.end_orders();
        let code = status.exit_status().and_then(|code| u8::try_from(code).ok());
        match (&self.stopping, code) {
            (Some(_), _) => {}
            // It refused to work, and has said why: another one would say the same.
            (None, Some(code)) if !self.proven => {
                self.code = code;
                self.stop();
            }
            (None, Some(0)) => self.stop(),
            _ => {
                tracing::error!(code, signal = status.terminating_signal(), "the server has ended; starting another");
                self.try_again();
            }
        }
    }

    fn signalled(&mut self) {
        let mut buffer = [0; 1024];
        while rustix::io::read(&self.signals, &mut buffer).is_ok() {}
        match &mut self.stopping {
            // Asked twice: no more patience.
            Some(stopping) => {
                stopping.hurry = true;
                self.table.hurry();
            }
            None => self.stop(),
        }
    }

    fn stop(&mut self) {
        self.again = None;
        self.stopping = Some(Stopping { server: Instant::now() + SERVER_GRACE, hurry: false });
        if let Some(server) = &self.server {
            let _ = pidfd_send_signal(&server.process.pidfd, Signal::TERM);
        }
    }

    /// Takes orders, but not without looking up.
    fn orders(&mut self) {
        let mut buffer = vec![0; MAX_MESSAGE];
        for _ in 0..ORDERS_AT_ONCE {
            let Some(server) = &self.server else { return };
            let (length, descriptors) = match wire::receive(&server.socket, &mut buffer) {
                Ok((0, _)) => return server.kill(),
                Ok(received) => received,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    tracing::error!(%error, "the server cannot be understood");
                    return server.kill();
                }
            };
            match buffer.get(..length).map(wire::decode::<Request>) {
                Some(Ok(frame)) => {
                    self.proven = true;
                    self.order(frame, descriptors);
                }
                other => {
                    tracing::error!(why = ?other.map(|frame| frame.err()), "the server sent something that is not an order");
                    return server.kill();
                }
            }
        }
    }

    fn order(&mut self, Frame { seq, body }: Frame<Request>, descriptors: Vec<OwnedFd>) {
        if self.stopping.is_some() && matches!(body, Request::Register(_)) {
            return self.reply(seq, Reply::Refused("larder is stopping".into()), None);
        }
        let done = |result: Result<(), String>| result.map_or_else(Reply::Refused, |()| Reply::Done);
        let reply = match body {
            Request::Launch { launch, given } => return self.table.launch(seq, launch, given, descriptors),
            Request::Kept { after } => match self.table.kept(after) {
                Some((id, launch, output)) => return self.reply(seq, Reply::Kept(Some((id, launch))), Some(output)),
                None => Reply::Kept(None),
            },
            Request::Register(registration) => done(self.table.register(&registration)),
            Request::Unregister { project, environment } => done(self.table.unregister(project, environment)),
            Request::End { id, now } => done(self.table.end(id, now)),
            Request::Stop { id, grace } => done(self.table.stop(id, Duration::from_millis(grace.into()))),
            Request::Fresh { environment, area, release, slot } => done(self.table.fresh(environment, area, release, slot)),
            Request::Adopt { environment, from, to } => done(self.table.adopt(environment, from, to)),
            Request::Soon => return self.table.soon(),
            Request::Standing => Reply::Standing(self.table.standing()),
        };
        // Number 0: nobody waits for the answer.
        if seq != 0 {
            self.reply(seq, reply, None);
        }
    }

    fn reply(&mut self, seq: u64, body: Reply, descriptor: Option<OwnedFd>) {
        let Some(server) = &mut self.server else { return };
        let bytes = wire::encode(&Frame { seq, body }).or_else(|why| wire::encode(&Frame { seq, body: Reply::Refused(why) }));
        match bytes {
            Ok(bytes) if server.outbox.len() < MOST_WAITING => server.outbox.push_back((bytes, descriptor)),
            _ => {
                tracing::error!("the server does not take its answers");
                server.kill();
            }
        }
    }

    /// Sends what there is to tell, as far as the server takes it.
    fn deliver(&mut self) {
        while let Some(news) = self.table.news() {
            match news {
                News::Started { seq, id, writable, output } => self.reply(seq, Reply::Started { id, writable }, output),
                News::Failed { seq, why } => self.reply(seq, Reply::Refused(why), None),
                News::Event(event) => self.reply(0, Reply::Event(event), None),
            }
        }
        let Some(server) = &mut self.server else { return };
        while let Some((bytes, descriptor)) = server.outbox.front() {
            let beside: Vec<_> = descriptor.iter().map(AsFd::as_fd).collect();
            if wire::send(&server.socket, bytes, &beside).is_err() {
                // Full: later. Broken: its end will be seen.
                return;
            }
            server.outbox.pop_front();
        }
    }
}

impl Server {
    fn kill(&self) {
        let _ = pidfd_send_signal(&self.process.pidfd, Signal::KILL);
    }
}
