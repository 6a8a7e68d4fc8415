//! The keeper's loop: keeps a server running, handles the exits of all processes, and stops on request. [`requests`] performs the
//! requests of the server.

mod requests;

use std::{
    io,
    os::fd::OwnedFd,
    process::ExitCode,
    time::{Duration, Instant},
};

use larder_sandbox::{Backoff, BaseView, Readiness, SignalReceiver};
use rustix::process::Signal;

use super::{
    config::{KeeperConfig, KeeperError},
    directories::Directories,
    lifecycle::{CONFIGURATION, LifecycleAction, LifecycleEvent, LifecycleState, ServerExit, ServerProgram},
    server::{ReloadCheck, ServerProcess, end_of, is_replaced},
    table::ProcessTable,
    users::Users,
};
use crate::model::ProcessId;

/// The time limit for the exit of a server after SIGTERM: 30 seconds for deployments, 10 for requests, and 5 in reserve.
const SERVER_GRACE: Duration = Duration::from_secs(45);
/// The time limit for the exit of applications when the keeper stops.
const APPLICATION_GRACE: Duration = Duration::from_secs(10);
/// The maximum time from a stop request to the end of the last process, whatever grace a recipe gives. This time is below the
/// `TimeoutStopSec=60` of the documented systemd unit.
const STOP_LIMIT: Duration = Duration::from_secs(55);
/// The first and the longest pause between starts of the server. The second pause is 100 ms.
const SERVER_BACKOFF: (Duration, Duration) = (Duration::ZERO, Duration::from_secs(10));

/// The keeper's loop with its state.
pub struct Supervisor {
    config: KeeperConfig,
    users: Users,
    table: ProcessTable,
    listeners: Vec<(&'static str, OwnedFd)>,
    signals: SignalReceiver,
    state: LifecycleState,
    server: Option<ServerProcess>,
    check: Option<ReloadCheck>,
    backoff: Backoff,
    /// The time of the next start, which is set only in [`LifecycleState::Backoff`].
    due: Option<Instant>,
    /// True if any server has sent a request.
    served: bool,
    /// The time at which the server is killed.
    kill_server: Option<Instant>,
    /// The time at which the last process is killed, which is set only in [`LifecycleState::Stopping`].
    stop_by: Option<Instant>,
    code: u8,
}

/// A descriptor that the loop waits for.
#[derive(Clone, Copy)]
enum WakeCause {
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
        config: KeeperConfig,
        users: Users,
        directories: Directories,
        listeners: Vec<(&'static str, OwnedFd)>,
        base: Result<BaseView, String>,
    ) -> Result<Supervisor, KeeperError> {
        let signals = SignalReceiver::new(&[Signal::TERM, Signal::INT, Signal::HUP]).map_err(KeeperError::Wait)?;
        let table = ProcessTable::new(config.clone(), users, directories, base)?;
        Ok(Supervisor {
            config,
            users,
            table,
            listeners,
            signals,
            state: LifecycleState::Starting(ServerProgram::Installed),
            server: None,
            check: None,
            backoff: Backoff::new(SERVER_BACKOFF.0, SERVER_BACKOFF.1),
            due: None,
            served: false,
            kill_server: None,
            stop_by: None,
            code: 0,
        })
    }

    /// Runs until a stop request. Returns the keeper's exit status.
    pub fn run(mut self) -> Result<ExitCode, KeeperError> {
        self.start_server(ServerProgram::Installed);
        loop {
            self.tick();
            if let Some(stop_by) = self.stop_by.filter(|_| self.server.is_none() && self.check.is_none()) {
                let by = stop_by.min(Instant::now() + APPLICATION_GRACE);
                if !self.table.stop_all(by) {
                    return Ok(ExitCode::from(self.code));
                }
            }
            self.flush();
            for cause in self.wait().map_err(KeeperError::Wait)? {
                match cause {
                    WakeCause::Signal => self.on_signal(),
                    WakeCause::Server => self.on_requests(),
                    WakeCause::ServerEnd => self.on_server_end(),
                    WakeCause::CheckEnd => self.on_check_end(),
                    WakeCause::Control(id) => self.table.on_control(id),
                    WakeCause::End(id) => self.table.on_end(id),
                }
            }
        }
    }

    fn wait(&self) -> io::Result<Vec<WakeCause>> {
        let mut ready = Readiness::new();
        ready.read(&self.signals, WakeCause::Signal);
        if let Some(server) = &self.server {
            ready.read(server.process.pidfd(), WakeCause::ServerEnd);
            match (server.closed, server.connection.has_unsent()) {
                (true, _) => {}
                (false, true) => ready.read_and_write(server.connection.socket(), WakeCause::Server),
                (false, false) => ready.read(server.connection.socket(), WakeCause::Server),
            }
        }
        if let Some(check) = &self.check {
            ready.read(check.process.pidfd(), WakeCause::CheckEnd);
        }
        for (id, control, pidfd) in self.table.waiting() {
            // The handler of an exit also reads the last control messages.
            ready.read(pidfd, WakeCause::End(id));
            if let Some(control) = control {
                ready.read(control, WakeCause::Control(id));
            }
        }
        let check = self.check.as_ref().map(|check| check.deadline);
        let deadlines = [self.table.deadline(), self.due, self.kill_server, check];
        ready.wait(deadlines.into_iter().flatten().min())
    }

