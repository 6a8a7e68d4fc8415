//! [`Notifier`], the handle of the notifications for all other modules.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::sync::{Notify, watch};

use super::{
    forge, formats,
    message::{ForgeContent, MessageContent, MessageRecord, MessageState, WebhookContent},
    notification::Notification,
    queue::{MessageQueue, QueueError},
    render::MailTemplates,
    smtp,
};
use crate::{
    config::{AddressRange, ForgeConfig, MailConfig, ServerConfig, WebhookTarget},
    model::{MailAddress, ProjectName, plain_line},
};

/// The maximum length of a subject, in characters.
const MAX_SUBJECT: usize = 150;

/// The recipients of one notification.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recipients {
    /// The mail addresses.
    pub mail: Vec<MailAddress>,
    /// The receivers of webhooks.
    pub webhooks: Vec<WebhookTarget>,
}

/// The reason why a notification was not queued.
#[derive(Debug, thiserror::Error)]
#[error("cannot queue the message to {to}: {why}")]
pub struct NotifyError {
    to: String,
    why: String,
}

/// The notifications of this server; cheap to clone.
#[derive(Clone)]
pub struct Notifier(Arc<NotifierState>);

struct NotifierState {
    queue: MessageQueue,
    mail: Option<MailConfig>,
    /// The internal addresses to which webhooks may be sent.
    allowed: Vec<AddressRange>,
    forges: Vec<ForgeConfig>,
    templates: MailTemplates,
    /// Wakes the task that delivers messages.
    wake: Notify,
    /// The number of attempts that have ended, for callers that wait for a delivery.
    attempts: watch::Sender<u64>,
}

impl Notifier {
    /// Opens the queue in `directory`, with the settings of the server file. Without `mail:`, no mail is queued.
    pub fn open(directory: PathBuf, config: &ServerConfig) -> io::Result<Notifier> {
        if let Some(MailConfig { password_file: Some(file), .. }) = &config.mail
            && let Err(error) = smtp::password(file)
        {
            tracing::error!(%error, "mails cannot be sent");
        }
        let state = NotifierState {
            queue: MessageQueue::open(directory)?,
            mail: config.mail.clone(),
            allowed: config.webhooks.allow.clone(),
            forges: config.forges.clone(),
            templates: MailTemplates::new(),
            wake: Notify::new(),
            attempts: watch::Sender::new(0),
        };
        Ok(Notifier(Arc::new(state)))
    }

    /// Returns the mail settings of the server file.
    pub fn mail(&self) -> Option<&MailConfig> {
        self.0.mail.as_ref()
    }

    /// Adds a notification to the queue, once for each recipient. Recipients for which the same event was queued before are skipped. Returns
    /// the numbers of the new messages after the messages are on the disk.
    pub async fn notify(&self, notification: Notification, recipients: Recipients) -> Result<Vec<u64>, NotifyError> {
        let this = self.clone();
        let queued = tokio::task::spawn_blocking(move || this.enqueue(notification, &recipients)).await;
        let queued =
            queued.unwrap_or_else(|error| Err(NotifyError { to: String::from("all recipients"), why: error.to_string() }))?;
        if !queued.is_empty() {
            self.0.wake.notify_one();
        }
        Ok(queued)
    }

    fn enqueue(&self, notification: Notification, recipients: &Recipients) -> Result<Vec<u64>, NotifyError> {
        let notification = notification.cleaned();
        let place = notification.environment.clone().unwrap_or_else(|| String::from("larder"));
        let subject = plain_line(&format!("[{place}] {}", notification.subject), MAX_SUBJECT);
        let digest = digest(&place, &notification.id, notification.kind.as_str());
        let now = Timestamp::now();
        let record = |to: String, message_id: String| MessageRecord {
            event: notification.id.clone(),
            kind: notification.kind,
            at: notification.at,
            project: notification.project.clone(),
            environment: notification.environment.clone(),
            to,
            subject: subject.clone(),
            message_id,
            references: Vec::new(),
            queued: now,
            state: MessageState::Waiting,
            attempts: 0,
            next: now,
            error: None,
            ended: None,
        };
        let mut messages = Vec::new();
        if let Some(mail) = self.0.mail.as_ref().filter(|_| !recipients.mail.is_empty()) {
            let content = self.0.templates.render(&subject, &notification);
            let content = content.map_err(|why| NotifyError { to: String::from("all recipients"), why })?;
            let message_id = format!("<{digest}@{}>", mail.from.host());
            for to in &recipients.mail {
                messages.push((record(to.to_string(), message_id.clone()), MessageContent::Mail(content.clone())));
            }
        }
        for target in &recipients.webhooks {
            let (url, body) = formats::render(target, &subject, &notification);
            let content = WebhookContent { url, secrets: target.secrets.clone(), body };
            messages.push((record(target.url.masked(), format!("msg_{digest}")), MessageContent::Webhook(content)));
        }
        messages.extend(
            self.report(&notification).map(|(to, content)| (record(to, format!("msg_{digest}")), MessageContent::Forge(content))),
        );
        let mut queued = Vec::new();
        for (record, content) in messages {
            let to = record.to.clone();
            let added = self.0.queue.add(record, content);
            queued.extend(added.map_err(|error: QueueError| NotifyError { to, why: error.to_string() })?);
        }
        Ok(queued)
    }

