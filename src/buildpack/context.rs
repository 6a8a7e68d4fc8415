//! The state that all steps of a build share in the worker: paths, output and environment. Each step starts its scripts through this state.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::model::Blame;

use super::{
    child::{self, ScriptCommand, ScriptExit},
    deploy_key::GIT_SSH,
    job::{BuildJob, BuildReport},
};

/// The value of `STACK` for buildpacks.
pub(super) const STACK: &str = "larder-debian-12";
/// The search path of programs if the environment has none.
const SEARCH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A buildpack that is ready to run.
#[derive(Debug, Clone)]
pub(super) struct SelectedBuildpack {
    /// The name, the address or the path of the buildpack, for messages.
    pub label: String,
    /// larder's version for a built-in buildpack, the commit for a git repository, else `operator` or `project`.
    pub version: String,
    /// The directory that contains `bin/`.
    pub directory: PathBuf,
}

/// The directories of a build and the search path of its programs.
#[derive(Debug, Clone)]
pub(super) struct BuildPaths {
    /// The source tree, which the build changes.
    pub app: PathBuf,
    /// The environment's build cache, which survives builds.
    pub cache: PathBuf,
    /// The built-in buildpacks.
    pub buildpacks: PathBuf,
    /// The operator's buildpacks; the directory may be missing.
    pub operator: PathBuf,
    /// The search path of programs.
    pub path: OsString,
    /// `HOME` of every script: the source tree, as on Heroku.
    pub home: PathBuf,
    /// The directory for the scripts that every process sources at its start. `None` stands for `.profile.d` of the source tree.
    pub profile: Option<PathBuf>,
}

/// The directories of a build on a developer's machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalPaths {
    /// The checkout, which the build changes.
    pub app: PathBuf,
    /// The build cache of this checkout.
    pub cache: PathBuf,
    /// The built-in buildpacks.
    pub buildpacks: PathBuf,
    /// The search path of programs.
    pub path: OsString,
    /// The developer's home directory.
    pub home: PathBuf,
    /// The directory for the scripts that every process sources at its start.
    pub profile: PathBuf,
}

impl From<LocalPaths> for BuildPaths {
    fn from(paths: LocalPaths) -> BuildPaths {
        let LocalPaths { app, cache, buildpacks, path, home, profile } = paths;
        // A developer's machine has no operator.
        BuildPaths { operator: buildpacks.join("none"), app, cache, buildpacks, path, home, profile: Some(profile) }
    }
}

impl BuildPaths {
    /// Reads the paths from this process's environment, which the keeper sets.
    pub fn from_environment() -> BuildPaths {
        let path = |name: &str, otherwise: &str| std::env::var_os(name).map_or_else(|| PathBuf::from(otherwise), PathBuf::from);
        let app = path("LARDER_APP", "/app");
        BuildPaths {
            cache: path("LARDER_CACHE", "/cache"),
            buildpacks: path("LARDER_BUILDPACKS", "/buildpacks"),
            operator: path("LARDER_ETC_BUILDPACKS", "/larder/etc/buildpacks"),
            path: search_path(std::env::var_os("PATH"), std::env::var_os("LARDER_BIN")),
            home: app.clone(),
            app,
            profile: None,
        }
    }
}

/// Returns the search path with the directory of larder's own binary at its end.
fn search_path(path: Option<OsString>, binary: Option<OsString>) -> OsString {
    let mut path = path.filter(|path| !path.is_empty()).unwrap_or_else(|| OsString::from(SEARCH));
    if let Some(directory) = binary.as_deref().map(Path::new).and_then(Path::parent).filter(|path| path.is_absolute()) {
        path.push(":");
        path.push(directory);
    }
    path
}

/// The reason why a step failed, which ends the job.
pub(super) struct BuildStop {
    /// The script or file that failed.
    pub what: String,
    /// The cause in one line.
    pub why: String,
    /// The party that has to act.
    pub blame: Blame,
    /// The next action; may be empty.
    pub hint: String,
    /// The status and the output of the script that failed.
    pub exit: Option<Box<ScriptExit>>,
}

/// Returns the hint for output that reports EXDEV. `/app` is an overlay, in which rename(2) fails for every directory that
/// came with the source or the release.
pub fn rename_hint<'l>(lines: impl IntoIterator<Item = &'l str>) -> Option<&'static str> {
    const WORDS: [&str; 2] = ["cross-device link", "exdev"];
    let reports = |line: &str| {
        let line = line.to_ascii_lowercase();
        WORDS.iter().any(|word| line.contains(word))
    };
    lines.into_iter().any(reports).then_some(
        "rename with a function that can copy, such as `mv` or `shutil.move`: a directory that came with the source cannot be renamed (EXDEV)",
    )
}

impl BuildStop {
    /// Creates a stop without a script's output.
    pub fn new(what: impl Into<String>, why: impl Into<String>, blame: Blame, hint: impl Into<String>) -> BuildStop {
        BuildStop { what: what.into(), why: why.into(), blame, hint: hint.into(), exit: None }
    }

