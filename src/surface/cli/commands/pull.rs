//! The command `larder pull`, which deploys a release that another environment or server cooked.

use super::{
    super::command::{Command, Shown},
    arguments::{OnRelease, override_reason},
};
use crate::{
    control::{self, CommandError, PullView},
    model::RemoteName,
};

/// Deploy a release that another environment or server cooked
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without RELEASE, the newest release is deployed. PROJECT alone means the project's environment of mode final.\n\nlarder searches for the deliverable in the project's cooking environments on this server and in the remotes (`larder remote list`). Only missing data is transferred, the signature and every digest are checked, and then the release goes live through the same steps as any other release. Nothing is built.\n\nExit status: 0 the release is live; 1 the deployment failed, or refused the release because of its signature, its digests or the promotion policy, and the live release stays; 3 no deployment was started; 4 the project, environment or release does not exist.\n\nExamples:\n  larder pull shop\n  larder pull shop v42 --from staging"
)]
pub struct PullArgs {
    #[command(flatten)]
    on: OnRelease,
    /// Look in this remote only
    #[arg(long, value_name = "REMOTE")]
    from: Option<RemoteName>,
    /// Go live although the promotion policy refuses the release; the reason is recorded
    #[arg(long = "override", value_name = "WHY")]
    overriding: Option<String>,
}

impl Command for PullArgs {
    type Request = control::Pull;

    fn request(self) -> Result<control::Pull, CommandError> {
        let (target, release) = self.on.target_and_release()?;
        Ok(control::Pull { target, release, from: self.from, overriding: override_reason(self.overriding)? })
    }

    fn show(view: &PullView) -> Shown {
        Shown::Done(format!("{} is live already, as {}", view.release, view.number))
    }
}
