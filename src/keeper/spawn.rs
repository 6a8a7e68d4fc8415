//! Starting a process: fork into its namespaces, build its view, give up every privilege, become the program.
//!
//! Between the keeper and the program stays a small first process. It collects orphans, passes SIGTERM on, reports how the
//! program ended, and takes everything else with it when it goes: its end is the end of the namespace.

use std::{
    ffi::{CString, OsString},
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::ffi::OsStringExt,
    },
    path::PathBuf,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
    pipe::{PipeFlags, pipe_with},
    process::{
        DumpableBehavior, Resource, Rlimit, Signal, chdir, set_child_subreaper, set_dumpable_behavior,
        set_parent_process_death_signal, setpriority_process, setrlimit, setsid, umask,
    },
    thread::{
        CapabilitySet, CapabilitySets, clear_ambient_capability_set, set_capabilities, set_no_new_privs, set_thread_groups,
        set_thread_res_gid, set_thread_res_uid, set_thread_uid,
    },
};
use serde::{Deserialize, Serialize};

use super::{
    cgroup::{Group, Limits},
    sandbox::View,
    sys::{self, Forked},
    users::Identity,
};
use crate::host::launch::wire;

/// Everything about a process that is to be started.
#[derive(Debug)]
pub struct Plan {
    /// The program's arguments, its name first.
    pub argv: Vec<OsString>,
    /// Its environment, all of it.
    pub environment: Vec<(OsString, OsString)>,
    /// Whom it runs as; `None` leaves that alone.
    pub identity: Option<Identity>,
    /// Its view; without one it sees what the keeper sees.
    pub view: Option<View>,
    /// Its working directory.
    pub directory: PathBuf,
    /// Its limits; none for the server.
    pub limits: Option<Limits>,
    /// Whether memory must be limited for each process because no group does it.
    pub limit_data: bool,
    /// Descriptors 0, 1, 2, ...
    pub descriptors: Vec<RawFd>,
    /// The program, open.
    pub program: RawFd,
    /// Whether a first process stays between; otherwise the program is the process itself.
    pub guarded: bool,
}

/// What the first process tells the keeper.
#[derive(Debug, Serialize, Deserialize)]
pub enum Note {
    /// The program could not be started.
    Failed(String),
    /// The program runs.
    Started,
    /// The program has ended: exit code, signal.
    Ended(Option<i32>, Option<i32>),
}

/// What the keeper tells the first process: start.
pub const GO: u8 = b'g';
/// What the keeper tells the first process: SIGTERM to the program.
pub const TERMINATE: u8 = b't';
/// What the keeper tells the first process: end everything.
pub const KILL: u8 = b'k';

/// A process, as the keeper holds it.
#[derive(Debug)]
pub struct Process {
    /// Readable when it has ended, and everything in its namespace with it.
    pub pidfd: OwnedFd,
    /// Notes come from here.
    pub control: OwnedFd,
    namespace: bool,
}

impl Process {
    /// Starts it, inside `group`.
    pub fn start(plan: &Plan, group: Option<&Group>) -> io::Result<Process> {
        let (control, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let namespaces = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
        match sys::fork(if plan.view.is_some() { namespaces } else { 0 })? {
            Forked::Child => child(plan, &theirs),
            Forked::Parent { pid, pidfd } => {
                if let Some(group) = group {
                    group.add(pid);
                }
                let process = Process { pidfd, control, namespace: plan.view.is_some() };
                process.tell(GO);
                Ok(process)
            }
        }
    }

    /// Its next note, if there is one.
    pub fn note(&self) -> Option<Note> {
        let mut buffer = [0; 4096];
        let (length, _) = wire::receive(&self.control, &mut buffer).ok()?;
        buffer.get(..length).filter(|bytes| !bytes.is_empty()).and_then(|bytes| postcard::from_bytes(bytes).ok())
    }

    /// Asks the program to end.
    pub fn terminate(&self) {
        self.tell(TERMINATE);
    }

    /// Ends it and everything that it started.
    pub fn kill(&self) {
        if self.namespace {
            let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        } else {
            self.tell(KILL);
        }
    }

    fn tell(&self, what: u8) {
        let _ = wire::send(&self.control, &[what], &[]);
    }
}

/// The new process, up to its program. Never returns: what the keeper's objects own must not be dropped here.
fn child(plan: &Plan, control: &OwnedFd) -> ! {
    let at = plan.descriptors.len();
    let error = match prepare(plan, control) {
        Ok((argv, environment)) => match (plan.guarded, sys::arranged(at as RawFd)) {
            (true, program) => guard(plan, program, &argv, &environment),
            (false, program) => sys::exec(program, &argv, &environment),
        },
        Err(error) => error,
    };
    // Wherever the control socket is by now.
    for number in [at as RawFd + 1, control.as_raw_fd()] {
        note_on(number, &Note::Failed(error.to_string()));
    }
    sys::exit_now(125)
}

type Strings = (Vec<CString>, Vec<CString>);

fn prepare(plan: &Plan, control: &OwnedFd) -> io::Result<Strings> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    sys::reset_signals();
    setsid()?;
    let argv = plan.argv.iter().map(|word| CString::new(word.clone().into_vec())).collect::<Result<Vec<_>, _>>()?;
    let join = |(name, value): &(OsString, OsString)| {
        let mut pair = name.clone();
        pair.push("=");
        pair.push(value);
        CString::new(pair.into_vec())
    };
    let environment = plan.environment.iter().map(join).collect::<Result<Vec<_>, _>>()?;
    // Not before the keeper has put this process into its group; and not at all without a keeper.
    if wait_for_word(control.as_raw_fd()) != Some(GO) {
        sys::exit_now(125);
    }
    let descriptors: Vec<RawFd> = plan.descriptors.iter().copied().chain([plan.program, control.as_raw_fd()]).collect();
    sys::arrange(&descriptors, plan.descriptors.len())?;
    let named = |what: &str, error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"));
    if let Some(limits) = &plan.limits {
        limit(limits, plan.limit_data).map_err(|error| named("set its limits", error))?;
    }
    umask(rustix::fs::Mode::from_raw_mode(0o022));
    if let Some(view) = &plan.view {
        view.enter().map_err(|error| named("make its view", error))?;
    } else if plan.guarded {
        set_child_subreaper(Some(rustix::process::getpid()))?;
    }
    chdir(&plan.directory).map_err(|error| named(&plan.directory.display().to_string(), error.into()))?;
    drop_privileges(plan.identity).map_err(|error| named("give up its privileges", error))?;
    // The kernel forgets this at every change of user.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    Ok((argv, environment))
}

