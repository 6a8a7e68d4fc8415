//! The view of a worker: a root directory of its own, made of read-only parts of the host and the directories of its role.
//!
//! The part that all workers share is mounted once, by [`Base::prepare`]; a worker's mount namespace is a copy with few additions.

use std::{
    fs, io,
    os::{
        fd::AsFd,
        unix::fs::{PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, OFlags, open},
    mount::{
        MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_change, move_mount,
        open_tree, unmount,
    },
    process::{chdir, pivot_root},
};

use super::{directories::beneath, sys, users::Identity};

/// Mount attribute: read-only.
pub const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY;
/// Mount attribute: set-user-ID programs run as the caller.
pub const NO_SETUID: u64 = libc::MOUNT_ATTR_NOSUID;
/// Mount attribute: device files cannot be opened.
pub const NO_DEVICES: u64 = libc::MOUNT_ATTR_NODEV;

/// The path of larder's own binary in every view.
pub const BINARY: &str = "/larder/bin/larder";

/// Directories of every view, empty if the role does not use them.
const MOUNT_POINTS: [&str; 13] = [
    "app",
    "lower",
    "cache",
    "source",
    "repo",
    "hooks",
    "deploy",
    "upper",
    "data",
    "area",
    "buildpacks",
    "larder/etc/buildpacks",
    "larder/bin",
];

/// Adds the path to the error of a mount.
fn step<T>(what: impl std::fmt::Display, result: Result<T, impl Into<io::Error>>) -> io::Result<T> {
    result.map_err(|error| {
        let error = error.into();
        io::Error::new(error.kind(), format!("{what}: {error}"))
    })
}

/// Binds `source` to `target`, with mount `attributes`.
pub fn bind(source: &Path, target: &Path, attributes: u64, recursive: bool) -> io::Result<()> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    let tree = step(source.display(), open_tree(CWD, source, flags))?;
    step(source.display(), sys::mount_attributes(tree.as_fd(), attributes, None, recursive))?;
    attach(tree, target)
}

/// Attaches a detached mount at `target`.
pub fn attach(tree: impl AsFd, target: &Path) -> io::Result<()> {
    step(target.display(), move_mount(tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH))
}

/// The part of the view that all workers share, mounted at `<root>/keeper/base`.
#[derive(Debug, Clone)]
pub struct Base {
    path: PathBuf,
}

impl Base {
    /// Mounts the shared part at `path`. The calling process must be in a mount namespace of its own. `root`, larder's own directory,
    /// is hidden even below a directory that the view shows.
    pub fn prepare(path: &Path, root: &Path, host_paths: &[PathBuf]) -> io::Result<Base> {
        step("/", mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC))?;
        let hidden = MountFlags::NOSUID | MountFlags::NODEV;
        step(path.display(), mount("tmpfs", path, "tmpfs", hidden, c"mode=0755,size=4m"))?;
        let host = READ_ONLY | NO_SETUID | NO_DEVICES;
        for name in
            ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "etc", "opt", "var/lib/gems", "sys/devices/system/cpu"]
        {
            let (source, target) = (Path::new("/").join(name), path.join(name));
            match fs::symlink_metadata(&source) {
                Ok(found) if found.is_symlink() => symlink(fs::read_link(&source)?, &target)?,
                Ok(found) if found.is_dir() => {
                    fs::create_dir_all(&target)?;
                    bind(&source, &target, host, true)?;
                }
                _ => {}
            }
        }
        // Parents are mounted first, because a directory below a mounted one needs no mount of its own.
        let mut host_paths: Vec<_> = host_paths.iter().collect();
        host_paths.sort();
        for source in host_paths {
            let below = source.strip_prefix("/").unwrap_or(source);
            let target = path.join(below);
            let ours = MOUNT_POINTS
                .iter()
                .chain(&["tmp", "proc", "run", "dev"])
                .any(|point| below.starts_with(point.split('/').next().unwrap_or(point)));
            if target.exists() && !ours {
                continue;
            }
            let mounted = match ours {
                true => Err(io::Error::other("larder uses this name in sandboxes itself; hint: choose another directory")),
                false => fs::create_dir_all(&target).and_then(|()| bind(source, &target, host, true)),
            };
            // This error is not fatal: workers still get a view of their own, without this directory.
            if let Err(error) = mounted {
                tracing::warn!(path = %source.display(), %error, "cannot show this directory to builds and processes");
            }
        }
        hide(&fs::canonicalize(root)?, path)?;
        for name in MOUNT_POINTS.into_iter().chain(["proc", "tmp", "run", "var/tmp", "dev/shm", "dev/pts"]) {
            fs::create_dir_all(path.join(name))?;
        }
        fs::write(path.join(BINARY.trim_start_matches('/')), b"")?;
        symlink("/run", path.join("var/run"))?;
        for name in ["null", "zero", "full", "random", "urandom", "tty"] {
            let target = path.join("dev").join(name);
            fs::write(&target, b"")?;
            bind(&Path::new("/dev").join(name), &target, NO_SETUID, false)?;
        }
        for (name, target) in
            [("ptmx", "pts/ptmx"), ("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")]
        {
            symlink(target, path.join("dev").join(name))?;
        }
        Ok(Base { path: path.to_owned() })
    }

    /// The path of the shared part.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Covers `directory` of the host with an empty mount if the view at `base` shows the directory, such as a root below `/opt`.
