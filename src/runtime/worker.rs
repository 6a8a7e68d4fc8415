//! The worker role `run`: runs a command of the project at `/app`, as the environment's run user, inside the sandbox.

use std::{
    ffi::OsStr,
    fs,
    io::{self, Read as _, Write as _},
    os::{
        fd::OwnedFd,
        unix::{
            ffi::OsStrExt as _,
            process::{CommandExt as _, ExitStatusExt as _},
        },
    },
    path::{Path, PathBuf},
    process::Command,
};

use super::{command, data, process::RunJob, secret_files, templates};
use crate::host::{launch::write_report, pty};

/// The maximum size of the variables file at the end of a script, in bytes.
const MAX_VARIABLES: u64 = 256 * 1024;

/// Runs the job, and returns the exit status of the command. If the job has a command but no variables, the worker becomes the command by
/// `exec`, and the function returns only if `exec` fails. With a socket of the server, the command gets a pseudo-terminal.
pub fn work(mut job: RunJob, terminal: Option<OwnedFd>, report: &mut impl io::Write) -> io::Result<i32> {
    if let Some(socket) = terminal {
        let term = pty::attach(&socket)?;
        job.env.push((String::from("TERM"), term));
    }
    let app = std::env::var_os("LARDER_APP").map_or_else(|| PathBuf::from("/app"), PathBuf::from);
    work_at(job, &app, report)
}

fn work_at(job: RunJob, app: &Path, report: &mut impl io::Write) -> io::Result<i32> {
    if let Some(work) = &job.data {
        let data = std::env::var_os("LARDER_DATA").map_or_else(|| PathBuf::from("/data"), PathBuf::from);
        data::work(work, app, &data)?;
    }
    if let Some(work) = &job.templates {
        templates::work(work, app, &mut io::stdout().lock()).map_err(io::Error::other)?;
    }
    if (job.data.is_some() || job.templates.is_some()) && job.command.is_empty() && job.arguments.is_empty() {
        return Ok(0);
    }
    if let Some(defect) = command::script_defect(&job, app) {
        // The command is started even if the script has a defect, because the shell line may handle the failure of the script.
        say(&defect.text());
    }
    let mut command = command::of(&job, app);
    command.current_dir(app);
    if let Some(directory) = job.secret_files.write()? {
        command.env(secret_files::SECRETS_DIR, directory);
    }
    command.envs(job.env.iter().map(|(name, value)| (name, value)));
    command.envs(job.configuration.iter().map(|(name, value)| (name, OsStr::from_bytes(value))));
    let refused = |command: &Command, error: &io::Error| {
        let defect = command::start_defect(command, app, error);
        if command::script_defect(&job, app).is_none() {
            say(&defect.text());
        }
        defect.status
    };
    let Some(variables) = &job.variables else {
        let error = command.exec();
        return Ok(refused(&command, &error));
    };
    let mut file = tempfile::Builder::new().prefix("larder-variables-").suffix(".json").tempfile()?;
    file.write_all(variables.as_bytes())?;
    command.env("LARDER_VARIABLES", file.path());
    let status = match command.status() {
        Ok(status) => status,
        Err(error) => return Ok(refused(&command, &error)),
    };
    if status.success() {
        let mut changed = String::new();
        let mut file = fs::File::open(file.path())?;
        let size = file.metadata()?.len();
        (&mut file).take(MAX_VARIABLES + 1).read_to_string(&mut changed)?;
        if changed.len() as u64 > MAX_VARIABLES {
            let seen = size.max(changed.len() as u64);
            let why =
                format!("cannot accept the variables of the script: the file has {seen} bytes (limit {MAX_VARIABLES} bytes)");
            return Err(io::Error::other(why));
        }
        write_report(report, &changed)?;
    }
    Ok(status.code().unwrap_or_else(|| 128_i32.saturating_add(status.signal().unwrap_or(0))))
}

fn say(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_variables_of_a_script_are_reported() {
        let app = tempfile::tempdir().unwrap();
        let script = RunJob {
            variables: Some(String::from("{\"a\":1}")),
            command: String::from("echo '{\"a\":2}' > $LARDER_VARIABLES"),
            ..RunJob::default()
        };
        let mut report = Vec::new();
        assert_eq!(work_at(script, app.path(), &mut report).unwrap(), 0);
        let changed: String = postcard::from_bytes(&report).unwrap();
        assert_eq!(changed.trim(), "{\"a\":2}");
    }

    #[test]
    fn variables_above_the_limit_are_refused_with_their_size() {
        let app = tempfile::tempdir().unwrap();
        let script =
            |command: &str| RunJob { variables: Some(String::from("{}")), command: String::from(command), ..RunJob::default() };
        let mut report = Vec::new();
        let large = script("head -c 300000 /dev/zero | tr '\\0' ' ' > $LARDER_VARIABLES");
        let error = work_at(large, app.path(), &mut report).unwrap_err().to_string();
        assert!(error.contains("300000 bytes (limit 262144 bytes)"), "{error}");
        let exact = script("head -c 262144 /dev/zero | tr '\\0' ' ' > $LARDER_VARIABLES");
        assert_eq!(work_at(exact, app.path(), &mut report).unwrap(), 0);
    }

    #[test]
    fn missing_program_gives_status_127() {
        let app = tempfile::tempdir().unwrap();
        // Without variables, the worker becomes the program by `exec`. A failed `exec` resets SIGPIPE to its default disposition, which
        // would kill the test process; `tests/it/verdicts.rs` covers `exec`.
        let variables = Some(String::from("{}"));
        let job = RunJob { command: String::from("no-such-program"), variables, ..RunJob::default() };
        assert_eq!(work_at(job, app.path(), &mut Vec::new()).unwrap(), 127);
    }
}
