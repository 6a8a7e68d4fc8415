//! One verb, from its words to its exit code; the same for the control socket and for ssh.

use std::{io, os::fd::OwnedFd};

use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use super::{Cli, Command, parse, render, screen::Screen};
use crate::{
    control::{Caller, CommandError, Control, Kind, LogFollower, Reply, RunFuture, SendFuture, TakeFuture},
    host::launch::Stdio,
    model::{Access, Outcome, ProjectName, sanitise_bytes, sanitise_text},
    pipeline::{Ticket, chain},
    remote::ssh::{Exec, Output},
};

/// A longer line of another server is broken, in bytes.
const LINE_MAX: usize = 16 << 10;

/// The caller's side of a verb.
#[derive(Debug)]
pub struct Io {
    /// Only `run` reads from it.
    pub stdin: OwnedFd,
    /// Answers.
    pub stdout: OwnedFd,
    /// Errors.
    pub stderr: OwnedFd,
    /// Whether the caller is known to look at a terminal that is not one of these descriptors.
    pub terminal: bool,
    /// Cancelled when the caller has gone.
    pub gone: CancellationToken,
}

/// Does what `words` say. Returns the exit code.
pub async fn run(control: &Control, caller: &Caller, words: &[String], io: Io) -> u8 {
    // An error here means that nobody is there to read any more.
    attempt(control, caller, words, io).await.unwrap_or(1)
}

async fn attempt(control: &Control, caller: &Caller, words: &[String], io: Io) -> io::Result<u8> {
    let Io { stdin, stdout, stderr, terminal, gone } = io;
    let Asked { json, project, needed, reply } = match ask(control, caller, words).await {
        Ok(asked) => asked,
        Err(Stop::Clap(error)) => {
            let mut screen = Screen::new(stdout, stderr)?;
            let text = error.render().to_string();
            if error.use_stderr() {
                screen.err(&text).await?
            } else {
                screen.out(&text).await?
            }
            return Ok(u8::try_from(error.exit_code()).unwrap_or(2));
        }
        Err(Stop::Command(error)) => {
            let mut screen = Screen::new(stdout, stderr)?;
            return refuse(&mut screen, &error).await;
        }
    };
    let answering = answer(reply, json, Io { stdin, stdout, stderr, terminal, gone: gone.clone() });
    tokio::pin!(answering);
    // Whoever loses the right to it in the middle is cut off, as if they had gone away.
    tokio::select! {
        code = &mut answering => code,
        () = control.revoked(caller, project.as_ref(), needed) => {
            gone.cancel();
            answering.await
        }
    }
}

async fn answer(reply: Reply, json: bool, io: Io) -> io::Result<u8> {
    let Io { stdin, stdout, stderr, terminal, gone } = io;
    if let Reply::Run(start) = reply {
        return task(start, stdin, stdout, stderr, gone).await;
    }
    if let Reply::Take(take) = reply {
        return taken(take, stdin, stdout, stderr, gone).await;
    }
    drop(stdin);
    if let Reply::Bytes(send) = reply {
        return bytes(send, stdout, stderr, gone).await;
    }
    // A patch is handed on as it is, to `git apply`; everything else is only looked at, and much of it comes from strangers.
    let verbatim = matches!(reply, Reply::Patch(_)) && !terminal && !rustix::termios::isatty(&stdout);
    let mut screen = Screen::new(stdout, stderr)?;
    if json {
        let value = render::value(&reply);
        if !value.is_null() {
            screen.out(&format!("{value:#}\n")).await?;
        }
    } else {
        let text = render::text(&reply);
        if verbatim { screen.out(&text).await? } else { screen.out(&sanitise_text(&text)).await? }
    }
    match reply {
        Reply::Ticket(ticket) => Ok(match follow(&mut screen, *ticket, &gone).await? {
            Some(Outcome::Live { .. } | Outcome::Tried) => 0,
            _ => Kind::Deployment.exit_code(),
        }),
        // Success is that it was put back.
        Reply::Cancelling(ticket) => Ok(match follow(&mut screen, *ticket, &gone).await? {
            Some(Outcome::Refused { .. } | Outcome::RolledBack { .. } | Outcome::Tried) => 0,
            _ => Kind::Deployment.exit_code(),
        }),
        Reply::Relay(exec) => relay(&mut screen, *exec, &gone).await,
        Reply::Logs { follow: Some(lines), .. } => logs(&mut screen, *lines, &gone).await,
        Reply::Past { summary, .. } => {
            if !json {
                screen.out(&sanitise_text(&render::past(&summary))).await?;
            }
            let well = summary.went_live() || summary.outcome == Some(Outcome::Tried);
            Ok(if well { 0 } else { Kind::Deployment.exit_code() })
        }
        _ => Ok(0),
    }
}

/// Writes bytes that are nobody's to look at. A terminal gets none of them.
async fn bytes(
    send: Box<dyn FnOnce(OwnedFd) -> SendFuture + Send>,
    stdout: OwnedFd,
    stderr: OwnedFd,
    gone: CancellationToken,
) -> io::Result<u8> {
    let mine = stderr.try_clone()?;
    let sent = if rustix::termios::isatty(&stdout) {
        Err(CommandError::new(Kind::Usage, "these bytes are not for a terminal").hint("send them to a file: ... > FILE"))
    } else {
        tokio::select! {
            sent = send(stdout) => sent,
            () = gone.cancelled() => return Ok(1),
        }
    };
    match sent {
        Ok(()) => Ok(0),
        Err(error) => refuse(&mut Screen::new(mine, stderr)?, &error).await,
    }
}