fn hide(directory: &Path, base: &Path) -> io::Result<()> {
    let shown = base.join(directory.strip_prefix("/").unwrap_or(directory));
    if !shown.exists() {
        return Ok(());
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::RDONLY;
    step(directory.display(), mount("tmpfs", &shown, "tmpfs", flags, c"mode=0,size=4k"))
}

/// A directory that is bound into a view.
#[derive(Debug, Clone)]
pub struct Bind {
    /// The directory.
    pub source: Source,
    /// Its path in the view.
    pub target: &'static str,
    /// True if the worker can write it.
    pub writable: bool,
    /// True if mounts inside of it are bound, too.
    pub recursive: bool,
}

/// The source of a [`Bind`].
#[derive(Debug, Clone)]
pub enum Source {
    /// A directory below the root, opened without following any symlink.
    Below(PathBuf),
    /// A path that only the keeper can change.
    Own(PathBuf),
}

/// The view of one worker.
#[derive(Debug, Clone)]
pub struct View {
    /// The part that all workers share.
    pub base: Base,
    /// larder's directory.
    pub root: PathBuf,
    /// The directories of this worker.
    pub binds: Vec<Bind>,
    /// The user of the worker.
    pub worker: Identity,
    /// larder's binary.
    pub binary: PathBuf,
    /// Size of the worker's `/tmp` in bytes.
    pub temporary: u64,
}

impl View {
    /// Makes the view this process's root. The process must be the first of new mount and process namespaces.
    pub fn enter(&self) -> io::Result<()> {
        let base = self.base.path();
        let root =
            step(self.root.display(), open(&self.root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()))?;
        let safe = MountFlags::NOSUID | MountFlags::NODEV;
        step("/proc", mount("proc", base.join("proc"), "proc", safe | MountFlags::NOEXEC, c""))?;
        let size = std::ffi::CString::new(format!("mode=1777,size={}", self.temporary))?;
        step("/tmp", mount("tmpfs", base.join("tmp"), "tmpfs", safe, size.as_c_str()))?;
        let small = c"mode=1777,size=64m";
        step("/var/tmp", mount("tmpfs", base.join("var/tmp"), "tmpfs", safe, size.as_c_str()))?;
        step("/dev/shm", mount("tmpfs", base.join("dev/shm"), "tmpfs", safe, small))?;
        step("/run", mount("tmpfs", base.join("run"), "tmpfs", safe, c"mode=0755,size=16m"))?;
        let terminals = c"newinstance,ptmxmode=0666,mode=0620";
        step("/dev/pts", mount("devpts", base.join("dev/pts"), "devpts", MountFlags::NOSUID | MountFlags::NOEXEC, terminals))?;
        self.write_user_database()?;
        self.copy_resolver_file()?;
        // Without the binary, only calls of larder from inside the view fail.
        if let Err(error) =
            bind(&self.binary, &base.join(BINARY.trim_start_matches('/')), READ_ONLY | NO_SETUID | NO_DEVICES, false)
        {
            tracing::debug!(%error, "cannot show larder's binary to a worker");
        }
        for Bind { source, target, writable, recursive } in &self.binds {
            let attributes = NO_SETUID | NO_DEVICES | if *writable { 0 } else { READ_ONLY };
            let at = base.join(target.trim_start_matches('/'));
            if target.starts_with("/run/") {
                fs::create_dir_all(&at)?;
            }
            match source {
                Source::Own(path) => bind(path, &at, attributes, false)?,
                Source::Below(path) => {
                    let directory = step(path.display(), beneath(&root, path))?;
                    let mut flags =
                        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
                    flags.set(OpenTreeFlags::AT_RECURSIVE, *recursive);
                    let tree = step(path.display(), open_tree(&directory, "", flags))?;
                    step(path.display(), sys::mount_attributes(tree.as_fd(), attributes, None, *recursive))?;
                    attach(tree, &at)?;
                }
            }
        }
        for name in ["run", ""] {
            let tree = step(name, open(base.join(name), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()))?;
            step(name, sys::mount_attributes(tree.as_fd(), READ_ONLY | NO_SETUID | NO_DEVICES, None, false))?;
        }
        drop(root);
        step("/", chdir(base))?;
        step("/", pivot_root(".", "."))?;
        step("/", unmount(".", UnmountFlags::DETACH))?;
        step("/", chdir("/"))
    }

    /// Writes `/etc/passwd` and `/etc/group`: the worker's user is `app` with the home directory `/app`.
    fn write_user_database(&self) -> io::Result<()> {
        let (base, Identity { uid, gid }) = (self.base.path(), self.worker);
        let passwd = format!(
            "root:x:0:0:root:/root:/usr/sbin/nologin\napp:x:{uid}:{gid}:app:/app:/bin/sh\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n"
        );
        let groups = format!("root:x:0:\ntty:x:5:\napp:x:{gid}:\nnogroup:x:65534:\n");
        for (name, text) in [("passwd", passwd), ("group", groups)] {
            let (written, target) = (base.join("run").join(name), base.join("etc").join(name));
            fs::write(&written, text)?;
            fs::set_permissions(&written, fs::Permissions::from_mode(0o444))?;
            if target.exists() {
                bind(&written, &target, READ_ONLY | NO_SETUID | NO_DEVICES, false)?;
            }
        }
        Ok(())
    }

    /// Copies the target of the link `/etc/resolv.conf` if the target is in `/run`, as with systemd-resolved.
    fn copy_resolver_file(&self) -> io::Result<()> {
        let Ok(real) = fs::canonicalize("/etc/resolv.conf") else { return Ok(()) };
        if let Ok(below) = real.strip_prefix("/run") {
            let target = self.base.path().join("run").join(below);
            fs::create_dir_all(target.parent().unwrap_or(&target))?;
            fs::write(&target, fs::read(&real)?)?;
        }
        Ok(())
    }
}
