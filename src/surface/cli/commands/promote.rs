//! The command `larder promote`, which deploys a release on another server or environment.

use super::{
    super::command::{Command, Shown},
    arguments::{OnRelease, override_reason},
};
use crate::control::{self, CommandError, Published};

/// Deploy a release that was cooked here to another server or environment
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without RELEASE, the live release is deployed. PROJECT alone means the project's environment of mode cooking.\n\nThis server only sends the request: the other server or environment pulls the release, checks it, and decides by its own policy. The output and the exit status of that deployment are passed on.\n\nIf the remote is a shared location, the release is published there with its health record. A release that was published before is published again.\n\nExamples:\n  larder promote shop --to production\n  larder promote shop v42 --to production"
)]
pub struct PromoteArgs {
    #[command(flatten)]
    on: OnRelease,
    /// Remote of the project (`larder remote list`), or one of its environments on this server
    #[arg(long, value_name = "REMOTE")]
    to: String,
    /// Go live although the promotion policy refuses the release; the reason is recorded
    #[arg(long = "override", value_name = "WHY")]
    overriding: Option<String>,
}

impl Command for PromoteArgs {
    type Request = control::Promote;

    fn request(self) -> Result<control::Promote, CommandError> {
        let (target, release) = self.on.target_and_release()?;
        Ok(control::Promote { target, release, to: self.to, overriding: override_reason(self.overriding)? })
    }

    fn show(view: &Published) -> Shown {
        let Published { project, number, commit, remote } = view;
        let short = commit.short();
        Shown::Done(format!(
            "{number} ({short}) is in {remote} now, with its health record\nto deploy the release on another server, run on that server: larder pull {project} {number}"
        ))
    }
}
