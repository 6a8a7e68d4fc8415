//! All processes except the server, from the launch request to the exit of the last descendant.
//!
//! [`entry`] has the state of one process, [`start`] starts the process of an entry, [`ending`] restarts and ends processes, and [`areas`]
//! creates, resets and discards directories, which must not be in use by a process.

mod areas;
mod ending;
mod entry;
mod start;

use std::{
    collections::{BTreeMap, VecDeque},
    fs::File,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Instant,
};

use larder_sandbox::{
    BaseView, CgroupHierarchy, CgroupVersion, CgroupWarmer, DiscardedDirectory, GuardEvent, Overlays, Received, Trash,
};
use rustix::fs::{Mode, OFlags, open};

use super::{
    assignment::Assignment,
    config::{KeeperConfig, KeeperError},
    directories::Directories,
    limits::limits_of,
    registry::NameRegistry,
    users::{SystemUser, Users},
};
use crate::{
    host::launch::{
        Capabilities, Cgroups, ProcessEvent,
        wire::{Given, Supervised},
    },
    model::{Exit, Launch, LimitClass, ProcessId},
};
use entry::ProcessEntry;

/// The maximum number of simultaneous processes.
const MAX_PROCESSES: usize = 4096;
/// The name of the control group of the cgroup warmer.
const WARMER_GROUP: &str = "warmer";

/// A message for the server: the answer to a launch request, or an event.
#[derive(Debug)]
pub enum Notice {
    /// Launch request `seq` succeeded.
    Started { seq: u64, id: ProcessId, writable: bool, output: Option<OwnedFd> },
    /// Launch request `seq` failed.
    Failed { seq: u64, why: String },
    /// An event that belongs to no request.
    Event(ProcessEvent),
}

/// All processes except the server, and the state that is necessary to start them.
#[derive(Debug)]
pub struct ProcessTable {
    config: KeeperConfig,
    users: Users,
    directories: Directories,
    registry: NameRegistry,
    overlays: Overlays,
    base: Result<BaseView, String>,
    /// This field is declared before `groups`, so that the warmer is dropped before its control group.
    warmer: CgroupWarmer,
    groups: CgroupHierarchy,
    program: Option<File>,
    /// `/dev/null`.
    pub null: OwnedFd,
    entries: BTreeMap<ProcessId, ProcessEntry>,
    last: u64,
    discarded: VecDeque<DiscardedDirectory>,
    /// The time of the last request to launch a process or to reset an area.
    requested: Instant,
    notices: VecDeque<Notice>,
}

