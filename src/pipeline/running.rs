//! What is live runs, and is reached: after a start, after a restart that somebody asked for, and where a deployment goes on.

use std::{net::SocketAddr, time::Duration};

use super::{
    Pipeline, PipelineError,
    context::Deployment,
    drift,
    history::History,
    lane::Lane,
    phases::deploy::{boot, processes, slot},
    step::Failure,
};
use crate::{
    model::{Environment, Live, ProcessType},
    proxy::State,
    runtime::{Instance, Label},
};

impl Pipeline {
    /// Makes what is live run, and nothing else.
    pub(super) async fn serve(&self, lane: &Lane, history: &History, live: &Live) -> Result<(), Failure> {
        let served = self.serve_live(lane, history, live).await;
        let route = self.0.services.route(&lane.environment);
        if let Err(failure) = &served
            && !matches!(route.state(), State::Live(_))
        {
            drop(route.set(State::Failed(failure.why.clone())));
        }
        served
    }

    async fn serve_live(&self, lane: &Lane, history: &History, live: &Live) -> Result<(), Failure> {
        let services = self.0.services.clone();
        let environment = &lane.environment;
        let id = history.of_release(live.release).map(|summary| summary.deployment);
        let id = id.ok_or_else(|| Failure::nobody(format!("there is no record of how {} was made", live.number)))?;
        let (mut deployment, _) = self.reopen(lane, id).map_err(|error| Failure::host(&error))?;
        deployment.order.slot = live.slot;
        processes::rescale(&mut deployment.facts, environment);
        // Where it is taken, whoever has it ends what is there, in good order.
        if let Ok(_idle) = lane.idle_slot.try_lock() {
            let stray = |label: &Label| label.slot != live.slot || label.release != live.release;
            services.runtime.stop_where(environment.id, Duration::ZERO, stray).await.map_err(|error| Failure::host(&error))?;
        }
        services.open_domains(environment, &deployment.settings());
        run_in_slot(&mut deployment, |process| !process.is_release()).await
    }

    /// Ends and starts all processes of what is live, with the scale that `environment` says now. Refused while anything else
    /// decides what runs there.
    pub async fn restart(&self, environment: &Environment) -> Result<(), RestartError> {
        let lane = self.lane_of(environment)?;
        let Ok(_work) = lane.work.clone().try_lock_owned() else {
            let running = lane.state.lock().running.as_ref().map(|running| running.deployment);
            return Err(lane.busy(running).into());
        };
        let lane = Lane { environment: environment.clone(), ..lane };
        // Only now: what was live a moment ago may be what a deployment has just replaced.
        let (live, history) = {
            let state = lane.state.lock();
            if state.closed {
                return Err(PipelineError::NoEnvironment(environment.title()).into());
            }
            (state.live.clone(), state.history.clone())
        };
        let live = live.ok_or_else(|| RestartError::Failed(String::from("nothing is live")))?;
        let rebooted = self.reboot(&lane, &history, &live).await;
        if let Some(known) = self.0.lanes.lock().get_mut(&environment.id) {
            *known = lane;
        }
        rebooted.map_err(|failure| RestartError::Failed(failure.why))
    }

    async fn reboot(&self, lane: &Lane, history: &History, live: &Live) -> Result<(), Failure> {
        let settings = self.settings_of(&lane.environment, live);
        // What is in the other slot, its own chores end.
        let grace = |label: &Label| (label.slot == live.slot).then(|| settings.stop_of(&label.process).grace.get());
        let stopped = self.0.services.runtime.stop_each(lane.environment.id, grace).await;
        stopped.map_err(|error| Failure::host(&error))?;
        self.serve(lane, history, live).await
    }
}

/// Why nothing was restarted, or not well.
#[derive(Debug, thiserror::Error)]
pub enum RestartError {
    /// It was not tried.
    #[error(transparent)]
    NotNow(#[from] PipelineError),
    /// It was, and what is live does not run as it should.
    #[error("{0}")]
    Failed(String),
}

/// Sees that those processes of a release for which `which` holds run in its slot, and that the front door leads to them. Where they
/// do not, the slot is made new. Processes that were started are led to even where they are not healthy: they may still come up,
/// and until then the front door says what there is to say.
pub(super) async fn run_in_slot(deployment: &mut Deployment, which: impl Fn(&ProcessType) -> bool) -> Result<(), Failure> {
    let services = deployment.services.clone();
    let (environment, slot) = (deployment.order.environment.clone(), deployment.order.slot);
    let wanted = processes::boot(deployment, &which);
    let wanted_count: u32 = wanted.processes.iter().map(|process| process.count).sum();
    let route = services.route(&environment);
    let running = services.runtime.instances(environment.id, Some(slot)).into_iter();
    let mut instances: Vec<_> = running.filter(|instance| which(&instance.label.process)).collect();
    let mut healthy = Ok(());
    if instances.len() != wanted_count as usize {
        drop(route.set(State::Starting));
        let order = &deployment.order;
        let live = Live { release: order.release, number: order.number, commit: order.commit.clone(), slot };
        // The layer of a slot does not survive its mount; nothing of it was promised to.
        drift::over_a_restart(deployment, &live).await;
        slot::empty(deployment).await?;
        slot::link(deployment).await?;
        // What does not fit the very release that it was made on is kept all the same, and nobody waits for it.
        if let Err(failure) = drift::reapply(deployment).await {
            tracing::error!(environment = environment.title(), why = failure.why, "changes made by hand are not put back");
        }
        instances = services.runtime.boot(&wanted).await.map_err(|error| Failure::host(&error))?;
        let web: Vec<_> = instances.iter().filter(|instance| instance.label.process.is_web()).cloned().collect();
        healthy = boot::healthy(deployment, &web).await;
        if healthy.is_ok() {
            drift::expect(deployment, &live).await;
        }
    }
    let addresses = web_addresses(&instances);
    if !addresses.is_empty() {
        drop(route.switch(services.target(&environment, addresses)));
    } else if !processes::any_web(deployment) {
        drop(route.set(State::Stopped));
    }
    healthy
}

pub(super) fn web_addresses(instances: &[Instance]) -> Vec<SocketAddr> {
    let web = instances.iter().filter(|instance| instance.label.process.is_web());
    web.filter_map(Instance::address).collect()
}
