//! The directories below the root: creates them with their owners, and discards them by one rename. The keeper never walks through the
//! tree of another user.
//!
//! Every path goes through [`Directories::open`], which follows no symlink and does not leave the root. A server or a project's user
//! that rearranges its own directories can therefore not make the keeper touch anything else.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, CWD, Gid, Mode, OFlags, RenameFlags, ResolveFlags, Uid, chownat, fchmod, fstat, mkdirat, openat2, renameat,
        renameat_with, unlinkat,
    },
    io::Errno,
};

use super::{
    config::LibFile,
    users::{Identity, User, Users},
};
use crate::{
    host::{launch::Registration, root::Root},
    model::{EnvId, Slot},
};

/// Returns larder's paths, relative to the root.
pub fn relative() -> Root {
    Root::new("")
}

/// The root directory.
#[derive(Debug)]
pub struct Directories {
    path: PathBuf,
    root: OwnedFd,
    users: Users,
    /// The last number in a name of a discarded directory.
    discarded: u64,
}

/// The directories of a scratch layer.
#[derive(Debug)]
pub struct Scratch {
    /// The changed files.
    pub upper: OwnedFd,
    /// The `workdir` of the overlay, which only the kernel uses.
    pub work: OwnedFd,
}

/// A discarded directory, to be deleted by the owners of its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discarded {
    /// Its name in `trash/`.
    pub name: String,
    /// The environment whose users own the files.
    pub env: EnvId,
}

impl Directories {
    /// Opens the root and creates the directories that every root has.
    pub fn open_root(path: &Path, users: Users) -> io::Result<Directories> {
        fs::create_dir_all(path)?;
        let root =
            openat2(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::empty())?;
        safe_root(path, &root, users)?;
        let directories = Directories { path: path.to_owned(), root, users, discarded: 0 };
        for (name, user, mode) in [
            ("keeper", User::Keeper, 0o700),
            ("keeper/base", User::Keeper, 0o755),
            ("keeper/layers", User::Keeper, 0o755),
            ("keeper/lower", User::Keeper, 0o755),
            ("trash", User::Keeper, 0o711),
            ("projects", User::Keeper, 0o755),
            ("state", User::Server, 0o700),
            ("lib", User::Keeper, 0o755),
        ] {
            directories.make(name, user, mode)?;
        }
        let hooks = Identity { gid: users.identity(User::Git).gid, uid: users.identity(User::Server).uid };
        // The hook socket in this directory inherits the group, so that only the git user can connect to it.
        directories.make_as("hooks", hooks, 0o2750)?;
        Ok(directories)
    }

    /// Unpacks the files that are embedded in the binary. The caller must hold the root's lock.
    pub fn unpack_lib(&self, lib: &[LibFile]) -> io::Result<()> {
        unpack_lib(&self.path, lib)
    }

    /// Opens a directory below the root.
    pub fn open(&self, path: impl AsRef<Path>) -> io::Result<OwnedFd> {
        beneath(&self.root, path.as_ref())
    }

    /// Creates a directory with its owner and mode. An existing directory gets them, too, if it belongs to the keeper or to `user`. The
    /// parent must exist.
    pub fn make(&self, path: impl AsRef<Path>, user: User, mode: u32) -> io::Result<()> {
        self.make_as(path.as_ref(), self.users.identity(user), mode)
    }

