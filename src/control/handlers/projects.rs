//! Requests that create, list and destroy projects and environments.

use serde::Serialize;

use super::{deployments::of_pipeline, limits::registration};
use crate::{
    config::ByteSize,
    control::{
        authz::Needs,
        error::{CommandError, no_project, refused, run_blocking, usage},
        registry::Registry,
        request::{Context, Reply, Request},
        state::Control,
    },
    git::{CommitSpec, Expected, GitError, GitFailure, MoveRef},
    model::{
        Access, BranchName, CommitId, Environment, EnvironmentName, Live, Mode, Project, ProjectName, StorageKind, Strategy,
    },
    pipeline::{LastScan, chain},
};

/// The request to create an environment, and the environment's project if the project does not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProjectCreate {
    /// The project.
    pub project: ProjectName,
    /// The name of the new environment.
    pub environment: EnvironmentName,
    /// The mode in which the environment deploys.
    pub mode: Mode,
    /// The branch that the environment deploys.
    pub branch: BranchName,
    /// Further host names, besides the host name in the server's domain.
    pub domains: Vec<String>,
    /// The way in which a new release replaces the old release.
    pub strategy: Strategy,
}

/// An environment that was created.
#[derive(Debug, Serialize)]
pub struct ProjectCreated {
    /// The project, whose last environment is the new environment.
    pub project: Project,
    /// The port of the SSH server.
    pub ssh_port: u16,
    /// The address of the new environment.
    pub url: String,
    /// The commit that the branch named if the branch had been pushed before. Such a branch is deleted, because a deploy branch names the
    /// live commit.
    pub unset: Option<CommitId>,
}

impl Request for ProjectCreate {
    type View = ProjectCreated;
    const NAME: &'static str = "project create";

    fn needs(&self) -> Needs {
        Needs::server(Access::Admin)
    }

    async fn handle(self, Context { control, caller }: &Context<'_>) -> Result<Reply<ProjectCreated>, CommandError> {
        // The lock is held until the environment is ready, or is removed after a failure, so that no concurrent request creates or destroys
        // an environment.
        let _one_at_a_time = control.create_destroy_lock().await;
        let project = enter(control, self).await?;
        match prepare(control, &project).await {
            Ok(unset) => {
                let url = urls(control, &project).pop().into_iter().flatten().next().unwrap_or_default();
                if let Some(environment) = project.environments.last() {
                    control.pipeline().announce_created(environment, caller.name());
                }
                Ok(ProjectCreated { project, ssh_port: control.pipeline().services().ssh.port(), url, unset }.into())
            }
            Err(error) => Err(take_back(control, &project, error).await),
        }
    }
}

/// Adds the environment to the registry, which assigns its numbers.
async fn enter(control: &Control, spec: ProjectCreate) -> Result<Project, CommandError> {
    let root = control.root();
    let config = &control.pipeline().services().config;
    let (domain, space) = (config.domain.as_str(), config.space);
    let capabilities = control.pipeline().services().launcher.capabilities().await;
    let quota = capabilities.is_ok_and(|capabilities| capabilities.quota.is_ok()).then_some(StorageKind::Quota);
    // A file system needs a size.
    let storage = space.storage.filter(|_| space.limit.is_some()).or(quota);
    let size = space.limit.filter(|_| storage.is_some_and(StorageKind::is_file_system)).map(ByteSize::bytes);
    let enter = |registry: &mut Registry| {
        let id = registry.next_environment();
        let known = registry.project(&spec.project).map(|project| project.id);
        let project_id = known.unwrap_or_else(|| registry.next_project());
        if known.is_none() {
            registry.projects.push(Project {
                id: project_id,
                name: spec.project.clone(),
                environments: Vec::new(),
                space_limit: size,
                storage,
            });
        }
        let project = registry.projects.iter_mut().find(|project| project.id == project_id);
        let project = project.ok_or_else(|| no_project(&spec.project, &[]))?;
        ensure_no_clash(project, &spec)?;
        let directory = match known {
            Some(_) => root.environment(&spec.project, &spec.environment).path().to_owned(),
            None => root.project(&spec.project),
        };
        // The undo of a failed creation deletes the directory, so the directory must not exist before.
        if directory.symlink_metadata().is_ok() {
            return Err(refused(format!(
                "cannot create {}/{}: {} exists already and does not belong to a project of this server",
                spec.project,
                spec.environment,
                directory.display()
            ))
            .hint("move the directory away, or delete it, and try again"));
        }
        let environment = Environment {
            id,
            project_id,
            project: spec.project.clone(),
            name: spec.environment.clone(),
            mode: spec.mode,
            branch: spec.branch.clone(),
            strategy: spec.strategy,
            domains: spec.domains.clone(),
            default: project.environments.is_empty(),
            scale: Default::default(),
            remotes: Vec::new(),
        };
        ensure_host_is_valid(&environment, domain)?;
        project.environments.push(environment.clone());
        let project = project.clone();
        ensure_hosts_are_free(registry, &environment, domain)?;
        Ok(project)
    };
    control.change(enter).await
}

