//! Tries operations in a child process, so that an operation that fails half-way leaves no trace in the keeper.

use std::{
    io::{self, Read},
    os::fd::AsFd,
};

use rustix::{
    pipe::{PipeFlags, pipe_with},
    process::{Signal, WaitId, WaitIdOptions, set_parent_process_death_signal, waitid},
};

use super::{
    config::Config,
    sandbox::{Base, View},
    spawn::NAMESPACES,
    sys::{self, Forked},
    users::Identity,
};

/// Limit of an error message of a child, in bytes.
const MAX_TEXT: u64 = 4096;

/// Tries to enter the view that every worker gets, without binds of its own. Where `/proc` is covered, as in many containers, all
/// other mounts succeed and this one fails.
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
                _ if text.is_empty() => Err(io::Error::other("the child that tried it was killed")),
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
