//! Namespaces: the supervisor's own mount namespace, and user namespaces that map owners of files.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    thread,
    time::Duration,
};

use rustix::{
    process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, set_parent_process_death_signal, waitid},
    thread::UnshareFlags,
};

use super::{
    probe,
    sys::{self, Forked},
    user::UnixUser,
};

/// The namespaces of a process that has its own view.
pub(crate) const NAMESPACES: i32 = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;

/// Enters a mount namespace for all later mounts. If `own_user` is true, also enters a user namespace that maps only the current user.
/// A process without root rights needs this user namespace.
///
/// Some kernels create the user namespace and then refuse its map. A process cannot leave a namespace again, so a child process first
/// tries to enter the namespaces.
pub fn enter_namespace(own_user: bool) -> io::Result<()> {
    probe::in_child(0, || enter(own_user))?;
    enter(own_user)
}

fn enter(own_user: bool) -> io::Result<()> {
    let named = |name: &str, error: io::Error| io::Error::new(error.kind(), format!("{name}: {error}"));
    let UnixUser { uid, gid } = UnixUser::current();
    let flags = if own_user { UnshareFlags::NEWNS | UnshareFlags::NEWUSER } else { UnshareFlags::NEWNS };
    sys::unshare(flags).map_err(|error| named("unshare", error))?;
    if own_user {
        let write = |file: &str, text: String| fs::write(file, text).map_err(|error| named(file, error));
        write("/proc/self/setgroups", "deny".into())?;
        write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
        write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;
    }
    Ok(())
}

/// Creates a user namespace that maps the owner `from` to the owner `to`. In a mount with this namespace, the files of `from` appear as files
/// of `to`.
pub(crate) fn make_idmap(from: UnixUser, to: UnixUser) -> io::Result<OwnedFd> {
    match sys::fork(libc::CLONE_NEWUSER)? {
        Forked::Child => loop {
            // The parent kills this process as soon as the namespace is open.
            let _ = set_parent_process_death_signal(Some(Signal::KILL));
            thread::sleep(Duration::from_secs(1));
        },
        Forked::Parent { pid, pidfd } => {
            let process = Path::new("/proc").join(pid.to_string());
            let namespace = fs::write(process.join("uid_map"), format!("{} {} 1", from.uid, to.uid))
                .and_then(|()| fs::write(process.join("gid_map"), format!("{} {} 1", from.gid, to.gid)))
                .and_then(|()| fs::File::open(process.join("ns/user")));
            pidfd_send_signal(&pidfd, Signal::KILL)?;
            waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)?;
            namespace.map(OwnedFd::from)
        }
    }
}
