//! Requests that move a release from one environment to another environment or server, or to a shared location.

use serde::Serialize;

use super::{
    deployments::{deployment, id_of_tag, of_supply, submit},
    remotes::of_remote,
};
use crate::{
    control::{
        authz::{self, Needs, Scope},
        error::{CommandError, no_destination, not_found, refused, several_environments, usage},
        request::{Context, Reply, Request, Stream},
        state::Control,
    },
    model::{Access, CommitId, Environment, Mode, Origin, ProjectName, ReleaseNumber, Remote, RemoteName, Target, Trigger},
    pipeline::{Goal, ReleaseCandidate, Summary},
};

/// The request to deploy a release from another environment or a remote.
#[derive(Debug)]
pub struct Pull {
    /// The environment. A target that names only a project means the project's environment of mode final.
    pub target: Target,
    /// The release; the newest if absent.
    pub release: Option<String>,
    /// The only remote to search; all sources are searched if absent.
    pub from: Option<RemoteName>,
    /// The reason to override the promotion policy, for the record of the deployment; absent if the policy applies.
    pub overriding: Option<String>,
}

/// The answer to [`Pull`] if the release is live already.
#[derive(Debug, Serialize)]
pub struct PullView {
    /// The title of the release.
    pub release: String,
    /// The number of the release in this environment.
    pub number: ReleaseNumber,
}

impl Request for Pull {
    type View = PullView;
    const NAME: &'static str = "pull";

    fn needs(&self) -> Needs {
        Needs::of_mode(&self.target, Mode::Final, Access::Deploy)
    }

    async fn handle(self, context: &Context<'_>) -> Result<Reply<PullView>, CommandError> {
        let Context { control, caller } = context;
        let Pull { target, release, from, overriding } = self;
        let environment = environment_of_mode(context, &target, Mode::Final)?;
        if environment.mode != Mode::Final {
            return Err(builds_its_own(&environment)
                .hint("create an environment that serves deliverables with `larder project create NAME --mode final`"));
        }
        let found = control.pipeline().wanted(&environment, release.as_deref(), from.as_ref()).await;
        let found = found.map_err(|error| of_supply(&error))?;
        if let Some(live) = control.pipeline().live(environment.id) {
            if live.release == found.release {
                return Ok(PullView { release: found.title(), number: live.number }.into());
            }
            // A remote can withhold newer releases. A request for the newest release must therefore not deploy an older release.
            if release.is_none() && found.release < live.release {
                return Err(refused(format!("the newest release on offer, {}, is older than the live release", found.title()))
                    .hint("give the name of the release to pull it anyway, or use `larder rollback`"));
            }
        }
        let newest = release.is_none();
        let ReleaseCandidate { release, commit, origin, .. } = found;
        let goal = Goal::Release { release, origin, newest, overriding };
        submit(control, deployment(Trigger::Pull { by: caller.name() }, environment, commit, goal))
    }
}

/// The request to deploy a release that was cooked here to another environment or server, or to publish it to a shared location.
#[derive(Debug)]
pub struct Promote {
    /// The environment that cooked the release. A target that names only a project means the project's environment of mode cooking.
    pub target: Target,
    /// The release; the live release if absent.
    pub release: Option<String>,
    /// A remote of the environment, or another environment of the project on this server.
    pub to: String,
    /// The reason to override the promotion policy, for the record of the deployment; absent if the policy applies.
    pub overriding: Option<String>,
}

/// A release that was published to a shared location.
#[derive(Debug, Serialize)]
pub struct Published {
    /// The project.
    pub project: ProjectName,
    /// The number of the release.
    pub number: ReleaseNumber,
    /// The commit of the release.
    pub commit: CommitId,
    /// The remote that the release was published to.
    pub remote: RemoteName,
}

impl Request for Promote {
    type View = Published;
    const NAME: &'static str = "promote";

    fn needs(&self) -> Needs {
        Needs { scope: Scope::Promotion { from: self.target.clone(), to: self.to.clone() }, right: Access::Deploy }
    }

