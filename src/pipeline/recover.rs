//! After a start: finish or unwind what a dead server left, and see that what shall be live runs and is reached.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{
    Pipeline, PipelineError, chores,
    context::{Deployment, Order},
    fault,
    history::{self, History, Summary},
    journal::{Journal, JournalError, Story},
    lane::Lane,
    modes, runner,
    running::{run_in_slot, web_addresses},
    step::chain,
    transcript::Transcript,
    verdict,
};
use crate::{
    host::{files, root::EnvironmentPaths},
    model::{Blame, DeploymentId, Environment, Event, Fault, Outcome, Phase, ProcessType, Status, UserName},
    proxy::State,
};

/// The step after which a deployment is finished rather than unwound: its code serves, and users have seen it.
pub(super) const POINT_OF_FINISHING: &str = "deploy.switch";

impl Pipeline {
    /// Takes an environment into service: recovers its unfinished deployments, then boots what is live and is not running, stops
    /// what runs and is not live, and opens the route.
    pub async fn attach(&self, environment: Environment) -> Result<(), PipelineError> {
        let paths = self.0.services.root.environment(&environment.project, &environment.name);
        if fault::attach_fails() {
            return Err(PipelineError::NoEnvironment(environment.title()));
        }
        let directories = [paths.path().to_owned(), paths.deploy(), paths.releases(), paths.deltas()];
        for directory in directories.into_iter().filter(|directory| directory.is_dir()) {
            if let Err(error) = files::remove_unfinished(&directory) {
                tracing::warn!(error = chain(&error), "half-written files stay");
            }
        }
        fault::delay("attach").await;
        history::remove_unopened(&paths);
        let history = History::read(&paths);
        self.0.services.numbers.seen(&environment.project, history.last_build());
        chores::remove_spare(&self.0.services, &environment).await;
        let unfinished: Vec<_> = history.deployments.iter().filter(|summary| summary.ended.is_none()).cloned().collect();
        let live = history.live(&paths);
        let lane = Lane::new(environment.clone(), history, live);
        for summary in unfinished {
            self.recover(&lane, summary).await;
        }
        let (live, history) = {
            let mut state = lane.state.lock();
            state.live = state.history.live(&paths);
            (state.live.clone(), state.history.clone())
        };
        let route = self.0.services.route(&environment);
        match live {
            // What is live is not known. Somebody has to look at the records; until then nothing is stopped and nothing is started.
            None if !history.unreadable.is_empty() => {
                let why = history.frozen().map(|(_, why)| why).unwrap_or_default();
                let instances = self.0.services.runtime.instances(environment.id, history::active_slot(&paths));
                drop(match web_addresses(&instances) {
                    none if none.is_empty() => route.set(State::Failed(why)),
                    addresses => route.switch(self.0.services.target(&environment, addresses)),
                });
            }
            None => {
                let _ = self.0.services.runtime.stop_where(environment.id, Duration::ZERO, |_| true).await;
                drop(route.set(State::Empty));
            }
            Some(live) => {
                if let Err(failure) = self.serve(&lane, &history, &live).await {
                    tracing::error!(environment = environment.title(), why = failure.why, "the live release does not run");
                }
            }
        }
        self.0.lanes.lock().insert(environment.id, lane.clone());
        self.take_up_chores(&lane, &history);
        self.0.awaited.lock().remove(&environment.id);
        Ok(())
    }

    /// Forgets environments, all or none of them; their processes and files are the caller's business. Refused while one of them
    /// is deployed; a restart is waited for.
    pub async fn detach(&self, environments: &[Environment]) -> Result<(), PipelineError> {
        let lanes: Vec<_> = environments.iter().filter_map(|environment| self.lane(environment.id)).collect();
        for (at, lane) in lanes.iter().enumerate() {
            if let Err(running) = lane.close() {
                lanes.iter().take(at).for_each(Lane::reopen);
                return Err(lane.busy(Some(running)));
            }
        }
        for lane in &lanes {
            // Whoever comes later finds it closed.
            drop(lane.work.lock().await);
        }
        for environment in environments {
            self.0.lanes.lock().remove(&environment.id);
            self.0.services.close_route(environment.id);
        }
        Ok(())
    }

    async fn recover(&self, lane: &Lane, summary: Summary) {
        let title = lane.environment.title();
        match self.finish_or_unwind(lane, summary.deployment, "The server was restarted").await {
            Ok(outcome) => tracing::warn!(environment = title, deployment = %summary.deployment, ?outcome, "recovered"),
            Err(error) => {
                // Whatever is wrong with the record: the environment must not be touched before a person has looked.
                tracing::error!(environment = title, deployment = %summary.deployment, error = chain(&error), "not recovered");
                let mut summary = summary;
                summary.outcome = Some(runner::lost_journal(&error));
                lane.state.lock().history.record(summary);
            }
        }
    }

    async fn finish_or_unwind(&self, lane: &Lane, id: DeploymentId, why: &str) -> Result<Outcome, JournalError> {
        let (mut deployment, mut journal) = self.reopen(lane, id)?;
        journal.append(Event::Recovered)?;
        let plan = modes::plan(lane.environment.mode, &deployment.order.origin).only(&deployment.order.trial);
        let undoing = journal.story().steps.values().any(|status| matches!(status, Status::Undoing | Status::Undone));
        let failed = journal.story().fault.is_some();
        let serves = journal.story().status(POINT_OF_FINISHING) == Status::Done;
        let runs = match serves && !undoing && !failed {
            // What comes next asks for pages through the front door.
            true => {
                deployment.transcript.title(&format!("{why}; this deployment goes on"));
                deployment.services.open_domains(&lane.environment, &deployment.settings());
                let runs = run_in_slot(&mut deployment, ProcessType::is_web).await;
                runs.map_err(|failure| failure.in_phase(Phase::Deploy))
            }
            false => Err(journal.story().fault.clone().unwrap_or_else(restarted)),
        };
        let outcome = match runs {
            Ok(()) => runner::run(&plan, &mut deployment, &mut journal).await?,
            Err(fault) => {
                deployment.transcript.error(&format!("{why}; this deployment is put back"));
                runner::unwind(&plan, &mut deployment, &mut journal, fault).await?
            }
        };
        if matches!(outcome, Outcome::Live { .. }) {
            chores::are_due(&deployment);
        }
        journal.append(Event::Ended { outcome: outcome.clone() })?;
        self.note(lane, &deployment, &journal, &outcome);
        verdict::print(&deployment, &outcome);
        Ok(outcome)
    }

