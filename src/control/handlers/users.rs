//! Requests about users and their rights.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use jiff::Timestamp;
use serde::Serialize;

use crate::{
    control::{
        authorities::holder,
        authz::{Caller, Needs, of_user},
        error::{CommandError, no_environment, not_found, refused, similar},
        login::{Key, KeyScope, Login, LoginKeyRow},
        registry::{Registry, User},
        request::{Context, Reply, Request},
    },
    model::{Access, EnvironmentName, ProjectName, Target, UserName},
};

/// The request for the caller's own name and rights.
#[derive(Debug)]
pub struct Whoami;

/// A caller's name and rights.
#[derive(Debug, Serialize)]
pub struct WhoamiView {
    /// The name of the caller, as in logs and in the records of deployments.
    pub name: UserName,
    /// The key of the login; absent for the operator.
    pub key: Option<LoginKeyRow>,
    /// The right on each project that the caller may see, and on each environment whose right differs from the right on its project.
    pub access: IndexMap<Target, Access>,
    /// The projects whose pillar the caller may read and push.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pillars: Vec<ProjectName>,
}

impl Request for Whoami {
    type View = WhoamiView;
    const NAME: &'static str = "whoami";

    fn needs(&self) -> Needs {
        Needs::server(Access::View)
    }

    async fn handle(self, Context { control, caller }: &Context<'_>) -> Result<Reply<WhoamiView>, CommandError> {
        let (mut access, mut pillars) = (IndexMap::new(), Vec::new());
        for project in control.visible(caller) {
            let on_project = control.right_on_project(caller, &project.name);
            if control.authorize(caller, &Needs::pillar(&project.name)).is_ok() {
                pillars.push(project.name.clone());
            }
            if on_project > Access::None {
                access.insert(Target { project: project.name.clone(), environment: None }, on_project);
            }
            for environment in &project.environments {
                let right = control.right_on(caller, environment);
                if right != on_project {
                    access.insert(Target::from(environment), right);
                }
            }
        }
        let registry = control.registry();
        let key = match caller {
            Caller::User(Login { certificate: Some(certificate), source, .. }) => {
                let known = holder(&registry, certificate, Timestamp::now(), *source);
                known.ok().map(|(user, authority)| LoginKeyRow::certified(&user.name, certificate, authority))
            }
            Caller::User(login) => registry.key(&login.key).map(|(user, key)| LoginKeyRow::new(&user.name, key)),
            Caller::Operator => None,
        };
        Ok(WhoamiView { name: caller.name(), key, access, pillars }.into())
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
    const ANNOUNCED: bool = true;

    fn needs(&self) -> Needs {
        Needs::server(Access::Admin)
    }

    fn detail(&self) -> Option<String> {
        let keys: Vec<_> = self.keys.iter().map(|key| format!(", {}", key.summary())).collect();
        Some(format!("{}{}{}", self.name, if self.admin { ", admin" } else { "" }, keys.concat()))
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
            registry.users.push(User { name, admin, keys, access: Default::default(), pillar: Default::default() });
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

    fn needs(&self) -> Needs {
        Needs::server(Access::Admin)
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
    const ANNOUNCED: bool = true;

    fn needs(&self) -> Needs {
        Needs::server(Access::Admin)
    }

    fn detail(&self) -> Option<String> {
        Some(self.name.to_string())
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<UserRemoved>, CommandError> {
        let name = self.name;
        let remove = |registry: &mut Registry| {
            let before = registry.users.len();
            registry.users.retain(|user| user.name != name);
            for group in &mut registry.groups {
                group.members.retain(|member| *member != name);
            }
            // A later user with this name is another user, whom this authority may not certify.
            registry.authorities.retain(|authority| authority.user.as_ref() != Some(&name));
            if registry.users.len() == before { Err(no_user(&registry.users, &name)) } else { Ok(()) }
        };
        control.change(remove).await?;
        Ok(UserRemoved { name }.into())
    }
}

/// The request to give a user a right on a project or an environment. The new right replaces the user's earlier right on this object.
#[derive(Debug)]
pub struct UserGrant {
    /// The user.
    pub name: UserName,
    /// The project or the environment.
    pub target: Target,
    /// The new right.
    pub right: GrantedRight,
}

/// A right in the request to give a right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrantedRight {
    /// A right on the code. [`Access::None`] takes every right away, on a project also the rights on its environments. `None` removes the
    /// right on an environment, so that the right on the project counts again.
    Access(Option<Access>),
    /// The right on the pillar, which is independent of the rights on the code.
    Pillar(bool),
}

impl GrantedRight {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            GrantedRight::Access(access) => access.map_or("inherit", Access::as_str),
            GrantedRight::Pillar(true) => "pillar",
            GrantedRight::Pillar(false) => "no-pillar",
        }
    }

    /// Returns the right on the pillar, if the request changes it.
    pub(super) fn pillar(self) -> Option<bool> {
        match self {
            GrantedRight::Access(_) => None,
            GrantedRight::Pillar(has) => Some(has),
        }
    }

    /// Changes the rights of a user or a group.
    pub(super) fn apply(self, access: &mut BTreeMap<Target, Access>, pillar: &mut BTreeMap<Target, bool>, target: &Target) {
        match self {
            GrantedRight::Access(right) => {
                set_right(access, target, right);
                if right == Some(Access::None) {
                    // Without an entry of its own, an environment has the right on the pillar of its project.
                    let before = pillar.len();
                    pillar.retain(|known, _| known.project != target.project || target.environment.is_some());
                    if target.environment.is_some() && before > 0 {
                        pillar.insert(target.clone(), false);
                    }
                }
            }
            GrantedRight::Pillar(has) => drop(pillar.insert(target.clone(), has)),
        }
    }
}

/// A right that was given.
#[derive(Debug, Serialize)]
pub struct UserGranted {
    /// The user.
    pub name: UserName,
    /// The project.
    pub project: ProjectName,
    /// The environment; absent for a right on the project.
    pub environment: Option<EnvironmentName>,
    /// The right that the user has now on the project or the environment.
    pub access: Access,
    /// The right of the user on the pillar, if the request has changed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pillar: Option<bool>,
}

impl Request for UserGrant {
    type View = UserGranted;
    const NAME: &'static str = "user grant";
    const ANNOUNCED: bool = true;

