//! The command `larder backup`.

use std::fmt::Write as _;

use clap::Subcommand;

use super::{
    super::{
        command::{Asked, Asking, Command, Shown},
        text::{self, MAX_ROWS, count, moment, size},
    },
    arguments::{On, OnTarget},
    backup_offsite::{self, BackupCopyArgs, BackupImportArgs},
    backup_upkeep::{self, BackupDrillArgs, BackupPruneArgs},
};
use crate::{
    backup::DataDiff,
    control::{
        BackupDiff, BackupExport, BackupList, BackupRemove, BackupRemoved, BackupRestore, BackupShow, BackupTake, BackupVerify,
        CommandError, ErrorKind, ListedPoint, LiveRestored, PointList, PointView, RestoreView, RestoreWay, VerifyView,
    },
    model::sanitise_line,
    pipeline::RestoreEnd,
};

/// The maximum number of paths that a preview shows.
const MAX_PREVIEW: usize = 10;

/// Take, check and restore restore points of the files in data/ and of databases
#[derive(Debug, Subcommand)]
#[command(
    after_help = "A restore point holds the files of `data/` and dumps of the databases that larder recognises or that `databases:` in larder.yml names, as they were at one moment. Commands name a restore point by its id, by four or more characters at the beginning or end of its id, or by `latest`."
)]
pub enum BackupVerb {
    Take(BackupTakeArgs),
    List(BackupListArgs),
    Show(BackupShowArgs),
    Verify(BackupVerifyArgs),
    Restore(BackupRestoreArgs),
    Diff(BackupDiffArgs),
    Export(BackupExportArgs),
    Remove(BackupRemoveArgs),
    Prune(BackupPruneArgs),
    Drill(BackupDrillArgs),
    Copy(BackupCopyArgs),
    Import(BackupImportArgs),
}

impl BackupVerb {
    /// Returns the file on the caller's machine to which the command writes.
    pub(super) fn output(&self) -> Option<&std::path::Path> {
        match self {
            BackupVerb::Export(command) => command.output(),
            _ => None,
        }
    }

    /// Returns true if the command may ask for a confirmation on a terminal.
    pub(super) fn may_ask(&self) -> bool {
        matches!(self, BackupVerb::Restore(command) if command.into.is_none() && !command.yes)
    }

    pub(in crate::surface::cli) async fn ask(self, asking: Asking<'_>) -> Result<Asked, CommandError> {
        match self {
            BackupVerb::Take(command) => asking.ask(command).await,
            BackupVerb::List(command) => asking.ask(command).await,
            BackupVerb::Show(command) => asking.ask(command).await,
            BackupVerb::Verify(command) => asking.ask(command).await,
            BackupVerb::Restore(command) => asking.ask(command).await,
            BackupVerb::Diff(command) => asking.ask(command).await,
            BackupVerb::Export(command) => asking.ask(command).await,
            BackupVerb::Remove(command) => asking.ask(command).await,
            BackupVerb::Prune(command) => asking.ask(command).await,
            BackupVerb::Drill(command) => asking.ask(command).await,
            BackupVerb::Copy(command) => asking.ask(command).await,
            BackupVerb::Import(command) => asking.ask(command).await,
        }
    }
}

/// Take a restore point of files and databases; the application keeps serving
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Files that did not change since the newest restore point are shared with it and use no further space.\n\nExamples:\n  larder backup take shop\n  larder backup take shop --reason 'before the import'"
)]
pub struct BackupTakeArgs {
    #[command(flatten)]
    on: On,
    /// Reason, shown in the list
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

impl Command for BackupTakeArgs {
    type Request = BackupTake;

    fn request(self) -> Result<BackupTake, CommandError> {
        Ok(BackupTake { target: self.on.target()?, reason: self.reason })
    }

    fn show(view: &PointView) -> Shown {
        let counts = &view.counts;
        let mut text = format!(
            "{} has the new restore point {}: {} ({}), {} shared with the previous restore point, {} copied\n",
            view.environment,
            view.id,
            count(counts.files, "file"),
            size(counts.bytes),
            counts.shared_files,
            size(counts.copied_bytes),
        );
        left_out(&mut text, view);
        let _ = writeln!(text, "to verify the restore point: larder backup verify {} {}", view.environment, tail(&view.id));
        Shown::Done(text)
    }
}

/// Returns the last 12 characters of an id, a short name of the restore point.
fn tail(id: &str) -> &str {
    id.get(id.len().saturating_sub(12)..).unwrap_or(id)
}

fn left_out(text: &mut String, view: &PointView) {
    if view.counts.torn > 0 {
        let torn = count(view.counts.torn, "file");
        let _ = writeln!(text, "{torn} changed while being read and may be inconsistent");
    }
    for (path, why) in view.left_out.iter().take(MAX_PREVIEW) {
        let _ = writeln!(text, "not in the restore point: {} ({why})", sanitise_line(path));
    }
    let rest = view.counts.skipped.saturating_sub(view.left_out.len().min(MAX_PREVIEW) as u64);
    if rest > 0 {
        let _ = writeln!(text, "... and {rest} more");
    }
}

/// List the restore points of an environment, newest first
#[derive(Debug, clap::Args)]
pub struct BackupListArgs {
    #[command(flatten)]
    on: On,
}

impl Command for BackupListArgs {
    type Request = BackupList;

