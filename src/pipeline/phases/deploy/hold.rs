//! The steps of a hold: requests wait, the old release stops, a restore point is taken, the new release is checked, and at the end the
//! requests continue. An upgrade and a rollback with data can have a hold. Without a hold, requests do not wait, and the old release serves.
//!
//! During a hold, no request of a visitor reaches the new release before the commit point of the plan. A failure before the commit point
//! therefore restores the data exactly, and loses no write that a visitor knows of. After the commit point, the data is never restored
//! without a request of a person.

use std::time::{Duration, Instant};

use super::{
    boot, data,
    upgrade::{self, is_held},
};
use crate::{
    backup::{CaptureMethod, PointInfo},
    model::{Live, Phase, Strategy},
    pipeline::{
        context::Deployment,
        durations::HoldRun,
        live_app::{UpgradeCase, UpgradePlan},
        phases::post_deploy::request_smoke_pages,
        space_wait::is_out_of_space,
        step::{Failure, Step, Work, seconds},
    },
    proxy::{Retired, RouteState},
};

/// The divisor of the hold's limit. Requests in flight have at most a third of the limit to end.
const SETTLE: u32 = 3;

/// The time in which processes that stop can close their tunnels themselves.
const TUNNELS_GRACE: Duration = Duration::from_secs(1);

/// The time limit of the undo that restores the data.
pub(super) const RESTORE_TIMEOUT: Duration = Duration::from_secs(6 * 3600);

/// The step that chooses the case of the upgrade. In the case [`UpgradeCase::Held`], the step makes requests wait.
pub struct HoldRequests;

impl Step for HoldRequests {
    fn name(&self) -> &'static str {
        "deploy.hold"
    }

    fn phase(&self) -> Phase {
        Phase::Deploy
    }

    fn about(&self) -> &'static str {
        "make requests wait, if an upgrade command runs and its estimate is within `hold:`"
    }

    fn is_durable(&self, _: &Deployment) -> bool {
        false
    }

    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            if deployment.facts.upgrade.is_none() {
                deployment.facts.upgrade = upgrade::decide(deployment).await?;
                announce(deployment);
            }
            if is_held(deployment) && deployment.spec.previous.is_some() {
                hold(deployment);
            } else {
                deployment.memory.live_app.unlock();
            }
            Ok(())
        })
    }

    fn undo<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            if let Some(held) = release(deployment, false) {
                deployment.transcript.detail(&held);
            }
            Ok(())
        })
    }
}

/// Shows the case of the upgrade and its reason to the pusher.
fn announce(deployment: &Deployment) {
    let Some(upgrade) = &deployment.facts.upgrade else { return };
    let transcript = &deployment.transcript;
    match upgrade.case {
        UpgradeCase::Held if deployment.spec.data.is_some() => {
            transcript.title("Requests wait until code and data have gone back")
        }
        UpgradeCase::Held => transcript.title(&format!("Upgrade with a hold: {}", upgrade.reason)),
        UpgradeCase::Online => {
            transcript.title(&format!("Upgrade without a hold: {}", upgrade.reason));
            transcript.detail("if the deployment fails, the data is not restored");
        }
        UpgradeCase::Unprotected | UpgradeCase::Skipped | UpgradeCase::InPlace => {}
    }
}

/// Makes requests wait. Another call during the same hold does not restart the time limit of the hold.
pub(super) fn hold(deployment: &mut Deployment) {
    if deployment.memory.hold.is_none() {
        // With the strategy in-place, no request waits, and visitors get the maintenance page at once.
        let limit = match deployment.spec.strategy {
            Strategy::BlueGreen => deployment.settings().hold().get(),
            Strategy::InPlace => Duration::ZERO,
        };
        let route = deployment.services.route(&deployment.environment);
        route.set_maintenance_page(deployment.facts.maintenance_page.clone());
        let hold = route.hold(limit);
        deployment.memory.hold = Some((hold, Instant::now()));
    }
}

