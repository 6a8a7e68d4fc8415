//! The lifecycle of the server process: one state and one transition function.
//!
//! [`LifecycleState::on`] is pure. The supervisor reports a [`LifecycleEvent`], stores the next state and performs the
//! [`LifecycleAction`].

/// Exit status of a server whose configuration is invalid: `Kind::Configuration` of the command line.
pub const CONFIGURATION: u8 = 5;

/// The program that a server is started from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerProgram {
    /// The file that is installed now, which an update may have replaced.
    Installed,
    /// The program that the keeper itself runs.
    Own,
}

/// Lifecycle state of the server process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LifecycleState {
    /// A server process exists and has sent no request yet.
    Starting(ServerProgram),
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
pub enum LifecycleEvent {
    /// The server sent a request.
    Request,
    /// The server process exited, or could not be started.
    Exited(ServerExit),
    /// The pause of [`LifecycleState::Backoff`] is over.
    Due,
    /// A reload was requested, and the installed program accepted the configuration.
    Reload,
    /// A stop was requested.
    Stop,
}

/// The exit of a server, and the facts that decide the next action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerExit {
    /// The exit status; `None` for a signal and for a failed start.
    pub code: Option<u8>,
    /// True if any server of this keeper has sent a request before.
    pub served: bool,
    /// True if the installed program is another file than the keeper's own.
    pub replaced: bool,
}

/// The supervisor's part of a transition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LifecycleAction {
    /// Nothing to do.
    None,
    /// Start a server now.
    Start(ServerProgram),
    /// Start a server after the next pause.
    StartLater,
    /// Ask the server to exit.
    Terminate,
    /// Stop all processes, then exit with this status.
    Exit(u8),
}

