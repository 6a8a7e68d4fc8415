//! Tests of whole captures, verifications and restores on real trees.

mod back;
mod capture;
mod hostile;
mod import;
mod kill;
mod look;
mod model;
mod races;
mod restore;
mod shared;
mod space;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs::{self, File},
    os::{
        fd::AsFd,
        unix::{
            ffi::OsStrExt,
            fs::{MetadataExt, PermissionsExt},
        },
    },
    path::{Path, PathBuf},
};

use serde_json::json;

use crate::{CaptureOptions, Captured, Kind, Limits, RestoreOptions, RestoreReport, Result, Source, Store};

/// A temporary directory with a store, and with live files in `base`.
pub struct Scene {
    pub dir: tempfile::TempDir,
    pub base: PathBuf,
    pub store: Store,
}

impl Scene {
    pub fn new() -> Scene {
        let dir = tempfile::tempdir().unwrap();
        Scene::at(dir)
    }

    pub fn at(dir: tempfile::TempDir) -> Scene {
        let base = dir.path().join("base");
        let _ = fs::create_dir(&base);
        let store = Store::create(&dir.path().join("store")).unwrap();
        Scene { dir, base, store }
    }

    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.base.join(path)
    }

    pub fn write(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub fn capture(&self, id: &str, sources: &[Source], previous: Option<&str>) -> Result<Captured> {
        capture(&self.store, &self.base, id, sources, previous, &options())
    }

    pub fn restore(&self, id: &str, ticket: &str, keep: Option<&str>) -> Result<RestoreReport> {
        let base = File::open(&self.base).unwrap();
        self.store.restore(&self.store.point(id)?, base.as_fd(), ticket, keep, &restore_options())
    }

    pub fn restore_into(&self, id: &str, name: &str) -> Result<RestoreReport> {
        let parent = File::open(self.dir.path()).unwrap();
        self.store.point(id)?.restore_into(parent.as_fd(), OsStr::new(name), &restore_options())
    }

    /// Restores into a new directory and returns the content of this directory.
    pub fn restored(&self, id: &str) -> BTreeMap<PathBuf, Node> {
        let name = format!("restored-{id}");
        self.restore_into(id, &name).unwrap();
        let restored = tree(&self.dir.path().join(&name));
        let parent = File::open(self.dir.path()).unwrap();
        crate::sys::remove_tree(parent.as_fd(), OsStr::new(&name)).unwrap();
        restored
    }

    /// Returns the path of a stored content.
    pub fn stored(&self, id: &str, path: &str) -> PathBuf {
        self.store.point(id).unwrap().content(path).unwrap()
    }

    /// Returns the names of all stored contents.
    pub fn contents(&self) -> BTreeSet<String> {
        let names = fs::read_dir(self.store.path().join(".contents")).into_iter().flatten();
        names.map(|name| name.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// Asserts that the store has exactly the contents to which its restore points refer.
    #[track_caller]
    pub fn has_only_used_contents(&self) {
        let mut used = BTreeSet::new();
        for id in self.store.list().unwrap() {
            let point = self.store.point(&id).unwrap();
            if point.has_shared_contents() {
                used.extend(point.entries().unwrap().iter().filter_map(|entry| match entry.kind {
                    Kind::File { digest, .. } => Some(digest.to_string()),
                    _ => None,
                }));
            }
        }
        assert_eq!(self.contents(), used);
    }

    /// Waits until the ctime of each new file is older than the margin of `is_settled`.
    pub fn settle(&self) {
        std::thread::sleep(std::time::Duration::from_millis(70));
    }
}

pub fn capture(
    store: &Store,
    base: &Path,
    id: &str,
    sources: &[Source],
    previous: Option<&str>,
    options: &CaptureOptions<'_>,
) -> Result<Captured> {
    let base = File::open(base).unwrap();
    let previous = previous.map(|id| store.point(id)).transpose()?;
    store.capture(id, &json!({"project": "shop"}), base.as_fd(), sources, previous.as_ref(), options)
}

/// Returns options without the sync of the sources. A sync would also wait for the writes of other tests.
pub fn options() -> CaptureOptions<'static> {
    CaptureOptions { limits: limits(), threads: 3, sync_sources: false, ..CaptureOptions::default() }
}

pub fn restore_options() -> RestoreOptions<'static> {
    RestoreOptions { limits: limits(), threads: 3, ..RestoreOptions::default() }
}

pub fn limits() -> Limits {
    Limits { free_bytes: 0, ..Limits::default() }
}

/// The properties of one file that a restore must reproduce, read without the code under test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: (i64, i64),
    pub content: Vec<u8>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The first of all paths of this file, in sorted order. A file with hard links has several paths.
    pub same_as: PathBuf,
}

/// Returns all files below a directory, without the directory itself.
pub fn tree(top: &Path) -> BTreeMap<PathBuf, Node> {
    let mut nodes = BTreeMap::new();
    add(top, Path::new(""), &mut nodes);
    let mut first: BTreeMap<(u64, u64), PathBuf> = BTreeMap::new();
    for (path, node) in &mut nodes {
        let metadata = fs::symlink_metadata(top.join(path)).unwrap();
        node.same_as = first.entry((metadata.dev(), metadata.ino())).or_insert_with(|| path.clone()).clone();
    }
    nodes
}

fn add(top: &Path, below: &Path, nodes: &mut BTreeMap<PathBuf, Node>) {
    for entry in fs::read_dir(top.join(below)).unwrap() {
        let path = below.join(entry.unwrap().file_name());
        let full = top.join(&path);
        let metadata = fs::symlink_metadata(&full).unwrap();
        let content = if metadata.is_symlink() {
            fs::read_link(&full).unwrap().as_os_str().as_bytes().to_vec()
        } else if metadata.is_file() {
            fs::read(&full).unwrap()
        } else {
            Vec::new()
        };
        let node = Node {
            mode: metadata.permissions().mode(),
            owner: (metadata.uid(), metadata.gid()),
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            content,
            xattrs: if metadata.is_symlink() { Vec::new() } else { xattrs(&full) },
            same_as: PathBuf::new(),
        };
        nodes.insert(path.clone(), node);
        if metadata.is_dir() {
            add(top, &path, nodes);
        }
    }
}

fn xattrs(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut names = vec![0; 4096];
    let length = rustix::fs::llistxattr(path, names.as_mut_slice()).unwrap_or(0);
    let mut xattrs: Vec<_> = names[..length]
        .split(|c| *c == 0)
        .filter(|name| !name.is_empty() && !name.starts_with(b"security."))
        .map(|name| {
            let mut value = vec![0; 4096];
            let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), value.as_mut_slice()).unwrap();
            (name.to_vec(), value[..length].to_vec())
        })
        .collect();
    xattrs.sort();
    xattrs
}

/// Returns a command that runs an ignored test of this crate in a separate process. The test reads `dir` from `POINTS_DIR`.
pub fn child(test: &str, dir: &Path) -> std::process::Command {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--test-threads=1"]).env("POINTS_DIR", dir);
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    command
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
