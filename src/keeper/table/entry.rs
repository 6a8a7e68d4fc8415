//! One entry of the table: the request for a process, and the process itself while it runs.

use std::{
    collections::VecDeque,
    os::fd::{AsFd, OwnedFd},
    time::Instant,
};

use rustix::{
    fs::{FileType, Gid, SealFlags, Stat, Uid, fchown, fcntl_get_seals, fstat},
    pipe::{PipeFlags, fcntl_setpipe_size, pipe_with},
    process::{WaitId, WaitIdOptions, waitid},
};

use super::super::{
    assignment::Assignment,
    cgroup::Group,
    directories::Discarded,
    layers::LayerId,
    lifecycle::Backoff,
    spawn::Process,
    users::{Identity, User, Users},
};
use crate::{
    host::launch::wire::{Given, MAX_JOB},
    model::{Area, Launch, LimitClass, ProjectId, Role, StopSignal, Supervision},
};

/// The size of the pipe that holds a supervised process's output while no server reads it, in bytes.
const OUTPUT: usize = 1024 * 1024;
/// The longest label, in bytes.
const MAX_LABEL: usize = 1024;

/// A requested process.
#[derive(Debug)]
pub struct Entry {
    pub launch: Launch,
    pub assignment: Assignment,
    pub job: OwnedFd,
    pub report: Option<OwnedFd>,
    pub standard: [Option<OwnedFd>; 3],
    pub extra: Vec<OwnedFd>,
    /// Both ends of the pipe for a supervised process's output.
    pub output: Option<(OwnedFd, OwnedFd)>,
    pub live: Option<Live>,
    /// The number of the launch request that is answered after the start.
    pub request: Option<u64>,
    pub restarts: u32,
    pub backoff: Backoff,
    /// The time of the next restart.
    pub due: Option<Instant>,
    /// The time at which the process is killed; set once the process is being stopped and must not be restarted.
    pub stopping: Option<Instant>,
    /// True if the server that launched the process has exited, so that its exit is not reported.
    pub orphaned: bool,
    /// For a cleanup that the keeper starts itself: the directory to delete, and the users whose cleanups follow.
    pub cleanup: Option<(Discarded, VecDeque<User>)>,
}

/// A running process.
#[derive(Debug)]
pub struct Live {
    pub process: Process,
    pub group: Group,
    pub layer: Option<LayerId>,
    /// True if every file at `/app` can be written.
    pub writable: bool,
    pub since: Instant,
    /// The reason why its program could not be started.
    pub failed: Option<String>,
    /// True if the guard has closed the control socket and is about to exit.
    pub closed: bool,
    /// Exit code and signal of its program.
    pub ended: Option<(Option<i32>, Option<i32>)>,
}

impl Live {
    /// Returns exit code and signal once the process has exited.
    pub fn end(&self) -> Option<(Option<i32>, Option<i32>)> {
        let own = match waitid(WaitId::PidFd(self.process.pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
            Ok(None) => return None,
            Ok(Some(status)) => (status.exit_status(), status.terminating_signal()),
            Err(_) => (None, None),
        };
        Some(self.ended.unwrap_or(own))
    }
}

/// Changes the owner of a pipe from `from` to `to`, so that the process can reopen its standard descriptors, for example as
/// `/dev/stdout`. The owner of a file is never changed.
fn hand_over(descriptor: &OwnedFd, from: Identity, to: Identity) {
    let is_pipe = |found: &Stat| FileType::from_raw_mode(found.st_mode) == FileType::Fifo && found.st_uid == from.uid;
    if fstat(descriptor).is_ok_and(|found| is_pipe(&found)) {
        // If this fails, only reopening the descriptor is not possible.
        let _ = fchown(descriptor, Some(Uid::from_raw(to.uid)), Some(Gid::from_raw(to.gid)));
    }
}

impl Entry {
    fn new(launch: Launch, assignment: Assignment, job: OwnedFd) -> Entry {
        Entry {
            launch,
            assignment,
            job,
            report: None,
            standard: [None, None, None],
            extra: Vec::new(),
            output: None,
            live: None,
            request: None,
            restarts: 0,
            backoff: Backoff::of_processes(),
            due: None,
            stopping: None,
            orphaned: false,
            cleanup: None,
        }
    }

