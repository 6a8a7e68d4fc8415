//! Carries out one command, from its words to its exit status, for the control socket and for ssh.

use std::{io, os::fd::OwnedFd};

use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

pub use super::screen::{Io, LocalTerminal, Screen};
use super::{
    command::{Asked, Asking, CommandOutcome},
    confirm,
    grammar::{Cli, CliCommand, parse},
    interactive::{self, SessionTerminal, exit_code},
    paint::Colours,
    screen::write,
};
use crate::{
    control::{
        Caller, CommandError, Control, DeploymentGoal, ErrorKind, LineStream, LogFollower, RunningCommand, StartCommand, Stream,
    },
    host::launch::Stdio,
    model::{self, sanitise_bytes, sanitise_text},
    pipeline::{Ticket, chain},
    remote::ssh::{Exec, ExecOutput},
};

/// The maximum length of a line of a remote server's output, in bytes. A longer line is split.
const MAX_LINE: usize = 16 << 10;

/// Carries out a command. Returns the exit status.
pub async fn run(control: &Control, caller: &Caller, words: &[String], io: Io) -> u8 {
    // An error here means that the caller's output is closed.
    attempt(control, caller, words, io).await.unwrap_or(1)
}

async fn attempt(control: &Control, caller: &Caller, words: &[String], io: Io) -> io::Result<u8> {
    let Cli { json, quiet, command, .. } = match parse(words) {
        Ok(cli) => cli,
        Err(error) => return usage(&error, Screen::new(io.stdout, io.stderr, io.colours)?).await,
    };
    let asked = match command {
        CliCommand::Verb(verb) => Box::pin(verb.ask(Asking::Run { control, caller, json })).await,
        CliCommand::Local(_) => {
            Err(CommandError::new(ErrorKind::Usage, "cannot run this command on the server: it runs on your own machine only")
                .hint("list the commands of the server with `help`"))
        }
    };
    let (needs, outcome) = match asked {
        Ok(Asked { needs, outcome: Some(outcome) }) => (needs, outcome),
        // A request that is carried out has an outcome.
        Ok(Asked { outcome: None, .. }) => return Ok(1),
        Err(error) => return Screen::new(io.stdout, io.stderr, io.colours)?.refuse(&error).await,
    };
    let gone = io.gone.clone();
    let answering = conclude(outcome, json, quiet, io);
    tokio::pin!(answering);
    // If the caller loses the right while the command runs, the command ends as if the caller had disconnected.
    tokio::select! {
        code = &mut answering => code,
        () = control.revoked(caller, &needs) => {
            gone.cancel();
            answering.await
        }
    }
}

async fn usage(error: &clap::Error, mut screen: Screen) -> io::Result<u8> {
    let rendered = error.render();
    let text = if screen.has_coloured_errors() { rendered.ansi().to_string() } else { rendered.to_string() };
    if error.use_stderr() {
        screen.err(&text).await?
    } else {
        screen.out(&text).await?
    }
    Ok(u8::try_from(error.exit_code()).unwrap_or(2))
}

