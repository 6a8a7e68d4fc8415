//! The command `larder notify`, which shows and repeats the deliveries of mails and webhooks.

use std::fmt::Write as _;

use clap::Subcommand;

use super::{
    super::{
        command::{Asked, Asking, Command, Shown},
        text::{self, count, moment},
    },
    arguments::On,
};
use crate::{
    control::{CommandError, DeliveryReport, ErrorKind, MessageView, NotifyLog, NotifyRetry, NotifyTest},
    notify::MessageState,
};

/// Show, test and repeat the mails and webhooks about a project
#[derive(Debug, Subcommand)]
pub enum NotifyVerb {
    Test(NotifyTestArgs),
    Log(NotifyLogArgs),
    Retry(NotifyRetryArgs),
}

impl NotifyVerb {
    pub(in crate::surface::cli) async fn ask(self, asking: Asking<'_>) -> Result<Asked, CommandError> {
        match self {
            NotifyVerb::Test(command) => asking.ask(command).await,
            NotifyVerb::Log(command) => asking.ask(command).await,
            NotifyVerb::Retry(command) => asking.ask(command).await,
        }
    }
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "The recipients are those of the live release (`notify:` in larder.yml).\n\nExit status: 0 all messages were delivered, 1 otherwise.\n\nExample: larder notify test shop"
)]
/// Send a test message to all recipients of an environment
pub struct NotifyTestArgs {
    #[command(flatten)]
    on: On,
}

impl Command for NotifyTestArgs {
    type Request = NotifyTest;

    fn request(self) -> Result<NotifyTest, CommandError> {
        Ok(NotifyTest { target: self.on.target()? })
    }

    fn show(view: &DeliveryReport) -> Shown {
        Shown::Page(deliveries(view))
    }

    fn exit_code(view: &DeliveryReport) -> u8 {
        exit_code(view)
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: larder notify log shop")]
/// List the messages about a project, oldest first, with the state of their delivery
pub struct NotifyLogArgs {
    #[command(flatten)]
    on: On,
}

impl Command for NotifyLogArgs {
    type Request = NotifyLog;

    fn request(self) -> Result<NotifyLog, CommandError> {
        Ok(NotifyLog { target: self.on.target()? })
    }

    fn show(view: &Vec<MessageView>) -> Shown {
        let from = view.len().saturating_sub(text::MAX_ROWS);
        let rows = view.iter().skip(from).map(|message| {
            vec![
                moment(message.at),
                message.kind.as_str().to_owned(),
                message.to.clone(),
                state(message),
                message.subject.clone(),
            ]
        });
        Shown::Page(text::table(&["TIME (UTC)", "EVENT", "RECIPIENT", "STATE", "SUBJECT"], rows.collect()))
    }
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Messages that wait for their next attempt, and messages that failed, are attempted at once.\n\nExit status: 0 all messages were delivered, 1 otherwise.\n\nExample: larder notify retry shop"
)]
/// Attempt to deliver all waiting and failed messages about a project now
pub struct NotifyRetryArgs {
    #[command(flatten)]
    on: On,
}

impl Command for NotifyRetryArgs {
    type Request = NotifyRetry;

    fn request(self) -> Result<NotifyRetry, CommandError> {
        let target = self.on.target()?;
        if target.environment.is_some() {
            let error = CommandError::new(ErrorKind::Usage, "cannot retry the messages of a single environment");
            return Err(error.hint("name the project alone, because the messages of a project are delivered in order"));
        }
        Ok(NotifyRetry { project: target.project })
    }

    fn show(view: &DeliveryReport) -> Shown {
        Shown::Page(deliveries(view))
    }

    fn exit_code(view: &DeliveryReport) -> u8 {
        exit_code(view)
    }
}

/// Renders messages after their attempts, one line for each message.
fn deliveries(view: &DeliveryReport) -> String {
    let mut text = String::new();
    for message in &view.messages {
        let _ = writeln!(text, "{}: {} ({})", message.to, state(message), message.subject);
    }
    if view.messages.is_empty() {
        let _ = writeln!(text, "no message of {} waits, and none failed", view.project);
    }
    text
}

fn state(message: &MessageView) -> String {
    let error = message.error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
    match (message.state, message.next) {
        (MessageState::Delivered, _) => String::from("delivered"),
        (MessageState::Failed, _) => format!("failed{error}"),
        (MessageState::Waiting, Some(next)) if message.attempts > 0 => {
            format!("waiting after {}, next attempt {}{error}", count(message.attempts, "attempt"), moment(next))
        }
        (MessageState::Waiting, _) => String::from("waiting"),
    }
}

fn exit_code(view: &DeliveryReport) -> u8 {
    u8::from(view.messages.iter().any(|message| message.state != MessageState::Delivered))
}
