//! The worker that becomes an application process or a single command.

use std::{
    fs, io,
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, ExitCode},
};

use serde::{Deserialize, Serialize};

use crate::host::launch::{Errand, place, read_job};

/// What to run at `/app`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The command.
    pub command: Line,
    /// Its environment, beside what the keeper sets.
    pub env: Vec<(String, String)>,
    /// The working directory, relative to `/app`.
    pub cwd: Option<String>,
}

/// A command as the project wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Line {
    /// A program and its arguments.
    Argv(Vec<String>),
    /// A line for the shell, as in a Procfile.
    Shell(String),
}

/// Becomes the command of the job.
pub fn work(mut errand: Errand) -> io::Result<ExitCode> {
    let job: Job = read_job(&mut errand.job)?;
    let app = place("APP")?;
    let profile = has_profile(&app);
    let mut command = match &job.command {
        Line::Argv(argv) if !profile => {
            let (program, arguments) = argv.split_first().ok_or_else(|| io::Error::other("the command is empty"))?;
            let mut command = Command::new(program);
            command.args(arguments);
            command
        }
        // The project's own code, by the project's own user: `.profile.d` may change anything about the command.
        Line::Argv(argv) => shell("exec \"$@\"", argv),
        Line::Shell(line) => shell(line, &[]),
    };
    let directory = job.cwd.as_ref().map_or(app.clone(), |cwd| app.join(cwd));
    command.current_dir(&directory).envs(job.env);
    // Returns only if it failed.
    let error = command.exec();
    Err(io::Error::new(error.kind(), format!("{:?} in {}: {error}", job.command, directory.display())))
}

fn shell(line: &str, arguments: &[String]) -> Command {
    let program = ["/bin/bash", "/usr/bin/bash"].into_iter().find(|path| Path::new(path).exists()).unwrap_or("/bin/sh");
    let mut command = Command::new(program);
    let profile = "for f in \"$LARDER_APP\"/.profile.d/*.sh; do [ -r \"$f\" ] && . \"$f\"; done; unset f\n";
    command.arg("-c").arg(format!("{profile}{line}")).arg("larder").args(arguments);
    command
}

fn has_profile(app: &Path) -> bool {
    fs::read_dir(app.join(".profile.d")).is_ok_and(|mut entries| {
        entries.any(|entry| entry.is_ok_and(|entry| entry.path().extension().is_some_and(|extension| extension == "sh")))
    })
}
