//! The view of a worker: a root of its own, made of read-only parts of the host and the directories of its role.
//!
//! What all workers share is mounted once, at [`Base::prepare`]; a worker's own mount namespace is a copy with little added.

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

use super::{place::beneath, sys, users::Identity};

/// Mount attributes: what the worker must not change.
pub const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY;
/// Mount attributes: no programs that run as somebody else.
pub const NO_SETUID: u64 = libc::MOUNT_ATTR_NOSUID;
/// Mount attributes: no device files.
pub const NO_DEVICES: u64 = libc::MOUNT_ATTR_NODEV;

/// Where larder's own binary is in every view.
pub const BINARY: &str = "/larder/bin/larder";

/// Directories that a view may have, empty where the role has no use for them.
const PLACES: [&str; 13] = [
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

/// What a failed mount was for.
fn step<T>(what: impl std::fmt::Display, result: Result<T, impl Into<io::Error>>) -> io::Result<T> {
    result.map_err(|error| {
        let error = error.into();
        io::Error::new(error.kind(), format!("{what}: {error}"))
    })
}

/// Makes what is at `source` appear at `target` as well, with `attributes`.
pub fn bind(source: &Path, target: &Path, attributes: u64, recursive: bool) -> io::Result<()> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    let tree = step(source.display(), open_tree(CWD, source, flags))?;
    step(source.display(), sys::mount_attributes(tree.as_fd(), attributes, None, recursive))?;
    attach(tree, target)
}

/// Puts a detached mount at `target`.
pub fn attach(tree: impl AsFd, target: &Path) -> io::Result<()> {
    step(target.display(), move_mount(tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH))
}

/// The part of the view that all workers share, mounted at `<root>/keeper/base`.
#[derive(Debug, Clone)]
pub struct Base {
    path: PathBuf,
}

impl Base {
    /// Mounts it at `path`. The calling process must be in a mount namespace of its own. What lies below `root`, larder's own directory,
    /// is not shown, wherever it is.
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
        // Parents first: what lies in one that is there already needs no mount of its own.
        let mut host_paths: Vec<_> = host_paths.iter().collect();
        host_paths.sort();
        for source in host_paths {
            let below = source.strip_prefix("/").unwrap_or(source);
            let target = path.join(below);
            let ours = PLACES
                .iter()
                .chain(&["tmp", "proc", "run", "dev"])
                .any(|place| below.starts_with(place.split('/').next().unwrap_or(place)));
            if target.exists() && !ours {
                continue;
            }
            let mounted = match ours {
                true => Err(io::Error::other("larder uses this name in sandboxes itself; choose another directory")),
                false => fs::create_dir_all(&target).and_then(|()| bind(source, &target, host, true)),
            };
            // Workers without it are better than workers without a view of their own.
            if let Err(error) = mounted {
                tracing::warn!(path = %source.display(), %error, "builds and processes do not see this directory");
            }
        }
        hide(&fs::canonicalize(root)?, path)?;
        for name in PLACES.into_iter().chain(["proc", "tmp", "run", "var/tmp", "dev/shm", "dev/pts"]) {
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

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Covers `directory` of the host where the view at `base` shows it: a root below `/opt` comes along with `/opt`.
fn hide(directory: &Path, base: &Path) -> io::Result<()> {
    let shown = base.join(directory.strip_prefix("/").unwrap_or(directory));
    if !shown.exists() {
        return Ok(());
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::RDONLY;
    step(directory.display(), mount("tmpfs", &shown, "tmpfs", flags, c"mode=0,size=4k"))
}

/// Something that a worker sees.
#[derive(Debug, Clone)]
pub struct Bind {
    /// What it is.
    pub source: Source,
    /// Where the worker sees it.
    pub target: &'static str,
    /// Whether it may change it.
    pub writable: bool,
    /// Whether what the operator has mounted in it is seen as well.
    pub recursive: bool,
}

/// Where a [`Bind`] comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A directory below the root, reached without following any link.
    Below(PathBuf),
    /// A path that only the keeper can change.
    Own(PathBuf),
}

/// The view of one worker.
#[derive(Debug, Clone)]
pub struct View {
    /// What all workers share.
    pub base: Base,
    /// The server's directory.
    pub root: PathBuf,
    /// What this worker sees besides.
    pub binds: Vec<Bind>,
    /// Whom it runs as.
    pub worker: Identity,
    /// larder's binary.
    pub binary: PathBuf,
    /// Bytes that fit into its `/tmp`.
    pub temporary: u64,
}

impl View {
    /// Makes it this process's root. The process must be the first of new mount and process namespaces.
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
        self.name_the_user()?;
        self.find_resolver()?;
        // Without its own binary a worker can still do everything but call larder.
        if let Err(error) =
            bind(&self.binary, &base.join(BINARY.trim_start_matches('/')), READ_ONLY | NO_SETUID | NO_DEVICES, false)
        {
            tracing::debug!(%error, "larder's binary is not visible to workers");
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

    /// Programs ask who they are: the worker's number is `app`, at home in `/app`.
    fn name_the_user(&self) -> io::Result<()> {
        let (base, Identity { uid, gid }) = (self.base.path(), self.worker);
        let people = format!(
            "root:x:0:0:root:/root:/usr/sbin/nologin\napp:x:{uid}:{gid}:app:/app:/bin/sh\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n"
        );
        let groups = format!("root:x:0:\ntty:x:5:\napp:x:{gid}:\nnogroup:x:65534:\n");
        for (name, text) in [("passwd", people), ("group", groups)] {
            let (written, target) = (base.join("run").join(name), base.join("etc").join(name));
            fs::write(&written, text)?;
            fs::set_permissions(&written, fs::Permissions::from_mode(0o444))?;
            if target.exists() {
                bind(&written, &target, READ_ONLY | NO_SETUID | NO_DEVICES, false)?;
            }
        }
        Ok(())
    }

    /// Where `/etc/resolv.conf` is a link into `/run`, that file is needed too.
    fn find_resolver(&self) -> io::Result<()> {
        let Ok(real) = fs::canonicalize("/etc/resolv.conf") else { return Ok(()) };
        if let Ok(below) = real.strip_prefix("/run") {
            let target = self.base.path().join("run").join(below);
            fs::create_dir_all(target.parent().unwrap_or(&target))?;
            fs::write(&target, fs::read(&real)?)?;
        }
        Ok(())
    }
}