/// Reads what the caller sends. There is nothing to send from a keyboard.
async fn taken(
    take: Box<dyn FnOnce(OwnedFd) -> TakeFuture + Send>,
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
    gone: CancellationToken,
) -> io::Result<u8> {
    let mut screen = Screen::new(stdout, stderr)?;
    let done = if rustix::termios::isatty(&stdin) {
        Err(CommandError::new(Kind::Usage, "these bytes do not come from a terminal").hint("read them from a file: ... < FILE"))
    } else {
        tokio::select! {
            done = take(stdin) => done,
            () = gone.cancelled() => return Ok(1),
        }
    };
    match done {
        Ok(what) => screen.out(&sanitise_text(&format!("{what}\n"))).await.map(|()| 0),
        Err(error) => refuse(&mut screen, &error).await,
    }
}

enum Stop {
    Clap(Box<clap::Error>),
    Command(CommandError),
}

/// An answer that is still to be given.
struct Asked {
    json: bool,
    /// What the right that it needs is on.
    project: Option<ProjectName>,
    needed: Access,
    reply: Reply,
}

async fn ask(control: &Control, caller: &Caller, words: &[String]) -> Result<Asked, Stop> {
    let Cli { json, command, .. } = parse(words).map_err(|error| Stop::Clap(Box::new(error)))?;
    let Command::Verb(verb) = command else {
        return Err(Stop::Command(
            CommandError::new(Kind::Usage, "this command runs on the machine itself, not in the server")
                .hint("`help` lists what the server answers"),
        ));
    };
    let request = verb.request().map_err(Stop::Command)?;
    let (project, needed) = request.needs();
    let project = project.cloned();
    let reply = control.handle(caller, request).await.map_err(Stop::Command)?;
    Ok(Asked { json, project, needed, reply })
}

/// Prints an error as all of larder's errors look.
async fn refuse(screen: &mut Screen, error: &CommandError) -> io::Result<u8> {
    screen.err(&error_text(error)).await?;
    Ok(error.kind.exit_code())
}

/// `error: what`, and a line for each hint.
pub fn error_text(error: &CommandError) -> String {
    let mut text = format!("error: {error}\n");
    for hint in &error.hints {
        text.push_str(&format!("hint: {hint}\n"));
    }
    sanitise_text(&text)
}

/// Shows a deployment until it ends. A caller that goes away does not stop it.
async fn follow(screen: &mut Screen, mut ticket: Ticket, gone: &CancellationToken) -> io::Result<Option<Outcome>> {
    let mut lines = ticket.transcript.follow()?;
    loop {
        let text = tokio::select! {
            () = gone.cancelled() => return Ok(None),
            text = lines.next() => text,
        };
        match text {
            Some(text) => screen.out(&text).await?,
            None => break,
        }
    }
    Ok(ticket.outcome().await)
}

/// Passes on what another server says, line by line and without what a terminal would obey.
async fn relay(screen: &mut Screen, mut exec: Exec, gone: &CancellationToken) -> io::Result<u8> {
    let mut rest = [Vec::new(), Vec::new()];
    loop {
        let piece = tokio::select! {
            () = gone.cancelled() => return Ok(0),
            piece = exec.next() => piece,
        };
        let (bytes, stream) = match piece {
            Ok(Some(Output::Out(bytes))) => (bytes, 0),
            Ok(Some(Output::Err(bytes))) => (bytes, 1),
            Ok(None) => break,
            Err(error) => {
                screen.err(&sanitise_text(&format!("error: {}\n", chain(&error)))).await?;
                for hint in error.hints() {
                    screen.err(&sanitise_text(&format!("hint: {hint}\n"))).await?;
                }
                return Ok(1);
            }
        };
        let Some(held) = rest.get_mut(stream) else { continue };
        held.extend_from_slice(&bytes);
        // A line without an end is not waited for without an end.
        let whole = held.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at.saturating_add(1));
        let whole = if whole == 0 && held.len() > LINE_MAX { held.len() } else { whole };
        let lines: Vec<u8> = held.drain(..whole).collect();
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            let line = format!("{}\n", sanitise_bytes(line).trim_end());
            if stream == 0 { screen.out(&line).await? } else { screen.err(&line).await? }
        }
    }
    Ok(exec.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

async fn logs(screen: &mut Screen, mut follower: LogFollower, gone: &CancellationToken) -> io::Result<u8> {
    loop {
        let line = tokio::select! {
            () = gone.cancelled() => return Ok(0),
            line = follower.lines.recv() => line,
        };
        match line {
            Ok(line) if (follower.wanted)(&line) => screen.out(&format!("{}\n", line.text)).await?,
            Ok(_) => {}
            Err(RecvError::Lagged(missed)) => screen.err(&format!("({missed} lines were left out here)\n")).await?,
            Err(RecvError::Closed) => return Ok(0),
        }
    }
}

/// Connects a command of the project to the caller. Ctrl-C and a lost connection end it.
async fn task(
    start: Box<dyn FnOnce(Stdio) -> RunFuture + Send>,
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
    gone: CancellationToken,
) -> io::Result<u8> {
    let mine = stderr.try_clone()?;
    let stdio = Stdio { stdin: Some(stdin), stdout: Some(stdout), stderr: Some(stderr), extra: Vec::new() };
    let mut child = match start(stdio).await {
        Ok(child) => child,
        Err(error) => {
            let mut screen = Screen::new(mine.try_clone()?, mine)?;
            return refuse(&mut screen, &error).await;
        }
    };
    drop(mine);
    let exit = tokio::select! {
        exit = child.wait() => exit,
        () = gone.cancelled() => {
            let _ = child.kill().await;
            child.wait().await
        }
    };
    let exit = exit.map_err(io::Error::other)?;
    let code = exit.code.or(exit.signal.map(|signal| signal.saturating_add(128))).unwrap_or(1);
    Ok(u8::try_from(code).unwrap_or(1))
}