    fn needs(&self) -> Needs {
        Needs::parts(&self.target, Access::Admin)
    }

    fn detail(&self) -> Option<String> {
        Some(format!("{} {}", self.name, self.right.as_str()))
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<UserGranted>, CommandError> {
        let UserGrant { name, target, right } = self;
        let grant = |registry: &mut Registry| {
            ensure_exists(registry, &target)?;
            let unknown = no_user(&registry.users, &name);
            let user = registry.user_mut(&name).ok_or(unknown)?;
            right.apply(&mut user.access, &mut user.pillar, &target);
            // A user without the right of its own would have the right of its groups.
            if right == GrantedRight::Access(Some(Access::None))
                && of_user(registry, &name, &target) > Access::None
                && let Some(user) = registry.user_mut(&name)
            {
                user.access.insert(target.clone(), Access::None);
            }
            Ok(of_user(registry, &name, &target))
        };
        // A right of a group of the user may count as well.
        let access = control.change(grant).await?;
        Ok(UserGranted { name, project: target.project, environment: target.environment, access, pillar: right.pillar() }.into())
    }
}

/// Changes the right on one object in the rights of a user or a group.
fn set_right(rights: &mut BTreeMap<Target, Access>, target: &Target, access: Option<Access>) {
    let whole = Target { project: target.project.clone(), environment: None };
    let on_project = rights.get(&whole).copied().unwrap_or(Access::None);
    match (&target.environment, access) {
        (None, None) => drop(rights.remove(target)),
        (None, Some(Access::None)) => rights.retain(|known, _| known.project != target.project),
        // Without this entry, the environment would have the right on the project.
        (Some(_), Some(Access::None)) if on_project > Access::None => drop(rights.insert(target.clone(), Access::None)),
        (Some(_), None | Some(Access::None)) => drop(rights.remove(target)),
        (_, Some(access)) => drop(rights.insert(target.clone(), access)),
    }
}

/// Returns the right that counts for an object in the rights of a user or a group.
pub(super) fn effective_right(rights: &BTreeMap<Target, Access>, target: &Target) -> Access {
    let whole = Target { project: target.project.clone(), environment: None };
    rights.get(target).or_else(|| rights.get(&whole)).copied().unwrap_or(Access::None)
}

/// Returns an error if a user has the key. A key belongs to at most one user, because the key alone identifies the user.
pub(super) fn ensure_key_is_free(registry: &Registry, key: &Key) -> Result<(), CommandError> {
    if let Some((owner, _)) = registry.key(&key.fingerprint) {
        return Err(refused(format!("cannot add the key {}: it already belongs to {}", key.fingerprint, owner.name)));
    }
    // A key that is restricted to an object that does not exist would get rights on a later object with this name.
    match &key.limits.only {
        Some(KeyScope { on, .. }) => ensure_exists(registry, on),
        None => Ok(()),
    }
}

/// Returns an error if a target names no project or environment of this server.
pub(super) fn ensure_exists(registry: &Registry, target: &Target) -> Result<(), CommandError> {
    let project = registry.project(&target.project);
    let project = project.ok_or_else(|| not_found(format!("there is no project {}", target.project)))?;
    match registry.environment(target) {
        Some(_) => Ok(()),
        None => Err(no_environment(project, target)),
    }
}

pub(super) fn no_user(users: &[User], name: &UserName) -> CommandError {
    let error = not_found(format!("there is no user {name}"));
    match similar(name.as_str(), users.iter().map(|user| user.name.as_str())) {
        Some(other) => error.hint(format!("did you mean {other}?")),
        None => error.hint("list all users with `larder user list`"),
    }
}
