//! The command line of the user's own `ssh`. The user's keys, agent, configuration and `known_hosts` apply.

use std::{
    fs::File,
    io::{self, IsTerminal as _, Read},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use super::{
    super::{
        command::TerminalUse,
        paint::{self, Colours},
    },
    terminal,
};
use crate::{
    control::{CommandError, ErrorKind},
    model::SshUrl,
};

/// The maximum size of an answer that the client reads itself, in bytes.
const MAX_ANSWER: u64 = 8 << 20;

/// The output of a command that the client reads itself.
pub(super) struct Captured {
    /// The exit status of `ssh`.
    pub code: u8,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

/// A command for a server that `ssh` reaches.
pub(super) struct SshCall<'a> {
    pub url: &'a SshUrl,
    pub words: &'a [String],
    pub terminal: TerminalUse,
}

impl SshCall<'_> {
    /// Runs the command with the standard descriptors of this process. Returns the exit status of `ssh`, which is that of the command, or
    /// 255 if `ssh` does not reach the server. If no filter is needed, `ssh` replaces this process.
    pub(super) fn run(&self) -> Result<u8, CommandError> {
        let has_terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
        let terminal = if has_terminal { self.terminal } else { TerminalUse::None };
        let colours = Colours::of_process();
        // The server decides for both streams together. Variables that it does not know have no effect.
        let wish = match colours == (Colours { out: true, err: true }) {
            true => "SetEnv=CLICOLOR_FORCE=1",
            false => "SetEnv=NO_COLOR=1",
        };
        let is_said = terminal != TerminalUse::None || colours.out;
        let options = ["-o", wish];
        let options = options.get(..if is_said { 2 } else { 0 }).unwrap_or_default();
        let mut ssh = self.command_with(terminal != TerminalUse::None, options)?;
        if terminal == TerminalUse::Session {
            // All bytes of the program reach the terminal, as with any use of `ssh`.
            return Err(cannot_start(&ssh.exec()));
        }
        let filters = [io::stdout().is_terminal(), io::stderr().is_terminal()];
        if filters == [false, false] {
            return Err(cannot_start(&ssh.exec()));
        }
        let [stdout, stderr] = filters.map(|is_filtered| if is_filtered { Stdio::piped() } else { Stdio::inherit() });
        let mut child = ssh.stdout(stdout).stderr(stderr).spawn().map_err(|error| cannot_start(&error))?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        // An error of a copy means that the terminal is gone.
        let errors = std::thread::spawn(move || stderr.map(|from| terminal::copy(from, io::stderr())));
        let _ = stdout.map(|from| terminal::copy(from, io::stdout()));
        let _ = errors.join();
        exit_status(&mut child)
    }

    /// Runs the command with a file as its standard output. Returns the exit status of `ssh`.
    pub(super) fn run_into(&self, file: File, is_quiet: bool) -> Result<u8, CommandError> {
        let written = file.try_clone();
        let mut child = self.command(false)?.stdout(file).spawn().map_err(|error| cannot_start(&error))?;
        if io::stderr().is_terminal() && !is_quiet {
            let bar = paint::bytes("received", is_quiet);
            while let Ok(None) = child.try_wait() {
                bar.set_position(
                    written.as_ref().ok().and_then(|file| file.metadata().ok()).map_or(0, |metadata| metadata.len()),
                );
                std::thread::sleep(paint::TICK);
            }
            bar.finish_and_clear();
        }
        exit_status(&mut child)
    }

    /// Runs the command and reads its output. Returns `None` if the command does not end within `limit`. Without `may_prompt`, `ssh` asks the
    /// user nothing.
    pub(super) fn capture(&self, limit: Duration, may_prompt: bool) -> Result<Option<Captured>, CommandError> {
        let connect = format!("ConnectTimeout={}", limit.as_secs().max(1));
        let quiet = ["-o", "BatchMode=yes", "-o", connect.as_str()];
        let mut ssh = self.command_with(false, if may_prompt { &[] } else { &quiet })?;
        if !may_prompt {
            // Programs of `ssh`, such as `ProxyCommand`, are killed together with it. A program in another process group could not ask.
            ssh.process_group(0);
        }
        let child = ssh.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.map_err(|error| cannot_start(&error))?;
        let (send, receive) = mpsc::channel();
        let read = |from: Option<Box<dyn Read + Send>>, is_output: bool| {
            let send = send.clone();
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                // An error counts as the end of the output.
                let _ = from.map(|from| from.take(MAX_ANSWER).read_to_end(&mut bytes));
                let _ = send.send((is_output, bytes));
            });
        };
        read(child.stdout.take().map(|from| Box::new(from) as _), true);
        read(child.stderr.take().map(|from| Box::new(from) as _), false);
        let deadline = Instant::now().checked_add(limit);
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            let rest = deadline.map_or(limit, |deadline| deadline.saturating_duration_since(Instant::now()));
            match receive.recv_timeout(rest) {
                Ok((true, bytes)) => stdout = bytes,
                Ok((false, bytes)) => stderr = bytes,
                Err(_) => {
                    kill(&mut child, !may_prompt);
                    return Ok(None);
                }
            }
        }
        if stdout.len() as u64 >= MAX_ANSWER {
            kill(&mut child, !may_prompt);
            let server = self.url.server();
            return Err(CommandError::new(
                ErrorKind::Internal,
                format!("the answer of {server} has more than {MAX_ANSWER} bytes"),
            ));
        }
        let code = exit_status(&mut child)?;
        Ok(Some(Captured { code, stdout, stderr: String::from_utf8_lossy(&stderr).into_owned() }))
    }

    fn command(&self, with_terminal: bool) -> Result<Command, CommandError> {
        self.command_with(with_terminal, &[])
    }

    /// Returns the command line. No shell on this machine reads the words, and larder's server splits them without a shell.
    fn command_with(&self, with_terminal: bool, options: &[&str]) -> Result<Command, CommandError> {
        let quoted = shlex::try_join(self.words.iter().map(String::as_str))
            .map_err(|_| CommandError::new(ErrorKind::Usage, "cannot send the command: a word contains a NUL byte"))?;
        let mut ssh = Command::new("ssh");
        if let Some(port) = self.url.port() {
            ssh.arg("-p").arg(port.to_string());
        }
        if with_terminal {
            // Without the option, `ssh` reports the end of each connection with a terminal.
            ssh.args(["-t", "-o", "LogLevel=ERROR"]);
        } else {
            ssh.arg("-T");
        }
        // A server of larder needs neither the agent nor a display nor a forwarded port, and a host that a repository names must not get them.
        ssh.args(["-a", "-x", "-o", "ClearAllForwardings=yes"]).args(options);
        ssh.arg("--").arg(self.url.destination()).arg(quoted);
        Ok(ssh)
    }
}

