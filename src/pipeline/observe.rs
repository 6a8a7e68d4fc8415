//! Observers, which are notified of the milestones and endings of deployments, and of the results of scheduled work. A deployment neither
//! fails nor waits because of an observer.
//!
//! The observers of the server are listed in `src/server/observers.rs`.

use std::{fmt, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::{
    FutureExt,
    future::{BoxFuture, join_all},
};
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};

use crate::{
    git::LogEntry,
    model::{CommitId, DeploymentId, Outcome, Trigger, UserName},
};

/// The time limit of one observer for one announcement.
const OBSERVER_TIMEOUT: Duration = Duration::from_secs(30);

/// The maximum number of commits in an announcement, or in a text about an announcement.
pub const MAX_COMMITS: usize = 20;

/// The maximum number of announcements that wait for one observer.
const MAX_WAITING: usize = 1024;

/// The waits before the second and the third attempt to deliver an ending.
#[cfg(not(test))]
const RETRIES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(10)];
#[cfg(test)]
const RETRIES: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(1)];

/// An event that is announced to the observers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// The first step is about to run.
    Began,
    /// The deployment has passed its commit point.
    Committed,
    /// The deployment has ended.
    Ended(Outcome),
    /// A result of the scheduled work on restore points.
    Backup(BackupNews),
    /// A person has unfrozen the environment that the deployment had frozen.
    Released {
        /// The person.
        by: UserName,
        /// True if the environment was frozen because the record of the deployment could not be used.
        was_unusable: bool,
    },
    /// A person has changed users, keys, rights, approvals or deploy windows.
    AccessChanged {
        /// The person.
        by: UserName,
        /// The request, such as `user grant`.
        what: String,
        /// The details, without secrets.
        detail: Option<String>,
    },
    /// A change of the state of a running application.
    Site(SiteNews),
    /// A change of the free space of the server's disk. The announcement names no environment.
    Disk(DiskNews),
    /// A person has created the environment.
    Created(UserName),
    /// A change of the approval of a commit.
    Approval(ApprovalNews),
    /// A person has set or ended a release freeze.
    ReleaseFreeze {
        /// The person.
        by: UserName,
        /// The new release freeze; `None` for the end of one.
        set: Option<FreezeTerms>,
    },
}

/// The terms of a release freeze.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FreezeTerms {
    /// The end in the time zone of the server, as text; `None` if a person must end the release freeze.
    pub until: Option<String>,
    /// The reason.
    pub why: String,
}

/// A change of the approval of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApprovalNews {
    /// A deployment was refused, because no second person has approved the commit.
    Wanted {
        /// The commit.
        commit: CommitId,
        /// The request that was refused.
        trigger: Trigger,
        /// The commits since the live release, newest first, and true if there are more commits. `None` if the repository has the commits; the
        /// server does not keep the objects of a refused push.
        pushed: Option<(Vec<LogEntry>, bool)>,
    },
    /// A person has approved the commit.
    Given {
        /// The commit.
        commit: CommitId,
        /// The person.
        by: UserName,
        /// The reason to permit the commit in spite of every protection; `None` for an approval.
        overriding: Option<String>,
    },
}

/// A change of the state of a running application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SiteNews {
    /// The application does not run reliably, or does not run.
    Down {
        /// The reason, as one line.
        why: String,
    },
    /// The application has run for some time without an unexpected exit.
    Up,
}

/// A change of the free space of the server's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskNews {
    /// Less space is free than deployments need.
    Low {
        /// The free bytes.
        free: u64,
        /// The bytes that must stay free.
        reserve: u64,
    },
    /// Deployments have enough space again.
    Normal {
        /// The free bytes.
        free: u64,
    },
}

/// A result of the scheduled work on restore points.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackupNews {
    /// A restore point was taken, and read back without a difference.
    Verified {
        /// The id of the restore point.
        point: String,
    },
    /// A restore point is damaged.
    Damaged {
        /// The id of the restore point.
        point: String,
        /// The defect, as one line.
        why: String,
    },
    /// A drill succeeded.
    Drilled {
        /// The id of the restore point.
        point: String,
        /// The duration in milliseconds.
        millis: u64,
    },
    /// A drill failed.
    DrillFailed {
        /// The id of the restore point.
        point: String,
        /// The reason, as one line.
        why: String,
    },
    /// A scheduled run failed.
    Failed {
        /// The failed action and its cause.
        why: String,
    },
}