    /// Performs all actions whose time has come.
    fn tick(&mut self) {
        let now = Instant::now();
        self.table.tick();
        if self.due.is_some_and(|at| at <= now) {
            self.transition(LifecycleEvent::Due, Duration::ZERO);
        }
        if let (Some(server), Some(_)) = (&self.server, self.kill_server.filter(|at| *at <= now)) {
            server.process.kill();
            self.kill_server = Some(now + Duration::from_secs(1));
        }
        if let Some(check) = self.check.as_mut().filter(|check| check.deadline <= now) {
            check.process.kill();
            check.deadline = now + Duration::from_secs(1);
        }
    }

    /// Performs one transition of the lifecycle. `lived` is the running time of a server that has just exited, or zero.
    fn transition(&mut self, event: LifecycleEvent, lived: Duration) {
        let (next, action) = self.state.on(event);
        self.state = next;
        if next == LifecycleState::Stopping {
            self.stop_by = self.stop_by.or(Some(Instant::now() + STOP_LIMIT));
            self.check.iter().for_each(|check| check.process.kill());
        }
        if next != LifecycleState::Backoff {
            self.due = None;
        }
        match action {
            LifecycleAction::None => {}
            LifecycleAction::Start(program) => {
                if program == ServerProgram::Own {
                    tracing::error!("server exited before it was ready; falling back to the keeper's own binary");
                }
                self.start_server(program);
            }
            LifecycleAction::StartLater => {
                let pause = self.backoff.after(lived);
                tracing::info!(seconds = pause.as_secs_f32(), "the next server starts after a pause");
                self.due = Some(Instant::now() + pause);
            }
            LifecycleAction::Terminate => {
                self.kill_server = Some(Instant::now() + SERVER_GRACE);
                self.server.iter().for_each(|server| server.process.signal(Signal::TERM));
            }
            LifecycleAction::Exit(code) => self.code = code,
        }
    }

    fn start_server(&mut self, program: ServerProgram) {
        match ServerProcess::start(&self.config, program, self.users, &self.listeners, &self.table.null) {
            Ok((server, workers)) => {
                let path = if program == ServerProgram::Own { "/proc/self/exe".into() } else { self.config.exe.clone() };
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
        let exited = ServerExit { code, served: self.served, replaced: is_replaced(&self.config) };
        self.transition(LifecycleEvent::Exited(exited), lived);
    }

    fn on_server_end(&mut self) {
        let Some(server) = &self.server else { return };
        let (Some(end), lived) = (end_of(&server.process), server.since.elapsed()) else { return };
        (self.server, self.kill_server) = (None, None);
        self.table.end_requests();
        let code = end.code.and_then(|code| u8::try_from(code).ok());
        match self.state {
            LifecycleState::Running => tracing::error!(code, signal = end.signal, "server exited unexpectedly"),
            LifecycleState::Starting(_) if code == Some(CONFIGURATION) => {
                tracing::error!("the server rejected its configuration")
            }
            LifecycleState::Starting(_) => {
                tracing::error!(code, signal = end.signal, "server exited before it was ready");
            }
            LifecycleState::Draining | LifecycleState::Backoff | LifecycleState::Stopping => {}
        }
        self.exited(code, lived);
    }

    fn on_signal(&mut self) {
        let stop = self.signals.take().into_iter().any(|signal| signal != Signal::HUP.as_raw());
        match (stop, self.state) {
            // A second stop request kills all remaining processes at once.
            (true, LifecycleState::Stopping) => (self.stop_by, self.kill_server) = (Some(Instant::now()), Some(Instant::now())),
            (true, _) => self.transition(LifecycleEvent::Stop, Duration::ZERO),
            (false, LifecycleState::Starting(_) | LifecycleState::Running) => self.check_reload(),
            (false, _) => self.transition(LifecycleEvent::Reload, Duration::ZERO),
        }
    }

    /// Starts the check of the configuration by the installed program. The running server is asked to exit only if the check succeeds.
    fn check_reload(&mut self) {
        if self.check.is_some() {
            return;
        }
        match ReloadCheck::start(&self.config, self.users, &self.table.null) {
            Ok(Some(check)) => self.check = Some(check),
            Ok(None) => self.reload(),
            Err(error) => {
                let path = self.config.exe.display();
                tracing::error!(%path, %error, "reload refused: cannot start the installed program; the running server stays");
            }
        }
    }

    fn on_check_end(&mut self) {
        let Some(end) = self.check.as_ref().and_then(|check| end_of(&check.process)) else { return };
        self.check = None;
        if end.code == Some(0) {
            return self.reload();
        }
        let path = self.config.exe.display();
        tracing::error!(
            %path,
            code = end.code,
            signal = end.signal,
            "reload refused: the check by the installed program failed; the running server stays"
        );
    }

    fn reload(&mut self) {
        tracing::info!("reloading: the server is replaced");
        self.transition(LifecycleEvent::Reload, Duration::ZERO);
    }
}
