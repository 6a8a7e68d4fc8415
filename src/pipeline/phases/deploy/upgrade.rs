//! The upgrade command of a release, and the choice between an upgrade with a hold and an upgrade beside the old release.

use std::{fmt::Write, time::Duration};

use super::processes;
use crate::{
    backup::{CaptureMethod, CopyRequest, DATABASES, PointInfo, clones_files},
    config::Safety,
    host::files,
    model::{Phase, ReleaseNumber, Strategy},
    pipeline::{
        context::Deployment,
        durations::MethodEstimate,
        facts::Facts,
        live_app::{EarlierRuns, UpgradeCase, UpgradePlan},
        step::{self, Acquired, Failure, Resource, Step, Work, seconds},
    },
    release::{PathPatterns, manifest},
    space::shown,
};

/// The assumed durations of parts of the hold that no earlier deployment had: the stop of the old release, the restore point, the command,
/// the start of the new release.
const UNKNOWN: [Duration; 4] = [Duration::from_secs(1), Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(3)];

/// The step that runs the project's upgrade command once in the slot. If the command fails, the release never serves.
pub struct ReleaseCommand;

impl Step for ReleaseCommand {
    fn name(&self) -> &'static str {
        "deploy.release"
    }

    fn phase(&self) -> Phase {
        Phase::Deploy
    }

    fn about(&self) -> &'static str {
        "run the release command, if there is one"
    }

    fn is_durable(&self, deployment: &Deployment) -> bool {
        deployment.facts.release_command().is_some()
    }

    fn acquire<'a>(&'a self, deployment: &'a Deployment) -> Acquired<'a> {
        // During a hold, no upgrade waits for a script of another project.
        match deployment.facts.release_command().is_some() && !is_held(deployment) {
            true => step::permit(deployment, Resource::Script),
            false => Box::pin(async { Ok(Vec::new()) }),
        }
    }

    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            let Some(command) = deployment.facts.release_command() else { return Ok(()) };
            processes::run(deployment, "the release command", command).await
        })
    }
}

/// Returns true if requests wait during the upgrade of this deployment.
pub fn is_held(deployment: &Deployment) -> bool {
    deployment.facts.upgrade.as_ref().is_some_and(UpgradePlan::is_held)
}

/// Returns true if no file of `upgrade.paths` changed since the live release.
fn is_unchanged(deployment: &Deployment) -> Result<bool, Failure> {
    let patterns = deployment.settings().upgrade.paths;
    let Some(previous) = deployment.previous_release().filter(|_| !patterns.is_empty()) else { return Ok(false) };
    let patterns = PathPatterns::new(&patterns).map_err(|error| Failure::host(&error))?;
    let read = |release| manifest::read(&deployment.paths.manifest(release));
    // Without both manifests, the changes are unknown, and the command runs.
    let (Ok(before), Ok(after)) = (read(previous), read(deployment.spec.release)) else { return Ok(false) };
    Ok(patterns.first_change(&before.entries, &after.entries).is_none())
}

/// Decides about the upgrade of this deployment; `None` without an upgrade command. The restore point that is taken here, while the old
/// release serves, has all files; the exact restore point in the hold then copies only the files that changed since.
pub async fn decide(deployment: &Deployment) -> Result<Option<UpgradePlan>, Failure> {
    if deployment.spec.strategy == Strategy::InPlace {
        return in_place(deployment).await.map(Some);
    }
    if deployment.spec.data.is_some() {
        let early = take_early(deployment).await?;
        if let Some(obstacle) = obstacle(deployment, &early) {
            deployment.memory.live_app.remove(early.id);
            return Err(Failure::blameless(format!("cannot go back with data: {obstacle}")));
        }
        let plan = UpgradePlan::new(UpgradeCase::Held, "the data goes back with the code");
        return Ok(Some(UpgradePlan { early: Some(early.id), ..plan }));
    }
    if deployment.facts.release_command().is_none() {
        return Ok(None);
    }
    if is_unchanged(deployment)? {
        return Ok(Some(UpgradePlan::new(UpgradeCase::Skipped, "no file of `upgrade.paths` changed")));
    }
    let live_app = &deployment.memory.live_app;
    live_app.lock().await;
    let early = take_early(deployment).await?;
    let has_databases = early.label.as_ref().is_some_and(|label| !label.databases.is_empty()) || undumped(&early).is_some();
    if early.counts.entries == 0 && !has_databases {
        live_app.remove(early.id);
        return Ok(Some(UpgradePlan::new(UpgradeCase::Unprotected, "the environment has no data")));
    }
    let settings = deployment.settings();
    let limit = settings.hold().get();
    let methods = live_app.methods(&early).await;
    let estimate = Estimate::new(&live_app.earlier(), Some(sum(&methods)));
    let obstacle = obstacle(deployment, &early).or_else(|| lack_of_space(deployment, &early));
    let (case, reason) = choose(settings.upgrade.safety, &estimate, limit, obstacle);
    let mut upgrade = UpgradePlan::new(case, reason);
    upgrade.estimate = u64::try_from(estimate.total().as_millis()).ok();
    upgrade.methods = methods;
    match case {
        UpgradeCase::Held => upgrade.early = Some(early.id),
        _ => upgrade.point = Some(early.id),
    }
    deployment.transcript.detail(&estimate.to_string());
    upgrade.methods.iter().for_each(|method| deployment.transcript.detail(&format!("restore point of {method}")));
    Ok(Some(upgrade))
}

