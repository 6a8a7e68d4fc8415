//! Sends a command to the server that carries out the command: through the control socket, or through `ssh` for `--remote`.

use std::{
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{fs::OpenOptionsExt as _, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    grammar::Cli,
    socket::{self, CallError},
};
use crate::{
    control::{CommandError, ErrorKind},
    host::root::Root,
    surface::ssh::{KeyError, keys},
};

/// Sends `words` and the descriptors of this process to the server, which carries out the command. Returns the exit status.
pub fn run(cli: &Cli, words: Vec<String>, root: &Root) -> Result<u8, CommandError> {
    let words = inline_key_files(words)?;
    let Some(path) = cli.command.output() else {
        return match &cli.remote {
            Some(remote) => Err(over_ssh(remote, &words, cli.command.may_ask())),
            None => ask(root, words, io::stdout().as_fd()),
        };
    };
    let output = OutputFile::create(path)?;
    let words = without_output(words);
    let code = match &cli.remote {
        Some(remote) => {
            let mut ssh = ssh(remote, &words, false)?;
            let file = output.file.try_clone().map_err(|error| output.failed(&error))?;
            let status = ssh.stdout(file).status();
            let status = status.map_err(|error| CommandError::new(ErrorKind::Internal, format!("cannot start ssh: {error}")))?;
            status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
        }
        None => ask(root, words, output.file.as_fd())?,
    };
    if code == 0 {
        output.keep()?;
    }
    Ok(code)
}

fn ask(root: &Root, words: Vec<String>, stdout: BorrowedFd<'_>) -> Result<u8, CommandError> {
    let (stdin, stderr) = (io::stdin(), io::stderr());
    let code = socket::call(&root.control_socket(), words, [stdin.as_fd(), stdout, stderr.as_fd()]);
    code.map_err(|error| unanswered(root, &error))
}

/// A new file that gets its name only when it is complete. Dropping this value deletes an incomplete file.
struct OutputFile {
    file: fs::File,
    part: PathBuf,
    path: PathBuf,
}

impl OutputFile {
    fn create(path: &Path) -> Result<OutputFile, CommandError> {
        let refused = |why: String| CommandError::new(ErrorKind::Refused, format!("cannot write {}: {why}", path.display()));
        if path.symlink_metadata().is_ok() {
            return Err(refused(String::from("the file exists")).hint("name a new file, or remove the existing file first"));
        }
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        // The archive contains private data, so only the caller may read the file.
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part);
        let file = file.map_err(|error| refused(format!("cannot create {}: {error}", Path::new(&part).display())))?;
        Ok(OutputFile { file, part: part.into(), path: path.to_owned() })
    }

    /// Makes the file durable and gives it its name.
    fn keep(&self) -> Result<(), CommandError> {
        self.file.sync_all().map_err(|error| self.failed(&error))?;
        // A hard link does not replace a file that was created meanwhile.
        fs::hard_link(&self.part, &self.path).map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &io::Error) -> CommandError {
        CommandError::new(ErrorKind::Internal, format!("cannot write {}: {error}", self.path.display()))
    }
}

impl Drop for OutputFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.part);
    }
}

fn unanswered(root: &Root, error: &CallError) -> CommandError {
    let CallError::Io(io_error) = error else { return CommandError::new(ErrorKind::Usage, error.to_string()) };
    match io_error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            CommandError::new(ErrorKind::NotFound, format!("no server runs in {}", root.path().display()))
                .hint(format!(
                    "start a server with `larder serve --root {}`, or name another directory with --root",
                    root.path().display()
                ))
                .hint("reach a server on another machine with `larder -r REMOTE ...`, where REMOTE is a git remote")
        }
        io::ErrorKind::PermissionDenied => CommandError::new(
            ErrorKind::Refused,
            format!("cannot use the control socket {}: permission denied", root.control_socket().display()),
        )
        .hint("use ssh with your own key: only root and the account that larder runs as may use the socket"),
        io::ErrorKind::UnexpectedEof => CommandError::new(ErrorKind::Internal, "the server stopped before it answered"),
        _ => CommandError::internal(io_error),
    }
}