    fn request(self) -> Result<BackupList, CommandError> {
        Ok(BackupList { target: self.on.target()? })
    }

    fn show(list: &PointList) -> Shown {
        let has_stores = !list.schedule.offsite.is_empty();
        let line = |listed: &ListedPoint| {
            let point = &listed.point;
            let kept = if listed.kept { listed.kept_by.join(", ") } else { String::from("no rule") };
            let offsite = has_stores.then(|| backup_offsite::copies(&listed.offsite));
            let mut row = vec![
                point.id.clone(),
                point.number.map(|number| number.to_string()).unwrap_or_default(),
                point.counts.files.to_string(),
                point.databases.len().to_string(),
                size(point.counts.bytes),
                size(point.counts.unique),
                state(point),
            ];
            row.extend(offsite);
            row.extend([kept, point.reason.clone().unwrap_or_default()]);
            row
        };
        let mut header = vec!["RESTORE POINT", "RELEASE", "FILES", "DATABASES", "BYTES", "OWN", "STATE"];
        header.extend(has_stores.then_some("OFF-SITE"));
        header.extend(["KEPT BY", "REASON"]);
        let mut text = text::table(&header, list.points.iter().map(line).collect());
        if !list.points.is_empty() {
            let _ = writeln!(text, "\ndisk usage of {}: {}", count(list.points.len() as u64, "restore point"), size(list.bytes));
        }
        if let Some(last) = &list.last_restore {
            let end = match last.end {
                None => "is in flight",
                Some(RestoreEnd::Restored) => "succeeded",
                Some(RestoreEnd::Unchanged) => "did not happen; the data is unchanged",
            };
            let _ = writeln!(text, "last restore: {} at {} UTC by {}: {end}", tail(&last.point), moment(last.begun), last.by);
        }
        text.push_str(&backup_upkeep::lines(&list.schedule));
        Shown::Page(text)
    }
}

/// Renders the reliability of a restore point. A restore point is called ok only after a verification.
pub(super) fn state(point: &PointView) -> String {
    let verified = point.verified.map(|at| format!(" ({} UTC)", moment(at))).unwrap_or_default();
    let defect = point.defect.as_ref().map(|defect| format!(": {defect}")).unwrap_or_default();
    match point.state {
        "unverified" => String::from("not verified"),
        state => format!("{state}{verified}{defect}"),
    }
}

/// Show one restore point: time, release, files, sizes, result of the last verification
#[derive(Debug, clap::Args)]
pub struct BackupShowArgs {
    #[command(flatten)]
    on: OnTarget,
    /// Restore point
    #[arg(value_name = "POINT", default_value = "latest")]
    point: String,
}

impl Command for BackupShowArgs {
    type Request = BackupShow;

    fn request(self) -> Result<BackupShow, CommandError> {
        Ok(BackupShow { target: self.on.target, point: self.point })
    }

    fn show(view: &PointView) -> Shown {
        let counts = &view.counts;
        let mut text = format!("point     {} of {}\n", view.id, view.environment);
        let mut add = |name: &str, value: String| {
            let _ = writeln!(text, "{name:<9} {value}");
        };
        if let Some(taken) = view.taken {
            add("taken", format!("{} UTC", moment(taken)));
        }
        add("state", state(view));
        if let (Some(by), Some(reason)) = (&view.by, &view.reason) {
            add("by", format!("{by}: {reason}"));
        }
        if let (Some(number), Some(commit)) = (view.number, &view.commit) {
            add("release", format!("{number} ({})", commit.short()));
        }
        add("files", format!("{} of {} entries, {}", counts.files, counts.entries, size(counts.bytes)));
        for database in &view.databases {
            let (name, engine, version) = (&database.name, database.engine.title(), &database.versions.server);
            add("database", format!("{name}: {engine} {version}, {} in {}", size(database.bytes), sanitise_line(&database.path)));
        }
        for sessions in &view.sessions {
            add("sessions", format!("{sessions}; their later writes are not in the restore point"));
        }
        add("stored", format!("{}; {} copied when it was taken", size(counts.stored), size(counts.copied_bytes)));
        if let Some(drill) = &view.drill {
            add("drill", format!("{} UTC: {}", moment(drill.begun), backup_upkeep::drill(drill)));
            drill.unproven.iter().for_each(|what| add("", format!("not proved: {}", sanitise_line(what))));
        }
        left_out(&mut text, view);
        Shown::Page(text)
    }
}

/// Read a restore point back and compare every file with its digest
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit status: 0 the restore point is good, 1 it is damaged, 4 it does not exist.")]
pub struct BackupVerifyArgs {
    #[command(flatten)]
    on: OnTarget,
    /// Restore point
    #[arg(value_name = "POINT", default_value = "latest")]
    point: String,
}

impl Command for BackupVerifyArgs {
    type Request = BackupVerify;

