//! Builds the command of a project's process, and finds the reason why a command cannot be started.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
    process::Command,
};

use super::process::RunJob;

/// The variable with the directory of further scripts like those in `.profile.d`. The buildpacks of a checkout write their scripts there, so that
/// the checkout stays unchanged.
pub const PROFILE_DIR: &str = "LARDER_PROFILE_DIR";

/// The script that runs a shell line of the project. The script sources `.profile.d/*.sh` and `.profile`, as on Heroku, and then starts a
/// shell with the line. No text of the project is inserted into the script: the line and its arguments are arguments of the script.
const PROFILE: &str = r#"shell=$0 command=$1; shift
for file in ${LARDER_PROFILE_DIR:+"$LARDER_PROFILE_DIR"/*.sh} .profile.d/*.sh .profile; do if [ -r "$file" ]; then . "$file"; fi; done
if [ -z "$command" ]; then exec "$@"; fi
exec "$shell" -c "$command" "$shell" "$@""#;

/// The builtin commands that only a shell can execute correctly.
const BUILTINS: [&str; 12] = ["cd", "exec", "export", "source", ".", ":", "eval", "exit", "set", "ulimit", "umask", "wait"];

/// The beginning of the line in which a worker reports a command that cannot be started. The pipeline searches the output for this text.
pub const CANNOT_START: &str = "larder: cannot start ";
/// The beginning of the line with the remedy, which follows the line with [`CANNOT_START`].
pub const HINT: &str = "larder: hint: ";

/// Returns the command of `job` in the directory `app`. A line without shell syntax, in a project without `.profile.d` and `.profile`, is
/// executed without a shell.
pub fn of(job: &RunJob, app: &Path) -> Command {
    let words = shlex::split(&job.command).unwrap_or_default();
    if let Some((program, arguments)) = words.split_first()
        && !needs_shell(&job.command, program)
        && !app.join(".profile.d").exists()
        && !app.join(".profile").exists()
        && !job.env.iter().any(|(name, _)| name == PROFILE_DIR)
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

fn needs_shell(line: &str, program: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || " ./_-:,@%+=".contains(c);
    // `NAME=value command` is shell syntax, too.
    !line.chars().all(plain) || program.contains('=') || BUILTINS.contains(&program)
}

/// The reason why a command cannot be started, and the remedy.
#[derive(Debug, PartialEq, Eq)]
pub struct Defect {
    /// The exit status that a shell would return: 127 if the program does not exist, 126 if the program cannot be executed.
    pub status: i32,
    why: String,
    hint: Option<String>,
}

impl Defect {
    /// Returns the lines for the process's standard error.
    pub fn text(&self) -> String {
        let hint = self.hint.as_ref().map(|hint| format!("{HINT}{hint}\n")).unwrap_or_default();
        format!("{CANNOT_START}{}\n{hint}", self.why)
    }
}

/// Returns the defect of the script that `job` starts, or `None` if the content and the mode of the file have no known defect. The shell's
/// own messages about such defects are misleading.
pub fn script_defect(job: &RunJob, app: &Path) -> Option<Defect> {
    let words = shlex::split(&job.command)?;
    let mut words = words.iter().skip_while(|word| *word == "exec" || word.contains('='));
    let program = words.next()?;
    let name = program.rsplit('/').next()?;
    let is_shell = ["sh", "bash", "dash"].contains(&name);
    let script = if is_shell { words.find(|word| !word.starts_with('-'))? } else { program };
    let path = app.join(script);
    if (!is_shell && !script.contains('/')) || !path.is_file() {
        return None;
    }
    defect_of(script, &path, !is_shell)
}

/// Returns the defect of the file at `path`, which the project calls `name`. `executed` is true if the kernel executes the file, and false
/// if a shell reads the file.
fn defect_of(name: &str, path: &Path, executed: bool) -> Option<Defect> {
    if executed && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_err() {
        let hint = format!("set the executable bit: git update-index --chmod=+x {}", name.trim_start_matches("./"));
        return Some(Defect { status: 126, why: format!("{name}: the file is not executable"), hint: Some(hint) });
    }
    let first = first_line(path)?;
    let interpreter = first.strip_prefix("#!").map(|rest| rest.trim_end_matches('\r').trim());
    if first.ends_with('\r') && (!executed || interpreter.is_some()) {
        let hint = format!("save the file with LF line endings, and add `{} text eol=lf` to .gitattributes", pattern(path));
        return Some(Defect { status: 126, why: format!("{name}: the file has Windows line endings (CRLF)"), hint: Some(hint) });
    }
    let program = interpreter.and_then(|line| line.split_whitespace().next()).filter(|_| executed)?;
    (!Path::new(program).exists()).then(|| Defect {
        status: 126,
        why: format!("{name}: the script's interpreter {program} does not exist"),
        hint: Some(String::from("begin the script with `#!/bin/sh` or `#!/usr/bin/env PROGRAM`")),
    })
}

/// Returns the `.gitattributes` pattern for all files with the extension of `path`, or for the name of `path` if the file has no extension.
fn pattern(path: &Path) -> String {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some(extension) => format!("*.{extension}"),
        None => path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
    }
}

/// Returns the first line of a text file without the newline. Returns `None` if the file cannot be read or is not text.
fn first_line(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(512).read_to_end(&mut bytes).ok()?;
    let line = bytes.split(|byte| *byte == b'\n').next()?;
    String::from_utf8(line.to_vec()).ok().filter(|line| !line.contains('\0'))
}

/// Returns the defect that explains why the kernel failed to execute `command` with `error`.
pub fn start_defect(command: &Command, app: &Path, error: &io::Error) -> Defect {
    let program = command.get_program();
    let name = program.to_string_lossy();
    let path: PathBuf = app.join(program);
    let is_path = name.contains('/');
    if is_path
        && fs::symlink_metadata(&path).is_ok()
        && let Some(defect) = defect_of(&name, &path, true)
    {
        return defect;
    }
    let (status, why) = match error.kind() {
        io::ErrorKind::NotFound if !is_path => (127, format!("{name}: command not found")),
        io::ErrorKind::NotFound if !path.exists() => (127, format!("{name}: no such file")),
        // The file exists, so the kernel did not find the dynamic loader that the file names.
        io::ErrorKind::NotFound => (126, format!("{name}: the program's dynamic loader does not exist on this server")),
        _ if error.raw_os_error() == Some(rustix::io::Errno::NOEXEC.raw_os_error()) => {
            (126, format!("{name}: unknown file format (expected a program for this machine, or a script that begins with `#!`)"))
        }
        _ => (126, format!("{name}: {error}")),
    };
    let missing = "check the spelling, and check that the build installs the program in a directory of PATH";
    Defect { status, why, hint: (status == 127).then(|| missing.to_owned()) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn job(command: &str) -> RunJob {
        RunJob { command: command.to_owned(), ..RunJob::default() }
    }

    fn output(job: &RunJob, app: &Path) -> String {
        let output = of(job, app).current_dir(app).env("PORT", "5000").output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    fn write(app: &Path, name: &str, text: &str, mode: u32) {
        fs::write(app.join(name), text).unwrap();
        fs::set_permissions(app.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn plain_command_needs_no_shell() {
        let app = tempfile::tempdir().unwrap();
        assert_eq!(of(&job("echo a b"), app.path()).get_program(), "echo");
        assert_ne!(of(&job("echo $PORT"), app.path()).get_program(), "echo");
        assert_eq!(output(&job("echo $PORT"), app.path()), "5000\n");
        assert_eq!(output(&job("NAME=x env | grep ^NAME"), app.path()), "NAME=x\n");
    }

    #[test]
    fn profile_scripts_are_sourced_before_the_command() {
        let app = tempfile::tempdir().unwrap();
        fs::create_dir(app.path().join(".profile.d")).unwrap();
        fs::write(app.path().join(".profile.d/a.sh"), "export FROM_PROFILE='it works'\n").unwrap();
        assert_eq!(output(&job("echo $FROM_PROFILE"), app.path()), "it works\n");
        fs::write(app.path().join(".profile"), "FROM_PROFILE=\"$FROM_PROFILE twice\"\n").unwrap();
        assert_eq!(output(&job("echo $FROM_PROFILE"), app.path()), "it works twice\n");
        let with = RunJob { arguments: vec![String::from("a  b"), String::from("$(id)")], ..job("printf '%s|' \"$@\"") };
        assert_eq!(output(&with, app.path()), "a  b|$(id)|");
        let bare = RunJob { arguments: vec![String::from("echo"), String::from("$(id)")], ..job("") };
        assert_eq!(output(&bare, app.path()), "$(id)\n");
    }

    #[test]
    fn compound_command_runs_every_part() {
        let app = tempfile::tempdir().unwrap();
        assert_eq!(output(&job("echo one; echo two && cd / && pwd"), app.path()), "one\ntwo\n/\n");
        assert_eq!(of(&job("echo fine; false"), app.path()).status().unwrap().code(), Some(1));
        assert_eq!(of(&job("exit 3"), app.path()).status().unwrap().code(), Some(3));
    }

    #[test]
    fn unusable_script_is_reported_with_its_defect() {
        let app = tempfile::tempdir().unwrap();
        let app = app.path();
        write(app, "good.sh", "#!/bin/sh\nexit 0\n", 0o755);
        write(app, "crlf.sh", "#!/bin/sh\r\nexit 0\r\n", 0o755);
        write(app, "shell.sh", "#!/no/such/shell -e\n", 0o755);
        write(app, "closed", "#!/bin/sh\n", 0o644);
        for (command, status, said) in [
            ("./crlf.sh", 126, "./crlf.sh: the file has Windows line endings (CRLF)\nlarder: hint: save the file with LF"),
            ("exec ./crlf.sh --port $PORT", 126, "Windows line endings"),
            ("A=b sh -e crlf.sh", 126, "crlf.sh: the file has Windows line endings"),
            ("./shell.sh $PORT", 126, "./shell.sh: the script's interpreter /no/such/shell does not exist"),
        ] {
            let defect = script_defect(&job(command), app).unwrap_or_else(|| panic!("{command}"));
            assert_eq!(defect.status, status, "{command}");
            assert!(defect.text().contains(said), "{}", defect.text());
        }
        for command in ["./good.sh", "sh good.sh", "sh -c 'echo x'", "good.sh", "none/at/all", "echo 'open", ""] {
            assert_eq!(script_defect(&job(command), app), None, "{command}");
        }
        // The kernel requires an executable bit even if root executes the file.
        let closed = script_defect(&job("./closed"), app).unwrap();
        assert!(
            closed.text().ends_with("hint: set the executable bit: git update-index --chmod=+x closed\n"),
            "{}",
            closed.text()
        );
    }

    #[test]
    fn failed_start_is_reported_with_the_status_of_a_shell() {
        let app = tempfile::tempdir().unwrap();
        write(app.path(), "text", "no program\n", 0o755);
        let refused = |command: &str| {
            let command = of(&job(command), app.path());
            let mut started = Command::new(app.path().join(command.get_program()));
            if !command.get_program().to_string_lossy().contains('/') {
                started = Command::new(command.get_program());
            }
            let error = started.spawn().map(|mut child| child.wait()).unwrap_err();
            start_defect(&command, app.path(), &error)
        };
        let missing = refused("no-such-server --port 1");
        assert_eq!((missing.status, missing.why.as_str()), (127, "no-such-server: command not found"));
        assert_eq!(refused("bin/none").why, "bin/none: no such file");
        assert_eq!(refused("bin/none").status, 127);
    }
}
