//! After a start: finish or unwind what a dead server left, and see that what shall be live runs and is reached.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{
    Pipeline, PipelineError, chores,
    context::{Deployment, Order},
    drift, fault,
    history::{self, History, Summary},
    journal::{Journal, JournalError, Story},
    lane::Lane,
    modes,
    phases::deploy::{boot, processes, slot},
    runner,
    step::{Failure, chain},
    transcript::Transcript,
    verdict,
};
use crate::{
    host::files,
    model::{Blame, DeploymentId, Environment, Event, Fault, Live, Outcome, Phase, Status},
    proxy::State,
};

/// The step after which a deployment is finished rather than unwound: its code serves, and users have seen it.
const POINT_OF_FINISHING: &str = "deploy.switch";

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
            None => {
                let _ = self.0.services.runtime.stop_where(environment.id, Duration::ZERO, |_| true).await;
                drop(route.set(State::Empty));
            }
            Some(live) => {
                if let Err(failure) = self.serve(&lane, &history, &live).await {
                    tracing::error!(environment = environment.title(), why = failure.why, "the live release does not run");
                    drop(route.set(State::Failed(failure.why)));
                }
            }
        }
        self.0.lanes.lock().insert(environment.id, lane);
        Ok(())
    }

    /// Forgets an environment; its processes and files are the caller's business.
    pub fn detach(&self, environment: &Environment) {
        self.0.lanes.lock().remove(&environment.id);
        self.0.services.routes.lock().remove(&environment.id);
        for host in environment.hosts(self.0.services.config.domain.as_str()) {
            self.0.services.proxy.remove_route(&host);
        }
    }

    async fn recover(&self, lane: &Lane, summary: Summary) {
        let title = lane.environment.title();
        match self.finish_or_unwind(lane, summary.deployment).await {
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

    async fn finish_or_unwind(&self, lane: &Lane, id: DeploymentId) -> Result<Outcome, JournalError> {
        let (mut deployment, mut journal) = self.reopen(lane, id)?;
        journal.append(Event::Recovered)?;
        let plan = modes::plan(lane.environment.mode, &deployment.order.origin);
        let undoing = journal.story().steps.values().any(|status| matches!(status, Status::Undoing | Status::Undone));
        let failed = journal.story().fault.is_some();
        let serves = journal.story().status(POINT_OF_FINISHING) == Status::Done;
        let outcome = if serves && !undoing && !failed {
            deployment.transcript.title("The server was restarted; this deployment goes on");
            runner::run(&plan, &mut deployment, &mut journal).await?
        } else {
            deployment.transcript.error("The server was restarted; this deployment is put back");
            let fault = journal.story().fault.clone().unwrap_or_else(restarted);
            runner::unwind(&plan, &mut deployment, &mut journal, fault).await?
        };
        journal.append(Event::Ended { outcome: outcome.clone() })?;
        self.note(lane, &deployment, &journal, &outcome);
        verdict::print(&deployment, &outcome);
        Ok(outcome)
    }

    /// A deployment as its journal left it.
    fn reopen(&self, lane: &Lane, id: DeploymentId) -> Result<(Deployment, Journal), JournalError> {
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

    /// Makes what is live run, and nothing else.
    async fn serve(&self, lane: &Lane, history: &History, live: &Live) -> Result<(), Failure> {
        let services = self.0.services.clone();
        let environment = &lane.environment;
        let id = history.of_release(live.release).map(|summary| summary.deployment);
        let id = id.ok_or_else(|| Failure::nobody(format!("there is no record of how {} was made", live.number)))?;
        let (mut deployment, _) = self.reopen(lane, id).map_err(|error| Failure::host(&error))?;
        deployment.order.slot = live.slot;
        processes::rescale(&mut deployment.facts, environment);
        let stray = |label: &crate::runtime::Label| label.slot != live.slot || label.release != live.release;
        services.runtime.stop_where(environment.id, Duration::ZERO, stray).await.map_err(|error| Failure::host(&error))?;
        let wanted = processes::boot(&deployment, |process| !process.is_release());
        let wanted_count: u32 = wanted.processes.iter().map(|process| process.count).sum();
        let route = services.route(environment);
        services.open_domains(environment, &deployment.settings());
        let mut instances = services.runtime.instances(environment.id, Some(live.slot));
        if instances.len() != wanted_count as usize {
            drop(route.set(State::Starting));
            // The layer of a slot does not survive its mount; nothing of it was promised to.
            drift::over_a_restart(&mut deployment, live).await;
            slot::empty(&deployment).await?;
            slot::link(&deployment).await?;
            // What does not fit the very release that it was made on is kept all the same, and nobody waits for it.
            if let Err(failure) = drift::reapply(&deployment).await {
                tracing::error!(environment = environment.title(), why = failure.why, "changes made by hand are not put back");
            }
            instances = services.runtime.boot(&wanted).await.map_err(|error| Failure::host(&error))?;
            let web: Vec<_> = instances.iter().filter(|instance| instance.label.process.is_web()).cloned().collect();
            boot::healthy(&deployment, &web).await?;
            drift::expect(&deployment, live).await;
        }
        let web = instances.iter().filter(|instance| instance.label.process.is_web());
        let addresses: Vec<_> = web.filter_map(|instance| instance.address()).collect();
        if !addresses.is_empty() {
            drop(route.switch(services.target(environment, addresses)));
        }
        Ok(())
    }

    /// Ends and starts all processes of what is live, with the scale that `environment` says now.
    pub async fn restart(&self, environment: &Environment) -> Result<(), String> {
        self.reboot(environment).await.map_err(|failure| failure.why)
    }

    async fn reboot(&self, environment: &Environment) -> Result<(), Failure> {
        let Some(lane) = self.lane(environment.id) else { return Err(Failure::nobody("the environment is not served")) };
        let lane = Lane { environment: environment.clone(), ..lane };
        let (live, history) = {
            let state = lane.state.lock();
            (state.live.clone(), state.history.clone())
        };
        let live = live.ok_or_else(|| Failure::nobody("nothing is live"))?;
        let services: &Arc<super::Services> = &self.0.services;
        let stopped = services.runtime.stop_where(environment.id, Duration::from_secs(10), |_| true).await;
        stopped.map_err(|error| Failure::host(&error))?;
        let served = self.serve(&lane, &history, &live).await;
        self.0.lanes.lock().insert(environment.id, lane);
        served
    }
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
