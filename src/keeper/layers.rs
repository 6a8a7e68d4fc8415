//! Overlays: a release or a source tree below a scratch layer, mounted at `/app`. The processes of one slot share one overlay.

use std::{
    collections::{HashMap, hash_map::Entry},
    ffi::CString,
    fs, io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::mount::{MountFlags, OpenTreeFlags, UnmountFlags, mount, open_tree, unmount};

use super::{
    config::Config,
    directories::{Directories, Scratch},
    sandbox::{Base, NO_DEVICES, NO_SETUID, READ_ONLY, attach},
    sys::{self, Forked},
    users::{Identity, User, Users},
};

/// The parts of an overlay.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Layer {
    /// The path of the lower tree, relative to the root.
    pub lower: PathBuf,
    /// The owner of the lower tree on disk.
    pub owner: Identity,
    /// The directory with `upper` and `work`, relative to the root.
    pub scratch: PathBuf,
    /// The user that works in the overlay.
    pub worker: Identity,
    /// True if the overlay, its scratch layer included, is read-only.
    pub read_only: bool,
}

#[derive(Debug)]
struct Mounted {
    layer: Layer,
    path: PathBuf,
    users: usize,
    writable: bool,
    /// True if its directories were discarded: processes that use it keep it, and no other process gets it.
    retired: bool,
}

/// The number of a mounted overlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LayerId(u64);

/// All mounted overlays.
#[derive(Debug)]
pub struct Layers {
    keeper: PathBuf,
    own: Identity,
    unprivileged: bool,
    mounted: HashMap<LayerId, Mounted>,
    count: u64,
    /// User namespaces that show one owner's files as another's.
    idmaps: HashMap<(Identity, Identity), OwnedFd>,
    /// The reason why the worker cannot appear as the owner of the lower tree's files, if mapping the owner has failed.
    pub idmap_fails: Option<String>,
    /// `Ok` if overlays can be mounted; otherwise the reason.
    pub works: Result<(), String>,
}

impl Layers {
    /// Tries to mount an overlay below the keeper's own directory.
    pub fn new(config: &Config, users: Users, directories: &Directories, base: &Result<Base, String>) -> Layers {
        let mut layers = Layers {
            keeper: config.root.join("keeper"),
            own: users.identity(User::Keeper),
            unprivileged: !users.system(),
            mounted: HashMap::new(),
            count: 0,
            idmaps: HashMap::new(),
            idmap_fails: None,
            works: Ok(()),
        };
        layers.works = match base {
            Err(why) => Err(why.clone()),
            Ok(_) if !config.overlays => Err("overlays are switched off".to_owned()),
            Ok(_) => layers.probe(directories).map_err(|error| format!("cannot mount an overlay: {error}")),
        };
        if let (Ok(_), Err(why)) = (base, &layers.works) {
            tracing::warn!(
                why,
                "overlays are not available: every build and every slot gets a copy of its tree, which takes time and space"
            );
        }
        layers
    }

    /// Mounts and unmounts an overlay on the root's file system.
    fn probe(&self, directories: &Directories) -> io::Result<()> {
        let probe = Path::new("keeper/probe");
        directories.make_scratch(probe, User::Keeper)?;
        directories.make(probe.join("lower"), User::Keeper, 0o700)?;
        let target = self.keeper.join("lower");
        let scratch = directories.open_scratch(probe, self.own)?;
        self.overlay(&scratch, false, &self.keeper.join("probe/lower"), &target, directories)?;
        Ok(unmount(&target, UnmountFlags::DETACH)?)
    }

    /// Mounts `layer`, unless it is mounted. Returns its number, its path and whether every file in it can be written.
    pub fn acquire(&mut self, layer: &Layer, directories: &Directories) -> io::Result<(LayerId, PathBuf, bool)> {
        if let Some((id, mounted)) = self.mounted.iter_mut().find(|(_, mounted)| !mounted.retired && mounted.layer == *layer) {
            mounted.users += 1;
            return Ok((*id, mounted.path.clone(), mounted.writable));
        }
        self.count += 1;
        let (id, path) = (LayerId(self.count), self.keeper.join("layers").join(self.count.to_string()));
        fs::create_dir_all(&path)?;
        let writable = self.mount(layer, &path, directories).inspect_err(|_| drop(fs::remove_dir(&path)))?;
        let mounted = Mounted { layer: layer.clone(), path: path.clone(), users: 1, writable, retired: false };
        self.mounted.insert(id, mounted);
        Ok((id, path, writable))
    }

