//! The directories below the root, with their owners. All operations in directories of other users are operations of [`RootDirectory`], so
//! the keeper follows no symlink and never walks through the tree of another user.

use std::{
    io,
    path::{Path, PathBuf},
};

use larder_sandbox::{
    DiscardedDirectory, RootDirectory, SpaceLimit, SpaceLimits, Trash, UnixUser, VolumeKind, replaceable_ancestors,
};

use super::{
    config::KeeperError,
    users::{SystemUser, Users},
};
use crate::{
    host::{launch::Registration, root::Root},
    model::{EnvId, ProjectId, ProjectName, Slot, StorageKind},
};

/// Returns the image of a project's own file system.
fn image(project: ProjectId) -> PathBuf {
    Path::new("keeper/volumes").join(project.0.to_string())
}

/// Returns larder's paths, relative to the root.
pub fn relative() -> Root {
    Root::new("")
}

/// The directories of larder.
#[derive(Debug)]
pub struct Directories {
    /// The root directory.
    pub root: RootDirectory,
    users: Users,
    trash: Trash,
    limits: SpaceLimits,
}

impl Directories {
    /// Opens the root and creates the directories that every root has.
    pub fn open_root(path: &Path, users: Users) -> Result<Directories, KeeperError> {
        let in_root = |source| KeeperError::Root { path: path.to_owned(), source };
        let root = RootDirectory::open_root(path, users.system()).map_err(in_root)?;
        root.check().map_err(|source| KeeperError::UnsafeRoot { path: path.to_owned(), source })?;
        if users.system() {
            // An ancestor may belong to a trusted user, for example an operator, so the keeper only warns.
            for (above, owner) in replaceable_ancestors(path).map_err(in_root)? {
                tracing::warn!(path = %above.display(), owner, "users who can write to this directory can replace larder's root");
            }
        }
        let directories = Directories { root, users, trash: Trash::default(), limits: SpaceLimits::default() };
        directories.make_root().map_err(in_root)?;
        Ok(directories)
    }

    fn make_root(&self) -> io::Result<()> {
        for (name, user, mode) in [
            ("keeper", SystemUser::Keeper, 0o700),
            ("keeper/base", SystemUser::Keeper, 0o755),
            ("keeper/layers", SystemUser::Keeper, 0o755),
            ("keeper/lower", SystemUser::Keeper, 0o755),
            ("trash", SystemUser::Keeper, 0o711),
            ("projects", SystemUser::Keeper, 0o755),
            ("state", SystemUser::Server, 0o700),
            ("lib", SystemUser::Keeper, 0o755),
        ] {
            self.make(name, user, mode)?;
        }
        let (server, git) = (self.users.numbers(SystemUser::Server), self.users.numbers(SystemUser::Git));
        // The hook socket in this directory inherits the group, so that only the git user can connect to it.
        self.root.make("hooks", UnixUser { uid: server.uid, gid: git.gid }, 0o2750)
    }

    /// Creates a directory with its owner and mode ([`RootDirectory::make`]).
    pub fn make(&self, path: impl AsRef<Path>, user: SystemUser, mode: u32) -> io::Result<()> {
        self.root.make(path, self.users.numbers(user), mode)
    }

    /// Creates the directories of a scratch layer ([`RootDirectory::make_scratch`]).
    pub fn make_scratch(&self, path: &Path, user: SystemUser) -> io::Result<()> {
        self.root.make_scratch(path, self.users.numbers(user))
    }

    /// Limits the space of a project ([`SpaceLimits::ensure`]). Returns `None` if the call must be repeated.
    pub fn limit(&mut self, registration: &Registration) -> io::Result<Option<Vec<DiscardedDirectory>>> {
        let Some((kind, bytes)) = registration.storage else { return Ok(Some(Vec::new())) };
        let volume = match kind {
            StorageKind::Ext4 => Some(VolumeKind::Ext4),
            StorageKind::Xfs => Some(VolumeKind::Xfs),
            StorageKind::Quota => None,
        };
        let (image, target) = (&image(registration.project.0), &relative().project(&registration.project.1));
        self.limits.ensure(&self.root, &SpaceLimit { target, image, volume, bytes })
    }

    /// Removes the quota or the file system of a project, if the project has one.
    pub fn remove_limit(&mut self, id: ProjectId, name: &ProjectName) -> io::Result<()> {
        self.limits.remove(&self.root, &image(id), &relative().project(name))
    }

    /// Creates the directories of a project and an environment.
    pub fn register(&self, registration: &Registration) -> io::Result<()> {
        let project = relative().project(&registration.project.1);
        self.make(&project, SystemUser::Keeper, 0o755)?;
        self.make(project.join("git"), SystemUser::Git, 0o700)?;
        let Some((env, name)) = &registration.environment else { return Ok(()) };
        let paths = relative().environment(&registration.project.1, name);
        // The server writes the links `run` and `deploy/current`, and its records, into its own directories only.
        self.make(paths.path(), SystemUser::Server, 0o755)?;
        self.make(paths.deploy(), SystemUser::Server, 0o755)?;
        // These directories contain code, values of variables and output of processes, so other users cannot read them.
        for path in [paths.releases(), paths.deployments(), paths.log()] {
            self.make(path, SystemUser::Server, 0o750)?;
        }
        // `archives` can be listed, so that the run user can delete its files after a discard. The directories in `archives` are private.
        self.make(paths.archives(), SystemUser::Server, 0o755)?;
        self.make(paths.archived_runs(), SystemUser::Server, 0o755)?;
        for path in [paths.points(), paths.restored(), paths.restoring(), paths.data_copy(), paths.custom(), paths.editing()] {
            self.make(path, SystemUser::Run(*env), 0o700)?;
        }
        self.make(paths.source(), SystemUser::Git, 0o755)?;
        self.make(paths.cache(), SystemUser::Build(*env), 0o755)?;
        self.make(paths.data(), SystemUser::Run(*env), 0o700)?;
        self.make_scratch(&paths.build(), SystemUser::Build(*env))?;
        self.make(paths.path().join("slots"), SystemUser::Keeper, 0o755)?;
        for slot in Slot::ALL {
            self.make_scratch(&paths.slot(slot), SystemUser::Run(*env))?;
        }
        Ok(())
    }

    /// Moves a directory to the trash by one rename. Returns `None` if the directory does not exist.
    pub fn discard(&mut self, path: &Path, env: EnvId) -> io::Result<Option<DiscardedDirectory>> {
        self.trash.discard(&self.root, path, env.0)
    }

    /// Removes a discarded directory, and the keeper's own scratch directories in it, after workers have deleted the files. The keeper
    /// removes only empty directories that the keeper has created.
    pub fn remove_discarded(&self, discarded: &DiscardedDirectory) -> io::Result<()> {
        let path = &discarded.path;
        self.root.remove_scratch(path);
        for scratch in ["build", "slots/blue", "slots/green", "slots/in-place"] {
            self.root.remove_scratch(&path.join(scratch));
        }
        for name in ["slots/blue", "slots/green", "slots/in-place", "slots", "build", "git"] {
            let _ = self.root.remove_empty(&path.join(name));
        }
        self.root.remove_empty(path)
    }
}
