//! Projects and environments.

use super::refused;
use crate::{
    control::{Caller, CommandError, Control, Kind, ProjectSpec, Reply, error::no_project, reply::ProjectRow},
    host::launch::Registration,
    model::{Environment, Mode, Project, ProjectName, Strategy},
};

pub(super) async fn create(control: &Control, spec: ProjectSpec) -> Result<Reply, CommandError> {
    available(&spec)?;
    let project = control
        .change(|registry| {
            let mut domains = registry.projects.iter().flat_map(|project| &project.environments).flat_map(|one| &one.domains);
            if let Some(taken) = domains.find(|domain| spec.domains.contains(domain)) {
                return Err(refused(format!("the domain {taken} leads to another environment already")));
            }
            let id = registry.next_environment();
            let known = registry.project(&spec.project).map(|project| project.id);
            let project_id = known.unwrap_or_else(|| registry.next_project());
            if known.is_none() {
                registry.projects.push(Project { id: project_id, name: spec.project.clone(), environments: Vec::new() });
            }
            let project = registry.projects.iter_mut().find(|project| project.id == project_id);
            let project = project.ok_or_else(|| no_project(&spec.project, &[]))?;
            clash(project, &spec)?;
            project.environments.push(Environment {
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
            });
            Ok(project.clone())
        })
        .await?;
    match prepare(control, &project).await {
        Ok(()) => {
            let url = urls(control, &project).pop().into_iter().flatten().next().unwrap_or_default();
            Ok(Reply::Created { project, ssh_port: control.pipeline().services().ssh.port(), url })
        }
        Err(error) => {
            // What cannot be prepared does not stay in the list.
            let undone = control.change(|registry| {
                if let Some(known) = registry.projects.iter_mut().find(|known| known.id == project.id) {
                    known.environments.pop();
                }
                registry.projects.retain(|known| !known.environments.is_empty());
                Ok(())
            });
            undone.await?;
            Err(error)
        }
    }
}

fn available(spec: &ProjectSpec) -> Result<(), CommandError> {
    let missing = |what: String| Err(CommandError::new(Kind::Usage, what));
    match (spec.mode, spec.strategy) {
        (Mode::Cooking, Strategy::BlueGreen) => Ok(()),
        (Mode::Cooking | Mode::Final, Strategy::InPlace) => {
            missing(String::from("the strategy in-place is not there in this version; use blue-green"))
        }
        (Mode::Final, Strategy::BlueGreen) => Ok(()),
        (mode, _) => missing(format!("the mode {mode} is not there in this version; use cooking or final")),
    }
}

fn clash(project: &Project, spec: &ProjectSpec) -> Result<(), CommandError> {
    for environment in &project.environments {
        if environment.name == spec.environment {
            return Err(refused(format!("{} exists already", environment.title()))
                .hint("`larder project info NAME` shows it; `--env NAME` makes a further environment"));
        }
        if environment.branch == spec.branch {
            return Err(refused(format!("{} deploys the branch {} already", environment.title(), spec.branch)).hint(
                "a branch names the commit that is live in one environment; give the new one another branch with --branch",
            ));
        }
    }
    Ok(())
}

/// Directories, repository, queue and route. Safe to repeat.
async fn prepare(control: &Control, project: &Project) -> Result<(), CommandError> {
    let internal = |error: &(dyn std::error::Error + 'static)| CommandError::internal(error);
    let services = control.pipeline().services();
    let Some(environment) = project.environments.last() else { return Ok(()) };
    let registration = Registration {
        project: (project.id, project.name.clone()),
        environment: Some((environment.id, environment.name.clone())),
    };
    services.launcher.register(registration).await.map_err(|error| internal(&error))?;
    services.repositories.init(project.id, environment.branch.clone()).await.map_err(|error| internal(&error))?;
    control.pipeline().attach(environment.clone()).await.map_err(|error| internal(&error))
}

pub(super) fn list(control: &Control, caller: &Caller) -> Reply {
    let names = control.names(caller);
    let projects = control.0.registry.read().projects.clone();
    let visible = projects.into_iter().filter(|project| names.contains(&project.name));
    Reply::Projects(visible.map(|project| row(control, project)).collect())
}

pub(super) async fn info(control: &Control, name: &ProjectName) -> Result<Reply, CommandError> {
    let project = control.0.registry.read().project(name).cloned();
    let project = project.ok_or_else(|| no_project(name, &[]))?;
    control.pipeline().freshen_drift(&project.environments).await;
    Ok(Reply::Projects(vec![row(control, project)]))
}

fn row(control: &Control, project: Project) -> ProjectRow {
    let live = project.environments.iter().map(|environment| control.pipeline().live(environment.id)).collect();
    let urls = urls(control, &project);
    let drift = project.environments.iter().map(|environment| control.pipeline().last_drift(environment.id)).collect();
    ProjectRow { project, live, urls, drift }
}

/// The addresses of each environment.
fn urls(control: &Control, project: &Project) -> Vec<Vec<String>> {
    let services = control.pipeline().services();
    let port = services.http.port();
    let port = if port == 80 { String::new() } else { format!(":{port}") };
    let of = |environment: &Environment| {
        let hosts = environment.hosts(services.config.domain.as_str()).into_iter();
        hosts.map(|host| format!("http://{host}{port}")).collect()
    };
    project.environments.iter().map(of).collect()
}

pub(super) async fn destroy(control: &Control, name: ProjectName, confirm: Option<String>) -> Result<Reply, CommandError> {
    let project = control.0.registry.read().project(&name).cloned();
    let project = project.ok_or_else(|| no_project(&name, &[]))?;
    if confirm.as_deref() != Some(name.as_str()) {
        return Err(CommandError::new(Kind::Usage, format!("this deletes {name}: its code, releases, data and records"))
            .hint(format!("`larder project destroy {name} --confirm {name}` does it")));
    }
    control.pipeline().detach(&project.environments).await.map_err(|busy| {
        super::deployments::of_pipeline(&busy).hint(format!("wait for it, or run `larder deploy {name} --cancel`"))
    })?;
    let services = control.pipeline().services();
    for environment in &project.environments {
        let stopped = services.runtime.stop_where(environment.id, std::time::Duration::from_secs(10), |_| true).await;
        stopped.map_err(|error| CommandError::internal(&error))?;
    }
    services.launcher.unregister(project.id, None).await.map_err(|error| CommandError::internal(&error))?;
    control
        .change(|registry| {
            registry.projects.retain(|known| known.id != project.id);
            registry.trusted.retain(|trusted| trusted.project != name);
            for user in &mut registry.users {
                user.access.remove(&name);
            }
            Ok(())
        })
        .await?;
    Ok(Reply::Done(format!("{name} is gone")))
}
