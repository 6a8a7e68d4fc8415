//! The cgroup warmer: a helper that makes moves of processes into control groups fast.
//!
//! Before such a move, the kernel waits for an RCU grace period of 10 to 20 ms, unless another move has just waited for a grace period.
//! While processes are being started, the helper therefore moves itself into its own group every few milliseconds. Otherwise the helper
//! sleeps. `benches/README.md` of the repository has the figures.

use std::{
    io::Write,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair},
    process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, set_parent_process_death_signal, setsid, waitid},
};

use super::{
    cgroup::ControlGroup,
    sys::{self, Forked},
    user::{UnixUser, drop_privileges},
};

/// The interval of moves, shorter than the shortest grace period.
const INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 8_000_000 };
/// The time for which the helper continues its moves after the last start of a process.
const LINGER: Duration = Duration::from_millis(100);

/// The handle of the helper, which exits with this process. Without the helper, processes start more slowly, and nothing else changes.
#[derive(Debug)]
pub struct CgroupWarmer {
    control: Option<OwnedFd>,
    process: Option<OwnedFd>,
    group: Option<ControlGroup>,
    /// The time of the last message to the helper, which limits the number of messages.
    woken: Option<Instant>,
}

impl CgroupWarmer {
    /// Starts the helper in `group`. If `group` is `None`, no helper is started. `user` should have no rights; `None` stands for the user
    /// of this process.
    pub fn start(group: Option<ControlGroup>, user: Option<UnixUser>) -> CgroupWarmer {
        let started = group.as_ref().and_then(|group| {
            let (control, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).ok()?;
            match sys::fork(0) {
                Ok(Forked::Child) => run(&theirs, group, user),
                Ok(Forked::Parent { pidfd, .. }) => Some((control, pidfd)),
                Err(_) => None,
            }
        });
        let (control, process) = started.unzip();
        CgroupWarmer { control, process, group, woken: None }
    }

    /// Wakes the helper. A caller wakes the helper before the caller starts processes.
    pub fn wake(&mut self) {
        let now = Instant::now();
        if self.woken.is_some_and(|woken| now.duration_since(woken) < LINGER / 2) {
            return;
        }
        self.woken = Some(now);
        if let Some(control) = &self.control
            && send(control, b"p", SendFlags::DONTWAIT | SendFlags::NOSIGNAL).is_err_and(|error| error != Errno::WOULDBLOCK)
        {
            self.control = None;
        }
    }
}

impl Drop for CgroupWarmer {
    fn drop(&mut self) {
        if let Some(process) = &self.process {
            let _ = pidfd_send_signal(process, Signal::KILL);
            let _ = waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED);
        }
        if let Some(group) = self.group.take() {
            group.discard();
        }
    }
}

/// Runs the helper until the supervisor exits.
fn run(control: &OwnedFd, group: &ControlGroup, user: Option<UnixUser>) -> ! {
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    sys::reset_signals();
    let _ = setsid();
    let Some(mut procs) = group.open_procs() else { sys::exit_now(0) };
    let (control, procs_number) = (control.as_raw_fd(), procs.as_raw_fd());
    // All other descriptors of the supervisor must be closed in this process.
    if sys::arrange(&[control, procs_number], 2).is_err() {
        sys::exit_now(0);
    }
    std::mem::forget(procs);
    // `cgroup.procs` stays writable without privileges, because the kernel checks the rights of the process that opened the file. Older
    // kernels check the rights of the writer. With such a kernel, the first write fails, the helper exits, and starts are slower.
    if drop_privileges(user).is_err() {
        sys::exit_now(0);
    }
    procs = sys::arranged(1).try_clone_to_owned().map_or_else(|_| sys::exit_now(0), Into::into);
    let control = sys::arranged(0);
    let mut until: Option<Instant> = None;
    loop {
        let active = until.is_some_and(|until| until > Instant::now());
        let mut ready = [PollFd::new(&control, PollFlags::IN)];
        let woken = poll(&mut ready, active.then_some(&INTERVAL)).is_ok_and(|count| count > 0);
        if woken {
            let mut byte = [0; 1];
            match rustix::io::read(control, &mut byte) {
                Ok(1) => until = Some(Instant::now() + LINGER),
                _ => sys::exit_now(0),
            }
        }
        // In `cgroup.procs`, the id 0 stands for the writing process.
        if (woken || active) && procs.write_all(b"0").is_err() {
            sys::exit_now(0);
        }
    }
}
