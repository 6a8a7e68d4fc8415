//! Asks the kernel what it allows by doing it in a child, so that what fails half-way leaves nothing behind here.

use std::{
    io::{self, Read},
    os::fd::AsFd,
};

use rustix::{
    pipe::{PipeFlags, pipe_with},
    process::{Signal, WaitId, WaitIdOptions, set_parent_process_death_signal, waitid},
};

use super::{
    Config,
    sandbox::{Base, View},
    spawn::NAMESPACES,
    sys::{self, Forked},
    users::Identity,
};

/// The longest explanation that is taken from a child.
const MAX_TEXT: u64 = 4096;

/// Does `act` in a child; gives what it says.
pub fn of(act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    within(0, act)
}

/// Makes the view that every worker gets, with nothing of its own in it. Where `/proc` is covered, as in many containers, all other
/// mounts can be had and this one cannot.
pub fn of_a_view(base: &Base, config: &Config) -> io::Result<()> {
    let view = View {
        base: base.clone(),
        root: config.root.clone(),
        binds: Vec::new(),
        worker: Identity { uid: 0, gid: 0 },
        binary: config.exe.clone(),
        temporary: config.temporary,
    };
    within(NAMESPACES, || view.enter())
}

fn within(namespaces: i32, act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let (said, say) = pipe_with(PipeFlags::CLOEXEC)?;
    match sys::fork(namespaces)? {
        Forked::Child => {
            let _ = set_parent_process_death_signal(Some(Signal::KILL));
            if let Err(error) = act() {
                let _ = rustix::io::write(&say, error.to_string().as_bytes());
                sys::exit_now(1);
            }
            sys::exit_now(0)
        }
        Forked::Parent { pidfd, .. } => {
            drop(say);
            let mut text = String::new();
            std::fs::File::from(said).take(MAX_TEXT).read_to_string(&mut text)?;
            let status = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)?;
            match status.and_then(|status| status.exit_status()) {
                Some(0) => Ok(()),
                _ if text.is_empty() => Err(io::Error::other("a child that tried it was ended")),
                _ => Err(io::Error::other(text)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_tells_why_it_could_not() {
        // Forking is for processes with one thread: what the child does here allocates next to nothing.
        assert!(of(|| Ok(())).is_ok());
        let refused = of(|| Err(io::ErrorKind::PermissionDenied.into())).unwrap_err();
        assert_eq!(refused.to_string(), "permission denied");
        assert!(of(|| sys::exit_now(3)).unwrap_err().to_string().contains("was ended"));
    }
}
