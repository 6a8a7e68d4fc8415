//! One process, or the wish to have one: what it was ordered with, and what it has come to.

use std::{
    collections::VecDeque,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::{
    fs::{FileType, Gid, SealFlags, Stat, Uid, fchown, fcntl_get_seals, fstat},
    pipe::{PipeFlags, fcntl_setpipe_size, pipe_with},
    process::{WaitId, WaitIdOptions, waitid},
};

use super::super::{
    assignment::Assignment,
    cgroup::Group,
    layers::LayerId,
    pause::Pause,
    place::Aside,
    spawn::Process,
    users::{Identity, User, Users},
};
use crate::{
    host::launch::wire::{Given, MAX_JOB},
    model::{Area, Launch, LimitClass, ProjectId, Role, StopSignal, Supervision},
};

/// Bytes of a kept process's output that wait for a server.
const OUTPUT: usize = 1024 * 1024;
/// The longest label.
const MAX_LABEL: usize = 1024;

/// A process that somebody wants to have.
#[derive(Debug)]
pub struct Entry {
    pub launch: Launch,
    pub assignment: Assignment,
    pub job: OwnedFd,
    pub report: Option<OwnedFd>,
    pub standard: [Option<OwnedFd>; 3],
    pub extra: Vec<OwnedFd>,
    /// Both ends of a kept process's output.
    pub output: Option<(OwnedFd, OwnedFd)>,
    pub live: Option<Live>,
    /// The order that waits for the start.
    pub asked: Option<u64>,
    pub restarts: u32,
    pub pause: Pause,
    /// When it is started again.
    pub again: Option<Instant>,
    /// Whether it must not be started again, and when it is killed.
    pub stopping: Option<Instant>,
    /// Whether its server has gone, so that nobody wants to know of its end.
    pub forgotten: bool,
    /// What it deletes, if it is the keeper's own sweep, and who remains to do so.
    pub sweep: Option<(Aside, VecDeque<User>)>,
}

/// A process that is there.
#[derive(Debug)]
pub struct Live {
    pub process: Process,
    pub group: Group,
    pub layer: Option<LayerId>,
    /// Whether all of `/app` is.
    pub writable: bool,
    pub since: Instant,
    /// Why it could not become its program.
    pub failed: Option<String>,
    /// Whether it has closed its control socket: its end is all that is left to come.
    pub silent: bool,
    /// Its program's end: exit code, signal.
    pub ended: Option<(Option<i32>, Option<i32>)>,
}

impl Live {
    /// The exit code and the signal once it has ended; collects it.
    pub fn end(&self) -> Option<(Option<i32>, Option<i32>)> {
        let own = match waitid(WaitId::PidFd(self.process.pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
            Ok(None) => return None,
            Ok(Some(status)) => (status.exit_status(), status.terminating_signal()),
            Err(_) => (None, None),
        };
        Some(self.ended.unwrap_or(own))
    }
}

/// Lets a process open its own standard descriptors again, as `/dev/stdout` and its like: a pipe of `from`'s, and nothing else, is
/// given to `to`.
fn hand_over(descriptor: &OwnedFd, from: Identity, to: Identity) {
    let is_pipe = |found: &Stat| FileType::from_raw_mode(found.st_mode) == FileType::Fifo && found.st_uid == from.uid;
    if fstat(descriptor).is_ok_and(|found| is_pipe(&found)) {
        // Without it everything else works.
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
            asked: None,
            restarts: 0,
            pause: Pause::of_processes(),
            again: None,
            stopping: None,
            forgotten: false,
            sweep: None,
        }
    }

    /// What order `seq` asks for, with the descriptors that came along; checks all that the server could get wrong.
    pub fn ordered(
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
        let mut entry = Entry { report, standard, extra, asked: Some(seq), ..Entry::new(launch, assignment, job) };
        if let Supervision::Keep { label, .. } = &entry.launch.supervision {
            if label.len() > MAX_LABEL {
                return Err(format!("the label is longer than {MAX_LABEL} bytes"));
            }
            let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| error.to_string())?;
            // Less than that still works.
            let _ = fcntl_setpipe_size(&read, OUTPUT);
            if users.system() {
                hand_over(&write, users.identity(User::Keeper), users.identity(entry.assignment.user));
            }
            entry.standard = [None, None, None];
            entry.output = Some((read, write));
        }
        Ok(entry)
    }

    /// The first of `cleanup_users` deletes what is aside; `nothing` stands for the job that it does not have.
    pub fn sweep(aside: Aside, mut cleanup_users: VecDeque<User>, nothing: OwnedFd) -> Option<Entry> {
        let assignment = Assignment::sweep_aside(&aside.name, cleanup_users.pop_front()?);
        let launch = Launch {
            role: Role::Sweep(Area::Tree),
            project: ProjectId(0),
            environment: Some(aside.env),
            release: None,
            slot: None,
            limits: LimitClass::Build { memory: None },
            supervision: Supervision::Once,
        };
        Some(Entry { sweep: Some((aside, cleanup_users)), ..Entry::new(launch, assignment, nothing) })
    }

    /// Whether it is started again when it ends.
    pub fn kept(&self) -> bool {
        self.output.is_some()
    }

    /// Asks it to end; kills it after `grace`.
    pub fn stop(&mut self, grace: Duration) {
        self.again = None;
        if let Some(live) = &self.live {
            live.process.terminate(self.signal());
            self.stopping = Some(Instant::now() + grace);
        }
    }

    /// What asks it to end.
    fn signal(&self) -> StopSignal {
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
