//! The lifecycle of the server process: one state, one transition function, and the pauses between starts.
//!
//! [`State::on`] is pure. The supervisor reports an [`Event`], stores the next state and performs the [`Action`].

use std::time::Duration;

/// Exit status of a server whose configuration is invalid: `Kind::Configuration` of the command line.
pub const CONFIGURATION: u8 = 5;

/// The program that a server is started from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// The file that is installed now, which an update may have replaced.
    Installed,
    /// The program that the keeper itself runs.
    Own,
}

/// Lifecycle state of the server process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// A server process exists and has sent no request yet.
    Starting(Program),
    /// The server has sent a request.
    Running,
    /// The server was asked to exit so that a successor can replace it.
    Draining,
    /// No server process exists; the next start is due after a pause.
    Backoff,
    /// The keeper is stopping; no further server is started.
    Stopping,
}

/// An event that changes the lifecycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The server sent a request.
    Request,
    /// The server process exited, or could not be started.
    Exited(Exited),
    /// The pause of [`State::Backoff`] is over.
    Due,
    /// A reload was requested, and the installed program accepted the configuration.
    Reload,
    /// A stop was requested.
    Stop,
}

/// The exit of a server, and the facts that decide the next action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exited {
    /// The exit status; `None` for a signal and for a failed start.
    pub code: Option<u8>,
    /// True if any server of this keeper has sent a request before.
    pub served: bool,
    /// True if the installed program is another file than the keeper's own.
    pub replaced: bool,
}

/// The supervisor's part of a transition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing to do.
    None,
    /// Start a server now.
    Start(Program),
    /// Start a server after the next pause.
    StartLater,
    /// Ask the server to exit.
    Terminate,
    /// Stop all processes, then exit with this status.
    Exit(u8),
}

impl State {
    /// Returns the next state and the action that leads to it.
    pub fn on(self, event: Event) -> (State, Action) {
        use State::{Backoff, Draining, Running, Starting, Stopping};
        let start = |program| (Starting(program), Action::Start(program));
        match (self, event) {
            (Stopping, _) => (Stopping, Action::None),
            (_, Event::Stop) => (Stopping, Action::Terminate),

            (Starting(_), Event::Request) => (Running, Action::None),
            // If the first server fails, the keeper exits with the same status: the operator waits for the result, and no process must
            // survive.
            (Starting(_), Event::Exited(Exited { code: Some(code), served: false, .. })) => (Stopping, Action::Exit(code)),
            // Another program reads the same server file, so a fallback would not help.
            (Starting(_), Event::Exited(Exited { code: Some(CONFIGURATION), .. })) => (Backoff, Action::StartLater),
            (Starting(Program::Installed), Event::Exited(Exited { replaced: true, .. })) => start(Program::Own),
            (Starting(_) | Running, Event::Reload) => (Draining, Action::Terminate),

            // SIGTERM to the server role stops larder.
            (Running, Event::Exited(Exited { code: Some(0), .. })) => (Stopping, Action::Exit(0)),
            (Draining, Event::Exited(_)) | (Backoff, Event::Due | Event::Reload) => start(Program::Installed),
            (Starting(_) | Running, Event::Exited(_)) => (Backoff, Action::StartLater),

            (state, _) => (state, Action::None),
        }
    }
}

/// After a process has run this long, its next pause is the first one again.
pub const STABLE: Duration = Duration::from_secs(10);

/// Pauses between starts of a process that exits again and again; doubled with each start, up to a limit.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    next: Duration,
    first: Duration,
    last: Duration,
}

impl Backoff {
    /// Pauses of supervised processes: from 100 ms to 30 s.
    pub fn of_processes() -> Backoff {
        let first = Duration::from_millis(100);
        Backoff { next: first, first, last: Duration::from_secs(30) }
    }

    /// Pauses of the server: none before the first restart, then from 100 ms to 10 s.
    pub fn of_server() -> Backoff {
        Backoff { next: Duration::ZERO, first: Duration::ZERO, last: Duration::from_secs(10) }
    }

