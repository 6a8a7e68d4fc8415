//! Projects and environments.

use super::refused;
use crate::{
    control::{Caller, CommandError, Control, Kind, ProjectSpec, Registry, Reply, error::no_project, reply::ProjectRow},
    git::{Expected, GitError, GitFailure, MoveRef, Spec},
    host::launch::Registration,
    model::{CommitId, Environment, Mode, Project, ProjectName, Strategy},
    pipeline::chain,
};

pub(super) async fn create(control: &Control, spec: ProjectSpec) -> Result<Reply, CommandError> {
    available(&spec)?;
    // One that cannot be prepared is taken back as if it had never been: nobody may have built on it meanwhile.
    let _one_at_a_time = control.0.founding.lock().await;
    let project = enter(control, spec).await?;
    match prepare(control, &project).await {
        Ok(unset) => {
            let url = urls(control, &project).pop().into_iter().flatten().next().unwrap_or_default();
            Ok(Reply::Created { project, ssh_port: control.pipeline().services().ssh.port(), url, unset })
        }
        Err(error) => Err(take_back(control, &project, error).await),
    }
}

/// Gives it its numbers, and writes it down.
async fn enter(control: &Control, spec: ProjectSpec) -> Result<Project, CommandError> {
    let root = &control.0.root;
    let domain = control.pipeline().services().config.domain.as_str();
    let entered = control.change(|registry| {
        let id = registry.next_environment();
        let known = registry.project(&spec.project).map(|project| project.id);
        let project_id = known.unwrap_or_else(|| registry.next_project());
        if known.is_none() {
            registry.projects.push(Project { id: project_id, name: spec.project.clone(), environments: Vec::new() });
        }
        let project = registry.projects.iter_mut().find(|project| project.id == project_id);
        let project = project.ok_or_else(|| no_project(&spec.project, &[]))?;
        clash(project, &spec)?;
        let place = match known {
            Some(_) => root.environment(&spec.project, &spec.environment).path().to_owned(),
            None => root.project(&spec.project),
        };
        // Whatever it is: taking back what could not be prepared would delete it.
        if place.symlink_metadata().is_ok() {
            return Err(refused(format!("{} is there already, and is not of this server", place.display()))
                .hint("move it away, or delete it, and try again"));
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
        project.environments.push(environment.clone());
        let project = project.clone();
        one_host_each(registry, &environment, domain)?;
        Ok(project)
    });
    entered.await
}

/// What cannot be prepared does not stay in the list, nor its name with the keeper, who would give it to no other number. Returns
/// what to say.
async fn take_back(control: &Control, project: &Project, error: CommandError) -> CommandError {
    let Some(environment) = project.environments.last() else { return error };
    let only = project.environments.len() == 1;
    let launcher = &control.pipeline().services().launcher;
    let detached = control.pipeline().detach(std::slice::from_ref(environment)).await.map_err(|error| chain(&error));
    let left = match detached {
        Ok(()) => launcher.unregister(project.id, (!only).then_some(environment.id)).await.map_err(|error| chain(&error)),
        busy => busy,
    };
    if let Err(left) = left {
        tracing::error!(environment = environment.title(), error = left, "could not be taken back");
        return error.hint(match only {
            true => format!("it stays in the list: `larder project destroy {0} --confirm {0}` removes it", project.name),
            false => format!("{} stays in the list; the next start of the server prepares it again", environment.title()),
        });
    }
    let removed = control.change(|registry| {
        if let Some(known) = registry.projects.iter_mut().find(|known| known.id == project.id) {
            known.environments.retain(|known| known.id != environment.id);
        }
        registry.projects.retain(|known| known.id != project.id || !known.environments.is_empty());
        Ok(())
    });
    match removed.await {
        Ok(()) => error,
        Err(also) => error.hint(format!("it stays in the list, because it could not be taken back: {also}")),
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

/// A host name leads to one environment, whether it was given with `--domain` or is made of names.
fn one_host_each(registry: &Registry, new: &Environment, domain: &str) -> Result<(), CommandError> {
    let hosts = new.hosts(domain);
    let others = registry.projects.iter().flat_map(|project| &project.environments).filter(|other| other.id != new.id);
    for other in others {
        if let Some(taken) = other.hosts(domain).into_iter().find(|host| hosts.contains(host)) {
            return Err(refused(format!("the host name {taken} leads to another environment already"))
                .hint("`larder project list` shows all that you may see; choose another name, or another --domain"));
        }
    }
    Ok(())
}

/// Directories, repository, queue and route. Safe to repeat. Gives the commit that the branch named, if it was stored already.
async fn prepare(control: &Control, project: &Project) -> Result<Option<CommitId>, CommandError> {
    let internal = |error: &(dyn std::error::Error + 'static)| CommandError::internal(error);
    let services = control.pipeline().services();
    let Some(environment) = project.environments.last() else { return Ok(None) };
    let registration = Registration {
        project: (project.id, project.name.clone()),
        environment: Some((environment.id, environment.name.clone())),
    };
    services.launcher.register(registration).await.map_err(|error| internal(&error))?;
    // What a clone checks out is the default environment's, whichever was made last.
    let head = project.environments.iter().find(|one| one.default).unwrap_or(environment).branch.clone();
    services.repositories.init(project.id, head).await.map_err(|error| internal(&error))?;
    control.pipeline().attach(environment.clone()).await.map_err(|error| internal(&error))?;
    unset(control, environment).await.map_err(|error| internal(&error))
}

/// A deploy branch names what is live, and nothing is yet. If it was pushed before, when it was only stored, it is taken away: else
/// the next push would have nothing to send, and git would not even ask. The objects stay.
async fn unset(control: &Control, environment: &Environment) -> Result<Option<CommitId>, GitError> {
    let repositories = &control.pipeline().services().repositories;
    let commit = match repositories.resolve(environment.project_id, Spec::Branch(environment.branch.clone())).await {
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
        // A push was faster: it is deployed as any other.
        Err(GitError::Failure(GitFailure::Moved { .. })) => Ok(None),
        Err(error) => Err(error),
    }
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
    let of = |environment: &Environment| {
        let hosts = environment.hosts(services.config.domain.as_str()).into_iter();
        hosts.map(|host| services.config.http.url(&host, services.http.port())).collect()
    };
    project.environments.iter().map(of).collect()
}

pub(super) async fn destroy(control: &Control, name: ProjectName, confirm: Option<String>) -> Result<Reply, CommandError> {
    let _one_at_a_time = control.0.founding.lock().await;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_environments_have_the_same_host() {
        let environment = |id: u32, project: &str, domains: &[&str]| Environment {
            id: crate::model::EnvId(id),
            project: project.parse().unwrap(),
            domains: domains.iter().map(|domain| (*domain).to_owned()).collect(),
            ..Environment::of_shop("production", "main")
        };
        let shop = environment(1, "shop", &["www.example.com", "blog.localhost"]);
        let project = Project { id: shop.project_id, name: shop.project.clone(), environments: vec![shop.clone()] };
        let registry = Registry { projects: vec![project], ..Registry::default() };
        let taken = |new: Environment| one_host_each(&registry, &new, "localhost").map_err(|error| error.to_string());
        assert!(taken(environment(2, "wiki", &["wiki.example.com"])).is_ok());
        assert!(taken(shop).is_ok(), "it does not stand in its own way");
        assert!(taken(environment(2, "wiki", &["www.example.com"])).unwrap_err().contains("www.example.com"));
        assert!(taken(environment(2, "wiki", &["shop.localhost"])).unwrap_err().contains("shop.localhost"));
        assert!(taken(environment(2, "blog", &[])).unwrap_err().contains("blog.localhost"));
    }
}
