//! Text of answers about releases.

use jiff::Timestamp;

use super::render::table;
use crate::{
    control::{CommitsBetween, ManifestBrief, ReleaseDetail, ReleaseDiff},
    model::Outcome,
    pipeline::{KnownRelease, Summary},
    release::{Change, Way},
};

/// So many files of a comparison are shown; `--json` has all.
const SHOWN: usize = 500;

pub fn moment(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// A size for people: never more than four digits.
pub fn size(bytes: u64) -> String {
    const UNITS: [(&str, u32); 3] = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match UNITS.iter().find(|(_, shift)| bytes >> shift >= 10) {
        Some((unit, shift)) => format!("{} {unit}", bytes >> shift),
        None => format!("{bytes} bytes"),
    }
}

pub fn list(rows: &[KnownRelease]) -> String {
    // After going back the same release stands there twice; what serves is the newer line.
    let live = rows.iter().find(|row| row.live).map(|row| row.number);
    let line = |row: &KnownRelease| {
        let marks = [
            (row.pinned, "pinned"),
            (!row.installed && row.archive_bytes.is_some(), "not installed"),
            (row.number.is_none(), "never live here"),
        ];
        let marks: Vec<_> = marks.into_iter().filter(|(holds, _)| *holds).map(|(_, word)| word).collect();
        vec![
            format!("{}{}", row.name(), if row.live && live == Some(row.number) { " *" } else { "" }),
            row.build.map(|build| build.to_string()).unwrap_or_default(),
            row.commit.short().to_owned(),
            row.tag.clone().unwrap_or_default(),
            row.by.as_ref().map(ToString::to_string).unwrap_or_default(),
            row.since.map(moment).unwrap_or_default(),
            row.archive_bytes.map_or_else(|| String::from("pruned"), |bytes| format!("{} KiB", bytes.div_ceil(1024))),
            marks.join(", "),
        ]
    };
    table(&["RELEASE", "BUILD", "COMMIT", "TAG", "BY", "SINCE (UTC)", "ARCHIVE", ""], rows.iter().map(line).collect())
}

/// Lines of a name and a value.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn add(&mut self, name: &str, value: impl std::fmt::Display) {
        self.0.push_str(&format!("{name:<11} {value}\n"));
    }
}

pub fn detail(detail: &ReleaseDetail) -> String {
    let known = &detail.known;
    let mut lines = Lines::default();
    let state = [
        (known.live, String::from("live")),
        (known.installed && !known.live, String::from("installed")),
        (known.archive_bytes.is_none(), String::from("pruned")),
        (
            detail.pin.is_some(),
            detail.pin.as_ref().map(|pin| format!("pinned by {} at {}", pin.by, moment(pin.at))).unwrap_or_default(),
        ),
    ];
    let state: Vec<String> = state.into_iter().filter(|(holds, _)| *holds).map(|(_, word)| word).collect();
    lines.add("release", format!("{} ({})", known.name(), known.release));
    lines.add("state", if state.is_empty() { String::from("stored") } else { state.join(", ") });
    lines.add("commit", &known.commit);
    if !known.tags.is_empty() {
        lines.add("tag", known.tags.join(", "));
    }
    match &detail.manifest {
        Some(manifest) => brief(&mut lines, manifest),
        None => lines.add("manifest", "gone; nothing else is known"),
    }
    for summary in &detail.deployments {
        lines.add("deployed", deployed(summary));
    }
    lines.0
}

fn brief(lines: &mut Lines, manifest: &ManifestBrief) {
    lines.add("build", manifest.build);
    lines.add(
        "made",
        format!("{} UTC by {}/{} ({})", moment(manifest.created), manifest.project, manifest.environment, manifest.mode),
    );
    lines.add(
        "tree",
        format!("{} ({} files, {} entries, {})", manifest.tree, manifest.files, manifest.entries, size(manifest.bytes)),
    );
    lines.add("archive", format!("{} ({})", manifest.archive, size(manifest.archive_bytes)));
    for buildpack in &manifest.buildpacks {
        lines.add("buildpack", format!("{} {}", buildpack.name, buildpack.version));
    }
    for (process, command) in &manifest.processes {
        lines.add("process", format!("{process}: {command}"));
    }
}

fn deployed(summary: &Summary) -> String {
    let end = match &summary.outcome {
        None => String::from("under way"),
        Some(Outcome::Live { number, .. }) => format!("went live as {number} in {}", summary.slot),
        Some(Outcome::Tried) => String::from("tried and put back"),
        Some(Outcome::Refused { fault }) => format!("refused ({fault})"),
        Some(Outcome::RolledBack { fault }) => format!("put back ({fault})"),
        Some(Outcome::Stuck { fault, .. }) => format!("stuck ({fault})"),
    };
    format!("{} UTC by {}: {end}", moment(summary.opened), summary.trigger.by())
}

pub fn diff(diff: &ReleaseDiff) -> String {
    let mut text = format!("{} {} → {} {}\n", diff.from.name(), diff.from.commit.short(), diff.to.name(), diff.to.commit.short());
    commits(&mut text, diff.commits.as_ref());
    let count = |way: Way| diff.files.iter().filter(|change| change.change == way).count();
    if diff.files.is_empty() {
        text.push_str("\nThe trees are equal.\n");
        return text;
    }
    text.push_str(&format!("\n{} added, {} changed, {} removed\n", count(Way::Added), count(Way::Changed), count(Way::Removed)));
    for change in diff.files.iter().take(SHOWN) {
        text.push_str(&file(change));
    }
    if diff.files.len() > SHOWN {
        text.push_str(&format!("  ... and {} more (--json lists all)\n", diff.files.len() - SHOWN));
    }
    text
}

fn commits(text: &mut String, commits: Option<&CommitsBetween>) {
    let Some(commits) = commits else {
        text.push_str("\nThe repository does not have both commits any more.\n");
        return;
    };
    if !commits.added.is_empty() || !commits.removed.is_empty() {
        text.push('\n');
    }
    for (mark, list) in [('+', &commits.added), ('-', &commits.removed)] {
        for commit in list {
            let short = commit.commit.get(..10).unwrap_or(&commit.commit);
            text.push_str(&format!("{mark} {short} {} ({})\n", commit.subject, commit.author));
        }
    }
    if commits.more {
        text.push_str("  ... and more\n");
    }
}

fn file(change: &Change) -> String {
    let mark = match change.change {
        Way::Added => 'A',
        Way::Changed => 'M',
        Way::Removed => 'D',
    };
    let sizes = match (change.before, change.after) {
        (Some(before), Some(after)) if before == after => format!("{before} bytes"),
        (Some(before), Some(after)) => format!("{before} → {after} bytes"),
        (Some(bytes), None) | (None, Some(bytes)) => format!("{bytes} bytes"),
        (None, None) => String::new(),
    };
    let about: Vec<&str> =
        [Some(sizes.as_str()), change.note.as_deref()].into_iter().flatten().filter(|part| !part.is_empty()).collect();
    let about = if about.is_empty() { String::new() } else { format!("  ({})", about.join(", ")) };
    format!("  {mark} {}{about}\n", crate::model::sanitise_line(&change.path))
}
