//! All processes, from the order to start one to the end of everything that it started.

use std::{
    collections::{BTreeMap, VecDeque},
    ffi::OsString,
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    fs::{Mode, OFlags, SealFlags, fcntl_get_seals, open},
    pipe::{PipeFlags, fcntl_setpipe_size, pipe_with},
    process::{WaitId, WaitIdOptions, waitid},
};

use super::{
    Config,
    cgroup::{Group, Hierarchy, Limits},
    heirs,
    layers::{Layer, Layers},
    pace::Pace,
    place::{Aside, Places},
    registry::Registry,
    sandbox::{BINARY, Base, View},
    spawn::{Note, Plan, Process},
    users::{User, Users},
    view::Errand,
};
use crate::{
    host::launch::{
        Cgroups, Event, Registration, Standing,
        wire::{Given, MAX_JOB},
    },
    model::{Area, EnvId, Exit, Launch, LimitClass, ProcessId, ProjectId, ReleaseId, Role, Supervision},
};

/// The first pause before a kept process is started again.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const LAST_PAUSE: Duration = Duration::from_secs(30);
/// A process that has lived this long is started again after the first pause.
pub const STABLE: Duration = Duration::from_secs(10);
/// Processes at a time.
const MOST_PROCESSES: usize = 4096;
/// Bytes of a kept process's output that wait for a server.
const OUTPUT: usize = 1024 * 1024;
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

/// One process, or the wish to have one.
#[derive(Debug)]
struct Entry {
    launch: Launch,
    errand: Errand,
    job: OwnedFd,
    report: Option<OwnedFd>,
    standard: [Option<OwnedFd>; 3],
    extra: Vec<OwnedFd>,
    /// Both ends of a kept process's output.
    output: Option<(OwnedFd, OwnedFd)>,
    live: Option<Live>,
    /// The order that waits for the start.
    asked: Option<u64>,
    restarts: u32,
    pause: Duration,
    again: Option<Instant>,
    /// Whether it must not be started again, and when it is killed.
    stopping: Option<Instant>,
    /// What it deletes, if it is the keeper's own sweep, and who remains to do so.
    sweep: Option<(Aside, VecDeque<User>)>,
}

#[derive(Debug)]
struct Live {
    process: Process,
    group: Option<Group>,
    layer: Option<Layer>,
    writable: bool,
    since: Instant,
    failed: Option<String>,
    ended: Option<(Option<i32>, Option<i32>)>,
}

