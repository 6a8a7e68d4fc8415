//! The session: reads the plan, builds, starts processes, and repeats what a changed file concerns, until a signal ends everything.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{Ipv4Addr, TcpListener},
    path::Path,
    process::{ExitCode, Stdio},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{
    build::{self, LocalBuilt},
    checkout::Checkout,
    end,
    instance::{self, InstanceContext, LocalInstance},
    output::MergedLog,
    plan::{ENV_FILE, LocalPlan, LocalProcess},
    services,
};
use crate::{
    control::{CommandError, ErrorKind},
    model::{EnvironmentName, ProcessType},
    pipeline::chain,
    surface::cli::{Colours, DevArgs},
    watch::{FileChanges, RECIPE_FILES, WatchError, WatchRules, Watcher, is_content, is_script},
};

/// The port of the web process, if it is free and the developer names no other port.
const FIRST_PORT: u16 = 5000;
/// The distance between the ports of two processes.
const PORT_STEP: u16 = 100;
/// The time in which the kernel reports the last changes of a build.
const SETTLE: Duration = Duration::from_millis(20);

/// Runs `larder dev`. Returns 128 plus the number of the signal that ended the session.
pub fn main(args: &DevArgs) -> Result<ExitCode, CommandError> {
    end::adopt_orphans();
    let checkout = Checkout::find(Path::new("."))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| CommandError::internal(&error))?;
    let (log, writer) = MergedLog::new(Colours::of_process().out);
    let ended = runtime.block_on(session(args, checkout, log));
    // The tasks of the runtime hold senders of the log.
    drop(runtime);
    writer.finish();
    ended.map(ExitCode::from)
}

async fn session(args: &DevArgs, checkout: Checkout, log: MergedLog) -> Result<u8, CommandError> {
    let mut signals = Signals::new().map_err(|error| CommandError::internal(&error))?;
    let mut session = Session {
        watcher: Watcher::start(WatchRules::new(&checkout.root, [])).map_err(|error| refused(&error))?,
        data: Vec::new(),
        wanted: args.processes.clone(),
        port: args.port,
        environment: args.env.clone(),
        context: InstanceContext { checkout, log: log.clone() },
        plan: None,
        built: None,
        is_stale: true,
        rebuilt_for: BTreeSet::new(),
        outputs: BTreeSet::new(),
        instances: BTreeMap::new(),
        ports: BTreeMap::new(),
    };
    let ended = tokio::select! {
        ended = session.run() => ended,
        number = signals.next() => Ok(128_u8.saturating_add(number)),
        // Nobody reads the log any more, as after `larder dev | head`.
        () = log.closed() => Ok(0),
    };
    // A second signal ends the grace periods.
    for instance in session.instances.values() {
        instance.ask();
    }
    let mut kills: Vec<_> = Vec::new();
    let mut stops: Vec<_> = Vec::new();
    for (_, instance) in std::mem::take(&mut session.instances) {
        kills.push(instance.killer());
        stops.push(instance.stop());
    }
    let mut stopping = std::pin::pin!(join_all(stops));
    tokio::select! {
        _ = &mut stopping => {}
        _ = signals.next() => {
            kills.into_iter().for_each(|kill| kill.cancel());
            stopping.await;
        }
    }
    drop(session);
    end::kill_descendants();
    ended
}

fn refused(error: &WatchError) -> CommandError {
    let command = CommandError::new(ErrorKind::Refused, chain(error));
    match error.hint() {
        Some(hint) => command.hint(hint),
        None => command,
    }
}

struct Signals([(u8, Signal); 3]);

impl Signals {
    fn new() -> io::Result<Signals> {
        let [int, term, hup] = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
        Ok(Signals([(2, int?), (15, term?), (1, hup?)]))
    }

    /// Waits for a signal that ends the session, and returns its number.
    async fn next(&mut self) -> u8 {
        let Signals([(int, on_int), (term, on_term), (hup, on_hup)]) = self;
        tokio::select! {
            _ = on_int.recv() => *int,
            _ = on_term.recv() => *term,
            _ = on_hup.recv() => *hup,
        }
    }
}

