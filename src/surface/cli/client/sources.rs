//! The places that name servers on a developer's machine: `larder-environments.json` of the repository, git remotes, and the user's file.

use std::{
    ffi::OsString,
    fs::File,
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    config::{ClientEntry, ENVIRONMENTS_FILE},
    control::{CommandError, ErrorKind},
    host::files,
    model::{SshUrl, Target},
};

/// The maximum size of a file that names servers, in bytes. The parsers have the same limit.
const MAX_FILE: u64 = 64 * 1024;
/// The key of a git remote's environment: `remote.NAME.larder-environment`. `larder init` sets it.
pub(super) const REMOTE_KEY: &str = "larder-environment";

/// A place that names servers, in the order in which the client looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ServerSource {
    Repository,
    GitRemotes,
    UserFile,
}

impl ServerSource {
    pub(super) const ALL: [ServerSource; 3] = [ServerSource::Repository, ServerSource::GitRemotes, ServerSource::UserFile];

    /// Returns the name of the place, for messages.
    pub(super) fn title(self) -> &'static str {
        match self {
            ServerSource::Repository => ENVIRONMENTS_FILE,
            ServerSource::GitRemotes => "the git configuration",
            ServerSource::UserFile => "~/.config/larder/config.yml",
        }
    }
}

/// All names that this machine has for servers, in the working directory of the command.
#[derive(Debug, Default)]
pub(super) struct Sources {
    /// The entries of each place. Entries of git remotes have an ssh address that may be an address of larder.
    pub(super) entries: Vec<(ServerSource, ClientEntry)>,
    /// The git remotes whose addresses cannot be used, with the reason.
    pub(super) unusable: Vec<(String, String)>,
}

impl Sources {
    /// Reads all places. Returns an error if a file exists and cannot be used.
    pub(super) fn read(directory: &Path) -> Result<Sources, CommandError> {
        let mut sources = Sources::default();
        // git refuses a repository of another user, so no file of such a repository is read.
        if let Some(top) = git(directory, &["rev-parse", "--show-toplevel"]) {
            let path = PathBuf::from(top.trim_end_matches('\n')).join(ENVIRONMENTS_FILE);
            // The last part of the path must not be a symlink: a repository could show another file of the user in an error.
            if path.symlink_metadata().is_ok() {
                let bytes = files::read_limited(&path, MAX_FILE).map_err(|error| invalid(error.to_string()))?;
                let entries = ClientEntry::parse_repository_file(&bytes).map_err(|error| invalid(error.to_string()))?;
                sources.entries.extend(entries.into_iter().map(|entry| (ServerSource::Repository, entry)));
            }
            sources.read_git_remotes(directory);
        }
        if let Some(path) = user_directory("XDG_CONFIG_HOME", ".config").map(|directory| directory.join("config.yml")) {
            let bytes = match File::open(&path) {
                Ok(file) => files::read_file_limited(&file, &path, MAX_FILE).map_err(|error| invalid(error.to_string()))?,
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Vec::new(),
                Err(error) => return Err(invalid(format!("cannot read {}: {error}", path.display()))),
            };
            let entries = ClientEntry::parse_user_file(&path.display().to_string(), &bytes);
            let entries = entries.map_err(|error| invalid(error.to_string()))?;
            sources.entries.extend(entries.into_iter().map(|entry| (ServerSource::UserFile, entry)));
        }
        Ok(sources)
    }

    fn read_git_remotes(&mut self, directory: &Path) {
        let listed = git(directory, &["remote", "-v"]).unwrap_or_default();
        let pattern = format!(r"^remote\..*\.{REMOTE_KEY}$");
        let ids = git(directory, &["config", "--local", "--get-regexp", &pattern]).unwrap_or_default();
        let pushes = listed.lines().filter_map(|line| line.strip_suffix(" (push)")?.split_once('\t'));
        for (name, url) in pushes {
            let key = format!("remote.{name}.{REMOTE_KEY} ");
            let id = ids.lines().find_map(|line| line.strip_prefix(&key)).and_then(|id| id.parse::<Target>().ok());
            match url.parse::<SshUrl>() {
                Ok(url) => {
                    let entry = ClientEntry { name: name.to_owned(), hosts: vec![url], id };
                    self.entries.push((ServerSource::GitRemotes, entry));
                }
                Err(error) => self.unusable.push((name.to_owned(), error.to_string())),
            }
        }
    }

    /// Returns the entries of one place that may name a server of larder. A git remote without a project in its address does not.
    pub(super) fn of(&self, kind: ServerSource) -> impl Iterator<Item = &ClientEntry> {
        let usable = move |entry: &&ClientEntry| {
            kind != ServerSource::GitRemotes || entry.hosts.iter().all(|host| host.project().is_some())
        };
        self.entries.iter().filter(move |(known, _)| *known == kind).map(|(_, entry)| entry).filter(usable)
    }
}

fn invalid(message: String) -> CommandError {
    CommandError::new(ErrorKind::Configuration, message)
}

/// Runs git with arguments of this program only. Returns its output, or `None` if git fails or is not installed.
pub(super) fn git(directory: &Path, arguments: &[&str]) -> Option<String> {
    let mut git = Command::new("git");
    git.arg("-C").arg(directory).args(arguments).stdin(Stdio::null()).stderr(Stdio::null());
    let output = git.output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()
}

/// Returns a directory of the user: `larder` in the directory of the variable, or else in a directory below `HOME`.
pub(super) fn user_directory(variable: &str, below_home: &str) -> Option<PathBuf> {
    let absolute = |value: OsString| Some(PathBuf::from(value)).filter(|path| path.is_absolute());
    let base = std::env::var_os(variable).and_then(absolute);
    let base = base.or_else(|| std::env::var_os("HOME").and_then(absolute).map(|home| home.join(below_home)))?;
    Some(base.join("larder"))
}