    fn request(self) -> Result<BackupVerify, CommandError> {
        Ok(BackupVerify { target: self.on.target, point: self.point })
    }

    fn show(view: &VerifyView) -> Shown {
        let point = &view.point;
        let mut text = format!("{} of {}: {}\n", point.id, point.environment, state(point));
        if point.state == "ok" {
            let _ = writeln!(text, "{} ({}) were read back", count(point.counts.files, "file"), size(point.counts.bytes));
        }
        for damage in view.damages.iter().take(MAX_ROWS) {
            let _ = writeln!(text, "  {}", sanitise_line(damage));
        }
        Shown::Done(text)
    }

    fn exit_code(view: &VerifyView) -> u8 {
        u8::from(view.point.state != "ok")
    }
}

/// Restore a restore point: in place of the live data, or beside it
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without --yes or --into, the command shows what would be lost, and asks for the name of the project on a terminal. Without a terminal, the command changes nothing and exits with 3.\n\nAfter the confirmation, or with --yes, the processes are stopped, a fresh restore point of the live data is taken, the data is exchanged by one rename, and the processes are started again. Visitors wait, or see the maintenance page. Code and configuration stay as they are.\n\nWith --into, the files are written to archives/restored/NAME of the environment, and the live data is not changed.\n\nExamples:\n  larder backup restore shop latest\n  larder backup restore shop latest --yes\n  larder backup restore shop 4f1c --into monday"
)]
pub struct BackupRestoreArgs {
    #[command(flatten)]
    on: OnTarget,
    /// Restore point
    #[arg(value_name = "POINT")]
    point: String,
    /// Restore into a new directory with this name, beside the live data
    #[arg(long, value_name = "NAME", conflicts_with = "yes")]
    into: Option<String>,
    /// Replace the live data without a question
    #[arg(long)]
    yes: bool,
}

impl Command for BackupRestoreArgs {
    type Request = BackupRestore;

    fn request(self) -> Result<BackupRestore, CommandError> {
        let way = match self.into {
            Some(name) => RestoreWay::Beside(name),
            None => RestoreWay::Live { confirmed: self.yes },
        };
        Ok(BackupRestore { target: self.on.target, point: self.point, way })
    }

    fn show(view: &RestoreView) -> Shown {
        match view {
            RestoreView::Beside { point, path, files, bytes, .. } => {
                let files = count(*files, "file");
                Shown::Done(format!("{point} was restored into {path}: {files} ({})", size(*bytes)))
            }
            RestoreView::Live(restored) => Shown::Done(live(restored)),
            RestoreView::Preview(preview) => {
                let (title, id) = (&preview.environment, &preview.point.id);
                let mut text = format!("nothing was changed so far; a restore of {id} would lose these changes of {title}:\n");
                lost(&mut text, &preview.would_lose);
                let _ = writeln!(text, "without a terminal, restore with: larder backup restore {title} {} --yes", tail(id));
                Shown::Page(text)
            }
        }
    }

    fn exit_code(view: &RestoreView) -> u8 {
        match view {
            RestoreView::Preview(_) => 3,
            RestoreView::Live(restored) => u8::from(restored.not_running.is_some()),
            RestoreView::Beside { .. } => 0,
        }
    }
}

fn live(restored: &LiveRestored) -> String {
    let LiveRestored { environment, files, bytes, before, .. } = restored;
    let seconds = restored.interrupted_ms as f64 / 1000.0;
    let mut text = format!(
        "{environment} has the data of {} again: {} ({}), {seconds:.1} s without service\n\
         the replaced data is restore point {before}\n",
        restored.restored,
        count(*files, "file"),
        size(*bytes),
    );
    if restored.lost_owners > 0 {
        let entries = restored.lost_owners;
        let _ = writeln!(text, "entries of another user that belong to the application now: {entries}");
    }
    if let Some(why) = &restored.not_running {
        let _ = writeln!(text, "the live release does not run: {}", sanitise_line(why));
    }
    text
}

