//! The command `larder rollback`, which deploys an older release again.

use super::{
    super::command::{Command, Shown},
    arguments::OnRelease,
};
use crate::control::{self, CommandError};

/// Make an older release live again
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without RELEASE, the release that was live before the live one is deployed. Another rollback then goes back one release further.\n\nThe old release goes live through the same steps as a new one: boot, checks, switch. The rollback gets a new release number, and the branch then names the commit of the old release. Nothing is built, and no data is touched.\n\nExit status: 0 the release is live, 1 the rollback failed and the live release stays, 3 the rollback was refused, 4 the project, environment or release does not exist.\n\nExamples:\n  larder rollback shop\n  larder rollback shop v41"
)]
pub struct RollbackArgs {
    #[command(flatten)]
    on: OnRelease,
}

impl Command for RollbackArgs {
    type Request = control::Rollback;

    fn request(self) -> Result<control::Rollback, CommandError> {
        let (target, release) = self.on.target_and_release()?;
        Ok(control::Rollback { target, release })
    }

    // The answer is always the transcript of the deployment.
    fn show((): &()) -> Shown {
        Shown::Page(String::new())
    }
}
