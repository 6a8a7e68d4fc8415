//! Releases that go from where they were cooked to where they serve.

use super::{
    deployments::{of_supply, submit, tagged, wanted},
    not_found, refused,
};
use crate::{
    control::{Caller, CommandError, Control, Kind, Reply, Target},
    model::{Environment, Mode, Origin, Remote, RemoteName, Trigger},
    pipeline::{Candidate, Goal, Summary, chain},
    remote::RemoteError,
};

/// Brings a release to an environment, from wherever it is.
pub(super) async fn pull(
    control: &Control,
    caller: &Caller,
    target: Target,
    release: Option<&str>,
    from: Option<&RemoteName>,
    overriding: Option<String>,
) -> Result<Reply, CommandError> {
    let environment = meant(control, target, Mode::Final)?;
    if environment.mode != Mode::Final {
        return Err(refused(format!("{} is in mode {}: it makes its releases itself", environment.title(), environment.mode))
            .hint("`larder project create NAME --mode final` makes an environment that serves what another one cooked"));
    }
    let found = control.pipeline().wanted(&environment, release, from).await.map_err(|error| of_supply(&error))?;
    if let Some(live) = control.pipeline().live(environment.id) {
        if live.release == found.release {
            return Ok(Reply::Done(format!("{} is live already, as {}", found.title(), live.number)));
        }
        // Whoever holds back what is newer must not make "the newest" a way back.
        if release.is_none() && found.release < live.release {
            return Err(refused(format!("the newest that is on offer, {}, is older than what is live", found.title()))
                .hint("name it to bring it all the same, or use `larder rollback`"));
        }
    }
    let newest = release.is_none();
    let Candidate { release, commit, origin, .. } = found;
    let goal = Goal::Release { release, origin, newest, overriding };
    submit(control, wanted(Trigger::Pull { by: caller.name() }, environment, commit, goal))
}

/// Has somebody else bring a release that was cooked here.
pub(super) async fn promote(
    control: &Control,
    caller: &Caller,
    target: Target,
    release: Option<&str>,
    to: &str,
    overriding: Option<String>,
) -> Result<Reply, CommandError> {
    let environment = meant(control, target.clone(), Mode::Cooking)?;
    let release = tagged(control, &environment, release.map(str::to_owned)).await;
    let release = release.as_deref();
    let history = control.pipeline().history(environment.id);
    let live = control.pipeline().live(environment.id);
    let found = match (release, &live) {
        (Some(name), _) => history.named(name),
        (None, Some(live)) => history.of_release(live.release),
        (None, None) => None,
    };
    let found = found.ok_or_else(|| {
        not_found(match release {
            Some(name) => format!("{} has no release {name} that was ever live", environment.title()),
            None => format!("nothing is live in {} yet", environment.title()),
        })
        .hint("`larder releases` lists what there is")
    })?;
    if let Some(remote) = environment.remotes.iter().find(|remote| remote.name.as_str() == to) {
        let place = control.pipeline().services().places.open(remote, &environment.project).map_err(of_remote)?;
        if !place.is_server() {
            return share(control, &environment, found, remote, overriding.is_some()).await;
        }
        let mut words = vec![String::from("pull"), place.target(), found.release.to_string()];
        if let Some(why) = overriding {
            words.extend([String::from("--override"), why]);
        }
        return Ok(Reply::Relay(Box::new(place.exec(&words).await.map_err(of_remote)?)));
    }
    let sibling = Target { project: target.project, environment: to.parse().ok() };
    let sibling = match sibling.environment {
        Some(_) => control.environment(&sibling).ok(),
        None => None,
    };
    let Some(sibling) = sibling.filter(|sibling| sibling.id != environment.id) else {
        return Err(not_found(format!("{} has neither a remote nor another environment named {to}", environment.title()))
            .hint("`larder remote add` names another server, `larder project info` lists the environments here"));
    };
    if sibling.mode != Mode::Final {
        return Err(refused(format!("{} is in mode {}: it makes its releases itself", sibling.title(), sibling.mode)));
    }
    let origin = Origin::Environment(environment.name.clone());
    let goal = Goal::Release { release: found.release, origin, newest: false, overriding };
    submit(control, wanted(Trigger::Pull { by: caller.name() }, sibling, found.commit.clone(), goal))
}

/// Puts a release into a shared place, where nobody can be told to pull it.
async fn share(
    control: &Control,
    environment: &Environment,
    found: &Summary,
    remote: &Remote,
    overriding: bool,
) -> Result<Reply, CommandError> {
    if !remote.publish {
        let why = format!("{} is a place that {} does not publish to", remote.name, environment.title());
        return Err(refused(why).hint(format!("`larder remote add {} NAME {} --publish`", environment.title(), remote.url)));
    }
    if overriding {
        let why = format!("nobody decides anything in {}", remote.name);
        return Err(CommandError::new(Kind::Usage, why).hint("give --override to `larder pull` on the server that serves"));
    }
    control.pipeline().publish(environment, found, remote).await.map_err(refused)?;
    Ok(Reply::Done(format!(
        "{} ({}) is in {} now, with how it has gone until now\non the server that serves: larder pull {} {}",
        found.number,
        found.commit.short(),
        remote.name,
        environment.project,
        found.number
    )))
}

/// The environment that somebody means who names only the project: the one with the fitting mode, if there is exactly one.
fn meant(control: &Control, target: Target, mode: Mode) -> Result<Environment, CommandError> {
    let usual = control.environment(&target)?;
    if target.environment.is_some() || usual.mode == mode {
        return Ok(usual);
    }
    let fitting = control.environments(&target.project).into_iter().filter(|environment| environment.mode == mode);
    let fitting: Vec<_> = fitting.collect();
    match fitting.as_slice() {
        [] => Ok(usual),
        [one] => Ok(one.clone()),
        several => {
            let names: Vec<_> = several.iter().map(Environment::title).collect();
            Err(CommandError::new(Kind::Usage, format!("which one: {}?", names.join(" or "))))
        }
    }
}

fn of_remote(error: RemoteError) -> CommandError {
    let hints = error.hints();
    hints.into_iter().fold(refused(chain(&error)), CommandError::hint)
}