    /// Creates the entry of launch request `seq`, with the descriptors that came with the request. Checks everything that the server
    /// controls.
    pub fn requested(
        seq: u64,
        launch: Launch,
        assignment: Assignment,
        given: Given,
        descriptors: Vec<OwnedFd>,
        users: &Users,
    ) -> Result<Entry, String> {
        let mut descriptors = descriptors.into_iter();
        let mut next = |wanted: bool| match wanted {
            true => descriptors.next().map(Some).ok_or("a descriptor is missing"),
            false => Ok(None),
        };
        let job = next(true)?.ok_or("the job is missing")?;
        let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW;
        if !fcntl_get_seals(&job).is_ok_and(|found| found.contains(seals)) {
            return Err("the job is not sealed".into());
        }
        if fstat(&job).map_or(u64::MAX, |found| found.st_size as u64) > MAX_JOB {
            return Err(format!("the job is larger than {MAX_JOB} bytes"));
        }
        let report = next(given.report)?;
        let standard = [next(given.stdin)?, next(given.stdout)?, next(given.stderr)?];
        let extra = (0..given.extra).map(|_| next(true)).collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect();
        if users.system() {
            let server = users.identity(User::Server);
            standard.iter().flatten().for_each(|descriptor| hand_over(descriptor, server, users.identity(assignment.user)));
        }
        let mut entry = Entry { report, standard, extra, request: Some(seq), ..Entry::new(launch, assignment, job) };
        if let Supervision::Keep { label, .. } = &entry.launch.supervision {
            if label.len() > MAX_LABEL {
                return Err(format!("the label is longer than {MAX_LABEL} bytes"));
            }
            let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| error.to_string())?;
            // A smaller pipe works, too.
            let _ = fcntl_setpipe_size(&read, OUTPUT);
            if users.system() {
                hand_over(&write, users.identity(User::Keeper), users.identity(entry.assignment.user));
            }
            entry.standard = [None, None, None];
            entry.output = Some((read, write));
        }
        Ok(entry)
    }

    /// Creates the entry of a worker that deletes a directory as the first of `cleanup_users`. The worker gets `null` instead of a job.
    pub fn cleanup(discarded: Discarded, mut cleanup_users: VecDeque<User>, null: OwnedFd) -> Option<Entry> {
        let assignment = Assignment::cleanup(&discarded.name, cleanup_users.pop_front()?);
        let launch = Launch {
            role: Role::Sweep(Area::Tree),
            project: ProjectId(0),
            environment: Some(discarded.env),
            release: None,
            slot: None,
            limits: LimitClass::Build { memory: None },
            supervision: Supervision::Once,
        };
        Some(Entry { cleanup: Some((discarded, cleanup_users)), ..Entry::new(launch, assignment, null) })
    }

    /// Returns true if the process is restarted when it exits.
    pub fn supervised(&self) -> bool {
        self.output.is_some()
    }

    /// Sends the stop signal, if it was not sent yet, and sets the time of the kill to `by`, or leaves an earlier time.
    ///
    /// A second stop signal is never sent, because many programs react by exiting at once.
    pub fn stop(&mut self, by: Instant) {
        self.due = None;
        let Some(live) = &self.live else { return };
        match &mut self.stopping {
            Some(kill) => *kill = by.min(*kill),
            None => {
                live.process.terminate(self.stop_signal());
                self.stopping = Some(by);
            }
        }
    }

    fn stop_signal(&self) -> StopSignal {
        match self.launch.supervision {
            Supervision::Keep { stop, .. } => stop,
            Supervision::Once => StopSignal::Term,
        }
    }

    /// The worker's name on its command line.
    pub fn role_name(&self) -> &'static str {
        match self.launch.role {
            Role::Git => "git",
            Role::Source => "source",
            Role::Build => "build",
            Role::Bundle => "bundle",
            Role::Unpack => "unpack",
            Role::Verify => "verify",
            Role::Run => "run",
            Role::Task => "task",
            Role::Drift => "drift",
            Role::Patch => "patch",
            Role::Sweep(_) => "sweep",
            Role::Pack => "pack",
        }
    }
}