    /// A deployment as its journal left it.
    pub(super) fn reopen(&self, lane: &Lane, id: DeploymentId) -> Result<(Deployment, Journal), JournalError> {
        let services = self.0.services.clone();
        let paths = services.root.environment(&lane.environment.project, &lane.environment.name);
        let directory = paths.deployment(id);
        let journal = Journal::open(&directory)?;
        let order = order_of(journal.story(), &lane.environment).ok_or_else(|| JournalError::Line {
            path: directory.join(Journal::FILE),
            line: 1,
            why: String::from("the first event does not open a deployment"),
        })?;
        let transcript = Transcript::open(&directory);
        let transcript = transcript.map_err(|source| JournalError::File { path: directory, doing: "opened", source })?;
        let mut deployment = Deployment::new(order, services, transcript, CancellationToken::new(), lane.idle_slot.clone());
        deployment.facts = journal.story().facts.clone();
        Ok((deployment, journal))
    }

    /// Releases an environment that was frozen; says how many deployments had frozen it. Each of them is finished or put back first,
    /// now that a person has made that possible: else the branch might name what is not live, and one whose record has no end would
    /// be put back by the next start, over what is live by then.
    pub async fn thaw(&self, environment: &Environment, by: &UserName) -> Result<usize, ThawError> {
        let lane = self.lane_of(environment)?;
        let Ok(_work) = lane.work.clone().try_lock_owned() else {
            let running = lane.state.lock().running.as_ref().map(|running| running.deployment);
            return Err(lane.busy(running).into());
        };
        let paths = self.0.services.root.environment(&environment.project, &environment.name);
        let unreadable = lane.state.lock().history.unreadable.clone();
        for (id, _) in &unreadable {
            // Whoever looked has mended it, or put it away.
            let summary = match Story::read(&paths.deployment(*id)) {
                Ok(story) => Summary::of(&story),
                Err(JournalError::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => None,
                Err(error) => return Err(error.into()),
            };
            let mut state = lane.state.lock();
            state.history.unreadable.retain(|(known, _)| known != id);
            summary.into_iter().for_each(|summary| state.history.record(summary));
        }
        let frozen = |summary: &&Summary| summary.is_stuck() || summary.outcome.is_none();
        let frozen: Vec<_> = lane.state.lock().history.deployments.iter().filter(frozen).cloned().collect();
        for summary in &frozen {
            let why = "Somebody has looked at it";
            if let Outcome::Stuck { undo, .. } = self.finish_or_unwind(&lane, summary.deployment, why).await? {
                return Err(ThawError::Still(undo));
            }
            Journal::open(&paths.deployment(summary.deployment))?.append(Event::Cleared { by: by.clone() })?;
        }
        let cleared = frozen.len().saturating_add(unreadable.len());
        if cleared > 0 {
            self.serve_again(&lane, &paths).await;
        }
        Ok(cleared)
    }

    /// Sees that what the links on disk name is what serves.
    async fn serve_again(&self, lane: &Lane, paths: &EnvironmentPaths) {
        let (live, history) = {
            let mut state = lane.state.lock();
            state.live = state.history.live(paths);
            (state.live.clone(), state.history.clone())
        };
        let Some(live) = live else { return };
        if let Err(failure) = self.serve(lane, &history, &live).await {
            tracing::error!(environment = lane.environment.title(), why = failure.why, "the live release does not run");
        }
        self.take_up_chores(lane, &history);
    }

    /// Does what is left to do of the deployment that made live what is live, if anything is.
    fn take_up_chores(&self, lane: &Lane, history: &History) {
        let live = lane.state.lock().live.clone();
        let made = live.and_then(|live| history.of_release(live.release).filter(|summary| summary.number == live.number));
        let Some(made) = made.filter(|made| chores::left(&self.0.services, &lane.environment, made.deployment)) else { return };
        match self.reopen(lane, made.deployment) {
            Ok((mut deployment, _)) => {
                deployment.record = self.record(&deployment);
                chores::take_up(deployment, lane);
            }
            Err(error) => tracing::warn!(error = chain(&error), "the chores of the last deployment are not taken up"),
        }
    }
}

/// Why an environment stays frozen.
#[derive(Debug, thiserror::Error)]
pub enum ThawError {
    /// Something else is being done there.
    #[error(transparent)]
    NotNow(#[from] PipelineError),
    /// A record cannot be read or written.
    #[error(transparent)]
    Record(#[from] JournalError),
    /// It was tried again, and is stuck again.
    #[error("it still cannot be put back: {0}")]
    Still(String),
}

fn order_of(story: &Story, environment: &Environment) -> Option<Order> {
    Order::reopen(&story.opened.as_ref()?.event, environment.clone())
}

fn restarted() -> Fault {
    Fault {
        phase: Phase::Gather,
        blame: Blame::Host,
        why: String::from("the server was restarted in the middle of it"),
        hints: vec![String::from("push again")],
    }
}
