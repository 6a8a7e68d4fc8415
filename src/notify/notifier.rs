//! [`Notifier`], the handle of the notifications for all other modules.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::sync::{Notify, watch};

use super::{
    message::{MessageContent, MessageRecord, MessageState},
    notification::Notification,
    queue::{MessageQueue, QueueError},
    render::MailTemplates,
    smtp,
};
use crate::{
    config::MailConfig,
    model::{MailAddress, ProjectName, plain_line},
};

/// The maximum length of a subject, in characters.
const MAX_SUBJECT: usize = 150;

/// The recipients of one notification.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recipients {
    /// The mail addresses.
    pub mail: Vec<MailAddress>,
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
    templates: MailTemplates,
    /// Wakes the task that delivers messages.
    wake: Notify,
    /// The number of attempts that have ended, for callers that wait for a delivery.
    attempts: watch::Sender<u64>,
}

impl Notifier {
    /// Opens the queue in `directory`. Without `mail`, no mail is queued.
    pub fn open(directory: PathBuf, mail: Option<MailConfig>) -> io::Result<Notifier> {
        if let Some(MailConfig { password_file: Some(file), .. }) = &mail
            && let Err(error) = smtp::password(file)
        {
            tracing::error!(?error, "mails cannot be sent");
        }
        let state = NotifierState {
            queue: MessageQueue::open(directory)?,
            mail,
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
        let Some(mail) = &self.0.mail else { return Ok(Vec::new()) };
        let notification = notification.cleaned();
        let place = notification.environment.clone().unwrap_or_else(|| String::from("larder"));
        let subject = plain_line(&format!("[{place}] {}", notification.subject), MAX_SUBJECT);
        let content = self.0.templates.render(&subject, &notification);
        let digest = blake3::hash(notification.id.as_bytes()).to_hex();
        let message_id = format!("<{}@{}>", digest.get(..40).unwrap_or_default(), mail.from.host());
        let now = Timestamp::now();
        let mut queued = Vec::new();
        for to in &recipients.mail {
            let failed = |why: String| NotifyError { to: to.to_string(), why };
            let content: MessageContent = content.clone().map_err(failed)?;
            let record = MessageRecord {
                event: notification.id.clone(),
                kind: notification.kind,
                at: notification.at,
                project: notification.project.clone(),
                environment: notification.environment.clone(),
                to: to.to_string(),
                subject: subject.clone(),
                message_id: message_id.clone(),
                references: Vec::new(),
                queued: now,
                state: MessageState::Waiting,
                attempts: 0,
                next: now,
                error: None,
                ended: None,
            };
            queued.extend(self.0.queue.add(record, content).map_err(|error: QueueError| failed(error.to_string()))?);
        }
        Ok(queued)
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
