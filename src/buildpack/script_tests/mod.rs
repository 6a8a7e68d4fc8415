//! Tests of the built-in buildpacks' scripts on small projects. Most tests use fake programs that record their calls. The tests in `real`
//! and `stale` use the real tools.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

mod java;
mod node;
mod php;
mod python;
mod real;
mod ruby;
mod stale;

/// Serves the files of a directory by HTTP; returns the address.
pub(super) fn serve(directory: &Path) -> String {
    let directory = directory.to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let path = lines.next().and_then(|line| Some(line.split([' ', '?']).nth(1)?.to_owned())).unwrap_or_default();
            lines.take_while(|line| !line.is_empty()).for_each(drop);
            let (status, body) =
                fs::read(directory.join(path.trim_start_matches('/'))).map_or(("404 Not Found", vec![]), |body| ("200 OK", body));
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
        }
    });
    address
}

fn ours(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("buildpacks").join(path)
}

/// Returns the path of a program of this machine, or reports that the test is skipped.
fn installed(program: &str) -> Option<PathBuf> {
    let found = std::env::split_paths(&std::env::var_os("PATH")?).map(|path| path.join(program)).find(|path| path.is_file());
    if found.is_none() {
        eprintln!("SKIPPED: {program} is not installed");
    }
    found
}

/// A project, its cache and the fake programs of its server.
struct Project {
    temp: tempfile::TempDir,
}

impl Project {
    fn new(files: &[(&str, &str)]) -> Project {
        let project = Project { temp: tempfile::tempdir().unwrap() };
        for directory in ["app", "cache", "bin", "tmp"] {
            fs::create_dir(project.temp.path().join(directory)).unwrap();
        }
        for (name, text) in files {
            project.write(name, text);
        }
        project
    }

    fn app(&self, name: &str) -> PathBuf {
        self.temp.path().join("app").join(name)
    }

    fn write(&self, name: &str, text: &str) -> &Project {
        let path = self.app(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    /// Creates a fake program that runs the shell code `does`. [`Project::calls`] returns its calls.
    fn program(&self, name: &str, does: &str) -> &Project {
        let path = self.temp.path().join("bin").join(name);
        let calls = self.temp.path().join("calls");
        let script = format!("#!/bin/sh\necho \"{name} $*\" >>'{}'\n{does}\n", calls.display());
        fs::write(&path, script).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        self
    }

    fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.temp.path().join("calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn command(&self, script: &str) -> Command {
        let mut command = Command::new(ours(script));
        let path = format!("{}:/usr/bin:/bin", self.temp.path().join("bin").display());
        command.env_clear().env("PATH", path).current_dir("/").stdin(Stdio::null());
        command.arg(self.app(""));
        command
    }

    /// Compiles with these variables and returns the output.
    #[track_caller]
    fn compiled(&self, pack: &str, variables: &[(&str, &str)]) -> String {
        let (good, text) = self.compile(pack, variables);
        assert!(good, "{pack}: {text}");
        text
    }

    /// Compiles with these variables, expects a failure, and returns the reason.
    #[track_caller]
    fn refused(&self, pack: &str, variables: &[(&str, &str)]) -> String {
        let (good, text) = self.compile(pack, variables);
        assert!(!good, "{pack}: {text}");
        text.lines().rev().find_map(|line| line.strip_prefix(" !     ")).unwrap_or_else(|| panic!("{pack}: {text}")).to_owned()
    }

    fn compile(&self, pack: &str, variables: &[(&str, &str)]) -> (bool, String) {
        let mut command = self.command(&format!("{pack}/bin/compile"));
        command.arg(self.temp.path().join("cache"));
        let directory = self.temp.path().join("env");
        let _ = fs::remove_dir_all(&directory);
        if !variables.is_empty() {
            fs::create_dir_all(&directory).unwrap();
            for (name, value) in variables {
                fs::write(directory.join(name), value).unwrap();
            }
            command.arg(directory);
        }
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.success(), text)
    }

    fn web(&self, pack: &str) -> Option<String> {
        let output = self.command(&format!("{pack}/bin/release")).output().unwrap();
        let mut processes = super::release::parse(&output.stdout).unwrap();
        processes.pop().map(|(_, command)| command)
    }
}