    /// Retires the overlays of directories at or below `path` (relative to the root), which names another directory from now on.
    pub fn retire(&mut self, path: &Path) {
        for mounted in self.mounted.values_mut() {
            mounted.retired |= mounted.layer.scratch.starts_with(path) || mounted.layer.lower.starts_with(path);
        }
    }

    /// Unmounts an overlay after its last user.
    pub fn release(&mut self, id: LayerId) {
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

    fn mount(&mut self, layer: &Layer, target: &Path, directories: &Directories) -> io::Result<bool> {
        let lower = directories.open(&layer.lower)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let tree = open_tree(&lower, "", flags)?;
        let mut writable = true;
        let idmap = if layer.owner == layer.worker { None } else { self.idmap(layer.owner, layer.worker) };
        let attributes = READ_ONLY | NO_SETUID | NO_DEVICES;
        match idmap.map(|idmap| sys::mount_attributes(tree.as_fd(), attributes, Some(idmap), false)) {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                self.idmap_fails = Some(format!("cannot map the owner of files: {error}"));
                writable = false;
            }
            None => writable = layer.owner == layer.worker,
        }
        let below = self.keeper.join("lower");
        attach(tree, &below)?;
        let scratch = directories.open_scratch(&layer.scratch, layer.worker);
        let result = scratch.and_then(|scratch| self.overlay(&scratch, layer.read_only, &below, target, directories));
        unmount(&below, UnmountFlags::DETACH)?;
        result.map(|()| writable)
    }

    fn overlay(
        &self,
        scratch: &Scratch,
        read_only: bool,
        below: &Path,
        target: &Path,
        directories: &Directories,
    ) -> io::Result<()> {
        // The directories are passed by descriptor, because the kernel would follow symlinks in a path with the keeper's rights.
        let opened = |directory: &OwnedFd| format!("/proc/self/fd/{}", directory.as_raw_fd());
        let (upper, work) = (opened(&scratch.upper), opened(&scratch.work));
        let below = below.display();
        // Without `redirect_dir`, rename(2) of a directory of the lower tree fails with EXDEV, and programs such as `mv` copy it. The
        // option is not set: the kernel refuses it together with `userxattr`, and `upper` would no longer contain all changed files, as
        // bundles and drift require.
        let simple = if self.unprivileged { "userxattr" } else { "index=off,metacopy=off,redirect_dir=off" };
        let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
        let options = if read_only {
            flags |= MountFlags::RDONLY;
            vec![format!("lowerdir={upper}:{below},{simple}")]
        } else {
            // Files that the kernel left in `work` before a crash prevent the mount.
            directories.clear_own(&scratch.work)?;
            let options = format!("lowerdir={below},upperdir={upper},workdir={work},{simple}");
            // A scratch layer need not survive a power cut, so no write waits for the disk.
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

    /// A user namespace that maps `from` to `to`.
    fn idmap(&mut self, from: Identity, to: Identity) -> Option<std::os::fd::BorrowedFd<'_>> {
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

fn make_idmap(from: Identity, to: Identity) -> io::Result<OwnedFd> {
    match sys::fork(libc::CLONE_NEWUSER)? {
        Forked::Child => loop {
            // The parent kills this process as soon as the namespace is open.
            let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
            std::thread::sleep(std::time::Duration::from_secs(1));
        },
        Forked::Parent { pid, pidfd } => {
            let process = Path::new("/proc").join(pid.to_string());
            let namespace = fs::write(process.join("uid_map"), format!("{} {} 1", from.uid, to.uid))
                .and_then(|()| fs::write(process.join("gid_map"), format!("{} {} 1", from.gid, to.gid)))
                .and_then(|()| fs::File::open(process.join("ns/user")));
            rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL)?;
            rustix::process::waitid(rustix::process::WaitId::PidFd(pidfd.as_fd()), rustix::process::WaitIdOptions::EXITED)?;
            namespace.map(OwnedFd::from)
        }
    }
}
