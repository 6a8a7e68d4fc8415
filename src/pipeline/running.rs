//! Starts the live release and routes requests to its processes. The callers are the start of the server, a requested restart, a
//! restore of the data, the undo of a failed upgrade, an unfreeze, and the recovery of a deployment.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use super::{
    context::Deployment,
    core::Pipeline,
    drift,
    error::PipelineError,
    failure::Failure,
    history::History,
    phases::deploy::{boot, processes, slot},
    queue::Queue,
    space_wait::may_be_out_of_space,
    util::seconds,
};
use crate::{
    model::{Environment, Live, Phase, ProcessType},
    proxy::RouteState,
    runtime::Instance,
};

impl Pipeline {
    /// Ensures that the live release runs. Stops each process whose release does not occupy the slot of the process, unless the use
    /// of the slots is unknown.
    pub(super) async fn serve(&self, queue: &Queue, history: &History, live: &Live) -> Result<(), Failure> {
        self.serve_after(queue, history, live, async || Ok(())).await
    }

    /// Ensures that the live release runs, like [`Pipeline::serve`]. If processes must be started, calls `before_boot` after the slot is
    /// emptied and before the first process starts. If `before_boot` fails, no process is started.
    pub(super) async fn serve_after(
        &self,
        queue: &Queue,
        history: &History,
        live: &Live,
        before_boot: impl AsyncFnOnce() -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let served = self.serve_live(queue, history, live, before_boot).await;
        let environment = queue.environment();
        let route = self.0.services.route(&environment);
        if let Err(failure) = &served {
            if !matches!(route.state(), RouteState::Live(_)) {
                drop(route.set(RouteState::Failed(failure.why.clone())));
            }
            let paths = self.0.services.root.environment(&environment.project, &environment.name);
            if may_be_out_of_space(paths.path(), failure) {
                // The guard of the disk starts the release when there is space.
                self.0.disk.unserved.lock().insert(environment.id, Instant::now());
            }
        }
        served
    }

    async fn serve_live(
        &self,
        queue: &Queue,
        history: &History,
        live: &Live,
        before_boot: impl AsyncFnOnce() -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let services = self.0.services.clone();
        let environment = &queue.environment();
        let mut deployment = self.live_deployment(queue, history, live)?;
        // Processes in a draining slot are stopped by the follow-up of that slot.
        if !queue.slots.are_unknown() {
            let stopped = services.runtime.stop_where(environment.id, Duration::ZERO, queue.slots.strays()).await;
            stopped.map_err(|error| Failure::host(&error))?;
        }
        services.open_domains(environment, &deployment.settings());
        run_in_slot(&mut deployment, |process| !process.is_release(), before_boot).await
    }

    /// Returns the deployment that made `live` live, with the current scale of the environment.
    fn live_deployment(&self, queue: &Queue, history: &History, live: &Live) -> Result<Deployment, Failure> {
        let id = history.of_release(live.release).map(|summary| summary.deployment);
        let id = id.ok_or_else(|| {
            Failure::blameless(format!("the record of the deployment that made {} live no longer exists", live.number))
        })?;
        let (recorded, _) = self.reopen(queue, id).map_err(|error| Failure::host(&error))?;
        let (mut spec, mut facts) = (recorded.spec, recorded.facts);
        spec.slot = live.slot;
        processes::rescale(&mut facts, &queue.environment());
        Ok(self.revive(queue, spec, facts, recorded.transcript, CancellationToken::new()))
    }

    /// Returns the deployment that made the live release of a checkout live. Fails if its processes must not start now.
    pub(super) fn live_deployment_of(&self, queue: &Queue) -> Result<Deployment, Failure> {
        let (live, history) = queue.snapshot();
        let live = live.ok_or_else(|| Failure::blameless("nothing is live"))?;
        let environment = queue.environment();
        let stopped = self.unfinished_restore(&environment, &history).or_else(|| self.disk_offence(environment.id));
        match stopped {
            Some(why) => Err(Failure::blameless(why)),
            None => self.live_deployment(queue, &history, &live),
        }
    }

