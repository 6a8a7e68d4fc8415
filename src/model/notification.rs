//! The kinds of notifications, and the addresses that receive notifications.

use serde::{Deserialize, Serialize};

use super::checked_text;

/// The maximum length of a mail address, in bytes (RFC 5321, section 4.5.3.1.3, without the angle brackets).
const MAX_ADDRESS: usize = 254;
/// The maximum length of the part before the `@`, in bytes (RFC 5321, section 4.5.3.1.1).
const MAX_LOCAL_PART: usize = 64;

checked_text!(
    /// A mail address without a display name. The address is ASCII without quotes and comments, and cannot be an option of a program.
    MailAddress,
    String,
    |text| {
        let is_atom = |c: u8| c.is_ascii_alphanumeric() || b"!#$%&'*+/=?^_`{|}~.-".contains(&c);
        let is_host = |c: u8| c.is_ascii_alphanumeric() || b".-".contains(&c);
        let has_dots = |part: &str| part.starts_with('.') || part.ends_with('.') || part.contains("..");
        let parts = text.rsplit_once('@').filter(|(local, host)| {
            (1..=MAX_LOCAL_PART).contains(&local.len())
                && !local.starts_with('-')
                && local.bytes().all(is_atom)
                && !host.is_empty()
                && !host.starts_with('-')
                && host.bytes().all(is_host)
                && !has_dots(local)
                && !has_dots(host)
        });
        match parts {
            Some(_) if text.len() <= MAX_ADDRESS => Ok(()),
            _ => Err(String::from("the value is not a mail address")),
        }
    }
);

impl MailAddress {
    /// Returns the part after the `@`.
    pub fn host(&self) -> &str {
        self.as_str().rsplit_once('@').map_or("localhost", |(_, host)| host)
    }
}

/// The kind of a notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NotificationKind {
    /// A deployment began. Only the forge of the project is told.
    Began,
    /// A release went live.
    Deployed,
    /// A deployment failed, and all its changes were reverted.
    Failed,
    /// A person made an older release live again.
    RolledBack,
    /// A deployment failed, and its changes could not be reverted. The environment is frozen.
    Stuck,
    /// A person unfroze the environment.
    Unfrozen,
    /// A scheduled restore point failed, or a restore point is damaged.
    BackupFailed,
    /// A scheduled restore point succeeded.
    BackupSucceeded,
    /// A drill failed.
    DrillFailed,
    /// A drill succeeded.
    DrillSucceeded,
    /// The web processes of the live release exit again and again, or larder has stopped them.
    SiteDown,
    /// The web processes run without an unexpected exit.
    SiteUp,
    /// The disk of the server is nearly full, so deployments are refused.
    DiskLow,
    /// The disk of the server has space again.
    DiskNormal,
    /// An environment was created.
    EnvironmentCreated,
    /// A person changed users, keys, rights, approvals or deploy windows.
    AccessChanged,
    /// A deployment was refused, because a second person must approve the commit first.
    ApprovalWanted,
    /// A person approved a commit, or permitted a commit in spite of every protection.
    Approved,
    /// A person set a release freeze.
    FreezeBegan,
    /// A person ended a release freeze.
    FreezeEnded,
    /// The summary of a month of one project.
    Summary,
    /// The weekly report about the server.
    Weekly,
    /// A test, which a person requested.
    Test,
}

/// A group of related kinds. The problems of a family and their ends form one thread of mails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NotificationFamily {
    /// Deployments and frozen environments.
    Deployment,
    /// Restore points.
    Backup,
    /// Drills.
    Drill,
    /// Running applications.
    Site,
    /// The disk of the server.
    Disk,
    /// Approvals of commits.
    Approval,
    /// Release freezes.
    Freeze,
    /// Single notifications, which belong to no thread.
    Single,
}

