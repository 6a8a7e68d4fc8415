//! The worker side: the steps of a job, one after the other.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use parking_lot::Mutex;
use tempfile::TempDir;

use crate::model::{Blame, BuildpackUse, Phase};

use super::{
    BuildJob, BuildReport, BuildStep, BuildpackRef, DoneStep, Failure, REGISTRY,
    child::{self, Capture, Ended, Script},
    fetch,
    place::Place,
    release, script,
};

/// The stack that buildpacks are told.
const STACK: &str = "larder-debian-12";

/// Does a job in the sandbox. Never fails: what went wrong is in the report.
pub fn work(job: BuildJob) -> BuildReport {
    Worker::new(job, Place::from_environment(), std::io::stdout()).work()
}

/// A buildpack that is ready to run.
#[derive(Debug, Clone)]
struct Chosen {
    label: String,
    version: String,
    directory: PathBuf,
}

/// What stops a build.
pub(super) struct Stop {
    what: String,
    why: String,
    blame: Blame,
    hint: String,
    ended: Option<Box<Ended>>,
}

impl Stop {
    fn new(what: impl Into<String>, why: impl Into<String>, blame: Blame, hint: impl Into<String>) -> Stop {
        Stop { what: what.into(), why: why.into(), blame, hint: hint.into(), ended: None }
    }
}

pub(super) struct Worker<W> {
    job: BuildJob,
    place: Place,
    output: Arc<Mutex<W>>,
    report: BuildReport,
    chosen: Option<Vec<Chosen>>,
    temporary: Option<TempDir>,
}

