//! Users, their keys and their rights.

use super::{not_found, refused};
use crate::{
    control::{Caller, CommandError, Control, Key, Reply, User, error::similar},
    model::{Access, ProjectName, UserName},
};

pub(super) fn whoami(control: &Control, caller: &Caller) -> Reply {
    let projects = control.names(caller);
    let access = projects.into_iter().map(|project| {
        let access = control.access(caller, Some(&project));
        (project, access)
    });
    Reply::Whoami { name: caller.name(), access: access.collect() }
}

pub(super) fn list(control: &Control) -> Reply {
    Reply::Users(control.0.registry.read().users.clone())
}

pub(super) async fn add(control: &Control, name: UserName, admin: bool, keys: Vec<Key>) -> Result<Reply, CommandError> {
    let said = format!("{name} may log in with {}", count(keys.len(), "key"));
    control
        .change(|registry| {
            if name == UserName::operator() {
                return Err(refused("operator is what records call somebody on the server itself; choose another name"));
            }
            if registry.user(&name).is_some() {
                return Err(refused(format!("there is a user {name} already"))
                    .hint(format!("`larder key add {name} --key-file FILE` gives it a further key")));
            }
            for key in &keys {
                free(registry.user_of_key(&key.fingerprint), key)?;
            }
            registry.users.push(User { name, admin, keys, access: Default::default() });
            Ok(())
        })
        .await?;
    Ok(Reply::Done(said))
}

pub(super) async fn remove(control: &Control, name: UserName) -> Result<Reply, CommandError> {
    let said = format!("{name} may not log in any more");
    control
        .change(|registry| {
            let before = registry.users.len();
            registry.users.retain(|user| user.name != name);
            if registry.users.len() == before { Err(no_user(&registry.users, &name)) } else { Ok(()) }
        })
        .await?;
    Ok(Reply::Done(said))
}

pub(super) async fn grant(
    control: &Control,
    name: UserName,
    project: ProjectName,
    access: Access,
) -> Result<Reply, CommandError> {
    let said = format!("{name} has the right {access} on {project}");
    control
        .change(|registry| {
            if registry.project(&project).is_none() {
                return Err(not_found(format!("there is no project {project}")));
            }
            let unknown = no_user(&registry.users, &name);
            let user = registry.user_mut(&name).ok_or(unknown)?;
            match access {
                Access::None => drop(user.access.remove(&project)),
                Access::Admin => {
                    return Err(refused("admin is a right on the whole server, not on one project")
                        .hint("`larder user add NAME --admin` makes an administrator"));
                }
                access => drop(user.access.insert(project, access)),
            }
            Ok(())
        })
        .await?;
    Ok(Reply::Done(said))
}

pub(super) async fn add_key(control: &Control, name: UserName, key: Key) -> Result<Reply, CommandError> {
    let said = format!("{name} may log in with {}", key.fingerprint);
    control
        .change(|registry| {
            free(registry.user_of_key(&key.fingerprint), &key)?;
            let unknown = no_user(&registry.users, &name);
            registry.user_mut(&name).ok_or(unknown)?.keys.push(key);
            Ok(())
        })
        .await?;
    Ok(Reply::Done(said))
}

pub(super) async fn remove_key(control: &Control, fingerprint: String) -> Result<Reply, CommandError> {
    let said = format!("nobody may log in with {fingerprint} any more");
    control
        .change(|registry| {
            let owner = registry.user_of_key(&fingerprint);
            let owner = owner.ok_or_else(|| not_found(format!("there is no key {fingerprint}")))?;
            if let Some(user) = registry.user_mut(&owner) {
                user.keys.retain(|key| key.fingerprint != fingerprint);
            }
            Ok(())
        })
        .await?;
    Ok(Reply::Done(said))
}

/// A key leads to one user, or a log could not say who it was.
fn free(owner: Option<UserName>, key: &Key) -> Result<(), CommandError> {
    match owner {
        Some(owner) => Err(refused(format!("the key {} is {owner}'s already", key.fingerprint))),
        None => Ok(()),
    }
}

fn no_user(users: &[User], name: &UserName) -> CommandError {
    let error = not_found(format!("there is no user {name}"));
    match similar(name.as_str(), users.iter().map(|user| user.name.as_str())) {
        Some(other) => error.hint(format!("did you mean {other}?")),
        None => error.hint("`larder user list` shows all"),
    }
}

fn count(number: usize, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}