struct Session {
    watcher: Watcher,
    /// The persistent paths that the watcher ignores.
    data: Vec<String>,
    /// The process types to run; empty for all of them.
    wanted: Vec<ProcessType>,
    port: Option<u16>,
    environment: EnvironmentName,
    context: InstanceContext,
    plan: Option<LocalPlan>,
    built: Option<LocalBuilt>,
    /// True if the last build or the last reading of the recipe failed, so the next change repeats both.
    is_stale: bool,
    /// The files that changed during the last build and are the reason of the current build.
    rebuilt_for: BTreeSet<String>,
    /// The tracked files that builds write. Their changes during a build start no further build.
    outputs: BTreeSet<String>,
    instances: BTreeMap<ProcessType, LocalInstance>,
    ports: BTreeMap<ProcessType, u16>,
}

impl Session {
    async fn run(&mut self) -> Result<u8, CommandError> {
        let log = self.context.log.clone();
        let root = self.context.checkout.root.display().to_string();
        log.say(&format!("running {root} as the environment {}; Ctrl-C ends all processes", self.environment)).await;
        if let [only] = &self.wanted[..]
            && only.is_release()
        {
            return self.release().await;
        }
        let mut changes = self.refresh(None).await?;
        loop {
            let next = match changes.is_empty() {
                true => self.watcher.next().await.map_err(|error| refused(&error))?,
                false => std::mem::take(&mut changes),
            };
            changes = self.refresh(Some(next)).await?;
        }
    }

    /// Does what changes require; `None` stands for the start of the session. Returns the changes that happened meanwhile. A problem of the project
    /// is shown, and the processes keep running.
    async fn refresh(&mut self, changes: Option<FileChanges>) -> Result<FileChanges, CommandError> {
        let changes = changes.unwrap_or(FileChanges { paths: BTreeSet::new(), are_lost: true });
        let content = FileChanges {
            paths: changes.paths.iter().filter(|path| is_content(path) && !is_recipe(path)).cloned().collect(),
            are_lost: changes.are_lost,
        };
        let before = self.plan.clone();
        if self.is_stale || changes.are_lost || changes.paths.iter().any(|path| is_recipe(path)) {
            match LocalPlan::load(&self.context.checkout, &self.environment) {
                Ok(plan) => self.accept(plan).await?,
                Err(lines) => {
                    self.is_stale = true;
                    self.problem(&lines).await;
                    return Ok(FileChanges::default());
                }
            }
        }
        let Some(plan) = self.plan.clone() else { return Ok(FileChanges::default()) };
        let is_same_build = |before: &LocalPlan| {
            let (old, new) = (&before.settings, &plan.settings);
            old.buildpacks == new.buildpacks && old.build == new.build && old.env == new.env
        };
        let has_inputs = self.built.as_ref().is_some_and(|built| built.inputs.select(&content));
        let has_script = changes.paths.iter().any(|path| is_script(path));
        let must_build = self.is_stale || has_inputs || has_script || !before.as_ref().is_some_and(is_same_build);
        let mut meanwhile = FileChanges::default();
        if must_build {
            self.is_stale = true;
            let built = build::build(&self.context.checkout, &plan, &self.context.log).await;
            meanwhile = self.changed_by_person().await?;
            match built {
                Ok(built) => self.built = Some(built),
                Err(lines) => {
                    self.problem(&lines).await;
                    return Ok(meanwhile);
                }
            }
        }
        let suggested = self.built.as_ref().map(|built| built.suggested.clone()).unwrap_or_default();
        let processes = match plan.processes(&self.context.checkout, &suggested, &self.wanted) {
            Ok(processes) => processes,
            Err(lines) if self.instances.is_empty() && !self.wanted.is_empty() => {
                return Err(CommandError::new(ErrorKind::NotFound, lines.join("\n")));
            }
            Err(lines) => {
                self.is_stale = true;
                self.problem(&lines).await;
                return Ok(meanwhile);
            }
        };
        self.is_stale = false;
        self.apply(processes, &content, must_build).await?;
        Ok(meanwhile)
    }

