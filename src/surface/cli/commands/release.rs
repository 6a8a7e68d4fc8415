//! The commands `larder releases` and `larder release`, which list, show, compare, export, import and pin releases.

use clap::Subcommand;

use super::{
    super::{
        command::{Asked, Asking, Command, Shown},
        text::{self, MAX_ROWS, moment, size},
    },
    arguments::{On, OnTarget, release_name},
};
use crate::{
    control::{
        CommandError, CommitsBetween, Imported, ManifestBrief, ReleaseDetail, ReleaseDiff, ReleaseDiffView, ReleaseExport,
        ReleaseImport, ReleaseList, ReleasePin, ReleasePinned, ReleaseShow,
    },
    model::{Outcome, sanitise_line},
    pipeline::{KnownRelease, Summary},
    release::{Change, ChangeKind},
};

/// List the releases of an environment, newest first; a * marks the live release
#[derive(Debug, clap::Args)]
pub struct ReleaseListArgs {
    #[command(flatten)]
    on: On,
}

impl Command for ReleaseListArgs {
    type Request = ReleaseList;

    fn request(self) -> Result<ReleaseList, CommandError> {
        Ok(ReleaseList { target: self.on.target()? })
    }

    fn show(rows: &Vec<KnownRelease>) -> Shown {
        // After a rollback, two lines have the same release. Only the newer line is marked as live.
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
                configuration(row),
                row.by.as_ref().map(ToString::to_string).unwrap_or_default(),
                row.since.map(moment).unwrap_or_default(),
                row.archive_bytes.map_or_else(|| String::from("pruned"), |bytes| format!("{} KiB", bytes.div_ceil(1024))),
                marks.join(", "),
            ]
        };
        let header = ["RELEASE", "BUILD", "COMMIT", "TAG", "CONFIG", "BY", "SINCE (UTC)", "ARCHIVE", ""];
        Shown::Page(text::table(&header, rows.iter().map(line).collect()))
    }
}

/// Returns the number of a release's configuration, with the commit of the pillar.
fn configuration(row: &KnownRelease) -> String {
    let number = row.configuration.map(|number| number.to_string()).unwrap_or_default();
    let pillar = row.pillar.as_ref().map(|commit| format!(" (pillar {})", commit.short())).unwrap_or_default();
    format!("{number}{pillar}")
}

/// Show, compare, export, import and pin releases
#[derive(Debug, Subcommand)]
#[command(
    after_help = "A release is named by its number (v42), a tag of its commit (v1.4.0), its id or its commit. The first four or more characters of an id or a commit are enough. If several releases have the same commit, the commit names the newest of these releases. A name like v3 is always a number; the tag v3 is named refs/tags/v3."
)]
pub enum ReleaseVerb {
    Show(ReleaseShowArgs),
    Diff(ReleaseDiffArgs),
    Export(ReleaseExportArgs),
    Import(ReleaseImportArgs),
    Pin(ReleasePinArgs),
    Unpin(ReleaseUnpinArgs),
}

impl ReleaseVerb {
    pub(in crate::surface::cli) async fn ask(self, asking: Asking<'_>) -> Result<Asked, CommandError> {
        match self {
            ReleaseVerb::Show(command) => asking.ask(command).await,
            ReleaseVerb::Diff(command) => asking.ask(command).await,
            ReleaseVerb::Export(command) => asking.ask(command).await,
            ReleaseVerb::Import(command) => asking.ask(command).await,
            ReleaseVerb::Pin(command) => asking.ask(command).await,
            ReleaseVerb::Unpin(command) => asking.ask(command).await,
        }
    }
}

/// Show one release: commit, build, tag, digests, sizes, buildpacks, deployments
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: larder release show shop v42")]
pub struct ReleaseShowArgs {
    #[command(flatten)]
    on: OnTarget,
    /// Release [default: the live release]
    #[arg(value_name = "RELEASE", value_parser = release_name)]
    release: Option<String>,
}

