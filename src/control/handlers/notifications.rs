//! The requests about notifications: a test message, the log of the deliveries, and a new attempt. All of them need the right to push: the
//! recipients are in the project's own recipe, and no text of the caller is sent.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    control::{
        authz::Needs,
        error::{CommandError, refused},
        request::{Context, Reply, Request},
    },
    model::{Access, NotificationKind, Project, ProjectName, Target},
    notify::{MessageRecord, MessageState, Notification, Recipients},
};

/// The time for which a request waits for the deliveries that it has started.
const DELIVERY_WAIT: Duration = Duration::from_secs(20);

/// A message of a project, without its content.
#[derive(Debug, Clone, Serialize)]
pub struct MessageView {
    /// The time of the event.
    pub at: Timestamp,
    /// The kind of the notification: such as `deployed`, `failed` or `test`.
    pub kind: NotificationKind,
    /// The environment, as `project/environment`.
    pub environment: Option<String>,
    /// The recipient: a mail address, or the URL of a webhook without its path.
    pub to: String,
    /// The subject.
    pub subject: String,
    /// The `Message-ID` of a mail, or the `webhook-id` of a webhook.
    pub message_id: String,
    /// The state: `waiting`, `delivered` or `failed`.
    pub state: MessageState,
    /// The number of failed attempts.
    pub attempts: u32,
    /// The time of the next attempt; absent unless the message waits.
    pub next: Option<Timestamp>,
    /// The end of the delivery.
    pub ended: Option<Timestamp>,
    /// The reason why the last attempt failed.
    pub error: Option<String>,
}

impl From<MessageRecord> for MessageView {
    fn from(record: MessageRecord) -> MessageView {
        MessageView {
            at: record.at,
            kind: record.kind,
            environment: record.environment,
            to: record.to,
            subject: record.subject,
            message_id: record.message_id,
            state: record.state,
            attempts: record.attempts,
            next: (record.state == MessageState::Waiting).then_some(record.next),
            ended: record.ended,
            error: record.error,
        }
    }
}

/// The answer to [`NotifyTest`] and [`NotifyRetry`]: the messages after their attempts.
#[derive(Debug, Clone, Serialize)]
pub struct DeliveryReport {
    /// The project.
    pub project: ProjectName,
    /// The messages.
    pub messages: Vec<MessageView>,
}

/// The request to send a test message to all recipients of an environment.
#[derive(Debug)]
pub struct NotifyTest {
    /// The environment.
    pub target: Target,
}

impl Request for NotifyTest {
    type View = DeliveryReport;
    const NAME: &'static str = "notify test";

    fn needs(&self) -> Needs {
        Needs::environment(&self.target, Access::Push)
    }

    async fn handle(self, Context { control, caller }: &Context<'_>) -> Result<Reply<DeliveryReport>, CommandError> {
        let environment = control.environment(&self.target)?;
        let title = environment.title();
        let pipeline = control.pipeline();
        let notifier = &pipeline.services().notifier;
        let settings = pipeline.live_settings(&environment).map(|settings| settings.notify).unwrap_or_default();
        let recipients = Recipients { mail: settings.mail, webhooks: settings.webhooks };
        if recipients == Recipients::default() {
            return Err(refused(format!("cannot send a test message: the live release of {title} names no recipients"))
                .hint("add `notify: {mail: [ADDRESS]}` to larder.yml, and push"));
        }
        if notifier.mail().is_none() && recipients.webhooks.is_empty() {
            return Err(refused("cannot send a test message: this server sends no mail")
                .hint("ask an operator to add the section `mail:` to the server file"));
        }
        let now = Timestamp::now();
        let by = caller.name();
        let mut notification = Notification::new(
            format!("test.{}", uuid::Uuid::now_v7()),
            NotificationKind::Test,
            now,
            String::from("test message"),
            format!("{by} requested this test message for {title}. Mails about {title} reach you."),
        );
        (notification.project, notification.environment) = (Some(environment.project.clone()), Some(title));
        let queued = notifier.notify(notification, recipients).await.map_err(|error| CommandError::internal(&error))?;
        let queued: Vec<_> = queued.into_iter().map(|number| (number, 0)).collect();
        let messages = notifier.attempted(&queued, DELIVERY_WAIT).await.into_iter().map(MessageView::from).collect();
        Ok(DeliveryReport { project: environment.project, messages }.into())
    }
}

/// The request to list the messages of a project.
#[derive(Debug)]
pub struct NotifyLog {
    /// The project, or one environment.
    pub target: Target,
}

impl Request for NotifyLog {
    type View = Vec<MessageView>;
    const NAME: &'static str = "notify log";

    fn needs(&self) -> Needs {
        Needs::parts(&self.target, Access::Push)
    }

    async fn handle(self, Context { control, caller }: &Context<'_>) -> Result<Reply<Vec<MessageView>>, CommandError> {
        let project = control.visible_project(caller, &self.target.project)?;
        if self.target.environment.is_some() {
            control.environment(&self.target)?;
        }
        let title = self.target.environment.map(|environment| format!("{}/{environment}", project.name));
        let messages = control.pipeline().services().notifier.log(Some(&project.name)).into_iter();
        let wanted = messages.filter(|(_, record)| (title.is_none() || record.environment == title) && visible(&project, record));
        Ok(wanted.map(|(_, record)| record.into()).collect::<Vec<_>>().into())
    }
}

/// The request to attempt all open deliveries of a project now.
#[derive(Debug)]
pub struct NotifyRetry {
    /// The project. An environment is not possible, because the messages of a project are delivered in order.
    pub project: ProjectName,
}

impl Request for NotifyRetry {
    type View = DeliveryReport;
    const NAME: &'static str = "notify retry";

    fn needs(&self) -> Needs {
        Needs::project(&self.project, Access::Push)
    }

    async fn handle(self, Context { control, caller }: &Context<'_>) -> Result<Reply<DeliveryReport>, CommandError> {
        let project = control.visible_project(caller, &self.project)?;
        let notifier = &control.pipeline().services().notifier;
        let open = notifier.retry(Some(&project.name)).await;
        let open: Vec<_> = open.into_iter().map(|(number, record)| (number, record.attempts)).collect();
        let messages = notifier.attempted(&open, DELIVERY_WAIT).await.into_iter();
        let messages = messages.filter(|record| visible(&project, record)).map(MessageView::from).collect();
        Ok(DeliveryReport { project: project.name, messages }.into())
    }
}

/// Returns true for a message about an environment that the caller of a request may see, or about the project itself.
fn visible(project: &Project, record: &MessageRecord) -> bool {
    record.environment.as_ref().is_none_or(|title| project.environments.iter().any(|one| one.title() == *title))
}
