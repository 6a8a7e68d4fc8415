//! The disk space of all environments: measurements on request, and the daily totals of the forecast.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use jiff::Timestamp;

use super::{
    core::Pipeline,
    failure::Failure,
    util::{chain, run_blocking},
};
use crate::{
    host::files,
    model::{Environment, ProjectId},
    space::{self, DiskHistory, EnvironmentUsage, SpaceContext, SpaceError, SpaceNeeds, shown},
};

/// The time after the start of the server at which the first daily totals are measured. The start itself needs the disk.
const FIRST: Duration = Duration::from_secs(300);

/// The time between two looks at the clock.
const INTERVAL: Duration = Duration::from_secs(1800);

impl Pipeline {
    /// Measures the disk space of an environment, with low priority. `repository` is true to count the repository of the project as well.
    /// A measurement that began after this call counts for this call, so many callers cause few measurements.
    pub async fn disk_usage(&self, environment: &Environment, repository: bool) -> Result<EnvironmentUsage, SpaceError> {
        let called = Instant::now();
        let mut known = self.0.disk.measured.lock().await;
        if let Some((begun, usage)) = known.get(&environment.id)
            && *begun >= called
        {
            return Ok(usage.clone());
        }
        let begun = Instant::now();
        let usage = space::measure(&self.space_context(environment, repository)).await?;
        known.insert(environment.id, (begun, usage.clone()));
        Ok(usage)
    }

    pub(super) fn space_context(&self, environment: &Environment, repository: bool) -> SpaceContext<'_> {
        let services = self.services();
        SpaceContext {
            launcher: &services.launcher,
            project: environment.project_id,
            environment: environment.id,
            title: environment.title(),
            paths: services.root.environment(&environment.project, &environment.name),
            repository,
        }
    }

    /// Returns the bytes that the kernel counts for a project; `None` if the project has no quota.
    pub async fn quota_usage(&self, project: ProjectId) -> Option<u64> {
        let usage = self.services().launcher.quota_usage(project).await;
        usage.inspect_err(|error| tracing::debug!(project = project.0, error = chain(error), "no quota")).ok()
    }

    /// Returns the bytes that all environments of a project use.
    async fn project_usage(&self, project: ProjectId) -> Result<u64, SpaceError> {
        let mut environments: Vec<_> = self.0.queues.lock().values().map(|queue| queue.environment()).collect();
        environments.retain(|environment| environment.project_id == project);
        environments.sort_by_key(|environment| environment.id);
        if let Some(counted) = self.quota_usage(project).await {
            return Ok(counted);
        }
        let mut bytes = 0_u64;
        for (at, environment) in environments.iter().enumerate() {
            bytes = bytes.saturating_add(self.disk_usage(environment, at == 0).await?.total().bytes);
        }
        Ok(bytes)
    }

    /// Compares the needs of a deployment with the limit of its project. If the server file says `enlarge: auto`, raises the limit up to the
    /// ceiling, and returns a note for the pusher.
    pub(super) async fn admit(&self, environment: Environment, needs: &SpaceNeeds) -> Result<Option<String>, Failure> {
        let (project, name) = (environment.project_id, environment.project.as_str());
        let Some(limits) = self.0.limits.get() else { return Ok(None) };
        let Some(limit) = limits.limit(project) else { return Ok(None) };
        let used = self.project_usage(project).await.map_err(|error| Failure::host(&error))?;
        let Some(why) = needs.excess(name, used, limit) else { return Ok(None) };
        let wanted = used.saturating_add(needs.bytes());
        let config = &self.services().config.space;
        let ceiling = config.ceiling.filter(|_| config.enlarge).map(|ceiling| ceiling.bytes());
        if let Some(ceiling) = ceiling.filter(|ceiling| wanted <= *ceiling) {
            let raised = space::with_reserve(wanted).min(ceiling);
            let failed = |error: String| Failure::internal(format!("cannot raise the space limit of {name}: {error}"));
            limits.raise(project, raised).await.map_err(failed)?;
            let (from, to, most) = (shown(limit), shown(raised), shown(ceiling));
            tracing::info!(project = name, from = limit, to = raised, "space limit raised for a deployment");
            return Ok(Some(format!("The space limit of {name} is raised from {from} to {to} (ceiling {most}): {why}")));
        }
        let why =
            ceiling.map_or_else(|| why.clone(), |ceiling| format!("{why}; the ceiling of the server file is {}", shown(ceiling)));
        let size = space::with_reserve(wanted) >> 20;
        Err(Failure::pusher(why)
            .hint(format!(
                "`larder disk {name}` shows what uses the space; remove restore points or releases that are not needed"
            ))
            .hint(format!("or ask an administrator to run `larder project enlarge {name} {size}M`")))
    }

    /// Enlarges the project's own file system or quota by at least `missing` bytes if the server file says `enlarge: auto` and the ceiling allows it.
    /// Returns a note for the pusher.
    pub(super) async fn enlarge(&self, environment: Environment, missing: u64) -> Result<Option<String>, Failure> {
        let (project, name, config) = (environment.project_id, environment.project.as_str(), &self.services().config.space);
        let Some(limits) = self.0.limits.get() else { return Ok(None) };
        let Some(kind) = limits.storage(project) else { return Ok(None) };
        let Some((limit, ceiling)) = limits.limit(project).zip(config.ceiling.filter(|_| config.enlarge)) else {
            return Ok(None);
        };
        let (wanted, ceiling) = (limit.saturating_add(missing), ceiling.bytes());
        if wanted > ceiling {
            return Ok(None);
        }
        let raised = space::with_reserve(wanted).min(ceiling);
        let failed = |error: String| Failure::internal(format!("cannot raise the space limit of {name}: {error}"));
        limits.raise(project, raised).await.map_err(failed)?;
        let (from, to, most) = (shown(limit), shown(raised), shown(ceiling));
        tracing::info!(project = name, from = limit, to = raised, storage = kind.as_str(), "storage enlarged for a deployment");
        let what = if kind.is_file_system() { "file system" } else { "quota" };
        Ok(Some(format!("The {what} of {name} is enlarged from {from} to {to} (ceiling {most})")))
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
