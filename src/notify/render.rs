//! Renders a notification as the text and the HTML of a mail.

use minijinja::{Environment, Value, syntax::SyntaxConfig, value::Serde};

use super::{message::MailContent, notification::Notification};

/// The templates of mails.
pub(super) struct MailTemplates(Environment<'static>);

impl MailTemplates {
    pub fn new() -> MailTemplates {
        let mut templates = Environment::new();
        // Lines with a tag alone leave no empty line.
        match SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
            Ok(syntax) => templates.set_syntax(syntax),
            Err(error) => tracing::error!(%error, "cannot set the syntax of the templates"),
        }
        // The name determines if values are escaped for HTML.
        for (name, source) in
            [("mail.txt", include_str!("templates/mail.txt")), ("mail.html", include_str!("templates/mail.html"))]
        {
            // The tests below fail if a template cannot be parsed.
            if let Err(error) = templates.add_template(name, source) {
                tracing::error!(name, %error, "cannot parse the template of mails");
            }
        }
        MailTemplates(templates)
    }

    /// Renders a notification. `title` is the subject of the mail.
    pub fn render(&self, title: &str, notification: &Notification) -> Result<MailContent, String> {
        let at = notification.at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string();
        let values = minijinja::context! { title, at, n => Value::from(Serde(notification)) };
        let render = |name: &str| {
            let rendered = self.0.get_template(name).and_then(|template| template.render(values.clone()));
            rendered.map_err(|error| format!("cannot render the mail: {error}"))
        };
        Ok(MailContent { text: render("mail.txt")?, html: render("mail.html")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::NotificationKind,
        notify::{Advice, CommitChange, FailureReport},
    };

    fn hostile() -> Notification {
        let text = "<script>alert(1)</script>\r\n\u{1b}[31m\u{202e}{{ 7*7 }}&\"'";
        let mut notification = Notification::new(
            String::from("x.1"),
            NotificationKind::Failed,
            jiff::Timestamp::UNIX_EPOCH,
            text.to_owned(),
            text.to_owned(),
        );
        notification.serves = Some(text.to_owned());
        notification.url = Some(String::from("http://shop.localhost:8080"));
        notification.failure = Some(FailureReport {
            phase: String::from("build"),
            why: text.to_owned(),
            hints: vec![text.to_owned()],
            output: vec!["x".repeat(1 << 20); 1000],
        });
        notification.changes_title = String::from("Changes");
        let change = CommitChange { commit: String::from("1a2b3c"), title: text.to_owned(), author: text.to_owned() };
        notification.changes = vec![change; 100];
        notification.facts = vec![(String::from("Started by"), text.to_owned())];
        notification.advice = vec![Advice { text: text.to_owned(), command: Some(text.to_owned()) }];
        notification.cleaned()
    }

    #[test]
    fn hostile_texts_are_escaped_and_limited() {
        let content = MailTemplates::new().render("title", &hostile()).unwrap();
        assert!(!content.html.contains("<script") && content.html.contains("&lt;script&gt;"), "{}", content.html);
        assert!(content.html.contains("{{ 7*7 }}"));
        for text in [&content.text, &content.html] {
            assert!(text.len() < 100_000, "{} bytes", text.len());
            assert!(!text.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}'), "{text}");
        }
        assert!(content.text.contains("<script>alert(1)</script>"), "plain text needs no escapes: {}", content.text);
        assert!(
            content.text.matches("1a2b3c").count() == 20 && content.text.contains("... and older commits"),
            "{}",
            content.text
        );
    }

    #[test]
    fn plain_text_has_everything_that_html_has() {
        let mut notification = hostile();
        for (number, text) in [&mut notification.headline, &mut notification.changes_title].into_iter().enumerate() {
            *text = format!("sentence {number}");
        }
        let content = MailTemplates::new().render("title", &notification).unwrap();
        let html = content.html.replace("&#x2f;", "/");
        for part in
            ["sentence 0", "sentence 1", "1a2b3c", "http://shop.localhost:8080", "Started by", "build", "1970-01-01 00:00:00 UTC"]
        {
            assert!(content.text.contains(part) && html.contains(part), "{part} is missing:\n{}", content.text);
        }
        assert!(!content.text.contains("\n\n\n"), "{}", content.text);
    }
}
