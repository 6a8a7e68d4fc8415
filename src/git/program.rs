//! The paths of git workers, and the environment variables of git's own programs. A git process gets only the variables of this file and the
//! variables that a caller adds to [`GitSettings`]. No repository can override the settings of this file, because the variables `GIT_CONFIG_*`
//! take precedence over all configuration files (git-config(1)).

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::Command,
};

use super::job::RepositoryKind;

/// The variable `PATH` of git and its hooks.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// The settings of every git process.
const ALWAYS: &[(&str, &str)] = &[
    ("safe.directory", "*"),
    ("protocol.allow", "never"),
    ("core.fsync", "committed,reference"),
    ("core.fsyncMethod", "fsync"),
    ("core.fsmonitor", "false"),
    // Refs of alternate repositories are not advertised.
    ("core.alternateRefsCommand", "true"),
    ("core.logAllRefUpdates", "false"),
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
];

/// Returns the path of the git program; `None` if git is not installed.
pub fn find() -> Option<PathBuf> {
    PATH.split(':').map(|directory| Path::new(directory).join("git")).find(|path| path.is_file())
}

/// The builder of the environment and the settings of a git process.
#[derive(Debug, Default)]
pub struct GitSettings {
    config: Vec<(OsString, OsString)>,
    env: Vec<(&'static str, OsString)>,
}

impl GitSettings {
    /// Creates the settings that every git process has.
    pub fn new() -> GitSettings {
        let config = ALWAYS.iter().map(|(key, value)| (key.into(), value.into())).collect();
        GitSettings { config, env: Vec::new() }
    }

    /// Adds a setting of git's configuration.
    pub fn config(mut self, key: &str, value: impl AsRef<OsStr>) -> GitSettings {
        self.config.push((key.into(), value.as_ref().to_owned()));
        self
    }

    /// Adds an environment variable for git and its hooks.
    pub fn env(mut self, name: &'static str, value: impl AsRef<OsStr>) -> GitSettings {
        self.env.push((name, value.as_ref().to_owned()));
        self
    }

    /// Returns a command that runs the program `git`, without arguments.
    pub fn command(self, git: &Path) -> Command {
        let mut command = Command::new(git);
        command.env_clear().envs([
            ("PATH", PATH),
            ("HOME", "/nonexistent"),
            ("LC_ALL", "C"),
            ("TZ", "UTC"),
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_CONFIG_SYSTEM", "/dev/null"),
            ("GIT_ATTR_NOSYSTEM", "1"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_NO_LAZY_FETCH", "1"),
            ("GIT_NO_REPLACE_OBJECTS", "1"),
            ("GIT_OPTIONAL_LOCKS", "0"),
        ]);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.env("GIT_CONFIG_COUNT", self.config.len().to_string());
        for (number, (key, value)) in self.config.iter().enumerate() {
            command.env(format!("GIT_CONFIG_KEY_{number}"), key).env(format!("GIT_CONFIG_VALUE_{number}"), value);
        }
        command.current_dir("/");
        command
    }
}

/// The paths of a git worker, inside its sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerPaths {
    /// The directory of the project's repositories, which contains `project.git` and `pillar.git`.
    pub repo: PathBuf,
    /// The directory `project/` of an environment of larder; only for [`crate::model::Role::Source`].
    pub source: Option<PathBuf>,
    /// The directory of the hook scripts.
    pub hooks: Option<PathBuf>,
    /// The socket on which the server answers hooks.
    pub hook_socket: Option<PathBuf>,
}

/// The error for a missing environment variable that the keeper always sets.
#[derive(Debug, thiserror::Error)]
#[error("{0} is not set: only larder's keeper can start git workers")]
pub struct MissingVariable(&'static str);

impl WorkerPaths {
    /// Reads the paths from the environment variables that the keeper sets.
    pub fn from_env() -> Result<WorkerPaths, MissingVariable> {
        let path = |name: &str| std::env::var_os(name).filter(|value: &OsString| !value.is_empty()).map(PathBuf::from);
        Ok(WorkerPaths {
            repo: path("LARDER_REPO").ok_or(MissingVariable("LARDER_REPO"))?,
            source: path("LARDER_SOURCE"),
            hooks: path("LARDER_HOOKS"),
            hook_socket: path("LARDER_HOOK_SOCKET"),
        })
    }

    /// Returns the path of the repository of the project's code.
    pub fn repository(&self) -> PathBuf {
        self.repository_of(RepositoryKind::Code)
    }

    /// Returns the path of a repository of the project.
    pub fn repository_of(&self, kind: RepositoryKind) -> PathBuf {
        self.repo.join(match kind {
            RepositoryKind::Code => "project.git",
            RepositoryKind::Pillar => "pillar.git",
        })
    }
}
