//! The question for a confirmation: a person types the name of the project on a terminal before a command replaces data.
//!
//! The server asks this question, because it renders the consequences first. A local caller passes the descriptor of its terminal, which
//! echoes and edits the line itself. An ssh client with a terminal sends each key as it is pressed, so this file echoes and edits the line.

use std::{io, io::Read as _, time::Duration};

use super::{
    command::{CommandConfirmation, CommandOutcome},
    screen::{Io, Screen, write},
};
use crate::{
    control::{CommandError, ErrorKind},
    host::stream::Inlet,
    model::sanitise_line,
};

/// The time without a key after which the question is withdrawn.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);

/// The maximum length of the typed line, in bytes. Names of projects are shorter.
const MAX_LINE: usize = 200;

/// Shows the consequences of a command and asks for its confirmation. Returns the outcome of the confirmed command, or the exit status of a
/// command that was not confirmed. Asks nothing if `json` is set or if there is no terminal: the consequences are then the whole answer.
pub(super) async fn confirmed(confirmation: CommandConfirmation, json: bool, io: &Io) -> io::Result<Result<CommandOutcome, u8>> {
    let CommandConfirmation { answer, word, proceed } = confirmation;
    let (stdout, stderr) = (io.stdout.try_clone()?, io.stderr.try_clone()?);
    let is_local = rustix::termios::isatty(&io.stdin);
    let has_terminal = io.terminal.is_some();
    if json || !(is_local || has_terminal) {
        return write(answer, has_terminal, io.colours, stdout, stderr).await.map(Err);
    }
    write(answer, has_terminal, io.colours, stdout, stderr).await?;
    let mut screen = Screen::new(io.stdout.try_clone()?, io.stderr.try_clone()?, io.colours)?;
    screen.err(&format!("type the name of the project ({word}) to continue: ")).await?;
    let typed = line(io, !is_local, &mut screen).await?;
    if typed.as_deref().map(str::trim) != Some(word.as_str()) {
        let seen = match typed {
            None => String::from("the line was not completed"),
            Some(typed) => format!("{:?} was typed", sanitise_line(&typed)),
        };
        let error = CommandError::new(ErrorKind::Refused, format!("nothing was changed: {seen} (expected {word})"));
        return screen.refuse(&error).await.map(Err);
    }
    match proceed().await {
        Ok(outcome) => Ok(Ok(outcome)),
        Err(error) => screen.refuse(&error).await.map(Err),
    }
}

/// Reads a line from the terminal. Returns `None` if the input ends, if Ctrl-C or Ctrl-D is pressed, or after [`ANSWER_TIMEOUT`]. If `echo`
/// is set, writes the typed characters to the screen and applies the erase key.
async fn line(io: &Io, echo: bool, screen: &mut Screen) -> io::Result<Option<String>> {
    let mut input = Inlet::new(io.stdin.try_clone()?, ANSWER_TIMEOUT, io.gone.clone());
    let mut line = Vec::new();
    loop {
        let mut byte = [0_u8];
        let reading = tokio::task::spawn_blocking(move || {
            let read = input.read(&mut byte);
            read.map(|count| (input, (count > 0).then_some(byte)))
        });
        // A timeout and a caller that disconnected count as no answer.
        let Ok((rest, read)) = reading.await.map_err(io::Error::other)? else { break };
        input = rest;
        let Some([byte]) = read else { break };
        match byte {
            b'\r' | b'\n' => {
                if echo {
                    screen.err("\n").await?;
                }
                return Ok(Some(String::from_utf8_lossy(&line).into_owned()));
            }
            // Ctrl-C and Ctrl-D.
            3 | 4 => break,
            // Depending on the terminal, the erase key sends a backspace (8) or a delete (127).
            8 | 127 => {
                let is_erased = line.pop().is_some();
                if is_erased && echo {
                    screen.err("\u{8} \u{8}").await?;
                }
            }
            byte if line.len() < MAX_LINE => {
                line.push(byte);
                if echo && byte.is_ascii_graphic() {
                    screen.err(char::from(byte).encode_utf8(&mut [0; 4])).await?;
                }
            }
            _ => {}
        }
    }
    screen.err("\n").await?;
    Ok(None)
}
