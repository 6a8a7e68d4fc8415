//! A project that is built with the real tools. The tests in `stale` use this project, too. The tests in this file check that a build
//! removes the development packages of pnpm.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use super::{Project, ours};

/// A project whose builds run the tools of this machine, each build in a fresh copy of the source.
pub(super) struct Real {
    pub project: Project,
    path: String,
}

impl Real {
    /// Creates a project that is built with `tools`. Returns `None` and prints a line if a tool is missing.
    pub fn new(tools: &[&str]) -> Option<Real> {
        let mut path = Vec::new();
        for tool in tools {
            path.push(found(tool)?.parent()?.to_owned());
        }
        path.extend(std::env::split_paths("/usr/local/bin:/usr/bin:/bin"));
        let path = std::env::join_paths(path).unwrap().into_string().unwrap();
        Some(Real { project: Project::new(&[]), path })
    }

    /// Replaces the source by these files. All files get the same time, as in a tree that larder exports: the times do not show changes.
    pub fn source(&self, files: &[(&str, &str)]) -> &Real {
        fs::remove_dir_all(self.project.app("")).unwrap();
        for (name, text) in files {
            self.project.write(name, text);
            let file = fs::File::options().write(true).open(self.project.app(name)).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)).unwrap();
        }
        self
    }

    /// Creates a command with the tools first in its search path. The command inherits the environment variables of the test, which may
    /// name proxies and registries.
    fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command.env("PATH", &self.path).env("LARDER_BUILDPACKS", ours("")).current_dir(self.project.app(""));
        // Some tools leave files in their temporary directory.
        command.env("TMPDIR", self.project.temp.path().join("tmp"));
        for name in ["NODE_ENV", "CI", "VIRTUAL_ENV", "CARGO_TARGET_DIR", "RUSTFLAGS", "PIP_FIND_LINKS"] {
            command.env_remove(name);
        }
        command
    }

    /// Runs a line of shell in the source and returns its output.
    #[track_caller]
    pub fn shell(&self, line: &str) -> String {
        let output = self.command("/bin/sh").args(["-c", line]).output().unwrap();
        assert!(output.status.success(), "{line}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout).trim().to_owned()
    }

    /// Compiles and returns the output. Returns `None` and prints a line if a registry cannot be reached.
    #[track_caller]
    pub fn compile(&self, pack: &str) -> Option<String> {
        let mut command = self.command(ours(&format!("{pack}/bin/compile")));
        let output = command.arg(self.project.app("")).arg(self.project.temp.path().join("cache")).output().unwrap();
        let said = text(&output.stdout) + &text(&output.stderr);
        if said.contains("cannot be reached from this server") {
            eprintln!("SKIPPED: a package registry cannot be reached: {said}");
            return None;
        }
        assert!(output.status.success(), "{said}");
        Some(said)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The lock that is held while a tool is installed.
static INSTALLING: parking_lot::Mutex<()> = parking_lot::Mutex::new(());

/// Returns the path of a tool. If the machine does not have the tool, installs it from its registry beside the test programs.
fn found(tool: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    // The shims of version managers need a home that builds do not have.
    let on_path = std::env::split_paths(&path).map(|place| place.join(tool));
    if let Some(found) = on_path.filter(|path| !path.to_string_lossy().contains("shims")).find(|path| path.is_file()) {
        return Some(found);
    }
    let home = std::env::current_exe().ok()?.parent()?.join("larder-test-tools").join(tool);
    let (program, install): (PathBuf, &[&str]) = match tool {
        "yarn" => (home.join("bin/yarn"), &["npm", "install", "--global", "yarn@1", "--prefix"]),
        "pnpm" => (home.join("bin/pnpm"), &["npm", "install", "--global", "pnpm@9", "--prefix"]),
        "poetry" | "uv" | "pipenv" => (home.join("bin").join(tool), &["/usr/bin/python3", "-m", "venv"]),
        _ => {
            eprintln!("SKIPPED: {tool} is not installed");
            return None;
        }
    };
    // Tests run at the same time. A virtual environment cannot be renamed, so a file marks the complete installation.
    let _installing = INSTALLING.lock();
    let complete = home.join("complete");
    if !complete.is_file() {
        let _ = fs::remove_dir_all(&home);
        let good = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
        let mut command = Command::new(install[0]);
        command.args(&install[1..]).arg(&home).env("npm_config_fetch_retries", "1").env("npm_config_fetch_timeout", "20000");
        let mut done = good(&mut command);
        if done && install[0] != "npm" {
            let pip = ["-m", "pip", "install", "--quiet", "--retries", "1", "--timeout", "20", tool];
            done = good(Command::new(home.join("bin/python")).args(pip));
        }
        if !done {
            eprintln!("SKIPPED: {tool} is not installed and cannot be installed from its registry");
            return None;
        }
        fs::write(complete, "").unwrap();
    }
    Some(program)
}

/// Builds a pnpm project that needs the package `dev` only for development. Checks that the build removes `dev` and keeps `prod`.
fn pnpm_without_development_packages(manifest: &str, workspace: &[(&str, &str)], entry: &str) {
    let Some(real) = Real::new(&["node", "npm", "pnpm"]) else { return };
    let mut files = vec![
        ("package.json", manifest),
        ("libs/dev/package.json", r#"{"name":"dev","version":"1.0.0"}"#),
        ("libs/dev/index.js", ""),
        ("libs/prod/package.json", r#"{"name":"prod","version":"1.0.0"}"#),
        ("libs/prod/index.js", "module.exports = 'works'"),
    ];
    files.extend(workspace);
    real.source(&files);
    real.shell("pnpm install --lockfile-only");
    if real.compile("node").is_none() {
        return;
    }
    assert_eq!(real.shell(&format!("cd {entry} && node -p 'require(\"prod\")'")), "works");
    let left = real.shell("find . -path '*node_modules/dev*' -o -path '*node_modules/.pnpm/dev@*'");
    assert_eq!(left, "");
}

#[test]
fn pnpm_development_packages_are_removed() {
    let manifest = r#"{"name":"app","version":"1.0.0","dependencies":{"prod":"file:./libs/prod"},"devDependencies":{"dev":"file:./libs/dev"}}"#;
    pnpm_without_development_packages(manifest, &[], ".");
}

#[test]
fn pnpm_workspace_keeps_packages_of_its_members() {
    let manifest = r#"{"name":"root","version":"1.0.0","private":true,"devDependencies":{"dev":"workspace:*"}}"#;
    let web = r#"{"name":"web","version":"1.0.0","dependencies":{"prod":"workspace:*"},"devDependencies":{"dev":"workspace:*"}}"#;
    let workspace = [("pnpm-workspace.yaml", "packages:\n  - apps/*\n  - libs/*\n"), ("apps/web/package.json", web)];
    pnpm_without_development_packages(manifest, &workspace, "apps/web");
}
