//! Keeps the kernel ready to move processes into their groups.
//!
//! Before such a move the kernel waits until every processor has taken notice (an RCU grace period, 10 to 20 ms), but not if it has
//! just done so for another move. A deployment starts half a dozen processes one after the other. So a small helper of the keeper
//! moves itself to where it already is, every few milliseconds, while processes are being started, and sleeps otherwise.

use std::{
    io::Write,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
    process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, set_parent_process_death_signal, setsid, waitid},
};

use super::{
    cgroup::Group,
    spawn,
    sys::{self, Forked},
    users::{User, Users},
};
use crate::host::launch::wire;

/// Less than the shortest grace period.
const BEAT: Timespec = Timespec { tv_sec: 0, tv_nsec: 8_000_000 };
/// How long it goes on after the last start.
const AFTERWARDS: Duration = Duration::from_millis(100);

/// The helper, as the keeper holds it. It ends with the keeper; without it starts are slower and nothing else.
#[derive(Debug)]
pub struct Pace {
    control: Option<OwnedFd>,
    process: Option<OwnedFd>,
    group: Option<Group>,
    /// When it was last told, so that it is not told more often than it needs.
    told: Option<Instant>,
}

impl Pace {
    /// Starts the helper in `group`, as a user with no rights at all; none where there are no groups.
    pub fn start(group: Option<Group>, users: Users) -> Pace {
        let started = group.as_ref().and_then(|group| {
            let (control, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).ok()?;
            match sys::fork(0) {
                Ok(Forked::Child) => beat(&theirs, group, users),
                Ok(Forked::Parent { pidfd, .. }) => Some((control, pidfd)),
                Err(_) => None,
            }
        });
        let (control, process) = started.unzip();
        Pace { control, process, group, told: None }
    }

    /// Processes are being started.
    pub fn tell(&mut self) {
        let now = Instant::now();
        if self.told.is_some_and(|told| now.duration_since(told) < AFTERWARDS / 2) {
            return;
        }
        self.told = Some(now);
        if let Some(control) = &self.control
            && wire::send(control, b"p", &[]).is_err_and(|error| error.kind() != std::io::ErrorKind::WouldBlock)
        {
            self.control = None;
        }
    }
}

impl Drop for Pace {
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

/// The helper's life; ends with its keeper.
fn beat(control: &OwnedFd, group: &Group, users: Users) -> ! {
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    sys::reset_signals();
    let _ = setsid();
    let Some(mut door) = group.door() else { sys::exit_now(0) };
    let (control, door_number) = (control.as_raw_fd(), door.as_raw_fd());
    // Nothing else of the keeper's may stay open here.
    if sys::arrange(&[control, door_number], 2).is_err() {
        sys::exit_now(0);
    }
    std::mem::forget(door);
    // The door stays open: who opened it is what counts. (Where the kernel sees that differently, starts are slower and nothing else.)
    if spawn::drop_privileges(users.system().then(|| users.identity(User::Helper))).is_err() {
        sys::exit_now(0);
    }
    door = sys::arranged(1).try_clone_to_owned().map_or_else(|_| sys::exit_now(0), Into::into);
    let control = sys::arranged(0);
    let mut until: Option<Instant> = None;
    loop {
        let beating = until.is_some_and(|until| until > Instant::now());
        let mut ready = [PollFd::new(&control, PollFlags::IN)];
        let told = poll(&mut ready, beating.then_some(&BEAT)).is_ok_and(|count| count > 0);
        if told {
            let mut word = [0; 1];
            match rustix::io::read(control, &mut word) {
                Ok(1) => until = Some(Instant::now() + AFTERWARDS),
                _ => sys::exit_now(0),
            }
        }
        // 0: the writer itself.
        if (told || beating) && door.write_all(b"0").is_err() {
            sys::exit_now(0);
        }
    }
}