/// All processes but the server, and what they are made from.
#[derive(Debug)]
pub struct Table {
    config: Config,
    users: Users,
    /// Directories.
    pub places: Places,
    /// Names.
    pub registry: Registry,
    layers: Layers,
    base: Result<Base, String>,
    overlay: Result<(), String>,
    /// Before the groups, because it is in one.
    pace: Pace,
    groups: Hierarchy,
    program: Option<File>,
    nothing: OwnedFd,
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
        let keeper = config.root.join("keeper");
        let registry = Registry::open(&keeper)?;
        let name =
            format!("larder-{}", blake3::hash(config.root.as_os_str().as_encoded_bytes()).to_hex().get(..12).unwrap_or("x"));
        let sweeps = places.all_aside()?.into();
        let mut groups = Hierarchy::find(&name);
        let limits = Limits::of(LimitClass::Service, None);
        let own = (groups.kind() != Cgroups::None).then(|| groups.group("pace", &limits));
        Ok(Table {
            pace: Pace::start(own),
            layers: Layers::new(keeper, users.system()),
            users,
            places,
            registry,
            overlay: base.as_ref().map(drop).map_err(Clone::clone),
            base,
            groups,
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

    /// Processes are `program` from now on.
    pub fn use_program(&mut self, program: File) {
        self.program = Some(program);
    }

    /// What is in force.
    pub fn standing(&self) -> Standing {
        Standing {
            system: self.users.system(),
            namespaces: self.base.as_ref().map(drop).map_err(Clone::clone),
            overlay: self.overlay.clone(),
            idmap: self.layers.idmap_fails.clone().map_or(Ok(()), Err),
            cgroup: self.groups.kind(),
        }
    }

    /// What has happened since the last call.
    pub fn news(&mut self) -> Option<News> {
        self.news.pop_front()
    }

    /// Orders to start processes will come soon.
    pub fn soon(&mut self) {
        self.pace.tell();
    }

    /// Starts a process; the answer comes as [`News`].
    pub fn launch(&mut self, seq: u64, launch: Launch, given: Given, descriptors: Vec<OwnedFd>) {
        if let Err(why) = self.try_launch(seq, launch, given, descriptors) {
            self.news.push_back(News::Failed { seq, why });
        }
    }

    fn try_launch(&mut self, seq: u64, launch: Launch, given: Given, descriptors: Vec<OwnedFd>) -> Result<(), String> {
        self.pace.tell();
        self.ordered = Instant::now();
        if self.entries.len() >= MOST_PROCESSES {
            return Err(format!("there are {MOST_PROCESSES} processes already"));
        }
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
        if rustix::fs::fstat(&job).map_or(u64::MAX, |found| found.st_size as u64) > MAX_JOB {
            return Err(format!("the job is larger than {MAX_JOB} bytes"));
        }
        let report = next(given.report)?;
        let mut standard = [next(given.stdin)?, next(given.stdout)?, next(given.stderr)?];
        let extra = (0..given.extra).map(|_| next(true)).collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect();
        let mut output = None;
        if let Supervision::Keep { label } = &launch.supervision {
            if label.len() > 1024 {
                return Err("the label is longer than 1 KiB".into());
            }
            let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| error.to_string())?;
            // Less than that still works.
            let _ = fcntl_setpipe_size(&read, OUTPUT);
            standard = [None, None, None];
            output = Some((read, write));
        }
        let errand = Errand::of(&launch, &self.registry, &self.users)?;
        let entry = Entry {
            launch,
            errand,
            job,
            report,
            standard,
            extra,
            output,
            live: None,
            asked: Some(seq),
            restarts: 0,
            pause: FIRST_PAUSE,
            again: None,
            stopping: None,
            sweep: None,
        };
        self.begin(entry).map(drop)
    }

    fn begin(&mut self, mut entry: Entry) -> Result<ProcessId, String> {
        self.last += 1;
        let id = ProcessId(self.last);
        entry.live = Some(self.start(id, &entry)?);
        if !entry.kept() {
            // What only the process itself should hold.
            (entry.report, entry.standard, entry.extra) = (None, [None, None, None], Vec::new());
        }
        self.entries.insert(id, entry);
        Ok(id)
    }

    /// Everything between an entry and its process.
    fn start(&mut self, id: ProcessId, entry: &Entry) -> Result<Live, String> {
        let mut layer = None;
        let started = self.try_start(id, entry, &mut layer);
        if let (Err(_), Some(layer)) = (&started, &layer) {
            self.layers.release(layer);
        }
        started
    }

    fn try_start(&mut self, id: ProcessId, entry: &Entry, acquired: &mut Option<Layer>) -> Result<Live, String> {
        let (launch, errand) = (&entry.launch, &entry.errand);
        if let (Role::Unpack, Some(env), Some(release)) = (launch.role, launch.environment, launch.release) {
            let (_, project, name) = self.registry.environment(env)?;
            let tree = super::place::relative().environment(project, name).tree(release);
            self.places.make(tree, User::Unpack(env), 0o755).map_err(|error| error.to_string())?;
        }
        let mut writable = true;
        let mut view = None;
        if let Ok(base) = &self.base {
            let mut app = None;
            if let (Some(layer), Ok(())) = (&errand.layer, &self.overlay) {
                let (path, whole) =
                    self.layers.acquire(layer, &self.places).map_err(|error| format!("no overlay for /app: {error}"))?;
                (app, writable, *acquired) = (Some(path), whole, Some(layer.clone()));
            }
            view = Some(View {
                base: base.clone(),
                root: self.config.root.clone(),
                binds: errand.binds(&self.config.root, app),
                worker: self.users.identity(errand.user),
                binary: self.config.exe.clone(),
                temporary: self.config.temporary,
            });
        }
        let limits = Limits::of(launch.limits, self.config.application_memory);
        let group = self.groups.group(&id.0.to_string(), &limits);
        let program = self.program.as_ref().ok_or("no server has been started yet")?;
        // A fresh opening: the last reader's position must not matter.
        let job = open(
            Path::new("/proc/self/fd").join(entry.job.as_raw_fd().to_string()),
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|error| format!("the job cannot be opened: {error}"))?;
        let nothing = self.nothing.as_raw_fd();
        let out = entry.output.as_ref().map(|(_, write)| write);
        let [stdin, stdout, stderr] = &entry.standard;
        let mut descriptors: Vec<_> =
            [stdin.as_ref(), stdout.as_ref().or(out), stderr.as_ref().or(out), Some(&job), entry.report.as_ref()]
                .map(|descriptor| descriptor.map_or(nothing, AsRawFd::as_raw_fd))
                .into();
        descriptors.extend(entry.extra.iter().map(AsRawFd::as_raw_fd));
        let plan = Plan {
            argv: ["larder", "worker", role_name(launch.role)].map(OsString::from).into(),
            environment: self.environment(entry, view.is_some()),
            identity: self.users.system().then(|| self.users.identity(errand.user)),
            directory: "/".into(),
            limit_data: launch.limits != LimitClass::Application && !group.limits_memory(),
            limits: Some(limits),
            descriptors,
            program: program.as_raw_fd(),
            guarded: true,
            view,
        };
        match Process::start(&plan, Some(&group)) {
            Ok(process) => Ok(Live {
                process,
                group: Some(group),
                layer: acquired.take(),
                writable,
                since: Instant::now(),
                failed: None,
                ended: None,
            }),
            Err(error) => {
                self.groups.remove(group);
                Err(format!("no process can be made: {error}"))
            }
        }
    }

    /// A worker's whole environment.
    fn environment(&self, entry: &Entry, view: bool) -> Vec<(OsString, OsString)> {
        let mut path = OsString::from("/larder/bin");
        if !view {
            path = self.config.exe.parent().unwrap_or(Path::new("/")).into();
        }
        let mut all: Vec<(OsString, OsString)> = Vec::new();
        if entry.errand.own_code {
            for host in &self.config.host_paths {
                let bin = if host.ends_with("bin") { host.clone() } else { host.join("bin") };
                if bin.is_dir() {
                    path.push(":");
                    path.push(bin);
                }
            }
            all.extend(self.config.host_env.iter().cloned());
        }
        path.push(":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        let root = (!view).then_some(self.config.root.as_path());
        let variables = entry.errand.variables(root);
        let home = variables.get("LARDER_APP").cloned().unwrap_or_else(|| if view { "/app".into() } else { "/".into() });
        let binary = if view { PathBuf::from(BINARY) } else { self.config.exe.clone() };
        let fixed: [(&str, OsString); 6] = [
            ("PATH", path),
            ("HOME", home),
            ("LANG", "C.UTF-8".into()),
            ("TMPDIR", "/tmp".into()),
            ("LARDER_BIN", binary.into()),
            ("LARDER_EXTRA", entry.extra.len().to_string().into()),
        ];
        all.extend(fixed.into_iter().chain(variables).map(|(name, value)| (name.into(), value)));
        all
    }

    /// What to poll: control sockets and ends of all processes.
    pub fn waiting(&self) -> impl Iterator<Item = (ProcessId, &OwnedFd, &OwnedFd)> {
        self.entries
            .iter()
            .filter_map(|(id, entry)| entry.live.as_ref().map(|live| (*id, &live.process.control, &live.process.pidfd)))
    }

    /// Takes in what process `id` has to say.
    pub fn notes(&mut self, id: ProcessId) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let Some(live) = &mut entry.live else { return };
        while let Some(note) = live.process.note() {
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
        let Some(live) = &entry.live else { return };
        let waited = waitid(WaitId::PidFd(live.process.pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
        let own = match waited {
            Ok(None) => return,
            Ok(Some(status)) => (status.exit_status(), status.terminating_signal()),
            Err(_) => (None, None),
        };
        let Some(live) = entry.live.take() else { return };
        let (code, signal) = live.ended.unwrap_or(own);
        let mut exit = Exit { code, signal, out_of_memory: false };
        if let Some(group) = live.group {
            exit.out_of_memory = group.out_of_memory();
            // Without a namespace something may have slipped away.
            group.kill();
            self.groups.remove(group);
        }
        if let Some(layer) = &live.layer {
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
        if entry.sweep.is_none() {
            self.news.push_back(News::Event(Event::Exited { id, exit, restarts: entry.restarts, last }));
        }
        if last {
            if let Some((aside, heirs)) = self.entries.remove(&id).and_then(|entry| entry.sweep) {
                self.sweep_on(aside, heirs);
            }
            return;
        }
        if live.since.elapsed() >= STABLE {
            entry.pause = FIRST_PAUSE;
        }
        entry.again = Some(Instant::now() + entry.pause);
        entry.pause = (entry.pause * 2).min(LAST_PAUSE);
    }

    /// The next moment at which [`Table::tick`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        let sweep = self.sweep_due();
        let others = self.entries.values().flat_map(|entry| [entry.again, entry.stopping.filter(|_| entry.live.is_some())]);
        others.chain([sweep]).flatten().min()
    }

    /// When the next deletion may begin; one at a time.
    fn sweep_due(&self) -> Option<Instant> {
        let waits = !self.sweeps.is_empty() && self.entries.values().all(|entry| entry.sweep.is_none());
        waits.then(|| if self.sweeps.len() < MOST_ASIDE { self.ordered + QUIET } else { self.ordered })
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
                    entry.again = Some(now + entry.pause);
                    entry.pause = (entry.pause * 2).min(LAST_PAUSE);
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
            let heirs = heirs(aside.env, &self.users).into();
            self.sweep_on(aside, heirs);
        }
    }

    /// SIGTERM, or the end at once.
    pub fn end(&mut self, id: ProcessId, now: bool) -> Result<(), String> {
        let entry = self.entries.get(&id).ok_or("there is no such process (any more)")?;
        if let Some(live) = &entry.live {
            if now { live.process.kill() } else { live.process.terminate() }
        }
        Ok(())
    }

    /// The end for good.
    pub fn stop(&mut self, id: ProcessId, grace: Duration) -> Result<(), String> {
        let entry = self.entries.get_mut(&id).ok_or("there is no such process (any more)")?;
        entry.again = None;
        match &entry.live {
            Some(live) => {
                live.process.terminate();
                entry.stopping = Some(Instant::now() + grace);
            }
            None => {
                let (exit, restarts) = (Exit { code: None, signal: None, out_of_memory: false }, entry.restarts);
                self.entries.remove(&id);
                self.news.push_back(News::Event(Event::Exited { id, exit, restarts, last: true }));
            }
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
            }
            entry.asked = None;
        }
    }

    /// Makes directories for what has got a number.
    pub fn register(&mut self, registration: &Registration) -> Result<(), String> {
        self.registry.add(registration)?;
        self.places.register(registration).map_err(|error| error.to_string())
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
    pub fn kept(&self, after: Option<ProcessId>) -> Option<(ProcessId, Launch, OwnedFd)> {
        self.entries.iter().filter(|(id, entry)| after.is_none_or(|after| **id > after) && entry.stopping.is_none()).find_map(
            |(id, entry)| {
                let (read, _) = entry.output.as_ref()?;
                Some((*id, entry.launch.clone(), read.try_clone().ok()?))
            },
        )
    }

    /// Puts an area aside and makes a new one.
    pub fn fresh(
        &mut self,
        env: EnvId,
        area: Area,
        release: Option<crate::model::ReleaseId>,
        slot: Option<crate::model::Slot>,
    ) -> Result<(), String> {
        self.ordered = Instant::now();
        let (path, user) = super::view::area_path(&self.registry, env, area, release, slot)?;
        let uses = |launch: &Launch| match (area, launch.role) {
            (Area::Build, Role::Build | Role::Bundle) | (Area::Source, Role::Build | Role::Bundle | Role::Source) => true,
            (Area::Cache, Role::Build) => true,
            (Area::Slot, Role::Run | Role::Task) => launch.slot == slot,
            (Area::Tree, Role::Run | Role::Task | Role::Unpack) => launch.release == release,
            (_, Role::Sweep(swept)) => swept == area,
            _ => false,
        };
        let user_of = |entry: &&Entry| entry.sweep.is_none() && entry.launch.environment == Some(env) && uses(&entry.launch);
        if let Some((id, entry)) = self.entries.iter().find(|(_, entry)| user_of(entry)) {
            return Err(format!("process {} ({}) still uses it", id.0, role_name(entry.launch.role)));
        }
        let text = |error: io::Error| error.to_string();
        self.sweeps.extend(self.places.put_aside(&path, env).map_err(text)?);
        match area {
            Area::Build | Area::Slot => self.places.make_scratch(&path, user).map_err(text),
            Area::Cache | Area::Source => self.places.make(&path, user, 0o755).map_err(text),
            Area::Tree => Ok(()),
        }
    }

    /// Gives an installed tree another name.
    pub fn adopt(&mut self, env: EnvId, from: ReleaseId, to: ReleaseId) -> Result<(), String> {
        let (_, project, name) = self.registry.environment(env)?;
        let paths = super::place::relative().environment(project, name);
        self.places.rename(&paths.tree(from), &paths.tree(to)).map_err(|error| error.to_string())
    }

    /// Ends and removes an environment or a project.
    pub fn unregister(&mut self, project: ProjectId, environment: Option<EnvId>) -> Result<(), String> {
        let name = self.registry.project(project)?.clone();
        let envs = match environment {
            Some(env) if self.registry.environment(env)?.0 != project => return Err("it belongs to another project".into()),
            Some(env) => vec![env],
            None => self.registry.environments(project),
        };
        let ids: Vec<_> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.sweep.is_none() && entry.launch.project == project)
            .filter(|(_, entry)| environment.is_none() || entry.launch.environment == environment)
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            self.stop(id, Duration::ZERO)?;
        }
        self.tick();
        let text = |error: io::Error| error.to_string();
        let root = super::place::relative();
        for env in envs {
            let (_, project, name) = self.registry.environment(env)?;
            let path = root.environment(project, name).path().to_owned();
            self.sweeps.extend(self.places.put_aside(&path, env).map_err(text)?);
        }
        if environment.is_none() {
            self.sweeps.extend(self.places.put_aside(&root.project(&name), EnvId(0)).map_err(text)?);
        }
        self.registry.remove(project, environment)
    }

    /// Has the next heir delete what is aside; after the last one removes the rest.
    fn sweep_on(&mut self, aside: Aside, mut heirs: VecDeque<User>) {
        if self.places.remove_aside(&aside).is_ok() {
            return;
        }
        let Some(user) = heirs.pop_front() else {
            tracing::warn!(name = aside.name, "something put aside cannot be deleted; the next start tries again");
            return;
        };
        let launch = Launch {
            role: Role::Sweep(Area::Tree),
            project: ProjectId(0),
            environment: Some(aside.env),
            release: None,
            slot: None,
            limits: LimitClass::Build,
            supervision: Supervision::Once,
        };
        let Ok(job) = self.nothing.try_clone() else { return };
        let errand = Errand::sweep_aside(&aside.name, user);
        let entry = Entry {
            launch,
            errand,
            job,
            report: None,
            standard: [None, None, None],
            extra: Vec::new(),
            output: None,
            live: None,
            asked: None,
            restarts: 0,
            pause: FIRST_PAUSE,
            again: None,
            stopping: None,
            sweep: Some((aside, heirs)),
        };
        if let Err(why) = self.begin(entry) {
            tracing::warn!(why, "what was put aside cannot be deleted");
        }
    }
}

impl Entry {
    fn kept(&self) -> bool {
        self.output.is_some()
    }
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Git => "git",
        Role::Source => "source",
        Role::Build => "build",
        Role::Bundle => "bundle",
        Role::Unpack => "unpack",
        Role::Run => "run",
        Role::Task => "task",
        Role::Sweep(_) => "sweep",
    }
}
