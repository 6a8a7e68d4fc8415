//! Overlays. An overlay shows a tree with a scratch layer on top of the tree. Processes with the same tree and the same layer share one
//! overlay.

use std::{
    collections::{HashMap, hash_map::Entry},
    ffi::CString,
    fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::mount::{MountFlags, OpenTreeFlags, UnmountFlags, mount, open_tree, unmount};

use super::{
    directory::{RootDirectory, ScratchDirectories},
    namespace::make_idmap,
    sys,
    user::UnixUser,
    view::{NO_DEVICES, NO_SETUID, READ_ONLY, attach},
};

/// The parts of an overlay. Paths are relative to the root directory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OverlaySpec {
    /// The lower tree.
    pub lower: PathBuf,
    /// The owner of the lower tree on disk.
    pub owner: UnixUser,
    /// The directory with `upper` and `work`.
    pub scratch: PathBuf,
    /// The user that works in the overlay.
    pub worker: UnixUser,
    /// True if the overlay, its scratch layer included, is read-only.
    pub read_only: bool,
}

#[derive(Debug)]
struct Mounted {
    spec: OverlaySpec,
    path: PathBuf,
    users: usize,
    writable: bool,
    /// True if the directories of the overlay were discarded. Processes that use the overlay keep it, and no new process gets it.
    retired: bool,
}

/// The number of a mounted overlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OverlayId(u64);

/// All mounted overlays.
#[derive(Debug)]
pub struct Overlays {
    /// The directory that holds all mount points. Only this process can change the directory.
    own: PathBuf,
    privileged: bool,
    mounted: HashMap<OverlayId, Mounted>,
    count: u64,
    /// User namespaces that show the files of the first user as files of the second user.
    idmaps: HashMap<(UnixUser, UnixUser), OwnedFd>,
    /// `Ok` if overlays can be mounted; otherwise the reason.
    pub works: Result<(), String>,
    /// The reason why the worker cannot appear as the owner of the lower tree's files, if mapping the owner has failed.
    pub idmap_fails: Option<String>,
}

impl Overlays {
    /// Returns an empty list. If overlays are `allowed`, first mounts an overlay on trial. Overlays are mounted in `own`, a path below
    /// `root` that only this process can change and that has the directories `layers` and `lower`.
    pub fn new(root: &RootDirectory, own: &str, allowed: Result<(), String>) -> Overlays {
        let mut overlays = Overlays {
            own: root.path().join(own),
            privileged: root.is_privileged(),
            mounted: HashMap::new(),
            count: 0,
            idmaps: HashMap::new(),
            works: Ok(()),
            idmap_fails: None,
        };
        overlays.works = allowed.and_then(|()| {
            let tried = overlays.probe(root, &Path::new(own).join("probe"));
            tried.map_err(|error| format!("cannot mount an overlay: {error}"))
        });
        overlays
    }

    /// Mounts and unmounts an overlay on the file system of `root`. The directories of the overlay are created at `path`, relative to
    /// `root`.
    fn probe(&self, root: &RootDirectory, path: &Path) -> io::Result<()> {
        let own = UnixUser::current();
        root.make_scratch(path, own)?;
        root.make(path.join("lower"), own, 0o700)?;
        let target = self.own.join("lower");
        let scratch = root.open_scratch(path, own)?;
        self.overlay(&scratch, false, &root.path().join(path).join("lower"), &target, root)?;
        Ok(unmount(&target, UnmountFlags::DETACH)?)
    }

    /// Mounts an overlay, unless it is mounted. Returns its number and its path, and true if the worker appears as the owner of all files.
    pub fn acquire(&mut self, spec: &OverlaySpec, root: &RootDirectory) -> io::Result<(OverlayId, PathBuf, bool)> {
        if let Some((id, mounted)) = self.mounted.iter_mut().find(|(_, mounted)| !mounted.retired && mounted.spec == *spec) {
            mounted.users += 1;
            return Ok((*id, mounted.path.clone(), mounted.writable));
        }
        self.count += 1;
        let (id, path) = (OverlayId(self.count), self.own.join("layers").join(self.count.to_string()));
        fs::create_dir_all(&path)?;
        let writable = self.mount(spec, &path, root).inspect_err(|_| drop(fs::remove_dir(&path)))?;
        let mounted = Mounted { spec: spec.clone(), path: path.clone(), users: 1, writable, retired: false };
        self.mounted.insert(id, mounted);
        Ok((id, path, writable))
    }