    /// Restarts all processes of the live release, with the current scale of `environment`. Returns an error while a deployment, a restart,
    /// a restore of the data or an unfreeze is under way.
    pub async fn restart(&self, environment: &Environment) -> Result<(), RestartError> {
        let queue = self.queue_of(environment)?;
        let _work = queue.work_now().await?;
        // The live release is read after the lock is acquired, because a deployment may have replaced the live release before the lock was
        // acquired.
        let (live, history) = {
            let mut state = queue.state.lock();
            if state.closed {
                return Err(PipelineError::NoEnvironment(environment.title()).into());
            }
            state.environment = environment.clone();
            (state.live.clone(), state.history.clone())
        };
        let live = live.ok_or_else(|| RestartError::Failed(String::from("nothing is live")))?;
        if let Some(why) = self.unfinished_restore(environment, &history) {
            return Err(RestartError::Failed(why));
        }
        self.reboot(&queue, &history, &live).await.map_err(|failure| RestartError::Failed(failure.why))
    }

    async fn reboot(&self, queue: &Queue, history: &History, live: &Live) -> Result<(), Failure> {
        // Processes in the other slot are stopped by a follow-up of the deployment that replaced their release.
        let stopped = queue.slots.stop(&self.0.services.runtime, queue.id, live.slot).await;
        stopped.map_err(|error| Failure::host(&error))?;
        self.serve(queue, history, live).await
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

/// Ensures that the processes for which `which` returns true run in the release's slot, and routes requests to these processes. If these
/// processes do not run yet, the slot is emptied, and then `before_boot` is called. A failure of `before_boot` prevents the start. Requests
/// are routed to started processes even if they are not healthy: they may become healthy later, and until then the proxy shows its error
/// page.
pub(super) async fn run_in_slot(
    deployment: &mut Deployment,
    which: impl Fn(&ProcessType) -> bool,
    before_boot: impl AsyncFnOnce() -> Result<(), Failure>,
) -> Result<(), Failure> {
    let services = deployment.services.clone();
    let (environment, slot) = (deployment.environment.clone(), deployment.spec.slot);
    let wanted = processes::boot(deployment, &which)?;
    let wanted_count: u32 = wanted.processes.iter().map(|process| process.count).sum();
    let route = services.route(&environment);
    let running = services.runtime.instances(environment.id, Some(slot)).into_iter();
    let mut instances: Vec<_> = running.filter(|instance| which(&instance.label.process)).collect();
    let mut healthy = Ok(());
    if instances.len() != wanted_count as usize {
        drop(route.set(RouteState::Starting));
        let spec = &deployment.spec;
        let live = Live { release: spec.release, number: spec.number, commit: spec.commit.clone(), slot };
        // The tree of a directory workspace survives a restart, with the changes in the tree.
        if !slot.is_directory() {
            // The slot is emptied below, so changes made by hand are saved first.
            drift::over_a_restart(deployment, &live).await;
        }
        slot::empty(deployment).await?;
        before_boot().await?;
        let limit = deployment.time_limit(Phase::Deploy);
        let late =
            || Err(Failure::pusher(format!("cannot link the persistent paths: the work took longer than {}", seconds(limit))));
        tokio::time::timeout(limit, slot::link(deployment)).await.unwrap_or_else(|_| late())?;
        // A patch that cannot be applied to its own release stays saved, and does not prevent the start of the release.
        if !slot.is_directory()
            && let Err(failure) = drift::reapply(deployment).await
        {
            tracing::error!(environment = environment.title(), why = failure.why, "cannot reapply changes made by hand");
            // A failed write leaves a part of the patch in the slot, and no release must run with a part of a patch.
            slot::empty(deployment).await?;
            slot::link(deployment).await?;
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
        drop(route.set(RouteState::Stopped));
    }
    healthy
}

pub(super) fn web_addresses(instances: &[Instance]) -> Vec<SocketAddr> {
    let web = instances.iter().filter(|instance| instance.label.process.is_web());
    web.filter_map(Instance::address).collect()
}
