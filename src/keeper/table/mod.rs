//! All processes, from the order to start one to the end of everything that it started.
//!
//! [`entry`]: one process · [`start`]: from an entry to a running process · [`areas`]: directories that come and go with them.

mod areas;
mod entry;
mod start;

use std::{
    collections::{BTreeMap, VecDeque},
    fs::File,
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    time::{Duration, Instant},
};

use rustix::fs::{Mode, OFlags, open};

use super::{
    Config,
    assignment::Assignment,
    cgroup::{Hierarchy, Limits},
    layers::Layers,
    pace::Pace,
    place::{Aside, Places},
    registry::Registry,
    sandbox::Base,
    spawn::{Heard, Note},
    users::Users,
};
use crate::{
    host::launch::{Capabilities, Cgroups, Event, wire::Given},
    model::{Exit, Launch, LimitClass, ProcessId, StopSignal},
};
use entry::Entry;

/// Processes at a time.
const MOST_PROCESSES: usize = 4096;

/// The name of the helper's group.
const PACE: &str = "pace";
/// What was put aside is deleted when nothing was ordered for so long, because it would slow down whoever waits for an order.
const QUIET: Duration = Duration::from_millis(400);
/// Unless so much waits.
const MOST_ASIDE: usize = 64;

/// What happened, for the server.
#[derive(Debug)]
pub enum News {
    /// The answer to order `seq`.
    Started { seq: u64, id: ProcessId, writable: bool, output: Option<OwnedFd> },
    /// The answer to order `seq`.
    Failed { seq: u64, why: String },
    /// Not an answer.
    Event(Event),
}

/// All processes but the server, and what they are made from.
#[derive(Debug)]
pub struct Table {
    config: Config,
    users: Users,
    places: Places,
    registry: Registry,
    layers: Layers,
    base: Result<Base, String>,
    /// Before the groups, because it is in one.
    pace: Pace,
    groups: Hierarchy,
    program: Option<File>,
    /// `/dev/null`.
    pub nothing: OwnedFd,
    entries: BTreeMap<ProcessId, Entry>,
    last: u64,
    sweeps: VecDeque<Aside>,
    /// When the last order came.
    ordered: Instant,
    news: VecDeque<News>,
}

impl Table {
    /// Empty; deletes what an earlier keeper had put aside.
    pub fn new(config: Config, users: Users, places: Places, base: Result<Base, String>) -> io::Result<Table> {
        let registry = Registry::open(&config.root.join("keeper"))?;
        users.unshared(registry.last_environment()).map_err(io::Error::other)?;
        let sweeps = places.all_aside()?.into();
        let mut groups = Hierarchy::find(&config.root);
        let limits = Limits::of(LimitClass::Service, &config);
        let own = (groups.kind() != Cgroups::None).then(|| groups.group(PACE, &limits));
        Ok(Table {
            layers: Layers::new(&config, users, &places, &base),
            pace: Pace::start(own, users),
            groups,
            users,
            places,
            registry,
            base,
            program: None,
            nothing: open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?,
            entries: BTreeMap::new(),
            last: 0,
            sweeps,
            ordered: Instant::now(),
            news: VecDeque::new(),
            config,
        })
    }

    /// Processes are `program` from now on; `path` is where they find it.
    pub fn use_program(&mut self, program: File, path: PathBuf) {
        (self.program, self.config.exe) = (Some(program), path);
    }

    /// What is in force.
    pub fn capabilities(&self) -> Capabilities {
        Capabilities {
            system: self.users.system(),
            users: self.users.of_environments(),
            namespaces: self.base.as_ref().map(drop).map_err(Clone::clone),
            overlay: self.layers.works.clone(),
            idmap: self.layers.idmap_fails.clone().map_or(Ok(()), Err),
            cgroup: self.groups.kind(),
        }
    }

    /// What has happened since the last call.
    pub fn news(&mut self) -> Option<News> {
        self.news.pop_front()
    }

    /// Orders to start processes will come soon.
    pub fn prewarm(&mut self) {
        self.pace.tell();
    }

