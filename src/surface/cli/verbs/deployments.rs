//! `deploy` and `plan`.

use super::{On, OnRelease};
use crate::{
    control::{CommandError, DeployAction, Request},
    model::Phase,
};

/// Deploy without a push, follow a deployment, or stop it.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without an option, the live commit is deployed again.\n\nA deployment goes on when you stop looking (Ctrl-C); only --cancel ends it.\n\nExit status: 0 the deployment is live (with --cancel: it was put back), 1 it failed, 3 it was refused, 4 there is no such thing."
)]
pub struct Deploy {
    #[command(flatten)]
    on: On,
    #[command(flatten)]
    action: Action,
}

#[derive(Debug, clap::Args)]
#[group(multiple = false)]
struct Action {
    /// Deploy this branch, tag or commit, which was pushed before; the deploy branch then names it
    #[arg(long = "ref", value_name = "REF")]
    reference: Option<String>,
    /// Deploy the commit of the last deployment, which failed, again
    #[arg(long)]
    retry: bool,
    /// Show the deployment that is under way, or the last one, from its beginning
    #[arg(long)]
    follow: bool,
    /// Stop the deployment that is under way, and put everything back
    #[arg(long)]
    cancel: bool,
    /// Allow deployments again after one got stuck and you have put things right
    #[arg(long)]
    unfreeze: bool,
}

impl Deploy {
    pub(super) fn request(self) -> Result<Request, CommandError> {
        let action = match self.action {
            Action { retry: true, .. } => DeployAction::Retry,
            Action { follow: true, .. } => DeployAction::Follow,
            Action { cancel: true, .. } => DeployAction::Cancel,
            Action { unfreeze: true, .. } => DeployAction::Unfreeze,
            Action { reference, .. } => DeployAction::Start { reference },
        };
        Ok(Request::Deploy { target: self.on.get()?, action })
    }
}

/// Go back to an older release.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without RELEASE: to the newest good one older than what is live.\n\nThe old release becomes live through the same steps as a new one: boot, checks, switch. It gets a number of its own, and the branch then names its commit. Nothing is built, and no data is touched.\n\nExit status: 0 it is live, 1 it failed and what was live still is, 3 it was refused, 4 there is no such thing."
)]
pub struct Rollback {
    #[command(flatten)]
    on: OnRelease,
}

impl Rollback {
    pub(super) fn request(self) -> Result<Request, CommandError> {
        let (target, release) = self.on.get()?;
        Ok(Request::Rollback { target, release })
    }
}

/// Print the steps that a push would take, and take none.
#[derive(Debug, clap::Args)]
pub struct Plan {
    #[command(flatten)]
    on: On,
    /// What would be deployed: a branch, a tag or a commit that was pushed
    #[arg(value_name = "REF")]
    reference: Option<String>,
    /// Only these phases, with commas between them, such as build,deploy
    #[arg(long, value_name = "PHASE", value_delimiter = ',')]
    only: Vec<Phase>,
}

impl Plan {
    pub(super) fn request(self) -> Result<Request, CommandError> {
        Ok(Request::Plan { target: self.on.get()?, reference: self.reference, only: self.only })
    }
}
