//! Makes the live release run and routes requests to it: after a start of the server, after a requested restart, and when a deployment
//! resumes.

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
    /// Makes the live release run, and stops all other processes of the environment.
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
        let id = id.ok_or_else(|| {
            Failure::nobody(format!("the record of the deployment that made {} live no longer exists", live.number))
        })?;
        let (mut deployment, _) = self.reopen(lane, id).map_err(|error| Failure::host(&error))?;
        deployment.order.slot = live.slot;
        processes::rescale(&mut deployment.facts, environment);
        // While the idle slot is locked, the task that holds it drains and stops the processes there.
        if let Ok(_idle) = lane.idle_slot.try_lock() {
            let stray = |label: &Label| label.slot != live.slot || label.release != live.release;
            services.runtime.stop_where(environment.id, Duration::ZERO, stray).await.map_err(|error| Failure::host(&error))?;
        }
        services.open_domains(environment, &deployment.settings());
        run_in_slot(&mut deployment, |process| !process.is_release()).await
    }

    /// Restarts all processes of the live release, with the current scale of `environment`. Refused while a deployment or another restart
    /// runs.
    pub async fn restart(&self, environment: &Environment) -> Result<(), RestartError> {
        let lane = self.lane_of(environment)?;
        let Ok(_work) = lane.work.clone().try_lock_owned() else {
            let running = lane.state.lock().running.as_ref().map(|running| running.deployment);
            return Err(lane.busy(running).into());
        };
        let lane = Lane { environment: environment.clone(), ..lane };
        // Read only now: a deployment may have replaced the live release before the lock was taken.
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
        // Processes in the other slot are stopped by the deployment that left them.
        let grace = |label: &Label| (label.slot == live.slot).then(|| settings.stop_of(&label.process).grace.get());
        let stopped = self.0.services.runtime.stop_each(lane.environment.id, grace).await;
        stopped.map_err(|error| Failure::host(&error))?;
        self.serve(lane, history, live).await
    }
}

/// An error of a restart.
#[derive(Debug, thiserror::Error)]
pub enum RestartError {
    /// The restart was refused.
    #[error(transparent)]
    NotNow(#[from] PipelineError),
    /// The processes did not start or did not become healthy.
    #[error("{0}")]
    Failed(String),
}

/// Makes the processes of a release for which `which` holds run in its slot, and routes requests to them. If they do not run already, the
/// slot is emptied first. Requests are routed to started processes even if they are not healthy: they may become so later, and until
/// then the proxy shows its error page.
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
        // The layer of a slot does not survive its mount.
        drift::over_a_restart(deployment, &live).await;
        slot::empty(deployment).await?;
        slot::link(deployment).await?;
        // A patch that cannot be applied to its own release stays saved, and does not keep the release from starting.
        if let Err(failure) = drift::reapply(deployment).await {
            tracing::error!(environment = environment.title(), why = failure.why, "cannot apply changes made by hand again");
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