async fn conclude(outcome: CommandOutcome, json: bool, quiet: bool, io: Io) -> io::Result<u8> {
    if let (Some(terminal), false) = (&io.terminal, matches!(outcome, CommandOutcome::Stream(Stream::Interactive(_)))) {
        terminal.process_lines();
    }
    let outcome = match outcome {
        CommandOutcome::Confirm(confirmation) => match confirm::confirmed(confirmation, json, &io).await? {
            Ok(outcome) => outcome,
            Err(code) => return Ok(code),
        },
        other => other,
    };
    let outcome = match outcome {
        CommandOutcome::Input(input) => {
            let read = if io.terminal.is_some() || rustix::termios::isatty(&io.stdin) {
                Err(CommandError::new(ErrorKind::Usage, "cannot read the input from a terminal")
                    .hint("redirect the input: ... < FILE"))
            } else {
                tokio::select! {
                    read = input(io.stdin.try_clone()?) => read,
                    () = io.gone.cancelled() => return Ok(1),
                }
            };
            match read {
                Ok(outcome) => outcome,
                Err(error) => return Screen::new(io.stdout, io.stderr, io.colours)?.refuse(&error).await,
            }
        }
        other => other,
    };
    let Io { stdin, stdout, stderr, terminal: caller_terminal, local_terminal, colours, gone } = io;
    let terminal = caller_terminal.is_some();
    match outcome {
        // A request reads its input once.
        CommandOutcome::Input(_) => Ok(ErrorKind::Internal.exit_code()),
        // The caller confirms a command at most once. If the confirmed command needs a further confirmation, only its consequences are shown.
        CommandOutcome::Confirm(confirmation) => write(confirmation.answer, terminal, colours, stdout, stderr).await,
        CommandOutcome::Answer(answer) => {
            drop(stdin);
            write(answer, terminal, colours, stdout, stderr).await
        }
        CommandOutcome::Upload(upload) => {
            let answer = if terminal || rustix::termios::isatty(&stdin) {
                Err(CommandError::new(ErrorKind::Usage, "cannot read a file from a terminal")
                    .hint("redirect the input: ... < FILE"))
            } else {
                tokio::select! {
                    answer = upload(stdin) => answer,
                    () = gone.cancelled() => return Ok(1),
                }
            };
            match answer {
                Ok(answer) => write(answer, terminal, colours, stdout, stderr).await,
                Err(error) => Screen::new(stdout, stderr, colours)?.refuse(&error).await,
            }
        }
        CommandOutcome::Stream(Stream::Interactive(start)) => {
            let terminal = caller_terminal.map(SessionTerminal::Remote).or(local_terminal.map(SessionTerminal::Local));
            match terminal {
                Some(terminal) => {
                    let caller = interactive::CallerStreams { stdin, stdout, stderr, colours, gone };
                    interactive::run(start, caller, terminal).await
                }
                None => piped(start, [stdin, stdout, stderr], colours, &gone).await,
            }
        }
        // A terminal would change the bytes of a dump.
        CommandOutcome::Stream(Stream::Run(_)) if terminal => {
            let error = CommandError::new(ErrorKind::Usage, "cannot transfer a file through a terminal");
            Screen::new(stdout, stderr, colours)?.refuse(&error.hint("run the command without a terminal: `ssh -T`")).await
        }
        CommandOutcome::Stream(Stream::Run(start)) => piped(start, [stdin, stdout, stderr], colours, &gone).await,
        CommandOutcome::Stream(Stream::Bytes(send)) => {
            drop(stdin);
            if terminal || rustix::termios::isatty(&stdout) {
                let error = CommandError::new(ErrorKind::Usage, "cannot write a file to a terminal");
                return Screen::new(stdout, stderr, colours)?.refuse(&error.hint("redirect the output: ... > FILE")).await;
            }
            let sent = tokio::select! {
                sent = send(stdout) => sent,
                () = gone.cancelled() => return Ok(1),
            };
            match sent {
                Ok(()) => Ok(0),
                Err(error) => Screen::of_errors(stderr, colours)?.refuse(&error).await,
            }
        }
        CommandOutcome::Stream(Stream::Deployment { ticket, goal }) => {
            drop(stdin);
            deployment(Screen::new(stdout, stderr, colours)?, *ticket, goal, quiet, &gone).await
        }
        CommandOutcome::Stream(Stream::Logs { past, follower }) => {
            drop(stdin);
            logs(Screen::new(stdout, stderr, colours)?, json, past, *follower, &gone).await
        }
        CommandOutcome::Stream(Stream::Lines(stream)) => {
            drop(stdin);
            follow(Screen::new(stdout, stderr, colours)?, *stream, quiet, &gone).await
        }
        CommandOutcome::Stream(Stream::Relay(exec)) => {
            drop(stdin);
            relay(Screen::new(stdout, stderr, colours)?, *exec, &gone).await
        }
    }
}

/// Runs a command with the descriptors of its caller. Returns its exit status.
async fn piped(
    start: StartCommand,
    [stdin, stdout, stderr]: [OwnedFd; 3],
    colours: Colours,
    gone: &CancellationToken,
) -> io::Result<u8> {
    let stdio = Stdio { stdin: Some(stdin), stdout: Some(stdout), stderr: Some(stderr.try_clone()?), extra: Vec::new() };
    let RunningCommand { mut child, copy, locked } = match start(stdio).await {
        Ok(running) => running,
        Err(error) => return Screen::of_errors(stderr, colours)?.refuse(&error).await,
    };
    // From here on, only the command holds the caller's descriptors. The caller's output therefore ends when the command closes them.
    drop(stderr);
    let exit = tokio::select! {
        exit = child.wait() => exit,
        () = gone.cancelled() => {
            let _ = child.kill().await;
            child.wait().await
        }
    };
    // A copy of the data is deleted after the command has ended.
    drop((copy, locked));
    Ok(exit_code(exit.map_err(io::Error::other)?))
}