/// An announcement of one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// The id of the event, which is the same for every delivery, also by a later server. An observer that must not act twice
    /// must remember the id.
    pub id: String,
    /// The moment at which this delivery was made.
    pub at: Timestamp,
    /// The environment, as `project/environment`; for [`News::AccessChanged`] also a project or `server`, for
    /// [`News::ReleaseFreeze`] also a project; empty for [`News::Disk`].
    pub environment: String,
    /// The deployment; `None` for news that concern no deployment.
    pub deployment: Option<DeploymentId>,
    /// The event.
    pub news: News,
}

/// A component that is notified of events.
pub trait Observer: Send + Sync {
    /// Returns the name for logs.
    fn name(&self) -> &'static str;

    /// Handles an announcement. An error has no effect on the deployment. A milestone is delivered at most once. Any other delivery is
    /// attempted three times. If a journal records the ending, each start of the server within a week repeats the attempts, until all
    /// observers have accepted the ending. The same id may be delivered again after a crash of the server, or if a different observer did
    /// not accept the ending.
    fn observe<'a>(&'a self, announcement: &'a Announcement) -> BoxFuture<'a, Result<(), String>>;
}

/// A delivery to an observer's task. The task sends a message after the observer has accepted the announcement, and drops the
/// sender if the observer fails.
type Delivery = (Arc<Announcement>, Option<oneshot::Sender<()>>);