    fn make_as(&self, path: impl AsRef<Path>, owner: Identity, mode: u32) -> io::Result<()> {
        let path = path.as_ref();
        let failed = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", self.path.join(path).display()));
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(failed(Errno::INVAL.into())) };
        let parent = if parent.as_os_str().is_empty() { self.root.try_clone()? } else { self.open(parent).map_err(failed)? };
        match mkdirat(&parent, name, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(failed(error.into())),
        }
        let directory = beneath(&parent, Path::new(name)).map_err(failed)?;
        let found = fstat(&directory)?;
        if found.st_uid == owner.uid && found.st_mode & 0o7777 == mode {
            return Ok(());
        }
        // The keeper owns a directory that was just created, or that did not get its owner before a power cut.
        if found.st_uid != self.users.identity(User::Keeper).uid && found.st_uid != owner.uid {
            let text = format!("its owner is user {} (expected user {})", found.st_uid, owner.uid);
            return Err(failed(io::Error::other(text)));
        }
        let (uid, gid) = (Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)));
        if self.users.system() {
            chownat(&directory, "", uid, gid, AtFlags::EMPTY_PATH).map_err(|error| failed(error.into()))?;
        }
        fchmod(&directory, Mode::from_raw_mode(mode)).map_err(|error| failed(error.into()))
    }

    /// Creates the directories of a project and an environment.
    pub fn register(&self, registration: &Registration) -> io::Result<()> {
        let project = relative().project(&registration.project.1);
        self.make(&project, User::Keeper, 0o755)?;
        self.make(project.join("git"), User::Git, 0o700)?;
        let Some((env, name)) = &registration.environment else { return Ok(()) };
        let paths = relative().environment(&registration.project.1, name);
        // The server writes the links `run` and `deploy/current`, and its records, into its own directories only.
        self.make(paths.path(), User::Server, 0o755)?;
        self.make(paths.deploy(), User::Server, 0o755)?;
        // These directories contain code, values of variables and output of processes, so others cannot read them.
        for path in [paths.releases(), paths.archives(), paths.deployments(), paths.log()] {
            self.make(path, User::Server, 0o750)?;
        }
        self.make(paths.source(), User::Git, 0o755)?;
        self.make(paths.cache(), User::Build(*env), 0o755)?;
        self.make(paths.data(), User::Run(*env), 0o700)?;
        self.make_scratch(&paths.build(), User::Build(*env))?;
        self.make(paths.path().join("slots"), User::Keeper, 0o755)?;
        for slot in Slot::ALL {
            self.make_scratch(&paths.slot(slot), User::Run(*env))?;
        }
        Ok(())
    }

    /// Creates the directories of a scratch layer: `upper` for changed files, and `work` for the kernel.
    pub fn make_scratch(&self, path: &Path, user: User) -> io::Result<()> {
        self.make(path, User::Keeper, 0o755)?;
        self.make(path.join("upper"), user, 0o755)?;
        self.make(path.join("work"), User::Keeper, 0o700)
    }

    /// Opens the directories of a scratch layer. The mount uses the descriptors, so a later rename cannot redirect it.
    pub fn open_scratch(&self, path: &Path, worker: Identity) -> io::Result<Scratch> {
        let scratch = self.open(path)?;
        let upper = beneath(&scratch, Path::new("upper"))?;
        let found = fstat(&upper)?;
        if found.st_uid != worker.uid {
            let text = format!("the owner of {}/upper is user {} (expected user {})", path.display(), found.st_uid, worker.uid);
            return Err(io::Error::other(text));
        }
        Ok(Scratch { upper, work: beneath(&scratch, Path::new("work"))? })
    }

    /// Empties a directory that only the keeper can write.
    pub fn clear_own(&self, directory: &OwnedFd) -> io::Result<()> {
        let found = fstat(directory)?;
        if found.st_uid != self.users.identity(User::Keeper).uid || found.st_mode & 0o077 != 0 {
            return Err(io::Error::other("another user can access a directory of the keeper"));
        }
        for entry in fs::read_dir(Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()))? {
            let path = entry?.path();
            // The kernel creates directories with mode 000, which only root can enter.
            let _ = fs::set_permissions(&path, fs::Permissions::from_mode(0o700));
            if path.is_dir() { fs::remove_dir_all(&path)? } else { fs::remove_file(&path)? }
        }
        Ok(())
    }

    /// Moves a directory to the trash by one rename; `None` if it does not exist.
    pub fn discard(&mut self, path: &Path, env: EnvId) -> io::Result<Option<Discarded>> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::INVAL.into()) };
        let parent = match self.open(parent) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let trash = self.open("trash")?;
        loop {
            self.discarded += 1;
            let discarded = Discarded { name: format!("{}.{}", env.0, self.discarded), env };
            match mkdirat(&trash, &discarded.name, Mode::from_raw_mode(0o700)) {
                Err(Errno::EXIST) => continue,
                other => other?,
            }
            // The rename replaces an empty directory of the keeper and can therefore not replace anything else.
            match renameat(&parent, name, &trash, &discarded.name) {
                Ok(()) => return Ok(Some(discarded)),
                Err(error) => {
                    unlinkat(&trash, &discarded.name, AtFlags::REMOVEDIR)?;
                    return if error == Errno::NOENT { Ok(None) } else { Err(error.into()) };
                }
            }
        }
    }

    /// Renames a directory within its parent; fails if the new name exists.
    pub fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (Some(parent), Some(from), Some(to)) = (from.parent(), from.file_name(), to.file_name()) else {
            return Err(Errno::INVAL.into());
        };
        let parent = self.open(parent)?;
        Ok(renameat_with(&parent, from, &parent, to, RenameFlags::NOREPLACE)?)
    }

    /// Lists the trash.
    pub fn all_discarded(&self) -> io::Result<Vec<Discarded>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(self.path.join("trash"))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if let Some(env) = name.split_once('.').and_then(|(env, _)| env.parse().ok()) {
                all.push(Discarded { name, env: EnvId(env) });
            }
        }
        Ok(all)
    }

    /// Removes a discarded directory that its owners have emptied, with the keeper's own scratch directories in it.
    pub fn remove_discarded(&self, discarded: &Discarded) -> io::Result<()> {
        let path = Path::new("trash").join(&discarded.name);
        let directory = self.open(&path)?;
        for scratch in ["", "build", "slots/blue", "slots/green"] {
            // The keeper removes only directories that it has created, and only empty ones.
            if let Ok(scratch) =
                if scratch.is_empty() { Ok(directory.try_clone()?) } else { beneath(&directory, Path::new(scratch)) }
            {
                if let Ok(work) = beneath(&scratch, Path::new("work")) {
                    let _ = self.clear_own(&work);
                }
                let _ = unlinkat(&scratch, "work", AtFlags::REMOVEDIR);
                let _ = unlinkat(&scratch, "upper", AtFlags::REMOVEDIR);
            }
        }
        for name in ["slots/blue", "slots/green", "slots", "build", "git"] {
            let _ = unlinkat(&directory, name, AtFlags::REMOVEDIR);
        }
        Ok(unlinkat(self.open("trash")?, &discarded.name, AtFlags::REMOVEDIR)?)
    }
}

