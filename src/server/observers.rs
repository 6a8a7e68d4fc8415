//! The observers of this server: the list of all observers, and the observers that are too small for separate files.
//!
//! To add an observer, write `impl Observer` in a file below `src/server/observers/`, and add the file's `mod` line and the observer's
//! entry in [`all`] here.

mod access_mail;
mod deployment_mail;
mod event_mail;
mod notify;

use std::{
    collections::HashSet,
    fs::{self, OpenOptions},
    future::ready,
    io::Write as _,
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use futures_util::future::BoxFuture;

pub(super) use self::notify::recipients;

use crate::{
    control::Control,
    notify::Notifier,
    pipeline::observe::{Announcement, ApprovalNews, BackupNews, DiskNews, News, Observer, SiteNews},
};

/// Creates the observers of this server. `control` is set before the first announcement.
pub fn all(notifier: &Notifier, control: &Arc<OnceLock<Control>>) -> impl Iterator<Item = Arc<dyn Observer>> + use<> {
    let notifications = notify::Notifications::new(notifier.clone(), control.clone());
    let observers: [Option<Arc<dyn Observer>>; 3] = [Some(Arc::new(ServerLog)), Some(Arc::new(notifications)), test_observer()];
    observers.into_iter().flatten()
}

/// The observer that writes announcements to the server's log.
#[derive(Debug, Clone, Copy)]
struct ServerLog;

impl Observer for ServerLog {
    fn name(&self) -> &'static str {
        "log"
    }

    fn observe<'a>(&'a self, announcement: &'a Announcement) -> BoxFuture<'a, Result<(), String>> {
        let Announcement { id, environment, news, .. } = announcement;
        let deployment = announcement.deployment.map(|deployment| deployment.to_string()).unwrap_or_default();
        match news {
            News::Ended(outcome) => tracing::info!(id, environment, deployment, ?outcome, "deployment ended"),
            News::Released { by, .. } => tracing::info!(id, environment, deployment, %by, "environment unfrozen"),
            News::Backup(BackupNews::Verified { point }) => {
                tracing::info!(id, environment, point, "scheduled restore point is ok")
            }
            News::Backup(BackupNews::Damaged { point, why }) => {
                tracing::error!(id, environment, point, why, "restore point is damaged")
            }
            News::Backup(BackupNews::Drilled { point, millis }) => {
                tracing::info!(id, environment, point, millis, "drill succeeded")
            }
            News::Backup(BackupNews::DrillFailed { point, why }) => tracing::error!(id, environment, point, why, "drill failed"),
            News::Backup(BackupNews::Failed { why }) => tracing::error!(id, environment, why, "scheduled restore point failed"),
            News::AccessChanged { by, what, detail } => {
                tracing::info!(id, on = environment, %by, what, detail, "access changed");
            }
            News::Site(SiteNews::Down { why }) => tracing::error!(id, environment, why, "site is down"),
            News::Site(SiteNews::Up) => tracing::debug!(id, environment, "site is up"),
            News::Disk(DiskNews::Low { free, .. }) => tracing::error!(id, free, "the disk is low; deployments are refused"),
            News::Disk(DiskNews::Normal { free }) => tracing::debug!(id, free, "the disk has space"),
            News::Created(by) => tracing::info!(id, environment, %by, "environment created"),
            News::Approval(ApprovalNews::Wanted { commit, trigger, .. }) => {
                tracing::info!(id, environment, %commit, by = %trigger.by(), "approval wanted");
            }
            News::Approval(ApprovalNews::Given { commit, by, overriding }) => {
                tracing::info!(id, environment, %commit, %by, overriding, "commit approved");
            }
            News::ReleaseFreeze { by, set: Some(terms) } => {
                tracing::info!(id, on = environment, %by, until = terms.until, why = terms.why, "release freeze set");
            }
            News::ReleaseFreeze { by, set: None } => tracing::info!(id, on = environment, %by, "release freeze ended"),
            News::Began | News::Committed => tracing::debug!(id, environment, deployment, ?news, "deployment continues"),
        }
        Box::pin(ready(Ok(())))
    }
}

/// Returns the observer that `FAILPOINTS="observer=return(FILE)"` adds. Returns `None` without this failpoint.
fn test_observer() -> Option<Arc<dyn Observer>> {
    fail::fail_point!("observer", |file| file.map(|file| Arc::new(TestFile::new(file.into())) as Arc<dyn Observer>));
    None
}

/// An observer for tests, which appends a line to a file for each announcement. The observer ignores an id that an earlier server has
/// announced, because a server may repeat an announcement of a killed server. An id that this server announces twice is written twice, so
/// that tests fail.
#[allow(dead_code)] // Without failpoints, no code creates this type.
struct TestFile {
    path: PathBuf,
    /// The ids that were in the file when this server started.
    earlier: HashSet<String>,
}

#[allow(dead_code)]
impl TestFile {
    fn new(path: PathBuf) -> TestFile {
        let text = fs::read_to_string(&path).unwrap_or_default();
        let earlier = text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect();
        TestFile { path, earlier }
    }
}

impl Observer for TestFile {
    fn name(&self) -> &'static str {
        "tests"
    }

    fn observe<'a>(&'a self, announcement: &'a Announcement) -> BoxFuture<'a, Result<(), String>> {
        let write = || {
            let line = format!("{} {} {}\n", announcement.id, announcement.environment, announcement.news);
            let mut file = OpenOptions::new().create(true).append(true).open(&self.path)?;
            if self.earlier.contains(&announcement.id) { Ok(()) } else { file.write_all(line.as_bytes()) }
        };
        Box::pin(ready(write().map_err(|error: std::io::Error| error.to_string())))
    }
}