/// Reverts the creation of an environment that could not be prepared, in the registry and in the keeper. Without this revert, the keeper
/// would refuse a repetition of the request, because the repetition assigns a new number to the environment. Returns the error to show.
async fn take_back(control: &Control, project: &Project, error: CommandError) -> CommandError {
    let Some(environment) = project.environments.last() else { return error };
    let only = project.environments.len() == 1;
    let launcher = &control.pipeline().services().launcher;
    let detached = control.pipeline().detach(std::slice::from_ref(environment)).await.map_err(|error| chain(&error));
    let left = match detached {
        Ok(_) => launcher.unregister(project.id, (!only).then_some(environment.id)).await.map_err(|error| chain(&error)),
        Err(busy) => Err(busy),
    };
    if let Err(left) = left {
        tracing::error!(
            environment = environment.title(),
            error = left,
            "cannot remove an environment that failed to be created"
        );
        return error.hint(match only {
            true => format!("remove the incomplete project with `larder project destroy {0} --confirm {0}`", project.name),
            false => format!("restart the server, which then prepares {} again", environment.title()),
        });
    }
    let remove = |registry: &mut Registry| {
        if let Some(known) = registry.projects.iter_mut().find(|known| known.id == project.id) {
            known.environments.retain(|known| known.id != environment.id);
        }
        registry.projects.retain(|known| known.id != project.id || !known.environments.is_empty());
        Ok(())
    };
    match control.change(remove).await {
        Ok(()) => error,
        Err(also) => error.hint(format!(
            "restart the server, which then prepares the environment again, because the registry still contains it: {also}"
        )),
    }
}

fn ensure_no_clash(project: &Project, spec: &ProjectCreate) -> Result<(), CommandError> {
    for environment in &project.environments {
        if environment.name == spec.environment {
            return Err(refused(format!("cannot create {}: the environment exists already", environment.title())).hint(
                "create a further environment with `--env NAME`, or show the existing one with `larder project info PROJECT`",
            ));
        }
        if environment.branch == spec.branch {
            return Err(refused(format!(
                "cannot create {}/{}: {} deploys the branch {} already",
                spec.project,
                spec.environment,
                environment.title(),
                spec.branch
            ))
            .hint("choose another branch with --branch: a deploy branch names the live commit of one environment"));
        }
    }
    Ok(())
}

/// Returns an error if another environment already has a host name of the new environment.
fn ensure_hosts_are_free(registry: &Registry, new: &Environment, domain: &str) -> Result<(), CommandError> {
    let hosts = new.hosts(domain);
    let others = registry.projects.iter().flat_map(|project| &project.environments).filter(|other| other.id != new.id);
    for other in others {
        if let Some(taken) = other.hosts(domain).into_iter().find(|host| hosts.contains(host)) {
            return Err(refused(format!("cannot create {}: the host name {taken} belongs to another environment", new.title()))
                .hint("choose another name or another --domain; `larder project list` shows the host names that you may see"));
        }
    }
    Ok(())
}

/// The maximum length of a label of a host name, in bytes (RFC 1035, section 2.3.4).
const MAX_LABEL: usize = 63;
/// The maximum length of a host name in text form, in bytes (RFC 1035, section 2.3.4: 255 octets with length bytes and root).
const MAX_HOST: usize = 253;

/// Returns an error if the host name of a new environment in the server's domain is longer than DNS allows. The names of the environment
/// and the project may have 31 bytes each. The label `<environment>--<project>` of these names would have 64 bytes.
fn ensure_host_is_valid(new: &Environment, domain: &str) -> Result<(), CommandError> {
    let Some(host) = new.hosts(domain).into_iter().next() else { return Ok(()) };
    let label = host.split('.').next().unwrap_or_default();
    let (what, found, limit) = match (label.len(), host.len()) {
        (length, _) if length > MAX_LABEL => (label, length, MAX_LABEL),
        (_, length) if length > MAX_HOST => (host.as_str(), length, MAX_HOST),
        _ => return Ok(()),
    };
    let why =
        format!("cannot create {}: its host name would be {host}, and {what:?} has {found} bytes (limit {limit})", new.title());
    Err(refused(why).hint("choose a shorter name for the environment or the project"))
}

