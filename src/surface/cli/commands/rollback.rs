//! The command `larder rollback`, which deploys an older release again, with or without the data of a restore point.

use std::fmt::Write as _;

use super::{
    super::{
        command::{Command, Shown},
        text::{moment, span},
    },
    arguments::OnRelease,
    backup::{lost, state},
};
use crate::control::{self, CommandError, RollbackData, RollbackPreview};

/// Make an older release live again
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without RELEASE, the release that was live before the live one is deployed. Another rollback then goes back one release further.\n\nThe old release goes live through the same steps as a new release: release command, boot, checks, switch. The rollback gets a new release number, and the branch then names the commit of the old release. Nothing is built.\n\nWithout --with-data, the files in data/ are not restored. With --with-data, the data of a restore point that was taken while the release was live comes back together with the code, as one act: data that was written since is no longer live, but is in a fresh restore point. The command shows what would be lost, and asks for the name of the project on a terminal. If the old release does not become healthy with the old data, neither code nor data changes.\n\nExit status: 0 the release is live (with --dry-run: the consequences were shown), 1 the rollback failed and the live release stays, 3 the rollback was refused or not confirmed, 4 the project, environment, release or restore point does not exist.\n\nExamples:\n  larder rollback shop\n  larder rollback shop v41\n  larder rollback shop v41 --dry-run\n  larder rollback shop v41 --with-data\n  larder rollback shop v41 --with-data --point 4f1c --confirm shop"
)]
pub struct RollbackArgs {
    #[command(flatten)]
    on: OnRelease,
    /// Also bring back the data of the time when the release was live
    #[arg(long)]
    with_data: bool,
    /// Restore point with the data [default: the newest restore point that was taken while the release was live]
    #[arg(long, value_name = "POINT", requires = "with_data")]
    point: Option<String>,
    /// Show the consequences, and change nothing
    #[arg(long, conflicts_with = "confirm")]
    dry_run: bool,
    /// Name of the project, as confirmation without a terminal
    #[arg(long, value_name = "PROJECT", requires = "with_data")]
    confirm: Option<String>,
}

impl RollbackArgs {
    /// Returns true if the command may ask for a confirmation on a terminal.
    pub(super) fn may_ask(&self) -> bool {
        self.with_data && !self.dry_run && self.confirm.is_none()
    }
}

impl Command for RollbackArgs {
    type Request = control::Rollback;

    fn request(self) -> Result<control::Rollback, CommandError> {
        let (target, release) = self.on.target_and_release()?;
        let data = self.with_data.then_some(RollbackData { point: self.point, confirm: self.confirm });
        Ok(control::Rollback { target, release, data, dry_run: self.dry_run })
    }

    fn show(preview: &RollbackPreview) -> Shown {
        let RollbackPreview { environment, live, release, commit, .. } = preview;
        let mut text = format!("{environment} would go back from {live} to {release} ({})\n", commit.short());
        if !preview.upgrades.is_empty() {
            text.push_str("upgrades ran since, and a rollback does not revert them:\n");
            for upgrade in &preview.upgrades {
                let end = if upgrade.went_live { "" } else { ", in a failed deployment" };
                let (at, command) = (moment(upgrade.at), &upgrade.command);
                let _ = writeln!(text, "  {} at {at} UTC{end}: {command}", upgrade.number);
            }
        }
        let Some(data) = &preview.data else {
            text.push_str("the data stays as it is\n");
            return Shown::Page(text);
        };
        let point = &data.point;
        let taken = point.taken.map(|at| format!("{} UTC, ", moment(at))).unwrap_or_default();
        let _ = writeln!(text, "the data of restore point {} would come back ({taken}{} old)", point.id, span(data.age_seconds));
        let reason = point.reason.as_ref().map(|reason| format!("; reason: {reason}")).unwrap_or_default();
        let _ = writeln!(text, "  state: {}{reason}", state(point));
        if point.number != Some(*release) {
            let of = point.number.map_or_else(|| String::from("no release"), |number| number.to_string());
            let _ = writeln!(text, "  {of} was live when this restore point was taken (expected {release})");
        }
        text.push_str("these changes since then would no longer be live (a fresh restore point keeps them):\n");
        lost(&mut text, &data.would_lose);
        if !preview.dry_run {
            let project = environment.split('/').next().unwrap_or(environment);
            let _ = writeln!(text, "nothing was changed so far; without a terminal, confirm with --confirm {project}");
        }
        Shown::Page(text)
    }

    fn exit_code(preview: &RollbackPreview) -> u8 {
        if preview.dry_run { 0 } else { 3 }
    }
}
