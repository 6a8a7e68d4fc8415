//! The health check of one web process: the requests or commands that decide if the process is healthy, and the failure of a process that is
//! not. Read [`HealthTarget`] first.

use std::{io::ErrorKind, net::SocketAddr, time::Duration};

use crate::{
    config::{HealthCheck, Settings, StatusRange, TimeSpan},
    host::launch::Stdio,
    model::{Environment, Exit},
    pipeline::{
        context::Services,
        failure::Failure,
        util::{chain, seconds},
    },
    proxy::{ConnectError, Connector, ProbeError, probe},
    runtime::{Boot, RunJob},
};

/// The first pause between two checks. The pause doubles up to the recipe's interval, so that a fast start is noticed at once, and frequent
/// checks do not slow down a slow start.
const FIRST_PAUSE: Duration = Duration::from_millis(2);

/// The time limit of one health request.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The hint for a process that listens on no port, or not on `$PORT`.
pub const LISTEN: &str = "listen on 127.0.0.1:$PORT or 0.0.0.0:$PORT";

/// A web process whose health is checked.
pub struct HealthTarget<'a> {
    /// The name for messages, such as `web.1`.
    pub name: String,
    /// The address on which the process must listen.
    pub address: SocketAddr,
    pub services: &'a Services,
    /// The settings of the release.
    pub settings: &'a Settings,
    /// The environment, the slot and the release, for a health command.
    pub boot: &'a Boot,
    /// The variables of a health command.
    pub job: &'a RunJob,
    /// True if a health command works on the copy of a restore point's data.
    pub on_copy: bool,
}

/// The outcome of the last health check.
#[derive(Debug, Default)]
pub enum HealthAnswer {
    /// No check has ended yet.
    #[default]
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

impl HealthTarget<'_> {
    /// Returns the failure of a process that was not healthy in time, described by its last answer.
    pub fn unhealthy(&self, last: &HealthAnswer, limit: Duration) -> Failure {
        let (name, port) = (&self.name, self.address.port());
        let within = format!("within {}", seconds(limit));
        match (last, &self.settings.health.check) {
            (HealthAnswer::NotListening, _) => {
                Failure::pusher(format!("{name} did not listen on its port {port} {within}")).hint(LISTEN)
            }
            (HealthAnswer::Foreign, _) => Failure::pusher(format!(
                "{name} did not listen on its port {port} {within}: a process of another project listens there"
            ))
            .hint("push again: the next attempt uses another port"),
            (HealthAnswer::Status(status), HealthCheck::Http { path, status: expected }) => {
                Failure::pusher(format!("{name} answered {status} to GET {path} (expected {expected})"))
            }
            (HealthAnswer::Error(error), HealthCheck::Http { path, .. }) => {
                Failure::pusher(format!("{name} did not answer GET {path} {within}: {error}"))
            }
            (HealthAnswer::Exited(exit), HealthCheck::Command(command)) => {
                Failure::pusher(format!("the health command `{command}` {exit} (expected 0 {within})"))
            }
            (_, HealthCheck::Http { path, .. }) => Failure::pusher(format!("{name} did not answer GET {path} {within}")),
            (_, HealthCheck::Command(command)) => {
                Failure::pusher(format!("the health command `{command}` did not exit {within}"))
            }
            (_, HealthCheck::Tcp | HealthCheck::None) => Failure::pusher(format!("{name} did not start {within}")),
        }
    }

    /// Repeats the check until the process is healthy, and stores the last answer in `last`.
    pub async fn until_healthy(&self, last: &mut HealthAnswer) {
        let HealthTarget { address, services, settings, .. } = *self;
        let host = health_host(&self.boot.environment, settings, services.config.domain.as_str());
        let connector = services.connector(&self.boot.environment);
        let mut pause = FIRST_PAUSE;
        loop {
            *last = match &settings.health.check {
                HealthCheck::None => HealthAnswer::Healthy,
                HealthCheck::Tcp => match connector.connect(address).await {
                    Ok(_) => HealthAnswer::Healthy,
                    Err(error) => unconnected(&error),
                },
                HealthCheck::Http { path, status } => request(&*connector, address, path.as_str(), *status, &host).await,
                HealthCheck::Command(command) => self.command_answer(command.as_str()).await,
            };
            if matches!(last, HealthAnswer::Healthy) {
                // All projects share the machine's ports, so a process of another project may have taken the port and may answer.
                if !connector.is_foreign(address) {
                    return;
                }
                *last = HealthAnswer::Foreign;
            }
            tokio::time::sleep(pause).await;
            pause = pause.saturating_mul(2).min(settings.health.interval.min(TimeSpan::MAX_INTERVAL).get());
        }
    }

    async fn command_answer(&self, command: &str) -> HealthAnswer {
        let mut job = RunJob { command: command.to_owned(), ..self.job.clone() };
        job.env.push((String::from("PORT"), self.address.port().to_string()));
        let runtime = &self.services.runtime;
        let started = match self.on_copy {
            true => runtime.probe(self.boot, &job, Stdio::default()).await,
            false => runtime.task(self.boot, &job, Stdio::default()).await,
        };
        match started {
            Ok(mut child) => match child.wait().await {
                Ok(exit) if exit.success() => HealthAnswer::Healthy,
                Ok(exit) => HealthAnswer::Exited(exit),
                Err(error) => HealthAnswer::Error(chain(&error)),
            },
            Err(error) => HealthAnswer::Error(chain(&error)),
        }
    }
}

/// Returns the host name for health and smoke checks: the first domain of the project, or the environment's default host if the
/// project has no domains of its own. Many applications reject every other host (Django's `ALLOWED_HOSTS`, Rails' `config.hosts`).
pub fn health_host(environment: &Environment, settings: &Settings, domain: &str) -> String {
    let own = settings.domains.first().map(|own| own.as_str().to_owned()).or_else(|| environment.domains.first().cloned());
    own.or_else(|| environment.hosts(domain).into_iter().next()).unwrap_or_default()
}

/// Requests the health page once.
async fn request(connector: &dyn Connector, address: SocketAddr, path: &str, expected: StatusRange, host: &str) -> HealthAnswer {
    match probe(connector, address, path, host, ANSWER_TIMEOUT).await {
        Ok(status) if expected.contains(status.as_u16()) => HealthAnswer::Healthy,
        Ok(status) => HealthAnswer::Status(status.as_u16()),
        Err(ProbeError::Connect(error)) => unconnected(&error),
        Err(ProbeError::Timeout { .. }) => HealthAnswer::Error(format!("no response after {}", seconds(ANSWER_TIMEOUT))),
        Err(ProbeError::Exchange { source, .. }) => HealthAnswer::Error(chain(&source)),
        Err(error) => HealthAnswer::Error(chain(&error)),
    }
}

fn unconnected(error: &ConnectError) -> HealthAnswer {
    match error {
        ConnectError::Io { source, .. } if source.kind() != ErrorKind::ConnectionRefused => HealthAnswer::Error(chain(error)),
        ConnectError::Foreign { seen: Some(_), .. } => HealthAnswer::Foreign,
        ConnectError::Timeout { .. } => HealthAnswer::Error(chain(error)),
        ConnectError::Io { .. } | ConnectError::Foreign { .. } | ConnectError::NoInstance => HealthAnswer::NotListening,
    }
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
