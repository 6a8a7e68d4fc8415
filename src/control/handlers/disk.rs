//! The request `disk`, which shows the disk space of projects by environment and kind.

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    config::ByteSize,
    control::{
        authz::Needs,
        error::{CommandError, no_project},
        request::{Context, Reply, Request},
        state::Control,
    },
    host::files,
    model::{Access, Project, ProjectName, StorageKind},
    space::{Forecast, Measured, SpaceKind},
};

/// The enforcement of limits by a check before each deployment.
const ACCOUNTING: &str = "accounting";

/// The request for the disk space of projects.
#[derive(Debug)]
pub struct DiskShow {
    /// The project; absent for all projects that the caller may see.
    pub project: Option<ProjectName>,
}

/// The disk space of projects, and of the file system that contains larder's root.
#[derive(Debug, Serialize)]
pub struct DiskReport {
    /// The size of the file system, in bytes.
    pub total: u64,
    /// The used bytes of the file system.
    pub used: u64,
    /// The free bytes of the file system.
    pub free: u64,
    /// The forecast from the daily totals of the last 30 days.
    pub forecast: Forecast,
    /// The enforcement of limits: `accounting`, a check before each deployment.
    pub method: &'static str,
    /// The projects.
    pub projects: Vec<ProjectDisk>,
}

/// The disk space of a project.
#[derive(Debug, Serialize)]
pub struct ProjectDisk {
    /// The project.
    pub project: ProjectName,
    /// The allocated bytes of all environments and of the repository.
    pub bytes: u64,
    /// The maximum of `bytes`; absent without a limit.
    pub limit: Option<u64>,
    /// The enforcement of the limit: `accounting`, `quota` for a project quota, or `ext4` or `xfs` for a file system of the project's own.
    pub method: &'static str,
    /// The reason why the project's own file system or quota cannot be used.
    pub problem: Option<String>,
    /// The bytes that the kernel counts for the project; absent without a project quota, and for a caller who may not see all environments.
    pub counted: Option<u64>,
    /// The size of the project's own file system or quota, in bytes; absent without both, and for a caller who may not see all environments.
    pub total: Option<u64>,
    /// The free bytes of the project's own file system or quota; absent if `total` is absent.
    pub free: Option<u64>,
    /// The environments.
    pub environments: Vec<EnvironmentDisk>,
}

/// The disk space of an environment.
#[derive(Debug, Serialize)]
pub struct EnvironmentDisk {
    /// The environment, as `project/environment`.
    pub environment: String,
    /// The allocated bytes of all kinds.
    pub bytes: u64,
    /// The kinds of files.
    pub kinds: Vec<KindDisk>,
}

/// The disk space of one kind of files.
#[derive(Debug, Serialize)]
pub struct KindDisk {
    /// The kind.
    pub kind: SpaceKind,
    /// The space of the kind.
    #[serde(flatten)]
    pub space: Measured,
}

impl Request for DiskShow {
    type View = DiskReport;
    const NAME: &'static str = "disk";

    fn needs(&self) -> Needs {
        match &self.project {
            Some(project) => Needs::project(project, Access::View),
            None => Needs::server(Access::View),
        }
    }

    async fn handle(self, Context { control, caller }: &Context<'_>) -> Result<Reply<DiskReport>, CommandError> {
        let mut projects = control.visible(caller);
        if let Some(name) = &self.project {
            projects.retain(|project| project.name == *name);
            if projects.is_empty() {
                return Err(no_project(name, &control.names(caller)));
            }
        }
        let mut measured = Vec::new();
        for project in projects {
            let partial = !control.sees_all(caller, &project.name);
            let mut disk = project_disk(control, project).await?;
            if partial {
                // These figures include environments that the caller may not see.
                (disk.counted, disk.total, disk.free) = (None, None, None);
            }
            measured.push(disk);
        }
        let size = files::disk_size(control.root().path()).map_err(|error| CommandError::internal(&error))?;
        let forecast = match control.pipeline().disk_history() {
            Ok(history) => history.forecast(Timestamp::now(), size.free),
            Err(why) => Forecast::Unreadable { why },
        };
        Ok(DiskReport { total: size.total, used: size.used, free: size.free, forecast, method: ACCOUNTING, projects: measured }
            .into())
    }
}

pub(super) async fn project_disk(control: &Control, project: Project) -> Result<ProjectDisk, CommandError> {
    let mut environments = Vec::new();
    let problem = control.storage_problem(project.id);
    let unusable = problem.is_some() && project.storage.is_some_and(StorageKind::is_file_system);
    // A file system that cannot be mounted has no files to count.
    for environment in project.environments.iter().filter(|_| !unusable) {
        let usage = control.pipeline().disk_usage(environment, environments.is_empty()).await;
        let usage = usage.map_err(|error| CommandError::internal(&error))?;
        let kinds = SpaceKind::ALL.into_iter().filter_map(|kind| Some(KindDisk { kind, space: *usage.kinds.get(&kind)? }));
        environments.push(EnvironmentDisk {
            environment: environment.title(),
            bytes: usage.total().bytes,
            kinds: kinds.collect(),
        });
    }
    let limit = limit_of(control, &project);
    let bytes = environments.iter().map(|environment| environment.bytes).sum();
    let counted = control.pipeline().quota_usage(project.id).await;
    let own = project.storage.filter(|kind| kind.is_file_system() && !unusable);
    let own = own.and_then(|_| files::disk_size(&control.root().project(&project.name)).ok());
    let own = own.map(|size| (size.total, size.free));
    let quota = counted.zip(limit).map(|(counted, limit)| (limit, limit.saturating_sub(counted)));
    let (total, free) = own.or(quota).unzip();
    let method = match project.storage {
        Some(StorageKind::Quota) if counted.is_none() => ACCOUNTING,
        storage => storage.map_or(ACCOUNTING, StorageKind::as_str),
    };
    Ok(ProjectDisk { project: project.name, bytes, limit, method, problem, counted, total, free, environments })
}

/// Returns the limit of a project: its own limit, or else the limit of the server file.
pub(super) fn limit_of(control: &Control, project: &Project) -> Option<u64> {
    let general = control.pipeline().services().config.space.limit;
    project.space_limit.or(general.map(ByteSize::bytes))
}
