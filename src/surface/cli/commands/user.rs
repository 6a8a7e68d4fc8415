//! The command `larder user`, which manages users and their rights.

use std::{collections::BTreeMap, path::PathBuf};

use clap::{Subcommand, ValueEnum};

use super::{
    super::{
        command::{Asked, Asking, Command, Shown},
        text,
    },
    key::{KeyLimitArgs, read_key},
    user_ca::AuthorityVerb,
};
use crate::{
    control::{self, CommandError, GrantedRight, UserAdd, UserAdded, UserGrant, UserGranted, UserList, UserRemove, UserRemoved},
    model::{Access, Target, UserName},
};

/// Manage the users of this server and their rights
#[derive(Debug, Subcommand)]
pub enum UserVerb {
    Add(UserAddArgs),
    List(UserListArgs),
    Remove(UserRemoveArgs),
    Grant(UserGrantArgs),
    Revoke(UserRevokeArgs),
    #[command(subcommand)]
    Ca(AuthorityVerb),
}

impl UserVerb {
    pub(in crate::surface::cli) async fn ask(self, asking: Asking<'_>) -> Result<Asked, CommandError> {
        match self {
            UserVerb::Add(command) => asking.ask(command).await,
            UserVerb::List(command) => asking.ask(command).await,
            UserVerb::Remove(command) => asking.ask(command).await,
            UserVerb::Grant(command) => asking.ask(command).await,
            UserVerb::Revoke(command) => asking.ask(command).await,
            UserVerb::Ca(noun) => noun.ask(asking).await,
        }
    }
}

/// Add a user with an SSH key
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: larder user add alice --admin --key-file ~/.ssh/id_ed25519.pub")]
pub struct UserAddArgs {
    /// Name of the user; no account on the machine is needed
    name: UserName,
    /// Give the user every right on this server
    #[arg(long)]
    admin: bool,
    /// File with the public key, on the machine where you type this command
    #[arg(long, value_name = "FILE", conflicts_with = "key")]
    key_file: Option<PathBuf>,
    /// The public key itself, one line; over ssh, --key-file is not available
    #[arg(long, value_name = "KEY", allow_hyphen_values = true)]
    key: Option<String>,
    #[command(flatten)]
    limits: KeyLimitArgs,
}

impl Command for UserAddArgs {
    type Request = UserAdd;

    fn request(self) -> Result<UserAdd, CommandError> {
        let keys = read_key(self.key_file, self.key, self.limits)?.into_iter().collect();
        Ok(UserAdd { name: self.name, admin: self.admin, keys })
    }

    fn show(view: &UserAdded) -> Shown {
        Shown::Done(format!("{} may log in with {}", view.name, text::count(view.keys, "key")))
    }
}

/// List all users with their rights and the fingerprints of their keys
#[derive(Debug, clap::Args)]
pub struct UserListArgs {}

impl Command for UserListArgs {
    type Request = UserList;

    fn request(self) -> Result<UserList, CommandError> {
        Ok(UserList)
    }

    fn show(users: &Vec<control::User>) -> Shown {
        let row = |user: &control::User| {
            let rights: Vec<_> = match user.admin {
                true => vec![String::from("admin")],
                false => rights(&user.access, &user.pillar),
            };
            let keys: Vec<_> = user.keys.iter().map(|key| key.fingerprint.clone()).collect();
            vec![user.name.to_string(), rights.join(" "), keys.join(" ")]
        };
        Shown::Page(text::table(&["USER", "RIGHTS", "KEYS"], users.iter().map(row).collect()))
    }
}

/// Remove a user with its keys and rights
#[derive(Debug, clap::Args)]
pub struct UserRemoveArgs {
    /// Name of the user
    name: UserName,
}

impl Command for UserRemoveArgs {
    type Request = UserRemove;

    fn request(self) -> Result<UserRemove, CommandError> {
        Ok(UserRemove { name: self.name })
    }

