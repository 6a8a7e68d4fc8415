//! The keeper's loop: keeps a server running, performs its requests, handles the exits of all processes, and stops on request.

use std::{
    os::fd::OwnedFd,
    process::ExitCode,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{
    config::{Config, KeeperError},
    directories::Directories,
    lifecycle::{Action, Backoff, CONFIGURATION, Event, Exited, Program, State},
    sandbox::Base,
    server::{Check, Message, Server, is_replaced},
    sys,
    table::{Outcome, Table},
    users::Users,
};
use crate::{
    host::launch::wire::{LaunchFrame, LaunchReply, LaunchRequest, MAX_GRACE},
    model::ProcessId,
};

/// Time that a server has to exit after SIGTERM: 30 seconds for deployments, 10 for requests, and 5 in reserve.
const SERVER_GRACE: Duration = Duration::from_secs(45);
/// Time that a server has to exit after it has closed its connection.
const CLOSED_GRACE: Duration = Duration::from_secs(5);
/// Time that applications have to exit when the keeper stops.
const APPLICATION_GRACE: Duration = Duration::from_secs(10);
/// Time from a stop request to the end of the last process, whatever grace a recipe gives. It is below the
/// `TimeoutStopSec=60` of the documented systemd unit.
const STOP_LIMIT: Duration = Duration::from_secs(55);
/// The maximum number of requests that are performed before other events are handled.
const REQUESTS_AT_ONCE: usize = 64;

/// The keeper's loop with its state.
pub struct Supervisor {
    config: Config,
    users: Users,
    table: Table,
    listeners: Vec<(&'static str, OwnedFd)>,
    signals: OwnedFd,
    state: State,
    server: Option<Server>,
    check: Option<Check>,
    backoff: Backoff,
    /// The time of the next start; set in [`State::Backoff`] only.
    due: Option<Instant>,
    /// True if any server has sent a request.
    served: bool,
    /// The time at which the server is killed.
    kill_server: Option<Instant>,
    /// The time at which the last process is killed; set in [`State::Stopping`] only.
    stop_by: Option<Instant>,
    code: u8,
}

/// A descriptor that the loop waits for.
#[derive(Clone, Copy)]
enum Cause {
    Signal,
    Server,
    ServerEnd,
    CheckEnd,
    Control(ProcessId),
    End(ProcessId),
}

impl Supervisor {
    /// Prepares everything except the server, which [`Supervisor::run`] starts.
    pub fn new(
        config: Config,
        users: Users,
        directories: Directories,
        listeners: Vec<(&'static str, OwnedFd)>,
        base: Result<Base, String>,
    ) -> Result<Supervisor, KeeperError> {
        let in_root = |source| KeeperError::Root { path: config.root.clone(), source };
        let signals = sys::signal_descriptor(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP]).map_err(KeeperError::Wait)?;
        let table = Table::new(config.clone(), users, directories, base).map_err(in_root)?;
        Ok(Supervisor {
            config,
            users,
            table,
            listeners,
            signals,
            state: State::Starting(Program::Installed),
            server: None,
            check: None,
            backoff: Backoff::of_server(),
            due: None,
            served: false,
            kill_server: None,
            stop_by: None,
            code: 0,
        })
    }

    /// Runs until a stop request; returns the keeper's exit status.
    pub fn run(mut self) -> Result<ExitCode, KeeperError> {
        self.start_server(Program::Installed);
        loop {
            self.tick();
            if let Some(stop_by) = self.stop_by.filter(|_| self.server.is_none() && self.check.is_none()) {
                let by = stop_by.min(Instant::now() + APPLICATION_GRACE);
                if !self.table.stop_all(by) {
                    return Ok(ExitCode::from(self.code));
                }
            }
            self.flush();
            for cause in self.wait().map_err(|error| KeeperError::Wait(error.into()))? {
                match cause {
                    Cause::Signal => self.on_signal(),
                    Cause::Server => self.on_requests(),
                    Cause::ServerEnd => self.on_server_end(),
                    Cause::CheckEnd => self.on_check_end(),
                    Cause::Control(id) => self.table.on_control(id),
                    Cause::End(id) => self.table.on_end(id),
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
            if !server.closed {
                let write = if server.has_unsent() { PollFlags::OUT } else { PollFlags::empty() };
                ready.push(PollFd::new(&server.socket, PollFlags::IN | write));
                causes.push(Cause::Server);
            }
        }
        if let Some(check) = &self.check {
            ready.push(PollFd::new(&check.process.pidfd, PollFlags::IN));
            causes.push(Cause::CheckEnd);
        }
        for (id, control, pidfd) in self.table.waiting() {
            // The handler of an exit also reads the last control messages.
            ready.push(PollFd::new(pidfd, PollFlags::IN));
            causes.push(Cause::End(id));
            if let Some(control) = control {
                ready.push(PollFd::new(control, PollFlags::IN));
                causes.push(Cause::Control(id));
            }
        }
        let check = self.check.as_ref().map(|check| check.deadline);
        let deadline = [self.table.deadline(), self.due, self.kill_server, check];
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

    /// Performs all actions that are due.
    fn tick(&mut self) {
        let now = Instant::now();
        self.table.tick();
        if self.due.is_some_and(|at| at <= now) {
            self.transition(Event::Due, Duration::ZERO);
        }
        if let (Some(server), Some(_)) = (&self.server, self.kill_server.filter(|at| *at <= now)) {
            server.kill();
            self.kill_server = Some(now + Duration::from_secs(1));
        }
        if let Some(check) = self.check.as_mut().filter(|check| check.deadline <= now) {
            check.kill();
            check.deadline = now + Duration::from_secs(1);
        }
    }

    /// Performs one transition of the lifecycle; `lived` is the age of a server that has just ended.
    fn transition(&mut self, event: Event, lived: Duration) {
        let (next, action) = self.state.on(event);
        self.state = next;
        if next == State::Stopping {
            self.stop_by = self.stop_by.or(Some(Instant::now() + STOP_LIMIT));
            self.check.iter().for_each(Check::kill);
        }
        if next != State::Backoff {
            self.due = None;
        }
        match action {
            Action::None => {}
            Action::Start(program) => {
                if program == Program::Own {
                    tracing::error!("server exited before it was ready; falling back to the keeper's own binary");
                }
                self.start_server(program);
            }
            Action::StartLater => {
                let pause = self.backoff.after(lived);
                tracing::info!(seconds = pause.as_secs_f32(), "the next server starts after a pause");
                self.due = Some(Instant::now() + pause);
            }
            Action::Terminate => {
                self.kill_server = Some(Instant::now() + SERVER_GRACE);
                self.server.iter().for_each(Server::terminate);
            }
            Action::Exit(code) => self.code = code,
        }
    }

    fn start_server(&mut self, program: Program) {
        match Server::start(&self.config, program, self.users, &self.listeners, &self.table.null) {
            Ok((server, workers)) => {
                let path = if program == Program::Own { "/proc/self/exe".into() } else { self.config.exe.clone() };
                self.table.use_program(workers, path);
                self.server = Some(server);
            }
            Err(error) => {
                tracing::error!(path = %self.config.exe.display(), %error, "cannot start the server");
                self.exited(None, Duration::ZERO);
            }
        }
    }

    fn exited(&mut self, code: Option<u8>, lived: Duration) {
        let exited = Exited { code, served: self.served, replaced: is_replaced(&self.config) };
        self.transition(Event::Exited(exited), lived);
    }

    fn on_server_end(&mut self) {
        let Some(server) = &self.server else { return };
        let (Some(status), lived) = (server.end(), server.age()) else { return };
        (self.server, self.kill_server) = (None, None);
        self.table.end_requests();
        let code = status.exit_status().and_then(|code| u8::try_from(code).ok());
        match self.state {
            State::Running => tracing::error!(code, signal = status.terminating_signal(), "server exited unexpectedly"),
            State::Starting(_) if code == Some(CONFIGURATION) => tracing::error!("the server rejected its configuration"),
            State::Starting(_) => {
                tracing::error!(code, signal = status.terminating_signal(), "server exited before it was ready");
            }
            State::Draining | State::Backoff | State::Stopping => {}
        }
        self.exited(code, lived);
    }

    fn on_signal(&mut self) {
        // signalfd(2) gives one record of 128 bytes for each signal; its first field is the number.
        let (mut record, mut stop) = ([0; 128], false);
        while rustix::io::read(&self.signals, &mut record).is_ok() {
            stop |= record.first_chunk().copied().map(u32::from_ne_bytes) != Some(libc::SIGHUP as u32);
        }
        match (stop, self.state) {
            // A second request to stop ends all waiting.
            (true, State::Stopping) => (self.stop_by, self.kill_server) = (Some(Instant::now()), Some(Instant::now())),
            (true, _) => self.transition(Event::Stop, Duration::ZERO),
            (false, State::Starting(_) | State::Running) => self.check_reload(),
            (false, _) => self.transition(Event::Reload, Duration::ZERO),
        }
    }

    /// Starts the check of the configuration by the installed program. The running server is asked to exit only if the check succeeds.
    fn check_reload(&mut self) {
        if self.check.is_some() {
            return;
        }
        match Check::start(&self.config, self.users, &self.table.null) {
            Ok(Some(check)) => self.check = Some(check),
            Ok(None) => self.reload(),
            Err(error) => {
                let path = self.config.exe.display();
                tracing::error!(%path, %error, "reload refused: cannot start the installed program; the running server stays");
            }
        }
    }

    fn on_check_end(&mut self) {
        let Some(status) = self.check.as_ref().and_then(Check::end) else { return };
        self.check = None;
        match status.exit_status() {
            Some(0) => self.reload(),
            code => {
                let path = self.config.exe.display();
                let signal = status.terminating_signal();
                tracing::error!(%path, code, signal, "reload refused: the check by the installed program failed; the running server stays");
            }
        }
    }

    fn reload(&mut self) {
        tracing::info!("reloading: the server is replaced");
        self.transition(Event::Reload, Duration::ZERO);
    }

    /// Performs a bounded number of requests.
    fn on_requests(&mut self) {
        for _ in 0..REQUESTS_AT_ONCE {
            match self.server.as_ref().map(Server::receive) {
                Some(Ok(Message::Request(frame, descriptors))) => {
                    self.served = true;
                    self.transition(Event::Request, Duration::ZERO);
                    self.perform(frame, descriptors);
                }
                None | Some(Ok(Message::Empty)) => return,
                // A process closes its descriptors before it exits, and may write a last line to the log in between.
                Some(Ok(Message::Closed)) => {
                    self.server.iter_mut().for_each(|server| server.closed = true);
                    return self.kill_server = self.kill_server.or(Some(Instant::now() + CLOSED_GRACE));
                }
                Some(Err(why)) => {
                    tracing::error!(why, "cannot decode a request of the server; killing it");
                    return self.server.iter().for_each(Server::kill);
                }
            }
        }
    }

    fn perform(&mut self, LaunchFrame { seq, body }: LaunchFrame<LaunchRequest>, descriptors: Vec<OwnedFd>) {
        if self.state == State::Stopping && matches!(body, LaunchRequest::Register(_)) {
            return self.reply(seq, LaunchReply::Refused("larder is stopping".into()), None);
        }
        let done = |result: Result<(), String>| result.map_or_else(LaunchReply::Refused, |()| LaunchReply::Done);
        let reply = match body {
            LaunchRequest::Launch { launch, given } => return self.table.launch(seq, launch, given, descriptors),
            LaunchRequest::Supervised { after } => match self.table.supervised(after) {
                Some((process, output)) => return self.reply(seq, LaunchReply::Supervised(Some(process)), Some(output)),
                None => LaunchReply::Supervised(None),
            },
            LaunchRequest::Register(registration) => done(self.table.register(&registration)),
            LaunchRequest::Unregister { project, environment } => done(self.table.unregister(project, environment)),
            LaunchRequest::End { id, now } => done(self.table.end(id, now)),
            LaunchRequest::Stop { id, grace } => done(self.table.stop(id, Duration::from_millis(grace.into()).min(MAX_GRACE))),
            LaunchRequest::ResetArea { environment, area, release, slot } => {
                self.table.reset_area(environment, area, release, slot).unwrap_or_else(LaunchReply::Refused)
            }
            LaunchRequest::RenameTree { environment, from, to } => done(self.table.rename_tree(environment, from, to)),
            LaunchRequest::Prewarm => return self.table.prewarm(),
            LaunchRequest::Capabilities => LaunchReply::Capabilities(self.table.capabilities()),
        };
        // Number 0 marks a request that expects no answer.
        if seq != 0 {
            self.reply(seq, reply, None);
        }
    }

    fn reply(&mut self, seq: u64, body: LaunchReply, descriptor: Option<OwnedFd>) {
        if let Some(server) = &mut self.server {
            server.send(seq, body, descriptor);
        }
    }

    /// Sends outcomes and events, as far as the server reads them.
    fn flush(&mut self) {
        while let Some(outcome) = self.table.next_outcome() {
            match outcome {
                Outcome::Started { seq, id, writable, output } => self.reply(seq, LaunchReply::Started { id, writable }, output),
                Outcome::Failed { seq, why } => self.reply(seq, LaunchReply::Refused(why), None),
                Outcome::Event(event) => self.reply(0, LaunchReply::Event(event), None),
            }
        }
        if let Some(server) = &mut self.server {
            server.flush();
        }
    }
}
