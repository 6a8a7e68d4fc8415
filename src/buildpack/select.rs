//! Selects the buildpacks of a build: the buildpacks that the recipe names, or else the first built-in buildpack that accepts the
//! project.

use std::{
    fs,
    io::Write,
    path::{Component, Path},
};

use crate::{
    config::BuildpackRef,
    model::{Blame, BuildpackUse},
};

use super::{
    builtin,
    child::{Capture, ScriptCommand, ScriptExit},
    context::{BuildStop, BuildWorker, SelectedBuildpack},
    fetch, script,
};

impl<W: Write + Send + 'static> BuildWorker<W> {
    /// Returns the buildpacks of this build. The first call selects the buildpacks.
    pub(super) fn select(&mut self) -> Result<Vec<SelectedBuildpack>, BuildStop> {
        if let Some(selected) = &self.selected {
            return Ok(selected.clone());
        }
        let selected = if self.job.buildpacks.is_empty() { vec![self.detect_builtin()?] } else { self.select_named()? };
        let used = selected.iter().map(|pack| BuildpackUse { name: pack.label.clone(), version: pack.version.clone() });
        self.report.buildpacks = used.collect();
        self.selected = Some(selected.clone());
        Ok(selected)
    }

    /// Returns the first built-in buildpack that accepts the project.
    fn detect_builtin(&mut self) -> Result<SelectedBuildpack, BuildStop> {
        for pack in builtin::PACKS.iter() {
            let Some(selected) = self.by_name(pack.name) else { continue };
            // If the operator's buildpack replaces the built-in buildpack, its `bin/detect` may look for files that are not in `signs`.
            let replaced = selected.directory.starts_with(&self.paths.operator);
            if !replaced && !pack.signs.iter().any(|sign| self.paths.app.join(sign).symlink_metadata().is_ok()) {
                continue;
            }
            let exit = self.detect(&selected, false)?;
            if exit.success() {
                self.say(&format!("-----> {} app detected", app_name(&exit, &selected)));
                return Ok(selected);
            }
        }
        let empty = fs::read_dir(&self.paths.app).map(|mut entries| entries.next().is_none()).unwrap_or(true);
        let why = if empty { "the project is empty" } else { "no buildpack accepts the project" };
        let mut signs: Vec<&str> = Vec::new();
        for sign in builtin::PACKS.iter().flat_map(|pack| &pack.signs).filter(|sign| !sign.contains('/')) {
            if !signs.contains(&sign.as_str()) {
                signs.push(sign);
            }
        }
        let hint = format!(
            "add a Procfile, or name buildpacks in larder.yml; the built-in buildpacks look for these files in the root: {}",
            signs.join(", ")
        );
        Err(BuildStop::new("detect", why, Blame::Pusher, hint))
    }

    /// Returns the buildpacks that the recipe names. Checks that each buildpack has its scripts and accepts the project.
    fn select_named(&mut self) -> Result<Vec<SelectedBuildpack>, BuildStop> {
        let mut all = Vec::new();
        for reference in self.job.buildpacks.clone() {
            let selected = self.find(&reference, all.len())?;
            check_scripts(&selected)?;
            // As on Heroku, a buildpack that the recipe names must accept the project.
            if selected.directory.join("bin/detect").exists() {
                let exit = self.detect(&selected, true)?;
                if !exit.success() {
                    let why = format!("buildpack {} does not accept the project", selected.label);
                    let hint = "add a file that its bin/detect looks for, or remove the buildpack from the list";
                    let what = format!("buildpack {}: bin/detect", selected.label);
                    return Err(BuildStop::new(what, why, Blame::Pusher, hint).with_exit(exit));
                }
                self.say(&format!("-----> {} app detected", app_name(&exit, &selected)));
            }
            all.push(selected);
        }
        Ok(all)
    }

    /// Returns the buildpack of this name: the operator's, or else the built-in buildpack.
    fn by_name(&self, name: &str) -> Option<SelectedBuildpack> {
        let operators = self.paths.operator.join(name);
        let (directory, version) = if operators.join("bin").is_dir() {
            (operators, String::from("operator"))
        } else {
            (self.paths.buildpacks.join(name), env!("CARGO_PKG_VERSION").to_owned())
        };
        directory.join("bin").is_dir().then(|| SelectedBuildpack { label: name.to_owned(), version, directory })
    }

    /// Finds, copies or fetches a buildpack; `number` is its position in the recipe's list.
    fn find(&mut self, reference: &BuildpackRef, number: usize) -> Result<SelectedBuildpack, BuildStop> {
        let what = format!("buildpack {reference}");
        match reference {
            BuildpackRef::Named(name) => {
                let found = if builtin::is_name(name) { self.by_name(name) } else { None };
                let names: Vec<&str> = builtin::PACKS.iter().map(|pack| pack.name).collect();
                let hint = format!("name a built-in buildpack: {}", names.join(", "));
                found.ok_or_else(|| BuildStop::new(&what, format!("there is no buildpack {name}"), Blame::Pusher, hint))
            }
            BuildpackRef::Directory(path) => {
                let path = path.to_string();
                let inside = Path::new(&path).components().all(|part| matches!(part, Component::Normal(_)));
                let from = self.paths.app.join(&path);
                if !inside || !from.join("bin").is_dir() {
                    let why = format!("there is no buildpack in the directory {path} of the project");
                    let hint = "name a directory with bin/detect and bin/compile";
                    return Err(BuildStop::new(&what, why, Blame::Pusher, hint));
                }
                // The buildpack is copied, because the file `export` that it may write beside `bin/` must not become part of the
                // application.
                let to = self.temporary()?.join(format!("buildpack-{number}"));
                copy_tree(&from, &to)
                    .map_err(|error| BuildStop::new(&what, format!("cannot copy {path}: {error}"), Blame::Pusher, ""))?;
                Ok(SelectedBuildpack { label: reference.to_string(), version: String::from("project"), directory: to })
            }
            BuildpackRef::Git { url, commit } => {
                self.say(&format!("-----> Fetching buildpack {reference}"));
                let to = self.temporary()?.join(format!("buildpack-{number}"));
                fs::create_dir_all(&to).map_err(|error| {
                    BuildStop::new(&what, format!("cannot create a directory for {what}: {error}"), Blame::Host, "")
                })?;
                let commit = commit.to_string();
                fetch::fetch(&self.paths, url, &commit, &self.job.configuration, &to, &self.output).map_err(|why| {
                    let why = format!("cannot fetch buildpack {reference}: {why}");
                    BuildStop::new(&what, why, Blame::Pusher, "check its address and commit")
                })?;
                Ok(SelectedBuildpack { label: url.clone(), version: commit, directory: to })
            }
        }
    }

    /// Runs `bin/detect`. `named` sets `LARDER_NAMED`: a built-in buildpack then also accepts projects that it otherwise leaves to another
    /// buildpack.
    fn detect(&self, selected: &SelectedBuildpack, named: bool) -> Result<ScriptExit, BuildStop> {
        let program = selected.directory.join("bin/detect");
        let mut environment = self.environment();
        if named {
            environment.push(("LARDER_NAMED".into(), "1".into()));
        }
        let script = ScriptCommand {
            program: &program,
            arguments: vec![self.paths.app.as_os_str()],
            environment,
            directory: &self.paths.app,
            exports: &[],
            capture: Capture::Quietly,
        };
        self.run(&format!("buildpack {}: bin/detect", selected.label), &script)
    }
}

