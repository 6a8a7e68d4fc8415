//! One script: started with an environment from zero, its output passed on as it comes, its last lines kept, and everything that
//! it started ended with it.

use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use parking_lot::Mutex;

/// How many of the last lines are kept for the report.
const TAIL_LINES: usize = 20;
/// Bytes that are kept of a line.
const LINE: usize = 512;
/// Bytes that are kept of an output that is a value.
pub(super) const VALUE: usize = 64 * 1024;
/// How long output may still come after the script ended and its process group was killed.
const DRAIN: Duration = Duration::from_secs(2);

/// Where a script's stdout goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Capture {
    /// To the build's output, with stderr.
    Nothing,
    /// To the caller; stderr goes to the build's output.
    Stdout,
    /// To the caller; stderr is kept for a failure only.
    Quietly,
}

/// A script to run.
#[derive(Debug)]
pub(super) struct Script<'a> {
    /// The program.
    pub program: &'a Path,
    /// Its arguments.
    pub arguments: Vec<&'a OsStr>,
    /// All of its environment.
    pub environment: Vec<(OsString, OsString)>,
    /// Its working directory.
    pub directory: &'a Path,
    /// Files of shell assignments to source before it, in order.
    pub exports: &'a [PathBuf],
    /// What happens with its stdout.
    pub capture: Capture,
}

/// How it went.
#[derive(Debug)]
pub(super) struct Ended {
    /// The exit status, if it ended by itself.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Its stdout, where that was asked for; at most [`VALUE`] bytes.
    pub stdout: Vec<u8>,
    /// Its last lines.
    pub tail: Vec<String>,
}

impl Ended {
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }

    /// `exited 1`, or the signal.
    pub fn how(&self) -> String {
        match (self.code, self.signal) {
            (Some(code), _) => format!("exited {code}"),
            (None, Some(signal)) => format!("was killed by signal {signal}"),
            (None, None) => String::from("ended"),
        }
    }

    /// Its own reason: the last line that it marked as an error.
    pub fn reason(&self) -> Option<String> {
        let marked = self.tail.iter().rev().find_map(|line| line.trim_start().strip_prefix("! "));
        marked.map(|line| line.trim().to_owned()).filter(|line| !line.is_empty())
    }

    /// The last line that says something.
    pub fn last_line(&self) -> Option<String> {
        self.tail.iter().rev().map(|line| line.trim()).find(|line| !line.is_empty()).map(str::to_owned)
    }
}

/// Runs it to its end; `output` gets what it says.
pub(super) fn run<W: Write + Send + 'static>(script: &Script<'_>, output: &Arc<Mutex<W>>) -> io::Result<Ended> {
    let mut command = if script.exports.is_empty() {
        let mut command = Command::new(script.program);
        command.args(&script.arguments);
        command
    } else {
        // Export files are shell; the program and its arguments are not.
        let mut command = Command::new(shell());
        command.args(["-c", "while [ \"$1\" != -- ]; do . \"$1\"; shift; done; shift; exec \"$@\"", "export"]);
        command.args(script.exports).arg("--").arg(script.program).args(&script.arguments);
        command
    };
    command.env_clear().envs(script.environment.iter().map(|(name, value)| (name, value)));
    command.current_dir(script.directory).stdin(Stdio::null()).process_group(0);
    let (reader, writer) = io::pipe()?;
    let mut value = None;
    match script.capture {
        Capture::Nothing => command.stdout(OwnedFd::from(writer.try_clone()?)),
        Capture::Stdout | Capture::Quietly => {
            let (from, to) = io::pipe()?;
            value = Some(from);
            command.stdout(OwnedFd::from(to))
        }
    };
    command.stderr(OwnedFd::from(writer));
    let spawned = command.spawn();
    // The command holds write ends of the pipes; they must go, or there is no end of file.
    drop(command);
    let mut child = spawned?;

    let tail = Arc::new(Mutex::new(Tail::default()));
    let (done, finished) = mpsc::channel::<()>();
    {
        let (tail, done) = (Arc::clone(&tail), done.clone());
        let output = (script.capture != Capture::Quietly).then(|| Arc::clone(output));
        thread::spawn(move || {
            pass_on(reader, output.as_deref(), &tail);
            let _ = done.send(());
        });
    }
    let stdout = Arc::new(Mutex::new(Vec::new()));
    let readers = 1 + usize::from(value.is_some());
    if let Some(from) = value {
        let stdout = Arc::clone(&stdout);
        thread::spawn(move || {
            collect(from, &stdout);
            let _ = done.send(());
        });
    }
    let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        // Waited for without being reaped: until then nobody else can have its number.
        use rustix::process::{Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
        while matches!(waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT), Err(rustix::io::Errno::INTR)) {}
        // What it left in the background would keep the pipe open, and has no business after it.
        let _ = kill_process_group(pid, Signal::KILL);
    }
    let status = child.wait()?;
    for _ in 0..readers {
        if finished.recv_timeout(DRAIN).is_err() {
            break;
        }
    }
    let tail = tail.lock().lines();
    let stdout = std::mem::take(&mut *stdout.lock());
    Ok(Ended { code: status.code(), signal: std::os::unix::process::ExitStatusExt::signal(&status), stdout, tail })
}

