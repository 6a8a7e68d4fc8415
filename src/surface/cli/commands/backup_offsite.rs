//! The commands `larder backup copy` and `larder backup import`, and the lines about off-site copies that other commands show.

use std::{fmt::Write as _, path::PathBuf};

use super::{
    super::{
        command::{Command, Shown},
        text::{self, count, moment, size},
    },
    arguments::{On, OnTarget},
};
use crate::{
    control::{
        BackupCopy, BackupImport, CommandError, CopyReport, CopyView, ErrorKind, ImportSource, ImportView, StoreSummary,
        StoredCopy,
    },
    model::sanitise_line,
};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "larder does the same after each restore point and once a day. `backup.offsite` in the server file names the stores.\n\nExit status: 0 all copies are good, 1 a store failed or a copy is damaged."
)]
/// Copy the restore points to the off-site stores now, and check the stores by reading
pub struct BackupCopyArgs {
    #[command(flatten)]
    on: On,
}

impl Command for BackupCopyArgs {
    type Request = BackupCopy;

    fn request(self) -> Result<BackupCopy, CommandError> {
        Ok(BackupCopy { target: self.on.target()? })
    }

    fn show(view: &CopyReport) -> Shown {
        let mut text = String::new();
        for store in &view.stores {
            text.push_str(&lines(store));
        }
        Shown::Page(text)
    }

    fn exit_code(view: &CopyReport) -> u8 {
        u8::from(view.stores.iter().any(|store| failure(store).is_some()))
    }
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "The restore point is stored beside the restore points of this machine and read back; the live data does not change. Then restore it with `larder backup restore`. Only the command line on the server may name a store with --from. The file with the password must belong to larder's user and have mode 0600.\n\nExamples:\n  larder backup import shop --list\n  larder backup import shop latest\n  larder backup import shop latest --from sftp://backup@example.com/larder --password-file /etc/larder/offsite.password"
)]
/// Bring a restore point from an off-site store into the environment, for example on a new machine
pub struct BackupImportArgs {
    #[command(flatten)]
    on: OnTarget,
    /// Restore point
    #[arg(value_name = "POINT", default_value = "latest")]
    point: String,
    /// List the restore points in the store, and change nothing
    #[arg(long)]
    list: bool,
    /// Store, as `url` in backup.offsite; by default the first store of the server file
    #[arg(long, value_name = "URL", requires = "password_file")]
    from: Option<String>,
    /// File with the password of the store
    #[arg(long, value_name = "FILE", requires = "from")]
    password_file: Option<PathBuf>,
    /// File with the credentials of a bucket, or the private key for sftp
    #[arg(long, value_name = "FILE", requires = "from")]
    credentials_file: Option<PathBuf>,
}

impl Command for BackupImportArgs {
    type Request = BackupImport;

    fn request(self) -> Result<BackupImport, CommandError> {
        let paths = [&self.password_file, &self.credentials_file];
        if paths.into_iter().flatten().any(|path| !path.is_absolute()) {
            return Err(CommandError::new(
                ErrorKind::Usage,
                "the path of the file is not absolute (expected a path such as /etc/larder/offsite.password)",
            ));
        }
        let from = self.from.zip(self.password_file);
        let credentials_file = self.credentials_file;
        let from = from.map(|(url, password_file)| ImportSource { url, password_file, credentials_file });
        let point = Some(self.point).filter(|_| !self.list);
        Ok(BackupImport { target: self.on.target, from, point })
    }

    fn show(view: &ImportView) -> Shown {
        match view {
            ImportView::List { environment, copies } => {
                let row = |copy: &StoredCopy| {
                    let snapshot = copy.snapshot.get(..8).unwrap_or(&copy.snapshot);
                    vec![copy.id.clone(), copy.taken.map(moment).unwrap_or_default(), snapshot.to_owned()]
                };
                let mut text = text::table(&["RESTORE POINT", "TAKEN (UTC)", "SNAPSHOT"], copies.iter().map(row).collect());
                let _ = writeln!(text, "\n{environment}: {} in the store", count(copies.len() as u64, "restore point"));
                Shown::Page(text)
            }
            ImportView::Imported(point) => {
                let files = count(point.counts.files, "file");
                let mut text =
                    format!("{} has the restore point {}: {files} ({})\n", point.environment, point.id, size(point.counts.bytes));
                let _ = writeln!(text, "to restore it: larder backup restore {} {}", point.environment, point.id);
                Shown::Done(text)
            }
        }
    }
}

/// Renders the copies of one restore point, for a list.
pub(super) fn copies(copies: &[CopyView]) -> String {
    let one = |copy: &CopyView| match &copy.defect {
        Some(defect) => format!("{}: {}", copy.state, sanitise_line(defect)),
        None => copy.state.to_owned(),
    };
    if copies.is_empty() { String::from("none") } else { copies.iter().map(one).collect::<Vec<_>>().join(", ") }
}

/// Renders the failures of a store; `None` if its last cycle found no defect.
pub(super) fn failure(store: &StoreSummary) -> Option<String> {
    let url = &store.url;
    let mut all = Vec::new();
    if let Some(why) = &store.failure {
        all.push(format!("the copies to {url} failed: {}", sanitise_line(why)));
    }
    match (store.damaged, store.defects.first()) {
        (_, None) => {}
        (0, Some(first)) => all.push(format!("the store {url} is damaged: {}", sanitise_line(first))),
        (number, Some(first)) => {
            all.push(format!("{} in {url} damaged or missing: {}", count(number, "copy"), sanitise_line(first)));
        }
    }
    if let Some(point) = &store.rival {
        all.push(format!("another server has copied {point} to the same repository in {url}; no copy is removed for 48 hours"));
    }
    let retry = store.retry.map(|at| format!("; next attempt {} UTC", moment(at))).unwrap_or_default();
    (!all.is_empty()).then(|| all.join("; ") + &retry)
}

/// Renders a store as lines of a page.
pub(super) fn lines(store: &StoreSummary) -> String {
    let checked = store.checked.map(|at| format!(", checked {} UTC", moment(at))).unwrap_or_default();
    let mut text = format!("off-site {}: {} copied, {} read back{checked}\n", store.url, store.copies, store.verified);
    if let Some(failure) = failure(store) {
        let _ = writeln!(text, "failure: {failure}");
    }
    text
}
