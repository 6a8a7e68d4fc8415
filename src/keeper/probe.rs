//! Tries operations in a child process, so that an operation that fails half-way leaves no trace in the keeper.

use std::{
    fs,
    io::{self, Read},
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use rustix::{
    pipe::{PipeFlags, pipe_with},
    process::{Signal, WaitId, WaitIdOptions, set_parent_process_death_signal, waitid},
};

use super::{
    config::Config,
    sandbox::{Base, View},
    spawn::{NAMESPACES, drop_privileges},
    sys::{self, Forked},
    users::{Identity, User, Users},
};

/// Limit of an error message of a child, in bytes.
const MAX_TEXT: u64 = 4096;

/// Tries to enter the view that every worker gets, without binds of its own. In containers that cover parts of
/// `/proc`, all other mounts succeed, but the mount of `/proc` fails.
pub fn view(base: &Base, config: &Config) -> io::Result<()> {
    let view = View {
        base: base.clone(),
        root: config.root.clone(),
        binds: Vec::new(),
        worker: Identity { uid: 0, gid: 0 },
        binary: config.exe.clone(),
        temporary: config.temporary,
    };
    run(NAMESPACES, || view.enter())
}

/// Returns the first directory above `root` that the server's user cannot enter, with its mode. Creates nothing.
///
/// A child process tries to enter each directory as that user, so that groups and access control lists are taken into account.
pub fn closed_ancestor(root: &Path, users: Users) -> io::Result<Option<(PathBuf, u32)>> {
    if !users.system() {
        return Ok(None);
    }
    let existing = root.ancestors().skip(1).find(|above| above.exists()).unwrap_or(Path::new("/"));
    let existing = fs::canonicalize(existing)?;
    let mut above: Vec<_> = existing.ancestors().collect();
    above.reverse();
    for directory in above {
        let tried = run(0, || {
            drop_privileges(Some(users.identity(User::Server)))?;
            // Looking up `.` needs the permission to enter the directory itself.
            fs::symlink_metadata(directory.join(".")).map(drop)
        });
        if tried.is_err() {
            return Ok(Some((directory.to_owned(), fs::metadata(directory)?.mode() & 0o7777)));
        }
    }
    Ok(None)
}

/// Performs `act` in a child in new `namespaces` (`CLONE_NEW*`, or 0); returns its result.
pub fn run(namespaces: i32, act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    match sys::fork(namespaces)? {
        Forked::Child => {
            let _ = set_parent_process_death_signal(Some(Signal::KILL));
            if let Err(error) = act() {
                let _ = rustix::io::write(&write, error.to_string().as_bytes());
                sys::exit_now(1);
            }
            sys::exit_now(0)
        }
        Forked::Parent { pidfd, .. } => {
            drop(write);
            let mut text = String::new();
            std::fs::File::from(read).take(MAX_TEXT).read_to_string(&mut text)?;
            let status = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)?;
            match status.and_then(|status| status.exit_status()) {
                Some(0) => Ok(()),
                _ if text.is_empty() => Err(io::Error::other("the child process that tried it was killed")),
                _ => Err(io::Error::other(text)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_in_child_is_returned_with_its_cause() {
        // Forking needs a process with one thread; the children of this test allocate nearly nothing.
        assert!(run(0, || Ok(())).is_ok());
        let refused = run(0, || Err(io::ErrorKind::PermissionDenied.into())).unwrap_err();
        assert_eq!(refused.to_string(), "permission denied");
        assert!(run(0, || sys::exit_now(3)).unwrap_err().to_string().contains("was killed"));
    }
}
