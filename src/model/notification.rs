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
    /// A test, which a person requested.
    Test,
}

/// A group of related kinds. The problems of a family and their ends form one thread of mails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NotificationFamily {
    /// Deployments and frozen environments.
    Deployment,
    /// Single notifications, which belong to no thread.
    Single,
}

impl NotificationKind {
    /// Returns the name in records and payloads.
    pub fn as_str(self) -> &'static str {
        match self {
            NotificationKind::Deployed => "deployed",
            NotificationKind::Failed => "failed",
            NotificationKind::RolledBack => "rolled_back",
            NotificationKind::Stuck => "stuck",
            NotificationKind::Unfrozen => "unfrozen",
            NotificationKind::Test => "test",
        }
    }

    /// Returns the topic to which recipients subscribe; `None` for a test, which all recipients get.
    pub fn topic(self) -> Option<NotificationTopic> {
        match self {
            NotificationKind::Deployed => Some(NotificationTopic::Deployed),
            NotificationKind::Failed => Some(NotificationTopic::Failed),
            NotificationKind::RolledBack => Some(NotificationTopic::RolledBack),
            NotificationKind::Stuck | NotificationKind::Unfrozen => Some(NotificationTopic::Stuck),
            NotificationKind::Test => None,
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
            NotificationKind::Test => NotificationFamily::Single,
        }
    }

    /// Returns true for a problem, which a later notification of the same family ends.
    pub fn is_problem(self) -> bool {
        matches!(self, NotificationKind::Failed | NotificationKind::Stuck)
    }

    /// Returns true if the administrators of the server get the notification, besides the recipients of the project.
    pub fn concerns_administrators(self) -> bool {
        matches!(self, NotificationKind::Stuck | NotificationKind::Unfrozen)
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
}

impl NotificationTopic {
    /// The topics with their words in recipes.
    pub const WORDS: [(&'static str, NotificationTopic); 4] = [
        ("deployed", NotificationTopic::Deployed),
        ("failed", NotificationTopic::Failed),
        ("rolled-back", NotificationTopic::RolledBack),
        ("stuck", NotificationTopic::Stuck),
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