    /// Uses a plan from now on: watches other persistent paths, and states warnings and missing services.
    async fn accept(&mut self, plan: LocalPlan) -> Result<(), CommandError> {
        let log = &self.context.log;
        let data: Vec<_> = plan.data().map(str::to_owned).collect();
        if data != self.data {
            let rules = WatchRules::new(&self.context.checkout.root, data.iter().map(String::as_str));
            self.watcher = Watcher::start(rules).map_err(|error| refused(&error))?;
            self.data = data;
        }
        let is_new = |earlier: &LocalPlan| earlier.warnings != plan.warnings || earlier.texts() != plan.texts();
        if self.plan.as_ref().is_none_or(is_new) {
            for warning in &plan.warnings {
                log.error(&format!("warning: {warning}")).await;
            }
            for missing in services::without_url(&plan.settings, &plan.variables) {
                log.error(&format!("warning: {missing}")).await;
            }
            // The check waits for servers, so the processes do not wait for the check.
            let (texts, log) = (plan.texts(), log.clone());
            tokio::spawn(async move {
                for missing in services::without_server(texts).await {
                    log.error(&format!("warning: {missing}")).await;
                }
            });
        }
        self.plan = Some(plan);
        Ok(())
    }

    /// Returns the changes during a build that a person made. Git does not track the results of a build, so only tracked files and the files of the
    /// recipe count. A tracked file that two builds in a row changed is a result, too.
    async fn changed_by_person(&mut self) -> Result<FileChanges, CommandError> {
        tokio::time::sleep(SETTLE).await;
        let changes = self.watcher.pending().map_err(|error| refused(&error))?;
        let (recipe, others): (BTreeSet<_>, BTreeSet<_>) = changes.paths.into_iter().partition(|path| path == ENV_FILE);
        let checkout = self.context.checkout.clone();
        let tracked = tokio::task::spawn_blocking(move || checkout.tracked(others)).await.unwrap_or_default();
        let changed: BTreeSet<_> = tracked.into_iter().filter(|path| !self.outputs.contains(path)).collect();
        let (again, changed): (BTreeSet<_>, BTreeSet<_>) = changed.into_iter().partition(|path| self.rebuilt_for.contains(path));
        for path in &again {
            self.context
                .log
                .say(&format!("the build changes {path}, which git tracks; this change starts no further build"))
                .await;
        }
        self.outputs.extend(again);
        self.rebuilt_for = changed.clone();
        Ok(FileChanges { paths: changed.into_iter().chain(recipe).collect(), are_lost: false })
    }

    async fn problem(&self, lines: &[String]) {
        let log = &self.context.log;
        for line in lines {
            log.error(line).await;
        }
        let state = if self.instances.is_empty() { "no process runs" } else { "the processes keep running" };
        log.error(&format!("{state}; save a file to try again")).await;
    }

