//! The restart of the processes of some types in a checkout. The other processes, and commands of `larder run`, keep running.

use std::{collections::BTreeSet, time::Duration};

use jiff::Timestamp;

use crate::{
    model::ProcessType,
    pipeline::{
        context::Deployment,
        failure::Failure,
        output::{self, Cause},
        phases::deploy::{
            health::{HealthAnswer, HealthTarget},
            processes,
        },
        running::web_addresses,
    },
    proxy::{Hold, RouteState},
    runtime::{Instance, Logs, tail},
};

/// The time in which requests in flight can end before the processes stop.
const SETTLE: Duration = Duration::from_millis(50);
/// The maximum time between the stop signal and SIGKILL.
const MAX_GRACE: Duration = Duration::from_secs(5);
/// The time in which the last output of a process that exited arrives.
const LAST_OUTPUT: Duration = Duration::from_millis(50);
/// The number of log lines in which the reason of an exit is searched.
const MAX_LOG_LINES: usize = 20;

/// The processes that were started.
pub(super) struct Started {
    instances: Vec<Instance>,
    began: Timestamp,
}

impl Started {
    /// Returns the names of the process types, for people.
    pub fn names(&self) -> String {
        let kinds: BTreeSet<_> = self.instances.iter().map(|instance| instance.label.process.to_string()).collect();
        kinds.into_iter().collect::<Vec<_>>().join(", ")
    }
}

/// Makes requests wait while the web processes restart.
pub(super) async fn hold(deployment: &Deployment) -> Hold {
    let route = deployment.services.route(&deployment.environment);
    route.set_maintenance_page(deployment.facts.maintenance_page.clone());
    let hold = route.hold(deployment.settings().hold().get());
    hold.settle_requests(SETTLE).await;
    hold
}

/// Stops the processes of these types, and starts them again.
pub(super) async fn start(deployment: &Deployment, kinds: &BTreeSet<ProcessType>) -> Result<Started, Failure> {
    let runtime = &deployment.services.runtime;
    let grace = deployment.memory.slots.grace_in(deployment.spec.slot);
    let grace = |label: &_| grace(label).map(|grace: Duration| grace.min(MAX_GRACE));
    let stopped = runtime.stop_each(deployment.environment.id, |label| grace(label).filter(|_| kinds.contains(&label.process)));
    stopped.await.map_err(|error| Failure::host(&error))?;
    let boot = processes::boot(deployment, |process| kinds.contains(process) && !process.is_release())?;
    let began = Timestamp::now();
    let instances = runtime.boot(&boot).await.map_err(|error| Failure::host(&error))?;
    Ok(Started { instances, began })
}

/// Waits until the web processes are healthy. Fails if a process exits before.
pub(super) async fn healthy(deployment: &Deployment, started: &Started) -> Result<(), Failure> {
    let settings = deployment.settings();
    let boot = processes::boot_of_tasks(deployment);
    let job = processes::job(deployment)?;
    let limit = settings.health_timeout().get();
    for instance in started.instances.iter().filter(|instance| instance.label.process.is_web()) {
        let Some(address) = instance.address() else { continue };
        let (name, services) = (instance.label.name(), &deployment.services);
        let target = HealthTarget { name, address, services, settings: &settings, boot: &boot, job: &job, on_copy: false };
        let mut exits = instance.exits.clone();
        let mut last = HealthAnswer::default();
        let exited = async { exits.wait_for(|exits| exits.count > 0).await.ok().and_then(|exits| exits.last) };
        tokio::select! {
            biased;
            exit = exited => {
                let name = instance.label.name();
                let how = exit.map_or_else(|| String::from("exited"), |exit| exit.to_string());
                return Err(Failure::pusher(cause(deployment, started, &name).await.after(&format!("{name} {how}"))));
            }
            () = target.until_healthy(&mut last) => {}
            () = tokio::time::sleep(limit) => return Err(target.unhealthy(&last, limit)),
        }
    }
    Ok(())
}

/// Routes requests to the web processes that run.
pub(super) fn route(deployment: &Deployment) {
    let services = &deployment.services;
    let environment = &deployment.environment;
    let instances = services.runtime.instances(environment.id, Some(deployment.spec.slot));
    let addresses = web_addresses(&instances);
    if !addresses.is_empty() {
        drop(services.route(environment).switch(services.target(environment, addresses)));
    }
}

/// Shows visitors that the processes could not be started.
pub(super) fn route_failed(deployment: &Deployment, failure: &Failure) {
    drop(deployment.services.route(&deployment.environment).set(RouteState::Failed(failure.why.clone())));
}

/// Returns the cause that the log of a process names.
async fn cause(deployment: &Deployment, started: &Started, process: &str) -> Cause {
    tokio::time::sleep(LAST_OUTPUT).await;
    let since = started.began.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string();
    let lines = tail(&Logs::file(&deployment.paths.log(), process), MAX_LOG_LINES).unwrap_or_default();
    let new = lines.iter().filter(|line| line.get(..since.len()).is_some_and(|moment| moment >= since.as_str()));
    // The text of a line follows the time and the name of the process.
    output::cause(new.map(|line| line.splitn(3, ' ').nth(2).unwrap_or_default()))
}
