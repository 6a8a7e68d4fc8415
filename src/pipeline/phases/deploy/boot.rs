//! The step that starts the web processes of the new release beside the old processes and waits until the new processes are healthy.

use std::time::Duration;

use super::{
    health::{HealthAnswer, HealthTarget, LISTEN},
    processes,
};
use crate::{
    model::{Exit, Phase},
    pipeline::{
        context::Deployment,
        output::{self, Cause},
        step::{self, Acquired, Failure, Resource, Step, Work},
    },
    runtime::{Instance, Logs, tail},
};

/// The maximum number of log lines of a failed process that the pusher sees.
const MAX_LOG_LINES: usize = 20;

/// The step that starts the web processes and waits until they are healthy.
pub struct BootWeb;

impl Step for BootWeb {
    fn name(&self) -> &'static str {
        "deploy.boot"
    }

    fn phase(&self) -> Phase {
        Phase::Deploy
    }

    fn about(&self) -> &'static str {
        "start the web processes in the idle slot and wait until they are healthy"
    }

    fn is_durable(&self, _: &Deployment) -> bool {
        false
    }

    fn acquire<'a>(&'a self, deployment: &'a Deployment) -> Acquired<'a> {
        step::permit(deployment, Resource::Boot)
    }

    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            let instances = start_web(deployment).await?;
            healthy(deployment, &instances).await
        })
    }

    fn undo<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(stop_reverted(deployment))
    }
}

/// Starts the web processes of the release in its slot.
pub(super) async fn start_web(deployment: &Deployment) -> Result<Vec<Instance>, Failure> {
    let runtime = &deployment.services.runtime;
    // If the step runs twice, the processes of the first run must not stay.
    let stopped = runtime.stop(deployment.environment.id, deployment.spec.slot, Duration::ZERO).await;
    stopped.map_err(|error| Failure::host(&error))?;
    let boot = processes::boot(deployment, |process| process.is_web())?;
    runtime.boot(&boot).await.map_err(|error| Failure::host(&error))
}

/// Stops the processes of the release in its slot, because the deployment is reverted.
pub(in crate::pipeline) async fn stop_reverted(deployment: &Deployment) -> Result<(), Failure> {
    let (slots, spec) = (&deployment.memory.slots, &deployment.spec);
    let stopped = slots.stop_reverted(&deployment.services.runtime, deployment.environment.id, spec.slot).await;
    stopped.map_err(|error| Failure::host(&error))
}

/// Waits until all `instances` are healthy. Returns an error if an instance exits, or is not healthy within the recipe's time
/// limit.
pub async fn healthy(deployment: &Deployment, instances: &[Instance]) -> Result<(), Failure> {
    let settings = deployment.settings();
    let boot = processes::boot_of_tasks(deployment);
    let job = processes::job(deployment)?;
    for instance in instances {
        let Some(address) = instance.address() else { continue };
        let (name, services) = (instance.label.name(), &deployment.services);
        let target = HealthTarget { name, address, services, settings: &settings, boot: &boot, job: &job, on_copy: false };
        let limit = settings.health_timeout().get();
        let mut exits = instance.exits.clone();
        let mut last = HealthAnswer::default();
        // The guard of the channel must not be held over an await.
        let exited = async { exits.wait_for(|exits| exits.count > 0).await.ok().and_then(|exits| exits.last) };
        tokio::select! {
            biased;
            exit = exited => {
                return Err(exited_early(deployment, instance, exit, "before it was healthy").await);
            }
            () = target.until_healthy(&mut last) => {}
            () = tokio::time::sleep(limit) => {
                show_log(deployment, &instance.label.name()).await;
                return Err(target.unhealthy(&last, limit));
            }
        }
    }
    Ok(())
}

/// Returns the failure of a process that exited although it should run, with the cause that its log names. `when` is the clause that ends
/// the reason, such as "before it was healthy". The pusher sees the end of the log.
pub async fn exited_early(deployment: &Deployment, instance: &Instance, exit: Option<Exit>, when: &str) -> Failure {
    let name = instance.label.name();
    let cause = show_log(deployment, &name).await;
    let how = exit.map_or_else(|| String::from("exited"), |exit| exit.to_string());
    let failure = Failure::pusher(cause.after(&format!("{name} {how} {when}")));
    let port_taken = |sentence: &String| {
        let sentence = sentence.to_ascii_lowercase();
        sentence.contains("address already in use") || sentence.contains("eaddrinuse")
    };
    let hint = match &cause.sentence {
        Some(sentence) if port_taken(sentence) => Some(LISTEN.to_owned()),
        _ if exit.is_some_and(|exit| exit.success()) => Some(format!("run {name} in the foreground, not as a daemon")),
        _ => cause.hint,
    };
    hint.into_iter().fold(failure, Failure::hint)
}

/// Shows the pusher the last log lines of a process that failed, and returns the cause in these lines.
async fn show_log(deployment: &Deployment, process: &str) -> Cause {
    // The last output may still be in the pipe.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let lines = tail(&Logs::file(&deployment.paths.log(), process), MAX_LOG_LINES).unwrap_or_default();
    let since = deployment.spec.id.created().to_string();
    let since = since.get(..19).unwrap_or_default();
    let lines: Vec<_> = lines.iter().filter(|line| line.get(..19).is_some_and(|moment| moment >= since)).collect();
    lines.iter().for_each(|line| deployment.transcript.detail(line));
    // The text of a line follows the time and the name of the process.
    output::cause(lines.iter().map(|line| line.splitn(3, ' ').nth(2).unwrap_or_default()))
}
