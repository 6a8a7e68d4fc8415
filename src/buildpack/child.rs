//! Runs one script, which inherits no environment variables. Forwards the output of the script, keeps the last lines, and kills the
//! process group of the script at the end.

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

/// The maximum number of lines in [`ScriptExit::tail`].
const MAX_TAIL_LINES: usize = 20;
/// The maximum length of a line in [`ScriptExit::tail`], in bytes. The rest of a longer line is dropped.
const MAX_LINE: usize = 512;
/// The maximum size of a captured stdout in bytes.
pub(super) const MAX_VALUE: usize = 64 * 1024;
/// The time limit for remaining output after the script exited and its process group was killed.
const DRAIN: Duration = Duration::from_secs(2);

/// The destination of a script's stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Capture {
    /// The build's output, where stderr also goes.
    Nothing,
    /// A buffer for the caller. Stderr goes to the build's output.
    Stdout,
    /// A buffer for the caller. The last lines of stderr are kept for the error, and nothing goes to the build's output.
    Quietly,
}

/// A script with its arguments and environment.
#[derive(Debug)]
pub(super) struct ScriptCommand<'a> {
    pub program: &'a Path,
    pub arguments: Vec<&'a OsStr>,
    /// The complete environment; nothing is inherited.
    pub environment: Vec<(OsString, OsString)>,
    /// The working directory.
    pub directory: &'a Path,
    /// Files of shell assignments that a shell sources in this order before the program starts.
    pub exports: &'a [PathBuf],
    pub capture: Capture,
}

/// The end of a script.
#[derive(Debug)]
pub(super) struct ScriptExit {
    /// The exit status, unless a signal ended the script.
    pub code: Option<i32>,
    /// The signal that ended the script.
    pub signal: Option<i32>,
    /// The captured stdout; at most [`MAX_VALUE`] bytes.
    pub stdout: Vec<u8>,
    /// The last lines of stderr, and of stdout unless stdout was captured.
    pub tail: Vec<String>,
}

impl ScriptExit {
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }

    /// Returns the status as text, such as `exited 1` or `was killed by signal 9`.
    pub fn how(&self) -> String {
        match (self.code, self.signal) {
            (Some(code), _) => format!("exited {code}"),
            (None, Some(signal)) => format!("was killed by signal {signal}"),
            (None, None) => String::from("ended"),
        }
    }

    /// Returns the reason that the script itself printed: the last line that starts with `! `.
    pub fn reason(&self) -> Option<String> {
        let marked =
            |line: &str| line.trim_start().strip_prefix("! ").map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        let (number, found) = self.tail.iter().enumerate().rev().find_map(|(number, line)| Some((number, marked(line)?)))?;
        Some(self.sentence(number, found))
    }

    /// Returns the last line that is not blank.
    pub fn last_line(&self) -> Option<String> {
        let (number, line) = self.tail.iter().enumerate().rev().find(|(_, line)| !line.trim().is_empty())?;
        Some(self.sentence(number, line.trim().to_owned()))
    }

    /// Completes a line that ends in a colon: adds the next line, which has the cause. Removes the colon if there is no next line.
    fn sentence(&self, number: usize, line: String) -> String {
        let Some(start) = line.strip_suffix(':') else { return line };
        let following = self.tail.iter().skip(number + 1).map(|line| line.trim().trim_start_matches("! ").trim());
        match following.into_iter().find(|line| !line.is_empty()) {
            Some(rest) => format!("{start}: {}", rest.trim_end_matches(':')),
            None => start.to_owned(),
        }
    }
}

