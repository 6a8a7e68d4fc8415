//! Starts a process: forks into its namespaces, enters its view, drops all privileges, and executes the program.
//!
//! A guarded process has the [`guard`] between the supervisor and the program.

use std::{
    ffi::{CString, OsString},
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::ffi::OsStringExt,
    },
};

use rustix::{
    io::Errno,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair},
    process::{
        Resource, Rlimit, Signal, WaitId, WaitIdOptions, chdir, getrlimit, pidfd_send_signal, set_child_subreaper,
        set_parent_process_death_signal, setpriority_process, setrlimit, setsid, umask, waitid,
    },
};

use super::{
    cgroup::{ControlGroup, ResourceLimits},
    guard::{self, GuardEvent, ProcessEnd},
    namespace::NAMESPACES,
    sys::{self, Forked},
    user::{UnixUser, drop_privileges},
    view::RootView,
};

/// The specification of a process.
#[derive(Debug)]
pub struct ChildSpec<'fd> {
    /// The arguments of the program. The first argument is the name of the program.
    pub argv: Vec<OsString>,
    /// The complete environment of the program.
    pub environment: Vec<(OsString, OsString)>,
    /// The user of the process; `None` stands for the supervisor's user.
    pub user: Option<UnixUser>,
    /// The view of the file system. A process without a view has the supervisor's file system. The working directory is always `/`.
    pub view: Option<RootView>,
    pub limits: Option<ResourceLimits>,
    /// The limit RLIMIT_DATA of each process in bytes, for processes whose memory no control group limits.
    pub data: Option<u64>,
    /// The limit RLIMIT_NPROC of the user, for processes that no control group counts.
    pub processes: Option<u64>,
    /// The descriptors that get the numbers 0, 1, 2, and so on.
    pub descriptors: Vec<BorrowedFd<'fd>>,
    /// The descriptor of the program.
    pub program: BorrowedFd<'fd>,
    /// True if a guard stays between the supervisor and the program.
    pub guarded: bool,
}

impl<'fd> ChildSpec<'fd> {
    /// Returns the specification of a process that executes `program` as the user of this process, without arguments, variables,
    /// descriptors, limits, a view or a guard.
    pub fn new(program: BorrowedFd<'fd>) -> ChildSpec<'fd> {
        ChildSpec {
            argv: Vec::new(),
            environment: Vec::new(),
            user: None,
            view: None,
            limits: None,
            data: None,
            processes: None,
            descriptors: Vec::new(),
            program,
            guarded: false,
        }
    }
}

/// The result of one read from a control socket.
#[derive(Debug)]
pub enum Received {
    Event(GuardEvent),
    /// Nothing has arrived yet.
    Empty,
    /// The socket is closed.
    Closed,
}

/// The supervisor's handle of a process.
#[derive(Debug)]
pub struct ChildProcess {
    pidfd: OwnedFd,
    control: OwnedFd,
    namespace: bool,
    guarded: bool,
}

impl ChildProcess {
    /// Starts a process inside `group`.
    pub fn start(spec: &ChildSpec<'_>, group: Option<&ControlGroup>) -> io::Result<ChildProcess> {
        let (control, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        match sys::fork(if spec.view.is_some() { NAMESPACES } else { 0 })? {
            Forked::Child => {
                // An open copy of the supervisor's end would hide from this process that the supervisor has exited.
                sys::forget(&control);
                child(spec, &theirs)
            }
            Forked::Parent { pid, pidfd } => {
                if let Some(group) = group {
                    group.add(pid);
                }
                let process = ChildProcess { pidfd, control, namespace: spec.view.is_some(), guarded: spec.guarded };
                process.command(guard::GO);
                Ok(process)
            }
        }
    }

    /// Returns a descriptor that becomes readable when the process, and all processes in its namespace, have exited.
    pub fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// Returns the control socket, which becomes readable when [`ChildProcess::receive`] has an event.
    pub fn control(&self) -> &OwnedFd {
        &self.control
    }

    /// Receives the next control message.
    pub fn receive(&self) -> Received {
        let mut buffer = [0; 4096];
        let received = match recv(&self.control, &mut buffer, RecvFlags::DONTWAIT) {
            // The process exited before it read the last command. The socket reports this error once, and then returns the messages.
            Err(Errno::CONNRESET) => recv(&self.control, &mut buffer, RecvFlags::DONTWAIT),
            other => other,
        };
        let length = match received {
            Ok((length, _)) => length,
            Err(Errno::WOULDBLOCK) => return Received::Empty,
            Err(_) => 0,
        };
        // Only this crate itself writes to the socket, and only whole messages.
        buffer.get(..length).and_then(|bytes| postcard::from_bytes(bytes).ok()).map_or(Received::Closed, Received::Event)
    }

    /// Returns the end of the process, or `None` while the process runs.
    pub fn try_wait(&self) -> Option<ProcessEnd> {
        match waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
            Ok(None) => None,
            Ok(Some(status)) => Some(ProcessEnd { code: status.exit_status(), signal: status.terminating_signal() }),
            Err(_) => Some(ProcessEnd::default()),
        }
    }