    /// Returns the report about a deployment to the forge of its project, with the URL of the repository.
    fn report(&self, notification: &Notification) -> Option<(String, ForgeContent)> {
        let forge = self.forge(notification.project.as_ref()?)?;
        let (commit, branch) = notification.commit.clone()?;
        let content = ForgeContent {
            kind: notification.kind,
            commit,
            branch,
            environment: notification.environment.as_deref()?.split('/').next_back()?.to_owned(),
            description: plain_line(&notification.headline, forge::MAX_DESCRIPTION - 1),
            url: notification.url.clone(),
        };
        Some((format!("{}/{}", forge.server, forge.repository), content))
    }

    /// Returns the forge of a project.
    pub fn forge(&self, project: &ProjectName) -> Option<&ForgeConfig> {
        self.0.forges.iter().find(|forge| forge.project == *project)
    }

    /// Returns the messages of a project, or of the whole server, oldest first, each with its number.
    pub fn log(&self, project: Option<&ProjectName>) -> Vec<(u64, MessageRecord)> {
        self.0.queue.of_project(project)
    }

    /// Makes the next attempt of all waiting and failed messages of a project due now. Returns these messages, each with its number, as they
    /// were before.
    pub async fn retry(&self, project: Option<&ProjectName>) -> Vec<(u64, MessageRecord)> {
        let this = self.clone();
        let project = project.cloned();
        let retried = tokio::task::spawn_blocking(move || {
            let messages = this.0.queue.of_project(project.as_ref());
            let open: Vec<_> = messages.into_iter().filter(|(_, record)| record.state != MessageState::Delivered).collect();
            for (number, _) in &open {
                this.0.queue.change(*number, |record| {
                    let now = Timestamp::now();
                    if record.state == MessageState::Failed {
                        // The time limit for the delivery begins anew.
                        record.queued = now;
                    }
                    (record.state, record.next, record.ended) = (MessageState::Waiting, now, None);
                });
            }
            open
        });
        let retried = retried.await.unwrap_or_default();
        self.0.wake.notify_one();
        retried
    }

    /// Waits until each of the messages has had more than the given number of attempts, or was delivered, at most for `limit`. Returns the
    /// records of the messages.
    pub async fn attempted(&self, messages: &[(u64, u32)], limit: Duration) -> Vec<MessageRecord> {
        let mut attempts = self.0.attempts.subscribe();
        let record = |(number, before): &(u64, u32)| Some((self.0.queue.record(*number)?, *before));
        let all = async {
            let is_open =
                |(record, before): (MessageRecord, u32)| record.state == MessageState::Waiting && record.attempts <= before;
            while messages.iter().filter_map(record).any(is_open) && attempts.changed().await.is_ok() {}
        };
        let _ = tokio::time::timeout(limit, all).await;
        messages.iter().filter_map(record).map(|(record, _)| record).collect()
    }

    /// Returns the internal addresses to which webhooks may be sent.
    pub(super) fn allowed(&self) -> &[AddressRange] {
        &self.0.allowed
    }

    pub(super) fn queue(&self) -> &MessageQueue {
        &self.0.queue
    }

    pub(super) async fn woken(&self) {
        self.0.wake.notified().await;
    }

    pub(super) fn attempt_ended(&self) {
        self.0.attempts.send_modify(|attempts| *attempts = attempts.wrapping_add(1));
    }
}

/// Returns the part of a `Message-ID` that depends on the event. Ids of events are unique within an environment and a kind, so all three count.
fn digest(place: &str, event: &str, kind: &str) -> String {
    let digest = blake3::hash(format!("{place}\n{event}\n{kind}").as_bytes()).to_hex();
    digest.get(..40).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_event_of_another_environment_or_kind_has_another_message_id() {
        let event = digest("shop/production", "d17", "deployed");
        assert_eq!(event, digest("shop/production", "d17", "deployed"));
        for (place, id, kind) in
            [("shop/staging", "d17", "deployed"), ("shop/production", "d18", "deployed"), ("shop/production", "d17", "failed")]
        {
            assert_ne!(event, digest(place, id, kind), "{place} {id} {kind}");
        }
    }
}