impl Command for ReleaseShowArgs {
    type Request = ReleaseShow;

    fn request(self) -> Result<ReleaseShow, CommandError> {
        Ok(ReleaseShow { target: self.on.target, release: self.release })
    }

    fn show(detail: &ReleaseDetail) -> Shown {
        let known = &detail.known;
        let mut lines = Lines::default();
        let state = [
            known.live.then(|| String::from("live")),
            (known.installed && !known.live).then(|| String::from("installed")),
            known.archive_bytes.is_none().then(|| String::from("pruned")),
            detail.pin.as_ref().map(|pin| format!("pinned by {} at {}", pin.by, moment(pin.at))),
        ];
        let state: Vec<String> = state.into_iter().flatten().collect();
        lines.add("release", format!("{} ({})", known.name(), known.release));
        lines.add("state", if state.is_empty() { String::from("stored") } else { state.join(", ") });
        lines.add("commit", &known.commit);
        if !known.tags.is_empty() {
            lines.add("tag", known.tags.join(", "));
        }
        match &detail.manifest {
            Some(manifest) => brief(&mut lines, manifest),
            None => lines.add("manifest", "pruned with the archive"),
        }
        for summary in &detail.deployments {
            lines.add("deployed", deployed(summary));
        }
        Shown::Page(lines.0)
    }
}

/// Lines of a name and a value.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn add(&mut self, name: &str, value: impl std::fmt::Display) {
        self.0.push_str(&format!("{name:<11} {value}\n"));
    }
}

fn brief(lines: &mut Lines, manifest: &ManifestBrief) {
    lines.add("build", manifest.build);
    let ManifestBrief { project, environment, mode, .. } = manifest;
    lines.add("built", format!("{} UTC by {project}/{environment} ({mode})", moment(manifest.created)));
    let (files, entries) = (manifest.files, manifest.entries);
    lines.add("tree", format!("{} ({files} files, {entries} entries, {})", manifest.tree, size(manifest.bytes)));
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
        None => String::from("in flight"),
        Some(Outcome::Live { number, .. }) => format!("went live as {number} in {}", summary.slot),
        Some(Outcome::Tried) => String::from("dry run succeeded"),
        Some(Outcome::Refused { fault }) => format!("refused ({fault})"),
        Some(Outcome::RolledBack { fault }) => format!("reverted ({fault})"),
        Some(Outcome::Stuck { fault, .. }) => format!("stuck ({fault})"),
    };
    format!("{} UTC by {}: {end}", moment(summary.opened), summary.trigger.by())
}

/// Show the files and commits that differ between two releases
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: larder release diff shop v41 v42")]
pub struct ReleaseDiffArgs {
    #[command(flatten)]
    on: OnTarget,
    /// Older release
    #[arg(value_name = "FROM", value_parser = release_name)]
    from: String,
    /// Newer release [default: the live release]
    #[arg(value_name = "TO", value_parser = release_name)]
    to: Option<String>,
}

impl Command for ReleaseDiffArgs {
    type Request = ReleaseDiff;

    fn request(self) -> Result<ReleaseDiff, CommandError> {
        Ok(ReleaseDiff { target: self.on.target, from: self.from, to: self.to })
    }

    fn show(diff: &ReleaseDiffView) -> Shown {
        let (from, to) = (&diff.from, &diff.to);
        let mut text = format!("{} {} → {} {}\n", from.name(), from.commit.short(), to.name(), to.commit.short());
        commits(&mut text, diff.commits.as_ref());
        if diff.files.is_empty() {
            text.push_str("\nThe trees are equal.\n");
            return Shown::Page(text);
        }
        let count = |way: ChangeKind| diff.files.iter().filter(|change| change.change == way).count();
        let (added, changed, removed) = (count(ChangeKind::Added), count(ChangeKind::Changed), count(ChangeKind::Removed));
        text.push_str(&format!("\n{added} added, {changed} changed, {removed} removed\n"));
        for change in diff.files.iter().take(MAX_ROWS) {
            text.push_str(&file(change));
        }
        if diff.files.len() > MAX_ROWS {
            text.push_str(&format!("  ... and {} more (--json lists all)\n", diff.files.len() - MAX_ROWS));
        }
        Shown::Page(text)
    }
}