/// Fails if another user can write to the root, because that user could then rename the directories in it.
fn safe_root(path: &Path, root: &OwnedFd, users: Users) -> io::Result<()> {
    let (found, own) = (fstat(root)?, users.identity(User::Keeper).uid);
    let refused = |path: &Path, why: String| Err(io::Error::other(format!("{}: {why}", path.display())));
    if found.st_uid != own {
        let hint = "hint: change the owner, or choose another --root";
        return refused(path, format!("its owner is user {} (expected user {own}, who starts larder); {hint}", found.st_uid));
    }
    if found.st_mode & 0o022 != 0 {
        return refused(
            path,
            format!("other users can write to it (mode {:04o}); hint: chmod 755 {}", found.st_mode & 0o7777, path.display()),
        );
    }
    if !users.system() {
        return Ok(());
    }
    if found.st_mode & 0o005 != 0o005 {
        return refused(path, format!("larder's own users cannot enter it; hint: chmod 755 {}", path.display()));
    }
    // A directory above the root's real path may belong to another trusted user, for example an operator, so this is only a warning.
    for above in fs::canonicalize(path)?.ancestors().skip(1) {
        let found = fs::metadata(above)?;
        let sticky = found.mode() & 0o1000 != 0;
        if found.uid() != 0 || (found.mode() & 0o022 != 0 && !sticky) {
            let path = above.display();
            tracing::warn!(%path, owner = found.uid(), "users who can write to this directory can replace larder's root");
        }
    }
    Ok(())
}

/// Unpacks embedded files, so that a partly written directory is never used. Compares the files of an existing directory, because two
/// builds of one version can embed different files.
fn unpack_lib(root: &Path, files: &[LibFile]) -> io::Result<()> {
    let target = root.join(relative().lib());
    let same = |file: &LibFile| fs::read(target.join(&file.path)).is_ok_and(|bytes| bytes == file.bytes);
    if files.iter().all(same) {
        return Ok(());
    }
    let fresh = root.join("lib").join(format!(".new-{}", std::process::id()));
    let _ = fs::remove_dir_all(&fresh);
    let mut directories = fs::DirBuilder::new();
    directories.recursive(true).mode(0o755);
    directories.create(&fresh)?;
    for LibFile { path, bytes, executable } in files {
        let path = fresh.join(path);
        directories.create(path.parent().unwrap_or(&fresh))?;
        let mode = if *executable { 0o555 } else { 0o444 };
        let mut file = File::options().write(true).create_new(true).mode(mode).open(&path)?;
        file.write_all(bytes)?;
        file.sync_all()?;
    }
    // After an interruption here, the next start finds files missing and unpacks again.
    if target.exists() {
        fs::remove_dir_all(&target)?;
    }
    fs::rename(&fresh, &target)
}

/// Opens a directory below `parent` without following any symlink.
pub fn beneath(parent: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(openat2(parent, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), how)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embedded_files_replace_those_of_another_build() {
        let root = tempfile::tempdir().unwrap();
        let lib = root.path().join(relative().lib());
        let file = |path: &str, bytes, executable| LibFile { path: path.into(), bytes, executable };
        unpack_lib(root.path(), &[file("hooks/a", b"one", true), file("b/c/d", b"two", false)]).unwrap();
        assert_eq!(fs::read(lib.join("b/c/d")).unwrap(), b"two");
        assert_eq!(fs::metadata(lib.join("hooks/a")).unwrap().permissions().mode() & 0o777, 0o555);
        let before = fs::metadata(&lib).unwrap().modified().unwrap();
        unpack_lib(root.path(), &[file("hooks/a", b"one", true)]).unwrap();
        assert_eq!(fs::metadata(&lib).unwrap().modified().unwrap(), before, "the same files stay");
        unpack_lib(root.path(), &[file("hooks/a", b"new", true)]).unwrap();
        assert_eq!(fs::read(lib.join("hooks/a")).unwrap(), b"new");
        assert!(!lib.join("b").exists(), "files that are no longer embedded are removed");
        assert_eq!(fs::read_dir(root.path().join("lib")).unwrap().count(), 1, "no partly written directory is left");
    }
}
