//! The course of a deployment request: submission, queue, specification, execution, end.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    conclude::{Ended, Walk},
    configuration::ChosenConfiguration,
    core::Pipeline,
    error::PipelineError,
    failure::Failure,
    journal::{self, Journal},
    observe::News,
    plan::Plan,
    queue::{DeployRequest, Entered, Goal, Pending, Queue, Ticket},
    registry, reserve, runner,
    transcript::Transcript,
};
use crate::model::{
    DeploymentId, DeploymentSpec, Environment, EnvironmentIdentity, Event, Origin, Phase, ReleaseId, Slot, Strategy,
};

impl Pipeline {
    /// Queues a deployment. The deployment runs even if the caller drops the ticket.
    ///
    /// # Errors
    /// The environment is frozen, unknown, being recovered or being removed; the request is a dry run and a deployment is under
    /// way; the server is stopping; or the deployment's directory cannot be created.
    pub fn submit(&self, request: DeployRequest) -> Result<Ticket, PipelineError> {
        if self.0.stopping.is_cancelled() {
            return Err(PipelineError::Stopping);
        }
        let queue = self.queue_of(&request.environment)?;
        queue.is_thawed()?;
        let deployment = DeploymentId::new(jiff::Timestamp::now());
        let paths = self.0.services.root.environment(&request.environment.project, &request.environment.name);
        let path = paths.deployment(deployment);
        let transcript = journal::make_directory(&path).and_then(|()| Transcript::open(&path));
        let transcript = transcript.map_err(|source| match reserve::is_no_space(&source) {
            true => {
                journal::remove(&path);
                PipelineError::NoSpace { environment: request.environment.title(), free: reserve::free_figures(&path) }
            }
            false => PipelineError::Record { path, source },
        })?;
        let (verdict, outcome) = watch::channel(None);
        let cancel = CancellationToken::new();
        let ticket = Ticket { deployment, request, transcript, outcome, cancel };
        match queue.enter(Pending { ticket: ticket.clone(), verdict }) {
            Entered::First(first) => {
                let this = self.clone();
                self.0.tasks.spawn(async move { this.work_off(queue, first).await });
            }
            Entered::Waits(superseded) => {
                ticket.transcript.title("Another deployment is under way; this deployment waits for its end");
                if let Some(old) = superseded {
                    let why = format!("superseded by the newer push of {}", ticket.request.commit.short());
                    let (this, fault) = (self.clone(), Failure::blameless(why).in_phase(Phase::Gather));
                    self.0.tasks.spawn(async move { this.conclude(&queue, Ended::NeverBegan { pending: old, fault }).await });
                }
            }
            Entered::Busy(running) => {
                journal::remove(&paths.deployment(deployment));
                return Err(queue.busy(Some(running)));
            }
            Entered::Closed => {
                journal::remove(&paths.deployment(deployment));
                return Err(PipelineError::NoEnvironment(ticket.request.environment.title()));
            }
        }
        Ok(ticket)
    }

    /// Returns the plan for a push to `environment`, cut to the phases in `only`.
    pub fn plan(&self, environment: &Environment, only: &[Phase]) -> Plan {
        let steps =
            registry::steps(environment.mode, self.usual_strategy(environment), &registry::usual_origin(environment.mode));
        Plan::known(&steps).only(only)
    }

    async fn work_off(&self, queue: Queue, first: Pending) {
        let mut next = Some(first);
        while let Some(pending) = next {
            let title = pending.ticket.request.environment.title();
            // The runner catches panics of steps. This line catches panics outside of steps, so that the queue always continues.
            if AssertUnwindSafe(self.deploy(&queue, pending)).catch_unwind().await.is_err() {
                tracing::error!(
                    environment = title,
                    "deployment panicked outside of a step; the next start recovers the deployment"
                );
            }
            next = queue.advance();
        }
    }