fn commits(text: &mut String, commits: Option<&CommitsBetween>) {
    let Some(commits) = commits else {
        text.push_str("\nThe repository no longer has both commits.\n");
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
        ChangeKind::Added => 'A',
        ChangeKind::Changed => 'M',
        ChangeKind::Removed => 'D',
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
    format!("  {mark} {}{about}\n", sanitise_line(&change.path))
}

/// Write a release as one file to the standard output, for another server to import
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The file holds the archive, the signed manifest and the health record.\n\nExample: larder release export shop v42 > shop-v42.tar"
)]
pub struct ReleaseExportArgs {
    #[command(flatten)]
    on: OnTarget,
    /// Release to export
    #[arg(value_name = "RELEASE", value_parser = release_name)]
    release: String,
}

impl Command for ReleaseExportArgs {
    type Request = ReleaseExport;

    fn request(self) -> Result<ReleaseExport, CommandError> {
        Ok(ReleaseExport { target: self.on.target, release: self.release })
    }

    // The answer to this request is a stream of the file's bytes, so there is no view to show.
    fn show((): &()) -> Shown {
        Shown::Page(String::new())
    }
}

/// Accept a release from an exported file, read from the standard input; nothing is deployed
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The release must be signed by a key that is trusted here: `larder key trust shop KEY`.\n\nExample: larder release import shop < shop-v42.tar"
)]
pub struct ReleaseImportArgs {
    #[command(flatten)]
    on: OnTarget,
}

impl Command for ReleaseImportArgs {
    type Request = ReleaseImport;

    fn request(self) -> Result<ReleaseImport, CommandError> {
        Ok(ReleaseImport { target: self.on.target })
    }

    fn show(view: &Imported) -> Shown {
        let Imported { environment, release, commit, build, from } = view;
        let short = commit.short();
        Shown::Done(format!(
            "{environment} has release {release} now: commit {short}, build {build}, from {from}\n\
             nothing was deployed; to deploy the release, push {short} or name the release in `larder pull`"
        ))
    }
}

/// Keep a release regardless of the limits for pruning
#[derive(Debug, clap::Args)]
pub struct ReleasePinArgs {
    #[command(flatten)]
    on: OnTarget,
    /// Release to keep
    #[arg(value_name = "RELEASE", value_parser = release_name)]
    release: String,
}

impl Command for ReleasePinArgs {
    type Request = ReleasePin;

    fn request(self) -> Result<ReleasePin, CommandError> {
        Ok(ReleasePin { target: self.on.target, release: self.release, pinned: true })
    }

    fn show(view: &ReleasePinned) -> Shown {
        Shown::Done(pinned(view))
    }
}

/// Unpin a release, so that it can be pruned again
#[derive(Debug, clap::Args)]
pub struct ReleaseUnpinArgs {
    #[command(flatten)]
    on: OnTarget,
    /// Release to unpin
    #[arg(value_name = "RELEASE", value_parser = release_name)]
    release: String,
}

impl Command for ReleaseUnpinArgs {
    type Request = ReleasePin;

    fn request(self) -> Result<ReleasePin, CommandError> {
        Ok(ReleasePin { target: self.on.target, release: self.release, pinned: false })
    }

    fn show(view: &ReleasePinned) -> Shown {
        Shown::Done(pinned(view))
    }
}

fn pinned(ReleasePinned { environment, release, pinned, changed }: &ReleasePinned) -> String {
    match (pinned, changed) {
        (true, true) => format!("{release} of {environment} stays until it is unpinned"),
        (true, false) => format!("{release} of {environment} is pinned already"),
        (false, true) => format!("{release} of {environment} can be pruned again"),
        (false, false) => format!("{release} of {environment} was not pinned"),
    }
}
