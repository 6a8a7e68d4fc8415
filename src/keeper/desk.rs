//! The loop: keeps a server running, takes its orders, follows all processes, stops when asked.

use std::{
    os::fd::OwnedFd,
    process::ExitCode,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{
    Config, KeeperError,
    pause::Pause,
    place::Places,
    sandbox::Base,
    server::{Heard, Server},
    sys,
    table::{News, Table},
    users::Users,
};
use crate::{
    host::launch::wire::{Frame, Reply, Request},
    model::ProcessId,
};

/// How long the server may take to finish what it is doing: 30 seconds for deployments, 10 for requests, and a few to spare.
const SERVER_GRACE: Duration = Duration::from_secs(45);
/// How long a server may take to end after it has closed its connection.
const LAST_WORD: Duration = Duration::from_secs(5);
/// How long applications may take. With the server's it is less than the 60 seconds after which systemd gives up on us.
const GRACE: Duration = Duration::from_secs(10);
/// Orders that are taken before other things are looked at again.
const ORDERS_AT_ONCE: usize = 64;

/// The keeper at work.
pub struct Desk {
    config: Config,
    users: Users,
    table: Table,
    listeners: Vec<(&'static str, OwnedFd)>,
    signals: OwnedFd,
    server: Option<Server>,
    /// When to start the next one.
    again: Option<Instant>,
    pause: Pause,
    /// Whether a server of this binary has ever given an order.
    proven: bool,
    course: Course,
    /// When patience with a server that was asked to end is over.
    patience: Option<Instant>,
    /// What applications get at a stop.
    grace: Duration,
    code: u8,
}

/// What the keeper is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Course {
    Serving,
    /// The server is asked to end, to be followed by another.
    Renewing,
    /// A new binary has its first chance.
    Trying,
    Stopping,
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
        let table = Table::new(config.clone(), users, places, base).map_err(in_root)?;
        Ok(Desk {
            config,
            users,
            table,
            listeners,
            signals,
            server: None,
            again: Some(Instant::now()),
            pause: Pause::of_server(),
            proven: false,
            course: Course::Serving,
            patience: None,
            grace: GRACE,
            code: 0,
        })
    }

    /// Works until asked to stop.
    pub fn serve(mut self) -> Result<ExitCode, KeeperError> {
        loop {
            self.tick();
            if self.course == Course::Stopping && self.server.is_none() && !self.table.stop_all(self.grace) {
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
            ready.push(PollFd::new(&server.process.pidfd, PollFlags::IN));
            causes.push(Cause::ServerEnd);
            if !server.silent {
                let write = if server.waits() { PollFlags::OUT } else { PollFlags::empty() };
                ready.push(PollFd::new(&server.socket, PollFlags::IN | write));
                causes.push(Cause::Server);
            }
        }
        for (id, control, pidfd) in self.table.waiting() {
            // The end includes the last notes.
            ready.push(PollFd::new(pidfd, PollFlags::IN));
            causes.push(Cause::End(id));
            if let Some(control) = control {
                ready.push(PollFd::new(control, PollFlags::IN));
                causes.push(Cause::Notes(id));
            }
        }
        let deadline = [self.table.deadline(), self.again, self.patience];
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
        if self.again.is_some_and(|at| at <= now) && self.course != Course::Stopping {
            self.again = None;
            if let Err(error) = self.start_server() {
                tracing::error!(%error, "the server cannot be started");
                self.again = Some(now + self.pause.after(Duration::ZERO));
            }
        }
        if let (Some(server), Some(_)) = (&self.server, self.patience.filter(|at| *at <= now)) {
            server.kill();
            self.patience = Some(now + Duration::from_secs(1));
        }
    }

    fn start_server(&mut self) -> std::io::Result<()> {
        let (server, program) = Server::start(&self.config, self.users, &self.listeners, &self.table.nothing)?;
        self.table.use_program(program, self.config.exe.clone());
        self.server = Some(server);
        Ok(())
    }

    fn server_ended(&mut self) {
        let Some(server) = &self.server else { return };
        let (Some(status), lived) = (server.end(), server.age()) else { return };
        (self.server, self.patience) = (None, None);
        self.table.end_orders();
        let code = status.exit_status().and_then(|code| u8::try_from(code).ok());
        match (self.course, code) {
            (Course::Stopping, _) => {}
            (Course::Renewing, _) => {
                (self.course, self.proven, self.again) = (Course::Trying, false, Some(Instant::now()));
            }
            (Course::Trying, _) if !self.proven => {
                tracing::error!(code, "the server of the new binary does not work; going back to the one that this keeper is");
                self.config.exe = "/proc/self/exe".into();
                (self.course, self.proven, self.again) = (Course::Serving, true, Some(Instant::now()));
            }
            // It refused to work, and has said why: another one would say the same.
            (_, Some(code)) if !self.proven => {
                self.code = code;
                self.stop();
            }
            (_, Some(0)) => self.stop(),
            _ => {
                tracing::error!(code, signal = status.terminating_signal(), "the server has ended; starting another");
                self.again = Some(Instant::now() + self.pause.after(lived));
            }
        }
    }

    fn signalled(&mut self) {
        // What signalfd(2) gives: a record for each, its number first.
        let (mut record, mut stop) = ([0; 128], false);
        while rustix::io::read(&self.signals, &mut record).is_ok() {
            stop |= record.first_chunk().copied().map(u32::from_ne_bytes) != Some(libc::SIGHUP as u32);
        }
        match (stop, self.course) {
            // Asked twice: no more patience.
            (true, Course::Stopping) => {
                (self.grace, self.patience) = (Duration::ZERO, Some(Instant::now()));
                self.table.hurry();
            }
            (true, _) => self.stop(),
            (false, Course::Stopping | Course::Renewing) => {}
            (false, _) => self.renew(),
        }
    }

    /// Another server, of the binary that is at its place now. Applications do not notice.
    fn renew(&mut self) {
        tracing::info!("the server is renewed");
        match &self.server {
            Some(server) => {
                server.terminate();
                (self.course, self.patience) = (Course::Renewing, Some(Instant::now() + SERVER_GRACE));
            }
            None => self.again = Some(Instant::now()),
        }
    }

    fn stop(&mut self) {
        self.again = None;
        (self.course, self.patience) = (Course::Stopping, Some(Instant::now() + SERVER_GRACE));
        if let Some(server) = &self.server {
            server.terminate();
        }
    }

    /// Takes orders, but not without looking up.
    fn orders(&mut self) {
        for _ in 0..ORDERS_AT_ONCE {
            match self.server.as_ref().map(Server::order) {
                Some(Ok(Heard::Order(frame, descriptors))) => {
                    self.proven = true;
                    self.order(frame, descriptors);
                }
                None | Some(Ok(Heard::Nothing)) => return,
                // A process closes what it has before it has ended, and may have a last word for the log in between.
                Some(Ok(Heard::End)) => {
                    self.server.iter_mut().for_each(|server| server.silent = true);
                    return self.patience = self.patience.or(Some(Instant::now() + LAST_WORD));
                }
                Some(Err(why)) => {
                    tracing::error!(why, "the server cannot be understood");
                    return self.server.iter().for_each(Server::kill);
                }
            }
        }
    }

    fn order(&mut self, Frame { seq, body }: Frame<Request>, descriptors: Vec<OwnedFd>) {
        if self.course == Course::Stopping && matches!(body, Request::Register(_)) {
            return self.reply(seq, Reply::Refused("larder is stopping".into()), None);
        }
        let done = |result: Result<(), String>| result.map_or_else(Reply::Refused, |()| Reply::Done);
        let reply = match body {
            Request::Launch { launch, given } => return self.table.launch(seq, launch, given, descriptors),
            Request::Supervised { after } => match self.table.supervised(after) {
                Some((id, launch, output)) => return self.reply(seq, Reply::Supervised(Some((id, launch))), Some(output)),
                None => Reply::Supervised(None),
            },
            Request::Register(registration) => done(self.table.register(&registration)),
            Request::Unregister { project, environment } => done(self.table.unregister(project, environment)),
            Request::End { id, now } => done(self.table.end(id, now)),
            Request::Stop { id, grace } => done(self.table.stop(id, Duration::from_millis(grace.into()))),
            Request::ResetArea { environment, area, release, slot } => {
                done(self.table.reset_area(environment, area, release, slot))
            }
            Request::RenameTree { environment, from, to } => done(self.table.rename_tree(environment, from, to)),
            Request::Prewarm => return self.table.prewarm(),
            Request::Capabilities => Reply::Capabilities(self.table.capabilities()),
        };
        // Number 0: nobody waits for the answer.
        if seq != 0 {
            self.reply(seq, reply, None);
        }
    }

    fn reply(&mut self, seq: u64, body: Reply, descriptor: Option<OwnedFd>) {
        if let Some(server) = &mut self.server {
            server.tell(seq, body, descriptor);
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
        if let Some(server) = &mut self.server {
            server.deliver();
        }
    }
}