/// Kills `ssh`, with its process group if `ssh` leads one.
fn kill(child: &mut Child, with_group: bool) {
    if with_group {
        let _ = rustix::process::kill_process_group(rustix::process::Pid::from_child(child), rustix::process::Signal::KILL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

fn exit_status(child: &mut Child) -> Result<u8, CommandError> {
    let status = child.wait().map_err(|error| CommandError::internal(&error))?;
    let code = status.code().or(status.signal().map(|signal| signal.saturating_add(128))).unwrap_or(1);
    Ok(u8::try_from(code).unwrap_or(1))
}

/// Returns the error of an `ssh` that could not be started.
fn cannot_start(error: &io::Error) -> CommandError {
    CommandError::new(ErrorKind::Internal, format!("cannot start ssh: {error}")).hint("install the OpenSSH client")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_one_quoted_argument_after_the_host() {
        let words = ["run", "shop", "--", "printf", "<%s>", "two  words", "it's", "$HOME", "-oProxyCommand=x"].map(str::to_owned);
        let url = "ssh://larder@host:2222/shop".parse().unwrap();
        let ssh = SshCall { url: &url, words: &words, terminal: TerminalUse::None }.command(false).unwrap();
        let arguments: Vec<_> = ssh.get_args().map(|word| word.to_str().unwrap()).collect();
        let (options, rest) = arguments.split_at(arguments.iter().position(|word| *word == "--").unwrap());
        assert_eq!(options, ["-p", "2222", "-T", "-a", "-x", "-o", "ClearAllForwardings=yes"]);
        assert_eq!(rest[1], "larder@host");
        assert_eq!(shlex::split(rest[2]).unwrap(), words);
        assert_eq!(rest.len(), 3);
        let words = [String::from("a\0b")];
        assert!(SshCall { url: &url, words: &words, terminal: TerminalUse::None }.command(false).is_err());
    }
}