/// Returns the plan of a deployment in place: the data is always protected, because the new release may change the data at its start.
async fn in_place(deployment: &Deployment) -> Result<UpgradePlan, Failure> {
    let live_app = &deployment.memory.live_app;
    live_app.lock().await;
    let early = take_early(deployment).await?;
    if let Some(obstacle) = obstacle(deployment, &early).or_else(|| lack_of_space(deployment, &early)) {
        live_app.remove(early.id);
        return Err(Failure::blameless(format!("cannot deploy in place: a failure could not restore the data: {obstacle}"))
            .hint("set `strategy: blue-green` and `upgrade: {safety: online}` in larder.yml to deploy without this protection"));
    }
    let unchanged = deployment.spec.data.is_none() && is_unchanged(deployment)?;
    let plan = UpgradePlan::new(UpgradeCase::InPlace, "the strategy is in-place");
    let methods = live_app.methods(&early).await;
    Ok(UpgradePlan { early: Some(early.id), unchanged, methods, ..plan })
}

/// Takes a restore point while the old release serves.
async fn take_early(deployment: &Deployment) -> Result<PointInfo, Failure> {
    let act = act(deployment);
    let reason = format!("before the {act} of {}, while the release served", deployment.spec.number);
    let taken = deployment.memory.live_app.take(deployment.spec.trigger.by().clone(), reason, false).await;
    taken.map_err(|failure| Failure { why: format!("cannot take a restore point before the {act}: {}", failure.why), ..failure })
}

/// Shows the sessions of other clients on the databases that were replaced. A client may have connected after the restore point.
pub fn report_lost(deployment: &Deployment) {
    for sessions in deployment.memory.live_app.take_sessions() {
        deployment.transcript.error(&format!("{sessions}: the writes of other clients since the restore point are lost"));
    }
}

/// Returns the name of the act before which a restore point is taken.
pub fn act(deployment: &Deployment) -> &'static str {
    match (&deployment.spec.data, deployment.spec.strategy) {
        (Some(_), _) => "rollback with data",
        (None, Strategy::InPlace) => "deployment in place",
        (None, Strategy::BlueGreen) => "upgrade",
    }
}

/// Returns the sum of the estimated durations.
fn sum(methods: &[MethodEstimate]) -> Duration {
    methods.iter().map(|method| Duration::from_millis(method.estimate_ms)).fold(Duration::ZERO, Duration::saturating_add)
}

/// Returns the databases that the exact restore point of this deployment copies on their servers. If a copy fails, a dump is written only if
/// the dump fits the limit of the hold.
pub fn copies(deployment: &Deployment) -> Vec<CopyRequest> {
    let Some(upgrade) = &deployment.facts.upgrade else { return Vec::new() };
    let settings = deployment.settings();
    let limit = u64::try_from(settings.hold().get().as_millis()).unwrap_or(u64::MAX);
    let is_copy = |method: &&MethodEstimate| method.method == CaptureMethod::TemplateCopy;
    let request = |method: &MethodEstimate| {
        let with_dump = upgrade.estimate.zip(method.dump_ms);
        let with_dump = with_dump.map(|(all, dump)| all.saturating_sub(method.estimate_ms).saturating_add(dump));
        let is_forced = upgrade.case == UpgradeCase::InPlace || settings.upgrade.safety == Safety::Hold;
        let or_dump = is_forced || with_dump.is_some_and(|time| time <= limit);
        Some(CopyRequest { name: method.what.parse().ok()?, or_dump })
    };
    upgrade.methods.iter().filter(is_copy).filter_map(request).collect()
}

/// Returns the reason why the data could not be restored exactly, or `None`.
fn obstacle(deployment: &Deployment, early: &PointInfo) -> Option<String> {
    let unreadable = early.skipped.iter().find(|(path, why)| path != DATABASES && why.contains("unreadable"));
    let unreadable = unreadable.map(|(path, _)| format!("{path} cannot be read"));
    deployment.memory.live_app.obstacle().or(undumped(early).map(str::to_owned)).or(unreadable)
}

/// Returns the reason why a recognised database is not in the restore point, or `None`.
fn undumped(early: &PointInfo) -> Option<&str> {
    early.skipped.iter().find(|(path, _)| path == DATABASES).map(|(_, why)| why.as_str())
}

/// Returns the reason why the disk has no space for a restore of the data beside the live data, or `None`.
fn lack_of_space(deployment: &Deployment, early: &PointInfo) -> Option<String> {
    let path = deployment.paths.path();
    let free = files::free_space(path).map_or(u64::MAX, |free| free.bytes);
    (!clones_files(path) && early.counts.stored > free)
        .then(|| format!("a restore needs {}, and {} are free", shown(early.counts.stored), shown(free)))
}

