//! Runs the programs of a database engine. A program inherits no variables from the worker. A password must not be in an argument, but in a
//! variable ([`Tool::secret`]) or in a private file ([`private_file`]).

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

use crate::{
    backup::{BackupFailure, FailureKind},
    model::sanitise_line,
};

/// The maximum number of bytes that are kept of a program's error output.
const MAX_ERRORS: u64 = 64 << 10;

/// The maximum number of bytes of a program's answer.
const MAX_OUTPUT: u64 = 16 << 20;

/// The number of bytes between two checks of the free space of a file system.
const STEP: u64 = 16 << 20;

/// The number of bytes that a dump leaves free on its file system.
pub(crate) const LEAVE: u64 = 64 << 20;

/// The directories in which programs are searched, in the order of the search.
const DIRECTORIES: [&str; 5] = ["/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin"];

/// Returns the path of the first of `names` that is installed in `first` or in the usual directories.
pub(super) fn find(names: &[&str], first: &[PathBuf]) -> Option<PathBuf> {
    let directories = || first.iter().cloned().chain(DIRECTORIES.iter().map(PathBuf::from));
    names.iter().flat_map(|name| directories().map(move |directory| directory.join(name))).find(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Creates a file that only the worker's user can read, for a program that reads its password from a file. The directory must be on the
/// worker's private temporary file system.
pub(super) fn private_file(directory: &Path, name: &str, content: &str) -> Result<PathBuf, BackupFailure> {
    let path = directory.join(name);
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    made.and_then(|mut file| file.write_all(content.as_bytes())).map_err(|e| BackupFailure::io("write a private file", &e))?;
    Ok(path)
}

/// Returns the number of free bytes of the file system of `file`.
pub(crate) fn free_space(file: &File) -> io::Result<u64> {
    let stat = rustix::fs::fstatvfs(file)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Returns the failure of a dump that needs more bytes than are free.
pub(crate) fn no_space(free: u64, needed: u64) -> BackupFailure {
    BackupFailure::new(
        FailureKind::NoSpace,
        format!("cannot write the dump: {free} bytes of disk space are free (expected at least {needed})"),
    )
}

/// A program with arguments and environment. `Debug` is missing on purpose: the environment can contain a password.
pub(super) struct Tool {
    program: PathBuf,
    arguments: Vec<OsString>,
    variables: BTreeMap<OsString, OsString>,
    secrets: Vec<String>,
}

impl Tool {
    pub fn new(program: &Path) -> Tool {
        let variables =
            [("PATH", "/usr/local/bin:/usr/bin:/bin"), ("LC_ALL", "C.UTF-8"), ("HOME", "/nonexistent"), ("TZ", "UTC")];
        let variables = variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        Tool { program: program.to_owned(), arguments: Vec::new(), variables, secrets: Vec::new() }
    }

    /// Adds arguments, which every user of the machine can read. An argument must never be a password.
    pub fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Tool {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Sets a variable that is no secret.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Tool {
        self.variables.insert(name.into(), value.as_ref().to_owned());
        self
    }

    /// Sets a variable to a secret, which is removed from all error texts.
    pub fn secret(mut self, name: &str, value: &str) -> Tool {
        self = self.hides(value);
        self.env(name, value)
    }

    /// Removes a text from all error texts.
    pub fn hides(mut self, secret: &str) -> Tool {
        if !secret.is_empty() {
            self.secrets.push(secret.to_owned());
        }
        self
    }

    /// Returns the name of the program.
    pub fn name(&self) -> String {
        self.program.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Starts the program. [`Running::wait`] returns the error output if the program fails.
    pub fn spawn(&self, stdin: Stdio, stdout: Stdio) -> Result<Running, BackupFailure> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).env_clear().envs(&self.variables).current_dir("/");
        let child = command.stdin(stdin).stdout(stdout).stderr(Stdio::piped()).spawn();
        let mut child = child.map_err(|e| BackupFailure::io(&format!("start {}", self.name()), &e))?;
        // A thread reads the error output, so that a program with much output does not wait for a reader.
        let errors = child.stderr.take().map(|stderr| {
            std::thread::spawn(move || {
                let (mut text, mut stderr) = (Vec::new(), stderr);
                let _ = stderr.by_ref().take(MAX_ERRORS).read_to_end(&mut text);
                let _ = std::io::copy(&mut stderr, &mut std::io::sink());
                text
            })
        });
        Ok(Running { child, errors, name: self.name(), secrets: self.secrets.clone() })
    }

    /// Runs the program with `input` and returns its output.
    pub fn output(&self, input: &[u8]) -> Result<Result<Vec<u8>, ToolError>, BackupFailure> {
        let mut running = self.spawn(Stdio::piped(), Stdio::piped())?;
        let (stdin, stdout) = (running.child.stdin.take(), running.child.stdout.take());
        let mut output = Vec::new();
        std::thread::scope(|scope| {
            // The program may exit before it has read all input. Its exit status and its error output then show the cause.
            scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input)));
            if let Some(stdout) = stdout {
                let _ = stdout.take(MAX_OUTPUT).read_to_end(&mut output);
            }
        });
        Ok(running.wait()?.map(|()| output))
    }

    /// Runs the program with its output in the new file `into`, syncs the file, and returns its size in bytes. Stops early if the file system
    /// has too little free space, because a full file system also stops the application.
    pub fn output_to(&self, into: &Path) -> Result<Result<u64, ToolError>, BackupFailure> {
        let named = |e| BackupFailure::io(&format!("write {}", into.display()), &e);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(into).map_err(named)?;
        let mut running = self.spawn(Stdio::null(), Stdio::piped())?;
        let mut bytes = 0;
        if let Some(mut output) = running.child.stdout.take() {
            loop {
                let copied = io::copy(&mut output.by_ref().take(STEP), &mut file).map_err(named)?;
                bytes += copied;
                if copied == 0 {
                    break;
                }
                let free = free_space(&file).map_err(named)?;
                if free < LEAVE {
                    return Err(no_space(free, LEAVE));
                }
            }
        }
        let ended = running.wait()?;
        file.sync_all().map_err(named)?;
        Ok(ended.map(|()| bytes))
    }
}

