//! The step that starts the web processes of the new release beside the old processes and waits until the new processes are healthy.

use std::{io::ErrorKind, net::SocketAddr, time::Duration};

use super::processes;
use crate::{
    config::{HealthCheck, Settings, StatusRange, TimeSpan},
    host::launch::Stdio,
    model::{Environment, Exit, Phase},
    pipeline::{
        context::Deployment,
        output::{self, Cause},
        step::{self, Acquired, Failure, Resource, Step, Work, chain, seconds},
    },
    proxy::{ConnectError, Connector, ProbeError, probe},
    runtime::{Instance, Logs, RunJob, tail},
};

/// The first pause between two checks. The pause doubles up to the recipe's interval, so that a fast start is noticed at once, and frequent
/// checks do not slow down a slow start.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
/// The maximum number of log lines of a failed process that the pusher sees.
const MAX_LOG_LINES: usize = 20;
/// The time limit of one health request.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The hint for a process that listens on no port, or not on `$PORT`.
const LISTEN: &str = "listen on 127.0.0.1:$PORT or 0.0.0.0:$PORT";

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
    let boot = processes::boot(deployment, |process| process.is_web());
    runtime.boot(&boot).await.map_err(|error| Failure::host(&error))
}

/// Stops the processes of the release in its slot, because the deployment is reverted.
pub(super) async fn stop_reverted(deployment: &Deployment) -> Result<(), Failure> {
    let (slots, spec) = (&deployment.memory.slots, &deployment.spec);
    let stopped = slots.stop_reverted(&deployment.services.runtime, deployment.environment.id, spec.slot).await;
    stopped.map_err(|error| Failure::host(&error))
}

/// Waits until all `instances` are healthy. Returns an error if an instance exits, or is not healthy within the recipe's time
/// limit.
pub async fn healthy(deployment: &Deployment, instances: &[Instance]) -> Result<(), Failure> {
    let settings = deployment.settings();
    for instance in instances {
        let limit = settings.health_timeout().get();
        let mut exits = instance.exits.clone();
        let mut last = Answer::Silence;
        // The guard of the channel must not be held over an await.
        let exited = async { exits.wait_for(|exits| exits.count > 0).await.ok().and_then(|exits| exits.last) };
        tokio::select! {
            biased;
            exit = exited => {
                return Err(exited_early(deployment, instance, exit, "before it was healthy").await);
            }
            () = check_until_healthy(deployment, &settings, instance, &mut last) => {}
            () = tokio::time::sleep(limit) => {
                show_log(deployment, &instance.label.name()).await;
                return Err(unhealthy(instance, &settings.health.check, &last, limit));
            }
        }
    }
    Ok(())
}

/// The outcome of the last health check.
#[derive(Debug)]
enum Answer {
    /// No check has ended yet.
    Silence,
    Healthy,
    NotListening,
    /// Another project's process listens on the port.
    Foreign,
    Status(u16),
    /// The process accepted a connection but did not send an HTTP response, or the check itself failed.
    Error(String),
    Exited(Exit),
}

/// Returns the failure of an instance that was not healthy in time, described by its last answer.
fn unhealthy(instance: &Instance, check: &HealthCheck, last: &Answer, limit: Duration) -> Failure {
    let name = instance.label.name();
    let port = instance.label.port.unwrap_or_default();
    let within = format!("within {}", seconds(limit));
    match (last, check) {
        (Answer::NotListening, _) => Failure::pusher(format!("{name} did not listen on its port {port} {within}")).hint(LISTEN),
        (Answer::Foreign, _) => Failure::pusher(format!(
            "{name} did not listen on its port {port} {within}: a process of another project listens there"
        ))
        .hint("push again: the next attempt uses another port"),
        (Answer::Status(status), HealthCheck::Http { path, status: expected }) => {
            Failure::pusher(format!("{name} answered {status} to GET {path} (expected {expected})"))
        }
        (Answer::Error(error), HealthCheck::Http { path, .. }) => {
            Failure::pusher(format!("{name} did not answer GET {path} {within}: {error}"))
        }
        (Answer::Exited(exit), HealthCheck::Command(command)) => {
            Failure::pusher(format!("the health command `{command}` {exit} (expected 0 {within})"))
        }
        (_, HealthCheck::Http { path, .. }) => Failure::pusher(format!("{name} did not answer GET {path} {within}")),
        (_, HealthCheck::Command(command)) => Failure::pusher(format!("the health command `{command}` did not exit {within}")),
        (_, HealthCheck::Tcp | HealthCheck::None) => Failure::pusher(format!("{name} did not start {within}")),
    }
}