    fn show(view: &UserRemoved) -> Shown {
        Shown::Done(format!("{} can no longer log in", view.name))
    }
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "A right on a project counts for each of its environments that has no right of its own. An administrator of a project or an environment may give rights on it.\n\nExamples:\n  larder user grant bob shop push\n  larder user grant ci shop/staging push\n  larder user grant bob shop/production view\n  larder user grant bob shop/production inherit\n  larder user grant bob shop pillar"
)]
/// Give a user a right on a project or an environment
pub struct UserGrantArgs {
    /// Name of the user
    name: UserName,
    /// Project, or PROJECT/ENVIRONMENT
    #[arg(value_name = "PROJECT")]
    target: Target,
    /// New right of the user, which replaces the earlier right on the project or the environment
    access: Right,
}

/// Returns the rights of a user or a group for a list.
pub(super) fn rights(access: &BTreeMap<Target, Access>, pillar: &BTreeMap<Target, bool>) -> Vec<String> {
    let pillars = pillar.iter().map(|(target, has)| format!("{target}:{}", if *has { "pillar" } else { "no-pillar" }));
    access.iter().map(|(target, access)| format!("{target}:{access}")).chain(pillars).collect()
}

/// A right on one project or environment. Each right up to `admin` includes the rights before it in this list.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Right {
    /// No right: the project or the environment is not even shown
    None,
    /// See the state, releases and logs; clone the repository; export releases
    View,
    /// Push; retry and cancel deployments
    Push,
    /// Deploy without a push, roll back, pull and promote; import releases; take and verify restore points
    Deploy,
    /// Run commands, scale, restart, unfreeze; restore data; pin releases; save drift
    Operate,
    /// Give rights to other users
    Admin,
    /// No right of its own: the right on the project, or else the rights of the groups
    Inherit,
    /// Read and push the pillar; independent of the other rights, which stay as they are
    Pillar,
    /// Take the right on the pillar away; the other rights stay as they are
    NoPillar,
}

impl Right {
    /// Returns the right for a request.
    pub(super) fn granted(self) -> GrantedRight {
        GrantedRight::Access(match self {
            Right::None => Some(Access::None),
            Right::View => Some(Access::View),
            Right::Push => Some(Access::Push),
            Right::Deploy => Some(Access::Deploy),
            Right::Operate => Some(Access::Operate),
            Right::Admin => Some(Access::Admin),
            Right::Inherit => None,
            Right::Pillar => return GrantedRight::Pillar(true),
            Right::NoPillar => return GrantedRight::Pillar(false),
        })
    }
}

impl Command for UserGrantArgs {
    type Request = UserGrant;

    fn request(self) -> Result<UserGrant, CommandError> {
        Ok(UserGrant { name: self.name, target: self.target, right: self.access.granted() })
    }

    fn show(view: &UserGranted) -> Shown {
        let UserGranted { name, project, environment, access, pillar } = view;
        let target = Target { project: project.clone(), environment: environment.clone() };
        Shown::Done(match pillar {
            Some(true) => format!("{name} has the right on the pillar of {target}"),
            Some(false) => format!("{name} has no right on the pillar of {target}"),
            None => format!("{name} has the right {access} on {target}"),
        })
    }
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "On a project, the rights on its environments are taken away, too. Running requests of the user that need the right end.\n\nExample: larder user revoke bob shop/production"
)]
/// Take away a user's right on a project or an environment
pub struct UserRevokeArgs {
    /// Name of the user
    name: UserName,
    /// Project, or PROJECT/ENVIRONMENT
    #[arg(value_name = "PROJECT")]
    target: Target,
}

impl Command for UserRevokeArgs {
    type Request = UserGrant;

    fn request(self) -> Result<UserGrant, CommandError> {
        Ok(UserGrant { name: self.name, target: self.target, right: GrantedRight::Access(Some(Access::None)) })
    }

    fn show(view: &UserGranted) -> Shown {
        UserGrantArgs::show(view)
    }
}
