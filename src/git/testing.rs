//! Test helpers: real repositories in temporary directories.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{git::WorkerPaths, model::CommitId};

/// The directories of a git worker, with an empty repository.
pub struct World {
    pub dir: tempfile::TempDir,
    pub paths: WorkerPaths,
}

impl World {
    pub fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let (repo, source) = (dir.path().join("repo"), dir.path().join("source"));
        std::fs::create_dir(&repo).unwrap();
        std::fs::create_dir(&source).unwrap();
        let paths = WorkerPaths { repo, source: Some(source), hooks: None, hook_socket: None };
        super::refs::init(&paths.repository(), &"main".parse().unwrap()).unwrap();
        World { dir, paths }
    }

    pub fn repository(&self) -> PathBuf {
        self.paths.repository()
    }

    /// Returns the directory of the exported tree.
    pub fn tree(&self) -> PathBuf {
        self.paths.source.as_ref().unwrap().join("tree")
    }

    /// Runs git in the repository, and returns its standard output.
    pub fn git(&self, args: &[&str], input: &[u8]) -> String {
        let output = git(&self.repository(), args, input);
        assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub fn blob(&self, content: &[u8]) -> String {
        self.git(&["hash-object", "-w", "--stdin"], content)
    }

    /// Writes a tree object with entries `(mode, name, id)`. git does not check the entries.
    pub fn tree_object(&self, entries: &[(&str, &[u8], &str)]) -> String {
        let mut raw = Vec::new();
        for (mode, name, id) in entries {
            raw.extend_from_slice(mode.as_bytes());
            raw.push(b' ');
            raw.extend_from_slice(name);
            raw.push(0);
            raw.extend((0..20).map(|at| u8::from_str_radix(&id[2 * at..2 * at + 2], 16).unwrap()));
        }
        self.git(&["hash-object", "-w", "-t", "tree", "--literally", "--stdin"], &raw)
    }

    pub fn commit_tree(&self, tree: &str) -> CommitId {
        self.git(&["commit-tree", tree, "-m", "subject"], b"").parse().unwrap()
    }

    /// Commits files `(path, executable, content)`. Removes the index first, so that the commit has no other files.
    pub fn commit(&self, files: &[(&str, bool, &[u8])]) -> CommitId {
        let mut index = Vec::new();
        for (path, executable, content) in files {
            let mode = if *executable { "100755" } else { "100644" };
            index.extend_from_slice(format!("{mode} {}\t{path}\n", self.blob(content)).as_bytes());
        }
        let _ = std::fs::remove_file(self.repository().join("index"));
        self.git(&["update-index", "--add", "--index-info"], &index);
        let tree = self.git(&["write-tree"], b"");
        self.commit_tree(&tree)
    }
}

/// Runs git without the configuration and the environment of the host.
pub fn git(directory: &Path, args: &[&str], input: &[u8]) -> std::process::Output {
    let mut child = Command::new("git")
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("HOME", "/nonexistent")
        .env("LC_ALL", "C")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "safe.directory")
        .env("GIT_CONFIG_VALUE_0", "*")
        .envs(["AUTHOR", "COMMITTER"].map(|who| (format!("GIT_{who}_NAME"), "A")))
        .envs(["AUTHOR", "COMMITTER"].map(|who| (format!("GIT_{who}_EMAIL"), "a@example.org")))
        .envs(["AUTHOR", "COMMITTER"].map(|who| (format!("GIT_{who}_DATE"), "1700000000 +0000")))
        .current_dir(directory)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || {
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}