    /// Runs one deployment from its first event to its last.
    async fn deploy(&self, queue: &Queue, pending: Pending) {
        let work = queue.work.clone().lock_owned().await;
        if let Err(why) = self.may_start(queue, &pending.ticket.request) {
            let fault = Failure::blameless(why).in_phase(Phase::Gather);
            self.conclude(queue, Ended::NeverBegan { pending, fault }).await;
            return;
        }
        let Pending { ticket, verdict } = pending;
        ticket.transcript.hold_space();
        let configuration = match self.choose_configuration(queue, &ticket.request).await {
            Ok(configuration) => configuration,
            Err(failure) => {
                let pending = Pending { ticket, verdict };
                self.conclude(queue, Ended::NeverBegan { pending, fault: failure.in_phase(Phase::Gather) }).await;
                return;
            }
        };
        let spec = self.specify(queue, &ticket, configuration).await;
        let plan = Plan::known(&spec.plan);
        let mut deployment = self.revive(queue, spec, Default::default(), ticket.transcript.clone(), ticket.cancel.clone());
        if let Some(phases) = deployment.spec.dry_run_phases() {
            ticket.transcript.title(&format!("Dry run of {phases}: nothing goes live"));
        }
        let directory = deployment.paths.deployment(deployment.spec.id);
        let opened = Journal::open(&directory).and_then(|mut journal| {
            journal.note(Event::Opened(Box::new(deployment.spec.clone())))?;
            Ok(journal)
        });
        // A deployment without a reserve waits longer on a full disk.
        if let Err(error) = reserve::hold(&directory) {
            tracing::warn!(%error, "cannot reserve disk space for the end of a deployment");
        }
        let ended = match opened {
            Ok(mut journal) => {
                deployment.services.observers.milestone(deployment.announcement("began", News::Began));
                let outcome = runner::run(&plan, &mut deployment, &mut journal).await;
                let (verdict, work) = (Some(verdict), Some(work));
                Ended::Walked(Walk { deployment, journal, outcome, recovered: false, verdict, work })
            }
            // No step has run yet, so nothing needs to be reverted.
            Err(error) => {
                reserve::release(&directory);
                queue.state.lock().in_progress = None;
                let fault = runner::no_journal(&deployment, &error);
                Ended::Unopened { deployment, fault, verdict }
            }
        };
        self.conclude(queue, ended).await;
    }

    /// Repeats the checks of the submission, and adopts changes of the environment, such as its scale. Returns the reason if the deployment
    /// must not start.
    fn may_start(&self, queue: &Queue, request: &DeployRequest) -> Result<(), String> {
        queue.is_thawed().map_err(|error| error.to_string())?;
        let environment = match self.0.start_check.get() {
            Some(check) => check.check(request)?,
            None => request.environment.clone(),
        };
        queue.set_environment(environment);
        Ok(())
    }

    /// Returns the specification of a deployment, which fixes all decisions that precede the first step.
    async fn specify(&self, queue: &Queue, ticket: &Ticket, chosen: ChosenConfiguration) -> DeploymentSpec {
        let strategy = self.strategy(queue, &ticket.request).await;
        // The lock waits until no release is being removed, so that the check of the installed tree below does not find a tree that is
        // about to disappear.
        let _settled = queue.store.lock().await;
        let request = &ticket.request;
        let paths = self.0.services.root.environment(&request.environment.project, &request.environment.name);
        let mut state = queue.state.lock();
        let environment = state.environment.clone();
        let previous = state.live.clone();
        let (release, origin, overriding, newest) = match request.goal.clone() {
            Goal::Cook => (ReleaseId::new(jiff::Timestamp::now()), Origin::Commit, None, false),
            Goal::Release { release, origin, overriding, newest } => (release, origin, overriding, newest),
            // `choose_configuration` has refused the request if no release is live.
            Goal::Configure { .. } => {
                let live = previous.as_ref().map(|live| live.release);
                (live.unwrap_or_else(|| ReleaseId::new(jiff::Timestamp::now())), Origin::Configuration, None, false)
            }
        };
        // Another release may have become live while a change of the configuration waited.
        let commit = match (&request.goal, &previous) {
            (Goal::Configure { .. }, Some(live)) => live.commit.clone(),
            _ => request.commit.clone(),
        };
        // A directory with the final name of a tree is a complete tree, because a tree gets this name last and loses this name before its
        // files are removed. The unwinding of a failed or interrupted deployment removes the tree of that deployment.
        let recorded = request.recorded.or_else(|| state.history.of_release(release).map(|summary| summary.deployment));
        let again = recorded.is_some() && paths.tree(release).is_dir();
        state.in_progress = Some(release);
        let steps = match request.data {
            Some(_) => registry::return_steps(strategy),
            None => registry::steps(environment.mode, strategy, &origin),
        };
        DeploymentSpec {
            version: DeploymentSpec::VERSION,
            id: ticket.deployment,
            trigger: request.trigger.clone(),
            environment: Some(EnvironmentIdentity::of(&environment)),
            mode: environment.mode,
            strategy,
            branch: request.branch.clone(),
            commit,
            release,
            number: state.history.next_number(),
            slot: match strategy {
                Strategy::BlueGreen => queue.slots.table().next(),
                Strategy::InPlace => Slot::InPlace,
            },
            previous,
            plan: Plan::known(&steps).only(&request.dry_run).names(),
            commit_point: registry::commit_point(&steps),
            origin,
            again,
            recorded,
            overriding,
            dry_run: request.dry_run.clone(),
            seen: request.seen.clone(),
            newest,
            tags: request.tags.clone(),
            data: request.data.clone(),
            configuration: chosen.snapshot,
            pillar: chosen.pillar,
            stash: request.stash,
        }
    }
}
