//! Runs `bin/compile` and `bin/release` of the selected buildpacks.

use std::{
    ffi::OsStr,
    fs,
    io::Write,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use crate::model::{Blame, ProcessType};

use super::{
    builtin,
    child::{Capture, ScriptCommand},
    context::{BuildStop, BuildWorker, is_variable},
    release, script,
};

impl<W: Write + Send + 'static> BuildWorker<W> {
    /// Runs `bin/compile` of each buildpack. The environment of a buildpack also has the variables that earlier buildpacks
    /// exported.
    pub(super) fn compile(&mut self) -> Result<(), BuildStop> {
        let selected = self.select()?;
        let temporary = self.temporary()?;
        let host = |error: std::io::Error| BuildStop::new("compile", format!("cannot write ENV_DIR: {error}"), Blame::Host, "");
        // In a sandbox, `/tmp` is in memory, so that no value of the configuration is written to the disk.
        let in_memory = self.paths.app == Path::new("/app");
        let parent = if in_memory { PathBuf::from("/tmp") } else { temporary.clone() };
        let directory = tempfile::TempDir::with_prefix_in("env-", parent).map_err(host)?;
        let variables = directory.path();
        self.write_variables(variables).map_err(host)?;
        let mut exports: Vec<PathBuf> = Vec::new();
        for (number, pack) in selected.iter().enumerate() {
            let what = format!("buildpack {}: bin/compile", pack.label);
            if selected.len() > 1 {
                self.say(&format!("-----> Buildpack {}", pack.label));
            }
            // Each buildpack has its own cache, because two buildpacks may use the same file names.
            let cache = self.paths.cache.join("packs").join(cache_name(&pack.label));
            let host = |error: std::io::Error| BuildStop::new(&what, format!("cannot write the cache: {error}"), Blame::Host, "");
            fs::create_dir_all(&cache).map_err(host)?;
            let own_export = temporary.join(format!("export-{number}"));
            let mut environment = self.environment();
            environment.push(("LARDER_EXPORT".into(), own_export.clone().into()));
            environment.extend(self.temporary_variable(&temporary));
            let program = pack.directory.join("bin/compile");
            let arguments: Vec<&OsStr> = vec![self.paths.app.as_os_str(), cache.as_os_str(), variables.as_os_str()];
            let script = ScriptCommand {
                program: &program,
                arguments,
                environment,
                directory: &self.paths.app,
                exports: &exports,
                capture: Capture::Nothing,
            };
            let exit = self.run(&what, &script)?;
            if !exit.success() {
                return Err(BuildStop::script(&what, &format!("buildpack {}", pack.label), exit));
            }
            exports.extend([pack.directory.join("export"), own_export].into_iter().filter(|path| path.is_file()));
        }
        Ok(())
    }

    /// Writes one file per variable, in the format of Heroku's `ENV_DIR`.
    fn write_variables(&self, directory: &Path) -> std::io::Result<()> {
        for (name, value) in self.job.configuration.iter().filter(|(name, _)| is_variable(name)) {
            fs::write(directory.join(name), value.as_bytes())?;
        }
        Ok(())
    }

    /// Reads the process types from `bin/release` of each buildpack.
    pub(super) fn release(&mut self) -> Result<(), BuildStop> {
        let mut processes: Vec<(ProcessType, String)> = Vec::new();
        for pack in self.select()? {
            let program = pack.directory.join("bin/release");
            // `bin/release` is optional in Heroku's API.
            if script::look(&program) != script::ScriptFile::Executable {
                continue;
            }
            let what = format!("buildpack {}: bin/release", pack.label);
            let script = ScriptCommand {
                program: &program,
                arguments: vec![self.paths.app.as_os_str()],
                environment: self.environment(),
                directory: &self.paths.app,
                exports: &[],
                capture: Capture::Stdout,
            };
            let exit = self.run(&what, &script)?;
            if !exit.success() {
                let why = format!("bin/release of buildpack {} {}", pack.label, exit.how());
                return Err(BuildStop::new(what, why, Blame::Pusher, "").with_exit(exit));
            }
            let wrong = |why: String| {
                let why = format!("bin/release of buildpack {} printed no process types: {why}", pack.label);
                BuildStop::new(&what, why, Blame::Pusher, "print YAML with default_process_types: TYPE: COMMAND")
            };
            // If several buildpacks provide the same process type, the last one takes precedence, as on Heroku.
            for (name, command) in release::parse(&exit.stdout).map_err(wrong)? {
                processes.retain(|(other, _)| *other != name);
                processes.push((name, command));
            }
        }
        self.report.processes = processes;
        Ok(())
    }
}

impl<W: Write + Send + 'static> BuildWorker<W> {
    /// Reads the patterns of the files from which the build is made from `bin/inputs` of each buildpack. If a buildpack has no such script, or
    /// the script fails, the build is made from every file.
    pub(super) fn inputs(&mut self) -> Result<(), BuildStop> {
        let mut patterns = Vec::new();
        for pack in self.select()? {
            let program = pack.directory.join("bin/inputs");
            if script::look(&program) != script::ScriptFile::Executable {
                self.report.inputs = None;
                return Ok(());
            }
            let script = ScriptCommand {
                program: &program,
                arguments: vec![self.paths.app.as_os_str()],
                environment: self.environment(),
                directory: &self.paths.app,
                exports: &[],
                capture: Capture::Stdout,
            };
            let exit = self.run(&format!("buildpack {}: bin/inputs", pack.label), &script)?;
            if !exit.success() {
                self.report.inputs = None;
                return Ok(());
            }
            let text = String::from_utf8_lossy(&exit.stdout);
            patterns.extend(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned));
        }
        self.report.inputs = Some(patterns);
        Ok(())
    }
}

/// Returns the name of a buildpack's directory in the cache.
fn cache_name(label: &str) -> String {
    if builtin::is_name(label) {
        return label.to_owned();
    }
    blake3::hash(label.as_bytes()).to_hex().chars().take(32).collect()
}
