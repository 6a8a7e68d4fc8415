//! The bodies of webhooks: the format of Standard Webhooks, and those of chat servers.

use serde_json::{Value, json};

use super::notification::Notification;
use crate::config::{WebhookFormat, WebhookTarget};

/// The maximum length of a text for a chat server, in characters. Discord allows 2000.
const MAX_TEXT: usize = 1900;
/// The maximum number of commits in a text for a chat server.
const MAX_CHANGES: usize = 5;

/// Returns the URL and the body of a webhook.
pub(super) fn render(target: &WebhookTarget, title: &str, notification: &Notification) -> (String, String) {
    let url = target.url.to_string();
    let text = || text(title, notification);
    let body = match target.format() {
        WebhookFormat::Standard => {
            json!({ "type": notification.kind.as_str(), "timestamp": notification.at.to_string(), "data": notification })
        }
        // Slack interprets these three characters only: https://docs.slack.dev, "Formatting message text".
        WebhookFormat::Slack => json!({ "text": text().replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;") }),
        // A zero-width space keeps a text of a project from addressing all members of a channel.
        WebhookFormat::Mattermost => json!({ "text": text().replace('@', "@\u{200b}") }),
        WebhookFormat::Discord => json!({ "content": text(), "allowed_mentions": { "parse": [] } }),
        WebhookFormat::Ntfy => return ntfy(target, title, notification, &text()),
    };
    (url, body.to_string())
}

/// Returns the URL and the body for ntfy, which takes JSON at the root of the server, with the topic as a field.
fn ntfy(target: &WebhookTarget, title: &str, notification: &Notification, text: &str) -> (String, String) {
    let (root, topic) = target.url.topic();
    let priority = if notification.kind.is_problem() { 4 } else { 3 };
    let mut body = json!({ "topic": topic, "title": title, "message": text, "priority": priority });
    if let (Some(url), Value::Object(fields)) = (&notification.url, &mut body) {
        fields.insert(String::from("click"), json!(url));
    }
    (root, body.to_string())
}

/// Returns the text of a notification for a chat server.
fn text(title: &str, notification: &Notification) -> String {
    let mut lines = vec![title.to_owned()];
    lines.extend(notification.serves.clone());
    if let Some(failure) = &notification.failure {
        lines.push(format!("{}: {}", failure.phase, failure.why));
    }
    let shown = notification.changes.iter().take(MAX_CHANGES);
    lines.extend(shown.map(|change| format!("- {} {} ({})", change.commit, change.title, change.author)));
    if notification.more_changes || notification.changes.len() > MAX_CHANGES {
        lines.push(String::from("- ... and older commits"));
    }
    lines.extend(notification.advice.iter().filter_map(|advice| Some(format!("{}: {}", advice.text, advice.command.as_ref()?))));
    lines.extend(notification.url.clone());
    lines.join("\n").chars().take(MAX_TEXT).collect()
}
