//! The command `larder backup prune`, and the lines about scheduled restore points that other commands show.

use std::fmt::Write as _;

use super::{
    super::{
        command::{Command, Shown},
        text::{self, count, moment, size},
    },
    arguments::On,
};
use crate::{
    control::{BackupPrune, BackupSummary, CommandError, PointView, PruneView},
    model::sanitise_line,
    pipeline::RunResult,
};

/// Remove the restore points that no rule of backup.keep selects
#[derive(Debug, clap::Args)]
#[command(
    after_help = "larder does the same after each scheduled restore point. `larder backup list` shows the rules that keep each restore point. Restore points that were not read back, or that are damaged, are not removed."
)]
pub struct BackupPruneArgs {
    #[command(flatten)]
    on: On,
    /// Only list the restore points that would be removed
    #[arg(long)]
    dry_run: bool,
}

impl Command for BackupPruneArgs {
    type Request = BackupPrune;

    fn request(self) -> Result<BackupPrune, CommandError> {
        Ok(BackupPrune { target: self.on.target()?, dry_run: self.dry_run })
    }

    fn show(view: &PruneView) -> Shown {
        let row = |point: &PointView| {
            vec![point.id.clone(), point.taken.map(moment).unwrap_or_default(), point.reason.clone().unwrap_or_default()]
        };
        let mut text = text::table(&["RESTORE POINT", "TAKEN (UTC)", "REASON"], view.removed.iter().map(row).collect());
        let would = if view.dry_run { "would be removed" } else { "removed" };
        let removed = count(view.removed.len() as u64, "restore point");
        let _ = writeln!(text, "\n{}: {removed} {would} ({}), {} kept", view.environment, size(view.freed), view.kept);
        Shown::Page(text)
    }
}

/// Renders the newest verified restore point and the next run, for an overview.
pub(super) fn brief(summary: &BackupSummary) -> String {
    let newest = match &summary.age {
        Some(seconds) => format!("{} old", age(*seconds)),
        None => String::from("none"),
    };
    match summary.next {
        Some(next) => format!("{newest}, next {} UTC", next.strftime("%m-%d %H:%M")),
        None => newest,
    }
}

/// Renders the failures of scheduled restore points; empty if there are none since the last good restore point.
pub(super) fn failures(summary: &BackupSummary) -> Vec<String> {
    let mut all: Vec<String> = summary.problem.iter().map(|why| sanitise_line(why)).collect();
    match summary.damaged.len() as u64 {
        0 => {}
        1 => all.push(String::from("1 restore point is damaged")),
        number => all.push(format!("{number} restore points are damaged")),
    }
    let is_failed = summary.last_run.as_ref().is_some_and(|run| matches!(run.result, RunResult::Failed(_)));
    if let Some(failure) = summary.last_failure.as_ref().filter(|_| is_failed) {
        all.push(format!("the scheduled restore point of {} UTC failed: {}", moment(failure.at), sanitise_line(&failure.why)));
    }
    all
}

/// Renders the schedule as lines of a page.
pub(super) fn lines(summary: &BackupSummary) -> String {
    let mut text = String::new();
    if let Some(point) = &summary.newest {
        let (taken, verified) = (moment(point.taken), moment(point.verified));
        let _ = writeln!(text, "newest verified: {} (taken {taken} UTC, read back {verified} UTC)", point.id);
    }
    match (&summary.schedule, summary.next) {
        (Some(schedule), Some(next)) => {
            let _ = writeln!(text, "next run: {} UTC ({schedule})", moment(next));
        }
        _ => text.push_str("next run: none\n"),
    }
    if let Some(run) = &summary.last_run {
        let result = match &run.result {
            RunResult::Verified(point) => format!("{point} is ok"),
            RunResult::Skipped(why) => format!("skipped: {}", sanitise_line(why)),
            RunResult::Failed(why) => format!("failed: {}", sanitise_line(why)),
        };
        let missed = match run.missed {
            0 => String::new(),
            missed => format!(", for {}", count(missed, "missed run")),
        };
        let _ = writeln!(text, "last run: {} UTC{missed}: {result}", moment(run.ended));
    }
    for failure in failures(summary) {
        let _ = writeln!(text, "failure: {failure}");
    }
    text
}

/// Renders an age in its largest unit.
fn age(seconds: i64) -> String {
    match seconds {
        ..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}
