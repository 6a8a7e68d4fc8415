//! Starts a process: forks into its namespaces, builds its view, drops all privileges, and executes the program.
//!
//! A guarded process has the [`guard`] between the keeper and the program.

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

use super::{
    cgroup::{Group, Limits},
    guard::{self, GuardEvent},
    sandbox::View,
    sys::{self, Forked},
    users::Identity,
};
use crate::{host::launch::wire, model::StopSignal};

/// The namespaces of a process with a view of its own.
pub const NAMESPACES: i32 = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;

/// The specification of a process.
#[derive(Debug)]
pub struct ProcessSpec {
    /// The program's arguments, its name first.
    pub argv: Vec<OsString>,
    /// Its complete environment.
    pub environment: Vec<(OsString, OsString)>,
    /// Its user; `None` for the keeper's own.
    pub identity: Option<Identity>,
    /// Its view of the file system; without one, it shares the keeper's.
    pub view: Option<View>,
    /// Its working directory.
    pub directory: PathBuf,
    /// Its limits; `None` for the server.
    pub limits: Option<Limits>,
    /// RLIMIT_DATA of each process in bytes, where no control group limits memory.
    pub data: Option<u64>,
    /// RLIMIT_NPROC of its user, where no control group counts processes.
    pub processes: Option<u64>,
    /// Descriptors 0, 1, 2, ...
    pub descriptors: Vec<RawFd>,
    /// The descriptor of the program.
    pub program: RawFd,
    /// True if a guard stays between the keeper and the program.
    pub guarded: bool,
}

/// The result of one read from a control socket.
#[derive(Debug)]
pub enum Received {
    /// A control message.
    Event(GuardEvent),
    /// Nothing has arrived yet.
    Empty,
    /// The socket is closed.
    Closed,
}

/// The keeper's handle of a process.
#[derive(Debug)]
pub struct Process {
    /// Readable when the process, and everything in its namespace, has ended.
    pub pidfd: OwnedFd,
    /// The control socket.
    pub control: OwnedFd,
    namespace: bool,
}

impl Process {
    /// Starts a process inside `group`.
    pub fn start(spec: &ProcessSpec, group: Option<&Group>) -> io::Result<Process> {
        let (control, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        match sys::fork(if spec.view.is_some() { NAMESPACES } else { 0 })? {
            Forked::Child => {
                // An open copy of the keeper's end would hide from this process that the keeper has exited.
                sys::forget(&control);
                child(spec, &theirs)
            }
            Forked::Parent { pid, pidfd } => {
                if let Some(group) = group {
                    group.add(pid);
                }
                let process = Process { pidfd, control, namespace: spec.view.is_some() };
                process.command(guard::GO);
                Ok(process)
            }
        }
    }

    /// Receives the next control message.
    pub fn receive(&self) -> Received {
        let mut buffer = [0; 4096];
        let received = match wire::receive(&self.control, &mut buffer) {
            // The process exited before it read the last command. The socket reports this error once, and then returns the messages.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => wire::receive(&self.control, &mut buffer),
            other => other,
        };
        let length = match received {
            Ok((length, _)) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Received::Empty,
            Err(_) => 0,
        };
        // Only larder itself writes to the socket, and only whole messages.
        buffer.get(..length).and_then(|bytes| postcard::from_bytes(bytes).ok()).map_or(Received::Closed, Received::Event)
    }

    /// Sends `signal` to the process and its descendants.
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
        self.command(signal.as_raw() as u8);
    }

    /// Kills the process and its descendants.
    pub fn kill(&self) {
        if self.namespace {
            let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        } else {
            self.command(guard::END);
        }
    }

    fn command(&self, byte: u8) {
        let _ = wire::send(&self.control, &[byte], &[]);
    }
}