/// Ends the hold, and removes the restore point that was taken before the hold. Records the duration of the hold, and returns a line with
/// the duration and the estimate. The duration of a deployment in place is recorded in its journal only.
pub(super) fn release(deployment: &mut Deployment, committed: bool) -> Option<String> {
    let held = deployment.memory.hold.take().map(|(hold, begun)| {
        hold.release();
        begun.elapsed()
    });
    let has_copies = deployment.facts.upgrade.as_ref().is_some_and(UpgradePlan::has_copies);
    if let Some(early) = deployment.facts.upgrade.as_mut().and_then(|upgrade| upgrade.early.take())
        // If the data was put back from copies, the exact restore point gets no dumps, and the earlier restore point stays.
        && (committed || !has_copies)
    {
        deployment.memory.live_app.remove(early);
    }
    let held = held.map(|held| {
        if deployment.spec.strategy == Strategy::InPlace {
            return format!("the application was interrupted for {}", seconds(held));
        }
        let estimate_ms = deployment.facts.upgrade.as_ref().and_then(|upgrade| upgrade.estimate);
        let held_ms = u64::try_from(held.as_millis()).unwrap_or(u64::MAX);
        let number = deployment.spec.number;
        let methods = deployment.facts.upgrade.as_ref().map(|upgrade| upgrade.methods.clone()).unwrap_or_default();
        deployment.memory.live_app.record(HoldRun {
            at: jiff::Timestamp::now(),
            number,
            estimate_ms,
            held_ms,
            committed,
            methods,
        });
        let estimate = estimate_ms.map(|estimate| format!(" (estimate: {})", seconds(Duration::from_millis(estimate))));
        format!("requests waited for {}{}", seconds(held), estimate.unwrap_or_default())
    });
    deployment.memory.live_app.unlock();
    held
}

/// The step that stops the processes of the old release and ends commands of `larder run`, if requests wait.
pub struct StopWriters;

impl Step for StopWriters {
    fn name(&self) -> &'static str {
        "deploy.quiesce"
    }

    fn phase(&self) -> Phase {
        Phase::Deploy
    }

    fn about(&self) -> &'static str {
        "stop the processes of the live release, if requests wait"
    }

    fn is_durable(&self, deployment: &Deployment) -> bool {
        is_held(deployment)
    }

    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            let Some(previous) = deployment.spec.previous.clone().filter(|_| is_held(deployment)) else { return Ok(()) };
            let limit = deployment.previous_settings().drain().get().min(deployment.settings().hold().get() / SETTLE);
            stop_writers(deployment, &previous, limit).await
        })
    }

    fn undo_limit(&self) -> Duration {
        RESTORE_TIMEOUT
    }

    fn undo<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(restore_writers(deployment))
    }
}

/// Stops the processes and commands of the release `previous`. Requests in flight have at most `limit` to end.
pub(super) async fn stop_writers(deployment: &Deployment, previous: &Live, limit: Duration) -> Result<(), Failure> {
    let services = deployment.services.clone();
    if let Some((hold, _)) = &deployment.memory.hold {
        hold.settle_requests(limit).await;
    }
    let retired = services.route(&deployment.environment).set(RouteState::Starting);
    let stopped = {
        let stopping = deployment.memory.slots.stop(&services.runtime, deployment.environment.id, previous.slot);
        let mut stopping = std::pin::pin!(stopping);
        // A process that stops can close its tunnels itself. A process that waits for the end of its tunnels would stop only at the
        // time limit, so the proxy then closes the tunnels.
        match tokio::time::timeout(TUNNELS_GRACE, stopping.as_mut()).await {
            Ok(stopped) => stopped,
            Err(_) => {
                retired.iter().for_each(Retired::close_tunnels);
                stopping.await
            }
        }
    };
    if let Some(retired) = retired {
        retired.drain(Duration::ZERO).await;
    }
    stopped.map_err(|error| Failure::host(&error))?;
    data::end_commands(deployment).await
}

/// Restores the data if no visitor may have written since, and starts the previous release.
pub(super) async fn restore_writers(deployment: &mut Deployment) -> Result<(), Failure> {
    if !is_held(deployment) {
        return Ok(());
    }
    let (previous, by) = (deployment.spec.previous.clone(), deployment.spec.trigger.by().clone());
    let live_app = deployment.memory.live_app.clone();
    let point = deployment.facts.upgrade.as_ref().and_then(|upgrade| upgrade.point.clone());
    let started = match (point.filter(|_| !deployment.memory.committed), previous) {
        (Some(point), previous) => {
            deployment.transcript.detail("restoring the data");
            let restored = live_app.restore(point, by, previous).await;
            upgrade::report_lost(deployment);
            restored?
        }
        (None, Some(previous)) => live_app.start(previous).await,
        (None, None) => Ok(()),
    };
    if let Err(failure) = started {
        if is_out_of_space(deployment, &failure) {
            // The undo is repeated when there is space. The repetition does not restore the data again.
            return Err(failure);
        }
        // The undo is complete, because the data is restored if a restore was necessary. An unhealthy old release does not
        // freeze the environment.
        deployment.transcript.error(&format!("the live release does not run: {}", failure.why));
    }
    Ok(())
}

