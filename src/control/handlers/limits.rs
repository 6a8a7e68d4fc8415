//! Requests that change the limit of a project's disk space, and the limits as the pipeline uses them.

use futures_util::future::BoxFuture;
use serde::Serialize;

use super::disk::{limit_of, project_disk};
use crate::{
    config::ByteSize,
    control::{
        authz::Needs,
        error::{CommandError, no_project, refused},
        request::{Context, Reply, Request},
        state::Control,
    },
    host::launch::Registration,
    model::{Access, Environment, Project, ProjectId, ProjectName, StorageKind},
    pipeline::{ProjectLimits, chain},
    space::{shown, with_reserve},
};

/// The request to raise the limit of a project.
#[derive(Debug)]
pub struct ProjectEnlarge {
    /// The project.
    pub project: ProjectName,
    /// The new limit.
    pub size: ByteSize,
}

/// The request to lower the limit of a project.
#[derive(Debug)]
pub struct ProjectTrim {
    /// The project.
    pub project: ProjectName,
    /// The new limit; absent for the used space and a reserve.
    pub size: Option<ByteSize>,
}

/// The limit of a project after a change.
#[derive(Debug, Serialize)]
pub struct ProjectLimit {
    /// The project.
    pub project: ProjectName,
    /// The used bytes.
    pub used: u64,
    /// The limit in bytes.
    pub limit: u64,
    /// The limit before the change, in bytes; absent without a limit.
    pub before: Option<u64>,
}

impl Request for ProjectEnlarge {
    type View = ProjectLimit;
    const NAME: &'static str = "project enlarge";

    fn needs(&self) -> Needs {
        Needs::server(Access::Admin)
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<ProjectLimit>, CommandError> {
        let (project, used) = used(control, &self.project).await?;
        let (size, before) = (self.size.bytes(), limit_of(control, &project));
        if let Some(before) = before.filter(|before| size < *before) {
            let why = format!("cannot enlarge {} to {}: its limit is {}", self.project, self.size, shown(before));
            return Err(refused(why).hint(format!("lower the limit with `larder project trim {} {}`", self.project, self.size)));
        }
        ensure_holds(&self.project, "enlarge", size, used)?;
        resize(control, &project, size).await?;
        set(control, project.id, size).await?;
        Ok(ProjectLimit { project: self.project, used, limit: size, before }.into())
    }
}

impl Request for ProjectTrim {
    type View = ProjectLimit;
    const NAME: &'static str = "project trim";

    fn needs(&self) -> Needs {
        Needs::server(Access::Admin)
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<ProjectLimit>, CommandError> {
        let (project, used) = used(control, &self.project).await?;
        if let Some(kind) = project.storage.filter(|kind| kind.is_file_system()) {
            let why = format!(
                "cannot trim {}: its {} file system cannot become smaller while it is mounted",
                self.project,
                kind.as_str()
            );
            return Err(refused(why).hint("create another project, and push there"));
        }
        let before = limit_of(control, &project);
        let size = self.size.map_or_else(|| with_reserve(used), ByteSize::bytes);
        if let Some(before) = before.filter(|before| size > *before) {
            let why = format!("cannot trim {} to {}: its limit is {}", self.project, shown(size), shown(before));
            return Err(refused(why).hint(format!("raise the limit with `larder project enlarge {} SIZE`", self.project)));
        }
        ensure_holds(&self.project, "trim", size, used)?;
        resize(control, &project, size).await?;
        set(control, project.id, size).await?;
        Ok(ProjectLimit { project: self.project, used, limit: size, before }.into())
    }
}

/// Returns an error if a limit is less than the used bytes.
fn ensure_holds(project: &ProjectName, verb: &str, size: u64, used: u64) -> Result<(), CommandError> {
    if size >= used {
        return Ok(());
    }
    let why = format!("cannot {verb} {project} to {}: {project} uses {} ({used} bytes)", shown(size), shown(used));
    Err(refused(why).hint(format!("`larder disk {project}` shows what uses the space")))
}

/// Returns a project and the bytes that it uses.
async fn used(control: &Control, name: &ProjectName) -> Result<(Project, u64), CommandError> {
    let project = control.registry().project(name).cloned();
    let project = project.ok_or_else(|| no_project(name, &[]))?;
    let used = match control.pipeline().quota_usage(project.id).await {
        Some(counted) => counted,
        None => project_disk(control, project.clone()).await?.bytes,
    };
    Ok((project, used))
}

impl Control {
    /// Returns the registrations of all environments.
    pub fn registrations(&self) -> Vec<Registration> {
        let projects = self.registry().projects.clone();
        let all = projects.iter().flat_map(|project| project.environments.iter().map(move |environment| (project, environment)));
        all.map(|(project, environment)| registration(self, project, Some(environment))).collect()
    }
}

/// Returns the names of a project for the keeper, with its limit if the kernel enforces the limit.
pub(super) fn registration(control: &Control, project: &Project, environment: Option<&Environment>) -> Registration {
    Registration {
        project: (project.id, project.name.clone()),
        environment: environment.map(|environment| (environment.id, environment.name.clone())),
        storage: enforced(control, project).and_then(|kind| {
            let limit = limit_of(control, project);
            Some((kind, if kind.is_file_system() { limit? } else { limit.unwrap_or(0) }))
        }),
    }
}

/// Returns the means by which the kernel limits the project's space; `None` if there is a problem with the quota of the project.
fn enforced(control: &Control, project: &Project) -> Option<StorageKind> {
    project.storage.filter(|kind| kind.is_file_system() || control.storage_problem(project.id).is_none())
}

/// Changes the quota of a project, or enlarges its file system, if the project has one of these.
async fn resize(control: &Control, project: &Project, size: u64) -> Result<(), CommandError> {
    let Some(kind) = enforced(control, project) else { return Ok(()) };
    let resized = Registration { storage: Some((kind, size)), ..registration(control, project, None) };
    let enlarged = control.pipeline().services().launcher.register(resized).await;
    let verb = if kind.is_file_system() { "enlarge" } else { "set the quota of" };
    enlarged.map_err(|error| refused(format!("cannot {verb} {}: {}", project.name, chain(&error))))
}

async fn set(control: &Control, project: ProjectId, limit: u64) -> Result<(), CommandError> {
    let change = |registry: &mut crate::control::registry::Registry| {
        let known = registry.projects.iter_mut().find(|known| known.id == project);
        known.ok_or_else(|| refused("the project no longer exists"))?.space_limit = Some(limit);
        Ok(())
    };
    control.change(change).await
}

impl ProjectLimits for Control {
    fn limit(&self, project: ProjectId) -> Option<u64> {
        let known = self.registry().projects.iter().find(|known| known.id == project).cloned();
        limit_of(self, &known?)
    }

    fn storage(&self, project: ProjectId) -> Option<StorageKind> {
        let known = self.registry().projects.iter().find(|known| known.id == project).cloned()?;
        enforced(self, &known).filter(|kind| kind.is_file_system() || limit_of(self, &known).is_some())
    }

    fn raise(&self, project: ProjectId, to: u64) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            let known = self.registry().projects.iter().find(|known| known.id == project).cloned();
            if let Some(known) = known {
                resize(self, &known, to).await.map_err(|error| error.to_string())?;
            }
            set(self, project, to).await.map_err(|error| error.to_string())
        })
    }
}
