//! Text of answers about drift.

use super::{
    render::table,
    render_releases::{moment, size},
};
use crate::{
    control::{DriftReport, PatchDetail, PatchRow},
    model::sanitise_line,
    pipeline::LastLook,
    release::drift::{Drifted, Kept},
};

/// So many changes are shown; `--json` has all.
const SHOWN: usize = 500;

pub fn report(report: &DriftReport) -> String {
    let (changes, noise) = report.drift.counts();
    let name = format!("{} of {}", report.live.number, report.environment);
    let mut text = match (changes, noise) {
        (0, 0) => format!("{name} runs as it was released.\n"),
        (0, noise) => format!("{name} runs as it was released, but for {noise} that are to be expected:\n"),
        (changes, 0) => format!("{changes} changed by hand in {name}:\n"),
        (changes, noise) => format!("{changes} changed by hand in {name}, and {noise} that are to be expected:\n"),
    };
    let (real, expected): (Vec<_>, Vec<_>) = report.drift.changes.iter().partition(|change| change.noise.is_none());
    let all: Vec<&Drifted> = real.into_iter().chain(expected).collect();
    for change in all.iter().take(SHOWN) {
        text.push_str(&line(change));
    }
    let more = (all.len().saturating_sub(SHOWN) as u64).saturating_add(report.drift.left_out);
    if more > 0 {
        text.push_str(&format!("  ... and {more} more\n"));
    }
    match &report.tree {
        None => {}
        Some(tree) if tree.differences.is_empty() => text.push_str("The installed tree is what its manifest says.\n"),
        Some(tree) => {
            text.push_str("The installed tree is NOT what its manifest says; deploy again to replace it:\n");
            for one in tree.differences.iter().take(SHOWN) {
                text.push_str(&format!("  {} {}\n", sanitise_line(&one.path), one.what));
            }
        }
    }
    match &report.patch {
        Some(id) => {
            let lost = report.drift.real().filter(|change| change.kept == Kept::No).count() as u64;
            if lost.saturating_add(report.drift.left_out) > 0 {
                text.push_str("Not all of it could be kept; see above.\n");
            }
            text.push_str(&format!("Kept as patch {id}: larder drift {} --show {id}\n", report.environment));
        }
        None if changes > 0 => text.push_str(&format!("To keep it: larder drift {} --save\n", report.environment)),
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

pub fn patches(rows: &[PatchRow]) -> String {
    let line = |row: &PatchRow| {
        vec![
            row.id.clone(),
            row.number.map_or_else(|| row.release.to_string(), |number| number.to_string()),
            row.commit.short().to_owned(),
            row.by.as_ref().map_or_else(|| String::from("(by itself)"), ToString::to_string),
            moment(row.created),
            row.changes.to_string(),
        ]
    };
    table(&["PATCH", "OF", "COMMIT", "KEPT BY", "AT (UTC)", "CHANGES"], rows.iter().map(line).collect())
}

/// The text comes as it is, so that it can be handed on; what is no text is told behind it, where `git apply` does not look.
pub fn patch(detail: &PatchDetail) -> String {
    let mut text = detail.text.clone();
    let others: Vec<_> = detail.patch.changes.iter().filter(|change| !matches!(change.kept, Kept::Text { .. })).collect();
    if !others.is_empty() {
        text.push_str(&format!("\nBesides, in patch {}:\n", detail.patch.id));
    }
    for change in others {
        let how = match change.kept {
            Kept::Whole => "kept as a whole",
            Kept::Listed | Kept::Text { .. } => "",
            Kept::No => "not kept",
        };
        text.push_str(&format!("{} {how}", line(change).trim_end()).trim_end().to_owned().as_str());
        text.push('\n');
    }
    text
}

/// A few words for an overview.
pub fn brief(last: Option<&LastLook>) -> String {
    match last {
        Some(last) if last.changes > 0 => {
            format!("{} changed by hand (at {})", last.changes, last.at.strftime("%H:%M"))
        }
        _ => String::new(),
    }
}