    /// Retires the overlays of directories at or below `path` (relative to the root). From now on, `path` may name another directory.
    pub fn retire(&mut self, path: &Path) {
        for mounted in self.mounted.values_mut() {
            mounted.retired |= mounted.spec.scratch.starts_with(path) || mounted.spec.lower.starts_with(path);
        }
    }

    /// Ends one use of an overlay. Unmounts the overlay after its last use.
    pub fn release(&mut self, id: OverlayId) {
        let Some(mounted) = self.mounted.get_mut(&id) else { return };
        mounted.users = mounted.users.saturating_sub(1);
        if mounted.users == 0
            && let Some(mounted) = self.mounted.remove(&id)
        {
            if let Err(error) = unmount(&mounted.path, UnmountFlags::DETACH) {
                tracing::warn!(path = %mounted.path.display(), %error, "cannot unmount an overlay");
            }
            let _ = fs::remove_dir(&mounted.path);
        }
    }

    fn mount(&mut self, spec: &OverlaySpec, target: &Path, root: &RootDirectory) -> io::Result<bool> {
        let lower = root.open(&spec.lower)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let tree = open_tree(&lower, "", flags)?;
        let mut writable = true;
        let idmap = if spec.owner == spec.worker { None } else { self.idmap(spec.owner, spec.worker) };
        let attributes = READ_ONLY | NO_SETUID | NO_DEVICES;
        match idmap.map(|idmap| sys::mount_attributes(tree.as_fd(), attributes, Some(idmap), false)) {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                self.idmap_fails = Some(format!("cannot map the owner of files: {error}"));
                writable = false;
            }
            None => writable = spec.owner == spec.worker,
        }
        let below = self.own.join("lower");
        attach(tree, &below)?;
        let scratch = root.open_scratch(&spec.scratch, spec.worker);
        let result = scratch.and_then(|scratch| self.overlay(&scratch, spec.read_only, &below, target, root));
        unmount(&below, UnmountFlags::DETACH)?;
        result.map(|()| writable)
    }

    fn overlay(
        &self,
        scratch: &ScratchDirectories,
        read_only: bool,
        below: &Path,
        target: &Path,
        root: &RootDirectory,
    ) -> io::Result<()> {
        // The directories are passed by descriptor, because the kernel would follow symlinks in a path with this process's rights.
        let opened = |directory: &OwnedFd| format!("/proc/self/fd/{}", directory.as_raw_fd());
        let (upper, work) = (opened(&scratch.upper), opened(&scratch.work));
        let below = below.display();
        // Without `redirect_dir`, rename(2) of a directory of the lower tree fails with EXDEV, and programs such as `mv` copy the
        // directory. The option is not set: the kernel refuses it together with `userxattr`, and `upper` would no longer contain all
        // changed files.
        let simple = if self.privileged { "index=off,metacopy=off,redirect_dir=off" } else { "userxattr" };
        let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
        let options = if read_only {
            flags |= MountFlags::RDONLY;
            vec![format!("lowerdir={upper}:{below},{simple}")]
        } else {
            // Files that the kernel left in `work` before a crash prevent the mount.
            root.clear_own(&scratch.work)?;
            let options = format!("lowerdir={below},upperdir={upper},workdir={work},{simple}");
            // A scratch layer need not survive a power cut. With `volatile`, no write waits for the disk. Older kernels refuse this option.
            vec![format!("{options},volatile"), options]
        };
        let mut result = Ok(());
        for options in options {
            result = mount("overlay", target, "overlay", flags, CString::new(options)?.as_c_str());
            if result.is_ok() {
                break;
            }
        }
        Ok(result?)
    }

    /// Returns a user namespace that maps `from` to `to`, or `None` if the namespace cannot be created.
    fn idmap(&mut self, from: UnixUser, to: UnixUser) -> Option<BorrowedFd<'_>> {
        match self.idmaps.entry((from, to)) {
            Entry::Occupied(entry) => Some(AsFd::as_fd(&*entry.into_mut())),
            Entry::Vacant(entry) => match make_idmap(from, to) {
                Ok(namespace) => Some(AsFd::as_fd(&*entry.insert(namespace))),
                Err(error) => {
                    self.idmap_fails = Some(format!("cannot create a user namespace: {error}"));
                    None
                }
            },
        }
    }
}
