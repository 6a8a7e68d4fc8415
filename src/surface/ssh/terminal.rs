//! The terminal of a channel: its size and the processing of its bytes. The client requests the terminal, and the handler of the request
//! decides the processing.

use russh::{Pty, Sig};
use tokio::sync::watch;

use crate::model::{ClientTerminal, TerminalSize};

/// The keys that a terminal turns into SIGINT and SIGQUIT.
pub(super) const CTRL_C: u8 = 3;
const CTRL_BACKSLASH: u8 = 28;

/// Returns the wish for or against colours that a variable of the client expresses (<https://no-color.org>, <https://bixense.com/clicolors>).
pub(super) fn wish_for_colours(name: &str, value: &str) -> Option<bool> {
    match name {
        "NO_COLOR" => Some(false).filter(|_| !value.is_empty()),
        "CLICOLOR_FORCE" => Some(true).filter(|_| !matches!(value, "" | "0")),
        _ => None,
    }
}

/// The processing of a client's terminal, which the handler decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TerminalMode {
    /// The handler has not decided yet. Input waits.
    Undecided,
    /// The channel ends lines with `\r\n`, Ctrl-C cancels the request, and Ctrl-D ends the input.
    Lines,
    /// All bytes pass unchanged.
    Raw,
}

/// The terminal that a client requested for a request. Requests of git ignore the terminal.
#[derive(Debug)]
pub struct ExecTerminal {
    /// The terminal, with its first size.
    pub terminal: ClientTerminal,
    /// The size, which changes with the client's window.
    pub size: watch::Receiver<TerminalSize>,
    pub(super) mode: watch::Sender<TerminalMode>,
}

impl ExecTerminal {
    /// Returns true if the client's terminal shows colours.
    pub(super) fn shows_colours(&self) -> bool {
        self.terminal.term() != "dumb"
    }

    /// Makes the channel process lines: lines of the output end with `\r\n`, Ctrl-C cancels the request, and Ctrl-D ends the input.
    pub fn process_lines(&self) {
        self.mode.send_replace(TerminalMode::Lines);
    }

    /// Makes the channel pass all bytes unchanged, for a request with a pseudo-terminal.
    pub fn pass_bytes(&self) {
        self.mode.send_replace(TerminalMode::Raw);
    }
}

/// The connection's end of a terminal.
pub(super) struct Window {
    size: watch::Sender<TerminalSize>,
    mode: watch::Receiver<TerminalMode>,
}

impl Window {
    /// Creates both ends of a terminal.
    pub(super) fn open(term: &str, columns: u32, rows: u32, modes: &[(Pty, u32)]) -> (Window, ExecTerminal) {
        let modes = modes.iter().map(|(opcode, value)| (*opcode as u8, *value)).collect();
        let terminal = ClientTerminal::new(term, TerminalSize::new(columns, rows), modes);
        let (size, sizes) = watch::channel(terminal.size);
        let (mode, modes) = watch::channel(TerminalMode::Undecided);
        (Window { size, mode: modes }, ExecTerminal { terminal, size: sizes, mode })
    }

    /// Records a new size of the client's window.
    pub(super) fn resize(&self, columns: u32, rows: u32) {
        self.size.send_replace(TerminalSize::new(columns, rows));
    }

    /// Returns the key that a pseudo-terminal turns into a signal for its foreground processes. Returns `None` for other signals, and for a
    /// channel that processes lines.
    pub(super) fn key(&self, signal: &Sig) -> Option<u8> {
        match signal {
            _ if *self.mode.borrow() != TerminalMode::Raw => None,
            Sig::INT => Some(CTRL_C),
            Sig::QUIT => Some(CTRL_BACKSLASH),
            _ => None,
        }
    }
}
