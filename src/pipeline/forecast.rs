//! The forecast of the next upgrade, from the durations of earlier deployments, and the record of the last upgrade.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::{
    core::Pipeline,
    durations::{Durations, HoldRun, MethodEstimate},
    journal::JournalState,
    live_app::{EarlierRuns, UpgradeCase},
    phases::deploy::upgrade,
    queue::Queue,
    util::chain,
};
use crate::{
    backup::{self, DatabaseSurvey, DumpJob, DumpReport, clones_files},
    model::{Environment, ReleaseNumber},
};

/// The number of earlier deployments whose durations are compared. The estimate of a hold uses the longest of these durations.
const COMPARED: usize = 3;

/// The number of last deployments among which the last upgrade is searched.
const SEARCHED: usize = 5;

/// The last upgrade of an environment that had data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LastUpgrade {
    /// The number of the release.
    pub number: ReleaseNumber,
    /// The way in which the upgrade command ran.
    pub case: UpgradeCase,
    /// The reason for the case, as a clause.
    pub reason: String,
    /// The estimated time for which requests wait, in milliseconds.
    pub estimate_ms: Option<u64>,
    /// The time for which requests waited, in milliseconds; absent if no request waited.
    pub held_ms: Option<u64>,
    /// The methods of the exact restore point, with their estimated and measured durations.
    pub methods: Vec<MethodEstimate>,
}

impl Pipeline {
    /// Returns lines about the upgrade of the next deployment, if its recipe has the upgrade step of the live release. The deployment itself
    /// decides again, with its own recipe and the measured time of a restore point.
    pub async fn upgrade_forecast(&self, environment: &Environment) -> Vec<String> {
        let Some(live) = self.live(environment.id) else { return Vec::new() };
        let Ok(facts) = self.facts(environment, live.release) else { return Vec::new() };
        let history = self.history(environment.id);
        let earlier = earlier(self, environment, history.releases().rev().map(|summary| summary.deployment));
        let Ok(queue) = self.queue_of(environment) else { return Vec::new() };
        let paths = self.services().root.environment(&environment.project, &environment.name);
        let surveys = self.survey(&queue, environment).await;
        let methods = Durations::read(&paths.durations()).methods(None, &surveys, clones_files(&paths.data()));
        upgrade::forecast(&facts, live.number, &earlier, methods)
    }

    /// Returns the last hold of a release, with the estimated and the measured durations.
    pub fn hold_of(&self, environment: &Environment, number: ReleaseNumber) -> Option<HoldRun> {
        let paths = self.services().root.environment(&environment.project, &environment.name);
        Durations::read(&paths.durations()).hold_of(number).cloned()
    }

    /// Returns the last upgrade of an environment, if one of the last deployments had an upgrade and data.
    pub fn last_upgrade(&self, environment: &Environment) -> Option<LastUpgrade> {
        let paths = self.services().root.environment(&environment.project, &environment.name);
        let history = self.history(environment.id);
        let ended = history.deployments.iter().rev().filter(|summary| summary.ended.is_some() && !summary.dry_run);
        ended.take(SEARCHED).find_map(|summary| {
            let plan = JournalState::read(&paths.deployment(summary.deployment)).ok()?.facts.upgrade?;
            let has_data = matches!(plan.case, UpgradeCase::Held | UpgradeCase::Online | UpgradeCase::InPlace);
            let hold = Durations::read(&paths.durations());
            let held_ms = hold.hold_of(summary.number).filter(|_| plan.case == UpgradeCase::Held).map(|hold| hold.held_ms);
            has_data.then_some(LastUpgrade {
                number: summary.number,
                case: plan.case,
                reason: plan.reason,
                estimate_ms: plan.estimate,
                held_ms,
                methods: plan.methods,
            })
        })
    }

    /// Finds the cheapest exact methods for the databases of the live release. Without an answer, the list is empty.
    pub(super) async fn survey(&self, queue: &Queue, environment: &Environment) -> Vec<DatabaseSurvey> {
        let Ok(databases) = self.databases(queue, environment) else { return Vec::new() };
        if databases.is_empty() {
            return Vec::new();
        }
        match backup::dump(&self.backup(environment), &DumpJob::Survey { databases }).await {
            Ok(DumpReport::Survey(surveys)) => surveys,
            Ok(_) => Vec::new(),
            Err(error) => {
                tracing::debug!(environment = environment.title(), error = chain(&error), "cannot survey the databases");
                Vec::new()
            }
        }
    }
}

/// Returns the longest durations of the last deployments that went live.
pub(super) fn earlier(
    pipeline: &Pipeline,
    environment: &Environment,
    newest_first: impl Iterator<Item = crate::model::DeploymentId>,
) -> EarlierRuns {
    let paths = pipeline.services().root.environment(&environment.project, &environment.name);
    let mut runs = EarlierRuns::default();
    for state in newest_first.take(COMPARED).filter_map(|id| JournalState::read(&paths.deployment(id)).ok()) {
        let case = state.facts.upgrade.as_ref().map(|upgrade| upgrade.case);
        let longest = |known: &mut Option<Duration>, step: &str| *known = (*known).max(took(&state, step));
        longest(&mut runs.boot, "deploy.boot");
        if state.facts.release_command().is_some() {
            longest(&mut runs.upgrade, "deploy.release");
        }
        if case == Some(UpgradeCase::Held) {
            longest(&mut runs.stop, "deploy.quiesce");
            longest(&mut runs.point, "deploy.point");
        }
    }
    runs
}

/// Returns the time between the end of the step before `step` and the end of `step`.
fn took(state: &JournalState, step: &str) -> Option<Duration> {
    let plan = &state.spec.as_ref()?.plan;
    let at = plan.iter().position(|name| name.as_str() == step)?;
    let before = plan.get(at.checked_sub(1)?)?;
    let moment = |name: &str| state.moments.get(name).copied();
    let (from, to): (Timestamp, Timestamp) = (moment(before.as_str())?, moment(step)?);
    Some(to.duration_since(from).unsigned_abs())
}
