//! Tries operations in a child process, so that an operation that fails half-way leaves no trace in the calling process.

use std::{
    fs,
    io::{self, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    pipe::{PipeFlags, pipe_with},
    process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, set_parent_process_death_signal, waitid},
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
    ChildTask::start(namespaces, act)?.wait()
}

/// A function that runs in a child process. The child is killed when this process exits.
#[derive(Debug)]
pub(crate) struct ChildTask {
    pidfd: OwnedFd,
    /// The read end of the pipe for the error of the function.
    error: fs::File,
}

impl ChildTask {
    /// Calls `act` in a child process in new `namespaces`, and does not wait for its end.
    pub fn start(namespaces: i32, act: impl FnOnce() -> io::Result<()>) -> io::Result<ChildTask> {
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
            Forked::Parent { pidfd, .. } => Ok(ChildTask { pidfd, error: read.into() }),
        }
    }

    /// Waits for the end of the function, and returns its result.
    pub fn wait(self) -> io::Result<()> {
        let status = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED)?;
        let mut text = String::new();
        self.error.take(MAX_TEXT).read_to_string(&mut text)?;
        match status.and_then(|status| status.exit_status()) {
            Some(0) => Ok(()),
            _ if text.is_empty() => Err(io::Error::other("the child process was killed")),
            _ => Err(io::Error::other(text)),
        }
    }

    /// Returns true if the child process has exited, so that [`ChildTask::wait`] returns at once.
    pub fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !matches!(waitid(WaitId::PidFd(self.pidfd.as_fd()), options), Ok(None))
    }

    /// Kills the child process and waits for its end.
    pub fn kill(self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        let _ = self.wait();
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

    #[test]
    fn task_is_waited_for_after_its_end_or_killed() {
        let (wait, go) = std::io::pipe().unwrap();
        let until_go = || {
            let mut byte = [0];
            rustix::io::read(&wait, &mut byte)?;
            Err(io::ErrorKind::PermissionDenied.into())
        };
        let (task, killed) = (ChildTask::start(0, until_go).unwrap(), ChildTask::start(0, until_go).unwrap());
        assert!(!task.has_ended() && !killed.has_ended());
        killed.kill();
        rustix::io::write(&go, b"g").unwrap();
        let begun = std::time::Instant::now();
        while !task.has_ended() {
            assert!(begun.elapsed().as_secs() < 60, "the task does not end");
            std::thread::yield_now();
        }
        assert_eq!(task.wait().unwrap_err().to_string(), "permission denied");
    }
}
