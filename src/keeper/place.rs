//! The directories below the root: made once with their owners, put aside in one step, never walked.
//!
//! Every path goes through [`Places::open`], which follows no link and does not leave the root, so that a server or a project's
//! user that rearranges its own directories cannot make the keeper touch anything else.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
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
    LibFile,
    users::{Identity, User, Users},
};
use crate::{
    host::{launch::Registration, root::Root},
    model::{EnvId, Slot},
};

/// Paths relative to the root.
pub fn relative() -> Root {
    Root::new("")
}

/// The root directory, and who owns what in it.
#[derive(Debug)]
pub struct Places {
    path: PathBuf,
    root: OwnedFd,
    users: Users,
    /// For names of what was put aside.
    aside: u64,
}

/// Something put aside, to be deleted by its owners.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aside {
    /// Its name in `trash/`.
    pub name: String,
    /// The environment whose users own it.
    pub env: EnvId,
}

impl Places {
    /// Opens the root and makes what every root has.
    pub fn open_root(path: &Path, users: Users, lib: &[LibFile]) -> io::Result<Places> {
        fs::create_dir_all(path)?;
        let root =
            openat2(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::empty())?;
        let found = fstat(&root)?;
        // Whoever else can write here could put another directory in the place of each of those below.
        if users.system() && (found.st_uid != users.identity(User::Keeper).uid || found.st_mode & 0o022 != 0) {
            return Err(io::Error::other(format!(
                "others than root can write in {0}; if that is not on purpose: chown root {0} && chmod go-w {0}",
                path.display()
            )));
        }
        let places = Places { path: path.to_owned(), root, users, aside: 0 };
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
            places.make(name, user, mode)?;
        }
        let hooks = Identity { gid: users.identity(User::Git).gid, uid: users.identity(User::Server).uid };
        // The socket in it takes over the group, so that the git user and nobody else can reach it.
        places.make_as("hooks", hooks, 0o2750)?;
        unpack_lib(path, lib)?;
        Ok(places)
    }

    /// A directory below the root.
    pub fn open(&self, path: impl AsRef<Path>) -> io::Result<OwnedFd> {
        beneath(&self.root, path.as_ref())
    }

    /// Makes a directory whose parent is there, with its owner; leaves one that is there already and belongs to the right user.
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
        // Just made, or the power was cut before it got its owner.
        if found.st_uid != self.users.identity(User::Keeper).uid && found.st_uid != owner.uid {
            let text = format!("it belongs to user {}, not to user {}", found.st_uid, owner.uid);
            return Err(failed(io::Error::other(text)));
        }
        let (uid, gid) = (Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)));
        if self.users.system() {
            chownat(&directory, "", uid, gid, AtFlags::EMPTY_PATH).map_err(|error| failed(error.into()))?;
        }
        fchmod(&directory, Mode::from_raw_mode(mode)).map_err(|error| failed(error.into()))
    }

    /// The directories of a project, and of an environment.
    pub fn register(&self, registration: &Registration) -> io::Result<()> {
        let project = relative().project(&registration.project.1);
        self.make(&project, User::Keeper, 0o755)?;
        self.make(project.join("git"), User::Git, 0o700)?;
        let Some((env, name)) = &registration.environment else { return Ok(()) };
        let paths = relative().environment(&registration.project.1, name);
        // The server writes the links `run` and `deploy/current`, and the records; it enters nothing else.
        self.make(paths.path(), User::Server, 0o755)?;
        for path in [paths.deploy(), paths.releases(), paths.archives(), paths.deployments(), paths.log()] {
            self.make(path, User::Server, 0o755)?;
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

    /// The two directories of an overlay's scratch layer: what was changed, and the kernel's own.
    pub fn make_scratch(&self, path: &Path, user: User) -> io::Result<()> {
        self.make(path, User::Keeper, 0o755)?;
        self.make(path.join("upper"), user, 0o755)?;
        self.make(path.join("work"), User::Keeper, 0o700)
    }

    /// Empties the kernel's own directory of an overlay; nobody but the keeper can reach it.
    pub fn clear_work(&self, scratch: &Path) -> io::Result<()> {
        self.clear_own(&beneath(self.open(scratch)?, Path::new("work"))?)
    }

    /// Deletes what is in a directory that only the keeper can write.
    fn clear_own(&self, directory: &OwnedFd) -> io::Result<()> {
        let found = fstat(directory)?;
        if found.st_uid != self.users.identity(User::Keeper).uid || found.st_mode & 0o077 != 0 {
            return Err(io::Error::other("a directory that should be the keeper's alone is not"));
        }
        for entry in fs::read_dir(Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()))? {
            let path = entry?.path();
            // The kernel makes some with mode 000, which stops those who are not root.
            let _ = fs::set_permissions(&path, fs::Permissions::from_mode(0o700));
            if path.is_dir() { fs::remove_dir_all(&path)? } else { fs::remove_file(&path)? }
        }
        Ok(())
    }

    /// Moves a directory to the trash in one step; `None` where it is not there.
    pub fn put_aside(&mut self, path: &Path, env: EnvId) -> io::Result<Option<Aside>> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::INVAL.into()) };
        let parent = match self.open(parent) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let trash = self.open("trash")?;
        loop {
            self.aside += 1;
            let aside = Aside { name: format!("{}.{}", env.0, self.aside), env };
            match mkdirat(&trash, &aside.name, Mode::from_raw_mode(0o700)) {
                Err(Errno::EXIST) => continue,
                other => other?,
            }
            // Onto an empty directory of our own, so that nothing else is ever replaced.
            match renameat(&parent, name, &trash, &aside.name) {
                Ok(()) => return Ok(Some(aside)),
                Err(error) => {
                    unlinkat(&trash, &aside.name, AtFlags::REMOVEDIR)?;
                    return if error == Errno::NOENT { Ok(None) } else { Err(error.into()) };
                }
            }
        }
    }

    /// Gives a directory another name in the same directory, where nothing has that name.
    pub fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (Some(parent), Some(from), Some(to)) = (from.parent(), from.file_name(), to.file_name()) else {
            return Err(Errno::INVAL.into());
        };
        let parent = self.open(parent)?;
        Ok(renameat_with(&parent, from, &parent, to, RenameFlags::NOREPLACE)?)
    }

    /// What is in the trash.
    pub fn all_aside(&self) -> io::Result<Vec<Aside>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(self.path.join("trash"))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if let Some(env) = name.split_once('.').and_then(|(env, _)| env.parse().ok()) {
                all.push(Aside { name, env: EnvId(env) });
            }
        }
        Ok(all)
    }

    /// Removes what its owners have emptied; the keeper's own scratch layers in it too.
    pub fn remove_aside(&self, aside: &Aside) -> io::Result<()> {
        let path = Path::new("trash").join(&aside.name);
        let directory = self.open(&path)?;
        for scratch in ["", "build", "slots/blue", "slots/green"] {
            // Only directories that the keeper made are removed by it, and only empty ones.
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
        Ok(unlinkat(self.open("trash")?, &aside.name, AtFlags::REMOVEDIR)?)
    }
}

/// Writes what the binary brings along, so that a half-written one is never used. What is there already stays if it is the same: two
/// builds of one version can bring along different files.
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
    // Interrupted here, the next start finds files missing and comes here again.
    if target.exists() {
        fs::remove_dir_all(&target)?;
    }
    fs::rename(&fresh, &target)
}

/// A directory below `parent`, without following any link.
pub fn beneath(parent: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(openat2(parent, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), how)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_binary_brings_along_replaces_what_another_build_left() {
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
        assert!(!lib.join("b").exists(), "what it no longer has is gone");
        assert_eq!(fs::read_dir(root.path().join("lib")).unwrap().count(), 1, "nothing half-written is left");
    }
}
