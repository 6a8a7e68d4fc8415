//! A root directory of a process, made of read-only parts of the host and the directories of the process.
//!
//! The part that all views share is mounted once, by [`BaseView::prepare`]. The mount namespace of a process is a copy with few
//! additions.

use std::{
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
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

use super::{directory::beneath, namespace::NAMESPACES, probe, sys, user::UnixUser};

/// The mount attribute of read-only mounts.
pub(crate) const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY;
/// The mount attribute with which set-user-ID programs run as the caller.
pub(crate) const NO_SETUID: u64 = libc::MOUNT_ATTR_NOSUID;
/// The mount attribute with which device files cannot be opened.
pub(crate) const NO_DEVICES: u64 = libc::MOUNT_ATTR_NODEV;

/// The top-level directories that every view has in addition to the directories of the host and of the caller.
const RESERVED: [&str; 4] = ["tmp", "proc", "run", "dev"];

/// Adds the path to the error of a mount.
fn step<T>(what: impl std::fmt::Display, result: Result<T, impl Into<io::Error>>) -> io::Result<T> {
    result.map_err(|error| {
        let error = error.into();
        io::Error::new(error.kind(), format!("{what}: {error}"))
    })
}

/// Binds `source` to `target`, with mount `attributes`.
fn bind(source: &Path, target: &Path, attributes: u64, recursive: bool) -> io::Result<()> {
    attach(step(source.display(), detached(CWD, source, attributes, recursive))?, target)
}

/// Returns a detached copy of the mount at `path`, or at `directory` itself if `path` is empty.
fn detached(directory: impl AsFd, path: &Path, attributes: u64, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_EMPTY_PATH, path.as_os_str().is_empty());
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    let tree = open_tree(directory, path, flags)?;
    sys::mount_attributes(tree.as_fd(), attributes, None, recursive)?;
    Ok(tree)
}

/// Attaches a detached mount at `target`.
pub(crate) fn attach(tree: impl AsFd, target: &Path) -> io::Result<()> {
    step(target.display(), move_mount(tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH))
}

/// The specification of the part that all views share.
#[derive(Debug)]
pub struct BaseSpec<'a> {
    /// The directory at which the shared part is mounted. Only this process can change the directory.
    pub path: &'a Path,
    /// Directories of the host that a view shows read-only, relative to `/`. Missing directories are left out.
    pub host: &'a [&'a str],
    /// Further directories of the host. A directory that cannot be shown is skipped.
    pub additional: &'a [PathBuf],
    /// A directory of the host that is hidden, even below a directory that the view shows.
    pub hidden: &'a Path,
    /// Directories that every view has, relative to `/`. A directory is empty if a process does not use it.
    pub mount_points: &'a [&'a str],
    /// The path of [`RootView::binary`] in every view.
    pub binary: &'a str,
}

/// A directory of the host that views do not show.
#[derive(Debug)]
pub struct SkippedDirectory {
    pub path: PathBuf,
    /// The cause; `None` if the directory is in a top-level directory that the view uses for its mount points.
    pub error: Option<io::Error>,
}

/// The part that all views share.
#[derive(Debug, Clone)]
pub struct BaseView {
    path: PathBuf,
    binary: PathBuf,
}

impl BaseView {
    /// Mounts the shared part. The calling process must have its own mount namespace.
    pub fn prepare(spec: &BaseSpec<'_>) -> io::Result<(BaseView, Vec<SkippedDirectory>)> {
        let path = spec.path;
        step("/", mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC))?;
        let hidden = MountFlags::NOSUID | MountFlags::NODEV;
        step(path.display(), mount("tmpfs", path, "tmpfs", hidden, c"mode=0755,size=4m"))?;
        let host = READ_ONLY | NO_SETUID | NO_DEVICES;
        for name in spec.host {
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
        // Parents are mounted first. A directory below a mounted directory is then already visible, and is not mounted again.
        let mut additional: Vec<_> = spec.additional.iter().collect();
        additional.sort();
        let mut skipped = Vec::new();
        for source in additional {
            let below = source.strip_prefix("/").unwrap_or(source);
            let target = path.join(below);
            let mut points = spec.mount_points.iter().chain(&RESERVED);
            let taken = points.any(|point| below.starts_with(point.split('/').next().unwrap_or(point)));
            if taken {
                skipped.push(SkippedDirectory { path: source.clone(), error: None });
            } else if !target.exists()
                && let Err(error) = fs::create_dir_all(&target).and_then(|()| bind(source, &target, host, true))
            {
                skipped.push(SkippedDirectory { path: source.clone(), error: Some(error) });
            }
        }
        hide(&fs::canonicalize(spec.hidden)?, path)?;
        for name in spec.mount_points.iter().chain(&RESERVED).chain(&["var/tmp", "dev/shm", "dev/pts"]) {
            fs::create_dir_all(path.join(name))?;
        }
        let binary = path.join(spec.binary.trim_start_matches('/'));
        fs::write(&binary, b"")?;
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
        Ok((BaseView { path: path.to_owned(), binary }, skipped))
    }
}

