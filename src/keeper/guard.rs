//! The first process of a namespace: stands between the keeper and the program, as the same user as the program.
//!
//! It collects orphans, passes stop signals on to all, reports how the program ended, and takes everything else with it when it
//! goes: its end is the end of the namespace. Where there is no namespace it is the reaper of all that the program starts.

use std::{
    ffi::CString,
    fs, io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    pipe::{PipeFlags, pipe_with},
    process::{DumpableBehavior, Signal, set_dumpable_behavior, set_parent_process_death_signal, setsid},
};

use super::{
    spawn::Note,
    sys::{self, Forked, Waited},
};
use crate::host::launch::wire;

/// The keeper's word to start. Every other word is the number of a signal to pass on.
pub const GO: u8 = 0;
/// The keeper's word to end everything.
pub const END: u8 = 9;

/// Starts the program and stays; returns only where it cannot be started. `control` is the number of the control socket.
pub fn run(control: RawFd, program: BorrowedFd<'_>, argv: &[CString], environment: &[CString]) -> io::Error {
    let start = || -> io::Result<(i32, OwnedFd, OwnedFd)> {
        // The program runs as the same user, but must not be able to look into this process.
        set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
        let signals = sys::signal_descriptor(&[libc::SIGCHLD])?;
        let (failed, failure) = pipe_with(PipeFlags::CLOEXEC)?;
        match sys::fork(0)? {
            Forked::Child => {
                sys::reset_signals();
                let _ = set_parent_process_death_signal(Some(Signal::KILL));
                let _ = setsid();
                let error = sys::exec(program, argv, environment);
                let _ = rustix::io::write(&failure, &error.raw_os_error().unwrap_or(0).to_ne_bytes());
                sys::exit_now(127)
            }
            Forked::Parent { pid, .. } => {
                drop(failure);
                Ok((pid, signals, failed))
            }
        }
    };
    let (program, signals, failed) = match start() {
        Ok(started) => started,
        Err(error) => return error,
    };
    let mut code = [0; 4];
    if rustix::io::read(&failed, &mut code).is_ok_and(|length| length == code.len()) {
        return io::Error::from_raw_os_error(i32::from_ne_bytes(code));
    }
    // Nothing of the program's may stay open here: whoever reads its output must see its end.
    if let Err(error) = sys::arrange(&[control, signals.as_raw_fd()], 0) {
        return error;
    }
    note_on(0, &Note::Started);
    watch(program)
}

/// Descriptor 0 is the control socket, 1 tells of ended children.
fn watch(program: i32) -> ! {
    let (control, signals) = (sys::arranged(0), sys::arranged(1));
    // The first process of a namespace takes all others with it, by the kernel's rules.
    let namespace = std::process::id() == 1;
    let (mut ended, mut stopping) = (None, false);
    loop {
        let mut ready = [PollFd::new(&control, PollFlags::IN), PollFd::new(&signals, PollFlags::IN)];
        let _ = poll(&mut ready, None);
        let asked = ready.first().is_some_and(|ready| !ready.revents().is_empty());
        let mut buffer = [0; 128];
        while rustix::io::read(signals, &mut buffer).is_ok() {}
        let left = loop {
            match sys::wait_any(false) {
                Waited::Ended(pid, status) if pid == program => ended = Some(sys::status_parts(status)),
                Waited::Ended(..) => {}
                Waited::Running => break true,
                Waited::Nobody => break false,
            }
        };
        // A program that was asked to end may have left others that still finish their work, such as a server below a shell.
        if ended.is_some() && !(stopping && left) {
            break;
        }
        match asked.then(|| word(0)) {
            None | Some(Some(GO)) => {}
            // Also when the keeper has gone.
            Some(None | Some(END)) => {
                ended.get_or_insert((None, Some(libc::SIGKILL)));
                break;
            }
            Some(Some(signal)) => {
                stopping = true;
                // To all of the namespace but this process; without one to the program's group.
                sys::signal(if namespace { -1 } else { -program }, signal.into());
            }
        }
    }
    if !namespace {
        end_descendants();
    }
    let (code, signal) = ended.unwrap_or_default();
    note_on(0, &Note::Ended(code, signal));
    sys::exit_now(code.unwrap_or(125))
}

/// Without a namespace: ends all children until no more turn up. What they leave behind becomes ours, as their reaper.
fn end_descendants() {
    let own = format!("/proc/self/task/{}/children", std::process::id());
    loop {
        let children = fs::read_to_string(&own).unwrap_or_default();
        for pid in children.split_whitespace().filter_map(|pid| pid.parse().ok()) {
            sys::signal(pid, libc::SIGKILL);
        }
        if matches!(sys::wait_any(true), Waited::Nobody) {
            return;
        }
    }
}

/// The keeper's next word; none once it has gone.
pub fn word(control: RawFd) -> Option<u8> {
    let control = sys::arranged(control);
    let mut word = [0; 1];
    let mut ready = [PollFd::new(&control, PollFlags::IN)];
    let _ = poll(&mut ready, None);
    match rustix::io::read(control, &mut word) {
        Ok(1) => word.first().copied(),
        _ => None,
    }
}

/// Tells the keeper.
pub fn note_on(control: RawFd, note: &Note) {
    if let Ok(bytes) = postcard::to_stdvec(note) {
        let _ = wire::send(sys::arranged(control), &bytes, &[]);
    }
}