fn limit(limits: &Limits, limit_data: bool) -> io::Result<()> {
    // From the system's point of view the keeper matters most and a build least.
    let _ = fs::write("/proc/self/oom_score_adj", if limits.background { "500" } else { "0" });
    let set = |resource, value| setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) });
    set(Resource::Core, 0)?;
    if let Some(file) = limits.file {
        set(Resource::Fsize, file)?;
    }
    if limit_data && let Some(memory) = limits.memory {
        set(Resource::Data, memory)?;
    }
    if limits.background {
        let _ = setpriority_process(None, 10);
        let _ = sys::idle_disk_priority();
    }
    Ok(())
}

fn drop_privileges(identity: Option<Identity>) -> io::Result<()> {
    use rustix::process::{Gid, Uid};
    sys::drop_bounding_set();
    if let Some(Identity { uid, gid }) = identity {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        set_thread_groups(&[])?;
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)?;
    }
    clear_ambient_capability_set()?;
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    set_no_new_privs(true)?;
    if identity.is_some_and(|identity| identity.uid != 0) && set_thread_uid(Uid::ROOT).is_ok() {
        return Err(io::Error::other("root can be had back"));
    }
    Ok(())
}

/// The first process: starts the program and waits for it.
fn guard(plan: &Plan, program: std::os::fd::BorrowedFd<'_>, argv: &[CString], environment: &[CString]) -> io::Error {
    let at = plan.descriptors.len() as RawFd + 1;
    let start = || -> io::Result<(i32, OwnedFd, OwnedFd)> {
        // The program runs as the same user, but must not be able to look into this process.
        set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
        let signals = sys::signal_descriptor(&[libc::SIGCHLD])?;
        let (failed, failure) = pipe_with(PipeFlags::CLOEXEC)?;
        match sys::fork(0)? {
            Forked::Child => {
                sys::reset_signals();
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
    if let Err(error) = sys::arrange(&[at, signals.as_raw_fd()], 0) {
        return error;
    }
    note_on(0, &Note::Started);
    watch(program, plan.view.is_some())
}

/// The first process's life: descriptor 0 is the control socket, 1 tells of ended children.
fn watch(program: i32, namespace: bool) -> ! {
    let mut ended = None;
    while ended.is_none() {
        let (control, signals) = (sys::arranged(0), sys::arranged(1));
        let mut ready = [PollFd::new(&control, PollFlags::IN), PollFd::new(&signals, PollFlags::IN)];
        let _ = poll(&mut ready, None);
        let asked = ready.first().is_some_and(|ready| !ready.revents().is_empty());
        let mut buffer = [0; 128];
        while rustix::io::read(signals, &mut buffer).is_ok() {}
        while let Some((pid, status)) = sys::wait_any(false) {
            if pid == program {
                ended = Some(sys::status_parts(status));
            }
        }
        if asked && ended.is_none() {
            match wait_for_word(0) {
                Some(TERMINATE) => sys::signal(program, libc::SIGTERM),
                // Also when the keeper has gone.
                Some(KILL) | None => ended = Some((None, Some(libc::SIGKILL))),
                Some(_) => {}
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
        if sys::wait_any(!children.is_empty()).is_none() {
            return;
        }
    }
}

fn wait_for_word(control: RawFd) -> Option<u8> {
    let control = sys::arranged(control);
    let mut word = [0; 1];
    let mut ready = [PollFd::new(&control, PollFlags::IN)];
    let _ = poll(&mut ready, None);
    match rustix::io::read(control, &mut word) {
        Ok(1) => word.first().copied(),
        _ => None,
    }
}

fn note_on(control: RawFd, note: &Note) {
    if let Ok(bytes) = postcard::to_stdvec(note) {
        let _ = wire::send(sys::arranged(control), &bytes, &[]);
    }
}
