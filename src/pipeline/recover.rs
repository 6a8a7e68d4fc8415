//! Recovery: finishes or unwinds the deployments that an earlier server left unfinished, then starts the live release and opens its route.

use std::{collections::BTreeSet, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{
    conclude::{Ended, Walk},
    context::Deployment,
    core::Pipeline,
    error::{PipelineError, ThawError},
    fault, followups,
    history::{self, History, Summary},
    journal::{self, Journal, JournalError, JournalState},
    plan::Plan,
    queue::Queue,
    reserve,
    restore_record::RestoreRecord,
    runner,
    running::{run_in_slot, web_addresses},
    slots::Slots,
    transcript::Transcript,
    util::chain,
};
use crate::{
    host::{files, root::EnvironmentPaths},
    model::{
        Blame, DeploymentId, EnvId, Environment, Event, Fault, Outcome, Phase, ProcessType, SlotTable, StepStatus, UserName,
    },
    proxy::RouteState,
};

impl Pipeline {
    /// Attaches an environment: recovers its unfinished deployments, starts the missing processes of the live release, stops the
    /// processes of releases that occupy no slot, and opens the route.
    pub async fn attach(&self, environment: Environment) -> Result<(), PipelineError> {
        let services = self.services().clone();
        let paths = services.root.environment(&environment.project, &environment.name);
        if fault::attach_fails() {
            return Err(PipelineError::NoEnvironment(environment.title()));
        }
        let directories = [paths.path().to_owned(), paths.deploy(), paths.releases(), paths.deltas(), paths.configuration()];
        for directory in directories.into_iter().filter(|directory| directory.is_dir()) {
            if let Err(error) = files::remove_unfinished(&directory) {
                tracing::warn!(error = chain(&error), "cannot remove half-written files");
            }
        }
        fault::delay("attach").await;
        history::remove_unopened(&paths);
        let history = History::read(&paths);
        history.deployments.iter().for_each(|summary| journal::restrict(&paths.deployment(summary.deployment)));
        services.numbers.seen(&environment.project, history.last_build());
        followups::remove_spare(&services, &environment).await;
        let unfinished = history.deployments.iter().filter(|summary| summary.ended.is_none());
        let unfinished: Vec<_> = unfinished.map(|summary| summary.deployment).collect();
        let live = history.live(&paths);
        let queue = Queue::new(environment.clone(), history, live, Slots::new(paths.slots_record()));
        self.load_slots(&queue, &paths);
        let mixed = self.settle_restore(&queue, &paths);
        self.sweep_copy(&queue, &paths);
        for deployment in &unfinished {
            self.recover(&queue, *deployment).await;
        }
        let (live, history) = {
            let mut state = queue.state.lock();
            state.live = state.history.live(&paths);
            (state.live.clone(), state.history.clone())
        };
        if live.is_some() || history.unreadable.is_empty() {
            self.reconcile_slots(&queue, &paths);
        }
        let route = services.route(&environment);
        match live {
            // The live release is unknown. Until a person has inspected the journals, no process is stopped or started.
            None if !history.unreadable.is_empty() => {
                let why = history.frozen().map(|(_, why)| why).unwrap_or_default();
                let instances = services.runtime.instances(environment.id, history::active_slot(&paths));
                drop(match web_addresses(&instances) {
                    none if none.is_empty() => route.set(RouteState::Failed(why)),
                    addresses => route.switch(services.target(&environment, addresses)),
                });
            }
            None => {
                let _ = services.runtime.stop_where(environment.id, Duration::ZERO, |_| true).await;
                queue.slots.note(|table| *table = SlotTable::default());
                drop(route.set(RouteState::Empty));
            }
            // `finish_mixed` starts the release after files and databases belong together again.
            Some(_) if mixed.is_some() => {}
            Some(live) => match history.restore.clone().or_else(|| self.unfinished_restore(&environment, &history)) {
                Some(why) => drop(route.set(RouteState::Failed(why))),
                None => {
                    if let Err(failure) = self.serve(&queue, &history, &live).await {
                        tracing::error!(environment = environment.title(), why = failure.why, "the live release does not run");
                    }
                }
            },
        }
        // The follow-ups are taken up before a deployment can enter the queue. Without the follow-ups, a deployment would wait for the
        // draining slot, and would then empty this slot before changes made by hand are saved.
        self.take_up_followups(&queue);
        if let Some(record) = mixed
            && let (Ok(work), Ok(points)) = (queue.work.clone().try_lock_owned(), queue.points.clone().try_lock_owned())
        {
            // The queue is not public yet, so both locks are free.
            self.finish_mixed(&queue, &paths, record, (work, points));
        }
        self.settle_copies(&queue);
        self.0.queues.lock().insert(environment.id, queue.clone());
        self.announce_missed(&queue, &unfinished);
        self.announce_unusable_record(&queue, &unfinished);
        self.0.awaited.lock().remove(&environment.id);
        Ok(())
    }

    /// Removes environments from service, either all of them or none, and drops the copies of their databases. The caller removes their
    /// processes and files. Returns the reasons why copies stay on their servers, or an error if an environment is being deployed. Waits until
    /// a restart, a restore or an unfreeze that is under way ends.
    pub async fn detach(&self, environments: &[Environment]) -> Result<Vec<String>, PipelineError> {
        let queues: Vec<_> = environments.iter().filter_map(|environment| self.queue(environment.id)).collect();
        for (at, queue) in queues.iter().enumerate() {
            if let Err(running) = queue.close() {
                queues.iter().take(at).for_each(Queue::reopen);
                return Err(queue.busy(Some(running)));
            }
        }
        let mut left = Vec::new();
        for queue in &queues {
            // An operation that is under way holds this lock. Later operations find the queue closed.
            drop(queue.work.lock().await);
            left.extend(self.drop_copies(queue).await);
        }
        for environment in environments {
            if let Some(queue) = self.0.queues.lock().remove(&environment.id) {
                queue.slots.close();
            }
            self.services().close_route(environment.id);
        }
        Ok(left)
    }

    /// Returns the reason why no process may start: a stuck deployment has not restored the data of its upgrade, or the tree of the release
    /// that it replaced in place. A process would write data that the unfreeze discards when it restores the data.
    pub(super) fn unfinished_restore(&self, environment: &Environment, history: &History) -> Option<String> {
        let paths = self.services().root.environment(&environment.project, &environment.name);
        let stuck = history.deployments.iter().filter(|summary| summary.is_stuck());
        let state = |summary: &Summary| JournalState::read(&paths.deployment(summary.deployment)).ok();
        let unfinished = |state: JournalState| {
            let is_undone = |step| state.status(step) == StepStatus::Undone;
            if is_undone("deploy.quiesce") || is_undone("deploy.stop") {
                return None;
            }
            let id = state.spec.as_ref()?.id;
            let upgrade = state.facts.upgrade.as_ref().filter(|upgrade| upgrade.is_held() && !state.was_committed);
            let point = upgrade.and_then(|upgrade| upgrade.point.as_ref());
            if point.is_some_and(|point| !RestoreRecord::is_live(point, &paths)) {
                return Some(format!("the data from before the upgrade of deployment {id} is not restored"));
            }
            let is_moved = !matches!(state.status("deploy.archive"), StepStatus::Waiting | StepStatus::Undone);
            (is_moved && state.is_unwinding()).then(|| format!("the tree that deployment {id} has replaced is not put back"))
        };
        stuck.filter_map(state).find_map(unfinished)
    }

    async fn recover(&self, queue: &Queue, id: DeploymentId) {
        match self.finish_or_unwind(queue, id, "The server was restarted").await {
            Ok(outcome) => {
                tracing::warn!(environment = queue.environment().title(), deployment = %id, ?outcome, "recovered");
            }
            // An unusable journal freezes the environment until a person has inspected the journal.
            Err(error) => drop(self.conclude(queue, Ended::Unusable { id, error }).await),
        }
    }

    /// Finishes the deployment if it has passed its commit point and no step has failed, or else unwinds the deployment. The plan comes
    /// from the deployment's journal.
    ///
    /// # Errors
    /// The journal cannot be used: it cannot be read, belongs to another environment, or names a step that this version does not have. In
    /// these cases, no step is run or reverted.
    async fn finish_or_unwind(&self, queue: &Queue, id: DeploymentId, why: &str) -> Result<Outcome, JournalError> {
        let (mut deployment, mut journal) = self.reopen(queue, id)?;
        let plan = Plan::of(&deployment.spec.plan).map_err(|unknown| JournalError::UnknownStep {
            path: deployment.paths.deployment(id).join(Journal::FILE),
            step: unknown.0.to_string(),
        })?;
        let outcome = self.walk_on(&plan, &mut deployment, &mut journal, why).await;
        let walk = Walk { deployment, journal, outcome, recovered: true, verdict: None, work: None };
        let ended = Ended::Walked(walk);
        Ok(self.conclude(queue, ended).await)
    }

    async fn walk_on(
        &self,
        plan: &Plan,
        deployment: &mut Deployment,
        journal: &mut Journal,
        why: &str,
    ) -> Result<Outcome, JournalError> {
        runner::record(deployment, journal, Event::Recovered, true).await?;
        let runs = match journal.state().is_to_be_finished() {
            // The domains are opened and the web processes are started first, because the next steps request pages through the proxy.
            true => {
                deployment.transcript.title(&format!("{why}; this deployment continues"));
                deployment.services.open_domains(&deployment.environment, &deployment.settings());
                let runs = run_in_slot(deployment, ProcessType::is_web, async || Ok(())).await;
                runs.map_err(|failure| failure.in_phase(Phase::Deploy))
            }
            false => Err(journal.state().fault.clone().unwrap_or_else(restarted)),
        };
        match runs {
            Ok(()) => runner::run(plan, deployment, journal).await,
            Err(fault) => {
                deployment.transcript.error(&format!("{why}; this deployment is reverted"));
                runner::unwind(plan, deployment, journal, fault).await
            }
        }
    }

    /// Revives a deployment from its journal.
    pub(super) fn reopen(&self, queue: &Queue, id: DeploymentId) -> Result<(Deployment, Journal), JournalError> {
        let environment = queue.environment();
        let directory = self.services().root.environment(&environment.project, &environment.name).deployment(id);
        let path = directory.join(Journal::FILE);
        let journal = Journal::open(&directory)?;
        let spec = journal.state().spec.clone().ok_or_else(|| JournalError::NotOpened { path: path.clone() })?;
        let spec = spec.for_environment(&environment).map_err(|source| JournalError::Spec { path, source })?;
        let transcript = Transcript::open(&directory);
        let transcript = transcript.map_err(|source| JournalError::File { path: directory, doing: "open", source })?;
        let facts = journal.state().facts.clone();
        let mut deployment = self.revive(queue, spec, facts, transcript, CancellationToken::new());
        deployment.memory.committed = journal.state().was_committed;
        deployment.memory.space_timeout = reserve::SHORT_TIMEOUT;
        Ok((deployment, journal))
    }

    /// Unfreezes an environment, and returns the number of deployments that had frozen the environment. Each of these deployments
    /// is finished or unwound first, because the person has corrected the problem that prevented the recovery. Otherwise the branch
    /// might name a commit that is not live, and the next start would unwind an old deployment and thereby revert a newer live
    /// release.
    pub async fn thaw(&self, environment: &Environment, by: &UserName) -> Result<usize, ThawError> {
        let queue = self.queue_of(environment)?;
        let Ok(_work) = queue.work.clone().try_lock_owned() else {
            let running = queue.state.lock().running.as_ref().map(|running| running.deployment);
            return Err(queue.busy(running).into());
        };
        let paths = self.services().root.environment(&environment.project, &environment.name);
        let unreadable = queue.state.lock().history.unreadable.clone();
        for (id, _) in &unreadable {
            // The person has repaired the journal, or moved it away.
            let summary = match JournalState::read(&paths.deployment(*id)) {
                Ok(state) => Summary::of(&state),
                Err(JournalError::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => None,
                Err(error) => return Err(error.into()),
            };
            let mut state = queue.state.lock();
            state.history.unreadable.retain(|(known, _)| known != id);
            summary.into_iter().for_each(|summary| state.history.record(summary));
        }
        let slots_unusable = queue.state.lock().history.slots.is_some();
        if slots_unusable {
            self.load_slots(&queue, &paths);
            if let Some(why) = queue.state.lock().history.slots.clone() {
                return Err(ThawError::Slots(why));
            }
        }
        let restore_unusable = queue.state.lock().history.restore.is_some();
        if restore_unusable {
            let mixed = self.settle_restore(&queue, &paths);
            if let Some(why) = queue.state.lock().history.restore.clone() {
                return Err(ThawError::Restore(why));
            }
            if mixed.is_some() {
                return Err(ThawError::Restore(String::from(
                    "its restore has not ended; restart the server, which continues the restore",
                )));
            }
        }
        let frozen = |summary: &&Summary| summary.is_stuck() || summary.outcome.is_none();
        let frozen: Vec<_> = queue.state.lock().history.deployments.iter().filter(frozen).cloned().collect();
        for summary in &frozen {
            let id = summary.deployment;
            match self.finish_or_unwind(&queue, id, "A person has unfrozen the environment").await {
                Ok(Outcome::Stuck { undo, .. }) => return Err(ThawError::Still(undo)),
                Ok(_) => {}
                Err(error) => {
                    queue.state.lock().history.cannot_use(id, chain(&error));
                    return Err(error.into());
                }
            }
            let mut journal = Journal::open(&paths.deployment(id))?;
            journal.append(Event::Cleared { by: by.clone() })?;
            self.announce_release(&queue, id, Some(journal.state().endings), by);
        }
        for (id, _) in unreadable.iter().filter(|(id, _)| !frozen.iter().any(|summary| summary.deployment == *id)) {
            self.announce_release(&queue, *id, None, by);
        }
        let cleared = frozen.iter().map(|summary| summary.deployment).chain(unreadable.iter().map(|(id, _)| *id));
        let cleared = cleared.collect::<BTreeSet<_>>().len().max(usize::from(slots_unusable || restore_unusable));
        if cleared > 0 {
            self.serve_again(&queue, &paths).await;
        }
        Ok(cleared)
    }

    /// Finishes or unwinds the deployments of an environment that have no end because the disk was full. Returns false if the environment is
    /// in use, and the call must be repeated.
    pub(super) async fn resume_open_deployments(&self, environment: EnvId) -> bool {
        let Some(queue) = self.queue(environment) else { return true };
        let Ok(_work) = queue.work.clone().try_lock_owned() else { return false };
        let registered = queue.environment();
        let paths = self.services().root.environment(&registered.project, &registered.name);
        let stuck: Vec<_> = {
            let state = queue.state.lock();
            state.history.deployments.iter().filter(|summary| summary.is_stuck()).map(|summary| summary.deployment).collect()
        };
        let is_open = |id: &DeploymentId| JournalState::read(&paths.deployment(*id)).is_ok_and(|state| state.ended.is_none());
        let open: Vec<_> = stuck.into_iter().filter(is_open).collect();
        for id in &open {
            match self.finish_or_unwind(&queue, *id, "The disk has space again").await {
                Ok(outcome) => tracing::warn!(environment = registered.title(), deployment = %id, ?outcome, "resumed"),
                Err(error) => drop(self.conclude(&queue, Ended::Unusable { id: *id, error }).await),
            }
        }
        if !open.is_empty() {
            self.serve_again(&queue, &paths).await;
        }
        true
    }

    /// Starts the live release of an environment whose last start failed because the disk was full. Returns false if the attempt must be
    /// repeated later: the environment is busy, or its disk is still full.
    pub(super) async fn start_after_full_disk(&self, environment: EnvId) -> bool {
        let Some(queue) = self.queue(environment) else { return true };
        let Ok(_work) = queue.work.clone().try_lock_owned() else { return false };
        let registered = queue.environment();
        let paths = self.services().root.environment(&registered.project, &registered.name);
        if !reserve::has_space(paths.path()) {
            return false;
        }
        let history = queue.state.lock().history.clone();
        // Data that is not restored yet must not be changed by a process. The end of the restore starts the release.
        if history.restore.is_none() && self.unfinished_restore(&registered, &history).is_none() {
            tracing::warn!(environment = registered.title(), "the disk has space again; the live release is started");
            self.serve_again(&queue, &paths).await;
        }
        true
    }

    /// Ensures that the release named by the links on disk serves.
    pub(super) async fn serve_again(&self, queue: &Queue, paths: &EnvironmentPaths) {
        let (live, history) = {
            let mut state = queue.state.lock();
            state.live = state.history.live(paths);
            (state.live.clone(), state.history.clone())
        };
        self.reconcile_slots(queue, paths);
        if let Some(live) = live
            && let Err(failure) = self.serve(queue, &history, &live).await
        {
            tracing::error!(environment = queue.environment().title(), why = failure.why, "the live release does not run");
        }
        self.take_up_followups(queue);
    }
}

fn restarted() -> Fault {
    Fault {
        phase: Phase::Gather,
        blame: Blame::Host,
        why: String::from("the server was restarted during the deployment"),
        hints: vec![String::from("push again")],
    }
}