    /// Starts, restarts and stops processes.
    async fn apply(&mut self, processes: Vec<LocalProcess>, content: &FileChanges, is_built: bool) -> Result<(), CommandError> {
        let concerned = |instance: &LocalInstance, process: &LocalProcess| {
            !instance.process.is_same(process) || process.watch.select(content) || (is_built && !process.watch.select_nothing())
        };
        let mut stopping = Vec::new();
        let mut restarted = Vec::new();
        for (kind, instance) in std::mem::take(&mut self.instances) {
            match processes.iter().find(|process| process.kind == kind) {
                Some(process) if !concerned(&instance, process) => drop(self.instances.insert(kind, instance)),
                found => {
                    if found.is_some() {
                        restarted.push(instance.process.name());
                    }
                    stopping.push(instance);
                }
            }
        }
        if !restarted.is_empty() {
            let why = match (content.paths.first(), content.paths.len()) {
                (Some(first), 1) => format!("{first} changed"),
                (Some(first), count) => format!("{first} and {} more changed", plural(count.saturating_sub(1), "file")),
                (None, _) => String::from("the recipe changed"),
            };
            self.context.log.say(&format!("{why}: restarting {}", restarted.join(", "))).await;
        }
        join_all(stopping.into_iter().map(LocalInstance::stop)).await;
        for process in &processes {
            self.context.log.reserve(&process.name());
        }
        for (number, process) in processes.into_iter().enumerate() {
            if self.instances.contains_key(&process.kind) {
                continue;
            }
            let port = self.port_of(&process.kind, number)?;
            let kind = process.kind.clone();
            self.instances.insert(kind, LocalInstance::start(process, port, number, &self.context));
        }
        Ok(())
    }

    /// Returns the port of a process, which stays the same during the session.
    fn port_of(&mut self, kind: &ProcessType, number: usize) -> Result<u16, CommandError> {
        if let Some(port) = self.ports.get(kind) {
            return Ok(*port);
        }
        let step = u16::try_from(number).unwrap_or_default().saturating_mul(PORT_STEP);
        let is_main = kind.is_web() || number == 0;
        let port = match self.port {
            Some(port) if is_main && !is_free(port) => {
                let why = format!("cannot use port {port}: another process listens there");
                return Err(CommandError::new(ErrorKind::Refused, why).hint("name another port, or leave out --port"));
            }
            Some(port) if is_main => port,
            wanted => {
                let first = if is_main { FIRST_PORT } else { wanted.unwrap_or(FIRST_PORT).saturating_add(step.max(PORT_STEP)) };
                let is_unused = |port: &u16| !self.ports.values().any(|used| used == port) && is_free(*port);
                (first..u16::MAX).find(is_unused).ok_or_else(|| CommandError::new(ErrorKind::Refused, "no port is free"))?
            }
        };
        self.ports.insert(kind.clone(), port);
        Ok(port)
    }

    /// Builds, and runs the release command once. Returns its exit status.
    async fn release(&mut self) -> Result<u8, CommandError> {
        let invalid = |lines: Vec<String>| CommandError::new(ErrorKind::Configuration, lines.join("\n"));
        let checkout = &self.context.checkout;
        let plan = LocalPlan::load(checkout, &self.environment).map_err(invalid)?;
        let job = plan.release(checkout).ok_or_else(|| {
            CommandError::new(ErrorKind::NotFound, "the project has no release command")
                .hint("add a line such as `release: bin/migrate` to the Procfile")
        })?;
        let log = &self.context.log;
        build::build(checkout, &plan, log).await.map_err(|lines| CommandError::new(ErrorKind::Deployment, lines.join("\n")))?;
        let failed =
            |error: io::Error| CommandError::new(ErrorKind::Internal, format!("cannot start the release command: {error}"));
        let mut command = instance::command(checkout).map_err(failed)?;
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(failed)?;
        instance::send(&mut child, &job).await.map_err(failed)?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let copy = async |from: Option<tokio::process::ChildStdout>| {
            if let Some(from) = from {
                log.copy("release", 0, from).await;
            }
        };
        let copy_errors = async |from: Option<tokio::process::ChildStderr>| {
            if let Some(from) = from {
                log.copy("release", 0, from).await;
            }
        };
        let ((), (), status) = tokio::join!(copy(out), copy_errors(err), child.wait());
        let status = status.map_err(failed)?;
        Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
    }
}

/// Returns true for a file that larder reads. A change restarts only the processes whose definition differs.
fn is_recipe(path: &str) -> bool {
    path == ENV_FILE || RECIPE_FILES.contains(&path)
}

fn plural(count: usize, noun: &str) -> String {
    if count == 1 { format!("{count} {noun}") } else { format!("{count} {noun}s") }
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}
