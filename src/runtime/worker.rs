//! The worker side: runs a command of the project at `/app`, as the environment's run user, inside the sandbox.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use super::{RunJob, links};
use crate::host::launch::write_report;

/// The most that a script may leave in its variables file.
const VARIABLES_MAX: u64 = 256 * 1024;

/// The project's own shell line is read by the project's own shell, after its `.profile.d/*.sh` and `.profile`, as Heroku does it. The script
/// itself is fixed; everything of the project's is an argument.
const PROFILE: &str = r#"shell=$0 command=$1; shift
for file in .profile.d/*.sh .profile; do if [ -r "$file" ]; then . "$file"; fi; done
if [ -z "$command" ]; then exec "$@"; fi
exec "$shell" -c "$command" "$shell" "$@""#;

/// Runs the job; does not return where the worker becomes the command.
pub fn work(job: RunJob, report: &mut impl io::Write) -> io::Result<i32> {
    let app = std::env::var_os("LARDER_APP").map_or_else(|| PathBuf::from("/app"), PathBuf::from);
    work_at(job, &app, report)
}

fn work_at(job: RunJob, app: &Path, report: &mut impl io::Write) -> io::Result<i32> {
    if !job.links.is_empty() {
        let data = std::env::var_os("LARDER_DATA").map_or_else(|| PathBuf::from("/data"), PathBuf::from);
        links::link(app, &data, &job.links)?;
        if job.command.is_empty() && job.arguments.is_empty() {
            return Ok(0);
        }
    }
    let mut command = command_line(&job, app);
    command.current_dir(app);
    command.envs(job.env.iter().map(|(name, value)| (name, value)));
    let Some(variables) = job.variables else {
        return Err(command.exec());
    };
    let mut file = tempfile::Builder::new().prefix("larder-variables-").suffix(".json").tempfile()?;
    file.write_all(variables.as_bytes())?;
    command.env("LARDER_VARIABLES", file.path());
    let status = command.status()?;
    if status.success() {
        let mut changed = String::new();
        fs::File::open(file.path())?.take(VARIABLES_MAX).read_to_string(&mut changed)?;
        write_report(report, &changed)?;
    }
    Ok(status.code().unwrap_or_else(|| 128_i32.saturating_add(status.signal().unwrap_or(0))))
}

/// A command without any shell syntax, in a project without `.profile.d` and `.profile`, needs no shell.
fn command_line(job: &RunJob, app: &Path) -> Command {
    let plain = |c: char| c.is_ascii_alphanumeric() || " ./_-:,@%+=".contains(c);
    let words = shlex::split(&job.command).unwrap_or_default();
    // `NAME=value command` is shell syntax too.
    let assignment = words.first().is_some_and(|word| word.contains('='));
    if let Some((program, arguments)) = words.split_first()
        && job.command.chars().all(plain)
        && !assignment
        && !BUILTINS.contains(&program.as_str())
        && !app.join(".profile.d").exists()
        && !app.join(".profile").exists()
    {
        let mut command = Command::new(program);
        command.args(arguments).args(&job.arguments);
        return command;
    }
    let shell = if Path::new("/bin/bash").exists() { "/bin/bash" } else { "/bin/sh" };
    let mut command = Command::new(shell);
    command.arg("-c").arg(PROFILE).arg(shell).arg(&job.command).args(&job.arguments);
    command
}

/// Words that only a shell understands.
const BUILTINS: [&str; 12] = ["cd", "exec", "export", "source", ".", ":", "eval", "exit", "set", "ulimit", "umask", "wait"];

#[cfg(test)]
mod tests {
    use super::*;

    fn job(command: &str) -> RunJob {
        RunJob { command: command.to_owned(), arguments: Vec::new(), env: Vec::new(), variables: None, links: Vec::new() }
    }

    fn output(job: &RunJob, app: &Path) -> String {
        let output = command_line(job, app).current_dir(app).env("PORT", "5000").output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn a_plain_command_needs_no_shell_and_others_get_one() {
        let app = tempfile::tempdir().unwrap();
        assert_eq!(command_line(&job("echo a b"), app.path()).get_program(), "echo");
        assert_ne!(command_line(&job("echo $PORT"), app.path()).get_program(), "echo");
        assert_eq!(output(&job("echo $PORT"), app.path()), "5000\n");
        assert_eq!(output(&job("NAME=x env | grep ^NAME"), app.path()), "NAME=x\n");
    }

    #[test]
    fn profile_scripts_are_sourced_and_arguments_stay_whole() {
        let app = tempfile::tempdir().unwrap();
        fs::create_dir(app.path().join(".profile.d")).unwrap();
        fs::write(app.path().join(".profile.d/a.sh"), "export FROM_PROFILE='it works'\n").unwrap();
        assert_eq!(output(&job("echo $FROM_PROFILE"), app.path()), "it works\n");
        fs::write(app.path().join(".profile"), "FROM_PROFILE=\"$FROM_PROFILE twice\"\n").unwrap();
        assert_eq!(output(&job("echo $FROM_PROFILE"), app.path()), "it works twice\n");
        let with = RunJob { arguments: vec![String::from("a  b"), String::from("$(id)")], ..job("printf '%s|' \"$@\"") };
        assert_eq!(output(&with, app.path()), "a  b|$(id)|");
        let bare = RunJob { command: String::new(), arguments: vec![String::from("echo"), String::from("$(id)")], ..job("") };
        assert_eq!(output(&bare, app.path()), "$(id)\n");
    }

    #[test]
    fn every_part_of_a_compound_command_counts() {
        let app = tempfile::tempdir().unwrap();
        assert_eq!(output(&job("echo one; echo two && cd / && pwd"), app.path()), "one\ntwo\n/\n");
        assert_eq!(command_line(&job("echo fine; false"), app.path()).status().unwrap().code(), Some(1));
        assert_eq!(command_line(&job("exit 3"), app.path()).status().unwrap().code(), Some(3));
    }

    #[test]
    fn a_script_hands_its_variables_on() {
        let app = tempfile::tempdir().unwrap();
        let script = RunJob {
            variables: Some(String::from("{\"a\":1}")),
            command: String::from("echo '{\"a\":2}' > $LARDER_VARIABLES"),
            ..job("")
        };
        let mut report = Vec::new();
        assert_eq!(work_at(script, app.path(), &mut report).unwrap(), 0);
        let changed: String = postcard::from_bytes(&report).unwrap();
        assert_eq!(changed.trim(), "{\"a\":2}");
    }
}
