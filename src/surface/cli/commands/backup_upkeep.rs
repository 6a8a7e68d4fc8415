//! The commands `larder backup prune` and `larder backup drill`, and the lines about scheduled restore points that other commands show.

use std::fmt::Write as _;

use super::{
    super::{
        command::{Command, Shown},
        text::{self, count, moment, size},
    },
    arguments::{On, OnTarget},
    backup_offsite,
};
use crate::{
    control::{BackupDrill, BackupPrune, BackupSummary, CommandError, DrillView, PointView, PruneView},
    model::sanitise_line,
    pipeline::{DrillRecord, RunResult},
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

/// Test a restore: restore files and databases into a scratch place, start the release there and check it
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A drill compares every restored file, loads every dump into a scratch database, starts the live release on both with a port of its own, waits for its health check, requests the pages of `smoke:`, and runs the script .larder/drill of the project. Then everything is removed. The output names what the drill did not prove. The live data and databases are not changed, and the application keeps serving.\n\nExit status: 0 the restore works, 1 it failed, 3 the drill was refused or interrupted, 4 the restore point does not exist."
)]
pub struct BackupDrillArgs {
    #[command(flatten)]
    on: OnTarget,
    /// Restore point
    #[arg(value_name = "POINT", default_value = "latest")]
    point: String,
}

impl Command for BackupDrillArgs {
    type Request = BackupDrill;

    fn request(self) -> Result<BackupDrill, CommandError> {
        Ok(BackupDrill { target: self.on.target, point: self.point })
    }

    fn show(view: &DrillView) -> Shown {
        let mut text = format!("{}: {}\n", view.environment, drill(&view.drill));
        unproven(&mut text, &view.drill);
        Shown::Done(text)
    }

    fn exit_code(view: &DrillView) -> u8 {
        u8::from(view.drill.failure.is_some())
    }
}

/// Adds the lines about everything that a drill did not prove.
fn unproven(text: &mut String, record: &DrillRecord) {
    for what in &record.unproven {
        let _ = writeln!(text, "not proved: {}", sanitise_line(what));
    }
}

/// Renders a drill, without its time.
pub(super) fn drill(record: &DrillRecord) -> String {
    let seconds = record.millis as f64 / 1000.0;
    match &record.failure {
        None => {
            let files = format!("{} ({}) restored and compared", count(record.files, "file"), size(record.bytes));
            let databases: Vec<_> = record.databases.iter().map(|one| format!("{} ({})", one.name, one.engine.title())).collect();
            let databases = match databases.is_empty() {
                true => String::new(),
                false => format!(", databases loaded: {}", databases.join(", ")),
            };
            let release = record.release.map(|number| format!(", {number} started")).unwrap_or_default();
            let checks = match record.checks.is_empty() {
                true => String::new(),
                false => format!(", checks passed: {}", record.checks.join(", ")),
            };
            format!("the drill of {} succeeded: {files}{databases}{release}{checks}, in {seconds:.1} s", record.point)
        }
        Some(why) => format!("the drill of {} failed after {seconds:.1} s: {}", record.point, sanitise_line(why)),
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
    if let Some(failed) = summary.drill.as_ref().filter(|record| record.failure.is_some()) {
        all.push(drill(failed));
    }
    let is_failed = summary.last_run.as_ref().is_some_and(|run| matches!(run.result, RunResult::Failed(_)));
    if let Some(failure) = summary.last_failure.as_ref().filter(|_| is_failed) {
        all.push(format!("the scheduled restore point of {} UTC failed: {}", moment(failure.at), sanitise_line(&failure.why)));
    }
    all.extend(summary.offsite.iter().filter_map(backup_offsite::failure));
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
    if let Some(record) = &summary.drill {
        let _ = writeln!(text, "last drill: {} UTC: {}", moment(record.begun), drill(record));
        unproven(&mut text, record);
    }
    for store in &summary.offsite {
        let (checked, newest) = (store.checked.map(moment).unwrap_or_else(|| String::from("never")), store.newest.as_deref());
        let newest = newest.map(|id| format!(", newest {id}")).unwrap_or_default();
        let (url, copies, read) = (&store.url, store.copies, store.verified);
        let _ = writeln!(text, "off-site {url}: {copies} copied, {read} read back{newest}, checked {checked} UTC");
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