    /// Creates a stop for a script that failed. If the script printed no reason, `subject` and the last line are the cause.
    pub fn script(what: &str, subject: &str, exit: ScriptExit) -> BuildStop {
        let why = exit.reason().unwrap_or_else(|| match exit.last_line() {
            Some(line) => format!("{subject} {}: {line}", exit.how()),
            None => format!("{subject} {}", exit.how()),
        });
        let git = exit.tail.iter().any(|line| line.contains("not a git repository")) && !why.contains("SOURCE_VERSION");
        let hint = match git {
            true => "read the commit from the variable SOURCE_VERSION: builds have no .git",
            false => rename_hint(exit.tail.iter().map(String::as_str)).unwrap_or_default(),
        };
        BuildStop::new(what, why, Blame::Pusher, hint).with_exit(exit)
    }

    /// Adds the status and the last lines of a script.
    pub fn with_exit(self, exit: ScriptExit) -> BuildStop {
        BuildStop { exit: Some(Box::new(exit)), ..self }
    }
}

/// A job in progress, which writes its output to `W`.
pub(super) struct BuildWorker<W> {
    pub job: BuildJob,
    pub paths: BuildPaths,
    pub output: Arc<Mutex<W>>,
    pub report: BuildReport,
    /// The selected buildpacks; `None` before the selection.
    pub selected: Option<Vec<SelectedBuildpack>>,
    temporary: Option<TempDir>,
    /// The command with which git uses the deploy key.
    pub git_ssh: Option<OsString>,
}

impl<W: Write + Send + 'static> BuildWorker<W> {
    pub fn new(job: BuildJob, paths: BuildPaths, output: W) -> BuildWorker<W> {
        let output = Arc::new(Mutex::new(output));
        BuildWorker { job, paths, output, report: BuildReport::default(), selected: None, temporary: None, git_ssh: None }
    }

    /// Writes a line to the build's output.
    pub fn say(&self, line: &str) {
        let mut output = self.output.lock();
        drop(writeln!(output, "{line}").and_then(|()| output.flush()));
    }

    /// Returns the worker's temporary directory. The directory is in the cache, so that the next build can remove the leftovers of a killed
    /// build.
    pub fn temporary(&mut self) -> Result<PathBuf, BuildStop> {
        if let Some(temporary) = &self.temporary {
            return Ok(temporary.path().to_owned());
        }
        let host = |error: std::io::Error| {
            BuildStop::new("the build", format!("cannot create a temporary directory: {error}"), Blame::Host, "")
        };
        let parent = self.paths.cache.join("tmp");
        match fs::remove_dir_all(&parent) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(host(error)),
            _ => fs::create_dir_all(&parent).map_err(host)?,
        }
        let temporary = TempDir::with_prefix_in("build-", parent).map_err(host)?;
        let path = temporary.path().to_owned();
        self.temporary = Some(temporary);
        Ok(path)
    }

    /// Returns `TMPDIR`, set to `temporary`, for builds without a sandbox, which share `/tmp` with other users.
    pub fn temporary_variable(&self, temporary: &Path) -> Option<(OsString, OsString)> {
        (self.paths.app != Path::new("/app")).then(|| ("TMPDIR".into(), temporary.into()))
    }

    /// Returns the environment variables that every script gets.
    pub fn environment(&self) -> Vec<(OsString, OsString)> {
        let mut all: BTreeMap<OsString, OsString> = BTreeMap::new();
        for (name, value) in &self.job.environment {
            all.insert(name.into(), value.into());
        }
        all.insert("PATH".into(), self.paths.path.clone());
        all.insert("HOME".into(), self.paths.home.clone().into());
        all.insert("STACK".into(), STACK.into());
        all.insert("LANG".into(), "C.UTF-8".into());
        all.insert("LARDER_APP".into(), self.paths.app.clone().into());
        all.insert("LARDER_CACHE".into(), self.paths.cache.clone().into());
        all.insert("LARDER_BUILDPACKS".into(), self.paths.buildpacks.clone().into());
        // A project that sets its own command does not use the deploy key.
        if !self.job.configuration.iter().any(|(name, _)| name == GIT_SSH) {
            all.extend(self.git_ssh.iter().map(|command| (GIT_SSH.into(), command.clone())));
        }
        all.extend(self.paths.profile.iter().map(|profile| ("LARDER_PROFILE_DIR".into(), profile.clone().into())));
        all.into_iter().collect()
    }

    /// Runs one script and returns its exit, whatever the status. An error means that the script cannot be started.
    pub fn run(&self, what: &str, script: &ScriptCommand<'_>) -> Result<ScriptExit, BuildStop> {
        child::run(script, &self.output).map_err(|error| {
            let hint = match error.kind() {
                std::io::ErrorKind::NotFound => {
                    "correct the first line of the script: this server does not have the interpreter that the line names"
                }
                std::io::ErrorKind::PermissionDenied => "set the executable bit of the script: git update-index --chmod=+x FILE",
                _ => "begin the script with a line such as #!/bin/sh",
            };
            BuildStop::new(what, format!("cannot start {what}: {error}"), Blame::Pusher, hint)
        })
    }
}

/// Returns true if a project can set an environment variable of this name. larder's own variables are excluded.
pub(super) fn is_variable(name: &str) -> bool {
    let letters = name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_');
    letters && (1..=200).contains(&name.len()) && !name.starts_with(|c: char| c.is_ascii_digit()) && !name.starts_with("LARDER_")
}
