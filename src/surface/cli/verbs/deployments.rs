//! `deploy` and `plan`.

use super::{On, OnRelease};
use crate::{
    control::{CommandError, DeployAction, Kind, Request},
    model::{Phase, RemoteName},
};

/// Deploy without a push, follow a deployment, or stop it.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without an option, the live commit is deployed again.\n\nA deployment goes on when you stop looking (Ctrl-C); only --cancel ends it.\n\nWith --only, nothing goes live: `larder deploy shop --ref topic --only build` shows whether that branch builds here, from the same clean tree and in the same sandbox.\n\nExit status: 0 the deployment is live (with --cancel: it was put back; with --only: all went well), 1 it failed, 3 it was refused, 4 there is no such thing."
)]
pub struct Deploy {
    #[command(flatten)]
    on: On,
    #[command(flatten)]
    action: Action,
    /// Only try these phases, up to bundle, with commas between them; then put everything back. What they need comes along
    #[arg(long, value_name = "PHASE", value_delimiter = ',', conflicts_with_all = ["retry", "follow", "cancel", "unfreeze"])]
    only: Vec<Phase>,
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
    /// Stop the deployment that is under way, and put everything back; one that waits is next
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
            Action { reference, .. } => DeployAction::Start { reference, trial: self.only },
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

/// Bring a deliverable from staging and make it live.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without RELEASE: the newest. PROJECT alone means its environment of mode final.\n\nThe deliverable is looked for in the project's cooking environments on this server and in the remotes (`larder remote list`). What is missing of it is transferred, its signature and every digest are checked, and then it goes live through the same steps as everything else. Nothing is built.\n\nExit status: 0 it is live, 1 it failed, or its signature, its digests or the promotion policy said no, and what was live still is, 3 it was refused before that, 4 there is no such thing."
)]
pub struct Pull {
    #[command(flatten)]
    on: OnRelease,
    /// Look in this remote only
    #[arg(long, value_name = "REMOTE")]
    from: Option<RemoteName>,
    /// Go live although the promotion policy says no, for this reason; it is recorded
    #[arg(long = "override", value_name = "WHY")]
    overriding: Option<String>,
}

impl Pull {
    pub(super) fn request(self) -> Result<Request, CommandError> {
        let (target, release) = self.on.get()?;
        Ok(Request::Pull { target, release, from: self.from, overriding: reason(self.overriding)? })
    }
}

/// Have another server or environment serve what was cooked here.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without RELEASE: the one that is live here. PROJECT alone means its environment of mode cooking.\n\nThis server only asks: the other one pulls the release, checks it, and decides by its own policy. Its output and its exit status are passed on.\n\nTo a shared place the release is published, again where it is there already: with how it has gone until now."
)]
pub struct Promote {
    #[command(flatten)]
    on: OnRelease,
    /// A remote of the project (`larder remote list`), or one of its environments on this server
    #[arg(long, value_name = "REMOTE")]
    to: String,
    /// Go live although the promotion policy says no, for this reason; it is recorded
    #[arg(long = "override", value_name = "WHY")]
    overriding: Option<String>,
}

impl Promote {
    pub(super) fn request(self) -> Result<Request, CommandError> {
        let (target, release) = self.on.get()?;
        Ok(Request::Promote { target, release, to: self.to, overriding: reason(self.overriding)? })
    }
}

/// A reason is for people who read it later, in one line.
fn reason(given: Option<String>) -> Result<Option<String>, CommandError> {
    let wrong =
        |why: &str| CommandError::new(Kind::Usage, format!("--override {why}")).hint("say in a few words why it cannot wait");
    match given {
        None => Ok(None),
        Some(text) if text.trim().len() < 4 => Err(wrong("needs a reason")),
        Some(text) if text.len() > 300 || text.chars().any(char::is_control) => Err(wrong("takes one line of at most 300 bytes")),
        Some(text) => Ok(Some(text.trim().to_owned())),
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
