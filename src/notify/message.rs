//! The file format of a message: one notification to one recipient. The state of the delivery is in the same file, so that one atomic write
//! records each change.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    config::WebhookSecret,
    model::{NotificationKind, ProjectName},
};

/// The version of the file format that this program writes.
pub(super) const VERSION: u32 = 1;

/// A message without its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageRecord {
    /// The id of the event.
    pub event: String,
    /// The kind of the notification.
    pub kind: NotificationKind,
    /// The time of the event.
    pub at: Timestamp,
    /// The project; `None` if the notification concerns the whole server.
    pub project: Option<ProjectName>,
    /// The environment, as `project/environment`.
    pub environment: Option<String>,
    /// The recipient: a mail address, or the masked URL of a webhook.
    pub to: String,
    /// The subject.
    pub subject: String,
    /// The `Message-ID` of a mail or the `webhook-id` of a webhook, which depends on the event only.
    pub message_id: String,
    /// The `Message-ID`s of the earlier messages of the thread, oldest first.
    pub references: Vec<String>,
    /// The time at which the message was added to the queue.
    pub queued: Timestamp,
    /// The state of the delivery.
    pub state: MessageState,
    /// The number of failed attempts.
    pub attempts: u32,
    /// The time of the next attempt.
    pub next: Timestamp,
    /// The reason why the last attempt failed.
    pub error: Option<String>,
    /// The end of the delivery.
    pub ended: Option<Timestamp>,
}

/// The state of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MessageState {
    /// The message waits for an attempt.
    Waiting,
    /// The recipient's server has accepted the message.
    Delivered,
    /// The message cannot be delivered. No attempt follows unless a person requests it.
    Failed,
}

impl MessageRecord {
    /// Returns the key that identifies the event and the recipient. A message is queued once for each key.
    pub(super) fn key(&self) -> String {
        // Ids of events are unique within an environment. A scheduled run that was interrupted has the same id again, but may end otherwise.
        let environment = self.environment.as_deref().unwrap_or_default();
        format!("{environment}\n{}\n{}\n{}", self.event, self.kind.as_str(), self.to)
    }

    /// Returns the lane. The messages of a lane are delivered one after another, in the order of their events.
    pub(super) fn lane(&self) -> Lane {
        Lane(self.project.clone(), self.to.clone())
    }
}

/// The messages of one project to one recipient.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Lane(Option<ProjectName>, String);

impl Lane {
    /// Returns true if the messages of both lanes are of the same project.
    pub fn shares_project_with(&self, other: &Lane) -> bool {
        self.0 == other.0
    }
}

/// The content of a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "channel", rename_all = "snake_case")]
pub(super) enum MessageContent {
    /// A mail.
    Mail(MailContent),
    /// A webhook.
    Webhook(WebhookContent),
    /// A report to a forge.
    Forge(ForgeContent),
}

/// A report about a deployment to the forge of its repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ForgeContent {
    /// The kind, which determines the state.
    pub kind: NotificationKind,
    /// The full id of the commit.
    pub commit: String,
    /// The branch.
    pub branch: String,
    /// The name of the environment.
    pub environment: String,
    /// The state in one sentence.
    pub description: String,
    /// The address of the application.
    pub url: Option<String>,
}

/// The two parts of a mail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MailContent {
    /// The plain text.
    pub text: String,
    /// The HTML.
    pub html: String,
}

/// The request of a webhook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct WebhookContent {
    /// The URL, which may contain a secret.
    pub url: String,
    /// The secrets that sign the request.
    pub secrets: Vec<WebhookSecret>,
    /// The body, which is JSON.
    pub body: String,
}

/// A message as its file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredMessage {
    pub version: u32,
    #[serde(flatten)]
    pub record: MessageRecord,
    /// The content; absent after the delivery.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<MessageContent>,
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    /// Returns the record of a message that waits.
    pub fn record(event: &str, to: &str, kind: NotificationKind) -> MessageRecord {
        MessageRecord {
            event: event.to_owned(),
            kind,
            at: Timestamp::UNIX_EPOCH,
            project: Some("shop".parse().unwrap()),
            environment: Some(String::from("shop/production")),
            to: to.to_owned(),
            subject: String::from("subject"),
            message_id: format!("<{event}@example.com>"),
            references: Vec::new(),
            queued: Timestamp::UNIX_EPOCH,
            state: MessageState::Waiting,
            attempts: 0,
            next: Timestamp::UNIX_EPOCH,
            error: None,
            ended: None,
        }
    }
}
