//! The web processes of the new release, started beside the old one and asked until they answer.

use std::time::Duration;

use super::processes;
use crate::{
    config::{HealthCheck, Settings},
    host::launch::Stdio,
    model::{Environment, Phase},
    pipeline::{
        context::Deployment,
        runner::seconds,
        step::{Failure, Step, Work},
    },
    proxy::probe,
    runtime::{Instance, Label, Logs, RunJob, tail},
};

/// The first pause between two questions; it grows to the interval of the recipe, so that a fast start is seen at once and a slow
/// one is not pestered.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
/// How much of a failed process's log the pusher sees.
const LOG_LINES: usize = 20;

/// Starts them and waits until they are healthy.
pub struct Boot;

impl Step for Boot {
    fn name(&self) -> &'static str {
        "deploy.boot"
    }

    fn phase(&self) -> Phase {
        Phase::Deploy
    }

    fn about(&self) -> &'static str {
        "start the web processes in the idle slot and wait until they are healthy"
    }

    fn lasts(&self, _: &Deployment) -> bool {
        false
    }

    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            let runtime = deployment.services.runtime.clone();
            let order = &deployment.order;
            // Running twice must not mean twice the processes.
            runtime.stop(order.environment.id, order.slot, Duration::ZERO).await.map_err(|error| Failure::host(&error))?;
            let boot = processes::boot(deployment, |process| process.is_web());
            let instances = runtime.boot(&boot).await.map_err(|error| Failure::host(&error))?;
            healthy(deployment, &instances).await
        })
    }

    fn undo<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            let order = &deployment.order;
            let (settings, slot) = (deployment.settings(), order.slot);
            let grace = |label: &Label| (label.slot == slot).then(|| settings.stop_of(&label.process).grace.get());
            let stopped = deployment.services.runtime.stop_each(order.environment.id, grace).await;
            stopped.map_err(|error| Failure::host(&error))
        })
    }
}

/// Waits until all `instances` are healthy, or one has ended, or the recipe's limit is reached.
pub async fn healthy(deployment: &Deployment, instances: &[Instance]) -> Result<(), Failure> {
    let settings = deployment.settings();
    for instance in instances {
        let name = instance.label.name();
        let limit = settings.health.timeout.get();
        let mut exits = instance.exits.clone();
        let ended = tokio::select! {
            biased;
            ended = exits.wait_for(|exits| exits.count > 0) => {
                let last = ended.ok().and_then(|exits| exits.last);
                Err(match last {
                    Some(exit) => format!("{name} {exit} before it was healthy"),
                    None => format!("{name} ended before it was healthy"),
                })
            }
            answer = tokio::time::timeout(limit, ask(deployment, &settings, instance)) => {
                answer.map_err(|_| unanswered(&name, &settings, limit, instance))
            }
        };
        if let Err(why) = ended {
            show_log(deployment, &name).await;
            return Err(Failure::pusher(why).hint("the process has to listen on 127.0.0.1:$PORT or 0.0.0.0:$PORT"));
        }
    }
    Ok(())
}

fn unanswered(name: &str, settings: &Settings, limit: Duration, instance: &Instance) -> String {
    let port = instance.label.port.unwrap_or_default();
    let limit = seconds(limit);
    match &settings.health.check {
        HealthCheck::Http { path, status } => format!("{name} did not answer {path} with {status} within {limit}"),
        HealthCheck::Tcp => format!("{name} did not listen on its port {port} within {limit}"),
        HealthCheck::Command(command) => format!("`{command}` did not succeed within {limit}"),
        HealthCheck::None => format!("{name} did not start within {limit}"),
    }
}

/// The host that health checks ask for: the first domain of the project's own, if it has one, because many applications reject every
/// other host (Django's `ALLOWED_HOSTS`, Rails' `config.hosts`).
fn health_host(environment: &Environment, settings: &Settings, domain: &str) -> String {
    let own = settings.domains.first().map(|own| own.as_str().to_owned()).or_else(|| environment.domains.first().cloned());
    own.or_else(|| environment.hosts(domain).into_iter().next()).unwrap_or_default()
}

/// Asks until the answer is good.
async fn ask(deployment: &Deployment, settings: &Settings, instance: &Instance) {
    let Some(address) = instance.address() else { return };
    let host = health_host(&deployment.order.environment, settings, deployment.services.config.domain.as_str());
    let connector = deployment.services.connector(&deployment.order.environment);
    let mut pause = FIRST_PAUSE;
    loop {
        let good = match &settings.health.check {
            HealthCheck::None => true,
            HealthCheck::Tcp => connector.connect(address).await.is_ok(),
            HealthCheck::Http { path, status } => {
                let answer = probe(&*connector, address, path.as_str(), &host, Duration::from_secs(10)).await;
                answer.is_ok_and(|answer| status.contains(answer.as_u16()))
            }
            HealthCheck::Command(command) => command_succeeds(deployment, command.as_str(), address.port()).await,
        };
        // All projects share the machine's ports: one that another has taken meanwhile answers, too.
        if good && !connector.is_foreign(address) {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = pause.saturating_mul(2).min(settings.health.interval.get());
    }
}

async fn command_succeeds(deployment: &Deployment, command: &str, port: u16) -> bool {
    let mut job = RunJob { command: command.to_owned(), ..processes::job(deployment) };
    job.env.push((String::from("PORT"), port.to_string()));
    let boot = processes::boot(deployment, |_| false);
    match deployment.services.runtime.task(&boot, &job, Stdio::default()).await {
        Ok(mut child) => child.wait().await.is_ok_and(|exit| exit.success()),
        Err(_) => false,
    }
}

/// The last lines of a process that failed, for the pusher: the reason is nearly always there.
pub async fn show_log(deployment: &Deployment, process: &str) {
    // What the process wrote last may still be on its way through the pipe.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let lines = tail(&Logs::file(&deployment.paths.log(), process), LOG_LINES).unwrap_or_default();
    let since = deployment.order.id.created().to_string();
    let since = since.get(..19).unwrap_or_default();
    for line in lines.iter().filter(|line| line.get(..19).is_some_and(|moment| moment >= since)) {
        deployment.transcript.detail(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_check_asks_for_the_first_custom_domain() {
        let mut environment = Environment::of_shop("production", "main");
        let mut settings = Settings::default();
        assert_eq!(health_host(&environment, &settings, "example.org"), "shop.example.org");
        environment.domains = vec![String::from("stored.example.com")];
        assert_eq!(health_host(&environment, &settings, "example.org"), "stored.example.com");
        settings.domains = vec!["www.shop.example".parse().unwrap(), "other.example".parse().unwrap()];
        assert_eq!(health_host(&environment, &settings, "example.org"), "www.shop.example");
    }
}
