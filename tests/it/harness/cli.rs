//! Programs that tests run, with their output and exit status.

use std::{
    process::{Command, Stdio},
    sync::mpsc,
    time::Duration,
};

/// The time limit of a program. Even on an overloaded machine no program of a test needs longer.
const PATIENCE: Duration = Duration::from_secs(90);

/// The result of a program.
#[derive(Debug, Clone)]
pub struct Output {
    pub command: String,
    /// The exit status; 128 plus the signal if a signal killed the program.
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// Runs a command to its end.
    #[track_caller]
    pub fn of(command: &mut Command) -> Output {
        let shown = shown(command);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let child = child.unwrap_or_else(|error| panic!("{shown}: {error}"));
        let (pid, (send, receive)) = (child.id(), mpsc::channel());
        std::thread::spawn(move || send.send(child.wait_with_output()));
        match receive.recv_timeout(PATIENCE) {
            Ok(output) => Output::from(shown, output.unwrap()),
            Err(_) => {
                super::processes::signal(pid as i32, rustix::process::Signal::KILL);
                panic!("{shown} did not end within {PATIENCE:?}");
            }
        }
    }

    /// Runs a command to its end with `input` as its standard input.
    #[track_caller]
    pub fn of_input(command: &mut Command, input: &str) -> Output {
        let file = tempfile::tempfile().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, input.as_bytes(), 0).unwrap();
        Output::of(command.stdin(file))
    }

    pub fn from(command: String, output: std::process::Output) -> Output {
        use std::os::unix::process::ExitStatusExt;
        Output {
            command,
            status: output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or_default()),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Asserts success and returns the standard output.
    #[track_caller]
    pub fn ok(&self) -> &str {
        self.exits(0).stdout.as_str()
    }

    /// Asserts the exit status.
    #[track_caller]
    pub fn exits(&self, status: i32) -> &Output {
        assert_eq!(self.status, status, "{self}");
        self
    }

    /// Asserts that standard output or standard error contains `text`.
    #[track_caller]
    pub fn says(&self, text: &str) -> &Output {
        assert!(self.stdout.contains(text) || self.stderr.contains(text), "{text:?} is not in {self}");
        self
    }

    /// Asserts that neither standard output nor standard error contains `text`.
    #[track_caller]
    pub fn keeps_quiet_about(&self, text: &str) -> &Output {
        assert!(!self.stdout.contains(text) && !self.stderr.contains(text), "{text:?} is in {self}");
        self
    }

    /// Returns the standard output as JSON, also if the command reported a failure by its exit status.
    #[track_caller]
    pub fn any_json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self}"))
    }

    /// Returns the standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(self.ok()).unwrap_or_else(|error| panic!("{error}: {self}"))
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} → {}\n---- stdout\n{}\n---- stderr\n{}\n----", self.command, self.status, self.stdout, self.stderr)
    }
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}