    /// Starts a process; the answer comes as [`News`].
    pub fn launch(&mut self, seq: u64, launch: Launch, given: Given, descriptors: Vec<OwnedFd>) {
        self.pace.tell();
        self.ordered = Instant::now();
        let started = if self.entries.len() >= MOST_PROCESSES {
            Err(format!("there are {MOST_PROCESSES} processes already"))
        } else {
            Assignment::of(&launch, &self.registry, &self.users)
                .and_then(|assignment| Entry::ordered(seq, launch, assignment, given, descriptors, &self.users))
                .and_then(|entry| self.begin(entry))
        };
        if let Err(why) = started {
            self.news.push_back(News::Failed { seq, why });
        }
    }

    fn begin(&mut self, mut entry: Entry) -> Result<(), String> {
        self.last += 1;
        let id = ProcessId(self.last);
        entry.live = Some(self.start(id, &entry)?);
        if !entry.kept() {
            // What only the process itself should hold.
            (entry.report, entry.standard, entry.extra) = (None, [None, None, None], Vec::new());
        }
        self.entries.insert(id, entry);
        Ok(())
    }

    /// What to poll: ends of all processes, and the control sockets of those that still have something to say.
    pub fn waiting(&self) -> impl Iterator<Item = (ProcessId, Option<&OwnedFd>, &OwnedFd)> {
        let live = self.entries.iter().filter_map(|(id, entry)| Some((*id, entry.live.as_ref()?)));
        live.map(|(id, live)| (id, (!live.silent).then_some(&live.process.control), &live.process.pidfd))
    }

