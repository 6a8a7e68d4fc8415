//! The lifecycle of the server process: one state and one transition function.
//!
//! [`LifecycleState::on`] is pure. The supervisor reports a [`LifecycleEvent`], stores the next state and performs the
//! [`LifecycleAction`].

/// The exit status of a server whose configuration is invalid: `ErrorKind::Configuration` of `control`.
pub const CONFIGURATION: u8 = 5;

/// The program that a server is started from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerProgram {
    /// The currently installed file, which an update may have replaced.
    Installed,
    /// The program that the keeper itself runs.
    Own,
}

/// The lifecycle state of the server process.
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
    /// The exit status; `None` if a signal killed the server, or if the start failed.
    pub code: Option<u8>,
    /// True if any server of this keeper has sent a request before.
    pub served: bool,
    /// True if the installed program is not the file that the keeper runs.
    pub replaced: bool,
}

/// The action that the supervisor performs for a transition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LifecycleAction {
    /// No action is necessary.
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
    /// Returns the next state and the action of the transition to this state.
    pub fn on(self, event: LifecycleEvent) -> (LifecycleState, LifecycleAction) {
        use LifecycleAction as Action;
        use LifecycleEvent as Event;
        use LifecycleState::{Backoff, Draining, Running, Starting, Stopping};
        let start = |program| (Starting(program), Action::Start(program));
        match (self, event) {
            (Stopping, _) => (Stopping, Action::None),
            (_, Event::Stop) => (Stopping, Action::Terminate),

            (Starting(_), Event::Request) => (Running, Action::None),
            // If a server exits before any server of this keeper has sent a request, the keeper exits with the server's status. The
            // operator waits for the result of the start, and no process exists that must survive the keeper.
            (Starting(_), Event::Exited(ServerExit { code: Some(code), served: false, .. })) => (Stopping, Action::Exit(code)),
            // A fallback would not help, because the keeper's program reads the same server file.
            (Starting(_), Event::Exited(ServerExit { code: Some(CONFIGURATION), .. })) => (Backoff, Action::StartLater),
            (Starting(ServerProgram::Installed), Event::Exited(ServerExit { replaced: true, .. })) => start(ServerProgram::Own),
            (Starting(_) | Running, Event::Reload) => (Draining, Action::Terminate),

            // A SIGTERM that a user sends to the server process stops larder: the server then exits with status 0.
            (Running, Event::Exited(ServerExit { code: Some(0), .. })) => (Stopping, Action::Exit(0)),
            (Draining, Event::Exited(_)) | (Backoff, Event::Due | Event::Reload) => start(ServerProgram::Installed),
            (Starting(_) | Running, Event::Exited(_)) => (Backoff, Action::StartLater),

            (state, _) => (state, Action::None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{LifecycleAction as Action, LifecycleEvent as Event, LifecycleState as State, *};

    const FIRST: ServerExit = ServerExit { code: Some(70), served: false, replaced: false };
    const LATER: ServerExit = ServerExit { served: true, ..FIRST };

    #[test]
    fn state_event_gives_next_state_and_action() {
        use State::{Draining, Running, Starting, Stopping};
        let (installed, own) = (Starting(ServerProgram::Installed), Starting(ServerProgram::Own));
        let exited = |exited| Event::Exited(exited);
        let (start, later) = (Action::Start(ServerProgram::Installed), Action::StartLater);
        let replaced = ServerExit { replaced: true, ..LATER };
        let wrong = ServerExit { code: Some(CONFIGURATION), ..replaced };
        let killed = ServerExit { code: None, ..FIRST };
        for (state, event, next, action) in [
            // These rows describe the first start.
            (installed, Event::Request, Running, Action::None),
            (installed, exited(FIRST), Stopping, Action::Exit(70)),
            (installed, exited(killed), State::Backoff, later),
            (installed, Event::Stop, Stopping, Action::Terminate),
            // Every later start begins with the installed program, and falls back to the keeper's program once.
            (installed, exited(LATER), State::Backoff, later),
            (installed, exited(replaced), own, Action::Start(ServerProgram::Own)),
            (installed, exited(ServerExit { code: None, ..replaced }), own, Action::Start(ServerProgram::Own)),
            (installed, exited(wrong), State::Backoff, later),
            (own, exited(replaced), State::Backoff, later),
            (own, Event::Request, Running, Action::None),
            (State::Backoff, Event::Due, installed, start),
            (State::Backoff, Event::Reload, installed, start),
            // These rows describe a reload.
            (Running, Event::Reload, Draining, Action::Terminate),
            (installed, Event::Reload, Draining, Action::Terminate),
            (Draining, Event::Reload, Draining, Action::None),
            (Draining, Event::Request, Draining, Action::None),
            (Draining, exited(LATER), installed, start),
            (Draining, exited(ServerExit { code: Some(0), ..LATER }), installed, start),
            (Draining, Event::Stop, Stopping, Action::Terminate),
            // These rows describe an unexpected exit.
            (Running, Event::Request, Running, Action::None),
            (Running, exited(ServerExit { code: Some(0), ..LATER }), Stopping, Action::Exit(0)),
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
    fn repeatedly_failing_program_after_service_is_restarted_with_pauses() {
        let (mut state, mut pauses, mut starts) = (State::Running, 0, 0);
        for _ in 0..100 {
            let event = if state == State::Backoff { Event::Due } else { Event::Exited(ServerExit { replaced: true, ..LATER }) };
            let action;
            (state, action) = state.on(event);
            assert_ne!(state, State::Stopping);
            pauses += usize::from(action == Action::StartLater);
            starts += usize::from(matches!(action, Action::Start(_)));
        }
        assert!(starts <= 2 * pauses, "{starts} starts with {pauses} pauses");
    }
}