    /// Returns the pause before the next start of a process that lived for `lived`.
    pub fn after(&mut self, lived: Duration) -> Duration {
        if lived >= STABLE {
            self.next = self.first;
        }
        let pause = self.next;
        self.next = (pause * 2).clamp(Duration::from_millis(100), self.last);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Exited = Exited { code: Some(70), served: false, replaced: false };
    const LATER: Exited = Exited { served: true, ..FIRST };

    #[test]
    fn state_event_gives_next_state_and_action() {
        use State::{Draining, Running, Starting, Stopping};
        let (installed, own) = (Starting(Program::Installed), Starting(Program::Own));
        let exited = |exited| Event::Exited(exited);
        let (start, later) = (Action::Start(Program::Installed), Action::StartLater);
        let replaced = Exited { replaced: true, ..LATER };
        let wrong = Exited { code: Some(CONFIGURATION), ..replaced };
        let killed = Exited { code: None, ..FIRST };
        for (state, event, next, action) in [
            // The first start.
            (installed, Event::Request, Running, Action::None),
            (installed, exited(FIRST), Stopping, Action::Exit(70)),
            (installed, exited(killed), State::Backoff, later),
            (installed, Event::Stop, Stopping, Action::Terminate),
            // A later start: each begins with the installed program and falls back to the keeper's own once.
            (installed, exited(LATER), State::Backoff, later),
            (installed, exited(replaced), own, Action::Start(Program::Own)),
            (installed, exited(Exited { code: None, ..replaced }), own, Action::Start(Program::Own)),
            (installed, exited(wrong), State::Backoff, later),
            (own, exited(replaced), State::Backoff, later),
            (own, Event::Request, Running, Action::None),
            (State::Backoff, Event::Due, installed, start),
            (State::Backoff, Event::Reload, installed, start),
            // A reload.
            (Running, Event::Reload, Draining, Action::Terminate),
            (installed, Event::Reload, Draining, Action::Terminate),
            (Draining, Event::Reload, Draining, Action::None),
            (Draining, Event::Request, Draining, Action::None),
            (Draining, exited(LATER), installed, start),
            (Draining, exited(Exited { code: Some(0), ..LATER }), installed, start),
            (Draining, Event::Stop, Stopping, Action::Terminate),
            // An unexpected end.
            (Running, Event::Request, Running, Action::None),
            (Running, exited(Exited { code: Some(0), ..LATER }), Stopping, Action::Exit(0)),
            (Running, exited(LATER), State::Backoff, later),
            (Running, exited(replaced), State::Backoff, later),
            (State::Backoff, Event::Stop, Stopping, Action::Terminate),
            // A stop is final.
            (Stopping, exited(FIRST), Stopping, Action::None),
            (Stopping, Event::Reload, Stopping, Action::None),
            (Stopping, Event::Due, Stopping, Action::None),
            (Stopping, Event::Stop, Stopping, Action::None),
        ] {
            assert_eq!(state.on(event), (next, action), "{state:?} {event:?}");
        }
    }

    #[test]
    fn broken_program_after_service_never_stops_the_keeper_nor_starts_without_pause() {
        let (mut state, mut pauses, mut starts) = (State::Running, 0, 0);
        for _ in 0..100 {
            let event = if state == State::Backoff { Event::Due } else { Event::Exited(Exited { replaced: true, ..LATER }) };
            let action;
            (state, action) = state.on(event);
            assert_ne!(state, State::Stopping);
            pauses += usize::from(action == Action::StartLater);
            starts += usize::from(matches!(action, Action::Start(_)));
        }
        assert!(starts <= 2 * pauses, "{starts} starts with {pauses} pauses");
    }

    #[test]
    fn backoff_grows_until_a_process_is_stable() {
        for mut backoff in [Backoff::of_processes(), Backoff::of_server()] {
            let (first, last) = (backoff.first, backoff.last);
            let mut waited = Duration::ZERO;
            let mut before = None;
            for _ in 0..10 {
                let next = backoff.after(Duration::from_millis(1));
                assert!(before.is_none_or(|before| next > before || next == last), "{next:?} after {before:?}");
                before = Some(next);
                waited += next;
            }
            assert!(waited >= Duration::from_secs(15), "ten starts within {waited:?}");
            assert_eq!(backoff.after(Duration::ZERO), last);
            assert_eq!(backoff.after(STABLE), first);
        }
    }
}
