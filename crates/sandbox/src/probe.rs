//! Tries operations in a child process, so that an operation that fails half-way leaves no trace in the calling process.

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
    sys::{self, Forked},
    user::{UnixUser, drop_privileges},
};

/// The maximum size of an error message of a child, in bytes.
const MAX_TEXT: u64 = 4096;

/// Returns the first directory above `path` that `user` cannot enter, with its mode. Ignores directories that do not exist.
///
/// A child process tries to enter each directory as `user`, so that groups and access control lists are taken into account.
pub fn first_closed_ancestor(path: &Path, user: UnixUser) -> io::Result<Option<(PathBuf, u32)>> {
    let existing = path.ancestors().skip(1).find(|above| above.exists()).unwrap_or(Path::new("/"));
    let existing = fs::canonicalize(existing)?;
    let mut above: Vec<_> = existing.ancestors().collect();
    above.reverse();
    for directory in above {
        let tried = in_child(0, || {
            drop_privileges(Some(user))?;
            // Looking up `.` needs the permission to enter the directory itself.
            fs::symlink_metadata(directory.join(".")).map(drop)
        });
        if tried.is_err() {
            return Ok(Some((directory.to_owned(), fs::metadata(directory)?.mode() & 0o7777)));
        }
    }
    Ok(None)
}

/// Calls `act` in a child process in new `namespaces` (`CLONE_NEW*`, or 0). Returns the result of `act`.
pub(crate) fn in_child(namespaces: i32, act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
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
            fs::File::from(read).take(MAX_TEXT).read_to_string(&mut text)?;
            let status = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)?;
            match status.and_then(|status| status.exit_status()) {
                Some(0) => Ok(()),
                _ if text.is_empty() => Err(io::Error::other("the child process of the probe was killed")),
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
        // In a process with several threads, a forked child can deadlock in the allocator. These children allocate almost nothing.
        assert!(in_child(0, || Ok(())).is_ok());
        let refused = in_child(0, || Err(io::ErrorKind::PermissionDenied.into())).unwrap_err();
        assert_eq!(refused.to_string(), "permission denied");
        assert!(in_child(0, || sys::exit_now(3)).unwrap_err().to_string().contains("was killed"));
    }
}
