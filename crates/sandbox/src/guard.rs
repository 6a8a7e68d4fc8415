//! The guard: a process between the supervisor and the program. The guard runs as the user of the program. In a namespace, the guard is the
//! first process.
//!
//! The guard reaps orphans, forwards stop signals and reports the end of the program. When the guard exits, the kernel kills all processes
//! of the namespace. Without a namespace, the guard is the subreaper of all descendants of the program.

use std::{
    ffi::CString,
    fs, io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    net::{SendFlags, send},
    pipe::{PipeFlags, pipe_with},
    process::{
        DumpableBehavior, Signal, WaitOptions, WaitStatus, set_dumpable_behavior, set_parent_process_death_signal, setsid, wait,
    },
};
use serde::{Deserialize, Serialize};

use super::sys::{self, Forked};

/// The end of a process: an exit code or a signal. Both are `None` if the kernel does not report the end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessEnd {
    pub code: Option<i32>,
    pub signal: Option<i32>,
}

impl From<WaitStatus> for ProcessEnd {
    fn from(status: WaitStatus) -> ProcessEnd {
        ProcessEnd { code: status.exit_status(), signal: status.terminating_signal() }
    }
}

/// A control message of the guard to the supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub enum GuardEvent {
    /// The program could not be started.
    Failed(String),
    /// The program runs.
    Started,
    /// The program has exited.
    Ended(ProcessEnd),
}

/// The supervisor's command to start the program. Bytes other than `GO` and [`END`] are numbers of signals to forward.
pub const GO: u8 = 0;
/// The supervisor's command to kill the program and its descendants.
pub const END: u8 = 9;

/// Starts the program and guards it. Returns only if the program cannot be started or guarded. `control` is the number of the control
/// socket.
pub fn run(control: RawFd, program: BorrowedFd<'_>, argv: &[CString], environment: &[CString]) -> io::Error {
    let start = || -> io::Result<(i32, OwnedFd, OwnedFd)> {
        // The program runs as the user of this process, but must not be able to trace this process.
        set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
        let signals = sys::signal_descriptor(&[Signal::CHILD])?;
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
    // No descriptor of the program may stay open here, or readers of its output would never reach the end of the output.
    if let Err(error) = sys::arrange(&[control, signals.as_raw_fd()], 0) {
        return error;
    }
    send_on(0, &GuardEvent::Started);
    watch(program)
}

/// Guards the program until it exits. Descriptor 0 is the control socket; descriptor 1 is readable when a child has exited.
fn watch(program: i32) -> ! {
    let (control, signals) = (sys::arranged(0), sys::arranged(1));
    // The kernel kills all processes of a namespace when the first process of the namespace exits.
    let namespace = std::process::id() == 1;
    let (mut ended, mut stopping) = (None, false);
    loop {
        let mut ready = [PollFd::new(&control, PollFlags::IN), PollFd::new(&signals, PollFlags::IN)];
        let _ = poll(&mut ready, None);
        let asked = ready.first().is_some_and(|ready| !ready.revents().is_empty());
        let mut buffer = [0; 128];
        while rustix::io::read(signals, &mut buffer).is_ok() {}
        let left = loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if pid.as_raw_pid() == program => ended = Some(ProcessEnd::from(status)),
                Ok(Some(_)) | Err(Errno::INTR) => {}
                Ok(None) => break true,
                Err(_) => break false,
            }
        };
        // After a stop signal, the guard also waits for descendants. For example, a server finishes its work after its shell has exited.
        if ended.is_some() && !(stopping && left) {
            break;
        }
        match asked.then(|| command(0)) {
            None | Some(Some(GO)) => {}
            // A closed socket means that the supervisor has exited.
            Some(None | Some(END)) => {
                ended.get_or_insert(ProcessEnd { code: None, signal: Some(libc::SIGKILL) });
                break;
            }
            Some(Some(signal)) => {
                stopping = true;
                // With a namespace, signal all its processes except this process. Without a namespace, signal the program's process group.
                sys::signal(if namespace { -1 } else { -program }, signal.into());
            }
        }
    }
    if !namespace {
        end_descendants();
    }
    let end = ended.unwrap_or_default();
    send_on(0, &GuardEvent::Ended(end));
    sys::exit_now(end.code.unwrap_or(125))
}

/// Kills all descendants of a guard without a namespace. The guard is the subreaper of its descendants, so the children of a killed child
/// become children of the guard.
fn end_descendants() {
    let own = format!("/proc/self/task/{}/children", std::process::id());
    loop {
        let children = fs::read_to_string(&own).unwrap_or_default();
        for pid in children.split_whitespace().filter_map(|pid| pid.parse().ok()) {
            sys::signal(pid, libc::SIGKILL);
        }
        if matches!(wait(WaitOptions::empty()), Err(error) if error != Errno::INTR) {
            return;
        }
    }
}

/// Receives the supervisor's next command. Returns `None` if the supervisor has exited.
pub fn command(control: RawFd) -> Option<u8> {
    let control = sys::arranged(control);
    let mut byte = [0; 1];
    let mut ready = [PollFd::new(&control, PollFlags::IN)];
    let _ = poll(&mut ready, None);
    match rustix::io::read(control, &mut byte) {
        Ok(1) => byte.first().copied(),
        _ => None,
    }
}

/// Sends a control message to the supervisor.
pub fn send_on(control: RawFd, event: &GuardEvent) {
    if let Ok(bytes) = postcard::to_stdvec(event) {
        let _ = send(sys::arranged(control), &bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    }
}