    async fn handle(self, context: &Context<'_>) -> Result<Reply<Published>, CommandError> {
        let Context { control, caller } = context;
        let Promote { target, release, to, overriding } = self;
        let environment = environment_of_mode(context, &target, Mode::Cooking)?;
        let release = id_of_tag(control, &environment, release).await;
        let history = control.pipeline().history(environment.id);
        let live = control.pipeline().live(environment.id);
        let found = match (&release, &live) {
            (Some(name), _) => history.named(name).map_err(|several| {
                let titles: Vec<_> = several.iter().take(5).map(|found| found.title()).collect();
                usage(format!("the release name {name} is ambiguous: it matches {}", titles.join(", ")))
                    .hint("give the number of the release, or more digits of its commit")
            })?,
            (None, Some(live)) => history.of_release(live.release),
            (None, None) => None,
        };
        let found = found.ok_or_else(|| {
            not_found(match &release {
                Some(name) => format!("{} has no release {name} that was ever live", environment.title()),
                None => format!("nothing is live in {} yet", environment.title()),
            })
            .hint("list the releases with `larder releases`")
        })?;
        if let Some(remote) = environment.remotes.iter().find(|remote| remote.name.as_str() == to) {
            let place = control.pipeline().services().places.open(remote, &environment.project);
            let place = place.map_err(|error| of_remote(&error))?;
            if !place.is_server() {
                return publish(control, &environment, found, remote, overriding.is_some()).await;
            }
            let mut words = vec![String::from("pull"), place.target(), found.release.to_string()];
            if let Some(why) = overriding {
                words.extend([String::from("--override"), why]);
            }
            let exec = place.exec(&words).await.map_err(|error| of_remote(&error))?;
            return Ok(Reply::Stream(Stream::Relay(Box::new(exec))));
        }
        let sibling = sibling(control, &environment, &to)?;
        let origin = Origin::Environment(environment.name.clone());
        let goal = Goal::Release { release: found.release, origin, newest: false, overriding };
        submit(control, deployment(Trigger::Pull { by: caller.name() }, sibling, found.commit.clone(), goal))
    }
}

/// Returns the environment `to` of the same project. Returns an error if `to` is `environment` itself, or if the mode of `to` is not final.
fn sibling(control: &Control, environment: &Environment, to: &str) -> Result<Environment, CommandError> {
    let unknown = || no_destination(environment, to);
    let name = to.parse().map_err(|_| unknown())?;
    let target = Target { project: environment.project.clone(), environment: Some(name) };
    let found = control.environment(&target).ok().filter(|found| found.id != environment.id).ok_or_else(unknown)?;
    if found.mode == Mode::Final { Ok(found) } else { Err(builds_its_own(&found)) }
}

fn builds_its_own(environment: &Environment) -> CommandError {
    refused(format!("{} is in mode {}: it builds its own releases", environment.title(), environment.mode))
}

/// Publishes a release to a shared location: a directory or a bucket.
async fn publish(
    control: &Control,
    environment: &Environment,
    found: &Summary,
    remote: &Remote,
    overriding: bool,
) -> Result<Reply<Published>, CommandError> {
    if !remote.publish {
        return Err(refused(format!("{} does not publish to the remote {}", environment.title(), remote.name)).hint(format!(
            "add a remote that publishes: `larder remote add {} NAME {} --publish`",
            environment.title(),
            remote.url
        )));
    }
    if overriding {
        return Err(usage(format!("--override has no effect on {}: no promotion policy applies there", remote.name))
            .hint("give --override to `larder pull` on the server that deploys the release"));
    }
    control.pipeline().publish(environment, found, remote).await.map_err(refused)?;
    let published = Published {
        project: environment.project.clone(),
        number: found.number,
        commit: found.commit.clone(),
        remote: remote.name.clone(),
    };
    Ok(published.into())
}

/// Returns the environment that a target names. If the target names only a project, prefers an environment of mode `mode`: the default
/// environment, or else the project's only environment of this mode. If the project has none, returns the default environment. If the
/// project has several, and none of them is the default environment, returns an error.
fn environment_of_mode(context: &Context<'_>, target: &Target, mode: Mode) -> Result<Environment, CommandError> {
    let Context { control, caller } = context;
    let registry = control.registry();
    let mut fitting = registry.environments_of_mode(target, mode);
    fitting.retain(|environment| authz::on_environment(&registry, caller, environment) >= Access::View);
    match fitting.as_slice() {
        [] => Err(not_found(format!("there is no environment of {target} that you may see"))),
        [one] => Ok((*one).clone()),
        several => Err(several_environments(target, Some(mode), several)),
    }
}
