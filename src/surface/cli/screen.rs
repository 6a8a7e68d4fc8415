//! The descriptors of a command's caller, and the output of answers and errors to them.

use std::{io, os::fd::OwnedFd};

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::{
    command::{CommandAnswer, Format},
    paint::{self, Colours},
    text,
};
use crate::{
    control::CommandError,
    host::stream::Outlet,
    model::{ClientTerminal, sanitise_text},
    surface::ssh::ExecTerminal,
};

/// The descriptors and the state of the caller of a command.
#[derive(Debug)]
pub struct Io {
    /// The standard input, which only `run`, `release import` and the question for a confirmation read.
    pub stdin: OwnedFd,
    /// The standard output.
    pub stdout: OwnedFd,
    /// The standard error.
    pub stderr: OwnedFd,
    /// The terminal of a caller whose descriptors are no terminals, as over ssh.
    pub terminal: Option<ExecTerminal>,
    /// The terminal of a caller on this machine, for a command that runs in a pseudo-terminal.
    pub local_terminal: Option<LocalTerminal>,
    /// The streams whose text has colours.
    pub colours: Colours,
    /// The token that is cancelled when the caller disconnects, or loses the right that the command needs.
    pub gone: CancellationToken,
}

impl Io {
    /// Returns the descriptors of a client of ssh.
    pub fn of_client(
        [stdin, stdout, stderr]: [OwnedFd; 3],
        terminal: Option<ExecTerminal>,
        has_colours: bool,
        gone: CancellationToken,
    ) -> Io {
        let colours = Colours { out: has_colours, err: has_colours };
        Io { stdin, stdout, stderr, terminal, local_terminal: None, colours, gone }
    }
}

/// The terminal of a caller on this machine.
#[derive(Debug)]
pub struct LocalTerminal {
    /// The terminal.
    pub terminal: ClientTerminal,
    /// The receiver of the master of the pseudo-terminal, which passes it on to the caller.
    pub master: oneshot::Sender<OwnedFd>,
}

/// The two output streams of a command: terminals, files or pipes of the caller. The caller may stop reading these streams at any time.
#[derive(Debug)]
pub struct Screen {
    out: Outlet,
    err: Outlet,
    colours: Colours,
}

impl Screen {
    /// Creates a screen that writes to these descriptors.
    pub fn new(stdout: OwnedFd, stderr: OwnedFd, colours: Colours) -> io::Result<Screen> {
        Ok(Screen { out: Outlet::new(stdout)?, err: Outlet::new(stderr)?, colours })
    }

    /// Creates a screen for an error. The standard output of the caller is not used.
    pub fn of_errors(stderr: OwnedFd, colours: Colours) -> io::Result<Screen> {
        Screen::new(stderr.try_clone()?, stderr, colours)
    }

    /// Returns true if text for the standard error has colours.
    pub(super) fn has_coloured_errors(&self) -> bool {
        self.colours.err
    }

    /// Writes text for people to the standard output. Returns an error if the descriptor is closed.
    pub async fn out(&mut self, text: &str) -> io::Result<()> {
        if self.colours.out { self.out.write(paint::painted(text).as_bytes()).await } else { self.out_unchanged(text).await }
    }

    /// Writes text for programs to the standard output. Returns an error if the descriptor is closed.
    pub async fn out_unchanged(&mut self, text: &str) -> io::Result<()> {
        self.out.write(text.as_bytes()).await
    }

    /// Writes text for people to the standard error. Returns an error if the descriptor is closed.
    pub async fn err(&mut self, text: &str) -> io::Result<()> {
        if self.colours.err {
            self.err.write(paint::painted(text).as_bytes()).await
        } else {
            self.err.write(text.as_bytes()).await
        }
    }

    /// Writes an error with its hints. Returns the exit status of the error.
    pub async fn refuse(&mut self, error: &CommandError) -> io::Result<u8> {
        self.err(&text::error(error)).await?;
        Ok(error.kind.exit_code())
    }
}

/// Writes an answer. Removes control characters from text for people, because much of this text originates in repositories and processes.
/// Text for another program is written unchanged, except to a terminal.
pub(super) async fn write(
    answer: CommandAnswer,
    terminal: bool,
    colours: Colours,
    stdout: OwnedFd,
    stderr: OwnedFd,
) -> io::Result<u8> {
    let unchanged = match answer.format {
        Format::Json => true,
        Format::Text => false,
        Format::Verbatim => !terminal && !rustix::termios::isatty(&stdout),
    };
    let mut screen = Screen::new(stdout, stderr, colours)?;
    if unchanged {
        screen.out_unchanged(&answer.text).await?
    } else {
        screen.out(&sanitise_text(&answer.text)).await?
    }
    Ok(answer.code)
}
