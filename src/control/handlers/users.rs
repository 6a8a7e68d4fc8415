//! Requests about users and their rights.

use indexmap::IndexMap;
use serde::Serialize;

use crate::{
    control::{
        error::{CommandError, not_found, refused, similar},
        registry::{Key, Registry, User},
        request::{Context, Reply, Request},
    },
    model::{Access, ProjectName, UserName},
};

/// The request for the caller's own name and rights.
#[derive(Debug)]
pub struct Whoami;

/// A caller's name and rights.
#[derive(Debug, Serialize)]
pub struct WhoamiView {
    /// The name of the caller, as in logs and in the records of deployments.
    pub name: UserName,
    /// The right on each project that the caller may see.
    pub access: IndexMap<ProjectName, Access>,
}

impl Request for Whoami {
    type View = WhoamiView;
    const NAME: &'static str = "whoami";

    fn needs(&self) -> (Option<&ProjectName>, Access) {
        (None, Access::View)
    }

    async fn handle(self, Context { control, caller }: &Context<'_>) -> Result<Reply<WhoamiView>, CommandError> {
        let projects = control.names(caller).into_iter();
        let access = projects.map(|project| {
            let access = control.access(caller, Some(&project));
            (project, access)
        });
        Ok(WhoamiView { name: caller.name(), access: access.collect() }.into())
    }
}

/// The request to add a user.
#[derive(Debug)]
pub struct UserAdd {
    /// The name of the new user.
    pub name: UserName,
    /// True to grant every right on every project.
    pub admin: bool,
    /// The keys of the new user.
    pub keys: Vec<Key>,
}

/// A user that was added.
#[derive(Debug, Serialize)]
pub struct UserAdded {
    /// The new user.
    pub name: UserName,
    /// The number of keys of the user.
    pub keys: usize,
}

impl Request for UserAdd {
    type View = UserAdded;
    const NAME: &'static str = "user add";

    fn needs(&self) -> (Option<&ProjectName>, Access) {
        (None, Access::Admin)
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<UserAdded>, CommandError> {
        let UserAdd { name, admin, keys } = self;
        let added = UserAdded { name: name.clone(), keys: keys.len() };
        let add = |registry: &mut Registry| {
            if name == UserName::operator() {
                return Err(refused("cannot add the user operator: records use this name for the operator of the server")
                    .hint("choose another name"));
            }
            if registry.user(&name).is_some() {
                return Err(refused(format!("cannot add the user {name}: the user exists already"))
                    .hint(format!("add a key to this user with `larder key add {name} --key-file FILE`")));
            }
            for key in &keys {
                ensure_key_is_free(registry, key)?;
            }
            registry.users.push(User { name, admin, keys, access: Default::default() });
            Ok(())
        };
        control.change(add).await?;
        Ok(added.into())
    }
}

/// The request to list all users.
#[derive(Debug)]
pub struct UserList;

impl Request for UserList {
    type View = Vec<User>;
    const NAME: &'static str = "user list";

    fn needs(&self) -> (Option<&ProjectName>, Access) {
        (None, Access::Admin)
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<Vec<User>>, CommandError> {
        Ok(control.registry().users.clone().into())
    }
}

/// The request to remove a user with its keys and rights.
#[derive(Debug)]
pub struct UserRemove {
    /// The user.
    pub name: UserName,
}

/// A user that was removed.
#[derive(Debug, Serialize)]
pub struct UserRemoved {
    /// The user.
    pub name: UserName,
}

impl Request for UserRemove {
    type View = UserRemoved;
    const NAME: &'static str = "user remove";

    fn needs(&self) -> (Option<&ProjectName>, Access) {
        (None, Access::Admin)
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<UserRemoved>, CommandError> {
        let name = self.name;
        let remove = |registry: &mut Registry| {
            let before = registry.users.len();
            registry.users.retain(|user| user.name != name);
            if registry.users.len() == before { Err(no_user(&registry.users, &name)) } else { Ok(()) }
        };
        control.change(remove).await?;
        Ok(UserRemoved { name }.into())
    }
}

/// The request to give a user a right on a project. The new right replaces the user's earlier right on this project.
#[derive(Debug)]
pub struct UserGrant {
    /// The user.
    pub name: UserName,
    /// The project.
    pub project: ProjectName,
    /// The new right; [`Access::None`] removes the user's right.
    pub access: Access,
}

/// A right that was given.
#[derive(Debug, Serialize)]
pub struct UserGranted {
    /// The user.
    pub name: UserName,
    /// The project.
    pub project: ProjectName,
    /// The right that the user has now.
    pub access: Access,
}

impl Request for UserGrant {
    type View = UserGranted;
    const NAME: &'static str = "user grant";

    fn needs(&self) -> (Option<&ProjectName>, Access) {
        (None, Access::Admin)
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<UserGranted>, CommandError> {
        let UserGrant { name, project, access } = self;
        let grant = |registry: &mut Registry| {
            if registry.project(&project).is_none() {
                return Err(not_found(format!("there is no project {project}")));
            }
            let unknown = no_user(&registry.users, &name);
            let user = registry.user_mut(&name).ok_or(unknown)?;
            match access {
                Access::None => drop(user.access.remove(&project)),
                Access::Admin => {
                    return Err(refused(format!(
                        "cannot make {name} an administrator of {project}: admin is a right on the whole server"
                    ))
                    .hint("make an administrator with `larder user add NAME --admin`"));
                }
                access => drop(user.access.insert(project.clone(), access)),
            }
            Ok(())
        };
        control.change(grant).await?;
        Ok(UserGranted { name, project, access }.into())
    }
}

/// Returns an error if a user has the key. A key belongs to at most one user, because the key alone identifies the user.
pub(super) fn ensure_key_is_free(registry: &Registry, key: &Key) -> Result<(), CommandError> {
    match registry.user_of_key(&key.fingerprint) {
        Some(owner) => Err(refused(format!("cannot add the key {}: it already belongs to {owner}", key.fingerprint))),
        None => Ok(()),
    }
}

pub(super) fn no_user(users: &[User], name: &UserName) -> CommandError {
    let error = not_found(format!("there is no user {name}"));
    match similar(name.as_str(), users.iter().map(|user| user.name.as_str())) {
        Some(other) => error.hint(format!("did you mean {other}?")),
        None => error.hint("list all users with `larder user list`"),
    }
}
