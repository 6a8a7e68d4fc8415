//! The command `larder secret edit`: opens the secrets of a file in the editor of the person who types the command.
//!
//! The server prints the plain text, and gets it back together with the text on which the edit was based. Between both, the text is in a file on
//! a tmpfs of this machine, which no disk stores.

use std::{
    ffi::OsString,
    fs,
    io::{self, Read as _, Write as _},
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        process::ExitStatusExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;
use tokio::signal::unix::{Signal, SignalKind, signal};
use zeroize::Zeroizing;

use crate::control::{CommandError, EditedText, ErrorKind, MAX_EDIT};

/// The editor if neither `VISUAL` nor `EDITOR` names one, as for git and sudo.
const EDITOR: &str = "vi";

/// The start of the lines that state the error of the last attempt.
const ERROR_LINE: &str = "# error: ";

fn internal(error: &io::Error) -> CommandError {
    CommandError::internal(error)
}

fn refused(message: impl Into<String>) -> CommandError {
    CommandError::new(ErrorKind::Refused, message)
}

/// Edits the secrets that `words`, the words of the command, name. Returns the exit status.
pub(super) fn run(words: &[String], as_json: bool) -> Result<u8, CommandError> {
    if as_json {
        return Err(CommandError::new(ErrorKind::Usage, "an editor shows no JSON")
            .hint("show the secrets with `larder --json secret show PROJECT`"));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| internal(&error))?;
    runtime.block_on(edit(words))
}

async fn edit(words: &[String]) -> Result<u8, CommandError> {
    // The handlers are installed before the text exists, so that no signal ends this process with the file left.
    let mut signals = EndSignals::new().map_err(|error| internal(&error))?;
    let base = match print(words)? {
        Printed::Text(text) => text,
        Printed::Failed(code) => return Ok(code),
    };
    let place = Place::new()?;
    let mut shown = base.clone();
    loop {
        place.write(&shown)?;
        if let Some(code) = open(&place.file, &mut signals).await? {
            return Ok(code);
        }
        let text = place.read()?;
        // Only lines of an earlier attempt are different.
        if text == shown || text == base {
            say("nothing was changed\n");
            return Ok(0);
        }
        let text = Zeroizing::new(without_errors(&text));
        let sent = send(words, &base, &text)?;
        say(&sent.stderr);
        if sent.code != ErrorKind::Configuration.exit_code() {
            return Ok(sent.code);
        }
        let errors = sent.stderr.lines().filter(|line| !line.is_empty());
        let errors: String = errors.map(|line| format!("{ERROR_LINE}{}\n", line.trim_start_matches("error: "))).collect();
        shown = Zeroizing::new(format!("{errors}{}", *text));
    }
}

/// Writes a text to the error output. A closed output is no error.
fn say(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

fn without_errors(text: &str) -> String {
    text.split_inclusive('\n').filter(|line| !line.starts_with(ERROR_LINE)).collect()
}

/// The answer of the server to the request for the text.
enum Printed {
    Text(Zeroizing<String>),
    /// The exit status of the command, which has written its error.
    Failed(u8),
}

/// Returns this program with the words of the command and one more option.
fn again(words: &[String], option: &str) -> Result<Command, CommandError> {
    let program = std::env::current_exe().map_err(|error| internal(&error))?;
    let mut command = Command::new(program);
    command.args(words).arg(option);
    Ok(command)
}

fn print(words: &[String]) -> Result<Printed, CommandError> {
    let mut child = again(words, "--print")?.stdout(Stdio::piped()).spawn().map_err(|error| internal(&error))?;
    let mut text = Zeroizing::new(String::new());
    let output = child.stdout.take();
    let read = output.map(|output| output.take(MAX_EDIT).read_to_string(&mut text));
    let status = child.wait().map_err(|error| internal(&error))?;
    match (status.code(), read) {
        (Some(0), Some(Ok(_))) => Ok(Printed::Text(text)),
        (Some(0), _) => Err(CommandError::new(ErrorKind::Internal, "the server sent no text")),
        (code, _) => Ok(Printed::Failed(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))),
    }
}

/// The answer of the server to a change.
struct Sent {
    code: u8,
    stderr: String,
}

fn send(words: &[String], base: &str, text: &str) -> Result<Sent, CommandError> {
    let edited = EditedText { base: base.to_owned(), text: text.to_owned() };
    let json = Zeroizing::new(serde_json::to_string(&edited).map_err(|error| CommandError::internal(&error))?);
    let mut command = again(words, "--apply")?;
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(|error| internal(&error))?;
    if let Some(mut input) = child.stdin.take() {
        // The command may end without reading; its own error says why.
        let _ = input.write_all(json.as_bytes());
    }
    let mut stderr = String::new();
    if let Some(errors) = child.stderr.take() {
        errors.take(1 << 20).read_to_string(&mut stderr).map_err(|error| internal(&error))?;
    }
    let status = child.wait().map_err(|error| internal(&error))?;
    let code = status.code().or(status.signal().map(|signal| signal.saturating_add(128))).unwrap_or(1);
    Ok(Sent { code: u8::try_from(code).unwrap_or(1), stderr })
}

/// A file on a tmpfs that only this user can read. The directory is removed when the value is dropped.
struct Place {
    _directory: TempDir,
    file: PathBuf,
}

impl Place {
    fn new() -> Result<Place, CommandError> {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| is_own(path));
        let places = runtime.into_iter().chain([PathBuf::from("/dev/shm")]);
        let parent = places.into_iter().find(|path| is_tmpfs(path)).ok_or_else(|| {
            refused("cannot edit secrets: neither XDG_RUNTIME_DIR nor /dev/shm is a tmpfs, and plain text must not reach a disk")
                .hint("mount a tmpfs at /dev/shm, or set single values with `larder secret set`")
        })?;
        // The name of the file tells editors that the text is YAML.
        let private = fs::Permissions::from_mode(0o700);
        let directory = tempfile::Builder::new().prefix("larder-").permissions(private).tempdir_in(parent);
        let directory = directory.map_err(|error| internal(&error))?;
        let file = directory.path().join("secrets.yml");
        Ok(Place { _directory: directory, file })
    }

    fn write(&self, text: &str) -> Result<(), CommandError> {
        let write = || -> io::Result<()> {
            // An editor may have replaced the file by one with another mode.
            match fs::remove_file(&self.file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = fs::File::create_new(&self.file)?;
            file.set_permissions(fs::Permissions::from_mode(0o600))?;
            file.write_all(text.as_bytes())
        };
        write().map_err(|error| internal(&error))
    }

    fn read(&self) -> Result<Zeroizing<String>, CommandError> {
        let mut text = Zeroizing::new(String::new());
        let file = fs::File::open(&self.file).map_err(|error| {
            refused(format!("cannot read the edited text: {error}")).hint("save the text in the file that the editor opened")
        })?;
        file.take(MAX_EDIT).read_to_string(&mut text).map_err(|error| internal(&error))?;
        Ok(text)
    }
}

/// Returns true if a directory belongs to this user, and no other user can enter it.
fn is_own(path: &Path) -> bool {
    let uid = rustix::process::geteuid().as_raw();
    fs::symlink_metadata(path).is_ok_and(|found| found.is_dir() && found.uid() == uid && found.mode() & 0o077 == 0)
}

fn is_tmpfs(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|found| found.f_type == libc::TMPFS_MAGIC)
}