/// Prepares the new process and executes its program. Never returns, because the child must not drop the keeper's objects.
fn child(spec: &ProcessSpec, control: &OwnedFd) -> ! {
    let at = spec.descriptors.len();
    let error = match prepare(spec, control) {
        Ok((argv, environment)) => match (spec.guarded, sys::arranged(at as RawFd)) {
            (true, program) => guard::run(at as RawFd + 1, program, &argv, &environment),
            (false, program) => sys::exec(program, &argv, &environment),
        },
        Err(error) => error,
    };
    // The control socket has either its old number or its new one.
    for number in [at as RawFd + 1, control.as_raw_fd()] {
        guard::send_on(number, &GuardEvent::Failed(error.to_string()));
    }
    sys::exit_now(125)
}

type Strings = (Vec<CString>, Vec<CString>);

fn prepare(spec: &ProcessSpec, control: &OwnedFd) -> io::Result<Strings> {
    end_with_the_keeper(spec)?;
    sys::reset_signals();
    setsid()?;
    let argv = spec.argv.iter().map(|word| CString::new(word.clone().into_vec())).collect::<Result<Vec<_>, _>>()?;
    let join = |(name, value): &(OsString, OsString)| {
        let mut pair = name.clone();
        pair.push("=");
        pair.push(value);
        CString::new(pair.into_vec())
    };
    let environment = spec.environment.iter().map(join).collect::<Result<Vec<_>, _>>()?;
    // The keeper first puts this process into its control group; without a keeper, the process must not go on.
    if guard::command(control.as_raw_fd()) != Some(guard::GO) {
        sys::exit_now(125);
    }
    let descriptors: Vec<RawFd> = spec.descriptors.iter().copied().chain([spec.program, control.as_raw_fd()]).collect();
    sys::arrange(&descriptors, spec.descriptors.len())?;
    let named = |what: &str, error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"));
    // Core dumps are disabled, because the memory of the server contains keys, and the memory of workers contains users' data.
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    if let Some(limits) = &spec.limits {
        limit(spec, limits).map_err(|error| named("cannot set the limits", error))?;
    }
    umask(rustix::fs::Mode::from_raw_mode(0o022));
    if let Some(view) = &spec.view {
        view.enter().map_err(|error| named("cannot build the view", error))?;
    } else if spec.guarded {
        set_child_subreaper(Some(rustix::process::getpid()))?;
    }
    chdir(&spec.directory).map_err(|error| named(&spec.directory.display().to_string(), error.into()))?;
    drop_privileges(spec.identity).map_err(|error| named("cannot drop privileges", error))?;
    // The kernel clears the parent death signal at every change of user, so it is set again. If the keeper has exited in
    // between, its end of the control socket is closed, which the guard checks first.
    end_with_the_keeper(spec)?;
    Ok((argv, environment))
}

/// Makes the kernel kill this process when the keeper exits. A guard without a namespace is not killed, because it must first kill its
/// descendants.
fn end_with_the_keeper(spec: &ProcessSpec) -> io::Result<()> {
    if spec.view.is_some() || !spec.guarded {
        set_parent_process_death_signal(Some(Signal::KILL))?;
    }
    Ok(())
}

fn limit(spec: &ProcessSpec, limits: &Limits) -> io::Result<()> {
    // Under memory pressure, the kernel kills builds first and the keeper last.
    let _ = fs::write("/proc/self/oom_score_adj", if limits.background { "500" } else { "0" });
    // Without root, a limit cannot exceed the keeper's own hard limit.
    let set = |resource, value: u64| {
        let value = getrlimit(resource).maximum.map_or(value, |most| most.min(value));
        setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) })
    };
    let some = [(Resource::Fsize, limits.file), (Resource::Data, spec.data), (Resource::Nproc, spec.processes)];
    for (resource, value) in some {
        value.map_or(Ok(()), |value| set(resource, value))?;
    }
    if limits.background {
        let _ = setpriority_process(None, 10);
        let _ = sys::idle_disk_priority();
    }
    Ok(())
}

/// Drops every privilege and changes to `identity`, if there is one; for a process that has just been forked.
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
        return Err(io::Error::other("the process can become root again"));
    }
    Ok(())
}
