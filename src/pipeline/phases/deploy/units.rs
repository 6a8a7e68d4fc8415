//! The units of systemd that a deployment in place stops and starts (`services:` in the recipe).
//!
//! The units of the old and of the new recipe stop together, and start together with the web processes of the new release, or with the old
//! release again. Both actions may be repeated.

use crate::{
    host::launch::{LaunchError, Stdio},
    model::{LimitClass, Role, Strategy, UnitName, UnitRequest},
    pipeline::{context::Deployment, output, step::Failure},
};

/// Returns the units of both recipes, each once.
fn units(deployment: &Deployment) -> Vec<UnitName> {
    let mut units = deployment.previous_settings().services;
    for unit in deployment.settings().services {
        if !units.contains(&unit) {
            units.push(unit);
        }
    }
    units
}

/// Refuses a recipe with units that cannot be stopped and started. Nothing has been changed yet.
pub fn check(deployment: &Deployment) -> Result<(), Failure> {
    let listed = deployment.settings().services;
    let Some(first) = listed.first() else { return Ok(()) };
    if deployment.spec.strategy != Strategy::InPlace {
        return Err(Failure::pusher(format!("cannot stop {first}: `services:` needs `strategy: in-place`"))
            .hint("remove `services:` from larder.yml, or set `strategy: in-place`"));
    }
    let services = &deployment.services.config.services;
    let obstacle = listed.iter().find_map(|unit| Some((unit, services.obstacle(&deployment.environment.project, unit)?)));
    match obstacle {
        None => Ok(()),
        Some((unit, why)) => Err(Failure::pusher(format!("cannot stop and start {unit}: {why}"))
            .hint("ask the server's operator to set `services:` in the server file, or remove the unit from larder.yml")),
    }
}

/// Stops the units, in the order of the recipe.
pub(super) async fn stop(deployment: &Deployment) -> Result<(), Failure> {
    for unit in units(deployment) {
        act(deployment, &unit, false).await?;
    }
    Ok(())
}

/// Starts the units, in the opposite order.
pub(super) async fn start(deployment: &Deployment) -> Result<(), Failure> {
    for unit in units(deployment).iter().rev() {
        act(deployment, unit, true).await?;
    }
    Ok(())
}

/// Starts the units with the old release again. A unit that does not start is shown to the pusher and freezes nothing.
pub(super) async fn start_again(deployment: &Deployment) {
    for unit in units(deployment).iter().rev() {
        if let Err(failure) = act(deployment, unit, true).await {
            deployment.transcript.error(&failure.why);
        }
    }
}

async fn act(deployment: &Deployment, unit: &UnitName, start: bool) -> Result<(), Failure> {
    let doing = if start { "start" } else { "stop" };
    deployment.transcript.detail(&format!("systemctl {doing} {unit}"));
    let failed = |error: LaunchError| Failure::host(&error);
    let (stdout, stderr, copying) = output::descriptors(&deployment.transcript).map_err(|error| Failure::host(&error))?;
    let stdio = Stdio { stdout: Some(stdout), stderr: Some(stderr), ..Stdio::default() };
    let launch = deployment.worker(Role::Unit(UnitRequest { unit: unit.number(), start }), LimitClass::Service);
    let mut child = deployment.services.launcher.launch(launch, &(), stdio).await.map_err(failed)?;
    let exit = child.wait().await.map_err(failed)?;
    let lines = copying.await.unwrap_or_default();
    if exit.success() {
        return Ok(());
    }
    let cause = output::cause(lines.iter().map(String::as_str));
    Err(Failure::blameless(cause.after(&format!("cannot {doing} {unit}: systemctl {exit}"))))
}
