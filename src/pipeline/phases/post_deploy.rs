//! The steps after the switch: the processes that do not serve requests, smoke checks through the proxy, and the postdeploy
//! script. If a step fails, the switch is reverted.

use std::{io, net::SocketAddr, time::Duration};

use super::deploy::{boot, health, processes};
use crate::{
    config::Settings,
    model::{Environment, Phase},
    pipeline::{
        context::Deployment,
        slots::UNDO_GRACE,
        state_files::Postdeploy,
        step::{Failure, Step, Work},
    },
    proxy::{Connector, TcpConnector, fetch},
    runtime::Label,
};

/// The time that a process must stay up to count as started.
const STAYS_UP: Duration = Duration::from_secs(1);

/// The step that starts the processes that do not serve requests. These processes start after the switch, so that old and new code run side
/// by side for as short a time as possible. Such processes of the old release are stopped when their slot is emptied.
pub struct Workers;

impl Step for Workers {
    fn name(&self) -> &'static str {
        "post_deploy.workers"
    }

    fn phase(&self) -> Phase {
        Phase::PostDeploy
    }

    fn about(&self) -> &'static str {
        "start the processes other than web and check that they stay up"
    }

    fn is_durable(&self, _: &Deployment) -> bool {
        false
    }

    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            stop(deployment).await?;
            let boot = processes::boot(deployment, |process| !process.is_web() && !process.is_release())?;
            let instances = deployment.services.runtime.boot(&boot).await.map_err(|error| Failure::host(&error))?;
            if instances.is_empty() {
                return Ok(());
            }
            tokio::time::sleep(STAYS_UP).await;
            for instance in &instances {
                let exits = *instance.exits.borrow();
                // A process that exited with status 0, such as a one-off task, is not a failure.
                if let Some(exit) = exits.last.filter(|exit| !exit.success()) {
                    return Err(boot::exited_early(deployment, instance, Some(exit), "right after its start").await);
                }
            }
            Ok(())
        })
    }

    fn undo<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async { stop(deployment).await })
    }
}

async fn stop(deployment: &Deployment) -> Result<(), Failure> {
    let grace = deployment.memory.slots.grace_in(deployment.spec.slot);
    // In the slot `in-place`, the old release may run again when this undo is repeated.
    let is_own = |label: &Label| label.release == deployment.spec.release && !label.process.is_web();
    let grace = |label: &Label| grace(label).filter(|_| is_own(label)).map(|grace| grace.min(UNDO_GRACE));
    let stopped = deployment.services.runtime.stop_each(deployment.environment.id, grace);
    stopped.await.map_err(|error| Failure::host(&error))
}

/// The maximum number of bytes of a smoke page that are read.
const MAX_PAGE: usize = 1 << 20;

/// The step that requests the pages under `smoke:` of the recipe through the proxy, as a visitor would.
pub struct SmokeChecks;

impl Step for SmokeChecks {
    fn name(&self) -> &'static str {
        "post_deploy.smoke"
    }

    fn phase(&self) -> Phase {
        Phase::PostDeploy
    }

    fn about(&self) -> &'static str {
        "request the smoke pages through the proxy"
    }

    fn is_durable(&self, _: &Deployment) -> bool {
        false
    }

    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            let through_proxy = deployment.services.http;
            request_smoke_pages(deployment, &TcpConnector::default(), through_proxy).await
        })
    }
}

/// Requests the pages under `smoke:` of the recipe from `address`. Fails if a page does not have its expected status and text.
pub async fn request_smoke_pages(deployment: &Deployment, connector: &dyn Connector, address: SocketAddr) -> Result<(), Failure> {
    let domain = deployment.services.config.domain.as_str();
    let requested = smoke_pages(&deployment.settings(), &deployment.environment, domain, connector, address).await;
    requested.map_err(|failure| match processes::any_web(deployment) {
        true => failure,
        false => failure.hint("start a web process with `larder ps --scale web=1`: no web process runs"),
    })
}

/// Requests the pages under `smoke:` of `settings` from `address`. Fails if a page does not have its expected status and text.
pub async fn smoke_pages(
    settings: &Settings,
    environment: &Environment,
    domain: &str,
    connector: &dyn Connector,
    address: SocketAddr,
) -> Result<(), Failure> {
    let host = health::health_host(environment, settings, domain);
    for smoke in &settings.smoke {
        let path = smoke.path.as_str();
        let wanted = if smoke.contains.is_some() { MAX_PAGE } else { 0 };
        let answer = fetch(connector, address, path, &host, wanted, Duration::from_secs(10)).await;
        let (status, page) = answer.map_err(|error| Failure::pusher(format!("smoke check {path}: {error}")))?;
        if !smoke.status.contains(status.as_u16()) {
            let (status, wanted) = (status.as_u16(), smoke.status);
            return Err(Failure::pusher(format!("smoke check {path} answered {status} (expected {wanted})")));
        }
        let Some(text) = &smoke.contains else { continue };
        if !page.windows(text.len()).any(|window| window == text.as_bytes()) {
            let text: String = text.chars().take(60).collect();
            return Err(Failure::pusher(format!("smoke check {path}: the answer does not contain {text:?}")).hint(format!(
                "check the page: it answered {status}, and its first {} bytes were searched (limit {} KiB)",
                page.len(),
                MAX_PAGE >> 10
            )));
        }
    }
    Ok(())
}

/// The step that runs `scripts.postdeploy` of app.json once, in a deployment of an environment in which no release is live yet. The record
/// of the run is written to the disk before the script starts and after the script has succeeded. Therefore neither a kill nor a later
/// failure of the deployment makes the script run twice. The next deployment repeats only a script that failed.
pub struct First;

impl Step for First {
    fn name(&self) -> &'static str {
        "post_deploy.first"
    }

    fn phase(&self) -> Phase {
        Phase::PostDeploy
    }

    fn about(&self) -> &'static str {
        "run app.json's postdeploy script, if this is the environment's first release"
    }

    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            let Some(command) = deployment.settings().postdeploy.filter(|_| deployment.spec.previous.is_none()) else {
                return Ok(());
            };
            let path = deployment.paths.postdeploy();
            let failed = |error: io::Error| Failure::host(&error);
            match Postdeploy::read(&path).map_err(failed)? {
                None => {}
                Some(Postdeploy { ended: Some(_), .. }) => return Ok(()),
                Some(Postdeploy { deployment: by, ended: None, .. }) => {
                    let transcript = &deployment.transcript;
                    transcript.error(&format!("The postdeploy script of deployment {by} was interrupted and is not run again."));
                    transcript.error(&format!(
                        "hint: check the effects of the script; to run the script again: larder run {} -- {command}",
                        deployment.environment.target()
                    ));
                    return Ok(());
                }
            }
            let record = Postdeploy::start(&path, deployment.spec.id).map_err(failed)?;
            // If the script was killed, or its exit is unknown, the record stays, because the effects of the script are unknown.
            let what = "the postdeploy script";
            let end = processes::run_to_end(deployment, what, command.to_string()).await?;
            let killed = end.exit.code.is_none() || end.exit.out_of_memory;
            match end.success(what) {
                Ok(_) => record.succeed(&path).map_err(failed),
                Err(failure) if killed => Err(failure.hint(format!(
                    "check the effects of the script; larder does not run it again. To run the script again: larder run {} -- {command}",
                    deployment.environment.target()
                ))),
                Err(failure) => {
                    Postdeploy::fail(&path).map_err(failed)?;
                    Err(failure)
                }
            }
        })
    }
}
