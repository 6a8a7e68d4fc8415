//! One entry of the table: the request for a process, and the process itself while it runs.

use std::{
    collections::VecDeque,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use larder_sandbox::{
    Backoff, ChildProcess, ControlGroup, DiscardedDirectory, OverlayId, ProcessEnd, RestartSchedule, hand_over_pipe,
};
use rustix::{
    pipe::{PipeFlags, fcntl_setpipe_size, pipe_with},
    process::Signal,
};

use super::super::{
    assignment::Assignment,
    users::{SystemUser, Users},
};
use crate::{
    host::launch::{check_sealed, signal_of, wire::Given},
    model::{Area, EnvId, Launch, LimitClass, ProjectId, Role, StopSignal, Supervision},
};

/// The size of the pipe that holds a supervised process's output while no server reads it, in bytes.
const OUTPUT: usize = 1024 * 1024;
/// The first pause before a restart of a process that exits repeatedly.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause before a restart.
const LAST_PAUSE: Duration = Duration::from_secs(30);
/// The maximum length of a label, in bytes.
const MAX_LABEL: usize = 1024;

/// A requested process.
#[derive(Debug)]
pub struct ProcessEntry {
    pub launch: Launch,
    pub assignment: Assignment,
    pub job: OwnedFd,
    pub report: Option<OwnedFd>,
    pub standard: [Option<OwnedFd>; 3],
    pub extra: Vec<OwnedFd>,
    /// Both ends of the pipe for a supervised process's output.
    pub output: Option<(OwnedFd, OwnedFd)>,
    pub live: Option<RunningProcess>,
    /// The number of the launch request that is answered after the start.
    pub request: Option<u64>,
    pub schedule: RestartSchedule,
    /// True if the process was killed after its server had exited, so that the exit of the process is not reported.
    pub orphaned: bool,
    /// For a cleanup that the keeper starts itself: the directory to delete, and the users whose cleanups follow.
    pub cleanup: Option<(DiscardedDirectory, VecDeque<SystemUser>)>,
}

/// A running process.
#[derive(Debug)]
pub struct RunningProcess {
    pub process: ChildProcess,
    pub group: ControlGroup,
    pub overlay: Option<OverlayId>,
    /// True if every file at `/app` can be written.
    pub writable: bool,
    pub since: Instant,
    /// The reason why the program could not be started.
    pub failed: Option<String>,
    /// True if the guard has closed the control socket and is about to exit.
    pub closed: bool,
    /// The end of the program, which the guard has reported.
    pub ended: Option<ProcessEnd>,
}

impl ProcessEntry {
    fn new(launch: Launch, assignment: Assignment, job: OwnedFd) -> ProcessEntry {
        ProcessEntry {
            launch,
            assignment,
            job,
            report: None,
            standard: [None, None, None],
            extra: Vec::new(),
            output: None,
            live: None,
            request: None,
            schedule: RestartSchedule::new(Backoff::new(FIRST_PAUSE, LAST_PAUSE)),
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
    ) -> Result<ProcessEntry, String> {
        let mut descriptors = descriptors.into_iter();
        let mut next = |wanted: bool| match wanted {
            true => descriptors.next().map(Some).ok_or("a descriptor is missing"),
            false => Ok(None),
        };
        let job = next(true)?.ok_or("the job is missing")?;
        check_sealed(&job)?;
        let report = next(given.report)?;
        let standard = [next(given.stdin)?, next(given.stdout)?, next(given.stderr)?];
        let extra = (0..given.extra).map(|_| next(true)).collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect();
        if users.system() {
            let server = users.numbers(SystemUser::Server);
            standard.iter().flatten().for_each(|descriptor| hand_over_pipe(descriptor, server, users.numbers(assignment.user)));
        }
        let mut entry =
            ProcessEntry { report, standard, extra, request: Some(seq), ..ProcessEntry::new(launch, assignment, job) };
        if let Supervision::Keep { label, .. } = &entry.launch.supervision {
            if label.len() > MAX_LABEL {
                return Err(format!("the label is longer than {MAX_LABEL} bytes"));
            }
            let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| error.to_string())?;
            // A smaller pipe is acceptable.
            let _ = fcntl_setpipe_size(&read, OUTPUT);
            if users.system() {
                hand_over_pipe(&write, users.numbers(SystemUser::Keeper), users.numbers(entry.assignment.user));
            }
            entry.standard = [None, None, None];
            entry.output = Some((read, write));
        }
        Ok(entry)
    }

    /// Creates the entry of a worker that deletes a directory as the first user in `cleanup_users`. The worker gets `null` as its job.
    pub fn cleanup(
        discarded: DiscardedDirectory,
        mut cleanup_users: VecDeque<SystemUser>,
        null: OwnedFd,
    ) -> Option<ProcessEntry> {
        let assignment = Assignment::cleanup(&discarded.path, cleanup_users.pop_front()?);
        let launch = Launch {
            role: Role::Sweep(Area::Tree),
            project: ProjectId(0),
            environment: Some(EnvId(discarded.owner)),
            release: None,
            slot: None,
            limits: LimitClass::Build { memory: None },
            supervision: Supervision::Once,
        };
        Some(ProcessEntry { cleanup: Some((discarded, cleanup_users)), ..ProcessEntry::new(launch, assignment, null) })
    }

    /// Returns true if the process is restarted when it exits.
    pub fn supervised(&self) -> bool {
        self.output.is_some()
    }

    /// Sends the stop signal, if it was not sent yet, and sets the time of the kill ([`RestartSchedule::begin_stop`]).
    pub fn stop(&mut self, by: Instant) {
        let first = self.schedule.begin_stop(by);
        if let Some(live) = self.live.as_ref().filter(|_| first) {
            live.process.signal(self.stop_signal());
        }
    }

    /// Kills the process, which is not restarted.
    pub fn kill(&mut self) {
        if let Some(live) = &self.live {
            live.process.kill();
        }
        self.schedule.killed(Instant::now());
    }

    fn stop_signal(&self) -> Signal {
        let stop = match self.launch.supervision {
            Supervision::Keep { stop, .. } => stop,
            Supervision::Once => StopSignal::Term,
        };
        signal_of(stop)
    }
}