/// Shows a deployment until it ends. The deployment continues if the caller disconnects.
async fn deployment(
    mut screen: Screen,
    mut ticket: Ticket,
    goal: DeploymentGoal,
    quiet: bool,
    gone: &CancellationToken,
) -> io::Result<u8> {
    use model::Outcome;
    let failed = ErrorKind::Deployment.exit_code();
    let mut lines = ticket.transcript.follow()?;
    loop {
        let text = tokio::select! {
            () = gone.cancelled() => return Ok(failed),
            text = lines.next() => text,
        };
        match text {
            Some(text) if quiet => {
                let errors: String = text.split_inclusive('\n').filter(|line| line.starts_with(" !")).collect();
                screen.out(&errors).await?;
            }
            Some(text) => screen.out(&text).await?,
            None => break,
        }
    }
    let reached = match ticket.outcome().await {
        // A cancelled dry run ends as rolled back. `Tried` means that the dry run had ended before it could be cancelled.
        Some(Outcome::Tried | Outcome::Live { .. }) => goal == DeploymentGoal::Live,
        Some(Outcome::Refused { .. } | Outcome::RolledBack { .. }) => goal == DeploymentGoal::Reverted,
        Some(Outcome::Stuck { .. }) | None => false,
    };
    Ok(if reached { 0 } else { failed })
}

/// Shows the output of a task until it ends. The task continues if the caller disconnects.
async fn follow(mut screen: Screen, mut stream: LineStream, quiet: bool, gone: &CancellationToken) -> io::Result<u8> {
    loop {
        let line = tokio::select! {
            () = gone.cancelled() => return Ok(1),
            line = stream.lines.recv() => line,
        };
        match line {
            Some(line) if quiet && !line.starts_with(" !") => {}
            Some(line) => screen.out(&sanitise_text(&format!("{line}\n"))).await?,
            None => break,
        }
    }
    match stream.ended.await {
        Ok(Ok(())) => Ok(0),
        Ok(Err(error)) => screen.refuse(&error).await,
        Err(error) => screen.refuse(&CommandError::internal(&error)).await,
    }
}

/// Writes the output of a remote server line by line, without control characters.
async fn relay(mut screen: Screen, mut exec: Exec, gone: &CancellationToken) -> io::Result<u8> {
    let mut unfinished = [Vec::new(), Vec::new()];
    loop {
        let piece = tokio::select! {
            () = gone.cancelled() => return Ok(0),
            piece = exec.next() => piece,
        };
        let (bytes, stream) = match piece {
            Ok(Some(ExecOutput::Out(bytes))) => (bytes, 0),
            Ok(Some(ExecOutput::Err(bytes))) => (bytes, 1),
            Ok(None) => break,
            Err(error) => {
                screen.err(&sanitise_text(&format!("error: {}\n", chain(&error)))).await?;
                for hint in error.hints() {
                    screen.err(&sanitise_text(&format!("hint: {hint}\n"))).await?;
                }
                // The outcome on the remote server is unknown, so the exit status does not report a failed deployment.
                return Ok(ErrorKind::Refused.exit_code());
            }
        };
        let Some(held) = unfinished.get_mut(stream) else { continue };
        held.extend_from_slice(&bytes);
        let complete = held.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at.saturating_add(1));
        // A line that grows too long is written in pieces, so that the buffer is bounded.
        let complete = if complete == 0 && held.len() > MAX_LINE { held.len() } else { complete };
        let lines: Vec<u8> = held.drain(..complete).collect();
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            let line = format!("{}\n", sanitise_bytes(line).trim_end());
            if stream == 0 { screen.out(&line).await? } else { screen.err(&line).await? }
        }
    }
    Ok(exec.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// Writes log lines as they arrive: as text or, with `json`, as one JSON string per line.
async fn logs(
    mut screen: Screen,
    json: bool,
    past: Vec<String>,
    mut follower: LogFollower,
    gone: &CancellationToken,
) -> io::Result<u8> {
    let shown = |line: &str| match json {
        true => format!("{}\n", serde_json::Value::from(line)),
        false => sanitise_text(&format!("{line}\n")),
    };
    for line in past {
        screen.out_unchanged(&shown(&line)).await?;
    }
    loop {
        let line = tokio::select! {
            () = gone.cancelled() => return Ok(0),
            line = follower.lines.recv() => line,
        };
        match line {
            Ok(line) if (follower.wanted)(&line) => screen.out_unchanged(&shown(&line.text)).await?,
            Ok(_) => {}
            Err(RecvError::Lagged(missed)) => {
                screen.err(&format!("(lines missing here: {missed}; the output was read too slowly)\n")).await?
            }
            Err(RecvError::Closed) => return Ok(0),
        }
    }
}
