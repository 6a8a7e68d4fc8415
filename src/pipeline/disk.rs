//! The disk space of all environments: measurements on request, and the daily totals of the forecast.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use jiff::Timestamp;

use super::{
    core::Pipeline,
    util::{chain, run_blocking},
};
use crate::{
    host::files,
    model::{EnvId, Environment, ProjectId},
    space::{self, DiskHistory, EnvironmentUsage, SpaceContext, SpaceError},
};

/// The time after the start of the server at which the first daily totals are measured. The start itself needs the disk.
const FIRST: Duration = Duration::from_secs(300);

/// The time between two looks at the clock.
const INTERVAL: Duration = Duration::from_secs(1800);

/// The last measurement of each environment. One measurement runs at a time.
#[derive(Default)]
pub(super) struct DiskMeasurements(tokio::sync::Mutex<HashMap<EnvId, (Instant, EnvironmentUsage)>>);

impl Pipeline {
    /// Measures the disk space of an environment, with low priority. `repository` is true to count the repository of the project as well.
    /// A measurement that began after this call counts for this call, so many callers cause few measurements.
    pub async fn disk_usage(&self, environment: &Environment, repository: bool) -> Result<EnvironmentUsage, SpaceError> {
        let called = Instant::now();
        let mut known = self.0.disk.0.lock().await;
        if let Some((begun, usage)) = known.get(&environment.id)
            && *begun >= called
        {
            return Ok(usage.clone());
        }
        let begun = Instant::now();
        let services = self.services();
        let context = SpaceContext {
            launcher: &services.launcher,
            project: environment.project_id,
            environment: environment.id,
            title: environment.title(),
            paths: services.root.environment(&environment.project, &environment.name),
            repository,
        };
        let usage = space::measure(&context).await?;
        known.insert(environment.id, (begun, usage.clone()));
        Ok(usage)
    }

    /// Returns the daily totals.
    pub fn disk_history(&self) -> Result<DiskHistory, String> {
        DiskHistory::read(&self.services().root.disk_history())
    }

    /// Records the totals of each day until the server stops.
    pub(super) fn run_disk_totals(&self) {
        let this = self.clone();
        self.0.tasks.spawn(async move {
            let mut wait = FIRST;
            loop {
                tokio::select! {
                    () = this.0.stopping.cancelled() => return,
                    () = tokio::time::sleep(wait) => {}
                }
                wait = INTERVAL;
                tokio::select! {
                    () = this.0.stopping.cancelled() => return,
                    () = this.record_disk_totals() => {}
                }
            }
        });
    }

    async fn record_disk_totals(&self) {
        let now = Timestamp::now();
        let mut history = match run_blocking(|| self.disk_history()) {
            Ok(history) if history.is_due(now) => history,
            Ok(_) => return,
            Err(why) => return tracing::error!(why, "no daily totals of the disk space"),
        };
        let mut environments: Vec<_> = self.0.queues.lock().values().map(|queue| queue.environment()).collect();
        environments.sort_by_key(|environment| environment.id);
        let mut projects: BTreeMap<ProjectId, u64> = BTreeMap::new();
        for environment in environments {
            let repository = !projects.contains_key(&environment.project_id);
            match self.disk_usage(&environment, repository).await {
                Ok(usage) => *projects.entry(environment.project_id).or_default() += usage.total().bytes,
                Err(error) => tracing::warn!(environment = environment.title(), error = chain(&error), "no daily total"),
            }
        }
        let root = &self.services().root;
        let written = run_blocking(|| {
            history.add(now, files::disk_size(root.path())?.used, projects);
            history.write(&root.disk_history())
        });
        if let Err(error) = written {
            tracing::error!(error = chain(&error), "cannot record the daily totals of the disk space");
        }
    }
}