/// Renders the changes of the live data since a restore point, which a restore of this point would lose.
pub(super) fn lost(text: &mut String, diff: &DataDiff) {
    if diff.is_empty() {
        text.push_str("  none: the data is equal\n");
        return;
    }
    let _ = writeln!(
        text,
        "  {} added and {} changed ({}); {} removed, which would come back; {} with other metadata only",
        diff.added,
        diff.changed,
        size(diff.new_bytes),
        diff.removed,
        diff.metadata
    );
    list(text, diff, MAX_PREVIEW);
}

fn list(text: &mut String, diff: &DataDiff, most: usize) {
    let all = diff.added.saturating_add(diff.removed).saturating_add(diff.changed).saturating_add(diff.metadata);
    for change in diff.changes.iter().take(most) {
        let sizes = match (change.before, change.after) {
            (before, after) if before == after => format!("{after} bytes"),
            (before, after) => format!("{before} → {after} bytes"),
        };
        let _ = writeln!(text, "  {:<8} {} ({sizes})", change.change, sanitise_line(&change.path));
    }
    let shown = diff.changes.len().min(most) as u64;
    if all > shown {
        let _ = writeln!(text, "  ... and {} more", all - shown);
    }
}

/// Show the files that differ between two restore points, or between a restore point and the live data
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  larder backup diff shop latest\n  larder backup diff shop 4f1c 77ab")]
pub struct BackupDiffArgs {
    #[command(flatten)]
    on: OnTarget,
    /// Older restore point
    #[arg(value_name = "FROM")]
    from: String,
    /// Newer restore point [default: the live data]
    #[arg(value_name = "TO")]
    to: Option<String>,
}

impl Command for BackupDiffArgs {
    type Request = BackupDiff;

    fn request(self) -> Result<BackupDiff, CommandError> {
        Ok(BackupDiff { target: self.on.target, from: self.from, to: self.to })
    }

    fn show(diff: &DataDiff) -> Shown {
        let to = diff.to.as_deref().unwrap_or("the live data");
        let mut text = format!("{} → {to}\n", diff.from);
        let DataDiff { added, changed, removed, metadata, .. } = diff;
        let _ = writeln!(text, "{added} added, {changed} changed, {removed} removed, {metadata} with other metadata");
        list(&mut text, diff, MAX_ROWS);
        Shown::Page(text)
    }
}

/// Write a restore point as one archive, which `tar --zstd -x` opens
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The archive holds one directory with the name of the restore point. The directory has the captured files, the manifest `point.json`, and the digests `checksums` for `b3sum --check`. Owners, modes, times, links and holes are kept; GNU tar restores extended attributes with --xattrs --xattrs-include='*'. The server writes nothing to its disk. If the restore point is damaged, or the transfer is cut, the archive has no end, and tar fails.\n\nExamples:\n  larder backup export shop latest --output shop.tar.zst\n  ssh larder@HOST backup export shop latest > shop.tar.zst"
)]
pub struct BackupExportArgs {
    #[command(flatten)]
    on: OnTarget,
    /// Restore point
    #[arg(value_name = "POINT")]
    point: String,
    /// New file on this machine; `-` is the standard output
    #[arg(long, short = 'o', value_name = "FILE", default_value = "-")]
    output: std::path::PathBuf,
}

impl BackupExportArgs {
    /// Returns the file on the caller's machine to which the archive is written; `None` for the standard output.
    pub(super) fn output(&self) -> Option<&std::path::Path> {
        Some(self.output.as_path()).filter(|path| path.as_os_str() != "-")
    }
}

impl Command for BackupExportArgs {
    type Request = BackupExport;

    fn request(self) -> Result<BackupExport, CommandError> {
        // The local program opens the file and removes the option, because the server must not write a file that a caller names.
        if let Some(path) = self.output() {
            let why = format!("cannot write {} on the server: --output names a file of the caller's machine", path.display());
            return Err(
                CommandError::new(ErrorKind::Usage, why).hint("use `larder -r REMOTE backup export`, or redirect the output")
            );
        }
        Ok(BackupExport { target: self.on.target, point: self.point })
    }

    // The answer to this request is a stream of the archive's bytes, so there is no view to show.
    fn show((): &()) -> Shown {
        Shown::Page(String::new())
    }
}

/// Remove a restore point; other restore points keep the files that they share with it
#[derive(Debug, clap::Args)]
pub struct BackupRemoveArgs {
    #[command(flatten)]
    on: OnTarget,
    /// Restore point
    #[arg(value_name = "POINT")]
    point: String,
}

impl Command for BackupRemoveArgs {
    type Request = BackupRemove;

    fn request(self) -> Result<BackupRemove, CommandError> {
        Ok(BackupRemove { target: self.on.target, point: self.point })
    }

    fn show(view: &BackupRemoved) -> Shown {
        Shown::Done(format!("restore point {} of {} was removed", view.removed, view.environment))
    }
}