/// Replaces `--key-file FILE` by `--key KEY`. The local program reads the files with the caller's own rights, because the server must not
/// read files that a caller names.
fn inline_key_files(words: Vec<String>) -> Result<Vec<String>, CommandError> {
    let (ours, theirs) = words.split_at(own_words(&words));
    let mut inlined = Vec::with_capacity(words.len());
    let mut ours = ours.iter();
    while let Some(word) = ours.next() {
        let file = match word.strip_prefix("--key-file") {
            Some("") => ours.next().map(String::as_str),
            Some(rest) => rest.strip_prefix('='),
            None => None,
        };
        match file {
            None => inlined.push(word.clone()),
            Some(file) => {
                let text = fs::read_to_string(file).map_err(|error| {
                    CommandError::new(ErrorKind::NotFound, format!("cannot read the key file {file}: {error}"))
                })?;
                // A private key is refused here, because it must not leave the machine.
                if let Err(error @ KeyError::Private) = keys::parse_line(&text) {
                    return Err(CommandError::new(ErrorKind::Usage, format!("cannot use the key file {file}: {error}")));
                }
                inlined.extend([String::from("--key"), text.trim().to_owned()]);
            }
        }
    }
    inlined.extend_from_slice(theirs);
    Ok(inlined)
}

/// Returns the number of words that belong to larder. The words after `--` or after `run PROJECT` are a command of the project. The options
/// of that command are not options of larder.
fn own_words(words: &[String]) -> usize {
    let (mut verb, mut run, mut named) = (false, false, false);
    let mut at = 0;
    while let Some(word) = words.get(at) {
        match word.as_str() {
            "--" => return at,
            "-a" | "--app" => {
                named = true;
                at += 1;
            }
            "-r" | "--remote" | "--root" | "--restore-point" => at += 1,
            option if option.starts_with('-') => named |= option.starts_with("-a") || option.starts_with("--app="),
            "run" if !verb => (verb, run) = (true, true),
            _ if run => return if named { at } else { at.saturating_add(1) },
            _ => verb = true,
        }
        at += 1;
    }
    words.len()
}

/// Replaces this process by `ssh` to the server behind a git remote. Returns only if the git remote has no usable address, or if `ssh`
/// cannot be started.
fn over_ssh(remote: &str, words: &[String], may_ask: bool) -> CommandError {
    match ssh(remote, words, may_ask) {
        Ok(mut ssh) => CommandError::new(ErrorKind::Internal, format!("cannot start ssh: {}", ssh.exec())),
        Err(error) => error,
    }
}

/// Returns the command line of `ssh` to the server behind a git remote. If the command may ask for a confirmation and this process has a
/// terminal, the server gets a terminal, too.
fn ssh(remote: &str, words: &[String], may_ask: bool) -> Result<Command, CommandError> {
    let words: Vec<_> = without_remote(words);
    let asked = Command::new("git").args(["remote", "get-url", "--end-of-options", remote]).output();
    let url = match asked {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        _ => {
            return Err(CommandError::new(ErrorKind::NotFound, format!("there is no git remote {remote} in this directory"))
                .hint("list the git remotes with `git remote -v`"));
        }
    };
    let Some((login, port)) = login_of(&url) else {
        return Err(CommandError::new(
            ErrorKind::Configuration,
            format!("the git remote {remote} has the address {url} (expected an ssh address)"),
        )
        .hint("use an address such as ssh://larder@HOST:PORT/PROJECT"));
    };
    let quoted = shlex::try_join(words.iter().map(String::as_str)).unwrap_or_default();
    let mut ssh = Command::new("ssh");
    if let Some(port) = port {
        ssh.arg("-p").arg(port);
    }
    if may_ask && rustix::termios::isatty(io::stdin()) && rustix::termios::isatty(io::stdout()) {
        ssh.arg("-t");
    }
    ssh.arg("--").arg(login).arg(quoted);
    Ok(ssh)
}

