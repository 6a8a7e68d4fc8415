//! The descriptors of a command's caller, and the output of answers and errors to them.

use std::{io, os::fd::OwnedFd};

use tokio_util::sync::CancellationToken;

use super::{
    command::{CommandAnswer, Format},
    text,
};
use crate::{control::CommandError, host::stream::Outlet, model::sanitise_text};

/// The descriptors and the state of the caller of a command.
#[derive(Debug)]
pub struct Io {
    /// The standard input, which only `run`, `release import` and the question for a confirmation read.
    pub stdin: OwnedFd,
    /// The standard output.
    pub stdout: OwnedFd,
    /// The standard error.
    pub stderr: OwnedFd,
    /// True if the output goes to a terminal although its descriptor is not a terminal, as over ssh.
    pub terminal: bool,
    /// The token that is cancelled when the caller disconnects, or loses the right that the command needs.
    pub gone: CancellationToken,
}

/// The two output streams of a command: terminals, files or pipes of the caller. The caller may stop reading these streams at any time.
#[derive(Debug)]
pub struct Screen {
    out: Outlet,
    err: Outlet,
}

impl Screen {
    /// Creates a screen that writes to these descriptors.
    pub fn new(stdout: OwnedFd, stderr: OwnedFd) -> io::Result<Screen> {
        Ok(Screen { out: Outlet::new(stdout)?, err: Outlet::new(stderr)? })
    }

    /// Writes to the standard output. Returns an error if the descriptor is closed.
    pub async fn out(&mut self, text: &str) -> io::Result<()> {
        self.out.write(text.as_bytes()).await
    }

    /// Writes to the standard error. Returns an error if the descriptor is closed.
    pub async fn err(&mut self, text: &str) -> io::Result<()> {
        self.err.write(text.as_bytes()).await
    }

    /// Writes an error with its hints. Returns the exit status of the error.
    pub async fn refuse(&mut self, error: &CommandError) -> io::Result<u8> {
        self.err(&text::error(error)).await?;
        Ok(error.kind.exit_code())
    }
}

/// Writes an answer. Removes control characters from text for people, because much of this text originates in repositories and processes.
/// Text for another program is written unchanged, except to a terminal.
pub(super) async fn write(answer: CommandAnswer, terminal: bool, stdout: OwnedFd, stderr: OwnedFd) -> io::Result<u8> {
    let unchanged = match answer.format {
        Format::Json => true,
        Format::Text => false,
        Format::Verbatim => !terminal && !rustix::termios::isatty(&stdout),
    };
    let mut screen = Screen::new(stdout, stderr)?;
    if unchanged {
        screen.out(&answer.text).await?
    } else {
        screen.out(&sanitise_text(&answer.text)).await?
    }
    Ok(answer.code)
}