/// Checks that a buildpack has `bin/compile`, and that its scripts are executable.
fn check_scripts(selected: &SelectedBuildpack) -> Result<(), BuildStop> {
    let label = &selected.label;
    let what = format!("buildpack {label}");
    for (script, needed) in [("bin/detect", false), ("bin/compile", true)] {
        match script::look(&selected.directory.join(script)) {
            script::ScriptFile::NotExecutable => {
                let why = format!("{script} of buildpack {label} is not executable");
                return Err(BuildStop::new(
                    what,
                    why,
                    Blame::Pusher,
                    "run `chmod +x` on the script in the buildpack's repository",
                ));
            }
            script::ScriptFile::Missing if needed => {
                let cloud_native = selected.directory.join("bin/build").exists();
                let hint =
                    if cloud_native { "use a buildpack for Heroku's classic API: this is a Cloud Native Buildpack" } else { "" };
                return Err(BuildStop::new(what, format!("buildpack {label} has no {script}"), Blame::Pusher, hint));
            }
            script::ScriptFile::Missing | script::ScriptFile::Executable => {}
        }
    }
    Ok(())
}

/// Returns the name that `bin/detect` gives the application, or the label of the buildpack if `bin/detect` prints no name.
fn app_name(exit: &ScriptExit, selected: &SelectedBuildpack) -> String {
    let said = String::from_utf8_lossy(&exit.stdout);
    let name: String = said.lines().next().unwrap_or_default().trim().chars().filter(|c| !c.is_control()).take(60).collect();
    if name.is_empty() { selected.label.clone() } else { name }
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