/// The step that takes the restore point from which a failure restores the data.
pub struct TakePoint;

impl Step for TakePoint {
    fn name(&self) -> &'static str {
        "deploy.point"
    }

    fn phase(&self) -> Phase {
        Phase::Deploy
    }

    fn about(&self) -> &'static str {
        "take an exact restore point of the data, if requests wait"
    }

    fn is_durable(&self, _: &Deployment) -> bool {
        false
    }

    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            if !is_held(deployment) {
                return Ok(());
            }
            let reason = format!("before the {} of {}", upgrade::act(deployment), deployment.spec.number);
            let (by, copies) = (deployment.spec.trigger.by().clone(), upgrade::copies(deployment));
            let live_app = &deployment.memory.live_app;
            let taken = match copies.is_empty() {
                true => live_app.take(by, reason, true).await?,
                false => live_app.take_copies(by, reason, copies).await?,
            };
            report(deployment, &taken);
            if let Some(upgrade) = &mut deployment.facts.upgrade {
                upgrade.note_durations(&taken);
                upgrade.point = Some(taken.id);
            }
            Ok(())
        })
    }
}

/// Shows the sessions of other clients, the databases whose dumps follow, and the methods that were not the planned ones.
fn report(deployment: &Deployment, taken: &PointInfo) {
    for sessions in taken.label.iter().flat_map(|label| &label.sessions) {
        let loss = "if the deployment fails, the writes of other clients since the restore point are lost";
        deployment.transcript.error(&format!("{sessions}: {loss}"));
    }
    for run in &taken.runs {
        let time = seconds(Duration::from_millis(run.ms));
        if run.method == CaptureMethod::TemplateCopy {
            let what = &run.what;
            deployment
                .transcript
                .detail(&format!("{what} was copied on its server in {time}; the dump follows after the deployment"));
        } else if !run.fallback.is_empty() {
            deployment.transcript.detail(&format!("{} was dumped in {time}: {}", run.what, run.fallback));
        }
    }
}

/// The step that requests the smoke pages while visitors wait, so that a failure still restores the data.
pub struct CheckPages;

impl Step for CheckPages {
    fn name(&self) -> &'static str {
        "deploy.check"
    }

    fn phase(&self) -> Phase {
        Phase::Deploy
    }

    fn about(&self) -> &'static str {
        "request the smoke pages from the new processes, if requests wait"
    }

    fn is_durable(&self, _: &Deployment) -> bool {
        false
    }

    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            if !is_held(deployment) {
                return Ok(());
            }
            let services = &deployment.services;
            let connector = services.connector(&deployment.environment);
            let instances = services.runtime.instances(deployment.environment.id, Some(deployment.spec.slot));
            if deployment.spec.strategy == Strategy::InPlace {
                let web: Vec<_> = instances.iter().filter(|one| one.label.process.is_web()).cloned().collect();
                boot::healthy(deployment, &web).await?;
            }
            for address in instances.iter().filter(|one| one.label.process.is_web()).filter_map(|one| one.address()) {
                request_smoke_pages(deployment, &*connector, address).await?;
            }
            Ok(())
        })
    }
}

/// The step that lets the waiting requests continue in the new release. If a later step fails, the switch is still reverted, but the data is
/// not restored.
pub struct Resume(
    /// The name of the step: the commit point of its plan.
    pub &'static str,
);

impl Step for Resume {
    fn name(&self) -> &'static str {
        self.0
    }

    fn phase(&self) -> Phase {
        if self.0.starts_with("post_install.") { Phase::PostInstall } else { Phase::Deploy }
    }

    fn about(&self) -> &'static str {
        "let waiting requests continue in the new release"
    }

    fn is_durable(&self, _: &Deployment) -> bool {
        false
    }

    fn run<'a>(&'a self, _: &'a mut Deployment) -> Work<'a> {
        // Requests continue after the success of this step is on the disk; see `committed`.
        Box::pin(async { Ok(()) })
    }

    fn committed(&self, deployment: &mut Deployment) {
        if let Some(held) = release(deployment, true) {
            deployment.transcript.detail(&held);
        }
    }

    fn undo<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            // Requests must wait, because the old release is stopped until a later undo starts its processes.
            if is_held(deployment) && deployment.spec.previous.is_some() {
                hold(deployment);
            }
            Ok(())
        })
    }
}