impl<W: Write + Send + 'static> Worker<W> {
    pub fn new(job: BuildJob, place: Place, output: W) -> Worker<W> {
        let output = Arc::new(Mutex::new(output));
        Worker { job, place, output, report: BuildReport::default(), chosen: None, temporary: None }
    }

    pub fn work(mut self) -> BuildReport {
        for step in self.job.steps.clone() {
            let began = Instant::now();
            let result = match step {
                BuildStep::Script(phase) => self.script(phase),
                BuildStep::Detect => self.chosen().map(drop),
                BuildStep::Compile => self.compile(),
                BuildStep::Release => self.release(),
            };
            if let Err(stop) = result {
                let (code, tail) = stop.ended.map_or((None, Vec::new()), |ended| (ended.code, ended.tail));
                let Stop { what, why, blame, hint, .. } = stop;
                self.report.failure = Some(Failure { step, what, why: one_line(&why), blame, hint, code, tail });
                break;
            }
            let took = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.report.steps.push(DoneStep { step, took });
        }
        self.report
    }

    fn say(&self, line: &str) {
        let mut output = self.output.lock();
        drop(writeln!(output, "{line}").and_then(|()| output.flush()));
    }

    /// The worker's own scratch directory; gone with the worker.
    fn temporary(&mut self) -> Result<PathBuf, Stop> {
        if let Some(temporary) = &self.temporary {
            return Ok(temporary.path().to_owned());
        }
        let host = |error: std::io::Error| Stop::new("the build", format!("no temporary directory: {error}"), Blame::Host, "");
        let temporary = TempDir::with_prefix("larder-build-").map_err(host)?;
        let path = temporary.path().to_owned();
        self.temporary = Some(temporary);
        Ok(path)
    }

    /// The environment of every child.
    fn environment(&self) -> Vec<(OsString, OsString)> {
        let mut all: BTreeMap<OsString, OsString> = BTreeMap::new();
        for (name, value) in &self.job.environment {
            all.insert(name.into(), value.into());
        }
        all.insert("PATH".into(), self.place.path.clone());
        all.insert("HOME".into(), self.place.home.clone().into());
        all.insert("STACK".into(), STACK.into());
        all.insert("LANG".into(), "C.UTF-8".into());
        all.insert("LARDER_APP".into(), self.place.app.clone().into());
        all.insert("LARDER_CACHE".into(), self.place.cache.clone().into());
        all.insert("LARDER_BUILDPACKS".into(), self.place.buildpacks.clone().into());
        all.into_iter().collect()
    }

    /// Runs one script; a status other than 0 is not an error here.
    fn run(&self, what: &str, script: &Script<'_>) -> Result<Ended, Stop> {
        child::run(script, &self.output).map_err(|error| {
            let hint = match error.kind() {
                std::io::ErrorKind::NotFound => "its first line names an interpreter that is not on this server",
                std::io::ErrorKind::PermissionDenied => "its executable bit is missing: git update-index --chmod=+x FILE",
                _ => "a script begins with a line like #!/bin/sh",
            };
            Stop::new(what, format!("{what} does not start: {error}"), Blame::Pusher, hint)
        })
    }

    fn script(&mut self, phase: Phase) -> Result<(), Stop> {
        let what = format!(".larder/{phase}");
        let path = self.place.app.join(".larder").join(phase.as_str());
        match script::look(&path) {
            script::Found::Nothing => return Ok(()),
            script::Found::NotExecutable => {
                self.say(&format!(" !     {what} is not executable and was not run: git update-index --chmod=+x {what}"));
                return Ok(());
            }
            script::Found::Script => self.say(&format!("-----> Running {what}")),
        }
        let host = |error: std::io::Error| Stop::new(&what, format!("its variables cannot be written: {error}"), Blame::Host, "");
        let variables = self.temporary()?.join("variables.json");
        let before = self.report.variables.clone().unwrap_or_else(|| self.job.variables.clone());
        fs::write(&variables, &before).map_err(host)?;
        let mut environment = self.environment();
        let taken: Vec<OsString> = environment.iter().map(|(name, _)| name.clone()).collect();
        for (name, value) in self.job.configuration.iter().filter(|(name, _)| is_variable(name)) {
            if !taken.iter().any(|other| other == name.as_str()) {
                environment.push((name.into(), value.into()));
            }
        }
        environment.push(("LARDER_VARIABLES".into(), variables.clone().into()));
        environment.push(("LARDER_PHASE".into(), phase.as_str().into()));
        let app = self.place.app.clone();
        let script = Script {
            program: &path,
            arguments: Vec::new(),
            environment,
            directory: &app,
            exports: &[],
            capture: Capture::Nothing,
        };
        let ended = self.run(&what, &script)?;
        if !ended.success() {
            let why = ended.reason().unwrap_or_else(|| match ended.last_line() {
                Some(line) => format!("{what} {}: {line}", ended.how()),
                None => format!("{what} {}", ended.how()),
            });
            return Err(Stop { ended: Some(Box::new(ended)), ..Stop::new(&what, why, Blame::Pusher, "") });
        }
        let wrong = |why: String| {
            let hint = "a script that has nothing to change leaves $LARDER_VARIABLES alone";
            Stop::new(&what, format!("{what} left variables that cannot be used: {why}"), Blame::Pusher, hint)
        };
        let after = script::read_back(&variables).map_err(wrong)?;
        if script::parse(&before).ok().as_ref() != Some(&after) {
            self.report.variables = Some(serde_json::Value::Object(after).to_string());
        }
        Ok(())
    }

    /// The buildpacks of this build; found at the first call.
    fn chosen(&mut self) -> Result<Vec<Chosen>, Stop> {
        if let Some(chosen) = &self.chosen {
            return Ok(chosen.clone());
        }
        let chosen = if self.job.buildpacks.is_empty() { vec![self.detect_ours()?] } else { self.named()? };
        let used = chosen.iter().map(|one| BuildpackUse { name: one.label.clone(), version: one.version.clone() });
        self.report.buildpacks = used.collect();
        self.chosen = Some(chosen.clone());
        Ok(chosen)
    }

    fn detect_ours(&mut self) -> Result<Chosen, Stop> {
        for ours in REGISTRY {
            let Some(chosen) = self.by_name(ours.name) else { continue };
            // The operator's own version may look for something else.
            let replaced = chosen.directory.starts_with(&self.place.operator);
            if !replaced && !ours.signs.iter().any(|sign| self.place.app.join(sign).symlink_metadata().is_ok()) {
                continue;
            }
            let ended = self.detect(&chosen, false)?;
            if ended.success() {
                self.say(&format!("-----> {} app detected", app_name(&ended, &chosen)));
                return Ok(chosen);
            }
        }
        let empty = fs::read_dir(&self.place.app).map(|mut entries| entries.next().is_none()).unwrap_or(true);
        let why = if empty { "the project is empty" } else { "no buildpack recognises the project" };
        let hint = "add a Procfile, or name buildpacks in larder.yml; larder's own look for package.json, requirements.txt, \
                    composer.json, Gemfile, go.mod, Cargo.toml, pom.xml, build.gradle, index.html and Procfile in the root";
        Err(Stop::new("detect", why, Blame::Pusher, hint))
    }

    fn named(&mut self) -> Result<Vec<Chosen>, Stop> {
        let mut all = Vec::new();
        for reference in self.job.buildpacks.clone() {
            let chosen = self.find(&reference, all.len())?;
            for (script, needed) in [("bin/detect", false), ("bin/compile", true)] {
                let path = chosen.directory.join(script);
                match script::look(&path) {
                    script::Found::Script => {}
                    script::Found::NotExecutable => {
                        let why = format!("{script} of buildpack {} is not executable", chosen.label);
                        return Err(Stop::new(
                            format!("buildpack {}", chosen.label),
                            why,
                            Blame::Pusher,
                            "chmod +x it in the buildpack's repository",
                        ));
                    }
                    script::Found::Nothing if needed => {
                        let cloud = chosen.directory.join("bin/build").exists();
                        let hint = if cloud {
                            "it is a Cloud Native Buildpack; larder runs buildpacks of Heroku's classic API"
                        } else {
                            ""
                        };
                        let why = format!("buildpack {} has no {script}", chosen.label);
                        return Err(Stop::new(format!("buildpack {}", chosen.label), why, Blame::Pusher, hint));
                    }
                    script::Found::Nothing => {}
                }
            }
            // As Heroku does: one buildpack that was named is asked; of several, each has its own part of the project.
            if chosen.directory.join("bin/detect").exists() {
                let ended = self.detect(&chosen, true)?;
                if ended.success() {
                    self.say(&format!("-----> {} app detected", app_name(&ended, &chosen)));
                } else {
                    let why = format!("buildpack {} does not recognise the project", chosen.label);
                    let hint = "its bin/detect said no: see which files it looks for, or take it out of the list";
                    let what = format!("buildpack {}: bin/detect", chosen.label);
                    return Err(Stop { ended: Some(Box::new(ended)), ..Stop::new(what, why, Blame::Pusher, hint) });
                }
            }
            all.push(chosen);
        }
        Ok(all)
    }

    fn by_name(&self, name: &str) -> Option<Chosen> {
        let operators = self.place.operator.join(name);
        let (directory, version) = if operators.join("bin").is_dir() {
            (operators, String::from("operator"))
        } else {
            (self.place.buildpacks.join(name), env!("CARGO_PKG_VERSION").to_owned())
        };
        directory.join("bin").is_dir().then(|| Chosen { label: name.to_owned(), version, directory })
    }

    fn find(&mut self, reference: &BuildpackRef, number: usize) -> Result<Chosen, Stop> {
        let label = reference.label();
        let what = format!("buildpack {label}");
        match reference {
            BuildpackRef::Named(name) => {
                let found = if super::choose::is_name(name) { self.by_name(name) } else { None };
                let names: Vec<&str> = REGISTRY.iter().map(|one| one.name).collect();
                let hint = format!("there are {}", names.join(", "));
                found.ok_or_else(|| Stop::new(&what, format!("there is no buildpack {name}"), Blame::Pusher, hint))
            }
            BuildpackRef::Directory(path) => {
                let inside = Path::new(path).components().all(|part| matches!(part, std::path::Component::Normal(_)));
                let from = self.place.app.join(path);
                if !inside || !from.join("bin").is_dir() {
                    let why = format!("there is no buildpack in the directory {path} of the project");
                    return Err(Stop::new(
                        &what,
                        why,
                        Blame::Pusher,
                        "a buildpack is a directory with bin/detect and bin/compile",
                    ));
                }
                // A copy: what it writes beside itself (`export`) is no part of the application.
                let to = self.temporary()?.join(format!("buildpack-{number}"));
                copy_tree(&from, &to)
                    .map_err(|error| Stop::new(&what, format!("{path} cannot be copied: {error}"), Blame::Pusher, ""))?;
                Ok(Chosen { label, version: String::from("project"), directory: to })
            }
            BuildpackRef::Git { url, reference } => {
                self.say(&format!("-----> Fetching buildpack {label}"));
                let to = self.temporary()?.join(format!("buildpack-{number}"));
                fs::create_dir_all(&to).map_err(|error| Stop::new(&what, error.to_string(), Blame::Host, ""))?;
                let fetched = fetch::fetch(
                    &self.place,
                    url,
                    reference.as_deref(),
                    self.job.local_git,
                    &self.job.configuration,
                    &to,
                    &self.output,
                )
                .map_err(|why| {
                    Stop::new(&what, format!("buildpack {label}: {why}"), Blame::Pusher, "check its address and commit")
                })?;
                if !fetched.pinned {
                    self.say(&format!(" !     This buildpack may change under you. Pin it: {url}#{}", fetched.commit));
                }
                Ok(Chosen { label: url.clone(), version: fetched.commit, directory: to })
            }
        }
    }

    /// Asks `bin/detect`. One that the recipe has named need not guess whether another buildpack is meant.
    fn detect(&self, chosen: &Chosen, named: bool) -> Result<Ended, Stop> {
        let program = chosen.directory.join("bin/detect");
        let mut environment = self.environment();
        if named {
            environment.push(("LARDER_NAMED".into(), "1".into()));
        }
        let script = Script {
            program: &program,
            arguments: vec![self.place.app.as_os_str()],
            environment,
            directory: &self.place.app,
            exports: &[],
            capture: Capture::Quietly,
        };
        self.run(&format!("buildpack {}: bin/detect", chosen.label), &script)
    }

    fn compile(&mut self) -> Result<(), Stop> {
        let chosen = self.chosen()?;
        let temporary = self.temporary()?;
        let variables = temporary.join("env");
        self.write_variables(&variables)
            .map_err(|error| Stop::new("compile", format!("ENV_DIR cannot be written: {error}"), Blame::Host, ""))?;
        let mut exports: Vec<PathBuf> = Vec::new();
        for (number, one) in chosen.iter().enumerate() {
            let what = format!("buildpack {}: bin/compile", one.label);
            if chosen.len() > 1 {
                self.say(&format!("-----> Buildpack {}", one.label));
            }
            // Each has a cache of its own: two of them may use the same names in it.
            let cache = self.place.cache.join("packs").join(cache_name(&one.label));
            let host = |error: std::io::Error| Stop::new(&what, format!("the cache cannot be written: {error}"), Blame::Host, "");
            fs::create_dir_all(&cache).map_err(host)?;
            let own_export = temporary.join(format!("export-{number}"));
            let mut environment = self.environment();
            environment.push(("LARDER_EXPORT".into(), own_export.clone().into()));
            let program = one.directory.join("bin/compile");
            let arguments: Vec<&OsStr> = vec![self.place.app.as_os_str(), cache.as_os_str(), variables.as_os_str()];
            let directory = self.place.app.clone();
            let script = Script {
                program: &program,
                arguments,
                environment,
                directory: &directory,
                exports: &exports,
                capture: Capture::Nothing,
            };
            let ended = self.run(&what, &script)?;
            if !ended.success() {
                let why = ended.reason().unwrap_or_else(|| match ended.last_line() {
                    Some(line) => format!("buildpack {} {}: {line}", one.label, ended.how()),
                    None => format!("buildpack {} {}", one.label, ended.how()),
                });
                return Err(Stop { ended: Some(Box::new(ended)), ..Stop::new(what, why, Blame::Pusher, "") });
            }
            exports.extend([one.directory.join("export"), own_export].into_iter().filter(|path| path.is_file()));
        }
        Ok(())
    }

    /// One file per variable, as buildpacks expect them.
    fn write_variables(&self, directory: &Path) -> std::io::Result<()> {
        fs::create_dir_all(directory)?;
        for (name, value) in self.job.configuration.iter().filter(|(name, _)| is_variable(name)) {
            fs::write(directory.join(name), value)?;
        }
        Ok(())
    }

    fn release(&mut self) -> Result<(), Stop> {
        let mut processes: Vec<(crate::model::ProcessType, String)> = Vec::new();
        for one in self.chosen()? {
            let program = one.directory.join("bin/release");
            // Optional, as in Heroku's API.
            if script::look(&program) != script::Found::Script {
                continue;
            }
            let what = format!("buildpack {}: bin/release", one.label);
            let script = Script {
                program: &program,
                arguments: vec![self.place.app.as_os_str()],
                environment: self.environment(),
                directory: &self.place.app,
                exports: &[],
                capture: Capture::Stdout,
            };
            let ended = self.run(&what, &script)?;
            if !ended.success() {
                let why = format!("bin/release of buildpack {} {}", one.label, ended.how());
                return Err(Stop { ended: Some(Box::new(ended)), ..Stop::new(what, why, Blame::Pusher, "") });
            }
            let wrong = |why: String| {
                let why = format!("bin/release of buildpack {} printed no process types: {why}", one.label);
                Stop::new(&what, why, Blame::Pusher, "it prints YAML with default_process_types: TYPE: COMMAND")
            };
            // The last buildpack has the last word, as on Heroku.
            for (name, command) in release::parse(&ended.stdout).map_err(wrong)? {
                processes.retain(|(other, _)| *other != name);
                processes.push((name, command));
            }
        }
        self.report.processes = processes;
        Ok(())
    }
}

