//! The commands `larder freeze`, `larder protect` and `larder approve`, which protect environments against deployments.

use super::{
    super::command::{Command, Shown},
    arguments::override_reason,
};
use crate::{
    control::{Approve, Approved, CommandError, DeployWindow, ErrorKind, Freeze, FreezeAction, Protect, ProtectionView},
    model::{CommitId, Target},
};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "A rollback is always permitted. Without options, the command shows the release freeze. Times are in the time zone of the server (`backup: {time_zone}` in the server file).\n\nA release freeze is set by a person. An environment is frozen if its last deployment got stuck, and `larder deploy --unfreeze` releases the environment.\n\nExamples:\n  larder freeze shop --until \"Mon 8:00\" --why \"stocktaking\"\n  larder freeze shop/production --why \"product launch\"\n  larder freeze shop --end"
)]
/// Refuse deployments until a time, with a reason that every pusher sees
pub struct FreezeArgs {
    /// Project, or PROJECT/ENVIRONMENT
    #[arg(value_name = "PROJECT")]
    target: Target,
    /// End of the release freeze: "Mon 8:00", 18:00, 12h, 3d, 2026-12-24 or 2026-12-24T18:00:00Z
    #[arg(long, value_name = "WHEN", requires = "why")]
    until: Option<String>,
    /// Reason, for every pusher
    #[arg(long, value_name = "TEXT")]
    why: Option<String>,
    /// End the release freeze
    #[arg(long, conflicts_with_all = ["until", "why"])]
    end: bool,
}

impl Command for FreezeArgs {
    type Request = Freeze;

    fn request(self) -> Result<Freeze, CommandError> {
        let action = match (self.end, self.why) {
            (true, _) => FreezeAction::End,
            (false, None) => FreezeAction::Show,
            (false, Some(why)) => FreezeAction::Set { until: self.until, why: reason(why, "--why")? },
        };
        Ok(Freeze { target: self.target, action })
    }

    fn show(view: &ProtectionView) -> Shown {
        Shown::Done(match &view.protection.freeze {
            None => format!("{} has no release freeze", view.on),
            Some(freeze) => {
                let end = view.until.as_ref().map(|until| format!(" until {until}")).unwrap_or_default();
                format!("{} has a release freeze{end}: {} ({})", view.on, freeze.why, freeze.by)
            }
        })
    }
}

/// Checks a reason, which is recorded as one line.
fn reason(text: String, option: &str) -> Result<String, CommandError> {
    let wrong = |why: &str| CommandError::new(ErrorKind::Usage, format!("{option} {why}"));
    match text.trim() {
        "" => Err(wrong("needs a reason")),
        short if short.len() > 300 || short.chars().any(char::is_control) => Err(wrong("takes one line of at most 300 bytes")),
        short => Ok(short.to_owned()),
    }
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without options, the command shows the protection. Times are in the time zone of the server (`backup: {time_zone}` in the server file).\n\nExamples:\n  larder protect shop/production --approval on\n  larder protect shop/production --window \"Mon-Thu 09:00-16:00\" --window \"Fri 09:00-12:00\"\n  larder protect shop/production --approval off --window none"
)]
/// Set the approvals and the times that deployments need
pub struct ProtectArgs {
    /// Project, or PROJECT/ENVIRONMENT
    #[arg(value_name = "PROJECT")]
    target: Target,
    /// Refuse a deployment until a second person has approved its commit
    #[arg(long, value_name = "on|off", value_parser = on_or_off)]
    approval: Option<bool>,
    /// Days and times at which deployments may begin, or `none`; may be repeated
    #[arg(long, value_name = "WINDOW")]
    window: Vec<String>,
}

fn on_or_off(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(String::from("expected on or off")),
    }
}

impl Command for ProtectArgs {
    type Request = Protect;

    fn request(self) -> Result<Protect, CommandError> {
        let windows = match self.window.as_slice() {
            [] => None,
            [none] if none == "none" => Some(Vec::new()),
            several => {
                let parsed: Result<Vec<DeployWindow>, _> = several.iter().map(|text| text.parse()).collect();
                Some(parsed.map_err(|error| CommandError::new(ErrorKind::Usage, error.to_string()))?)
            }
        };
        Ok(Protect { target: self.target, approval: self.approval, windows })
    }

    fn show(view: &ProtectionView) -> Shown {
        let ProtectionView { on, protection, .. } = view;
        let approval = if protection.approval { "need the approval of a second person" } else { "need no approval" };
        let windows: Vec<_> = protection.windows.iter().map(ToString::to_string).collect();
        let times = if windows.is_empty() { String::from("at any time") } else { format!("at {}", windows.join(", ")) };
        Shown::Done(format!("deployments to {on} {approval}, and may begin {times}"))
    }
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "An approval counts for one week. The person who deploys the commit cannot approve it.\n\nWith --override, an administrator of the environment permits the commit for one day, in spite of approvals, deploy windows and release freezes. The override is recorded in the audit log.\n\nExamples:\n  larder approve shop/production 3f9a1c7be1d2a94c5de1f0f4be3c2a9d8e7f6a5b\n  larder approve shop/production 3f9a1c7be1d2a94c5de1f0f4be3c2a9d8e7f6a5b --override \"fix for the payment page\""
)]
/// Approve the deployment of another person's commit
pub struct ApproveArgs {
    /// Project, or PROJECT/ENVIRONMENT
    #[arg(value_name = "PROJECT")]
    target: Target,
    /// Complete commit id, as the refusal of the deployment shows it
    commit: CommitId,
    /// Permit the commit in spite of every protection, for this reason
    #[arg(long = "override", value_name = "WHY")]
    overriding: Option<String>,
}

impl Command for ApproveArgs {
    type Request = Approve;

    fn request(self) -> Result<Approve, CommandError> {
        Ok(Approve { target: self.target, commit: self.commit, overriding: override_reason(self.overriding)? })
    }

    fn show(view: &Approved) -> Shown {
        let Approved { environment, approval } = view;
        let verb = if approval.overriding.is_some() { "permitted in spite of every protection" } else { "approved" };
        Shown::Done(format!("{} is {verb} for {environment} by {}", approval.commit.short(), approval.by))
    }
}