/// Splits `ssh://larder@host:2222/shop` into `larder@host` and `2222`. If the address has no port, ssh takes the port from the caller's
/// configuration, as git does.
fn login_of(url: &str) -> Option<(String, Option<String>)> {
    let rest = url.strip_prefix("ssh://")?;
    let (authority, _) = rest.split_once('/')?;
    let (login, port) = match authority.rsplit_once(':') {
        Some((login, port)) if port.bytes().all(|c| c.is_ascii_digit()) && !port.is_empty() => (login, Some(port)),
        _ => (authority, None),
    };
    // The brackets around an IPv6 address belong to the URL, and ssh does not accept them.
    let (user, host) = login.rsplit_once('@').map_or((None, login), |(user, host)| (Some(user), host));
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let login = user.map_or_else(|| host.to_owned(), |user| format!("{user}@{host}"));
    (!host.is_empty() && !login.starts_with('-')).then(|| (login, port.map(str::to_owned)))
}

/// Removes `--output FILE` from the words.
fn without_output(words: Vec<String>) -> Vec<String> {
    let mut kept = Vec::with_capacity(words.len());
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        if word == "-o" || word == "--output" {
            words.next();
        } else if !(word.starts_with("--output=") || word.starts_with("-o")) {
            kept.push(word);
        }
    }
    kept
}

/// Removes `--remote REMOTE` from the words.
fn without_remote(words: &[String]) -> Vec<String> {
    let (ours, theirs) = words.split_at(own_words(words));
    let mut kept = Vec::new();
    let mut ours = ours.iter();
    while let Some(word) = ours.next() {
        if word == "-r" || word == "--remote" {
            ours.next();
        } else if !word.starts_with("--remote=") {
            kept.push(word.clone());
        }
    }
    kept.extend_from_slice(theirs);
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ssh_url_is_split_into_login_and_port() {
        let login = |url: &str| login_of(url).map(|(login, port)| format!("{login} {}", port.as_deref().unwrap_or("-")));
        assert_eq!(login("ssh://larder@host:2222/shop").unwrap(), "larder@host 2222");
        assert_eq!(login("ssh://larder@host/shop").unwrap(), "larder@host -");
        assert_eq!(login("ssh://larder@[2001:db8::1]:2222/shop").unwrap(), "larder@2001:db8::1 2222");
        assert_eq!(login("ssh://[::1]/shop").unwrap(), "::1 -");
        for bad in [
            "https://host/shop",
            "ssh://-oProxyCommand=x/shop",
            "host:shop",
            "ssh:///shop",
            "ssh://larder@/shop",
            "ssh://[-x]/shop",
        ] {
            assert_eq!(login(bad), None, "{bad}");
        }
    }

    #[test]
    fn key_file_is_inlined() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key.pub");
        fs::write(&file, "ssh-ed25519 AAAA me\n").unwrap();
        let words = vec![String::from("user"), format!("--key-file={}", file.display())];
        assert_eq!(inline_key_files(words).unwrap(), ["user", "--key", "ssh-ed25519 AAAA me"]);
        assert!(inline_key_files(vec![String::from("--key-file"), String::from("/nonexistent")]).is_err());
    }

    #[test]
    fn private_key_file_is_refused_locally() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key");
        fs::write(&file, "-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0\n").unwrap();
        let error = inline_key_files(vec![String::from("--key-file"), file.display().to_string()]).unwrap_err();
        assert!(error.to_string().contains("PRIVATE") && !error.to_string().contains("c2VjcmV0"), "{error}");
    }

    #[test]
    fn options_of_a_project_command_stay_unchanged() {
        for line in
            ["run shop -- tool --key-file x -r y", "run shop tool --key-file x -r y", "run -a shop tool --key-file x -r y"]
        {
            let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
            assert_eq!(inline_key_files(words.clone()).unwrap(), words);
            assert_eq!(without_remote(&words), words);
            let remote: Vec<_> = ["-r", "prod"].map(str::to_owned).into_iter().chain(words.clone()).collect();
            assert_eq!(without_remote(&remote), words);
        }
        let words: Vec<_> = "ps shop -r prod --scale web=2".split(' ').map(str::to_owned).collect();
        assert_eq!(without_remote(&words), ["ps", "shop", "--scale", "web=2"]);
    }
}
