//! The command `larder deploy`, which starts, follows or stops a deployment without a push, or unfreezes an environment.

use super::{
    super::{
        command::{Command, Shown},
        text,
    },
    arguments::On,
};
use crate::{
    control::{self, CommandError, DeployAction, DeployView, ErrorKind},
    model::{Outcome, Phase},
};

/// Deploy without a push, follow a deployment, or stop it
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without an option, the live commit is deployed again.\n\nA deployment continues when you stop following it (Ctrl-C); only --cancel stops the deployment.\n\nWith --only, nothing goes live: `larder deploy shop --ref topic --only build` shows whether the branch topic builds here, from a clean tree and in the build sandbox.\n\nExit status: 0 the deployment is live (with --cancel: it was reverted; with --only: all phases succeeded), 1 the deployment failed, 3 the deployment was refused, 4 the project, environment or commit does not exist."
)]
pub struct DeployArgs {
    #[command(flatten)]
    on: On,
    #[command(flatten)]
    action: Action,
    /// Run only these phases (separated by commas; the last possible phase is bundle) and the phases that they need, then revert all changes
    #[arg(long, value_name = "PHASE", value_delimiter = ',', conflicts_with_all = ["retry", "follow", "cancel", "unfreeze"])]
    only: Vec<Phase>,
}

#[derive(Debug, clap::Args)]
#[group(multiple = false)]
struct Action {
    /// Deploy this branch, tag or commit, which must have been pushed; the deploy branch then names the deployed commit
    #[arg(long = "ref", value_name = "REF")]
    reference: Option<String>,
    /// Deploy the commit of the last deployment again, if that deployment failed
    #[arg(long)]
    retry: bool,
    /// Show the deployment in flight, or the last deployment, from its beginning
    #[arg(long)]
    follow: bool,
    /// Stop the deployment in flight and revert its changes; a queued deployment then starts
    #[arg(long)]
    cancel: bool,
    /// Allow deployments again after you have repaired the cause of a stuck deployment
    #[arg(long)]
    unfreeze: bool,
}

impl Command for DeployArgs {
    type Request = control::Deploy;

    fn request(self) -> Result<control::Deploy, CommandError> {
        let action = match self.action {
            Action { retry: true, .. } => DeployAction::Retry,
            Action { follow: true, .. } => DeployAction::Follow,
            Action { cancel: true, .. } => DeployAction::Cancel,
            Action { unfreeze: true, .. } => DeployAction::Unfreeze,
            Action { reference, .. } => DeployAction::Start { reference, dry_run: self.only },
        };
        Ok(control::Deploy { target: self.on.target()?, action })
    }

    fn show(view: &DeployView) -> Shown {
        match view {
            DeployView::Past { deployment, transcript } => {
                let ended = deployment.ended.map(|ended| format!("(this deployment ended at {} UTC)\n", text::moment(ended)));
                Shown::Page(format!("{transcript}{}", ended.unwrap_or_default()))
            }
            DeployView::Unfrozen { environment } => Shown::Done(format!("{environment} can be deployed again")),
        }
    }

    fn exit_code(view: &DeployView) -> u8 {
        match view {
            DeployView::Past { deployment, .. } if deployment.went_live() || deployment.outcome == Some(Outcome::Tried) => 0,
            DeployView::Past { .. } => ErrorKind::Deployment.exit_code(),
            DeployView::Unfrozen { .. } => 0,
        }
    }
}