    /// Sends `signal` to the process. If the process is guarded, all processes of its namespace get the signal, or all processes of its
    /// process group if it has no namespace.
    pub fn signal(&self, signal: Signal) {
        if self.guarded {
            self.command(signal.as_raw() as u8);
        } else {
            let _ = pidfd_send_signal(&self.pidfd, signal);
        }
    }

    /// Kills the process, and its descendants if the process is guarded.
    pub fn kill(&self) {
        if self.guarded && !self.namespace {
            self.command(guard::END);
        } else {
            let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        }
    }

    fn command(&self, byte: u8) {
        let _ = send(&self.control, &[byte], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    }
}

/// Prepares the new process and executes its program. Never returns, because the child must not drop the supervisor's objects.
fn child(spec: &ChildSpec<'_>, control: &OwnedFd) -> ! {
    let at = spec.descriptors.len();
    let error = match prepare(spec, control) {
        Ok((argv, environment)) => match (spec.guarded, sys::arranged(at as RawFd)) {
            (true, program) => guard::run(at as RawFd + 1, program, &argv, &environment),
            (false, program) => sys::exec(program, &argv, &environment),
        },
        Err(error) => error,
    };
    // The control socket has either its old number or its new number.
    for number in [at as RawFd + 1, control.as_raw_fd()] {
        guard::send_on(number, &GuardEvent::Failed(error.to_string()));
    }
    sys::exit_now(125)
}

type Strings = (Vec<CString>, Vec<CString>);

fn prepare(spec: &ChildSpec<'_>, control: &OwnedFd) -> io::Result<Strings> {
    end_with_supervisor(spec)?;
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
    // The supervisor moves this process into the control group before it sends `GO`. If the supervisor has exited, this process must exit.
    if guard::command(control.as_raw_fd()) != Some(guard::GO) {
        sys::exit_now(125);
    }
    let own = [spec.program.as_raw_fd(), control.as_raw_fd()];
    let descriptors: Vec<RawFd> = spec.descriptors.iter().map(AsRawFd::as_raw_fd).chain(own).collect();
    sys::arrange(&descriptors, spec.descriptors.len())?;
    let named = |what: &str, error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"));
    // Core dumps are disabled, because memory can contain keys and users' data.
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
    chdir("/")?;
    drop_privileges(spec.user).map_err(|error| named("cannot drop privileges", error))?;
    // The kernel clears the parent death signal at every change of user, so this process sets the signal again. If the supervisor exits
    // before that, the control socket is closed, and the guard ends the program at its first look at the socket.
    end_with_supervisor(spec)?;
    Ok((argv, environment))
}

/// Makes the kernel kill this process when the supervisor exits. A guard without a namespace is not killed, because it must first kill
/// its descendants.
fn end_with_supervisor(spec: &ChildSpec<'_>) -> io::Result<()> {
    if spec.view.is_some() || !spec.guarded {
        set_parent_process_death_signal(Some(Signal::KILL))?;
    }
    Ok(())
}

fn limit(spec: &ChildSpec<'_>, limits: &ResourceLimits) -> io::Result<()> {
    // Under memory pressure, the kernel kills background processes first and the supervisor last.
    let _ = fs::write("/proc/self/oom_score_adj", if limits.background { "500" } else { "0" });
    // Without root, a limit cannot exceed the supervisor's own hard limit.
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