impl NotificationKind {
    /// Returns the name in records and payloads.
    pub fn as_str(self) -> &'static str {
        match self {
            NotificationKind::Began => "began",
            NotificationKind::Deployed => "deployed",
            NotificationKind::Failed => "failed",
            NotificationKind::RolledBack => "rolled_back",
            NotificationKind::Stuck => "stuck",
            NotificationKind::Unfrozen => "unfrozen",
            NotificationKind::BackupFailed => "backup_failed",
            NotificationKind::BackupSucceeded => "backup_succeeded",
            NotificationKind::DrillFailed => "drill_failed",
            NotificationKind::DrillSucceeded => "drill_succeeded",
            NotificationKind::SiteDown => "site_down",
            NotificationKind::SiteUp => "site_up",
            NotificationKind::DiskLow => "disk_low",
            NotificationKind::DiskNormal => "disk_normal",
            NotificationKind::EnvironmentCreated => "environment_created",
            NotificationKind::AccessChanged => "access_changed",
            NotificationKind::ApprovalWanted => "approval_wanted",
            NotificationKind::Approved => "approved",
            NotificationKind::FreezeBegan => "freeze_began",
            NotificationKind::FreezeEnded => "freeze_ended",
            NotificationKind::Summary => "summary",
            NotificationKind::Weekly => "weekly",
            NotificationKind::Test => "test",
        }
    }

    /// Returns the topic to which the recipients of a project subscribe; `None` for a test, which all recipients get, and for kinds that
    /// only administrators get.
    pub fn topic(self) -> Option<NotificationTopic> {
        match self {
            NotificationKind::Deployed => Some(NotificationTopic::Deployed),
            NotificationKind::Failed => Some(NotificationTopic::Failed),
            NotificationKind::RolledBack => Some(NotificationTopic::RolledBack),
            NotificationKind::Stuck | NotificationKind::Unfrozen => Some(NotificationTopic::Stuck),
            NotificationKind::BackupFailed
            | NotificationKind::BackupSucceeded
            | NotificationKind::DrillFailed
            | NotificationKind::DrillSucceeded => Some(NotificationTopic::Backup),
            NotificationKind::SiteDown | NotificationKind::SiteUp => Some(NotificationTopic::Site),
            NotificationKind::ApprovalWanted | NotificationKind::Approved => Some(NotificationTopic::Approval),
            NotificationKind::FreezeBegan | NotificationKind::FreezeEnded => Some(NotificationTopic::Freeze),
            NotificationKind::Summary => Some(NotificationTopic::Summary),
            NotificationKind::Began
            | NotificationKind::DiskLow
            | NotificationKind::DiskNormal
            | NotificationKind::EnvironmentCreated
            | NotificationKind::AccessChanged
            | NotificationKind::Weekly
            | NotificationKind::Test => None,
        }
    }

    /// Returns the family.
    pub fn family(self) -> NotificationFamily {
        match self {
            NotificationKind::Deployed
            | NotificationKind::Failed
            | NotificationKind::RolledBack
            | NotificationKind::Stuck
            | NotificationKind::Unfrozen => NotificationFamily::Deployment,
            NotificationKind::BackupFailed | NotificationKind::BackupSucceeded => NotificationFamily::Backup,
            NotificationKind::DrillFailed | NotificationKind::DrillSucceeded => NotificationFamily::Drill,
            NotificationKind::SiteDown | NotificationKind::SiteUp => NotificationFamily::Site,
            NotificationKind::DiskLow | NotificationKind::DiskNormal => NotificationFamily::Disk,
            NotificationKind::ApprovalWanted | NotificationKind::Approved => NotificationFamily::Approval,
            NotificationKind::FreezeBegan | NotificationKind::FreezeEnded => NotificationFamily::Freeze,
            NotificationKind::Began
            | NotificationKind::EnvironmentCreated
            | NotificationKind::AccessChanged
            | NotificationKind::Summary
            | NotificationKind::Weekly
            | NotificationKind::Test => NotificationFamily::Single,
        }
    }

    /// Returns true for a problem, which a later notification of the same family ends.
    pub fn is_problem(self) -> bool {
        matches!(
            self,
            NotificationKind::Failed
                | NotificationKind::Stuck
                | NotificationKind::BackupFailed
                | NotificationKind::DrillFailed
                | NotificationKind::SiteDown
                | NotificationKind::DiskLow
                | NotificationKind::ApprovalWanted
                | NotificationKind::FreezeBegan
        )
    }

    /// Returns true for the end of a problem that is news only for recipients who were told of the problem.
    pub fn ends_problem(self) -> bool {
        matches!(
            self,
            NotificationKind::BackupSucceeded
                | NotificationKind::DrillSucceeded
                | NotificationKind::SiteUp
                | NotificationKind::DiskNormal
        )
    }

    /// Returns true for a problem of which recipients are told once until its end.
    pub fn is_told_once(self) -> bool {
        matches!(self, NotificationKind::SiteDown | NotificationKind::DiskLow)
    }

    /// Returns true if the recipients of the project get the notification.
    pub fn concerns_project(self) -> bool {
        self.topic().is_some()
    }

    /// Returns true if the administrators of the server get the notification.
    pub fn concerns_administrators(self) -> bool {
        match self {
            NotificationKind::Began
            | NotificationKind::Deployed
            | NotificationKind::Failed
            | NotificationKind::RolledBack
            | NotificationKind::Summary
            | NotificationKind::Test => false,
            NotificationKind::Stuck
            | NotificationKind::Unfrozen
            | NotificationKind::BackupFailed
            | NotificationKind::BackupSucceeded
            | NotificationKind::DrillFailed
            | NotificationKind::DrillSucceeded
            | NotificationKind::SiteDown
            | NotificationKind::SiteUp
            | NotificationKind::DiskLow
            | NotificationKind::DiskNormal
            | NotificationKind::EnvironmentCreated
            | NotificationKind::AccessChanged
            | NotificationKind::ApprovalWanted
            | NotificationKind::Approved
            | NotificationKind::FreezeBegan
            | NotificationKind::FreezeEnded
            | NotificationKind::Weekly => true,
        }
    }
}