impl ProcessTable {
    /// Creates a table without processes. Directories that an earlier keeper discarded are deleted later.
    pub fn new(
        config: KeeperConfig,
        users: Users,
        directories: Directories,
        base: Result<BaseView, String>,
    ) -> Result<ProcessTable, KeeperError> {
        let in_root = |source| KeeperError::Root { path: config.root.clone(), source };
        let registry = NameRegistry::open(&config.root.join("keeper")).map_err(in_root)?;
        users.check_unshared(registry.last_environment())?;
        let discarded = Trash::all(&directories.root, None).map_err(in_root)?.into();
        let name = blake3::hash(config.root.as_os_str().as_encoded_bytes()).to_hex();
        let name = format!("larder-{}", name.get(..12).unwrap_or_default());
        let mut groups = CgroupHierarchy::find(&name, "larder-keeper");
        let limits = limits_of(LimitClass::Service, &config);
        let warmers = (groups.version() != CgroupVersion::None).then(|| groups.group(WARMER_GROUP, &limits));
        let switched_on = if config.overlays { Ok(()) } else { Err("overlays are switched off".to_owned()) };
        let allowed = base.as_ref().map_err(Clone::clone).and(switched_on);
        let overlays = Overlays::new(&directories.root, "keeper", allowed);
        if let (Ok(_), Err(why)) = (&base, &overlays.works) {
            tracing::warn!(
                why,
                "overlays are not available: every build and every slot gets a copy of its tree, which takes time and space"
            );
        }
        Ok(ProcessTable {
            overlays,
            warmer: CgroupWarmer::start(warmers, users.system().then(|| users.numbers(SystemUser::Helper))),
            groups,
            users,
            directories,
            registry,
            base,
            program: None,
            null: open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|error| in_root(error.into()))?,
            entries: BTreeMap::new(),
            last: 0,
            discarded,
            requested: Instant::now(),
            notices: VecDeque::new(),
            config,
        })
    }

    /// Sets the program of new workers, and its path on this machine.
    pub fn use_program(&mut self, program: File, path: PathBuf) {
        (self.program, self.config.exe) = (Some(program), path);
    }

    /// Returns the isolation and the limits that are in force.
    pub fn capabilities(&self) -> Capabilities {
        Capabilities {
            system: self.users.system(),
            users: self.users.of_environments(),
            namespaces: self.base.as_ref().map(drop).map_err(Clone::clone),
            overlay: self.overlays.works.clone(),
            idmap: self.overlays.idmap_fails.clone().map_or(Ok(()), Err),
            cgroup: match self.groups.version() {
                CgroupVersion::V2 => Cgroups::V2,
                CgroupVersion::V1 => Cgroups::V1,
                CgroupVersion::None => Cgroups::None,
            },
            quota: larder_sandbox::quota_support(&self.directories.root, Path::new("projects")),
        }
    }

    /// Takes the oldest notice that was not sent yet.
    pub fn next_notice(&mut self) -> Option<Notice> {
        self.notices.pop_front()
    }

    /// Prepares the kernel for launches that follow soon.
    pub fn prewarm(&mut self) {
        self.warmer.wake();
    }

    /// Starts a process; the answer is a [`Notice`].
    pub fn launch(&mut self, seq: u64, launch: Launch, given: Given, descriptors: Vec<OwnedFd>) {
        self.warmer.wake();
        self.requested = Instant::now();
        let started = if self.entries.len() >= MAX_PROCESSES {
            Err(format!("the limit of {MAX_PROCESSES} processes is reached"))
        } else {
            Assignment::of(&launch, &self.registry, &self.users, &self.config.units.1)
                .and_then(|assignment| ProcessEntry::requested(seq, launch, assignment, given, descriptors, &self.users))
                .and_then(|entry| self.begin(entry))
        };
        if let Err(why) = started {
            self.notices.push_back(Notice::Failed { seq, why });
        }
    }

    fn begin(&mut self, mut entry: ProcessEntry) -> Result<(), String> {
        self.last += 1;
        let id = ProcessId(self.last);
        entry.live = Some(self.start(id, &entry)?);
        if !entry.supervised() {
            // The keeper closes its copies of the descriptors, so that readers of the output reach its end when the process exits.
            (entry.report, entry.standard, entry.extra) = (None, [None, None, None], Vec::new());
        }
        self.entries.insert(id, entry);
        Ok(())
    }

    /// Returns the descriptors to poll: for each process, its control socket while the socket is open, and its pidfd.
    pub fn waiting(&self) -> impl Iterator<Item = (ProcessId, Option<&OwnedFd>, &OwnedFd)> {
        let live = self.entries.iter().filter_map(|(id, entry)| Some((*id, entry.live.as_ref()?)));
        live.map(|(id, live)| (id, (!live.closed).then(|| live.process.control()), live.process.pidfd()))
    }

    /// Reads the control messages of process `id`.
    pub fn on_control(&mut self, id: ProcessId) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let Some(live) = &mut entry.live else { return };
        loop {
            let event = match live.process.receive() {
                Received::Event(event) => event,
                Received::Empty => return,
                Received::Closed => return live.closed = true,
            };
            match event {
                GuardEvent::Failed(why) => live.failed = Some(why),
                GuardEvent::Ended(end) => live.ended = Some(end),
                GuardEvent::Started => {
                    if let Some(seq) = entry.request.take() {
                        let output = entry.output.as_ref().and_then(|(read, _)| read.try_clone().ok());
                        self.notices.push_back(Notice::Started { seq, id, writable: live.writable, output });
                    } else if entry.cleanup.is_none() {
                        self.notices
                            .push_back(Notice::Event(ProcessEvent::Restarted { id, restarts: entry.schedule.restarts() }));
                    }
                }
            }
        }
    }

    /// Cleans up after process `id` if the process has exited.
    pub fn on_end(&mut self, id: ProcessId) {
        self.on_control(id);
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let Some(own) = entry.live.as_ref().and_then(|live| live.process.try_wait()) else { return };
        let Some(live) = entry.live.take() else { return };
        let end = live.ended.unwrap_or(own);
        let exit = Exit { code: end.code, signal: end.signal, out_of_memory: live.group.out_of_memory() };
        // Without a namespace, a descendant may have escaped from the process group.
        live.group.kill();
        self.groups.remove(live.group);
        if let Some(overlay) = live.overlay {
            self.overlays.release(overlay);
        }
        if let Some(why) = &live.failed {
            tracing::warn!(id = id.0, why, "cannot start a process");
        }
        if let Some(seq) = entry.request {
            let why = live.failed.unwrap_or_else(|| format!("the process {exit} before its program started"));
            self.notices.push_back(Notice::Failed { seq, why });
            self.entries.remove(&id);
            return;
        }
        let last = !entry.supervised() || entry.schedule.is_stopping();
        if entry.cleanup.is_none() && !entry.orphaned {
            self.notices.push_back(Notice::Event(ProcessEvent::Exited { id, exit, restarts: entry.schedule.restarts(), last }));
        }
        if !last {
            entry.schedule.exited(Instant::now(), live.since.elapsed());
        } else if let Some((discarded, users)) = self.entries.remove(&id).and_then(|entry| entry.cleanup) {
            self.cleanup(discarded, users);
        }
    }

    /// Returns the first supervised process with an id above `after`, and its output. Processes that are being stopped are included.
    pub fn supervised(&self, after: Option<ProcessId>) -> Option<(Supervised, OwnedFd)> {
        let later = self.entries.iter().filter(|(id, entry)| after.is_none_or(|after| **id > after) && !entry.orphaned);
        let mut found = later.filter_map(|(id, entry)| {
            let output = entry.output.as_ref()?.0.try_clone().ok()?;
            Some((Supervised { id: *id, launch: entry.launch.clone(), stopping: entry.schedule.is_stopping() }, output))
        });
        found.next()
    }
}