/// Returns the case of the upgrade, and the reason for the case.
fn choose(safety: Safety, estimate: &Estimate, limit: Duration, obstacle: Option<String>) -> (UpgradeCase, String) {
    let total = seconds(estimate.total());
    match (safety, obstacle) {
        (Safety::Hold, _) => (UpgradeCase::Held, String::from("the recipe sets `safety: hold`")),
        (Safety::Online, _) => (UpgradeCase::Online, String::from("the recipe sets `safety: online`")),
        (Safety::Auto, Some(obstacle)) => (UpgradeCase::Online, format!("the data cannot be restored exactly: {obstacle}")),
        (Safety::Auto, None) if estimate.total() <= limit => {
            (UpgradeCase::Held, format!("the estimate of {total} is within the limit of {}", seconds(limit)))
        }
        (Safety::Auto, None) => {
            (UpgradeCase::Online, format!("the estimate of {total} is above the limit of {}", seconds(limit)))
        }
    }
}

/// Returns lines about the next upgrade, according to the facts of the live release `number`.
pub fn forecast(facts: &Facts, number: ReleaseNumber, earlier: &EarlierRuns, methods: Vec<MethodEstimate>) -> Vec<String> {
    let (Some(settings), Some(command)) = (&facts.settings, configured(facts)) else { return Vec::new() };
    let mut lines = vec![format!("upgrade, according to the recipe of {number}: {command}")];
    if !settings.upgrade.paths.is_empty() {
        lines.push(format!("  only if a file changed that matches {}", settings.upgrade.paths.join(", ")));
    }
    if facts.upgrade.as_ref().is_some_and(|upgrade| upgrade.case == UpgradeCase::Unprotected) {
        lines.push(String::from("  without a hold: the environment has no data"));
        return lines;
    }
    let estimate = Estimate::new(earlier, Some(sum(&methods)));
    let (case, reason) = choose(settings.upgrade.safety, &estimate, settings.hold().get(), None);
    let case = if case == UpgradeCase::Held { "with a hold" } else { "without a hold; a failure does not restore the data" };
    lines.extend([format!("  {case}: {reason}"), format!("  {estimate}")]);
    lines.extend(methods.iter().map(|method| format!("  restore point of {method}")));
    lines
}

/// Returns the upgrade command, even if the deployment of these facts skipped the command.
fn configured(facts: &Facts) -> Option<String> {
    Facts { upgrade: None, ..facts.clone() }.release_command()
}

/// The estimated duration of a hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Estimate {
    stop: Duration,
    point: Duration,
    upgrade: Duration,
    boot: Duration,
}

impl Estimate {
    /// Creates the estimate from earlier deployments and the measured duration of the restore point, if it was measured.
    pub fn new(earlier: &EarlierRuns, measured: Option<Duration>) -> Estimate {
        let [stop, point, upgrade, boot] = UNKNOWN;
        Estimate {
            stop: earlier.stop.unwrap_or(stop),
            point: measured.or(earlier.point).unwrap_or(point),
            upgrade: earlier.upgrade.unwrap_or(upgrade),
            boot: earlier.boot.unwrap_or(boot),
        }
    }

    /// Returns the sum of the parts.
    pub fn total(&self) -> Duration {
        self.stop.saturating_add(self.point).saturating_add(self.upgrade).saturating_add(self.boot)
    }
}

impl std::fmt::Display for Estimate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = [("stop", self.stop), ("restore point", self.point), ("upgrade", self.upgrade), ("start", self.boot)];
        let mut text = format!("estimate: {}", seconds(self.total()));
        for (index, (name, part)) in parts.into_iter().enumerate() {
            let before = if index == 0 { " = " } else { " + " };
            let _ = write!(text, "{before}{name} {}", seconds(part));
        }
        f.write_str(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hold_is_chosen_if_the_estimate_fits() {
        let known = EarlierRuns {
            stop: Some(Duration::from_millis(200)),
            point: None,
            upgrade: Some(Duration::from_secs(10)),
            boot: Some(Duration::from_secs(4)),
        };
        let estimate = Estimate::new(&known, Some(Duration::from_millis(300)));
        assert_eq!(estimate.to_string(), "estimate: 14.5 s = stop 200 ms + restore point 300 ms + upgrade 10.0 s + start 4.0 s");
        let case = |safety, limit, obstacle: Option<&str>| {
            choose(safety, &estimate, Duration::from_secs(limit), obstacle.map(str::to_owned))
        };
        assert_eq!(case(Safety::Auto, 30, None).0, UpgradeCase::Held);
        assert_eq!(
            case(Safety::Auto, 14, None),
            (UpgradeCase::Online, "the estimate of 14.5 s is above the limit of 14.0 s".into())
        );
        assert_eq!(case(Safety::Auto, 30, Some("a disk is mounted")).0, UpgradeCase::Online);
        assert_eq!(case(Safety::Hold, 1, None).0, UpgradeCase::Held);
        assert_eq!(case(Safety::Online, 30, None).0, UpgradeCase::Online);
        assert_eq!(Estimate::new(&EarlierRuns::default(), None).total(), Duration::from_secs(7));
    }
}