/// Returns the words of the editor. No shell reads them.
fn editor() -> Result<Vec<OsString>, CommandError> {
    let named = ["VISUAL", "EDITOR"].iter().filter_map(std::env::var_os).find(|value| !value.is_empty());
    let Some(named) = named else { return Ok(vec![EDITOR.into()]) };
    let words = named.to_str().and_then(shlex::split).filter(|words| !words.is_empty());
    let words = words.ok_or_else(|| {
        CommandError::new(ErrorKind::Usage, "cannot read the name of the editor in VISUAL or EDITOR")
            .hint("name a program and its options, as in EDITOR='vim -n -i NONE'")
    })?;
    Ok(words.into_iter().map(OsString::from).collect())
}

/// Opens a file in the editor. Returns the exit status of this command if the edit is over: the editor failed, or a signal arrived.
async fn open(file: &Path, signals: &mut EndSignals) -> Result<Option<u8>, CommandError> {
    let words = editor()?;
    let (program, arguments) = words.split_first().ok_or_else(|| refused("no editor is named"))?;
    let shown = program.to_string_lossy();
    let child = tokio::process::Command::new(program).args(arguments).arg(file).kill_on_drop(true).spawn();
    let mut child = child.map_err(|error| {
        refused(format!("cannot start the editor {shown}: {error}")).hint("name another editor with the variable EDITOR")
    })?;
    tokio::select! {
        status = child.wait() => {
            let status = status.map_err(|error| internal(&error))?;
            match status.success() {
                true => Ok(None),
                false => Err(refused(format!("the editor {shown} failed ({status}); nothing was changed"))),
            }
        }
        number = signals.next() => {
            let _ = child.kill().await;
            say("nothing was changed\n");
            Ok(Some(u8::try_from(number.as_raw_value().saturating_add(128)).unwrap_or(1)))
        }
    }
}

/// The signals that end a command. From the creation on, they do not end this process. An interrupt and a quit from the terminal belong to the
/// editor while it runs, as with git.
struct EndSignals {
    terminate: Signal,
    hang_up: Signal,
    _of_the_editor: [Signal; 2],
}

impl EndSignals {
    fn new() -> io::Result<EndSignals> {
        Ok(EndSignals {
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
            _of_the_editor: [signal(SignalKind::interrupt())?, signal(SignalKind::quit())?],
        })
    }

    /// Waits for a signal that ends the edit.
    async fn next(&mut self) -> SignalKind {
        tokio::select! {
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.hang_up.recv() => SignalKind::hangup(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_an_attempt_are_not_sent() {
        assert_eq!(without_errors("# error: x\n# hint\na: 1\n# error: y"), "# hint\na: 1\n");
    }

    #[test]
    fn text_is_on_a_tmpfs_and_private_until_the_end() {
        let place = Place::new().unwrap();
        place.write("one").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        let directory = place.file.parent().unwrap().to_owned();
        assert!(is_tmpfs(&directory));
        assert_eq!((mode(&directory), mode(&place.file)), (0o700, 0o600));
        fs::set_permissions(&place.file, fs::Permissions::from_mode(0o644)).unwrap();
        place.write("two").unwrap();
        assert_eq!((mode(&place.file), place.read().unwrap().as_str()), (0o600, "two"));
        drop(place);
        assert!(!directory.exists());
        assert!(!is_own(Path::new("/dev/shm")) && !is_tmpfs(Path::new("/proc")));
    }
}