    /// Takes in what process `id` has to say.
    pub fn notes(&mut self, id: ProcessId) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let Some(live) = &mut entry.live else { return };
        loop {
            let note = match live.process.note() {
                Heard::Note(note) => note,
                Heard::Nothing => return,
                Heard::End => return live.silent = true,
            };
            match note {
                Note::Failed(why) => live.failed = Some(why),
                Note::Ended(code, signal) => live.ended = Some((code, signal)),
                Note::Started => {
                    if let Some(seq) = entry.asked.take() {
                        let output = entry.output.as_ref().and_then(|(read, _)| read.try_clone().ok());
                        self.news.push_back(News::Started { seq, id, writable: live.writable, output });
                    } else if entry.sweep.is_none() {
                        self.news.push_back(News::Event(Event::Restarted { id, restarts: entry.restarts }));
                    }
                }
            }
        }
    }

    /// Process `id` may have ended: clears up after it.
    pub fn ended(&mut self, id: ProcessId) {
        self.notes(id);
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let Some((code, signal)) = entry.live.as_ref().and_then(|live| live.end()) else { return };
        let Some(live) = entry.live.take() else { return };
        let exit = Exit { code, signal, out_of_memory: live.group.out_of_memory() };
        // Without a namespace something may have slipped away.
        live.group.kill();
        self.groups.remove(live.group);
        if let Some(layer) = live.layer {
            self.layers.release(layer);
        }
        if let Some(why) = &live.failed {
            tracing::warn!(id = id.0, why, "a process cannot be started");
        }
        if let Some(seq) = entry.asked {
            let why = live.failed.unwrap_or_else(|| format!("it {exit} before it began"));
            self.news.push_back(News::Failed { seq, why });
            self.entries.remove(&id);
            return;
        }
        let last = !entry.kept() || entry.stopping.is_some();
        if entry.sweep.is_none() && !entry.forgotten {
            self.news.push_back(News::Event(Event::Exited { id, exit, restarts: entry.restarts, last }));
        }
        if !last {
            entry.again = Some(Instant::now() + entry.pause.after(live.since.elapsed()));
        } else if let Some((aside, cleanup_users)) = self.entries.remove(&id).and_then(|entry| entry.sweep) {
            self.sweep(aside, cleanup_users);
        }
    }

    /// The next moment at which [`Table::tick`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        let others = self.entries.values().flat_map(|entry| [entry.again, entry.stopping.filter(|_| entry.live.is_some())]);
        others.chain([self.sweep_due()]).flatten().min()
    }

    /// When the next deletion may begin; one at a time.
    fn sweep_due(&self) -> Option<Instant> {
        let idle = self.program.is_some() && self.entries.values().all(|entry| entry.sweep.is_none());
        let quiet = if self.sweeps.len() < MOST_ASIDE { QUIET } else { Duration::ZERO };
        (idle && !self.sweeps.is_empty()).then(|| self.ordered + quiet)
    }

    /// Starts and kills what is due.
    pub fn tick(&mut self) {
        let now = Instant::now();
        let due: Vec<_> =
            self.entries.iter().filter(|(_, entry)| entry.again.is_some_and(|at| at <= now)).map(|(id, _)| *id).collect();
        for id in due {
            let Some(mut entry) = self.entries.remove(&id) else { continue };
            (entry.again, entry.restarts) = (None, entry.restarts.saturating_add(1));
            match self.start(id, &entry) {
                Ok(live) => entry.live = Some(live),
                Err(why) => {
                    tracing::warn!(id = id.0, why, "a process cannot be started again");
                    entry.again = Some(now + entry.pause.after(Duration::ZERO));
                }
            }
            self.entries.insert(id, entry);
        }
        for entry in self.entries.values_mut() {
            if let (Some(live), Some(at)) = (&entry.live, entry.stopping)
                && at <= now
            {
                live.process.kill();
                entry.stopping = Some(now + Duration::from_secs(1));
            }
        }
        if self.sweep_due().is_some_and(|at| at <= now)
            && let Some(aside) = self.sweeps.pop_front()
        {
            let cleanup_users = super::cleanup_users(aside.env, &self.users).into();
            self.sweep(aside, cleanup_users);
        }
    }

    /// SIGTERM, or the end at once.
    pub fn end(&mut self, id: ProcessId, now: bool) -> Result<(), String> {
        let entry = self.entries.get_mut(&id).ok_or("there is no such process (any more)")?;
        if let Some(live) = &entry.live {
            if now { live.process.kill() } else { live.process.terminate(StopSignal::Term) }
        }
        if now {
            entry.stopping.get_or_insert_with(|| Instant::now() + Duration::from_secs(1));
        }
        Ok(())
    }

    /// The end for good.
    pub fn stop(&mut self, id: ProcessId, grace: Duration) -> Result<(), String> {
        let entry = self.entries.get_mut(&id).ok_or("there is no such process (any more)")?;
        entry.stop(grace);
        if entry.live.is_none() {
            let (exit, restarts) = (Exit { code: None, signal: None, out_of_memory: false }, entry.restarts);
            self.entries.remove(&id);
            self.news.push_back(News::Event(Event::Exited { id, exit, restarts, last: true }));
        }
        Ok(())
    }

    /// Ends what belongs to a server that has gone.
    pub fn end_orders(&mut self) {
        self.news.clear();
        for entry in self.entries.values_mut().filter(|entry| entry.sweep.is_none()) {
            // Nobody knows of a kept process whose start was never answered.
            if let Some(live) = entry.live.as_ref().filter(|_| !entry.kept() || entry.asked.is_some()) {
                live.process.kill();
                entry.stopping.get_or_insert_with(Instant::now);
                entry.forgotten = true;
            }
            entry.asked = None;
        }
    }

    /// Kills everything that is being stopped.
    pub fn hurry(&mut self) {
        for entry in self.entries.values_mut().filter(|entry| entry.stopping.is_some()) {
            entry.stopping = Some(Instant::now());
        }
    }

    /// Ends all; whether any are left.
    pub fn stop_all(&mut self, grace: Duration) -> bool {
        let ids: Vec<_> = self.entries.iter().filter(|(_, entry)| entry.stopping.is_none()).map(|(id, _)| *id).collect();
        self.sweeps.clear();
        for id in ids {
            let _ = self.stop(id, grace);
        }
        !self.entries.is_empty()
    }

    /// The first kept process after `after`.
    pub fn supervised(&self, after: Option<ProcessId>) -> Option<(ProcessId, Launch, OwnedFd)> {
        let later = self.entries.iter().filter(|(id, entry)| after.is_none_or(|after| **id > after) && entry.stopping.is_none());
        later.filter_map(|(id, entry)| Some((*id, entry.launch.clone(), entry.output.as_ref()?.0.try_clone().ok()?))).next()
    }
}
