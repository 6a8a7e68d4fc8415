//! The watch of one checkout: starts the worker, collects its reports, and lets them take effect when nothing else is under way.

use std::{
    collections::{BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use jiff::Timestamp;

use super::has_checkout;
use crate::{
    git::checkout::EditKind,
    model::{DeploymentId, Environment, Live, ProcessId, ProcessType, Slot},
    pipeline::{core::Pipeline, facts::BuildInputs, queue::Queue, util::chain},
    proxy::Hold,
    watch::{CheckoutWatch, SavedFiles, SavedPaths, WatchEvent, WatchJob, WatchOrder, WatchedProcess, patterns_of},
};

/// The time between two looks at the environment while files wait, or while a deployment is under way.
const BUSY: Duration = Duration::from_millis(50);
/// The time between two looks at an idle environment.
const IDLE: Duration = Duration::from_millis(500);
/// The time limit of the worker's answer to [`WatchOrder::Flush`].
const ANSWER: Duration = Duration::from_secs(30);
/// The number of restarts within [`WINDOW`] after which further ones wait. A process that writes watched files would otherwise restart itself
/// without a pause.
const MAX_RESTARTS: usize = 12;
/// The time within which restarts are counted.
const WINDOW: Duration = Duration::from_secs(20);

/// The end of a session.
pub(super) enum SessionEnd {
    /// The environment has no live checkout any more, or the server stops.
    Over,
    /// The checkout cannot be watched.
    Problem {
        /// The reason.
        why: String,
        /// The remedy.
        hint: Option<String>,
    },
}

/// The last deployment that has an effect on the checkout.
type LastDeployment = Option<(DeploymentId, Option<Timestamp>)>;

/// The watch of one checkout.
pub(super) struct Session<'a> {
    pub(super) pipeline: &'a Pipeline,
    pub(super) queue: &'a Queue,
    pub(super) watch: CheckoutWatch,
    pub(super) job: WatchJob,
    /// The files of which the build is made, if a build since the start of this watch found them.
    pub(super) inputs: Option<BuildInputs>,
    /// The saved files that have had no effect yet.
    pub(super) waiting: SavedFiles,
    /// True if the last build failed or was interrupted, so that the next saved file repeats it.
    pub(super) is_stale: bool,
    /// The files that changed during the last build and are the reason of the current build.
    pub(super) rebuilt_for: BTreeSet<String>,
    /// The tracked files that builds write.
    pub(super) outputs: BTreeSet<String>,
    /// The hold of the requests, while the web processes restart.
    pub(super) hold: Option<Hold>,
    /// The times of the last restarts.
    pub(super) restarts: VecDeque<Instant>,
    /// The deployment after which the session has compared the checkout.
    compared: LastDeployment,
    /// The files that were saved during a deployment or a build before its processes started, and after that.
    early: SavedPaths,
    late: SavedPaths,
    /// The processes that ran before the deployment.
    before: Vec<ProcessId>,
    flushes: u32,
}

impl<'a> Session<'a> {
    /// Watches the checkout until it is no longer live. `seen` is the time up to which an earlier session has handled all saved files.
    pub(super) async fn run(pipeline: &'a Pipeline, queue: &'a Queue, seen: Option<Timestamp>) -> SessionEnd {
        let stopping = pipeline.0.stopping.clone();
        let ended = stopping.run_until_cancelled(async {
            let mut session = Session::start(pipeline, queue, seen).await?;
            session.follow().await
        });
        match ended.await {
            None | Some(Ok(())) => SessionEnd::Over,
            Some(Err(_)) if !has_checkout(queue) => SessionEnd::Over,
            Some(Err(problem)) => problem,
        }
    }

    async fn start(pipeline: &'a Pipeline, queue: &'a Queue, seen: Option<Timestamp>) -> Result<Session<'a>, SessionEnd> {
        let environment = queue.environment();
        let Some(live) = queue.state.lock().live.clone() else { return Err(SessionEnd::Over) };
        let since = seen.or_else(|| unseen(pipeline, queue, &environment, &live));
        let job = job(pipeline, &environment, &live, None);
        let job = WatchJob { since: since.map(Timestamp::as_millisecond), ..job };
        let services = pipeline.services();
        let watch = CheckoutWatch::start(&services.launcher, environment.project_id, environment.id, live.release, &job).await;
        let watch = watch.map_err(|error| SessionEnd::Problem { why: chain(&error), hint: None })?;
        let mut session = Session {
            pipeline,
            queue,
            watch,
            job: WatchJob { since: None, ..job },
            inputs: None,
            waiting: SavedFiles::default(),
            is_stale: false,
            rebuilt_for: BTreeSet::new(),
            outputs: BTreeSet::new(),
            hold: None,
            restarts: VecDeque::new(),
            compared: last(queue),
            early: SavedPaths::default(),
            late: SavedPaths::default(),
            before: Vec::new(),
            flushes: 0,
        };
        match session.watch.next().await {
            Some(WatchEvent::Ready) => pipeline.0.saves.works(environment.id),
            Some(WatchEvent::Failed { why, hint }) => return Err(SessionEnd::Problem { why, hint }),
            _ => return Err(ended()),
        }
        session.before = session.instances();
        Ok(session)
    }

    async fn follow(&mut self) -> Result<(), SessionEnd> {
        loop {
            if !has_checkout(self.queue) {
                return Ok(());
            }
            let is_busy = self.is_deploying();
            if !is_busy && self.compared != last(self.queue) {
                self.compare().await?;
                continue;
            }
            let has_work = !self.waiting.saved.is_empty();
            if has_work && !is_busy && self.may_restart() {
                let work = self.queue.work.clone();
                if let Ok(_work) = work.try_lock_owned() {
                    self.queue.saving.store(true, std::sync::atomic::Ordering::Relaxed);
                    let acted = self.act().await;
                    self.queue.saving.store(false, std::sync::atomic::Ordering::Relaxed);
                    acted?;
                    continue;
                }
            }
            if !has_work && !is_busy {
                self.pipeline.0.saves.has_seen(self.queue.id);
                self.before = self.instances();
            }
            let pause = if has_work || is_busy { BUSY } else { IDLE };
            tokio::select! {
                event = self.watch.next() => self.receive(event)?,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Returns true while a deployment runs or waits for its turn.
    pub(super) fn is_deploying(&self) -> bool {
        self.queue.state.lock().running.is_some()
    }

    fn instances(&self) -> Vec<ProcessId> {
        let instances = self.pipeline.services().runtime.instances(self.queue.id, Some(Slot::InPlace));
        instances.into_iter().map(|instance| instance.id).collect()
    }

    /// Stores a report of the worker.
    pub(super) fn receive(&mut self, event: Option<WatchEvent>) -> Result<(), SessionEnd> {
        match event {
            Some(WatchEvent::Saved(saved)) if self.is_deploying() || self.compared != last(self.queue) => {
                let has_started = self.instances().iter().any(|id| !self.before.contains(id));
                let during = if has_started { &mut self.late } else { &mut self.early };
                during.merge(saved.saved);
                Ok(())
            }
            Some(WatchEvent::Saved(saved)) => {
                self.add(saved);
                Ok(())
            }
            Some(WatchEvent::Ready | WatchEvent::Flushed(_)) => Ok(()),
            Some(WatchEvent::Failed { why, hint }) => Err(SessionEnd::Problem { why, hint }),
            None => Err(ended()),
        }
    }

    /// Adds saved files to those that wait.
    pub(super) fn add(&mut self, new: SavedFiles) {
        let waiting = &mut self.waiting;
        if waiting.saved.is_empty() {
            waiting.at = new.at;
        }
        let more: Vec<ProcessType> = new.restart.into_iter().filter(|kind| !waiting.restart.contains(kind)).collect();
        waiting.restart.extend(more);
        waiting.build |= new.build;
        waiting.recipe = waiting.recipe.take().or(new.recipe);
        waiting.saved.merge(new.saved);
    }

    /// Puts files aside until the running deployment has ended, because it interrupted their effect.
    pub(super) fn put_aside(&mut self, saved: SavedPaths) {
        self.early.merge(saved);
    }

    /// Waits until the worker has reported everything up to now, and returns the files that it reported meanwhile.
    pub(super) async fn flush(&mut self) -> Result<SavedPaths, SessionEnd> {
        self.flushes = self.flushes.wrapping_add(1);
        let number = self.flushes;
        self.watch.order(WatchOrder::Flush(number)).await;
        let mut all = SavedPaths::default();
        loop {
            let event = tokio::time::timeout(ANSWER, self.watch.next()).await;
            match event.map_err(|_| ended())? {
                Some(WatchEvent::Flushed(answer)) if answer == number => return Ok(all),
                Some(WatchEvent::Saved(saved)) => all.merge(saved.saved),
                other => self.receive(other)?,
            }
        }
    }

    /// Finds the files that a person saved during a deployment that has ended, and reports them again with the patterns of the live release.
    async fn compare(&mut self) -> Result<(), SessionEnd> {
        let compared = last(self.queue);
        let late = self.flush().await?;
        self.late.merge(late);
        self.compared = compared;
        self.is_stale = false;
        self.inputs = None;
        let (early, mut late) = (std::mem::take(&mut self.early), std::mem::take(&mut self.late));
        // The waiting files are compared, too, because the deployment has started the processes again.
        late.merge(std::mem::take(&mut self.waiting).saved);
        self.replace_job().await;
        let saved = self.changed_by_person(early, late).await;
        self.report_again(saved).await;
        self.before = self.instances();
        Ok(())
    }

    /// Reports files again.
    pub(super) async fn report_again(&self, saved: SavedPaths) {
        if !saved.is_empty() {
            self.watch.order(WatchOrder::Again(saved)).await;
        }
    }

    /// Sends the worker the patterns of the live release, if they have changed.
    pub(super) async fn replace_job(&mut self) {
        let environment = self.queue.environment();
        let Some(live) = self.queue.state.lock().live.clone() else { return };
        let job = job(self.pipeline, &environment, &live, self.inputs.as_ref());
        if job != self.job {
            self.job = job.clone();
            self.watch.order(WatchOrder::Replace(job)).await;
        }
    }

    /// Returns the files that differ from the commit in the checkout. Of the files of `early`, only those count that git tracks: the others may be
    /// results of a build.
    pub(super) async fn changed_by_person(&self, early: SavedPaths, late: SavedPaths) -> SavedPaths {
        if early.is_empty() && late.is_empty() {
            return SavedPaths::default();
        }
        let mut all = early.clone();
        all.merge(late.clone());
        let state = match self.pipeline.edits(&self.queue.environment()).await {
            Ok(state) => state,
            Err(error) => {
                tracing::warn!(
                    environment = self.queue.environment().title(),
                    error = chain(&error),
                    "cannot compare a checkout"
                );
                return all;
            }
        };
        if state.count > state.edits.len() || all.more > 0 || all.are_lost {
            return all;
        }
        let is_edit = |path: &String| {
            let edit = state.edits.iter().find(|edit| edit.path == *path);
            edit.is_some_and(|edit| edit.edit != EditKind::Added || late.paths.contains(path))
        };
        SavedPaths { paths: all.paths.into_iter().filter(is_edit).collect(), more: 0, are_lost: false }
    }

    /// Returns true if the processes may restart now. They wait if they have restarted too often.
    fn may_restart(&mut self) -> bool {
        while self.restarts.front().is_some_and(|first| first.elapsed() > WINDOW) {
            self.restarts.pop_front();
        }
        if self.restarts.len() == MAX_RESTARTS {
            // The entry makes the line appear once.
            self.restarts.push_back(Instant::now());
            let first = self.waiting.saved.paths.first().cloned().unwrap_or_default();
            self.pipeline.tell(
                &self.queue.environment(),
                &format!(
                    "{first} changes again and again; further restarts wait for up to {} s; if a process writes the file, name it in .larderignore or under `data:`",
                    WINDOW.as_secs()
                ),
            );
        }
        self.restarts.len() < MAX_RESTARTS
    }
}

/// Returns the last deployment, with its end.
fn last(queue: &Queue) -> LastDeployment {
    let state = queue.state.lock();
    state.history.deployments.last().map(|summary| (summary.deployment, summary.ended))
}

fn ended() -> SessionEnd {
    SessionEnd::Problem { why: String::from("the worker that watches the checkout has ended"), hint: None }
}

/// Returns the time since which saved files may have had no effect, because an earlier server started the processes; `None` if this server
/// started them.
fn unseen(pipeline: &Pipeline, queue: &Queue, environment: &Environment, live: &Live) -> Option<Timestamp> {
    let instances = pipeline.services().runtime.instances(environment.id, Some(live.slot));
    match instances.iter().any(|instance| instance.started.is_none()) {
        true => queue.state.lock().history.of_release(live.release).and_then(|summary| summary.ended),
        false => instances.iter().filter_map(|instance| instance.started).min(),
    }
}

/// Returns the job of the worker for the live release. `inputs` replaces the inputs of the build that the deployment has recorded.
fn job(pipeline: &Pipeline, environment: &Environment, live: &Live, inputs: Option<&BuildInputs>) -> WatchJob {
    let facts = pipeline.facts(environment, live.release).unwrap_or_default();
    let settings = facts.settings.clone().unwrap_or_default();
    let data = settings.data.iter().map(|path| path.path().to_owned()).collect();
    let watch = |kind: &ProcessType| settings.processes.get(kind).and_then(|spec| spec.watch.as_deref());
    let processes = facts.processes.iter().map(|process| WatchedProcess {
        kind: process.kind.clone(),
        watch: patterns_of(&process.command, watch(&process.kind)).map(<[String]>::to_vec),
    });
    let processes = processes.filter(|process| !process.kind.is_release()).collect();
    // An older larder has recorded no inputs. The first build finds them.
    let inputs = inputs.or(facts.inputs.as_ref()).cloned().unwrap_or_default().patterns();
    WatchJob { data, processes, inputs, since: None }
}