fn shell() -> &'static str {
    // Heroku sources these files with bash, and some rely on it.
    if Path::new("/bin/bash").exists() { "/bin/bash" } else { "/bin/sh" }
}

fn pass_on<W: Write>(mut from: impl Read, output: Option<&Mutex<W>>, tail: &Mutex<Tail>) {
    let mut buffer = [0; 16 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => {
                let bytes = buffer.get(..count).unwrap_or_default();
                tail.lock().push(bytes);
                if let Some(output) = output {
                    let mut output = output.lock();
                    // Nobody listens any more: the script still runs to its end.
                    drop(output.write_all(bytes).and_then(|()| output.flush()));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

fn collect(mut from: impl Read, to: &Mutex<Vec<u8>>) {
    let mut buffer = [0; 4096];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => {
                let mut to = to.lock();
                let room = VALUE.saturating_sub(to.len());
                to.extend(buffer.iter().take(count.min(room)));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// The last lines of an output, bounded in every direction.
#[derive(Debug, Default)]
struct Tail {
    lines: VecDeque<String>,
    open: Vec<u8>,
}

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' || byte == b'\r' {
                self.close();
            } else if self.open.len() < LINE {
                self.open.push(byte);
            }
        }
    }

    fn close(&mut self) {
        let line = std::mem::take(&mut self.open);
        if line.iter().all(u8::is_ascii_whitespace) {
            return;
        }
        if self.lines.len() == TAIL_LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(plain(&String::from_utf8_lossy(&line)));
    }

    fn lines(&mut self) -> Vec<String> {
        self.close();
        self.lines.iter().cloned().collect()
    }
}

/// Text without colours and other control sequences.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character == '\u{1b}' {
            if characters.next() == Some('[') {
                for inner in characters.by_ref() {
                    if ('@'..='~').contains(&inner) {
                        break;
                    }
                }
            }
        } else if !character.is_control() || character == '\t' {
            plain.push(character);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell_script(text: &str, capture: Capture) -> (Ended, String) {
        let output = Arc::new(Mutex::new(Vec::new()));
        let arguments = vec![OsStr::new("-c"), OsStr::new(text)];
        let environment = vec![("PATH".into(), "/usr/bin:/bin".into())];
        let script =
            Script { program: Path::new("/bin/sh"), arguments, environment, directory: Path::new("/"), exports: &[], capture };
        let ended = run(&script, &output).unwrap();
        let text = String::from_utf8(output.lock().clone()).unwrap();
        (ended, text)
    }

    #[test]
    fn output_keeps_its_order_and_the_reason_is_the_last_marked_line() {
        let (ended, text) = shell_script(
            "echo one; echo two >&2; printf ' !     first\\n \\033[31m!     npm exited 1\\033[0m\\nend\\n'; exit 3",
            Capture::Nothing,
        );
        assert!(text.starts_with("one\ntwo\n"), "{text}");
        assert_eq!(ended.code, Some(3));
        assert_eq!(ended.reason().as_deref(), Some("npm exited 1"));
        assert_eq!(ended.last_line().as_deref(), Some("end"));
    }

    #[test]
    fn a_value_is_bounded_and_does_not_mix_with_the_output() {
        let (ended, text) = shell_script("head -c 200000 /dev/zero; echo seen >&2", Capture::Stdout);
        assert_eq!((ended.stdout.len(), text.as_str()), (VALUE, "seen\n"));
    }

    #[test]
    fn what_a_script_leaves_behind_is_ended() {
        let (ended, text) = shell_script("sleep 1000 & echo $!", Capture::Nothing);
        assert!(ended.success());
        let path = format!("/proc/{}/stat", text.trim());
        // Killed already; the kernel may still be taking it down, and whoever adopted it may not have reaped it.
        let gone = |state: String| state.is_empty() || state.contains(") Z ") || state.contains(") X ");
        let ended = (0..2000).any(|_| {
            thread::sleep(Duration::from_millis(5));
            gone(std::fs::read_to_string(&path).unwrap_or_default())
        });
        assert!(ended, "{path}");
    }

    #[test]
    fn nothing_of_our_environment_reaches_a_script() {
        let (_, text) = shell_script("env", Capture::Nothing);
        let names: Vec<&str> = text.lines().filter_map(|line| line.split('=').next()).collect();
        assert!(names.iter().all(|name| ["PATH", "PWD", "_", "SHLVL", "OLDPWD"].contains(name)), "{names:?}");
    }

    #[test]
    fn endless_lines_are_cut() {
        let mut tail = Tail::default();
        for _ in 0..100 {
            tail.push(&[b'x'; 10_000]);
        }
        assert_eq!(tail.lines(), ["x".repeat(LINE)]);
    }
}
