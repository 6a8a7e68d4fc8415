//! Requests about groups of users, which have rights together.

use serde::Serialize;

use super::users::{GrantedRight, effective_right, ensure_exists, no_user};
use crate::{
    control::{
        authz::Needs,
        error::{CommandError, not_found, refused, similar},
        registry::{Group, Registry},
        request::{Context, Reply, Request},
    },
    model::{Access, EnvironmentName, ProjectName, Target, UserName},
};

/// The maximum number of groups of a server.
const MAX_GROUPS: usize = 256;

/// The request to add users to a group, which is created if it does not exist.
#[derive(Debug)]
pub struct GroupAdd {
    /// The group.
    pub group: UserName,
    /// The users.
    pub users: Vec<UserName>,
}

/// The members of a group after a change.
#[derive(Debug, Serialize)]
pub struct GroupChanged {
    /// The group.
    pub group: UserName,
    /// The members; absent if the group was removed.
    pub members: Option<Vec<UserName>>,
}

impl Request for GroupAdd {
    type View = GroupChanged;
    const NAME: &'static str = "group add";
    const ANNOUNCED: bool = true;

    fn needs(&self) -> Needs {
        Needs::server(Access::Admin)
    }

    fn detail(&self) -> Option<String> {
        Some(format!("{}: {}", self.group, joined(&self.users)))
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<GroupChanged>, CommandError> {
        let GroupAdd { group: name, users } = self;
        let add = |registry: &mut Registry| {
            if let Some(unknown) = users.iter().find(|user| registry.user(user).is_none()) {
                return Err(no_user(&registry.users, unknown));
            }
            if registry.group_mut(&name).is_none() {
                if registry.groups.len() >= MAX_GROUPS {
                    return Err(refused(format!(
                        "cannot create the group {name}: the server has {MAX_GROUPS} groups (the limit)"
                    )));
                }
                registry.groups.push(Group {
                    name: name.clone(),
                    members: Vec::new(),
                    access: Default::default(),
                    pillar: Default::default(),
                });
            }
            let group = registry.group_mut(&name).ok_or_else(|| not_found(format!("there is no group {name}")))?;
            group.members.extend(users);
            group.members.sort();
            group.members.dedup();
            Ok(group.members.clone())
        };
        let members = Some(control.change(add).await?);
        Ok(GroupChanged { group: name, members }.into())
    }
}

/// The request to remove users from a group, or to remove the group.
#[derive(Debug)]
pub struct GroupRemove {
    /// The group.
    pub group: UserName,
    /// The users; the group itself is removed if the list is empty.
    pub users: Vec<UserName>,
}

impl Request for GroupRemove {
    type View = GroupChanged;
    const NAME: &'static str = "group remove";
    const ANNOUNCED: bool = true;

    fn needs(&self) -> Needs {
        Needs::server(Access::Admin)
    }

    fn detail(&self) -> Option<String> {
        Some(format!("{}: {}", self.group, if self.users.is_empty() { String::from("all") } else { joined(&self.users) }))
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<GroupChanged>, CommandError> {
        let GroupRemove { group: name, users } = self;
        let remove = |registry: &mut Registry| {
            let unknown = no_group(registry, &name);
            let group = registry.group_mut(&name).ok_or(unknown)?;
            if users.is_empty() {
                registry.groups.retain(|known| known.name != name);
                registry.authorities.retain(|authority| authority.group.as_ref() != Some(&name));
                return Ok(None);
            }
            if let Some(other) = users.iter().find(|user| !group.members.contains(user)) {
                return Err(not_found(format!("{other} is not a member of the group {name}")));
            }
            group.members.retain(|member| !users.contains(member));
            Ok(Some(group.members.clone()))
        };
        let members = control.change(remove).await?;
        Ok(GroupChanged { group: name, members }.into())
    }
}

/// The request to list all groups.
#[derive(Debug)]
pub struct GroupList;

impl Request for GroupList {
    type View = Vec<Group>;
    const NAME: &'static str = "group list";

    fn needs(&self) -> Needs {
        Needs::server(Access::Admin)
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<Vec<Group>>, CommandError> {
        Ok(control.registry().groups.clone().into())
    }
}

/// The request to give a group a right on a project or an environment. The fields have the meaning of the fields of
/// [`UserGrant`](super::UserGrant).
#[derive(Debug)]
pub struct GroupGrant {
    /// The group.
    pub group: UserName,
    /// The project or the environment.
    pub target: Target,
    /// The new right.
    pub right: GrantedRight,
}

/// A right that was given to a group.
#[derive(Debug, Serialize)]
pub struct GroupGranted {
    /// The group.
    pub group: UserName,
    /// The project.
    pub project: ProjectName,
    /// The environment; absent for a right on the project.
    pub environment: Option<EnvironmentName>,
    /// The right that the group has now.
    pub access: Access,
    /// The right of the group on the pillar, if the request has changed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pillar: Option<bool>,
}

impl Request for GroupGrant {
    type View = GroupGranted;
    const NAME: &'static str = "group grant";
    const ANNOUNCED: bool = true;

    fn needs(&self) -> Needs {
        Needs::parts(&self.target, Access::Admin)
    }

    fn detail(&self) -> Option<String> {
        Some(format!("{} {}", self.group, self.right.as_str()))
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<GroupGranted>, CommandError> {
        let GroupGrant { group: name, target, right } = self;
        let grant = |registry: &mut Registry| {
            ensure_exists(registry, &target)?;
            let unknown = no_group(registry, &name);
            let group = registry.group_mut(&name).ok_or(unknown)?;
            right.apply(&mut group.access, &mut group.pillar, &target);
            Ok(effective_right(&group.access, &target))
        };
        let access = control.change(grant).await?;
        Ok(GroupGranted { group: name, project: target.project, environment: target.environment, access, pillar: right.pillar() }
            .into())
    }
}

fn no_group(registry: &Registry, name: &UserName) -> CommandError {
    let error = not_found(format!("there is no group {name}"));
    match similar(name.as_str(), registry.groups.iter().map(|group| group.name.as_str())) {
        Some(other) => error.hint(format!("did you mean {other}?")),
        None => error.hint(format!("create the group with `larder group add {name} USER...`")),
    }
}

fn joined(users: &[UserName]) -> String {
    users.iter().map(UserName::as_str).collect::<Vec<_>>().join(" ")
}