/// What `bin/detect` calls the application.
fn app_name(ended: &Ended, chosen: &Chosen) -> String {
    let said = String::from_utf8_lossy(&ended.stdout);
    let name: String = said.lines().next().unwrap_or_default().trim().chars().filter(|c| !c.is_control()).take(60).collect();
    if name.is_empty() { chosen.label.clone() } else { name }
}

/// A buildpack's directory in the cache.
fn cache_name(label: &str) -> String {
    if super::choose::is_name(label) {
        return label.to_owned();
    }
    blake3::hash(label.as_bytes()).to_hex().chars().take(32).collect()
}

/// Whether this can be the name of an environment variable that a project sets. larder's own, and those that would replace the
/// sandbox's, are not the project's.
fn is_variable(name: &str) -> bool {
    let letters = name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_');
    letters && (1..=200).contains(&name.len()) && !name.starts_with(|c: char| c.is_ascii_digit()) && !name.starts_with("LARDER_")
}

/// One printable line of a bounded length.
fn one_line(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match clean.char_indices().nth(200) {
        Some((end, _)) => format!("{}...", clean.get(..end).unwrap_or_default().trim_end()),
        None => clean.trim().to_owned(),
    }
}

fn copy_tree(from: &Path, to: &Path) -> std::io::Result<()> {
    for entry in walkdir::WalkDir::new(from).follow_links(false) {
        let entry = entry?;
        let Ok(relative) = entry.path().strip_prefix(from) else { continue };
        let target = to.join(relative);
        let kind = entry.file_type();
        if kind.is_dir() {
            fs::create_dir_all(&target)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), &target)?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(entry.path())?, &target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "work_tests.rs"]
mod tests;