/// Covers `directory` of the host with an empty mount if the view at `base` shows `directory`. A view that shows `/opt`, for example, also
/// shows every directory below `/opt`.
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
pub struct BindMount {
    pub source: BindSource,
    /// The path in the view: one of the mount points, or a name below `/run`.
    pub target: &'static str,
    /// True if the process can write to the directory.
    pub writable: bool,
    /// True if mounts inside the directory are bound, too. Ignored for [`BindSource::Own`].
    pub recursive: bool,
}

/// The source of a [`BindMount`].
#[derive(Debug, Clone)]
pub enum BindSource {
    /// A directory below [`RootView::root`], opened without following any symlink.
    Below(PathBuf),
    /// A path that only the calling process can change.
    Own(PathBuf),
}

/// The view of one process.
#[derive(Debug, Clone)]
pub struct RootView {
    pub base: BaseView,
    /// The directory that [`BindSource::Below`] refers to.
    pub root: PathBuf,
    pub binds: Vec<BindMount>,
    /// The names and texts of files that replace the host's files in `/etc`.
    pub etc: Vec<(&'static str, String)>,
    /// A program that is shown at [`BaseSpec::binary`].
    pub binary: PathBuf,
    /// The size of `/tmp`, and of `/var/tmp`, in bytes. Files in both directories use memory and count towards the memory limit.
    pub temporary: u64,
}

impl RootView {
    /// Tries to enter the view in a child process. In containers that cover parts of `/proc`, all other mounts succeed, but the mount
    /// of `/proc` fails.
    pub fn probe(&self) -> io::Result<()> {
        probe::in_child(NAMESPACES, || self.enter())
    }

    /// Makes the view this process's root. The process must be the first process of new mount and PID namespaces.
    pub(crate) fn enter(&self) -> io::Result<()> {
        let base = &self.base.path;
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
        self.replace_etc()?;
        self.copy_resolver_file()?;
        // Without the binary, only calls of the binary from inside the view fail.
        if let Err(error) = bind(&self.binary, &self.base.binary, READ_ONLY | NO_SETUID | NO_DEVICES, false) {
            tracing::debug!(%error, "cannot show the binary in a view");
        }
        for BindMount { source, target, writable, recursive } in &self.binds {
            let attributes = NO_SETUID | NO_DEVICES | if *writable { 0 } else { READ_ONLY };
            let at = base.join(target.trim_start_matches('/'));
            if target.starts_with("/run/") {
                fs::create_dir_all(&at)?;
            }
            match source {
                BindSource::Own(path) => bind(path, &at, attributes, false)?,
                BindSource::Below(path) => {
                    let directory = step(path.display(), beneath(&root, path))?;
                    attach(step(path.display(), detached(&directory, Path::new(""), attributes, *recursive))?, &at)?;
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

    /// Binds the texts of [`RootView::etc`] over the host's files.
    fn replace_etc(&self) -> io::Result<()> {
        for (name, text) in &self.etc {
            let (written, target) = (self.base.path.join("run").join(name), self.base.path.join("etc").join(name));
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
            let target = self.base.path.join("run").join(below);
            fs::create_dir_all(target.parent().unwrap_or(&target))?;
            fs::write(&target, fs::read(&real)?)?;
        }
        Ok(())
    }
}

/// Returns the names and contents of `/etc/passwd` and `/etc/group`. The worker's user is `app` with the home directory `/app`.
pub fn user_database(UnixUser { uid, gid }: UnixUser) -> Vec<(&'static str, String)> {
    let passwd = format!(
        "root:x:0:0:root:/root:/usr/sbin/nologin\napp:x:{uid}:{gid}:app:/app:/bin/sh\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n"
    );
    let groups = format!("root:x:0:\ntty:x:5:\napp:x:{gid}:\nnogroup:x:65534:\n");
    vec![("passwd", passwd), ("group", groups)]
}