/// Runs the script to its end and writes its output to `output`. Then kills the remaining processes of its process group.
pub(super) fn run<W: Write + Send + 'static>(script: &ScriptCommand<'_>, output: &Arc<Mutex<W>>) -> io::Result<ScriptExit> {
    let mut command = if script.exports.is_empty() {
        let mut command = Command::new(script.program);
        command.args(&script.arguments);
        command
    } else {
        // The shell reads the export files. The program and its arguments are passed as words, so the shell does not interpret them.
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
    // The command holds write ends of the pipes. The readers would never reach the end of file if the command were not dropped.
    drop(command);
    let mut child = spawned?;

    let tail = Arc::new(Mutex::new(Tail::default()));
    let (done, finished) = mpsc::channel::<()>();
    {
        let (tail, done) = (Arc::clone(&tail), done.clone());
        let output = (script.capture != Capture::Quietly).then(|| Arc::clone(output));
        thread::spawn(move || {
            forward(reader, output.as_deref(), &tail);
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
        // The child is awaited without being reaped, so that no other process can have its id when the group is killed.
        use rustix::process::{Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
        while matches!(waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT), Err(rustix::io::Errno::INTR)) {}
        // The whole group is killed, because background processes would keep the pipe open.
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
    Ok(ScriptExit { code: status.code(), signal: std::os::unix::process::ExitStatusExt::signal(&status), stdout, tail })
}

fn shell() -> &'static str {
    // Heroku sources the export files of buildpacks with bash, and some of these files depend on bash.
    if Path::new("/bin/bash").exists() { "/bin/bash" } else { "/bin/sh" }
}

fn forward<W: Write>(mut from: impl Read, output: Option<&Mutex<W>>, tail: &Mutex<Tail>) {
    let mut buffer = [0; 16 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => {
                let bytes = buffer.get(..count).unwrap_or_default();
                tail.lock().push(bytes);
                if let Some(output) = output {
                    let mut output = output.lock();
                    // A write error is ignored: the script must run to its end even if the reader is gone.
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
                let free = MAX_VALUE.saturating_sub(to.len());
                to.extend(buffer.iter().take(count.min(free)));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// The last lines of an output, limited in number and length.
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
            } else if self.open.len() < MAX_LINE {
                self.open.push(byte);
            }
        }
    }

    fn close(&mut self) {
        let line = std::mem::take(&mut self.open);
        if line.iter().all(u8::is_ascii_whitespace) {
            return;
        }
        if self.lines.len() == MAX_TAIL_LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(plain(&String::from_utf8_lossy(&line)));
    }

    fn lines(&mut self) -> Vec<String> {
        self.close();
        self.lines.iter().cloned().collect()
    }
}

/// Removes colours and other control sequences.
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

    fn shell_script(text: &str, capture: Capture) -> (ScriptExit, String) {
        let output = Arc::new(Mutex::new(Vec::new()));
        let arguments = vec![OsStr::new("-c"), OsStr::new(text)];
        let environment = vec![("PATH".into(), "/usr/bin:/bin".into())];
        let script = ScriptCommand {
            program: Path::new("/bin/sh"),
            arguments,
            environment,
            directory: Path::new("/"),
            exports: &[],
            capture,
        };
        let ended = run(&script, &output).unwrap();
        let text = String::from_utf8(output.lock().clone()).unwrap();
        (ended, text)
    }

    #[test]
    fn output_order_is_kept_and_last_marked_line_is_reason() {
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
    fn reason_that_ends_in_colon_is_completed() {
        let (ended, _) =
            shell_script("printf ' !     errors parsing go.mod:\\ngo.mod:3: unknown directive\\n'; exit 1", Capture::Nothing);
        assert_eq!(ended.reason().as_deref(), Some("errors parsing go.mod: go.mod:3: unknown directive"));
        let (ended, _) = shell_script("echo 'error during build:'; exit 1", Capture::Nothing);
        assert_eq!(ended.last_line().as_deref(), Some("error during build"));
    }

    #[test]
    fn captured_stdout_is_limited_and_separate_from_output() {
        let (ended, text) = shell_script("head -c 200000 /dev/zero; echo seen >&2", Capture::Stdout);
        assert_eq!((ended.stdout.len(), text.as_str()), (MAX_VALUE, "seen\n"));
    }

    #[test]
    fn background_process_of_script_is_killed() {
        let (ended, text) = shell_script("sleep 1000 & echo $!", Capture::Nothing);
        assert!(ended.success());
        let path = format!("/proc/{}/stat", text.trim());
        // The kernel may still be removing the killed process, or its new parent may not have reaped it.
        let gone = |state: String| state.is_empty() || state.contains(") Z ") || state.contains(") X ");
        let ended = (0..2000).any(|_| {
            thread::sleep(Duration::from_millis(5));
            gone(std::fs::read_to_string(&path).unwrap_or_default())
        });
        assert!(ended, "{path}");
    }

    #[test]
    fn script_environment_inherits_nothing() {
        let (_, text) = shell_script("env", Capture::Nothing);
        let names: Vec<&str> = text.lines().filter_map(|line| line.split('=').next()).collect();
        assert!(names.iter().all(|name| ["PATH", "PWD", "_", "SHLVL", "OLDPWD"].contains(name)), "{names:?}");
    }

    #[test]
    fn overlong_line_is_cut() {
        let mut tail = Tail::default();
        for _ in 0..100 {
            tail.push(&[b'x'; 10_000]);
        }
        assert_eq!(tail.lines(), ["x".repeat(MAX_LINE)]);
    }
}
