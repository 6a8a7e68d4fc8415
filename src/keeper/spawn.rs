//! Starting a process: fork into its namespaces, build its view, give up every privilege, become the program.
//!
//! Between the keeper and the program stays a small first process, see [`guard`].

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
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
    process::{
        Resource, Rlimit, Signal, chdir, getrlimit, set_child_subreaper, set_parent_process_death_signal, setpriority_process,
        setrlimit, setsid, umask,
    },
    thread::{
        CapabilitySet, CapabilitySets, clear_ambient_capability_set, set_capabilities, set_no_new_privs, set_thread_groups,
        set_thread_res_gid, set_thread_res_uid, set_thread_uid,
    },
};
use serde::{Deserialize, Serialize};

use super::{
    cgroup::{Group, Limits},
    guard,
    sandbox::View,
    sys::{self, Forked},
    users::Identity,
};
use crate::{host::launch::wire, model::StopSignal};

/// What a process with a view of its own has of its own.
pub const NAMESPACES: i32 = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;

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
    /// Bytes of memory of each process, where no group limits them together.
    pub data: Option<u64>,
    /// Processes and threads of its user, where no group counts them.
    pub processes: Option<u64>,
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

/// What there is to hear of the first process.
#[derive(Debug)]
pub enum Heard {
    /// This.
    Note(Note),
    /// Nothing yet.
    Nothing,
    /// Nothing any more.
    End,
}

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
        match sys::fork(if plan.view.is_some() { NAMESPACES } else { 0 })? {
            Forked::Child => {
                // Or this process would never see that the keeper has gone.
                sys::forget(&control);
                child(plan, &theirs)
            }
            Forked::Parent { pid, pidfd } => {
                if let Some(group) = group {
                    group.add(pid);
                }
                let process = Process { pidfd, control, namespace: plan.view.is_some() };
                process.tell(guard::GO);
                Ok(process)
            }
        }
    }

    /// Its next note.
    pub fn note(&self) -> Heard {
        let mut buffer = [0; 4096];
        let received = match wire::receive(&self.control, &mut buffer) {
            // It ended without having heard our last word. The socket says so once, before it gives what was said to us.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => wire::receive(&self.control, &mut buffer),
            other => other,
        };
        let length = match received {
            Ok((length, _)) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Heard::Nothing,
            Err(_) => 0,
        };
        // Nobody but larder itself writes there, and it writes whole notes.
        buffer.get(..length).and_then(|bytes| postcard::from_bytes(bytes).ok()).map_or(Heard::End, Heard::Note)
    }

    /// Asks it and everything that it started to end, by `signal`.
    pub fn terminate(&self, signal: StopSignal) {
        let signal = match signal {
            StopSignal::Term => Signal::TERM,
            StopSignal::Int => Signal::INT,
            StopSignal::Quit => Signal::QUIT,
            StopSignal::Hup => Signal::HUP,
            StopSignal::Usr1 => Signal::USR1,
            StopSignal::Usr2 => Signal::USR2,
            StopSignal::Winch => Signal::WINCH,
        };
        self.tell(signal.as_raw() as u8);
    }

    /// Ends it and everything that it started.
    pub fn kill(&self) {
        if self.namespace {
            let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        } else {
            self.tell(guard::END);
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
            (true, program) => guard::run(at as RawFd + 1, program, &argv, &environment),
            (false, program) => sys::exec(program, &argv, &environment),
        },
        Err(error) => error,
    };
    // Wherever the control socket is by now.
    for number in [at as RawFd + 1, control.as_raw_fd()] {
        guard::note_on(number, &Note::Failed(error.to_string()));
    }
    sys::exit_now(125)
}

type Strings = (Vec<CString>, Vec<CString>);

fn prepare(plan: &Plan, control: &OwnedFd) -> io::Result<Strings> {
    end_with_the_keeper(plan)?;
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
    if guard::word(control.as_raw_fd()) != Some(guard::GO) {
        sys::exit_now(125);
    }
    let descriptors: Vec<RawFd> = plan.descriptors.iter().copied().chain([plan.program, control.as_raw_fd()]).collect();
    sys::arrange(&descriptors, plan.descriptors.len())?;
    let named = |what: &str, error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"));
    // The server's memory holds keys, others' hold what users sent.
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    if let Some(limits) = &plan.limits {
        limit(plan, limits).map_err(|error| named("set its limits", error))?;
    }
    umask(rustix::fs::Mode::from_raw_mode(0o022));
    if let Some(view) = &plan.view {
        view.enter().map_err(|error| named("make its view", error))?;
    } else if plan.guarded {
        set_child_subreaper(Some(rustix::process::getpid()))?;
    }
    chdir(&plan.directory).map_err(|error| named(&plan.directory.display().to_string(), error.into()))?;
    drop_privileges(plan.identity).map_err(|error| named("give up its privileges", error))?;
    // The kernel forgets this at every change of user. A keeper that ended meanwhile has closed its end of the control socket,
    // which is the next thing that a first process looks at.
    end_with_the_keeper(plan)?;
    Ok((argv, environment))
}

/// A process whose keeper dies must not stay. Without a namespace a first process lives a little longer, to end what it started.
fn end_with_the_keeper(plan: &Plan) -> io::Result<()> {
    if plan.view.is_some() || !plan.guarded {
        set_parent_process_death_signal(Some(Signal::KILL))?;
    }
    Ok(())
}

fn limit(plan: &Plan, limits: &Limits) -> io::Result<()> {
    // From the system's point of view the keeper matters most and a build least.
    let _ = fs::write("/proc/self/oom_score_adj", if limits.background { "500" } else { "0" });
    // Without root nobody may have more than was given to the keeper.
    let set = |resource, value: u64| {
        let value = getrlimit(resource).maximum.map_or(value, |most| most.min(value));
        setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) })
    };
    let some = [(Resource::Fsize, limits.file), (Resource::Data, plan.data), (Resource::Nproc, plan.processes)];
    for (resource, value) in some {
        value.map_or(Ok(()), |value| set(resource, value))?;
    }
    if limits.background {
        let _ = setpriority_process(None, 10);
        let _ = sys::idle_disk_priority();
    }
    Ok(())
}

/// Gives up every privilege, and becomes `identity` if there is one; for a process that has just been forked.
pub fn drop_privileges(identity: Option<Identity>) -> io::Result<()> {
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