/// All observers of this server. Each observer has its own task and bounded queue, so that a slow observer does not delay other
/// observers.
#[derive(Debug)]
pub struct Observers(Vec<(&'static str, mpsc::Sender<Delivery>)>);

impl Observers {
    /// Starts a task for each observer. The caller must run in the Tokio runtime.
    pub fn start(observers: impl IntoIterator<Item = Arc<dyn Observer>>) -> Observers {
        let start = |observer: Arc<dyn Observer>| {
            let (sender, deliveries) = mpsc::channel(MAX_WAITING);
            let name = observer.name();
            tokio::spawn(serve(observer, deliveries));
            (name, sender)
        };
        Observers(observers.into_iter().map(start).collect())
    }

    /// Announces a milestone. An observer whose queue is full misses the milestone.
    pub fn milestone(&self, announcement: Announcement) {
        let announcement = Arc::new(announcement);
        for (name, sender) in &self.0 {
            if sender.try_send((announcement.clone(), None)).is_err() {
                tracing::warn!(observer = name, id = announcement.id, "observer is too slow: milestone dropped");
            }
        }
    }

    /// Announces an ending to all observers at the same time. Returns true if every observer has accepted the announcement.
    pub async fn ending(&self, announcement: Announcement) -> bool {
        let announcement = Arc::new(announcement);
        let deliveries = self.0.iter().map(|(_, sender)| {
            let announcement = announcement.clone();
            async move {
                let (done, delivered) = oneshot::channel();
                sender.send((announcement, Some(done))).await.is_ok() && delivered.await.is_ok()
            }
        });
        join_all(deliveries).await.into_iter().all(|delivered| delivered)
    }
}

async fn serve(observer: Arc<dyn Observer>, mut deliveries: mpsc::Receiver<Delivery>) {
    while let Some((announcement, done)) = deliveries.recv().await {
        let delivered = deliver(&*observer, &announcement, done.is_some()).await;
        if let (Some(done), true) = (done, delivered) {
            let _ = done.send(());
        }
    }
}

/// Delivers an announcement, with retries if `again` is true. Returns true if the observer has accepted the announcement.
async fn deliver(observer: &dyn Observer, announcement: &Announcement, again: bool) -> bool {
    let retries: &[Duration] = if again { &RETRIES } else { &[] };
    let mut retries = retries.iter();
    loop {
        let observing = AssertUnwindSafe(observer.observe(announcement)).catch_unwind();
        let why = match tokio::time::timeout(OBSERVER_TIMEOUT, observing).await {
            Ok(Ok(Ok(()))) => return true,
            Ok(Ok(Err(why))) => why,
            Ok(Err(_)) => String::from("the observer panicked"),
            Err(_) => format!("the observer took longer than {} s", OBSERVER_TIMEOUT.as_secs()),
        };
        tracing::warn!(observer = observer.name(), id = announcement.id, why, "observer failed");
        match retries.next() {
            Some(wait) => tokio::time::sleep(*wait).await,
            None => return false,
        }
    }
}

impl fmt::Display for News {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            News::Began => "began",
            News::Committed => "committed",
            News::Released { .. } => "released",
            News::AccessChanged { .. } => "access_changed",
            News::Site(SiteNews::Down { .. }) => "site_down",
            News::Site(SiteNews::Up) => "site_up",
            News::Disk(DiskNews::Low { .. }) => "disk_low",
            News::Disk(DiskNews::Normal { .. }) => "disk_normal",
            News::Created(_) => "created",
            News::Approval(ApprovalNews::Wanted { .. }) => "approval_wanted",
            News::Approval(ApprovalNews::Given { .. }) => "approved",
            News::ReleaseFreeze { set: Some(_), .. } => "freeze_began",
            News::ReleaseFreeze { set: None, .. } => "freeze_ended",
            News::Backup(BackupNews::Verified { .. }) => "backup_verified",
            News::Backup(BackupNews::Damaged { .. }) => "backup_damaged",
            News::Backup(BackupNews::Drilled { .. }) => "drill_succeeded",
            News::Backup(BackupNews::DrillFailed { .. }) => "drill_failed",
            News::Backup(BackupNews::Failed { .. }) => "backup_failed",
            News::Ended(Outcome::Live { .. }) => "live",
            News::Ended(Outcome::Refused { .. }) => "refused",
            News::Ended(Outcome::RolledBack { .. }) => "rolled_back",
            News::Ended(Outcome::Tried) => "tried",
            News::Ended(Outcome::Stuck { .. }) => "stuck",
        })
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    struct Fails(Arc<Mutex<u32>>);

    impl Observer for Fails {
        fn name(&self) -> &'static str {
            "fails"
        }

        #[allow(clippy::panic)]
        fn observe<'a>(&'a self, _: &'a Announcement) -> BoxFuture<'a, Result<(), String>> {
            Box::pin(async {
                let calls = {
                    let mut calls = self.0.lock();
                    *calls += 1;
                    *calls
                };
                match calls {
                    1 => panic!("an observer that panics"),
                    2 => Err(String::from("not now")),
                    _ => Ok(()),
                }
            })
        }
    }

    #[tokio::test]
    async fn observer_that_panics_or_fails_is_retried() {
        let calls = Arc::new(Mutex::new(0));
        let observers = Observers::start([Arc::new(Fails(calls.clone())) as Arc<dyn Observer>]);
        let announcement = Announcement {
            id: String::from("x.1"),
            at: Timestamp::UNIX_EPOCH,
            environment: String::from("shop/production"),
            deployment: Some(DeploymentId::new(Timestamp::UNIX_EPOCH)),
            news: News::Ended(Outcome::Tried),
        };
        assert!(observers.ending(announcement).await);
        assert_eq!(*calls.lock(), 3);
    }

    struct FailsAlways;

    impl Observer for FailsAlways {
        fn name(&self) -> &'static str {
            "fails always"
        }

        fn observe<'a>(&'a self, _: &'a Announcement) -> BoxFuture<'a, Result<(), String>> {
            Box::pin(std::future::ready(Err(String::from("never"))))
        }
    }

    #[tokio::test]
    async fn ending_that_one_observer_rejects_is_not_delivered() {
        let calls = Arc::new(Mutex::new(2));
        let observers = Observers::start([Arc::new(FailsAlways) as Arc<dyn Observer>, Arc::new(Fails(calls.clone()))]);
        let announcement = Announcement {
            id: String::from("x.1"),
            at: Timestamp::UNIX_EPOCH,
            environment: String::from("shop/production"),
            deployment: Some(DeploymentId::new(Timestamp::UNIX_EPOCH)),
            news: News::Ended(Outcome::Tried),
        };
        assert!(!observers.ending(announcement).await);
        assert_eq!(*calls.lock(), 3, "the other observer was not notified");
    }
}