/// A program that runs. The program is killed when the value is dropped.
pub(super) struct Running {
    pub child: Child,
    errors: Option<std::thread::JoinHandle<Vec<u8>>>,
    name: String,
    secrets: Vec<String>,
}

impl Running {
    /// Waits for the end of the program.
    pub fn wait(mut self) -> Result<Result<(), ToolError>, BackupFailure> {
        let status = self.child.wait().map_err(|e| BackupFailure::io(&format!("wait for {}", self.name), &e))?;
        let errors = self.errors.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        if status.success() {
            return Ok(Ok(()));
        }
        let mut text = String::from_utf8_lossy(&errors).into_owned();
        for secret in &self.secrets {
            text = text.replace(secret.as_str(), "***");
        }
        Ok(Err(ToolError { name: self.name.clone(), status, text }))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The program has usually exited, and the calls then have no effect.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The failure of a program.
#[derive(Debug)]
pub(super) struct ToolError {
    name: String,
    status: ExitStatus,
    /// The error output, without secrets.
    pub text: String,
}

impl ToolError {
    /// Returns the first line of the error output that names a cause, without a prefix such as `pg_dump: error: `.
    pub fn line(&self) -> String {
        let is_cause = |line: &&str| !line.trim().is_empty() && !line.trim_end().ends_with(':');
        let line = self
            .text
            .lines()
            .find(|line| line.to_ascii_lowercase().contains("error"))
            .or_else(|| self.text.lines().find(is_cause));
        let line = line.map(|line| sanitise_line(line.trim()).chars().take(600).collect::<String>()).unwrap_or_default();
        let prefix = format!("{}: ", self.name);
        let line =
            line.strip_prefix(&prefix).map_or(line.as_str(), |line| line.strip_prefix("error: ").unwrap_or(line)).to_owned();
        if line.is_empty() { format!("{} ended with {}", self.name, self.status) } else { line }
    }

    /// Returns the failure for `doing`, such as `dump the database main`.
    pub fn failed(&self, kind: FailureKind, doing: &str) -> BackupFailure {
        BackupFailure::new(kind, format!("cannot {doing}: {}", self.line()))
    }
}
