//! A command of a project in a pseudo-terminal: `larder run` and `larder db shell` of a caller with a terminal.
//!
//! The kernel processes the keys: Ctrl-C becomes a signal for the command, not for the server. This file only moves bytes. Each direction has
//! one buffer, so a command that does not read, or a caller that does not read, stops the other side and takes no memory of the server.

use std::{io, os::fd::OwnedFd, time::Duration};

use tokio::{io::AsyncReadExt as _, net::unix::pipe, sync::watch};
use tokio_util::sync::CancellationToken;

use super::{
    paint::Colours,
    screen::{LocalTerminal, Screen},
};
use crate::{
    control::{CommandError, ErrorKind, RunningCommand, StartCommand},
    host::{
        launch::{Child, Stdio},
        pty::{PtyMaster, PtyRequest},
        stream::Outlet,
    },
    model::{Exit, TerminalSize},
    surface::ssh::ExecTerminal,
};

/// The size of the buffer of each direction, in bytes.
const BUFFER: usize = 16 * 1024;
/// The time between the hang-up and the kill of a command. A caller that loses its rights loses the session within a second.
const HANG_UP_GRACE: Duration = Duration::from_millis(500);
/// The maximum size of the output that is sent after the end of the command, in bytes. The kernel holds less.
const MAX_REMAINING: usize = 1024 * 1024;

/// The descriptors of a caller with a terminal.
pub(super) struct CallerStreams {
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
    pub colours: Colours,
    pub gone: CancellationToken,
}

/// The terminal at which the caller uses the command.
pub(super) enum SessionTerminal {
    /// The terminal of a client of ssh. The server moves the bytes.
    Remote(ExecTerminal),
    /// A terminal on this machine. The caller gets the master and moves the bytes itself.
    Local(LocalTerminal),
}

/// Runs a command in a pseudo-terminal. Returns its exit status. When the caller is gone, the terminal hangs up, and the remaining processes
/// of the command are killed.
pub(super) async fn run(start: StartCommand, caller: CallerStreams, terminal: SessionTerminal) -> io::Result<u8> {
    let CallerStreams { stdin, stdout, stderr, colours, gone } = caller;
    let wanted = match &terminal {
        SessionTerminal::Remote(remote) => remote.terminal.with_size(*remote.size.borrow()),
        SessionTerminal::Local(local) => local.terminal.clone(),
    };
    let (request, worker) = PtyRequest::new(&wanted)?;
    // Until the worker has opened the terminal, its errors go to the caller's standard error.
    let stdio = Stdio { stdin: None, stdout: None, stderr: Some(stderr.try_clone()?), extra: vec![worker] };
    let RunningCommand { mut child, copy, locked } = match start(stdio).await {
        Ok(running) => running,
        Err(error) => return Screen::of_errors(stderr, colours)?.refuse(&error).await,
    };
    let opened = tokio::select! {
        opened = request.master() => Some(opened),
        () = gone.cancelled() => None,
    };
    match opened {
        Some(Ok(master)) => {
            drop(stderr);
            match terminal {
                SessionTerminal::Local(local) => {
                    // A caller that is gone drops the master, so the terminal hangs up.
                    let _ = local.master.send(master.into_descriptor()?);
                    drop((stdin, stdout));
                }
                SessionTerminal::Remote(mut remote) => {
                    remote.pass_bytes();
                    let ended = CancellationToken::new();
                    let waiting = async {
                        let _ = child.wait().await;
                        ended.cancel();
                        std::future::pending::<()>().await
                    };
                    tokio::select! {
                        () = exchange(&master, stdin, stdout, &mut remote.size, &ended) => {}
                        () = waiting => {}
                        () = gone.cancelled() => {}
                    }
                    // A command may close the terminal and continue.
                    tokio::select! {
                        _ = child.wait() => {}
                        () = gone.cancelled() => {}
                    }
                    // The terminal hangs up here.
                    drop(master);
                    return end(child, (copy, locked)).await;
                }
            }
            tokio::select! {
                _ = child.wait() => {}
                () = gone.cancelled() => {}
            }
        }
        Some(Err(error)) if error.kind() != io::ErrorKind::UnexpectedEof => {
            let error = CommandError::new(ErrorKind::Internal, format!("cannot start the command in a terminal: {error}"));
            let _ = child.kill().await;
            return Screen::of_errors(stderr, colours)?.refuse(&error).await;
        }
        // The worker has exited, with its reason on the standard error, or the caller is gone.
        Some(Err(_)) | None => {}
    }
    end(child, (copy, locked)).await
}

/// Waits for the end of a command whose terminal has hung up, kills what remains, and returns the exit status. `held` is dropped afterwards: a
/// copy of the data is deleted after the command has ended.
async fn end<T>(mut child: Child, held: T) -> io::Result<u8> {
    if tokio::time::timeout(HANG_UP_GRACE, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
    let exit = child.wait().await;
    drop(held);
    Ok(exit_code(exit.map_err(io::Error::other)?))
}

/// Returns the exit status of a command: its own, or 128 and the number of the signal that ended it, as shells do.
pub(super) fn exit_code(exit: Exit) -> u8 {
    let code = exit.code.or(exit.signal.map(|signal| signal.saturating_add(128))).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

/// Moves bytes in both directions and passes new sizes on. Ends when no process has the terminal open, when all output of a command that has
/// ended is sent, or when the caller's output is closed.
async fn exchange(
    master: &PtyMaster,
    stdin: OwnedFd,
    stdout: OwnedFd,
    size: &mut watch::Receiver<TerminalSize>,
    ended: &CancellationToken,
) {
    let typing = async {
        // An error of the terminal ends the other direction, too.
        let _ = type_input(master, stdin).await;
        std::future::pending::<()>().await
    };
    let resizing = async {
        // The size may have changed while the command was started.
        loop {
            let new = *size.borrow_and_update();
            let _ = master.resize(new);
            if size.changed().await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await
    };
    let showing = async {
        let _ = show_output(master, stdout, ended).await;
    };
    tokio::select! {
        () = showing => {}
        () = typing => {}
        () = resizing => {}
    }
}

/// Types the caller's input until the input ends.
async fn type_input(master: &PtyMaster, stdin: OwnedFd) -> io::Result<()> {
    let mut input = pipe::Receiver::from_owned_fd(stdin)?;
    let mut buffer = vec![0; BUFFER];
    let mut is_at_line_start = true;
    loop {
        let count = input.read(&mut buffer).await?;
        let typed = buffer.get(..count).unwrap_or_default();
        match typed.last() {
            None => return master.end_input(is_at_line_start).await,
            Some(last) => is_at_line_start = matches!(last, b'\n' | b'\r'),
        }
        master.write_all(typed).await?;
    }
}

/// Sends the output of the command until no process has the terminal open. After the end of the command, only the output that the kernel
/// holds is sent: a process outside of the command may have got the terminal.
async fn show_output(master: &PtyMaster, stdout: OwnedFd, ended: &CancellationToken) -> io::Result<()> {
    let mut outlet = Outlet::new(stdout)?;
    let mut buffer = vec![0; BUFFER];
    let mut remaining = MAX_REMAINING;
    loop {
        let count = tokio::select! {
            count = master.read(&mut buffer) => count?,
            () = ended.cancelled() => 0,
        };
        let count = if ended.is_cancelled() && count == 0 { master.read_remaining(&mut buffer)? } else { count };
        if ended.is_cancelled() {
            remaining = remaining.saturating_sub(count);
        }
        if count == 0 || remaining == 0 {
            return Ok(());
        }
        outlet.write(buffer.get(..count).unwrap_or_default()).await?;
    }
}