/// Creates the directories, the repositories, the queue and the route of the project's last environment. This function may safely run twice.
/// Returns the commit of the branch if the branch had been pushed before.
async fn prepare(control: &Control, project: &Project) -> Result<Option<CommitId>, CommandError> {
    let internal = |error: &(dyn std::error::Error + 'static)| CommandError::internal(error);
    let services = control.pipeline().services();
    let Some(environment) = project.environments.last() else { return Ok(None) };
    let registration = registration(control, project, Some(environment));
    services.launcher.register(registration).await.map_err(|error| internal(&error))?;
    // A clone checks out the branch of the default environment, not of the environment that was created last.
    let head = project.environments.iter().find(|one| one.default).unwrap_or(environment).branch.clone();
    services.repositories.init(project.id, head).await.map_err(|error| internal(&error))?;
    control.pipeline().make_pillar(project.id).await.map_err(|error| internal(&error))?;
    control.pipeline().attach(environment.clone()).await.map_err(|error| internal(&error))?;
    delete_stored_branch(control, environment).await.map_err(|error| internal(&error))
}

/// Deletes the branch of a new environment if the branch had been pushed before. A deploy branch names the live commit, and nothing is live
/// yet. In addition, git does not push a branch that is up to date on the server, so the user could not deploy the branch. The objects of
/// the commit stay in the repository.
async fn delete_stored_branch(control: &Control, environment: &Environment) -> Result<Option<CommitId>, GitError> {
    let repositories = &control.pipeline().services().repositories;
    let commit = match repositories.resolve(environment.project_id, CommitSpec::Branch(environment.branch.clone())).await {
        Ok(commit) => commit,
        Err(GitError::Failure(GitFailure::NotFound(_))) => return Ok(None),
        Err(error) => return Err(error),
    };
    let change = MoveRef {
        refname: environment.branch.full_ref(),
        expected: Expected::At(commit.clone()),
        new: None,
        keep: None,
        forget: Vec::new(),
    };
    match repositories.move_ref(environment.project_id, change).await {
        Ok(()) => Ok(Some(commit)),
        // A push has moved the branch meanwhile. This push is deployed like any other push.
        Err(GitError::Failure(GitFailure::Moved { .. })) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The request to list the projects that the caller may see.
#[derive(Debug)]
pub struct ProjectList;

/// A project in a list. Each vector has one item per environment, in the order of the project's environments.
#[derive(Debug, Clone, Serialize)]
pub struct ProjectRow {
    /// The project.
    pub project: Project,
    /// The live release of each environment.
    pub live: Vec<Option<Live>>,
    /// The addresses of each environment.
    pub urls: Vec<Vec<String>>,
    /// The result of the last comparison of each environment's live files with their release.
    pub drift: Vec<Option<LastScan>>,
}

impl Request for ProjectList {
    type View = Vec<ProjectRow>;
    const NAME: &'static str = "project list";

    fn needs(&self) -> Needs {
        Needs::server(Access::View)
    }

    async fn handle(self, Context { control, caller }: &Context<'_>) -> Result<Reply<Vec<ProjectRow>>, CommandError> {
        let visible = control.visible(caller).into_iter();
        Ok(visible.map(|project| row(control, project)).collect::<Vec<_>>().into())
    }
}

/// The request to show one project.
#[derive(Debug)]
pub struct ProjectInfo {
    /// The project.
    pub project: ProjectName,
}

impl Request for ProjectInfo {
    type View = Vec<ProjectRow>;
    const NAME: &'static str = "project info";

    fn needs(&self) -> Needs {
        Needs::project(&self.project, Access::View)
    }

    async fn handle(self, Context { control, caller }: &Context<'_>) -> Result<Reply<Vec<ProjectRow>>, CommandError> {
        let project = control.visible_project(caller, &self.project)?;
        control.pipeline().refresh_drift(&project.environments).await;
        Ok(vec![row(control, project)].into())
    }
}

fn row(control: &Control, project: Project) -> ProjectRow {
    let live = project.environments.iter().map(|environment| control.pipeline().live(environment.id)).collect();
    let urls = urls(control, &project);
    let drift = project.environments.iter().map(|environment| control.pipeline().last_drift(environment.id)).collect();
    ProjectRow { project, live, urls, drift }
}

/// Returns the addresses of each environment.
fn urls(control: &Control, project: &Project) -> Vec<Vec<String>> {
    let services = control.pipeline().services();
    let of_environment = |environment: &Environment| {
        let hosts = environment.hosts(services.config.domain.as_str()).into_iter();
        hosts.map(|host| services.config.http.url(&host, services.http.port())).collect()
    };
    project.environments.iter().map(of_environment).collect()
}

/// The request to stop a project and delete everything that belongs to the project.
#[derive(Debug)]
pub struct ProjectDestroy {
    /// The project.
    pub project: ProjectName,
    /// The project's name, typed again by the caller as a confirmation.
    pub confirm: Option<String>,
}

/// A project that was destroyed.
#[derive(Debug, Serialize)]
pub struct ProjectDestroyed {
    /// The project.
    pub project: ProjectName,
    /// The reasons why copies of databases stay on their servers.
    pub left: Vec<String>,
}

impl Request for ProjectDestroy {
    type View = ProjectDestroyed;
    const NAME: &'static str = "project destroy";

    fn needs(&self) -> Needs {
        Needs::server(Access::Admin)
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<ProjectDestroyed>, CommandError> {
        let ProjectDestroy { project: name, confirm } = self;
        let _one_at_a_time = control.create_destroy_lock().await;
        let project = control.registry().project(&name).cloned();
        let project = project.ok_or_else(|| no_project(&name, &[]))?;
        if confirm.as_deref() != Some(name.as_str()) {
            return Err(usage(format!(
                "cannot destroy {name} without a confirmation: this deletes its code, releases, data and records"
            ))
            .hint(format!("confirm with `larder project destroy {name} --confirm {name}`")));
        }
        let left = control.pipeline().detach(&project.environments).await.map_err(|busy| {
            of_pipeline(&busy).hint(format!("wait for the deployment, or run `larder deploy {name} --cancel`"))
        })?;
        let services = control.pipeline().services();
        for environment in &project.environments {
            let stopped = services.runtime.stop_where(environment.id, std::time::Duration::from_secs(10), |_| true).await;
            stopped.map_err(|error| CommandError::internal(&error))?;
        }
        services.launcher.unregister(project.id, None).await.map_err(|error| CommandError::internal(&error))?;
        let remove = |registry: &mut Registry| {
            registry.projects.retain(|known| known.id != project.id);
            registry.trusted.retain(|trusted| trusted.project != name);
            for user in &mut registry.users {
                user.access.retain(|target, _| target.project != name);
                user.pillar.retain(|target, _| target.project != name);
            }
            for group in &mut registry.groups {
                group.access.retain(|target, _| target.project != name);
                group.pillar.retain(|target, _| target.project != name);
            }
            registry.protections.retain(|target, _| target.project != name);
            Ok(())
        };
        control.change(remove).await?;
        // No command could remove the key without its project.
        let pipeline = control.pipeline().clone();
        let remove_key =
            move || pipeline.services().deploy_keys.remove(project.id).map_err(|error| CommandError::internal(&error));
        run_blocking(remove_key).await?;
        Ok(ProjectDestroyed { project: name, left }.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_name_of_another_environment_is_refused() {
        let environment = |id: u32, project: &str, domains: &[&str]| Environment {
            id: crate::model::EnvId(id),
            project: project.parse().unwrap(),
            domains: domains.iter().map(|domain| (*domain).to_owned()).collect(),
            ..Environment::of_shop("production", "main")
        };
        let shop = environment(1, "shop", &["www.example.com", "blog.localhost"]);
        let project = Project {
            id: shop.project_id,
            name: shop.project.clone(),
            environments: vec![shop.clone()],
            space_limit: None,
            storage: None,
        };
        let registry = Registry { projects: vec![project], ..Registry::default() };
        let taken = |new: Environment| ensure_hosts_are_free(&registry, &new, "localhost").map_err(|error| error.to_string());
        assert!(taken(environment(2, "wiki", &["wiki.example.com"])).is_ok());
        assert!(taken(shop).is_ok(), "an environment does not conflict with itself");
        assert!(taken(environment(2, "wiki", &["www.example.com"])).unwrap_err().contains("www.example.com"));
        assert!(taken(environment(2, "wiki", &["shop.localhost"])).unwrap_err().contains("shop.localhost"));
        assert!(taken(environment(2, "blog", &[])).unwrap_err().contains("blog.localhost"));
    }

    #[test]
    fn environment_whose_host_name_is_too_long_for_dns_is_refused() {
        let checked = |environment: &str, project: &str, default: bool, domain: &str| {
            let (project, name) = (project.parse().unwrap(), environment.parse().unwrap());
            let environment = Environment { project, name, default, ..Environment::of_shop("production", "main") };
            ensure_host_is_valid(&environment, domain).map_err(|error| error.to_string())
        };
        let (long, shorter) = ("a".repeat(31), "b".repeat(30));
        let why = checked(&long, &long, false, "localhost").unwrap_err();
        assert!(why.contains("64 bytes (limit 63)") && why.contains(&format!("{long}--{long}")), "{why}");
        assert_eq!(checked(&shorter, &long, false, "localhost"), Ok(()));
        assert_eq!(checked(&long, &long, true, "localhost"), Ok(()));
        let domain = vec!["c".repeat(60); 4].join(".");
        let why = checked("staging", "shop", false, &domain).unwrap_err();
        assert!(why.contains("257 bytes (limit 253)"), "{why}");
        assert_eq!(checked("staging", "shop", true, &domain), Ok(()));
    }
}
