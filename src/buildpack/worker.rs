//! The worker side of a build: runs the steps of a job in order. `select.rs` finds the buildpacks, `compile.rs` runs them.

use std::{ffi::OsString, fs, io::Write, time::Instant};

use crate::model::{Blame, Phase};

use super::{
    child::{Capture, ScriptCommand},
    context::{BuildPaths, BuildStop, BuildWorker, LocalPaths, is_variable},
    deploy_key::ssh_reason,
    job::{BuildFailure, BuildJob, BuildReport, BuildStep, DoneStep},
    script,
};

/// Runs a job in the sandbox. Failures are part of the report.
pub fn work(job: BuildJob) -> BuildReport {
    BuildWorker::new(job, BuildPaths::from_environment(), std::io::stdout()).work()
}

/// Runs a job in a directory of a developer's machine, without a sandbox. The output goes to the standard output.
pub fn work_locally(job: BuildJob, paths: LocalPaths) -> BuildReport {
    BuildWorker::new(job, BuildPaths::from(paths), std::io::stdout()).work()
}

impl<W: Write + Send + 'static> BuildWorker<W> {
    /// Runs the steps until one of them fails.
    pub fn work(mut self) -> BuildReport {
        for step in self.job.steps.clone() {
            let began = Instant::now();
            let result = self.write_key().and_then(|()| match step {
                BuildStep::Script(phase) => self.script(phase),
                BuildStep::Detect => self.select().map(drop),
                BuildStep::Compile => self.compile(),
                BuildStep::Release => self.release(),
                BuildStep::Inputs => self.inputs(),
            });
            if let Err(stop) = result {
                let stop = self.explained(stop);
                let (code, tail) = stop.exit.map_or((None, Vec::new()), |exit| (exit.code, exit.tail));
                let BuildStop { what, why, blame, hint, .. } = stop;
                self.report.failure = Some(BuildFailure { step, what, why: one_line(&why), blame, hint, code, tail });
                break;
            }
            let took = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.report.steps.push(DoneStep { step, took });
        }
        self.report
    }

    /// Writes the files of the deploy key before the first script.
    fn write_key(&mut self) -> Result<(), BuildStop> {
        if let (Some(key), None) = (&self.job.deploy_key, &self.git_ssh) {
            let command = key.write().map_err(|error| {
                let why = format!("cannot write the deploy key: {error}");
                let hint = "allow user namespaces on this machine, or remove the key with `larder key deploy PROJECT --remove`";
                BuildStop::new("the deploy key", why, Blame::Host, hint)
            });
            self.git_ssh = Some(command?);
        }
        Ok(())
    }

    /// Replaces git's general advice by the cause and the remedy, if ssh failed.
    fn explained(&self, stop: BuildStop) -> BuildStop {
        let project = self.job.environment.iter().find(|(name, _)| name == "LARDER_PROJECT");
        let project = project.map_or("PROJECT", |(_, project)| project.as_str());
        let found = stop.exit.as_ref().filter(|_| self.git_ssh.is_some()).and_then(|exit| ssh_reason(exit, project));
        match found {
            Some((why, hint)) => BuildStop { why: format!("{}: {why}", stop.what), hint, ..stop },
            None => stop,
        }
    }

    /// Runs the project's script of a phase.
    fn script(&mut self, phase: Phase) -> Result<(), BuildStop> {
        let what = format!(".larder/{phase}");
        let path = self.paths.app.join(".larder").join(phase.as_str());
        match script::look(&path) {
            script::ScriptFile::Missing => return Ok(()),
            script::ScriptFile::NotExecutable => {
                self.say(&format!(" !     {what} is not executable and was not run: git update-index --chmod=+x {what}"));
                return Ok(());
            }
            script::ScriptFile::Executable => self.say(&format!("-----> Running {what}")),
        }
        let host = |error: std::io::Error| {
            BuildStop::new(&what, format!("cannot write the variables of {what}: {error}"), Blame::Host, "")
        };
        let temporary = self.temporary()?;
        let variables = temporary.join("variables.json");
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
        environment.extend(self.temporary_variable(&temporary));
        let script = ScriptCommand {
            program: &path,
            arguments: Vec::new(),
            environment,
            directory: &self.paths.app,
            exports: &[],
            capture: Capture::Nothing,
        };
        let exit = self.run(&what, &script)?;
        if !exit.success() {
            return Err(BuildStop::script(&what, &what, exit));
        }
        let wrong = |why: String| {
            let hint = "write a complete JSON object to $LARDER_VARIABLES, or leave the file unchanged";
            BuildStop::new(&what, format!("{what} wrote invalid variables: {why}"), Blame::Pusher, hint)
        };
        let after = script::read_back(&variables).map_err(wrong)?;
        if script::parse(&before).ok().as_ref() != Some(&after) {
            self.report.variables = Some(serde_json::Value::Object(after).to_string());
        }
        Ok(())
    }
}

/// Returns the text as one printable line of limited length.
fn one_line(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let clean = clean.trim();
    match clean.char_indices().nth(240) {
        Some((end, _)) => format!("{}...", clean.get(..end).unwrap_or_default().trim_end()),
        None => clean.to_owned(),
    }
}

#[cfg(test)]
#[path = "worker_tests.rs"]
mod tests;
