//! The watch worker: watches a checkout as its owner, inside of the sandbox, and reports which processes a saved file concerns.
//!
//! The server never opens a path of the checkout. What the worker reports comes from the project, so the server limits it, and does nothing for it
//! but build the project and restart its processes.

use std::{
    fs::File,
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::sync::mpsc;

use super::{
    classes::{RECIPE_FILES, is_content, is_script},
    messages::{SavedFiles, SavedPaths, WatchEvent, WatchJob, WatchOrder, encode, read},
    patterns::FilePatterns,
    rules::WatchRules,
    watcher::{FileChanges, WatchError, Watcher},
};
use crate::{host::launch::read_job, model::ProcessType};

/// The time in which the kernel reports changes that have happened.
const SETTLE: Duration = Duration::from_millis(20);
/// The maximum size of the paths in one message, in bytes.
const MAX_BYTES: usize = 256 * 1024;

/// Performs the work of a worker. `job` is descriptor 3, and `report` is descriptor 4; orders come over the standard input, whose end ends the
/// worker. Returns the exit code.
pub fn work(mut job: File, report: File) -> io::Result<u8> {
    let app = std::env::var_os("LARDER_APP").map_or_else(|| PathBuf::from("/app"), PathBuf::from);
    let job: WatchJob = read_job(&mut job)?;
    let (sender, orders) = mpsc::channel(16);
    std::thread::spawn(move || {
        let mut input = io::stdin().lock();
        while let Ok(Some(order)) = read(&mut input) {
            if sender.blocking_send(order).is_err() {
                return;
            }
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let code = runtime.block_on(run(&app, job, orders, report));
    // The thread still reads the standard input, and must not delay the exit.
    runtime.shutdown_background();
    code
}

async fn run(app: &Path, job: WatchJob, orders: mpsc::Receiver<WatchOrder>, mut report: File) -> io::Result<u8> {
    let mut tell = |event: &WatchEvent| report.write_all(&encode(event)?);
    let ended = follow(app, job, orders, &mut tell).await;
    match ended {
        Ok(()) => Ok(0),
        Err(Ended::Pipe(error)) => Err(error),
        Err(Ended::Watch(error)) => {
            let mut why = error.to_string();
            if let Some(source) = std::error::Error::source(&error) {
                why = format!("{why}: {source}");
            }
            tell(&WatchEvent::Failed { why, hint: error.hint().map(str::to_owned) })?;
            Ok(0)
        }
    }
}

/// The reason why the worker cannot continue.
enum Ended {
    Pipe(io::Error),
    Watch(WatchError),
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Ended {
        Ended::Pipe(error)
    }
}

impl From<WatchError> for Ended {
    fn from(error: WatchError) -> Ended {
        Ended::Watch(error)
    }
}

async fn follow(
    app: &Path,
    job: WatchJob,
    mut orders: mpsc::Receiver<WatchOrder>,
    tell: &mut impl FnMut(&WatchEvent) -> io::Result<()>,
) -> Result<(), Ended> {
    let mut watcher = start(app, &job)?;
    let mut classes = Classes::new(job)?;
    tell(&WatchEvent::Ready)?;
    if let Some(since) = classes.job.since {
        let changes = watcher.changed_since(since);
        if !changes.is_empty() {
            tell(&WatchEvent::Saved(classes.of(changes, since)))?;
        }
    }
    loop {
        let changes = tokio::select! {
            changes = watcher.next() => {
                let changes = changes?;
                let at = watcher.began_at();
                tell(&WatchEvent::Saved(classes.of(changes, at)))?;
                continue;
            }
            order = orders.recv() => match order {
                None => return Ok(()),
                Some(WatchOrder::Again(saved)) => {
                    let are_lost = saved.are_lost || saved.more > 0;
                    FileChanges { paths: saved.paths.into_iter().collect(), are_lost }
                }
                Some(WatchOrder::Flush(number)) => {
                    tokio::time::sleep(SETTLE).await;
                    let changes = watcher.pending()?;
                    if !changes.is_empty() {
                        tell(&WatchEvent::Saved(classes.of(changes, now())))?;
                    }
                    tell(&WatchEvent::Flushed(number))?;
                    continue;
                }
                Some(WatchOrder::Replace(job)) => {
                    let mut changes = FileChanges::default();
                    if job.data != classes.job.data {
                        let new = start(app, &job)?;
                        changes = watcher.pending()?;
                        watcher = new;
                    }
                    classes = Classes::new(job)?;
                    changes
                }
            },
        };
        if !changes.is_empty() {
            tell(&WatchEvent::Saved(classes.of(changes, now())))?;
        }
    }
}

fn start(app: &Path, job: &WatchJob) -> Result<Watcher, WatchError> {
    Watcher::start(WatchRules::new(app, job.data.iter().map(String::as_str)))
}

/// The compiled patterns of a job.
struct Classes {
    job: WatchJob,
    inputs: FilePatterns,
    processes: Vec<(ProcessType, FilePatterns)>,
}

impl Classes {
    fn new(job: WatchJob) -> io::Result<Classes> {
        let compiled = |patterns: Option<&[String]>| FilePatterns::new(patterns).map_err(io::Error::other);
        let inputs = compiled(job.inputs.as_deref())?;
        let of = |process: &super::messages::WatchedProcess| {
            compiled(process.watch.as_deref()).map(|patterns| (process.kind.clone(), patterns))
        };
        let processes = job.processes.iter().map(of).collect::<Result<_, _>>()?;
        Ok(Classes { job, inputs, processes })
    }

    /// Returns the effect of changes, the first of which was at the time `at`.
    fn of(&self, changes: FileChanges, at: i64) -> SavedFiles {
        let content = FileChanges {
            paths: changes.paths.iter().filter(|path| is_content(path)).cloned().collect(),
            are_lost: changes.are_lost,
        };
        let build = self.inputs.select(&content) || content.paths.iter().any(|path| is_script(path));
        let is_concerned = |patterns: &FilePatterns| match build {
            true => !patterns.select_nothing(),
            false => patterns.select(&content),
        };
        let restart = self.processes.iter().filter(|(_, patterns)| is_concerned(patterns)).map(|(kind, _)| kind.clone());
        let recipe = changes.paths.iter().find(|path| RECIPE_FILES.contains(&path.as_str())).cloned();
        SavedFiles { restart: restart.collect(), saved: limited(changes), build, recipe, at }
    }
}

/// Returns the time in milliseconds since the Unix epoch.
fn now() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

/// Returns the paths of changes within the limits of a message. The content of the application comes first.
fn limited(changes: FileChanges) -> SavedPaths {
    let (content, others): (Vec<_>, Vec<_>) = changes.paths.into_iter().partition(|path| is_content(path));
    let mut saved = SavedPaths { are_lost: changes.are_lost, ..SavedPaths::default() };
    let mut bytes = 0_usize;
    for path in content.into_iter().chain(others) {
        bytes = bytes.saturating_add(path.len());
        match saved.paths.len() < SavedPaths::MAX && bytes <= MAX_BYTES {
            true => saved.paths.push(path),
            false => saved.more = saved.more.saturating_add(1),
        }
    }
    saved
}