/// Returns the host name for health and smoke checks: the first domain of the project, or the environment's default host if the
/// project has no domains of its own. Many applications reject every other host (Django's `ALLOWED_HOSTS`, Rails' `config.hosts`).
pub fn health_host(environment: &Environment, settings: &Settings, domain: &str) -> String {
    let own = settings.domains.first().map(|own| own.as_str().to_owned()).or_else(|| environment.domains.first().cloned());
    own.or_else(|| environment.hosts(domain).into_iter().next()).unwrap_or_default()
}

/// Repeats the check until the instance is healthy, and stores the last answer in `last`.
async fn check_until_healthy(deployment: &Deployment, settings: &Settings, instance: &Instance, last: &mut Answer) {
    let Some(address) = instance.address() else { return };
    let host = health_host(&deployment.environment, settings, deployment.services.config.domain.as_str());
    let connector = deployment.services.connector(&deployment.environment);
    let mut pause = FIRST_PAUSE;
    loop {
        *last = match &settings.health.check {
            HealthCheck::None => Answer::Healthy,
            HealthCheck::Tcp => match connector.connect(address).await {
                Ok(_) => Answer::Healthy,
                Err(error) => unconnected(&error),
            },
            HealthCheck::Http { path, status } => request(&*connector, address, path.as_str(), *status, &host).await,
            HealthCheck::Command(command) => command_answer(deployment, command.as_str(), address.port()).await,
        };
        if matches!(last, Answer::Healthy) {
            // All projects share the machine's ports, so a process of another project may have taken the port and may answer.
            if !connector.is_foreign(address) {
                return;
            }
            *last = Answer::Foreign;
        }
        tokio::time::sleep(pause).await;
        pause = pause.saturating_mul(2).min(settings.health.interval.min(TimeSpan::MAX_INTERVAL).get());
    }
}

/// Requests the health page once.
async fn request(connector: &dyn Connector, address: SocketAddr, path: &str, expected: StatusRange, host: &str) -> Answer {
    match probe(connector, address, path, host, ANSWER_TIMEOUT).await {
        Ok(status) if expected.contains(status.as_u16()) => Answer::Healthy,
        Ok(status) => Answer::Status(status.as_u16()),
        Err(ProbeError::Connect(error)) => unconnected(&error),
        Err(ProbeError::Timeout { .. }) => Answer::Error(format!("no response after {}", seconds(ANSWER_TIMEOUT))),
        Err(ProbeError::Exchange { source, .. }) => Answer::Error(chain(&source)),
        Err(error) => Answer::Error(chain(&error)),
    }
}

fn unconnected(error: &ConnectError) -> Answer {
    match error {
        ConnectError::Io { source, .. } if source.kind() != ErrorKind::ConnectionRefused => Answer::Error(chain(error)),
        ConnectError::Foreign { seen: Some(_), .. } => Answer::Foreign,
        ConnectError::Timeout { .. } => Answer::Error(chain(error)),
        ConnectError::Io { .. } | ConnectError::Foreign { .. } | ConnectError::NoInstance => Answer::NotListening,
    }
}

async fn command_answer(deployment: &Deployment, command: &str, port: u16) -> Answer {
    let mut job = RunJob { command: command.to_owned(), ..processes::job(deployment) };
    job.env.push((String::from("PORT"), port.to_string()));
    let boot = processes::boot(deployment, |_| false);
    match deployment.services.runtime.task(&boot, &job, Stdio::default()).await {
        Ok(mut child) => match child.wait().await {
            Ok(exit) if exit.success() => Answer::Healthy,
            Ok(exit) => Answer::Exited(exit),
            Err(error) => Answer::Error(chain(&error)),
        },
        Err(error) => Answer::Error(chain(&error)),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_check_uses_the_first_custom_domain() {
        let mut environment = Environment::of_shop("production", "main");
        let mut settings = Settings::default();
        assert_eq!(health_host(&environment, &settings, "example.org"), "shop.example.org");
        environment.domains = vec![String::from("stored.example.com")];
        assert_eq!(health_host(&environment, &settings, "example.org"), "stored.example.com");
        settings.domains = vec!["www.shop.example".parse().unwrap(), "other.example".parse().unwrap()];
        assert_eq!(health_host(&environment, &settings, "example.org"), "www.shop.example");
    }
}