/// A topic to which the recipients of a project subscribe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NotificationTopic {
    /// Releases that went live.
    Deployed,
    /// Failed deployments.
    Failed,
    /// Older releases that a person made live again.
    RolledBack,
    /// Frozen environments, and their unfreezing.
    Stuck,
    /// Failed restore points and drills, and their next success.
    Backup,
    /// Applications that do not run, and that run again.
    Site,
    /// Commits that wait for the approval of a second person, and their approval.
    Approval,
    /// Release freezes, and their end.
    Freeze,
    /// The monthly summary.
    Summary,
}

impl NotificationTopic {
    /// The topics with their words in recipes.
    pub const WORDS: [(&'static str, NotificationTopic); 9] = [
        ("deployed", NotificationTopic::Deployed),
        ("failed", NotificationTopic::Failed),
        ("rolled-back", NotificationTopic::RolledBack),
        ("stuck", NotificationTopic::Stuck),
        ("backup", NotificationTopic::Backup),
        ("site", NotificationTopic::Site),
        ("approval", NotificationTopic::Approval),
        ("freeze", NotificationTopic::Freeze),
        ("summary", NotificationTopic::Summary),
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_that_could_be_a_header_or_an_option_is_refused() {
        for good in ["ops@example.com", "a.b+shop@mail.example.com", "root@localhost"] {
            assert_eq!(good.parse::<MailAddress>().unwrap().as_str(), good);
        }
        let long = format!("{}@example.com", "x".repeat(65));
        for bad in [
            "",
            "ops",
            "@example.com",
            "ops@",
            "ops@example.com\r\nBcc: eve@example.com",
            "-oQ/tmp@example.com",
            "ops@-example.com",
            "ops @example.com",
            "Ops <ops@example.com>",
            "\"a b\"@example.com",
            "a..b@example.com",
            "m\u{fc}ller@example.com",
            &long,
        ] {
            assert!(bad.parse::<MailAddress>().is_err(), "{bad:?}");
        }
    }
}