impl LifecycleState {
    /// Returns the next state and the action that leads to it.
    pub fn on(self, event: LifecycleEvent) -> (LifecycleState, LifecycleAction) {
        use LifecycleState::{Backoff, Draining, Running, Starting, Stopping};
        let start = |program| (Starting(program), LifecycleAction::Start(program));
        match (self, event) {
            (Stopping, _) => (Stopping, LifecycleAction::None),
            (_, LifecycleEvent::Stop) => (Stopping, LifecycleAction::Terminate),

            (Starting(_), LifecycleEvent::Request) => (Running, LifecycleAction::None),
            // If the first server fails, the keeper exits with the same status: the operator waits for the result, and no process must
            // survive.
            (Starting(_), LifecycleEvent::Exited(ServerExit { code: Some(code), served: false, .. })) => {
                (Stopping, LifecycleAction::Exit(code))
            }
            // Another program reads the same server file, so a fallback would not help.
            (Starting(_), LifecycleEvent::Exited(ServerExit { code: Some(CONFIGURATION), .. })) => {
                (Backoff, LifecycleAction::StartLater)
            }
            (Starting(ServerProgram::Installed), LifecycleEvent::Exited(ServerExit { replaced: true, .. })) => {
                start(ServerProgram::Own)
            }
            (Starting(_) | Running, LifecycleEvent::Reload) => (Draining, LifecycleAction::Terminate),

            // SIGTERM to the server role stops larder.
            (Running, LifecycleEvent::Exited(ServerExit { code: Some(0), .. })) => (Stopping, LifecycleAction::Exit(0)),
            (Draining, LifecycleEvent::Exited(_)) | (Backoff, LifecycleEvent::Due | LifecycleEvent::Reload) => {
                start(ServerProgram::Installed)
            }
            (Starting(_) | Running, LifecycleEvent::Exited(_)) => (Backoff, LifecycleAction::StartLater),

            (state, _) => (state, LifecycleAction::None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: ServerExit = ServerExit { code: Some(70), served: false, replaced: false };
    const LATER: ServerExit = ServerExit { served: true, ..FIRST };

    #[test]
    fn state_event_gives_next_state_and_action() {
        use LifecycleState::{Draining, Running, Starting, Stopping};
        let (installed, own) = (Starting(ServerProgram::Installed), Starting(ServerProgram::Own));
        let exited = |exited| LifecycleEvent::Exited(exited);
        let (start, later) = (LifecycleAction::Start(ServerProgram::Installed), LifecycleAction::StartLater);
        let replaced = ServerExit { replaced: true, ..LATER };
        let wrong = ServerExit { code: Some(CONFIGURATION), ..replaced };
        let killed = ServerExit { code: None, ..FIRST };
        for (state, event, next, action) in [
            // The first start.
            (installed, LifecycleEvent::Request, Running, LifecycleAction::None),
            (installed, exited(FIRST), Stopping, LifecycleAction::Exit(70)),
            (installed, exited(killed), LifecycleState::Backoff, later),
            (installed, LifecycleEvent::Stop, Stopping, LifecycleAction::Terminate),
            // A later start: each begins with the installed program and falls back to the keeper's own once.
            (installed, exited(LATER), LifecycleState::Backoff, later),
            (installed, exited(replaced), own, LifecycleAction::Start(ServerProgram::Own)),
            (installed, exited(ServerExit { code: None, ..replaced }), own, LifecycleAction::Start(ServerProgram::Own)),
            (installed, exited(wrong), LifecycleState::Backoff, later),
            (own, exited(replaced), LifecycleState::Backoff, later),
            (own, LifecycleEvent::Request, Running, LifecycleAction::None),
            (LifecycleState::Backoff, LifecycleEvent::Due, installed, start),
            (LifecycleState::Backoff, LifecycleEvent::Reload, installed, start),
            // A reload.
            (Running, LifecycleEvent::Reload, Draining, LifecycleAction::Terminate),
            (installed, LifecycleEvent::Reload, Draining, LifecycleAction::Terminate),
            (Draining, LifecycleEvent::Reload, Draining, LifecycleAction::None),
            (Draining, LifecycleEvent::Request, Draining, LifecycleAction::None),
            (Draining, exited(LATER), installed, start),
            (Draining, exited(ServerExit { code: Some(0), ..LATER }), installed, start),
            (Draining, LifecycleEvent::Stop, Stopping, LifecycleAction::Terminate),
            // An unexpected end.
            (Running, LifecycleEvent::Request, Running, LifecycleAction::None),
            (Running, exited(ServerExit { code: Some(0), ..LATER }), Stopping, LifecycleAction::Exit(0)),
            (Running, exited(LATER), LifecycleState::Backoff, later),
            (Running, exited(replaced), LifecycleState::Backoff, later),
            (LifecycleState::Backoff, LifecycleEvent::Stop, Stopping, LifecycleAction::Terminate),
            // A stop is final.
            (Stopping, exited(FIRST), Stopping, LifecycleAction::None),
            (Stopping, LifecycleEvent::Reload, Stopping, LifecycleAction::None),
            (Stopping, LifecycleEvent::Due, Stopping, LifecycleAction::None),
            (Stopping, LifecycleEvent::Stop, Stopping, LifecycleAction::None),
        ] {
            assert_eq!(state.on(event), (next, action), "{state:?} {event:?}");
        }
    }

    #[test]
    fn broken_program_after_service_never_stops_the_keeper_nor_starts_without_pause() {
        let (mut state, mut pauses, mut starts) = (LifecycleState::Running, 0, 0);
        for _ in 0..100 {
            let event = if state == LifecycleState::Backoff {
                LifecycleEvent::Due
            } else {
                LifecycleEvent::Exited(ServerExit { replaced: true, ..LATER })
            };
            let action;
            (state, action) = state.on(event);
            assert_ne!(state, LifecycleState::Stopping);
            pauses += usize::from(action == LifecycleAction::StartLater);
            starts += usize::from(matches!(action, LifecycleAction::Start(_)));
        }
        assert!(starts <= 2 * pauses, "{starts} starts with {pauses} pauses");
    }
}
