//! The command `larder group`, which manages groups of users.

use clap::Subcommand;

use super::{
    super::{
        command::{Asked, Asking, Command, Shown},
        text,
    },
    user::{Right, rights},
};
use crate::{
    control::{CommandError, GrantedRight, Group, GroupAdd, GroupChanged, GroupGrant, GroupGranted, GroupList, GroupRemove},
    model::{Access, Target, UserName},
};

/// Manage groups of users, which have rights together
#[derive(Debug, Subcommand)]
pub enum GroupVerb {
    Add(GroupAddArgs),
    Remove(GroupRemoveArgs),
    List(GroupListArgs),
    Grant(GroupGrantArgs),
    Revoke(GroupRevokeArgs),
}

impl GroupVerb {
    pub(in crate::surface::cli) async fn ask(self, asking: Asking<'_>) -> Result<Asked, CommandError> {
        match self {
            GroupVerb::Add(command) => asking.ask(command).await,
            GroupVerb::Remove(command) => asking.ask(command).await,
            GroupVerb::List(command) => asking.ask(command).await,
            GroupVerb::Grant(command) => asking.ask(command).await,
            GroupVerb::Revoke(command) => asking.ask(command).await,
        }
    }
}

/// Add users to a group, which is created if it does not exist
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: larder group add developers alice bob")]
pub struct GroupAddArgs {
    /// Name of the group
    group: UserName,
    /// Names of the users
    #[arg(value_name = "USER")]
    users: Vec<UserName>,
}

impl Command for GroupAddArgs {
    type Request = GroupAdd;

    fn request(self) -> Result<GroupAdd, CommandError> {
        Ok(GroupAdd { group: self.group, users: self.users })
    }

    fn show(view: &GroupChanged) -> Shown {
        members(view)
    }
}

/// Remove users from a group; without users, remove the group with its rights
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  larder group remove developers bob\n  larder group remove developers")]
pub struct GroupRemoveArgs {
    /// Name of the group
    group: UserName,
    /// Names of the users
    #[arg(value_name = "USER")]
    users: Vec<UserName>,
}

impl Command for GroupRemoveArgs {
    type Request = GroupRemove;

    fn request(self) -> Result<GroupRemove, CommandError> {
        Ok(GroupRemove { group: self.group, users: self.users })
    }

    fn show(view: &GroupChanged) -> Shown {
        members(view)
    }
}

fn members(view: &GroupChanged) -> Shown {
    Shown::Done(match &view.members {
        None => format!("the group {} was removed", view.group),
        Some(members) => {
            let names: Vec<_> = members.iter().map(UserName::as_str).collect();
            format!("the group {} has {}: {}", view.group, text::count(members.len(), "member"), names.join(" "))
        }
    })
}

/// List all groups with their members and rights
#[derive(Debug, clap::Args)]
pub struct GroupListArgs {}

impl Command for GroupListArgs {
    type Request = GroupList;

    fn request(self) -> Result<GroupList, CommandError> {
        Ok(GroupList)
    }

    fn show(groups: &Vec<Group>) -> Shown {
        let row = |group: &Group| {
            let rights = rights(&group.access, &group.pillar);
            let members: Vec<_> = group.members.iter().map(UserName::as_str).collect();
            vec![group.name.to_string(), rights.join(" "), members.join(" ")]
        };
        Shown::Page(text::table(&["GROUP", "RIGHTS", "MEMBERS"], groups.iter().map(row).collect()))
    }
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "A user with a right of its own on the project or the environment has this right instead of the rights of its groups. A user without one has the greatest right of its groups.\n\nExample: larder group grant developers shop push"
)]
/// Give a group a right on a project or an environment
pub struct GroupGrantArgs {
    /// Name of the group
    group: UserName,
    /// Project, or PROJECT/ENVIRONMENT
    #[arg(value_name = "PROJECT")]
    target: Target,
    /// New right of the group, which replaces the earlier right on the project or the environment
    access: Right,
}

impl Command for GroupGrantArgs {
    type Request = GroupGrant;

    fn request(self) -> Result<GroupGrant, CommandError> {
        Ok(GroupGrant { group: self.group, target: self.target, right: self.access.granted() })
    }

    fn show(view: &GroupGranted) -> Shown {
        let GroupGranted { group, project, environment, access, pillar } = view;
        let target = Target { project: project.clone(), environment: environment.clone() };
        Shown::Done(match pillar {
            Some(true) => format!("the group {group} has the right on the pillar of {target}"),
            Some(false) => format!("the group {group} has no right on the pillar of {target}"),
            None => format!("the group {group} has the right {access} on {target}"),
        })
    }
}

/// Take away a group's right on a project or an environment
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: larder group revoke developers shop/production")]
pub struct GroupRevokeArgs {
    /// Name of the group
    group: UserName,
    /// Project, or PROJECT/ENVIRONMENT
    #[arg(value_name = "PROJECT")]
    target: Target,
}

impl Command for GroupRevokeArgs {
    type Request = GroupGrant;

    fn request(self) -> Result<GroupGrant, CommandError> {
        Ok(GroupGrant { group: self.group, target: self.target, right: GrantedRight::Access(Some(Access::None)) })
    }

    fn show(view: &GroupGranted) -> Shown {
        GroupGrantArgs::show(view)
    }
}
