//! git's own programs, with an environment made from zero and a configuration that no repository can override: settings in
//! `GIT_CONFIG_*` beat every file.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::Command,
};

/// Where programs are looked for; nothing else is ever on the path of git or of a hook.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Settings for every use of git.
const ALWAYS: &[(&str, &str)] = &[
    ("safe.directory", "*"),
    ("protocol.allow", "never"),
    ("core.fsync", "committed,reference"),
    ("core.fsyncMethod", "fsync"),
    ("core.fsmonitor", "false"),
    // Of refs of other repositories nothing is told.
    ("core.alternateRefsCommand", "true"),
    ("core.logAllRefUpdates", "false"),
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
];

/// The git program, or nothing if it is not installed.
pub fn find() -> Option<PathBuf> {
    PATH.split(':').map(|directory| Path::new(directory).join("git")).find(|path| path.is_file())
}

/// An environment and settings for git, to be added to and then run.
#[derive(Debug, Default)]
pub struct Settings {
    config: Vec<(OsString, OsString)>,
    env: Vec<(&'static str, OsString)>,
}

impl Settings {
    /// What always holds.
    pub fn new() -> Settings {
        let config = ALWAYS.iter().map(|(key, value)| (key.into(), value.into())).collect();
        Settings { config, env: Vec::new() }
    }

    /// One more setting.
    pub fn config(mut self, key: &str, value: impl AsRef<OsStr>) -> Settings {
        self.config.push((key.into(), value.as_ref().to_owned()));
        self
    }

    /// One more variable for git and its hooks.
    pub fn env(mut self, name: &'static str, value: impl AsRef<OsStr>) -> Settings {
        self.env.push((name, value.as_ref().to_owned()));
        self
    }

    /// The command, without arguments yet.
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
