//! The command `larder drift`, which shows and saves changes that were made by hand.

use super::{
    super::{
        command::{Command, Shown},
        text::{self, MAX_ROWS, moment, size},
    },
    arguments::On,
};
use crate::{
    control::{self, CommandError, DriftAction, DriftReport, DriftView, PatchDetail, PatchRow},
    drift::{Drifted, SavedAs},
    model::sanitise_line,
    pipeline::LastScan,
};

/// Show or save changes that were made by hand to the live release
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The files of the live release are compared with the files that its processes see at /app, and the installed tree with its manifest. Files in data/ are not part of a release. Expected changes, such as caches and logs, are marked; `drift: {ignore: [...]}` in larder.yml adds patterns of expected changes.\n\nChanges are also saved automatically before a slot is emptied; the last 20 such patches are kept. The key `drift:` in larder.yml sets the reaction of a deployment to changes.\n\nExamples:\n  larder drift shop\n  larder drift shop --save\n  larder drift shop --show 3f9a1c > hotfix.diff"
)]
pub struct DriftArgs {
    #[command(flatten)]
    on: On,
    #[command(flatten)]
    action: Action,
}

#[derive(Debug, clap::Args)]
#[group(multiple = false)]
struct Action {
    /// Compare the slot only; skip the comparison of the installed tree
    #[arg(long)]
    quick: bool,
    /// Save the changes as a patch, which is kept until it is dropped
    #[arg(long)]
    save: bool,
    /// List the patches
    #[arg(long)]
    patches: bool,
    /// Show a patch; `git apply` accepts its text
    #[arg(long, value_name = "ID")]
    show: Option<String>,
    /// Delete a patch
    #[arg(long, value_name = "ID")]
    drop: Option<String>,
}

impl Command for DriftArgs {
    type Request = control::DriftRequest;

    fn request(self) -> Result<control::DriftRequest, CommandError> {
        let action = match self.action {
            Action { save: true, .. } => DriftAction::Save,
            Action { patches: true, .. } => DriftAction::Patches,
            Action { show: Some(patch), .. } => DriftAction::ShowPatch { patch },
            Action { drop: Some(patch), .. } => DriftAction::DropPatch { patch },
            Action { quick, .. } => DriftAction::Show { quick },
        };
        Ok(control::DriftRequest { target: self.on.target()?, action })
    }

    fn show(view: &DriftView) -> Shown {
        match view {
            DriftView::Report(report) => Shown::Page(self::report(report)),
            DriftView::Patches(rows) => Shown::Page(patches(rows)),
            DriftView::Patch(detail) => Shown::Verbatim(patch(detail)),
            DriftView::Dropped { environment, dropped } => {
                Shown::Done(format!("the patch {dropped} of {environment} was deleted"))
            }
        }
    }
}

fn report(report: &DriftReport) -> String {
    let (changes, expected) = report.drift.counts();
    let name = format!("{} of {}", report.live.number, report.environment);
    let mut text = match (changes, expected) {
        (0, 0) => format!("{name} runs as it was released.\n"),
        (0, expected) => format!("{name} runs as it was released, except for {}:\n", text::count(expected, "expected change")),
        (changes, 0) => format!("{} changed by hand in {name}:\n", text::count(changes, "file")),
        (changes, expected) => {
            let (files, others) = (text::count(changes, "file"), text::count(expected, "expected change"));
            format!("{files} changed by hand in {name}, and {others}:\n")
        }
    };
    let (by_hand, noise): (Vec<_>, Vec<_>) = report.drift.changes.iter().partition(|change| change.noise.is_none());
    let all: Vec<&Drifted> = by_hand.into_iter().chain(noise).collect();
    for change in all.iter().take(MAX_ROWS) {
        text.push_str(&line(change));
    }
    let more = (all.len().saturating_sub(MAX_ROWS) as u64).saturating_add(report.drift.left_out);
    if more > 0 {
        text.push_str(&format!("  ... and {more} more\n"));
    }
    match &report.tree {
        None => {}
        Some(tree) if tree.differences.is_empty() => text.push_str("The installed tree matches its manifest.\n"),
        Some(tree) => {
            text.push_str("The installed tree does NOT match its manifest; deploy again to replace it:\n");
            for one in tree.differences.iter().take(MAX_ROWS) {
                text.push_str(&format!("  {} {}\n", sanitise_line(&one.path), one.what));
            }
        }
    }
    match &report.patch {
        Some(id) => {
            let lost = report.drift.real().filter(|change| change.kept == SavedAs::No).count() as u64;
            if lost.saturating_add(report.drift.left_out) > 0 {
                text.push_str("Some changes could not be saved; see above.\n");
            }
            text.push_str(&format!("Saved as patch {id}: larder drift {} --show {id}\n", report.environment));
        }
        None if changes > 0 => text.push_str(&format!("To save the changes: larder drift {} --save\n", report.environment)),
        None => {}
    }
    text
}

fn line(change: &Drifted) -> String {
    let sizes = match (change.was.as_ref().and_then(|was| was.size()), change.now.as_ref().and_then(|now| now.size())) {
        (Some(was), Some(now)) if was != now => format!("{was} → {} ", size(now)),
        (None, Some(now)) => format!("{} ", size(now)),
        _ => String::new(),
    };
    let why = [change.odd.as_deref(), change.noise.as_deref()].into_iter().flatten().collect::<Vec<_>>().join(", ");
    let about = format!("{sizes}{}", if why.is_empty() { String::new() } else { format!("[{why}]") });
    format!("  {:<8} {}  {about}", change.change.as_str(), sanitise_line(&change.path)).trim_end().to_owned() + "\n"
}

fn patches(rows: &[PatchRow]) -> String {
    let line = |row: &PatchRow| {
        vec![
            row.id.clone(),
            row.number.map_or_else(|| row.release.to_string(), |number| number.to_string()),
            row.commit.short().to_owned(),
            row.by.as_ref().map_or_else(|| String::from("(automatic)"), ToString::to_string),
            moment(row.created),
            row.changes.to_string(),
        ]
    };
    text::table(&["PATCH", "OF", "COMMIT", "SAVED BY", "AT (UTC)", "CHANGES"], rows.iter().map(line).collect())
}

/// Renders a patch: first its text, unchanged, then a list of the changes that the text does not contain. `git apply` ignores this list.
fn patch(detail: &PatchDetail) -> String {
    let mut text = detail.text.clone();
    let others: Vec<_> = detail.patch.changes.iter().filter(|change| !matches!(change.kept, SavedAs::Text { .. })).collect();
    if !others.is_empty() {
        text.push_str(&format!("\nFurther changes in patch {}:\n", detail.patch.id));
    }
    for change in others {
        let how = match change.kept {
            SavedAs::Whole => "saved as a whole",
            SavedAs::Listed | SavedAs::Text { .. } => "",
            SavedAs::No => "not saved",
        };
        let shown = format!("{} {how}", line(change).trim_end());
        text.push_str(shown.trim_end());
        text.push('\n');
    }
    text
}

/// Renders the number of changes for an overview. Returns an empty text if nothing was changed by hand.
pub(super) fn brief(last: Option<&LastScan>) -> String {
    match last {
        Some(last) if last.changes > 0 => {
            format!("{} changed by hand (at {})", text::count(last.changes, "file"), last.at.strftime("%H:%M"))
        }
        _ => String::new(),
    }
}
